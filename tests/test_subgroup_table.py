"""A sweep by subgroup: every cell against an independent computation, marks, tables and figure."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score
from sweep_runs import MadeRuns, make_sweep
from tiny import load_script

from data.labels import COMPETITION_LABELS, LABELS
from evaluation.cases import Cases
from evaluation.intervals import Resamples, bootstrap_p, holm
from sweeps.plots import plot_subgroups
from sweeps.results import collect
from sweeps.run_scores import BOOTSTRAP_SEED
from sweeps.subgroup_table import _score, collect_subgroups, write_subgroup_table

STRENGTHS = {'0.1': 2.5, '0.6': 1.0, '0.8': 0.1}
SEEDS = [0, 1, 2]
DRAWS = 200
EDEMA = LABELS.index('Edema')


class Finished:
    """Three rows with three seeds, of which the second row is the reference."""

    def __init__(self, folder: Path) -> None:
        self.sweep = make_sweep(folder, [*STRENGTHS], reference=1)
        self.made = MadeRuns(folder, level='image', size=240)
        file = self.made.data / 'test.csv'
        rng = np.random.default_rng(3)
        self.table = pd.read_csv(file)
        people = {p: (rng.choice(['Male', 'Female']), rng.integers(20, 95)) for p in
                  sorted(set(self.made.patients))}  # fmt: skip
        self.table['Sex'], self.table['Age'] = zip(
            *map(people.get, self.made.patients), strict=True
        )
        self.table['AP/PA'] = rng.choice(['AP', 'PA'], len(self.table))
        self.table.to_csv(file, index=False)
        self.people = folder / 'people.csv'
        races = [(p, rng.choice(['Asian', 'White'])) for p in people]
        pd.DataFrame(races, columns=['PATIENT', 'RACE']).to_csv(self.people, index=False)
        self.predicted = {
            (row.name, seed): self.made.add(row, seed, strength=STRENGTHS[row.name])
            for row in self.sweep.rows
            for seed in SEEDS
        }
        self.collected = collect(self.sweep, SEEDS, self.made.output, resamples=DRAWS)


@pytest.fixture(scope='module')
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    made = Finished(tmp_path_factory.mktemp('runs'))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('sweeps.subgroup_table.enough_resamples', lambda count: DRAWS)
        patch.setattr('sweeps.row_comparison.SIGNIFICANT', 0.3)  # so that few resamples are enough
        made.collected['subgroups'] = collect_subgroups(
            *(made.collected, made.sweep, made.made.output, 'Edema'),
            further=['RACE'],
            demographics=str(made.people),
        )
    return made


def cell_of(made: Finished, row: str, column: str, group: str) -> dict:
    cells = made.collected['subgroups']['cells']
    keys = ('row', 'column', 'group')
    return next(c for c in cells if [c[k] for k in keys] == [row, column, group])


def test_a_cell_is_the_score_of_scikit_learn_with_the_resamples_of_patients(
    finished: Finished,
) -> None:
    chosen = (finished.table['Sex'] == 'Female').to_numpy()
    targets = finished.made.targets[chosen, EDEMA]
    draws = Resamples(finished.made.patients, resamples=DRAWS, seed=BOOTSTRAP_SEED)
    weights = draws.weights(np.array(finished.made.patients)[chosen])
    means = {}
    for row in ('0.1', '0.6'):
        values = [finished.predicted[row, seed][chosen, EDEMA] for seed in SEEDS]
        means[row] = np.mean(
            [[roc_auc_score(targets, value, sample_weight=w) for w in [None, *weights]]
             for value in values], axis=0)  # fmt: skip
    cell = cell_of(finished, '0.1', 'Sex', 'Female')
    assert cell['cases'] == chosen.sum()
    assert cell['patients'] == len(set(np.array(finished.made.patients)[chosen]))
    assert cell['value'] == pytest.approx(means['0.1'][0])
    ends = np.percentile(means['0.1'][1:], [2.5, 97.5])
    assert [cell['low'], cell['high']] == pytest.approx(ends.tolist())
    difference = means['0.1'] - means['0.6']
    assert cell['difference'] == pytest.approx(difference[0])
    found = cell['over_patients']
    ends = np.percentile(difference[1:], [2.5, 97.5])
    assert [found['low'], found['high']] == pytest.approx(ends.tolist())
    assert found['p'] == pytest.approx(bootstrap_p(difference[1:]))


@pytest.mark.parametrize('others', [[], ['0.6']])
def test_a_comparison_that_the_table_refuses_is_not_made_in_groups(
    finished: Finished, others: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other comparisons of the row are."""
    monkeypatch.setattr('sweeps.subgroup_table.enough_resamples', lambda count: DRAWS)
    entries = {row['name']: row for row in finished.collected['rows']}
    refused = entries['0.1'] | {'against': '0.8', 'problem': 'other cases'}
    allowed = [entries['0.1'] | {'against': name} for name in others]
    collected = finished.collected | {'rows': [refused, *allowed, entries['0.6'], entries['0.8']]}
    found = collect_subgroups(collected, finished.sweep, finished.made.output, 'Edema')
    pairs = {(c['row'], c['against']) for c in found['cells'] if c['row'] == '0.1'}
    assert pairs == {('0.1', name) for name in others} | {('0.1', '') for _ in others}


def test_p_values_are_corrected_over_all_rows_and_groups(finished: Finished) -> None:
    cells = [c for c in finished.collected['subgroups']['cells'] if c.get('verdict')]
    names = {(cell['column'], cell['group']) for cell in cells}
    assert {column for column, _ in names} == {'Sex', 'Age', 'View', 'RACE'}
    assert len(cells) == 2 * len(names)  # all rows but the reference
    wanted = holm([cell['over_patients']['p'] for cell in cells])  # None: few cases
    found = [cell['over_patients']['p_holm'] for cell in cells]
    assert np.array(found, float) == pytest.approx(wanted, nan_ok=True)


def test_few_cases_are_marked_and_everyone_is_the_score_of_the_run(finished: Finished) -> None:
    ages = finished.table['Age']
    bands = pd.cut(ages, [0, 40, 60, 80, 200], right=False).cat.codes
    positives = finished.table['Edema'].groupby(bands).sum().tolist()
    names = ['0-39', '40-59', '60-79', '80 and over']
    assert min(positives) < 20 <= max(positives)
    for name, number in zip(names, positives, strict=True):
        few = cell_of(finished, '0.1', 'Age', name)['few']
        assert few == (f'{number} positives of Edema' if number < 20 else '')
    for cell in finished.collected['subgroups']['cells']:
        if cell['column'] == 'All':
            assert not cell['few'] and not cell['against']
            row = next(r for r in finished.collected['rows'] if r['name'] == cell['row'])
            scores = [entry['finetune']['figures']['scores']['Edema'] for entry in row['seeds']]
            assert cell['value'] == pytest.approx(np.mean(scores), abs=1e-5)


def test_tables_and_figure_have_all_rows_and_groups(finished: Finished, tmp_path: Path) -> None:
    page = write_subgroup_table(finished.collected, tmp_path)
    text, cells = page.read_text(), finished.collected['subgroups']['cells']
    for cell in cells:
        assert cell['group'] in text
    assert text.count('\n| 0.8') == 5  # all, sex, age, view and race
    assert '**below**' in text and 'Holm' in text and 'Not for clinical use' in text
    with open(page.with_suffix('.csv'), newline='') as file:
        lines = [*csv.DictReader(file)]
    assert len(lines) == len(cells)
    assert float(lines[-1]['auroc']) == cells[-1]['value']
    assert float(lines[-1]['p_holm']) == cells[-1]['over_patients']['p_holm']
    plot_subgroups(tmp_path / 'x.png', finished.collected)
    assert (tmp_path / 'x.png').stat().st_size > 20_000


def test_the_option_writes_and_stores_the_subgroups(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr('sweeps.subgroup_table.enough_resamples', lambda count: DRAWS)
    ablate, output = load_script('ablate'), finished.made.output
    words = ['table', '--sweep', str(finished.sweep.path), '--scores', 'Edema', '--subgroups']
    race = ['RACE', '--demographics', str(finished.people)]
    saved = ['--output', str(output), '--seeds', '3', '--save', str(tmp_path)]
    assert ablate.main(ablate.parse_args([*words, *race, *saved])) == 0
    written = {file.name for file in output.glob('swept_subgroups.*')}
    assert written == {f'swept_subgroups.{kind}' for kind in ('md', 'csv', 'png', 'pdf')}
    again = ['--from', str(tmp_path), '--output', str(tmp_path / 'again')]
    assert ablate.main(ablate.parse_args([*words, *again])) == 0
    name = 'swept_subgroups.md'
    assert 'Asian' in (output / name).read_text()
    capsys.readouterr()
    assert ablate.main(ablate.parse_args([*words[:-1], *race[1:], *saved])) == 2
    assert '--demographics' in capsys.readouterr().err
    assert (tmp_path / 'again' / name).read_text() == (output / name).read_text()
    assert ablate.main(ablate.parse_args([*words, *race, *again])) == 2
    file = tmp_path / 'swept.json'
    older = json.loads(file.read_text())
    del older['subgroups']
    file.write_text(json.dumps(older))
    capsys.readouterr()
    assert ablate.main(ablate.parse_args([*words, *again])) == 2
    assert '--subgroups' in capsys.readouterr().err
    bad = [*words[:3], '--scores', 'f1:Edema', '--subgroups', *saved]
    assert ablate.main(ablate.parse_args(bad)) == 2
    assert '--scores' in capsys.readouterr().err


def test_a_mean_of_five_is_not_that_of_fewer_labels() -> None:
    names = np.array(['a', 'b'], object)
    targets = np.array([[0, 0, 0, 0, 0], [1, 1, 1, 1, 0]], float)
    rows = Cases('test', COMPETITION_LABELS, names, names, names, np.full((2, 5), 0.5), targets)
    patients = SimpleNamespace(resamples=Resamples(rows.patient, resamples=2, seed=0))
    samples, facts = _score(rows, 'mean_of_five', patients)
    assert samples is None and facts['labels'] == 4
    samples, _ = _score(rows, 'mean_of_defined', patients)
    assert samples[0] == 0.5
