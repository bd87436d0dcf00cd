"""Rounds of pseudo-labels: real runs on phantoms, with prescribed held-out scores."""

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score
from sweep_commands import load_script
from tiny import VIT, tiny_config
from warm_python import warm_python

from data.labels import LABELS
from engine.files import sha256
from engine.run_record import RECORD_FILE, read_record
from logger import read_metrics
from sweeps.files import Job
from sweeps.pseudo_labels import Patients, Rounds, Setup
from sweeps.runner import Runner

SCRIPT = load_script('pseudo_label')
ROUNDS = ('round0', 'round1', 'round2')
# Models are random: a low confidence keeps something, and the options leave many patients.
OPTIONS = (
    'DATA.TRAIN_IMAGES 0 DATA.TRAIN_FRACTION 0.3 DATA.HOLDOUT_FRACTION 0.4 DATA.UNCERTAIN ones '
    'TRAIN.EPOCHS 1 TRAIN.WARMUP_EPOCHS 0 EVAL.RESAMPLES 40'
).split()


def main(cfg: Path, data: Path, output: Path, *more: str) -> int:
    words = ['--cfg', str(cfg), '--data-path', str(data), '--output', str(output)]
    words += ['--confidence', '0.1', *more, '--opts', *OPTIONS]
    return SCRIPT.main(SCRIPT.parse_args(words))


def with_scores(patch: pytest.MonkeyPatch, *scores: float) -> None:
    """Prescribe the held-out scores of the rounds; all labels have 0.9."""
    by_name = dict(zip(ROUNDS, scores, strict=False)) | {'all_labels': 0.9}
    patch.setattr(Patients, 'held_out_score', lambda self, folder: by_name[folder.name])


@pytest.fixture(scope='module')
def cfg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_config(tmp_path_factory.mktemp('cfg') / 'c.yaml', 'finetune', VIT)


@pytest.fixture(scope='module')
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with warm_python(tmp_path_factory.mktemp('warm')) as path:
        yield path


@pytest.fixture(scope='module')
def done(python: Path, cfg: Path, phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rounds, each better than the one before, and all labels."""
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
    """A copy of the runs, whose options name the new folder."""
    copy = folder / 'copy'
    shutil.copytree(done, copy)
    for path in copy.rglob('config.yaml'):
        path.write_text(path.read_text().replace(str(done), str(copy)))
    return copy


@pytest.mark.slow
def test_a_round_learns_what_the_one_before_was_confident_of(done: Path, phantom: Path) -> None:
    assert set(runs_in(done)) == {*ROUNDS, 'all_labels'}
    real = pd.read_csv(phantom / 'train.csv').set_index('Path')
    for number, row in enumerate(table_in(done)[:3]):
        folder = done / 'tiny_finetune' / ROUNDS[number]
        files = read_record(folder)['data']['files']
        assert (row['run'], row['best']) == (ROUNDS[number], str(number == 2))
        if number == 0:
            assert 'DATA.PSEUDO_LABELS' not in files and row['pseudo_images'] == '0'
            continue
        file = done / f'pseudo_labels_round{number}.csv'
        assert files['DATA.PSEUDO_LABELS'] == sha256(file)
        values = pd.read_csv(file).set_index('Path')
        teacher = done / 'tiny_finetune' / ROUNDS[number - 1] / 'predictions_train.csv'
        about = json.loads(file.with_suffix('.json').read_text())
        assert about['predictions'] == sha256(teacher)
        for label, predicted in pd.read_csv(teacher).set_index('Path').loc[values.index].items():
            cuts = about['labels'][label]
            high, low = (cuts[side]['threshold'] for side in ('positive', 'negative'))
            ones = predicted >= (np.inf if high is None else high)
            zeros = predicted <= (-np.inf if low is None else low)
            expected = np.where(ones == zeros, np.nan, ones.astype(float))
            np.testing.assert_array_equal(values[label], expected)
        # The table against scikit-learn and pandas.
        assert int(row['pseudo_images']) == len(values) > 0
        assert int(row['positive_values']) == (values == 1).sum().sum()
        learned = pd.read_csv(folder / 'predictions_train.csv').set_index('Path').loc[values.index]
        areas = [
            roc_auc_score(values[k].dropna(), learned[k][values[k].notna()])
            for k in LABELS
            if values[k].nunique() == 2
        ]
        assert int(row['auroc_labels']) == len(areas)
        assert float(row['auroc'] or 'nan') == pytest.approx(
            np.mean(areas) if areas else np.nan, nan_ok=True
        )
        truth = real.loc[values.index, list(LABELS)].fillna(0).replace(-1, np.nan)
        negative = (values == 0) & truth.notna()
        assert float(row['negative_confirmed']) == pytest.approx(
            ((truth == 0) & negative).sum().sum() / negative.sum().sum()
        )


@pytest.mark.slow
def test_the_held_out_score_is_the_one_that_selects_checkpoints(
    done: Path, cfg: Path, phantom: Path
) -> None:
    setup = Setup(str(cfg), str(phantom), done, options=OPTIONS)
    folder = setup.round(0).folder
    best = max(record.get('score', 0) for record in read_metrics(folder / 'metrics.jsonl')[1:])
    assert Rounds(setup, print).patients.held_out_score(folder) == pytest.approx(best, abs=1e-6)


@pytest.mark.slow
def test_finished_rounds_are_left_alone(
    done: Path, cfg: Path, phantom: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, table = runs_in(done), (done / 'rounds.csv').read_bytes()
    monkeypatch.setenv('PYTHON', '/bin/false')
    with_scores(monkeypatch, 0.5, 0.6, 0.7)
    assert main(cfg, phantom, done, '--rounds', '2', '--all-labels') == 0
    assert runs_in(done) == before
    assert (done / 'rounds.csv').read_bytes() == table


@pytest.mark.slow
def test_changed_pseudo_labels_are_refused(
    done: Path, cfg: Path, phantom: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    with_scores(monkeypatch, 0.5, 0.6, 0.7)
    copy = copy_of(done, tmp_path)
    file = copy / 'pseudo_labels_round1.csv'
    (1 - pd.read_csv(file).set_index('Path')).to_csv(file)
    content = file.read_bytes()
    assert main(cfg, phantom, copy, '--rounds', '2') == 2
    assert str(file) in capsys.readouterr().err
    assert file.read_bytes() == content
    # A run is not mistaken for one that learned from other pseudo-labels.
    predictions = copy / 'tiny_finetune/round0/predictions_train.csv'
    (1 - pd.read_csv(predictions).set_index('Path')).to_csv(predictions)
    file.unlink()
    assert main(cfg, phantom, copy, '--rounds', '2') == 2
    assert str(copy / 'tiny_finetune/round1') in capsys.readouterr().err


@pytest.mark.slow
def test_a_round_that_does_not_help_is_the_last(
    done: Path, cfg: Path, phantom: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setenv('PYTHON', '/bin/false')
    with_scores(monkeypatch, 0.5, 0.5, 0.9)
    copy = copy_of(done, tmp_path)
    assert main(cfg, phantom, copy, '--rounds', '2') == 0
    rows = table_in(copy)
    assert [(row['run'], row['best']) for row in rows] == [('round0', 'True'), ('round1', 'False')]
    assert str(copy / 'tiny_finetune/round0') in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.slow
def test_without_confident_predictions_there_is_no_round(
    done: Path, cfg: Path, phantom: Path, tmp_path: Path, monkeypatch
) -> None:
    with_scores(monkeypatch, 0.5)
    copy = copy_of(done, tmp_path)
    predictions = copy / 'tiny_finetune/round0/predictions_holdout.csv'
    (pd.read_csv(predictions).set_index('Path') * 0 + 0.5).to_csv(predictions)
    assert main(cfg, phantom, copy, '--rounds', '2') == 0
    assert [row['run'] for row in table_in(copy)] == ['round0']


def test_equal_steps_count_the_images_that_are_learned_from(
    cfg: Path, phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rounds and all labels, without a run: the predictions are made up."""
    ran: list[Job] = []
    with_scores(monkeypatch, 0.5, 0.6, 0.7)

    def run(self: Runner) -> int:
        ran.extend(self.jobs)
        ran[-1].folder.mkdir(parents=True)
        (ran[-1].folder / 'predictions_train.csv').touch()
        return 0

    def predicted(self: Patients, folder: Path, split: str, records) -> np.ndarray:
        # Right for ever more images, so that the rounds learn from different numbers.
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
    pseudo = [len(pd.read_csv(tmp_path / f'pseudo_labels_round{i}.csv')) for i in (1, 2)]
    table = pd.read_csv(phantom / 'train.csv')
    patients = table['Path'].str.extract(r'(patient\d+)')[0]
    trained = ~patients.isin(rounds.patients.held_out.patient)
    everyone = int(((table['Frontal/Lateral'] == 'Frontal') & trained).sum())
    real = rounds.real_images
    assert 0 < pseudo[0] < pseudo[1] and 0 < real < everyone
    growth = [1, 1 + pseudo[0] / real, 1 + pseudo[1] / real, everyone / real]
    found = [(job.run, job.config.TRAIN.EPOCHS, job.config.TRAIN.WARMUP_EPOCHS) for job in ran]
    assert found == [
        (run, round(40 / times), round(4 / times))
        for run, times in zip([*ROUNDS, 'all_labels'], growth, strict=True)
    ]


@pytest.mark.parametrize(
    ('options', 'key'),
    [
        (['DATA.HOLDOUT_FRACTION', '0.0'], 'DATA.HOLDOUT_FRACTION'),
        (['NO.KEY', '1'], 'NO.KEY'),
    ],
)
def test_options_that_no_round_can_work_with_are_refused(
    options: list[str], key: str, cfg: Path, phantom: Path, tmp_path: Path, capsys
) -> None:
    words = ['--cfg', str(cfg), '--data-path', str(phantom), '--output', str(tmp_path / 'o')]
    assert SCRIPT.main(SCRIPT.parse_args([*words, '--opts', *OPTIONS, *options])) == 2
    assert key in capsys.readouterr().err
    assert not (tmp_path / 'o').exists()
