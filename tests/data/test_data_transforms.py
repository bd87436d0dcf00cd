"""Image transforms: results of torchvision, OpenCV, timm and SciPy, draws, statistics."""

import math
import random

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from scipy import ndimage
from timm.data.random_erasing import RandomErasing
from tiny import config_with
from torchvision.transforms import RandAugment as TorchvisionRandAugment
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as F
from torchvision.transforms.v2 import functional as F2
from xray_splits import xray

from config import pixel_statistics
from data.augmentation import RANDAUGMENT, RandomWarp, TrainTransform, erase, jitter
from data.data_simmim import HoldoutTransform, PretrainTransform
from data.images.files import FULL_SIZE
from data.images.preprocess import PREPROCESS, Setup
from data.loader import sample_rng
from data.masking import MaskGenerator
from data.transforms import FILTERS, Box, EvalTransform, centre_crop, draw_crop, resized_crop

SETUP = Setup()
BILINEAR = FILTERS['bilinear'][0]
TORCH_BILINEAR = F.InterpolationMode.BILINEAR


def make_config(channels: int = 1, **keys):
    small = {'DATA__IMG_SIZE': 64, 'MODEL__IN_CHANS': channels}
    off = {'AUG__AUTO_AUGMENT': 'none', 'AUG__COLOR_JITTER': 0.0, 'AUG__REPROB': 0.0}
    return config_with(**small, **off | keys)


BOTH_WARPS = {'AUG__ROTATION': 20.0, 'AUG__DISTORTION': 0.3}


def blobs(size: int = 192) -> np.ndarray:  # [size, size] float32
    """Smooth spots that fade out before the border; no symmetry."""
    y, x = np.mgrid[:size, :size] / size
    spots = [(0.42, 0.45, 0.05, 160), (0.56, 0.4, 0.03, 90), (0.53, 0.58, 0.06, 140)]
    values = [v * np.exp(-((x - a) ** 2 + (y - b) ** 2) / 2 / s**2) for a, b, s, v in spots]
    return np.clip(sum(values), 0, 255).astype(np.float32)


def test_equalizing_is_torchvisions_or_opencvs():
    image = xray(320, 390)
    theirs = F.equalize(torch.from_numpy(np.array(image))[None])[0]
    opencvs = cv2.equalizeHist(np.asarray(image))
    assert np.array_equal(PREPROCESS['equalize'](image, SETUP), theirs)
    assert np.array_equal(PREPROCESS['equalize_cv'](image, SETUP), opencvs)
    assert not np.array_equal(theirs, opencvs)


def test_denoising_takes_the_median_of_3_x_3_pixels():
    for pixels in (np.asarray(xray()), np.asarray(xray(), np.float32) / np.float32(1.7)):
        got = np.asarray(PREPROCESS['denoise'](Image.fromarray(pixels), SETUP))
        assert got.dtype == pixels.dtype
        assert np.array_equal(got, ndimage.median_filter(pixels, 3, mode='nearest'))


@pytest.mark.parametrize('name', ['equalize', 'equalize_cv', 'clahe', 'non_local_means'])
def test_a_16_bit_image_is_rounded_to_the_256_levels_of_a_histogram(name):
    levels = np.asarray(xray(), np.float32)
    offsets = np.random.RandomState(1).uniform(-0.49, 0.49, levels.shape).astype(np.float32)
    fine = Image.fromarray((levels + offsets).clip(0, 255))
    assert fine.mode == 'F'
    assert np.array_equal(PREPROCESS[name](fine, SETUP), PREPROCESS[name](xray(), SETUP))


def test_crop_is_distributed_as_torchvisions():
    area, height, width = (0.08, 1.0), 320, 390
    torch.manual_seed(0)
    image = torch.zeros(1, height, width)
    theirs = np.array(
        [RandomResizedCrop.get_params(image, list(area), [3 / 4, 4 / 3]) for _ in range(2000)]
    )
    ours = np.array([draw_crop(sample_rng(0, 0, i), height, width, area=area) for i in range(2000)])
    for values in (theirs, ours):
        assert (values[:, 0] + values[:, 2] <= height).all()
        assert (values[:, 1] + values[:, 3] <= width).all()
    tolerance = 4.5 * np.hypot(theirs.std(axis=0), ours.std(axis=0)) / math.sqrt(2000) + 1e-9
    for statistic in (np.mean, np.std):
        assert (np.abs(statistic(theirs, axis=0) - statistic(ours, axis=0)) <= tolerance).all()


def test_crop_falls_back_to_the_centre():
    # Far from square: no candidate of 2/3 of the area fits.
    assert draw_crop(sample_rng(0, 0, 0), 100, 1000, area=(0.67, 1)) == Box(0, 433, 100, 133)
    assert draw_crop(sample_rng(0, 0, 0), 1000, 100, area=(0.67, 1)) == Box(433, 0, 133, 100)


def test_crop_of_a_16_bit_image_keeps_fractions_and_stays_in_range():
    steps = np.kron(np.random.RandomState(0).randint(0, 2, (8, 8)), np.ones((12, 12)))
    image = Image.fromarray((steps * 255).astype(np.float32))
    for name in ('bilinear', 'bicubic'):
        fine = resized_crop(image, Box(3, 5, 80, 70), 64, FILTERS[name][0])
        assert fine.min() == 0 and fine.max() == 255  # bicubic overshoots
        assert (fine % 1 != 0).any()
    coarse = resized_crop(image.convert('L'), Box(3, 5, 80, 70), 64, BILINEAR)
    fine = resized_crop(image, Box(3, 5, 80, 70), 64, BILINEAR)
    assert np.abs(fine - coarse).max() <= 1.01


def test_a_squeezed_image_is_cropped_as_before_the_squeeze():
    whole, rng = xray(320, 480), np.random.default_rng(0)
    smooth = Image.fromarray(ndimage.gaussian_filter(np.asarray(whole), 8))
    squeezed = smooth.resize((256, 256), FILTERS['bicubic'][0])
    squeezed.info[FULL_SIZE] = (320, 480)
    for _ in range(5):
        box = draw_crop(rng, 320, 480, area=(0.3, 1))
        wanted = resized_crop(smooth, box, 64, BILINEAR)
        got = resized_crop(squeezed, box, 64, BILINEAR)
        assert np.abs(got - wanted).mean() < 1


def test_a_box_in_a_squeezed_image_ends_between_its_pixels():
    """A ramp has, on average, the level in the middle of the box."""
    ramp = np.tile(np.arange(100, dtype=np.float32), (60, 1))
    box = Box(31, 47, 90, 101)  # of 180 x 230 pixels, stored as 60 x 100 and as 100 x 60
    middle = (47 + 101 / 2) * 100 / 230 - 0.5  # the first pixel has the level 0
    for pixels, size, turned in (
        (ramp, (180, 230), box),
        (ramp.T, (230, 180), Box(47, 31, 101, 90)),
    ):
        image = Image.fromarray(np.ascontiguousarray(pixels))
        image.info[FULL_SIZE] = size
        assert resized_crop(image, turned, 64, BILINEAR).mean() == pytest.approx(middle, abs=0.02)


@pytest.mark.parametrize('channels', [1, 3])
def test_each_channel_has_its_own_statistics(channels):
    config = make_config(channels, TEST__CROP=False)
    image = Image.fromarray(np.full((50, 70), 100, np.uint8))
    got = EvalTransform(config)(image, sample_rng(0, 0, 0))
    mean, std = pixel_statistics(config)
    assert got.shape == (channels, 64, 64)
    assert got.dtype == torch.float32
    for c in range(channels):
        np.testing.assert_allclose(got[c], (100 / 255 - mean[c]) / std[c], rtol=1e-5)


def test_normalising_by_the_image_gives_mean_0_and_deviation_1():
    config = make_config(3, DATA__NORMALIZE='image')
    got = EvalTransform(config)(xray(), sample_rng(0, 0, 0))
    np.testing.assert_allclose(got.mean(dim=(1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(got.std(dim=(1, 2), correction=0), 1, atol=1e-5)
    flat = Image.fromarray(np.full((90, 90), 77, np.uint8))
    assert (EvalTransform(config)(flat, sample_rng(0, 0, 0)) == 0).all()


def dark() -> Image.Image:
    """An X-ray with levels up to 85, so that jitter clips nothing."""
    return Image.fromarray(np.asarray(xray()) // 3)


def test_normalising_by_the_image_does_not_undo_jitter():
    keys = {'DATA__NORMALIZE': 'image', 'AUG__JITTER_CONTRAST': False}
    plain, jittered = (TrainTransform(make_config(AUG__COLOR_JITTER=s, **keys)) for s in (0, 0.4))
    for index in range(5):
        original = plain(dark(), sample_rng(0, 0, index)).to('cpu')
        changed = jittered(dark(), sample_rng(0, 0, index))
        brightness = changed.std(correction=0).item()  # the original has the deviation 1
        assert 0.6 <= brightness <= 1.4 and abs(brightness - 1) > 1e-3
        shift = changed - brightness * original  # by the mean, in deviations
        np.testing.assert_allclose(shift, shift.mean(), atol=1e-4)
        assert shift.mean().sign() == np.sign(brightness - 1)


@pytest.mark.parametrize('normalize, channels', [('dataset', 3), ('image', 1)])
def test_held_out_values_turn_back_into_grey_levels(normalize, channels):
    config = make_config(channels, DATA__NORMALIZE=normalize)
    transform = HoldoutTransform(config, MaskGenerator(64, 16, 4, 0.6))
    image, mask, scale, offset = transform(xray(), sample_rng(0, 0, 3))
    assert scale.shape == offset.shape == (channels,)
    levels = image.to('cpu') * scale[:, None, None] + offset[:, None, None]
    wanted = centre_crop(xray(), 64, BILINEAR)
    for c in range(channels):
        np.testing.assert_allclose(levels[c], wanted, atol=1e-3)
    assert np.array_equal(mask, MaskGenerator(64, 16, 4, 0.6)(sample_rng(0, 0, 3)))


def test_only_scored_images_have_the_preprocessing_of_scores():
    """Held-out images of pre-training show what it trains with."""
    options = {'DATA__PREPROCESS': ['equalize'], 'EVAL__PREPROCESS': ['denoise']}
    config = make_config(**options, DATA__INTERPOLATION='bilinear')
    holdout = HoldoutTransform(config, MaskGenerator(64, 16, 4, 0.6))
    image, _, scale, offset = holdout(xray(), sample_rng(0, 0, 3))
    levels = image.to('cpu') * scale[:, None, None] + offset[:, None, None]
    scored = EvalTransform(config).pixels(xray())
    for got, step in ((levels[0], 'equalize'), (scored, 'denoise')):
        wanted = centre_crop(PREPROCESS[step](xray(), SETUP), 64, BILINEAR)
        np.testing.assert_allclose(got, wanted, atol=1e-3)


def test_pretraining_draws_crop_then_flip_then_mask():
    generator = MaskGenerator(64, 16, 4, 0.6)
    transform = PretrainTransform(make_config(), generator)
    flips = 0
    for index in range(60):
        image, mask = transform(xray(), sample_rng(5, 2, index))
        rng = sample_rng(5, 2, index)
        box = draw_crop(rng, 90, 110, area=(0.67, 1))
        flipped = rng.random() < 0.5
        wanted = F.resized_crop(xray(), *box, [64, 64], BILINEAR)
        wanted = F.to_tensor(ImageOps.mirror(wanted) if flipped else wanted)
        np.testing.assert_allclose(
            image.to('cpu'), F.normalize(wanted, [0.503], [0.292]), atol=1e-5
        )
        assert np.array_equal(mask, generator(rng))
        flips += flipped
    assert 18 <= flips <= 42


def test_noise_in_pretraining_has_its_deviation_and_changes_neither_crop_nor_mask():
    generator = MaskGenerator(64, 16, 4, 0.6)
    plain, noisy = (
        PretrainTransform(make_config(AUG__NOISE=noise), generator) for noise in (0.0, 5.0)
    )
    added = []
    for index in range(20):
        clean, mask = plain(xray(), sample_rng(5, 2, index))
        changed, same_mask = noisy(xray(), sample_rng(5, 2, index))
        assert np.array_equal(mask, same_mask)
        added.append((changed - clean.to('cpu')).numpy() * 0.292 * 255)
    assert np.std(added) == pytest.approx(5, rel=0.01) and abs(np.mean(added)) < 0.05


@pytest.mark.parametrize('shape', [(320, 390), (390, 320)])
def test_the_scored_view_equals_torchvisions_centre_crop(shape):
    config = make_config(TEST__CROP=True)
    config.merge_from_list(['DATA.IMG_SIZE', 96, 'DATA.MEAN', [0.0], 'DATA.STD', [1.0]])
    resized = F.resize(xray(*shape), 109, F.InterpolationMode.BICUBIC)  # 256 / 224 x 96 = 109.7
    wanted = np.asarray(F.center_crop(resized, 96), np.float32)
    got = EvalTransform(config)(xray(*shape), sample_rng(0, 0, 0))
    np.testing.assert_allclose(got[0] * 255, wanted, atol=1e-3)


@pytest.mark.parametrize('shape', [(320, 390), (390, 320)])
@pytest.mark.parametrize('crop', [True, False])
def test_the_view_of_a_scored_image_is_what_it_shows(crop, shape):
    """Masks that depend on the image use the view."""
    transform = EvalTransform(make_config(TEST__CROP=crop), 'bilinear')
    image = Image.fromarray(ndimage.gaussian_filter(np.asarray(xray(*shape)), 8))
    got = transform.view(image).cut(image)
    assert np.abs(got - transform.square(image)).max() < 3  # the sides of the crop are rounded
    assert np.ptp(got) > 50


def test_a_warp_equals_torchvisions_rotation_then_perspective():
    config = make_config(**BOTH_WARPS)
    for index in range(5):
        got = RandomWarp(config)(blobs(), sample_rng(0, 0, index))
        u = sample_rng(0, 0, index).random(9)
        image = F2.rotate(torch.from_numpy(blobs())[None], 20 - 40 * u[0], TORCH_BILINEAR)
        a, b, c, d, e, f, g, h = u[1:] * 0.3 * 96
        square = [[0, 0], [192, 0], [192, 192], [0, 192]]
        moved = [[a, b], [192 - c, d], [192 - e, 192 - f], [g, 192 - h]]
        wanted = F2.perspective(image, square, moved, interpolation=TORCH_BILINEAR)
        np.testing.assert_allclose(got, wanted[0], atol=2.5)


def test_finetuning_draws_crop_flip_filter_warp_jitter_erasing():
    config = make_config(
        AUG__COLOR_JITTER=0.3, AUG__REPROB=0.5, DATA__INTERPOLATION='random', **BOTH_WARPS
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
        wanted = transform.normalize(pixels)
        erase(wanted, rng, probability=0.5, mode='pixel', max_count=1)
        assert np.array_equal(transform(xray(), sample_rng(1, 2, index)), wanted)


@pytest.mark.parametrize('name', RANDAUGMENT)
def test_each_operation_of_randaugment_equals_torchvisions(name):
    class OneOperation(TorchvisionRandAugment):
        def _augmentation_space(self, num_bins, size):
            strengths, is_signed = super()._augmentation_space(num_bins, size)[name]
            return {name: (strengths * sign if is_signed else strengths, False)}

    image = xray().resize((64, 64))
    for level in (0, 9, 30):
        for sign in (-1, 1):
            theirs = OneOperation(1, level, interpolation=TORCH_BILINEAR)
            got = np.asarray(RANDAUGMENT[name](image, sign * level / 30), np.float32)
            # Its strengths are float32: slopes differ in the eighth digit.
            np.testing.assert_allclose(got, theirs(image), atol=int(name[:5] == 'Shear'))


def test_randaugment_applies_as_many_operations_as_asked_after_the_warp():
    config = make_config(AUG__RANDAUGMENT=[3, 9], AUG__ROTATION=20.0)
    plain = TrainTransform(make_config(AUG__ROTATION=20.0))
    changed = 0
    for index in range(20):
        got = TrainTransform(config)(xray(), sample_rng(1, 2, index)).to('cpu')
        rng = sample_rng(1, 2, index)
        pixels = plain.warp(plain.cut(plain.draw(xray(), rng), rng), rng)
        image = Image.fromarray(np.rint(pixels).astype(np.uint8))
        for _ in range(3):
            operation, sign = [*RANDAUGMENT][rng.integers(13)], rng.choice((-1, 1))
            image = RANDAUGMENT[operation](image, sign * 0.3)
        assert np.array_equal(got, plain.normalize(np.asarray(image, np.float32)))
        changed += not np.array_equal(image, np.rint(pixels))
    assert changed > 15


def test_jitter_equals_torchvisions_on_tensors():
    brightness, contrast = 1.3, 0.7
    pixels = np.asarray(xray(), np.float32)
    tensor = F.adjust_brightness(torch.from_numpy(pixels)[None] / 255, brightness)
    wanted = F.adjust_contrast(tensor, contrast)[0] * 255
    got = jitter(pixels, brightness=brightness, contrast=contrast)
    np.testing.assert_allclose(got, wanted, atol=1e-3)


@pytest.mark.parametrize('mode', ['const', 'rand', 'pixel'])
def test_erasing_is_distributed_as_timms(mode):
    random.seed(0), torch.manual_seed(0)
    timms, results = RandomErasing(0.5, mode=mode, max_count=3, device='cpu'), []
    for is_ours in (True, False):
        images = np.full((500, 2, 40, 48), 7, np.float32)
        for i, image in enumerate(images):
            if is_ours:
                erase(image, sample_rng(0, 0, i), probability=0.5, mode=mode, max_count=3)
            else:
                timms(torch.from_numpy(image))
        gone = (images != 7).all(axis=1)  # [500, 40, 48]
        touched = gone.any(axis=(1, 2))
        height, width = gone[touched].any(axis=2).sum(axis=1), gone[touched].any(axis=1).sum(axis=1)
        results.append([gone[touched].mean(axis=(1, 2)), height, width, touched.astype(float)])
        values = images.transpose(0, 2, 3, 1)[gone]
        if mode == 'const':
            assert (values == 0).all()
        else:
            assert abs(values.mean()) < 0.15 and abs(values.std() - 1) < 0.15
    for ours, timm in zip(*results, strict=True):
        error = math.hypot(ours.std() / math.sqrt(len(ours)), timm.std() / math.sqrt(len(timm)))
        assert abs(ours.mean() - timm.mean()) <= 4 * error
