"""Features in Python: what the transform of an encoder takes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transfers import write_run

from scripts.api import load_encoder, load_image

RNG = np.random.default_rng(0)
GREY = Image.fromarray(RNG.integers(0, 255, (40, 48), np.uint8))


def in_colour() -> Image.Image:
    return Image.merge('RGB', [GREY] * 3)


def sixteen_bits() -> Image.Image:
    return Image.fromarray(RNG.integers(0, 2**16, (40, 48)).astype(np.uint16))


def rotated(path: Path) -> Path:
    exif = Image.Exif()
    exif[274] = 6  # a quarter turn
    GREY.save(path.with_suffix('.jpg'), exif=exif)
    return path.with_suffix('.jpg')


@pytest.mark.parametrize('kind', ['grey', 'colour', '16 bits', 'palette', '1 bit', 'rotated'])
def test_the_transform_takes_paths_and_images_of_load_image_and_refuses_others(kind, tmp_path):
    _, transform = load_encoder(write_run(tmp_path, 'finetune'))
    path = tmp_path / 'xray.png'
    if kind == 'rotated':
        path = rotated(path)
    else:
        pictures = {
            'grey': GREY,
            'colour': in_colour(),
            '16 bits': sixteen_bits(),
            'palette': in_colour().quantize(64),
            '1 bit': GREY.convert('1'),
        }
        pictures[kind].save(path)
    want = transform(load_image(path))
    assert torch.equal(transform(path), want) and torch.equal(transform(str(path)), want)
    assert want.std() > 0.5
    for other in (Image.open(path), np.zeros((9, 9)), torch.zeros(1, 9, 9), None):
        with pytest.raises(ValueError, match='path of an image, or an image that load_image'):
            transform(other)
