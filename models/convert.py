"""Fit a checkpoint's weights to a model: prefixes, position tables, channels.

Pure functions over state dicts. Keys are compared without the prefix `encoder.` of pre-training
models; `decoder.*` belongs to their head.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Container
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from torch import Tensor, nn

from models.relative_position import resize_table
from models.timm_classifier import TimmClassifier

# ==== models.convert_huggingface: Names of transformers' Swin, ViT and BEiT: one table, read from ours to theirs and back.
#
# Swin's patch merging puts the four neighbours in the same order (top left, bottom left, top right,
# bottom right), and relative positions are counted alike: only names differ, and what is one product
# for queries, keys and values here is three there.

State = dict[str, Tensor]

PROCESSOR = 'preprocessor_config.json'  # beside the weights: how pixels are prepared
PATCHES = 'embeddings.patch_embeddings.projection.weight'  # after the prefix of a model with a head
NOT_USED = ('pooler.dense.', 'lm_head.')  # heads that nothing here has
PARTS = ('query', 'key', 'value')  # in this order in one product

BLOCK = (
    ('norm1.', 'layernorm_before.'),
    ('norm2.', 'layernorm_after.'),
    ('attn.proj.', 'attention.output.dense.'),
    ('mlp.fc1.', 'intermediate.dense.'),
    ('mlp.fc2.', 'output.dense.'),
)
SWIN_BLOCK = (
    *((f'attn.{name}.', f'attention.self.{name}.') for name in PARTS),
    ('attn.relative_', 'attention.self.relative_'),
    *BLOCK,
)
VIT_BLOCK = (
    *((f'attn.{name}.', f'attention.attention.{name}.') for name in PARTS),
    ('attn.relative_', 'attention.attention.relative_position_bias.relative_'),
    ('gamma_', 'lambda_'),
    *BLOCK,
)
# How keys begin, ours and theirs; {} stands for the same number in both.
NAMES = (
    ('patch_embed.proj.', 'embeddings.patch_embeddings.projection.'),
    ('patch_embed.norm.', 'embeddings.norm.'),
    ('mask_token', 'embeddings.mask_token'),
    ('cls_token', 'embeddings.cls_token'),
    ('pos_embed', 'embeddings.position_embeddings'),
    ('rel_pos_bias.', 'encoder.relative_position_bias.'),
    ('layers.{}.downsample.', 'encoder.layers.{}.downsample.'),
    *(('layers.{}.blocks.{}.' + a, 'encoder.layers.{}.blocks.{}.' + b) for a, b in SWIN_BLOCK),
    *(('blocks.{}.' + a, 'encoder.layer.{}.' + b) for a, b in VIT_BLOCK),
    ('norm.', 'layernorm.'),
    ('fc_norm.', 'pooler.layernorm.'),
    ('head.', 'classifier.'),
)


def to_huggingface(state: State) -> State:
    """Our entries, q, k and v in one, under transformers' names but for a model's prefix."""
    return {_renamed(key, NAMES): value for key, value in split_qkv(state).items()}


def is_huggingface(state: State) -> bool:
    """Whether it has the names of transformers' Swin or ViT, or of a model made as they are."""
    return _prefix(state) is not None


def from_huggingface(state: State) -> tuple[State, list[str]]:
    """Transformers' entries under the names of ours, and of timm's ViT and BEiT.

    Args:
        state: of a model with a head (names begin `swin.`, `vit.`, `beit.`) or without one.

    Returns:
        The entries; with biases of the keys as `attn.qkv.bias`, else (BEiT) as `attn.q_bias` and
        `attn.v_bias`. And the names of what nothing here has a place for, which is not in them.
        Entries that are not in the table keep their names, by which they are refused later.
    """
    prefix, back = _prefix(state) or '', tuple((theirs, ours) for ours, theirs in NAMES)
    bare = {key.removeprefix(prefix): key for key in state}
    left_over = [key for name, key in bare.items() if name.startswith(NOT_USED)]
    kept = {name: state[key] for name, key in bare.items() if key not in left_over}
    return join_qkv({_renamed(name, back): value for name, value in kept.items()}), left_over


def split_qkv(state: State) -> State:
    """Part `attn.qkv` into query, key and value; `q_bias` and `v_bias` become theirs."""
    split = {}
    for key, value in state.items():
        if '.attn.qkv.' in key:
            for name, part in zip(PARTS, value.chunk(3), strict=True):
                split[key.replace('.qkv.', f'.{name}.')] = part.clone()
        else:
            key = key.replace('.attn.q_bias', '.attn.query.bias')
            split[key.replace('.attn.v_bias', '.attn.value.bias')] = value
    return split


def join_qkv(state: State) -> State:
    """Undo `split_qkv`; parts that are not all there, or not of one shape, stay as they are."""
    joined = dict(state)
    for key in state:
        start, part, kind = key.rpartition('attn.query.')
        if not part:
            continue
        start += 'attn.'
        q, k, v = parts = [state.get(f'{start}{name}.{kind}') for name in PARTS]
        if len({each.shape for each in parts if each is not None}) > 1 or v is None:
            continue
        if k is not None:
            joined[f'{start}qkv.{kind}'] = torch.cat(parts)
        elif kind == 'bias':
            joined |= {f'{start}q_bias': q, f'{start}v_bias': v}
        else:
            continue
        for name in PARTS:
            joined.pop(f'{start}{name}.{kind}', None)
    return joined


def processor_statistics(processor: object, num_channels: int) -> dict[str, list[float]]:
    """Options DATA.MEAN and STD by the contents of PROCESSOR; {} where these do not say.

    Raises:
        ValueError: if they are not a number a channel, or a deviation is not above 0.
    """
    if not isinstance(processor, dict):
        raise ValueError(f'{PROCESSOR} is no JSON object')
    if not processor.get('do_normalize', True):
        return {}
    found = {}
    for option, key, least in (('MEAN', 'image_mean', -math.inf), ('STD', 'image_std', 0)):
        values = processor.get(key)
        if values is None:
            return {}
        fits = isinstance(values, list) and len(values) == num_channels
        if not fits or not all(type(v) in (int, float) and least < v < math.inf for v in values):
            raise ValueError(
                f'{key} must be {num_channels} finite numbers{" above 0" * (least == 0)}, as many '
                f'as the weights have channels, got {values!r:.100}'
            )
        found[option] = [float(value) for value in values]
    return found


def _prefix(state: State) -> str | None:
    """What is before the names of the encoder, such as `vit.`; None where they are others."""
    keys = [key for key, value in state.items() if value.ndim == 4]
    found = (re.fullmatch(rf'((?:\w+\.)?){re.escape(PATCHES)}', key) for key in keys)
    return next((match[1] for match in found if match), None)


def _renamed(key: str, names: tuple[tuple[str, str], ...]) -> str:
    """The key with the beginning that the one row says which fits it; or as it is."""
    for begins, becomes in names:
        pattern = re.escape(begins).replace(r'\{\}', r'(\d+)')
        if match := re.match(pattern, key):
            return becomes.format(*match.groups()) + key[match.end() :]
    return key


# ==== models.convert_mae: Weights named as MAE's own code names them, or timm's ViT, under this project's names.

State_convert_mae = dict[str, Tensor]

QKV_BIAS = re.compile(r'((?:decoder_)?blocks\.\d+\.attn\.)qkv\.bias')
DECODER = re.compile(r'^decoder_(embed|pos_embed|blocks|norm|pred)\b')


def translate(state: State_convert_mae) -> tuple[State_convert_mae, list[str]]:
    """MAE's and timm's names become ours; a state dict with other names stays as it is.

    Biases of the keys are left out, which changes no feature: such a bias adds the same number to
    the logits of all keys of a query, and the softmax over them is as before.

    Args:
        state: names to tensors, such as blocks.0.attn.qkv.bias and decoder_pred.weight.

    Returns:
        The encoder's entries without prefix, the decoder's as decoder.*, and remarks for the log.
    """
    biases = [key for key in state if QKV_BIAS.fullmatch(key) and state[key].ndim == 1]
    has_decoder = any(DECODER.match(key) for key in state)
    renamed = {}
    for key, value in state.items():
        if key in biases:
            new = key.removesuffix('qkv.bias')
            q_bias, _, v_bias = value.tensor_split(3)
            parts = {f'{new}q_bias': q_bias, f'{new}v_bias': v_bias}
        else:
            parts = {'decoder.mask_token' if has_decoder and key == 'mask_token' else key: value}
        renamed |= {DECODER.sub(r'decoder.\1', name): part for name, part in parts.items()}
    remarks = [f'biases of keys left out of {len(biases)} blocks, as they change nothing']
    return renamed, remarks if biases else []


def by_channel(rows: Tensor, channels: int) -> Tensor:
    """Rows of MAE's last layer, [pixels * C, ...], all pixels of a channel together."""
    return rows.unflatten(0, (-1, channels)).transpose(0, 1).flatten(0, 1)


def by_pixel(rows: Tensor, channels: int) -> Tensor:
    """Rows [C * pixels, ...] as in MAE's last layer: all channels of a pixel together."""
    return rows.unflatten(0, (channels, -1)).transpose(0, 1).flatten(0, 1)


# ==== models.convert: Fit a checkpoint's weights to a model: prefixes, position tables, channels.
#
# Pure functions over state dicts. Keys are compared without the prefix `encoder.` of pre-training
# models; `decoder.*` belongs to their head.

State_convert = dict[str, Tensor]

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
    state: State_convert,
    target: State_convert,
    *,
    source_stats: Statistics,
    target_stats: Statistics,
) -> tuple[State_convert, Report]:
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


def strip_prefix(state: State_convert) -> State_convert:
    """Take `encoder.` off the front of keys; without such keys the dictionary is a classifier's.

    What contrastive pre-training has beside the encoder is left out.

    Raises:
        ValueError: if a pre-training checkpoint has keys of no method's parts.
    """
    if not any(key.startswith(PREFIX) for key in state):
        return dict(state)
    inside = [key for key in state if key.startswith((PREFIX, 'decoder.'))]
    if not is_contrastive(state):
        check_fit(state, {key: state[key] for key in inside})
    return {key.removeprefix(PREFIX): state[key] for key in inside}


def is_contrastive(state: State_convert) -> bool:
    """Return whether a state dict is from contrastive pre-training, which counts its steps."""
    return 'step' in state and any(key.startswith(PREFIX) for key in state)


def drop_buffers(state: State_convert) -> State_convert:
    """Leave out position indices and attention masks, which the model computes for its own size."""
    return {key: value for key, value in state.items() if key.split('.')[-1] not in BUFFERS}


def spread_shared_table(
    state: State_convert, target: State_convert, report: Report
) -> State_convert:
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


def resize_tables(state: State_convert, target: State_convert, report: Report) -> State_convert:
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


def resize_position_embeddings(
    state: State_convert, target: State_convert, report: Report
) -> State_convert:
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
    state: State_convert,
    target: State_convert,
    source_stats: Statistics,
    target_stats: Statistics,
    report: Report,
) -> State_convert:
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
    state: State_convert,
    target: State_convert,
    *,
    left: Container[str] = (),
    new: Container[str] = (),
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
    decoder: State_convert,
    target: State_convert,
    source_stats: Statistics,
    target_stats: Statistics,
) -> tuple[State_convert, str]:
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
    state: State_convert, target: State_convert, names: Container[str]
) -> list[tuple[str, torch.Size, torch.Size]]:
    """Key and both shapes of the entries so named that state and target share."""
    return [
        (key, value.shape, target[key].shape)
        for key, value in state.items()
        if key in target and key.split('.')[-1] in names and value.ndim == target[key].ndim
    ]


def _record(state: State_convert, resized: State_convert, report: Report) -> State_convert:
    report.resized += resized
    sizes = Counter(
        f'{key.split(".")[-1]} {_rows(state[key])} -> {_rows(value)} rows'
        for key, value in resized.items()
    )
    report.remarks += [f'{size} ({count})' for size, count in sizes.items()]
    return state | resized


def _rows(table: Tensor) -> int:
    return table.shape[-2]


def _settle(state: State_convert, target: State_convert, report: Report) -> State_convert:
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


def _may_be_left(key: str, target: State_convert) -> bool:
    """Whether the model may lack it: a `norm` if it pools, a pooled norm if it pre-trains."""
    pooled = POOLED_NORM if 'mask_token' in target or MAE_TOKEN in target else ()
    return key in ('mask_token', *NORM, *pooled)


def _own_key(key: str, prefix: str) -> str:
    return key if key.startswith('decoder.') else prefix + key


def _shapes(key: str, state: State_convert, target: State_convert) -> str:
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


# ==== models.convert_timm: Fit weights to a model of timm: timm's own files, torchvision's, and checkpoints of this project.
#
# Pure functions over state dicts, as in models/convert.py, which does it for our own encoders.

# torchvision's published DenseNets: `denselayer1.norm.1.weight` is `denselayer1.norm1.weight` now.
OLD_DENSENET = re.compile(r'(denselayer\d+\.(?:norm|conv))\.([12]\.)')
AUXILIARY = 'AuxLogits.'  # Inception's second classifier, of training alone
COUNTER = '.num_batches_tracked'  # of a batch norm; old files have none, and nothing depends on it
CONVOLUTIONS = (nn.Conv2d, Conv2dSame)  # whose weights are used as they are
POSITIONS = f'{PREFIX}pos_embed'


def convert_timm(
    state: State, model: TimmClassifier, *, source_stats: Statistics, target_stats: Statistics
) -> tuple[State, Report]:
    """Make a state dict one that the model can load.

    Args:
        state: of this project (keys with `encoder.`; what is beside encoder and head is left
            over), or of timm's or torchvision's model.
        model: that gets the weights.
        source_stats: normalisation of the pixels that the weights were trained on.
        target_stats: normalisation of the pixels that the model will see.

    Returns:
        Entries under the model's own keys, ready to load, and the report.

    Raises:
        ValueError: if entries of the encoder are missing, unexpected or of another shape.
    """
    target, report = model.state_dict(), Report()
    kept = _own_names(state, model)
    beside = [key for key in kept if not key.startswith(PREFIX)]
    head = [key for key in beside if key.startswith('head.')]
    if all(key in target and kept[key].shape == target[key].shape for key in head):
        beside = [key for key in beside if key not in head]
    report.left_over += beside
    kept = {key: value for key, value in kept.items() if key not in beside}
    kept = _resize_positions(kept, model, report)
    kept = _fold_channels(kept, model, source_stats, target_stats, report)
    report.new += [key for key in target if key not in kept]
    may_be_new = [key for key in report.new if key.startswith('head.') or key.endswith(COUNTER)]
    check_fit(kept, target, new=may_be_new)
    changed = {*report.resized, *report.folded}
    report.loaded += [key for key in target if key in kept and key not in changed]
    return kept, report


def first_weight(model: TimmClassifier) -> str:
    """Key of the weights that read the image, in the encoder; '' where timm does not name one."""
    layer = model.encoder.default_cfg.get('first_conv')
    return f'{layer}.weight' if isinstance(layer, str) else ''


def published_statistics(state: State, model: TimmClassifier) -> dict[str, list[float]]:
    """Options DATA.MEAN and STD by what timm says of its own weights for the model.

    {} where it does not say, or the weights are not for colour images.
    """
    weight = _own_names(state, model).get(PREFIX + first_weight(model))
    if weight is None or weight.ndim != 4 or weight.shape[1] != 3:
        return {}
    known = model.encoder.default_cfg
    return {key.upper(): list(known[key]) for key in ('mean', 'std') if known.get(key)}


def _own_names(state: State, model: TimmClassifier) -> State:
    """Entries under our keys: `encoder.` before timm's, `head.` for its classifier.

    Those of a checkpoint of this project stay, and so do second classifiers.
    """
    if any(key.startswith(PREFIX) for key in state):
        return dict(state)
    classifier = model.layout.classifier
    is_one = len(classifier) == 2  # weight and bias; a distilled model has two of each
    names = {key: f'head.{key.split(".")[-1]}' if is_one else key for key in classifier}
    names |= {key: key for key in state if key.startswith(AUXILIARY)}
    return {
        names.get(key, PREFIX + OLD_DENSENET.sub(r'\1\2', key)): value
        for key, value in state.items()
    }


def _resize_positions(state: State, model: TimmClassifier, report: Report) -> State:
    """Resize a ViT's position embeddings (bicubic) to the model's grid."""
    source, target = state.get(POSITIONS), model.state_dict().get(POSITIONS)
    if source is None or target is None or source.shape == target.shape or source.ndim != 3:
        return state
    length = target.shape[1]
    rows = length - model.encoder.patch_embed.num_patches  # of class and register tokens
    report.resized.append(POSITIONS)
    report.remarks.append(f'pos_embed {source.shape[1]} -> {length} rows')
    return state | {POSITIONS: resize_position_embedding(source, length, class_rows=rows)}


def _fold_channels(
    state: State,
    model: TimmClassifier,
    source_stats: Statistics,
    target_stats: Statistics,
    report: Report,
) -> State:
    """Turn the first convolution from the file's channels into the model's, as `fold_input`.

    Where it has no bias, the batch norm after it takes the offset into its running mean.

    Raises:
        ValueError: if there is neither, or the weights are changed before they are used.
    """
    key, target = PREFIX + first_weight(model), model.state_dict()
    if key not in state or key not in target:
        return state
    weight, new_channels = state[key], target[key].shape[1]
    channels, *kernel = weight.shape[1:]
    if channels == new_channels or kernel != list(target[key].shape[2:]):
        return state  # another kernel is refused later, by name
    layer = first_weight(model).removesuffix('.weight')
    convolution, norm = model.encoder.get_submodule(layer), _norm_after(model.encoder, layer)
    has_bias = convolution.bias is not None
    offset_key = f'{PREFIX}{layer}.bias' if has_bias else f'{PREFIX}{norm}.running_mean'
    if type(convolution) not in CONVOLUTIONS or offset_key not in state:
        raise ValueError(
            f'{key} is for {channels} channels and cannot be folded to {new_channels} (no bias and '
            f'no batch norm for the offset, or weights that are standardised): set '
            f'MODEL.IN_CHANS {channels}'
        )
    bias = state[offset_key] if has_bias else weight.new_zeros(len(weight))
    folded, offset = fold_input(weight, bias, source_stats, target_stats)
    report.folded += [key, offset_key]
    report.remarks.append(f'channels: {channels} -> {new_channels}, were of {source_stats}')
    if not has_bias:
        report.remarks.append(f'{norm}.running_mean takes the offset that a bias would have')
    if convolution.padding not in (0, (0, 0)):
        report.remarks.append('folded exactly but at the border, where the image is padded')
    return state | {key: folded, offset_key: offset if has_bias else state[offset_key] - offset}


def _norm_after(encoder: nn.Module, layer: str) -> str:
    """Name of the batch norm that follows a convolution; '' if there is none."""
    named = [
        (n, m) for n, m in encoder.named_modules() if next(m.parameters(False), None) is not None
    ]
    place = [name for name, _ in named].index(layer)
    for name, module in named[place + 1 : place + 2]:
        if (
            isinstance(module, nn.BatchNorm2d)
            and module.num_features == named[place][1].out_channels
        ):
            return name
    return ''
