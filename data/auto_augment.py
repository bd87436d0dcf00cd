"""Apply timm's policies of automatic augmentation to grey images (AUG.AUTO_AUGMENT)."""

import random

import numpy as np
from PIL import Image, ImageOps
from timm.data import auto_augment as policies

from config import Config, pixel_statistics, refuse_unless
from data.mixing import numpy_draws_from
from data.transforms import FILTERS

# Beginning of a policy -> the function of timm that reads it; others are policies of AutoAugment.
READERS = {
    'rand': policies.rand_augment_transform,
    'augmix': policies.augment_and_mix_transform,
}


def check(config: Config, stage: str | None) -> None:
    """Refuse a policy that timm does not know, and a second RandAugment."""
    if stage not in (None, 'finetune'):
        return
    try:
        AutoAugment(config)
        problem = ''
    except Exception as error:  # timm raises whatever its parsing meets
        problem = f' ({type(error).__name__}: {error})'.replace(': )', ')')
    allowed = f"'none' or a policy of timm such as 'rand-m9-mstd0.5-inc1'{problem}"
    refuse_unless(not problem, config, 'AUG.AUTO_AUGMENT', allowed)


class AutoAugment:
    """Apply a policy of timm, with the settings of SimMIM: areas from outside have the mean grey.

    It changes colours in no grey image, so that operations on colours do nothing.
    """

    def __init__(self, config: Config) -> None:
        policy, filters = config.AUG.AUTO_AUGMENT, FILTERS[config.DATA.INTERPOLATION]
        mean = float(np.mean(pixel_statistics(config)[0]))
        settings = {
            'translate_const': int(config.DATA.IMG_SIZE * 0.45),
            'img_mean': min(255, round(255 * mean)),
            **({'interpolation': filters[0]} if len(filters) == 1 else {}),
            **({'translate_pct': 0.3} if policy.startswith('augmix') else {}),
        }
        read = READERS.get(policy.partition('-')[0], policies.auto_augment_transform)
        self.transform = read(policy, settings)
        several = isinstance(self.transform, policies.AutoAugment)
        for operations in self.transform.policy if several else [self.transform.ops]:
            for operation in operations:
                if operation.name.startswith('Posterize'):
                    operation.aug_fn = posterize

    def __call__(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Change a square image [S, S] in grey levels, which are rounded to 8 bits."""
        image = Image.fromarray(np.rint(pixels).astype(np.uint8))
        # timm draws from both global generators.
        before = random.getstate()
        random.seed(int(rng.integers(2**63)))
        try:
            with numpy_draws_from(rng):
                image = self.transform(image)
        finally:
            random.setstate(before)
        return np.asarray(image, np.float32)


def posterize(image: Image.Image, bits: int, **_: object) -> Image.Image:
    """Keep the first bits of each grey level. Recent versions of Pillow refuse to keep none."""
    if bits < 1:
        return image.point(lambda grey: 0)
    return ImageOps.posterize(image, min(bits, 8))
