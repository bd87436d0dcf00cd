"""What runs take from checkpoints: weights, options, where to go on, and pre-trained weights."""

import contextlib
import errno
import hashlib
import json
import logging
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from config import CHECKPOINT_GLOBALS, Config, default_config, load_options, load_yaml
from engine import distributed
from data.transforms import statistics
from engine.files import BLOCK_BYTES, sha256
from engine.run_record import read_record, shown_checkpoint
from models.convert import (
    PATCH_WEIGHT,
    PROCESSOR,
    Statistics,
    check_fit,
    convert,
    convert_timm,
    drop_buffers,
    first_weight,
    from_huggingface,
    is_huggingface,
    processor_statistics,
    published_statistics,
)
from models.timm_classifier import TimmClassifier

# ==== checkpoint_files: Files of checkpoints: written whole or not at all, checked, read, found, and removed in time.

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


# ==== utils: What runs take from checkpoints: weights, options, where to go on, and pre-trained weights.

LARGEST = 2**62  # of the numbers that say where training stands
RESUME_KEYS = {
    'optimizer': dict,
    'scaler': dict,
    'epoch': int,
    'batch': int,
    'num_batches': int,
    'finished': bool,
    'best_score': float,
    'progress': dict,
    'rng': list,
    'config': str,
}


def checkpoint_to_evaluate(config, folder: Path) -> str | Path:
    """The checkpoint that --resume or --pretrained names, else the run folder's best or newest.

    The run's config.yaml, given as --cfg, names what the run began with, in PRETRAINED or
    MODEL.RESUME: its own checkpoints go before that, unless it is one of them.

    Raises:
        ValueError: if there is none: an untrained model is not evaluated.
    """
    own = _own_checkpoint(folder)
    given = config.MODEL.RESUME or config.PRETRAINED
    if given and own and Path(given).parent.resolve() != folder.resolve():
        trained = trained_config(own)
        if trained and given in (trained.MODEL.RESUME, trained.PRETRAINED):
            given = None
    checkpoint = given or own
    if not checkpoint:
        raise ValueError(
            '--eval: nothing to evaluate: give --resume or --pretrained, or a run folder with '
            f'checkpoints (none in {folder})'
        )
    return checkpoint


def _own_checkpoint(folder: Path) -> Path | None:
    """The best of a run's folder, unless the run has gone on from before it; else the newest."""
    best, newest = folder / BEST_CHECKPOINT, find_newest_checkpoint(folder)
    if not best.exists() or newest is None:
        return best if best.exists() else newest
    try:
        saved, last = read_checkpoint(best), read_checkpoint(newest)
    except ValueError:  # one that is damaged is named where it is used
        return best
    reached = (last.get('epoch', -1), bool(last.get('finished')))
    is_past_it = reached >= (saved.get('epoch', -1), True)
    given_up = is_past_it and saved.get('best_score') != last.get('best_score')
    return newest if given_up else best


def trained_config(path: str | Path) -> Config | None:
    """The options of the run that a checkpoint is of, those of other versions left out.

    None for a checkpoint that holds no options, such as SimMIM's own.
    """
    text = read_checkpoint(path).get('config')
    if not isinstance(text, str):
        return None
    config = default_config()
    try:
        config.merge_from_other_cfg(_known_options(load_options(text), config))
    except ValueError as error:
        raise ValueError(
            f"{path}: its text under 'config' is no config of a run: {error}"
        ) from error
    return config


def _known_options(given: dict, known: Config) -> dict:
    """The entries whose keys there are; any below nodes that take new ones."""
    if not isinstance(given, dict):
        raise ValueError(f'a section of options is {given!r:.100}')
    if known.is_new_allowed():
        return given
    return {
        key: _known_options(value, known[key]) if isinstance(known[key], Config.__base__) else value
        for key, value in given.items()
        if key in known
    }


def save_checkpoint(path: str | Path, state: dict) -> None:
    """Write a checkpoint and wait for it (`saving.CheckpointWriter` does it in the background)."""
    try:
        write_checkpoint(path, state)
    except OSError as error:
        raise ValueError(f'{path}: the checkpoint cannot be written ({error})') from error


def load_model_state(
    model: nn.Module, state_dict: dict[str, Tensor], source: str, logger: logging.Logger
) -> None:
    """Load a checkpoint of the same model, to go on from: every entry must be there and fit.

    Position indices and attention masks are the model's own, whatever the file has.

    Raises:
        ValueError: naming entries that are missing, unexpected or of another shape.
    """
    own, given = drop_buffers(model.state_dict()), drop_buffers(state_dict)
    try:
        check_fit(given, own)
    except ValueError as error:
        raise ValueError(f'{source}: {error}') from None
    model.load_state_dict(given, strict=False)
    logger.info(f'loaded {len(given)} entries of the model from {source}')


@contextlib.contextmanager
def refuse_damaged(source: str | Path) -> Iterator[None]:
    """Make a ValueError that names the checkpoint of whatever goes wrong with its contents."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # contents can be wrong in any way
        if isinstance(error, ValueError) and str(source) in str(error):
            raise
        reason = ' '.join(f'{type(error).__name__}: {error}'.split())
        raise ValueError(f'{source}: its contents are damaged ({reason:.300})') from error


def load_weights(path: str | Path, model: nn.Module, logger: logging.Logger) -> None:
    """Load the model's weights alone from a checkpoint of the same model, to evaluate it."""
    load_model_state(model, read_checkpoint(path)['model'], str(path), logger)


def checkpoint_to_resume(config: Config, folder: Path, logger: logging.Logger) -> str | Path | None:
    """What the run goes on from, the same on all ranks: its newest good checkpoint, if any.

    A run begins with MODEL.RESUME, where that is given; the same command then goes on from the
    checkpoints of the run that began so. TRAIN.AUTO_RESUME False begins with it again.

    Raises:
        ValueError: on all ranks, if there are checkpoints and none can be read; or if there is
            none, and no file MODEL.RESUME or PRETRAINED, with which the run would start.
    """
    newest, problem, given = None, '', config.MODEL.RESUME
    if distributed.is_main():
        try:
            if config.TRAIN.AUTO_RESUME:
                newest = (
                    _newest_begun_with(given, folder, logger)
                    if given
                    else newest_good(folder, logger)
                )
            if newest is None and (given or config.PRETRAINED):
                check_exists(given or config.PRETRAINED)
        except ValueError as error:
            problem = str(error)
    newest, problem = distributed.broadcast((newest, problem))
    if problem:
        raise ValueError(problem)
    return newest or given or None


def _newest_begun_with(given: str, folder: Path, logger: logging.Logger) -> Path | None:
    """The farthest checkpoint that can be read of the run that began with MODEL.RESUME `given`."""
    begin = shown_checkpoint(folder, given)
    with contextlib.suppress(ValueError):  # a record that is damaged says nothing
        starts = (read_record(folder) or {'starts': [{'resumed_from': begin}]}).get('starts', [])
        if begin not in [start.get('resumed_from') for start in starts]:
            return None
    for path in newest_first(folder):
        try:
            trained = trained_config(path)
        except ValueError as error:
            logger.warning(f'{error}; looking for the checkpoint before it')
            continue
        if trained and shown_checkpoint(folder, trained.MODEL.RESUME) == begin:
            logger.info(f'the run began with {given}: it goes on from {path.name}')
            return path
    return None


def read_resumable(path: str | Path) -> dict:
    """Read a checkpoint that training can go on from: it has all of RESUME_KEYS.

    Raises:
        ValueError: if it cannot be read, or holds weights alone.
    """
    saved = read_checkpoint(path)
    missing = [key for key in RESUME_KEYS if key not in saved]
    if missing:
        raise ValueError(
            f'{path}: nothing to go on from, it lacks {missing}; start from its weights with '
            '--pretrained'
        )
    with refuse_damaged(path):
        options = load_yaml(saved['config'])
        given = [(saved[key], kind) for key, kind in RESUME_KEYS.items()]
        given += [(options['DATA']['BATCH_SIZE'], int), (options['TRAIN']['OPTIMIZER'], dict)]
        given += [
            (options['TRAIN']['ACCUMULATION_STEPS'], int),
            (saved.get('accumulation', 1), int),
        ]
        for value, kind in given:
            if type(value) is not kind or (kind is int and not 0 <= value <= LARGEST):
                raise TypeError(f'{value!r:.100} in place of a {kind.__name__}')
    return saved


def load_moments(
    saved: dict,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    source: str | Path,
) -> None:
    """Load the moments of the optimizer and the scale of the gradients from a read checkpoint.

    Rates, weight decay and other options of the optimizer's groups stay the config's.

    Raises:
        ValueError: naming `source`, if they are of another optimizer or other parameters.
    """
    name = load_yaml(saved['config'])['TRAIN']['OPTIMIZER']['NAME'].lower()
    if name != type(optimizer).__name__.lower():
        raise ValueError(
            f'{source}: it was trained with TRAIN.OPTIMIZER.NAME {name}, its moments do not fit '
            f'{type(optimizer).__name__}; start from its weights with --pretrained'
        )
    groups = optimizer.state_dict()['param_groups']
    counts = [
        sum(len(group['params']) for group in part)
        for part in (saved['optimizer']['param_groups'], groups)
    ]
    if counts[0] != counts[1]:
        raise ValueError(
            f'{source}: it trained {counts[0]} tensors, this run trains {counts[1]} (another '
            'FINETUNE.MODE?); start from its weights with --pretrained, under another --tag'
        )
    optimizer.load_state_dict({'state': saved['optimizer']['state'], 'param_groups': groups})
    for parameter, moments in optimizer.state.items():
        for moment in moments.values():
            if isinstance(moment, Tensor) and moment.ndim and moment.shape != parameter.shape:
                raise ValueError('moments are of another shape than their parameter')
    if saved['scaler']:
        scaler.load_state_dict(saved['scaler'])


def rng_state() -> dict[str, Tensor]:
    """Random states of this process that training draws from."""
    state = {'torch': torch.get_rng_state()}
    if torch.cuda.is_available():
        state['cuda'] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, Tensor]) -> None:
    torch.set_rng_state(state['torch'])
    if 'cuda' in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state['cuda'])


def load_pretrained(config: Config, model: nn.Module, logger: logging.Logger) -> None:
    """Start from the weights that PRETRAINED names, fitted to the model, and log what was done.

    Into either stage, from SimMIM's or this project's checkpoints of either stage, from supervised
    ones, or from transformers' Swin and ViT; into a model of timm as models/convert_timm.py says.

    Raises:
        ValueError: naming the file, and the entries that fit nowhere or are missing.
    """
    path = config.PRETRAINED
    checkpoint = read_checkpoint(path)
    state, target_stats = checkpoint['model'], Statistics(*statistics(config))
    of_timm, no_place = isinstance(model, TimmClassifier), []
    try:
        asked = _asked_data_options(checkpoint)
        if is_huggingface(state):
            state, no_place = from_huggingface(state)
            asked = _processor_options(path, state[PATCH_WEIGHT].shape[1])
        if of_timm and not asked:
            asked = published_statistics(state, model)
        weight = first_weight(model) if of_timm else PATCH_WEIGHT
        source_stats = _source_statistics(state, asked, weight)
        by_image = 'image' in (config.DATA.NORMALIZE, asked.get('NORMALIZE'))
        if by_image:
            source_stats, target_stats = _neutral(source_stats), _neutral(target_stats)
        fit, target = (convert_timm, model) if of_timm else (convert, model.state_dict())
        converted, report = fit(state, target, source_stats=source_stats, target_stats=target_stats)
    except ValueError as error:
        raise ValueError(f'PRETRAINED {path}: {error}') from error
    model.load_state_dict(converted, strict=False)
    report.left_over += no_place
    if by_image and report.folded:
        report.remarks.append("DATA.NORMALIZE 'image': plain sums over channels, no statistics")
    elif source_stats != target_stats and not report.folded:
        report.remarks.append(f'pixels are normalised with {target_stats}, were {source_stats}')
    if (before := asked.get('PREPROCESS', 'none')) != config.DATA.PREPROCESS:
        report.remarks.append(f'DATA.PREPROCESS is {config.DATA.PREPROCESS!r}, was {before!r}')
    logger.info(f'weights from {path}:\n{report.table()}')
    before, now = asked.get('HOLDOUT_FRACTION', 1.0), config.DATA.HOLDOUT_FRACTION
    if isinstance(before, (int, float)) and before < now:
        logger.warning(
            f'{path} was trained with DATA.HOLDOUT_FRACTION {before}: if on these patients, it has '
            f'seen some of those that are held out now ({now}), and scores on them are too good'
        )


def _asked_data_options(checkpoint: dict) -> dict:
    """The section DATA of the config text in this project's checkpoints; {} for other files."""
    text = checkpoint.get('config')
    if not isinstance(text, str):
        return {}
    try:
        data = load_yaml(text)['DATA']
        keys = ('MEAN', 'STD', 'NORMALIZE', 'PREPROCESS', 'HOLDOUT_FRACTION')
        return {key: data[key] for key in keys if key in data}
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError("its text under 'config' is no config of a run") from error


def _processor_options(path: str | Path, num_channels: int) -> dict:
    """Options of DATA by transformers' file beside the weights; {} where there is none."""
    file = Path(path).with_name(PROCESSOR)
    if not file.is_file():
        return {}
    try:
        return processor_statistics(json.loads(file.read_text('utf-8')), num_channels)
    except (OSError, RecursionError, ValueError) as error:
        raise ValueError(f'{file} beside it cannot be used ({error})') from error


def _source_statistics(state: dict[str, Tensor], asked: dict, weight: str) -> Statistics:
    """What the pixels were normalised with that a checkpoint was trained on.

    Args:
        state: its weights; key `weight` is of those that read the image.
        asked: options of DATA that are known of it.
        weight: see `state`; a prefix `encoder.` may come before it.
    """
    config = default_config()
    for key in (weight, f'encoder.{weight}'):
        if key in state and state[key].ndim == 4:
            config.MODEL.IN_CHANS = state[key].shape[1]
    config.DATA.MEAN, config.DATA.STD = asked.get('MEAN', []), asked.get('STD', [])
    return Statistics(*statistics(config))


def _neutral(statistics: Statistics) -> Statistics:
    return Statistics((0.0,) * len(statistics.mean), (1.0,) * len(statistics.std))
