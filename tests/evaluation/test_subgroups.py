"""Scores of groups, and standardised scores against scikit-learn and by hand."""

import numpy as np
import pytest
from cases import NAN, make_cases
from sklearn.metrics import roc_auc_score

from data.tables.labels import NO_FINDING
from evaluation.intervals import Resamples
from evaluation.metrics import Protocol
from evaluation.subgroups import score_groups, standard_weights


def by_group(cases, *, resamples=None, level='image', column='Sex'):
    nothing = np.full(len(cases.labels), np.nan)
    resamples = resamples or Resamples(cases.patient, resamples=0, seed=0)
    columns = score_groups(cases, nothing, Protocol(level=level), resamples)
    (found,) = (part for part in columns if part['column'] == column)
    return {group['group']: group['labels'] for group in found['groups']}, found['gaps']


def two_sexes(known):
    """Draw 2,000 cases of each sex, half of them old, with `known` {(sex, age): rows} targets.

    Old cases have noisier scores.
    """
    rng = np.random.default_rng(0)
    sex = np.repeat(np.array(['Female', 'Male'], object), 2000)
    age = np.tile(np.repeat(np.array(['40-59', '60-79'], object), 1000), 2)
    targets = (rng.random((4000, 1)) < 0.5).astype(float)
    skill = np.where(age == '60-79', 0.2, 2.0)[:, None]
    scores = 1 / (1 + np.exp(-rng.normal(skill * targets)))
    for (one, other), count in known.items():
        targets[np.flatnonzero((sex == one) & (age == other))[count:]] = NAN
    return make_cases(scores, targets, groups={'Sex': sex, 'Age': age})


def test_each_label_has_its_own_weights():
    """The weights for four rows of a group and four other rows are computed by hand."""
    age = np.array(['a', 'a', 'a', 'b', 'a', 'b', 'b', 'b'], object)
    targets = np.array(
        [[1, 1], [0, NAN], [1, NAN], [0, 0], [1, 1], [0, NAN], [0, 0], [NAN, NAN]], float
    )
    everyone = make_cases(np.full((8, 2), 0.5), targets, groups={'Age': age})
    weights = standard_weights(everyone, everyone.select(np.arange(4)), ['Age'])
    # Label 0: a has 4 of all 7 rows and 3 of 4 in the group. Label 1: 2 of 4 and 1 of 2.
    a, b = (4 / 7) / (3 / 4), (3 / 7) / (1 / 4)
    np.testing.assert_allclose(weights, [[a, 1], [a, 0], [a, 0], [b, 1]])
    assert weights[:, 0].mean() == pytest.approx(1)


def test_standardised_intervals_use_the_same_resamples():
    rng = np.random.default_rng(2)
    cases = two_sexes({('Female', '60-79'): 40, ('Male', '40-59'): 60})
    cases = cases.select(rng.permutation(4000)[:300])
    resamples = Resamples(cases.patient, resamples=200, seed=1)
    found, _ = by_group(cases, resamples=resamples)
    chosen = cases.select(cases.groups['Sex'] == 'Male')
    shares = standard_weights(cases, chosen, ['Age'])[:, 0]
    known = ~np.isnan(chosen.targets[:, 0])
    pair = chosen.targets[known, 0], chosen.probabilities[known, 0]
    drawn = resamples.weights(chosen.patient)
    areas = [
        roc_auc_score(*pair, sample_weight=(counts * shares)[known])
        for counts in drawn.counts[drawn.patient].T[1:]
    ]
    part = found['Male']['label 0']['scores']['auroc_standardised']
    assert part['value'] == pytest.approx(roc_auc_score(*pair, sample_weight=shares[known]))
    assert [part['low'], part['high']] == pytest.approx(np.percentile(areas, [2.5, 97.5]))


def test_a_stratum_that_no_study_has_gets_weight_0():
    """The age of a study is the age of the first image. Here the lateral one has another."""
    study = np.array(['test/patient1/study1'] * 2 + ['test/patient2/study1'] * 2, object)
    groups = {
        'View': np.array(['Frontal AP', 'Lateral'] * 2, object),
        'Age': np.array(['0-39', '40-59', '60-79', '60-79'], object),
    }
    targets = np.array([[1.0], [1.0], [0.0], [0.0]])
    cases = make_cases(np.full((4, 1), 0.5), targets, study=study, groups=groups)
    found, _ = by_group(cases, level='study', column='View')
    assert found['Frontal AP']['label 0']['scores']['auroc_standardised']['value'] == 0.5
    assert np.isnan(found['Lateral']['label 0']['scores']['auroc_standardised']['value'])


def test_the_gap_is_between_the_best_and_the_worst_group():
    cases = two_sexes({}).select(np.arange(0, 4000, 10))
    sites = cases.groups['Site'] = np.array([f'{i % 3}' for i in range(400)], object)
    found, gaps = by_group(cases, column='Site')
    areas = {
        site: roc_auc_score(cases.targets[sites == site, 0], cases.probabilities[sites == site, 0])
        for site in '012'
    }
    for site, area in areas.items():
        assert found[site]['label 0']['scores']['auroc']['value'] == pytest.approx(area)
    gap = gaps['label 0']
    assert [gap['best'], gap['worst']] == [max(areas, key=areas.get), min(areas, key=areas.get)]
    assert gap['gap']['value'] == pytest.approx(max(areas.values()) - min(areas.values()))


@pytest.mark.parametrize('groups', [2, 3])
def test_only_the_gap_of_two_groups_has_an_interval(groups):
    """The largest of several differences excludes 0 too often, also between equal groups."""
    cases = two_sexes({}).select(np.arange(0, 4000, 10))
    cases.groups['Site'] = np.array([f'{i % groups}' for i in range(400)], object)
    resamples = Resamples(cases.patient, resamples=200, seed=0)
    _, gaps = by_group(cases, column='Site', resamples=resamples)
    assert np.isnan(gaps['label 0']['gap']['low']) == (groups > 2)


def test_underdiagnosis_is_the_share_of_ill_patients_called_healthy():
    """One of four patients with a finding has No Finding at the threshold."""
    probabilities = np.array([[0.9], [0.1], [0.2], [0.3], [0.8], [0.7]])
    targets = np.array([[0.0], [0], [0], [0], [1], [1]])
    groups = {'Sex': np.array(['Female'] * 6, object)}
    cases = make_cases(probabilities, targets, labels=(NO_FINDING,), groups=groups)
    resamples = Resamples(cases.patient, resamples=0, seed=0)
    (column,) = score_groups(cases, np.array([0.5]), Protocol(level='image'), resamples)
    assert column['groups'][0]['underdiagnosis']['value'] == 0.25
