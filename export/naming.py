"""What other libraries call the entries of our state dicts: pure functions over them.

Swin's patch merging puts the four neighbours in the same order in SimMIM and timm (top left, bottom
left, top right, bottom right), and both count relative positions alike: only names differ, and
where timm's merging begins the next stage. Transformers' names: models/convert_huggingface.py.
"""

import re
from collections.abc import Iterable

import torch
from torch import Tensor

from models.convert import drop_buffers
from models.convert_huggingface import to_huggingface

State = dict[str, Tensor]
Table = tuple[tuple[str, str], ...]  # (regular expression, what takes its place), all applied

TIMM_SWIN: Table = ((r'^head\.', 'head.fc.'),)
TIMM_VIT: Table = ((r'\.gamma_1$', '.ls1.gamma'), (r'\.gamma_2$', '.ls2.gamma'))


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


def vit_to_huggingface(state: State) -> State:
    """A ViT's learned entries as transformers' `BeitModel` has them, but for its prefix.

    Its queries and values always have a bias: 0 where ours have none.
    """
    state = with_pooled_norm(state)
    for key in [key for key in state if key.endswith('.attn.qkv.weight')]:
        for name in ('q_bias', 'v_bias'):
            bias = key.replace('qkv.weight', name)
            state.setdefault(bias, torch.zeros(len(state[key]) // 3))
    return to_huggingface(state)


def with_prefix(state: State, prefix: str, *, but: Iterable[str] = ('classifier.',)) -> State:
    """Put a prefix before all keys but those that begin with one of `but`."""
    kept = tuple(but)
    return {key if key.startswith(kept) else prefix + key: value for key, value in state.items()}


def with_pooled_norm(state: State) -> State:
    """Add the norm after pooling to a ViT that has neither it nor the one before.

    A pre-trained encoder with MODEL.VIT.USE_MEAN_POOLING has none; elsewhere the pooled features,
    which it does not have, pass a norm that changes nothing but their mean and deviation.
    """
    if 'norm.weight' in state or 'fc_norm.weight' in state:
        return dict(state)
    width = state['cls_token'].shape[-1]
    return state | {'fc_norm.weight': torch.ones(width), 'fc_norm.bias': torch.zeros(width)}


def _next_stage(match: re.Match) -> str:
    return f'layers.{int(match[1]) + 1}.downsample'
