"""Names of transformers' Swin, ViT and BEiT: one table, read from ours to theirs and back.

Swin's patch merging puts the four neighbours in the same order (top left, bottom left, top right,
bottom right), and relative positions are counted alike: only names differ, and what is one product
for queries, keys and values here is three there.
"""

import math
import re

import torch
from torch import Tensor

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
