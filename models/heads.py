"""Reconstruction heads: from an encoder's features to pixels, or to averages over cells of them."""

from timm.layers import LayerNorm2d
from torch import Tensor, nn

from models.swin_transformer import BasicLayer, WindowAttention

# Swins that run backwards: width, blocks and attention heads by stage, in Swin's own order.
INVERSE_SWINS = {
    'inverse_swin_nano': ((32, 64, 128, 256), (2, 2, 2, 2), (2, 4, 8, 16)),
    'inverse_swin_t': ((96, 192, 384, 768), (2, 2, 6, 2), (3, 6, 12, 24)),
    'inverse_swin_b': ((128, 256, 512, 1024), (2, 2, 18, 2), (4, 8, 16, 32)),
}
MAX_STAGES = 4
FINEST_PATCH = 4  # pixels: stages double the resolution down to patches of this side, as Swin's
SMALLEST_WINDOW, LARGEST_WINDOW = 4, 7
NORM_EPS = 1e-5  # as nn.LayerNorm's


def linear_head(width: int, stride: int, in_chans: int) -> nn.Sequential:
    """Features [B, width, h, w] to pixels [B, in_chans, h * stride, w * stride]."""
    return nn.Sequential(nn.Conv2d(width, stride**2 * in_chans, 1), nn.PixelShuffle(stride))


def mlp_head(width: int, stride: int, in_chans: int) -> nn.Sequential:
    """The linear head after a hidden layer of the same width."""
    hidden = (nn.Conv2d(width, width, 1), nn.GELU())
    return nn.Sequential(*hidden, *linear_head(width, stride, in_chans))


SMALL_HEADS = {'linear': linear_head, 'mlp': mlp_head}
HEADS = (*SMALL_HEADS, *INVERSE_SWINS)


def build_head(
    name: str, encoder: nn.Module, *, cell: int = 1, use_checkpoint: bool = False
) -> nn.Sequential:
    """The head for an encoder's width, stride and channels.

    Args:
        name: one of HEADS.
        encoder: gives features [B, num_features, h, w], one for every stride x stride pixels.
        cell: side in pixels of what becomes one value; divides `output_patch`.
        use_checkpoint: whether an inverse Swin computes its blocks again in the backward pass.
    """
    width, stride, in_chans = encoder.num_features, encoder.stride, encoder.in_chans
    if name in SMALL_HEADS:
        return SMALL_HEADS[name](width, stride // cell, in_chans)
    side = encoder.grid_size * encoder.patch_size // stride
    return InverseSwin(
        name, width, stride, in_chans, side=side, cell=cell, use_checkpoint=use_checkpoint
    )


def inverse_patches(stride: int) -> list[int]:
    """Side of a token in pixels, stage by stage of an inverse Swin: stride, stride / 2, ..."""
    patches = [stride]
    while len(patches) < MAX_STAGES and patches[-1] % 2 == 0 and patches[-1] >= 2 * FINEST_PATCH:
        patches.append(patches[-1] // 2)
    return patches


def window_of(side: int) -> int:
    """Side of a window for features of this side: its largest divisor up to 7, but not under 4.

    Where there is none, such as for 13, the window is the whole of the features.
    """
    window = max(size for size in range(1, LARGEST_WINDOW + 1) if side % size == 0)
    return window if window >= SMALLEST_WINDOW else side


def output_patch(name: str, stride: int) -> int:
    """Side in pixels of what the head's last layer gives at once: cells must divide it."""
    return inverse_patches(stride)[-1] if name in INVERSE_SWINS else stride


class InverseSwin(nn.Sequential):
    """A Swin in reverse, widest stage first: features [B, width, h, w] to pixels [B, C, S, S].

    Xie et al. 2022 (arXiv:2111.09886) compare linear heads with such ones. Layers are numbered and
    the last with weights is the 1x1 convolution to pixels, as in the other heads: by that
    models.convert turns decoders from one number of channels into another.

    Args:
        name: one of INVERSE_SWINS.
        width: of the features.
        stride: pixels per token of the features.
        in_chans: of the pixels.
        side: tokens across the features; `window_of` it is the window of all stages.
        cell: side in pixels of what becomes one value.
        use_checkpoint: whether blocks are computed again in the backward pass.
    """

    def __init__(
        self,
        name: str,
        width: int,
        stride: int,
        in_chans: int,
        *,
        side: int,
        cell: int = 1,
        use_checkpoint: bool = False,
    ) -> None:
        window = window_of(side)
        patches = inverse_patches(stride)
        widest_first = list(zip(*INVERSE_SWINS[name], strict=True))[::-1]
        layers = [nn.Conv2d(width, widest_first[0][0], 1)]
        for patch, (dim, depth, num_heads) in zip(patches, widest_first, strict=False):
            if patch != stride:
                layers.append(patch_expanding(2 * dim))
            stage = BasicLayer(
                dim,
                side * stride // patch,
                num_heads,
                window,
                drop_path=[0.0] * depth,
                is_last=True,  # nothing is merged
                use_checkpoint=use_checkpoint,
            )
            layers.append(OnGrid(stage))
        layers += [LayerNorm2d(dim, NORM_EPS), *linear_head(dim, patches[-1] // cell, in_chans)]
        super().__init__(*layers)
        self.apply(_init_as_swin)


class OnGrid(nn.Module):
    """A stage of Swin over tokens, applied to a grid [B, D, h, w]."""

    def __init__(self, stage: BasicLayer) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.stage(x.flatten(2).transpose(1, 2))  # [B, h*w, D]
        return tokens.transpose(1, 2).unflatten(2, x.shape[2:])


def patch_expanding(dim: int) -> nn.Sequential:
    """Patch merging undone: every token becomes 2 x 2 tokens of half the width."""
    expand = nn.Conv2d(dim, 2 * dim, 1, bias=False)
    return nn.Sequential(expand, nn.PixelShuffle(2), LayerNorm2d(dim // 2, NORM_EPS))


def _init_as_swin(module: nn.Module) -> None:
    """The 1x1 convolutions keep PyTorch's default, as the linear head's does."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, WindowAttention):
        nn.init.normal_(module.relative_position_bias_table, std=0.02)
