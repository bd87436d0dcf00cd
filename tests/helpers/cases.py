"""Cases of the evaluation from a few columns, where a test names only what it is about."""

import numpy as np

from evaluation.cases import Cases

NAN = float('nan')


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


def pair_auroc(targets: np.ndarray, scores: np.ndarray) -> float:
    """The share of pairs of a positive and a negative in which the positive ranks higher."""
    differences = scores[targets == 1][:, None] - scores[targets == 0]
    return float(((differences > 0) + (differences == 0) / 2).mean())
