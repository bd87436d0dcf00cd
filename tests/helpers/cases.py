"""Cases of the evaluation from a few columns, where a test names only what it is about."""

import numpy as np

from data.tables.labels import COMPETITION_LABELS
from evaluation.analysis import HeldOut, score_set
from evaluation.cases import Cases
from evaluation.metrics import Protocol

NAN = float('nan')
FIVE = list(COMPETITION_LABELS)
TEST_STUDIES = [f'CheXpert-v1.0/test/patient{n}/study1' for n in range(64741, 65241)]


def make_cases(probabilities: np.ndarray, targets: np.ndarray, **given) -> Cases:
    """Cases of one image a study and one study a patient, unless it is given otherwise."""
    names = np.array([f'test/patient{i:05d}/study1' for i in range(len(targets))], object)
    study = given.setdefault('study', names)
    values = {
        'name': 'test',
        'labels': tuple(f'label {k}' for k in range(targets.shape[1])),
        'path': np.array([f'{name}/view{i}.jpg' for i, name in enumerate(study)], object),
        'patient': np.array([name.split('/')[-2] for name in study], object),
    }
    return Cases(probabilities=probabilities, targets=targets, **values | given)


def of_test_set(labels=(*FIVE, 'Fracture')):
    """Return all test studies of CheXpert with predictions better than chance."""
    rng = np.random.default_rng(0)
    targets = (rng.random((500, len(labels))) < 0.3).astype(float)
    probabilities = 1 / (1 + np.exp(-rng.normal(2 * targets - 1)))
    study = np.array(TEST_STUDIES, object)
    return make_cases(probabilities, targets, labels=labels, study=study)


def entries(cases, held_out=None, **protocol):
    held_out = held_out or HeldOut(*np.full((2, len(cases.labels)), NAN))
    scored = score_set(cases, held_out, Protocol(**{'resamples': 0, **protocol}))
    return {entry['label']: entry for entry in scored['labels']}


def pair_auroc(targets: np.ndarray, scores: np.ndarray) -> float:
    """The share of pairs of a positive and a negative in which the positive ranks higher."""
    differences = scores[targets == 1][:, None] - scores[targets == 0]
    return float(((differences > 0) + (differences == 0) / 2).mean())
