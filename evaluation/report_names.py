"""What a report calls images, studies, patients and files: their names, or salted hashes."""

import hashlib
import hmac
import os
import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data.predictions import normalise_name

SALT_FILE = 'anonymise_salt'
SALT_BYTES = 32
DIGITS = 16  # hexadecimal


class Names:
    """Names as they are."""

    def __call__(self, name: str) -> str:
        """Of an image, a study or a patient."""
        return name

    def file(self, path: str | Path) -> str:
        """Of a file or a folder on this machine."""
        return str(path)


class HashedNames(Names):
    """Salted hashes: the same wherever the salt is, and to be had from a name with the salt alone.

    A name's hash is the first 16 hexadecimal digits of the HMAC-SHA256, keyed by the salt, of what
    `normalise_name` leaves of it. Files go by their last part.
    """

    def __init__(self, folder: Path) -> None:
        self.key = read_salt(folder)
        self.known: dict[str, str] = {}

    def __call__(self, name: str) -> str:
        plain = normalise_name(name)
        text = plain.encode('utf-8', 'surrogateescape')
        hashed = hmac.new(self.key, text, hashlib.sha256).hexdigest()[:DIGITS]
        if self.known.setdefault(hashed, plain) != plain:
            raise ValueError(f'two names have the hash {hashed}: remove {SALT_FILE} for another')
        return hashed

    def file(self, path: str | Path) -> str:
        return Path(path).name


def names_for(folder: Path, *, anonymise: bool) -> Names:
    """The names of the reports of a folder; with `anonymise`, its salt is made if it has none."""
    return HashedNames(folder) if anonymise else Names()


def read_salt(folder: Path) -> bytes:
    """The salt of a folder's reports, made if there is none; its owner alone can read the file.

    Raises:
        ValueError: if the file is not one that this function made.
    """
    path = folder / SALT_FILE
    if not path.exists():
        _make_salt(path)
    try:
        key = bytes.fromhex(path.read_text(encoding='ascii'))
    except ValueError:
        key = b''
    if len(key) != SALT_BYTES:
        raise ValueError(f'{path} holds no salt: restore it, or remove it and get other names')
    return key


def rename_images(document: dict[str, Any], name: Callable[[str], str]) -> None:
    """Give every image and study that a report's document names another name, in place."""
    entries = [error for scored in document['sets'] for error in scored['worst_errors']]
    for entry in [*entries, *document['maps']]:
        entry['path'] = name(entry['path'])


def _make_salt(path: Path) -> None:
    """Write a salt whole or not at all; one that another process made meanwhile stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    number, temporary = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}')  # of mode 600
    try:
        with open(number, 'w', encoding='ascii') as file:
            file.write(secrets.token_hex(SALT_BYTES))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)  # unlike a renaming, it leaves a file that is there
        except FileExistsError:
            return
        except OSError:  # a file system without links
            os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
