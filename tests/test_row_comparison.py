"""Comparison of rows of a long table, and the cells that show it."""

import numpy as np
import pytest

from evaluation.footnotes import Footnotes
from evaluation.intervals import bootstrap_p, holm
from sweeps.row_comparison import compare_rows, few_of_label, summarise
from sweeps.table_format import missing_intervals, verdict_text

RESAMPLES = 200


def seeds(mean: float, *, number: int = 3) -> dict[int, dict[str, np.ndarray]]:
    """A row whose score differs by seed and resample."""
    rng = np.random.default_rng(round(1000 * mean))
    return {n: {'Edema': mean + rng.normal(scale=0.02, size=1 + RESAMPLES)} for n in range(number)}


def test_rows_are_compared_by_the_seeds_that_both_have() -> None:
    table = {'a': seeds(0.8), 'b': seeds(0.7), 'c': seeds(0.79)}
    del table['a'][0]
    first, none, last = compare_rows(table, [('a', 'b'), ('b', ''), ('c', 'b')], 'Edema')
    assert none is None
    paired = np.mean([table['a'][n]['Edema'] - table['b'][n]['Edema'] for n in (1, 2)], axis=0)
    assert (first['seeds'], last['seeds']) == (2, 3)
    assert first['difference'] == pytest.approx(paired[0])
    by_seed = [table['a'][n]['Edema'][0] - table['b'][n]['Edema'][0] for n in (1, 2)]
    assert first['by_seed'] == pytest.approx(by_seed)
    ends = [first['over_patients'][end] for end in ('low', 'high')]
    assert ends == pytest.approx(np.percentile(paired[1:], [2.5, 97.5]))
    assert first['over_patients']['p'] == pytest.approx(bootstrap_p(paired[1:]))
    parts = [part['over_patients'] for part in (first, last)]
    assert [part['p_holm'] for part in parts] == list(holm([part['p'] for part in parts]))


def test_rows_without_a_common_seed_are_not_compared() -> None:
    table = {'a': seeds(0.8, number=1), 'b': {1: seeds(0.7)[1]}}
    assert compare_rows(table, [('a', 'b')], 'Edema') == [None]


def test_a_seed_without_resamples_leaves_only_the_interval_over_seeds() -> None:
    table = {'a': seeds(0.8), 'b': seeds(0.5)}
    table['a'][1]['Edema'] = table['a'][1]['Edema'][:1]
    (part,) = compare_rows(table, [('a', 'b')], 'Edema')
    assert part['over_seeds']['low'] > 0
    assert np.isnan([*part['over_patients'].values()]).all() and part['verdict'] == 'n/a'
    own = summarise(table['a'], 'Edema')
    assert np.isnan(own['low']) and own['value'] > 0.7


def test_a_missing_verdict_has_the_marks_of_all_reasons() -> None:
    table = {'a': {0: {'Edema': np.array([0.8])}}, 'b': seeds(0.5)}
    (part,) = compare_rows(table, [('a', 'b')], 'Edema')
    footnotes = Footnotes()
    missing = missing_intervals(part, 'few cases')
    assert missing['over_patients'] == 'few cases' != missing['over_seeds']
    assert verdict_text(part, missing, footnotes) == 'n/a (note 1, note 2)'
    undefined = {'a': {n: {'Edema': np.array([np.nan])} for n in range(3)}, 'b': seeds(0.5)}
    (part,) = compare_rows(undefined, [('a', 'b')], 'Edema')
    assert missing_intervals(part, 'few cases') == dict.fromkeys(missing, 'few cases')


def test_the_largest_of_several_p_values_is_not_corrected() -> None:
    """Holm multiplies the smallest of three by 3, and the largest by 1."""
    rng = np.random.default_rng(0)
    table = {
        name: {0: {'Edema': mean + rng.normal(scale=0.02, size=201)}}
        for name, mean in (('base', 0.7), ('a', 0.71), ('b', 0.73), ('c', 0.8))
    }
    pairs = [(name, 'base') for name in 'abc']
    parts = [part['over_patients'] for part in compare_rows(table, pairs, 'Edema')]
    p_values = [part['p'] for part in parts]
    assert len({*p_values}) == 3
    assert [part['p_holm'] for part in parts] == pytest.approx(holm(p_values))


def test_rows_that_do_not_depend_on_the_seed_have_no_verdict() -> None:
    """Patients alone would decide, although other seeds were never tried."""
    values = 0.05 + np.random.default_rng(0).normal(scale=0.005, size=1 + RESAMPLES)
    table = {name: {n: {'Edema': mean + values * k} for n in range(3)} for name, mean, k in
             (('a', 0.8, 1), ('b', 0.7, 0))}  # fmt: skip
    (part,) = compare_rows(table, [('a', 'b')], 'Edema')
    assert part['over_patients']['low'] > 0 and np.isnan(part['over_seeds']['low'])
    missing = missing_intervals(part, 'few cases')
    assert part['verdict'] == 'n/a' and 'the same for all seeds' in missing['over_seeds']


@pytest.mark.parametrize('negatives', [None, {'Edema': 25}])
def test_few_cases_are_those_of_the_rarer_class(negatives: dict | None) -> None:
    figures = {'positives': {'Edema': 4, 'Fracture': 20}, 'negatives': negatives, 'rows': 45}
    assert few_of_label(figures, 'Edema') == '4 positives'
    assert few_of_label(figures | {'rows': 24}, 'mean_of_five') == ''
    if negatives is None:
        assert few_of_label(figures, 'Fracture') == ''
        assert few_of_label(figures | {'rows': 24}, 'Fracture') == '4 negatives'
