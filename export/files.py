"""Exports on disk: whole or not at all, and never in the place of something else."""

import os
import shutil
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path


def check_output(path: Path, *, overwrite: bool, own: Container[str] = ()) -> None:
    """Refuse an output that may not be written.

    Args:
        path: a file, or a folder if `own` names files.
        overwrite: whether an export that is there is replaced.
        own: names of the files that an export's folder may have; in no other folder is anything
            replaced.

    Raises:
        ValueError: naming the path, and what is in the way.
    """
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise ValueError(f'{path} is there already (--overwrite replaces it)')
    if path.is_dir() != bool(own):
        raise ValueError(f'{path}: --output must be a {"folder" if own else "file"}')
    others = [name for name in (sorted(os.listdir(path)) if own else []) if name not in own]
    if others:
        raise ValueError(
            f'{path}: --overwrite replaces an export alone, and the folder has {others[0]!r}, too'
        )


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A temporary file beside the path, which takes its place if no error comes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.stem}.tmp{path.suffix}')  # some writers ask for the suffix
    try:
        yield temporary
        _to_disk(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside the path, which takes its place if no error comes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (path.with_name(f'.{path.name}.{kind}') for kind in ('tmp', 'old'))
    if old.exists() and not path.exists():
        old.rename(path)  # a process was killed between the two renames below
    for left in (temporary, old):
        shutil.rmtree(left, ignore_errors=True)
    try:
        temporary.mkdir()
        yield temporary
        for file in temporary.iterdir():
            _to_disk(file)
        if path.exists():
            path.rename(old)  # a folder with files is not replaced in one step
        try:
            temporary.rename(path)
        except BaseException:
            if old.exists():
                old.rename(path)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _to_disk(path: Path) -> None:
    with open(path, 'rb') as file:
        os.fsync(file.fileno())
