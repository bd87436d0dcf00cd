"""The CSV rows of phantom chest X-rays: patients, studies, views, labels.

A study has a latent state for each observation. Its picture shows the state as a severity; its
label is read from the state with an error, so that states near the threshold get uncertain or
wrong labels. Everything is a function of the seed and of the numbers of split and patient.
"""

import math
from statistics import NormalDist

import numpy as np
import pandas as pd

from data.labels import LABELS

COLUMNS = ('Path', 'Sex', 'Age', 'Frontal/Lateral', 'AP/PA', *LABELS)
SPLITS = ('train', 'valid', 'test')
FIRST_PATIENT = {'train': 1, 'valid': 80001, 'test': 90001}
MOST_PATIENTS = {'train': 80000, 'valid': 10000, 'test': 9999}

# Per observation: share of studies positive and uncertain (Irvin et al. 2019, Table 1, per 187,641
# studies); share of the other images whose CSV cell is 0.0 and not blank (CheXpert's train.csv);
# loadings of the latent state on six factors: heart failure, acute care, infection, chest wall and
# pleura, age, male sex (chosen; they give the published share of No Finding).
POPULATION = {
    'No Finding': (16627, 0, 0.0, (0, 0, 0, 0, 0, 0)),
    'Enlarged Cardiomediastinum': (9020, 10148, 0.108, (0.35, 0.1, 0, 0, 0.2, 0)),
    'Cardiomegaly': (23002, 6597, 0.059, (0.6, 0, 0, -0.1, 0.2, 0)),
    'Lung Opacity': (92669, 4341, 0.061, (0.3, 0.15, 0.45, 0.1, 0.05, 0)),
    'Lung Lesion': (6856, 1071, 0.006, (-0.15, -0.2, 0.1, 0.1, 0.25, 0)),
    'Edema': (48905, 11571, 0.137, (0.6, 0.3, 0.05, -0.2, 0.15, 0)),
    'Consolidation': (12730, 23976, 0.155, (0.05, 0.15, 0.55, 0, 0, 0)),
    'Pneumonia': (4576, 15658, 0.014, (0.05, 0.05, 0.65, -0.1, 0.05, 0)),
    'Atelectasis': (29333, 29377, 0.008, (0.05, 0.2, 0.15, 0.35, 0.05, 0)),
    'Pneumothorax': (17313, 2663, 0.28, (-0.3, 0.2, -0.1, 0.4, -0.15, 0.1)),
    'Pleural Effusion': (75696, 9419, 0.28, (0.4, 0.25, 0.1, 0.35, 0.15, 0)),
    'Pleural Other': (2441, 1771, 0.0015, (-0.05, -0.15, 0, 0.4, 0.15, 0.1)),
    'Fracture': (7270, 484, 0.012, (-0.1, 0, -0.1, 0.3, 0.2, 0.05)),
    'Support Devices': (105831, 898, 0.058, (0.15, 0.55, 0.05, 0.3, 0, 0.05)),
}
SEVERITIES = [f'severity of {label}' for label in LABELS]
NUM_STUDIES = 187641
NUM_FRONTAL = 191027  # images, of which 16 are LL and 1 RL
PA_SHARE, LATERAL_OF_PA, LATERAL_OF_AP, TWO_FRONTAL = 0.154, 0.9, 0.04, 0.018
MALE_SHARE = 0.594
READING = {'train': 0.88, 'valid': 0.97, 'test': 0.97}  # correlation of reading and latent state
MEAN_SEVERITY = 0.73  # of positive studies; 0.5 is the threshold
CHILDREN = {  # what readers of valid and test mark with its parent, as CheXpert's radiologists do
    'Lung Opacity': ('Lung Lesion', 'Edema', 'Consolidation', 'Pneumonia', 'Atelectasis'),
    'Enlarged Cardiomediastinum': ('Cardiomegaly',),
}


def make_rows(
    num_patients: int | None,
    split: str,
    seed: int,
    *,
    rows: int | None = None,
    name: str = 'CheXpert-phantom',
) -> pd.DataFrame:
    """Return a split's CSV without drawing an image.

    Args:
        num_patients: how many; None where `rows` is given.
        split: 'train', 'valid' or 'test'.
        seed: of the whole phantom.
        rows: exact number of rows; the last patient is cut off there.
        name: of the data set's folder, with which `Path` begins.

    Returns:
        CheXpert's 19 columns; labels 1.0, 0.0, -1.0 or NaN (blank).

    Raises:
        ValueError: if the split, the seed or a number is not allowed.
    """
    return with_odd_cells(sample_rows(num_patients, split, seed, rows, name), split, seed)


def sample_rows(
    num_patients: int | None, split: str, seed: int, rows: int | None, name: str
) -> pd.DataFrame:
    """Return the rows of a split with what drawing needs besides: numbers and severities."""
    if split not in SPLITS:
        raise ValueError(f'split must be one of {SPLITS}, got {split!r}')
    if seed < 0:
        raise ValueError(f'seed must be 0 or more, got {seed}')
    if (rows is None) == (num_patients is None):
        raise ValueError(f'give one of patients and rows, got {num_patients} and {rows}')
    most = MOST_PATIENTS[split]
    if rows is None and not 0 <= num_patients <= most:
        raise ValueError(f'{split} has 0 to {most} patients, got {num_patients}')
    if rows is None:
        return _views(_studies(num_patients, split, seed), split, name)
    # A study has 1.19 images on average: a few per cent more studies than needed.
    table = _views(_studies(most, split, seed, stop=60 + int(rows / 1.16)), split, name)
    if not 0 <= rows <= len(table):
        raise ValueError(f'{split} has 0 to {len(table)} rows with seed {seed}, got {rows}')
    return table.head(rows)


def _studies(num_patients: int, split: str, seed: int, stop: int | None = None) -> pd.DataFrame:
    """Draw patients one by one until there are `stop` studies."""
    numbers, drawn, total = [], [], 0
    for index in range(num_patients):
        if stop is not None and total >= stop:
            break
        rng = np.random.default_rng([1, SPLITS.index(split), seed, index])
        count = min(92, math.ceil(rng.lognormal(0.29, 1.05))) if split == 'train' else 1
        own = rng.standard_normal((1, 6 + len(LABELS)))
        states = math.sqrt(0.5) * (own + rng.standard_normal((count, 6 + len(LABELS))))
        states[:, 4:6] = own[:, 4:6]  # age and sex do not vary between studies
        readings, uniforms = rng.standard_normal((count, 14)), rng.random((count, 18))
        numbers += [(index, study) for study in range(1, count + 1)]
        drawn.append(np.hstack([states, readings, uniforms]))
        total += count
    drawn = np.concatenate(drawn) if drawn else np.zeros((0, 52))
    factors, own, readings, uniforms = np.split(drawn, [6, 20, 34], axis=1)
    loadings = np.array([row[3] for row in POPULATION.values()])
    states = factors @ loadings.T + own * np.sqrt(1 - (loadings**2).sum(1))
    labels = _read_train if split == 'train' else _read_scored
    labels = labels(states, READING[split], readings, uniforms[:, :14])
    thresholds = np.array([_threshold(row[0] + row[1] / 2) for row in POPULATION.values()])
    severities = np.clip(0.5 + _slopes(thresholds) * (states - thresholds), 0, 1)
    table = pd.DataFrame(numbers, columns=['index', 'study'], dtype=int)
    table['Sex'] = np.where(factors[:, 5] > _threshold(MALE_SHARE * NUM_STUDIES), 'Male', 'Female')
    table['Age'] = np.clip(np.rint(60 + 17 * factors[:, 4]), 18, 90).astype(int)
    # Those in acute care are pictured lying or sitting (AP).
    table['AP/PA'] = np.where(factors[:, 1] > NormalDist().inv_cdf(PA_SHARE), 'AP', 'PA')
    lateral_share = np.where(table['AP/PA'] == 'PA', LATERAL_OF_PA, LATERAL_OF_AP)
    table['num_lateral'] = (uniforms[:, 14] < lateral_share).astype(int)
    table['num_frontal'] = 1 + (uniforms[:, 15] < TWO_FRONTAL)
    table[list(LABELS)] = labels
    table[SEVERITIES] = severities.astype(np.float32)
    return table


def _slopes(thresholds: np.ndarray) -> np.ndarray:
    """Return the severity per deviation that gives positive studies their mean severity."""
    normal = NormalDist()
    excess = [normal.pdf(t) / (1 - normal.cdf(t)) - t for t in thresholds]
    return (MEAN_SEVERITY - 0.5) / np.array(excess)


def _threshold(count: float) -> float:
    """Return the normal deviate that this number of CheXpert's studies exceeds."""
    return NormalDist().inv_cdf(1 - count / NUM_STUDIES) if count else math.inf


def _read_train(
    states: np.ndarray, correlation: float, readings: np.ndarray, uniforms: np.ndarray
) -> np.ndarray:
    """Return labels as a report has them: 1, -1 below the threshold, 0 or blank (NaN) else."""
    read = correlation * states + math.sqrt(1 - correlation**2) * readings
    labels = np.full(read.shape, np.nan)
    for k, (positive, uncertain, denied, _) in enumerate(POPULATION.values()):
        labels[uniforms[:, k] < denied, k] = 0
        labels[read[:, k] > _threshold(positive + uncertain), k] = -1
        labels[read[:, k] > _threshold(positive), k] = 1
    labels[:, 0] = np.where(np.nan_to_num(labels[:, 1:13]).any(axis=1), np.nan, 1.0)
    return labels


def _read_scored(
    states: np.ndarray, correlation: float, readings: np.ndarray, uniforms: np.ndarray
) -> np.ndarray:
    """Return labels as a panel of radiologists has them: 1 or 0, parents marked with children."""
    read = correlation * states + math.sqrt(1 - correlation**2) * readings
    thresholds = [_threshold(row[0] + row[1] / 2) for row in POPULATION.values()]
    labels = (read > thresholds).astype(float)
    for parent, children in CHILDREN.items():
        family = [LABELS.index(label) for label in (parent, *children)]
        labels[:, family[0]] = labels[:, family].max(axis=1)
    labels[:, 0] = ~labels[:, 1:13].any(axis=1)
    return labels


def _views(studies: pd.DataFrame, split: str, name: str) -> pd.DataFrame:
    """Repeat each study for its views, frontal ones first, and name the files."""
    counts = studies['num_frontal'] + studies['num_lateral']
    table = studies.loc[studies.index.repeat(counts)]
    table['view'] = table.groupby(level=0).cumcount() + 1
    table = table.reset_index(drop=True)
    lateral = table['view'] > table['num_frontal']
    table['Frontal/Lateral'] = np.where(lateral, 'Lateral', 'Frontal')
    table['projection'] = table['AP/PA']
    table.loc[lateral, 'AP/PA'] = np.nan
    first = FIRST_PATIENT[split]
    table['Path'] = [
        f'{name}/{split}/patient{first + index:05d}/study{study}/view{view}_{kind.lower()}.jpg'
        for index, study, view, kind in zip(
            table['index'], table['study'], table['view'], table['Frontal/Lateral'], strict=True
        )
    ]
    return table


def with_odd_cells(table: pd.DataFrame, split: str, seed: int) -> pd.DataFrame:
    """Return the CSV's columns; a training set has the odd cells of CheXpert's.

    From 100 rows on: Sex 'Unknown' once, Age 0 three times; frontal AP/PA 'LL' rarely, 'RL' once.
    """
    csv = table[list(COLUMNS)].reset_index(drop=True)
    if split != 'train' or len(csv) < 100:
        return csv
    rng = np.random.default_rng([4, seed])
    sex, *age = rng.permutation(len(csv))[:4]
    csv.loc[sex, 'Sex'] = 'Unknown'
    csv.loc[age, 'Age'] = 0
    frontal = rng.permutation(csv.index[csv['Frontal/Lateral'] == 'Frontal'])
    csv.loc[frontal[0], 'AP/PA'] = 'RL'
    csv.loc[frontal[1 : 2 + 15 * len(frontal) // NUM_FRONTAL], 'AP/PA'] = 'LL'
    return csv
