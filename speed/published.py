"""The same model computed the way SimMIM's published code does it: what speed is compared with.

Eager, window after window: the grid is rolled and cut, every block gathers its own bias, and
attention is written out. Nothing here follows how our own modules compute; only their parameters,
buffers and sizes are read.
"""

from functools import partial

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from models.simmim import MaskedEncoder, SimMIM
from models.swin_transformer import (
    BasicLayer,
    PatchMerging,
    SwinTransformer,
    SwinTransformerBlock,
    WindowAttention,
)
from models.vision_transformer import Attention, Block, PatchEmbed, VisionTransformer


def as_published(model: nn.Module, *, use_checkpoint: bool = False) -> nn.Module:
    """Let a model compute the published way; its parameters and state-dict keys stay.

    Args:
        model: of `models.build_model`; it is changed in place.
        use_checkpoint: whether Swin's blocks are computed again in the backward pass.

    Returns:
        The model.
    """
    for module in model.modules():
        for kind, name, method in METHODS:
            if isinstance(module, kind):
                setattr(module, name, partial(method, module))
        if isinstance(module, BasicLayer):
            module.forward = partial(stage, module, use_checkpoint=use_checkpoint)
    return model


def patch_embed(embed: PatchEmbed, images: torch.Tensor) -> torch.Tensor:
    return embed.norm(embed.proj(images).flatten(2).transpose(1, 2))  # [B, L, D]


def bias_of(table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Table [T, heads] and index [N, N] to [heads, N, N]."""
    return table[index.view(-1)].view(*index.shape, -1).permute(2, 0, 1).contiguous()


# Swin


def encode_swin(encoder: SwinTransformer, tokens: torch.Tensor) -> torch.Tensor:
    if encoder.absolute_pos_embed is not None:
        tokens = tokens + encoder.absolute_pos_embed
    tokens = encoder.pos_drop(tokens)
    for layer in encoder.layers:
        tokens = layer(tokens)
    return encoder.norm(tokens)


def stage(layer: BasicLayer, x: torch.Tensor, *, use_checkpoint: bool) -> torch.Tensor:
    for block in layer.blocks:
        x = checkpoint(block, x, use_reentrant=False) if use_checkpoint else block(x)
    return layer.downsample(x)


def swin_block(block: SwinTransformerBlock, x: torch.Tensor) -> torch.Tensor:
    B, L, C = x.shape
    side, size, shift = block.side, block.window_size, block.shift
    grid = block.norm1(x).view(B, side, side, C)
    if shift:
        grid = torch.roll(grid, shifts=(-shift, -shift), dims=(1, 2))
    windows = grid.view(B, side // size, size, side // size, size, C)
    windows = windows.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, size**2, C)
    windows = block.attn(windows, block.attn_mask)
    grid = windows.view(B, side // size, side // size, size, size, C)
    grid = grid.permute(0, 1, 3, 2, 4, 5).contiguous().view(B, side, side, C)
    if shift:
        grid = torch.roll(grid, shifts=(shift, shift), dims=(1, 2))
    x = x + block.drop_path(grid.view(B, L, C))
    return x + block.drop_path(block.mlp(block.norm2(x)))


def window_attention(
    attn: WindowAttention, windows: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """Windows [B * W, N, C] and mask [W, N, N] or None to windows."""
    count, N, C = windows.shape
    heads = attn.num_heads
    qkv = attn.qkv(windows).reshape(count, N, 3, heads, C // heads).permute(2, 0, 3, 1, 4)
    q, k, v = qkv[0], qkv[1], qkv[2]  # each [B * W, heads, N, C/heads]
    logits = (q * attn.scale) @ k.transpose(-2, -1)
    bias = bias_of(attn.relative_position_bias_table, attn.relative_position_index)
    logits = logits + bias.unsqueeze(0)
    if mask is not None:
        logits = logits.view(count // len(mask), len(mask), heads, N, N)
        logits = (logits + mask.unsqueeze(1).unsqueeze(0)).view(-1, heads, N, N)
    x = (logits.softmax(dim=-1) @ v).transpose(1, 2).reshape(count, N, C)
    return attn.proj_drop(attn.proj(x))


def patch_merging(merging: PatchMerging, x: torch.Tensor) -> torch.Tensor:
    B, L, C = x.shape
    grid = x.view(B, merging.side, merging.side, C)
    even_rows, odd_rows = grid[:, 0::2], grid[:, 1::2]
    parts = (even_rows[:, :, 0::2], odd_rows[:, :, 0::2], even_rows[:, :, 1::2])
    x = torch.cat([*parts, odd_rows[:, :, 1::2]], dim=-1).view(B, L // 4, 4 * C)
    return merging.reduction(merging.norm(x))


# ViT


def encode_vit(encoder: VisionTransformer, tokens: torch.Tensor) -> torch.Tensor:
    x = torch.cat([encoder.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
    if encoder.pos_embed is not None:
        x = x + encoder.pos_embed
    x = encoder.pos_drop(x)
    shared = None
    if encoder.rel_pos_bias is not None:
        position = encoder.rel_pos_bias
        shared = bias_of(position.relative_position_bias_table, position.relative_position_index)
    for block in encoder.blocks:
        x = block(x, shared)
    return encoder.norm(x)


def vit_block(block: Block, x: torch.Tensor, shared: torch.Tensor | None) -> torch.Tensor:
    attended = block.attn(block.norm1(x), shared)
    x = x + block.drop_path(attended if block.gamma_1 is None else block.gamma_1 * attended)
    widened = block.mlp(block.norm2(x))
    return x + block.drop_path(widened if block.gamma_2 is None else block.gamma_2 * widened)


def vit_attention(attn: Attention, x: torch.Tensor, shared: torch.Tensor | None) -> torch.Tensor:
    """The bias of all blocks, if any, is added to the block's own, if it has one."""
    B, N, D = x.shape
    qkv_bias = None
    if attn.q_bias is not None:
        qkv_bias = torch.cat([attn.q_bias, torch.zeros_like(attn.v_bias), attn.v_bias])
    qkv = F.linear(x, attn.qkv.weight, qkv_bias).reshape(B, N, 3, attn.num_heads, -1)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [B, heads, N, D/heads]
    logits = (q * attn.scale) @ k.transpose(-2, -1)
    if attn.relative_position_bias_table is not None:
        own = bias_of(attn.relative_position_bias_table, attn.relative_position_index)
        logits = logits + own.unsqueeze(0)
    if shared is not None:
        logits = logits + shared
    x = (logits.softmax(dim=-1) @ v).transpose(1, 2).reshape(B, N, D)
    return attn.proj_drop(attn.proj(x))


# SimMIM


def masked_encoder(
    encoder: MaskedEncoder, images: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    tokens = encoder.patch_embed(images)
    hidden = mask.flatten(1).unsqueeze(-1).type_as(tokens)
    tokens = tokens * (1 - hidden) + encoder.mask_token.expand(*tokens.shape) * hidden
    side = encoder.grid_size * encoder.patch_size // encoder.stride
    x = encoder.encode(tokens)[:, -(side**2) :]
    return x.permute(0, 2, 1).reshape(len(x), -1, side, side)


def simmim_loss(model: SimMIM, images: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """L1 over hidden pixels; the losses and targets that SimMIM does not have are ours."""
    if (model.loss, model.loss_pixels) != ('l1', 'masked') or model.target.cell > 1:
        return SimMIM.forward(model, images, mask)
    reconstruction = model.decoder(model.encoder(images, mask))
    patch = model.patch_size
    weight = mask.repeat_interleave(patch, 1).repeat_interleave(patch, 2).unsqueeze(1)
    errors = F.l1_loss(model.target.of(images), reconstruction, reduction='none')
    return (errors * weight).sum() / (weight.sum() + 1e-5) / model.in_chans


# What is put in place of which method.
METHODS = (
    (PatchEmbed, 'forward', patch_embed),
    (SwinTransformer, 'encode', encode_swin),
    (SwinTransformerBlock, 'forward', swin_block),
    (WindowAttention, 'forward', window_attention),
    (PatchMerging, 'forward', patch_merging),
    (VisionTransformer, 'encode', encode_vit),
    (Block, 'forward', vit_block),
    (Attention, 'forward', vit_attention),
    (MaskedEncoder, 'forward', masked_encoder),
    (SimMIM, 'forward', simmim_loss),
)
