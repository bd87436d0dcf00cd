"""The report of a run: scores from the prediction files, details, and hashed names."""

import json
import logging
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from curves import curves, image_steps
from PIL import Image
from sklearn.metrics import f1_score, roc_auc_score
from tiny import ROOT, finished_run

from config import Config, default_config
from data.tables.labels import COMPETITION_LABELS, LABELS
from evaluation.final_scores import check_scoring
from evaluation.run_facts import GIVEN_BY_HAND, KNOWN, SELECTED_ON_VALID
from scripts.phantom import make_phantom
from system.files import sha256
from utils import read_checkpoint

pytestmark = pytest.mark.usefixtures('few_cases_select')
PATIENT = re.compile(rb'patient[_ ]?\d+', re.IGNORECASE)
REPORT = {'REPORT': {'WRITE': True, 'MAPS': 1}, 'EVAL': {'RESAMPLES': 200}}


@pytest.fixture(scope='module')
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('many') / 'CheXpert-phantom'
    make_phantom(folder, num_train=90, num_valid=5, num_test=60, size=32, seed=4)
    for path in (folder / 'valid').rglob('*.jpg'):  # some data sets have PNG files of 16 bits
        grey = np.asarray(Image.open(path).convert('L'), dtype=np.uint16)
        Image.fromarray(grey * 257).save(path, 'PNG')
    return folder


@pytest.fixture(scope='module')
def finished(many: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('run')
    return finished_run('finetune', many, folder, DATA={'VIEWS': 'all'}, **REPORT)


def studies(folder: Path, data: Path, split: str) -> pd.DataFrame:
    """Return the largest probability ('<label> p') and label ('<label> y') of each study."""
    predicted = pd.read_csv(folder / f'predictions_{split}.csv').set_index('Path')
    csv = 'train.csv' if split == 'holdout' else f'{split}.csv'
    labels = pd.read_csv(data / csv).set_index('Path').loc[predicted.index, list(LABELS)]
    # In this data set, blank is negative, and uncertain is not scored.
    labels = labels.fillna(0).where(lambda cells: cells != -1)
    table = pd.concat([predicted.add_suffix(' p'), labels.add_suffix(' y')], axis=1)
    return table.groupby(table.index.str.rsplit('/', n=1).str[0]).max()


def test_scores_are_those_of_the_prediction_files(finished: Path, many: Path) -> None:
    report = json.loads((finished / 'report.json').read_text())
    assert [part['name'] for part in report['sets']] == ['valid', 'test']
    table = studies(finished, many, 'test')
    scored = 0
    for part in report['sets'][1]['labels']:
        p, y = table[f'{part["label"]} p'], table[f'{part["label"]} y']
        known = y.notna()
        if y[known].nunique() < 2:
            assert part['scores']['auroc']['value'] is None
            continue
        scored += 1
        assert part['positives'] == y.sum()
        want = roc_auc_score(y[known], p[known])
        assert part['scores']['auroc']['value'] == pytest.approx(want, abs=1e-9)
        if part['threshold'] is not None:
            called = p[known] >= part['threshold'] * (1 - 1e-8)  # the file contains nine digits
            want = f1_score(y[known], called, zero_division=np.nan)
            assert part['scores']['f1']['value'] == pytest.approx(want, nan_ok=True)
    assert scored > 8
    areas = {p['label']: p['scores']['auroc'] for p in report['sets'][1]['labels']}
    five = [areas[label]['value'] for label in COMPETITION_LABELS]
    assert report['headline']['score']['value'] == pytest.approx(np.mean(five))
    assert areas['Lung Opacity']['low'] < areas['Lung Opacity']['value']


def test_thresholds_are_youdens_on_the_held_out_patients(finished: Path, many: Path) -> None:
    report = json.loads((finished / 'report.json').read_text())
    table = studies(finished, many, 'holdout')
    chosen = 0
    for part in report['sets'][1]['labels']:
        p, y = table[f'{part["label"]} p'], table[f'{part["label"]} y']
        if y.dropna().nunique() < 2:
            assert part['threshold'] is None
            continue
        scores = {t: p[y == 1].ge(t).mean() - p[y == 0].ge(t).mean() for t in p[y.notna()]}
        best = max(t for t, score in scores.items() if score > max(scores.values()) - 1e-12)
        assert part['threshold'] == pytest.approx(best, rel=1e-7)
        chosen += 1
    assert chosen > 5


def test_the_report_contains_groups_and_maps(finished: Path) -> None:
    report = json.loads((finished / 'report.json').read_text())
    columns = {part['column']: part for part in report['sets'][1]['groups']}
    assert set(columns) == {'Sex', 'Age', 'View'}
    rows = sum(group['rows'] for group in columns['Sex']['groups'])
    assert rows == report['sets'][1]['rows']
    assert report['maps']
    assert any('synthetic' in line for line in report['headline']['alerts'])
    assert '>These are synthetic X-rays' in (finished / 'report.html').read_text('utf-8')
    assert set(image_steps(finished)) == {f'maps/{Path(e["file"]).stem}' for e in report['maps']}
    assert 'epoch/holdout_auroc/Edema' in curves(finished)
    for entry in report['maps']:
        assert (finished / entry['file']).read_bytes().startswith(b'\x89PNG')
        above = entry['probability'] >= entry['threshold']
        assert above == (entry['kind'] in ('true positive', 'false positive'))
    assert -1 <= report['maps_check']['similarity'] <= 1


def test_baselines_are_read_from_a_run_or_a_file(finished, many, tmp_path) -> None:
    """A run equals itself, and a file that lacks a row is not shown."""
    table = pd.read_csv(finished / 'predictions_test.csv')
    table.iloc[1:].to_csv(tmp_path / 'part.csv', index=False)
    baselines = {'itself': str(finished), 'part': str(tmp_path / 'part.csv'), 'lost': 'none.csv'}
    words = ['--eval', '--resume', str(finished / 'ckpt_best.pth')]
    words += ['--opts', 'REPORT.BASELINES', str(baselines)]
    sections = {'REPORT': {'WRITE': True, 'MAPS': 0}, 'EVAL': {'RESAMPLES': 0}}
    folder = finished_run('finetune', many, tmp_path, *words, DATA={'VIEWS': 'all'}, **sections)
    report = json.loads((folder / 'report_eval' / 'report.json').read_text())
    (entry,) = report['comparisons']
    assert (entry['b'], entry['set']) == ('itself', report['headline']['set'])
    assert {part['difference']['value'] for part in entry['labels'].values()} == {0}
    told = [line for line in report['warnings'] if line.startswith('the baseline')]
    assert len(told) == 2 and 'part.csv' in told[0] and 'none.csv' in told[1]


@pytest.mark.slow
def test_eval_of_the_same_checkpoint_gives_the_same_report(finished, many, tmp_path) -> None:
    more = ['--eval', '--resume', str(finished / 'ckpt_best.pth')]
    run = finished_run('finetune', many, tmp_path, *more, DATA={'VIEWS': 'all'}, **REPORT)
    folder = run / 'report_eval'
    first, again = (json.loads((f / 'report.json').read_text()) for f in (finished, folder))
    assert (first.pop('training')['epochs'], again.pop('training')) == ([0, 1], None)
    for key in ('headline', 'sets', 'maps', 'maps_check', 'published'):
        assert again[key] == first[key], key
    rows = {row['name']: row['value'] for row in again['run']}
    assert rows['Uncertain labels in training'] == 'ignore', 'read from the checkpoint'
    assert rows['Checkpoint'] == str(finished / 'ckpt_best.pth')


@pytest.mark.slow
def test_the_report_of_eval_names_the_split_that_selected_the_checkpoint(phantom, tmp_path) -> None:
    """Whatever EVAL.SELECT_ON --eval is given."""
    evaluation = {'SELECT_ON': 'valid', 'RESAMPLES': 0}
    options = {'REPORT': {'WRITE': True, 'MAPS': 0}, 'TRAIN': {'EPOCHS': 1, 'WARMUP_EPOCHS': 0}}
    folder = finished_run('finetune', phantom, tmp_path, EVAL=evaluation, **options)
    evaluation['SELECT_ON'] = 'holdout'
    finished_run('finetune', phantom, tmp_path, '--eval', EVAL=evaluation, **options)
    first, again = (
        json.loads((folder / part / 'report.json').read_text()) for part in ('', 'report_eval')
    )
    assert again['training'] == first['training']
    (epoch,) = (row['value'] for row in again['run'] if row['name'] == 'Selected epoch')
    assert epoch.endswith('on valid')
    assert SELECTED_ON_VALID in again['warnings']

    # The last epoch is the one that was selected, whatever the name of the file.
    regular = ['--eval', '--resume', str(folder / 'ckpt_epoch_0.pth')]
    finished_run('finetune', phantom, tmp_path, *regular, EVAL=evaluation, **options)
    last = json.loads((folder / 'report_eval' / 'report.json').read_text())
    rows = {row['name']: row['value'] for row in last['run']}
    assert rows['Epoch chosen on'] == 'valid' and SELECTED_ON_VALID in last['warnings']
    assert last['training'] == first['training']
    assert rows['Evaluation'] == 'number 2 of this run, see run.json'

    best, renamed = read_checkpoint(folder / 'ckpt_best.pth'), tmp_path / 'renamed.pth'
    text = best['config'].replace('SELECT_ON: valid', 'SELECT_ON: auto')
    torch.save(best | {'config': text}, renamed)
    words = ['--eval', '--resume', str(renamed)]
    finished_run('finetune', phantom, tmp_path, *words, EVAL=evaluation, **options)
    unknown = json.loads((folder / 'report_eval' / 'report.json').read_text())
    rows = {row['name']: row['value'] for row in unknown['run']}
    assert rows['Epoch chosen on'] == 'given by hand' and GIVEN_BY_HAND in unknown['warnings']
    assert SELECTED_ON_VALID not in unknown['warnings']


@pytest.mark.slow
def test_a_checkpoint_that_the_run_did_not_select_is_given_by_hand(phantom, tmp_path) -> None:
    """Whatever its name; and each evaluation is noted in run.json of its run."""
    options = {'TRAIN': {'EPOCHS': 2, 'WARMUP_EPOCHS': 0}, 'EVAL': {'SELECT_ON': 'last'}}
    options['EVAL']['RESAMPLES'], options['REPORT'] = 0, {'WRITE': True, 'MAPS': 0}
    folder = finished_run('finetune', phantom, tmp_path, '--opts', 'SAVE_FREQ', '1', **options)
    other, copied = tmp_path / 'other.pth', tmp_path / 'copied.pth'
    shutil.copy(folder / 'ckpt_epoch_0.pth', other)
    shutil.copy(folder / 'ckpt_epoch_1.pth', copied)
    first, last = 'given by hand', 'no images: it is the last epoch'
    given = {folder / 'ckpt_epoch_0.pth': first, other: first, copied: last, '': last}
    for number, (path, wanted) in enumerate(given.items(), start=1):
        words = ['--eval', *(['--resume', str(path)] if path else [])]
        finished_run('finetune', phantom, tmp_path, *words, **options)
        report = json.loads((folder / 'report_eval/report.json').read_text())
        rows = {row['name']: row['value'] for row in report['run']}
        assert rows['Epoch chosen on'] == wanted
        assert rows['Evaluation'] == f'number {number} of this run, see run.json'
        assert (GIVEN_BY_HAND in report['warnings']) == (wanted == first)
        latex = (folder / 'report_eval/report_scores.tex').read_text()
        assert (GIVEN_BY_HAND in latex) == (wanted == first)
        known = json.loads((folder / 'predictions_test_eval.json').read_text())[KNOWN]
        assert known['facts']['epoch chosen on'] == wanted
        assert known['doubts']['checkpoint given by hand'] == [GIVEN_BY_HAND] * (wanted == first)
    noted = json.loads((folder / 'run.json').read_text())['evaluations']
    names = ['ckpt_epoch_0.pth', str(other), str(copied), 'ckpt_epoch_1.pth']
    assert [line['checkpoint'] for line in noted] == names
    assert all(line['splits'] == ['valid', 'test'] for line in noted)
    # Another tag hides no evaluation, and training for longer forgets none.
    words = ['--eval', '--resume', str(folder / 'ckpt_epoch_1.pth'), '--tag', 'hidden']
    finished_run('finetune', phantom, tmp_path, *words, **options)
    options['TRAIN'] = options['TRAIN'] | {'EPOCHS': 3}
    finished_run('finetune', phantom, tmp_path, **options)
    noted = json.loads((folder / 'run.json').read_text())['evaluations']
    assert [line['run'] for line in noted] == ['default'] * 4 + ['hidden']


@pytest.mark.slow
def test_the_report_warns_of_weights_that_have_seen_scored_patients(phantom, tmp_path) -> None:
    """By the patients that they learned from, not by the name of their table; also with --eval."""
    options = {'TRAIN': {'EPOCHS': 1, 'WARMUP_EPOCHS': 0}, 'EVAL': {'RESAMPLES': 0}}
    options['REPORT'] = {'WRITE': True, 'MAPS': 0}
    tables = [
        str(shutil.copy(phantom / 'train.csv', tmp_path / name)) for name in ('a.csv', 'b.csv')
    ]
    with open(tables[1], 'a') as file:  # the first table has patients of test
        file.writelines((phantom / 'test.csv').read_text().splitlines(keepends=True)[1:4])
    for number, table in enumerate(tables):
        earlier = {'TRAIN_CSV': table, 'TRAIN_IMAGES': 0, 'ALLOW_SHARED_PATIENTS': True}
        folder = finished_run('finetune', phantom, tmp_path / str(number), DATA=earlier, **options)
        words = ['--pretrained', str(folder / 'ckpt_epoch_0.pth'), '--tag', 'next']
        for part, more in (('', []), ('report_eval', ['--eval'])):
            finished_run('finetune', phantom, tmp_path / str(number), *words, *more,
                         DATA={'TRAIN_IMAGES': 0}, **options)  # fmt: skip
            text = (folder.with_name('next') / part / 'report.json').read_text()
            found = [line for line in json.loads(text)['warnings'] if 'was trained' in line]
            assert len(found) == number
            # Two of the three were held out then, and one of those who are held out now was not.
            wanted = 'trained with 1 of the 12 patients of holdout, 1 of the 10 patients of test'
            assert all(wanted in line for line in found)


@pytest.mark.slow
def test_only_predictions_and_reports_name_patients(finished: Path) -> None:
    assert list(finished.rglob('events.out.tfevents.*'))
    naming = {
        file.name
        for file in finished.rglob('*')
        if file.is_file() and PATIENT.search(file.read_bytes())
    }
    predictions = {f'predictions_{split}.csv' for split in ('holdout', 'valid', 'test')}
    assert naming == predictions | {'report.html', 'report.json'}


@pytest.fixture
def trained(tmp_path: Path) -> Config:
    """Options of fine-tuning, and a checkpoint with them: tmp_path/c.pth."""
    config = default_config()
    config.merge_from_file(str(ROOT / 'configs/base/chexpert_finetune.yaml'))
    config.MODEL.NUM_CLASSES = 14
    save(config, tmp_path)
    return config


def save(config: Config, folder: Path) -> None:
    torch.save({'model': {}, 'config': config.dump()}, folder / 'c.pth')


def test_eval_is_compared_with_the_options_of_the_checkpoint(trained, tmp_path, caplog) -> None:
    def check(key: str, value: object) -> None:
        config = trained.clone()
        config.merge_from_list([key, value])
        run = SimpleNamespace(config=config, logger=logging.getLogger())
        check_scoring(run, tmp_path / 'c.pth')

    mistakes = {'DATA.TASK': 'effusion', 'DATA.HOLDOUT_FRACTION': 0.3, 'EVAL.INTERNAL_SHARE': 0.5}
    mistakes |= {'DATA.TRAIN_CSV': 'fewer.csv', 'MODEL.HEAD': 'attention'}
    for key, value in (mistakes | {'MODEL.SWIN.NUM_HEADS': [2, 6, 12, 24]}).items():
        with pytest.raises(ValueError, match=key):
            check(key, value)
    trained.EVAL.INTERNAL_SHARE = 0.5
    save(trained, tmp_path)
    with pytest.raises(ValueError, match='trained with DATA.HOLDOUT_FRACTION'):
        check('DATA.HOLDOUT_FRACTION', 0.01)
    trained.EVAL.INTERNAL_SHARE = 0.0
    save(trained, tmp_path)
    check('DATA.TRAIN_CSV', trained.DATA.TRAIN_CSV)
    assert not caplog.messages
    trained.DATA.DATA_PATH = 'another_hospital'
    check('DATA.TRAIN_CSV', 'fewer.csv')
    assert 'DATA.TRAIN_CSV' in caplog.text and 'trained the model' in caplog.text
    check('DATA.NORMALIZE', 'image')
    assert 'DATA.NORMALIZE' in caplog.messages[-1]


def test_a_copy_of_the_data_is_recognised_by_its_training_table(trained, many, tmp_path, caplog):
    """A folder copied or packed elsewhere; a test table alone names no training patients."""
    trained.DATA.DATA_PATH = 'elsewhere'
    save(trained, tmp_path)
    files = {name: sha256(many / name) for name in ('train.csv', 'test.csv')}
    files |= {'DATA.DATASET': '0'}
    (tmp_path / 'run.json').write_text(json.dumps({'data': {'files': files}}))
    config = trained.clone()
    config.DATA.TRAIN_CSV, config.DATA.DATA_PATH = 'fewer.csv', str(tmp_path / 'copy')
    run = SimpleNamespace(config=config, logger=logging.getLogger())
    (tmp_path / 'copy').mkdir()
    for name in ('train.csv', 'test.csv'):
        shutil.copy(many / name, tmp_path / 'copy')
    with pytest.raises(ValueError, match=r"DATA\.TRAIN_CSV 'train.csv'"):
        check_scoring(run, tmp_path / 'c.pth')
    assert not caplog.messages
    with (tmp_path / 'copy' / 'train.csv').open('a') as file:
        file.write('\n')
    check_scoring(run, tmp_path / 'c.pth')
    assert "DATA.TRAIN_CSV 'train.csv'" in caplog.text
