"""Rounds of pseudo-labels: real runs on phantoms, with prescribed held-out scores."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score
from tiny import VIT, run_script, tiny_config
from warm_python import warm_python

from config import FEW_TRAINING_IMAGES
from data.labels import LABELS
from engine.run_record import RECORD_FILE, read_record
from logger import read_metrics
from sweeps import pseudo_label_rounds
from sweeps.pseudo_label_rounds import Rounds
from system.files import sha256

ROUNDS = ('round0', 'round1', 'round2')
# Models are random: a low confidence keeps something, and the options leave many patients.
OPTIONS = (
    'DATA.TRAIN_IMAGES 0 DATA.TRAIN_FRACTION 0.3 DATA.HOLDOUT_FRACTION 0.4 DATA.UNCERTAIN ones '
    'TRAIN.EPOCHS 1 TRAIN.WARMUP_EPOCHS 0 EVAL.RESAMPLES 40'
).split()


def main(cfg: Path, data: Path, output: Path, *more: str, confidence: str = '0.1') -> int:
    words = ['--cfg', str(cfg), '--data-path', str(data), '--output', str(output)]
    words += ['--confidence', confidence, *more, '--opts', *OPTIONS]
    return run_script('pseudo_label', *words)


def with_scores(patch: pytest.MonkeyPatch, *scores: float) -> None:
    """Prescribe the held-out scores of the rounds; all labels have 0.9."""
    by_name = dict(zip(ROUNDS, scores, strict=False)) | {'all_labels': 0.9}
    patch.setattr(Rounds, 'held_out_score', lambda self, job: by_name[job.run])


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


@pytest.mark.slow
def test_a_round_learns_what_the_one_before_was_confident_of(
    done: Path, cfg: Path, phantom: Path
) -> None:
    unlabelled = Rounds(str(cfg), str(phantom), done, options=OPTIONS).unlabelled.path
    assert set(runs_in(done)) == {*ROUNDS, 'all_labels'}
    rows = table_in(done)
    assert [(row['run'], row['best']) for row in rows[:3]] == [
        ('round0', 'False'),
        ('round1', 'False'),
        ('round2', 'True'),
    ]
    assert rows[0]['pseudo_images'] == rows[3]['pseudo_images'] == '0'
    real = pd.read_csv(phantom / 'train.csv').set_index('Path')
    for number, row in enumerate(rows[1:3], 1):
        folder = done / 'tiny_finetune' / ROUNDS[number]
        file = done / f'pseudo_labels_round{number}.csv'
        assert read_record(folder)['data']['files']['DATA.PSEUDO_LABELS'] == sha256(file)
        values = pd.read_csv(file).set_index('Path')
        teacher = done / 'tiny_finetune' / ROUNDS[number - 1] / 'predictions_train.csv'
        about = json.loads(file.with_suffix('.json').read_text())
        assert about['predictions'] == sha256(teacher)
        for label, predicted in pd.read_csv(teacher).set_index('Path').loc[values.index].items():
            cuts = about['cuts'][label]
            high, low = (cuts[side]['threshold'] for side in ('positive', 'negative'))
            ones = predicted >= (np.inf if high is None else high)
            zeros = predicted <= (-np.inf if low is None else low)
            expected = np.where(ones == zeros, np.nan, ones.astype(float))
            np.testing.assert_array_equal(values[label], expected)
        # The table against scikit-learn and pandas.
        everything = pd.read_csv(folder / 'predictions_train.csv').set_index('Path')
        labelled = everything.loc[~everything.index.isin(unlabelled)]
        scored = real.loc[labelled.index, list(LABELS)].fillna(0).replace(-1, np.nan)
        areas = [
            roc_auc_score(scored[k].dropna(), labelled[k][scored[k].notna()])
            for k in LABELS
            if scored[k].nunique() == 2
        ]
        assert float(row['labelled_auroc']) == pytest.approx(np.mean(areas))
        assert int(row['pseudo_images']) == len(values) > 0
        assert int(row['positive_values']) == (values == 1).sum().sum()
        learned = pd.read_csv(folder / 'predictions_train.csv').set_index('Path').loc[values.index]
        areas = [
            roc_auc_score(values[k].dropna(), learned[k][values[k].notna()])
            for k in LABELS
            if values[k].nunique() == 2
        ]
        assert int(row['auroc_labels']) == len(areas)
        wanted = np.mean(areas) if areas else np.nan
        assert float(row['auroc'] or 'nan') == pytest.approx(wanted, nan_ok=True)
        truth = real.loc[values.index, list(LABELS)].fillna(0).replace(-1, np.nan)
        negative = (values == 0) & truth.notna()
        assert float(row['negative_confirmed']) == pytest.approx(
            ((truth == 0) & negative).sum().sum() / negative.sum().sum()
        )


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
def test_a_round_that_does_not_help_is_the_last(
    done: Path, cfg: Path, phantom: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setenv('PYTHON', '/bin/false')
    with_scores(monkeypatch, 0.5, 0.5, 0.9)
    assert main(cfg, phantom, done, '--rounds', '2') == 0
    rows = table_in(done)
    assert [(row['run'], row['best']) for row in rows] == [('round0', 'True'), ('round1', 'False')]
    assert str(done / 'tiny_finetune/round0') in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.slow
def test_a_run_that_learned_from_other_pseudo_labels_is_refused(
    done: Path, cfg: Path, phantom: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setenv('PYTHON', '/bin/false')
    with_scores(monkeypatch, 0.5, 0.6, 0.7)
    files = {file: file.read_bytes() for file in done.glob('pseudo_labels_*')}
    assert main(cfg, phantom, done, '--rounds', '2', confidence='0.05') == 2
    assert {file: file.read_bytes() for file in done.glob('pseudo_labels_*')} == files != {}
    assert str(done / 'tiny_finetune/round1') in capsys.readouterr().err


@pytest.mark.slow
def test_the_held_out_score_is_the_one_that_selects_checkpoints(
    done: Path, cfg: Path, phantom: Path
) -> None:
    rounds = Rounds(str(cfg), str(phantom), done, options=OPTIONS)
    job = rounds.round(0)
    best = max(record.get('score', 0) for record in read_metrics(job.folder / 'metrics.jsonl')[1:])
    assert rounds.held_out_score(job) == pytest.approx(best, abs=1e-6)


def test_means_that_the_labels_do_not_have_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the five labels of the competition, scores.json has no mean of five."""
    samples = {'round0': np.array([0.7, 0.6, 0.8]), 'round1': np.array([0.75, 0.65, 0.9])}

    def scores(folder: Path, split: str) -> SimpleNamespace:
        return SimpleNamespace(figures={'scores': {'mean_of_defined': 0.7}}, round=folder.name)

    patients = SimpleNamespace(samples=lambda run: {'mean_of_defined': samples[run.round]})
    monkeypatch.setattr(pseudo_label_rounds, 'read_scores', scores)
    monkeypatch.setattr(pseudo_label_rounds, 'ScoredPatients', lambda *_, **__: patients)
    config = SimpleNamespace(EVAL=SimpleNamespace(RESAMPLES=2), SEED=0)
    names = ('round0', 'round1')
    jobs = [SimpleNamespace(run=name, folder=Path(name)) for name in names]
    rows = [{'run': name} for name in names]
    pseudo_label_rounds._add_scores(rows, SimpleNamespace(jobs=jobs, config=config), 'valid')
    assert rows[0] == {
        'run': 'round0',
        'valid_mean_of_defined': 0.7,
        'valid_mean_of_defined_low': pytest.approx(0.605),
        'valid_mean_of_defined_high': pytest.approx(0.795),
    }
    assert rows[1]['valid_mean_of_defined_minus_round0_high'] == pytest.approx(0.09875)
    assert 'valid_mean_of_defined_minus_round0' not in rows[0]


def test_real_labels_decide_for_all_runs_whether_a_checkpoint_is_selected(
    cfg: Path, phantom: Path, tmp_path: Path
) -> None:
    options = [*OPTIONS, 'EVAL.SELECT_ON', 'auto']
    rounds = Rounds(str(cfg), str(phantom), tmp_path, options=options)
    assert rounds.real_images < FEW_TRAINING_IMAGES
    jobs = rounds.round(0), rounds.round(1, growth=9.0), rounds.all_labels(growth=9.0)
    assert [job.config.EVAL.SELECT_ON for job in jobs] == ['last'] * 3


def test_with_equal_steps_more_images_are_trained_for_fewer_epochs(
    cfg: Path, phantom: Path, tmp_path: Path
) -> None:
    options = [*OPTIONS, 'TRAIN.EPOCHS', '40', 'TRAIN.WARMUP_EPOCHS', '4']
    rounds = Rounds(str(cfg), str(phantom), tmp_path, options=options, equal_steps=True)
    for growth, epochs, warmup in ((1.0, 40, 4), (2.5, 16, 2), (100.0, 1, 0)):
        train = rounds.round(1, growth=growth).config.TRAIN
        assert (train.EPOCHS, train.WARMUP_EPOCHS) == (epochs, warmup)
    table = pd.read_csv(phantom / 'train.csv')
    patients = table['Path'].str.extract(r'(patient\d+)')[0]
    trained = ~patients.isin(rounds.held_out.patient) & (table['Frontal/Lateral'] == 'Frontal')
    assert rounds.real_images + len(rounds.unlabelled) == trained.sum()


@pytest.mark.parametrize(
    ('options', 'key'),
    [(['DATA.HOLDOUT_FRACTION', '0.0'], 'DATA.HOLDOUT_FRACTION'), (['NO.KEY', '1'], 'NO.KEY')],
)
def test_options_that_no_round_can_work_with_are_refused(
    options: list[str], key: str, cfg: Path, phantom: Path, tmp_path: Path, capsys
) -> None:
    words = ['--cfg', cfg, '--data-path', phantom, '--output', tmp_path / 'o']
    assert run_script('pseudo_label', *words, '--opts', *OPTIONS, *options) == 2
    assert key in capsys.readouterr().err
    assert not (tmp_path / 'o').exists()
