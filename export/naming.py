"""What other libraries call the entries of our state dicts: pure functions over them.

Swin's patch merging puts the four neighbours in the same order in SimMIM, timm and transformers
(top left, bottom left, top right, bottom right), and all count relative positions alike: only
names differ, where timm's merging begins the next stage, and in transformers what is one product
for queries, keys and values.
"""

import re
from collections.abc import Iterable

import torch
from torch import Tensor

from models.convert import drop_buffers

State = dict[str, Tensor]
Table = tuple[tuple[str, str], ...]  # (regular expression, what takes its place), all applied

TIMM_SWIN: Table = ((r'^head\.', 'head.fc.'),)
TIMM_VIT: Table = ((r'\.gamma_1$', '.ls1.gamma'), (r'\.gamma_2$', '.ls2.gamma'))
HUGGINGFACE_BLOCK: Table = (
    (r'\.norm1\.', '.layernorm_before.'),
    (r'\.norm2\.', '.layernorm_after.'),
    (r'\.attn\.proj\.', '.attention.output.dense.'),
    (r'\.mlp\.fc1\.', '.intermediate.dense.'),
    (r'\.mlp\.fc2\.', '.output.dense.'),
    (r'^patch_embed\.proj\.', 'embeddings.patch_embeddings.projection.'),
    (r'^norm\.', 'layernorm.'),
    (r'^head\.', 'classifier.'),
)
HUGGINGFACE_SWIN: Table = (
    (r'\.attn\.(query|key|value|relative_)', r'.attention.self.\1'),
    (r'^patch_embed\.norm\.', 'embeddings.norm.'),
    (r'^layers\.', 'encoder.layers.'),
    *HUGGINGFACE_BLOCK,
)
HUGGINGFACE_BEIT: Table = (
    (r'\.attn\.(query|key|value)', r'.attention.attention.\1'),
    (r'\.attn\.relative_', '.attention.attention.relative_position_bias.relative_'),
    (r'\.gamma_(\d)$', r'.lambda_\1'),
    (r'^blocks\.', 'encoder.layer.'),
    (r'^rel_pos_bias\.', 'encoder.relative_position_bias.'),
    (r'^cls_token$', 'embeddings.cls_token'),
    (r'^pos_embed$', 'embeddings.position_embeddings'),
    (r'^fc_norm\.', 'pooler.layernorm.'),
    *HUGGINGFACE_BLOCK,
)


def learned_entries(state: State) -> State:
    """An encoder's entries without what is computed for a size, and without the mask token."""
    return {key: value for key, value in drop_buffers(state).items() if key != 'mask_token'}


def rename(state: State, table: Table) -> State:
    """Apply every row of a table to every key."""
    renamed = {}
    for key, value in state.items():
        for pattern, replacement in table:
            key = re.sub(pattern, replacement, key)
        renamed[key] = value
    return renamed


def swin_to_timm(state: State) -> State:
    """Swin's learned entries as timm's `SwinTransformer` has them."""
    moved = {
        re.sub(r'^layers\.(\d+)\.downsample', _next_stage, key): value
        for key, value in state.items()
    }
    return rename(moved, TIMM_SWIN)


def vit_to_timm_beit(state: State) -> State:
    """A ViT's learned entries as timm's `Beit` has them: the same names."""
    return with_pooled_norm(state)


def vit_to_timm_vit(state: State) -> State:
    """Those of a ViT without relative positions as timm's `VisionTransformer` has them."""
    joined = {}
    for key, value in with_pooled_norm(state).items():
        if key.endswith('.q_bias'):
            v_bias = state[key.replace('.q_bias', '.v_bias')]
            key = key.replace('.q_bias', '.qkv.bias')
            value = torch.cat([value, torch.zeros_like(v_bias), v_bias])  # keys have no bias
        if not key.endswith('.v_bias'):
            joined[key] = value
    return rename(joined, TIMM_VIT)


def swin_to_huggingface(state: State) -> State:
    """Swin's learned entries as transformers' `SwinModel` has them, but for its prefix."""
    return rename(split_qkv(state), HUGGINGFACE_SWIN)


def vit_to_huggingface(state: State) -> State:
    """A ViT's learned entries as transformers' `BeitModel` has them, but for its prefix.

    Its queries and values always have a bias: 0 where ours have none.
    """
    split = split_qkv(with_pooled_norm(state))
    for key in [key for key in split if key.endswith('.attn.query.weight')]:
        for name in ('query', 'value'):
            weight = key.replace('.query.weight', f'.{name}.weight')
            bias = weight.replace('.weight', '.bias')
            split.setdefault(bias, torch.zeros(len(split[weight])))
    return rename(split, HUGGINGFACE_BEIT)


def with_prefix(state: State, prefix: str, *, but: Iterable[str] = ('classifier.',)) -> State:
    """Put a prefix before all keys but those that begin with one of `but`."""
    kept = tuple(but)
    return {key if key.startswith(kept) else prefix + key: value for key, value in state.items()}


def split_qkv(state: State) -> State:
    """Part `attn.qkv` into query, key and value; `q_bias` and `v_bias` become theirs."""
    split = {}
    for key, value in state.items():
        if '.attn.qkv.' in key:
            for name, part in zip(('query', 'key', 'value'), value.chunk(3), strict=True):
                split[key.replace('.qkv.', f'.{name}.')] = part.clone()
        else:
            key = key.replace('.attn.q_bias', '.attn.query.bias')
            split[key.replace('.attn.v_bias', '.attn.value.bias')] = value
    return split


def with_pooled_norm(state: State) -> State:
    """Add the norm after pooling to a ViT that has neither it nor the one before.

    A pre-trained encoder with MODEL.VIT.USE_MEAN_POOLING has none; elsewhere the pooled features,
    which it does not have, pass a norm that changes nothing but their mean and deviation.
    """
    if 'norm.weight' in state or 'fc_norm.weight' in state:
        return state
    width = state['cls_token'].shape[-1]
    return state | {'fc_norm.weight': torch.ones(width), 'fc_norm.bias': torch.zeros(width)}


def _next_stage(match: re.Match) -> str:
    return f'layers.{int(match[1]) + 1}.downsample'
