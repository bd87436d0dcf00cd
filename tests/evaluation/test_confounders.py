"""What may rank cases in place of the finding: view, age and sex; and scores of other cases."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cases import make_cases, pair_auroc
from sklearn.metrics import roc_auc_score

from data.tables.groups import standard_groups
from data.tables.predictions import read_label_file
from evaluation.intervals import Resamples, holm
from evaluation.metrics import Protocol
from evaluation.report.document import build_document, write_report
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


def with_unknown(cases, share: float, unknown: str):
    """Hide the projection of a share of the images: 'Frontal', or '' for an unknown view."""
    is_hidden = np.random.default_rng(3).random(len(cases)) < share
    views = np.where(is_hidden, unknown, cases.groups['View'])
    return replace(cases, groups=cases.groups | {'View': views}), ~is_hidden


@pytest.mark.parametrize('unknown', ['Frontal', ''])
def test_images_of_unknown_projection_belong_to_no_view(unknown, tmp_path) -> None:
    whole = confounded(0.2, 0.8, noise=0.1, count=2000)
    assert roc_auc_score(whole.targets, whole.probabilities) > 0.75, 'it tells the view alone'
    cases, known = with_unknown(whole, 0.8, unknown)
    document = build_document([cases], None, PROTOCOL, run={})
    *_, within = document['headline']['by_view']
    (wanted,) = [
        row['score']['value']
        for row in build_document([whole.select(known)], None, PROTOCOL, run={})['headline'][
            'by_view'
        ]
        if row['view'] == 'AUROC within views'
    ]
    assert within['rows'] == known.sum() and within['score']['value'] == pytest.approx(wanted)
    assert 0.4 < within['score']['low'] < 0.5 < within['score']['high'] < 0.6
    (alert,) = alerts_of(document)
    assert 'from view alone, the AUROC is Edema 0.8' in alert


def test_within_views_is_undefined_if_too_few_projections_are_known() -> None:
    cases, known = with_unknown(confounded(0.2, 0.8, count=2000), 0.99, 'Frontal')
    assert known.sum() < 40
    document = build_document([cases], None, PROTOCOL, run={})
    entry = document['sets'][0]['labels'][0]['scores']
    assert np.isnan(entry['auroc_within_views']['value']) and entry['auroc']['value'] > 0.5
    assert alerts_of(document) == []
    nobody, _ = with_unknown(confounded(0.2, 0.8), 1.1, 'Frontal')
    assert nobody.views() is None and nobody.count_known_views() == 0


def test_a_study_with_an_image_of_unknown_projection_belongs_to_no_view() -> None:
    cases = make_cases(np.full((6, 1), 0.5), np.tile([[0.0], [1.0]], (3, 1)))
    view = ['Frontal AP', 'Frontal', 'Frontal AP', 'Lateral', 'Frontal PA', '']
    study = np.array(['a', 'a', 'b', 'b', 'c', 'c'], object)
    cases = replace(cases, study=study, groups={'View': np.array(view, object)})
    assert [*cases.at_level('study').groups['View']] == ['', 'Frontal AP and Lateral', '']


def test_patients_of_unknown_sex_are_a_row_that_no_gap_compares() -> None:
    cases = confounded(0.5, 0.5)
    sex = np.where(np.arange(len(cases)) < 100, '', cases.groups['Sex'])
    cases.probabilities[:100] = cases.targets[:100]  # the best group by far
    cases = replace(cases, groups={'Sex': sex})
    (column,) = score_groups(
        cases, np.array([np.nan]), PROTOCOL, Resamples(cases.patient, resamples=200, seed=0)
    )
    assert [group['group'] for group in column['groups']] == ['Female', 'Male', 'unknown']
    assert column['groups'][-1]['rows'] == 100
    assert {column['gaps']['Edema'][key] for key in ('best', 'worst')} == {'Female', 'Male'}
    cases = replace(cases, groups={'Sex': np.full(len(cases), '', object)})
    assert (
        score_groups(
            cases, np.array([np.nan]), PROTOCOL, Resamples(cases.patient, resamples=200, seed=0)
        )
        == []
    )


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
