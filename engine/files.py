"""Checksums of files."""

import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BLOCK_BYTES = 2**22
LOCK_FILE = 'store.lock'
BUSY = (errno.EACCES, errno.EAGAIN)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def replace_file(path: Path, data: bytes) -> None:
    """Write a file so that the old one, or none, is there until all of the new one is."""
    temporary = path.with_name(f'{path.name}.tmp')
    try:
        with open(temporary, 'wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def locked(folder: Path, *, wait: bool, name: str = LOCK_FILE) -> Iterator[None]:
    """Keep other processes out of a folder; the lock ends with the process, however that ends.

    Where the file system has no locks, such as some network drives, nobody is kept out.

    Raises:
        ValueError: if another process holds the lock and `wait` is False.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / name, 'a') as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if error.errno in BUSY:
                raise ValueError(f'another process is writing to {folder}') from None
            if error.errno not in NO_LOCKS:
                raise
        yield


def in_one_line(error: Exception) -> str:
    """Type and first two lines of an error of a library: compilers give the cause in the second."""
    lines = [line.strip() for line in f'{type(error).__name__}: {error}'.splitlines()]
    return ' '.join([line for line in lines if line][:2])
