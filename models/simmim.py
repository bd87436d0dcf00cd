"""SimMIM: mask token, reconstruction, reconstruction loss.

Xie et al. 2022, arXiv:2111.09886.
"""

from collections.abc import Callable

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from models.swin_transformer import BasicLayer, SwinTransformer, WindowAttention
from models.vision_transformer import VisionTransformer

# ==== models.targets: What a reconstruction is compared with: pixels or averages of them, plain or normalised.

TARGETS = ('pixels', 'patch_normalised')
EPS = 1e-6  # MAE's, added to the variance


class Target:
    """Turns images into what the head is to give, and that back into images.

    Args:
        kind: 'pixels'; or 'patch_normalised': each masking unit less its mean, over its standard
            deviation (He et al. 2021, arXiv:2111.06377, `norm_pix_loss`).
        cell: side in pixels of the square over which pixels are averaged to one value.
        unit: side of a masking unit in pixels, a multiple of the cell.
    """

    def __init__(self, kind: str = 'pixels', *, cell: int = 1, unit: int = 1) -> None:
        self.kind = kind
        self.cell = cell
        self.unit = unit

    def of(self, images: Tensor) -> Tensor:
        """Images [B, C, S, S] to [B, C, S / cell, S / cell]."""
        values = average_cells(images, self.cell)
        if self.kind == 'pixels':
            return values
        mean, std = unit_statistics(values, self.unit // self.cell)
        return (values - mean) / std

    def to_images(self, predictions: Tensor, images: Tensor) -> Tensor:
        """Predictions [B, C, S / cell, ...] of the target of `images` to images [B, C, S, S].

        A normalised unit gets mean and deviation of that unit of `images`, hidden or not.
        """
        if self.kind != 'pixels':
            values = average_cells(images, self.cell)
            mean, std = unit_statistics(values, self.unit // self.cell)
            predictions = predictions * std + mean
        return repeat(predictions, self.cell)


def average_cells(values: Tensor, cell: int) -> Tensor:
    """[B, C, S, S] to the means over cells of cell x cell pixels, [B, C, S / cell, S / cell]."""
    return values if cell == 1 else F.avg_pool2d(values, cell)


def repeat(values: Tensor, times: int) -> Tensor:
    """Every value of [..., h, w] over a square of times x times."""
    for axis in (-2, -1):
        values = values.repeat_interleave(times, dim=axis)
    return values


def unit_statistics(values: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Mean and sqrt(unbiased variance + EPS) of the units around each value, in float32.

    Args:
        values: [B, C, H, W].
        side: of a unit, in values; the channels of a unit count together.

    Returns:
        Two of [B, 1, H, W].
    """
    blocks = values.float().unfold(2, side, side).unfold(3, side, side)  # [B, C, h, w, side, side]
    var, mean = blocks.var(dim=(1, 4, 5)), blocks.mean(dim=(1, 4, 5))  # [B, h, w]
    return repeat(mean[:, None], side), repeat((var + EPS).sqrt()[:, None], side)


# ==== models.heads: Reconstruction heads: from an encoder's features to pixels, or to averages over cells of them.

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


# ==== models.simmim: SimMIM: mask token, reconstruction, reconstruction loss.
#
# Xie et al. 2022, arXiv:2111.09886.


class MaskedEncoder(nn.Module):
    """Mixin for an encoder: hidden patches are replaced by a mask token, all tokens come out."""

    def __init__(self, **encoder_kwargs: object) -> None:
        super().__init__(num_classes=0, **encoder_kwargs)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, self.embed_dim))
        self.init_normal_(self.mask_token)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Images [B, C, S, S] and mask [B, h, w] (1 hidden) to features [B, D, S/stride, S/stride].

        Raises:
            ValueError: if image or mask is not of the size that the encoder was built for.
        """
        expected = (len(x), self.grid_size, self.grid_size)
        if tuple(mask.shape) != expected:
            raise ValueError(
                f'mask must be [images, token rows, token columns] = {list(expected)} '
                f'(patch size {self.patch_size}), got {list(mask.shape)}'
            )
        tokens = self.patch_embed(x)  # [B, L, D]
        hidden = mask.flatten(1).unsqueeze(-1).bool()
        tokens = torch.where(hidden, self.mask_token.to(tokens.dtype), tokens)
        side = self.grid_size * self.patch_size // self.stride
        tokens = self.encode(tokens)[:, -(side**2) :]  # a class token, if any, comes first
        return tokens.transpose(1, 2).unflatten(2, (side, side))


class SwinTransformerForSimMIM(MaskedEncoder, SwinTransformer):
    """Swin with hidden patches."""

    def no_weight_decay(self) -> set[str]:
        return super().no_weight_decay() | {'mask_token'}


class VisionTransformerForSimMIM(MaskedEncoder, VisionTransformer):
    """ViT with hidden patches; initial weights are cut at one standard deviation."""

    init_bound = 0.02

    def __init__(self, **encoder_kwargs: object) -> None:
        super().__init__(**encoder_kwargs)
        self.fc_norm = None  # nothing is pooled, and DDP refuses parameters without gradient


LOSSES = {'l1': F.l1_loss, 'l2': F.mse_loss, 'smooth_l1': F.smooth_l1_loss}
LOSS_PIXELS = ('masked', 'all')


def pixel_loss(
    reconstruction: torch.Tensor,
    image: torch.Tensor,
    weight: torch.Tensor,
    error: Callable[..., torch.Tensor] = F.l1_loss,
) -> torch.Tensor:
    """Mean error of the weighted pixels, over channels too, in float32.

    Args:
        reconstruction: [B, C, S, S].
        image: [B, C, S, S].
        weight: [B, 1, S, S], 1 for pixels that count, else 0.
        error: one of LOSSES.

    Returns:
        Scalar; 0 where no pixel counts.
    """
    weight = weight.float()
    errors = error(reconstruction.float(), image.float(), reduction='none')
    return (errors * weight).sum() / (weight.sum() + 1e-5) / image.shape[1]


class SimMIM(nn.Module):
    """Predicts hidden pixels from visible ones; the head follows the encoder's channels and stride.

    Args:
        encoder: takes (images [B, C, S, S], mask [B, h, w]), gives features [B, D, S/stride, ...].
        head: one of models.heads.HEADS.
        loss: 'l1', 'l2' or 'smooth_l1' (quadratic below an error of 1).
        loss_pixels: 'masked' or 'all'.
        target: 'pixels' or 'patch_normalised' (each masking unit by its own mean and deviation).
        target_cell: side in pixels of the cells whose averages are predicted; it divides the
            stride, an inverse Swin's last patch and the masking unit.
        mask_patch_size: side of a masking unit in pixels; only 'patch_normalised' needs it.
        use_checkpoint: whether an inverse Swin computes its blocks again in the backward pass.
    """

    def __init__(
        self,
        encoder: nn.Module,
        head: str = 'linear',
        *,
        loss: str = 'l1',
        loss_pixels: str = 'masked',
        target: str = 'pixels',
        target_cell: int = 1,
        mask_patch_size: int = 1,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        _check('HEAD', head, HEADS)
        _check('LOSS', loss, LOSSES)
        _check('LOSS_PIXELS', loss_pixels, LOSS_PIXELS)
        _check('TARGET', target, TARGETS)
        self.in_chans = encoder.in_chans
        self.patch_size = encoder.patch_size
        self.encoder_stride = encoder.stride
        self.loss = loss
        self.loss_pixels = loss_pixels
        self.target = Target(target, cell=target_cell, unit=mask_patch_size)
        self.encoder = encoder
        self.decoder = build_head(head, encoder, cell=target_cell, use_checkpoint=use_checkpoint)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Loss of reconstructing images [B, C, S, S] whose patches in mask [B, h, w] are hidden."""
        predictions = self.decoder(self.encoder(x, mask))
        counted = mask if self.loss_pixels == 'masked' else torch.ones_like(mask)
        counted = repeat(counted.unsqueeze(1).float(), self.patch_size)  # [B, 1, S, S]
        weight = average_cells(counted, self.target.cell)  # 0 or 1: units are whole cells
        return pixel_loss(predictions, self.target.of(x), weight, LOSSES[self.loss])

    def reconstruct(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """All pixels as predicted from the visible ones, normalised as x is: [B, C, S, S].

        With the target 'patch_normalised' mean and deviation of each unit are those of x.
        """
        return self.target.to_images(self.decoder(self.encoder(x, mask)), x)

    def no_weight_decay(self) -> set[str]:
        return {f'encoder.{name}' for name in self.encoder.no_weight_decay()}

    def no_weight_decay_keywords(self) -> set[str]:
        """None: Swin's position tables decay in pre-training, as they did for published weights."""
        return set()


def _check(key: str, value: str, allowed: dict | tuple) -> None:
    if value not in allowed:
        raise ValueError(f'MODEL.SIMMIM.{key} must be one of {sorted(allowed)}, got {value!r}')
