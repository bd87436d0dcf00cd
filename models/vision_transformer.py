"""Vision Transformer in BEiT's style: class token, layer scale, relative position bias.

Dosovitskiy et al. 2021, arXiv:2010.11929; Bao et al. 2022, arXiv:2106.08254.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from timm.layers import DropPath, Mlp, PatchEmbed, gen_relative_position_index
from torch import nn
from torch.nn import functional as F

from config import PROBES, Config, refuse_unless, selected_part, value_at
from models.classifier_heads import CLASSIFIER_HEADS, build_classifier_head
from models.encoder import (
    ENCODERS,
    MAP_CELLS,
    PatchEncoder,
    attend,
    attend_fused,
    attention_weights,
    run_block,
)
from models.kept_patches import num_kept, num_patches
from models.relative_position import CLASS_TOKEN_ROWS, gather_bias, gather_biases


class RelativePositionBias(nn.Module):
    """Relative position bias of the attention logits, shared by all blocks."""

    def __init__(self, grid_size: int, num_heads: int) -> None:
        super().__init__()
        self.relative_position_bias_table = _new_table(grid_size, num_heads)
        self.register_buffer('relative_position_index', _grid_index(grid_size))

    def forward(self) -> torch.Tensor:
        """Return the bias for N = 1 + patches tokens, [heads, N, N]."""
        return gather_bias(self.relative_position_bias_table, self.relative_position_index)


class Attention(nn.Module):
    """Multi-head self-attention with biases for q and v and an optional relative position bias."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: bool = True,
        grid_size: int | None = None,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.q_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias else None
        self.v_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias else None
        self.relative_position_bias_table = None
        if grid_size is not None:
            self.relative_position_bias_table = _new_table(grid_size, num_heads)
            self.register_buffer('relative_position_index', _grid_index(grid_size))
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Transform tokens [B, N, D]. The bias [heads, N, N] is added to the attention logits."""
        B, N, D = x.shape
        q, k, v = self._queries_keys_values(x)
        # On the CPU, where models are exported, plain operations, which every format has.
        compute = attend_fused if x.is_cuda else attend
        x = compute(q, k, v, bias=bias, scale=self.scale)
        return self.proj_drop(self.proj(x.transpose(1, 2).reshape(B, N, D)))

    def weights(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Return the attention weights for the arguments of `forward`, [B, heads, N, N]."""
        q, k, _ = self._queries_keys_values(x)
        return attention_weights(q, k, bias=bias, scale=self.scale)

    def _queries_keys_values(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Project tokens [B, N, D] to three tensors [B, heads, N, D / heads]."""
        qkv_bias = None
        if self.q_bias is not None:
            # A bias of the keys would add the same to all logits of a query, which softmax ignores.
            qkv_bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, qkv_bias)
        return qkv.unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


class Block(nn.Module):
    """A pre-norm block of attention and MLP with layer scale and stochastic depth."""

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
    ) -> None:
        super().__init__()
        has_scale = init_values is not None
        self.gamma_1 = nn.Parameter(torch.full((dim,), float(init_values))) if has_scale else None
        self.gamma_2 = nn.Parameter(torch.full((dim,), float(init_values))) if has_scale else None
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads, qkv_bias, grid_size, drop_rate)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=(0.0, drop_rate))  # only after fc2

    def forward(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Transform tokens [B, N, D]. The bias [heads, N, N] is added to the attention logits."""
        x = x + self.drop_path(self._scaled(self.gamma_1, self.attn(self.norm1(x), bias)))
        return x + self.drop_path(self._scaled(self.gamma_2, self.mlp(self.norm2(x))))

    @staticmethod
    def _scaled(gamma: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
        return x if gamma is None else gamma * x


@ENCODERS.register('vit')
class VisionTransformer(PatchEncoder):
    """ViT with a head on the class token, on the mean of the patch tokens, or on these tokens.

    The version for masked images does not pool, and its initial weights are truncated at one
    standard deviation, as in SimMIM.
    """

    attends_globally = True

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
        head: str = 'linear',
        head_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.in_chans = in_chans
        self.patch_size = self.stride = patch_size
        self.embed_dim = self.num_features = embed_dim
        self.use_checkpoint = use_checkpoint

        self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, embed_dim)
        grid_size = self.grid_size
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
            )
            for rate in np.linspace(0, drop_path_rate, depth).tolist()
        )
        # Mean pooling is followed by the norm, as in BEiT; a class token is normalised before.
        norm_layer = partial(nn.LayerNorm, eps=1e-6)
        use_mean_pooling = use_mean_pooling and not CLASSIFIER_HEADS[head].takes_tokens
        self.norm = nn.Identity() if use_mean_pooling else norm_layer(embed_dim)
        # DistributedDataParallel rejects parameters without gradient, so no unused norm is built.
        pools = use_mean_pooling and not self.is_masked
        self.fc_norm = norm_layer(embed_dim) if pools else None
        self.head = build_classifier_head(embed_dim, num_classes, head, head_options)
        self._init_weights()

    @classmethod
    def check(cls, config: Any, stage: str | None) -> None:
        vit = config.MODEL.VIT
        allowed = f'a multiple of MODEL.VIT.PATCH_SIZE, {vit.PATCH_SIZE}'
        refuse_unless(config.DATA.IMG_SIZE % vit.PATCH_SIZE == 0, config, 'DATA.IMG_SIZE', allowed)
        allowed = f'a divisor of MODEL.VIT.EMBED_DIM, {vit.EMBED_DIM}'
        refuse_unless(vit.EMBED_DIM % vit.NUM_HEADS == 0, config, 'MODEL.VIT.NUM_HEADS', allowed)
        is_allowed = not vit.USE_SINCOS or not (vit.USE_APE or vit.EMBED_DIM % 4)
        allowed = 'False with USE_APE or with an EMBED_DIM that is not a multiple of 4'
        refuse_unless(is_allowed, config, 'MODEL.VIT.USE_SINCOS', allowed)

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
            for k, block in enumerate(self.blocks):  # smaller weights in deeper blocks, as in BEiT
                block.attn.proj.weight /= math.sqrt(2 * (k + 1))
                block.mlp.fc2.weight /= math.sqrt(2 * (k + 1))
            # A small head begins with logits near 0, as in BEiT.
            if isinstance(self.head, nn.Linear):
                self.head.weight *= 0.001

    def init_normal_(self, tensor: torch.Tensor) -> None:
        if self.is_masked:
            nn.init.trunc_normal_(tensor, std=0.02, a=-0.02, b=0.02)
        else:
            nn.init.normal_(tensor, std=0.02)

    def encode(
        self,
        tokens: torch.Tensor,
        hidden: torch.Tensor | None = None,
        *,
        kept: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Encode patch tokens [B, L, D] to normalised tokens [B, 1 + L, D], class token first.

        If positions `kept` [B, V] are given, the other patches are dropped after the position
        embeddings are added, as in MAE, and the result is [B, 1 + V, D].
        """
        x = self._with_class_and_positions(tokens)
        # After the positions are added, because the kept patches no longer form a grid.
        if kept is not None:
            x = torch.cat([x[:, :1], select_tokens(x[:, 1:], kept)], dim=1)
        x = self.pos_drop(x)
        for block, bias in zip(self.blocks, self._biases(), strict=True):
            x = run_block(block, x, bias, use_checkpoint=self.use_checkpoint)
        return self.norm(x)

    def _with_class_and_positions(self, tokens: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        return x if self.pos_embed is None else x + self.pos_embed

    def attention(self, x: torch.Tensor) -> torch.Tensor:
        """Return the attention weights of the last block, [B, heads, 1 + L, 1 + L]."""
        x = self.pos_drop(self._with_class_and_positions(self.patch_embed(x)))
        *others, (last, last_bias) = zip(self.blocks, self._biases(), strict=True)
        for block, bias in others:
            x = run_block(block, x, bias, use_checkpoint=self.use_checkpoint)
        return last.attn.weights(last.norm1(x), last_bias)

    def attention_map(self, x: torch.Tensor) -> torch.Tensor:
        received = self.attention(x)[:, :, 1:, 1:].mean(dim=(1, 2))  # [B, L], from patch tokens
        # Patch tokens also attend to the class token, which has no place in the map.
        shares = received / received.sum(dim=1, keepdim=True)
        return shares.unflatten(1, (self.grid_size, self.grid_size))

    def _biases(self) -> Sequence[torch.Tensor | None]:
        """Return the bias [heads, N, N] of each block: shared, separate, or the sum of both."""
        attention = [block.attn for block in self.blocks]
        shared = self.rel_pos_bias() if self.rel_pos_bias is not None else None
        if attention[0].relative_position_bias_table is None:
            return [shared] * len(attention)
        own = gather_biases(attention)
        return own if shared is None else [bias + shared for bias in own]

    def forward_features(self, x: torch.Tensor, kept: torch.Tensor | None = None) -> torch.Tensor:
        """Compute the features of images, [B, C, S, S] -> [B, D]. `encode` explains `kept`."""
        x = self.encode(self.patch_embed(x), kept=kept)
        return x[:, 0] if self.fc_norm is None else self.fc_norm(x[:, 1:].mean(dim=1))

    def forward_tokens(self, x: torch.Tensor, kept: torch.Tensor | None = None) -> torch.Tensor:
        """Compute the patch tokens of images, [B, C, S, S] -> [B, L, D], or `kept` of them."""
        return self.encode(self.patch_embed(x), kept=kept)[:, 1:]

    def get_num_layers(self) -> int:
        return len(self.blocks)

    def get_layer_id(self, name: str) -> int:
        part, *rest = name.split('.')
        if part in ('patch_embed', 'cls_token', 'mask_token', 'pos_embed'):
            return 0
        if part == 'blocks':
            return int(rest[0]) + 1
        return self.get_num_layers() + 1

    def no_weight_decay(self) -> set[str]:
        return {'pos_embed', 'cls_token'}

    def saliency_layer(self) -> nn.Module | None:
        """Return the module whose output enters the last block, if the grid has enough cells.

        The class token does not depend on the patch tokens that leave the last block, so their
        gradient would be 0.
        """
        return [self.pos_drop, *self.blocks][-2] if self.grid_size >= MAP_CELLS else None


def sincos_positions(grid_size: int, width: int) -> torch.Tensor:
    """Return fixed position embeddings [1, 1 + patches, width], with zeros for the class token.

    The four quarters of the width are the sine and cosine of the column and the sine and cosine of
    the row, at frequencies from 1 down to almost 1 / 10,000.

    Source: He et al. 2022, arXiv:2111.06377.
    """
    places = torch.arange(grid_size, dtype=torch.float64)
    frequencies = 10_000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = places[:, None] * frequencies  # [grid_size, width / 4]
    along = torch.cat([angles.sin(), angles.cos()], dim=1)  # [grid_size, width / 2]
    rows, columns = along.repeat_interleave(grid_size, dim=0), along.repeat(grid_size, 1)
    return F.pad(torch.cat([columns, rows], dim=1), (0, 0, 1, 0)).float()[None]


def _grid_index(grid_size: int) -> torch.Tensor:
    """Return the bias table's row for each query and key, with the class token first."""
    return gen_relative_position_index((grid_size, grid_size), class_token=True)


def check(config: Config, stage: str | None) -> None:
    """Refuse to drop patches of an encoder that needs them all, and to drop all patches."""
    if stage != 'finetune':
        return
    vit = config.MODEL.VIT
    attends = selected_part(config, 'MODEL.TYPE').attends_globally
    drops = attends and config.FINETUNE.MODE not in PROBES
    for key in ('FINETUNE.MASK_RATIO', 'EVAL.MASK_RATIO'):
        ratio = value_at(config, key)
        allowed = "0 with a probe and for an encoder other than 'vit'"
        refuse_unless(drops or not ratio, config, key, allowed)
        is_allowed = not (ratio and (vit.USE_RPB or vit.USE_SHARED_RPB))
        allowed = '0 with MODEL.VIT.USE_RPB or USE_SHARED_RPB, which need the whole grid'
        refuse_unless(is_allowed, config, key, allowed)
        allowed = f'such that 1 or more of the {num_patches(config)} patches remain'
        refuse_unless(num_kept(num_patches(config), ratio) > 0, config, key, allowed)


def select_tokens(tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Select the tokens at these positions in this order, [B, N, D] and [B, M] -> [B, M, D]."""
    return tokens.gather(1, positions.unsqueeze(-1).expand(-1, -1, tokens.shape[2]))


def _new_table(grid_size: int, num_heads: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros((2 * grid_size - 1) ** 2 + CLASS_TOKEN_ROWS, num_heads))
