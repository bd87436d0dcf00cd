"""Batches at once: the same draws and pixels as image by image, whatever else is in the batch."""

import numpy as np
import pytest
import torch
from pictures import xray
from PIL import Image
from test_transforms import make_config
from torch.utils.data import DataLoader

from data import Loaders, device_loader
from data.batch_draws import BatchRng, draw_crops, draw_masks
from data.batches import _Batch, batch_transform
from data.device_loader import DeviceLoader, on_device
from data.images import FULL_SIZE
from data.loader import EpochSampler
from data.masking import MASK_TYPES, MaskGenerator
from data.sampling import sample_rng
from data.transforms import (
    EvalTransform,
    HoldoutTransform,
    PretrainTransform,
    TrainTransform,
    draw_crop,
)

ROWS = np.array([0, 1, 5, 223413, 2**31, 2**45, 17, 16, 15, 300])
TIMES = np.array([0, 1, 2, 0, 9, 3, 0, 0, 1, 0])  # occurrences
WARPS = {
    'AUG__ROTATION': 20.0,
    'AUG__TRANSLATE': 0.1,
    'AUG__SCALE': [0.8, 1.3],
    'AUG__SHEAR': 10.0,
    'AUG__DISTORTION': 0.3,
}


def rngs(seed: int, epoch: int, rows=ROWS, times=TIMES) -> list[np.random.Generator]:
    return [sample_rng(seed, epoch, int(r), int(t)) for r, t in zip(rows, times, strict=True)]


# Draws ---------------------------------------------------------------------------------------


@pytest.mark.parametrize('seed', [0, 7, 2**32 + 1, 2**53 + 1, 2**63 - 1, 2**63])
@pytest.mark.parametrize('epoch', [0, 799])
def test_uniforms_equal_those_of_each_generator(seed, epoch):
    for count in (1, 3, 4, 5, 22, 64, 65, 300):
        wanted = [rng.random(count) for rng in rngs(seed, epoch)]
        assert np.array_equal(BatchRng(seed, epoch, ROWS, TIMES).random(count), wanted)


def test_draws_in_turn_equal_those_of_each_generator():
    batch, alone = BatchRng(3, 5, ROWS, TIMES), rngs(3, 5)
    some = np.array([1, 4, 8])
    for count in (22, 1, 36):
        assert np.array_equal(batch.random(count), [rng.random(count) for rng in alone])
    assert np.array_equal(batch.choose(2), [rng.integers(2) for rng in alone])
    assert not batch.choose(1).any()  # nothing is drawn for it
    for _ in range(30):
        assert np.array_equal(batch.random(7, some), [alone[i].random(7) for i in some])
        assert np.array_equal(batch.random(2), [rng.random(2) for rng in alone])
    assert batch.alone(4).random() == rngs(3, 5)[4].random()


def test_a_choice_of_two_equals_that_of_each_generator():
    rows = np.arange(400)
    chosen = BatchRng(0, 0, rows).choose(2)
    assert np.array_equal(chosen, [rng.integers(2) for rng in rngs(0, 0, rows, 0 * rows)])
    assert 150 < chosen.sum() < 250


@pytest.mark.parametrize('area', [(0.67, 1.0), (0.08, 1.0), (1.0, 1.0)])
def test_crops_equal_those_of_each_image(area):
    count = 600
    sides = np.random.RandomState(0).randint(1, 400, (count, 2))
    sides[::3] = 256
    sides[1::30, 0], sides[2::30, 1] = 7, 5  # wide and tall: no candidate fits
    uniforms = BatchRng(1, 2, range(count)).random(22)
    boxes = draw_crops(uniforms, *sides.T, area=area)
    wanted = [
        draw_crop(sample_rng(1, 2, i), *map(int, side), area=area) for i, side in enumerate(sides)
    ]
    assert np.array_equal(boxes, wanted)
    assert (boxes[:, :2] >= 0).all() and (boxes[:, :2] + boxes[:, 2:] <= sides).all()
    assert (boxes[1::30, 2] == 7).any() and len({tuple(box) for box in boxes}) > 300


@pytest.mark.parametrize('mask_type', MASK_TYPES)
@pytest.mark.parametrize(
    'sizes, ratio',
    [((192, 32, 4), 0.6), ((192, 8, 4), 0.6), ((224, 16, 16), 0.4), ((64, 32, 4), 0.1)]
    + [((192, 16, 16), 0.9), ((96, 32, 32), 0.75)],
)
def test_masks_equal_those_of_each_image(mask_type, sizes, ratio):
    generator = MaskGenerator(*sizes, mask_ratio=ratio, mask_type=mask_type)
    rows = np.arange(150)
    batch, alone = BatchRng(4, 9, rows), rngs(4, 9, rows, 0 * rows)
    batch.random(23)
    for rng in alone:
        rng.random(23)
    units = draw_masks(generator, batch)
    assert (units.sum(axis=(1, 2)) == generator.count).all()
    tokens = units.repeat(generator.scale, axis=1).repeat(generator.scale, axis=2)
    assert np.array_equal(tokens, [generator(rng) for rng in alone])
    assert np.array_equal(batch.random(3), [rng.random(3) for rng in alone])  # as far on, too


# Transforms ----------------------------------------------------------------------------------


def pictures(count: int) -> np.ndarray:  # uint8 [count, 90, 90]
    return np.stack([np.asarray(xray(90, 90, seed=i)) for i in range(count)])


def joined(samples: list) -> tuple[torch.Tensor, ...]:
    samples = [sample if isinstance(sample, tuple) else (sample,) for sample in samples]
    return tuple(torch.stack(items) for items in zip(*samples, strict=True))


def both_ways(
    transform, count: int = 40, mode: str = 'F', squeezed: bool = False
) -> tuple[tuple, tuple]:
    """What the twin gives for a batch, and the transform one by one (mode 'F': not rounded)."""
    images, rows = pictures(count), np.arange(100, 100 + count)
    times, twin = rows % 3, batch_transform(transform)
    sizes = np.full((count, 2), 90)
    if squeezed:
        sizes = np.random.RandomState(3).randint(60, 400, (count, 2))
    parameters = twin.draw(2, 6, rows, times, sizes=sizes, side=90)
    result = twin.apply(torch.from_numpy(twin.prepare(images)), parameters)
    result = result if isinstance(result, tuple) else (result,)
    images = images.astype(np.float32) if mode == 'F' else images
    alone = []
    for image, size, rng in zip(images, sizes.tolist(), rngs(2, 6, rows, times), strict=True):
        picture = Image.fromarray(image)
        picture.info[FULL_SIZE] = tuple(size)
        alone.append(transform(picture, rng))
    return result, joined(alone)


def assert_same(transform, tolerance: float = 0.02, **options) -> None:
    """Pixels within so many grey levels, all else equal."""
    (images, *rest), (wanted, *wanted_rest) = both_ways(transform, **options)
    normalize = getattr(transform, 'view', transform).normalize
    step = 10 if normalize.by_image else float(normalize.scale.min())  # deviations are above 10
    torch.testing.assert_close(images, wanted, rtol=0, atol=tolerance / step)
    assert images.is_contiguous() and len(images.unique()) > 1000
    for item, wanted_item in zip(rest, wanted_rest, strict=True):
        torch.testing.assert_close(item, wanted_item, rtol=1e-5, atol=0)


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('normalize', ['dataset', 'image'])
@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic', 'random'])
def test_pretraining_equals_that_image_by_image(channels, normalize, interpolation):
    keys = {'DATA__NORMALIZE': normalize, 'DATA__PRETRAIN_INTERPOLATION': interpolation}
    config = make_config(channels, **keys)
    assert_same(PretrainTransform(config, MaskGenerator(64, 16, 4)))


@pytest.mark.parametrize('crop, tta', [(True, 'none'), (False, 'none'), (True, 'crops')])
@pytest.mark.parametrize('interpolation', ['bilinear', 'random'])
def test_squeezed_pictures_equal_those_image_by_image(interpolation, crop, tta):
    keys = {'TEST__CROP': crop, 'EVAL__TTA': tta, 'DATA__INTERPOLATION': interpolation}
    config = make_config(**keys, DATA__PRETRAIN_INTERPOLATION=interpolation)
    masks = MaskGenerator(64, 16, 4)
    for transform in (PretrainTransform(config, masks), HoldoutTransform(config, masks)):
        assert_same(transform, squeezed=True)
    for transform in (TrainTransform(config), EvalTransform(config)):
        assert_same(transform, squeezed=True)


@pytest.mark.parametrize('mask_type', MASK_TYPES)
def test_filter_is_drawn_after_the_mask(mask_type):
    config = make_config(DATA__PRETRAIN_INTERPOLATION='random', AUG__CROP_AREA=[0.2, 0.9])
    assert_same(PretrainTransform(config, MaskGenerator(64, 16, 4, 0.6, mask_type)))


def test_8_bit_pictures_differ_by_their_rounding():
    transform = PretrainTransform(make_config(), MaskGenerator(64, 16, 4))
    assert_same(transform, 1.02, mode='L')


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('interpolation', ['bicubic', 'random'])
@pytest.mark.parametrize('mode, count', [('const', 1), ('rand', 4), ('pixel', 1), ('pixel', 3)])
def test_fine_tuning_equals_that_image_by_image(channels, interpolation, mode, count):
    keys = {'AUG__COLOR_JITTER': 0.4, 'AUG__REPROB': 0.5, 'AUG__REMODE': mode}
    keys |= {'AUG__RECOUNT': count, 'DATA__INTERPOLATION': interpolation, **WARPS}
    assert_same(TrainTransform(make_config(channels, **keys)))


@pytest.mark.parametrize('keys', [{}, {'AUG__COLOR_JITTER': 0.4}, {'AUG__REPROB': 1.0}, WARPS])
def test_fine_tuning_with_one_augmentation(keys):
    assert_same(TrainTransform(make_config(**keys, AUG__HFLIP=0.0)))


@pytest.mark.parametrize('crop', [True, False])
@pytest.mark.parametrize('tta', ['none', 'crops'])
@pytest.mark.parametrize('flip', [True, False])
@pytest.mark.parametrize('channels, normalize', [(1, 'dataset'), (3, 'image')])
def test_evaluation_equals_that_image_by_image(crop, tta, flip, channels, normalize):
    keys = {'TEST__CROP': crop, 'EVAL__TTA': tta, 'EVAL__TTA_FLIP': flip}
    config = make_config(channels, DATA__NORMALIZE=normalize, **keys)
    assert_same(EvalTransform(config), count=10)


@pytest.mark.parametrize('normalize', ['dataset', 'image'])
@pytest.mark.parametrize('crop', [True, False])
def test_held_out_images_equal_those_image_by_image(normalize, crop):
    config = make_config(3, DATA__NORMALIZE=normalize, TEST__CROP=crop)
    assert_same(HoldoutTransform(config, MaskGenerator(64, 16, 4, 0.6, 'block')))


@pytest.mark.parametrize('name', ['equalize', 'clahe', 'denoise'])
def test_contrast_is_changed_before_the_crop(name):
    config = make_config(DATA__PREPROCESS=name)
    assert_same(PretrainTransform(config, MaskGenerator(64, 16, 4)), 1.02, count=10, mode='L')
    assert_same(EvalTransform(config), 3.0, count=10, mode='L')  # bicubic: cut between the axes


def test_flat_images_are_divided_by_one_grey_level():
    transform = PretrainTransform(make_config(DATA__NORMALIZE='image'), MaskGenerator(64, 16, 4))
    twin, sides = batch_transform(transform), {'sizes': np.full((2, 2), 32), 'side': 32}
    images = torch.full((2, 32, 32), 90, dtype=torch.uint8)
    images[0, ::2] = 91
    normalised, _ = twin.apply(images, twin.draw(0, 0, [0, 1], **sides))
    assert normalised[1].abs().max() < 1e-3
    assert 0.3 < normalised[0].abs().max() < 1.1


def test_an_image_is_drawn_the_same_in_any_batch_and_order():
    keys = {'AUG__COLOR_JITTER': 0.4, 'AUG__REPROB': 0.5, 'DATA__INTERPOLATION': 'random', **WARPS}
    pretraining = PretrainTransform(make_config(), MaskGenerator(64, 16, 4, 0.6, 'block'))
    for transform in (TrainTransform(make_config(**keys)), pretraining):
        twin, images, rows = batch_transform(transform), pictures(24), np.arange(24)

        def made(order, twin=twin, images=images, rows=rows):
            sides = {'sizes': np.full((len(order), 2), 90), 'side': 90}
            batch = torch.from_numpy(images[order])
            result = twin.apply(batch, twin.draw(1, 1, rows[order], rows[order] % 2, **sides))
            return result if isinstance(result, tuple) else (result,)

        order = np.random.RandomState(0).permutation(24)
        whole = made(rows)
        parts = [made(order[:5]), made(order[5:6]), made(order[6:])]
        for number, items in enumerate(zip(*parts, strict=True)):
            torch.testing.assert_close(torch.cat(items), whole[number][order], rtol=0, atol=1e-5)


# Loaders -------------------------------------------------------------------------------------


class Numbers(torch.utils.data.Dataset):
    """Hands out what a store's data set does: a dict beside a tensor, for all keys at once."""

    def __len__(self) -> int:
        return 11

    def __getitems__(self, keys: list[tuple[int, int]]) -> tuple:
        index = torch.tensor([key[1] for key in keys])
        return index.float(), {'epoch': torch.tensor([key[0] for key in keys])}, [index]

    @staticmethod
    def finish(batch: tuple) -> tuple:
        numbers, parameters, index = batch
        return 100 * parameters['epoch'] + numbers, *index


def number_loader(workers: int = 0) -> DataLoader:
    sampler = EpochSampler(11, batch_size=2, shuffle=True, seed=0)
    return DataLoader(
        Numbers(), batch_sampler=sampler, num_workers=workers, collate_fn=lambda batch: batch
    )


def check_batches(device: torch.device) -> None:
    loaders = on_device(Loaders(train=number_loader()), device)
    loader = loaders.train
    assert loaders.valid is None and isinstance(loader.dataset, Numbers) and len(loader) == 5
    for epoch in (0, 3):
        loader.batch_sampler.set_epoch(epoch, first_batch=1)
        batches = list(loader)
        assert len(batches) == 4 and batches[0][0].device.type == device.type
        order = torch.tensor([key[1] for keys in number_loader_keys(epoch) for key in keys])
        assert torch.equal(torch.cat([index for _, index in batches]).cpu(), order)
        assert torch.equal(torch.cat([n for n, _ in batches]).cpu(), 100.0 * epoch + order)
    plain = DeviceLoader(number_loader(), device)
    assert next(iter(plain))[1]['epoch'].tolist() == [0, 0]


def number_loader_keys(epoch: int) -> list[list[tuple[int, int]]]:
    sampler = EpochSampler(11, batch_size=2, shuffle=True, seed=0)
    sampler.set_epoch(epoch, first_batch=1)
    return list(sampler)


def test_batches_are_finished_in_order():
    check_batches(torch.device('cpu'))


@pytest.mark.gpu
def test_batches_are_finished_in_order_on_a_gpu():
    check_batches(torch.device('cuda'))


def test_the_next_batch_is_under_way_when_one_is_handed_out():
    started = []

    def start(count: int):
        for i in range(count):
            started.append(i)
            yield i

    for count in (0, 1, 2, 5):
        started.clear()
        handed_out = 0
        for item in device_loader._one_ahead(start(count)):
            assert item == handed_out
            assert started == list(range(min(item + 2, count)))
            handed_out += 1
        assert handed_out == count


def test_every_tensor_of_a_batch_is_moved():
    batch = (torch.ones(2), {'a': torch.ones(1), 'b': [torch.ones(3)]})
    moved = device_loader._each(lambda item: 2 * item, batch)
    assert isinstance(moved, tuple) and moved[0].tolist() == [2, 2]
    assert moved[1]['a'].tolist() == [2] and moved[1]['b'][0].tolist() == [2, 2, 2]


@pytest.mark.parametrize('missing', ['_draw', 'apply'])
def test_a_twin_without_a_part_of_its_own_cannot_be_made(missing: str) -> None:
    parts = {'_draw': lambda *_: {}, 'apply': lambda *_: None}
    type('Whole', (_Batch,), dict(parts))(None)
    del parts[missing]
    with pytest.raises(TypeError, match=missing):
        type('Part', (_Batch,), parts)(None)
