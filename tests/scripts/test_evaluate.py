"""scripts/evaluate.py: prediction files of any program give the report of a run."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import recall_score, roc_auc_score
from tiny import config_with, run_script

from config import config_text
from data.tables.labels import COMPETITION_LABELS
from evaluation.intervals import holm

pytestmark = pytest.mark.usefixtures('few_cases_select')

FIVE = list(COMPETITION_LABELS)
NUM_STUDIES = 60


def evaluate(folder: Path, *words: object, resamples: int = 0) -> dict:
    """Evaluate with the report in a folder, and return the report."""
    assert run_script('evaluate', *words, '--output', folder, '--resamples', resamples) == 0
    return json.loads((folder / 'report.json').read_text())


def studies(first: int, number: int) -> list[str]:
    return [f'CheXpert-v1.0/test/patient{first + i:05d}/study1' for i in range(number)]


def draw_labels(seed: int, number: int) -> np.ndarray:
    return (np.random.default_rng(seed).random((number, 5)) < 0.4).astype(int)


NAMES, TRUTH = studies(1, NUM_STUDIES), draw_labels(0, NUM_STUDIES)
OTHER_NAMES, OTHER_TRUTH = studies(1001, 80), draw_labels(1, 80)


def write_labels(file: Path, labels: np.ndarray, names: list[str], **columns: list[str]) -> Path:
    values = {label: labels[:, k] for k, label in enumerate(FIVE)}
    pd.DataFrame({'Study': names, **columns, **values}).to_csv(file, index=False)
    return file


def write_predictions(file, labels, names, *, noise=1.0, extra=0) -> Path:
    """Predictions of a model that knows the labels, with noise; shuffled columns and rows."""
    rng = np.random.default_rng([len(file.stem), round(10 * noise), len(names)])
    scores = 1 / (1 + np.exp(-(2 * labels - 1 + noise * rng.normal(size=labels.shape))))
    table = pd.DataFrame({'Study': names} | {label: scores[:, k] for k, label in enumerate(FIVE)})
    more = table.iloc[:extra].assign(Study=studies(50001, extra))
    table = pd.concat([table, more]).sample(frac=1, random_state=0)
    file.parent.mkdir(exist_ok=True)
    table[[*reversed(FIVE), 'Study']].to_csv(file, index=False)
    return file


def aligned(file: Path, names: list[str] = NAMES) -> np.ndarray:
    return pd.read_csv(file).set_index('Study').loc[names, FIVE].to_numpy()


def labels_of(report: dict, position: int = 0) -> dict[str, dict]:
    return {part['label']: part for part in report['sets'][position]['labels']}


@pytest.fixture(scope='module')
def files(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """Flags that name predictions and their labels."""
    folder = tmp_path_factory.mktemp('files')
    predictions = write_predictions(folder / 'model.csv', TRUTH, NAMES, extra=14)
    return ['--predictions', predictions, '--labels', write_labels(folder / 'l.csv', TRUTH, NAMES)]


def test_scores_are_those_of_scikit_learn(files, tmp_path, capsys):
    report = evaluate(tmp_path, *files, resamples=200)
    entry, probabilities = report['sets'][0], aligned(files[1])
    assert (entry['name'], entry['rows'], entry['level']) == ('model', NUM_STUDIES, 'study')
    printed = capsys.readouterr().out
    areas = [roc_auc_score(TRUTH[:, k], probabilities[:, k]) for k in range(5)]
    for label, area in zip(FIVE, areas, strict=True):
        part = labels_of(report)[label]
        assert part['scores']['auroc']['value'] == pytest.approx(area, abs=1e-12)
        assert (part['scores']['f1']['value'], part['threshold']) == (None, None)
        low, high = (part['scores']['auroc'][end] for end in ('low', 'high'))
        assert low < area < high
        assert f'{area:.3f} [{low:.3f}, {high:.3f}]' in printed
    assert report['headline']['score']['value'] == pytest.approx(np.mean(areas), abs=1e-12)
    assert any('14 of 74' in line for line in report['warnings'])
    assert 'Not for clinical use' in printed


def test_thresholds_come_from_other_patients(files, tmp_path):
    """The held-out labels may have rows without predictions, as train.csv has."""
    held_out = write_predictions(tmp_path / 'held_out.csv', OTHER_TRUTH[:50], OTHER_NAMES[:50])
    other = write_labels(tmp_path / 'other.csv', OTHER_TRUTH, OTHER_NAMES)
    flags = ['--thresholds-from', held_out, other, '--threshold', 'f1']
    report = evaluate(tmp_path / 'first', *files, *flags)
    chosen, scored = aligned(held_out, OTHER_NAMES[:50]), aligned(files[1])
    for k, label in enumerate(FIVE):
        part = labels_of(report)[label]
        assert np.isclose(part['threshold'], chosen[:, k], rtol=1e-14).any()
        recall = recall_score(TRUTH[:, k], scored[:, k] >= part['threshold'])
        assert part['scores']['recall']['value'] == pytest.approx(recall, abs=1e-12)
        assert part['temperature'] > 0
    (row,) = (row['value'] for row in report['run'] if row['name'] == 'Thresholds')
    assert row.startswith('f1, on 50 rows of 50 patients')

    half = write_labels(tmp_path / 'half.csv', TRUTH[:30], NAMES[:30])
    warnings = evaluate(tmp_path / 'half', *files, '--thresholds-from', files[1], half)['warnings']
    assert any('half.csv' in line and '30 of 60 patients' in line for line in warnings)

    images = report | {'sets': [report['sets'][0] | {'level': 'image'}]}
    (tmp_path / 'images.json').write_text(json.dumps(images))
    again = evaluate(tmp_path / 'again', *files, '--thresholds-from', tmp_path / 'images.json')
    for label, part in labels_of(report).items():
        for key in ('scores', 'held_out', 'few_held_out'):
            assert labels_of(again)[label][key] == part[key]
    assert any('study, all' in line and 'image, all' in line for line in again['warnings'])

    entry = report['sets'][0]
    unknown = [part | {'threshold': None} for part in entry['labels']]
    for text in (
        json.dumps(report | {'sets': [entry | {'labels': unknown}]}),
        json.dumps(report | {'sets': [entry | {'level': 5}]}),
        json.dumps(report | {'headline': None}),  # a report of several models
        '{"sets": []}',
        '[' * 10**5,
    ):
        (tmp_path / 'other.json').write_text(text)
        words = ['--output', tmp_path / 'x', '--thresholds-from', tmp_path / 'other.json']
        assert run_script('evaluate', *files, *words) == 2


@pytest.mark.parametrize(
    'key, value',
    [
        ('temperature', 0),
        ('temperature', float('inf')),
        ('temperature', '1.5'),
        ('threshold', -3),
        ('threshold', True),
        pytest.param('threshold', 10**400, id='threshold-400-digits'),
    ],
)
def test_impossible_thresholds_of_a_report_are_named(files, tmp_path, capsys, key, value):
    path = tmp_path / 'other.json'
    parts = [{'label': FIVE[0], 'threshold': 0.5, 'temperature': 1, key: value}]
    entry = {'name': 'a', 'labels': parts, 'level': 'study', 'views': 'all'}
    path.write_text(json.dumps({'sets': [entry], 'headline': {'set': 'a'}}))
    words = ['--output', tmp_path / 'x', '--thresholds-from', path]
    assert run_script('evaluate', *files, *words) == 2
    error = capsys.readouterr().err
    assert str(path) in error and key in error and FIVE[0] in error


def test_several_files_are_compared_and_each_has_its_thresholds(files, tmp_path):
    paths, held_out = [], []
    for name, noise in (('good', 0.5), ('bad', 3.0)):
        paths.append(write_predictions(tmp_path / name / 'test.csv', TRUTH, NAMES, noise=noise))
        file = tmp_path / name / 'held_out.csv'
        held_out.append(write_predictions(file, OTHER_TRUTH, OTHER_NAMES, noise=noise))
    other = write_labels(tmp_path / 'other.csv', OTHER_TRUTH, OTHER_NAMES)
    words = ['--predictions', *paths, *files[2:], '--thresholds-from', *held_out, other]
    report = evaluate(tmp_path / 'out', *words, resamples=200)
    assert [entry['name'] for entry in report['sets']] == ['good/test', 'bad/test']
    for position, file in enumerate(held_out):
        threshold = labels_of(report, position)['Edema']['threshold']
        probabilities = aligned(file, OTHER_NAMES)[:, FIVE.index('Edema')]
        assert np.isclose(threshold, probabilities, rtol=1e-14).any()
    (comparison,) = report['comparisons']
    assert [comparison[key] for key in ('set', 'a', 'b')] == ['l', 'good/test', 'bad/test']
    differences = []
    for k, label in enumerate(FIVE):
        a, b = (roc_auc_score(TRUTH[:, k], aligned(path)[:, k]) for path in paths)
        differences.append(a - b)
        value = comparison['labels'][label]['difference']['value']
        assert value == pytest.approx(a - b, abs=1e-12)
    five = comparison['means']['five']['difference']
    assert five['value'] == pytest.approx(np.mean(differences), abs=1e-12)
    assert five['low'] > 0


def test_holm_corrects_all_that_is_shown_of_several_files(files, tmp_path):
    """Sorted by the mean AUROC, and with a reference only against this file."""
    paths = {
        name: write_predictions(tmp_path / f'{name}.csv', TRUTH, NAMES, noise=noise)
        for name, noise in {'bad': 4.0, 'good': 0.5, 'fair': 1.5}.items()
    }

    def compared(*more: object) -> dict[tuple[str, str], dict]:
        words = ['--predictions', *paths.values(), *files[2:], *more]
        report = evaluate(tmp_path / 'out', *words, resamples=200)
        return {(entry['a'], entry['b']): entry for entry in report['comparisons']}

    found = compared()
    assert [*found] == [('good', 'fair'), ('good', 'bad'), ('fair', 'bad')]
    parts = [p for e in found.values() for p in (*e['labels'].values(), e['means']['five'])]
    wanted = holm([part['p_bootstrap'] for part in parts])
    assert [part['p_holm'] for part in parts] == pytest.approx(wanted.tolist())
    assert [*compared('--reference', paths['fair'])] == [('good', 'fair'), ('bad', 'fair')]


def test_two_seeds_of_one_recipe_have_no_p(files, tmp_path, capsys):
    paths = []
    for seed, rate, head in ((0, 1e-3, ''), (1, 1e-3, ''), (1, 2e-3, ''), (2, 1e-3, 'attention')):
        options = {'TRAIN__BASE_LR': rate, 'MODEL__HEAD': head or 'linear'}
        folder, config = tmp_path / f'run{len(paths)}', config_with(SEED=seed, **options)
        paths.append(write_predictions(folder / 'test.csv', TRUTH, NAMES, noise=1 + len(paths)))
        (folder / 'run.json').write_text('{}')
        (folder / 'config.yaml').write_text(config_text(config))
    report = evaluate(tmp_path / 'o', '--predictions', *paths, *files[2:], resamples=200)
    found = {(e['a'][:4], e['b'][:4]): e for e in report['comparisons']}
    assert {pair for pair, entry in found.items() if entry['only_seed']} == {('run0', 'run1')}
    for entry in found.values():
        assert (entry['labels']['Edema']['p_holm'] is None) == entry['only_seed']
    assert 'one recipe with two seeds' in capsys.readouterr().out


def test_scores_that_are_no_probabilities_are_only_ranked(files, tmp_path, capsys):
    logits = pd.read_csv(files[1]).set_index('Study')
    logits.apply(lambda column: 8 * column - 3).to_csv(tmp_path / 'logits.csv')
    words = ['--predictions', tmp_path / 'logits.csv', *files[2:], '--output', tmp_path / 'out']
    assert run_script('evaluate', *words) == 2
    assert '--scores any' in capsys.readouterr().err
    found = labels_of(evaluate(tmp_path / 'out', *words[:-2], '--scores', 'any'))['Edema']
    wanted = labels_of(evaluate(tmp_path / 'same', *files))['Edema']
    assert found['scores']['auroc'] == wanted['scores']['auroc']
    assert [found['scores'][name]['value'] for name in ('brier', 'ece')] == [None, None]
    page = (tmp_path / 'out' / 'report.html').read_text()
    assert 'scores and not probabilities' in page


def test_files_with_different_rows_are_not_compared(files, tmp_path):
    """For one study, one of the models predicts only a lateral image."""
    paths = []
    for model, last in (('a', 'frontal'), ('b', 'lateral')):
        paths.append(tmp_path / f'{model}.csv')
        table = pd.read_csv(write_predictions(paths[-1], TRUTH, NAMES))
        table['Path'] = table['Study'] + '/view1_frontal.jpg'
        table.loc[7, 'Path'] = f'{table.Study[7]}/view1_{last}.jpg'
        table.drop(columns='Study').to_csv(paths[-1], index=False)
    words = [*files[2:], '--views', 'frontal']
    report = evaluate(tmp_path, '--predictions', *paths, *words)
    assert report['comparisons'] == []
    assert any(line.startswith('a and b ') for line in report['warnings'])
    assert [entry['rows'] for entry in report['sets']] == [NUM_STUDIES, NUM_STUDIES - 1]


@pytest.mark.parametrize('known', ['', 'json', 'run'])
def test_lateral_images_of_a_model_trained_on_frontal_ones_give_a_warning(known, tmp_path):
    paths = [f'{name}/view1_frontal.jpg' for name in NAMES]
    paths[::5] = [path.replace('frontal', 'lateral') for path in paths[::5]]
    file = tmp_path / 'p.csv'
    pd.DataFrame({'Path': paths, 'Edema': TRUTH[:, 0]}).to_csv(file, index=False)
    if known == 'json':
        (tmp_path / 'p.json').write_text('{"trained_views": "frontal"}')
    elif known == 'run':
        (tmp_path / 'run.json').write_text('{}')
        (tmp_path / 'config.yaml').write_text('DATA:\n  VIEWS: frontal\n')
    warnings = evaluate(tmp_path / 'out', '--predictions', file, '--labels', file)['warnings']
    (found,) = [line for line in warnings if '12 of 60' in line]
    assert '--views frontal' in found and ('trained on frontal' in found) == bool(known)


def test_groups_come_from_the_labels_and_the_demographics(files, tmp_path):
    half = NUM_STUDIES // 2
    sex, site = ['Male', 'Female'] * half, ['north'] * half + ['south'] * half
    race = [('one', 'two', '')[i % 3] for i in range(NUM_STUDIES)]
    labels = write_labels(tmp_path / 'labels.csv', TRUTH, NAMES, Sex=sex, Site=site)
    patients = [name.split('/')[2] for name in NAMES]
    table = pd.DataFrame({'PATIENT': patients[::-1], 'RACE': race[::-1]})
    table.to_csv(tmp_path / 'demographics.csv', index=False)
    more = ['--groups', 'Site', 'RACE', '--demographics', tmp_path / 'demographics.csv']
    report = evaluate(tmp_path, *files[:2], '--labels', labels, *more)
    found = {column['column']: column['groups'] for column in report['sets'][0]['groups']}
    assert list(found) == ['Sex', 'Site', 'RACE']
    probabilities = aligned(files[1])
    for column, values in (('Sex', sex), ('Site', site), ('RACE', race)):
        groups = {entry['group']: entry for entry in found[column]}
        named = np.array([value or 'unknown' for value in values])
        assert set(groups) == set(named)
        for name, entry in groups.items():
            chosen = named == name
            assert entry['rows'] == chosen.sum()
            expected = roc_auc_score(TRUTH[chosen, 0], probabilities[chosen, 0])
            auroc = entry['labels'][FIVE[0]]['scores']['auroc']['value']
            assert auroc == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    'words, part',
    [
        (['--labels', 'nowhere.csv'], 'nowhere.csv'),
        (['--groups', 'RACE'], '--demographics'),
        (['--resamples', '-1'], '--resamples'),
        (['--reference', 'other.csv'], '--reference'),
        (['--scores', 'any', '--threshold', 'half'], '--scores any'),
        (['--demographics', 'd'], '--groups'),
    ],
)
def test_mistakes_are_reported_and_write_nothing(words, part, files, tmp_path, capsys):
    try:
        code = run_script('evaluate', *files, '--output', tmp_path / 'out', *words)
    except SystemExit as stop:  # of argparse
        code = stop.code
    assert code == 2 and part in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / 'out').exists()


def test_doubtful_labels_are_named_and_a_repeated_one_counts_once(tmp_path, capsys):
    """Edema is the complement of No Finding; four studies have No Finding and Fracture."""
    number, rng = np.arange(NUM_STUDIES), np.random.default_rng(0)
    healthy = number % 3 == 0
    fracture = (number % 2 == 0) & ~(healthy & (number > 21))
    labels = {'No Finding': healthy, 'Edema': ~healthy, 'Fracture': fracture}
    values = {name: rng.random(NUM_STUDIES) for name in labels}
    table = pd.DataFrame(labels | {'edema?': number < 3}).astype(int)
    table.assign(Study=NAMES).to_csv(tmp_path / 'labels.csv', index=False)
    pd.DataFrame({'Study': NAMES, **values}).to_csv(tmp_path / 'model.csv', index=False)
    words = ['--predictions', tmp_path / 'model.csv', '--labels', tmp_path / 'labels.csv']
    report = evaluate(tmp_path / 'out', *words)
    areas = [roc_auc_score(labels[name], values[name]) for name in ('Edema', 'Fracture')]
    assert report['headline']['name'] == 'Mean AUROC of 2 labels'
    assert report['headline']['score']['value'] == pytest.approx(np.mean(areas), abs=1e-12)
    printed = capsys.readouterr().out
    for part in (
        'Edema and No Finding are one label under several names',
        "columns 'edema?' (Edema, rows: 3) look like a label that is read",
        f'4 of {NUM_STUDIES} rows have both No Finding and a finding, such as {NAMES[0]}',
    ):
        assert any(part in line for line in report['warnings']) and part in printed
