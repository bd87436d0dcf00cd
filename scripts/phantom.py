"""Draw synthetic chest X-rays in the layout of CheXpert.

A study has a latent state for each observation. The images show the state as a severity. The label
is read from the state with an error, so that states near the threshold have uncertain or wrong
labels. Everything is a function of the seed and the numbers of split, patient, study and view.

Body coordinates: x runs to the right of the image (the patient's left), y downwards, and 1 is about
half the width of a thorax.
"""

import json
import math
import multiprocessing
from collections import deque
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pandas as pd
from PIL import Image
from scipy.ndimage import gaussian_filter1d
from tqdm import tqdm

from data.tables.labels import LABELS
from system.files import replace_file
from system.pages import are_synthetic

SETTINGS_FILE = 'phantom.json'
SIZES = (32, 1000)  # smallest and largest long side of an image

# CSV files of CheXpert.
COLUMNS = ('Path', 'Sex', 'Age', 'Frontal/Lateral', 'AP/PA', *LABELS)
SPLITS = ('train', 'valid', 'test')
FIRST_PATIENT = {'train': 1, 'valid': 80001, 'test': 90001}
MOST_PATIENTS = {'train': 80000, 'valid': 10000, 'test': 9999}

# Per observation: number of positive and uncertain studies (Irvin et al. 2019, Table 1); share of
# the other images whose CSV cell is 0.0 and not blank (train.csv); loadings of the latent state on
# six factors: heart failure, acute care, infection, chest wall and pleura, age, male sex (chosen to
# give the published share of No Finding).
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
PA_SHARE, LATERAL_OF_PA, LATERAL_OF_AP, TWO_FRONTAL = 0.154, 0.9, 0.04, 0.018
MALE_SHARE = 0.594
READING = {'train': 0.88, 'valid': 0.97, 'test': 0.97}  # correlation of reading with latent state
MEAN_SEVERITY = 0.73  # of positive studies; 0.5 is the threshold
CHILDREN = {  # CheXpert's radiologists (valid and test) mark the parent together with a child
    'Lung Opacity': ('Lung Lesion', 'Edema', 'Consolidation', 'Pneumonia', 'Atelectasis'),
    'Enlarged Cardiomediastinum': ('Cardiomegaly',),
}

AIR = 0.40  # attenuation that air in the lungs removes
TISSUE = 0.62  # attenuation of the trunk
APEX = -0.95  # y of the top of the lungs
# Silhouette of vessels and heart: distance from the midline at these heights.
BORDER_Y = (-1.1, -0.5, -0.2, 0.1, 0.3, 0.5, 0.64, 0.85)
LEFT_BORDER = (0.2, 0.16, 0.17, 0.3, 0.42, 0.53, 0.55, 0.44)
RIGHT_BORDER = (0.18, 0.16, 0.165, 0.24, 0.31, 0.32, 0.28, 0.2)


@dataclass(frozen=True)
class Blobs:
    """A sign: ellipses in one lung, which grow and stand out with the severity."""

    across: tuple[float, float]  # range of the centre from the inner (0) to the outer edge (1)
    along: tuple[float, float]  # range of the centre from the apex (0) to the base (1)
    radius: tuple[float, float]  # range of half the width
    height: float = 1.0  # height of an ellipse as a share of its width
    most: int = 1  # largest number of ellipses
    soft: float = 0.3  # width of the edge
    fills: float = 0.0  # share of the air that is replaced
    adds: float = 0.0  # attenuation that is added; if negative, only where there is air
    tilt: float = 0.0  # largest angle, in radians
    both: bool = False  # the same in both lungs


# The anatomy shows Cardiomegaly, Enlarged Cardiomediastinum and the smaller lung of Atelectasis.
# The devices are a tube in the midline and a pacemaker.
SIGNS = {
    'Lung Opacity': [Blobs((0.25, 0.85), (0.25, 0.9), (0.16, 0.3), most=3, soft=0.8, fills=0.65)],
    'Lung Lesion': [Blobs((0.3, 0.8), (0.2, 0.8), (0.06, 0.12), most=2, soft=0.2, adds=0.22)],
    'Edema': [Blobs((0.3, 0.45), (0.5, 0.7), (0.4, 0.5), 1.3, soft=0.9, fills=0.75, both=True)],
    'Consolidation': [Blobs((0.35, 0.75), (0.3, 0.8), (0.2, 0.34), 0.8, fills=0.95)],
    'Pneumonia': [Blobs((0.3, 0.8), (0.5, 0.9), (0.07, 0.14), most=6, soft=0.7, fills=0.8)],
    'Atelectasis': [Blobs((0.3, 0.7), (0.65, 0.9), (0.2, 0.3), 0.1, most=3, adds=0.2, tilt=0.4)],
    'Pneumothorax': [Blobs((1.05, 1.15), (0.15, 0.35), (0.3, 0.5), 1.8, soft=0.08, adds=-0.16)],
    'Pleural Effusion': [Blobs((0.7, 1.0), (1.0, 1.1), (0.45, 0.6), 0.8, soft=0.15, fills=0.96)],
    'Pleural Other': [Blobs((0.94, 1.0), (0.4, 0.75), (0.09, 0.12), 3.0, soft=0.2, adds=0.22)],
    'Fracture': [Blobs((0.5, 0.85), (0.25, 0.7), (0.08, 0.11), 0.3, most=3, adds=-0.3, tilt=1.2)],
    'Support Devices': [
        Blobs((-0.23, -0.17), (0.0, 0.3), (0.02, 0.025), 25, soft=0.4, adds=0.25),
        Blobs((0.5, 0.7), (0.2, 0.3), (0.1, 0.13), soft=0.1, adds=0.25),
    ],
}


@dataclass
class Scene:
    """An image that is being drawn."""

    x: np.ndarray  # [1, W]
    y: np.ndarray  # [H, 1]
    soft: float  # width of a sharp edge: at least a pixel
    texture: np.ndarray  # uneven tissue, unit deviation, [H, W]
    air: np.ndarray = None  # aerated lung (0 to 1), [H, W]
    dense: np.ndarray = None  # attenuation of everything else, [H, W]
    lungs: list = ()  # inner edge, outer edge and base of the right and left, or front and back


def step(distance: np.ndarray, soft: float) -> np.ndarray:
    """Return a soft edge: 0 far below zero distance, 1 far above."""
    return 0.5 + 0.5 * np.tanh(distance / soft)


def bump(values: np.ndarray, center: float, width: float) -> np.ndarray:
    return np.exp(-(((values - center) / width) ** 2))


def dome(t: np.ndarray) -> np.ndarray:
    """Return the outline of a vault: steep at t = 0, level (1) from t = 1 on."""
    return np.sqrt(np.clip(1 - (1 - np.clip(t, 0, 1)) ** 2.3, 0, 1))


def clouds(rng: np.random.Generator, shape: tuple[int, int], cell: float) -> np.ndarray:
    """Return smooth noise with unit deviation, [H, W]; its clouds have about `cell` pixels."""
    coarse = rng.standard_normal([2 + round(side / cell) for side in shape], np.float32)
    noise = np.asarray(Image.fromarray(coarse).resize(shape[::-1], Image.Resampling.BICUBIC))
    return noise / noise.std()


def make_scene(rng: np.random.Generator, view: str, projection: str, size: int) -> Scene:
    """Return an empty scene with a random shape, zoom and position."""
    short = round(size * min(max(rng.normal(0.82, 0.02), 0.75), 0.9))
    wide = rng.random() < (0.8 if projection == 'AP' else 0.35) and view == 'Frontal'
    height, width = (short, size) if wide else (size, short)
    zoom = math.exp(rng.normal(0.0, 0.06))
    px = zoom * min(height / 2.15, width / (2.15 if view == 'Frontal' else 1.7))
    x = (np.arange(width, dtype=np.float32) - (width - 1) / 2) / px + rng.normal(0, 0.05)
    y = (np.arange(height, dtype=np.float32) - (height - 1) / 2) / px + rng.normal(0.02, 0.06)
    texture = 0.7 * sum(clouds(rng, (height, width), cell * px) for cell in (0.05, 0.15))
    return Scene(x[None], y[:, None], max(0.012, 0.8 / px), texture)


def make_body(rng: np.random.Generator, sex: str, age: float, projection: str) -> dict[str, float]:
    """Return the measures of a patient, which vary with sex, age and projection."""
    n = rng.standard_normal(7).tolist()
    female, old, supine = float(sex == 'Female'), (age - 55) / 20, float(projection == 'AP')
    return {
        'half': 0.96 + 0.04 * n[0] - 0.04 * female,
        'base': 0.64 + 0.07 * n[1] - 0.12 * supine,
        'fat': min(max(0.4 + 0.3 * n[2], 0), 1.2),
        'heart': 0.075 * n[3] + 0.03 * old + 0.065 * supine,
        'vessels': 0.014 * n[4] + 0.008 * old,
        'bone': min(max(1 - 0.18 * old + 0.12 * n[5], 0.45), 1.4),
        'phase': 0.3 * n[6],
    }


def draw_frontal(scene: Scene, body: dict, severity: dict, collapse: list[float]) -> None:
    """Fill an empty scene with a frontal view; `collapse` is of the right and left lung."""
    x, y, soft, across, half = scene.x, scene.y, scene.soft, np.abs(scene.x), body['half']
    # A collapsed lung raises its half of the diaphragm and pulls the heart to its side.
    shift = 0.07 * (collapse[1] - collapse[0])
    right_base = body['base'] - 0.2 * collapse[0]
    left_base = body['base'] - 0.2 * collapse[1] + 0.06
    wall = half * (0.39 + 0.57 * dome((y - APEX) / 0.95) + 0.04 * np.clip(y, 0, 1))  # [H, 1]
    scene.lungs = [(-0.16, -half, right_base), (0.16, half, left_base)]
    far = across / half - 0.42
    floor = right_base + (left_base - right_base) * step(x, 0.07)
    floor = floor + 0.35 * far**2 + 0.5 * np.maximum(far, 0) ** 2  # [1, W]
    cage, below = step(wall - across, 1.5 * soft), step(y - floor, soft)
    right, left = _silhouette(y, body, severity)
    middle = step(np.minimum(left - x + shift, right + x - shift), 1.5 * soft)
    scene.air = cage * (1 - 0.9 * middle) * (1 - below) * step(y - APEX, soft)
    scene.air *= 0.75 + 0.25 * np.clip(across / 0.5, 0, 1)  # vessels near the hila
    thick = TISSUE + 0.07 * body['fat'] * bump(x, 0, 0.9) + 0.06 * middle + 0.13 * below * cage
    inside = step(wall + 0.04 - across, 0.02) * step(across - 0.15, 0.04)
    inside = inside * step(0.7 - y, 0.25) * step(y + 0.92, 0.06)
    slope = 0.5 * (across / half) ** 2.3 - 0.22 * across
    ribs = 0.08 * _ribs(y - slope * (1 - 0.3 * y), body) * inside
    trachea = step(0.05 - np.abs(x - shift), 0.014) * step(-0.25 - y, 0.05)
    scene.dense = thick + ribs + _spine(x, y, body) - 0.1 * trachea
    trunk = half + 0.13 + 0.12 * body['fat'] + 0.08 * np.clip(y, -1, 1)
    neck = 1.5 * step(0.24 - across, 0.07)
    shoulders = y + 1.1 + neck - 0.34 * np.clip(across - 0.3, 0, 2) ** 1.2
    scene.dense *= step(shoulders, soft) * step(trunk - across, soft)


def draw_lateral(scene: Scene, body: dict, severity: dict, collapse: list[float]) -> None:
    """Fill an empty scene like `draw_frontal`, for a lateral view with the sternum on the left."""
    x, y, soft = scene.x, scene.y, scene.soft
    base = body['base'] - 0.05 - 0.15 * sum(collapse)
    vault = dome((y - APEX) / 0.9)
    axis = 0.5 + 0.12 * bump(y, -0.1, 0.7)  # of the spine, [H, 1]
    front, back = -0.1 - 0.52 * vault, 0.1 + axis * vault
    scene.lungs = [(0.05, -0.6, base), (0.05, 0.6, base + 0.1)]
    floor = base + 0.3 * np.clip(x + 0.1, 0, 1) ** 1.6 + 0.1 * np.clip(-x, 0, 1)
    cage, below = step(np.minimum(x - front, back - x), 1.5 * soft), step(y - floor, soft)
    width = 0.34 + 0.16 * severity['Cardiomegaly'] + 0.38 * body['heart']
    heart = step(1 - ((x + 0.24) / width) ** 2 - ((y - 0.5) / 0.55) ** 2, 0.18)
    arch = 0.1 + 0.25 * severity['Enlarged Cardiomediastinum']
    vessels = 0.4 * np.maximum(bump(np.hypot(x - 0.1, y + 0.4), 0, arch), heart * 1.9)
    scene.air = 0.9 * cage * (1 - below) * (1 - vessels)
    ribs = 0.05 * _ribs(y - 0.5 * x, body) * cage * step(x + 0.2, 0.2)
    scene.dense = TISSUE + 0.09 * below + ribs + _spine(x - axis, y, body)
    skin = np.minimum(x - front + 0.1 + 0.08 * body['fat'], axis + 0.33 - x)
    scene.dense *= step(skin + 0.8 * step(-0.72 - y, 0.1), 2 * soft)  # above: the raised arms


def _silhouette(y: np.ndarray, body: dict, severity: dict) -> tuple[np.ndarray, np.ndarray]:
    """Return the right and left extent of the vessels and the heart, [H, 1] each."""
    heart = np.clip((y + 0.05) / 0.35, 0, 1)
    vessels = 0.16 * severity['Enlarged Cardiomediastinum'] * bump(y, -0.32, 0.4) + body['vessels']
    right = np.interp(y, BORDER_Y, RIGHT_BORDER) + vessels
    left = np.interp(y, BORDER_Y, LEFT_BORDER) + vessels
    right += heart * (0.4 * body['heart'] + 0.09 * severity['Cardiomegaly'])
    left += heart * (0.6 * body['heart'] + 0.2 * severity['Cardiomegaly'])
    edges = np.stack([right, left]).astype(np.float32)
    return gaussian_filter1d(edges, 0.06 / float(y[1, 0] - y[0, 0]), axis=1, mode='nearest')


def _ribs(height: np.ndarray, body: dict) -> np.ndarray:
    """Return bright bands (0 to 1) along the curves of equal height."""
    wave = np.sin(2 * np.pi * (height / 0.205 + body['phase']))
    return body['bone'] * (step(wave, 0.3) - 0.4 * step(wave - 0.6, 0.3))


def _spine(across: np.ndarray, y: np.ndarray, body: dict) -> np.ndarray:
    vertebrae = 0.7 + 0.3 * np.cos(2 * np.pi * (y / 0.2 + body['phase']))
    return 0.08 * body['bone'] * vertebrae * step(0.1 - np.abs(across), 0.015)


def draw_blobs(
    scene: Scene, blobs: Blobs, severity: float, side: int, rng: np.random.Generator
) -> None:
    """Draw the ellipses of a sign in the lung of a side (0 or 1), or in both lungs."""
    lungs = scene.lungs if blobs.both else [scene.lungs[side]]
    angle = rng.uniform(-blobs.tilt, blobs.tilt)
    cos, sin = math.cos(angle), math.sin(angle)
    for _ in range(1 + int(blobs.most * severity * rng.random())):
        across, along = rng.uniform(*blobs.across), rng.uniform(*blobs.along)
        radius = rng.uniform(*blobs.radius) * (0.6 + 0.6 * severity)
        for inner, outer, base in lungs:
            dx = scene.x - (inner + (outer - inner) * across)
            dy = scene.y - (APEX + (base - APEX) * along)
            wide, high = dx * cos + dy * sin, dy * cos - dx * sin
            shape = step(1 - np.hypot(wide, high / blobs.height) / radius, blobs.soft)
            scene.air *= 1 - blobs.fills * min(1.2 * severity, 1) * shape
            if blobs.adds < 0:
                shape *= scene.air
            scene.dense += blobs.adds * severity * shape


def expose(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Convert attenuation to grey levels with scatter, film curve and grain."""
    scatter, contrast = rng.uniform(0.0, 0.12), rng.uniform(0.9, 1.15)
    dark, bright = rng.normal(0.13, 0.04), rng.normal(0.80, 0.05)
    power = math.exp(rng.normal(0.25, 0.2))
    total = scene.dense - AIR * scene.air + (0.006 + 0.012 * scene.air) * scene.texture
    total += scatter * (0.5 - total)
    level = np.maximum((total - dark) / (bright - dark), 0) ** power
    level = np.tanh(1.15 * contrast * level) / math.tanh(1.32 * contrast)
    level += rng.uniform(0.003, 0.012) * rng.standard_normal(level.shape, np.float32)
    return (np.clip(level, 0, 1) * 255).astype(np.uint8)


def sample_rows(
    num_patients: int, split: str, seed: int, name: str, rarer: float = 0.0
) -> pd.DataFrame:
    """Return the rows of a split with the severities and numbers for drawing.

    `name` is the name of the data folder, which begins every `Path`. `make_phantom` explains
    `rarer`.
    """
    studies = _studies(num_patients, split, seed, rarer)
    table = studies.loc[studies.index.repeat(studies['num_frontal'] + studies['num_lateral'])]
    table['view'] = table.groupby(level=0).cumcount() + 1
    table = table.reset_index(drop=True)
    lateral = table['view'] > table['num_frontal']
    table['Frontal/Lateral'] = np.where(lateral, 'Lateral', 'Frontal')
    table['projection'] = table['AP/PA']
    table.loc[lateral, 'AP/PA'] = np.nan
    table['index'] += FIRST_PATIENT[split]
    columns = table[['index', 'study', 'view', 'Frontal/Lateral']]
    table['Path'] = [
        f'{name}/{split}/patient{patient:05d}/study{study}/view{view}_{kind.lower()}.jpg'
        for patient, study, view, kind in columns.itertuples(index=False)
    ]
    return table


def _studies(num_patients: int, split: str, seed: int, rarer: float) -> pd.DataFrame:
    numbers, drawn = [], []
    for index in range(num_patients):
        rng = np.random.default_rng([1, SPLITS.index(split), seed, index])
        count = min(92, math.ceil(rng.lognormal(0.29, 1.05))) if split == 'train' else 1
        own = rng.standard_normal((1, 6 + len(LABELS)))
        states = math.sqrt(0.5) * (own + rng.standard_normal((count, 6 + len(LABELS))))
        states[:, 4:6] = own[:, 4:6]  # age and sex do not vary between studies
        readings, uniforms = rng.standard_normal((count, 14)), rng.random((count, 18))
        numbers += [(index, study) for study in range(1, count + 1)]
        drawn.append(np.hstack([states, readings, uniforms]))
    drawn = np.concatenate(drawn) if drawn else np.zeros((0, 52))
    factors, own, readings, uniforms = np.split(drawn, [6, 20, 34], axis=1)
    loadings = np.array([row[3] for row in POPULATION.values()])
    states = factors @ loadings.T + own * np.sqrt(1 - (loadings**2).sum(1))
    read = READING[split] * states + math.sqrt(1 - READING[split] ** 2) * readings
    thresholds = np.array([_threshold(row[0] + row[1] / 2) for row in POPULATION.values()]) + rarer
    # Severity per deviation that gives positive studies their mean severity.
    normal = NormalDist()
    excess = np.array([normal.pdf(t) / (1 - normal.cdf(t)) - t for t in thresholds])
    severities = np.clip(0.5 + (MEAN_SEVERITY - 0.5) / excess * (states - thresholds), 0, 1)
    table = pd.DataFrame(numbers, columns=['index', 'study'], dtype=int)
    table['Sex'] = np.where(factors[:, 5] > _threshold(MALE_SHARE * NUM_STUDIES), 'Male', 'Female')
    table['Age'] = np.clip(np.rint(60 + 17 * factors[:, 4]), 18, 90).astype(int)
    # Patients in acute care are imaged in bed (AP).
    table['AP/PA'] = np.where(factors[:, 1] > normal.inv_cdf(PA_SHARE), 'AP', 'PA')
    lateral_share = np.where(table['AP/PA'] == 'PA', LATERAL_OF_PA, LATERAL_OF_AP)
    table['num_lateral'] = (uniforms[:, 14] < lateral_share).astype(int)
    table['num_frontal'] = 1 + (uniforms[:, 15] < TWO_FRONTAL)
    is_train = split == 'train'
    labels = (
        _labels_of_reports(read - rarer, uniforms)
        if is_train
        else _labels_of_panel(read, thresholds)
    )
    table[list(LABELS)] = labels
    table[SEVERITIES] = severities.astype(np.float32)
    return table


def _threshold(count: float) -> float:
    """Return the normal deviate that this number of CheXpert's studies exceeds."""
    return NormalDist().inv_cdf(1 - count / NUM_STUDIES) if count else math.inf


def _labels_of_reports(read: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    """Return the labels of a report: 1, -1 just below the threshold, and otherwise 0 or NaN."""
    labels = np.full(read.shape, np.nan)
    for k, (positive, uncertain, denied, _) in enumerate(POPULATION.values()):
        labels[uniforms[:, k] < denied, k] = 0
        labels[read[:, k] > _threshold(positive + uncertain), k] = -1
        labels[read[:, k] > _threshold(positive), k] = 1
    labels[:, 0] = np.where(np.nan_to_num(labels[:, 1:13]).any(axis=1), np.nan, 1.0)
    return labels


def _labels_of_panel(read: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Return the labels of a panel of readers: 1 or 0; a parent is 1 if a child is."""
    labels = (read > thresholds).astype(float)
    for parent, children in CHILDREN.items():
        family = [LABELS.index(label) for label in (parent, *children)]
        labels[:, family[0]] = labels[:, family].max(axis=1)
    labels[:, 0] = ~labels[:, 1:13].any(axis=1)
    return labels


def make_phantom(
    output: str | Path,
    *,
    num_train: int = 700,
    num_valid: int = 100,
    num_test: int = 300,
    seed: int = 0,
    workers: int = 1,
    size: int = 390,
    rarer: float = 0.0,
) -> dict:
    """Write the CSV files and images of a phantom data set into a folder.

    The images do not depend on the number of workers. Every `Path` begins with the name of the
    folder.

    Args:
        output: Empty or absent folder, or the folder of the same finished phantom.
        num_train: Number of training patients, with about 3.5 images each.
        num_valid: Number of validation patients, with one study and about 1.2 images each.
        num_test: Number of test patients, with one study and about 1.2 images each.
        seed: Seed of the whole data set.
        workers: Number of processes that draw.
        size: Long side of the images in pixels.
        rarer: Standard deviations by which findings lie further from the mean than in CheXpert.

    Returns:
        Contents of phantom.json, and 'drawn', the number of images that this call drew.

    Raises:
        ValueError: If a number is not allowed, or if the folder has other contents.
    """
    output = Path(output).resolve()
    patients = dict(zip(SPLITS, (num_train, num_valid, num_test), strict=True))
    if not SIZES[0] <= size <= SIZES[1]:
        raise ValueError(f'size must be between {SIZES[0]} and {SIZES[1]}, got {size}')
    if any(count > MOST_PATIENTS[split] for split, count in patients.items()):
        raise ValueError(f'at most {MOST_PATIENTS} patients are allowed, got {patients}')
    settings = {'patients': patients, 'seed': seed, 'size': size, 'rarer': rarer}
    if output.exists() and any(output.iterdir()):
        file = output / SETTINGS_FILE
        found = json.loads(file.read_text()) if file.is_file() else {}
        found = {'rarer': 0.0} | found  # of an older phantom
        if {key: found.get(key) for key in settings} != settings:
            raise ValueError(f'{output} must be empty, absent or a phantom with {settings}')
        return found | {'drawn': 0}
    output.mkdir(parents=True, exist_ok=True)
    counts = {}
    for number, (split, num_patients) in enumerate(patients.items()):
        table = sample_rows(num_patients, split, seed, output.name, rarer)
        # The paths tell every later tool that these are phantoms (`are_synthetic`), also if the
        # name of the folder does not. Readers of CheXpert's layout leave the first folder out.
        first = output.name if are_synthetic([output.name]) else f'{output.name}-phantom'
        rows = table[list(COLUMNS)].assign(Path=first + table['Path'].str.removeprefix(output.name))
        replace_file(output / f'{split}.csv', rows.to_csv(index=False))
        draw_all(table, output, (number, seed, size), workers)
        counts[split] = len(table)
    done = settings | {'images': counts}
    replace_file(output / SETTINGS_FILE, json.dumps(done, indent=1) + '\n')
    return done | {'drawn': sum(counts.values())}


def draw_all(table: pd.DataFrame, output: Path, key: tuple[int, int, int], workers: int) -> None:
    """Draw and write the images of a split; `key` is (number of the split, seed, size)."""
    for path in table['Path']:
        (output.parent / path).parent.mkdir(parents=True, exist_ok=True)
    columns = ['Path', 'Sex', 'Age', 'projection', 'index', 'study', 'view', 'Frontal/Lateral']
    rows = table[columns].itertuples(index=False, name=None)
    severities = table[SEVERITIES].to_numpy()
    tasks = [(output.parent, key, *task) for task in zip(rows, severities, strict=True)]
    bar = partial(tqdm, total=len(tasks), desc=SPLITS[key[0]], unit='image', disable=None)
    if workers <= 1:
        deque(bar(map(draw_image, tasks)), maxlen=0)
    else:
        with multiprocessing.Pool(workers) as pool:
            deque(bar(pool.imap_unordered(draw_image, tasks, chunksize=16)), maxlen=0)


def draw_image(task: tuple) -> None:
    """Draw and write the image of a task of `draw_all`: folder, key, row and severities."""
    root, (split, seed, size), row, severities = task
    path, sex, age, projection, patient, study, view, kind = row
    who = [split, seed, patient - FIRST_PATIENT[SPLITS[split]]]
    body = make_body(np.random.default_rng([2, *who]), sex, age, projection)
    severity = dict(zip(LABELS, severities.tolist(), strict=True))
    # All views of a study show the same signs. Position, exposure and noise differ.
    signs_rng = np.random.default_rng([3, *who, study])
    sides = dict(zip(LABELS, signs_rng.integers(2, size=len(LABELS)).tolist(), strict=True))
    rng = np.random.default_rng([5, *who, study, view])
    scene = make_scene(rng, kind, projection, size)
    collapse = [0.0, 0.0]
    collapse[sides['Atelectasis']] = severity['Atelectasis']
    draw_anatomy = draw_frontal if kind == 'Frontal' else draw_lateral
    draw_anatomy(scene, body, severity, collapse)
    for label, signs in SIGNS.items():
        if severity[label] > 0.02:
            for blobs in signs:
                draw_blobs(scene, blobs, severity[label], sides[label], signs_rng)
    Image.fromarray(expose(scene, rng)).save(root / path, quality=90)
