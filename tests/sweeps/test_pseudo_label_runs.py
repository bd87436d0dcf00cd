"""Pseudo-labels: real runs of teacher and student on phantoms, and their table."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from sklearn.metrics import accuracy_score, precision_score, recall_score, roc_auc_score
from tiny import VIT, run_script, tiny_config
from warm_python import warm_python

from data.tables.labels import LABELS
from data.tables.predictions import write_predictions
from data.tables.splits import FEW_TRAINING_IMAGES
from engine.lineage import as_json, trainings_of
from engine.run_record import RECORD_FILE, read_record
from evaluation.calibration import choose_threshold
from evaluation.metrics import count_classes, labels_of_mean
from sweeps.files import Job
from sweeps.pseudo_labels import (
    ALL_LABELS,
    STUDENT,
    TEACHER,
    PseudoLabels,
    file_of,
    student,
    write_tables,
)
from system.files import sha256
from utils import read_checkpoint

# Models are random: a low confidence keeps something, and the options leave many patients.
OPTIONS = (
    'DATA.TRAIN_IMAGES 0 DATA.TRAIN_FRACTION 0.3 DATA.HOLDOUT_FRACTION 0.4 DATA.UNCERTAIN ones '
    'TRAIN.EPOCHS 1 TRAIN.WARMUP_EPOCHS 0 EVAL.RESAMPLES 40'
).split()


def main(cfg: Path, data: Path, output: Path, *more: str, confidence: str = '0.1') -> int:
    words = ['--cfg', cfg, '--data-path', data, '--output', output, '--confidence', confidence]
    words += ['--all-labels', '--rounds', '2', '--opts', *OPTIONS, *more]
    return run_script('pseudo_label', *words)


@pytest.fixture(scope='module')
def cfg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_config(tmp_path_factory.mktemp('cfg') / 'c.yaml', 'finetune', VIT)


@pytest.fixture(scope='module')
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with warm_python(tmp_path_factory.mktemp('warm')) as path:
        yield path


@pytest.fixture(scope='module')
def done(python: Path, cfg: Path, phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp('runs')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('PYTHON', str(python))
        assert main(cfg, phantom, output) == 0
    return output


def runs_in(output: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in output.rglob(RECORD_FILE)}


@pytest.mark.slow
def test_the_student_learns_what_the_teacher_was_confident_of(done: Path) -> None:
    assert set(runs_in(done)) == {TEACHER, STUDENT, 'student_2', ALL_LABELS}
    file = done / 'pseudo_labels.csv'
    record = read_record(done / 'tiny_finetune' / STUDENT)
    assert record['data']['files']['DATA.PSEUDO_LABELS'] == sha256(file)
    values = pd.read_csv(file).set_index('Path')
    predictions = done / 'tiny_finetune' / TEACHER / 'predictions_train.csv'
    about = json.loads(file.with_suffix('.json').read_text())
    assert about['predictions'] == sha256(predictions)
    checkpoint = json.loads(predictions.with_suffix('.json').read_text())['checkpoint']
    assert about['lineage'] == as_json(trainings_of(checkpoint, read_checkpoint(checkpoint)))
    for label, predicted in pd.read_csv(predictions).set_index('Path').loc[values.index].items():
        cuts = about['cuts'][label]
        high, low = (cuts[side]['threshold'] for side in ('positive', 'negative'))
        ones = predicted >= (np.inf if high is None else high)
        zeros = predicted <= (-np.inf if low is None else low)
        expected = np.where(ones == zeros, np.nan, ones.astype(float))
        np.testing.assert_array_equal(values[label], expected)


@pytest.mark.slow
def test_the_table_has_the_scores_of_scikit_learn(done: Path, cfg: Path, phantom: Path) -> None:
    tables = {
        metric: pd.read_csv(done / f'pseudo_labels_{metric}.csv').set_index(['row', 'group'])
        for metric in ('auroc', 'accuracy', 'precision', 'recall')
    }
    work = PseudoLabels(str(cfg), str(phantom), done, options=OPTIONS)
    real = pd.read_csv(phantom / 'train.csv').set_index('Path')[[*LABELS]].fillna(0)
    targets = real.loc[work.labelled.path].replace(-1, np.nan)
    folder = done / 'tiny_finetune' / STUDENT
    held_out = pd.read_csv(folder / 'predictions_holdout.csv').set_index('Path')
    truth = real.loc[held_out.index].replace(-1, np.nan)
    predicted = pd.read_csv(folder / 'predictions_train.csv').set_index('Path').loc[targets.index]
    found = {metric: [] for metric in tables}
    for label in labels_of_mean(count_classes(targets[[*LABELS]].to_numpy(), LABELS)):
        known = targets[label].notna()
        own, given = targets.loc[known, label], predicted.loc[known, label]
        found['auroc'].append(roc_auc_score(own, given))
        how = {'rule': 'youden', 'sensitivity': 0}
        threshold = choose_threshold(held_out[label].to_numpy(), truth[label].to_numpy(), **how)
        if not np.isnan(threshold):
            called = given >= threshold
            found['accuracy'].append(accuracy_score(own, called))
            found['precision'].append(precision_score(own, called, zero_division=0))
            found['recall'].append(recall_score(own, called))
    for metric, values_of_labels in found.items():
        line = tables[metric].loc[(STUDENT, 'labelled')]
        assert line['value'] == pytest.approx(np.mean(values_of_labels))
        assert line['cases'] == len(targets)
        assert line['labels_in_mean'] == len(values_of_labels)
    table = tables['auroc']
    assert (ALL_LABELS, 'labelled') not in table.index  # it predicts no training images
    line = table.loc[(STUDENT, 'valid')]
    assert line['against'] == TEACHER
    teacher = table.loc[(TEACHER, 'valid'), 'value']
    assert line['difference'] == pytest.approx(line['value'] - teacher)
    rounds = tables['auroc'].loc[('student_2', 'valid'), ['value', 'against', 'difference']]
    assert rounds['against'].tolist() == [TEACHER, STUDENT]
    before = [tables['auroc'].loc[(name, 'valid'), 'value'] for name in (TEACHER, STUDENT)]
    before = [value.iloc[0] if hasattr(value, 'iloc') else value for value in before]
    assert (rounds['value'] - rounds['difference']).tolist() == pytest.approx(before)
    page = (done / 'pseudo_labels_auroc.md').read_text()
    for words in ('of student_2 against', 'confirmed', 'labelled: The mean is over'):
        assert words in page


@pytest.mark.slow
def test_rows_are_only_compared_on_the_same_images_and_labels(done: Path) -> None:
    """Each student has pseudo-labels of its own, which no score is of."""
    for metric in ('auroc', 'accuracy', 'precision', 'recall'):
        table = pd.read_csv(done / f'pseudo_labels_{metric}.csv')
        assert {*table['group']} == {'test', 'valid', 'labelled'}
        sizes = table.groupby('group')[['cases', 'labels_in_mean']].nunique()
        assert (sizes == 1).all(axis=None)


@pytest.mark.slow
def test_finished_runs_are_left_alone_and_others_refused(done, cfg, phantom, monkeypatch, capsys):
    before, table = runs_in(done), (done / 'pseudo_labels_auroc.csv').read_bytes()
    monkeypatch.setenv('PYTHON', '/bin/false')
    assert main(cfg, phantom, done) == 0
    assert (runs_in(done), (done / 'pseudo_labels_auroc.csv').read_bytes()) == (before, table)
    capsys.readouterr()
    assert main(cfg, phantom, done, confidence='0.05') == 2
    assert f'{done / "tiny_finetune" / STUDENT} contains another run' in capsys.readouterr().err
    assert main(cfg, phantom, done) == 0  # writes the same pseudo-labels again


def test_students_teach_the_next_until_nothing_is_confident(cfg, phantom, tmp_path, monkeypatch):
    said: list[str] = []
    work = PseudoLabels(str(cfg), str(phantom), tmp_path, OPTIONS, confidence=0.5, say=said.append)
    rng = np.random.default_rng(0)

    def train(job: Job) -> int:
        """Right predictions by the first two models, then random ones."""
        for split, records in (('holdout', work.held_out), ('train', work.unlabelled)):
            values = np.nan_to_num(work.task.scored(records)) * 0.8 + 0.1
            if len(work.jobs) > 1:
                values = rng.random(values.shape)
            options = {'paths': records.path, 'labels': work.task.labels, 'source': {}}
            job.folder.mkdir(parents=True, exist_ok=True)
            write_predictions(job.folder / f'predictions_{split}.csv', values, **options)
        work.jobs.append(job)
        return 0

    monkeypatch.setattr(work, '_run', train)
    assert work.run(all_labels=False, rounds=5) == 0
    assert [job.run for job in work.jobs] == [TEACHER, STUDENT, 'student_2']
    for job, name, before in zip(work.jobs[1:], ('', '_2'), work.jobs, strict=False):
        file = tmp_path / f'pseudo_labels{name}.csv'
        assert job.config.DATA.PSEUDO_LABELS == str(file)
        source = json.loads(file.with_suffix('.json').read_text())
        assert source['predictions'] == sha256(before.folder / 'predictions_train.csv')
    (sentence,) = said
    assert sentence.startswith('Round 3: no prediction of student_2 is confident enough for --conf')
    assert work.ended == sentence


def test_images_of_views_that_are_not_predicted_are_counted_and_the_others_scored(
    cfg, phantom, tmp_path, monkeypatch
):
    """The config of the SimMIM study learns from all views and predicts the frontal ones."""
    options = [*OPTIONS, 'DATA.VIEWS', 'all', 'EVAL.VIEWS', 'frontal']
    work = PseudoLabels(str(cfg), str(phantom), tmp_path, options)
    rng = np.random.default_rng(0)

    def train(job: Job) -> int:
        everything = np.concatenate([work.labelled.path, work.unlabelled.path])
        views = np.concatenate([work.labelled.view, work.unlabelled.view])
        paths = {'holdout': work.held_out.path[work.held_out.view == 'frontal']}
        paths['train'] = everything[views == 'frontal']
        job.folder.mkdir(parents=True, exist_ok=True)
        for split, names in paths.items():
            values = rng.random((len(names), len(work.task.labels)))
            about = {'paths': names, 'labels': work.task.labels, 'source': {}}
            write_predictions(job.folder / f'predictions_{split}.csv', values, **about)
        work.jobs.append(job)
        return 0

    monkeypatch.setattr(work, '_run', train)
    monkeypatch.setattr(work, 'choose', lambda number: 0)
    assert work.run(all_labels=False) == 0
    notes = []
    monkeypatch.setattr(Figure, 'savefig', lambda it, *_, **__: notes.append(it.get_supxlabel()))
    (page, *_) = write_tables([work], tmp_path)
    assert 'Round 1: no prediction of teacher is confident' in ' '.join(notes[0].split())
    table = pd.read_csv(page.with_suffix('.csv')).set_index('group')
    frontal = work.labelled.view == 'frontal'
    assert table.loc['labelled', 'cases'] == frontal.sum() < len(frontal)
    others = {
        'labelled': ('are not scored', work.labelled),
        'unlabelled': ('get no pseudo-labels', work.unlabelled),
    }
    for name, (then, records) in others.items():
        lateral = (records.view == 'lateral').sum()
        assert lateral > 0
        words = f'{lateral} of {len(records)} {name} images have no prediction and {then}'
        assert words in page.read_text()


def test_rounds_are_means_over_seeds_in_table_and_figure(cfg, phantom, tmp_path, monkeypatch):
    """Teachers and students are made up: later rounds are better."""
    areas, works = {}, []
    for seed in range(2):
        folder = tmp_path / f'seed_{seed}'
        work = PseudoLabels(str(cfg), str(phantom), folder, [*OPTIONS, 'SEED', str(seed)])
        works.append(work)

        def train(job: Job, work: PseudoLabels = work) -> int:
            rng = np.random.default_rng([job.seed, len(work.jobs)])
            job.folder.mkdir(parents=True, exist_ok=True)
            for split, parts in {
                'holdout': [work.held_out],
                'train': [work.labelled, work.unlabelled],
            }.items():
                truth = np.concatenate([work.task.scored(part) for part in parts])
                noise = rng.normal(size=truth.shape)
                values = 1 / (1 + np.exp(-(np.nan_to_num(truth) * len(work.jobs) + noise)))
                names = np.concatenate([part.path for part in parts])
                about = {'paths': names, 'labels': work.task.labels, 'source': {}}
                write_predictions(job.folder / f'predictions_{split}.csv', values, **about)
            counts = count_classes(work.task.scored(work.labelled), LABELS)
            predicted = work._predicted(job, 'train', work.labelled)
            known = [LABELS.index(label) for label in labels_of_mean(counts)]
            truth = work.task.scored(work.labelled)
            pairs = [(truth[:, k], predicted[:, k]) for k in known]
            pairs = [(a[~np.isnan(a)], b[~np.isnan(a)]) for a, b in pairs]
            areas.setdefault(job.run, []).append(np.mean([roc_auc_score(*p) for p in pairs]))
            work.jobs.append(job)
            return 0

        def choose(number: int, work: PseudoLabels = work) -> int:
            values = np.ones((1, len(work.task.labels)))
            about = {'paths': work.unlabelled.path[:1], 'labels': work.task.labels, 'source': {}}
            write_predictions(work.output / file_of(student(number)), values, **about)
            return 1

        folder.mkdir()
        monkeypatch.setattr(work, '_run', train)
        monkeypatch.setattr(work, 'choose', choose)
        assert work.run(all_labels=False, rounds=2) == 0
    saved = []
    monkeypatch.setattr(Figure, 'savefig', lambda figure, *_, **__: saved.append(figure))
    (page, *_) = write_tables(works, tmp_path)
    table = pd.read_csv(page.with_suffix('.csv')).drop_duplicates('row').set_index('row')
    wanted = {name: np.mean(values) for name, values in areas.items()}
    assert table['value'].to_dict() == pytest.approx(wanted)
    assert [*wanted] == [TEACHER, STUDENT, 'student_2'] and {*table['seeds']} == {2}
    assert '- Seed 1: Pseudo-labels of student_2 against' in page.read_text()
    (axis,) = saved[0].axes
    heights = axis.containers[0][0].get_ydata()
    assert [*heights] == pytest.approx([*wanted.values()])
    assert [text.get_text() for text in axis.get_xticklabels()] == ['teacher', '1', '2']
    note = ' '.join(saved[0].get_supxlabel().split())
    assert 'Dots: each of 2 seeds.' in note and 'Not for clinical use.' in note


def test_real_labels_decide_for_all_runs_whether_a_checkpoint_is_selected(cfg, phantom, tmp_path):
    options = [*OPTIONS, 'EVAL.SELECT_ON', 'auto']
    work = PseudoLabels(str(cfg), str(phantom), tmp_path, options=options)
    assert len(work.labelled) < FEW_TRAINING_IMAGES
    jobs = work.job(TEACHER), work.job(STUDENT, growth=9.0), work.job(ALL_LABELS, growth=9.0)
    assert [job.config.EVAL.SELECT_ON for job in jobs] == ['last'] * 3


def test_with_equal_steps_more_images_are_trained_for_fewer_epochs(cfg, phantom, tmp_path) -> None:
    options = [*OPTIONS, 'TRAIN.EPOCHS', '40', 'TRAIN.WARMUP_EPOCHS', '4']
    work = PseudoLabels(str(cfg), str(phantom), tmp_path, options=options, equal_steps=True)
    for growth, epochs, warmup in ((1.0, 40, 4), (2.5, 16, 2), (100.0, 1, 0)):
        train = work.job(STUDENT, growth=growth).config.TRAIN
        assert (train.EPOCHS, train.WARMUP_EPOCHS) == (epochs, warmup)
    table = pd.read_csv(phantom / 'train.csv')
    patients = table['Path'].str.extract(r'(patient\d+)')[0]
    trained = ~patients.isin(work.held_out.patient) & (table['Frontal/Lateral'] == 'Frontal')
    assert work.all_images == trained.sum()


@pytest.mark.parametrize('equal_steps', [False, True])
def test_runs_that_take_more_steps_than_the_teacher_are_named(
    equal_steps: bool, cfg, phantom, tmp_path, monkeypatch
) -> None:
    """A student learns from more images in as many epochs, which may be why it is better."""
    options = [*OPTIONS, 'TRAIN.EPOCHS', '30']
    work = PseudoLabels(str(cfg), str(phantom), tmp_path, options, equal_steps=equal_steps)
    monkeypatch.setattr(work, '_run', lambda job: work.jobs.append(job))
    monkeypatch.setattr(work, 'choose', lambda number: 2 * len(work.labelled))
    monkeypatch.setattr(work, '_not_predicted', list)
    monkeypatch.setattr(work, 'students', list)
    assert work.run(all_labels=False) == 0
    notes = work.about_pseudo_labels()
    assert bool(notes) is not equal_steps
    assert equal_steps or 'multiples of those of the teacher: student 3.0. They may' in notes[0]


def test_options_that_no_run_can_work_with_are_refused(cfg, phantom, tmp_path, capsys) -> None:
    assert main(cfg, phantom, tmp_path / 'o', 'DATA.HOLDOUT_FRACTION', '0.0') == 2
    assert 'DATA.HOLDOUT_FRACTION' in capsys.readouterr().err
    assert not (tmp_path / 'o').exists()
