"""Convert the weights of the PRETRAINED checkpoint for a model of this project."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from config import Config, default_config, options_that_affect, pixel_statistics, value_at
from models.timm_classifier import TimmClassifier
from models.weights.convert import (
    PREFIX,
    WRAPPERS,
    Report,
    Statistics,
    convert,
    first_weight,
    rename_foreign,
    without_wrappers,
)
from models.weights.recognise import ARCHITECTURE, likely_encoder
from models.weights.stated_facts import compare_facts, facts_of_file, facts_of_options, twins
from system.downloads import FACTS, MODEL_CONFIG, PROCESSOR, local_path, split_key
from system.tool import command_of
from utils import are_weights, saved_options

NAMES_MODEL = ('arch', 'args')  # entries of a foreign file that may name its model
SHOWN_KEYS = 12  # keys of a file that a message names
# Keys of a foreign file under which tensors are no model.
NO_MODEL = re.compile(r'optim|sched|scaler|loss|criterion|rng|config|args|hyper|callback|metric')
HEAD_OPTIONS = (*options_that_affect('outputs'), 'MODEL.HEAD')


class TrainingPixels(NamedTuple):
    """How the images of the training of a checkpoint were normalised.

    Attributes:
        statistics: Mean and deviation of the pixels.
        by_image: Whether each image was normalised by its own mean and deviation.
        remarks: Lines for the log.
    """

    statistics: Statistics
    by_image: bool
    remarks: list[str]


def fit_pretrained(
    config: Config, checkpoint: dict[str, Any], model: nn.Module
) -> tuple[dict[str, Tensor], Report]:
    """Convert the weights of a checkpoint to a state dict that the model can load.

    Args:
        config: Run configuration.
        checkpoint: Result of `utils.read_checkpoint` for PRETRAINED. `models.weights.convert` lists
            the supported sources.
        model: Model that will load the weights.

    Returns:
        The state dict, and a report on every entry.

    Raises:
        ValueError: If entries are missing or do not fit, or if the model would compute something
            else with them than in their training.
    """
    # Checkpoints of this project have options and their names; of other files, both are looked for.
    options = saved_options(checkpoint)
    state, unused, is_huggingface = checkpoint['model'], [], False
    if options is None:
        state, unused, is_huggingface = rename_foreign(state, model)
        model_config = _read_beside(config.PRETRAINED, MODEL_CONFIG)
        stated = facts_of_file(checkpoint, model_config, is_huggingface=is_huggingface)
    else:
        stated = facts_of_options(options)

    # Channels are converted exactly with what normalised the pixels then and what does now.
    pixels = _training_pixels(config, options, state, model, is_huggingface=is_huggingface)
    source_stats, target_stats = pixels.statistics, Statistics(*pixel_statistics(config))
    by_image = pixels.by_image or config.DATA.NORMALIZE == 'image'
    if by_image:  # nothing is known of the images together
        source_stats, target_stats = _neutral(source_stats), _neutral(target_stats)

    # The head of the checkpoint is used if its outputs are those of this run.
    other_head = 'unknown labels'  # of another project
    if options is not None:
        head = {key: value_at(options, key) for key in HEAD_OPTIONS}
        other_head = str(head) if head != {key: value_at(config, key) for key in head} else ''
    try:
        converted, report = convert(
            state,
            model,
            source_stats=source_stats,
            target_stats=target_stats,
            other_head=other_head,
        )
    except ValueError as error:
        raise ValueError(f'{error}{likely_encoder(state, stated)}') from error
    report.unused += unused
    # Last, what neither names nor shapes show, such as the number of attention heads.
    report.remarks += [*pixels.remarks, *compare_facts(stated, config, model, converted)]
    is_unnamed = options is None and ARCHITECTURE not in stated
    if isinstance(model, TimmClassifier) and is_unnamed:
        if others := twins(model.name, model.layout.options):
            report.remarks.append(
                f'the file does not name its model, and also fits {", ".join(others)}, which '
                'computes other features: compare the logits of an image with those of the '
                f'source of the file. A {MODEL_CONFIG} beside it with "architecture" names it'
            )
    if by_image and report.folded:
        report.remarks.append("DATA.NORMALIZE 'image': channels were folded without statistics")
    elif source_stats != target_stats and not report.folded:
        report.remarks.append(f'the normalisation changes from {source_stats} to {target_stats}')
    return converted, report


def _training_pixels(
    config: Config,
    options: Config | None,
    state: dict[str, Tensor],
    model: nn.Module,
    *,
    is_huggingface: bool,
) -> TrainingPixels:
    """Find how the images of the training were normalised.

    The first of these counts: PRETRAINED_STATISTICS, the options in the checkpoint, what stands
    beside the file, and the values of timm's published weights. Without them, ImageNet's mean and
    deviation are assumed.

    Raises:
        ValueError: If the values are impossible, or do not fit the channels of the weights.
    """
    first, remarks = first_weight(model), []
    weights = [state[key] for key in (first, PREFIX + first) if key in state]
    channels = next((weight.shape[1] for weight in weights if weight.ndim == 4), None)
    trained = dict(options.DATA) if options else _exported_options(config.PRETRAINED, channels)
    before = trained.get('NORMALIZE', 'dataset')
    if trained and before != config.DATA.NORMALIZE:
        remarks.append(f'DATA.NORMALIZE is {config.DATA.NORMALIZE!r}, was {before!r}')
    if is_huggingface:  # its images are described by a file of their own
        processor = _read_beside(config.PRETRAINED, PROCESSOR)
        trained = _processor_options(processor, channels)
        size = processor.get('crop_size' if processor.get('do_center_crop') else 'size')
        if isinstance(size, dict):
            size = size.get('height', size.get('shortest_edge'))
        if _is_number(size) and size != config.DATA.IMG_SIZE:
            remarks.append(
                f'{PROCESSOR} makes images of {size} pixels, and DATA.IMG_SIZE is '
                f'{config.DATA.IMG_SIZE}'
            )
    trained = _stated(config, channels, is_own=options is not None) or trained
    is_assumed = not trained
    if is_assumed and isinstance(model, TimmClassifier) and channels == 3:
        known = model.encoder.default_cfg  # the normalisation of timm's published weights
        trained = {key.upper(): list(known[key]) for key in ('mean', 'std') if known.get(key)}
    # The same function as for a run, with its defaults where nothing is stated.
    values = default_config()
    values.MODEL.IN_CHANS = channels or values.MODEL.IN_CHANS
    values.DATA.MEAN, values.DATA.STD = trained.get('MEAN', []), trained.get('STD', [])
    statistics = Statistics(*pixel_statistics(values))
    if not all(map(_is_number, statistics.mean + statistics.std)) or min(statistics.std) <= 0:
        raise ValueError(
            f'the weights were trained with an impossible normalisation: {statistics!s:.200}'
        )
    if is_assumed:
        remarks.append(
            f'the file states no normalisation: {statistics} is assumed; PRETRAINED_STATISTICS '
            'states another one'
        )
    return TrainingPixels(statistics, trained.get('NORMALIZE') == 'image', remarks)


def _stated(config: Config, channels: int | None, *, is_own: bool) -> dict[str, list[float]]:
    """Return MEAN and STD that PRETRAINED_STATISTICS states; {} without it."""
    given, channels = [*config.PRETRAINED_STATISTICS], channels or 1
    if not given:
        return {}
    if is_own or len(given) not in (2, 2 * channels):
        raise ValueError(
            f'PRETRAINED_STATISTICS must be [mean, deviation], or {channels} means and then '
            f'{channels} deviations, and only for a file of another project, got {given}'
        )
    if len(given) == 2:
        return {'MEAN': given[:1] * channels, 'STD': given[1:] * channels}
    return {'MEAN': given[:channels], 'STD': given[channels:]}


def choose_weights(checkpoint: object, path: str | Path, key: str) -> dict[str, Any]:
    """Return the weights in a file as the entry 'model' of a checkpoint.

    Args:
        checkpoint: Contents of the file.
        path: The file, for messages.
        key: Key of the weights, with dots between keys of keys, or the beginning of their names;
            '' if the file has only one model.

    Returns:
        {'model': weights}, with the other entries of a checkpoint of this project, and what names
        the model of a foreign file.

    Raises:
        ValueError: If there are no such weights, or several. The message has the keys of the file.
    """
    found = _weights_within(checkpoint) if isinstance(checkpoint, dict) else {}
    chosen = _below(found, key) if key else found
    if len(chosen) == 1:
        (weights,) = chosen.values()
        is_own = are_weights(checkpoint.get('model')) and isinstance(checkpoint.get('config'), str)
        # Other entries, such as moments of the optimizer, need memory and are not used.
        kept = checkpoint if is_own else {k: checkpoint[k] for k in NAMES_MODEL if k in checkpoint}
        return kept | {'model': weights}
    file, _ = split_key(path)
    keys = [*found] or [*checkpoint] if isinstance(checkpoint, dict) else []
    if key:
        names = (WRAPPERS.sub('', name) for state in found.values() for name in state)
        # The beginnings of names are keys, too.
        keys = dict.fromkeys([*keys, *(name.split('.')[0] for name in names if '.' in name)])
        problem = f'{"several" if chosen else "no"} weights under {key!r}'
    else:
        problem = 'weights under several keys' if found else "no weights under the key 'model'"
    shown = ', '.join(map(str, [*keys][:SHOWN_KEYS]))[:300] or 'none'
    advice = f': choose one, such as {file}::{next(iter(found))}' if found else ''
    raise ValueError(f'{file} has {problem}; there are {shown}{advice}')


def _below(found: dict[str, dict[str, Tensor]], key: str) -> dict[str, dict[str, Tensor]]:
    """Return the state dict under a key, or the entries whose names begin with it, without it."""
    if key in found:
        return {key: found[key]}
    below = {}
    for outer, state in found.items():
        start = f'{key}.'.removeprefix(f'{outer}.')
        if not any(name.startswith(start) for name in state):
            state = without_wrappers(state)
        entries = {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
        if entries:
            below[outer] = entries
    return below


def _exported_options(path: str, channels: int | None) -> dict[str, Any]:
    """Return the normalisation in the `config.json` of `export.py` or timm; {} without one."""
    model_config = _read_beside(path, MODEL_CONFIG)
    exported = model_config.get(FACTS)
    keys = ('mean', 'std', 'normalize')
    if isinstance(exported, dict) and exported.keys() >= {*keys}:
        return {key.upper(): exported[key] for key in keys}
    published = model_config.get('pretrained_cfg')
    values = [(published if isinstance(published, dict) else {}).get(key) for key in keys[:2]]
    # timm's values are of three channels, also if the model was built for another number.
    if not all(isinstance(each, list) and len(each) == channels for each in values):
        return {}
    return dict(zip(('MEAN', 'STD'), values, strict=True))


def _read_beside(path: str, name: str) -> dict[str, Any]:
    """Read a JSON file next to the weights; {} if there is none."""
    file = local_path(path).with_name(name)
    if not file.is_file():
        return {}
    try:
        values = json.loads(file.read_text('utf-8'))
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{file} is not valid JSON ({error})') from error
    if not isinstance(values, dict):
        raise ValueError(f'{file} must contain an object, got {type(values).__name__}')
    return values


def _processor_options(processor: dict[str, Any], channels: int | None) -> dict[str, list[float]]:
    """Return MEAN and STD of an image processor; {} if it or the channels are unknown."""
    keys = {'MEAN': 'image_mean', 'STD': 'image_std'}
    if channels is None:  # weights of another model, which `fit_pretrained` refuses by name
        return {}
    if not processor.get('do_normalize', True):  # pixels from 0 to 1
        return {'MEAN': [0.0] * channels, 'STD': [1.0] * channels}
    if any(key not in processor for key in keys.values()):
        return {}
    for key in keys.values():
        values = processor[key]
        if (
            not isinstance(values, list)
            or len(values) != channels
            or not all(map(_is_number, values))
        ):
            raise ValueError(f'{PROCESSOR}: {key} must have {channels} values, got {values}')
    return {option: processor[key] for option, key in keys.items()}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _neutral(stats: Statistics) -> Statistics:
    """Return mean 0 and standard deviation 1 for each channel."""
    return Statistics((0.0,) * len(stats.mean), (1.0,) * len(stats.std))


def _weights_within(values: dict, outer: str = '') -> dict[str, dict[str, Tensor]]:
    """Return the state dicts of models in a foreign file, by their keys with dots between them."""
    found = {}
    for key, value in values.items():
        if not isinstance(key, str) or not isinstance(value, dict) or NO_MODEL.search(key.lower()):
            continue
        if value and are_weights(value):
            found[f'{outer}{key}'] = value
        elif outer.count('.') < 3:
            found |= _weights_within(value, f'{outer}{key}.')
    return found


def seen_patients(path: str, trained: Mapping[str, Any], data: Mapping[str, Any]) -> list[str]:
    """Return warnings that the weights in a file may have seen patients of this run.

    `trained` and `data` are the DATA options of the training of the weights and of this run.
    """
    names = _names_of_data_sets(trained)
    if names.isdisjoint(_names_of_data_sets(data)):
        return [
            f'{path} was trained on DATA.DATASET {", ".join(sorted(names))}, '
            f'{trained["DATA_PATH"]}. If these images show patients who are held out or scored '
            'here, their scores are too high: '
            f'{command_of("scripts/check_data.py")} finds X-rays in both, if you have these images'
        ]
    seen = []
    if trained['HOLDOUT_FRACTION'] < data['HOLDOUT_FRACTION']:
        seen.append('HOLDOUT_FRACTION')
    if trained['TRAIN_CSV'] != data['TRAIN_CSV']:
        seen.append('TRAIN_CSV')
    return [
        f'{path} was trained with DATA.{key} {trained[key]!r}, and this run has {data[key]!r}. If '
        'it was trained on the same data set, it may have seen patients that are now held out or '
        'scored, and their scores are then too high.'
        for key in seen
    ]


def _names_of_data_sets(data: Mapping[str, Any]) -> set[str]:
    """Return the data sets of DATA.SOURCES or, without sources, DATA.DATASET."""
    sources = {str(entry.get('dataset')) for entry in data['SOURCES'] if isinstance(entry, dict)}
    return sources or {data['DATASET']}
