"""Batches: the same samples whatever the workers, ranks and restarts; splits, targets, errors."""

import csv
import logging
import pickle
import re
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import distributed
from config import default_config
from data import Loaders, build_loader
from data.chexpert import read_csv
from data.labels import LABELS
from data.loader import XrayDataset, make_loader
from data.masking import MaskGenerator
from data.sampling import sample_rng
from data.transforms import PretrainTransform

LOGGER = logging.getLogger('test_loader')
COLUMNS = ('Path', 'Sex', 'Age', 'Frontal/Lateral', 'AP/PA', *LABELS)
CYCLE = ('1.0', '0.0', '-1.0', '')


def cells_of(number: int, cycle: tuple[str, ...] = CYCLE) -> list[str]:
    """The label cells of an image; Fracture is blank throughout."""
    cells = [cycle[(3 * number // 2 + k) % 4] for k in range(14)]
    cells[LABELS.index('Fracture')] = ''
    return cells


def write_split(root: Path, split: str, num_patients: int, cycle: tuple[str, ...] = CYCLE) -> None:
    """A CSV of two images a patient, frontal and lateral, and the images, all different."""
    with open(root / f'{split}.csv', 'w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for number in range(2 * num_patients):
            patient, view = number // 2, ('frontal', 'lateral')[number % 2]
            path = f'{split}/patient{patient:05d}/study1/view{number % 2 + 1}_{view}.png'
            projection = 'AP' if view == 'frontal' else ''
            writer.writerow(
                [f'Set/{path}', 'Female', 50, view.title(), projection] + cells_of(number, cycle)
            )
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            noise = np.random.RandomState(number).randint(0, 256, (36 + number % 5, 40))
            Image.fromarray(noise.astype(np.uint8)).save(root / path)


@pytest.fixture(scope='module')
def data_path(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp('xrays')
    write_split(root, 'train', 20)
    write_split(root, 'valid', 5)
    return root


def make_config(data_path: Path, *options):
    config = default_config()
    config.merge_from_list(
        ['DATA.DATA_PATH', str(data_path), 'DATA.DATASET', 'chexpert', 'DATA.BATCH_SIZE', 4]
        + ['DATA.IMG_SIZE', 64, 'DATA.MASK_PATCH_SIZE', 16, 'DATA.NUM_WORKERS', 0]
        + ['DATA.HOLDOUT_FRACTION', 0.2, 'DATA.VIEWS', 'all', 'MODEL.SWIN.IN_CHANS', 1]
        + ['DATA.UNCERTAIN', 'ignore', 'MODEL.NUM_CLASSES', 14, 'AUG.AUTO_AUGMENT', 'none']
    )
    config.merge_from_list(list(options))
    config.freeze()
    return config


def samples_of(loader, *epochs: int, first_batch: int = 0) -> list[tuple[torch.Tensor, ...]]:
    """The samples of these epochs one by one, in order."""
    samples = []
    for epoch in epochs:
        loader.batch_sampler.set_epoch(epoch, first_batch)
        for batch in loader:
            samples += list(zip(*batch, strict=True))
    return samples


def assert_same(got, wanted) -> None:
    assert len(got) == len(wanted) > 0
    for a, b in zip(got, wanted, strict=True):
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True)


def on_rank(monkeypatch, rank: int, world_size: int) -> None:
    monkeypatch.setattr(distributed, 'rank', lambda: rank)
    monkeypatch.setattr(distributed, 'world_size', lambda: world_size)


# Samples do not depend on who loads them -----------------------------------------------------


@pytest.fixture(params=[True, False], ids=['pretrain', 'finetune'])
def is_pretrain(request) -> bool:
    return request.param


def train_loader(data_path: Path, is_pretrain: bool, *options):
    augment = ['AUG.COLOR_JITTER', 0.4, 'AUG.REPROB', 0.5, 'DATA.INTERPOLATION', 'random']
    return build_loader(make_config(data_path, *augment, *options), LOGGER, is_pretrain).train


def test_number_of_workers_changes_no_sample(data_path, is_pretrain):
    wanted = samples_of(train_loader(data_path, is_pretrain), 0, 1)
    got = samples_of(train_loader(data_path, is_pretrain, 'DATA.NUM_WORKERS', 2), 0, 1)
    assert_same(got, wanted)


def test_number_of_ranks_changes_no_sample(data_path, is_pretrain, monkeypatch):
    wanted = samples_of(train_loader(data_path, is_pretrain), 0, 1)
    ranks = []
    for rank in (0, 1):
        on_rank(monkeypatch, rank, 2)
        loader = train_loader(data_path, is_pretrain, 'DATA.BATCH_SIZE', 2)
        ranks.append(samples_of(loader, 0, 1))
    got = []
    for first in range(0, len(ranks[0]), 2):
        got += ranks[0][first : first + 2] + ranks[1][first : first + 2]
    assert_same(got, wanted)


def test_a_restart_inside_an_epoch_changes_no_sample(data_path, is_pretrain):
    wanted = samples_of(train_loader(data_path, is_pretrain), 0, 1)
    per_epoch = len(wanted) // 2
    restarted = train_loader(data_path, is_pretrain, 'DATA.NUM_WORKERS', 1)
    got = samples_of(restarted, 1, first_batch=3)
    assert_same(got, wanted[per_epoch + 3 * 4 :])


def test_workers_that_stay_follow_a_broken_off_epoch(data_path):
    loader = train_loader(data_path, True, 'DATA.NUM_WORKERS', 2)
    loader.batch_sampler.set_epoch(0)
    next(iter(loader))
    wanted = samples_of(train_loader(data_path, True), 1)
    assert_same(samples_of(loader, 1), wanted)


def test_the_position_in_a_subset_changes_no_sample(data_path):
    transform = PretrainTransform(make_config(data_path), MaskGenerator(64, 16, 4, 0.6))
    records = read_csv(data_path, 'train.csv')
    whole = XrayDataset(records, transform, seed=3)
    part = XrayDataset(records.select(np.array([5, 9, 30])), transform, seed=3)
    for position, row in enumerate((5, 9, 30)):
        assert_same([part[2, position]], [whole[2, row]])


@pytest.mark.parametrize('what', ['seed', 'epoch', 'image'])
def test_another_seed_epoch_or_image_is_drawn_otherwise(data_path, what):
    transform = PretrainTransform(make_config(data_path), MaskGenerator(64, 16, 4, 0.6))
    records = read_csv(data_path, 'train.csv')
    first = XrayDataset(records, transform, seed=0)[0, 0]
    seed, epoch, image = (int(what == name) for name in ('seed', 'epoch', 'image'))
    other = XrayDataset(records, transform, seed=seed)[epoch, image]
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[1], other[1])


def test_loading_neither_reads_nor_moves_global_random_states(data_path, is_pretrain):
    loaded = []
    for seed in (0, 1):
        torch.manual_seed(seed), np.random.seed(seed)
        before = torch.get_rng_state(), np.random.get_state()[1].copy()
        loader = train_loader(data_path, is_pretrain, 'DATA.NUM_WORKERS', seed)
        loaded.append(samples_of(loader, 0))
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.array_equal(np.random.get_state()[1], before[1])
    assert_same(*loaded)


# Pre-training --------------------------------------------------------------------------------


def test_pretraining_batches(data_path):
    loaders = build_loader(make_config(data_path), LOGGER, is_pretrain=True)
    images, masks = next(iter(loaders.train))
    assert images.shape == (4, 1, 64, 64) and images.dtype == torch.float32
    assert masks.shape == (4, 16, 16) and masks.dtype == torch.int64
    assert (masks.sum(dim=(1, 2)) == 10 * 16).all()  # ceil(16 * 0.6) units of 4 x 4 tokens
    assert len(loaders.train) == 32 // 4
    assert loaders.valid is None and loaders.test is None


def test_held_out_patients_are_not_trained_on(data_path):
    loaders = build_loader(make_config(data_path), LOGGER, is_pretrain=True)
    train, holdout = (set(loader.dataset.records.patient) for loader in loaders[:2])
    assert len(train) == 16 and len(holdout) == 4
    assert not train & holdout
    finetune = build_loader(make_config(data_path), LOGGER, is_pretrain=False)
    assert set(finetune.holdout.dataset.records.patient) == holdout


@pytest.mark.parametrize('seed', [0, 7])
def test_held_out_masks_are_fixed_whatever_the_seed(data_path, seed):
    config = make_config(data_path, 'SEED', seed, 'DATA.MASK_TYPE', 'block')
    loaders = build_loader(config, LOGGER, is_pretrain=True)
    rows = loaders.holdout.dataset.records.row.tolist()
    own, reference = MaskGenerator(64, 16, 4, 0.6, 'block'), MaskGenerator(64, 32, 4, 0.6)
    for loader, generator in ((loaders.holdout, own), (loaders.reference, reference)):
        samples = samples_of(loader, seed)
        for row, (_, mask, _, _) in zip(rows, samples, strict=True):
            assert np.array_equal(mask, generator(sample_rng(0, 0, row)))
    for sample, same in zip(*(samples_of(loader, 0) for loader in loaders[1:3]), strict=True):
        assert torch.equal(sample[0], same[0])


@pytest.mark.parametrize(
    'size, patch, there', [(64, 4, True), (64, 32, True), (32, 4, False), (48, 4, False)]
)
def test_reference_masks_exist_where_they_fit(data_path, size, patch, there):
    sizes = ['DATA.IMG_SIZE', size, 'DATA.MASK_PATCH_SIZE', size // 2, 'MODEL.TYPE', 'vit']
    more = ['MODEL.VIT.PATCH_SIZE', patch, 'MODEL.VIT.IN_CHANS', 1]
    config = make_config(data_path, *sizes, *more)
    loaders = build_loader(config, LOGGER, is_pretrain=True)
    assert (loaders.reference is not None) == there
    assert loaders.holdout is not None


@pytest.mark.parametrize('count, rows', [(0, 8), (3, 3), (100, 8)])
def test_held_out_images_are_limited_and_evenly_spread(data_path, count, rows):
    every = build_loader(make_config(data_path, 'EVAL.HOLDOUT_IMAGES', 0), LOGGER, True)
    every = every.holdout.dataset.records.row.tolist()
    config = make_config(data_path, 'EVAL.HOLDOUT_IMAGES', count)
    loaders = build_loader(config, LOGGER, is_pretrain=True)
    for loader in (loaders.holdout, loaders.reference):
        got = loader.dataset.records.row.tolist()
        assert len(got) == rows
        assert got == ([every[0], every[2], every[5]] if count == 3 else every)


def test_no_hold_out_is_no_loader(data_path):
    config = make_config(data_path, 'DATA.HOLDOUT_FRACTION', 0.0, 'DATA.VIEWS', 'frontal')
    for is_pretrain in (True, False):
        loaders = build_loader(config, LOGGER, is_pretrain)
        assert loaders.holdout is None and loaders.reference is None
        assert set(loaders.train.dataset.records.view) == {'frontal'}
        assert len(loaders.train.dataset) == 20


def test_a_folder_of_images_is_split_and_loaded(tmp_path):
    for number in range(10):
        (tmp_path / f'{number % 3}').mkdir(exist_ok=True)
        pixels = np.full((50, 60), 20 * number, np.uint8)
        pixels[0, 0] += 1  # a picture of one level is no picture
        Image.fromarray(pixels).save(tmp_path / f'{number % 3}' / f'{number}.png')
    config = make_config(tmp_path, 'DATA.DATASET', 'folder')
    loaders = build_loader(config, LOGGER, is_pretrain=True)
    assert len(loaders.train.dataset) == 8 and len(loaders.holdout.dataset) == 2
    levels = set()
    for image, _, scale, offset in samples_of(loaders.holdout, 0):
        levels.add(round(float(image.mean() * scale + offset), 2))
    files = loaders.holdout.dataset.records.file
    assert levels == {20 * int(Path(file).stem) for file in files}


# Fine-tuning ---------------------------------------------------------------------------------


def test_finetuning_batches_carry_targets_and_positions(data_path):
    loaders = build_loader(make_config(data_path), LOGGER, is_pretrain=False)
    for images, targets, index in loaders.valid:
        assert images.shape[1:] == (1, 64, 64)
        assert targets.dtype == torch.float32 and index.dtype == torch.int64
        for target, i in zip(targets, index, strict=True):
            meaning = {'1.0': 1, '0.0': 0, '-1.0': np.nan, '': 0}
            wanted = [meaning[cell] for cell in cells_of(int(i))]
            np.testing.assert_array_equal(target, wanted)


@pytest.mark.parametrize('policy, value', [('ones', 1.0), ('zeros', 0.0), ('ignore', np.nan)])
def test_policies_are_for_training_alone(data_path, policy, value):
    config = make_config(data_path, 'DATA.UNCERTAIN', policy)
    loaders = build_loader(config, LOGGER, is_pretrain=False)
    for name in ('train', 'holdout', 'valid'):
        dataset = getattr(loaders, name).dataset
        uncertain = dataset.targets[dataset.records.labels == -1]
        np.testing.assert_array_equal(uncertain, value if name == 'train' else np.nan)
        assert len(uncertain) > 0


def test_views_are_chosen_for_training_and_scoring_apart(data_path):
    config = make_config(data_path, 'DATA.VIEWS', 'frontal', 'EVAL.VIEWS', 'all')
    loaders = build_loader(config, LOGGER, is_pretrain=False)
    assert set(loaders.train.dataset.records.view) == {'frontal'}
    for loader in (loaders.holdout, loaders.valid):
        assert set(loader.dataset.records.view) == {'frontal', 'lateral'}


@pytest.mark.parametrize('is_pretrain', [True, False])
def test_subsets_are_taken_after_the_hold_out(data_path, is_pretrain):
    whole = build_loader(make_config(data_path), LOGGER, is_pretrain)
    part = build_loader(make_config(data_path, 'DATA.TRAIN_FRACTION', 0.5), LOGGER, is_pretrain)
    held_out = whole.holdout.dataset.records.row.tolist()
    assert part.holdout.dataset.records.row.tolist() == held_out
    assert len(part.train.dataset) == 16
    assert set(part.train.dataset.records.row) < set(whole.train.dataset.records.row)


def test_the_test_split_is_loaded_where_there_is_one(tmp_path):
    for split, patients in (('train', 6), ('valid', 2), ('test', 3)):
        write_split(tmp_path, split, patients)
    loaders = build_loader(make_config(tmp_path), LOGGER, is_pretrain=False)
    assert len(loaders.test.dataset) == 6
    assert loaders.test.dataset.records.csv == 'test.csv'


def test_evaluation_needs_no_training_data(tmp_path):
    write_split(tmp_path, 'valid', 2)
    loaders = build_loader(make_config(tmp_path, 'EVAL_MODE', True), LOGGER, is_pretrain=False)
    assert loaders.train is None and loaders.holdout is None
    assert len(loaders.valid.dataset) == 4
    with pytest.raises(ValueError, match=r'train\.csv'):
        build_loader(make_config(tmp_path), LOGGER, is_pretrain=False)


def test_evaluation_uses_the_hold_out_where_it_is(data_path):
    loaders = build_loader(make_config(data_path, 'EVAL_MODE', True), LOGGER, is_pretrain=False)
    assert loaders.train is None
    assert len(loaders.holdout.dataset) == 8


def test_counts_and_one_class_labels_are_logged(data_path, caplog):
    with caplog.at_level(logging.INFO):
        build_loader(make_config(data_path, 'DATA.VIEWS', 'frontal'), LOGGER, is_pretrain=False)
    text = caplog.text
    assert 'train: 16 images of 16 patients (16 frontal)' in text
    assert 'valid: 5 images of 5 patients (5 frontal); uncertain and left out: No Finding 1' in text
    assert 'train: without both classes, nothing to learn: Fracture' in text
    assert re.search('valid: without both classes, not scored: .*Fracture', text)


def test_a_label_that_the_policy_leaves_with_one_class_is_refused(tmp_path):
    write_split(tmp_path, 'train', 4, cycle=('1.0', '-1.0', '1.0', '-1.0'))
    config = make_config(tmp_path, 'DATA.UNCERTAIN', 'ones', 'DATA.HOLDOUT_FRACTION', 0.0)
    with pytest.raises(ValueError, match='No Finding: .* change DATA.UNCERTAIN'):
        build_loader(config, LOGGER, is_pretrain=False)


# Loaders and errors --------------------------------------------------------------------------


def test_absent_loaders_are_none():
    assert set(Loaders()) == {None}


@pytest.mark.parametrize('cuda', [True, False])
@pytest.mark.parametrize('pin', [True, False])
def test_memory_is_pinned_where_asked_for_and_there_is_cuda(monkeypatch, cuda, pin):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: cuda)
    FakeDataset = namedtuple('FakeDataset', 'seed')
    dataset = FakeDataset(0)
    loader = make_loader(dataset, batch_size=1, shuffle=False, num_workers=0, pin_memory=pin)
    assert loader.pin_memory == (cuda and pin)


# torch waits 5 s for a worker that failed.
@pytest.mark.parametrize('workers', [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_missing_image_names_csv_row_and_path(tmp_path, workers):
    write_split(tmp_path, 'train', 3)
    missing = tmp_path / 'train/patient00001/study1/view2_lateral.png'
    missing.unlink()
    config = make_config(tmp_path, 'DATA.NUM_WORKERS', workers, 'DATA.HOLDOUT_FRACTION', 0.0)
    config.defrost()
    config.DATA.BATCH_SIZE = 6
    loader = build_loader(config, LOGGER, is_pretrain=True).train
    # Header, two rows of patient 0, one of patient 1: row 5 of the file.
    message = f'{tmp_path / "train.csv"}, row 5 (the header is row 1): there is no image {missing}'
    with pytest.raises(ValueError, match=re.escape(message)):
        next(iter(loader))


def test_a_spawned_worker_has_the_files_names_and_rows_and_no_other_text(data_path, tmp_path):
    records = read_csv(data_path, 'train.csv').select(np.array([5, 9, 30]))
    transform = PretrainTransform(make_config(data_path), MaskGenerator(64, 16, 4, 0.6))
    dataset = XrayDataset(records, transform, seed=3)
    sent = pickle.loads(pickle.dumps(dataset))  # noqa: S301
    assert_same([sent[2, 1]], [dataset[2, 1]])
    assert [sent.records.file[i] for i in range(len(sent))] == records.file.tolist()
    assert [name for name, v in vars(sent.records).items() if isinstance(v, np.ndarray)] == ['row']
    broken = XrayDataset(replace(records, root=tmp_path), transform, seed=3)
    wanted = rf'{tmp_path}/train.csv, row 11 .* no image {tmp_path}/{records.file[1]}'
    with pytest.raises(ValueError, match=wanted):
        pickle.loads(pickle.dumps(broken))[0, 1]  # noqa: S301


def test_an_unreadable_image_names_csv_row_path_and_reason(tmp_path):
    write_split(tmp_path, 'valid', 3)
    bad = tmp_path / 'valid/patient00002/study1/view1_frontal.png'
    bad.write_bytes(b'not a picture')
    loaders = build_loader(make_config(tmp_path, 'EVAL_MODE', True), LOGGER, is_pretrain=False)
    message = f'valid.csv, row 6 (the header is row 1): image {bad} cannot be read: cannot identify'
    with pytest.raises(ValueError, match=re.escape(message)):
        list(loaders.valid)
