"""Files of checkpoints: written whole or not at all, checked, read, found, and removed in time."""

import contextlib
import errno
import hashlib
import logging
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from checksums import BLOCK_BYTES, sha256
from config import CHECKPOINT_GLOBALS

BEST_CHECKPOINT = 'ckpt_best.pth'  # never resumed from by itself
CHECKPOINT_NAME = re.compile(r'ckpt_epoch_(\d+)(?:_step_(\d+))?\.pth')
# What some file systems, such as mounted drives, answer when a folder is to be synchronised.
CANNOT_SYNC = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EACCES)


def checkpoint_name(epoch: int, step: int | None = None) -> str:
    """File name of the checkpoint at the end of an epoch, or after an optimizer step in it."""
    return f'ckpt_epoch_{epoch}.pth' if step is None else f'ckpt_epoch_{epoch}_step_{step}.pth'


def write_checkpoint(path: str | Path, state: dict) -> None:
    """Write a checkpoint and `<name>.sha256` beside it: all or nothing, also if the power fails.

    Whatever happens on the way, the file that was there before or the new one can be read: the
    old checksum goes before the new file takes the name, and the new one follows.

    Raises:
        OSError: as the system gave it, such as on a full disk.
    """
    path = Path(path)
    checksum = checksum_file(path)
    new, new_checksum = _temporary(path), _temporary(checksum)
    try:
        digest = _write(new, lambda file: torch.save(state, file))
        line = f'{digest}  {path.name}\n'.encode()
        _write(new_checksum, lambda file: file.write(line))  # while nothing is changed yet
        checksum.unlink(missing_ok=True)
        _sync_folder(path.parent)
        os.replace(new, path)
        _sync_folder(path.parent)
        os.replace(new_checksum, checksum)
        _sync_folder(path.parent)
    finally:
        for temporary in (new, new_checksum):
            with contextlib.suppress(OSError):
                temporary.unlink()


def checksum_file(path: Path) -> Path:
    """Where the SHA-256 of a checkpoint is, in the format of `sha256sum`."""
    return path.with_name(f'{path.name}.sha256')


def check_exists(path: str | Path) -> None:
    """Refuse a file that is not there; what an https address has is seen once it is read."""
    if not _is_address(path) and not Path(path).is_file():
        raise ValueError(f'{path}: there is no such checkpoint file')


def check_file(path: str | Path) -> None:
    """Check a file against its SHA-256; without one, as SimMIM's own, it is only not empty.

    Raises:
        ValueError: if there is no such file, it cannot be read, is empty, or not what was written.
    """
    check_exists(path)
    path = Path(path)
    try:
        if not path.stat().st_size:
            raise ValueError(f'{path}: not a checkpoint, or one that is cut short: it is empty')
        checksum = checksum_file(path)
        if not checksum.is_file():
            return
        expected = checksum.read_text(encoding='utf-8', errors='replace').split()
        found = sha256(path)
    except OSError as error:
        raise ValueError(f'{path}: cannot be read ({error})') from error
    if expected[:1] != [found]:
        raise ValueError(
            f'{path}: not a checkpoint, or one that is cut short, damaged or replaced: its SHA-256 '
            f'is not that in {checksum.name} (remove that if the file is as you want it)'
        )


def read_checkpoint(path: str | Path) -> dict:
    """Read a checkpoint, a file or an https address, by torch's safe loader.

    The config node in SimMIM's own files is read as a plain dictionary; nothing in a file is run.
    A file of weights alone, .safetensors or a plain state dict, is read as {'model': weights}.

    Raises:
        ValueError: if there is no such file, it is damaged, holds other objects, or no weights.
    """
    if not _is_address(path):
        check_file(path)
    # Under the class's name the loader gets a dictionary: it fills nothing else, and runs nothing.
    allowed = [(OrderedDict, f'{kind.__module__}.{kind.__name__}') for kind in CHECKPOINT_GLOBALS]
    try:
        with torch.serialization.safe_globals(allowed):
            checkpoint = _load(path)
    except Exception as error:  # a damaged file can fail in any way
        raise ValueError(f'{path}: {_reason(error)}') from error
    if _are_weights(checkpoint) and checkpoint:
        return {'model': checkpoint}
    if not isinstance(checkpoint, dict) or not _are_weights(checkpoint.get('model')):
        raise ValueError(f"{path}: not a checkpoint, it has no weights under the key 'model'")
    return checkpoint


def find_newest_checkpoint(folder: str | Path) -> Path | None:
    """The checkpoint farthest in training, whatever the files' dates; None where there is none.

    The end of an epoch lies after every step in it.
    """
    return next(iter(newest_first(folder)), None)


def newest_good(folder: str | Path, logger: logging.Logger) -> Path | None:
    """The checkpoint farthest in training that can be read; None where there is none at all.

    Each one that cannot be read is warned of.

    Raises:
        ValueError: if there are checkpoints and none can be read: to begin anew would lose them.
    """
    problems = []
    for path in newest_first(folder):
        try:
            read_checkpoint(path)
            return path
        except ValueError as error:
            problems.append(str(error))
            logger.warning(f'{error}; looking for the checkpoint before it')
    if problems:
        raise ValueError(
            f'{problems[0]}; none of the {len(problems)} checkpoint(s) in {folder} can be read: '
            'restore one, or begin anew under another --tag'
        )
    return None


def prune(folder: str | Path, keep: int, *, newest: str | None = None) -> list[Path]:
    """Remove old checkpoints with their checksums, and what writes that were broken off left.

    Args:
        folder: of a run in which nothing is being written.
        keep: so many of the newest stay, and always the best; 0: all stay.
        newest: name of the one just written.  Those beyond it neither count nor go: a run that
            went on from an older checkpoint than the newest is not yet where they are.

    Returns:
        The checkpoints that were removed.
    """
    for path in Path(folder).glob('.ckpt_*.tmp'):
        path.unlink(missing_ok=True)
    if not keep:
        return []
    limit = place_of(newest) if newest else None
    counted = [p for p in newest_first(folder) if limit is None or place_of(p.name) <= limit]
    for path in counted[keep:]:
        checksum_file(path).unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    return counted[keep:]


class _HashedFile:
    """A file to write to that takes the SHA-256 of what passes, and remembers why it failed."""

    def __init__(self, raw: FileIO) -> None:
        self.raw = raw
        self.sha256 = hashlib.sha256()
        self.failure: tuple[int, str] | None = None  # no exception: its traceback holds the state

    def write(self, data: bytes | memoryview) -> int:
        rest = memoryview(data).cast('B')
        try:
            while rest:
                written = self.raw.write(rest[:BLOCK_BYTES])
                self.sha256.update(rest[:written])
                rest = rest[written:]
        except OSError as error:
            self.failure = error.errno, error.strerror
            raise
        return len(data)

    def flush(self) -> None:
        """Nothing is held back: a process forked meanwhile has no half-full buffer to write."""


def _write(path: Path, write: Callable[[_HashedFile], Any]) -> str:
    """Write a file and have it on disk; returns its SHA-256."""
    with open(path, 'wb', buffering=0) as raw:
        file = _HashedFile(raw)
        try:
            write(file)
        except RuntimeError:  # torch's own, over what the system said
            if file.failure is not None:
                raise OSError(*file.failure) from None
            raise
        os.fsync(raw.fileno())
    return file.sha256.hexdigest()


def _sync_folder(folder: Path) -> None:
    """Have the names in a folder on disk, where the file system can do that."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in CANNOT_SYNC:
            raise


def _temporary(path: Path) -> Path:
    return path.with_name(f'.{path.name}.tmp')


def place_of(name: str) -> tuple[float, float] | None:
    """(epoch, step) by a checkpoint's name; None for other files, and for the best one."""
    match = CHECKPOINT_NAME.fullmatch(name)
    return match and (int(match[1]), float('inf') if match[2] is None else int(match[2]))


def newest_first(folder: str | Path) -> list[Path]:
    paths = [path for path in Path(folder).glob('ckpt_epoch_*.pth') if place_of(path.name)]
    return sorted(paths, key=lambda path: place_of(path.name), reverse=True)


def _is_address(path: str | Path) -> bool:
    return str(path).startswith('https://')


def _load(path: str | Path) -> object:
    if _is_address(path):
        return torch.hub.load_state_dict_from_url(
            str(path), map_location='cpu', check_hash=True, weights_only=True
        )
    if Path(path).suffix == '.safetensors':
        return load_file(path)
    _refuse_compressed(path)
    return torch.load(path, map_location='cpu', weights_only=True)


def _refuse_compressed(path: str | Path) -> None:
    """Refuse a zip whose entries unpack to more than the file: torch.save compresses nothing."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            unpacked = sum(entry.file_size for entry in file.infolist())
        if unpacked > Path(path).stat().st_size:
            raise ValueError(f'its entries are compressed and would unpack to {unpacked:,} bytes')


def _are_weights(values: object) -> bool:
    return isinstance(values, dict) and all(
        isinstance(name, str) and _is_whole(value) for name, value in values.items()
    )


def _is_whole(value: object) -> bool:
    """Whether it is a tensor that holds all of its entries, in memory, as plain numbers."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == 'cpu'
        and not value.is_quantized
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )


def _reason(error: Exception) -> str:
    """Why a checkpoint could not be read, in words."""
    unsafe = re.search(r'GLOBAL (\S+)', str(error))
    if unsafe:
        return f'refused, it holds a pickled object of {unsafe[1]}: only tensors and plain values'
    if isinstance(error, OSError) and error.errno != errno.EINVAL:
        return f'cannot be read ({error})'
    # The unpickler's own text advises to switch its checks off.
    detail = '' if isinstance(error, pickle.UnpicklingError) else f' ({error})'
    return f'not a checkpoint, or one that is cut short or damaged{detail}'
