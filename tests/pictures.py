"""An image for the tests of image operations."""

import numpy as np
from PIL import Image


def xray(height: int = 90, width: int = 110, seed: int = 0) -> Image.Image:
    """A smooth grey image with noise."""
    noise = np.random.RandomState(seed).randint(0, 40, (height, width))
    slope = np.linspace(0, 200, width)[None] * np.linspace(0.3, 1, height)[:, None]
    return Image.fromarray((slope + noise).astype(np.uint8))
