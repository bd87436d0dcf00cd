"""Apply the steps of DATA.PREPROCESS to whole images: grey levels, size and lung masks.

The steps are applied first, in the order of the option. `scripts/pack.py --preprocess` applies them
when a store is packed, so that slow steps are computed once. They are then not applied again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image

from config import REGISTRIES, Config, module_of_option, scored_steps
from data.images.files import PACKED_STEPS

# Steps that need the image's own shape or change it, in the only order in which masks fit. In a
# store they must be packed.
LUNG_STEPS = ('lung_multiply', 'lung_crop')
SHAPE_STEPS = (*LUNG_STEPS, 'resize')
WHITE = 255


@dataclass(frozen=True)
class Setup:
    """What the steps that change the shape need.

    Attributes:
        size: Side in pixels of the squares that 'resize' makes.
        lung_masks: Folder or store of the masks, or ''.
    """

    size: int | None = None
    lung_masks: str = ''


# Name -> function(image, setup) -> image. Steps on grey levels except 'denoise' are defined for 256
# levels, so they round 16-bit images.
Step = Callable[[Image.Image, Setup], Image.Image]
PREPROCESS: dict[str, Step] = REGISTRIES['DATA.PREPROCESS']


class Preprocess:
    """Applies the steps of DATA.PREPROCESS to an image, except those it was packed with.

    Args:
        config: Run configuration.
        is_scored: Whether EVAL.PREPROCESS takes the place of DATA.PREPROCESS.
    """

    def __init__(self, config: Config, *, is_scored: bool = False) -> None:
        self.steps = scored_steps(config) if is_scored else config.DATA.PREPROCESS
        self.setup = Setup(config.DATA.IMG_SIZE, config.DATA.LUNG_MASKS)

    def __call__(self, image: Image.Image) -> Image.Image:
        # Steps such as CLAHE are not idempotent, so those of packing must not be repeated.
        packed = image.info.get(PACKED_STEPS) or []
        return apply_steps(image, self.steps[len(packed) :], self.setup)

    def lung_mask(self, image: Image.Image) -> Image.Image:
        """Read the lung mask of a preprocessed image, at the size of this image (see `mask_of`)."""
        mask_of = module_of_option('DATA.LUNG_MASKS').mask_of
        return mask_of(image, self.setup.lung_masks, is_cropped='lung_crop' in self.steps)


def apply_steps(image: Image.Image, steps: Sequence[str], setup: Setup) -> Image.Image:
    """Apply steps, which are names in PREPROCESS, one after another."""
    for name in steps:
        image = PREPROCESS[name](image, setup)
    return image
