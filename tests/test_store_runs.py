"""Runs from a lossless store are runs from its files; DICOM; memory; what was left out or added."""

import logging
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from mistakes import linked
from packed_data import NATIVE, contents, copied, make_data, packed
from PIL import Image
from test_packed import sparse_store
from tiny import arguments, run_folder, run_main, tiny_config
from torch.utils.data import DataLoader, Dataset
from xray_splits import LOGGER, make_config

from data import Loaders, build_loader
from data.data_simmim import mask_generator
from data.images import load_image
from data.loader import SquareDataset
from data.packing import Settings, append
from data.phantom import make_phantom_mimic
from data.records import read_csv, read_folder
from data.store import open_store
from data.transforms import PretrainTransform, TrainTransform
from logger import read_metrics

EXACT = Settings(size=None, square=False, keep_16bit=True)
SECRET = 'ZYXWVU^JANE'
TIMES = {'seconds', 'data_seconds', 'images_per_second'}
AUGMENTED = ['AUG.REPROB', 0.5, 'AUG.ROTATION', 10.0, 'DATA.INTERPOLATION', 'random']
WORKERS_MIB = 60
TWO_WORKERS = pytest.param(2, marks=pytest.mark.slow)


@pytest.fixture(scope='module')
def exact(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Files, every third of which has 12 bits, and their lossless store."""
    folder = linked(phantom, tmp_path_factory.mktemp('exact') / 'CheXpert-phantom')
    for number, file in enumerate(sorted(folder.rglob('*.jpg'))):
        if number % 3 == 0:
            levels = np.asarray(load_image(file)).astype(np.uint16)
            file.unlink()
            Image.fromarray(levels * 16 + number % 16).save(file, 'PNG')
    return folder, packed(folder, folder.parent / 'store', EXACT)


def assert_same_batches(files: Loaders, store: Loaders) -> int:
    """Compares every tensor of every loader, two epochs of training; returns the batches."""
    count = 0
    for name in Loaders._fields:
        pair = getattr(files, name), getattr(store, name)
        assert (pair[0] is None) == (pair[1] is None), name
        for epoch in () if pair[0] is None else (0, 3):
            for loader in pair:
                loader.batch_sampler.set_epoch(epoch)
            for wanted, batch in zip(*pair, strict=True):
                for one, other in zip(wanted, batch, strict=True):
                    assert (one.dtype, one.shape) == (other.dtype, other.shape)
                    assert one.numpy().tobytes() == other.numpy().tobytes(), name
                count += 1
    return count


@pytest.mark.parametrize('workers', [0, TWO_WORKERS])
@pytest.mark.parametrize(
    'is_pretrain, options',
    [
        (True, []),
        (True, ['DATA.NORMALIZE', 'image', 'DATA.MASK_TYPE', 'block']),
        (False, AUGMENTED),
        (False, ['DATA.SAMPLER', 'weighted', 'EVAL.TTA', 'crops', 'EVAL.PREDICT_TRAIN', True]),
        (False, ['FINETUNE.MODE', 'knn', 'DATA.PREPROCESS', 'equalize', 'DATA.VIEWS', 'frontal']),
    ],
)
def test_lossless_store_gives_the_batches_of_its_files(exact, is_pretrain, options, workers):
    options = ['DATA.NUM_WORKERS', workers, 'DATA.BATCH_SIZE', 16, *options]
    files, store = (
        build_loader(make_config(path, *options), LOGGER, is_pretrain) for path in exact
    )
    assert assert_same_batches(files, store) > 20


@pytest.mark.parametrize('workers', [0, TWO_WORKERS])
@pytest.mark.parametrize('stage', ['simmim', 'finetune'])
def test_lossless_store_gives_the_losses_of_its_files(exact, stage, workers, tmp_path):
    data = {'NUM_WORKERS': workers, 'BATCH_SIZE': 8}
    cfg = tiny_config(tmp_path / 'run.yaml', stage, DATA=data, AUG={'REPROB': 0.5})
    files, store = (losses_of(stage, cfg, path, tmp_path / path.name) for path in exact)
    assert files == store
    assert len(files) == 3 and all(np.isfinite(line['loss']) for line in files[1:])


def losses_of(stage: str, cfg: Path, data_path: Path, output: Path) -> list[dict]:
    """What a run writes of its epochs, but for times."""
    assert run_main(stage, arguments(cfg, data_path, output)) == 0
    lines = read_metrics(run_folder(output, stage) / 'metrics.jsonl')
    return [{key: line[key] for key in line.keys() - TIMES} for line in lines]


# DICOM ---------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def dicom(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The phantoms as DICOM files that name their patients, and CSV files that name these."""
    pytest.importorskip('pydicom', minversion='3.0', reason='pydicom is not installed')
    return to_dicom(phantom, tmp_path_factory.mktemp('dicom') / 'CheXpert-phantom')


def to_dicom(folder: Path, target: Path) -> Path:
    from dicom_files import write

    tags = dict.fromkeys(['PatientID', 'PatientName', 'AccessionNumber'], SECRET)
    for file in folder.rglob('*.jpg'):
        place = (target / file.relative_to(folder)).with_suffix('.dcm')
        place.parent.mkdir(parents=True, exist_ok=True)
        write(place, np.asarray(load_image(file)), **tags)
        assert SECRET.encode() in place.read_bytes()
    for file in folder.glob('*.csv*'):  # MIMIC-CXR's are compressed, and name no suffixes
        (target / file.name).write_bytes(file.read_bytes().replace(b'.jpg', b'.dcm'))
    return target


@pytest.mark.slow
@pytest.mark.parametrize('stage', ['simmim', 'finetune'])
def test_dicom_trains_directly_and_packed_as_the_same_jpegs(dicom, phantom, stage, tmp_path):
    cfg = tiny_config(tmp_path / 'run.yaml', stage)
    store = packed(dicom, tmp_path / 'store', NATIVE)
    wanted, *found = (
        losses_of(stage, cfg, path, tmp_path / f'out_{number}')
        for number, path in enumerate([phantom, dicom, store])
    )
    assert found == [wanted, wanted] and len(wanted) == 3
    assert not any(SECRET.encode() in data for data in contents(store).values())


@pytest.mark.slow
def test_dicom_folder_is_listed_packed_and_trained_on(dicom, phantom, tmp_path):
    folder, store = dicom / 'train', packed(dicom / 'train', tmp_path / 'store', Settings(32))
    names = [str(path.relative_to(folder)) for path in sorted(folder.rglob('*.dcm'))]
    assert read_folder(folder, allow_all_images=False).file.tolist() == sorted(names)
    assert open_store(store).files == sorted(names) and len(names) > 100
    cfg = tiny_config(tmp_path / 'run.yaml', 'simmim', DATA={'DATASET': 'folder'})
    found = losses_of('simmim', cfg, folder, tmp_path / 'out')
    assert found == losses_of('simmim', cfg, phantom / 'train', tmp_path / 'jpeg')
    assert len(losses_of('simmim', cfg, store, tmp_path / 'packed')) == 3


def test_dicom_of_mimic_is_named_by_the_suffix(tmp_path):
    pytest.importorskip('pydicom', minversion='3.0', reason='pydicom is not installed')
    make_phantom_mimic(tmp_path / 'jpg', num_train=8, num_valid=3, num_test=3, size=32, workers=1)
    folder, suffix = to_dicom(tmp_path / 'jpg', tmp_path / 'dcm'), ['DATA.IMAGE_SUFFIX', '.dcm']
    store = packed(folder, tmp_path / 'store', Settings(None, square=False, image_suffix='.dcm'))
    options = ['DATA.DATASET', 'mimic-cxr', 'DATA.HOLDOUT_FRACTION', 0.3]
    plain, files, packs = (
        build_loader(make_config(path, *options, *more), LOGGER, is_pretrain=True)
        for path, more in ((tmp_path / 'jpg', []), (folder, suffix), (store, suffix))
    )
    assert assert_same_batches(plain, files) == assert_same_batches(plain, packs) > 4
    assert not any(SECRET.encode() in data for data in contents(store).values())


def test_a_damaged_dicom_file_is_left_out_without_its_tags(dicom, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    folder = copied(dicom, tmp_path / 'data')
    spoilt = sorted((folder / 'train').rglob('*frontal.dcm'))[2]
    whole = spoilt.read_bytes()
    assert whole.index(SECRET.encode()) < len(whole) - 1000
    spoilt.write_bytes(whole[:-500])
    with pytest.raises(ValueError, match=rf'{spoilt.name} .*--skip-bad') as error:
        packed(folder, tmp_path / 'no', NATIVE)
    store = packed(folder, tmp_path / 'store', NATIVE, skip_bad=True)
    assert list(open_store(store).left_out) == [str(spoilt.relative_to(folder))]
    assert len(read_csv(store, 'train.csv')) == len(read_csv(folder, 'train.csv')) - 1
    assert not any(SECRET.encode() in data for data in contents(store).values())
    assert SECRET not in str(error.value) + caplog.text


# What is left out, changed or large ----------------------------------------------------------


def test_what_a_store_of_a_folder_lacks_is_logged(tmp_path, log):
    root = make_data(tmp_path / 'data', 12) / 'train'
    for file in sorted(root.rglob('*.png'))[:2]:
        file.write_bytes(b'no picture')
    store = packed(root, tmp_path / 'store', skip_bad=True)
    config = make_config(store, 'DATA.DATASET', 'folder', 'DATA.HOLDOUT_FRACTION', 0.2)
    loaders = build_loader(config, LOGGER, is_pretrain=True)
    assert len(loaders.train.dataset) + len(loaders.holdout.dataset) == 10
    assert f'{store}: 2 images could not be read when the store was packed' in log.text


def test_an_open_store_is_not_opened_again_once_it_was_added_to(tmp_path):
    root = make_data(tmp_path / 'data')
    store = packed(root, tmp_path / 'store', csv_names=['train.csv'])
    records = read_csv(store, 'train.csv')
    config = make_config(store, 'DATA.IMG_SIZE', 16)
    dataset = SquareDataset(records, TrainTransform(config), seed=0, store=open_store(store))
    sent = pickle.dumps(dataset)
    before = dataset.__getitems__([(0, 1), (0, 3)])[0]
    assert torch.equal(pickle.loads(sent).__getitems__([(0, 1), (0, 3)])[0], before)  # noqa: S301
    append(root, store, 'valid.csv')
    assert torch.equal(dataset.__getitems__([(0, 1), (0, 3)])[0], before)
    with pytest.raises(ValueError, match=f'{store} was changed while it was in use'):
        pickle.loads(sent)  # noqa: S301


@pytest.mark.parametrize('path_of', [0, 1], ids=['files', 'store'])
@pytest.mark.parametrize('crop', [True, False])
def test_views_of_test_time_leave_the_held_out_images_alone(phantom, tmp_path, crop, path_of):
    path = packed(phantom, tmp_path / 'store', Settings(96)) if path_of else phantom
    plain = ['TEST.CROP', crop]
    views = [*plain, 'EVAL.TTA', 'crops', 'EVAL.TTA_FLIP', True]
    loaders = [build_loader(make_config(path, *keys), LOGGER, True) for keys in (plain, views)]
    for name in ('holdout', 'reference'):
        pair = [getattr(found, name) for found in loaders]
        if path_of:
            assert isinstance(pair[0].dataset, SquareDataset)
            finished = [[loader.dataset.finish(batch) for batch in loader] for loader in pair]
        else:
            finished = [list(loader) for loader in pair]
        for wanted, batch in zip(*finished, strict=True):
            assert all(torch.equal(one, other) for one, other in zip(wanted, batch, strict=True))


class OwnMemory(Dataset):
    """Batches of a data set, in place of which its worker tells the memory that it alone has."""

    def __init__(self, dataset: SquareDataset | None) -> None:
        self.dataset = dataset

    def __getitems__(self, keys: list[tuple[int, ...]]) -> list[float]:
        if self.dataset is not None:
            images, _ = self.dataset.__getitems__(keys)
            assert images.shape == (len(keys), 256, 256)
        lines = Path('/proc/self/smaps_rollup').read_text().splitlines()
        sizes = [int(line.split()[1]) for line in lines if line.startswith('Private_')]
        return [sum(sizes[:2]) / 1024]  # clean and dirty


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists('/proc/self/smaps_rollup'), reason='needs Linux')
@pytest.mark.parametrize('start', ['fork', 'spawn'])
def test_a_worker_has_little_memory_of_its_own_for_a_large_store(tmp_path, start):
    count = 223_414
    store = sparse_store(tmp_path / 'store', count)
    records = read_folder(store, allow_all_images=False)
    config = make_config(store, 'DATA.IMG_SIZE', 192)
    transform = PretrainTransform(config, mask_generator(config))
    dataset = SquareDataset(records, transform, seed=0, store=open_store(store))
    order = np.random.default_rng(0).permutation(count)[: 40 * 128].reshape(40, 128)
    keys = [[(0, index) for index in batch] for batch in order.tolist()]
    options = {'num_workers': 2, 'collate_fn': list, 'multiprocessing_context': start}
    sizes, idle = (
        [batch[0] for batch in DataLoader(OwnMemory(used), batch_sampler=keys, **options)]
        for used in (dataset, None)
    )
    assert len(dataset) == count and len(sizes) == 40
    assert max(sizes) - min(idle) < WORKERS_MIB, (sizes, idle)  # a spawned one has torch's, too
    assert len(pickle.dumps(dataset)) < 16_000_000
