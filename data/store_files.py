"""The files of a packed store: written whole or not at all, locked, and copied to a node."""

import csv
import io
import logging
import os
import shutil
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from checksums import locked, replace_file
from data.packed import BAD_FILE, BLOCK_BYTES, STORE_FILE, file_crc32, file_problems, read_about

COPY_THREADS = 4  # a network drive gives more to several readers


def copy_store(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    logger: logging.Logger | None = None,
) -> Path:
    """Copy a store, such as from a network drive to a node's own disk; returns the target.

    Any number of processes may call it at once: one copies, the others wait.  Every file is
    checked while it is copied, and gets its name when it is whole, `store.json` last.  A copy that
    was broken off goes on, after a check of what is there; one that is complete is left as it is.

    Raises:
        ValueError: if a file of the source is not what was packed, or the disk is too small.
    """
    source, target = Path(source), Path(target)
    if source.resolve() == target.resolve():
        return target
    about = read_about(source)
    contents = (source / STORE_FILE).read_bytes()
    if _is_copied(target, about, contents):
        return target
    if logger is not None:
        logger.info(f'copying {source} to {target}, or waiting for another process that does')
    with locked(target, wait=True):
        if _is_copied(target, about, contents):
            return target
        store_file = target / STORE_FILE
        store_file.unlink(missing_ok=True)
        for path in target.glob('*.tmp'):  # of a copy that was broken off
            path.unlink()
        start = time.perf_counter()
        sizes = {
            name: size
            for name, (size, crc) in about['files'].items()
            if not _is_whole(target / name, size, crc)
        }
        check_space(target, sum(sizes.values()))
        with ThreadPoolExecutor(COPY_THREADS) as pool:
            copies = [
                pool.submit(copy_file, source / name, target / name, *about['files'][name])
                for name in sizes
            ]
            try:
                for copy in copies:
                    copy.result()
            finally:
                pool.shutdown(cancel_futures=True)  # after a failure the rest is of no use
        write_bad(target, about)
        replace_file(store_file, contents)
        if logger is not None:
            seconds = time.perf_counter() - start
            logger.info(
                f'copied {sum(sizes.values()) / 1e9:.2f} GB of {source} to {target} '
                f'in {seconds:.1f} s'
            )
    return target


def copy_file(source: Path, target: Path, size: int, crc32: int) -> None:
    """Copy a file that must have this size and checksum; the target is whole or not there."""
    found_size, found_crc = 0, 0
    temporary = target.with_name(f'{target.name}.tmp')
    try:
        with open(source, 'rb') as reader, open(temporary, 'wb') as writer:
            while block := reader.read(BLOCK_BYTES):
                found_size, found_crc = found_size + len(block), zlib.crc32(block, found_crc)
                writer.write(block)
            writer.flush()
            os.fsync(writer.fileno())
    except OSError as error:
        raise ValueError(f'{source} cannot be copied to {target.parent}: {error}') from error
    if (found_size, found_crc) != (size, crc32):
        temporary.unlink()
        raise ValueError(f'{source} is not what it was: its checksum differs')
    os.replace(temporary, target)


def write_bad(folder: Path, about: dict[str, Any]) -> None:
    """Write what store.json says was left out as a table, if anything was."""
    if about['left_out']:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator='\n')
        writer.writerow(('file', 'problem'))
        writer.writerows(about['left_out'].items())
        replace_file(folder / BAD_FILE, text.getvalue().encode('utf-8', 'backslashreplace'))


def check_space(folder: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed_bytes > free:
        raise ValueError(
            f'{needed_bytes / 1e9:.2f} GB do not fit: {folder} has {free / 1e9:.2f} GB free'
        )


def _is_copied(target: Path, about: dict[str, Any], contents: bytes) -> bool:
    store_file = target / STORE_FILE
    if not store_file.is_file() or store_file.read_bytes() != contents:
        return False
    return not file_problems(target, about)


def _is_whole(path: Path, size: int, crc: int) -> bool:
    return path.is_file() and path.stat().st_size == size and file_crc32(path) == crc
