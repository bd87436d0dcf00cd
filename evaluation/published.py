"""Published scores that a report shows as context, with sources and conditions.

Scores are only comparable if split, level, views, label policy and ensembling are known to be the
same. Each score below differs in at least one of these conditions or does not state it, so the
scores are context and not a comparison.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from data.tables.labels import COMPETITION_LABELS
from system.pages import are_synthetic

IRVIN = 'Irvin et al. 2019, arXiv:1901.07031'

# Table 3: policy for uncertain labels -> name in the paper, and AUROCs in the order of
# COMPETITION_LABELS, for 200 validation studies and an ensemble of checkpoints. The paper does not
# state which views were scored.
IRVIN_VALIDATION_AUROC = {
    'ignore': ('U-Ignore', (0.818, 0.828, 0.938, 0.934, 0.928)),
    'zeros': ('U-Zeros', (0.811, 0.840, 0.932, 0.929, 0.931)),
    'ones': ('U-Ones', (0.858, 0.832, 0.899, 0.941, 0.934)),
    'self_train': ('U-SelfTrained', (0.833, 0.831, 0.939, 0.935, 0.932)),
    'multiclass': ('U-MultiClass', (0.821, 0.854, 0.937, 0.928, 0.936)),
}

# (specificity, sensitivity) of three radiologists on the 500 test studies of CheXpert.
RADIOLOGISTS = {
    'Atelectasis': ((0.787, 0.804), (0.824, 0.712), (0.686, 0.922)),
    'Cardiomegaly': ((0.954, 0.477), (0.768, 0.854), (0.894, 0.702)),
    'Consolidation': ((0.890, 0.655), (0.911, 0.483), (0.966, 0.448)),
    'Edema': ((0.915, 0.628), (0.813, 0.795), (0.927, 0.577)),
    'Pleural Effusion': ((0.947, 0.817), (0.826, 0.827), (0.864, 0.894)),
}
TEST_PATIENTS = frozenset(f'patient{number}' for number in range(64741, 65241))

MA = 'Ma et al. 2022, BenchmarkTransformers'
XIAO = 'Xiao et al. 2023, medical_mae'
MEAN_OF_FIVE = 'Mean of the five'
# Model and initialisation, mean AUROC of the five tasks in percent, standard deviation over runs,
# and source. The papers do not state split, level, views, label policy and ensembling.
PRETRAINING = (
    ('Swin-B, random', 83.39, 0.84, MA),
    ('Swin-B, supervised ImageNet', 87.80, 0.42, MA),
    ('Swin-B, SimMIM ImageNet', 88.16, 0.31, MA),
    ('Swin-B, SimMIM NIH14 from random', 86.75, 0.96, MA),
    ('Swin-B, SimMIM 926K X-rays from random', 87.83, 0.23, MA),
    ('Swin-B, SimMIM ImageNet then 926K X-rays', 88.37, 0.40, MA),
    ('ViT-S, MAE 0.3M X-rays', 89.2, None, XIAO),
    ('ViT-B, MAE 0.5M X-rays', 89.3, None, XIAO),
)


def points_below(
    fpr: np.ndarray, tpr: np.ndarray, points: Sequence[tuple[float, float]]
) -> list[bool]:
    """Return whether each operating point (specificity, sensitivity) lies below a ROC curve.

    The curve is linear between the points `fpr` [C], in ascending order, and `tpr` [C]. Where the
    curve is vertical, the upper end counts.
    """
    specificity, sensitivity = np.array(points, float).reshape(-1, 2).T
    # Rounding avoids that an error in the last digit decides the result.
    curve = np.interp(np.round(1 - specificity, 9), np.round(fpr, 9), tpr)
    return (np.round(curve - sensitivity, 9) > 0).tolist()


def is_chexpert_test(studies: Sequence[str]) -> bool:
    """Return whether these paths of studies are the 500 test studies of CheXpert."""
    names = set(studies)
    patients = {name.split('/')[-2] for name in names if '/' in name}
    is_test = len(names) == len(TEST_PATIENTS) and patients == TEST_PATIENTS
    return is_test and not are_synthetic(names)


def context_rows(policy: str, split: str, level: str, views: str) -> list[dict[str, Any]]:
    """Return the `published` part of a report.

    The arguments are the conditions of the run; policy '' is unknown.

    Returns:
        `name`, `values` {label or MEAN_OF_FIVE: AUROC}, and `note`, which states the known
        conditions of both and the unknown ones.
    """
    here = f'this report: {split}, {level} level, {views} views, policy {policy or "unknown"}'
    rows = []
    for name, (title, areas) in IRVIN_VALIDATION_AUROC.items():
        conditions = f'an ensemble of checkpoints, 200 validation studies, policy {name}'
        rows.append(
            {
                'name': f'{title}, ensemble ({IRVIN}, Table 3)',
                'values': dict(zip(COMPETITION_LABELS, areas, strict=True)),
                'note': f'context only: {conditions}, views not stated; {here}',
            }
        )
    for name, area, deviation, source in PRETRAINING:
        notes = ['context only: split, level, views, label policy and ensembling not stated']
        if deviation is not None:
            notes.append(f'published as +- {deviation / 100:.4f}')
        rows.append(
            {
                'name': f'{name} ({source})',
                'values': {MEAN_OF_FIVE: round(area / 100, 4)},
                'note': '; '.join([*notes, here]),
            }
        )
    return rows
