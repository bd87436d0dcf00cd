"""What may rank cases in place of the finding: view, age and sex; and scores of other cases."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from cases import make_cases, pair_auroc
from sklearn.metrics import roc_auc_score

from data.tables.groups import UNKNOWN, UNPROJECTED, standard_groups
from data.tables.predictions import read_label_file
from evaluation.intervals import Resamples, holm
from evaluation.metrics import FEW_CASES, Protocol
from evaluation.report.document import (
    build_document,
    compare_with_baselines,
    scores_table,
    write_report,
)
from evaluation.subgroups import range_p, ranks_of_groups, score_groups

PROTOCOL = Protocol(level='image', resamples=200)
VIEWS = np.array(['Frontal AP', 'Frontal PA'], object)
ALONE = 'without an image'


def confounded(share_ap: float, share_pa: float, *, noise: float = 1.0, count: int = 400):
    """A model of one label that only tells the views, which have these shares of positives."""
    rng = np.random.default_rng(0)
    view = np.arange(count) % 2
    targets = (rng.random(count) < np.where(view, share_pa, share_ap)).astype(float)[:, None]
    scores = 1 / (1 + np.exp(-(2 * view - 1 + rng.normal(scale=noise, size=count))))[:, None]
    sex = rng.choice(np.array(['Male', 'Female'], object), count)
    age = rng.choice(np.array(['0-39', '40-59', '60-79'], object), count)
    groups = {'View': VIEWS[view], 'Sex': sex, 'Age': age}
    return make_cases(scores, targets, labels=('Edema',), groups=groups)


def alerts_of(document: dict) -> list[str]:
    """The lines about what ranks cases without an image."""
    return [line for line in document['alerts'] if ALONE in line]


def test_the_view_alone_gives_the_known_auroc_of_pneumonia(nih1000: Path, tmp_path: Path) -> None:
    file = tmp_path / 'all.csv'
    tables = [pd.read_csv(nih1000 / f'{split}.csv', dtype=str) for split in ('train', 'valid')]
    table = pd.concat(tables)
    table.to_csv(file, index=False)
    labels = read_label_file(file, labels=['Pneumonia'])
    values = np.random.default_rng(0).random((len(table), 1))
    about = {'labels': ('Pneumonia',), 'patient': labels.records.patient}
    groups = standard_groups(labels.records)
    cases = make_cases(values, labels.targets, groups=groups, **about)
    wanted = roc_auc_score(table['Pneumonia'].astype(float), table['AP/PA'] == 'PA')
    assert round(wanted, 3) == 0.617
    assert roc_auc_score(labels.targets, ranks_of_groups(cases, ['View'])) == pytest.approx(wanted)
    (alert,) = alerts_of(build_document([cases], None, PROTOCOL, run={}))
    assert 'from view alone, the AUROC is Pneumonia 0.617 [' in alert


@pytest.mark.parametrize('share_pa, is_told', [(0.56, False), (0.7, True), (0.2, True)])
def test_a_label_that_the_view_ranks_gives_an_alert(share_pa, is_told, tmp_path: Path) -> None:
    cases = confounded(0.5, share_pa)
    document = build_document([cases], None, PROTOCOL, run={})
    is_pa = cases.groups['View'] == VIEWS[1]
    area = roc_auc_score(cases.targets, is_pa if share_pa > 0.5 else ~is_pa)
    alerts = alerts_of(document)
    assert len(alerts) == is_told == (area > 0.6)
    assert all(f'from view alone, the AUROC is Edema {area:.3f}' in line for line in alerts)
    assert (ALONE in write_report(tmp_path, document).read_text()) == is_told


def test_age_and_sex_of_noise_give_no_alert_and_those_of_a_cause_do() -> None:
    """Eight groups of 60 cases would rank their own labels with an AUROC above .6."""
    cases = confounded(0.5, 0.5, count=60)
    own = cases.groups['Age'] + cases.groups['Sex']
    shares = pd.Series(cases.targets[:, 0]).groupby(own).transform('mean')
    assert roc_auc_score(cases.targets, shares) > 0.6
    assert not alerts_of(build_document([cases], None, PROTOCOL, run={}))
    many = confounded(0.5, 0.5)
    shares = np.where(many.groups['Age'] == '60-79', 0.8, 0.3)
    many.targets[:, 0] = np.random.default_rng(1).random(len(many)) < shares
    (alert,) = alerts_of(build_document([many], None, PROTOCOL, run={}))
    assert 'from age and sex alone, the AUROC is Edema' in alert


def test_a_study_with_an_image_of_unknown_projection_belongs_to_no_view() -> None:
    cases = make_cases(np.full((6, 1), 0.5), np.tile([[0.0], [1.0]], (3, 1)))
    view = ['Frontal AP', UNPROJECTED, 'Frontal AP', 'Lateral', 'Frontal PA', '']
    study = np.array(['a', 'a', 'b', 'b', 'c', 'c'], object)
    cases = replace(cases, study=study, groups={'View': np.array(view, object)})
    assert [*cases.at_level('study').groups['View']] == ['', 'Frontal AP and Lateral', '']


def test_a_headline_of_several_views_has_the_score_of_each_and_within_them(tmp_path) -> None:
    cases = confounded(0.3, 0.7)
    document = build_document([cases], None, PROTOCOL, run={})
    rows = {row['view']: row['score'] for row in document['headline']['by_view']}
    areas, pairs = {}, {}
    for name in VIEWS:
        chosen = cases.groups['View'] == name
        target = cases.targets[chosen, 0]
        areas[name] = roc_auc_score(target, cases.probabilities[chosen, 0])
        pairs[name] = (target == 1).sum() * (target == 0).sum()
    within = np.average([*areas.values()], weights=[*pairs.values()])
    wanted = areas | {'AUROC within views': within}
    assert {name: score['value'] for name, score in rows.items()} == pytest.approx(wanted)
    assert document['headline']['score']['value'] > 0.65 > 0.55 > within
    assert all(score['low'] < score['value'] < score['high'] for score in rows.values())
    page = write_report(tmp_path, document).read_text()
    assert page.index('AUROC within views</th>') < page.index('Details of the run')
    cases.groups['View'][:] = VIEWS[0]
    single = build_document([cases], None, PROTOCOL, run={})
    assert single['headline']['by_view'] == []
    assert 'within views' not in write_report(tmp_path, single).read_text().lower()


def with_unknown_views(share: float, projection: str = '', *, lateral: int = 0):
    """A model that only tells the views, where a share of the frontal images has no AP or PA.

    The first `lateral` cases are studies with a lateral image, too.
    """
    cases = confounded(0.25, 0.75, count=1000, noise=0.5)
    ap_pa = np.array([name[-2:] for name in cases.groups['View']], object)
    ap_pa[np.random.default_rng(1).random(1000) < share] = projection
    order = np.concatenate([np.arange(1000), np.arange(lateral)])
    view = np.repeat(np.array(['frontal', 'lateral'], object), [1000, lateral])
    ap_pa = np.where(view == 'lateral', '', ap_pa[order])
    people = {'sex': np.full(len(order), 'Male', object), 'age': np.full(len(order), 50.0)}
    people |= {'patient': cases.patient[order], 'study': cases.study[order]}
    groups = standard_groups(SimpleNamespace(view=view, ap_pa=ap_pa, **people))
    return replace(cases.select(order), groups=groups)


@pytest.mark.parametrize('level, lateral', [('image', 0), ('study', 0), ('study', 500)])
@pytest.mark.parametrize('projection', ['', 'LL', 'RL'])
def test_images_of_unknown_projection_are_in_no_view(level, lateral, projection, tmp_path) -> None:
    """As a view of their own, they would hide that the model only tells AP from PA."""
    cases = with_unknown_views(0.8, projection, lateral=lateral)
    document = build_document([cases], None, replace(PROTOCOL, level=level), run={})
    (part,) = document['sets'][0]['labels']
    is_known = cases.groups['View'][:1000] != UNPROJECTED  # of the frontal images
    found, view = part['scores']['auroc_within_views'], cases.groups['View'][:1000]
    assert found['cases'] == is_known.sum() < 250 and found['of'] == 1000
    assert part['scores']['auroc']['value'] > 0.7 and found['low'] < 0.5 < found['high']
    has_lateral = np.arange(1000) < lateral
    target, score = cases.targets[:1000, 0], cases.probabilities[:1000, 0]
    areas, pairs = [], []
    for chosen in ((view == name) & (has_lateral == more) for name in VIEWS for more in (0, 1)):
        if chosen.any():
            areas.append(pair_auroc(target[chosen], score[chosen]))
            pairs.append((target[chosen] == 1).sum() * (target[chosen] == 0).sum())
    assert found['value'] == pytest.approx(np.average(areas, weights=pairs))
    alone = roc_auc_score(target[is_known], view[is_known] == VIEWS[1])
    number = f'({is_known.sum():,} of 1,000 cases)'
    (alert,) = alerts_of(document)
    # The groups of studies with and without a lateral image are ordered by other patients.
    wanted = f'{alone:.3f} [' if not lateral else '0.7'
    assert f'from view alone, the AUROC is Edema {wanted}' in alert and number in alert
    (told,) = [line for line in document['warnings'] if 'scores within views' in line]
    assert f'of {1000 - is_known.sum():,} of 1,000 cases is unknown' in told
    rows = {row['view']: row['rows'] for row in document['headline']['by_view']}
    assert rows[UNPROJECTED] == 1000 - is_known.sum() and rows.get('Lateral', 0) == lateral
    assert rows['AUROC within views'] == is_known.sum()
    page = write_report(tmp_path, document).read_text()
    assert re.search(f'>{is_known.sum()}</data> of <[^>]*>1,000</data> cases', page)
    assert number in scores_table(document['sets'][0]).loc['Edema', 'AUROC within views']
    lines = pd.read_csv(tmp_path / 'report_scores.csv').query('label == "Edema" & group != group')
    (cases_within,) = lines[lines['metric'] == 'auroc_within_views_cases']['value']
    assert cases_within == is_known.sum()
    (column,) = [part for part in document['sets'][0]['groups'] if part['column'] == 'View']
    assert UNPROJECTED not in {column['gaps']['Edema'][key] for key in ('best', 'worst')}


@pytest.mark.parametrize('share, lateral', [(0.975, 0), (1.0, 0), (1.0, 500)])
def test_too_few_known_views_give_no_score_and_are_counted(share, lateral, tmp_path) -> None:
    cases = with_unknown_views(share, lateral=lateral)
    document = build_document([cases], None, replace(PROTOCOL, level='study'), run={})
    (part,) = document['sets'][0]['labels']
    found, known = part['scores']['auroc_within_views'], 1000 * (1 - share)
    assert np.isnan(found['value']) and found['cases'] == pytest.approx(known, abs=15)
    assert known > 0 or found['cases'] == 0
    assert any('cases is unknown, so scores within views' in line for line in document['warnings'])
    assert not any('from view alone' in line for line in document['alerts'])
    assert 'within_views' not in str(write_report(tmp_path, document).read_text())


def test_without_projections_frontal_or_lateral_alone_may_still_rank_a_label() -> None:
    cases = with_unknown_views(1.0, lateral=500)
    cases.targets[:, 0] = np.random.default_rng(0).random(1500) < np.where(
        cases.groups['View'] == 'Lateral', 0.8, 0.3
    )
    (alert,) = alerts_of(build_document([cases], None, PROTOCOL, run={}))
    area = roc_auc_score(cases.targets, cases.groups['View'] == 'Lateral')
    assert f'from frontal or lateral alone, the AUROC is Edema {area:.3f}' in alert
    assert 'of 1,500 cases' not in alert


@pytest.mark.parametrize('sex', [0.0, 0.5, 1.0])
def test_unknown_age_and_sex_rank_nothing_and_are_counted(sex: float) -> None:
    """The age ranks the label; a share of the sexes is unknown."""
    cases = confounded(0.5, 0.5)
    rng = np.random.default_rng(1)
    shares = np.where(cases.groups['Age'] == '60-79', 0.8, 0.3)
    cases.targets[:, 0] = rng.random(400) < shares
    cases.groups['Sex'][rng.random(400) < sex] = ''
    known = (cases.groups['Sex'] != '').sum()
    alerts = alerts_of(build_document([cases], None, PROTOCOL, run={}))
    about = {'age and sex': known, 'age': 400}
    wanted = {0.0: ['age and sex'], 0.5: [*about], 1.0: ['age']}[sex]
    assert len(alerts) == len(wanted)
    for name, line in zip(wanted, alerts, strict=True):
        assert f'from {name} alone' in line
        assert (f'({known} of 400 cases)' in line) == (about[name] < 400)
    # The label is present where the age is unknown: this is no age.
    cases = confounded(0.5, 0.5)
    cases.groups['Age'][cases.targets[:, 0] == 1] = ''
    assert alerts_of(build_document([cases], None, PROTOCOL, run={})) == []


def test_unknown_groups_are_counted_and_make_no_gap(tmp_path: Path) -> None:
    """The model is best where the sex is unknown."""
    cases = confounded(0.5, 0.5)
    is_unknown = np.arange(400) % 4 == 0
    cases.groups['Sex'][is_unknown] = ''
    cases.probabilities[is_unknown] = cases.targets[is_unknown]
    document = build_document([cases], None, PROTOCOL, run={})
    columns = {part['column']: part for part in document['sets'][0]['groups']}
    *known, last = columns['Sex']['groups']
    assert (last['group'], last['rows'], last['patients']) == (UNKNOWN, 100, 100)
    assert sum(group['rows'] for group in known) == 300
    assert last['labels']['Edema']['scores']['auroc']['value'] == 1
    gap = columns['Sex']['gaps']['Edema']
    assert {gap['best'], gap['worst']} == {'Male', 'Female'}
    assert [group['group'] for group in columns['Age']['groups']] == ['0-39', '40-59', '60-79']
    page = write_report(tmp_path, document).read_text()
    assert '<th scope="row">unknown</th><td><data value="100">100</data></td>' in page
    # Standardised by sex, an age has the cases of known sex.
    (young, *_), of_age = columns['Age']['groups'], cases.groups['Age'] == '0-39'
    standardised = young['labels']['Edema']['scores']['auroc_standardised']
    assert standardised['of'] == of_age.sum()
    assert standardised['cases'] == (of_age & ~is_unknown).sum()
    cases.groups['Sex'][:] = ''
    columns = build_document([cases], None, PROTOCOL, run={})['sets'][0]['groups']
    assert [part['column'] for part in columns] == ['View', 'Age']
    of_young = columns[1]['groups'][0]['labels']['Edema']['scores']
    assert of_young['auroc_standardised'] == of_young['auroc']


def test_a_mean_over_labels_that_all_have_few_cases_is_marked(tmp_path: Path) -> None:
    rng, labels = np.random.default_rng(0), [f'label {k}' for k in range(3)]
    targets = np.zeros((300, 3))
    for k in range(3):
        targets[rng.permutation(300)[: k + 1], k] = 1
    cases = make_cases(rng.random((300, 3)), targets, groups={'Sex': np.full(300, 'Male', object)})
    mark, name = 'few cases of each label', 'Mean of 3 labels'
    document = build_document([cases], None, PROTOCOL, run={})
    (entry,) = document['sets']
    assert entry['means']['few'] == labels and document['headline']['few']
    assert scores_table(entry).loc[name, 'positives'] == f'({mark})'
    assert f'{name} &  & ({mark})' in write_and_read(tmp_path, document, 'report_scores.tex')
    page = write_and_read(tmp_path, document, 'report.html')
    cited = page[page.index('To cite this number') :].partition('</p>')[0]
    assert mark in cited and page.count(f'&nbsp;{mark}</span>') == 2
    assert 'the 3 labels with few cases' in page
    baseline = replace(cases, name='baseline', probabilities=rng.random((300, 3)))
    comparisons = compare_with_baselines(cases, {'pixels': baseline.probabilities}, PROTOCOL)
    extras = {'comparisons': comparisons, 'baselines': True}
    document = build_document([cases], None, PROTOCOL, run={}, extras=extras)
    page = write_and_read(tmp_path, document, 'report.html')
    assert page.count(f'&nbsp;{mark}</span>') == 3
    several = build_document([cases, baseline], None, PROTOCOL, run={},
                             extras={'comparisons': comparisons})  # fmt: skip
    page = write_and_read(tmp_path, several, 'report.html')
    assert page.count(f'&nbsp;{mark}</span>') == 4  # of both models, in two tables
    # One label with enough cases makes the mean, which is then not marked.
    targets[:FEW_CASES, 0] = 1
    document = build_document([cases], None, PROTOCOL, run={})
    assert document['headline']['name'] == 'AUROC, label 0' and not document['headline']['few']
    assert mark not in write_and_read(tmp_path, document, 'report.html')
    assert scores_table(document['sets'][0]).loc['Mean of 1 label', 'positives'] == ''


def write_and_read(folder: Path, document: dict, name: str) -> str:
    write_report(folder, document)
    return (folder / name).read_text()


def test_views_are_compared_over_the_same_labels_and_few_cases_are_marked(tmp_path) -> None:
    rng, size = np.random.default_rng(6), 400
    targets = np.stack([rng.integers(0, 2, size), np.arange(size) < 15], axis=1).astype(float)
    targets[-32:] = np.tile([[0, 0], [0, 1], [1, 0], [1, 1]], (8, 1))
    names = np.repeat(VIEWS, [size - 32, 32])
    about = {'labels': ('Edema', 'Fracture'), 'groups': {'View': names}}
    cases = make_cases(rng.random((size, 2)), targets, **about)
    document = build_document([cases], None, PROTOCOL, run={})
    *of_views, within = document['headline']['by_view']
    for row in of_views:  # the first has 15 fractures, the second 16 of both labels
        chosen = names == row['view']
        areas = [roc_auc_score(targets[chosen, k], cases.probabilities[chosen, k]) for k in (0, 1)]
        assert row['score']['value'] == pytest.approx(np.mean(areas))
        assert row['few'] and np.isnan(row['score']['low'])
    assert not within['few'] and within['score']['low'] < within['score']['high']
    page = write_report(tmp_path, document).read_text()
    assert page.count('<small class="few-note">&#9650;&nbsp;few cases</small></td>') == 2
    targets[-32:, 1] = 0  # enough fractures over all views, but one view has none
    targets[:30, 1] = 1
    *of_views, within = build_document([cases], None, PROTOCOL, run={})['headline']['by_view']
    assert [row['score'] is None for row in of_views] == [False, True]
    targets[:, 1] = names == VIEWS[0]  # a label without pairs within a view
    *_, within = build_document([cases], None, PROTOCOL, run={})['headline']['by_view']
    assert within['score'] is None


def test_views_without_a_label_of_both_classes_are_reported(tmp_path) -> None:
    cases = replace(confounded(0.3, 0.7), targets=np.ones((400, 1)))
    document = build_document([cases], None, PROTOCOL, run={})
    assert document['headline']['by_view'] == []
    write_report(tmp_path, document)


def test_a_gap_has_a_p_value_that_counts_groups_labels_and_columns() -> None:
    rng = np.random.default_rng(4)
    targets = (rng.random((600, 3)) < 0.5).astype(float)
    site = np.array([f'site {i % 5}' for i in range(600)], object)
    sex = np.array(['Male', 'Female'] * 300, object)
    skill = np.where((sex == 'Male')[:, None] & (np.arange(3) == 2), 3.0, 1.0)
    scores = skill * targets + rng.normal(size=targets.shape)
    cases = make_cases(scores, targets, groups={'Sex': sex, 'Site': site})
    resamples = Resamples(cases.patient, resamples=200, seed=0)
    columns = score_groups(cases, np.full(3, np.nan), PROTOCOL, resamples)
    gaps = [gap for column in columns for gap in column['gaps'].values()]
    assert len(gaps) == 6
    wanted = holm([gap['p_bootstrap'] for gap in gaps])
    assert [gap['p_holm'] for gap in gaps] == pytest.approx(wanted.tolist())
    assert [gap['p_holm'] < 0.05 for gap in gaps] == [False, False, True, False, False, False]

    def areas(weights: np.ndarray, name: str) -> float:
        own = np.where(site == name, weights, 0)
        rows = np.repeat(np.arange(600), own)
        return pair_auroc(cases.targets[rows, 0], cases.probabilities[rows, 0])

    drawn = resamples.weights(cases.patient)
    weights = drawn.counts[drawn.patient].T
    found = np.array([[areas(row, f'site {i}') for row in weights] for i in range(5)])
    deviations = found[:, 1:] - found[:, :1]
    ranges = deviations.max(axis=0) - deviations.min(axis=0)
    observed = found[:, 0].max() - found[:, 0].min()
    p_value = (1 + (ranges >= observed).sum()) / 201
    gap = columns[1]['gaps']['label 0']
    assert gap['p_bootstrap'] == pytest.approx(p_value)
    assert gap['gap']['value'] == pytest.approx(observed)


def test_gaps_of_equal_groups_are_rarely_significant() -> None:
    """Without the range of all groups, the best and the worst of eight would often differ."""
    rng, plain, corrected = np.random.default_rng(0), [], []
    for _ in range(60):
        spread = 0.05 * rng.normal(size=(8, 1))
        areas = np.hstack([spread, spread + 0.05 * rng.normal(size=(8, 400))])
        corrected.append(range_p(areas) < 0.05)
        best, worst = np.argmax(spread), np.argmin(spread)
        plain.append(range_p(areas[[best, worst]]) < 0.05)
    assert np.mean(plain) > 0.4 and np.mean(corrected) <= 0.1


def test_a_group_with_few_cases_makes_no_gap_if_others_do() -> None:
    cases = confounded(0.5, 0.5)
    site = np.where(np.arange(len(cases)) < 12, 'small', cases.groups['Sex']).astype(object)
    cases = replace(cases, groups={'Site': site})
    resamples = Resamples(cases.patient, resamples=200, seed=0)
    (column,) = score_groups(cases, np.full(1, np.nan), PROTOCOL, resamples)
    gap = column['gaps']['Edema']
    assert {gap['best'], gap['worst']} == {'Male', 'Female'} and not gap['few']
    assert gap['gap']['low'] < gap['gap']['value'] and 0 < gap['p_holm'] <= 1


def test_thresholds_of_cases_with_another_share_of_positives_are_named() -> None:
    """`test_report_warnings.py` has the shares that are not named."""
    held_out, scored = confounded(0.1, 0.1), confounded(0.5, 0.5)
    document = build_document([scored], held_out, PROTOCOL, run={})
    (told,) = [line for line in document['warnings'] if 'another share of positives' in line]
    shares = [f'{100 * cases.targets.mean():.0f} %' for cases in (held_out, scored)]
    assert f'Edema ({shares[0]} there, {shares[1]} here)' in told
