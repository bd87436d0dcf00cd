"""Pseudo-label rounds by the script: real runs on phantoms, held-out scores as tests want them."""

import csv
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score
from test_readme import load_script
from tiny import ROOT, VIT, tiny_config
from warm_python import warm_python

from config import config_text
from data.labels import LABELS
from engine.files import sha256
from engine.launch import EXIT_PREEMPTED
from engine.run_record import RECORD_FILE, read_record, weights_checksum
from logger import read_metrics
from sweeps.files import Job
from sweeps.runner import Patients, Rounds, Runner, Setup

SCRIPT = load_script(ROOT / 'scripts/pseudo_label.py')
ROUNDS = ('round0', 'round1', 'round2')
# Of random models: a low confidence finds something, and the options leave many patients.
OPTIONS = (
    'DATA.TRAIN_IMAGES 0 DATA.TRAIN_FRACTION 0.3 DATA.HOLDOUT_FRACTION 0.4 DATA.UNCERTAIN ones '
    'TRAIN.EPOCHS 1 TRAIN.WARMUP_EPOCHS 0 EVAL.RESAMPLES 40'
).split()


@pytest.fixture(scope='module')
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with warm_python(tmp_path_factory.mktemp('warm')) as path:
        yield path


def main(cfg: Path, data: Path, output: Path, *more: str, confidence: float = 0.1) -> int:
    words = ['--cfg', str(cfg), '--data-path', str(data), '--output', str(output)]
    words += ['--confidence', str(confidence), *more, '--opts', *OPTIONS]
    return SCRIPT.main(SCRIPT.parse_args(words))


def with_scores(patch: pytest.MonkeyPatch, *scores: float) -> None:
    """Have the rounds score so among held-out patients; all labels 0.9."""
    by_name = dict(zip(ROUNDS, scores, strict=False)) | {'all_labels': 0.9}
    patch.setattr(Patients, 'held_out_score', lambda self, folder: by_name[folder.name])


@pytest.fixture(scope='module')
def cfg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_config(tmp_path_factory.mktemp('cfg') / 'c.yaml', 'finetune', VIT)


@pytest.fixture(scope='module')
def done(python: Path, cfg: Path, phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rounds, each better than the last, and all labels."""
    output = tmp_path_factory.mktemp('rounds')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('PYTHON', str(python))
        with_scores(patch, 0.5, 0.6, 0.7)
        assert main(cfg, phantom, output, '--rounds', '2', '--all-labels') == 0
    return output


def runs_in(output: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in output.rglob(RECORD_FILE)}


def table_in(output: Path) -> list[dict[str, str]]:
    with open(output / 'rounds.csv', newline='') as file:
        return list(csv.DictReader(file))


def copy_of(done: Path, folder: Path) -> Path:
    """The runs once more; their options say where they lie."""
    copy = folder / 'copy'
    shutil.copytree(done, copy)
    for path in copy.rglob('config.yaml'):
        path.write_text(path.read_text().replace(str(done), str(copy)))
    return copy


@pytest.mark.slow
def test_a_round_learns_from_what_the_last_one_was_confident_of(done: Path, phantom: Path) -> None:
    assert set(runs_in(done)) == {*ROUNDS, 'all_labels'}
    real = pd.read_csv(phantom / 'train.csv').set_index('Path')
    for number, row in enumerate(table_in(done)[:3]):
        folder = done / 'tiny_finetune' / ROUNDS[number]
        files = read_record(folder)['data']['files']
        assert (row['run'], row['best']) == (ROUNDS[number], str(number == 2))
        assert float(row['held_out']) == (0.5, 0.6, 0.7)[number]
        if number == 0:
            assert 'DATA.PSEUDO_LABELS' not in files and row['pseudo_pictures'] == '0'
            continue
        file = done / f'pseudo_labels_round{number}.csv'
        assert files['DATA.PSEUDO_LABELS'] == sha256(file)
        values = pd.read_csv(file).set_index('Path')
        teacher = done / 'tiny_finetune' / ROUNDS[number - 1] / 'predictions_train.csv'
        about = json.loads(file.with_suffix('.json').read_text())
        assert about['predictions'] == sha256(teacher)
        said = pd.read_csv(teacher).set_index('Path').loc[values.index]
        for label, predicted in said.items():
            cuts = about['labels'][label]
            high, low = (cuts[side]['threshold'] for side in ('positive', 'negative'))
            ones = predicted >= (np.inf if high is None else high)
            zeros = predicted <= (-np.inf if low is None else low)
            expected = np.where(ones == zeros, np.nan, ones.astype(float))
            np.testing.assert_array_equal(values[label], expected)
        # The table, by scikit-learn and pandas.
        assert int(row['pseudo_pictures']) == len(values) > 0
        assert int(row['positive_values']) == (values == 1).sum().sum()
        assert int(row['negative_values']) == (values == 0).sum().sum()
        learned = pd.read_csv(folder / 'predictions_train.csv').set_index('Path').loc[values.index]
        areas = [
            roc_auc_score(values[k].dropna(), learned[k][values[k].notna()])
            for k in LABELS
            if values[k].nunique() == 2
        ]
        assert int(row['auroc_labels']) == len(areas)
        assert row['auroc'] == '' if not areas else float(row['auroc']) == pytest.approx(
            np.mean(areas)
        )  # fmt: skip
        truth = real.loc[values.index, list(LABELS)].fillna(0).replace(-1, np.nan)
        negative = (values == 0) & truth.notna()
        assert float(row['negative_confirmed']) == pytest.approx(
            ((truth == 0) & negative).sum().sum() / negative.sum().sum()
        )


@pytest.mark.slow
def test_the_table_has_every_runs_scores(done: Path) -> None:
    rows = table_in(done)
    assert [row['run'] for row in rows] == [*ROUNDS, 'all_labels']
    first = json.loads((done / 'tiny_finetune/round0/scores.json').read_text())
    for row in rows:
        scores = json.loads((done / f'tiny_finetune/{row["run"]}/scores.json').read_text())
        for split in ('valid', 'test'):
            given = scores[split]['selected']['mean_of_defined']
            assert float(row[f'{split}_mean_of_defined']) == pytest.approx(given)
            if row['run'] != 'round0':
                name = f'{split}_mean_of_defined_minus_round0'
                before = first[split]['selected']['mean_of_defined']
                assert float(row[name]) == pytest.approx(given - before)
    assert int(rows[3]['real_pictures']) > 2 * int(rows[0]['real_pictures']) > 0
    page = (done / 'rounds.md').read_text()
    for text in ('round 0: supervised only', '**round 2**', 'all labels', 'put aside',
                 '2 rounds were asked for', 'Not for clinical use.'):  # fmt: skip
        assert text in page, text


@pytest.mark.slow
def test_the_held_out_score_is_that_which_selects_a_checkpoint(
    done: Path, cfg: Path, phantom: Path
) -> None:
    setup = Setup(str(cfg), str(phantom), done, options=OPTIONS)
    folder = setup.round(0).folder
    best = max(record.get('score', 0) for record in read_metrics(folder / 'metrics.jsonl')[1:])
    assert Rounds(setup, print).patients.held_out_score(folder) == pytest.approx(best, abs=1e-6)


@pytest.mark.slow
def test_run_again_it_leaves_finished_runs_alone(
    done: Path, cfg: Path, phantom: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, table = runs_in(done), (done / 'rounds.csv').read_bytes()
    monkeypatch.setenv('PYTHON', '/bin/false')
    with_scores(monkeypatch, 0.5, 0.6, 0.7)
    assert main(cfg, phantom, done, '--rounds', '2', '--all-labels') == 0
    assert runs_in(done) == before
    assert (done / 'rounds.csv').read_bytes() == table


@pytest.mark.slow
def test_other_pseudo_labels_are_refused_where_rounds_are(
    done: Path, cfg: Path, phantom: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    with_scores(monkeypatch, 0.5, 0.6, 0.7)
    copy = copy_of(done, tmp_path)
    file = copy / 'pseudo_labels_round1.csv'
    table = pd.read_csv(file).set_index('Path')
    (1 - table).to_csv(file)
    content = file.read_bytes()
    assert main(cfg, phantom, copy, '--rounds', '2') == 2
    assert 'holds other pseudo-labels than are chosen now' in capsys.readouterr().err
    assert file.read_bytes() == content
    # Nor is a run taken for that of other pseudo-labels.
    predictions = copy / 'tiny_finetune/round0/predictions_train.csv'
    table = pd.read_csv(predictions).set_index('Path')
    (1 - table).to_csv(predictions)
    file.unlink()
    assert main(cfg, phantom, copy, '--rounds', '2') == 2
    assert 'was trained on another' in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize('second', [0.5, 0.4])
def test_a_round_that_does_not_help_is_the_last(
    second: float, done: Path, cfg: Path, phantom: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setenv('PYTHON', '/bin/false')
    with_scores(monkeypatch, 0.5, second, 0.9)
    copy = copy_of(done, tmp_path)
    assert main(cfg, phantom, copy, '--rounds', '2') == 0
    rows = table_in(copy)
    assert [(row['run'], row['best']) for row in rows] == [('round0', 'True'), ('round1', 'False')]
    said = capsys.readouterr().out
    assert 'best: round 0; round 1 does not raise the held-out score of round 0' in said
    assert said.splitlines()[-1] == f'best: {copy / "tiny_finetune/round0"}'


@pytest.mark.slow
def test_without_a_confident_prediction_there_is_no_round(
    done: Path, cfg: Path, phantom: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    with_scores(monkeypatch, 0.5)
    copy = copy_of(done, tmp_path)
    predictions = copy / 'tiny_finetune/round0/predictions_holdout.csv'
    table = pd.read_csv(predictions).set_index('Path')
    (table * 0 + 0.5).to_csv(predictions)
    assert main(cfg, phantom, copy, '--rounds', '2') == 0
    assert [row['run'] for row in table_in(copy)] == ['round0']
    assert 'no prediction of round 0 is confident enough' in (copy / 'rounds.md').read_text()


def test_more_pictures_have_fewer_epochs_where_steps_are_to_be_equal(cfg: Path, tmp_path) -> None:
    options = ['TRAIN.EPOCHS', '40', 'TRAIN.WARMUP_EPOCHS', '4', 'DATA.TRAIN_IMAGES', '9']
    for growth, equal, epochs in [(1, True, (40, 4)), (4, True, (10, 1)), (4, False, (40, 4)),
                                  (3, True, (13, 1)), (100, True, (1, 0))]:  # fmt: skip
        setup = Setup(str(cfg), '', tmp_path, options=options, equal_steps=equal)
        for job in (setup.round(1, growth=growth), setup.all_labels(growth=growth)):
            assert (job.config.TRAIN.EPOCHS, job.config.TRAIN.WARMUP_EPOCHS) == epochs
            assert job.config.DATA.TRAIN_IMAGES == (9 if job.run == 'round1' else 0)


def test_equal_steps_are_of_the_pictures_that_are_learned_from(
    cfg: Path, phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two rounds and all labels, without a run: what is predicted is made up."""
    ran: list[Job] = []
    with_scores(monkeypatch, 0.5, 0.6, 0.7)

    def run(self: Runner) -> int:
        ran.extend(self.jobs)
        ran[-1].folder.mkdir(parents=True)
        (ran[-1].folder / 'predictions_train.csv').touch()
        return 0

    def predicted(self: Patients, folder: Path, split: str, records) -> np.ndarray:
        # Right of ever more pictures, so that the rounds learn from different numbers.
        real = np.nan_to_num(self.real(records), nan=0.5)
        sure = np.arange(len(records)) < len(records) * {'round0': 0.3, 'round1': 0.9}[folder.name]
        return np.where(sure[:, None] | (split == 'holdout'), real, 0.5)

    monkeypatch.setattr(Runner, 'run', run)
    monkeypatch.setattr(Patients, 'predicted', predicted)
    options = [*OPTIONS, 'TRAIN.EPOCHS', '40', 'TRAIN.WARMUP_EPOCHS', '4']
    setup = Setup(
        str(cfg), str(phantom), tmp_path, options=options, confidence=0.1, equal_steps=True
    )
    rounds = Rounds(setup, print)
    assert rounds.run(2, after_round=lambda _: None) == rounds.run_reference() == 0
    files = [tmp_path / f'pseudo_labels_round{number}.csv' for number in (1, 2)]
    pseudo = [len(pd.read_csv(file)) for file in files]
    table = pd.read_csv(phantom / 'train.csv')
    frontal = table['Frontal/Lateral'] == 'Frontal'
    patients = table['Path'].str.extract(r'(patient\d+)')[0]
    real = rounds.real_pictures
    everyone = int((frontal & ~patients.isin(rounds.patients.held_out.patient)).sum())
    assert 0 < pseudo[0] < pseudo[1] and 0 < real < everyone
    growth = [1, 1 + pseudo[0] / real, 1 + pseudo[1] / real, everyone / real]
    found = [(job.run, job.config.TRAIN.EPOCHS, job.config.TRAIN.WARMUP_EPOCHS) for job in ran]
    assert found == [
        (run, round(40 / times), round(4 / times))
        for run, times in zip([*ROUNDS, 'all_labels'], growth, strict=True)
    ]
    assert len({epochs for _, epochs, _ in found}) == 4


@pytest.mark.parametrize('began_with', ['', 'a.pth'])
def test_rounds_of_another_start_are_not_gone_on_with(
    began_with: str, cfg: Path, phantom: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setenv('PYTHON', '/bin/false')
    weights = {'': '', 'a.pth': str(tmp_path / 'a.pth')}
    (tmp_path / 'a.pth').write_bytes(b'weights')
    pretrained = weights.pop(began_with)
    output = tmp_path / 'o'
    job = Setup(str(cfg), str(phantom), output, pretrained, options=OPTIONS).round(0)
    job.folder.mkdir(parents=True)
    (job.folder / 'config.yaml').write_text(config_text(job.config))
    record = {'pretrained': weights_checksum(pretrained), 'finished': 'now'}
    (job.folder / RECORD_FILE).write_text(json.dumps(record))
    (other,) = weights.values()
    assert main(cfg, phantom, output, *(['--pretrained', other] if other else [])) == 2
    names = [pretrained or 'random weights', other or 'random weights']
    assert capsys.readouterr().err == (
        f'error: {job.folder} holds another run (weights: {" -> ".join(names)}): choose another '
        '--output, or give the options that it was run with\n'
    )
    # With its own start it is finished: the first that is missed are its predictions.
    assert main(cfg, phantom, output, *(['--pretrained', pretrained] if pretrained else [])) == 2
    assert 'predictions_holdout.csv' in capsys.readouterr().err


@pytest.mark.slow
def test_a_stop_is_passed_on(
    cfg: Path, phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Runner, 'run', lambda self: EXIT_PREEMPTED)
    assert main(cfg, phantom, tmp_path / 'o', '--rounds', '2') == EXIT_PREEMPTED
    assert not os.path.exists(tmp_path / 'o' / 'rounds.md')


@pytest.mark.parametrize('views', [('all', ''), ('all', 'all'), ('frontal', 'all')])
def test_views_that_are_scored_may_be_more_than_are_learned_from(
    views: tuple[str, str], cfg: Path, phantom: Path, tmp_path: Path
) -> None:
    options = [*OPTIONS, 'DATA.VIEWS', views[0], 'EVAL.VIEWS', views[1]]
    rounds = Rounds(Setup(str(cfg), str(phantom), tmp_path, options=options), print)
    assert rounds.real_pictures > 0


@pytest.mark.parametrize(
    ('words', 'options', 'message'),
    [
        (['--rounds', '0'], [], '--rounds must be at least 1, got 0'),
        (['--processes', '0'], [], '--processes must be at least 1, got 0'),
        (['--confidence', '0'], [], 'confidence must be above 0 and at most 1, got 0.0'),
        ([], ['DATA.TRAIN_FRACTION', '1.0'], 'DATA.TRAIN_FRACTION must be below 1'),
        (
            [],
            ['DATA.HOLDOUT_FRACTION', '0.0', 'EVAL.SELECT_ON', 'valid'],
            'DATA.HOLDOUT_FRACTION must be above 0, got 0.0',
        ),
        (
            [],
            ['DATA.VIEWS', 'all', 'EVAL.VIEWS', 'frontal'],
            "EVAL.VIEWS must be '', 'all' or as DATA.VIEWS ('all'), got 'frontal'",
        ),
        (
            [],
            ['DATA.VIEWS', 'frontal', 'EVAL.VIEWS', 'lateral'],
            "EVAL.VIEWS must be '', 'all' or as DATA.VIEWS ('frontal'), got 'lateral'",
        ),
    ],
)
def test_mistakes_are_refused_before_anything_is_run(
    words: list[str], options: list[str], message: str, cfg: Path, phantom: Path, tmp_path, capsys
) -> None:
    given = ['--cfg', str(cfg), '--data-path', str(phantom), '--output', str(tmp_path / 'o')]
    args = SCRIPT.parse_args([*given, *words, '--opts', *OPTIONS, *options])
    assert SCRIPT.main(args) == 2
    assert capsys.readouterr().err.startswith(f'error: {message}')
    assert not (tmp_path / 'o').exists()
