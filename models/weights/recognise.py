"""Recognise the encoder of a checkpoint by its names and shapes, for messages about a misfit."""

import re
from collections.abc import Callable, Mapping
from math import isqrt
from typing import Any

import timm
from torch import Tensor

State = dict[str, Tensor]

PATCH_WEIGHT = 'patch_embed.proj.weight'
TABLE = 'relative_position_bias_table'
HEADS, ARCHITECTURE = 'attention heads', 'architecture'  # facts that a file may state
# Numbers of heads in published models by their width. Files do not store them.
KNOWN_HEADS = {
    192: '3 in ViT-Ti',
    384: '6 in ViT-S of timm, DeiT, DINO and DINOv2, 12 in ViT-S of MoCo v3',
    768: '12 in ViT-B',
    1024: '16 in ViT-L',
    1152: '16 in ViT-SO400M',
    1280: '16 in ViT-H',
    1408: '16 in ViT-g',
    1536: '24 in ViT-g of DINOv2',
    1664: '16 in ViT-G',
}
# Entries of models that only timm has, and what they are.
ONLY_IN_TIMM = {
    'reg_token': 'registers',
    'dist_token': 'a distillation token',
    'norm_pre.weight': 'a norm before the blocks',
    'attn_pool.q.weight': 'attention pooling',
    'blocks.0.attn.q_norm.weight': 'norms of queries and keys',
}
DINOV2_SIZES = {384: 'small', 768: 'base', 1024: 'large', 1536: 'giant'}
# Blocks per stage. Bottleneck blocks have a third convolution.
RESNETS = {(2, 2, 2, 2): 18, (3, 4, 6, 3): 34}
BOTTLENECKS = {(3, 4, 6, 3): 50, (3, 4, 23, 3): 101, (3, 8, 36, 3): 152}
DENSENETS = {(6, 12, 24, 16): 121, (6, 12, 32, 32): 169, (6, 12, 48, 32): 201}


def known_heads(width: int) -> str:
    """Return the numbers of attention heads in published models of a width; '' if unknown."""
    has_one = isinstance(width, int)  # CrossViT has two
    return KNOWN_HEADS.get(width, '') if has_one else ''


def likely_encoder(state: State, stated: Mapping[str, Any]) -> str:
    """Describe the encoder that a checkpoint is probably of, and the options that select it.

    Args:
        state: State dict with the names of this project, timm or torchvision, without a prefix.
        stated: Facts that the file states, see `models.weights.stated_facts`.

    Returns:
        The continuation of an error message. It is '' if the family is not known here.
    """
    for telltale, describe in FAMILIES.items():
        places = [f'.{key}'.find(f'.{telltale}') for key in state]
        starts = [key[:place] for key, place in zip(state, places, strict=True) if place >= 0]
        if starts:  # other projects put names before it
            start = min(starts, key=len)
            encoder = {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
            description, options = describe(encoder, stated)
            settings = ' '.join(f'{key} {value}' for key, value in options.items())
            looks = f'. The file looks like a {description}' if description else ''
            return f'{looks}: --opts {settings}' if settings else looks
    return ''


def _describe_swin(state: State, _: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Describe a Swin. Its position tables have a column per head."""
    if any('.cpb_mlp.' in key for key in state):
        return 'SwinV2, which is not supported', {}
    depths = [
        _count(state, rf'layers\.{stage}\.blocks\.(\d+)\.')
        for stage in range(_count(state, r'layers\.(\d+)\.blocks\.'))
    ]
    tables = [state.get(f'layers.{stage}.blocks.0.attn.{TABLE}') for stage in range(len(depths))]
    width, patch = _patch_embedding(state)
    if not width or any(table is None or table.ndim != 2 for table in tables):
        return '', {}
    window = (isqrt(len(tables[0])) + 1) // 2
    options = {
        'MODEL.TYPE': 'swin',
        'MODEL.SWIN.PATCH_SIZE': patch,
        'MODEL.SWIN.EMBED_DIM': width,
        'MODEL.SWIN.DEPTHS': _listed(depths),
        'MODEL.SWIN.NUM_HEADS': _listed([table.shape[1] for table in tables]),
        'MODEL.SWIN.WINDOW_SIZE': window,
    }
    options |= _mlp_and_bias(state, 'SWIN', 'layers.0.blocks.0.')
    return f'Swin of width {width}, depths {depths}, patch {patch} and window {window}', options


def _describe_vit(state: State, stated: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Describe a ViT. A DINOv2 has layer scales and absolute positions."""
    width, patch = _patch_embedding(state)
    if not width:
        return '', {}
    depth = _count(state, r'blocks\.(\d+)\.')
    is_scaled = 'blocks.0.gamma_1' in state or 'blocks.0.ls1.gamma' in state
    has_positions = 'pos_embed' in state
    is_dinov2 = is_scaled and has_positions
    description = f'{"DINOv2 " * is_dinov2}ViT of width {width}, depth {depth} and patch {patch}'
    if is_dinov2 and ('reg_token' in state or _is_gated(state)) and 'cls_token' in state:
        return _dinov2_of_timm(state, stated, description)
    extras = [text for key, text in ONLY_IN_TIMM.items() if key in state]
    extras += ['gated MLPs'] * _is_gated(state) + ['no class token'] * ('cls_token' not in state)
    if extras:
        description += f' with {" and ".join(extras)}, which only models of timm have'
        return description, _timm_options('', stated)
    tables = [value for key, value in state.items() if key.endswith(TABLE) and value.ndim == 2]
    options = {
        'MODEL.TYPE': 'vit',
        'MODEL.VIT.PATCH_SIZE': patch,
        'MODEL.VIT.EMBED_DIM': width,
        'MODEL.VIT.DEPTH': depth,
        'MODEL.VIT.INIT_VALUES': 1.0 if is_scaled else None,
        'MODEL.VIT.USE_APE': has_positions,
        'MODEL.VIT.USE_RPB': f'blocks.0.attn.{TABLE}' in state,
        'MODEL.VIT.USE_SHARED_RPB': f'rel_pos_bias.{TABLE}' in state,
    }
    options |= _mlp_and_bias(state, 'VIT', 'blocks.0.')
    if 'fc_norm.weight' in state or 'norm.weight' not in state:  # BEiT may have neither
        options['MODEL.VIT.USE_MEAN_POOLING'] = True
    heads = [tables[0].shape[1]] if tables else stated.get(HEADS, [])
    if len(heads) == 1:
        options['MODEL.VIT.NUM_HEADS'] = heads[0]
    else:  # another number would load and compute something else
        known = known_heads(width) or 'unknown for this width'
        description += f' (MODEL.VIT.NUM_HEADS is not stored: {known})'
    return description, options


def _dinov2_of_timm(
    state: State, stated: Mapping[str, Any], description: str
) -> tuple[str, dict[str, Any]]:
    """Describe a DINOv2 with registers or gated MLPs, which only timm's ViT has."""
    width, patch = _patch_embedding(state)
    tokens = state.get('reg_token')
    registers = tokens.shape[1] if tokens is not None and tokens.ndim == 3 else 0
    size = DINOV2_SIZES.get(width)
    name = f'vit_{size}_patch{patch}_{f"reg{registers}_" if registers else ""}dinov2'
    description += f' with {registers} registers' if registers else ' with gated MLPs'
    return description, _timm_options(name, stated)


def _timm_options(name: str, stated: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of the stated model of timm, or else of the likely one."""
    likely = name if timm.is_model(name) else 'NAME'
    return {'MODEL.TYPE': 'timm', 'MODEL.TIMM.NAME': stated.get(ARCHITECTURE, likely)}


def _describe_cnn(state: State, _: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Describe a ResNet or a DenseNet by the blocks of its four stages."""
    is_resnet = any(key.startswith('layer1.0.') for key in state)
    family = 'ResNet' if is_resnet else 'DenseNet'
    block = r'layer{}\.(\d+)\.' if is_resnet else r'features\.denseblock{}\.denselayer(\d+)\.'
    known = DENSENETS
    if is_resnet:
        known = BOTTLENECKS if 'layer1.0.conv3.weight' in state else RESNETS
    layers = known.get(tuple(_count(state, block.format(stage)) for stage in (1, 2, 3, 4)))
    if layers is None:
        return '', {}
    name = f'{family.lower()}{layers}'
    return f'{family}-{layers}', {'MODEL.TYPE': 'timm', 'MODEL.TIMM.NAME': name}


def _patch_embedding(state: State) -> tuple[int, int]:
    """Return the width and the side of a patch; 0 and 0 without a patch embedding."""
    weight = state.get(PATCH_WEIGHT)
    return (0, 0) if weight is None or weight.ndim != 4 else (len(weight), weight.shape[-1])


def _mlp_and_bias(state: State, section: str, block: str) -> dict[str, Any]:
    """Return the options of MLP and biases that do not have their usual values in a block."""
    options, layer = {}, state.get(f'{block}mlp.fc1.weight')
    if layer is not None and layer.ndim == 2 and len(layer) != 4 * layer.shape[1]:
        options[f'MODEL.{section}.MLP_RATIO'] = len(layer) / layer.shape[1]
    if not any(f'{block}attn.{name}' in state for name in ('qkv.bias', 'q_bias')):
        options[f'MODEL.{section}.QKV_BIAS'] = False
    return options


def _is_gated(state: State) -> bool:
    """Return whether the first layer of an MLP is twice as wide as the input of the second."""
    layers = [state.get(f'blocks.0.mlp.fc{number}.weight') for number in (1, 2)]
    return all(layer is not None for layer in layers) and len(layers[0]) != layers[1].shape[-1]


def _count(state: State, pattern: str) -> int:
    """Return how many different numbers the pattern finds at the beginning of keys."""
    return len({match[1] for key in state if (match := re.match(pattern, key))})


def _listed(values: list[int]) -> str:
    """Write a list without spaces, as a shell takes it."""
    return f'[{",".join(map(str, values))}]'


# The beginning of a key that every encoder of the family has, and the function that describes it.
FAMILIES: dict[str, Callable[[State, Mapping[str, Any]], tuple[str, dict[str, Any]]]] = {
    'layers.0.blocks.0.': _describe_swin,
    'blocks.0.': _describe_vit,
    'layer1.0.': _describe_cnn,
    'features.denseblock1.': _describe_cnn,
}
