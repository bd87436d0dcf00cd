"""SimMIM: mask token, reconstruction heads, targets, and the loss over hidden pixels.

Xie et al. 2022, arXiv:2111.09886.

To add a head or target, register one function or class. A head takes the encoder, the keywords
`channels`, `cell` and `use_checkpoint`, and options of its own, such as
MODEL.SIMMIM.CONVOLUTIONS.WIDTH of 'convolutions'. It returns a module that maps features
[B, F, h, w] to [B, channels, S / cell, S / cell]. The rows of the last layer are ordered by channel
first, as for nn.PixelShuffle, so that models/weights/convert.py can convert the number of channels.
A head that upsamples in several stages also has a static method `output_patch(stride)`, which
returns the side in pixels of one position in the last stage. models/reconstruction_losses.py has
the losses.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from config import REGISTRIES, refuse_unless, selected_part
from data.masking import mask_generator
from models.encoder import ENCODERS, PatchEncoder, masked_version
from models.model import Model
from models.reconstruction_losses import LOSSES, Term, loss_terms, term_values
from models.swin_transformer import BasicLayer, SwinTransformer, init_linear_or_table
from models.vision_transformer import VisionTransformer

PRETRAINING = REGISTRIES['MODEL.PRETRAIN']
HEADS = REGISTRIES['MODEL.SIMMIM.HEAD']
TARGETS = REGISTRIES['MODEL.SIMMIM.TARGET']

# Names of these classes in SimMIM.
SwinTransformerForSimMIM = masked_version(SwinTransformer)
VisionTransformerForSimMIM = masked_version(VisionTransformer)

HOG_BINS = 9  # orientations
HOG_EPS = 1e-5  # in the norm of a histogram
VARIANCE_EPS = 1e-6  # added to the variance of a unit, as in MAE
MAX_STAGES = 4
FINEST_PATCH = 4  # side of a patch in pixels at which an inverse Swin stops upsampling
SMALLEST_WINDOW, LARGEST_WINDOW = 4, 7
NORM_EPS = 1e-5  # the default of nn.LayerNorm


class MaskedModel(Model, ABC):
    """Base class of the methods of masked pre-training (MODEL.PRETRAIN).

    `Model` has the hooks of training that a method may override.

    Attributes:
        title: Name of the method for model cards.
        in_chans: Number of image channels.
        patch_size: Side in pixels of one mask entry.
        target: What `predict` predicts; None for a method that predicts nothing of an image, such
            as features of another network. Such a method needs `held_out_features`.
        encoder: Encoder without a head. Fine-tuning and exports use only this part.
    """

    title: ClassVar[str]
    in_chans: int
    patch_size: int
    target: 'Target | None'
    encoder: PatchEncoder

    @classmethod
    @abstractmethod
    def from_config(cls, config: Any, *, total_steps: int = 1) -> 'MaskedModel':
        """Build the model around the encoder that the configuration selects.

        `total_steps` is the number of optimizer steps of the run, for methods with a schedule.
        """

    @classmethod
    @abstractmethod
    def check_options(cls, config: Any) -> None:
        """Check the options of this method. Encoder and mask options were checked before."""

    @classmethod
    def check(cls, config: Any, stage: str | None) -> None:
        """Check the options of the encoder, the masks and the method for masked pre-training."""
        if stage not in (None, 'simmim'):
            return
        if ENCODERS[config.MODEL.TYPE].hides_patches:
            mask_generator(config)  # checks the sizes
            stride = ENCODERS[config.MODEL.TYPE].stride_of(config)
            allowed = f'a multiple of {stride}, the side of an output token'
            refuse_unless(config.DATA.IMG_SIZE % stride == 0, config, 'DATA.IMG_SIZE', allowed)
            cls.check_options(config)
        else:
            names = [name for name, encoder in ENCODERS.items() if encoder.hides_patches]
            allowed = f'one of {names} for masked pre-training'
            refuse_unless(stage is None, config, 'MODEL.TYPE', allowed)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return the loss of images [B, C, S, S] with masks [B, h, w], as `loss`.

        In training, `refine_mask` may change the drawn masks first. Validation keeps them, so that
        its errors can be compared.
        """
        if self.training:
            with torch.no_grad():
                mask = self.refine_mask(x, mask)
        return self.loss(x, mask)

    def refine_mask(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return the masks [B, h, w] that are trained with; by default those that were drawn.

        A method may choose what to hide by what the encoder sees, such as
        `encoder.attention_map(x)`, and hides as many patches of each image as the drawn mask.
        """
        return mask

    @abstractmethod
    def loss(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return the loss of images [B, C, S, S], a scalar.

        The masks [B, h, w] are 1 where a patch is hidden. They arrive as bytes (uint8), which have
        no negative values: convert them before you subtract from them.
        """

    def predict(self, x: Tensor, mask: Tensor) -> Tensor:
        """Predict the target of images from their visible pixels, [B, T, S / cell, S / cell]."""
        raise NotImplementedError(f'{self.title} has no target')

    def reconstruct(self, x: Tensor, mask: Tensor) -> Tensor:
        """Predict all pixels from the visible ones, [B, C, S, S], with the normalisation of x.

        Only for an `ImageTarget`.
        """
        return self.target.to_images(self.predict(x, mask), x)

    def held_out_features(self, x: Tensor) -> Tensor:
        """Return features [B, F] of whole images. Validation uses them to detect a collapse."""
        raise NotImplementedError(f'{self.title} is validated by its target')

    @property
    def whole_encoder(self) -> PatchEncoder:
        return self.encoder

    def no_weight_decay(self) -> set[str]:
        return {f'encoder.{name}' for name in self.encoder.no_weight_decay()}

    def no_weight_decay_keywords(self) -> set[str]:
        """Return no keywords: Swin's bias tables use weight decay in pre-training, as in SimMIM."""
        return set()


class Target(ABC):
    """The target of the reconstruction: T values for each cell of an image.

    Args:
        in_chans: Number of image channels C.
        cell: Side of a cell in pixels.
        unit: Side of a masking unit in pixels, a multiple of `cell`.

    Attributes:
        own_cell: Side of a cell with MODEL.SIMMIM.TARGET_SIZE 0 (class attribute).
        name: Name of the values in metrics.jsonl; '' for pixels (class attribute).
        channels: Number of values T. The head has as many outputs for each cell.
        is_image: Whether it is an `ImageTarget` (class attribute).
        uses_true_statistics: Whether `to_images` uses statistics of the hidden pixels. A masking
            unit must then contain more than one cell.
    """

    own_cell: ClassVar[int] = 1
    name: ClassVar[str] = ''
    is_image: ClassVar[bool] = False
    uses_true_statistics: ClassVar[bool] = False

    def __init__(self, in_chans: int = 1, *, cell: int = 1, unit: int = 1) -> None:
        self.channels = in_chans
        self.cell = cell
        self.unit = unit

    @abstractmethod
    def of(self, images: Tensor) -> Tensor:
        """Compute the target of images, [B, C, S, S] -> [B, T, S / cell, S / cell]."""


class ImageTarget(Target):
    """A target from which images can be reconstructed."""

    is_image = True

    @abstractmethod
    def to_images(self, predictions: Tensor, images: Tensor) -> Tensor:
        """Convert predictions for `images`, [B, T, S / cell, S / cell], to images [B, C, S, S]."""


@TARGETS.register('pixels')
class PixelTarget(ImageTarget):
    """Predict pixels, or their averages over cells."""

    def of(self, images: Tensor) -> Tensor:
        return average_cells(images, self.cell)

    def to_images(self, predictions: Tensor, images: Tensor) -> Tensor:
        return repeat(predictions, self.cell)


@TARGETS.register('patch_normalised')
class NormalisedTarget(ImageTarget):
    """Predict pixels normalised by the mean and standard deviation of each masking unit.

    `to_images` uses the true mean and standard deviation of each unit, whether hidden or not.

    Source: He et al. 2021, arXiv:2111.06377, `norm_pix_loss`.
    """

    uses_true_statistics = True

    def of(self, images: Tensor) -> Tensor:
        values = average_cells(images, self.cell)
        # Statistics of a whole masking unit, so that only its structure is left to predict.
        mean, std = unit_statistics(values, self.unit // self.cell)
        return (values - mean) / std

    def to_images(self, predictions: Tensor, images: Tensor) -> Tensor:
        values = average_cells(images, self.cell)
        mean, std = unit_statistics(values, self.unit // self.cell)
        # A hidden unit borrows its true mean and deviation, which the model does not predict.
        return repeat(predictions * std + mean, self.cell)


@TARGETS.register('hog')
class HogTarget(Target):
    """Predict histograms of oriented gradients (HOG), the target of MaskFeat.

    A histogram weights HOG_BINS orientations from 0 to 180 degrees by the length of the gradient in
    a cell, separately for each channel, and has the 2-norm 1. The values are those of
    skimage.feature.hog with cells_per_block=(1, 1) and block_norm='L2'.

    Source: Wei et al. 2022, arXiv:2112.09133; Dalal & Triggs 2005.
    """

    own_cell = 8
    name = 'hog'

    def __init__(self, in_chans: int = 1, *, cell: int = 8, unit: int = 8) -> None:
        super().__init__(in_chans, cell=cell, unit=unit)
        self.channels = HOG_BINS * in_chans

    def of(self, images: Tensor) -> Tensor:
        # Central differences, and 0 at the border.
        down = F.pad(images[:, :, 2:] - images[:, :, :-2], (0, 0, 1, 1))
        right = F.pad(images[..., 2:] - images[..., :-2], (1, 1))
        # Length and orientation of the gradient, [B, C, S, S]; opposite directions count as equal.
        length = torch.hypot(right, down)
        turns = torch.atan2(down, right) % math.pi / math.pi
        bins = (turns * HOG_BINS).long() % HOG_BINS  # 180 degrees are 0 degrees
        # One map per orientation: each pixel adds its length to the bin it falls into.
        sums = [average_cells(length * (bins == k), self.cell) for k in range(HOG_BINS)]
        histograms = torch.stack(sums, dim=2)  # [B, C, HOG_BINS, h, w]
        # Each cell is its own block, so contrast between cells does not matter (L2 norm).
        norm = (histograms.square().sum(dim=2, keepdim=True) + HOG_EPS**2).sqrt()
        return (histograms / norm).flatten(1, 2)


@HEADS.register('linear')
def linear_head(
    encoder: PatchEncoder, *, channels: int = 1, cell: int = 1, use_checkpoint: bool = False
) -> nn.Sequential:
    """Build a 1x1 convolution followed by a pixel shuffle, as in SimMIM."""
    return _to_cells(encoder.num_features, encoder.stride // cell, channels)


@HEADS.register('mlp')
def mlp_head(
    encoder: PatchEncoder, *, channels: int = 1, cell: int = 1, use_checkpoint: bool = False
) -> nn.Sequential:
    """Build the linear head after a hidden layer with the width of the features."""
    width = encoder.num_features
    last = linear_head(encoder, channels=channels, cell=cell)
    return nn.Sequential(nn.Conv2d(width, width, 1), nn.GELU(), *last)


class InverseSwin(nn.Sequential):
    """A reversed Swin, widest stage first, that maps features [B, F, h, w] to pixels.

    Xie et al. 2022 (arXiv:2111.09886) compare this kind of head with the linear head. Subclasses
    define width, number of blocks and attention heads of each stage, narrowest first as in a Swin.
    """

    widths: ClassVar[tuple[int, ...]]
    depths: ClassVar[tuple[int, ...]]
    num_heads: ClassVar[tuple[int, ...]]

    def __init__(
        self,
        encoder: PatchEncoder,
        *,
        channels: int = 1,
        cell: int = 1,
        use_checkpoint: bool = False,
    ) -> None:
        stride, side = encoder.stride, encoder.output_side
        patches = inverse_patches(stride)
        widest_first = list(zip(self.widths, self.depths, self.num_heads, strict=True))[::-1]
        layers = [nn.Conv2d(encoder.num_features, self.widths[-1], 1)]
        for patch, (dim, depth, num_heads) in zip(patches, widest_first, strict=False):
            # Every stage but the first doubles the side and halves the width of the tokens.
            if patch != stride:
                # The inverse of patch merging: a token becomes 2 x 2 tokens of half the width.
                expand = nn.Conv2d(2 * dim, 4 * dim, 1, bias=False)
                norm = LayerNorm2d(dim, NORM_EPS)
                layers.append(nn.Sequential(expand, nn.PixelShuffle(2), norm))
            stage = BasicLayer(
                dim,
                side * stride // patch,
                num_heads,
                choose_window(side),
                drop_path=[0.0] * depth,
                is_last=True,  # no patch merging
                use_checkpoint=use_checkpoint,
            )
            layers.append(_OnGrid(stage))
        # A token of the last stage may still cover several cells of the target.
        to_cells = _to_cells(dim, patches[-1] // cell, channels)
        super().__init__(*layers, LayerNorm2d(dim, NORM_EPS), *to_cells)
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
    """Predict hidden pixels from visible ones.

    Args:
        encoder: Masked encoder (`models.encoder.MaskedEncoder`).
        build_head: Function that builds the head, see HEADS.
        terms: Terms of the loss by name; None: SimMIM's L1.
        loss_pixels: Pixels that the loss averages over, 'masked' or 'all'.
        target: What is predicted; None: pixels. Neither a masking unit nor the patch that the head
            predicts at once divides its cells.
        use_checkpoint: Whether the head uses gradient checkpointing.

    Attributes:
        term_losses: Terms of the last batch without weights, [number of terms]. No checkpoint
            contains them.
    """

    title = 'SimMIM'

    def __init__(
        self,
        encoder: PatchEncoder,
        build_head: Callable[..., nn.Module] | None = None,
        *,
        terms: Mapping[str, Term] | None = None,
        loss_pixels: str = 'masked',
        target: Target | None = None,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.in_chans = encoder.in_chans
        self.patch_size = encoder.patch_size
        self.terms = {'l1': Term(1.0, LOSSES['l1'])} if terms is None else terms
        self.register_buffer('term_losses', torch.zeros(len(self.terms)), persistent=False)
        self.loss_pixels = loss_pixels
        self.target = PixelTarget(encoder.in_chans) if target is None else target
        self.encoder = encoder
        self.decoder = (build_head or linear_head)(
            encoder,
            channels=self.target.channels,
            cell=self.target.cell,
            use_checkpoint=use_checkpoint,
        )

    @classmethod
    def from_config(cls, config: Any, *, total_steps: int = 1) -> 'SimMIM':
        kind = ENCODERS[config.MODEL.TYPE]
        # The same encoder with a mask token, as SimMIM's SwinTransformerForSimMIM.
        encoder = masked_version(kind)(**kind.constructor_arguments(config))
        build_target = selected_part(config, 'MODEL.SIMMIM.TARGET', with_options=True)
        return cls(
            encoder,
            selected_part(config, 'MODEL.SIMMIM.HEAD', with_options=True),
            terms=loss_terms(config),
            loss_pixels=config.MODEL.SIMMIM.LOSS_PIXELS,
            target=build_target(
                encoder.in_chans, cell=cls.target_cell(config), unit=config.DATA.MASK_PATCH_SIZE
            ),
            use_checkpoint=config.TRAIN.USE_CHECKPOINT,
        )

    @classmethod
    def target_cell(cls, config: Any) -> int:
        """Return the side in pixels of a cell of the target."""
        options, size = config.MODEL.SIMMIM, config.DATA.IMG_SIZE
        own = TARGETS[options.TARGET].own_cell
        return size // options.TARGET_SIZE if options.TARGET_SIZE else own

    @classmethod
    def check_options(cls, config: Any) -> None:
        """Check that neither the head nor a masking unit divides a cell."""
        size, unit, options = config.DATA.IMG_SIZE, config.DATA.MASK_PATCH_SIZE, config.MODEL.SIMMIM
        patch = ENCODERS[config.MODEL.TYPE].stride_of(config)
        if hasattr(HEADS[options.HEAD], 'output_patch'):
            patch = HEADS[options.HEAD].output_patch(patch)
        cells = [cell for cell in range(1, patch + 1) if patch % cell == 0 and unit % cell == 0]
        sizes = [size // cell for cell in reversed(cells)]
        target, cell = TARGETS[options.TARGET], cls.target_cell(config)
        sizes = [0, *sizes] if target.own_cell in cells else sizes
        allowed = f'one of {sizes}, so that neither the head nor a mask divides a cell'
        refuse_unless(options.TARGET_SIZE in sizes, config, 'MODEL.SIMMIM.TARGET_SIZE', allowed)
        is_allowed = cell < unit or not target.uses_true_statistics
        allowed = f'a target without statistics if a masking unit is a single cell of {cell} px'
        refuse_unless(is_allowed, config, 'MODEL.SIMMIM.TARGET', allowed)

    def loss(self, x: Tensor, mask: Tensor) -> Tensor:
        predictions = self.predict(x, mask)
        counted = mask if self.loss_pixels == 'masked' else torch.ones_like(mask)
        # From one value per token to one per pixel.
        counted = repeat(counted.unsqueeze(1).float(), self.patch_size)  # [B, 1, S, S]
        hidden = average_cells(counted, self.target.cell)  # 0 or 1: units are whole cells
        values = term_values(self.terms, predictions, self.target.of(x), hidden)
        if len(self.terms) > 1:
            self.term_losses.copy_(values.detach())
        weights = [term.weight for term in self.terms.values()]
        weighted = [weight * value for weight, value in zip(weights, values, strict=True)]
        return sum(weighted[1:], start=weighted[0])

    def logged_values(self) -> dict[str, Tensor]:
        """Return the terms of the last batch without their weights, if there are several."""
        if len(self.terms) == 1:
            return {}
        return {f'loss_{name}': v for name, v in zip(self.terms, self.term_losses, strict=True)}

    def predict(self, x: Tensor, mask: Tensor) -> Tensor:
        # [B, C, S, S] -> features [B, F, h, w] -> [B, T, S / cell, S / cell]
        predictions = self.decoder(self.encoder(x, mask))
        side = x.shape[-1] // self.target.cell
        wanted = (len(x), self.target.channels, side, side)
        if predictions.shape != wanted:
            raise ValueError(
                f'the head (MODEL.SIMMIM.HEAD) must return the shape {[*wanted]}, got '
                f'{[*predictions.shape]}'
            )
        return predictions


def average_cells(values: Tensor, cell: int) -> Tensor:
    """Average over cells of cell x cell pixels, [B, C, S, S] -> [B, C, S / cell, S / cell]."""
    return values if cell == 1 else F.avg_pool2d(values, cell)


def repeat(values: Tensor, times: int) -> Tensor:
    """Repeat every value in a square, [..., h, w] -> [..., h * times, w * times]."""
    for axis in (-2, -1):
        values = values.repeat_interleave(times, dim=axis)
    return values


def unit_statistics(values: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Compute the mean and standard deviation [B, 1, H, W] of the masking unit around each value.

    A unit contains side x side values of all channels of [B, C, H, W]. The standard deviation is
    sqrt(unbiased variance + VARIANCE_EPS). The results are in float32.
    """
    blocks = values.float().unfold(2, side, side).unfold(3, side, side)  # [B, C, h, w, side, side]
    var, mean = blocks.var(dim=(1, 4, 5)), blocks.mean(dim=(1, 4, 5))  # [B, h, w]
    return repeat(mean[:, None], side), repeat((var + VARIANCE_EPS).sqrt()[:, None], side)


def inverse_patches(stride: int) -> list[int]:
    """Return the side of a token in pixels for each stage of an inverse Swin, coarsest first."""
    patches = [stride]
    while len(patches) < MAX_STAGES and patches[-1] % 2 == 0 and patches[-1] >= 2 * FINEST_PATCH:
        patches.append(patches[-1] // 2)
    return patches


def choose_window(side: int) -> int:
    """Return the largest divisor of `side` from 4 to 7 as window size, or `side` without one."""
    window = max(size for size in range(1, LARGEST_WINDOW + 1) if side % size == 0)
    return window if window >= SMALLEST_WINDOW else side


class _OnGrid(nn.Module):
    """Apply a Swin stage, which processes tokens, to a grid [B, D, h, w]."""

    def __init__(self, stage: BasicLayer) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.stage(x.flatten(2).transpose(1, 2))  # [B, h*w, D]
        return tokens.transpose(1, 2).unflatten(2, x.shape[2:])


def _to_cells(width: int, stride: int, channels: int) -> nn.Sequential:
    """Build a layer to cells, [B, width, h, w] -> [B, channels, h * stride, w * stride]."""
    return nn.Sequential(nn.Conv2d(width, stride**2 * channels, 1), nn.PixelShuffle(stride))
