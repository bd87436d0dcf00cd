"""Say what a file is that cannot be read as an image."""

import re

BEGINNING = 1000  # bytes that are looked at
# Regular expression of the beginning of a file -> what it is.
CONTENTS = {
    rb'\x89PNG\r\n': 'a PNG',
    rb'\xff\xd8\xff': 'a JPEG',
    rb'II[*+]\0|MM\0[*+]': 'a TIFF',
    rb'BM': 'a BMP',
    rb'(?s)RIFF.{4}WEBP': 'a WebP',
    rb'\Z': 'empty',
    rb'\0+\Z': 'zero bytes, at least at its beginning',
    rb'\0\0\0\x0cjP  |\xff\x4f\xff\x51': 'a JPEG 2000 image',
    rb'%PDF': 'a PDF',
    rb'(?s).{344}n[+i]1\0': 'a NIfTI image',
    rb'\x1f\x8b|PK\x03\x04|7z\xbc\xaf|Rar!|BZh|\xfd7zXZ': 'a compressed archive, to unpack first',
    rb'version https://git-lfs': 'a Git LFS pointer; `git lfs pull` gets the image',
    rb'/annex/objects/': 'a git-annex pointer; `git annex get` gets the image',
    rb'(?is)(\xef\xbb\xbf)?\s*(<!--.{0,999}?-->\s*)?<(!doctype html|html|head|body|title)': (
        'a web page (HTML), such as the login or error page of a download'
    ),
    # ASCII, UTF-8 (whose last character may be cut) and UTF-16
    rb'([\t\n\r -~]|[\xc2-\xf4][\x80-\xbf]*)+\Z|\xff\xfe[\t\n\r -~]\0|\xfe\xff\0': (
        'text, such as the error message of a download'
    ),
}


def describe_contents(data: bytes) -> str:
    """Say what a file is by its first bytes; '' if they are not known."""
    start = data[:BEGINNING]
    return next((name for pattern, name in CONTENTS.items() if re.match(pattern, start)), '')
