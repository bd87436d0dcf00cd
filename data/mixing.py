"""Mix the images of a batch and their targets in fine-tuning: Mixup and CutMix.

To add a way to mix, register a class or function under a name for AUG.MIXER. It takes the options
AUG, and as keyword arguments options of its own, such as AUG.MINE.SHARE of 'mine'. It returns a
function (images [B, C, S, S], targets [B, K], rng) -> (images, targets), which draws from `rng`
alone, so that a resumed run mixes the same. `mix_targets` mixes targets of which some are unknown.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from config import PROBES, REGISTRIES, Config, refuse_unless

MIXERS = REGISTRIES['AUG.MIXER']


@MIXERS.register('mixup')
class Mixup:
    """Mix each image with its partner in the reversed batch, with timm's Mixup and CutMix.

    Of a batch with an odd number of images, the last one is not mixed.

    Source: Zhang et al. 2018, arXiv:1710.09412; Yun et al. 2019, arXiv:1905.04899.
    """

    def __init__(self, aug: Any) -> None:
        self.is_on = is_on(aug)
        self.options = {
            'mixup_alpha': aug.MIXUP,
            'cutmix_alpha': aug.CUTMIX,
            'cutmix_minmax': aug.CUTMIX_MINMAX,
            'prob': aug.MIXUP_PROB,
            'switch_prob': aug.MIXUP_SWITCH_PROB,
            'mode': aug.MIXUP_MODE,
            'label_smoothing': 0.0,
        }

    @staticmethod
    def check(config: Config, stage: str | None) -> None:
        """Check that batches have partners, and that areas of AUG.CUTMIX_MINMAX differ."""
        aug, size = config.AUG, config.DATA.IMG_SIZE
        if not is_on(aug) or config.FINETUNE.MODE in PROBES:
            return
        allowed = 'at least 2 with AUG.MIXUP or AUG.CUTMIX'
        refuse_unless(config.DATA.BATCH_SIZE > 1, config, 'DATA.BATCH_SIZE', allowed)
        if aug.CUTMIX_MINMAX:
            low, high = (int(size * share) for share in aug.CUTMIX_MINMAX)
            allowed = f'shares that differ by a pixel of {size}'
            refuse_unless(low < high, config, 'AUG.CUTMIX_MINMAX', allowed)

    def __call__(
        self, images: Tensor, targets: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Mix images [B, C, S, S] and targets [B, K], NaN where unknown."""
        even = len(images) // 2 * 2
        if not self.is_on or not even:
            return images, targets
        from timm.data import Mixup as TimmMixup  # not loaded unless something is mixed

        # With the numbers of the images as classes, timm returns the share of each image.
        numbers = torch.arange(even, device=images.device)
        timm_mixup = TimmMixup(**self.options, num_classes=even)
        with numpy_draws_from(rng):
            mixed, shares = timm_mixup(images[:even].clone(), numbers)
        targets = torch.cat([mix_targets(targets[:even], shares), targets[even:]])
        return torch.cat([mixed, images[even:]]), targets


def is_on(aug: Any) -> bool:
    """Return whether the options AUG mix images."""
    return aug.MIXUP > 0 or aug.CUTMIX > 0 or aug.CUTMIX_MINMAX is not None


def mix_targets(targets: Tensor, shares: Tensor) -> Tensor:
    """Mix targets [B, K] by the share [B, B] that each image has in each mixture.

    A target that is unknown (NaN) in any image of a mixture is unknown in the mixture.
    """
    # Autocast would round the shares to bfloat16.
    with torch.autocast(targets.device.type, enabled=False):
        mixed = shares.float() @ targets.float().nan_to_num()
        unknown = (shares > 0).float() @ targets.isnan().float()
    return mixed.masked_fill(unknown > 0, torch.nan)


@contextmanager
def numpy_draws_from(rng: np.random.Generator) -> Iterator[None]:
    """Seed NumPy's global generator, which timm draws from, and restore it afterwards."""
    before = np.random.get_state()
    np.random.seed(int(rng.integers(2**32)))
    try:
        yield
    finally:
        np.random.set_state(before)
