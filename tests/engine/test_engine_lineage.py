"""Trainings behind weights: their patients are found in those scored, at any distance."""

import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace as Part

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import VIT, arguments, config_with, finished_run, killed_in_step_7, run_main, tiny_config
from transfers import write_run

from data.fingerprint import hash_patients
from data.loader import Loaders
from data.tables.reading import read_split
from data.tables.splits import split_patients, unlabelled_records
from engine.lineage import (
    Lineage,
    as_json,
    seen_patients,
    training,
    trainings_of,
    trainings_of_predictions,
)
from models.weights.export import export, load_trained_model
from system.downloads import LINEAGE
from utils import read_checkpoint, save_checkpoint, saved_options

LOGGER = logging.getLogger('lineage')
SEEN = 'weights that may have seen scored patients'


def numbers(*patients: int) -> np.ndarray:
    return np.array(patients, np.int64)


def checkpoint(
    folder: Path, name: str, patients: np.ndarray | None, *behind: dict, **options: object
) -> tuple[str, dict]:
    """A checkpoint of a training, with those behind its weights; without patients, an older one."""
    config = config_with(**{'TAG': name} | options)
    lineage = Lineage(config, {} if patients is None else {'train': patients}, [*behind])
    contents = {'model': {'w': torch.zeros(1)}, 'config': config.dump()}
    contents |= {} if patients is None else {LINEAGE: lineage.contents()}
    save_checkpoint(folder / f'{name}.pth', contents)
    path = str(folder / f'{name}.pth')
    return path, read_checkpoint(path)


def warned(path: str, saved: dict, patients: dict[str, np.ndarray], **options: object) -> list[str]:
    lineage = Lineage(config_with(**{'TAG': 'now'} | options), patients)
    lineage.start_from(path, saved, LOGGER)
    return lineage.warnings


def test_patients_are_found_at_the_first_second_and_third_hop(tmp_path: Path) -> None:
    """Each checkpoint has all trainings behind it, and no earlier file is read."""
    scored = {'train': numbers(1, 2), 'valid': numbers(7, 8), 'test': numbers(9)}
    path, saved = checkpoint(tmp_path, 'first', numbers(1, 2, 8, 9))
    wanted = 'was trained with 1 of the 2 patients of valid, 1 of the 1 patients of test'
    assert warned(path, saved, scored) == [f'{path} {wanted}, so their scores are too high']
    for name in ('second', 'third'):
        (tmp_path / Path(path).name).unlink()
        path, saved = checkpoint(tmp_path, name, numbers(1, 2), *trainings_of(path, saved))
        (line,) = warned(path, saved, scored)
        assert line.endswith(
            f'/first, from which {path} comes, {wanted}, so their scores are too high'
        )
    assert len(saved[LINEAGE]) == 3
    assert warned(path, saved, scored | {'valid': numbers(7), 'test': numbers(3)}) == []


def test_options_are_compared_only_where_patients_tell_nothing(tmp_path: Path) -> None:
    other = {'DATA__TRAIN_CSV': 'other.csv'}
    scored = {'train': numbers(1, 2), 'valid': numbers(7)}
    path, saved = checkpoint(tmp_path, 'a', numbers(1, 2), **other)
    assert warned(path, saved, scored) == [], 'the names of training patients are those of now'
    path, saved = checkpoint(tmp_path, 'a', numbers(100, 200), **other)
    (line,) = warned(path, saved, scored)
    assert 'may have seen' in line and 'other.csv' in line
    path, saved = checkpoint(tmp_path, 'a', numbers(100, 200))
    (line,) = warned(path, saved, scored)
    assert 'names none of the patients of this run' in line and 'under other names' in line
    path, saved = checkpoint(tmp_path, 'a', numbers(1, 2), DATA__DATASET='nih')
    assert 'DATA.DATASET nih' in warned(path, saved, {'valid': numbers(7)})[0]


@pytest.mark.parametrize(
    ('key', 'before', 'now', 'is_told'),
    [
        ('HOLDOUT_FRACTION', 0.1, 0.2, True),
        ('HOLDOUT_FRACTION', 0.2, 0.2, False),
        ('TRAIN_CSV', 'a.csv', 'b.csv', True),
        ('TRAIN_CSV', 'a.csv', 'a.csv', False),
    ],
)
def test_options_of_a_checkpoint_without_a_record_are_compared(  # noqa: PLR0913
    key, before, now, is_told, tmp_path, log
) -> None:
    path, saved = checkpoint(tmp_path, 'old', None, **{f'DATA__{key}': before})
    found = warned(path, saved, {'valid': numbers(7)}, **{f'DATA__{key}': now})
    assert len(found) == is_told and sum(key in message for message in log.messages) == is_told


def test_a_checkpoint_without_a_record_names_what_it_started_from(tmp_path: Path) -> None:
    first, _ = checkpoint(tmp_path, 'first', None, DATA__HOLDOUT_FRACTION=0.0)
    path, saved = checkpoint(tmp_path, 'second', None, PRETRAINED=first)
    scored = {'valid': numbers(7)}
    (line,) = warned(path, saved, scored)
    assert f'/first, from which {path} comes, was trained with DATA.HOLDOUT_FRACTION 0.0' in line
    Path(first).unlink()
    (line,) = warned(path, saved, scored)
    assert line.startswith(f'{first}, from which {path} comes, cannot be read')
    Path(first).write_bytes(b'damaged')
    assert warned(path, saved, scored) == [line]
    again, saved = checkpoint(tmp_path, 'loop', None, PRETRAINED=str(tmp_path / 'loop.pth'))
    assert warned(again, saved, scored) == []
    (entry,) = trainings_of('foreign.pth', {'model': {}})  # weights of another project
    assert (entry['run'], entry['data'], entry['patients']) == ('foreign.pth', None, None)
    lineage = Lineage(config_with(), scored)
    assert lineage.is_known, 'random weights have seen nobody'
    lineage.start_from('foreign.pth', {'model': {}}, LOGGER)
    assert not lineage.warnings and not lineage.is_known
    path, saved = checkpoint(tmp_path, 'next', numbers(1), entry)
    lineage.start_from(path, saved, LOGGER)
    assert not lineage.is_known, 'also two hops away'


@pytest.mark.parametrize(
    'entry',
    [
        3,
        {},
        {'run': 'a', 'data': 'x', 'patients': None, 'lost': False},
        {'run': 'a', 'data': {}, 'patients': None, 'lost': False},
        {'run': 'a', 'data': None, 'patients': torch.zeros(2)},
        {'run': 'a', 'data': None, 'patients': torch.zeros(1, dtype=torch.int64).expand(10**9)},
        {'run': 'a', 'data': None, 'patients': torch.zeros((), dtype=torch.int64)},
    ],
)
def test_a_damaged_record_is_an_error_that_names_the_file(entry: object) -> None:
    with pytest.raises(ValueError, match=r'a\.pth: the contents are damaged'):
        trainings_of('a.pth', {'model': {}, LINEAGE: [entry]})


def test_what_a_run_learns_from_is_no_leak_and_a_run_is_not_its_own_ancestor(tmp_path) -> None:
    config, patients = config_with(TAG='mine'), {'train': numbers(1, 2), 'valid': numbers(2)}
    own = training(config, patients['train'])
    older = training(config_with(TAG='older'), numbers(1, 2))
    path, saved = checkpoint(tmp_path, 'mine', patients['train'], older)
    resumed = Lineage(config, patients)
    resumed.start_from(path, saved, LOGGER)
    assert [entry['run'] for entry in resumed.contents()] == [older['run'], own['run']]
    resumed = Lineage(config_with(TAG='mine', DATA__DATA_PATH='/scratch/job_2'), patients)
    resumed.start_from(path, saved, LOGGER)
    assert [entry['run'] for entry in resumed.contents()] == [older['run'], own['run']]
    # Of a patient who was trained with before its table changed, the resumed run knows.
    moved = Lineage(config, {'train': numbers(1), 'valid': numbers(2)})
    moved.start_from(path, saved, LOGGER)
    assert len(moved.warnings) == 2 and len(moved.contents()) == 3
    learned = {'train': numbers(1), 'whole': numbers(2)}
    assert seen_patients('a', [own], learned, config.DATA, newest=own, own=None) == []
    # The file that is resumed is not named for what an earlier training saw.
    leak = training(config_with(TAG='leak'), numbers(1, 2, 9))
    path, saved = checkpoint(tmp_path, 'mine', numbers(1, 2), leak)
    (line,) = warned(path, saved, {'train': numbers(1, 2), 'test': numbers(9)}, TAG='mine')
    assert f'/leak, from which {path} comes, was trained with 1 of the 1' in line


def test_predictions_name_the_trainings_of_their_model(tmp_path: Path) -> None:
    """By their record, or else by their checkpoint; the student's checkpoint names them, too."""
    path, saved = checkpoint(tmp_path, 'teacher', numbers(1, 9), training(config_with(), None))
    trainings, file = trainings_of(path, saved), tmp_path / 'p.csv'

    def found(description: object) -> list[dict]:
        file.with_suffix('.json').write_text(json.dumps(description))
        return trainings_of_predictions(file)

    assert as_json(found({'checkpoint': path})) == as_json(trainings)
    assert as_json(found({LINEAGE: as_json(trainings), 'checkpoint': 'x'})) == as_json(trainings)
    assert [entry['lost'] for entry in found({'checkpoint': 'linear_probe'})] == [True]
    for foreign in ([], {}, {LINEAGE: []}, 'x'):
        (entry,) = found(foreign)
        assert (entry['data'], entry['patients'], entry['lost']) == (None, None, False)
    for wrong in ({LINEAGE: 3}, {LINEAGE: [{'patients': 'x'}]}, {LINEAGE: [{'patients': 'AAAA'}]}):
        with pytest.raises(ValueError, match=r'p\.json: the contents are damaged'):
            found(wrong)
    found({LINEAGE: as_json(trainings)})
    student = Lineage(config_with(TAG='student'), {'train': numbers(1), 'test': numbers(9)})
    student.start_from(path, saved, LOGGER)
    student.learn_from(str(file), LOGGER)
    words = 'was trained with 1 of the 1 patients of test, so their scores are too high'
    assert student.warnings == [f'{path} {words}', f'the teacher of {file} {words}']
    runs = [entry['run'].rpartition('/')[2] for entry in student.contents()]
    assert runs == ['default', 'teacher', 'student'], 'each once'
    student.learn_from(str(tmp_path / 'foreign.csv'), LOGGER)
    assert not student.is_known


def test_a_teacher_of_scored_patients_stands_beside_the_predictions_of_its_student(
    phantom: Path, tmp_path: Path
) -> None:
    """The teacher learns from patients whom the student holds out; also with --eval."""
    options = {'TRAIN': {'EPOCHS': 1, 'WARMUP_EPOCHS': 0}, 'model': VIT}
    data, scored = {'HOLDOUT_FRACTION': 0.0, 'TRAIN_IMAGES': 0}, {'SELECT_ON': 'last'}
    scored |= {'PREDICT_TRAIN': True}
    teacher = finished_run('finetune', phantom, tmp_path / 'a', DATA=data, EVAL=scored, **options)
    assert 'lineage' not in json.loads((teacher / 'predictions_test.json').read_text())
    data = {'HOLDOUT_FRACTION': 0.2, 'TRAIN_IMAGES': 28}
    config = config_with(DATA__DATASET='chexpert', DATA__DATA_PATH=str(phantom), **{
        f'DATA__{key}': value for key, value in data.items()
    })  # fmt: skip
    train, held_out, _ = split_patients(config, read_split(config, 'train', LOGGER))
    table = pd.read_csv(teacher / 'predictions_train.csv')
    file = tmp_path / 'pseudo.csv'
    table[table.Path.isin(unlabelled_records(config, train).path)].to_csv(file, index=False)
    shutil.copy(teacher / 'predictions_train.json', file.with_suffix('.json'))
    data['PSEUDO_LABELS'] = str(file)
    student = finished_run('finetune', phantom, tmp_path / 'b', DATA=data, **options)
    count = len({*held_out.select(held_out.view == 'frontal').patient})
    words = f'was trained with {count} of the {count} patients of holdout, so their scores are too'
    known = json.loads((student / 'predictions_test.json').read_text())['known']
    assert known['doubts'][SEEN] == [f'the teacher of {file} {words} high']
    file.unlink()
    cfg = tmp_path / 'b/finetune.yaml'
    more = ['--eval', '--resume', str(student / 'ckpt_epoch_0.pth'), '--tag', 'again', '--opts']
    argv = arguments(cfg, phantom, tmp_path / 'b', *more, 'DATA.PSEUDO_LABELS', "''")
    assert run_main('finetune', argv) == 0
    again = student.with_name('again') / 'predictions_test_eval.json'
    (line,) = json.loads(again.read_text())['known']['doubts'][SEEN]
    assert f'tiny_finetune/default, from which {student}/ckpt_epoch_0.pth comes, {words}' in line


def test_equal_names_of_other_data_sets_are_other_patients() -> None:
    def hashes(dataset: str, *names: str) -> np.ndarray:
        part = Part(records=Part(patient=np.array(names, object)))
        loaders = Loaders(train=Part(dataset=Part(parts={'': part})))
        return hash_patients(config_with(DATA__DATASET=dataset), loaders)['train']

    spelt = hashes('nih', '1', '00002', 'P-3')
    assert set(spelt) == set(hashes('nih', '0001', '2', '3', '3.0')) and len(set(spelt)) == 3
    assert not {*spelt} & {*hashes('chexpert', '1', '2', '3')}


def test_a_leak_two_hops_away_stands_beside_the_predictions_also_after_a_kill(
    phantom: Path, tmp_path: Path
) -> None:
    """The first pre-training learns from patients whom the later stages hold out."""
    options = {'TRAIN': {'EPOCHS': 1, 'WARMUP_EPOCHS': 0}, 'model': VIT}
    held_out = options | {'DATA': {'HOLDOUT_FRACTION': 0.2, 'TRAIN_IMAGES': 0}}
    every = options | {'DATA': {'HOLDOUT_FRACTION': 0.0, 'TRAIN_IMAGES': 0}}
    first = finished_run('simmim', phantom, tmp_path / 'a', **every)
    weights = str(first / 'ckpt_epoch_0.pth')
    second = finished_run('simmim', phantom, tmp_path / 'b', '--pretrained', weights, **held_out)
    assert 'patients of holdout' in (second / 'log_rank0.txt').read_text()
    Path(weights).unlink()
    start = ('--pretrained', str(second / 'ckpt_epoch_0.pth'))
    cfg = tiny_config(tmp_path / 'c.yaml', 'finetune', **held_out)
    argv = arguments(cfg, phantom, tmp_path / 'c', *start, '--opts', 'SAVE_FREQ', '1')
    more = ['TRAIN.SAVE_EVERY_STEPS', '3']
    killed_in_step_7('finetune', [*argv, *more])
    Path(start[1]).rename(tmp_path / 'moved.pth')
    assert run_main('finetune', [*argv, *more]) == 0
    folder = tmp_path / 'c/tiny_finetune/default'
    for split in ('test', 'valid', 'holdout'):
        known = json.loads((folder / f'predictions_{split}.json').read_text())['known']
        (line,) = known['doubts'][SEEN]
        assert 'tiny_simmim/default, from which' in line and 'patients of holdout' in line


@pytest.mark.parametrize(('target', 'name'), [('safetensors', 'a.safetensors'), ('timm', 'a')])
def test_an_export_names_the_trainings_behind_it_without_their_patients(
    target: str, name: str, tmp_path: Path
) -> None:
    path = write_run(tmp_path, 'simmim')
    saved = torch.load(path, weights_only=True)
    config = saved_options(saved)
    config.DATA.DATA_PATH = '/home/someone/first'
    first = training(config, np.arange(3)) | {'run': 'simmim_pretrain/first'}
    config.DATA.TRAIN_CSV = 'second.csv'
    saved[LINEAGE] = [first, training(config, np.arange(9))]
    save_checkpoint(path, saved)
    source = load_trained_model(path, LOGGER)
    export(source, target, tmp_path / name, overwrite=False)
    file = tmp_path / name if target == 'safetensors' else tmp_path / name / 'model.safetensors'
    found = trainings_of(file, read_checkpoint(file))
    assert [entry['run'] for entry in found] == [entry['run'] for entry in saved[LINEAGE]]
    assert [entry['data']['TRAIN_CSV'] for entry in found] == ['train.csv', 'second.csv']
    assert [entry['patients'] for entry in found] == [None, None]
    assert 'someone' not in str(found)
