"""File operations: atomic replacement, locks, checksums, and names of checkpoints."""

import errno
import fcntl
import hashlib
import os
import re
import resource
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

BLOCK_BYTES = 2**22  # bytes read at a time
BEST_CHECKPOINT = 'ckpt_best.pth'  # a run never resumes from it automatically
CHECKPOINT_NAME = re.compile(r'ckpt_epoch_(\d+)(?:_step_(\d+))?\.pth')
OTHER_FILES = 64  # open files of a process without its workers
# Open files per worker of a training and a validation loader. Measured: at most 19, and 26 with the
# eight views of SwAV.
LOADER_FILES = 32
MANY_FILES = 4096  # limit that is set where the system permits it
MOUNTS = Path('/proc/mounts')
NETWORK_SYSTEMS = ('nfs', 'nfs4', 'lustre', 'gpfs', 'beegfs', 'cifs')
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # the file system has no locks


def is_below(name: str) -> bool:
    """Return whether a name in a foreign file is a path below a folder.

    It must be relative and have no empty part, `.` or `..`. Links are not looked at: those in a
    data folder are followed.
    """
    return not {'', '.', '..'} & set(name.split('/')) and '\0' not in name


def file_system(path: str | Path) -> str:
    """Return the type of the file system of a path, such as 'ext4', or '' outside Linux."""
    path, found = Path(path).resolve(), ('', '')
    for line in MOUNTS.read_bytes().splitlines() if MOUNTS.is_file() else ():
        _, point, kind, *_ = line.split()
        point = os.fsdecode(re.sub(rb'\\(\d{3})', lambda octal: bytes([int(octal[1], 8)]), point))
        if path.is_relative_to(point) and len(point) >= len(found[0]):
            found = point, kind.decode()  # the last one hides earlier ones in the same place
    return found[1]


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file as a hexadecimal string."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def atomic_writer(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file for writing, and replace the previous file once all data is on disk.

    The data is first written to `<name>.tmp` in the same folder. If the block fails, the previous
    file remains unchanged. An OSError, for example on a full disk, names the file.
    """
    path = Path(path)
    temporary = path.with_name(f'{path.name}.tmp')
    try:
        with open(temporary, 'wb') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # Within one file system a rename is atomic: readers see the old file or the new one.
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        unnamed = isinstance(error, OSError) and Path(error.filename or temporary) == temporary
        if unnamed and error.errno:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    sync_folder(path.parent)


def replace_file(path: str | Path, data: bytes | str) -> None:
    """Replace a file atomically. Text is encoded as UTF-8."""
    replace_files({Path(path): data})


def replace_files(files: Mapping[Path, bytes | str]) -> None:
    """Replace files that belong together, after all of them are on disk."""
    with ExitStack() as stack:
        for path, data in files.items():
            file = stack.enter_context(atomic_writer(path))
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Flush the entries of a folder to disk, where the file system supports it."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def locked(path: str | Path, *, wait: bool) -> Iterator[bool]:
    """Hold a lock file. The operating system releases the lock if the process or its node dies.

    Yields:
        True, or False on file systems without locks, such as some network drives. There the block
        runs without a lock. A file that marks the lock would outlive a node that dies.

    Raises:
        ValueError: If another process holds the lock and `wait` is False.
    """
    path, has_locks = Path(path), True
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'ab') as file:  # closing the file releases the lock
        # Workers outlive a killed process by seconds and must not hold its lock.
        os.register_at_fork(after_in_child=file.close)
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise ValueError(f'another process is writing to {path.parent}') from None
            if error.errno not in NO_LOCKS:
                raise
            has_locks = False
        yield has_locks


def allow_open_files(workers: int, *, per_worker: int = 4) -> None:
    """Raise the limit of open files for the pipes and shared tensors of worker processes.

    Args:
        workers: Number of worker processes.
        per_worker: Open files per worker.

    Raises:
        ValueError: If the system allows too few open files, because workers would wait forever.
    """
    needed = OTHER_FILES + per_worker * workers
    given = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Some systems write 'no limit' as -1, which would compare as less than any number.
    soft, hard = (sys.maxsize if limit == resource.RLIM_INFINITY else limit for limit in given)
    if soft < max(needed, MANY_FILES):
        soft = min(max(needed, MANY_FILES), hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, given[1]))
    if workers and soft < needed:
        raise ValueError(
            f'{workers} workers (DATA.NUM_WORKERS, --workers, --num-workers) need {needed} open '
            f'files, but the system allows {soft}: raise the limit (ulimit -n) or use fewer workers'
        )


def in_one_line(error: Exception) -> str:
    """Return the type and the first two lines of an error, where compilers state the cause."""
    lines = [line.strip() for line in f'{type(error).__name__}: {error}'.splitlines()]
    return ' '.join([line for line in lines if line][:2])


def checkpoint_name(epoch: int, step: int | None = None) -> str:
    """Return the file name of a checkpoint after an epoch, or after an optimizer step within it."""
    return f'ckpt_epoch_{epoch}.pth' if step is None else f'ckpt_epoch_{epoch}_step_{step}.pth'


def checkpoint_position(name: str) -> tuple[float, float] | None:
    """Parse (epoch, step) from the name of a checkpoint; None for ckpt_best.pth and other files.

    After an epoch the step is infinite, because such a checkpoint is newer than all within it.
    """
    match = CHECKPOINT_NAME.fullmatch(name)
    return match and (int(match[1]), float('inf') if match[2] is None else int(match[2]))


def newest_first(folder: str | Path) -> list[Path]:
    """Return the checkpoints of a folder in descending order of (epoch, step)."""
    found = {path: checkpoint_position(path.name) for path in Path(folder).glob('ckpt_epoch_*.pth')}
    return sorted(filter(found.get, found), key=found.get, reverse=True)


def checksum_file(path: Path) -> Path:
    """Return the path of the checksum file of a file, in the format of `sha256sum`."""
    return path.with_name(f'{path.name}.sha256')
