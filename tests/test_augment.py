"""Fine-tuning's augmentation: torchvision's geometry and jitter, timm's erasing."""

import math
import random

import numpy as np
import pytest
import torch
from pictures import xray
from PIL import Image
from test_transforms import make_config
from timm.data.random_erasing import RandomErasing
from torchvision.transforms import functional as F
from torchvision.transforms.v2 import functional as F2

import data.transforms
from data.loader import sample_rng
from data.transforms import (
    FILTERS,
    RandomWarp,
    TrainTransform,
    draw_crop,
    erase,
    jitter,
    resized_crop,
    warp,
    warp_matrix,
)

ALL_WARPS = {
    'AUG__ROTATION': 20.0,
    'AUG__TRANSLATE': 0.1,
    'AUG__SCALE': [0.8, 1.3],
    'AUG__SHEAR': 10.0,
    'AUG__DISTORTION': 0.3,
}


def blobs(size: int = 192) -> np.ndarray:  # [size, size] float32
    """Smooth spots that fade out before the border; no symmetry."""
    y, x = np.mgrid[:size, :size] / size
    spots = [(0.42, 0.45, 0.05, 160), (0.56, 0.4, 0.03, 90), (0.53, 0.58, 0.06, 140)]
    values = [v * np.exp(-((x - a) ** 2 + (y - b) ** 2) / 2 / s**2) for a, b, s, v in spots]
    return np.clip(sum(values), 0, 255).astype(np.float32)


def noise(height: int = 48, width: int = 48) -> np.ndarray:
    return np.random.RandomState(0).randint(0, 256, (height, width)).astype(np.float32)


# Geometry ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'angle, shift, scale, shear',
    [(25, (0, 0), 1, 0), (0, (7, -4), 1, 0), (0, (0, 0), 0.7, 0), (0, (0, 0), 1, 20)]
    + [(-140, (5, 9), 1.2, -15), (8, (-6, 3), 0.9, 12)],
)
def test_affine_equals_torchvisions(angle, shift, scale, shear):
    matrix = warp_matrix(192, angle=angle, shift=shift, scale=scale, shear=shear)
    wanted = {'angle': angle, 'translate': list(shift), 'scale': scale, 'shear': [shear, 0]}
    # Another resampling, of whole grey levels.
    smooth = torch.from_numpy(np.rint(blobs()).astype(np.uint8))[None]
    bilinear = F2.affine(smooth, **wanted, interpolation=F.InterpolationMode.BILINEAR)[0]
    np.testing.assert_allclose(warp(blobs(), matrix), bilinear, atol=2.5)
    # The same resampling, of noise, with its border.
    image = Image.fromarray(noise(192, 192))
    bicubic = F2.affine(image, **wanted, interpolation=F.InterpolationMode.BICUBIC)
    bicubic = np.asarray(bicubic).clip(0, 255)
    np.testing.assert_allclose(warp(noise(192, 192), matrix), bicubic, atol=1e-3)


@pytest.mark.parametrize('seed', range(4))
def test_perspective_equals_torchvisions(seed):
    inward = np.random.RandomState(seed).randint(0, 56, (4, 2))
    matrix = warp_matrix(192, inward=inward)
    square = [[0, 0], [192, 0], [192, 192], [0, 192]]
    moved = (square + inward * [[1, 1], [-1, 1], [-1, -1], [1, -1]]).tolist()
    smooth = torch.from_numpy(np.rint(blobs()).astype(np.uint8))[None]
    bilinear = F2.perspective(smooth, square, moved, interpolation=F.InterpolationMode.BILINEAR)[0]
    np.testing.assert_allclose(warp(blobs(), matrix), bilinear, atol=2.5)
    for before, after in zip(square, moved, strict=True):
        x, y, w = matrix @ [*before, 1]
        np.testing.assert_allclose((x / w, y / w), after, atol=1e-9)


@pytest.mark.parametrize('size', [48, 49])
def test_quarter_turns_are_exact(size):
    pixels = noise(size, size)
    for turns in range(-2, 3):
        got = warp(pixels, warp_matrix(size, angle=90 * turns))
        np.testing.assert_allclose(got, np.rot90(pixels, -turns), atol=1e-3)


def test_shift_by_whole_pixels_is_exact_and_black_outside():
    pixels = noise(49, 49) + 0.25
    got = warp(pixels, warp_matrix(49, shift=(5, -3)))
    assert np.array_equal(got[:-3, 5:], pixels[3:, :-5].clip(max=255))
    assert (got[-3:] == 0).all() and (got[:, :5] == 0).all()


def test_enlarging_doubles_around_the_centre():
    def weight(distance: float) -> float:
        """Cubic convolution (Keys 1981) with Pillow's a = -1."""
        d = abs(distance)
        inner, outer = d**3 - 2 * d**2 + 1, -(d**3) + 5 * d**2 - 8 * d + 4
        return inner if d < 1 else outer if d < 2 else 0

    pixels = 100 + noise(16, 16) / 5
    places = 8 + (np.arange(16) + 0.5 - 8) / 2 - 0.5
    weights = np.array([[weight(place - i) for i in range(16)] for place in places])
    got = warp(pixels, warp_matrix(16, scale=2))
    np.testing.assert_allclose(got, weights @ pixels @ weights.T, atol=1e-3)


def test_warped_pixels_stay_in_range():
    steps = np.kron(np.random.RandomState(0).randint(0, 2, (8, 8)), np.ones((6, 6))) * 255
    got = warp(steps.astype(np.float32), warp_matrix(48, angle=7))
    assert got.dtype == np.float32
    assert got.min() == 0 and got.max() == 255  # bicubic overshoots


# What is drawn -------------------------------------------------------------------------------


def test_nothing_is_drawn_or_moved_where_all_is_off():
    pixels, rng = noise(), sample_rng(0, 0, 0)
    assert RandomWarp(make_config())(pixels, rng) is pixels
    assert rng.random() == sample_rng(0, 0, 0).random()


@pytest.mark.parametrize('key', list(ALL_WARPS))
def test_each_option_alone_warps_and_uses_up_the_same_draws(key):
    pixels, rng, untouched = noise(), sample_rng(0, 0, 0), sample_rng(0, 0, 0)
    got = RandomWarp(make_config(**{key: ALL_WARPS[key]}))(pixels, rng)
    assert np.abs(got - pixels).mean() > 10
    untouched.random(13)
    assert rng.random() == untouched.random()


def _drawn(monkeypatch, **keys) -> list[dict]:
    """The warps of 400 samples of 50 pixels."""
    drawn = []

    def record(size: int, **options) -> np.ndarray:
        drawn.append(options)
        return np.eye(3)

    monkeypatch.setattr(data.augment, 'warp_matrix', record)
    transform = RandomWarp(make_config(**keys))
    for index in range(400):
        transform(noise(50, 50), sample_rng(0, 0, index))
    return drawn


def test_warps_are_uniform_in_their_ranges_and_independent(monkeypatch):
    drawn = _drawn(monkeypatch, **ALL_WARPS)
    rows = [(d['angle'], *d['shift'], d['scale'], d['shear'], *d['inward'].flat) for d in drawn]
    columns = np.array(rows).T  # [13, 400]
    ranges = [(-20, 20), (-5, 5), (-5, 5), (0.8, 1.3), (-10, 10)] + [(0, 7.5)] * 8
    for values, (low, high) in zip(columns, ranges, strict=True):
        width = high - low
        assert low <= values.min() < low + 0.02 * width
        assert high - 0.02 * width < values.max() <= high
        assert abs(values.mean() - (low + high) / 2) < 4 * width / math.sqrt(12 * 400)
    correlation = np.corrcoef(columns) - np.eye(13)
    assert np.abs(correlation).max() < 4.5 / math.sqrt(400)


def test_turning_an_option_on_moves_none_of_the_others(monkeypatch):
    alone = _drawn(monkeypatch, AUG__ROTATION=20.0)
    together = _drawn(monkeypatch, **ALL_WARPS)
    assert [d['angle'] for d in alone] == [d['angle'] for d in together]
    for d in alone:
        assert d['shift'] == (0, 0) and d['scale'] == 1 and d['shear'] == 0
        assert (d['inward'] == 0).all()


def test_a_warp_equals_torchvisions_affine_then_perspective():
    config = make_config(**ALL_WARPS)
    for index in range(5):
        got = RandomWarp(config)(blobs(), sample_rng(0, 0, index))
        u = sample_rng(0, 0, index).random(13)
        image = F2.affine(
            torch.from_numpy(blobs())[None],
            angle=40 * u[0] - 20,
            translate=[192 * (0.2 * u[1] - 0.1), 192 * (0.2 * u[2] - 0.1)],
            scale=0.8 + 0.5 * u[4],
            shear=[20 * u[3] - 10, 0],
            interpolation=F.InterpolationMode.BILINEAR,
        )
        a, b, c, d, e, f, g, h = u[5:] * 0.3 * 96
        square = [[0, 0], [192, 0], [192, 192], [0, 192]]
        moved = [[a, b], [192 - c, d], [192 - e, 192 - f], [g, 192 - h]]
        wanted = F2.perspective(image, square, moved, interpolation=F.InterpolationMode.BILINEAR)
        np.testing.assert_allclose(got, wanted[0], atol=2.5)


@pytest.mark.parametrize('warps', [{}, ALL_WARPS])
def test_finetuning_draws_crop_flip_filter_warp_jitter_erasing(warps):
    config = make_config(
        AUG__COLOR_JITTER=0.3, AUG__REPROB=0.5, DATA__INTERPOLATION='random', **warps
    )
    transform = TrainTransform(config)
    for index in range(20):
        rng = sample_rng(1, 2, index)
        box = draw_crop(rng, 90, 110, area=(0.08, 1))
        flipped = rng.random() < 0.5
        pixels = resized_crop(xray(), box, 64, FILTERS['random'][rng.integers(2)])
        pixels = RandomWarp(config)(pixels[:, ::-1] if flipped else pixels, rng)
        brightness, contrast = rng.uniform(0.7, 1.3, size=2)
        pixels = jitter(pixels, brightness=brightness, contrast=contrast)
        wanted = transform.normalize(pixels)[0]
        erase(wanted, rng, probability=0.5, mode='pixel', max_count=1)
        assert np.array_equal(transform(xray(), sample_rng(1, 2, index)), wanted)


# Jitter and erasing --------------------------------------------------------------------------


@pytest.mark.parametrize('brightness, contrast', [(1.3, 0.7), (0.6, 1.4), (1.0, 1.0), (0.0, 1.2)])
def test_jitter_equals_torchvisions_on_tensors(brightness, contrast):
    pixels = np.asarray(xray(), np.float32)
    tensor = F.adjust_brightness(torch.from_numpy(pixels)[None] / 255, brightness)
    wanted = F.adjust_contrast(tensor, contrast)[0] * 255
    got = jitter(pixels, brightness=brightness, contrast=contrast)
    np.testing.assert_allclose(got, wanted, atol=1e-3)


def test_jitter_factors_are_uniform_in_their_range():
    # A flat image shows the brightness alone: contrast moves nothing.
    config = make_config(AUG__COLOR_JITTER=0.4, DATA__MEAN=[0.0], DATA__STD=[1.0])
    flat = Image.fromarray(np.full((64, 64), 100, np.uint8))
    transform = TrainTransform(config)
    levels = [float(transform(flat, sample_rng(0, 0, i)).mean()) * 2.55 for i in range(500)]
    assert 0.6 <= min(levels) < 0.62 and 1.38 < max(levels) <= 1.4001
    assert abs(np.mean(levels) - 1) < 4 * 0.8 / math.sqrt(12 * 500)
    assert abs(np.std(levels) - 0.8 / math.sqrt(12)) < 0.02


def _erased(mode: str, count: int, probability: float, ours: bool) -> np.ndarray:
    """[500, 2, 40, 48] images of sevens after erasing, by ours or by timm's."""
    random.seed(0), torch.manual_seed(0)
    timm = RandomErasing(probability, mode=mode, max_count=count, device='cpu')
    images = np.full((500, 2, 40, 48), 7, np.float32)
    for i, image in enumerate(images):
        if ours:
            rng = sample_rng(0, 0, i)
            erase(image, rng, probability=probability, mode=mode, max_count=count)
        else:
            timm(torch.from_numpy(image))
    return images


@pytest.mark.parametrize('mode', ['const', 'rand', 'pixel'])
@pytest.mark.parametrize('count, probability', [(1, 1.0), (3, 0.5)])
def test_erasing_is_distributed_as_timms(mode, count, probability):
    results = []
    for ours in (True, False):
        images = _erased(mode, count, probability, ours)
        gone = (images != 7).all(axis=1)  # [500, 40, 48]
        touched = gone.any(axis=(1, 2))
        share = gone[touched].mean(axis=(1, 2))
        height, width = gone[touched].any(axis=2).sum(axis=1), gone[touched].any(axis=1).sum(axis=1)
        row = (gone.sum(axis=2) * np.arange(40)).sum(axis=1)[touched] / gone[touched].sum((1, 2))
        results.append([share, share**2, height, width, row, touched.astype(float)])
        values = images.transpose(0, 2, 3, 1)[gone]
        if mode == 'const':
            assert (values == 0).all()
        else:
            spread = 0.02 if mode == 'pixel' else 0.15
            assert abs(values.mean()) < spread and abs(values.std() - 1) < spread
            assert abs(np.corrcoef(values.T)[0, 1]) < 0.2  # channels are independent
    for ours, timm in zip(*results, strict=True):
        error = math.hypot(ours.std() / math.sqrt(len(ours)), timm.std() / math.sqrt(len(timm)))
        assert abs(ours.mean() - timm.mean()) <= 4 * error


def test_erasing_a_colour_fills_a_rectangle_with_one_value_a_channel():
    images = _erased('rand', 1, 1.0, ours=True)
    for image in images[:20]:
        values = image[:, (image != 7).all(axis=0)]
        assert (values == values[:, :1]).all()
        assert values[0, 0] != values[1, 0]


def test_erasing_follows_everything_else():
    config = make_config(AUG__REPROB=1.0, AUG__REMODE='const', AUG__COLOR_JITTER=0.3)
    plain = make_config(AUG__REPROB=0.0, AUG__COLOR_JITTER=0.3)
    for index in range(10):
        erased = TrainTransform(config)(xray(), sample_rng(0, 0, index))
        kept = TrainTransform(plain)(xray(), sample_rng(0, 0, index))
        assert 0.01 < (erased == 0).float().mean() < 0.4
        assert torch.equal(erased[erased != 0], kept[erased != 0])
