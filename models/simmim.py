"""SimMIM: mask token, reconstruction heads, targets, and the loss over hidden pixels.

Xie et al. 2022, arXiv:2111.09886.

A new part is one function or class with a `register` line. A head is called with the encoder and
the keywords `cell` and `use_checkpoint`, and returns a module from features [B, F, h, w] to
[B, C, S / cell, S / cell]. The rows of its last layer are ordered by channel first, as for
nn.PixelShuffle, so that models/convert.py can convert them between numbers of channels. A head that
enlarges the features in steps has a static method `output_patch(stride)`: the side in pixels of
what its last layer returns at once. A loss has the signature of torch.nn.functional.l1_loss.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from config import Registry, default_config, require, value_at
from data.masking import mask_generator
from models.encoder import ENCODERS, PatchEncoder, masked_version
from models.swin_transformer import BasicLayer, SwinTransformer, init_linear_or_table
from models.vision_transformer import VisionTransformer

PRETRAINING = Registry('MODEL.PRETRAIN')
HEADS = Registry('MODEL.SIMMIM.HEAD')
TARGETS = Registry('MODEL.SIMMIM.TARGET')
LOSSES = Registry('MODEL.SIMMIM.LOSS')

LOSSES.register('l1')(F.l1_loss)
LOSSES.register('l2')(F.mse_loss)
LOSSES.register('smooth_l1')(F.smooth_l1_loss)

# SimMIM's names.
SwinTransformerForSimMIM = masked_version(SwinTransformer)
VisionTransformerForSimMIM = masked_version(VisionTransformer)

VARIANCE_EPS = 1e-6  # added to the variance of a unit, as in MAE
MAX_STAGES = 4
FINEST_PATCH = 4  # pixels; an inverse Swin doubles the resolution until patches have this side
SMALLEST_WINDOW, LARGEST_WINDOW = 4, 7
NORM_EPS = 1e-5  # of nn.LayerNorm


class MaskedModel(nn.Module, ABC):
    """What a method of masked pre-training (MODEL.PRETRAIN) provides to the rest of the program.

    Attributes:
        title: The method in a few words.
        section: The section of the method's own options.
        patch_size: Side in pixels of a place of the mask.
        target: What is predicted.
        encoder: The encoder, without head.
    """

    title: ClassVar[str]
    section: ClassVar[str]
    in_chans: int
    patch_size: int
    target: 'Target'
    encoder: PatchEncoder

    @classmethod
    def options(cls) -> list[str]:
        """Return the keys of the options that the method reads."""
        own = value_at(default_config(), cls.section)
        masks = ['DATA.MASK_TYPE', 'DATA.MASK_PATCH_SIZE', 'DATA.MASK_RATIO']
        return [*masks, *(f'{cls.section}.{key}' for key in own)]

    @classmethod
    @abstractmethod
    def from_config(cls, config: Any) -> 'MaskedModel':
        """Build the model around the encoder that the configuration selects."""

    @classmethod
    @abstractmethod
    def check_options(cls, config: Any) -> None:
        """Check the options of this method, after those of the encoder and the masks."""

    @classmethod
    def check(cls, config: Any, stage: str | None) -> None:
        """Check encoder, masks and method, if the stage pre-trains with masks."""
        if stage not in (None, 'simmim'):
            return
        if ENCODERS[config.MODEL.TYPE].hides_patches:
            mask_generator(config)  # checks the sizes
            cls.check_options(config)
        else:
            names = [name for name, encoder in ENCODERS.items() if encoder.hides_patches]
            allowed = f'one of {names} for masked pre-training'
            require(stage is None, config, 'MODEL.TYPE', allowed)

    @abstractmethod
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return the loss of reconstructing images [B, C, S, S] with hidden patches [B, h, w]."""

    @abstractmethod
    def reconstruct(self, x: Tensor, mask: Tensor) -> Tensor:
        """Predict all pixels from the visible ones, normalised as x is: [B, C, S, S]."""

    def no_weight_decay(self) -> set[str]:
        return {f'encoder.{name}' for name in self.encoder.no_weight_decay()}

    def no_weight_decay_keywords(self) -> set[str]:
        """None: Swin's position tables decay in pre-training, as they did for published weights."""
        return set()


class Target(ABC):
    """Turns images into what the head predicts, and predictions back into images.

    Args:
        cell: Side in pixels of the squares whose pixels are averaged to one value.
        unit: Side of a masking unit in pixels, a multiple of the cell.

    Attributes:
        uses_true_statistics: Whether `to_images` uses statistics of the hidden pixels. A masking
            unit must then contain more than one value.
    """

    uses_true_statistics: ClassVar[bool] = False

    def __init__(self, *, cell: int = 1, unit: int = 1) -> None:
        self.cell = cell
        self.unit = unit

    @abstractmethod
    def of(self, images: Tensor) -> Tensor:
        """Return the target of images [B, C, S, S], [B, C, S / cell, S / cell]."""

    @abstractmethod
    def to_images(self, predictions: Tensor, images: Tensor) -> Tensor:
        """Turn predictions [B, C, S / cell, S / cell] for `images` into images [B, C, S, S]."""


@TARGETS.register('pixels')
class PixelTarget(Target):
    """Pixels, or their averages over cells."""

    def of(self, images: Tensor) -> Tensor:
        return average_cells(images, self.cell)

    def to_images(self, predictions: Tensor, images: Tensor) -> Tensor:
        return repeat(predictions, self.cell)


@TARGETS.register('patch_normalised')
class NormalisedTarget(Target):
    """Each masking unit minus its mean, divided by its standard deviation.

    `to_images` uses the true mean and deviation of each unit, hidden or not.

    Source: He et al. 2021, arXiv:2111.06377, `norm_pix_loss`.
    """

    uses_true_statistics = True

    def of(self, images: Tensor) -> Tensor:
        values = average_cells(images, self.cell)
        mean, std = unit_statistics(values, self.unit // self.cell)
        return (values - mean) / std

    def to_images(self, predictions: Tensor, images: Tensor) -> Tensor:
        values = average_cells(images, self.cell)
        mean, std = unit_statistics(values, self.unit // self.cell)
        return repeat(predictions * std + mean, self.cell)


@HEADS.register('linear')
def linear_head(
    encoder: PatchEncoder, *, cell: int = 1, use_checkpoint: bool = False
) -> nn.Sequential:
    """A 1x1 convolution and a pixel shuffle."""
    return _to_pixels(encoder.num_features, encoder.stride // cell, encoder.in_chans)


@HEADS.register('mlp')
def mlp_head(
    encoder: PatchEncoder, *, cell: int = 1, use_checkpoint: bool = False
) -> nn.Sequential:
    """The linear head after a hidden layer of the same width."""
    width = encoder.num_features
    return nn.Sequential(nn.Conv2d(width, width, 1), nn.GELU(), *linear_head(encoder, cell=cell))


class InverseSwin(nn.Sequential):
    """A Swin in reverse, widest stage first: features [B, F, h, w] to pixels.

    Xie et al. 2022 (arXiv:2111.09886) compare linear heads with these. `widths`, `depths` and
    `num_heads` are those of a Swin, narrowest stage first. The encoder returns features
    [B, num_features, h, w], and `cell` is the side in pixels of one output value.
    """

    widths: ClassVar[tuple[int, ...]]
    depths: ClassVar[tuple[int, ...]]
    num_heads: ClassVar[tuple[int, ...]]

    def __init__(
        self, encoder: PatchEncoder, *, cell: int = 1, use_checkpoint: bool = False
    ) -> None:
        stride = encoder.stride
        side = encoder.grid_size * encoder.patch_size // stride
        patches = inverse_patches(stride)
        widest_first = list(zip(self.widths, self.depths, self.num_heads, strict=True))[::-1]
        layers = [nn.Conv2d(encoder.num_features, self.widths[-1], 1)]
        for patch, (dim, depth, num_heads) in zip(patches, widest_first, strict=False):
            if patch != stride:
                layers.append(_patch_expanding(2 * dim))
            stage = BasicLayer(
                dim,
                side * stride // patch,
                num_heads,
                window_of(side),
                drop_path=[0.0] * depth,
                is_last=True,  # no patch merging
                use_checkpoint=use_checkpoint,
            )
            layers.append(_OnGrid(stage))
        to_pixels = _to_pixels(dim, patches[-1] // cell, encoder.in_chans)
        super().__init__(*layers, LayerNorm2d(dim, NORM_EPS), *to_pixels)
        self.apply(init_linear_or_table)

    @staticmethod
    def output_patch(stride: int) -> int:
        return inverse_patches(stride)[-1]


@HEADS.register('inverse_swin_nano')
class InverseSwinNano(InverseSwin):
    widths, depths, num_heads = (32, 64, 128, 256), (2, 2, 2, 2), (2, 4, 8, 16)


@HEADS.register('inverse_swin_t')
class InverseSwinTiny(InverseSwin):
    widths, depths, num_heads = (96, 192, 384, 768), (2, 2, 6, 2), (3, 6, 12, 24)


@HEADS.register('inverse_swin_b')
class InverseSwinBase(InverseSwin):
    widths, depths, num_heads = (128, 256, 512, 1024), (2, 2, 18, 2), (4, 8, 16, 32)


@PRETRAINING.register('simmim')
class SimMIM(MaskedModel):
    """Predicts hidden pixels from visible ones.

    Args:
        encoder: Takes images [B, C, S, S] and masks [B, h, w], returns [B, F, S / stride, ...].
        head: A name in HEADS.
        loss: A name in LOSSES.
        loss_pixels: 'masked' or 'all'.
        target: A name in TARGETS.
        target_cell: Side in pixels of the cells whose averages are predicted. It divides the
            head's last patch and the masking unit.
        mask_patch_size: Side of a masking unit in pixels; only normalised targets need it.
        use_checkpoint: Whether the head may recompute its blocks in the backward pass.
    """

    title = 'SimMIM'
    section = 'MODEL.SIMMIM'

    def __init__(
        self,
        encoder: PatchEncoder,
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
        self.in_chans = encoder.in_chans
        self.patch_size = encoder.patch_size
        self.encoder_stride = encoder.stride
        self.loss = LOSSES[loss]
        self.loss_pixels = loss_pixels
        self.target = TARGETS[target](cell=target_cell, unit=mask_patch_size)
        self.encoder = encoder
        self.decoder = HEADS[head](encoder, cell=target_cell, use_checkpoint=use_checkpoint)

    @classmethod
    def from_config(cls, config: Any) -> 'SimMIM':
        encoder = ENCODERS[config.MODEL.TYPE]
        options, size = config.MODEL.SIMMIM, config.DATA.IMG_SIZE
        return cls(
            masked_version(encoder)(**encoder.constructor_arguments(config)),
            head=options.HEAD,
            loss=options.LOSS,
            loss_pixels=options.LOSS_PIXELS,
            target=options.TARGET,
            target_cell=size // (options.TARGET_SIZE or size),
            mask_patch_size=config.DATA.MASK_PATCH_SIZE,
            use_checkpoint=config.TRAIN.USE_CHECKPOINT,
        )

    @classmethod
    def check_options(cls, config: Any) -> None:
        """Check that the head can predict the cells, and that no masking unit cuts one."""
        size, unit, options = config.DATA.IMG_SIZE, config.DATA.MASK_PATCH_SIZE, config.MODEL.SIMMIM
        patch = ENCODERS[config.MODEL.TYPE].stride_of(config)
        if hasattr(HEADS[options.HEAD], 'output_patch'):
            patch = HEADS[options.HEAD].output_patch(patch)
        cells = [cell for cell in range(1, patch + 1) if patch % cell == 0 and unit % cell == 0]
        sizes = [size // cell for cell in reversed(cells)]
        allowed = f'0 or one of {sizes}, so that neither the head nor a mask cuts an averaged cell'
        require(options.TARGET_SIZE in (0, *sizes), config, 'MODEL.SIMMIM.TARGET_SIZE', allowed)
        cell = size // (options.TARGET_SIZE or size)
        holds = cell < unit or not TARGETS[options.TARGET].uses_true_statistics
        allowed = f'a target without statistics where a masking unit is one value of {cell} px'
        require(holds, config, 'MODEL.SIMMIM.TARGET', allowed)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        predictions = self.decoder(self.encoder(x, mask))
        counted = mask if self.loss_pixels == 'masked' else torch.ones_like(mask)
        counted = repeat(counted.unsqueeze(1).float(), self.patch_size)  # [B, 1, S, S]
        weight = average_cells(counted, self.target.cell)  # 0 or 1: units are whole cells
        return pixel_loss(predictions, self.target.of(x), weight, self.loss)

    def reconstruct(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.target.to_images(self.decoder(self.encoder(x, mask)), x)


def pixel_loss(
    reconstruction: Tensor,
    image: Tensor,
    weight: Tensor,
    error: Callable[..., Tensor] = F.l1_loss,
) -> Tensor:
    """Return the mean error over the weighted pixels and the channels, in float32.

    Reconstruction and image are [B, C, S, S], the weight [B, 1, S, S] is 1 for pixels that count,
    else 0. If no pixel counts, the loss is 0. The error is one of LOSSES.
    """
    weight = weight.float()
    errors = error(reconstruction.float(), image.float(), reduction='none')
    return (errors * weight).sum() / (weight.sum() + 1e-5) / image.shape[1]


def average_cells(values: Tensor, cell: int) -> Tensor:
    """Average [B, C, S, S] over cells of cell x cell pixels, to [B, C, S / cell, S / cell]."""
    return values if cell == 1 else F.avg_pool2d(values, cell)


def repeat(values: Tensor, times: int) -> Tensor:
    """Repeat every value of [..., h, w] over a square of times x times."""
    for axis in (-2, -1):
        values = values.repeat_interleave(times, dim=axis)
    return values


def unit_statistics(values: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Return mean and deviation [B, 1, H, W] of the unit around each value, in float32.

    A unit has side x side of the values [B, C, H, W]. The deviation is sqrt(unbiased variance +
    VARIANCE_EPS); all channels of a unit count together.
    """
    blocks = values.float().unfold(2, side, side).unfold(3, side, side)  # [B, C, h, w, side, side]
    var, mean = blocks.var(dim=(1, 4, 5)), blocks.mean(dim=(1, 4, 5))  # [B, h, w]
    return repeat(mean[:, None], side), repeat((var + VARIANCE_EPS).sqrt()[:, None], side)


def inverse_patches(stride: int) -> list[int]:
    """Side of a token in pixels in each stage of an inverse Swin: stride, stride / 2, ..."""
    patches = [stride]
    while len(patches) < MAX_STAGES and patches[-1] % 2 == 0 and patches[-1] >= 2 * FINEST_PATCH:
        patches.append(patches[-1] // 2)
    return patches


def window_of(side: int) -> int:
    """Return the window for features of this side: its largest divisor from 4 to 7, else all."""
    window = max(size for size in range(1, LARGEST_WINDOW + 1) if side % size == 0)
    return window if window >= SMALLEST_WINDOW else side


class _OnGrid(nn.Module):
    """A stage of Swin over tokens, applied to a grid [B, D, h, w]."""

    def __init__(self, stage: BasicLayer) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.stage(x.flatten(2).transpose(1, 2))  # [B, h*w, D]
        return tokens.transpose(1, 2).unflatten(2, x.shape[2:])


def _patch_expanding(dim: int) -> nn.Sequential:
    """The inverse of patch merging: every token becomes 2 x 2 tokens of half the width."""
    expand = nn.Conv2d(dim, 2 * dim, 1, bias=False)
    return nn.Sequential(expand, nn.PixelShuffle(2), LayerNorm2d(dim // 2, NORM_EPS))


def _to_pixels(width: int, stride: int, in_chans: int) -> nn.Sequential:
    """[B, width, h, w] to [B, in_chans, h * stride, w * stride]."""
    return nn.Sequential(nn.Conv2d(width, stride**2 * in_chans, 1), nn.PixelShuffle(stride))
