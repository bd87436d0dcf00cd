"""scripts/evaluate.py: anyone's predictions give the report of a run, without torch or images."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, brier_score_loss, recall_score, roc_auc_score

from data.labels import COMPETITION_LABELS, LABELS
from evaluation.report import NO_INTERVAL

SCRIPT = Path(__file__).resolve().parents[1] / 'scripts/evaluate.py'
FIVE = list(COMPETITION_LABELS)
NUM_STUDIES = 60


@pytest.fixture(scope='module')
def evaluate():
    names = runpy.run_path(str(SCRIPT))

    def run(*arguments: object) -> int:
        return names['main'](names['parse_args']([*map(str, arguments)]))

    run.names = names
    return run


def studies(first: int = 1, number: int = NUM_STUDIES) -> list[str]:
    return [f'CheXpert-v1.0/test/patient{first + i:05d}/study1' for i in range(number)]


def draw_labels(seed: int, number: int = NUM_STUDIES) -> np.ndarray:
    return (np.random.default_rng(seed).random((number, 5)) < 0.4).astype(int)


def write_labels(file: Path, labels: np.ndarray, names: list[str], **columns: list[str]) -> Path:
    values = {label: labels[:, k] for k, label in enumerate(FIVE)}
    pd.DataFrame({'Study': names, **columns, **values}).to_csv(file, index=False)
    return file


def write_predictions(
    file: Path, labels: np.ndarray, names: list[str], *, noise: float = 1.0, extra: int = 0
) -> Path:
    """Of a model that knows the labels, with noise; columns and rows in an order of their own."""
    rng = np.random.default_rng([len(file.stem), round(10 * noise), len(names)])
    scores = 1 / (1 + np.exp(-(2 * labels - 1 + noise * rng.normal(size=labels.shape))))
    table = pd.DataFrame({'Study': names} | {label: scores[:, k] for k, label in enumerate(FIVE)})
    more = table.iloc[:extra].assign(Study=studies(50001, extra))
    table = pd.concat([table, more]).sample(frac=1, random_state=0)
    file.parent.mkdir(exist_ok=True)
    table[[*reversed(FIVE), 'Study']].to_csv(file, index=False)
    return file


def aligned(file: Path, names: list[str]) -> np.ndarray:
    return pd.read_csv(file).set_index('Study').loc[names, FIVE].to_numpy()


def scores_of(folder: Path, position: int = 0) -> tuple[dict, dict, dict]:
    """The report, one of its sets, and the entries of its labels."""
    report = json.loads((folder / 'report.json').read_text())
    entry = report['sets'][position]
    return report, entry, {part['label']: part for part in entry['labels']}


@pytest.mark.slow
def test_runs_without_torch_and_counts_what_it_leaves_out(tmp_path):
    """The command itself, where importing torch is an error."""
    names, labels = studies(), draw_labels(0)
    paths = (
        write_predictions(tmp_path / 'model.csv', labels, names, extra=14),
        write_labels(tmp_path / 'labels.csv', labels, names),
    )
    trap = tmp_path / 'trap'
    trap.mkdir()
    (trap / 'torch.py').write_text('raise RuntimeError("torch is imported")\n')
    command = [
        sys.executable, SCRIPT, '--predictions', paths[0], '--labels', paths[1],
        '--output', tmp_path / 'out', '--resamples', '50',
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120,
        env=os.environ | {'PYTHONPATH': str(trap), 'OMP_NUM_THREADS': '1'},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, '')
    report, entry, parts = scores_of(tmp_path / 'out')
    assert (entry['name'], entry['rows'], entry['level']) == ('model', NUM_STUDIES, 'study')
    probabilities = aligned(paths[0], names)
    areas = [roc_auc_score(labels[:, k], probabilities[:, k]) for k in range(5)]
    for k, label in enumerate(FIVE):
        scores = parts[label]['scores']
        pair = labels[:, k], probabilities[:, k]
        assert scores['auroc']['value'] == pytest.approx(areas[k], abs=1e-12)
        expected = average_precision_score(*pair)
        assert scores['average_precision']['value'] == pytest.approx(expected, abs=1e-12)
        assert scores['brier']['value'] == pytest.approx(brier_score_loss(*pair), abs=1e-12)
        assert scores['auroc']['low'] < areas[k] < scores['auroc']['high']
        assert (scores['f1']['value'], parts[label]['threshold']) == (None, None)
        shown = f'{areas[k]:.3f} [{scores["auroc"]["low"]:.3f}, {scores["auroc"]["high"]:.3f}]'
        (line,) = (line for line in done.stdout.splitlines() if line.strip().startswith(label))
        assert line.split()[-1] == 'n/a'
        assert shown in line
    headline = report['headline']
    assert headline['score']['value'] == pytest.approx(np.mean(areas), abs=1e-12)
    assert f'{np.mean(areas):.3f}' in done.stdout
    assert any('14 of 74' in line for line in report['warnings'])
    (warning,) = (line for line in report['warnings'] if '--thresholds-from' in line)
    assert f'warning: {warning}' in done.stdout
    assert NO_INTERVAL not in done.stdout
    assert 'Not for clinical use' in done.stdout
    assert (tmp_path / 'out/report.html').is_file()


def test_thresholds_come_from_other_patients(evaluate, tmp_path):
    """The held-out labels may have rows that the predictions lack: a run's are of train.csv."""
    names, labels = studies(), draw_labels(0)
    other_names, other_labels = studies(1001, 80), draw_labels(1, 80)
    held_out = write_predictions(tmp_path / 'held_out.csv', other_labels[:50], other_names[:50])
    files = {
        '--predictions': write_predictions(tmp_path / 'model.csv', labels, names),
        '--labels': write_labels(tmp_path / 'labels.csv', labels, names),
        '--output': tmp_path / 'first',
    }
    flags = [word for pair in files.items() for word in pair]
    other = write_labels(tmp_path / 'other.csv', other_labels, other_names)
    thresholds = ['--thresholds-from', held_out, other, '--threshold', 'f1', '--resamples', 0]
    assert evaluate(*flags, *thresholds) == 0
    report, _, parts = scores_of(tmp_path / 'first')
    chosen, scored = aligned(held_out, other_names[:50]), aligned(files['--predictions'], names)
    for k, label in enumerate(FIVE):
        truth = other_labels[:50, k]
        f1 = {
            t: 2 * (truth & (chosen[:, k] >= t)).sum() / (truth + (chosen[:, k] >= t)).sum()
            for t in chosen[:, k]
        }
        best = max(t for t in f1 if f1[t] == max(f1.values()))
        assert parts[label]['threshold'] == pytest.approx(best, abs=1e-15)
        recall = recall_score(labels[:, k], scored[:, k] >= best)
        assert parts[label]['scores']['recall']['value'] == pytest.approx(recall, abs=1e-12)
        assert parts[label]['temperature'] > 0
    assert not any('held-out' in line for line in report['warnings'])
    (row,) = (row['value'] for row in report['run'] if row['name'] == 'Thresholds')
    assert row.startswith('f1, on 50 rows of 50 patients')

    again = [*flags[:-1], tmp_path / 'again', '--thresholds-from', tmp_path / 'first/report.json']
    assert evaluate(*again, '--resamples', 0) == 0
    repeated = scores_of(tmp_path / 'again')[2]
    assert {k: v['scores'] for k, v in repeated.items()} == {
        k: v['scores'] for k, v in parts.items()
    }
    assert evaluate(*again, '--resamples', 0, '--aggregate', 'mean') == 0
    assert any(
        'study, max, all' in line and 'study, mean, all' in line
        for line in scores_of(tmp_path / 'again')[0]['warnings']
    )


def test_thresholds_chosen_on_scored_patients_give_a_warning(evaluate, tmp_path):
    names, labels = studies(), draw_labels(0)
    predictions = write_predictions(tmp_path / 'model.csv', labels, names)
    file = write_labels(tmp_path / 'labels.csv', labels, names)
    half = write_labels(tmp_path / 'half.csv', labels[:30], names[:30])
    thresholds = ['--thresholds-from', predictions, half]
    words = ['--predictions', predictions, '--labels', file, '--output', tmp_path, *thresholds]
    assert evaluate(*words, '--resamples', 0) == 0
    warnings = scores_of(tmp_path)[0]['warnings']
    (found,) = (line for line in warnings if 'half.csv' in line)
    assert '30 of 60 patients' in found


def test_several_files_are_compared_and_each_has_its_thresholds(evaluate, tmp_path, capsys):
    names, labels = studies(), draw_labels(0)
    other_names, other_labels = studies(1001), draw_labels(1)
    files = [tmp_path / folder / 'test.csv' for folder in ('good', 'bad')]
    held_out = [tmp_path / folder / 'held_out.csv' for folder in ('good', 'bad')]
    for position, noise in enumerate((0.5, 3.0)):
        write_predictions(files[position], labels, names, noise=noise)
        write_predictions(held_out[position], other_labels, other_names, noise=noise)
    file = write_labels(tmp_path / 'labels.csv', labels, names)
    other = write_labels(tmp_path / 'other.csv', other_labels, other_names)
    words = ['--predictions', *files, '--labels', file, '--output', tmp_path / 'out']
    thresholds = ['--thresholds-from', *held_out, other]
    assert evaluate(*words, *thresholds, '--resamples', 100) == 0
    report, good, of_good = scores_of(tmp_path / 'out')
    bad, of_bad = scores_of(tmp_path / 'out', 1)[1:]
    assert (good['name'], bad['name']) == ('good/test', 'bad/test')
    assert of_good['Edema']['threshold'] in aligned(held_out[0], other_names)[:, 3]
    assert of_bad['Edema']['threshold'] in aligned(held_out[1], other_names)[:, 3]
    (comparison,) = report['comparisons']
    assert [comparison[key] for key in ('set', 'a', 'b')] == ['labels', 'good/test', 'bad/test']
    areas = [
        [roc_auc_score(labels[:, k], aligned(path, names)[:, k]) for k in range(5)]
        for path in files
    ]
    for k, label in enumerate(FIVE):
        value = comparison['labels'][label]['difference']['value']
        assert value == pytest.approx(areas[0][k] - areas[1][k], abs=1e-12)
    five = comparison['means']['five']['difference']
    assert five['value'] == pytest.approx(np.mean(areas[0]) - np.mean(areas[1]), abs=1e-12)
    assert five['low'] > 0
    assert 'AUROC of good/test minus bad/test' in capsys.readouterr().out
    capsys.readouterr()
    assert evaluate(*words, '--thresholds-from', held_out[0], other) == 2
    assert '--thresholds-from' in capsys.readouterr().err


def test_a_mean_without_an_interval_has_its_reason(evaluate, tmp_path, capsys):
    """A single positive is in 63 % of the resamples; both models and their difference lack it."""
    names, labels = studies(), draw_labels(0)
    labels[:, 2] = 0
    labels[5, 2] = 1
    paths = [write_predictions(tmp_path / m, labels, names) for m in ('a.csv', 'bb.csv')]
    file = write_labels(tmp_path / 'labels.csv', labels, names)
    words = ['--predictions', *paths, '--labels', file, '--output', tmp_path / 'out']
    assert evaluate(*words, '--resamples', 50) == 0
    report, entry, _ = scores_of(tmp_path / 'out')
    five = entry['means']['five']['auroc']
    assert five['value'] is not None and five['low'] is None
    assert report['headline']['note'].endswith(NO_INTERVAL)
    assert capsys.readouterr().out.count(NO_INTERVAL) == 3


def test_files_of_other_rows_are_not_compared(evaluate, tmp_path):
    """Of one study only a lateral image is predicted by one of the models."""
    names, labels = studies(), draw_labels(0)
    file = write_labels(tmp_path / 'labels.csv', labels, names)
    paths = []
    for model, last in (('a', 'frontal'), ('b', 'lateral')):
        paths.append(tmp_path / f'{model}.csv')
        table = pd.read_csv(write_predictions(paths[-1], labels, names))
        table['Path'] = table['Study'] + '/view1_frontal.jpg'
        table.loc[7, 'Path'] = f'{table.Study[7]}/view1_{last}.jpg'
        table.drop(columns='Study').to_csv(paths[-1], index=False)
    words = ['--predictions', *paths, '--labels', file, '--output', tmp_path, '--resamples', 0]
    assert evaluate(*words) == 0
    assert len(scores_of(tmp_path)[0]['comparisons']) == 1
    assert evaluate(*words, '--views', 'frontal') == 0
    report = scores_of(tmp_path)[0]
    assert report['comparisons'] == []
    assert any(line.startswith('a and b ') for line in report['warnings'])
    assert [entry['rows'] for entry in report['sets']] == [NUM_STUDIES, NUM_STUDIES - 1]


def test_groups_come_from_the_labels_and_the_demographics(evaluate, tmp_path):
    names, labels = studies(), draw_labels(0)
    half = NUM_STUDIES // 2
    columns = {'Sex': ['Male', 'Female'] * half, 'Site': ['north'] * half + ['south'] * half}
    file = write_labels(tmp_path / 'labels.csv', labels, names, **columns)
    patients = [name.split('/')[2] for name in names]
    race = [('one', 'two', '')[i % 3] for i in range(NUM_STUDIES)]
    table = pd.DataFrame({'PATIENT': patients[::-1], 'RACE': race[::-1]})
    table.to_csv(tmp_path / 'demographics.csv', index=False)
    predictions = write_predictions(tmp_path / 'p.csv', labels, names)
    words = ['--predictions', predictions, '--labels', file, '--output', tmp_path]
    more = ['--groups', 'Site', 'RACE', '--demographics', tmp_path / 'demographics.csv']
    assert evaluate(*words, *more, '--resamples', 0) == 0
    found = {column['column']: column['groups'] for column in scores_of(tmp_path)[1]['groups']}
    assert list(found) == ['Sex', 'Site', 'RACE']
    probabilities = aligned(predictions, names)
    for column, values in (('Sex', columns['Sex']), ('Site', columns['Site']), ('RACE', race)):
        groups = {entry['group']: entry for entry in found[column]}
        assert set(groups) == set(values) - {''}
        for name, entry in groups.items():
            chosen = np.array(values) == name
            assert entry['rows'] == chosen.sum()
            expected = roc_auc_score(labels[chosen, 0], probabilities[chosen, 0])
            auroc = entry['labels'][FIVE[0]]['scores']['auroc']['value']
            assert auroc == pytest.approx(expected, abs=1e-12)


def test_images_of_a_label_file_are_scored_at_both_levels(evaluate, tmp_path):
    """The phantom's layout: a row an image, some studies with two, scores by hand."""
    rng = np.random.default_rng(0)
    paths = [
        f'{name}/view{view + 1}_{kind}.jpg'
        for i, name in enumerate(studies())
        for view, kind in enumerate(('frontal', 'lateral')[: 1 + i % 2])
    ]
    study = np.array([path.rpartition('/')[0] for path in paths])
    truth = dict(zip(studies(), rng.integers(0, 2, NUM_STUDIES), strict=True))
    labels = np.array([truth[name] for name in study])
    scores = np.round(rng.random(len(paths)) * 0.5 + labels * 0.2, 6)
    blank = {label: [''] * len(paths) for label in LABELS}
    pd.DataFrame({'Path': paths} | blank | {'Edema': labels}).to_csv(
        tmp_path / 'l.csv', index=False
    )
    suffixed = [path.replace('.jpg', '.png').replace('CheXpert-v1.0', 'mine') for path in paths]
    pd.DataFrame({'Path': suffixed, 'Edema': scores}).to_csv(tmp_path / 'p.csv', index=False)
    words = ['--predictions', tmp_path / 'p.csv', '--labels', tmp_path / 'l.csv', '--output']
    by_study = pd.DataFrame({'study': study, 'score': scores, 'label': labels}).groupby('study')
    expected = {
        ('image', 'max'): roc_auc_score(labels, scores),
        ('study', 'max'): roc_auc_score(by_study.label.max(), by_study.score.max()),
        ('study', 'mean'): roc_auc_score(by_study.label.max(), by_study.score.mean()),
    }
    assert len(set(expected.values())) == 3
    for (level, how), area in expected.items():
        flags = ['--level', level, '--aggregate', how, '--resamples', 0]
        assert evaluate(*words, tmp_path, *flags) == 0
        part = scores_of(tmp_path)[2]['Edema']
        assert part['scores']['auroc']['value'] == pytest.approx(area, abs=1e-12)
        assert part['n'] == (len(paths) if level == 'image' else NUM_STUDIES)


@pytest.mark.parametrize(
    'change, part',
    [
        ({'--labels': 'nowhere.csv'}, 'nowhere.csv'),
        ({'--level': 'image'}, 'level image'),
        ({'--groups': 'RACE'}, '--demographics'),
    ],
)
def test_mistakes_end_in_one_line_and_write_nothing(change, part, evaluate, tmp_path, capsys):
    names, labels = studies(), draw_labels(0)
    words = {
        '--predictions': write_predictions(tmp_path / 'p.csv', labels, names),
        '--labels': write_labels(tmp_path / 'l.csv', labels, names),
        '--output': tmp_path / 'out',
    } | change
    assert evaluate(*(word for pair in words.items() for word in pair)) == 2
    captured = capsys.readouterr()
    assert captured.out == ''
    assert len(captured.err.splitlines()) == 1
    assert captured.err.startswith('error: ') and part in captured.err
    assert not (tmp_path / 'out').exists()


def test_an_anonymised_report_names_no_patient(evaluate, tmp_path):
    names, labels = studies(), draw_labels(0)
    files = [write_predictions(tmp_path / m / 'p.csv', labels, names, extra=3) for m in 'ab']
    file = write_labels(tmp_path / 'labels.csv', labels, names)
    words = ['--predictions', *files, '--labels', file, '--output', tmp_path / 'out']
    words += ['--thresholds-from', *files, file, '--resamples', 0, '--anonymise']
    assert evaluate(*words) == 0
    report = scores_of(tmp_path / 'out')[0]
    assert report['sets'][0]['worst_errors']
    assert [entry['name'] for entry in report['sets']] == ['p (1)', 'p (2)']
    for path in (tmp_path / 'out').glob('report*'):
        text = path.read_text()
        assert 'patient0' not in text and str(tmp_path) not in text
