"""Write, copy and verify the files of packed image stores (data/images/store.py)."""

import json
import logging
import os
import shutil
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd

from data.images.store import Store
from data.images.store_manifest import (
    BAD_FILE,
    STORE_FILE,
    checksum,
    file_problem,
    file_problems,
    read_manifest,
)
from system.files import BLOCK_BYTES, atomic_writer, locked, replace_file

LOCK_FILE = 'store.lock'
COPY_THREADS = 4  # several readers make better use of a network drive


def verify(path: str | os.PathLike[str]) -> list[str]:
    """Read every byte of a store and return a list of problems."""
    try:
        manifest = read_manifest(path)
        if problems := file_problems(Path(path), manifest, every_byte=True):
            return problems
        Store(path)
    except ValueError as error:
        return [str(error)]
    return []


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Write store.json or packing.json with a checksum."""
    replace_file(file, json.dumps({**content, 'crc32': checksum(content)}, indent=1) + '\n')


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the list of images that were left out, and store.json, which completes the store."""
    if manifest['left_out']:
        bad = pd.DataFrame(manifest['left_out'].items(), columns=['file', 'problem'])
        text = bad.to_csv(index=False)
        replace_file(folder / BAD_FILE, text.encode('utf-8', 'backslashreplace'))
    write_json(folder / STORE_FILE, manifest)


def copy_store(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    logger: logging.Logger | None = None,
) -> Path:
    """Copy a store, for example from a network drive to the disk of a node; return the target.

    Several processes may call this at once: one copies and the others wait. Every file is checked
    while it is copied, and store.json is written last. An interrupted copy is resumed after a check
    of the existing files; a complete copy is not changed.

    Raises:
        ValueError: If a checksum differs, or if the disk is too small.
    """
    source, target = Path(source), Path(target)
    manifest = read_manifest(source)
    if source.resolve() == target.resolve() or _is_copied(target, manifest):
        return target
    if logger is not None:
        logger.info(f'copying {source} to {target}, or waiting for another process that copies it')
    with locked(target / LOCK_FILE, wait=True):
        if _is_copied(target, manifest):
            return target
        (target / STORE_FILE).unlink(missing_ok=True)
        missing = {
            name: numbers
            for name, numbers in manifest['files'].items()
            if file_problem(target / name, *numbers)
        }
        needed, free = sum(size for size, _ in missing.values()), shutil.disk_usage(target).free
        if needed > free:
            raise ValueError(
                f'{needed / 1e9:.2f} GB do not fit: {target} has {free / 1e9:.2f} GB free'
            )

        def copy(name: str) -> None:
            copy_file(source / name, target / name, *missing[name])

        with ThreadPoolExecutor(COPY_THREADS) as pool:
            list(pool.map(copy, missing))
        write_manifest(target, manifest)
    return target


def copy_file(source: Path, target: Path, size: int, crc32: int) -> None:
    """Copy a file and check its size and CRC-32; the target is never incomplete."""
    if problem := file_problem(source, size, None):  # opening a pipe would wait for ever
        raise ValueError(problem)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(source, 'rb') as reader, atomic_writer(target) as writer:
            found_size = found_crc = 0
            while block := reader.read(BLOCK_BYTES):
                found_size, found_crc = found_size + len(block), zlib.crc32(block, found_crc)
                writer.write(block)
            if (found_size, found_crc) != (size, crc32):
                raise ValueError(f'{source} was changed: the size or the checksum differs')
    except OSError as error:
        raise ValueError(f'{source} cannot be copied to {target.parent}: {error}') from error


def _is_copied(target: Path, manifest: dict[str, Any]) -> bool:
    try:
        return read_manifest(target) == manifest and not file_problems(target, manifest)
    except ValueError:
        return False
