"""Weights named as MAE's own code names them, or timm's ViT, under this project's names."""

import re

from torch import Tensor

State = dict[str, Tensor]

QKV_BIAS = re.compile(r'((?:decoder_)?blocks\.\d+\.attn\.)qkv\.bias')
DECODER = re.compile(r'^decoder_(embed|pos_embed|blocks|norm|pred)\b')


def translate(state: State) -> tuple[State, list[str]]:
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
