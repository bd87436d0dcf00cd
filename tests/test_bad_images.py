"""DATA.BAD_IMAGE skip: other images take the places of bad ones, and a list says which are bad."""

import csv
import errno
import logging
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mistakes import linked, results_in
from packed_data import flip_bit, packed
from pictures import xray
from PIL import Image
from test_bad_data import replace
from test_resume import assert_same_weights, final_state
from tiny import arguments, run_folder, run_main, tiny_config, torchrun

from config import default_config
from data import build_loader, images
from data.data_simmim import mask_generator
from data.images import load_image
from data.loader import (
    HEADER,
    BadImages,
    SquareDataset,
    build_dataset,
    epoch_order,
    in_place_of,
    make_loader,
    sample_rng,
)
from data.packing import Settings
from data.records import read_csv, select_views, split_holdout
from data.store import open_store
from data.transforms import PretrainTransform, TrainTransform
from engine import distributed

LOGGER = logging.getLogger('test')
SEED = 3
EPOCHS = 0, 1
BAD_ROWS = 1, 5, 6, 20
OPTIONS = (
    ['DATA.IMG_SIZE', 32, 'DATA.MASK_PATCH_SIZE', 8, 'MODEL.IN_CHANS', 1]
    + ['AUG.AUTO_AUGMENT', 'none', 'AUG.REPROB', 0.5, 'DATA.NORMALIZE', 'image']
)  # fmt: skip


def config_of(*options: object):
    config = default_config()
    config.merge_from_list([*OPTIONS, *options])
    return config


TRANSFORMS = {
    'simmim': lambda: PretrainTransform(config_of(), mask_generator(config_of())),
    'finetune': lambda: TrainTransform(config_of()),
}


def spoil(data: Path) -> list[str]:
    """Make the images of BAD_ROWS bad, each in a way of its own; their files."""
    records = read_csv(data, 'train.csv', check_files=False)
    paths = [data / re.sub('^[^/]*/', '', records.file[row]) for row in BAD_ROWS]
    replace(paths[0], paths[0].read_bytes()[:400])
    replace(paths[1], b'')
    paths[2].unlink()
    paths[3].unlink()
    Image.new('L', (48, 48)).save(paths[3])
    return sorted(str(path.relative_to(data)) for path in paths)


@pytest.fixture(scope='module')
def files(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    data = linked(phantom, tmp_path_factory.mktemp('bad') / 'CheXpert-phantom')
    return data, spoil(data)


@pytest.fixture(scope='module')
def store(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The same images are bad in a store of squares."""
    folder = packed(phantom, tmp_path_factory.mktemp('bad') / 'store', Settings(size=40))
    opened = open_store(folder)
    bad = sorted(read_csv(phantom, 'train.csv').file[list(BAD_ROWS)])
    for position in opened.position(bad):
        shard, offset = opened.pictures[['shard', 'offset']][position].item()
        flip_bit(folder / opened.about['shards'][shard], offset + 77)
    return folder, bad


@pytest.fixture(params=['files', 'store'])
def spoilt(request) -> tuple[Path, list[str]]:
    return request.getfixturevalue(request.param)


def dataset_of(data: Path, folder: Path, stage: str = 'finetune', limit: int = 10):
    records = read_csv(data, 'train.csv')
    targets = np.stack([records.row, records.row % 2], axis=1).astype(np.float32)
    options = {'targets': targets} if stage == 'finetune' else {}
    bad = BadImages(folder, limit, LOGGER)
    return build_dataset(records, TRANSFORMS[stage](), seed=SEED, bad_images=bad, **options)


def loader_of(dataset, batch_size: int = 4, workers: int = 0):
    options = {'num_workers': workers, 'pin_memory': False}
    return make_loader(dataset, batch_size=batch_size, shuffle=True, **options)


def samples_of(loader, *epochs: int, first_batch: int = 0) -> list[tuple[torch.Tensor, ...]]:
    """The samples of these epochs one by one, in order."""
    finish = getattr(loader.dataset, 'finish', lambda batch: batch)
    samples = []
    for epoch in epochs:
        loader.batch_sampler.set_epoch(epoch, first_batch)
        for batch in loader:
            samples += list(zip(*finish(batch), strict=True))
    return samples


def assert_same(got, wanted) -> None:
    assert len(got) == len(wanted) > 0
    for a, b in zip(got, wanted, strict=True):
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True)


def listed(folder: Path) -> list[list[str]]:
    with (folder / 'bad_images.csv').open(newline='') as file:
        header, *lines = csv.reader(file)
    assert tuple(header) == HEADER == ('file', 'row', 'reason')
    return sorted(lines)


# Which image takes the place


def test_order_is_of_seed_epoch_and_row_alone():
    key = {'seed': 5, 'epoch': 2, 'row': 7, 'length': 30}
    order = list(in_place_of(4, **key))
    assert order[0] == 4
    assert sorted(order) == list(range(30))
    assert order == list(in_place_of(4, **key))
    assert list(in_place_of(9, **key))[0] == 9
    assert [i for i in in_place_of(9, **key)][1:] == [i for i in order_without(9, order, 4)]
    for name in ('seed', 'epoch', 'row'):
        assert order != list(in_place_of(4, **key | {name: key[name] + 1}))
    assert order[1:] != [i for i in epoch_order(5, 2, 30).tolist() if i != 4]


def order_without(index: int, order: list[int], first: int) -> list[int]:
    """The order that another place would have: the same, with the first image where it belongs."""
    bits = np.random.Philox(key=[5, 2], counter=[0, 7, 4, 0])
    every = np.random.Generator(bits).permutation(30).tolist()
    assert [i for i in every if i != first] == order[1:]
    return [i for i in every if i != index]


def test_another_image_comes_with_the_generator_of_the_place_and_its_own_targets(files, tmp_path):
    data, bad = files
    dataset = dataset_of(data, tmp_path)
    records = dataset.records
    for row in BAD_ROWS:
        for epoch in EPOCHS:
            order = in_place_of(row, seed=SEED, epoch=epoch, row=row, length=len(records))
            place = next(i for i in order if records.file[i] not in bad)
            image, targets, index = dataset[epoch, row]
            assert index == place != row
            assert targets.tolist() == [place, place % 2]
            rng = sample_rng(SEED, epoch, row)
            wanted = TRANSFORMS['finetune']()(load_image(data / records.file[place]), rng)
            torch.testing.assert_close(image, wanted, rtol=0, atol=0)


def test_a_batch_of_squares_is_as_if_asked_for_one_by_one(store, tmp_path):
    data, bad = store
    dataset = dataset_of(data, tmp_path)
    assert isinstance(dataset, SquareDataset)
    rows = [0, *BAD_ROWS, 2]
    (images, _), targets, index = dataset.__getitems__([(1, row) for row in rows])
    for row, pixels, target, place in zip(rows, images, targets, index.tolist(), strict=True):
        order = in_place_of(row, seed=SEED, epoch=1, row=row, length=len(dataset))
        assert place == next(i for i in order if dataset.records.file[i] not in bad)
        assert target.tolist() == [place, place % 2]
        wanted = dataset.store.gather(dataset.positions[[place]])[0]
        assert np.array_equal(pixels.reshape(40, 40), wanted)
    good, _ = dataset_of(data, tmp_path).__getitems__([(1, 0), (1, 2)])[0]
    assert torch.equal(good, images[[0, -1]])


def test_what_is_drawn_is_of_the_place(spoilt, tmp_path):
    """Masks, say, are the same as where nothing is bad: only the pixels are others."""
    dataset = dataset_of(spoilt[0], tmp_path, 'simmim')
    loader = loader_of(dataset)
    loader.batch_sampler.set_epoch(1)
    rows = [index for keys in loader.batch_sampler for _, index in keys]
    assert set(BAD_ROWS) <= set(rows)
    for row, (_, mask) in zip(rows, samples_of(loader, 1), strict=True):
        _, wanted = TRANSFORMS['simmim']()(xray(48, 48), sample_rng(SEED, 1, row))
        assert torch.equal(mask, wanted)


@pytest.mark.parametrize('stage', ['simmim', 'finetune'])
def test_workers_and_batch_size_change_no_sample(stage, spoilt, tmp_path):
    data, bad = spoilt
    wanted = samples_of(loader_of(dataset_of(data, tmp_path / '0', stage)), *EPOCHS)
    for workers, batch_size in ((0, 10), (1, 4), (2, 10)):
        folder = tmp_path / f'{workers}_{batch_size}'
        loader = loader_of(dataset_of(data, folder, stage), batch_size, workers)
        count = len(loader.dataset) // 20 * 20  # what batches of 4 and of 10 have in common
        for epoch in EPOCHS:
            got = samples_of(loader, epoch)
            start = epoch * (len(wanted) // 2)
            assert_same(got[:count], wanted[start : start + count])
        assert [line[0] for line in listed(folder)] == bad


def test_ranks_change_no_sample(spoilt, tmp_path, monkeypatch):
    data, _ = spoilt
    wanted = samples_of(loader_of(dataset_of(data, tmp_path / 'one')), *EPOCHS)
    ranks = []
    for rank in (0, 1):
        monkeypatch.setattr(distributed, 'rank', lambda rank=rank: rank)
        monkeypatch.setattr(distributed, 'world_size', lambda: 2)
        loader = loader_of(dataset_of(data, tmp_path / 'two'), batch_size=2)
        ranks.append(samples_of(loader, *EPOCHS))
    got = []
    for first in range(0, len(ranks[0]), 2):
        got += ranks[0][first : first + 2] + ranks[1][first : first + 2]
    assert_same(got, wanted)
    assert listed(tmp_path / 'two') == listed(tmp_path / 'one')


def test_a_restart_inside_an_epoch_changes_no_sample(spoilt, tmp_path):
    data, _ = spoilt
    wanted = samples_of(loader_of(dataset_of(data, tmp_path)), *EPOCHS)
    restarted = loader_of(dataset_of(data, tmp_path), workers=1)
    assert_same(samples_of(restarted, 1, first_batch=3), wanted[len(wanted) // 2 + 12 :])


def test_a_sampler_that_repeats_images_has_their_places_taken(files, tmp_path):
    dataset = dataset_of(files[0], tmp_path)
    first, second = dataset[0, BAD_ROWS[0], 0], dataset[0, BAD_ROWS[0], 1]
    assert first[2] == second[2] != BAD_ROWS[0]
    assert not torch.equal(first[0], second[0]), 'drawn anew'


@pytest.mark.parametrize('kind', ['dcm', 'png'])
def test_a_folder_of_images(kind, tmp_path):
    for number in range(6):
        write(tmp_path / 'data' / f'{number}.{kind}', np.asarray(xray(40, 50, seed=number)))
    write(tmp_path / 'data' / f'3.{kind}', np.zeros((40, 50), np.uint8))
    config = config_of('DATA.DATASET', 'folder', 'DATA.DATA_PATH', str(tmp_path / 'data'))
    config.merge_from_list(
        ['DATA.BAD_IMAGE', 'skip', 'OUTPUT', str(tmp_path), 'MODEL.NAME', 'm', 'TAG', 't']
        + ['DATA.HOLDOUT_FRACTION', 0.0, 'DATA.BATCH_SIZE', 6, 'DATA.NUM_WORKERS', 0]
    )
    loader = build_loader(config, LOGGER, is_pretrain=True).train
    assert len(samples_of(loader, 0)) == 6
    (line,) = listed(tmp_path / 'm' / 't')
    assert line[:2] == [f'3.{kind}', '']
    assert line[2] == f'image {tmp_path / "data"}/3.{kind} cannot be used: all pixels are 0'


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    if path.suffix == '.png':
        Image.fromarray(pixels).save(path)
        return
    pytest.importorskip('pydicom', minversion='3.0')
    from dicom_files import write as write_dicom

    write_dicom(path, pixels)


# The list, and its limit


def test_each_is_listed_once_with_row_and_reason(files, tmp_path):
    data, bad = files
    for _ in range(2):
        samples_of(loader_of(dataset_of(data, tmp_path)), *EPOCHS)
    lines = listed(tmp_path)
    assert [line[0] for line in lines] == bad
    assert sorted(int(line[1]) for line in lines) == [row + 2 for row in BAD_ROWS]
    reasons = {int(row) - 2: reason for _, row, reason in lines}
    for row, part in zip(
        BAD_ROWS, ('truncated', 'cannot identify', 'there is no image', 'all pixels are 0'),
        strict=True,
    ):  # fmt: skip
        assert part in reasons[row]


def test_more_than_the_limit_stop_the_run_and_a_restart_counts_on(files, tmp_path):
    data, bad = files
    assert samples_of(loader_of(dataset_of(data, tmp_path / 'four', limit=4)), 0)
    message = r'train\.csv, row \d+ .*: {} different images cannot be used, more than '
    message += r'DATA\.BAD_IMAGE_LIMIT {}: see .*bad_images\.csv'
    for workers in (0, 1):
        loader = loader_of(dataset_of(data, tmp_path / f'{workers}', limit=3), workers=workers)
        with pytest.raises(ValueError, match=message.format(4, 3)):
            samples_of(loader, 0)
    with pytest.raises(ValueError, match=message.format(4, 2)):
        samples_of(loader_of(dataset_of(data, tmp_path / 'four', limit=2)), 0)
    with pytest.raises(ValueError, match=message.format(1, 0)):
        samples_of(loader_of(dataset_of(data, tmp_path / 'none', limit=0)), 0)


def test_no_image_can_be_used(files, tmp_path):
    data, _ = files
    records = read_csv(data, 'train.csv').select(np.array(BAD_ROWS))
    bad = BadImages(tmp_path, 10, LOGGER)
    dataset = build_dataset(records, TRANSFORMS['simmim'](), seed=SEED, bad_images=bad)
    with pytest.raises(ValueError, match='none of 4 images can be used'):
        dataset[0, 0]


def test_what_may_be_read_another_time_is_not_bad(files, tmp_path, monkeypatch):
    """A drive that fails says nothing of the picture."""

    def fails(path):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    data, _ = files
    dataset = dataset_of(data, tmp_path)
    monkeypatch.setattr(images, '_read', fails)
    with pytest.raises(ValueError, match=r'train\.csv, row 2 .*Input/output error'):
        dataset[0, 0]
    assert not (tmp_path / 'bad_images.csv').exists()


def test_a_drive_that_fails_under_a_store_stops_the_run(store, tmp_path, monkeypatch):
    def fails(*arguments):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    data, _ = store
    dataset = dataset_of(data, tmp_path)
    monkeypatch.setattr(os, 'preadv', fails)
    with pytest.raises(ValueError, match=r'Stale file handle'):
        dataset.__getitems__([(0, 0), (0, 1)])
    assert not (tmp_path / 'bad_images.csv').exists()


# Runs


def skipping(folder: Path, stage: str, **data: object) -> Path:
    data = {'BAD_IMAGE': 'skip', 'TRAIN_IMAGES': 0, 'HOLDOUT_FRACTION': 0.0} | data
    more = {'TRAIN': {'SAVE_EVERY_STEPS': 3}, 'EVAL': {'SELECT_ON': 'valid'}}
    return tiny_config(folder / 'run.yaml', stage, DATA=data, **more)


@pytest.mark.slow
@pytest.mark.parametrize('stage', ['simmim', 'finetune'])
def test_a_run_goes_on_as_if_it_had_never_stopped(stage, files, tmp_path):
    data, bad = files
    cfg = skipping(tmp_path, stage)
    assert run_main(stage, arguments(cfg, data, tmp_path / 'whole')) == 0
    whole = run_folder(tmp_path / 'whole', stage)
    assert [line[0] for line in listed(whole)] == bad
    said = f'4 different images could not be used so far.*{re.escape(str(whole))}/bad_images.csv'
    assert len(re.findall(said, (whole / 'log_rank0.txt').read_text())) == 2, 'once an epoch'
    stop = whole / 'ckpt_epoch_0_step_3.pth'
    folder = run_folder(tmp_path / 'again', stage)
    folder.mkdir(parents=True)
    shutil.copy(whole / 'bad_images.csv', folder)
    opts = ('--resume', str(stop), '--opts', 'DATA.NUM_WORKERS', '1', 'DATA.BAD_IMAGE_LIMIT', '4')
    assert run_main(stage, arguments(cfg, data, tmp_path / 'again', *opts)) == 0
    assert_same_weights(final_state(folder), final_state(whole))
    assert listed(folder) == listed(whole)


@pytest.mark.slow
def test_two_ranks_are_one(files, tmp_path):
    data, bad = files
    cfg = skipping(tmp_path, 'simmim')
    argv = arguments(cfg, data, tmp_path / 'two', '--batch-size', '2')
    done = torchrun('simmim', argv, processes=2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line[0] for line in listed(run_folder(tmp_path / 'two', 'simmim'))] == bad


def test_a_run_ends_at_the_limit(files, tmp_path, refused):
    cfg = skipping(tmp_path, 'simmim', BAD_IMAGE_LIMIT=3, NUM_WORKERS=1)
    parts = ('4 different images cannot be used, more than DATA.BAD_IMAGE_LIMIT 3', 'bad_images')
    refused('simmim', arguments(cfg, files[0], tmp_path / 'out'), files[0] / 'train.csv', *parts)


@pytest.mark.parametrize('split', ['valid', 'holdout'])
def test_scored_images_are_never_skipped(split, phantom, tmp_path, refused):
    data = linked(phantom, tmp_path / 'data')
    cfg = skipping(tmp_path, 'finetune', HOLDOUT_FRACTION=0.2 if split == 'holdout' else 0.0)
    records = read_csv(data, 'valid.csv')
    if split == 'holdout':
        records = split_holdout(read_csv(data, 'train.csv'), 0.2)[1]
    records = select_views(records, 'frontal')
    replace(data / records.file[2], b'')
    place = f'{data / records.csv}, row {records.row[2] + 2} (the header is row 1): image '
    parts = (place, 'scripts/check_data.py', 'a score over fewer images is another score')
    refused('finetune', arguments(cfg, data, tmp_path / 'out'), *parts)
    assert not [path for path in results_in(tmp_path / 'out') if path.suffix == '.json']
