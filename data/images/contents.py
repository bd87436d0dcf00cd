"""Say what a file is that cannot be read as an image or as a table."""

import re

BEGINNING = 1000  # bytes that are looked at
# Regular expression of the beginning of a file -> what it is.
CONTENTS = {
    rb'\x89PNG\r\n': 'a PNG',
    rb'\xff\xd8\xff': 'a JPEG',
    rb'II[*+]\0|MM\0[*+]': 'a TIFF',
    rb'(?s)BM.{4}\0{4}': 'a BMP',
    rb'(?s)RIFF.{4}WEBP': 'a WebP',
    rb'\Z': 'empty',
    rb'PAR1[\0-\x08\x0e-\x1f\x7f-\xff]': 'a Parquet file',
    rb'\0+\Z': 'zero bytes, at least at its beginning',
    rb'\0\0\0\x0cjP  |\xff\x4f\xff\x51': 'a JPEG 2000 image',
    rb'%PDF': 'a PDF',
    rb'(?s).{344}n[+i]1\0': 'a NIfTI image',
    # The first names in the archive.
    rb'(?s)PK\x03\x04.{26}(\[Content_Types\]|_rels/|docProps/|xl/)': (
        'an Office file, such as a workbook of Excel (.xlsx)'
    ),
    rb'(?s)PK\x03\x04.{26}mimetype': 'an OpenDocument file (.ods, .odt), to save in another format',
    rb'\xd0\xcf\x11\xe0': 'a file of an old Office (.xls, .doc), to save in a newer format',
    rb'\x80[\x02-\x05]': 'a pickle of Python, which may run code',
    rb'ARROW1|FEA1': 'an Arrow or Feather file',
    rb'\x1f\x8b|PK\x03\x04|7z\xbc\xaf|Rar!|BZh\d1AY|\xfd7zXZ': (
        'a compressed archive, to unpack first'
    ),
    rb'version https://git-lfs': 'a Git LFS pointer; `git lfs pull` gets the file',
    rb'/annex/objects/': 'a git-annex pointer; `git annex get` gets the file',
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
