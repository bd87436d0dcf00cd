"""Images that are sent as whole grey levels, against images that are normalised by the workers."""

import numpy as np
import pytest
import torch
from PIL import Image
from xray_splits import LOGGER, make_config, samples_of, write_split

from config import selected_part
from data.build import build_loader
from data.data_contrastive import build_loader_contrastive
from data.loader import collate
from data.transforms import GreyImages, Normalize
from system.device import to_device

CPU = torch.device('cpu')
PLAIN = ['AUG.COLOR_JITTER', 0.0, 'AUG.REPROB', 0.0]
WEAK_VIEW = ['CONTRASTIVE.METHOD', 'byol', 'CONTRASTIVE.WEAK_VIEW', True]


def loaders_of(data_path, stage: str, *options):
    config = make_config(data_path, *options)
    if stage == 'contrastive':
        views = selected_part(config, 'CONTRASTIVE.METHOD').num_views(config)
        return build_loader_contrastive(config, LOGGER, views)
    return build_loader(config, LOGGER, is_pretrain=stage == 'simmim')


def normalised_by_the_worker(self, pixels, before=None):
    return torch.from_numpy(self(pixels, before))


def check_same(samples: list[tuple], others: list[tuple]) -> None:
    for values, wanted in zip(samples, others, strict=True):
        for value, same in zip(values, wanted, strict=True):
            assert value.is_contiguous() and value.dtype == same.dtype
            assert value.numpy().tobytes() == same.numpy().tobytes()


@pytest.mark.parametrize('channels, normalize', [(1, 'dataset'), (3, 'dataset'), (3, 'image')])
@pytest.mark.parametrize(
    'stage, options, splits',
    [
        ('simmim', [], ('train', 'holdout', 'reference')),
        ('finetune', PLAIN, ('train', 'valid', 'holdout')),
        ('finetune', [], ('train', 'valid')),
        ('contrastive', WEAK_VIEW, ('train', 'holdout')),
    ],
)
def test_samples_equal_those_normalised_by_the_workers_bit_for_bit(
    data_path, monkeypatch, stage, options, splits, channels, normalize
) -> None:
    options = [*options, 'MODEL.IN_CHANS', channels, 'DATA.NORMALIZE', normalize]
    loaders = loaders_of(data_path, stage, *options)
    # A resumed run begins in the middle of an epoch.
    drawn = {split: samples_of(getattr(loaders, split), 1, first_batch=1) for split in splits}
    sent = [each for name in splits for each in next(iter(getattr(loaders, name)))]
    grey = [each for each in sent if isinstance(each, GreyImages)]
    assert grey and all(each.levels.dtype == torch.uint8 for each in grey)
    monkeypatch.setattr(Normalize, 'sample', normalised_by_the_worker)
    plain = loaders_of(data_path, stage, *options)
    for split in splits:
        check_same(drawn[split], samples_of(getattr(plain, split), 1, first_batch=1))


def test_workers_send_a_twelfth_of_the_bytes_of_three_channels(data_path) -> None:
    options = ['MODEL.IN_CHANS', 3, 'DATA.NUM_WORKERS', 1]
    batch = next(iter(loaders_of(data_path, 'simmim', *options).train))
    images, _ = to_device(batch, CPU)
    assert images.shape == (4, 3, 64, 64) and images.nbytes == 12 * batch[0].levels.nbytes


@pytest.mark.parametrize('noise, bits_16', [(5.0, ()), (0.0, (0, 3))])
def test_images_with_fractions_of_grey_levels_are_normalised_by_the_workers(
    tmp_path, monkeypatch, noise, bits_16
) -> None:
    """Noise changes all images; images of 16 bits are in batches with images of 8."""
    write_split(tmp_path, 'train', 5)
    for file in (sorted(tmp_path.rglob('*.png'))[number] for number in bits_16):
        Image.fromarray(np.asarray(Image.open(file)).astype(np.uint16) * 250 + 7).save(file)
    options = ['AUG.NOISE', noise, 'DATA.BATCH_SIZE', 8]
    train = loaders_of(tmp_path, 'simmim', *options).train
    (batch,) = train
    assert isinstance(batch[0], torch.Tensor)
    drawn = samples_of(train, 0)
    monkeypatch.setattr(Normalize, 'sample', normalised_by_the_worker)
    check_same(drawn, samples_of(loaders_of(tmp_path, 'simmim', *options).train, 0))


@pytest.mark.gpu
@pytest.mark.parametrize('channels', [1, 3])
def test_a_gpu_computes_the_same_numbers(channels) -> None:
    rng = np.random.default_rng(0)
    normalize = Normalize(make_config('', 'MODEL.IN_CHANS', channels))
    pixels = [rng.integers(0, 256, (64, 64)).astype(np.float32) for _ in range(8)]
    sent = collate([normalize.sample(each) for each in pixels]).pin_memory()
    images = sent.to('cuda', non_blocking=True).cpu()
    wanted = np.stack([normalize(each) for each in pixels])
    assert np.array_equal(images.numpy(), wanted)
