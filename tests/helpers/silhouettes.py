"""Masks of the lungs of phantoms: where they draw air."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import load_script


def make_phantom_with_masks(folder: Path, **numbers: int) -> tuple[Path, Path]:
    """Draw a phantom, and the silhouettes of its lungs in a folder of masks."""
    phantom = load_script('phantom')

    def air(scene: Any, rng: np.random.Generator) -> np.ndarray:
        return (scene.air > 0.2).astype(np.uint8) * 255

    images, masks = folder / 'phantom', folder / 'masks' / 'phantom'
    phantom.make_phantom(images, **numbers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phantom, 'expose', air)
        phantom.make_phantom(masks, **numbers)
    return images, masks
