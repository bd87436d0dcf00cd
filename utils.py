"""Checkpoints: save, read, resume, and start from pre-trained weights."""

import contextlib
import errno
import logging
import os
import pickle
import re
from collections import OrderedDict
from pathlib import Path

import torch
import yaml
from torch import Tensor, nn

from config import CHECKPOINT_GLOBALS, Config, default_config, encoder_node
from models.convert import PATCH_WEIGHT, Statistics, check_fit, convert, drop_buffers

BEST_CHECKPOINT = 'ckpt_best.pth'  # never resumed from by itself
RESUME_KEYS = (
    'optimizer',
    'scaler',
    'epoch',
    'batch',
    'num_batches',
    'finished',
    'best_score',
    'progress',
    'rng',
    'config',
)
CHECKPOINT_NAME = re.compile(r'ckpt_epoch_(\d+)(?:_step_(\d+))?\.pth')


def checkpoint_name(epoch: int, step: int | None = None) -> str:
    """File name of the checkpoint at the end of an epoch, or after an optimizer step in it."""
    return f'ckpt_epoch_{epoch}.pth' if step is None else f'ckpt_epoch_{epoch}_step_{step}.pth'


def find_newest_checkpoint(folder: str | Path) -> Path | None:
    """The checkpoint farthest in training, whatever the files' dates; None where there is none.

    The end of an epoch lies after every step in it.
    """
    found = []
    for path in Path(folder).glob('ckpt_epoch_*.pth'):
        if match := CHECKPOINT_NAME.fullmatch(path.name):
            epoch, step = match.groups()
            found.append((int(epoch), float('inf') if step is None else int(step), path))
    return max(found)[2] if found else None


def checkpoint_to_evaluate(config, folder: Path) -> str | Path:
    """The checkpoint that --resume or --pretrained names, else the run folder's best or newest.

    The run's config.yaml, given as --cfg, names in PRETRAINED what the run began with: its own
    checkpoints go before that.

    Raises:
        ValueError: if there is none: an untrained model is not evaluated.
    """
    best = folder / BEST_CHECKPOINT
    own = best if best.exists() else find_newest_checkpoint(folder)
    given = config.PRETRAINED
    if given and own and (trained := trained_config(own)) and trained.PRETRAINED == given:
        given = None
    checkpoint = config.MODEL.RESUME or given or own
    if not checkpoint:
        raise ValueError(
            '--eval: nothing to evaluate: give --resume or --pretrained, or a run folder with '
            f'checkpoints (none in {folder})'
        )
    return checkpoint


def trained_config(path: str | Path) -> Config | None:
    """The options of the run that a checkpoint is of, those of other versions left out.

    None for a checkpoint that holds no options, such as SimMIM's own.
    """
    text = read_checkpoint(path).get('config')
    if not isinstance(text, str):
        return None
    config = default_config()
    config.merge_from_other_cfg(_known_options(yaml.safe_load(text), config))
    return config


def _known_options(given: dict, known: Config) -> dict:
    """The entries whose keys there are; any below nodes that take new ones."""
    if known.is_new_allowed():
        return given
    return {
        key: _known_options(value, known[key]) if isinstance(known[key], Config.__base__) else value
        for key, value in given.items()
        if key in known
    }


def save_checkpoint(path: str | Path, state: dict) -> None:
    """Write all of a checkpoint or nothing: a file that was there before stays until then."""
    path = Path(path)
    temporary = path.with_name(f'.{path.name}.tmp')
    try:
        with open(temporary, 'wb') as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        raise ValueError(f'{path}: the checkpoint cannot be written ({error})') from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def read_checkpoint(path: str | Path) -> dict:
    """Read a checkpoint, a file or an https address, by torch's safe loader.

    The config node in SimMIM's own files is read as a plain dictionary; nothing in a file is run.

    Raises:
        ValueError: if there is no such file, it is damaged, holds other objects, or no weights.
    """
    if not _is_address(path) and not Path(path).is_file():
        raise ValueError(f'{path}: there is no such checkpoint file')
    # Under the class's name the loader gets a dictionary: it fills nothing else, and runs nothing.
    allowed = [(OrderedDict, f'{kind.__module__}.{kind.__name__}') for kind in CHECKPOINT_GLOBALS]
    try:
        with torch.serialization.safe_globals(allowed):
            checkpoint = _load(path)
    except Exception as error:  # a damaged file can fail in any way
        raise ValueError(f'{path}: {_reason(error)}') from error
    model = checkpoint.get('model') if isinstance(checkpoint, dict) else None
    if not isinstance(model, dict) or not all(isinstance(v, Tensor) for v in model.values()):
        raise ValueError(f"{path}: not a checkpoint, it has no weights under the key 'model'")
    return checkpoint


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


def load_weights(path: str | Path, model: nn.Module, logger: logging.Logger) -> None:
    """Load the model's weights alone from a checkpoint of the same model, to evaluate it."""
    load_model_state(model, read_checkpoint(path)['model'], str(path), logger)


def resume(
    path: str | Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    logger: logging.Logger,
) -> dict:
    """Load what training goes on with: weights, moments of the optimizer, scale of the gradients.

    Rates, weight decay and other options of the optimizer's groups stay the config's.

    Returns:
        The rest of the checkpoint: `epoch`, `batch`, `num_batches`, `finished`, `best_score`,
        `progress`, `rng` (a list over ranks), `config` (text).

    Raises:
        ValueError: if it is a checkpoint of another model, or holds weights alone.
    """
    saved = read_checkpoint(path)
    missing = [key for key in RESUME_KEYS if key not in saved]
    if missing:
        raise ValueError(
            f'{path}: nothing to go on from, it lacks {missing}; start from its weights with '
            '--pretrained'
        )
    load_model_state(model, saved['model'], str(path), logger)
    name = yaml.safe_load(saved['config'])['TRAIN']['OPTIMIZER']['NAME'].lower()
    if name != type(optimizer).__name__.lower():
        raise ValueError(
            f'{path}: it was trained with TRAIN.OPTIMIZER.NAME {name}, its moments do not fit '
            f'{type(optimizer).__name__}; start from its weights with --pretrained'
        )
    groups = optimizer.state_dict()['param_groups']
    counts = [
        sum(len(group['params']) for group in part)
        for part in (saved['optimizer']['param_groups'], groups)
    ]
    if counts[0] != counts[1]:
        raise ValueError(
            f'{path}: it trained {counts[0]} tensors, this run trains {counts[1]} (another '
            'FINETUNE.MODE?); start from its weights with --pretrained, under another --tag'
        )
    optimizer.load_state_dict({'state': saved['optimizer']['state'], 'param_groups': groups})
    if saved['scaler']:
        scaler.load_state_dict(saved['scaler'])
    return {key: saved[key] for key in RESUME_KEYS}


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

    Into either stage, from SimMIM's or this project's checkpoints of either stage, or from
    supervised ones.

    Raises:
        ValueError: naming the file, and the entries that fit nowhere or are missing.
    """
    from data.transforms import statistics

    path = config.PRETRAINED
    checkpoint = read_checkpoint(path)
    state, target_stats = checkpoint['model'], Statistics(*statistics(config))
    try:
        asked = _asked_data_options(checkpoint)
        source_stats = _source_statistics(state, asked)
        by_image = 'image' in (config.DATA.NORMALIZE, asked.get('NORMALIZE'))
        if by_image:
            source_stats, target_stats = _neutral(source_stats), _neutral(target_stats)
        converted, report = convert(
            state, model.state_dict(), source_stats=source_stats, target_stats=target_stats
        )
    except ValueError as error:
        raise ValueError(f'PRETRAINED {path}: {error}') from error
    model.load_state_dict(converted, strict=False)
    if by_image and report.folded:
        report.remarks.append("DATA.NORMALIZE 'image': plain sums over channels, no statistics")
    elif source_stats != target_stats and not report.folded:
        report.remarks.append(f'pixels are normalised with {target_stats}, were {source_stats}')
    if (before := asked.get('PREPROCESS', 'none')) != config.DATA.PREPROCESS:
        report.remarks.append(f'DATA.PREPROCESS is {config.DATA.PREPROCESS!r}, was {before!r}')
    logger.info(f'weights from {path}:\n{report.table()}')


def _is_address(path: str | Path) -> bool:
    return str(path).startswith('https://')


def _load(path: str | Path) -> object:
    if _is_address(path):
        return torch.hub.load_state_dict_from_url(
            str(path), map_location='cpu', check_hash=True, weights_only=True
        )
    return torch.load(path, map_location='cpu', weights_only=True)


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


def _asked_data_options(checkpoint: dict) -> dict:
    """The section DATA of the config text in this project's checkpoints; {} for other files."""
    text = checkpoint.get('config')
    if not isinstance(text, str):
        return {}
    try:
        data = yaml.safe_load(text)['DATA']
        keys = ('MEAN', 'STD', 'NORMALIZE', 'PREPROCESS')
        return {key: data[key] for key in keys if key in data}
    except (yaml.YAMLError, TypeError, KeyError) as error:
        raise ValueError("its text under 'config' is no config of a run") from error


def _source_statistics(state: dict[str, Tensor], asked: dict) -> Statistics:
    """What the pixels were normalised with that a checkpoint was trained on."""
    from data.transforms import statistics

    config = default_config()
    for key in (PATCH_WEIGHT, f'encoder.{PATCH_WEIGHT}'):
        if key in state and state[key].ndim == 4:
            encoder_node(config).IN_CHANS = state[key].shape[1]
    config.DATA.MEAN, config.DATA.STD = asked.get('MEAN', []), asked.get('STD', [])
    return Statistics(*statistics(config))


def _neutral(statistics: Statistics) -> Statistics:
    return Statistics((0.0,) * len(statistics.mean), (1.0,) * len(statistics.std))
