"""Published figures against the sheet they come from, and what is made of them."""

import re

import numpy as np
import pytest
from shared_material import SHARED
from sklearn.metrics import roc_curve
from test_published_counts import PUBLISHED

from data.labels import COMPETITION_LABELS, LABELS
from data.phantom import NUM_STUDIES, POPULATION
from evaluation.published import (
    IRVIN_VALIDATION_AUROC,
    MAE_STUDY,
    MEAN_OF_FIVE,
    PRETRAINING,
    RADIOLOGISTS,
    context_rows,
    is_chexpert_test,
    points_below,
    radiologist_points,
)

SHEET = SHARED / 'facts' / 'published.md'


@pytest.fixture(scope='module')
def sheet():
    """Heading -> text below it."""
    if not SHEET.is_file():
        pytest.skip(f'published figures not found at {SHEET} (set SIMMIM_SHARED)')
    parts = re.split(r'^## (.*)$', SHEET.read_text(encoding='utf-8'), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def section(sheet, start):
    heading = [name for name in sheet if name.startswith(start)]
    assert len(heading) == 1, heading
    return heading[0], sheet[heading[0]]


def table(sheet, start):
    """The rows of a section's table as lists of cells, its header first."""
    lines = [line for line in section(sheet, start)[1].splitlines() if line.startswith('|')]
    rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines]
    return [rows[0], *rows[2:]]


# The figures are those of the sheet


def test_counts_are_those_of_table_1(sheet):
    header, *rows = table(sheet, 'CheXpert: counts')
    assert header == ['observation', 'positive', 'uncertain', 'negative']
    assert {name: tuple(map(int, counts)) for name, *counts in rows} == PUBLISHED
    assert list(PUBLISHED) == [name for name, *_ in rows] == list(LABELS)
    assert f'{NUM_STUDIES:,} training studies' in section(sheet, 'CheXpert: counts')[0]


def test_counts_add_up_and_are_those_of_the_phantom():
    assert {sum(counts) for counts in PUBLISHED.values()} == {NUM_STUDIES} == {187641}
    assert {name: row[:2] for name, row in POPULATION.items()} == {
        name: counts[:2] for name, counts in PUBLISHED.items()
    }


def test_areas_by_policy_are_those_of_table_3(sheet):
    (_, *labels), *rows = table(sheet, 'Validation AUROC by policy')
    wanted = {policy: dict(zip(labels, map(float, areas), strict=True)) for policy, *areas in rows}
    assert wanted == IRVIN_VALIDATION_AUROC
    heading = section(sheet, 'Validation AUROC by policy')[0]
    assert '200 validation studies' in heading
    assert 'an ensemble of checkpoints' in heading


def test_pretraining_rows_are_those_of_the_sheet(sheet):
    header, *rows = table(sheet, 'SimMIM and MAE on chest X-rays')
    assert (header[1], header[-1]) == ('CheXpert mean of 5', 'source')

    def figures(cell):
        value, _, deviation = cell.partition(' +- ')
        return [float(value), float(deviation) if deviation else None]

    wanted, source = [], ''
    for name, chexpert, *_, given in rows:
        source = source if given == 'same' else given
        wanted.append((name, *figures(chexpert), source))
    assert [tuple(row) for row in PRETRAINING] == wanted


def test_rows_of_the_mae_study_are_those_of_the_sheet(sheet):
    header, *rows = table(sheet, 'MAE ViT-B against ResNet-18')
    assert header[4:] == ['accuracy', 'precision', 'F1', 'recall', 'AUC']
    wanted = [
        (
            int(images.replace(',', '')),
            model,
            {'yes': True, 'no': False}[augmented],
            None if masked == '-' else float(masked),
            *map(float, scores),
        )
        for images, model, augmented, masked, *scores in rows
    ]
    assert [tuple(row) for row in MAE_STUDY] == wanted
    assert len(wanted) == 12


def test_radiologists_are_those_of_the_sheet(sheet):
    heading, text = section(sheet, "Radiologists' operating points")
    assert '(specificity, sensitivity), three radiologists each' in heading
    wanted = {}
    for entry in text.replace('\n', ' ').strip(' .').split(';'):
        name = entry.partition('(')[0].strip()
        pairs = re.findall(r'\((\.\d+), (\.\d+)\)', entry)
        wanted[name] = tuple((float(one), float(other)) for one, other in pairs)
    assert wanted == RADIOLOGISTS
    assert {len(points) for points in wanted.values()} == {3}
    assert set(wanted) == set(COMPETITION_LABELS)
    assert radiologist_points('Edema') == list(wanted['Edema'])
    assert radiologist_points('Fracture') == []


# Points and curves


def test_points_below_a_curve_worked_by_hand():
    # Straight from (0, 0) to (0.2, 0.6) to (1, 1): 0.3 at 0.1, 0.8 at 0.6.
    fpr, tpr = np.array([0.0, 0.2, 1.0]), np.array([0.0, 0.6, 1.0])
    points = [(0.9, 0.29), (0.9, 0.3), (0.9, 0.31), (0.4, 0.79), (0.4, 0.8), (1.0, 0.0), (0.0, 1.0)]
    below = [True, False, False, True, False, False, False]
    assert points_below(fpr, tpr, points) == below
    assert points_below(fpr, tpr, []) == []


def test_where_a_curve_rises_straight_up_its_upper_end_counts():
    fpr, tpr = np.array([0.0, 0.0, 0.1, 0.1, 1.0]), np.array([0.0, 0.4, 0.4, 0.8, 1.0])
    points = [(1.0, 0.39), (1.0, 0.4), (0.9, 0.79), (0.9, 0.8), (0.95, 0.39), (0.95, 0.41)]
    assert points_below(fpr, tpr, points) == [True, False, True, False, True, False]


def test_points_below_follow_from_the_thresholds_of_the_cases():
    """Without ties between the classes: below means that a threshold beats the point."""
    rng = np.random.default_rng(0)
    targets = np.repeat([1, 0], [60, 140])
    scores = rng.normal(0, 1, 200) + targets
    fpr, tpr, _ = roc_curve(targets, scores, drop_intermediate=False)
    alarms = rng.integers(
        0, 140, 50
    )  # at whole numbers of false alarms, so that nothing lies between
    sensitivity = rng.random(50)
    negative = np.sort(scores[targets == 0])[::-1]
    # The most positives above the negative that would be one alarm too many.
    best = [(scores[targets == 1] > negative[count]).mean() for count in alarms]
    points = list(zip(1 - alarms / 140, sensitivity, strict=True))
    wanted = [bool(a > b) for a, b in zip(best, sensitivity, strict=True)]
    assert points_below(fpr, tpr, points) == wanted
    assert 10 < sum(wanted) < 50


# The test set


def test_the_test_set_is_known_by_its_patients():
    studies = [f'CheXpert-v1.0/test/patient{n}/study1' for n in range(64741, 65241)]
    assert is_chexpert_test(studies)
    assert is_chexpert_test([*reversed(studies), studies[0]])
    assert is_chexpert_test([study.removeprefix('CheXpert-v1.0/') for study in studies])
    others = (
        studies[:-1],
        [*studies, 'CheXpert-v1.0/test/patient64741/study2'],
        [*studies[:-1], 'CheXpert-v1.0/test/patient65241/study1'],
        [*studies[:-1], 'CheXpert-v1.0/test/patient64741/study2'],
        [study.replace('v1.0', 'Phantom') for study in studies],
        [study.rpartition('/')[0].rpartition('/')[2] for study in studies],
        [],
    )
    assert [is_chexpert_test(names) for names in others] == [False] * len(others)


# What the report shows


def test_context_rows_are_the_figures_with_what_is_not_known_of_them():
    rows = context_rows('ones', 'test', 'study', 'frontal')
    assert len(rows) == len(IRVIN_VALIDATION_AUROC) + len(PRETRAINING)
    by_policy, by_pretraining = rows[: len(IRVIN_VALIDATION_AUROC)], rows[-len(PRETRAINING) :]
    assert [row['values'] for row in by_policy] == list(IRVIN_VALIDATION_AUROC.values())
    ones = next(row for row in by_policy if row['name'].startswith('U-Ones, ensemble'))
    assert ones['values']['Edema'] == 0.941
    assert ones['note'] == (
        'context only: an ensemble of checkpoints, 200 validation studies, policy ones; views not '
        'stated; here test, study level, frontal views, policy ones'
    )
    assert [row['note'].partition('studies, ')[2].partition(';')[0] for row in by_policy] == [
        f'policy {policy}' for policy in IRVIN_VALIDATION_AUROC
    ]
    assert [row['values'] for row in by_pretraining] == [
        {MEAN_OF_FIVE: pytest.approx(row.chexpert / 100)} for row in PRETRAINING
    ]
    assert 'published as +- 0.0084; ' in by_pretraining[0]['note']
    assert '+-' not in by_pretraining[-1]['note']
    assert all(row['note'].startswith('context only: ') for row in rows)
    assert all('not stated' in row['note'] for row in rows)


def test_context_rows_say_that_a_policy_is_unknown():
    rows = context_rows('', 'predictions', 'image', 'all')
    assert all(
        row['note'].endswith('here predictions, image level, all views, policy unknown')
        for row in rows
    )
