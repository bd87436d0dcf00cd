"""What runs take from checkpoints: weights, options, where to go on, and pre-trained weights."""

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

import distributed
from checkpoint_files import (
    BEST_CHECKPOINT,
    check_exists,
    find_newest_checkpoint,
    newest_first,
    newest_good,
    read_checkpoint,
    write_checkpoint,
)
from checkpoint_files import CHECKPOINT_NAME as CHECKPOINT_NAME
from checkpoint_files import checkpoint_name as checkpoint_name
from config import Config, default_config, encoder_node
from config_merge import load_yaml
from models.convert import PATCH_WEIGHT, Statistics, check_fit, convert, drop_buffers
from models.convert_huggingface import (
    PROCESSOR,
    from_huggingface,
    is_huggingface,
    processor_statistics,
)
from models.convert_timm import convert_timm, first_weight, published_statistics
from models.timm_classifier import TimmClassifier
from provenance import read_record, shown_checkpoint

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
        config.merge_from_other_cfg(_known_options(load_yaml(text), config))
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
    from data.transforms import statistics

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
    from data.transforms import statistics

    config = default_config()
    for key in (weight, f'encoder.{weight}'):
        if key in state and state[key].ndim == 4:
            encoder_node(config).IN_CHANS = state[key].shape[1]
    config.DATA.MEAN, config.DATA.STD = asked.get('MEAN', []), asked.get('STD', [])
    return Statistics(*statistics(config))


def _neutral(statistics: Statistics) -> Statistics:
    return Statistics((0.0,) * len(statistics.mean), (1.0,) * len(statistics.std))
