"""Swin Transformer: attention within windows, which every second block shifts.

Liu et al. 2021, arXiv:2103.14030.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from timm.layers import DropPath, Mlp, PatchEmbed, gen_relative_position_index
from torch import nn

from config import encoder_node, refuse_unless
from models.classifier_heads import build_classifier_head
from models.encoder import (
    ENCODERS,
    MAP_CELLS,
    PatchEncoder,
    attend,
    attention_weights,
    run_block,
)
from models.relative_position import gather_biases
from models.window_kernel import is_used, window_attention

OTHER_REGION = -100.0  # added to logits between tokens that are only neighbours after the shift


def window_partition(x: torch.Tensor, window_size: int) -> torch.Tensor:
    """Split a grid into windows, [B, H, W, C] -> [B * windows, window_size^2, C]."""
    B, H, W, C = x.shape
    x = x.view(B, H // window_size, window_size, W // window_size, window_size, C)
    return x.transpose(2, 3).reshape(-1, window_size**2, C)


def window_reverse(windows: torch.Tensor, window_size: int, side: int) -> torch.Tensor:
    """Join windows to a grid, [B * windows, window_size^2, C] -> [B, side, side, C]."""
    count, C = side // window_size, windows.shape[-1]
    x = windows.view(-1, count, count, window_size, window_size, C)
    return x.transpose(2, 3).reshape(-1, side, side, C)


def shifted_window_mask(side: int, window_size: int, shift: int) -> torch.Tensor:
    """Return the attention mask that separates tokens from opposite edges of a rolled grid.

    The mask [windows, window_size^2, window_size^2] is OTHER_REGION between tokens from different
    regions, and otherwise 0.
    """
    band = torch.zeros(side, dtype=torch.int64)
    band[-window_size:] += 1
    band[-shift:] += 1
    region = 3 * band[:, None] + band[None, :]  # [H, W], 0 ... 8
    region = window_partition(region[None, :, :, None], window_size).squeeze(-1)
    apart = region[:, :, None] != region[:, None, :]
    return torch.zeros(apart.shape).masked_fill(apart, OTHER_REGION)


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows that are shifted by `shift` tokens.

    The relative position bias is added to the logits.
    """

    def __init__(
        self,
        dim: int,
        window_size: int,
        num_heads: int,
        shift: int = 0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.window_size = window_size
        self.shift = shift
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5 if qk_scale is None else qk_scale
        self.relative_position_bias_table = nn.Parameter(
            torch.zeros((2 * window_size - 1) ** 2, num_heads)
        )
        index = gen_relative_position_index((window_size, window_size))
        self.register_buffer('relative_position_index', index)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(
        self, x: torch.Tensor, bias: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Compute attention within windows of N tokens, [B, H, W, C] -> [B, H * W, C].

        Args:
            x: Grid of tokens, [B, H, W, C] with H = W.
            bias: Relative position bias, [heads, N, N].
            mask: Mask that is added to the logits, [windows, N, N]. None for unshifted windows.
        """
        B, H, _, C = x.shape
        if is_used(x, self.window_size, C // self.num_heads):
            x = window_attention(self.qkv(x.flatten(1, 2)), bias, mask, self.shift, self.scale)
            return self.proj_drop(self.proj(x))
        q, k, v = self._queries_keys_values(x)
        x = attend(q, k, v, bias=_with_mask(bias, mask), scale=self.scale)
        x = self._to_grid(x.transpose(2, 3).flatten(3), H)
        return self.proj_drop(self.proj(x.flatten(1, 2)))

    def weights(
        self, x: torch.Tensor, bias: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the weights for the arguments of `forward`, [B, windows, heads, N, N]."""
        q, k, _ = self._queries_keys_values(x)
        return attention_weights(q, k, bias=_with_mask(bias, mask), scale=self.scale)

    def received(self, weights: torch.Tensor, side: int) -> torch.Tensor:
        """Return what each token receives of weights [B, windows, heads, N, N], [B, side, side]."""
        shares = weights.mean(dim=(2, 3)) / weights.shape[1]  # [B, windows, N], with the sum 1
        return self._to_grid(shares[..., None], side)[..., 0]

    def _queries_keys_values(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Project a grid [B, H, W, C] to three tensors [B, windows, heads, N, C / heads]."""
        B, _, _, C = x.shape
        # Shifted windows are windows of the rolled grid, so one cut serves both (Liu et al. 2021).
        if self.shift:
            x = x.roll((-self.shift, -self.shift), dims=(1, 2))
        # N tokens attend to each other in each window, so the cost grows linearly with the image.
        qkv = self.qkv(window_partition(x, self.window_size))  # [B * windows, N, 3C]
        qkv = qkv.view(B, -1, self.window_size**2, 3, self.num_heads, C // self.num_heads)
        return qkv.permute(3, 0, 1, 4, 2, 5).unbind(0)

    def _to_grid(self, windows: torch.Tensor, side: int) -> torch.Tensor:
        """Join values of windows [B, windows, N, D] to the grid [B, side, side, D]."""
        x = window_reverse(windows, self.window_size, side)
        return x.roll((self.shift, self.shift), dims=(1, 2)) if self.shift else x


def _with_mask(bias: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Add a mask [windows, N, N] to the bias [heads, N, N] of the logits, if there is one."""
    # Tokens of one rolled window may come from opposite edges; the mask keeps these apart.
    return bias if mask is None else bias + mask[:, None]


class SwinTransformerBlock(nn.Module):
    """A pre-norm block with attention within windows, shifted by `shift` tokens, and an MLP."""

    def __init__(
        self,
        dim: int,
        side: int,
        num_heads: int,
        window_size: int,
        shift: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.side = side
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(
            dim, window_size, num_heads, shift, qkv_bias, qk_scale, drop_rate
        )
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=drop_rate)
        self.register_buffer(
            'attn_mask', shifted_window_mask(side, window_size, shift) if shift else None
        )

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Transform tokens [B, L, C]. The bias [heads, N, N] is added to the attention logits."""
        x = x + self.drop_path(self.attn(self._grid(x), bias, self.attn_mask))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def attention(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Return the attention weights for tokens [B, L, C], [B, windows, heads, N, N]."""
        return self.attn.weights(self._grid(x), bias, self.attn_mask)

    def _grid(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm1(x).unflatten(1, (self.side, self.side))  # [B, H, W, C]


class PatchMerging(nn.Module):
    """Merge 2 x 2 tokens to one token of twice the width."""

    def __init__(self, side: int, dim: int) -> None:
        super().__init__()
        self.side = side
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(4 * dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Merge tokens, [B, L, C] -> [B, L / 4, 2C]."""
        B, L, C = x.shape
        x = x.view(B, self.side, self.side, C)
        # The order of the quarters is Swin's, which its checkpoints expect.
        quarters = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        x = torch.cat(quarters, dim=-1).view(B, L // 4, 4 * C)
        return self.reduction(self.norm(x))


class BasicLayer(nn.Module):
    """One stage: blocks at one resolution, then patch merging except in the last stage."""

    def __init__(
        self,
        dim: int,
        side: int,
        num_heads: int,
        window_size: int,
        drop_path: list[float],
        is_last: bool,
        use_checkpoint: bool = False,
        **block_kwargs: float | bool | str | None,
    ) -> None:
        super().__init__()
        # A stage that one window covers has no other windows to exchange with.
        window_size = min(window_size, side)
        odd_shift = window_size // 2 if window_size < side else 0
        self.use_checkpoint = use_checkpoint
        self.blocks = nn.ModuleList(
            SwinTransformerBlock(
                dim,
                side,
                num_heads,
                window_size,
                shift=odd_shift if j % 2 else 0,
                drop_path=rate,
                **block_kwargs,
            )
            for j, rate in enumerate(drop_path)
        )
        self.downsample = nn.Identity() if is_last else PatchMerging(side, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Transform tokens, [B, L, C] -> [B, L / 4, 2C], or [B, L, C] in the last stage."""
        # One gather for all blocks is faster than one each.
        biases = gather_biases([block.attn for block in self.blocks])
        for block, bias in zip(self.blocks, biases, strict=True):
            x = run_block(block, x, bias, use_checkpoint=self.use_checkpoint)
        return self.downsample(x)

    def attention(self, x: torch.Tensor) -> torch.Tensor:
        """Return the attention weights of the last block for tokens [B, L, C]."""
        biases = gather_biases([block.attn for block in self.blocks])
        *others, (last, last_bias) = zip(self.blocks, biases, strict=True)
        for block, bias in others:
            x = run_block(block, x, bias, use_checkpoint=self.use_checkpoint)
        return last.attention(x, last_bias)


def init_linear_or_table(module: nn.Module) -> None:
    """Initialise linear layers and bias tables. Other layers keep PyTorch's defaults."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, WindowAttention):
        nn.init.normal_(module.relative_position_bias_table, std=0.02)


@ENCODERS.register('swin')
class SwinTransformer(PatchEncoder):
    """Swin with a head on the mean of the tokens of the last stage, or on these tokens."""

    def __init__(
        self,
        img_size: int = 224,
        patch_size: int = 4,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 96,
        depths: list[int] = (2, 2, 6, 2),
        num_heads: list[int] = (3, 6, 12, 24),
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        ape: bool = False,
        patch_norm: bool = True,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        use_checkpoint: bool = False,
        head: str = 'linear',
        head_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        last = len(depths) - 1
        self.in_chans = in_chans
        self.patch_size = patch_size
        self.stride = patch_size * 2**last
        self.embed_dim = embed_dim
        self.num_features = embed_dim * 2**last
        self.depths = list(depths)

        norm_layer = nn.LayerNorm if patch_norm else None
        self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, embed_dim, norm_layer)
        self.absolute_pos_embed = (
            nn.Parameter(torch.zeros(1, self.grid_size**2, embed_dim)) if ape else None
        )
        self.pos_drop = nn.Dropout(drop_rate)
        # Deeper blocks are dropped more often (Huang et al. 2016, arXiv:1603.09382).
        rates = np.linspace(0, drop_path_rate, sum(depths)).tolist()
        self.layers = nn.ModuleList(
            BasicLayer(
                embed_dim * 2**i,
                self.grid_size // 2**i,
                num_heads[i],
                window_size,
                drop_path=rates[sum(depths[:i]) : sum(depths[: i + 1])],
                is_last=i == last,
                use_checkpoint=use_checkpoint,
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                qk_scale=qk_scale,
                drop_rate=drop_rate,
            )
            for i in range(len(depths))
        )
        self.norm = nn.LayerNorm(self.num_features)
        self.head = build_classifier_head(self.num_features, num_classes, head, head_options)
        for module in self.modules():
            init_linear_or_table(module)
        if self.absolute_pos_embed is not None:
            self.init_normal_(self.absolute_pos_embed)

    @classmethod
    def stride_of(cls, config: Any) -> int:
        swin = encoder_node(config)
        return swin.PATCH_SIZE * 2 ** (len(swin.DEPTHS) - 1)

    @classmethod
    def check(cls, config: Any, stage: str | None) -> None:
        """Check that image size, windows and attention heads fit the stages."""
        swin, size = config.MODEL.SWIN, config.DATA.IMG_SIZE
        stages = len(swin.DEPTHS)
        for key in ('DEPTHS', 'NUM_HEADS'):
            is_allowed = bool(swin[key]) and all(type(n) is int and n > 0 for n in swin[key])
            refuse_unless(is_allowed, config, f'MODEL.SWIN.{key}', 'one positive integer per stage')
        refuse_unless(
            sum(swin.DEPTHS) <= 1000, config, 'MODEL.SWIN.DEPTHS', 'together at most 1000'
        )
        allowed = f'as long as MODEL.SWIN.DEPTHS, {stages}'
        refuse_unless(len(swin.NUM_HEADS) == stages, config, 'MODEL.SWIN.NUM_HEADS', allowed)
        for stage_number, heads in enumerate(swin.NUM_HEADS):
            width = swin.EMBED_DIM * 2**stage_number
            allowed = f'a divisor of the width of each stage ({width} in stage {stage_number})'
            refuse_unless(width % heads == 0, config, 'MODEL.SWIN.NUM_HEADS', allowed)
        stride = cls.stride_of(config)
        allowed = f'a multiple of {stride}, MODEL.SWIN.PATCH_SIZE doubled {stages - 1} times'
        refuse_unless(size % stride == 0, config, 'DATA.IMG_SIZE', allowed)
        sides = [size // swin.PATCH_SIZE // 2**i for i in range(stages)]
        fits = all(side <= swin.WINDOW_SIZE or side % swin.WINDOW_SIZE == 0 for side in sides)
        allowed = f'a divisor of the side of each larger stage; the sides are {sides} tokens'
        refuse_unless(fits, config, 'MODEL.SWIN.WINDOW_SIZE', allowed)

    def encode(self, tokens: torch.Tensor, hidden: torch.Tensor | None = None) -> torch.Tensor:
        """Encode patch tokens [B, L, D] to normalised tokens of the last stage, [B, l, F]."""
        x = self._with_positions(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)

    def _with_positions(self, tokens: torch.Tensor) -> torch.Tensor:
        if self.absolute_pos_embed is not None:
            tokens = tokens + self.absolute_pos_embed
        return self.pos_drop(tokens)

    def attention(self, x: torch.Tensor) -> torch.Tensor:
        """Return the attention weights of the last block, [B, windows, heads, N, N]."""
        x = self._with_positions(self.patch_embed(x))
        for layer in self.layers[:-1]:
            x = layer(x)
        return self.layers[-1].attention(x)

    def attention_map(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers[-1].blocks[-1].attn.received(self.attention(x), self.output_side)

    def get_num_layers(self) -> int:
        return sum(self.depths)

    def get_layer_id(self, name: str) -> int:
        part, *rest = name.split('.')
        if part in ('patch_embed', 'mask_token'):
            return 0
        if part == 'layers':
            stage, kind = int(rest[0]), rest[1]
            if kind == 'downsample':  # belongs to the same layer as the last block of the stage
                return sum(self.depths[: stage + 1])
            return sum(self.depths[:stage]) + int(rest[2]) + 1
        return self.get_num_layers() + 1

    def no_weight_decay(self) -> set[str]:
        return {'absolute_pos_embed', 'mask_token'}

    def no_weight_decay_keywords(self) -> set[str]:
        return {'relative_position_bias_table'}

    def saliency_layer(self) -> nn.Module | None:
        """Return the last block with a grid of enough cells, but not the last block of all.

        After that block, a token may describe a whole window.
        """
        blocks = [block for layer in self.layers for block in layer.blocks][:-1]
        return next((block for block in reversed(blocks) if block.side >= MAP_CELLS), None)
