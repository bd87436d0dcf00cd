"""Published scores against the fact sheet, and their use in a report."""

import re

import numpy as np
import pytest
from shared_material import SHARED

from data.tables.labels import COMPETITION_LABELS
from evaluation.published import (
    IRVIN_VALIDATION_AUROC,
    PRETRAINING,
    RADIOLOGISTS,
    is_chexpert_test,
    points_below,
)
from sweeps.files import ROOT, load_sweep

SHEET = SHARED / 'facts' / 'published.md'


def section(keyword: str) -> str:
    if not SHEET.is_file():
        pytest.skip(f'published figures not found at {SHEET} (set SIMMIM_SHARED)')
    parts = re.split('^## ', SHEET.read_text(encoding='utf-8'), flags=re.MULTILINE)
    (found,) = (part for part in parts if keyword in part.partition('\n')[0])
    return found


def table(keyword: str) -> list[list[str]]:
    lines = [line for line in section(keyword).splitlines() if line.startswith('|')]
    rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines]
    return [rows[0], *rows[2:]]


def test_areas_by_policy_are_those_of_the_sheet():
    (_, *labels), *rows = table('Validation AUROC')
    assert tuple(labels) == COMPETITION_LABELS
    wanted = {policy: tuple(map(float, areas)) for policy, *areas in rows}
    assert wanted == {policy: areas for policy, (_, areas) in IRVIN_VALIDATION_AUROC.items()}


def test_pretraining_rows_are_those_of_the_sheet():
    _, *rows = table('SimMIM and MAE')
    wanted, source = [], ''
    for name, chexpert, *_, given in rows:
        source = source if given == 'same' else given
        value, _, deviation = chexpert.partition(' +- ')
        wanted.append((name, float(value), float(deviation) if deviation else None, source))
    assert [tuple(row) for row in PRETRAINING] == wanted


def test_scores_of_the_mae_study_are_those_of_the_sheet():
    published = load_sweep(ROOT / 'scripts/studies/mae_resnet.yaml').published
    _, *rows = table('MAE ViT-B')
    wanted = [[float(row[-1]), *map(float, row[4:-1])] for row in rows]
    assert list(published.values()) == wanted and len(wanted) == 12
    for name, (images, model, augmented, masked, *_) in zip(published, rows, strict=True):
        start = 'mae' if 'MAE' in model else 'resnet'
        share = 'plain' if augmented == 'no' else f'0{masked}'.rstrip('0') if masked != '-' else ''
        assert name == '_'.join(filter(None, (start, share, images.replace(',', ''))))


def test_radiologists_are_those_of_the_sheet():
    text = section('operating points').partition('\n')[2].replace('\n', ' ')
    wanted = {}
    for label in COMPETITION_LABELS:
        points = re.findall(r'\((\.\d+), (\.\d+)\)', re.search(f'{label}([^;]*)', text)[1])
        wanted[label] = tuple((float(one), float(other)) for one, other in points)
    assert wanted == RADIOLOGISTS
    assert {len(points) for points in wanted.values()} == {3}


def test_points_below_a_curve_worked_by_hand():
    # Straight from (0, 0) to (0.2, 0.6) to (1, 1): 0.3 at 0.1, 0.8 at 0.6.
    fpr, tpr = np.array([0.0, 0.2, 1.0]), np.array([0.0, 0.6, 1.0])
    points = [(0.9, 0.29), (0.9, 0.3), (0.9, 0.31), (0.4, 0.79), (0.4, 0.8), (1.0, 0.0), (0.0, 1.0)]
    below = [True, False, False, True, False, False, False]
    assert points_below(fpr, tpr, points) == below
    assert points_below(fpr, tpr, []) == []


def test_the_test_set_is_recognised_by_its_patients():
    studies = [f'CheXpert-v1.0/test/patient{n}/study1' for n in range(64741, 65241)]
    assert is_chexpert_test([*reversed(studies), studies[0]])
    others = (
        studies[:-1],
        [*studies[:-1], 'CheXpert-v1.0/test/patient65241/study1'],
        [*studies[:-1], 'CheXpert-v1.0/test/patient64741/study2'],
        [study.replace('v1.0', 'Phantom') for study in studies],
        [],
    )
    assert [is_chexpert_test(names) for names in others] == [False] * len(others)
