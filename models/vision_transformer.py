"""Vision Transformer in BEiT's style: class token, layer scale, relative position bias.

Dosovitskiy et al. 2021, arXiv:2010.11929; Bao et al. 2022, arXiv:2106.08254.
"""

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from timm.layers import DropPath, Mlp
from torch import nn
from torch.nn import functional as F

from models.relative_position import (
    CLASS_TOKEN_ROWS,
    ClassifierHead,
    attend,
    gather_bias,
    grid_index,
    resolve,
    run_block,
)


class PatchEmbed(nn.Module):
    """One token per patch: a convolution whose stride is its size; tokens row by row."""

    def __init__(
        self,
        img_size: int,
        patch_size: int,
        in_chans: int,
        embed_dim: int,
        norm_layer: type[nn.Module] = nn.Identity,
    ) -> None:
        super().__init__()
        if img_size % patch_size:
            raise ValueError(
                f'DATA.IMG_SIZE {img_size} is no multiple of the encoder PATCH_SIZE {patch_size}'
            )
        self.img_size = img_size
        self.grid_size = img_size // patch_size
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)
        self.norm = norm_layer(embed_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[-2:]
        if (height, width) != (self.img_size, self.img_size):
            raise ValueError(
                f'image size: got {height}x{width}, the encoder was built for '
                f'{self.img_size}x{self.img_size} (DATA.IMG_SIZE)'
            )
        return self.norm(self.proj(x).flatten(2).transpose(1, 2))  # [B, L, D]


class RelativePositionBias(nn.Module):
    """Bias of the attention logits by relative position, shared by all blocks."""

    def __init__(self, grid_size: int, num_heads: int) -> None:
        super().__init__()
        self.relative_position_bias_table = _new_table(grid_size, num_heads)
        self.register_buffer('relative_position_index', grid_index(grid_size))

    def forward(self) -> torch.Tensor:
        return gather_bias(self.relative_position_bias_table, self.relative_position_index)


class Attention(nn.Module):
    """Multi-head self-attention; biases of q and v only; its own position bias if given a grid."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: bool = True,
        grid_size: int | None = None,
        proj_drop: float = 0.0,
        attention: str = 'auto',
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention = attention
        self.scale = (dim // num_heads) ** -0.5
        self.q_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias else None
        self.v_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias else None
        self.relative_position_bias_table = None
        if grid_size is not None:
            self.relative_position_bias_table = _new_table(grid_size, num_heads)
            self.register_buffer('relative_position_index', grid_index(grid_size))
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Tokens [B, N, D] and the bias of the logits, [heads, N, N], to tokens."""
        B, N, D = x.shape
        qkv_bias = None
        if self.q_bias is not None:
            qkv_bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, qkv_bias).view(B, N, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, heads, N, D/heads]
        fused = resolve(self.attention, x.device, in_windows=False) == 'sdpa'
        x = attend(q, k, v, bias=bias, scale=self.scale, fused=fused)
        return self.proj_drop(self.proj(x.transpose(1, 2).reshape(B, N, D)))


class Block(nn.Module):
    """Attention and MLP, each with norm before, layer scale and stochastic depth after."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4,
        qkv_bias: bool = True,
        grid_size: int | None = None,
        init_values: float | None = None,
        drop_rate: float = 0.0,
        drop_path: float = 0.0,
        attention: str = 'auto',
    ) -> None:
        super().__init__()
        has_scale = init_values is not None
        self.gamma_1 = nn.Parameter(torch.full((dim,), float(init_values))) if has_scale else None
        self.gamma_2 = nn.Parameter(torch.full((dim,), float(init_values))) if has_scale else None
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads, qkv_bias, grid_size, drop_rate, attention)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=(0.0, drop_rate))  # only after fc2

    def forward(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        x = x + self.drop_path(self._scaled(self.gamma_1, self.attn(self.norm1(x), bias)))
        return x + self.drop_path(self._scaled(self.gamma_2, self.mlp(self.norm2(x))))

    @staticmethod
    def _scaled(gamma: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
        return x if gamma is None else gamma * x


class VisionTransformer(nn.Module):
    """Plain ViT with a linear head on the class token, or on the mean of the patch tokens.

    Attributes:
        stride: pixels per output token.
        num_features: width of the output.
        init_bound: where initial normals (std 0.02) are cut; None: nowhere.
    """

    init_bound: float | None = None

    def __init__(
        self,
        img_size: int = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4,
        qkv_bias: bool = True,
        init_values: float | None = None,
        use_ape: bool = True,
        use_mean_pooling: bool = True,
        use_rpb: bool = False,
        use_shared_rpb: bool = False,
        use_sincos: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        use_checkpoint: bool = False,
        checkpoint_keeps: str = 'nothing',
        attention: str = 'auto',
    ) -> None:
        super().__init__()
        self.in_chans = in_chans
        self.patch_size = self.stride = patch_size
        self.embed_dim = self.num_features = embed_dim
        self.keeps = checkpoint_keeps if use_checkpoint else None

        self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, embed_dim)
        self.grid_size = grid_size = self.patch_embed.grid_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        if use_sincos:
            self.register_buffer('pos_embed', sincos_positions(grid_size, embed_dim))
        else:
            learned = torch.zeros(1, grid_size**2 + 1, embed_dim)
            self.pos_embed = nn.Parameter(learned) if use_ape else None
        self.pos_drop = nn.Dropout(drop_rate)
        self.rel_pos_bias = RelativePositionBias(grid_size, num_heads) if use_shared_rpb else None
        self.blocks = nn.ModuleList(
            Block(
                embed_dim,
                num_heads,
                mlp_ratio,
                qkv_bias,
                grid_size=grid_size if use_rpb else None,
                init_values=init_values,
                drop_rate=drop_rate,
                drop_path=rate,
                attention=attention,
            )
            for rate in np.linspace(0, drop_path_rate, depth).tolist()
        )
        norm_layer = partial(nn.LayerNorm, eps=1e-6)
        self.norm = nn.Identity() if use_mean_pooling else norm_layer(embed_dim)
        self.fc_norm = norm_layer(embed_dim) if use_mean_pooling else None
        self.head = ClassifierHead(embed_dim, num_classes) if num_classes > 0 else nn.Identity()
        self._init_weights()

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                self.init_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.init_normal_(self.cls_token)
        if isinstance(self.pos_embed, nn.Parameter):
            self.init_normal_(self.pos_embed)
        with torch.no_grad():
            for k, block in enumerate(self.blocks):  # deeper blocks start smaller
                block.attn.proj.weight /= math.sqrt(2 * (k + 1))
                block.mlp.fc2.weight /= math.sqrt(2 * (k + 1))
            if isinstance(self.head, nn.Linear):
                self.head.weight *= 0.001

    def init_normal_(self, tensor: torch.Tensor) -> None:
        if self.init_bound is None:
            nn.init.normal_(tensor, std=0.02)
        else:
            nn.init.trunc_normal_(tensor, std=0.02, a=-self.init_bound, b=self.init_bound)

    def encode(self, tokens: torch.Tensor) -> torch.Tensor:
        """Patch tokens [B, L, D] to normalised tokens [B, 1 + L, D], the class token first."""
        x = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        if self.pos_embed is not None:
            x = x + self.pos_embed
        return self.run_blocks(x)

    def run_blocks(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens with their positions [B, N, D] to normalised tokens; with bias tables all N."""
        x = self.pos_drop(x)
        for block, bias in zip(self.blocks, self._biases(), strict=True):
            x = run_block(block, x, bias, keeps=self.keeps)
        return self.norm(x)

    def _biases(self) -> Sequence[torch.Tensor | None]:
        """[heads, N, N] of each block, gathered at once: shared, its own, or their sum."""
        attention = [block.attn for block in self.blocks]
        shared = self.rel_pos_bias() if self.rel_pos_bias is not None else None
        if attention[0].relative_position_bias_table is None:
            return [shared] * len(attention)
        tables = torch.cat([attn.relative_position_bias_table for attn in attention], dim=1)
        own = gather_bias(tables, attention[0].relative_position_index).chunk(len(attention))
        return own if shared is None else [bias + shared for bias in own]

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Images [B, C, S, S] to what the head sees, [B, D]."""
        x = self.encode(self.patch_embed(x))
        return x[:, 0] if self.fc_norm is None else self.fc_norm(x[:, 1:].mean(dim=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.forward_features(x))

    def get_num_layers(self) -> int:
        return len(self.blocks)

    def get_layer_id(self, name: str) -> int:
        """Layer of a parameter, for layer decay: 0 the input, 1 ... the blocks, then the head."""
        part, *rest = name.split('.')
        if part in ('patch_embed', 'cls_token', 'mask_token', 'pos_embed'):
            return 0
        if part == 'blocks':
            return int(rest[0]) + 1
        return self.get_num_layers() + 1

    def no_weight_decay(self) -> set[str]:
        return {'pos_embed', 'cls_token'}

    def no_weight_decay_keywords(self) -> set[str]:
        return set()


def sincos_positions(grid_size: int, width: int) -> torch.Tensor:
    """Fixed positions: the class token's row is 0, then a row per patch, row by row.

    A quarter of the width each: sine and cosine of the patch's column, sine and cosine of its row,
    at frequencies from 1 down to almost 1 / 10,000.

    Returns:
        [1, 1 + grid_size ** 2, width].

    Raises:
        ValueError: if 4 does not divide the width.

    Source: He et al. 2022, arXiv:2111.06377.
    """
    if width % 4:
        raise ValueError(f'sine-cosine positions need a width that 4 divides, got {width}')
    places = torch.arange(grid_size, dtype=torch.float64)
    frequencies = 10_000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = places[:, None] * frequencies  # [grid_size, width / 4]
    along = torch.cat([angles.sin(), angles.cos()], dim=1)  # [grid_size, width / 2]
    rows, columns = along.repeat_interleave(grid_size, dim=0), along.repeat(grid_size, 1)
    return F.pad(torch.cat([columns, rows], dim=1), (0, 0, 1, 0)).float()[None]


def _new_table(grid_size: int, num_heads: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros((2 * grid_size - 1) ** 2 + CLASS_TOKEN_ROWS, num_heads))
