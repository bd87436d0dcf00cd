"""Fit a checkpoint's weights to a model: prefixes, position tables, channels.

Pure functions over state dicts. Keys are compared without the prefix `encoder.` of pre-training
models; `decoder.*` belongs to their head.
"""

from collections import Counter
from collections.abc import Container
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from models.contrastive import BESIDE_ENCODER
from models.convert_mae import by_channel, by_pixel, translate
from models.relative_position import resize_table

State = dict[str, Tensor]

PREFIX = 'encoder.'
TABLE = 'relative_position_bias_table'
SHARED_TABLE = f'rel_pos_bias.{TABLE}'
BUFFERS = ('relative_position_index', 'attn_mask')  # computed by the model, never loaded
CLASS_ROWS = {'absolute_pos_embed': 0, 'pos_embed': 1}  # rows before the grid, by embedding
PATCH_WEIGHT, PATCH_BIAS = 'patch_embed.proj.weight', 'patch_embed.proj.bias'
NORM, POOLED_NORM = ('norm.weight', 'norm.bias'), ('fc_norm.weight', 'fc_norm.bias')
MAY_BE_NEW = ('decoder.', 'head.', 'fc_norm.', 'mask_token')
MAE_TOKEN, MAE_LAST = 'decoder.mask_token', 'decoder.pred'
SHOWN = 6  # names that are listed of each kind


class Statistics(NamedTuple):
    """What pixels in [0, 1] are normalised with, one value per channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass
class Report:
    """What became of each entry: names by outcome, and remarks for the log."""

    loaded: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    folded: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def table(self) -> str:
        """One line per outcome: how many entries, and which."""
        rows = {
            'loaded': self.loaded,
            'resized': self.resized,
            'folded': self.folded,
            'left new': self.new,
            'left over': self.left_over,
        }
        lines = [f'{name:<9} {len(keys):>4}  {_summary(keys)}' for name, keys in rows.items()]
        lines += [f'{"note":<14}  {remark}' for remark in self.remarks]
        return '\n'.join(line.rstrip() for line in lines)


def convert(
    state: State, target: State, *, source_stats: Statistics, target_stats: Statistics
) -> tuple[State, Report]:
    """Make a checkpoint's state dict one that the model can load.

    Args:
        state: a pre-training model's (keys with `encoder.`), a classifier's, or of MAE's own code.
        target: the model's own state dict, of either kind.
        source_stats: normalisation of the pixels that the checkpoint was trained on.
        target_stats: normalisation of the pixels that the model will see.

    Returns:
        Entries under the model's own keys, ready to load, and the report.

    Raises:
        ValueError: if entries are missing, left over or of another shape beyond what is allowed.
    """
    prefix = PREFIX if any(key.startswith(PREFIX) for key in target) else ''
    target = drop_buffers(strip_prefix(target))
    state, remarks = translate(state)
    source = strip_prefix(state)
    kept = drop_buffers(source)
    left_over = [key for key in state if key.removeprefix(PREFIX) not in kept]
    report = Report(left_over=left_over, remarks=remarks)
    for step in (spread_shared_table, resize_tables, resize_position_embeddings):
        kept = step(kept, target, report)
    kept = fold_channels(kept, target, source_stats, target_stats, report)
    kept = _settle(kept, target, report)
    return {_own_key(key, prefix): value for key, value in kept.items()}, report


def strip_prefix(state: State) -> State:
    """Take `encoder.` off the front of keys; without such keys the dictionary is a classifier's.

    What contrastive pre-training has beside the encoder is left out.

    Raises:
        ValueError: if a pre-training checkpoint has keys of no method's parts.
    """
    if not any(key.startswith(PREFIX) for key in state):
        return dict(state)
    known = [key for key in state if key.startswith((PREFIX, 'decoder.', *BESIDE_ENCODER))]
    check_fit(state, {key: state[key] for key in known})
    inside = [key for key in known if not key.startswith(BESIDE_ENCODER)]
    return {key.removeprefix(PREFIX): state[key] for key in inside}


def drop_buffers(state: State) -> State:
    """Leave out position indices and attention masks, which the model computes for its own size."""
    return {key: value for key, value in state.items() if key.split('.')[-1] not in BUFFERS}


def spread_shared_table(state: State, target: State, report: Report) -> State:
    """Add a ViT's shared bias table to every block's own, where the model has only those.

    A model that shares its table keeps it shared, and per-block tables stay as they are.
    """
    tables = [key for key in target if key.startswith('blocks.') and key.endswith(f'.{TABLE}')]
    if SHARED_TABLE not in state or SHARED_TABLE in target or not tables:
        return state
    shared = state[SHARED_TABLE]
    spread = {key: shared + state[key] if key in state else shared for key in tables}
    report.remarks.append(f'shared position table put into {len(tables)} blocks')
    return {key: value for key, value in state.items() if key != SHARED_TABLE} | spread


def resize_tables(state: State, target: State, report: Report) -> State:
    """Resize every relative position bias table to the model's window or grid.

    Raises:
        ValueError: if the numbers of attention heads differ, or a table is of no square.
    """
    resized = {}
    for key, (length, heads), (new_length, new_heads) in _pairs(state, target, {TABLE}):
        if heads != new_heads and key.startswith('decoder.'):
            continue  # another head, which fold_channels drops
        if heads != new_heads:
            raise ValueError(f'{key} is for {heads} attention heads, the model has {new_heads}')
        if length != new_length:
            resized[key] = resize_table(state[key], new_length)
    return _record(state, resized, report)


def resize_position_embeddings(state: State, target: State, report: Report) -> State:
    """Resize absolute position embeddings (bicubic) to the model's grid."""
    resized = {}
    for key, (_, length, _), (_, new_length, _) in _pairs(state, target, CLASS_ROWS):
        if length != new_length:
            rows = CLASS_ROWS[key.split('.')[-1]]
            resized[key] = resize_position_embedding(state[key], new_length, class_rows=rows)
    return _record(state, resized, report)


def resize_position_embedding(embedding: Tensor, new_length: int, *, class_rows: int) -> Tensor:
    """Resize [1, class_rows + side ** 2, D] to new_length rows; the class-token rows stay.

    Raises:
        ValueError: if either grid is not square.
    """
    first, grid = embedding[:, :class_rows], embedding[:, class_rows:]
    side, new_side = round(grid.shape[1] ** 0.5), round((new_length - class_rows) ** 0.5)
    if side**2 != grid.shape[1] or new_side**2 != new_length - class_rows:
        raise ValueError(
            f'position embeddings must be square grids, got {grid.shape[1]} positions for '
            f'{new_length - class_rows}'
        )
    planes = grid.transpose(1, 2).unflatten(2, (side, side))  # [1, D, side, side]
    planes = F.interpolate(planes, size=(new_side, new_side), mode='bicubic', align_corners=False)
    return torch.cat([first, planes.flatten(2).transpose(1, 2)], dim=1)


def fold_channels(
    state: State, target: State, source_stats: Statistics, target_stats: Statistics, report: Report
) -> State:
    """Turn patch embedding and decoder from the checkpoint's channels into the model's."""
    for key in (PATCH_WEIGHT, PATCH_BIAS):
        if key not in state or state[key].ndim != target[key].ndim:
            return state  # refused later, by name
    channels, new_channels = state[PATCH_WEIGHT].shape[1], target[PATCH_WEIGHT].shape[1]
    state = dict(state)
    if channels != new_channels:
        state[PATCH_WEIGHT], state[PATCH_BIAS] = fold_input(
            state[PATCH_WEIGHT], state[PATCH_BIAS], source_stats, target_stats
        )
        report.folded += [PATCH_WEIGHT, PATCH_BIAS]
        report.remarks.append(f'channels: {channels} -> {new_channels}')
    decoder = {key: value for key, value in state.items() if key.startswith('decoder.')}
    if decoder:
        fitted, reason = _fit_decoder(decoder, target, source_stats, target_stats)
        if reason:
            report.remarks.append(f'decoder dropped: {reason}')
            report.left_over += decoder
        report.folded += [key for key in fitted if fitted[key] is not decoder[key]]
        state = {key: value for key, value in state.items() if key not in decoder} | fitted
    return state


def fold_input(
    weight: Tensor, bias: Tensor, source: Statistics, target: Statistics
) -> tuple[Tensor, Tensor]:
    """Convert a patch convolution so that grey images give what they gave in the old channels.

    Each old channel saw (grey - mean_c) / std_c; grey is the average over the new channels of
    std_k x_k + mean_k. Exact for a grey image, whatever the two numbers of channels.

    Args:
        weight: [E, C, p, p] of the checkpoint.
        bias: [E].
        source: statistics of its C channels.
        target: statistics of the model's channels.
    """
    dtype, (mean, std) = weight.dtype, _columns(source)
    new_mean, new_std = _columns(target)
    per_grey = (weight.double() / std[:, None, None]).sum(1, keepdim=True)  # [E, 1, p, p]
    offset = (weight.double() * ((new_mean.mean() - mean) / std)[:, None, None]).sum((1, 2, 3))
    folded = per_grey * new_std[:, None, None] / len(new_std)  # [E, C', p, p]
    return folded.to(dtype), (bias.double() + offset).to(dtype)


def fold_output(
    weight: Tensor, bias: Tensor, source: Statistics, target: Statistics
) -> tuple[Tensor, Tensor]:
    """Convert a decoder's last convolution: its channels are averaged in grey levels.

    The average, as each new channel normalises it, is what that channel puts out.

    Args:
        weight: [C * stride ** 2, D, ...]; row c * stride ** 2 + a * stride + b is pixel (a, b)
            of channel c.
        bias: [C * stride ** 2].
        source: statistics of its C channels.
        target: statistics of the model's channels.
    """
    dtype, (mean, std) = weight.dtype, _columns(source)
    new_mean, new_std = _columns(target)
    share = std[None, :] / len(std) / new_std[:, None]  # [C', C]
    rows = weight.double().unflatten(0, (len(std), -1))  # [C, stride ** 2, D, 1, 1]
    offsets = bias.double().unflatten(0, (len(std), -1))  # [C, stride ** 2]
    new_weight = torch.tensordot(share, rows, dims=1)
    new_bias = share @ offsets + ((mean.mean() - new_mean) / new_std)[:, None]
    return new_weight.flatten(0, 1).to(dtype), new_bias.flatten().to(dtype)


def check_fit(
    state: State, target: State, *, left: Container[str] = (), new: Container[str] = ()
) -> None:
    """See that the entries are the model's, but for those that may be left over or new.

    Raises:
        ValueError: counting and naming what is unexpected, missing or of another shape.
    """
    shared = [key for key in state if key in target]
    problems = {
        'unexpected': [key for key in state if key not in target and key not in left],
        'missing': [key for key in target if key not in state and key not in new],
        'of another shape': [
            _shapes(key, state, target) for key in shared if state[key].shape != target[key].shape
        ],
    }
    texts = []
    for problem, names in problems.items():
        if names:
            texts.append(f'{len(names)} {problem} ({_first(names)})')
    if texts:
        raise ValueError(f'checkpoint of another model: {"; ".join(texts)}')


def _columns(statistics: Statistics) -> tuple[Tensor, Tensor]:
    return (
        torch.tensor(statistics.mean, dtype=torch.float64),
        torch.tensor(statistics.std, dtype=torch.float64),
    )


def _fit_decoder(
    decoder: State, target: State, source_stats: Statistics, target_stats: Statistics
) -> tuple[State, str]:
    """The decoder as the model takes it, and ''; or nothing, and why it is dropped."""
    own = [key for key in target if key.startswith('decoder.')]
    if not own:
        return {}, 'a classifier has none'
    if set(own) != set(decoder):
        return {}, f'another head, with {_first(list(decoder))}'
    is_mae = MAE_TOKEN in own
    last = MAE_LAST if is_mae else f'decoder.{max(int(key.split(".")[1]) for key in own)}'
    weight, bias = f'{last}.weight', f'{last}.bias'
    channels, new_channels = len(source_stats.std), len(target_stats.std)
    pixels = len(target[bias]) // new_channels
    fitted = dict(decoder)
    expected = (pixels * channels, *target[weight].shape[1:])
    if channels != new_channels and decoder[weight].shape == expected:
        rows = [decoder[key] for key in (weight, bias)]
        rows = [by_channel(each, channels) for each in rows] if is_mae else rows
        rows = fold_output(*rows, source_stats, target_stats)
        rows = [by_pixel(each, new_channels) for each in rows] if is_mae else rows
        fitted[weight], fitted[bias] = rows
    wrong = [key for key in own if fitted[key].shape != target[key].shape]
    if wrong:
        return {}, _first([_shapes(key, decoder, target) for key in wrong])
    return fitted, ''


def _pairs(
    state: State, target: State, names: Container[str]
) -> list[tuple[str, torch.Size, torch.Size]]:
    """Key and both shapes of the entries so named that state and target share."""
    return [
        (key, value.shape, target[key].shape)
        for key, value in state.items()
        if key in target and key.split('.')[-1] in names and value.ndim == target[key].ndim
    ]


def _record(state: State, resized: State, report: Report) -> State:
    report.resized += resized
    sizes = Counter(
        f'{key.split(".")[-1]} {_rows(state[key])} -> {_rows(value)} rows'
        for key, value in resized.items()
    )
    report.remarks += [f'{size} ({count})' for size, count in sizes.items()]
    return state | resized


def _rows(table: Tensor) -> int:
    return table.shape[-2]


def _settle(state: State, target: State, report: Report) -> State:
    """Take what fits, record the rest, and refuse what may be neither new nor left over."""
    head = [key for key in state if key.startswith('head.') and key in target]
    if 'head.weight' not in target or any(state[k].shape != target[k].shape for k in head):
        head = [key for key in state if key.startswith('head.')]
        report.left_over += head
        state = {key: value for key, value in state.items() if key not in head}
    left = [key for key in state if key not in target]
    new = [key for key in target if key not in state]
    pooled = MAE_TOKEN in target and POOLED_NORM[0] in state  # the classifier it was had no other
    check_fit(
        state,
        target,
        left=[key for key in left if _may_be_left(key, target)],
        new=[key for key in new if key.startswith(MAY_BE_NEW) or (key in NORM and pooled)],
    )
    report.left_over += left
    report.new += new
    changed = {*report.resized, *report.folded}
    report.loaded += [key for key in target if key in state and key not in changed]
    return {key: value for key, value in state.items() if key in target}


def _may_be_left(key: str, target: State) -> bool:
    """Whether the model may lack it: a `norm` if it pools, a pooled norm if it pre-trains."""
    pooled = POOLED_NORM if 'mask_token' in target or MAE_TOKEN in target else ()
    return key in ('mask_token', *NORM, *pooled)


def _own_key(key: str, prefix: str) -> str:
    return key if key.startswith('decoder.') else prefix + key


def _shapes(key: str, state: State, target: State) -> str:
    return f'{key} {list(state[key].shape)} for {list(target[key].shape)}'


def _first(names: list[str]) -> str:
    return ', '.join(names[:SHOWN]) + (', ...' if len(names) > SHOWN else '')


def _summary(keys: list[str]) -> str:
    """One or two names of a part of the model, or how many there are; tables are only counted."""
    groups = {}
    for key in keys:
        last = key.split('.')[-1]
        group = last if last in (TABLE, *BUFFERS) else key.split('.')[0]
        groups.setdefault(group, []).append(key)
    return ', '.join(
        f'{group} {len(names)}'
        if len(names) > 2 or group in (TABLE, *BUFFERS)
        else ', '.join(names)
        for group, names in groups.items()
    )
