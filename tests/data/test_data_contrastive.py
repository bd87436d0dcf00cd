"""Views for contrastive pre-training: what is drawn, from what, and of which images."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import gaussian_blur
from xray_splits import LOGGER, make_config, samples_of

from data.build import build_loader
from data.data_contrastive import ViewsTransform, build_loader_contrastive, whole_batches
from data.images.files import load_image
from data.loader import sample_rng
from data.transforms import EvalTransform
from models.contrastive import METHODS
from system import distributed

SIZE = 32
PER_VIEW = 27  # uniforms


def config_of(data_path, *options):
    return make_config(data_path, 'DATA.IMG_SIZE', SIZE, *options)


def views_of(config):
    return METHODS[config.CONTRASTIVE.METHOD].num_views(config)


def views_transform(config):
    return ViewsTransform(config, views_of(config))


def loaders_of(data_path, *options):
    config = config_of(data_path, *options)
    return build_loader_contrastive(config, LOGGER, views_of(config))


def box_by_hand(uniforms: np.ndarray, height: int, width: int, low: float, high: float) -> tuple:
    """Left, top, right, bottom of the first of ten candidates that fits."""
    for share, tilt in uniforms[:20].reshape(10, 2):
        area = (low + share * (high - low)) * height * width
        ratio = np.exp(np.log(3 / 4) + tilt * (np.log(4 / 3) - np.log(3 / 4)))
        w, h = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if w <= width and h <= height:
            top, left = int(uniforms[20] * (height - h + 1)), int(uniforms[21] * (width - w + 1))
            return left, top, left + w, top + h
    raise AssertionError('choose another image: none of the candidates fits')


def blurred(pixels: np.ndarray, sigma: float) -> np.ndarray:
    """Torchvision's Gaussian blur up to 3 sigma, with edges mirrored."""
    reach, (height, width) = int(3 * sigma + 0.5), pixels.shape
    padded = torch.from_numpy(np.pad(pixels, reach, mode='symmetric'))[None]
    whole = gaussian_blur(padded, 2 * reach + 1, sigma)[0].numpy()
    return whole[reach : reach + height, reach : reach + width]


def view_by_hand(
    image: Image.Image, uniforms: np.ndarray, size: int = SIZE, area: tuple = (0.3, 1.0)
) -> np.ndarray:
    """Flip 0.5, jitter 0.4, blur 0.5; normalised by the mean and deviation of grey X-rays."""
    box = box_by_hand(uniforms, image.height, image.width, *area)
    flip, brightness, contrast, blur, strength = uniforms[22:]
    pixels = image.crop(box).resize((size, size), Image.Resampling.BILINEAR)
    pixels = np.asarray(pixels, np.float64)
    if flip < 0.5:
        pixels = np.fliplr(pixels)
    pixels = np.clip(pixels * (0.6 + 0.8 * brightness), 0, 255)
    pixels = pixels.mean() + (pixels - pixels.mean()) * (0.6 + 0.8 * contrast)
    pixels = np.clip(pixels, 0, 255)
    if blur < 0.5:
        pixels = blurred(pixels, (0.1 + 1.9 * strength) * size / 224)
    return (pixels / 255 - 0.503) / 0.292


def noise(seed: int, height: int = 150, width: int = 120) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 10, width // 10))
    return Image.fromarray(pixels.astype(np.uint8)).resize((width, height))


@pytest.mark.parametrize('given, area', [([], (0.3, 1.0)), ([0.5, 0.7], (0.5, 0.7))])
def test_views_are_those_drawn_by_hand(data_path, given, area) -> None:
    """27 uniforms each; at 224 px blurs reach up to 6 pixels far."""
    size, kinds = 224, set()
    config = config_of(data_path, 'DATA.IMG_SIZE', size, 'AUG.CROP_AREA', given)
    transform = views_transform(config)
    for row in range(8):
        views = transform(noise(row), sample_rng(3, 5, row))
        uniforms = sample_rng(3, 5, row).random(2 * PER_VIEW).reshape(2, PER_VIEW)
        for view, own in zip(views, uniforms, strict=True):
            assert view.dtype == torch.float32
            want = view_by_hand(noise(row), own, size, area)
            np.testing.assert_allclose(view[0].numpy(), want, atol=2e-5)
            kinds.add((own[22] < 0.5, own[25] < 0.5))
        assert not torch.allclose(*views, atol=0.1)
    assert len(kinds) == 4, 'flipped or not, blurred or not'


@pytest.mark.parametrize('local_size, size', [(20, 20), (0, SIZE)])
def test_small_crops_follow_the_views_for_swav_alone(data_path, local_size, size) -> None:
    small = ['CONTRASTIVE.LOCAL_CROPS', 3, 'CONTRASTIVE.LOCAL_SIZE', local_size]
    views = {}
    for method in ('swav', 'byol'):
        config = config_of(data_path, 'CONTRASTIVE.METHOD', method, *small)
        views[method] = views_transform(config)(noise(0), sample_rng(3, 5, 0))
    uniforms = sample_rng(3, 5, 0).random(5 * PER_VIEW).reshape(5, PER_VIEW)
    assert [view.shape[-1] for view in views['swav']] == [SIZE, SIZE, size, size, size]
    for view, own in zip(views['swav'][2:], uniforms[2:], strict=True):
        want = view_by_hand(noise(0), own, size, (0.05, 0.14))
        np.testing.assert_allclose(view[0].numpy(), want, atol=2e-5)
    for view, same in zip(views['byol'], views['swav'][:2], strict=True):
        assert torch.equal(view, same)


def test_a_weak_second_view_is_only_cropped_and_flipped(data_path) -> None:
    options = ['AUG.ROTATION', 10.0, 'CONTRASTIVE.METHOD', 'byol', 'CONTRASTIVE.WEAK_VIEW']
    both, weak = (views_transform(config_of(data_path, *options, each)) for each in (False, True))
    draws = sample_rng(3, 5, 0)
    draws.random(PER_VIEW + 9)  # the first view and its warp
    uniforms = draws.random(PER_VIEW)
    box = box_by_hand(uniforms, 150, 120, 0.3, 1.0)
    pixels = noise(0).crop(box).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    pixels = np.fliplr(pixels) if uniforms[22] < 0.5 else np.asarray(pixels)
    strong, second = (view.to('cpu') for view in weak(noise(0), sample_rng(3, 5, 0)))
    np.testing.assert_allclose(second[0].numpy(), (pixels / 255 - 0.503) / 0.292, atol=2e-5)
    others = both(noise(0), sample_rng(3, 5, 0))
    assert torch.equal(strong, others[0]) and not torch.allclose(second, others[1], atol=0.1)


def test_the_first_view_can_be_the_whole_image_and_only_blurred(data_path) -> None:
    options = ['AUG.HFLIP', 0.0, 'AUG.COLOR_JITTER', 0.0, 'CONTRASTIVE.BLUR', 1.0]
    options += ['CONTRASTIVE.METHOD', 'byol', 'CONTRASTIVE.WEAK_VIEW', True]
    plain, whole = (
        views_transform(config_of(data_path, *options, 'CONTRASTIVE.FIRST_CROP_AREA', area))
        for area in ([], [1.0, 1.0])
    )
    first, second = (view.to('cpu') for view in whole(noise(0), sample_rng(3, 5, 0)))
    pixels = noise(0).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    strength = sample_rng(3, 5, 0).random(PER_VIEW)[26]
    want = blurred(np.asarray(pixels, np.float64), (0.1 + 1.9 * strength) * SIZE / 224)
    np.testing.assert_allclose(first[0].numpy(), (want / 255 - 0.503) / 0.292, atol=2e-5)
    others = [view.to('cpu') for view in plain(noise(0), sample_rng(3, 5, 0))]
    assert torch.equal(second, others[1]) and not torch.allclose(first, others[0], atol=0.1)


def test_images_are_those_of_pre_training(data_path) -> None:
    config = config_of(data_path, 'DATA.TRAIN_IMAGES', 20)
    masked = build_loader(config, LOGGER, is_pretrain=True)
    views = build_loader_contrastive(config, LOGGER, views_of(config))
    for name in ('train', 'holdout'):
        masked_rows, rows = (getattr(each, name).dataset.records.row for each in (masked, views))
        assert rows.tolist() == masked_rows.tolist()
    assert len(views.train) == 20 // 4 and views.reference is None and views.valid is None


@pytest.mark.parametrize('seed', [0, 7])
def test_held_out_views_are_fixed_whatever_the_seed(data_path, seed) -> None:
    config = config_of(data_path, 'SEED', seed)
    loader = loaders_of(data_path, 'SEED', seed).holdout
    records, plain, views = loader.dataset.records, EvalTransform(config), views_transform(config)
    plain.filter = Image.Resampling.BILINEAR  # as in pre-training
    for epoch in (0, 3):
        for index, sample in enumerate(samples_of(loader, epoch)):
            image, rng = load_image(records.root / records.file[index]), None
            assert torch.equal(sample[0], plain(image, rng))
            want = views(image, sample_rng(0, 0, int(records.row[index])))
            assert all(map(torch.equal, sample[1:], want))


@pytest.mark.parametrize('count, processes, kept', [(7, 1, 4), (3, 1, 3), (7, 2, 6), (2, 3, 0)])
def test_all_processes_score_the_same_batches(data_path, monkeypatch, count, processes, kept):
    """Whole batches of 4 on each process; where these are too many, one smaller batch each."""
    records = loaders_of(data_path).holdout.dataset.records.select(np.arange(count))
    monkeypatch.setattr(distributed, 'world_size', lambda: processes)
    (part,) = whole_batches({'': records}, config_of(data_path)).values()
    want = np.arange(kept) * count // max(kept, 1)
    assert part.row.tolist() == records.row[want].tolist()
    parts = {'a': records.select(np.arange(1)), 'b': records.select(np.arange(1, count))}
    parts = whole_batches(parts, config_of(data_path)).values()
    assert sum((each.row.tolist() for each in parts), []) == part.row.tolist()
