"""Image operations: torchvision's and OpenCV's results, statistics, streams of random numbers."""

import math
import random
import sys
from functools import partial
from itertools import product

import cv2
import numpy as np
import pytest
import torch
from pictures import xray
from PIL import Image, ImageOps
from scipy import ndimage
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as F

from config import default_config
from data.loader import epoch_order, sample_rng
from data.masking import MaskGenerator
from data.transforms import (
    FILTERS,
    Box,
    EvalTransform,
    HoldoutTransform,
    PretrainTransform,
    TrainTransform,
    centre_crop,
    draw_crop,
    preprocess,
    resized_crop,
    statistics,
)

BILINEAR = FILTERS['bilinear'][0]


def make_config(channels: int = 1, **keys):
    config = default_config()
    config.merge_from_list(['DATA.IMG_SIZE', 64, 'MODEL.IN_CHANS', channels])
    config.merge_from_list(['AUG.COLOR_JITTER', 0.0, 'AUG.REPROB', 0.0])
    for key, value in keys.items():
        config.merge_from_list([key.replace('__', '.'), value])
    return config


# Grey levels ---------------------------------------------------------------------------------


def test_equalizing_equals_torchvisions_on_tensors():
    image = xray(320, 390)
    wanted = F.equalize(torch.from_numpy(np.array(image))[None])[0]
    assert np.array_equal(preprocess(image, 'equalize'), wanted)


def _clahe(pixels: np.ndarray) -> np.ndarray:  # sides that 8 divides
    """Zuiderveld 1994: equalised by tile with clipped histograms, bilinear between tile centres."""
    height, width = pixels.shape[0] // 8, pixels.shape[1] // 8
    tables = np.zeros((8, 8, 256))
    for i, j in np.ndindex(8, 8):
        tile = pixels[i * height : (i + 1) * height, j * width : (j + 1) * width]
        counts = np.bincount(tile.ravel(), minlength=256)
        limit = int(2.0 * tile.size / 256)
        excess = (counts - limit).clip(0).sum()
        counts = counts.clip(max=limit) + excess // 256
        if excess % 256:
            step = max(256 // (excess % 256), 1)
            counts[np.arange(0, 256, step)[: excess % 256]] += 1
        tables[i, j] = np.rint(counts.cumsum() * 255 / tile.size)
    rows = (np.arange(pixels.shape[0]) / height - 0.5).clip(0, 7)
    columns = (np.arange(pixels.shape[1]) / width - 0.5).clip(0, 7)
    result = np.zeros(pixels.shape)
    for i, j in np.ndindex(8, 8):
        near = np.outer((1 - abs(rows - i)).clip(0), (1 - abs(columns - j)).clip(0))
        result += near * tables[i, j][pixels]
    return result


def test_clahe_clips_the_histograms_of_8_x_8_tiles():
    image = xray(320, 400)
    got = np.asarray(preprocess(image, 'clahe'), float)
    np.testing.assert_allclose(got, _clahe(np.asarray(image)), atol=0.51)


def test_denoising_takes_the_median_of_3_x_3_pixels():
    for pixels in (np.asarray(xray()), np.asarray(xray(), np.float32) / np.float32(1.7)):
        got = np.asarray(preprocess(Image.fromarray(pixels), 'denoise'))
        assert got.dtype == pixels.dtype
        assert np.array_equal(got, ndimage.median_filter(pixels, 3, mode='nearest'))


@pytest.mark.parametrize('name', ['equalize', 'clahe'])
def test_a_16_bit_image_is_rounded_to_the_256_levels_of_a_histogram(name):
    levels = np.asarray(xray(), np.float32)
    offsets = np.random.RandomState(1).uniform(-0.49, 0.49, levels.shape).astype(np.float32)
    fine = Image.fromarray((levels + offsets).clip(0, 255))
    assert fine.mode == 'F'
    assert np.array_equal(preprocess(fine, name), preprocess(xray(), name))


@pytest.mark.parametrize('name', ['equalize', 'clahe', 'denoise'])
def test_every_transform_begins_with_the_grey_levels_of_the_whole_image(name):
    def first(sample) -> torch.Tensor:
        return sample[0] if isinstance(sample, tuple) else sample

    masks, rng = [MaskGenerator(64, 16, 4, 0.6)], partial(sample_rng, 0, 0, 1)
    kinds = (PretrainTransform, masks), (TrainTransform, []), (EvalTransform, [])
    for (kind, rest), tta in product((*kinds, (HoldoutTransform, masks)), ('none', 'crops')):
        plain = kind(make_config(EVAL__TTA=tta), *rest)
        got = kind(make_config(EVAL__TTA=tta, DATA__PREPROCESS=name), *rest)(xray(), rng())
        assert torch.equal(first(got), first(plain(preprocess(xray(), name), rng())))
        assert not torch.allclose(first(got), first(plain(xray(), rng())), atol=0.05)


@pytest.mark.parametrize('name', ['clahe', 'denoise'])
def test_opencv_works_on_the_calling_thread_alone(name):
    cv2.setNumThreads(2)
    preprocess(xray(), name)
    assert cv2.getNumThreads() == 1


def test_a_missing_opencv_is_named_where_it_is_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, 'cv2', None)
    for name in ('clahe', 'denoise'):
        with pytest.raises(ValueError, match=f"PREPROCESS '{name}'.*pip install opencv-python-hea"):
            preprocess(xray(), name)
    assert not np.array_equal(preprocess(xray(), 'equalize'), xray())
    image = xray()
    assert preprocess(image, 'none') is image
    with pytest.raises(ValueError, match="DATA.PREPROCESS must be.*got 'sharpen'"):
        preprocess(image, 'sharpen')


# Crops ---------------------------------------------------------------------------------------


@pytest.mark.parametrize('area', [(0.67, 1.0), (0.08, 1.0)])
@pytest.mark.parametrize('height, width', [(320, 390), (390, 320), (100, 1000), (1000, 100)])
def test_crop_is_distributed_as_torchvisions(area, height, width):
    torch.manual_seed(0)
    image = torch.zeros(1, height, width)
    theirs = np.array(
        [RandomResizedCrop.get_params(image, list(area), [3 / 4, 4 / 3]) for _ in range(3000)]
    )
    ours = np.array([draw_crop(sample_rng(0, 0, i), height, width, area=area) for i in range(3000)])
    for values in (theirs, ours):
        assert (values[:, 0] + values[:, 2] <= height).all()
        assert (values[:, 1] + values[:, 3] <= width).all()
    error = np.hypot(theirs.std(axis=0), ours.std(axis=0)) / math.sqrt(3000)
    assert (np.abs(theirs.mean(axis=0) - ours.mean(axis=0)) <= 4.5 * error + 1e-9).all()
    assert (np.abs(theirs.std(axis=0) - ours.std(axis=0)) <= 4.5 * error + 1e-9).all()


def test_crop_takes_the_first_candidate_that_fits():
    class Scripted:
        def random(self, size: int) -> np.ndarray:
            uniforms = np.zeros(size)
            uniforms[:6] = 1, 1, 0.5, 1, 0, 0  # too wide; 4:3; not looked at
            uniforms[-2:] = 0.99, 0.5
            return uniforms

    # Half of area 0.5 to 1 of 14,400 pixels: 10,800 = 120 wide x 90 high; top int(0.99 * 31).
    assert draw_crop(Scripted(), 120, 120, area=(0.5, 1.0)) == Box(30, 0, 90, 120)


def test_crop_falls_back_to_the_centre():
    # Far from square: no candidate of 2/3 of the area fits.
    assert draw_crop(sample_rng(0, 0, 0), 100, 1000, area=(0.67, 1)) == Box(0, 433, 100, 133)
    assert draw_crop(sample_rng(0, 0, 0), 1000, 100, area=(0.67, 1)) == Box(433, 0, 133, 100)
    assert draw_crop(sample_rng(0, 0, 0), 100, 110, area=(1.1, 1.2)) == Box(0, 0, 100, 110)


def test_crop_uses_up_the_same_draws_whatever_it_finds():
    states = set()
    for height, width in ((320, 390), (100, 1000)):
        rng = sample_rng(3, 1, 7)
        draw_crop(rng, height, width, area=(0.67, 1))
        states.add(rng.random())
    untouched = sample_rng(3, 1, 7)
    untouched.random(22)
    assert states == {untouched.random()}


@pytest.mark.parametrize('name', ['bilinear', 'bicubic', 'lanczos', 'hamming'])
def test_resized_crop_equals_torchvisions(name):
    image, rng = xray(320, 390), np.random.default_rng(0)
    for _ in range(10):
        box = draw_crop(rng, 320, 390, area=(0.08, 1))
        wanted = F.resized_crop(image, *box, [96, 96], FILTERS[name][0])
        assert np.array_equal(resized_crop(image, box, 96, FILTERS[name][0]), np.asarray(wanted))


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


@pytest.mark.parametrize('size, short', [(224, 256), (192, 219), (512, 585)])
@pytest.mark.parametrize('shape', [(320, 390), (390, 320), (300, 300)])
def test_centre_crop_equals_torchvisions(size, short, shape):
    image = xray(*shape)
    wanted = F.center_crop(F.resize(image, short, F.InterpolationMode.BICUBIC), size)
    assert np.array_equal(centre_crop(image, size, FILTERS['bicubic'][0]), np.asarray(wanted))


# Normalisation -------------------------------------------------------------------------------


def test_statistics_follow_the_channels():
    assert statistics(make_config(1)) == ((0.503,), (0.292,))
    assert statistics(make_config(3)) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert statistics(make_config(1, DATA__MEAN=[0.4], DATA__STD=[0.2])) == ((0.4,), (0.2,))


@pytest.mark.parametrize('channels', [1, 3])
def test_each_channel_has_its_own_statistics(channels):
    config = make_config(channels, TEST__CROP=False)
    image = Image.fromarray(np.full((50, 70), 100, np.uint8))
    got = EvalTransform(config)(image, sample_rng(0, 0, 0))
    mean, std = statistics(config)
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


@pytest.mark.parametrize('normalize', ['dataset', 'image'])
@pytest.mark.parametrize('channels', [1, 3])
def test_held_out_values_turn_back_into_grey_levels(normalize, channels):
    config = make_config(channels, DATA__NORMALIZE=normalize)
    transform = HoldoutTransform(config, MaskGenerator(64, 16, 4, 0.6))
    image, mask, scale, offset = transform(xray(), sample_rng(0, 0, 3))
    assert scale.shape == offset.shape == (channels,)
    levels = image * scale[:, None, None] + offset[:, None, None]
    wanted = centre_crop(xray(), 64, BILINEAR)
    for c in range(channels):
        np.testing.assert_allclose(levels[c], wanted, atol=1e-3)
    assert np.array_equal(mask, MaskGenerator(64, 16, 4, 0.6)(sample_rng(0, 0, 3)))


# Whole transforms ----------------------------------------------------------------------------


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
        np.testing.assert_allclose(image, F.normalize(wanted, [0.503], [0.292]), atol=1e-5)
        assert np.array_equal(mask, generator(rng))
        flips += flipped
    assert 18 <= flips <= 42


def test_finetuning_without_augmentation_draws_the_same_crop_and_flip():
    config = make_config(AUG__CROP_AREA=[0.67, 1.0], DATA__INTERPOLATION='bilinear')
    pretrain = PretrainTransform(config, MaskGenerator(64, 16, 4, 0.6))
    for index in range(10):
        image, _ = pretrain(xray(), sample_rng(5, 2, index))
        assert torch.equal(TrainTransform(config)(xray(), sample_rng(5, 2, index)), image)


@pytest.mark.parametrize('probability', [0.0, 1.0])
def test_flip_probability_is_kept(probability):
    config = make_config(AUG__HFLIP=probability, AUG__CROP_AREA=[1.0, 1.0], TEST__CROP=False)
    square = xray(64, 64)
    got = TrainTransform(config)(square, sample_rng(0, 0, 0))
    plain = EvalTransform(config)(square, sample_rng(0, 0, 0))
    assert torch.equal(got, plain.flip(-1) if probability else plain)


def test_random_interpolation_chooses_bilinear_or_bicubic_by_the_sample():
    results = {}
    for name in ('random', 'bilinear', 'bicubic'):
        transform = TrainTransform(make_config(DATA__INTERPOLATION=name))
        results[name] = [transform(xray(), sample_rng(0, 0, i)) for i in range(40)]
    bilinear, bicubic = (
        [torch.equal(a, b) for a, b in zip(results['random'], results[name], strict=True)]
        for name in ('bilinear', 'bicubic')
    )
    assert [a + b for a, b in zip(bilinear, bicubic, strict=True)] == [1] * 40
    assert 10 <= sum(bicubic) <= 30


def test_samples_do_not_depend_on_global_random_states():
    config = make_config(AUG__COLOR_JITTER=0.4, AUG__REPROB=1.0, DATA__INTERPOLATION='random')
    transforms = [TrainTransform(config), PretrainTransform(config, MaskGenerator(64, 16, 4, 0.6))]
    for transform in transforms:
        samples = []
        for seed in (0, 1):
            random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
            sample = transform(xray(), sample_rng(1, 2, 3))
            samples.append(sample if isinstance(sample, tuple) else (sample,))
            assert random.random() == random.Random(seed).random()
            assert np.random.random() == np.random.RandomState(seed).random()
            assert torch.equal(
                torch.rand(1), torch.rand(1, generator=torch.Generator().manual_seed(seed))
            )
        assert all(torch.equal(a, b) for a, b in zip(*samples, strict=True))


# Scored views --------------------------------------------------------------------------------


@pytest.mark.parametrize('flip', [False, True])
@pytest.mark.parametrize('keep_aspect', [False, True])
@pytest.mark.parametrize('shape', [(320, 390), (390, 320)])
def test_scored_views_equal_torchvisions_crops(shape, keep_aspect, flip):
    config = make_config(TEST__CROP=keep_aspect, EVAL__TTA='crops', EVAL__TTA_FLIP=flip)
    config.merge_from_list(['DATA.IMG_SIZE', 96, 'DATA.MEAN', [0.0], 'DATA.STD', [1.0]])
    side = 109 if keep_aspect else [109, 109]  # 256 / 224 x 96 = 109.7
    resized = F.resize(xray(*shape), side, F.InterpolationMode.BICUBIC)
    *corners, centre = (np.asarray(view, np.float32) for view in F.five_crop(resized, 96))
    wanted = [centre, *corners]
    wanted += [view[:, ::-1] for view in wanted] if flip else []
    got = EvalTransform(config)(xray(*shape), sample_rng(0, 0, 0))
    np.testing.assert_allclose(got[:, 0] * 255, wanted, atol=1e-3)


def test_the_first_view_that_keeps_the_aspect_is_the_one_without_others():
    views = EvalTransform(make_config(EVAL__TTA='crops'))(xray(), sample_rng(0, 0, 0))
    plain = EvalTransform(make_config())(xray(), sample_rng(0, 0, 0))
    assert views.shape == (5, *plain.shape)
    assert torch.equal(views[0], plain)
    assert not any(torch.equal(view, plain) for view in views[1:])


@pytest.mark.parametrize('keep_aspect', [False, True])
def test_mirror_image_alone_follows_the_plain_view(keep_aspect):
    plain = make_config(3, TEST__CROP=keep_aspect)
    mirrored = make_config(3, TEST__CROP=keep_aspect, EVAL__TTA_FLIP=True)
    image = EvalTransform(plain)(xray(), sample_rng(0, 0, 0))
    assert image.shape == (3, 64, 64)
    views = EvalTransform(mirrored)(xray(), sample_rng(0, 0, 0))
    assert torch.equal(views, torch.stack([image, image.flip(-1)]))


def test_each_view_is_normalised_by_itself():
    config = make_config(DATA__NORMALIZE='image', EVAL__TTA='crops')
    views = EvalTransform(config)(xray(), sample_rng(0, 0, 0))
    np.testing.assert_allclose(views.mean(dim=(1, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(views.std(dim=(1, 2, 3), correction=0), 1, atol=1e-5)


def test_held_out_reconstruction_sees_one_view():
    masks = MaskGenerator(64, 16, 4, 0.6)
    config = make_config(EVAL__TTA='crops', EVAL__TTA_FLIP=True)
    got = HoldoutTransform(config, masks)(xray(), sample_rng(0, 0, 3))
    wanted = HoldoutTransform(make_config(), masks)(xray(), sample_rng(0, 0, 3))
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


# Streams -------------------------------------------------------------------------------------


def test_streams_of_samples_and_orders_are_distinct():
    draws = {
        sample_rng(seed, epoch, index).random()
        for seed in range(5)
        for epoch in range(5)
        for index in range(40)
    }
    assert len(draws) == 1000
    assert abs(np.mean(list(draws)) - 0.5) < 4 / math.sqrt(12 * 1000)
    orders = {tuple(epoch_order(seed, epoch, 20)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25
    assert all(sorted(order) == list(range(20)) for order in orders)


def test_the_stream_of_a_sample_is_frozen():
    assert sample_rng(3, 4, 5).random(2).tolist() == [0.5191493916058771, 0.38280174378527]
