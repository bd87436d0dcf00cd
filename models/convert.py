"""Fits the weights of a checkpoint to a model: names, position tables, channels.

Sources are checkpoints of this project and of SimMIM (either stage), of MAE, timm, torchvision and
transformers. All functions are pure functions over state dicts. Keys are compared without the
prefix `encoder.` of pre-training models; `decoder.*` belongs to their head, which may be any
module.

Transformers' Swin merges patches and counts relative positions in the same order as here. Only
names differ, and queries, keys and values are three matrices instead of one.
"""

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
from utils import BUFFERS, check_fit, drop_buffers

State = dict[str, Tensor]

PREFIX = 'encoder.'
DECODER = 'decoder.'
TABLE = 'relative_position_bias_table'
SHARED_TABLE = f'rel_pos_bias.{TABLE}'
CLASS_ROWS = {'absolute_pos_embed': 0, 'pos_embed': 1}  # rows before the grid, by embedding
PATCH_WEIGHT, PATCH_BIAS = 'patch_embed.proj.weight', 'patch_embed.proj.bias'
NORM, POOLED_NORM = ('norm.weight', 'norm.bias'), ('fc_norm.weight', 'fc_norm.bias')
MAY_BE_NEW = (DECODER, 'head.', 'fc_norm.', 'mask_token')
MAE_TOKEN = 'decoder.mask_token'
MAE_QKV_BIAS = re.compile(r'((?:decoder_)?blocks\.\d+\.attn\.)qkv\.bias')
MAE_DECODER = re.compile(r'^decoder_(embed|pos_embed|blocks|norm|pred)\b')
# torchvision's published DenseNets: `denselayer1.norm.1.weight` is `denselayer1.norm1.weight` now.
OLD_DENSENET = re.compile(r'(denselayer\d+\.(?:norm|conv))\.([12]\.)')
AUXILIARY = 'AuxLogits.'  # Inception's second classifier, used in training only
COUNTER = '.num_batches_tracked'  # of a batch norm; old files lack it, and nothing depends on it
CONVOLUTIONS = (nn.Conv2d, Conv2dSame)  # their weights are used without a transformation
SHOWN = 6  # names in a message

PROCESSOR = 'preprocessor_config.json'  # how images are prepared, next to the weights
PATCHES = 'embeddings.patch_embeddings.projection.weight'  # after the prefix of the model
NOT_USED = ('pooler.dense.', 'lm_head.')  # heads that no model here has
QKV = ('query', 'key', 'value')  # in this order in one matrix

BLOCK = (
    ('norm1.', 'layernorm_before.'),
    ('norm2.', 'layernorm_after.'),
    ('attn.proj.', 'attention.output.dense.'),
    ('mlp.fc1.', 'intermediate.dense.'),
    ('mlp.fc2.', 'output.dense.'),
)
SWIN_BLOCK = (
    *((f'attn.{name}.', f'attention.self.{name}.') for name in QKV),
    ('attn.relative_', 'attention.self.relative_'),
    *BLOCK,
)
VIT_BLOCK = (
    *((f'attn.{name}.', f'attention.attention.{name}.') for name in QKV),
    ('attn.relative_', 'attention.attention.relative_position_bias.relative_'),
    ('gamma_', 'lambda_'),
    *BLOCK,
)
# How keys begin, here and in transformers; {} stands for the same number in both.
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


class Statistics(NamedTuple):
    """Mean and deviation that pixels in [0, 1] are normalised with, one value per channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass
class Report:
    """What happened to each entry: names by outcome, and remarks for the log."""

    loaded: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    folded: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def table(self) -> str:
        """Return one line per outcome with the number of entries and their names."""
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
    """Convert a checkpoint's state dict to one that the model can load.

    Args:
        state: From a pre-training model (keys with `encoder.`), a classifier, or MAE's own code.
        target: The model's own state dict, of either kind.
        source_stats: Normalisation of the pixels that the checkpoint was trained on.
        target_stats: Normalisation of the pixels that the model will see.

    Returns:
        Entries under the model's own keys, and the report.

    Raises:
        ValueError: If entries are missing, left over or of another shape beyond what is allowed.
    """
    prefix = PREFIX if any(key.startswith(PREFIX) for key in target) else ''
    target = drop_buffers(strip_prefix(target))
    state, remarks = translate_mae(state)
    kept = drop_buffers(strip_prefix(state))
    left_over = [key for key in state if key.removeprefix(PREFIX) not in kept]
    report = Report(left_over=left_over, remarks=remarks)
    kept = _spread_shared_table(kept, target, report)
    kept = _resize_tables(kept, target, report)
    kept = _resize_position_embeddings(kept, target, report)
    kept = _fold_patch_embedding(kept, target, source_stats, target_stats, report)
    kept = _convert_decoder(kept, target, source_stats, target_stats, report)
    kept = _select(kept, target, report)
    own = {key if key.startswith(DECODER) else prefix + key: kept[key] for key in kept}
    return own, report


def convert_timm(
    state: State, model: TimmClassifier, *, source_stats: Statistics, target_stats: Statistics
) -> tuple[State, Report]:
    """Convert a state dict to one that a model of timm can load.

    Args:
        state: From this project (keys with `encoder.`), or from timm's or torchvision's model.
        model: The model that will load it.
        source_stats: Normalisation of the pixels that the weights were trained on.
        target_stats: Normalisation of the pixels that the model will see.

    Returns:
        Entries under the model's own keys, and the report.

    Raises:
        ValueError: If entries of the encoder are missing, unexpected or of another shape.
    """
    target, report = model.state_dict(), Report()
    kept = _timm_names(state, model)
    unused = [key for key in kept if not key.startswith(PREFIX)]
    head = [key for key in unused if key.startswith('head.')]
    if all(key in target and kept[key].shape == target[key].shape for key in head):
        unused = [key for key in unused if key not in head]
    report.left_over += unused
    kept = {key: value for key, value in kept.items() if key not in unused}
    kept = _resize_timm_positions(kept, model, report)
    kept = _fold_timm_channels(kept, model, source_stats, target_stats, report)
    report.new += [key for key in target if key not in kept]
    may_be_new = [key for key in report.new if key.startswith('head.') or key.endswith(COUNTER)]
    check_fit(kept, target, new=may_be_new)
    changed = {*report.resized, *report.folded}
    report.loaded += [key for key in target if key in kept and key not in changed]
    return kept, report


def is_contrastive(state: State) -> bool:
    """Return whether a state dict is from contrastive pre-training, which counts its steps."""
    return 'step' in state and any(key.startswith(PREFIX) for key in state)


def strip_prefix(state: State) -> State:
    """Remove the prefix `encoder.`; a dictionary without it belongs to a classifier.

    Contrastive pre-training stores its own networks next to the encoder; they are removed.

    Raises:
        ValueError: If a masked pre-training checkpoint has keys outside encoder and decoder.
    """
    if not any(key.startswith(PREFIX) for key in state):
        return dict(state)
    inside = {key: state[key] for key in state if key.startswith((PREFIX, DECODER))}
    if not is_contrastive(state):
        check_fit(state, inside)
    return {key.removeprefix(PREFIX): value for key, value in inside.items()}


def translate_mae(state: State) -> tuple[State, list[str]]:
    """Rename MAE's and timm's entries; a state dict with other names does not change.

    Biases of the keys are left out, which changes no feature: such a bias adds the same number to
    all logits of a query.

    Returns:
        The encoder's entries without prefix, the decoder's as decoder.*, and remarks for the log.
    """
    biases = [key for key in state if MAE_QKV_BIAS.fullmatch(key) and state[key].ndim == 1]
    has_decoder = any(MAE_DECODER.match(key) for key in state)
    renamed = {}
    for key, value in state.items():
        if key in biases:
            new = key.removesuffix('qkv.bias')
            q_bias, _, v_bias = value.tensor_split(3)
            parts = {f'{new}q_bias': q_bias, f'{new}v_bias': v_bias}
        else:
            parts = {MAE_TOKEN if has_decoder and key == 'mask_token' else key: value}
        renamed |= {MAE_DECODER.sub(r'decoder.\1', name): part for name, part in parts.items()}
    remarks = [f'biases of keys left out of {len(biases)} blocks, which changes nothing']
    return renamed, remarks if biases else []


def to_huggingface(state: State) -> State:
    """Rename entries for transformers, without a model's prefix, and split q, k and v."""
    return {_renamed(key, NAMES): value for key, value in split_qkv(state).items()}


def is_huggingface(state: State) -> bool:
    """Return whether the names are those of transformers' Swin, ViT or BEiT."""
    return _huggingface_prefix(state) is not None


def from_huggingface(state: State) -> tuple[State, list[str]]:
    """Rename transformers' entries.

    Returns:
        The entries, with biases of the keys as `attn.qkv.bias`, or (BEiT) with `attn.q_bias` and
        `attn.v_bias`; and the names of the heads that no model here has, which are removed.
        Entries with unknown names keep them and are refused later.
    """
    prefix = _huggingface_prefix(state) or ''
    back = tuple((theirs, ours) for ours, theirs in NAMES)
    bare = {key.removeprefix(prefix): key for key in state}
    left_over = [key for name, key in bare.items() if name.startswith(NOT_USED)]
    kept = {name: state[key] for name, key in bare.items() if key not in left_over}
    return join_qkv({_renamed(name, back): value for name, value in kept.items()}), left_over


def split_qkv(state: State) -> State:
    """Split `attn.qkv` into query, key and value."""
    split = {}
    for key, value in state.items():
        if '.attn.qkv.' in key:
            for name, part in zip(QKV, value.chunk(3), strict=True):
                split[key.replace('.qkv.', f'.{name}.')] = part.clone()
        else:
            key = key.replace('.attn.q_bias', '.attn.query.bias')
            split[key.replace('.attn.v_bias', '.attn.value.bias')] = value
    return split


def join_qkv(state: State) -> State:
    """Undo `split_qkv`; incomplete parts, and parts of different shapes, do not change."""
    joined = dict(state)
    for key in state:
        start, part, kind = key.rpartition('attn.query.')
        if not part:
            continue
        start += 'attn.'
        q, k, v = parts = [state.get(f'{start}{name}.{kind}') for name in QKV]
        if v is None or len({each.shape for each in parts if each is not None}) > 1:
            continue
        if k is not None:
            joined[f'{start}qkv.{kind}'] = torch.cat(parts)
        elif kind == 'bias':
            joined |= {f'{start}q_bias': q, f'{start}v_bias': v}
        else:
            continue
        for name in QKV:
            joined.pop(f'{start}{name}.{kind}', None)
    return joined


def processor_statistics(processor: object, num_channels: int) -> dict[str, list[float]]:
    """Return DATA.MEAN and DATA.STD from the contents of PROCESSOR; {} if they are not given.

    Raises:
        ValueError: If there is not one number per channel, or a deviation is not positive.
    """
    if not isinstance(processor, dict):
        raise ValueError(f'{PROCESSOR} is not a JSON object')
    if not processor.get('do_normalize', True):
        return {}
    found = {}
    for option, key, least in (('MEAN', 'image_mean', -math.inf), ('STD', 'image_std', 0)):
        values = processor.get(key)
        if values is None:
            return {}
        fits = isinstance(values, list) and len(values) == num_channels
        if not fits or not all(type(v) in (int, float) and least < v < math.inf for v in values):
            raise ValueError(f'{key} must be {num_channels} finite numbers, got {values!r:.100}')
        found[option] = [float(value) for value in values]
    return found


def first_weight(model: TimmClassifier) -> str:
    """Return the key of the weights that read the image, in the encoder; '' if unknown."""
    layer = model.encoder.default_cfg.get('first_conv')
    return f'{layer}.weight' if isinstance(layer, str) else ''


def published_statistics(state: State, model: TimmClassifier) -> dict[str, list[float]]:
    """Return DATA.MEAN and DATA.STD that timm documents for its weights of colour images, or {}."""
    weight = _timm_names(state, model).get(PREFIX + first_weight(model))
    if weight is None or weight.ndim != 4 or weight.shape[1] != 3:
        return {}
    known = model.encoder.default_cfg
    return {key.upper(): list(known[key]) for key in ('mean', 'std') if known.get(key)}


def resize_position_embedding(embedding: Tensor, new_length: int, *, class_rows: int) -> Tensor:
    """Resize [1, class_rows + side ** 2, D] to new_length rows (bicubic); class rows stay.

    Raises:
        ValueError: If either grid is not square.
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


def fold_input(
    weight: Tensor, bias: Tensor, source: Statistics, target: Statistics
) -> tuple[Tensor, Tensor]:
    """Convert a patch convolution exactly, for grey images, to another number of channels.

    Each old channel contained (grey - mean_c) / std_c. Grey is the average of std_k x_k + mean_k
    over the new channels.

    Args:
        weight: [E, C, p, p] from the checkpoint.
        bias: [E].
        source: Statistics of its C channels.
        target: Statistics of the model's channels.
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
    """Convert a decoder's last layer: its channels are averaged in grey levels.

    Each new channel predicts this average with its own normalisation.

    Args:
        weight: [C * stride ** 2, D, ...]; row c * stride ** 2 + a * stride + b is pixel (a, b)
            of channel c.
        bias: [C * stride ** 2].
        source: Statistics of its C channels.
        target: Statistics of the model's channels.
    """
    dtype, (mean, std) = weight.dtype, _columns(source)
    new_mean, new_std = _columns(target)
    share = std[None, :] / len(std) / new_std[:, None]  # [C', C]
    rows = weight.double().unflatten(0, (len(std), -1))  # [C, stride ** 2, D, 1, 1]
    offsets = bias.double().unflatten(0, (len(std), -1))  # [C, stride ** 2]
    new_weight = torch.tensordot(share, rows, dims=1)
    new_bias = share @ offsets + ((mean.mean() - new_mean) / new_std)[:, None]
    return new_weight.flatten(0, 1).to(dtype), new_bias.flatten().to(dtype)


def _columns(statistics: Statistics) -> tuple[Tensor, Tensor]:
    return (
        torch.tensor(statistics.mean, dtype=torch.float64),
        torch.tensor(statistics.std, dtype=torch.float64),
    )


def _spread_shared_table(state: State, target: State, report: Report) -> State:
    """Add a ViT's shared bias table to every block's own, if the model has only those."""
    tables = [key for key in target if key.startswith('blocks.') and key.endswith(f'.{TABLE}')]
    if SHARED_TABLE not in state or SHARED_TABLE in target or not tables:
        return state
    shared = state[SHARED_TABLE]
    spread = {key: shared + state[key] if key in state else shared for key in tables}
    report.remarks.append(f'shared position table added to {len(tables)} blocks')
    return {key: value for key, value in state.items() if key != SHARED_TABLE} | spread


def _resize_tables(state: State, target: State, report: Report) -> State:
    """Resize every relative position bias table to the model's window or grid."""
    resized = {}
    for key, (length, heads), (new_length, new_heads) in _pairs(state, target, {TABLE}):
        if heads != new_heads and key.startswith(DECODER):
            continue  # another head, which is dropped later
        if heads != new_heads:
            raise ValueError(f'{key} is for {heads} attention heads, the model has {new_heads}')
        if length != new_length:
            resized[key] = resize_table(state[key], new_length)
    return _record(state, resized, report)


def _resize_position_embeddings(state: State, target: State, report: Report) -> State:
    resized = {}
    for key, (_, length, _), (_, new_length, _) in _pairs(state, target, CLASS_ROWS):
        if length != new_length:
            rows = CLASS_ROWS[key.split('.')[-1]]
            resized[key] = resize_position_embedding(state[key], new_length, class_rows=rows)
    return _record(state, resized, report)


def _fold_patch_embedding(
    state: State,
    target: State,
    source_stats: Statistics,
    target_stats: Statistics,
    report: Report,
) -> State:
    for key in (PATCH_WEIGHT, PATCH_BIAS):
        if key not in state or key not in target or state[key].ndim != target[key].ndim:
            return state  # refused later, by name
    channels, new_channels = state[PATCH_WEIGHT].shape[1], target[PATCH_WEIGHT].shape[1]
    if channels == new_channels:
        return state
    weight, bias = fold_input(state[PATCH_WEIGHT], state[PATCH_BIAS], source_stats, target_stats)
    report.folded += [PATCH_WEIGHT, PATCH_BIAS]
    report.remarks.append(f'channels: {channels} -> {new_channels}')
    return state | {PATCH_WEIGHT: weight, PATCH_BIAS: bias}


def _convert_decoder(
    state: State,
    target: State,
    source_stats: Statistics,
    target_stats: Statistics,
    report: Report,
) -> State:
    """Fold the decoder into the model's channels, or drop it and report why."""
    decoder = {key: value for key, value in state.items() if key.startswith(DECODER)}
    if not decoder:
        return state
    state = {key: value for key, value in state.items() if key not in decoder}
    own = {key: value for key, value in target.items() if key.startswith(DECODER)}
    if not own:
        reason = 'the model has none'
    elif own.keys() != decoder.keys():
        reason = f'another head, with {_first(list(decoder))}'
    else:
        folded = _fold_last_layer(decoder, own, source_stats, target_stats)
        decoder_fits = decoder | folded
        wrong = [key for key in own if decoder_fits[key].shape != own[key].shape]
        reason = _first([_shapes(key, decoder, own) for key in wrong])
        if not wrong:
            report.folded += folded
            return state | decoder_fits
    report.remarks.append(f'decoder dropped: {reason}')
    report.left_over += decoder
    return state


def _fold_last_layer(
    decoder: State, own: State, source_stats: Statistics, target_stats: Statistics
) -> State:
    """Fold the layer whose rows are pixels of all channels: the only one whose shape differs.

    Returns:
        Its new weight and bias; {} if there is no such layer.
    """
    channels, new_channels = len(source_stats.std), len(target_stats.std)
    different = [key for key in own if decoder[key].shape != own[key].shape]
    layer = different[0].rpartition('.')[0] if different else ''
    weight, bias = f'{layer}.weight', f'{layer}.bias'
    if channels == new_channels or {*different} != {weight, bias}:
        return {}
    pixels = len(own[bias]) // new_channels
    if decoder[weight].shape != (pixels * channels, *own[weight].shape[1:]):
        return {}
    rows = [decoder[weight], decoder[bias]]
    if MAE_TOKEN not in own:
        return dict(
            zip((weight, bias), fold_output(*rows, source_stats, target_stats), strict=True)
        )
    # MAE keeps the channels of a pixel together.
    rows = [each.unflatten(0, (-1, channels)).transpose(0, 1).flatten(0, 1) for each in rows]
    rows = fold_output(*rows, source_stats, target_stats)
    rows = [each.unflatten(0, (new_channels, -1)).transpose(0, 1).flatten(0, 1) for each in rows]
    return dict(zip((weight, bias), rows, strict=True))


def _select(state: State, target: State, report: Report) -> State:
    """Keep the entries that fit, record the others, and refuse those that no rule allows."""
    head = [key for key in state if key.startswith('head.')]
    if 'head.weight' not in target or any(
        state[key].shape != target[key].shape for key in head if key in target
    ):
        report.left_over += head
        state = {key: value for key, value in state.items() if key not in head}
    left = [key for key in state if key not in target]
    new = [key for key in target if key not in state]
    # A classifier that pools has no norm before it; a pre-training model has no pooled norm.
    pretrains = 'mask_token' in target or MAE_TOKEN in target
    may_be_left = ('mask_token', *NORM, *(POOLED_NORM if pretrains else ()))
    pooled = MAE_TOKEN in target and POOLED_NORM[0] in state
    check_fit(
        state,
        target,
        left=may_be_left,
        new=[key for key in new if key.startswith(MAY_BE_NEW) or (key in NORM and pooled)],
    )
    report.left_over += left
    report.new += new
    changed = {*report.resized, *report.folded}
    report.loaded += [key for key in target if key in state and key not in changed]
    return {key: value for key, value in state.items() if key in target}


def _pairs(
    state: State, target: State, names: Container[str]
) -> list[tuple[str, torch.Size, torch.Size]]:
    """Key and both shapes of the entries with these names that state and target share."""
    return [
        (key, value.shape, target[key].shape)
        for key, value in state.items()
        if key in target and key.split('.')[-1] in names and value.ndim == target[key].ndim
    ]


def _record(state: State, resized: State, report: Report) -> State:
    report.resized += resized
    sizes = Counter(
        f'{key.split(".")[-1]} {state[key].shape[-2]} -> {value.shape[-2]} rows'
        for key, value in resized.items()
    )
    report.remarks += [f'{size} ({count})' for size, count in sizes.items()]
    return state | resized


def _shapes(key: str, state: State, target: State) -> str:
    return f'{key} {list(state[key].shape)} for {list(target[key].shape)}'


def _first(names: list[str]) -> str:
    return ', '.join(names[:SHOWN]) + (', ...' if len(names) > SHOWN else '')


def _summary(keys: list[str]) -> str:
    """Names by part of the model, or their number if there are more than two."""
    groups: dict[str, list[str]] = {}
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


def _huggingface_prefix(state: State) -> str | None:
    """The prefix of the encoder, such as `vit.`; None for other names."""
    keys = [key for key, value in state.items() if value.ndim == 4]
    found = (re.fullmatch(rf'((?:\w+\.)?){re.escape(PATCHES)}', key) for key in keys)
    return next((match[1] for match in found if match), None)


def _renamed(key: str, names: tuple[tuple[str, str], ...]) -> str:
    """The key with the beginning replaced as the first fitting row of the table says."""
    for begins, becomes in names:
        pattern = re.escape(begins).replace(r'\{\}', r'(\d+)')
        if match := re.match(pattern, key):
            return becomes.format(*match.groups()) + key[match.end() :]
    return key


def _timm_names(state: State, model: TimmClassifier) -> State:
    """Entries under our keys: `encoder.` before timm's, and `head.` for timm's classifier."""
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


def _resize_timm_positions(state: State, model: TimmClassifier, report: Report) -> State:
    """Resize a ViT's position embeddings to the model's grid."""
    key = f'{PREFIX}pos_embed'
    source, target = state.get(key), model.state_dict().get(key)
    if source is None or target is None or source.shape == target.shape or source.ndim != 3:
        return state
    length = target.shape[1]
    rows = length - model.encoder.patch_embed.num_patches  # class and register tokens
    resized = {key: resize_position_embedding(source, length, class_rows=rows)}
    return _record(state, resized, report)


def _fold_timm_channels(
    state: State,
    model: TimmClassifier,
    source_stats: Statistics,
    target_stats: Statistics,
    report: Report,
) -> State:
    """Fold the first convolution into the model's channels, see `fold_input`.

    Without a bias, the running mean of the following batch norm takes the offset.

    Raises:
        ValueError: If there is neither, or if the weights are transformed before use.
    """
    key, target = PREFIX + first_weight(model), model.state_dict()
    if key not in state or key not in target:
        return state
    weight, new_channels = state[key], target[key].shape[1]
    channels, *kernel = weight.shape[1:]
    if channels == new_channels or kernel != list(target[key].shape[2:]):
        return state  # another kernel is refused later
    layer = first_weight(model).removesuffix('.weight')
    convolution, norm = model.encoder.get_submodule(layer), _norm_after(model.encoder, layer)
    has_bias = convolution.bias is not None
    offset_key = f'{PREFIX}{layer}.bias' if has_bias else f'{PREFIX}{norm}.running_mean'
    if type(convolution) not in CONVOLUTIONS or offset_key not in state:
        raise ValueError(
            f'MODEL.IN_CHANS must be {channels} for these weights, got {new_channels}: {key} '
            'cannot be folded, because there is no bias or batch norm for the offset, or because '
            'its weights are standardised'
        )
    bias = state[offset_key] if has_bias else weight.new_zeros(len(weight))
    folded, offset = fold_input(weight, bias, source_stats, target_stats)
    report.folded += [key, offset_key]
    report.remarks.append(f'channels: {channels} -> {new_channels}, before: {source_stats}')
    if not has_bias:
        report.remarks.append(f'{norm}.running_mean takes the offset')
    if convolution.padding not in (0, (0, 0)):
        report.remarks.append('folded exactly except at the border, where the image is padded')
    return state | {key: folded, offset_key: offset if has_bias else state[offset_key] - offset}


def _norm_after(encoder: nn.Module, layer: str) -> str:
    """The name of the batch norm after a convolution; '' if there is none."""
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
