"""Groups of patients in a sweep: the labels that they share, and the gaps between them."""

import numpy as np
import pandas as pd
import pytest
from cases import make_cases
from sklearn.metrics import roc_auc_score
from sweep_runs import methods_file

from evaluation.cases import Cases
from evaluation.intervals import Resamples
from sweeps.files import Sweep, load_sweep
from sweeps.groups import compare_groups, plot_gaps, write_groups
from sweeps.long_table import Scored, notes_about_groups, score_runs, shared_labels, written

LABELS = ('common', 'of women', 'of the young', 'rare')
DRAWS = 200
NUM = 600


def grouped() -> Cases:
    """600 patients by sex, age and race: each label is too rare in some of the groups."""
    rng = np.random.default_rng(0)
    sex = np.array(['Female', 'Male', ''], object)[np.arange(NUM) % 3]
    age = np.array(['0-39', '40-59', '60-79', '80 and over'], object)[
        np.searchsorted([200, 400, 580], np.arange(NUM), side='right')
    ]
    race = np.array(['A', 'B', 'C'], object)[rng.integers(3, size=NUM)]
    shares = np.full((NUM, 4), 0.4)
    shares[:, 1] = np.where(sex == 'Male', 0.02, 0.4)
    shares[:, 2] = np.where(age == '0-39', 0.4, 0.02)
    shares[:, 3] = 0.01
    targets = (rng.random((NUM, 4)) < shares).astype(float)
    groups = {'Sex': sex, 'Age': age, 'Race': race}
    return make_cases(rng.random((NUM, 4)), targets, labels=LABELS, groups=groups)


def runs_of(sweep: Sweep, cases: Cases) -> list[Scored]:
    """Two seeds of each row, whose predictions are better than chance by a share."""
    found = []
    for row in sweep.rows:
        for seed in (0, 1):
            rng = np.random.default_rng([seed, len(found)])
            noise = rng.normal(size=cases.targets.shape)
            values = 1 / (1 + np.exp(-(cases.targets + noise)))
            images = make_cases(values, cases.targets, labels=LABELS, groups=cases.groups)
            found.append(Scored(row.name, seed, images, 'test'))
    return found


@pytest.fixture(scope='module')
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    return load_sweep(methods_file(tmp_path_factory.mktemp('sweep')))


@pytest.fixture(scope='module')
def runs(sweep: Sweep) -> list[Scored]:
    return runs_of(sweep, grouped())


@pytest.fixture(scope='module')
def table(runs: list[Scored]) -> pd.DataFrame:
    return score_runs(runs, ['mean', 'common'], resamples=DRAWS, by_group=True)


def counts(cases: Cases, group: str) -> dict[str, int]:
    """The number of cases of the smaller class of each label in a group."""
    column, _, name = group.partition(': ')
    chosen = cases.targets[cases.groups[column] == name.replace('unknown', '')]
    return {
        label: int(min(chosen[:, k].sum(), len(chosen) - chosen[:, k].sum()))
        for k, label in enumerate(LABELS)
    }


def test_groups_of_a_column_share_the_labels_that_all_of_them_have(runs: list[Scored]) -> None:
    cases, shared = runs[0].images, shared_labels(runs)
    assert counts(cases, 'Sex: Male')['of women'] < 20 <= counts(cases, 'Sex: Female')['of women']
    assert counts(cases, 'Age: 0-39')['of the young'] >= 20
    assert {group: labels['labels'] for group, labels in shared.items()} == {
        'Sex: Female': ('common', 'of the young'),
        'Sex: Male': ('common', 'of the young'),
        'Sex: unknown': ('common', 'of the young'),
        'Age: 0-39': ('common', 'of women'),
        'Age: 40-59': ('common', 'of women'),
        'Age: 60-79': ('common', 'of women'),
        'Age: 80 and over': (),  # 20 patients have too few cases of every label
        'Race: A': ('common', 'of women', 'of the young'),
        'Race: B': ('common', 'of women', 'of the young'),
        'Race: C': ('common', 'of women', 'of the young'),
    }
    for group, labels in shared.items():
        assert all(counts(cases, group)[label] >= 20 for label in labels['labels'])
    notes = notes_about_groups(runs, 'mean')
    assert [note.partition(':')[0] for note in notes] == ['Sex', 'Age', 'Race']
    assert 'over the 2 labels with at least 20 cases' in notes[1]
    assert notes[1].endswith('in all groups that are shown: common, of women.')


def test_groups_that_share_no_label_are_compared_without_the_one_with_the_fewest() -> None:
    cases = grouped()
    targets = cases.targets.copy()
    targets[:, 3] = np.where(cases.groups['Race'] == 'C', np.arange(NUM) % 2, 0)
    targets[cases.groups['Race'] == 'C', :3] = 0
    images = make_cases(cases.probabilities, targets, labels=LABELS, groups=cases.groups)
    shared = shared_labels([Scored('row', 0, images)])
    assert shared['Race: A']['labels'] == shared['Race: B']['labels'] != ()
    assert shared['Race: C']['labels'] == ()


def test_means_in_groups_are_those_of_scikit_learn_over_the_shared_labels(
    runs: list[Scored], table: pd.DataFrame
) -> None:
    run = runs[3]
    chosen = (table['row'] == run.row) & (table['seed'] == run.seed) & (table['label'] == 'mean')
    means = table[chosen].set_index(['group', 'metric'])['value']
    for group, labels in {'Sex: Male': (0, 2), 'Age: 40-59': (0, 1), 'Race: B': (0, 1, 2)}.items():
        column, _, name = group.partition(': ')
        rows = run.images.groups[column] == name
        pairs = [(run.images.targets[rows, k], run.images.probabilities[rows, k]) for k in labels]
        assert means[group, 'auroc'] == pytest.approx(np.mean([roc_auc_score(*p) for p in pairs]))
        assert means[group, 'auroc_labels'] == len(labels)
    assert ('Age: 80 and over', 'auroc') not in means.index


def area(cases: Cases, rows: np.ndarray, k: int, weights: np.ndarray) -> np.ndarray:  # [1 + R]
    """The share of pairs in order by brute force, with the weights [N, 1 + R] of the cases."""
    scores, positive = cases.probabilities[rows, k], cases.targets[rows, k] == 1
    in_order = (scores[positive][:, None] > scores[~positive]).astype(float)
    case, control = weights[rows][positive].T, weights[rows][~positive].T
    return ((case @ in_order) * control).sum(1) / (case.sum(1) * control.sum(1))


def test_a_gap_is_that_of_the_means_over_seeds_with_an_interval_for_two_groups(
    sweep: Sweep, runs: list[Scored], table: pd.DataFrame
) -> None:
    gaps = pd.DataFrame(compare_groups(table, sweep, 'mean')).set_index(['column', 'row'])
    own = [run for run in runs if run.row == 'moco_1']
    drawn = Resamples(own[0].images.patient, resamples=DRAWS, seed=0).weights(own[0].images.patient)
    weights = drawn.counts[drawn.patient].astype(float)
    means = {}
    for name in ('Female', 'Male'):
        rows = own[0].images.groups['Sex'] == name
        areas = [area(run.images, rows, k, weights) for run in own for k in (0, 2)]
        means[name] = np.mean(areas, axis=0)
    best = max(means, key=lambda name: means[name][0])
    worst = {'Male': 'Female', 'Female': 'Male'}[best]
    gap, found = means[best] - means[worst], gaps.loc['Sex', 'moco_1']
    assert [found['best'], found['worst'], found['labels_in_mean']] == [best, worst, 2]
    assert found['value'] == pytest.approx(gap[0])
    wanted = np.percentile(gap[1:], [2.5, 97.5])
    assert [found['low'], found['high']] == pytest.approx(wanted.tolist())
    assert gaps.loc['Age', 'low'].isna().all() and (gaps.loc['Age', 'p_bootstrap'] > 0).all()
    assert (gaps['p_holm'] >= gaps['p_bootstrap']).all()


def test_tables_of_groups_name_what_is_left_out_and_are_drawn_by_share(
    sweep: Sweep, runs: list[Scored], table: pd.DataFrame, tmp_path
) -> None:
    pairs = [(row.name, '') for row in sweep.rows]
    options = {'notes': notes_about_groups(runs, 'mean'), 'draws': '200 resamples'}
    page, gaps = write_groups(tmp_path, sweep, table, pairs, 'mean', **options)
    text = page.read_text()
    for group in ('Sex: Female', 'Sex: unknown', 'Age: 60-79', 'Race: C'):
        assert f'| {group} |' in text
    assert '- Too few cases of a label: Age: 80 and over.' in text
    assert '- Race: the mean is over the 3 labels' in text
    assert '| Sex | MoCo |' in gaps.read_text() or '| Sex | moco |' in gaps.read_text()
    assert 'Not for clinical use.' in gaps.read_text()
    read = pd.read_csv(gaps.with_suffix('.csv'), dtype={'row': str})
    files = plot_gaps(tmp_path / 'gaps.png', written(table), sweep, read)
    assert len(files) == 3 and all(file.is_file() for file in files)
