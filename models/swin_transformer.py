"""Swin Transformer: attention in windows, shifted in every second block.

Liu et al. 2021, arXiv:2103.14030.
"""

import numpy as np
import torch
from timm.layers import DropPath, Mlp
from torch import nn
from torch.utils.checkpoint import checkpoint

from models.relative_position import gather_bias, window_index
from models.vision_transformer import PatchEmbed

OTHER_REGION = -100.0  # added to the logits between tokens that only the shift made neighbours


def window_partition(x: torch.Tensor, window_size: int) -> torch.Tensor:
    """[B, H, W, C] to [B * windows, window_size^2, C], windows row by row."""
    B, H, W, C = x.shape
    x = x.view(B, H // window_size, window_size, W // window_size, window_size, C)
    return x.transpose(2, 3).reshape(-1, window_size**2, C)


def window_reverse(windows: torch.Tensor, window_size: int, side: int) -> torch.Tensor:
    """The inverse: [B * windows, window_size^2, C] to [B, side, side, C]."""
    across = side // window_size
    x = windows.view(-1, across, across, window_size, window_size, windows.shape[-1])
    return x.transpose(2, 3).reshape(-1, side, side, windows.shape[-1])


def shifted_window_mask(side: int, window_size: int, shift: int) -> torch.Tensor:
    """What keeps tokens from opposite edges apart in a rolled grid.

    Returns:
        [windows, window_size^2, window_size^2]: OTHER_REGION between regions, else 0.
    """
    band = torch.zeros(side, dtype=torch.int64)
    band[-window_size:] += 1
    band[-shift:] += 1
    region = 3 * band[:, None] + band[None, :]  # [H, W], 0 ... 8
    region = window_partition(region[None, :, :, None], window_size).squeeze(-1)
    apart = region[:, :, None] != region[:, None, :]
    return torch.zeros(apart.shape).masked_fill(apart, OTHER_REGION)


class WindowAttention(nn.Module):
    """Multi-head self-attention inside each window, with a bias by relative position."""

    def __init__(
        self,
        dim: int,
        window_size: int,
        num_heads: int,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5 if qk_scale is None else qk_scale
        self.relative_position_bias_table = nn.Parameter(
            torch.zeros((2 * window_size - 1) ** 2, num_heads)
        )
        self.register_buffer('relative_position_index', window_index(window_size))
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Attend within windows.

        Args:
            x: [B * windows, N, C].
            mask: [windows, N, N], added to the logits; None for unshifted windows.
        """
        B, N, C = x.shape
        qkv = self.qkv(x).view(B, N, 3, self.num_heads, C // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, heads, N, C/heads]
        logits = (q * self.scale) @ k.transpose(-2, -1)  # [B, heads, N, N]
        logits = logits + gather_bias(
            self.relative_position_bias_table, self.relative_position_index
        )
        if mask is not None:
            by_window = logits.view(-1, len(mask), self.num_heads, N, N)
            logits = (by_window + mask[:, None]).view(B, self.num_heads, N, N)
        x = (logits.softmax(dim=-1) @ v).transpose(1, 2).reshape(B, N, C)
        return self.proj_drop(self.proj(x))


class SwinTransformerBlock(nn.Module):
    """Attention in windows, shifted if `shift` is not 0, and MLP, each with norm before."""

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
        self.window_size = window_size
        self.shift = shift
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, window_size, num_heads, qkv_bias, qk_scale, drop_rate)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=drop_rate)
        self.register_buffer(
            'attn_mask', shifted_window_mask(side, window_size, shift) if shift else None
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.drop_path(self._attend(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def _attend(self, x: torch.Tensor) -> torch.Tensor:
        B, L, C = x.shape
        x = x.view(B, self.side, self.side, C)
        if self.shift:
            x = x.roll((-self.shift, -self.shift), dims=(1, 2))
        windows = self.attn(window_partition(x, self.window_size), self.attn_mask)
        x = window_reverse(windows, self.window_size, self.side)
        if self.shift:
            x = x.roll((self.shift, self.shift), dims=(1, 2))
        return x.view(B, L, C)


class PatchMerging(nn.Module):
    """Four neighbouring tokens become one of twice the width."""

    def __init__(self, side: int, dim: int) -> None:
        super().__init__()
        self.side = side
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(4 * dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, L, C = x.shape
        x = x.view(B, self.side, self.side, C)
        quarters = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        x = torch.cat(quarters, dim=-1).view(B, L // 4, 4 * C)
        return self.reduction(self.norm(x))  # [B, L/4, 2C]


class BasicLayer(nn.Module):
    """One stage: blocks at one resolution, then patch merging unless it is the last."""

    def __init__(
        self,
        dim: int,
        side: int,
        num_heads: int,
        window_size: int,
        drop_path: list[float],
        is_last: bool,
        use_checkpoint: bool = False,
        **block_kwargs: float | bool | None,
    ) -> None:
        super().__init__()
        window_size = min(window_size, side)
        if side % window_size:
            raise ValueError(
                f'MODEL.SWIN.WINDOW_SIZE {window_size} does not divide a stage of {side}x{side} '
                'tokens (DATA.IMG_SIZE / PATCH_SIZE, halved from stage to stage)'
            )
        if not is_last and side % 2:
            raise ValueError(
                f'a Swin stage of {side}x{side} tokens cannot be halved: DATA.IMG_SIZE must be a '
                'multiple of PATCH_SIZE * 2^(stages - 1)'
            )
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
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.use_checkpoint else block(x)
        return self.downsample(x)


class SwinTransformer(nn.Module):
    """Swin with a linear head on the mean of its last tokens.

    Attributes:
        stride: pixels per output token.
        num_features: width of the output.
    """

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
    ) -> None:
        super().__init__()
        last = len(depths) - 1
        self.in_chans = in_chans
        self.patch_size = patch_size
        self.stride = patch_size * 2**last
        self.embed_dim = embed_dim
        self.num_features = embed_dim * 2**last
        self.depths = list(depths)

        norm_layer = nn.LayerNorm if patch_norm else nn.Identity
        self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, embed_dim, norm_layer)
        self.grid_size = self.patch_embed.grid_size
        self.absolute_pos_embed = (
            nn.Parameter(torch.zeros(1, self.grid_size**2, embed_dim)) if ape else None
        )
        self.pos_drop = nn.Dropout(drop_rate)
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
        self.head = nn.Linear(self.num_features, num_classes) if num_classes > 0 else nn.Identity()
        self._init_weights()

    def _init_weights(self) -> None:
        """The patch convolution keeps PyTorch's default, as do the norms."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                self.init_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, WindowAttention):
                self.init_normal_(module.relative_position_bias_table)
        if self.absolute_pos_embed is not None:
            self.init_normal_(self.absolute_pos_embed)

    def init_normal_(self, tensor: torch.Tensor) -> None:
        nn.init.normal_(tensor, std=0.02)

    def encode(self, tokens: torch.Tensor) -> torch.Tensor:
        """Patch tokens [B, L, E] to normalised tokens of the last stage, [B, l, F]."""
        if self.absolute_pos_embed is not None:
            tokens = tokens + self.absolute_pos_embed
        x = self.pos_drop(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Images [B, C, S, S] to what the head sees, [B, F]."""
        return self.encode(self.patch_embed(x)).mean(dim=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.forward_features(x))

    def get_num_layers(self) -> int:
        return sum(self.depths)

    def get_layer_id(self, name: str) -> int:
        """Layer of a parameter, for layer decay: 0 the input, 1 ... the blocks, then the head."""
        part, *rest = name.split('.')
        if part in ('patch_embed', 'mask_token'):
            return 0
        if part == 'layers':
            stage, kind = int(rest[0]), rest[1]
            if kind == 'downsample':  # goes with the last block of its stage
                return sum(self.depths[: stage + 1])
            return sum(self.depths[:stage]) + int(rest[2]) + 1
        return self.get_num_layers() + 1

    def no_weight_decay(self) -> set[str]:
        return {'absolute_pos_embed'}

    def no_weight_decay_keywords(self) -> set[str]:
        return {'relative_position_bias_table'}
