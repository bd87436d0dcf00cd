"""Convert the weights of a checkpoint to a model: names, position tables and input channels.

Supported sources are checkpoints of this project and of SimMIM (either stage), MAE, timm,
torchvision and transformers, also below other names such as `module.backbone.` (see `unwrap`). Keys
are compared without the prefix `encoder.` of pre-training models. Keys that start with `decoder.`
belong to the pre-training head. Other keys outside the encoder belong to the method of pre-training
and are not used.

In transformers, Swin merges patches and numbers relative positions as here. Only the names differ,
and queries, keys and values have separate matrices. ResNets get timm's names. DINOv2 fits the ViT
of this project, and with registers or gated MLPs it fits timm's ViT.
"""

import re
from collections import Counter
from collections.abc import Container
from dataclasses import dataclass, field
from math import isqrt
from typing import NamedTuple

import torch
from timm.layers import Conv2dSame, resample_abs_pos_embed
from torch import Tensor, nn

from models.relative_position import resize_table
from models.simmim import ImageTarget
from models.timm_classifier import TimmClassifier
from models.weights.recognise import PATCH_WEIGHT, TABLE, State
from utils import check_fit, drop_buffers

PREFIX = 'encoder.'
DECODER = 'decoder.'
SHARED_TABLE = f'rel_pos_bias.{TABLE}'
ABSOLUTE = 'pos_embed'
POSITIONS = ('absolute_pos_embed', ABSOLUTE)
HEAD = 'head.'
OUR_CLASSIFIER = ('head.weight', 'head.bias')
# Parts of other methods beside an encoder.
HEADS = re.compile(
    r'(?!head\.)(\w*heads?|head_\w+|projector|projection\w*|predictor|fc|classifier)\.'
)
NORM, POOLED_NORM = ('norm.weight', 'norm.bias'), ('fc_norm.weight', 'fc_norm.bias')
MAY_BE_NEW = (DECODER, *POOLED_NORM, 'mask_token')
MAE_TOKEN = 'decoder.mask_token'
MAE_QKV_BIAS = re.compile(r'((?:decoder[_.])?blocks\.\d+\.attn\.)qkv\.bias')
MAE_DECODER = re.compile(r'^decoder_(embed|pos_embed|blocks|norm|pred)\b')
# torchvision's published DenseNet files have `denselayer1.norm.1.` instead of `denselayer1.norm1.`.
OLD_DENSENET = re.compile(r'(denselayer\d+\.(?:norm|conv))\.([12]\.)')
AUXILIARY = 'AuxLogits.'  # Inception's second classifier, which is only used in training
# Names that DataParallel, torch.compile, FSDP and activation checkpointing put before others.
WRAPPERS = re.compile(
    r'(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.'
)
DOWNSAMPLING = re.compile(r'^layers\.(\d+)\.downsample\.')
COUNTER = '.num_batches_tracked'  # unused counter of batch norm, which old files do not have
# Layer scales of a block, here and in timm's ViT.
OUR_SCALE, TIMM_SCALE = re.compile(r'\.gamma_([12])$'), re.compile(r'\.ls([12])\.gamma$')
CLASS_TOKEN, MASK_TOKEN, REGISTERS = 'cls_token', 'mask_token', 'reg_token'
CONVOLUTIONS = (nn.Conv2d, Conv2dSame)  # layers that do not transform their weights

# First layers in transformers, without the model's prefix: Swin, ViT, BEiT and DINOv2; ResNet.
PATCHES = 'embeddings.patch_embeddings.projection.weight'
RESNET_STEM = 'embedder.embedder.convolution.weight'
FIRST_LAYERS = (PATCH_WEIGHT, 'conv1.weight')  # the same layers here
NOT_USED = ('pooler.dense.', 'lm_head.')  # heads that do not exist in this project
QKV = ('query', 'key', 'value')  # the order of the rows in the joint matrix

# Beginnings of keys within a block of a ViT, BEiT, DINOv2, MAE or Swin, here and in transformers.
BLOCK = (
    *((f'attn.{name}.', f'attention.self.{name}.') for name in QKV),  # Swin
    *((f'attn.{name}.', f'attention.attention.{name}.') for name in QKV),
    *((f'attn.{name}.', f'attention.{name[0]}_proj.') for name in QKV),  # in a `state_dict()` of 5
    ('attn.relative_', 'attention.self.relative_'),
    ('attn.relative_', 'attention.attention.relative_position_bias.relative_'),
    ('attn.relative_', 'attention.relative_position_bias.relative_'),
    ('attn.relative_', 'relative_position_bias.relative_'),
    ('attn.proj.', 'attention.output.dense.'),
    ('attn.proj.', 'attention.o_proj.'),
    ('norm1.', 'layernorm_before.'),
    ('norm2.', 'layernorm_after.'),
    ('mlp.fc1.', 'intermediate.dense.'),
    ('mlp.fc2.', 'output.dense.'),
    ('gamma_', 'lambda_'),
    *((name, name) for name in ('norm1.', 'norm2.', 'mlp.fc1.', 'mlp.fc2.')),
    ('gamma_1', 'layer_scale1.lambda1'),
    ('gamma_2', 'layer_scale2.lambda1'),
    # Gated MLPs
    ('mlp.fc1.', 'mlp.weights_in.'),
    ('mlp.fc2.', 'mlp.weights_out.'),
    ('mlp.gate.', 'mlp.gate_proj.'),
    ('mlp.up.', 'mlp.up_proj.'),
    ('mlp.fc2.', 'mlp.down_proj.'),
)
# Where blocks are, here and in transformers. Releases from 5 on keep a ViT's in `layers`, but
# `save_pretrained` writes the names of before.
BLOCKS = (
    ('layers.{}.blocks.{}.', 'encoder.layers.{}.blocks.{}.'),
    ('blocks.{}.', 'encoder.layer.{}.'),
    ('blocks.{}.', 'layers.{}.'),
    ('decoder.blocks.{}.', 'decoder.decoder_layers.{}.'),
    ('decoder.blocks.{}.', 'decoder.decoder_encoder.layer.{}.'),
)
RESNET_BLOCK = (
    *((f'conv{k + 1}.', f'layer.{k}.convolution.') for k in range(3)),
    *((f'bn{k + 1}.', f'layer.{k}.normalization.') for k in range(3)),
    ('downsample.0.', 'shortcut.convolution.'),
    ('downsample.1.', 'shortcut.normalization.'),
)
# Beginnings of keys in this project and in transformers; the first row that matches counts. {} is
# the same number in both.
NAMES = (
    ('conv1.', 'embedder.embedder.convolution.'),
    ('bn1.', 'embedder.embedder.normalization.'),
    *(
        (f'layer{k + 1}.{{}}.{a}', f'encoder.stages.{k}.layers.{{}}.{b}')
        for k in range(4)
        for a, b in RESNET_BLOCK
    ),
    ('head.', 'classifier.1.'),
    (REGISTERS, 'embeddings.register_tokens'),
    *((ours + a, theirs + b) for ours, theirs in BLOCKS for a, b in BLOCK),
    ('decoder.', 'decoder.decoder_'),
    ('patch_embed.proj.', 'embeddings.patch_embeddings.projection.'),
    ('patch_embed.norm.', 'embeddings.norm.'),
    ('mask_token', 'embeddings.mask_token'),
    ('cls_token', 'embeddings.cls_token'),
    ('pos_embed', 'embeddings.position_embeddings'),
    ('rel_pos_bias.', 'encoder.relative_position_bias.'),
    ('rel_pos_bias.', 'shared_position_bias.'),
    ('layers.{}.downsample.', 'encoder.layers.{}.downsample.'),
    ('norm.', 'layernorm.'),
    ('fc_norm.', 'pooler.layernorm.'),
    ('head.', 'classifier.'),
)


class Statistics(NamedTuple):
    """Mean and standard deviation for normalising pixels in [0, 1], one value per channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __str__(self) -> str:
        mean, std = (', '.join(map(str, values)) for values in self)
        return f'mean {mean} and deviation {std}'


@dataclass
class Report:
    """Keys of all entries by outcome of the conversion, and remarks for the log."""

    loaded: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    folded: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def table(self) -> str:
        """Format one line per outcome with the number of entries in each part of the model."""
        lines = []
        for name in ('loaded', 'resized', 'folded', 'new', 'unused'):
            keys = getattr(self, name)
            parts = Counter(key.removeprefix(PREFIX).split('.')[0] for key in keys)
            counts = ', '.join(f'{part} {count}' for part, count in parts.items())
            lines.append(f'{name:<9} {len(keys):>4}  {counts}'.rstrip())
        lines += [f'{"note":<14}  {remark}' for remark in self.remarks]
        return '\n'.join(lines)


def convert(
    state: State,
    model: nn.Module,
    *,
    source_stats: Statistics,
    target_stats: Statistics,
    other_head: str,
) -> tuple[State, Report]:
    """Convert the state dict of a checkpoint to one that the model can load.

    Args:
        state: State dict with the names of this project, SimMIM, MAE, timm or torchvision.
        model: Model that will load the result.
        source_stats: Pixel normalisation with which the checkpoint was trained.
        target_stats: Pixel normalisation that the model will use.
        other_head: Description of the checkpoint's classifier, if its outputs mean something else
            than the model's; else ''.

    Returns:
        State dict with the model's keys, and the report.

    Raises:
        ValueError: If entries are missing, unknown or have another shape, and no rule allows it.
    """
    entries = model.state_dict()
    keys = shared_keys(entries)
    target = drop_buffers({name: entries[key] for name, key in keys.items()})
    state = _renamed_state(state, model, target)
    shared = shared_keys(state)
    kept = drop_buffers({name: state[key] for name, key in shared.items()})
    outside = state.keys() - shared.values()
    report = Report(unused=[key for key in drop_buffers(state) if key in outside])
    head_here = {name for name, key in keys.items() if key.startswith(HEAD)}
    head = {name for name in kept if _is_of_head(name, shared[name], model)}
    shapes = [{name: tensors[name].shape for name in names}
              for tensors, names in ((kept, head), (target, head_here))]  # fmt: skip
    if head and (other_head or shapes[0] != shapes[1]):  # a pre-training model has none
        kept = {name: value for name, value in kept.items() if name not in head}
        report.unused += sorted(head)
        if other_head:
            remark = f'the head of the checkpoint is not used, because it is of {other_head}'
            report.remarks.append(remark)

    stats = (source_stats, target_stats)
    kept = _rename_layer_scales(kept, target)
    kept = _fit_class_position(kept, target, report)
    kept = _spread_shared_table(kept, target, report)
    kept = _resize_positions(kept, target, report)
    kept = _fold_first_layer(kept, model, *stats, report)
    # Channels can only be converted if the decoder predicts them.
    predicts_pixels = isinstance(getattr(model, 'target', None), ImageTarget)
    kept = _convert_decoder(kept, target, stats if predicts_pixels else (), report)
    kept = _select(kept, target, report, may_be_new=_may_be_new(kept, target, model) | head_here)
    return {keys[name]: value for name, value in kept.items()}, report


def _is_of_head(name: str, key: str, model: nn.Module) -> bool:
    """Return whether an entry of a file, `key`, belongs to the classifier of the file.

    timm's encoders have layers of their own below `head`, such as `head.norm`, which belong to the
    features. In timm's files, `_renamed_state` has given the classifier the names of ours.
    """
    is_timms = isinstance(model, TimmClassifier) and name == key
    return name in OUR_CLASSIFIER if is_timms else key.startswith(HEAD)


def shared_keys(state: State) -> dict[str, str]:
    """Return the keys of encoder, decoder and head, by their names without the prefix `encoder.`.

    Other modules of pre-training, such as projectors, predictors and averaged encoders, are left
    out. If no key has the prefix, or the first layer has none, all entries are the encoder's.
    """
    is_bare = not any(key.startswith(PREFIX) for key in state)
    # Names of transformers that are not known here keep the prefix, and must be refused.
    if is_bare or any(layer in state for layer in FIRST_LAYERS):
        return {key: key for key in state}
    return {
        key.removeprefix(PREFIX): key for key in state if key.startswith((PREFIX, DECODER, HEAD))
    }


def unwrap(state: State, model: nn.Module) -> tuple[State, list[str]]:
    """Remove what another project puts before the names of an encoder, such as `module.backbone.`.

    Args:
        state: Entries of the file.
        model: Model that will load them. The name of its first weight shows the encoder.

    Returns:
        The entries of the encoder (with `encoder.` also of the decoder), and the names of the
        others, such as heads and projectors.

    Raises:
        ValueError: If the file has several encoders, such as a teacher and a student.
    """
    names_here = shared_keys(model.state_dict())
    firsts = [first for first in (first_weight(model), PATCHES, RESNET_STEM) if first]
    state, left = _unwrapped(state, firsts)
    prefixes: dict[str, int] = {}
    for first in firsts:
        for key in state:
            if f'.{key}'.endswith(f'.{first}'):
                prefix = key.removesuffix(first)
                prefixes[prefix] = sum(f'{prefix}{name}' in state for name in names_here)
    most = max(prefixes.values(), default=0)
    if PREFIX in prefixes:  # what is trained; other modules of a method may be copies of it
        prefixes = {PREFIX: most}
    # A block of a ResNet also has a first convolution, but few other names of the model.
    prefixes = {prefix: count for prefix, count in prefixes.items() if count >= most / 2}
    if len(prefixes) > 1:
        keys = [prefix.removesuffix('.') for prefix in prefixes if prefix]
        raise ValueError(
            f'the file has several encoders, {", ".join(map(repr, prefixes))}: choose one with '
            f'FILE::KEY, such as FILE::{keys[0]}'
        )
    (prefix,) = prefixes or ('',)
    *outer, last = prefix.split('.')[:-1] or ('',)
    is_theirs = any(f'{prefix}{first}' in state for first in (PATCHES, RESNET_STEM))
    if f'{last}.' == PREFIX or is_theirs:  # `from_huggingface` removes one name
        prefix = ''.join(f'{name}.' for name in outer)
    kept = {key.removeprefix(prefix): state[key] for key in state if key.startswith(prefix)}
    classifier = model.layout.classifier if isinstance(model, TimmClassifier) else ()
    named = {*names_here, *classifier}
    heads = {
        key for key in kept if HEADS.match(bare := key.removeprefix(PREFIX)) and bare not in named
    }
    left += [key for key in state if not key.startswith(prefix)] + [prefix + key for key in heads]
    return {key: value for key, value in kept.items() if key not in heads}, left


def without_wrappers(state: State) -> State:
    """Remove the names that PyTorch's wrappers of modules add, wherever they stand.

    Raises:
        ValueError: If two entries get the same name.
    """
    names: dict[str, str] = {}
    for key in state:
        bare = WRAPPERS.sub('', key)
        if bare in names:
            raise ValueError(
                f'the file has both {names[bare]} and {key}: choose one with FILE::KEY'
            )
        names[bare] = key
    return {bare: state[key] for bare, key in names.items()}


def _unwrapped(state: State, firsts: list[str]) -> tuple[State, list[str]]:
    """Remove the names of wrappers, and the wrapper's entries, such as the counter of an average.

    `firsts` are names of the first weights of an encoder. Also returns the removed entries.
    """
    beside = [key for key in state if not WRAPPERS.match(key)]
    ends = tuple(f'.{first}' for first in firsts)
    if len(beside) == len(state) or any(f'.{key}'.endswith(ends) for key in beside):
        beside = []  # the outermost module is no wrapper, or there is an encoder beside it
    kept = {key: value for key, value in state.items() if key not in beside}
    return without_wrappers(kept), beside


def rename_foreign(state: State, model: nn.Module) -> tuple[State, list[str], bool]:
    """Give the entries of another project's file the names of this project, as far as known.

    Args:
        state: Entries of the file.
        model: Model that will load them.

    Returns:
        The entries of the encoder, the names of the others, and whether transformers wrote them.

    Raises:
        ValueError: If the file has several encoders.
    """
    state, unused = unwrap(state, model)
    prefix = huggingface_prefix(state)
    if prefix is None:
        return state, unused, False
    state, heads = from_huggingface(state, prefix)
    return state, unused + heads, True


def huggingface_prefix(state: State) -> str | None:
    """Return what transformers puts before the names of an encoder, such as `vit.`.

    None means that the names are not transformers' of Swin, ViT, BEiT, DINOv2, MAE or ResNet.
    """
    keys = [key for key, value in state.items() if value.ndim == 4]
    layers = '|'.join(map(re.escape, (PATCHES, RESNET_STEM)))
    found = (re.fullmatch(rf'((?:\w+\.)?)(?:{layers})', key) for key in keys)
    return next((match[1] for match in found if match), None)


def from_huggingface(state: State, prefix: str) -> tuple[State, list[str]]:
    """Rename the entries of a model of transformers, whose `prefix` is removed.

    Entries with unknown names do not change and are rejected later.

    Returns:
        The renamed entries, and the names of removed entries of unsupported heads. Biases become
        `attn.qkv.bias`, or `attn.q_bias` and `attn.v_bias` if keys have none (BEiT).
    """
    bare = {key.removeprefix(prefix): key for key in state}
    unused = [key for name, key in bare.items() if name.startswith(NOT_USED)]
    kept = {name: state[key] for name, key in bare.items() if key not in unused}
    renamed = {}
    for name, value in kept.items():
        for ours, theirs in NAMES:
            pattern = re.escape(theirs).replace(r'\{\}', r'(\d+)')
            if match := re.match(pattern, name):
                name = ours.format(*match.groups()) + name[match.end() :]
                break
        renamed[name] = value
    if MASK_TOKEN in renamed:
        renamed[MASK_TOKEN] = renamed[MASK_TOKEN].reshape(1, 1, -1)  # DINOv2 stores [1, D]
    return _join_layers(renamed), unused


def _join_layers(state: State) -> State:
    """Join the layers that transformers keeps apart.

    These are query, key and value, to `attn.qkv` (or `attn.q_bias` and `attn.v_bias`), and from 5
    on the two first layers of a gated MLP, to `mlp.fc1`. Incomplete entries stay as they are, and
    are reported later.
    """
    joined = dict(state)
    for key in state:
        qkv = [key.replace('.attn.query.', f'.attn.{name}.') for name in QKV]
        gates = [key.replace('.mlp.gate.', f'.mlp.{name}.') for name in ('gate', 'up')]
        if '.attn.query.' in key and all(name in state for name in qkv):
            joined[key.replace('.query.', '.qkv.')] = torch.cat([joined.pop(name) for name in qkv])
        elif key.endswith('.attn.query.bias') and qkv[2] in state:  # BEiT's keys have no bias
            start = key.removesuffix('query.bias')
            joined[f'{start}q_bias'] = joined.pop(key)
            joined[f'{start}v_bias'] = joined.pop(qkv[2])
        elif '.mlp.gate.' in key and gates[1] in state:
            joined[key.replace('.gate.', '.fc1.')] = torch.cat([joined.pop(name) for name in gates])
    return joined


def first_weight(model: nn.Module) -> str:
    """Return the key of the encoder's first weights, which read the image; '' if unknown."""
    if not isinstance(model, TimmClassifier):
        return PATCH_WEIGHT
    layer = model.encoder.default_cfg.get('first_conv')
    return f'{layer}.weight' if isinstance(layer, str) else ''


def resize_position_embedding(
    embedding: Tensor, new_length: int, *, antialias: bool = False
) -> Tensor:
    """Resize position embeddings by bicubic interpolation, [1, L, D] -> [1, new_length, D].

    The row of a class token, which comes before the grid, does not change. With `antialias`, each
    cell of a smaller grid is a mean over the cells that it covers.

    Raises:
        ValueError: If the grid is not square.
    """
    side = isqrt(new_length)
    num_first = new_length - side**2
    old_length = embedding.shape[1]
    if isqrt(old_length - num_first) ** 2 != old_length - num_first:
        raise ValueError(
            f'position embeddings must be a square grid, got {old_length} rows instead of '
            f'{new_length}'
        )
    return resample_abs_pos_embed(
        embedding, [side, side], num_prefix_tokens=num_first, antialias=antialias
    )


def fold_input(
    weight: Tensor, bias: Tensor, source: Statistics, target: Statistics
) -> tuple[Tensor, Tensor]:
    """Convert a patch convolution to another number of channels, exactly for grey images.

    Each old channel contained (grey - mean_c) / std_c. The grey level is the average of
    std_k x_k + mean_k over the new channels.

    Args:
        weight: Weight of the checkpoint, [E, C, p, p].
        bias: Bias of the checkpoint, [E].
        source: Statistics of the checkpoint's C channels.
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
    """Convert the last layer of a decoder to another number of channels.

    The old channels are averaged in grey levels, and each new channel predicts the average with the
    normalisation of the new channel.

    Args:
        weight: Weight, [C * stride ** 2, D, ...]. Row c * stride ** 2 + a * stride + b predicts
            pixel (a, b) of channel c.
        bias: Bias, [C * stride ** 2].
        source: Statistics of the checkpoint's C channels.
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


def _renamed_state(state: State, model: nn.Module, target: State) -> State:
    """Rename the entries of MAE, timm and torchvision. Other names do not change."""
    if not isinstance(model, TimmClassifier):
        state = _translate_mae(state, target)
        stages = {int(match[1]) for match in map(DOWNSAMPLING.match, state) if match}
        if 0 in stages:
            return state
        # In timm's Swin the downsampling begins a stage, and ours ends the one before.
        return {
            DOWNSAMPLING.sub(lambda match: f'layers.{int(match[1]) - 1}.downsample.', key): value
            for key, value in state.items()
        }
    if any(key.startswith(PREFIX) for key in state):
        return state
    classifier = model.layout.classifier
    unused = [AUXILIARY]
    if len(classifier) > 2:  # a distilled model has two classifiers, and our models have one
        unused += classifier
    names = {key: f'head.{key.split(".")[-1]}' for key in classifier}
    return {
        names.get(key, OLD_DENSENET.sub(r'\1\2', key)): value
        for key, value in state.items()
        if not key.startswith(tuple(unused))
    }


def _translate_mae(state: State, target: State) -> State:
    """Rename the entries of MAE and of timm's ViT.

    The biases of the keys are dropped. Such a bias adds the same number to all logits of a query,
    so it does not affect the attention.
    """
    has_decoder = any(MAE_DECODER.match(key) for key in state)
    renamed = {}
    for key, value in state.items():
        if MAE_QKV_BIAS.fullmatch(key) and value.ndim == 1 and key not in target:
            start = key.removesuffix('qkv.bias')
            q_bias, _, v_bias = value.tensor_split(3)
            parts = {f'{start}q_bias': q_bias, f'{start}v_bias': v_bias}
        else:
            parts = {MAE_TOKEN if has_decoder and key == 'mask_token' else key: value}
        renamed |= {MAE_DECODER.sub(r'decoder.\1', name): part for name, part in parts.items()}
    return renamed


def _rename_layer_scales(state: State, target: State) -> State:
    """Rename layer scales to the model's names, `gamma_1` (this project) or `ls1.gamma` (timm)."""
    renamed = {}
    for key, value in state.items():
        others = (TIMM_SCALE.sub(r'.gamma_\1', key), OUR_SCALE.sub(r'.ls\1.gamma', key))
        fits = (name for name in others if name in target and name not in state)
        renamed[next(fits, key)] = value
    return renamed


def _fit_class_position(state: State, target: State, report: Report) -> State:
    """Fit the positions of a file to those of a model if only one has one for the class token.

    If only the file has it, it is added to the token. If only the model has it (`no_embed_class` in
    timm), it becomes 0. Both are exact.
    """
    if not all(key in each for key in (CLASS_TOKEN, ABSOLUTE) for each in (state, target)):
        return state
    positions, token = state[ABSOLUTE], state[CLASS_TOKEN]
    is_square = _is_square(positions)
    if positions.ndim != 3 or is_square == _is_square(target[ABSOLUTE]):
        return state
    if is_square:
        report.remarks.append('the class token has no position')
        none = positions.new_zeros(1, 1, positions.shape[2])
        return state | {ABSOLUTE: torch.cat([none, positions], dim=1)}
    first, patches = positions[:, :1], positions[:, 1:]
    if first.shape != token.shape or not _is_square(patches):
        return state  # rejected later
    report.remarks.append('the position of the class token was added to the token')
    return state | {CLASS_TOKEN: token + first, ABSOLUTE: patches}


def _is_square(positions: Tensor) -> bool:
    """Return whether position embeddings [1, L, D] are a square grid without a class token."""
    return positions.ndim == 3 and isqrt(positions.shape[1]) ** 2 == positions.shape[1]


def _spread_shared_table(state: State, target: State, report: Report) -> State:
    """Add a ViT's shared bias table to the table of each block if the model shares none."""
    tables = [key for key in target if key.startswith('blocks.') and key.endswith(f'.{TABLE}')]
    if SHARED_TABLE not in state or SHARED_TABLE in target or not tables:
        return state
    shared = state[SHARED_TABLE]
    spread = {key: shared + state[key] if key in state else shared for key in tables}
    report.remarks.append(f'the shared position table was added to {len(tables)} blocks')
    return {key: value for key, value in state.items() if key != SHARED_TABLE} | spread


def _resize_positions(state: State, target: State, report: Report) -> State:
    """Resize bias tables and position embeddings to the model's window or grid.

    In DINOv2, the models with registers antialias the positions, and the others do not.
    """
    resized = {}
    for key, value in state.items():
        new_shape = target[key].shape if key in target else value.shape
        if value.shape == new_shape or value.shape[-1:] != new_shape[-1:]:
            continue  # another width or number of heads is rejected later
        if key.split('.')[-1] == TABLE and value.ndim == 2:
            resized[key] = resize_table(value, len(target[key]))
        elif key.split('.')[-1] in POSITIONS and value.ndim == 3:
            antialias = REGISTERS in target
            resized[key] = resize_position_embedding(value, new_shape[1], antialias=antialias)
    report.resized += resized
    return state | resized


def _fold_first_layer(
    state: State,
    model: nn.Module,
    source_stats: Statistics,
    target_stats: Statistics,
    report: Report,
) -> State:
    """Convert the first layer to the model's number of channels, see `fold_input`.

    If the layer has no bias, the offset is added to the running mean of the following batch norm.
    """
    key, encoder = first_weight(model), getattr(model, 'encoder', model)
    layer = key.removesuffix('.weight')
    weight_here = encoder.state_dict().get(key)
    if key not in state or weight_here is None or state[key].shape[2:] != weight_here.shape[2:]:
        return state  # another kernel size is rejected later
    channels, new_channels = state[key].shape[1], weight_here.shape[1]
    if channels == new_channels:
        return state
    convolution = encoder.get_submodule(layer)
    has_bias = convolution.bias is not None
    offset_key = f'{layer}.bias'
    if not has_bias:  # a batch norm must follow
        names = [n for n, m in encoder.named_modules() if [*m.parameters(recurse=False)]]
        following = names[names.index(layer) + 1 :][:1]
        norm = encoder.get_submodule(following[0]) if following else None
        is_norm = isinstance(norm, nn.BatchNorm2d) and norm.num_features == convolution.out_channels
        offset_key = f'{following[0]}.running_mean' if is_norm else ''
    if type(convolution) not in CONVOLUTIONS or offset_key not in state:
        raise ValueError(
            f'MODEL.IN_CHANS must be {channels} for these weights, got {new_channels}: {key} '
            'cannot be converted, because the layer has neither a bias nor a batch norm, or '
            'because it standardises the weights'
        )
    weight = state[key]
    bias = state[offset_key] if has_bias else weight.new_zeros(len(weight))
    folded, offset = fold_input(weight, bias, source_stats, target_stats)
    report.folded += [key, offset_key]
    change = f'converted from {channels} to {new_channels} channels'
    report.remarks.append(f'{change}, from {source_stats}')
    if convolution.padding not in (0, (0, 0)):
        report.remarks.append('the conversion is exact except at the padded border of the image')
    return state | {key: folded, offset_key: offset if has_bias else state[offset_key] - offset}


def _convert_decoder(
    state: State, target: State, stats: tuple[Statistics, ...], report: Report
) -> State:
    """Convert the decoder to the model's channels, or drop it if the model has another one.

    `stats` belong to the checkpoint and to the model; () if the channels cannot be converted.
    """
    decoder = {key: value for key, value in state.items() if key.startswith(DECODER)}
    decoder_here = {key: value for key, value in target.items() if key.startswith(DECODER)}
    if not decoder:
        return state
    if decoder_here.keys() == decoder.keys():
        folded = _fold_last_layer(decoder, decoder_here, *stats) if stats else {}
        if all(value.shape == decoder_here[key].shape for key, value in (decoder | folded).items()):
            report.folded += folded
            return state | folded
    report.remarks.append('the decoder is not used, because the model has another one or none')
    report.unused += decoder
    return {key: value for key, value in state.items() if key not in decoder}


def _fold_last_layer(
    decoder: State, decoder_here: State, source_stats: Statistics, target_stats: Statistics
) -> State:
    """Convert the last layer of the decoder, the only layer whose shape depends on the channels."""
    channels, new_channels = len(source_stats.std), len(target_stats.std)
    different = [key for key in decoder_here if decoder[key].shape != decoder_here[key].shape]
    layer = different[0].rpartition('.')[0] if different else ''
    weight, bias = f'{layer}.weight', f'{layer}.bias'
    if channels == new_channels or {*different} != {weight, bias}:
        return {}
    pixels = len(decoder_here[bias]) // new_channels
    if decoder[weight].shape != (pixels * channels, *decoder_here[weight].shape[1:]):
        return {}
    rows = [decoder[weight], decoder[bias]]
    if MAE_TOKEN not in decoder_here:
        return dict(
            zip((weight, bias), fold_output(*rows, source_stats, target_stats), strict=True)
        )
    # MAE keeps the channels of a pixel together.
    rows = [each.unflatten(0, (-1, channels)).transpose(0, 1).flatten(0, 1) for each in rows]
    rows = fold_output(*rows, source_stats, target_stats)
    rows = [each.unflatten(0, (new_channels, -1)).transpose(0, 1).flatten(0, 1) for each in rows]
    return dict(zip((weight, bias), rows, strict=True))


def _may_be_new(state: State, target: State, model: nn.Module) -> set[str]:
    """Return the entries of the encoder and decoder that may keep their initial values."""
    names = {key for key in target if key.endswith(COUNTER)}
    if isinstance(model, TimmClassifier):
        return names
    # A classifier that pools has no norm before pooling.
    norms = NORM if MAE_TOKEN in target and POOLED_NORM[0] in state else ()
    return names | {key for key in target if key.startswith((*MAY_BE_NEW, *norms))}


def _select(state: State, target: State, report: Report, *, may_be_new: Container[str]) -> State:
    """Select the entries that fit, record the others, and raise if no rule allows them."""
    left = [key for key in state if key not in target]
    new = [key for key in target if key not in state]
    # A classifier that pools has no norm before pooling; a pre-training model has none after it.
    pretrains = 'mask_token' in target or MAE_TOKEN in target
    may_be_left = ('mask_token', *NORM, *(POOLED_NORM if pretrains else ()))
    check_fit(state, target, left=may_be_left, new=may_be_new)
    report.unused += left
    report.new += new
    changed = {*report.resized, *report.folded}
    report.loaded += [key for key in target if key in state and key not in changed]
    return {key: value for key, value in state.items() if key in target}
