"""The long table of a sweep, its comparisons and tables, against independent computations."""

import copy
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cases import make_cases
from scipy import stats
from sklearn.metrics import f1_score, precision_score, roc_auc_score
from sweep_runs import MadeRuns, make_sweep, methods_file
from tiny import ROOT, run_script

from data.tables.labels import COMPETITION_LABELS, LABELS
from evaluation.cases import Cases
from evaluation.intervals import Resamples, bootstrap_p, holm
from evaluation.model_comparison import SIGNIFICANT, compare_rows, verdict
from evaluation.report.document import COLUMNS, SCORES_FILE
from sweeps import long_table
from sweeps.files import Sweep, load_sweep, run_folder
from sweeps.long_table import (
    Scored,
    enough_resamples,
    notes_about_labels,
    parts_of,
    read_table,
    score_runs,
)
from sweeps.run_scores import pretraining_figures
from sweeps.tables import (
    compare,
    facts_cells,
    file_name,
    score_title,
    write_all_scores,
    write_score,
)
from system.tables import write_table

STRENGTHS = {'0.1': 2.5, '0.6': 1.0, '0.8': 0.1}
SEEDS = [0, 1, 2]
DRAWS = 200
POINTS = ['--resamples', 0]  # values without intervals
NAN = float('nan')
DEEP = '[' * 100_000  # JSON that is nested too deeply


def table_of(sweep: Sweep, made: MadeRuns, *more: object, seeds: int = 3) -> int:
    words = ['--sweep', sweep.path, '--output', made.output, '--seeds', seeds]
    return run_script('ablate', 'table', *words, '--resamples', 200, *more)


def lines_of(made: MadeRuns, score: str, name: str = 'swept') -> pd.DataFrame:
    table = pd.read_csv(made.output / f'{name}_{score}.csv', dtype={'row': str, 'against': str})
    return table.set_index('row')


class Finished:
    """Three rows with three seeds, of which the second row is the reference, and their tables."""

    def __init__(self, folder: Path) -> None:
        self.sweep = make_sweep(folder, [*STRENGTHS], reference=1, note='Published: 82.8.')
        self.made = MadeRuns(folder, level='image', size=240)
        file = self.made.data / 'test.csv'
        rng = np.random.default_rng(3)
        self.table = pd.read_csv(file)
        people = {p: rng.choice(['Male', 'Female']) for p in sorted(set(self.made.patients))}
        self.table['Sex'] = [people[name] for name in self.made.patients]
        self.table.to_csv(file, index=False)
        self.people = folder / 'people.csv'
        races = [(p, rng.choice(['Asian', 'White'])) for p in people]
        races[:3] = [(p, 'Other') for p, _ in races[:3]]
        pd.DataFrame(races, columns=['PATIENT', 'RACE']).to_csv(self.people, index=False)
        self.predicted = {
            (row.name, seed): self.made.add(row, seed, strength=STRENGTHS[row.name])
            for row in self.sweep.rows
            for seed in SEEDS
        }
        words = ['--subgroups', 'RACE', '--demographics', self.people, '--resamples', DRAWS]
        assert table_of(self.sweep, self.made, '--scores', 'Edema', 'mean_of_five', *words) == 0

    def areas(self, row: str, labels: tuple[str, ...], chosen: np.ndarray) -> np.ndarray:
        """Mean AUROC of labels for each seed and resample of the patients, [S, 1 + R]."""
        draws = Resamples(self.made.patients, resamples=DRAWS, seed=0)
        drawn = draws.weights(np.array(self.made.patients)[chosen])
        weights = drawn.counts[drawn.patient].T
        columns = [LABELS.index(label) for label in labels]
        return np.array([
            np.mean([self.area(row, seed, k, chosen, weights) for k in columns], axis=0)
            for seed in SEEDS
        ])  # fmt: skip

    def area(
        self, row: str, seed: int, k: int, chosen: np.ndarray, weights: np.ndarray
    ) -> np.ndarray:
        """Shares of the pairs of a case and a control that are in order; the first is checked."""
        scores, positive = self.predicted[row, seed][chosen, k], self.made.targets[chosen, k] == 1
        in_order = scores[positive][:, None] > scores[~positive]
        case, control = weights[:, positive].astype(float), weights[:, ~positive].astype(float)
        areas = ((case @ in_order) * control).sum(1) / (case.sum(1) * control.sum(1))
        assert areas[0] == pytest.approx(roc_auc_score(positive, scores))
        return areas


@pytest.fixture(scope='module')
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return Finished(tmp_path_factory.mktemp('runs'))


def check_line(line: pd.Series, own: np.ndarray, base: np.ndarray) -> None:
    """Compare a line with scores [S, 1 + R] of a row and of the row to compare it with."""
    assert line['value'] == pytest.approx(own[:, 0].mean())
    assert line['sd'] == pytest.approx(own[:, 0].std(ddof=1))
    ends = np.percentile(own.mean(axis=0)[1:], [2.5, 97.5])
    assert [line['low'], line['high']] == pytest.approx(ends.tolist())
    differences = own - base
    assert line['difference'] == pytest.approx(differences[:, 0].mean())
    wanted = stats.ttest_rel(own[:, 0], base[:, 0]).confidence_interval(0.95)
    assert [line['seeds_low'], line['seeds_high']] == pytest.approx([wanted.low, wanted.high])
    drawn = differences.mean(axis=0)[1:]
    ends = np.percentile(drawn, [2.5, 97.5])
    assert [line['patients_low'], line['patients_high']] == pytest.approx(ends.tolist())
    fewer = min(np.sum(drawn <= 0), np.sum(drawn >= 0))
    assert line['p'] == pytest.approx(min(1, 2 * (1 + fewer) / (1 + DRAWS)))


def test_lines_equal_those_of_scikit_learn_with_repeated_patients(finished: Finished) -> None:
    everyone = np.full(len(finished.made.patients), True)
    for score, labels in (('Edema', ('Edema',)), ('mean_of_five', COMPETITION_LABELS)):
        lines = lines_of(finished.made, score)
        own, base = (finished.areas(row, labels, everyone) for row in ('0.1', '0.6'))
        check_line(lines.loc['0.1'], own, base)
        assert lines['against'].to_dict()['0.8'] == '0.6'
        assert pd.isna(lines.loc['0.6', 'against'])
        compared = lines.dropna(subset='p')
        assert compared['p_holm'].to_numpy() == pytest.approx(holm(compared['p']))
    assert lines.loc['0.1', 'verdict'] == 'above'


def test_lines_of_groups_are_those_of_their_members_and_corrected_together(finished) -> None:
    lines = lines_of(finished.made, 'Edema_subgroups').reset_index()
    female = (finished.table['Sex'] == 'Female').to_numpy()
    (line,) = lines[(lines['group'] == 'Sex: Female') & (lines['row'] == '0.1')].to_dict('records')
    own, base = (finished.areas(row, ('Edema',), female) for row in ('0.1', '0.6'))
    check_line(pd.Series(line), own, base)
    assert line['cases'] == female.sum()
    assert {*lines['group']} >= {'RACE: Asian', 'RACE: White'}
    compared = lines.dropna(subset='p')
    assert len(compared) == 2 * (lines['group'].nunique() - 1)  # 'Other' has few cases
    assert compared['p_holm'].to_numpy() == pytest.approx(holm(compared['p']))


def test_groups_with_few_cases_have_no_mean_and_are_named(finished: Finished, tmp_path) -> None:
    words = ['--scores', 'mean_of_defined', '--save', tmp_path, '--resamples', DRAWS]
    words += ['--subgroups', 'RACE', '--demographics', finished.people]
    assert table_of(finished.sweep, finished.made, *words) == 0
    page = (tmp_path / 'swept_mean_of_defined_subgroups.md').read_text()
    assert '| Sex: Female |' in page and '| RACE: Other |' not in page
    (note,) = [line for line in page.splitlines() if line.startswith('- Too few cases of a label')]
    assert 'RACE: Other' in note and 'The mean is over' not in page


def test_the_long_table_has_every_run_label_and_fact(finished: Finished) -> None:
    table = read_table(finished.made.output / 'swept_scores.csv')
    where = (table['row'] == '0.1') & (table['group'] == '') & (table['seed'] == '1')
    own = table[where].set_index(['metric', 'label'])['value']
    probabilities = finished.predicted['0.1', 1]
    for label in ('Edema', 'Pneumonia'):
        k = LABELS.index(label)
        wanted = roc_auc_score(finished.made.targets[:, k], probabilities[:, k])
        assert own['auroc', label] == pytest.approx(wanted, abs=1e-5)
        assert own['positives', label] == finished.made.targets[:, k].sum()
    assert own['held_out_l1', ''] == 21 and own['selected_epoch', ''] == 1
    assert own['images_seen', ''] == 160 and own['held_out', ''] == 0.25
    mean = table[(table['row'] == '0.1') & (table['seed'] == '') & (table['label'] == 'Edema')]
    mean = mean[mean['group'] == ''].set_index('resample')['value']
    line = lines_of(finished.made, 'Edema').loc['0.1']
    assert [mean[''], mean['low']] == pytest.approx([line['value'], line['low']], abs=1e-5)


def test_pages_show_the_lines_with_facts_and_notes(finished: Finished) -> None:
    page = (finished.made.output / 'swept_Edema.md').read_text()
    line = lines_of(finished.made, 'Edema').loc['0.1']
    (row,) = [text for text in page.splitlines() if text.startswith('| 0.1 |')]
    assert f'| {line["value"]:.3f} ± {line["sd"]:.3f} |' in row and '| 0.6 | +' in row
    assert '- Published: 82.8.' in page and '240 rows at image level' in page
    assert '| 21.00 ± 1.00 |' in (finished.made.output / 'swept_runs.md').read_text()
    latex = (finished.made.output / 'swept_Edema.tex').read_text()
    assert r'$\pm$' in latex and latex.count(' \\\\\n') == 4


def test_columns_of_a_table_are_named(finished: Finished, tmp_path: Path) -> None:
    words = ['table', '--sweep', finished.sweep.path, '--output', finished.made.output]
    words += ['--scores', 'Edema', 'mean_of_five', 'Pneumonia', '--save', tmp_path]
    words += ['--resamples', 0, '--columns', 'row', 'verdict', 'AUROC, Edema']
    assert run_script('ablate', *words) == 0
    page = (tmp_path / 'swept_all_scores.md').read_text()
    assert page.startswith('| Masked share | seeds | AUROC, Edema |\n')
    assert (
        (tmp_path / 'swept_mean_of_five.md').read_text().startswith('| Masked share | verdict |\n')
    )
    page = (tmp_path / 'swept_Edema.md').read_text()
    assert page.startswith('| Masked share | verdict | AUROC, Edema |\n')
    assert 'verdict & AUROC, Edema' in (tmp_path / 'swept_Edema.tex').read_text()
    assert 'difference' in (tmp_path / 'swept_Edema.csv').read_text()


@pytest.mark.parametrize(
    'bounds, p_holm, wanted',
    [
        ((0.01, 0.05, 0.02, 0.04), 0.01, 'above'),
        ((-0.01, 0.07, 0.02, 0.04), 0.01, 'inside the noise'),
        ((0.01, 0.05, 0.001, 0.06), 0.05, 'not significant after correction'),
        ((NAN, NAN, 0.02, 0.04), 0.01, 'n/a'),
        ((-0.01, 0.07, NAN, NAN), NAN, 'n/a'),  # few cases
        ((NAN, NAN, -0.02, 0.04), 0.9, 'inside the noise'),
    ],
)
def test_a_difference_counts_only_outside_both_kinds_of_noise(bounds, p_holm, wanted) -> None:
    part = {'difference': 0.03, 'p_holm': p_holm}
    for noise, ends in (('over_seeds', bounds[:2]), ('over_patients', bounds[2:])):
        part[noise] = dict(zip(('low', 'high'), ends, strict=True))
    assert verdict(part) == wanted


def test_rows_that_do_not_depend_on_the_seed_have_no_verdict() -> None:
    """Patients alone would decide, although other seeds were never tried."""
    values = 0.05 + np.random.default_rng(0).normal(scale=0.005, size=(1, 201))
    first, second = (
        pd.DataFrame(np.repeat(area, 3, axis=0)) for area in (0.8 + values, 0 * values)
    )
    (part,) = compare_rows({'a': first, 'b': second}, [('a', 'b')])
    assert part['over_patients']['low'] > 0 and np.isnan(part['over_seeds']['low'])
    assert part['verdict'] == 'n/a'


def test_the_mean_of_a_table_counts_a_repeated_label_once() -> None:
    """Pneumonia is the complement of No Finding; the table says so below."""
    rng, names = np.random.default_rng(0), np.array([f'p{n}' for n in range(90)], object)
    targets = rng.integers(0, 2, (90, 3)).astype(float)
    targets[:, 0] = 1 - targets[:, 1]
    labels = ('No Finding', 'Pneumonia', 'Edema')
    values = rng.random((90, 3))
    cases = Cases('valid', labels, names, names, names, values, targets)
    runs = [Scored('a', seed, cases) for seed in range(2)]
    table = score_runs(runs, ['mean'], resamples=0)
    areas = [roc_auc_score(targets[:, k], values[:, k]) for k in (1, 2)]
    found = table[(table['metric'] == 'auroc') & (table['label'] == 'mean')]['value']
    assert found.tolist() == pytest.approx([np.mean(areas)] * 2, abs=1e-12)
    assert {*table[table['metric'] == 'auroc_labels']['value']} == {2}
    (note,), (mean,) = notes_about_labels(runs)
    assert mean.startswith('The mean is over 2 labels with') and mean.endswith('Pneumonia, Edema.')
    assert note.startswith('Pneumonia and No Finding are one label under several names')
    few = [run._replace(images=cases.select(np.arange(30))) for run in runs]
    (mean,) = notes_about_labels(few)[1]
    assert 'with fewer than 20 cases of a class, because no label has more: ' in mean
    (line,) = compare(score_runs(few, ['mean'], resamples=0), [('a', '')], 'mean', subsets={})
    assert line['remark'] == 'few cases'


def test_few_cases_and_unknown_groups_are_told_beside_each_score(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    targets = (rng.random((200, 2)) < 0.5).astype(float)
    targets[12:, 1] = 0
    sex = np.array(['Male', '', 'Female', 'Male'] * 50, object)
    cases = make_cases(rng.random((200, 2)), targets, labels=('A', 'B'), groups={'Sex': sex})
    run, sweep = Scored('simmim_1', 0, cases), load_sweep(methods_file(tmp_path))
    table = score_runs([run], ['A', 'B', 'mean'], resamples=0, by_group=True)
    lines = {
        score: compare(table, [('simmim_1', '')], score, subsets={}) for score in ('A', 'B', 'mean')
    }
    assert ['remark' in line for (line,) in lines.values()] == [False, True, False]
    for score, told in (('A', 0), ('B', 1)):
        page = write_score(tmp_path, score, lines[score], table, sweep, notes=[], draws='')
        assert page.read_text().count('(few cases)') == told
        assert page.with_suffix('.tex').read_text().count('(few cases)') == told
    assert write_all_scores(tmp_path, 'all', lines, sweep, table).read_text().count('(few') == 1
    groups = ['Sex: Female', 'Sex: Male', 'Sex: unknown']
    assert [group for group in table['group'].unique() if group] == groups
    found = compare(table, [('simmim_1', '')], 'A', subsets={}, groups=groups)
    assert [line['cases'] for line in found] == [50, 100, 50]
    unknown = sex == ''
    area = roc_auc_score(targets[unknown, 0], cases.probabilities[unknown, 0])
    assert found[2]['value'] == pytest.approx(area)


@pytest.mark.parametrize(
    'path, synthetic',
    [
        ('CheXpert-phantom/valid/patient80001/study1/view1_frontal.jpg', True),
        ('files/p18/p18000100/s58000101/phantom-000002ed.jpg', True),
        ('CheXpert-v1.0/valid/patient64541/study1/view1_frontal.jpg', False),
    ],
)
def test_tables_of_phantoms_say_so(path: str, synthetic: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    targets = (rng.random((80, 2)) < 0.5).astype(float)
    names = np.array([f'{path}{n}' for n in range(80)], object)
    cases = make_cases(rng.random((80, 2)), targets, labels=('Edema', 'Pneumonia'), path=names)
    table = score_runs([Scored('simmim_1', 0, cases)], ['mean'], resamples=0)
    lines = compare(table, [('simmim_1', '')], 'mean', subsets={})
    sweep = load_sweep(methods_file(tmp_path))
    about = {'notes': ['A & B_1: 5 %.'], 'draws': '0 resamples'}
    one = write_score(tmp_path, 'one', lines, table, sweep, **about)
    every = write_all_scores(tmp_path, 'all', {'mean': lines}, sweep, table)
    for page in (one, every):
        for file in (page, page.with_suffix('.tex')):
            text = file.read_text().replace(r'\\', ' ')  # between lines of a name in LaTeX
            assert ('Synthetic X-rays (phantoms)' in text) == synthetic
            assert 'AUROC, mean of 2 labels' in text and 'Not for clinical use.' in text
    below = one.with_suffix('.tex').read_text().partition(r'\end{tabular}')[2]
    assert r'A \& B\_1: 5 \%.\par' in below
    # The number of labels may be left out of the name of a column.
    options = {'notes': [], 'draws': '', 'columns': ['AUROC, mean', 'row']}
    page = write_score(tmp_path, 'one', lines, table, sweep, **options)
    assert page.read_text().startswith('| AUROC, mean of 2 labels | Method |\n')
    with pytest.raises(ValueError, match='AUC'):
        write_score(tmp_path, 'one', lines, table, sweep, **options | {'columns': ['row', 'AUC']})


def test_a_row_has_one_name_in_all_tables_and_columns_for_what_distinguishes_it(tmp_path) -> None:
    """The CSV file has the names of the sweep file, by which other commands find rows."""
    sweep = load_sweep(ROOT / 'scripts/studies/mae_resnet.yaml', 'tiny')
    names = ['mae_0.75_100', 'ours_last_resnet_plain_100', 'resnet_100', 'mae_0.75_all']
    rng = np.random.default_rng(0)
    targets = (rng.random((80, 1)) < 0.5).astype(float)
    runs = [
        Scored(name, 0, make_cases(rng.random((80, 1)), targets, labels=('any finding',)))
        for name in names
    ]
    table = score_runs(runs, ['mean'], resamples=0)
    pairs = [(name, 'resnet_100') for name in names]
    lines = compare(table, pairs, 'mean', subsets={})
    one = write_score(tmp_path, 'one', lines, table, sweep, notes=[], draws='')
    every = write_all_scores(tmp_path, 'all', {'mean': lines}, sweep, table)
    found = {line['row']: line for line in facts_cells(table.assign(metric='epochs'), sweep)}
    assert found[names[1]]['Row'] == 'ours: ResNet-18, last layer'
    text = one.read_text()
    assert text.startswith('| Row | labels | AUROC, any finding |')
    assert '| MAE, 75 % | 100 images |' in text
    assert '| ResNet-18, augmented, 100 images |' in text  # which the row with all images has
    head, _, *rows = (line.strip('| ').split(' | ') for line in every.read_text().splitlines()[:6])
    wanted = ['encoder', 'trained weights', 'hidden in fine-tuning', 'hidden in scoring']
    assert head[:6] == ['Row', 'labels', *wanted]
    assert head[-1] == 'AUROC, any finding'
    cells = {tuple(row[:2]): row[2:6] for row in rows}
    assert cells['MAE, 75 %', '100 images'] == ['vit', 'all', '75 %', '0 %']
    last = cells['ours: ResNet-18, last layer', '100 images']
    assert last == ['resnet18', 'last layer', '0 %', '0 %']
    for page in (one, every):
        latex = page.with_suffix('.tex').read_text()
        assert r'MAE, 75 \%' in latex and 'mae_0.75' not in text + latex
        assert 'mean of 1 label' not in text + latex and 'mae\\_0.75' not in latex
        assert 'mae_0.75_100' in page.with_suffix('.csv').read_text()


def test_tables_show_the_letters_of_names(tmp_path: Path) -> None:
    cells = [{'a<b': 'c|d'}, {'a<b': '[e] > f'}, {'a<b': 'g\nh'}]
    page = write_table(tmp_path, 'odd', cells, cells, ['i < j | k'])
    lines = ['| a&lt;b |', '| --- |', r'| c\|d |', '| [e] > f |', '| g h |']
    assert page.read_text().splitlines()[:5] == lines
    text = page.with_suffix('.tex').read_text()
    assert r'{}[e] \textgreater{} f' in text and r'i \textless{} j \textbar{} k\par' in text


@pytest.mark.parametrize(
    'score, wanted',
    [
        ('f1:Nodule/Mass', 'mine_f1_Nodule_Mass'),
        ('COPD\\Emphysema', 'mine_COPD_Emphysema'),
        ('../../é: 50 %', 'mine_.._.._é__50_%'),
        ('HER2+', 'mine_HER2+'),  # not the file of HER2-
        ('auroc_within_views:Pleural Effusion', 'mine_auroc_within_views_Pleural_Effusion'),
    ],
)
def test_letters_of_labels_that_file_names_cannot_have_are_replaced(score, wanted) -> None:
    assert file_name('mine', score) == wanted


@pytest.mark.parametrize('label', ['size: large', 'Edema', 'a:b:c'])
def test_labels_may_have_colons(label: str) -> None:
    assert parts_of(label) == ('auroc', label)
    assert parts_of(f'f1:{label}') == ('f1', label)


def test_equal_predictions_of_several_seeds_are_scored_once(monkeypatch) -> None:
    rng = np.random.default_rng(0)
    targets = (rng.random((80, 1)) < 0.5).astype(float)
    cases = [make_cases(rng.random((80, 1)), targets, labels=('Edema',)) for _ in range(2)]
    which = {('a', 0): 0, ('a', 1): 0, ('a', 2): 1, ('b', 0): 0, ('b', 1): 1}
    runs = [Scored(row, seed, cases[k]) for (row, seed), k in which.items()]
    scored, counted = [], long_table.label_scores

    def counting(*given: object, **options: object) -> dict:
        scored.append(1)
        return counted(*given, **options)

    monkeypatch.setattr(long_table, 'label_scores', counting)
    table = score_runs(runs, ['Edema'], resamples=200)
    assert len(scored) == 4
    for run in runs:
        chosen = (table['row'] == run.row) & (table['seed'] == run.seed)
        (value,) = table.loc[chosen & (table['metric'] == 'auroc'), 'value']
        assert value == pytest.approx(roc_auc_score(targets, run.images.probabilities))
    other = runs[0]._replace(thresholds={'Edema': 0.5}, seed=5)
    table = score_runs([runs[0], other], ['f1:Edema'], resamples=200)
    assert len(table.query('metric == "f1"')) == 1


def test_draws_suffice_for_every_row_to_be_significant() -> None:
    samples = np.linspace(0.01, 0.02, enough_resamples(300))
    assert holm([bootstrap_p(samples)] * 300)[0] < SIGNIFICANT / 4


@pytest.fixture(scope='module')
def made_once(tmp_path_factory: pytest.TempPathFactory) -> tuple[MadeRuns, Sweep]:
    folder = tmp_path_factory.mktemp('two')
    made, sweep = MadeRuns(folder), make_sweep(folder, ['0.1', '0.6'], reference=1)
    for row in sweep.rows:
        for seed in (0, 1):
            made.add(row, seed, strength=STRENGTHS[row.name])
    return made, sweep


@pytest.fixture
def two_rows(made_once: tuple[MadeRuns, Sweep], tmp_path: Path) -> tuple[MadeRuns, Sweep]:
    """A copy of the runs of a row and of the reference with two seeds."""
    made, sweep = copy.copy(made_once[0]), made_once[1]
    made.output = Path(shutil.copytree(made.output, tmp_path / 'output'))
    return made, sweep


def test_metrics_at_the_threshold_use_that_of_the_report(two_rows: tuple) -> None:
    made, sweep = two_rows
    labels = ('Edema', 'Pneumonia')  # the labels that have a threshold
    lines = [
        {'split': split, 'label': label, 'metric': 'threshold', 'value': value}
        for split, value in (('valid', 0.1), ('test', 0.6))
        for label in labels
    ]
    for row in sweep.rows:
        for seed in (0, 1):
            folder = run_folder(made.output, 'finetune', row, seed)
            pd.DataFrame(lines, columns=COLUMNS).to_csv(folder / SCORES_FILE, index=False)
    words = ['--scores', 'f1:Edema', 'precision:mean_of_defined', *POINTS]
    assert table_of(sweep, made, *words, seeds=2) == 0
    called = [made.probabilities(2.5, seed) >= 0.6 for seed in (0, 1)]

    def mean_over_seeds(metric, label: str) -> float:
        k = LABELS.index(label)
        return np.mean([metric(made.targets[:, k], own[:, k]) for own in called])

    found = lines_of(made, 'f1_Edema').loc['0.1', 'value']
    assert found == pytest.approx(mean_over_seeds(f1_score, 'Edema'))
    found = lines_of(made, 'precision_mean_of_defined').loc['0.1', 'value']
    wanted = np.mean([mean_over_seeds(precision_score, label) for label in labels])
    assert found == pytest.approx(wanted)


def test_notes_name_unfinished_rows_and_changed_options(tmp_path: Path) -> None:
    made, sweep = MadeRuns(tmp_path), make_sweep(tmp_path, ['0.1', '0.6', '0.9'], reference=1)
    made.output.mkdir()
    (made.output / 'swept_Edema_subgroups.tex').touch()  # of an earlier call
    for row in sweep.rows[:2]:
        made.add(row, 0)
    folder = run_folder(made.output, 'finetune', sweep.rows[0], 0)
    text = (folder / 'config.yaml').read_text()
    (folder / 'config.yaml').write_text(re.sub('LAYER_DECAY: .*', 'LAYER_DECAY: 0.35', text))
    for file in (made.output / 'simmim_finetune').rglob('config.yaml'):  # options of all runs
        text = re.sub('DROP_PATH_RATE: .*', 'DROP_PATH_RATE: 0.45', file.read_text())
        file.write_text(re.sub('CLIP_GRAD: .*', 'CLIP_GRAD: 7.5', text))
    made.add(sweep.rows[2], 0, finished=False)
    assert table_of(sweep, made, '--scores', 'mean_of_five', 'Edema', seeds=1) == 0
    assert not (made.output / 'swept_Edema_subgroups.tex').exists()
    for name in ('all_scores', 'mean_of_five'):
        page = (made.output / f'swept_{name}.md').read_text()
        assert 'Not finished: 0.9 seed 0 (stopped).' in page and '- Scored: test' in page
        assert 'Runs of 0.1 differ from the sweep file: TRAIN.LAYER_DECAY' in page
        (common,) = re.findall('All runs differ from the sweep file: (.*)', page)
        assert 'MODEL.NUM_CLASSES: ' in common and '-> 0.45' in common and '-> 7.5' in common
    assert '| n/a (note 1) |' in page and 'note 1: A single seed' in page
    assert table_of(sweep, made, '--scores', 'Edema', seeds=40) == 0
    (line,) = re.findall('- (Not finished: .*)', (made.output / 'swept_Edema.md').read_text())
    assert len(line) < 300 and re.search(r'0.1 seed 1 \(not started\).* and \d\d+ more\.$', line)


def test_rows_scored_on_other_cases_are_not_compared(two_rows: tuple) -> None:
    made, sweep = two_rows
    for seed in (0, 1):
        file = run_folder(made.output, 'finetune', sweep.rows[0], seed) / 'scores.json'
        file.write_text(file.read_text().replace('"frontal"', '"all"'))
    assert table_of(sweep, made, *POINTS, seeds=2) == 0
    assert lines_of(made, 'mean_of_five')['against'].isna().all()
    page = (made.output / 'swept_mean_of_five.md').read_text()
    assert '0.1 was scored on other cases than 0.6: not compared.' in page


def test_a_row_of_an_ablation_that_is_called_pixels_is_no_baseline(tmp_path: Path) -> None:
    made, sweep = MadeRuns(tmp_path), make_sweep(tmp_path, ['pixels', '0.6'], reference=1)
    for row in sweep.rows:
        made.add(row, 0)
    assert table_of(sweep, made, *POINTS, seeds=1) == 0
    assert lines_of(made, 'mean_of_five').loc['pixels', 'against'] == '0.6'


def test_a_label_with_few_cases_has_no_verdict(two_rows: tuple, monkeypatch) -> None:
    made, sweep = two_rows
    monkeypatch.setattr('evaluation.model_comparison.SIGNIFICANT', 0.9)
    for few, wanted in ((20, 'above'), (80, 'n/a')):
        monkeypatch.setattr('evaluation.metrics.FEW_CASES', few)
        assert table_of(sweep, made, '--scores', 'Edema', seeds=2) == 0
        text = (made.output / 'swept_Edema.csv').read_text().splitlines()[1]
        assert text.endswith(f',{wanted}')
        number = int(wanted != 'n/a')
        page = (made.output / 'swept_Edema.md').read_text()
        assert f'over the {number} comparisons of this table' in page


def test_scores_of_few_cases_are_not_in_bold(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, ['0.1', '0.6'])
    rng, targets = np.random.default_rng(0), np.zeros((90, 2))
    targets[:40, 0] = targets[:19, 1] = 1
    cases = [make_cases(rng.random((90, 2)), targets, labels=('Edema', 'Rare')) for _ in 'ab']
    runs = [Scored(row.name, 0, own) for row, own in zip(sweep.rows, cases, strict=True)]
    table = score_runs(runs, ['mean', 'Edema', 'Rare'], resamples=0)
    scores = {
        score: compare(table, [('0.1', ''), ('0.6', '')], score, subsets={})
        for score in ('mean', 'Edema', 'Rare')
    }
    text = write_all_scores(tmp_path, 'all', scores, sweep, table).read_text()
    cells = zip(*(line.split(' | ') for line in text.splitlines()[2:4]), strict=True)
    assert [sum('**' in cell for cell in column) for column in cells] == [
        0,
        0,
        1,
        0,
    ]  # the mean is that of Edema
    assert 'Without bold, because of fewer than 20 cases of a class: AUROC, Rare.' in text


def test_cost_is_epochs_times_the_median_epoch() -> None:
    records = [{'epoch': -1, 'loss': 1.0}]
    for epoch, seconds in enumerate((10.0, 30.0, 20.0)):
        speed = 80 / seconds
        records.append({'epoch': epoch, 'seconds': seconds, 'images_per_second': speed})
    # Interrupted at half an epoch: 40 images in 4 seconds.
    records.append({'epoch': 3, 'seconds': 4.0, 'images_per_second': 10.0})
    figures = pretraining_figures(records)
    assert figures['images_seen'] == 320
    assert figures['pretrain_minutes'] == pytest.approx(4 * 15 / 60)


def test_single_runs_are_compared_without_a_sweep(two_rows: tuple, tmp_path: Path, capsys) -> None:
    made, sweep = two_rows
    runs = []
    for name, row in zip(('strong', 'weak'), sweep.rows, strict=True):
        file = run_folder(made.output, 'finetune', row, 1) / 'config.yaml'
        file.write_text(re.sub('^SEED: 0', 'SEED: 1', file.read_text(), flags=re.M))
        runs.append(f'{name}={file.parent}'.replace('seed1', 'seed*'))
    words = ['table', '--runs', *runs, '--save', tmp_path / 't', '--resamples', 200]
    assert run_script('ablate', *words) == 0
    line = pd.read_csv(tmp_path / 't/runs_mean_of_five.csv').set_index('row').loc['strong']
    assert line['against'] == 'weak' and line['seeds'] == 2 and line['difference'] > 0
    assert run_script('ablate', 'table', '--runs', 'a=none', '--save', tmp_path) == 2
    assert "'a=none'" in capsys.readouterr().err


@pytest.mark.parametrize(
    'name, content, words, error',
    [
        (SCORES_FILE, 'x', [], SCORES_FILE),
        ('scores.json', DEEP, [], 'scores in'),
        ('scores.json', '{"valid": {}}', ['--split', 'test'], '--split'),
        ('predictions_test.csv', 'Path,Edema\nx,0.5\n', [], 'predictions_test.csv'),
        ('', '', ['--scores', 'Oedema'], "'Oedema'"),
        ('', '', ['--demographics', 'x.csv'], '--subgroups'),
        ('', '', ['--labels', 'x.csv'], '--predictions'),
    ],
)
def test_tables_that_runs_cannot_have_are_refused(two_rows, name, content, words, error, capsys):
    made, sweep = two_rows
    if name:
        (run_folder(made.output, 'finetune', sweep.rows[0], 0) / name).write_text(content)
    assert table_of(sweep, made, *words, seeds=2) == 2
    assert error in capsys.readouterr().err


def test_scores_that_are_not_those_of_the_predictions_are_refused(two_rows: tuple, capsys) -> None:
    made, sweep = two_rows
    file = run_folder(made.output, 'finetune', sweep.rows[0], 1) / 'scores.json'
    scores = json.loads(file.read_text())
    scores['test']['selected']['auroc']['Edema'] -= 0.01
    file.write_text(json.dumps(scores))
    assert table_of(sweep, made, seeds=2) == 2
    assert f'{file.parent}: the AUROC of Edema' in capsys.readouterr().err


def test_one_table_has_all_scores_with_the_best_in_bold(tmp_path: Path) -> None:
    sweep = load_sweep(methods_file(tmp_path, titles={'simmim': '**S** & co'}))
    values = {'simmim_0.1': 0.7, 'moco_0.1': 0.7004, 'simmim_1': 0.8, 'scratch_1': 0.9}
    lines = [{'row': row, 'value': value, 'sd': 0.01, 'seeds': 2} for row, value in values.items()]
    single = [line | {'value': 1 - line['value'], 'seeds': 1} for line in lines[1:]]
    scores = {'mean': lines, 'brier:mean': single, 'f1:Edema': single}
    page = write_all_scores(tmp_path, 'all', scores, sweep, notes=['About <b>these</b> **rows**.'])
    rows = [line.strip('| ').split(' | ') for line in page.read_text().splitlines()[:6]]
    wanted = ['AUROC, mean', 'Brier score, mean', 'F1, Edema']
    assert rows[0] == ['Method', 'labels', 'seeds', *wanted]
    ten, name = '10 % of the labels', r'\*\*S\*\* & co'
    assert rows[2:] == [
        [name, ten, '2', '**0.700 ± 0.010**', 'n/a', 'n/a'],
        ['moco', ten, '1 to 2', '**0.700 ± 0.010**', '**0.300**', '**0.300**'],  # equal as shown
        [name, 'all labels', '1 to 2', '0.800 ± 0.010', '0.200', '**0.200**'],
        ['scratch', 'all labels', '1 to 2', '**0.900 ± 0.010**', '**0.100**', '0.100'],
    ]
    latex = page.with_suffix('.tex').read_text()
    assert r'\textbf{0.900 $\pm$ 0.010}' in latex and r'**S** \& co' in latex
    assert '**rows**' in latex and r'- About &lt;b>these&lt;/b> \*\*rows\*\*.' in page.read_text()
    table = pd.read_csv(page.with_suffix('.csv'), dtype={'row': str}).set_index('row')
    assert table.loc['moco_0.1', 'mean'] == 0.7004


def test_published_values_stand_beside_ours_as_context(tmp_path: Path) -> None:
    scores, published = ['mean', 'f1:mean'], {'moco_0.1': [0.64, 0.5], 'simmim_1': [0.73]}
    sweep = load_sweep(methods_file(tmp_path, scores=scores, published=published))
    lines = [{'row': row.name, 'value': 0.6, 'sd': 0.0, 'seeds': 1} for row in sweep.rows]
    page = write_all_scores(tmp_path, 'all', dict.fromkeys(scores, lines), sweep)
    head, _, *rows = (line.strip('|').split('|') for line in page.read_text().splitlines()[:8])
    head, own = [name.strip() for name in head], {'AUROC, mean', 'F1, mean'}
    columns = [name for name in head if name in own or name.startswith('published')]
    assert columns == ['AUROC, mean', 'published AUROC', 'F1, mean', 'published F1']
    found = {
        (row[0].strip(), row[1].strip()): [row[head.index(f'published {name}')].strip()
                                           for name in ('AUROC', 'F1')]
        for row in rows
    }  # fmt: skip
    assert found['moco', '10 % of the labels'] == ['0.640', '0.500']
    assert found['simmim', 'all labels'] == ['0.730', '']
    assert found['scratch', 'all labels'] == ['', '']
    assert 'Published: context only, because protocols differ.' in page.read_text()
    assert pd.read_csv(page.with_suffix('.csv'))['mean_published'].notna().sum() == 2


@pytest.mark.parametrize(
    'published, error',
    [({'moco_2': [0.6]}, "'moco_2' must be one of the rows"), ({'moco_1': [0.6] * 3}, 'list of')],
)
def test_published_values_of_other_rows_and_scores_are_refused(published, error, tmp_path) -> None:
    with pytest.raises(ValueError, match=error):
        load_sweep(methods_file(tmp_path, scores=['mean', 'f1:mean'], published=published))


def test_a_mean_over_the_only_label_with_enough_cases_has_its_name() -> None:
    targets = np.zeros((80, 2))
    targets[:3, 0], targets[:40, 1] = 1, 1  # three positives of the first
    cases = make_cases(np.random.default_rng(0).random((80, 2)), targets, labels=('few', 'many'))
    table = score_runs([Scored('row', 0, cases)], ['mean'], resamples=0)
    assert score_title('mean', table) == 'AUROC, many'
