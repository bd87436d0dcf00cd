"""Checkpoints: write atomically, read safely, find the newest, resume, load pre-trained weights."""

import contextlib
import hashlib
import json
import logging
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Container, Iterator
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from config import (
    CHECKPOINT_GLOBALS,
    Config,
    OptionError,
    check_config,
    config_from_text,
    flat_options,
    module_of_option,
)
from system import distributed
from system.downloads import FACTS, LINEAGE, check_exists, local_path, log_download, split_key
from system.files import (
    BEST_CHECKPOINT,
    atomic_writer,
    checkpoint_position,
    checksum_file,
    newest_first,
    replace_file,
    sha256,
    sync_folder,
)

BUFFERS = ('relative_position_index', 'attn_mask')  # computed by the model, never loaded
NUM_LISTED = 6  # entries of each kind that an error message lists
OPTIONS_OF_WEIGHTS = 'simmim_config'  # in the metadata of a .safetensors file of export.py
RESUME_KEYS = (
    *('optimizer', 'scaler', 'epoch', 'batch', 'num_batches', 'accumulation', 'finished'),
    *('best_score', 'progress', 'rng', 'config'),
)


# Files


def newest_good(folder: str | Path, logger: logging.Logger, begun_with: str = '') -> Path | None:
    """Return the newest checkpoint that can be read, or None if the folder has no checkpoint.

    With `begun_with`, only checkpoints of a run that began with this MODEL.RESUME count, and none
    of them need exist.

    Raises:
        ValueError: If there are checkpoints but none can be read. Starting from scratch would
            overwrite them.
    """
    paths = newest_first(folder)
    for path in paths:
        try:
            trained = trained_config(path)
        except ValueError as error:
            logger.warning(f'{error}; trying the previous checkpoint')
            continue
        first = trained.MODEL.RESUME if trained else ''
        if not begun_with or (first and Path(first).resolve() == Path(begun_with).resolve()):
            return path
    if paths and not begun_with:
        raise ValueError(
            f'none of the {len(paths)} checkpoint(s) in {folder} can be read (the newest is '
            f'{paths[0].name}): restore one of them, or start from scratch with another --tag'
        )
    return None


def save_checkpoint(path: str | Path, state: dict) -> None:
    """Write a checkpoint and its checksum `<name>.sha256` atomically.

    After any interruption, including a power failure, either the previous file or the new one can
    be read, because the old checksum is removed before the new file takes its name. An OSError, for
    example on a full disk, names the file.
    """
    path = Path(path)
    checksum = checksum_file(path)
    with atomic_writer(path) as file:
        digest = _HashedFile(file).save(state)
        file.flush()
        os.fsync(file.fileno())  # fails on a full disk, while the old file still has its checksum
        checksum.unlink(missing_ok=True)
        sync_folder(path.parent)
    replace_file(checksum, f'{digest}  {path.name}\n')


def prune(folder: str | Path, keep: int, newest: str) -> None:
    """Remove old checkpoints with their checksums.

    Args:
        folder: Run folder.
        keep: Number of newest checkpoints to keep, in addition to ckpt_best.pth. 0 keeps all.
        newest: Name of the checkpoint just written. Later checkpoints are neither counted nor
            removed, because a run that resumed from an older checkpoint has not reached them yet.
    """
    limit = checkpoint_position(newest)
    reached = [path for path in newest_first(folder) if checkpoint_position(path.name) <= limit]
    for path in reached[keep:] if keep else []:
        checksum_file(path).unlink(missing_ok=True)
        path.unlink(missing_ok=True)


def remove_partial_files(folder: str | Path) -> None:
    """Remove the remains of interrupted writes from a run folder in which nothing is written."""
    for path in Path(folder).glob('ckpt_*.tmp'):
        path.unlink(missing_ok=True)


# Reading


def read_checkpoint(path: str | Path) -> dict:
    """Read a checkpoint from a file or a URL with PyTorch's safe loader.

    No code in the file is executed. A .safetensors file of export.py has the options of its run,
    and is read like a checkpoint without an optimizer. The config node in SimMIM's own checkpoints
    becomes a plain dictionary. Weights that are not under the key 'model' are returned there;
    `path` may end in ::KEY to choose them.

    Raises:
        ValueError: If the file does not exist, is damaged, contains pickled objects, has no
            weights or several, has weights that are not finite, or cannot be downloaded.
    """
    check_exists(path)
    file = local_path(path)
    # The safe loader fills a plain dictionary where the file names a config class.
    allowed = [(OrderedDict, f'{kind.__module__}.{kind.__name__}') for kind in CHECKPOINT_GLOBALS]
    try:
        _check_contents(file)
        with torch.serialization.safe_globals(allowed):
            if file.suffix == '.safetensors':
                checkpoint = _read_safetensors(file)
            else:
                checkpoint = torch.load(file, map_location='cpu', weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # a damaged file can fail in any way
        raise ValueError(f'{path}: {_reason(error)}') from error
    key = split_key(path)[1]
    if are_weights(checkpoint) and checkpoint:
        checkpoint = {'model': checkpoint}
    if not (isinstance(checkpoint, dict) and are_weights(checkpoint.get('model')) and not key):
        checkpoint = module_of_option('PRETRAINED').choose_weights(checkpoint, path, key)
    for name, value in drop_buffers(checkpoint['model']).items():
        if not torch.isfinite(value).all():
            raise ValueError(f'{path}: the weights {name} are not finite (NaN or infinity)')
    return checkpoint


def _read_safetensors(file: Path) -> dict:
    """Return the weights in a .safetensors file, with the options if export.py wrote it."""
    weights = load_file(file)
    with safe_open(file, 'pt') as opened:
        metadata = opened.metadata() or {}
    if OPTIONS_OF_WEIGHTS not in metadata:
        return weights
    trainings = json.loads(metadata.get(FACTS, '{}')).get(LINEAGE, [])
    lineage = [entry | {'patients': None, 'lost': False} for entry in trainings]
    checkpoint = {'model': weights, 'config': metadata[OPTIONS_OF_WEIGHTS]}
    return checkpoint | ({LINEAGE: lineage} if lineage else {})


def trained_config(path: str | Path, stage: str | None = None) -> Config | None:
    """Return the options of the run that wrote a checkpoint, without keys that no longer exist.

    Args:
        path: Checkpoint file or URL.
        stage: Stage whose option checks are applied; None for no checks.

    Returns:
        The options, or None for a checkpoint without options, such as SimMIM's own.
    """
    checkpoint = read_checkpoint(path)
    with name_damaged(path):
        config = saved_options(checkpoint)
        if config is not None and stage:
            check_config(config, stage)
        return config


@contextlib.contextmanager
def name_damaged(source: str | Path) -> Iterator[None]:
    """Turn errors about the contents of a checkpoint into a ValueError that names the file."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, NotImplementedError):
        raise  # not about the contents: memory, or an encoder that reads values of meta tensors
    except Exception as error:  # contents can be wrong in any way
        if isinstance(error, ValueError) and str(source) in str(error):
            raise
        if isinstance(error, OptionError):
            raise ValueError(f'{source}: {error!s:.1000}') from error
        reason = ' '.join(f'{type(error).__name__}: {error}'.split())
        raise ValueError(f'{source}: the contents are damaged ({reason:.300})') from error


# Resuming and evaluating


def checkpoint_to_resume(config: Config, folder: Path, logger: logging.Logger) -> str | Path | None:
    """Choose the checkpoint that the run resumes from, the same on all ranks.

    The newest readable checkpoint of the run folder comes first, then MODEL.RESUME. If MODEL.RESUME
    is given, only checkpoints of a run that began with it count, so that the same command can be
    repeated. With TRAIN.AUTO_RESUME False the run folder is ignored.

    Returns:
        The checkpoint, or None for a new run.

    Raises:
        ValueError: On all ranks, if there are checkpoints but none can be read.
    """
    newest, problem, given = None, '', config.MODEL.RESUME
    if distributed.is_main():
        try:
            if config.TRAIN.AUTO_RESUME:
                newest = newest_good(folder, logger, begun_with=given)
        except ValueError as error:
            problem = str(error)
    newest, problem = distributed.broadcast((newest, problem))
    if problem:
        raise ValueError(problem)
    return newest or given or None


def checkpoint_to_evaluate(config: Config, folder: Path) -> str | Path:
    """Choose the checkpoint for --eval: --resume, --pretrained, or one from the run folder.

    If --cfg is the config.yaml of the run folder, --resume and --pretrained may only repeat where
    that run started from. In this case the run's own best or newest checkpoint is used.

    Raises:
        ValueError: If there is no checkpoint. An untrained model is never evaluated.
    """
    found = selected_checkpoint(folder)
    given = config.MODEL.RESUME or config.PRETRAINED
    if given and found and Path(given).parent.resolve() != folder.resolve():
        trained = trained_config(found)
        if trained and given in (trained.MODEL.RESUME, trained.PRETRAINED):
            given = None
    if not given and not found:
        raise ValueError(
            f'--eval: there is nothing to evaluate, because {folder} has no checkpoints. Give '
            '--resume, --pretrained, or the --output and --tag of a trained run.'
        )
    return given or found


def selected_checkpoint(folder: Path) -> Path | None:
    """Return the best checkpoint of a run, or the newest if the best belongs to discarded epochs.

    A run that resumes from an older checkpoint discards the epochs after it. The best checkpoint
    may also be later than the newest regular one, because SAVE_FREQ does not apply to it.
    """
    best, newest = folder / BEST_CHECKPOINT, next(iter(newest_first(folder)), None)
    if not best.exists() or newest is None:
        return best if best.exists() else newest
    try:
        saved, last = read_checkpoint(best), read_checkpoint(newest)
    except ValueError:  # reading the chosen checkpoint reports the damage
        return best
    reached = (last.get('epoch', -1), bool(last.get('finished')))
    is_past_it = reached >= (saved.get('epoch', -1), True)
    is_discarded = is_past_it and saved.get('best_score') != last.get('best_score')
    return newest if is_discarded else best


def read_resumable(path: str | Path, logger: logging.Logger) -> dict:
    """Read a checkpoint, or raise a ValueError if training cannot resume from it.

    A checkpoint of SimMIM's own code is returned with the entries of one of this project.
    """
    saved = read_checkpoint(path)
    if 'optimizer' in saved and isinstance(saved.get('config'), dict):  # ours have a text
        with name_damaged(path):
            saved = module_of_option('MODEL.RESUME').from_simmim(saved, path, logger)
    missing = [key for key in RESUME_KEYS if key not in saved]
    if missing:
        raise ValueError(
            f'{path}: training cannot resume from this checkpoint, because {missing} are missing. '
            'Start from the weights with --pretrained.'
        )
    return saved


def load_model_state(
    model: nn.Module, state_dict: dict[str, Tensor], source: str, logger: logging.Logger
) -> None:
    """Load the weights of the same model. Every entry except BUFFERS must exist and fit.

    Raises:
        ValueError: If entries are missing or unexpected, or have another shape.
    """
    given = same_entries(model, state_dict, source)
    model.load_state_dict(given, strict=False)
    log_download(source, logger)
    logger.info(f'loaded {len(given)} entries of the model from {source}')


def same_entries(
    model: nn.Module, state_dict: dict[str, Tensor], source: str | Path
) -> dict[str, Tensor]:
    """Return the entries without BUFFERS, after checking that they fit the model.

    Raises:
        ValueError: If entries are missing or unexpected, or have another shape.
    """
    wanted, given = drop_buffers(model.state_dict()), drop_buffers(state_dict)
    try:
        check_fit(given, wanted)
    except ValueError as error:
        raise ValueError(f'{source}: {error}') from None
    return given


def load_moments(
    saved: dict,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    *,
    name: str,
    source: str | Path,
) -> None:
    """Load the optimizer's moments and the gradient scale from a resumable checkpoint.

    `name` is TRAIN.OPTIMIZER.NAME. The parameter groups keep the learning rates, weight decay and
    other options of the config. The rest, such as LAMB's number of steps, is the checkpoint's.

    Raises:
        ValueError: If the moments belong to another optimizer or to other parameters.
    """
    old = flat_options(saved['config'])['TRAIN.OPTIMIZER.NAME'].lower()
    if old != name.lower():
        raise ValueError(
            f'{source} was trained with TRAIN.OPTIMIZER.NAME {old}, whose moments do not fit '
            f'{name.lower()}: start from its weights with --pretrained'
        )
    groups = optimizer.state_dict()['param_groups']
    before, now = (
        sum(len(group['params']) for group in part)
        for part in (saved['optimizer']['param_groups'], groups)
    )
    if before != now:
        raise ValueError(
            f'{source} has moments of {before} tensors, and this run trains {now} (has '
            'FINETUNE.MODE changed?): start from its weights with --pretrained and another --tag'
        )
    groups = [
        before | now for before, now in zip(saved['optimizer']['param_groups'], groups, strict=True)
    ]
    optimizer.load_state_dict({'state': saved['optimizer']['state'], 'param_groups': groups})
    # PyTorch converts all tensors to the type of their parameter, also booleans and whole numbers.
    parameters = [each for group in optimizer.param_groups for each in group['params']]
    for index, moments in saved['optimizer']['state'].items():
        for key, value in moments.items():
            if isinstance(value, Tensor) and not value.is_floating_point():
                state = optimizer.state[parameters[index]]
                state[key] = value.to(state[key].device, copy=True)
    if saved['scaler']:
        scaler.load_state_dict(saved['scaler'])


def rng_state() -> dict[str, Tensor]:
    """Return the states of this process's random generators that training uses."""
    state = {'torch': torch.get_rng_state()}
    if torch.cuda.is_available():
        state['cuda'] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, Tensor]) -> None:
    """Restore the random generators to the states that `rng_state` returned."""
    torch.set_rng_state(state['torch'])
    if 'cuda' in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state['cuda'])


# Pre-trained weights


def load_pretrained(config: Config, model: nn.Module, logger: logging.Logger) -> dict:
    """Load the weights in PRETRAINED into a model, and log how each entry was used.

    The weights are converted by `fit_pretrained` of the module that PRETRAINED names.

    Returns:
        The checkpoint.

    Raises:
        ValueError: If the file cannot be read, or its entries do not fit the model.
    """
    path = config.PRETRAINED
    checkpoint = read_checkpoint(path)
    log_download(path, logger)
    try:
        fit_pretrained = module_of_option('PRETRAINED').fit_pretrained
        state, report = fit_pretrained(config, checkpoint, model)
        trained = saved_options(checkpoint)
    except ValueError as error:
        raise ValueError(f'PRETRAINED {path}: {error}') from error
    model.load_state_dict(state, strict=False)
    before = trained.DATA.PREPROCESS if trained else []
    if before != config.DATA.PREPROCESS:
        report.remarks.append(f'DATA.PREPROCESS is {config.DATA.PREPROCESS!r}, was {before!r}')
    logger.info(f'weights from {path}:\n{report.table()}')
    return checkpoint


def saved_options(checkpoint: dict) -> Config | None:
    """Return the options in a checkpoint, or None for files of other projects."""
    text = checkpoint.get('config')
    return config_from_text(text) if isinstance(text, str) else None


def drop_buffers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove position indices and attention masks, which the model computes for its own size."""
    return {key: value for key, value in state.items() if key.split('.')[-1] not in BUFFERS}


def check_fit(
    state: dict[str, Tensor],
    target: dict[str, Tensor],
    *,
    left: Container[str] = (),
    new: Container[str] = (),
) -> None:
    """Check that a state dict has the entries of a model.

    Args:
        state: Entries of the checkpoint.
        target: Entries of the model.
        left: Entries of the checkpoint that the model may lack.
        new: Entries of the model that the checkpoint may lack.

    Raises:
        ValueError: If entries do not fit. The message lists them.
    """
    problems = {
        'unexpected': [key for key in state if key not in target and key not in left],
        'missing': [key for key in target if key not in state and key not in new],
        'of another shape': [
            f'{key} {list(value.shape)} for {list(target[key].shape)}'
            for key, value in state.items()
            if key in target and value.shape != target[key].shape
        ],
    }
    problems['of another type'] = [
        f'{key} {value.dtype} for {target[key].dtype}'
        for key, value in state.items()
        if key in target and value.is_floating_point() != target[key].is_floating_point()
    ]
    found = '; '.join(
        f'{len(names)} {problem} ({", ".join(names[:NUM_LISTED])})'
        for problem, names in problems.items()
        if names
    )
    if found:
        raise ValueError(f'the checkpoint is of another model: {" ".join(found.split())}')


# Private helpers


class _HashedFile:
    """A file that computes the SHA-256 of the data while writing, without a copy in memory."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.flush = file, file.flush
        self.sha256 = hashlib.sha256()
        # errno and text of the first error. The exception itself would keep the data in memory.
        self.failure: tuple[int | None, str | None] | None = None

    def write(self, data: bytes | memoryview) -> int:
        self.sha256.update(data)
        try:
            return self.file.write(data)
        except OSError as error:
            self.failure = error.errno, error.strerror
            raise

    def save(self, state: dict) -> str:
        """Write a checkpoint and return its SHA-256."""
        try:
            torch.save(state, self)
        except RuntimeError:  # torch.save hides the system's error behind its own
            if self.failure is None:
                raise
            raise OSError(*self.failure) from None
        return self.sha256.hexdigest()


def _check_contents(path: Path) -> None:
    """Compare a file with its checksum file, or else the entries of a ZIP with their CRC-32.

    The formats before ZIP and safetensors have no checksums of their own.
    """
    with open(path, 'rb') as file:
        is_archive = file.read(4) == b'PK\3\4'  # older files are plain pickles
    if is_archive:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > path.stat().st_size:
            raise ValueError('compressed archives are not supported')
    checksum = checksum_file(path)
    if checksum.is_file():
        if checksum.read_text('utf-8', 'replace').split()[:1] != [sha256(path)]:
            raise ValueError(
                f'SHA-256 differs from {checksum.name}; remove that file to load the checkpoint '
                'anyway'
            )
    elif is_archive:
        with zipfile.ZipFile(path) as archive:
            if name := archive.testzip():
                raise ValueError(f'the CRC-32 of its entry {name} differs')


def are_weights(values: object) -> bool:
    """Return whether an object maps names to tensors with a stored value for each entry.

    A sparse tensor, or one value that stands for millions, could fill the memory.
    """
    if not isinstance(values, dict):
        return False
    for key, value in values.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            return False
        if value.layout != torch.strided or value.is_meta:
            return False
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            return False
    return True


def _reason(error: Exception) -> str:
    """Explain in one line why a checkpoint could not be read."""
    unsafe = re.search(r'GLOBAL (\S+)', str(error))
    if unsafe:
        return (
            f'refused, because it contains a pickled object of the class {unsafe[1]}. Only tensors '
            'and plain values are loaded.'
        )
    # PyTorch's own messages advise to switch off the safe loader.
    detail = f' ({error!s:.300})'  # it may quote any name in the file
    if isinstance(error, pickle.UnpicklingError):
        detail = ''
    elif 'weights_only' in detail:
        detail = ' (TorchScript and tar archives are not supported)'
    return f'this is not a checkpoint, or it is incomplete or damaged{detail}'
