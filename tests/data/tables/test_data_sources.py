"""Several sources in pre-training: entries, splits, samples, held-out errors, the run record."""

import itertools
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from drive_sources import HERE, LOOSE, THERE, config_of, loaders_of
from phantom_layouts import nih_phantom
from tiny import SWIN, run_folder, run_main, tiny_config
from xray_splits import samples_of, xray

from data.loader import sample_rng, source_seed
from data.tables.chexpert import read_csv
from data.tables.sources import check as check_sources
from data.tables.splits import split_holdout
from engine.run_record import read_record
from logger import read_metrics
from scripts.phantom_mimic import make_mimic_phantom
from utils import read_checkpoint


def test_each_source_holds_out_its_own_patients(drive):
    loaders = loaders_of(drive, HERE, THERE, LOOSE)
    for name, entry in (('here', HERE), ('there', THERE)):
        whole = read_csv(drive / entry['path'], 'train.csv')
        for loader, want in zip(loaders[:2], split_holdout(whole, 0.2), strict=True):
            assert loader.dataset.parts[name].records.file.tolist() == want.file.tolist()
    sizes = [[len(part) for part in loader.dataset.parts.values()] for loader in loaders[:2]]
    assert sizes == [[16, 8, 4], [4, 4, 1]]
    assert [len(loader.dataset) for loader in loaders[:2]] == [28, 9]


def test_share_and_images_limit_a_source_and_not_its_held_out_patients(drive):
    entries = HERE | {'share': 0.5}, THERE | {'images': 3}, LOOSE | {'images': 100}
    loaders = loaders_of(drive, *entries)
    records = {name: part.records for name, part in loaders.train.dataset.parts.items()}
    assert len(set(records['here'].patient)) == 4
    assert [len(part) for part in records.values()] == [8, 3, 4]
    assert [len(part) for part in loaders.holdout.dataset.parts.values()] == [4, 4, 1]
    held_out = loaders_of(drive, *entries, options=('EVAL.HOLDOUT_IMAGES', 2)).holdout
    assert [len(part) for part in held_out.dataset.parts.values()] == [2, 2, 1]


def test_an_image_has_the_draws_of_its_source_and_row(drive):
    """The mask of a sample is drawn after 22 + 1 numbers of its generator: crop and flip."""
    alone = loaders_of(drive, THERE).train
    joined = loaders_of(drive, HERE, THERE, LOOSE).train
    for epoch in (0, 1):
        found = {}
        for loader in (alone, joined):
            samples = samples_of(loader, epoch)
            keys = [key for batch in loader.batch_sampler for key in batch]
            assert len(keys) == len(samples) and {key[0] for key in keys} == {epoch}
            for (_, index), sample in zip(keys, samples, strict=True):
                name, position = loader.dataset.place(index)
                row = int(loader.dataset.parts[name].records.row[position])
                if name == 'there':
                    found.setdefault(row, []).append(sample)
        twice = [pair for pair in found.values() if len(pair) == 2]
        assert len(twice) >= 4
        for (image, mask), (same_image, same_mask) in twice:
            assert torch.equal(image, same_image) and torch.equal(mask, same_mask)
    draws = {sample_rng(source_seed(0, name), 0, 5).random() for name in ('', 'here', 'there')}
    assert len(draws) == 3 and source_seed(7, '') == 7


# Errors

REFUSED = [
    ([{'name': 'a', 'dataset': 'chexpert'}], r'SOURCES\[0\].*path'),
    (['A'], r'SOURCES\[0\]'),
    ([HERE, THERE | {'paht': 'x'}], r'SOURCES\[1\].*paht'),
    ([HERE, THERE | {'name': 'here'}], 'SOURCES.*here'),
    ([HERE | {'name': 'a/b'}], r'SOURCES\[0\].*name'),
    ([HERE | {'name': 2020}], r'SOURCES\[0\].*name.*2020'),
    ([HERE | {'dataset': 'chexprt'}], r'SOURCES\[0\].*dataset.*chexprt'),
    ([HERE | {'share': 0}], r'SOURCES\[0\].*share'),
    ([HERE | {'images': 2.5}], r'SOURCES\[0\].*images'),
    ([HERE | {'images': 2, 'share': 0.5}], r'SOURCES\[0\].*not both'),
    ([HERE, THERE | {'path': 'A/train'}], "SOURCES.*'there'.*'here'"),
    ([HERE, THERE | {'path': 'B/../A'}], "SOURCES.*'here'"),
    ([HERE], r'DATA\.TRAIN_FRACTION', 'DATA.TRAIN_FRACTION', 0.5),  # of a single data set
    ([HERE], r'DATA\.TRAIN_IMAGES', 'DATA.TRAIN_IMAGES', 5),
]


@pytest.mark.parametrize('case', REFUSED)
def test_entries_that_cannot_be_read_are_refused_by_name(drive, case):
    entries, message, *options = case
    with pytest.raises(ValueError, match=message):
        check_sources(config_of(drive, *entries, options=options), 'simmim')


def test_fine_tuning_refuses_sources_and_an_output_in_a_folder_source_is_refused(drive):
    config = config_of(drive, HERE)
    with pytest.raises(ValueError, match='DATA.SOURCES'):
        check_sources(config, 'finetune')
    check_sources(config, 'simmim')
    check_sources(config_of(drive, HERE, options=('OUTPUT', str(drive / 'C'))), 'simmim')
    with pytest.raises(ValueError, match='OUTPUT'):
        check_sources(config_of(drive, LOOSE, options=('OUTPUT', str(drive / 'C'))), 'simmim')


@pytest.fixture(scope='module')
def phantoms(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms in the layouts of CheXpert, MIMIC-CXR and NIH, and a folder of images."""
    folder = tmp_path_factory.mktemp('phantoms')
    shutil.copytree(phantom, folder / 'CheXpert-phantom')
    size = {'num_train': 12, 'num_valid': 2, 'num_test': 2, 'size': 48, 'seed': 1}
    make_mimic_phantom(folder / 'mimic', **size)
    nih_phantom(folder / 'nih', **size)
    (folder / 'clinic').mkdir()
    for number in range(8):
        xray(seed=number).save(folder / 'clinic' / f'{number}.png')
    return folder


SOURCES = [
    {'name': 'chexpert', 'dataset': 'chexpert', 'path': 'CheXpert-phantom', 'images': 12},
    {'name': 'mimic', 'dataset': 'mimic-cxr', 'path': 'mimic', 'share': 0.5},
    {'name': 'nih', 'dataset': 'nih', 'path': 'nih', 'images': 9},
    {'name': 'clinic', 'dataset': 'folder', 'path': 'clinic'},
]
NAMES = [entry['name'] for entry in SOURCES]
DATA = {'SOURCES': SOURCES, 'TRAIN_IMAGES': 0}
TRAIN = {'EPOCHS': 2, 'WARMUP_EPOCHS': 0, 'ACCUMULATION_STEPS': 1, 'SAVE_EVERY_STEPS': 5}
SAME_ON_RANKS = SWIN | {'DROP_PATH_RATE': 0.0}  # each process drops paths of its own


def argv(folder: Path, output: Path, *more: str) -> list[str]:
    sections = {'DATA': DATA, 'TRAIN': TRAIN, 'EVAL': {'HOLDOUT_IMAGES': 0, 'EVERY': 2}}
    cfg = tiny_config(output / 'c.yaml', 'simmim', SAME_ON_RANKS, **sections)
    return ['--cfg', str(cfg), '--data-path', str(folder), '--output', str(output), *more]


@pytest.fixture(scope='module')
def run(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on all four."""
    output = tmp_path_factory.mktemp('run')
    assert run_main('simmim', argv(phantoms, output)) == 0
    return run_folder(output, 'simmim')


def test_held_out_errors_of_the_sources_and_their_mean(run):
    """The mean is over images, whose masks hide equally many pixels."""
    records = [record for record in read_metrics(run / 'metrics.jsonl') if 'holdout_l1' in record]
    assert len(records) == 2
    log = (run / 'log_rank0.txt').read_text()
    assert all(f'holdout_{name} masked L1' in log for name in NAMES)
    counts = [
        int(re.search(rf'{name}: pre-training on \d+ images .*; (\d+) images of', log)[1])
        for name in NAMES
    ]
    ends = ('l1', 'l1_grey', 'l1_grey_linear')
    for record, end, split in itertools.product(records, ends, ('holdout', 'reference')):
        errors = [record[f'{split}_{name}_{end}'] for name in NAMES]
        assert len(set(errors)) == len(NAMES)
        mean = np.average(errors, weights=counts)
        assert record[f'{split}_{end}'] == pytest.approx(mean, rel=1e-6)


def test_the_record_names_the_tables_of_each_source(run):
    wanted = {'chexpert/train.csv', 'nih/DATA.DATASET', 'mimic/DATA.DATASET'}
    assert wanted <= set(read_record(run)['data']['files'])


def test_a_run_that_resumes_in_an_epoch_ends_bit_for_bit_the_same(run, phantoms, tmp_path):
    stop = str(sorted(run.glob('ckpt_epoch_1_step_*.pth'))[1])
    assert run_main('simmim', argv(phantoms, tmp_path, '--resume', stop)) == 0
    folder = run_folder(tmp_path, 'simmim')
    whole, resumed = (read_checkpoint(f / 'ckpt_epoch_1.pth')['model'] for f in (run, folder))
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)
    names = [f'reference_{name}_l1' for name in NAMES]
    last = [read_metrics(f / 'metrics.jsonl')[-1] for f in (run, folder)]
    assert [last[0][name] for name in names] == [last[1][name] for name in names]


def test_listed_images_are_left_out_and_no_other_patient_is_held_out(drive, tmp_path):
    sources, listed = (HERE, LOOSE), tmp_path / 'list.csv'
    before = loaders_of(drive, *sources)
    records = {name: part.records for name, part in before.train.dataset.parts.items()}
    held_out = before.holdout.dataset.parts['here'].records.file
    out = [f'here/{records["here"].file[3]}', f'loose/{records["loose"].file[0]}']
    out += [f'here/{held_out[1]}']
    listed.write_text('same_as,file\n' + ''.join(f'x,{file}\n' for file in out))
    after = loaders_of(drive, *sources, options=('DATA.LEAVE_OUT', str(listed)))
    for loader, whole in ((after.train, before.train), (after.holdout, before.holdout)):
        for name, part in loader.dataset.parts.items():
            files = whole.dataset.parts[name].records.file
            want = [file for file in files if f'{name}/{file}' not in out]
            assert part.records.file.tolist() == want
    assert [len(loader.dataset) for loader in before[:2]] == [20, 5]
    assert [len(loader.dataset) for loader in after[:2]] == [18, 4]
    with pytest.raises(ValueError, match=r'DATA\.LEAVE_OUT.*list\.csv'):
        loaders_of(drive, LOOSE | {'name': 'other'}, options=('DATA.LEAVE_OUT', str(listed)))
    every = [f'loose/deep/{number}.png' for number in range(5)]
    listed.write_text('\n'.join(['file', *every]))
    with pytest.raises(ValueError, match=r'DATA\.SOURCES.*loose'):
        loaders_of(drive, *sources, options=('DATA.LEAVE_OUT', str(listed)))
    listed.write_text('file,same_as\n')  # a check that found nothing
    loaders = loaders_of(drive, *sources, options=('DATA.LEAVE_OUT', str(listed)))
    assert len(loaders.train.dataset) == 20
