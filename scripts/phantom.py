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
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageOps
from scipy.ndimage import gaussian_filter, gaussian_filter1d
from tqdm import tqdm

from data.labels import LABELS, NO_FINDING
from system.files import atomic_writer, replace_file

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

# Anatomy.
AIR = 0.40  # attenuation that air in the lungs removes
TISSUE = 0.62  # attenuation of the trunk
APEX = -0.95  # y of the top of the lungs
# Silhouette of vessels and heart: distance from the midline at these heights.
BORDER_Y = (-1.1, -0.6, -0.4, -0.22, -0.08, 0.1, 0.3, 0.5, 0.64, 0.85)
LEFT_BORDER = (0.2, 0.155, 0.165, 0.165, 0.225, 0.3, 0.42, 0.53, 0.55, 0.44)
RIGHT_BORDER = (0.18, 0.15, 0.16, 0.165, 0.17, 0.24, 0.31, 0.32, 0.28, 0.2)
LETTERS = {
    'L': [(0, 0), (0, 1), (0.6, 1)],
    'R': [(0, 1), (0, 0), (0.5, 0), (0.62, 0.25), (0.5, 0.5), (0, 0.5), (0.6, 1)],
}


@dataclass
class Lung:
    """The frame of a lung: u runs from the inner (0) to the outer edge (1), v from apex to base."""

    inner: float
    outer: float
    apex: float
    base: float
    wall: np.ndarray  # distance of the outer edge from the midline, [H, 1]

    @property
    def sign(self) -> int:
        return 1 if self.outer > 0 else -1

    def point(self, u: float, v: float) -> tuple[float, float]:
        return self.inner + (self.outer - self.inner) * u, self.apex + (self.base - self.apex) * v

    def depth(self, y: np.ndarray) -> np.ndarray:
        return np.clip((y - self.apex) / (self.base - self.apex), 0, 1.1)


@dataclass
class Scene:
    """An image that is being drawn."""

    x: np.ndarray  # [1, W]
    y: np.ndarray  # [H, 1]
    px: float  # pixels per unit
    layer: Image.Image  # tubes, wires and markers, at twice the resolution
    texture: np.ndarray  # of tissue, unit deviation, [H, W]
    air: np.ndarray = None  # aerated lung (0 to 1), [H, W]
    dense: np.ndarray = None  # attenuation of everything else, [H, W]
    bare: np.ndarray = None  # where the lung shows no vessels (0 to 1), [H, W]
    vessels: float = 1.0  # how much vessels stand out
    lungs: list[Lung] = field(default_factory=list)

    def window(self, cx: float, cy: float, rx: float, ry: float) -> tuple[slice, slice]:
        columns = np.searchsorted(self.x[0], [cx - rx, cx + rx])
        rows = np.searchsorted(self.y[:, 0], [cy - ry, cy + ry])
        return slice(*rows), slice(*columns)

    def ellipse(
        self, center: tuple[float, float], radii: tuple[float, float], tilt: float = 0.0
    ) -> tuple[tuple[slice, slice], np.ndarray]:
        """Return the window around an ellipse, and the squared radius in it (1 on the edge)."""
        (cx, cy), (rx, ry) = center, radii
        reach = (max(radii), max(radii)) if tilt else radii
        window = self.window(cx, cy, 2.2 * reach[0], 2.2 * reach[1])
        dx, dy = self.x[:, window[1]] - cx, self.y[window[0]] - cy
        if tilt:
            cos, sin = math.cos(tilt), math.sin(tilt)
            dx, dy = dx * cos + dy * sin, dy * cos - dx * sin
        return window, (dx / rx) ** 2 + (dy / ry) ** 2

    def haze(self, center: tuple, radii: tuple, amount: float, patchy: float = 0.0) -> None:
        """Add an ill-defined opacity to the lung."""
        window, r2 = self.ellipse(center, radii)
        opacity = amount * np.exp(-0.9 * r2 * r2 - 0.5 * r2)
        if patchy:
            opacity *= np.clip(0.75 + patchy * self.texture[window], 0, 1.25)
        self.air[window] *= 1 - np.minimum(opacity, 0.97)

    def line(self, points: np.ndarray | list, width: float, grey: float) -> None:
        """Draw a tube or wire through body points [N, 2]."""
        pen, width_px = ImageDraw.Draw(self.layer), max(1, round(width * self.px * 2))
        pen.line(self._layer_points(points), fill=int(grey * 255), width=width_px, joint='curve')

    def plate(self, points: np.ndarray | list, grey: float) -> None:
        """Draw a solid polygon with corners [N, 2]."""
        ImageDraw.Draw(self.layer).polygon(self._layer_points(points), fill=int(grey * 255))

    def _layer_points(self, points: np.ndarray | list) -> list[tuple[float, float]]:
        scale, x0, y0 = 2 * self.px, self.x[0, 0], self.y[0, 0]
        return [((x - x0) * scale, (y - y0) * scale) for x, y in points]


def step(distance: np.ndarray, soft: float | np.ndarray) -> np.ndarray:
    """Return a soft edge: 0 far below zero distance, 1 far above."""
    return 0.5 + 0.5 * np.tanh(distance / soft)


def bump(values: np.ndarray, center: float, width: float) -> np.ndarray:
    return np.exp(-(((values - center) / width) ** 2))


def dome(t: np.ndarray, power: float = 2.3) -> np.ndarray:
    """Return the outline of a vault: steep at t = 0, level (1) from t = 1 on."""
    return np.sqrt(np.clip(1 - (1 - np.clip(t, 0, 1)) ** power, 0, 1))


def bezier(*points: tuple[float, float], num: int = 20) -> np.ndarray:
    """Return the Bezier curve of control points, [num, 2]."""
    t, curve = np.linspace(0, 1, num)[:, None, None], np.array(points, float)[None]
    while curve.shape[1] > 1:
        curve = curve[:, :-1] * (1 - t) + curve[:, 1:] * t
    return curve[:, 0]


@lru_cache(maxsize=1)
def noise_tiles() -> tuple[np.ndarray, np.ndarray]:
    """Return film grain and tissue texture, 8 bit: mean 128, deviation 32."""
    rng = np.random.default_rng(20190121)

    def clouds(side: int, *sigmas: float) -> np.ndarray:
        noise = np.zeros((side, side), np.float32)
        for sigma in sigmas:
            layer = rng.standard_normal((side, side), np.float32)
            layer = gaussian_filter(layer, sigma, mode='wrap')
            noise += layer / layer.std()
        return np.clip(128 + 32 / noise.std() * noise, 0, 255).astype(np.uint8)

    return clouds(1024, 0.7), clouds(512, 1.5, 4, 10)


def cut(
    tile: np.ndarray, place: tuple[float, float], shape: tuple[int, int], scale: float = 1.0
) -> np.ndarray:
    """Return part of a tile, [H, W] with deviation 1; a pixel covers `scale` pixels of the tile."""
    height, width = (max(2, math.ceil(side * scale)) for side in shape)
    sides = zip(place, (height, width), tile.shape, strict=True)
    top, left = (int(u * (whole - side)) for u, side, whole in sides)
    part = tile[top : top + height, left : left + width]
    if scale != 1.0:
        part = Image.fromarray(part).resize(shape[::-1], Image.Resampling.BILINEAR)
    return np.asarray(part, np.float32) / 32 - 4


def make_scene(
    rng: np.random.Generator, view: str, projection: str, size: int, place: tuple[float, float]
) -> tuple[Scene, tuple[int, int], float]:
    """Return an empty scene that is large enough to be rotated, the image shape, and the angle."""
    short = round(size * min(max(rng.normal(0.82, 0.02), 0.75), 0.9))
    wide = rng.random() < (0.8 if projection == 'AP' else 0.35) and view == 'Frontal'
    height, width = (short, size) if wide else (size, short)
    zoom = math.exp(rng.normal(0.0, 0.06))
    px = zoom * min(height / 2.15, width / (2.15 if view == 'Frontal' else 1.7))
    angle = min(max(rng.normal(0, 0.03), -0.09), 0.09)
    pad = 2 + 2 * math.ceil(abs(math.sin(angle)) * size / 2)
    x = (np.arange(width + pad, dtype=np.float32) - (width + pad - 1) / 2) / px
    y = (np.arange(height + pad, dtype=np.float32) - (height + pad - 1) / 2) / px
    layer = Image.new('L', (2 * x.size, 2 * y.size))
    texture = cut(noise_tiles()[1], place, (y.size, x.size), 75 / px)
    x, y = x[None] + rng.normal(0, 0.05), y[:, None] + rng.normal(0.02, 0.06)
    return Scene(x, y, px, layer, texture), (height, width), angle


def add_marker(scene: Scene, rng: np.random.Generator) -> None:
    """Draw a side marker (L or R) next to the shoulder."""
    letter, sign = ('L', 1) if rng.random() < 0.6 else ('R', -1)
    x = sign * abs(float(scene.x[0, -1 if sign > 0 else 0])) * rng.uniform(0.75, 0.88)
    y = float(scene.y[0, 0]) + rng.uniform(0.15, 0.5)
    size = rng.uniform(0.06, 0.11)
    points = [(x + size * u, y + size * v) for u, v in LETTERS[letter]]
    scene.line(points, width=0.016, grey=0.95)


def expose(
    scene: Scene, rng: np.random.Generator, shape: tuple[int, int], angle: float
) -> np.ndarray:
    """Convert attenuation to grey levels with scatter, film curve, rotation and collimation."""
    scatter, contrast = rng.uniform(0.0, 0.12), rng.uniform(0.9, 1.15)
    dark, bright = rng.normal(0.13, 0.04), rng.normal(0.80, 0.05)
    power = math.exp(rng.normal(0.25, 0.2))
    grain = rng.uniform(0.003, 0.012) * cut(noise_tiles()[0], rng.random(2).tolist(), shape)
    total = scene.dense - AIR * scene.air + 0.008 * scene.texture
    total += np.asarray(scene.layer.reduce(2), np.float32) * (0.3 / 255)
    total += scatter * (0.5 - total)
    level = np.maximum((total - dark) / (bright - dark), 0) ** power
    level = np.tanh(1.15 * contrast * level) / math.tanh(1.32 * contrast)
    level = _rotate(level, shape, angle) + grain
    if rng.random() < 0.12:
        height, width = shape
        frame = rng.uniform(0, 0.05, 4) * [height, height, width, width]
        top, bottom, left, right = frame.astype(int)
        level[:top] = level[height - bottom :] = 0.02
        level[:, :left] = level[:, width - right :] = 0.02
    return (np.clip(level, 0, 1) * 255).astype(np.uint8)


def _rotate(image: np.ndarray, shape: tuple[int, int], angle: float) -> np.ndarray:
    """Rotate an image about the centre and cut out [H, W]."""
    (height, width), cos, sin = shape, math.cos(angle), math.sin(angle)
    cy, cx = (side / 2 for side in image.shape)
    left, top = cx - (cos * width + sin * height) / 2, cy + (sin * width - cos * height) / 2
    turned = Image.fromarray(image).transform(
        (width, height),
        Image.Transform.AFFINE,
        (cos, sin, left, -sin, cos, top),
        Image.Resampling.BILINEAR,
    )
    return np.asarray(turned)


def make_body(rng: np.random.Generator, sex: str, age: float, projection: str) -> dict[str, float]:
    """Return the measures of a patient, which vary with sex, age and projection."""
    n = rng.standard_normal(20).tolist()
    female, old = float(sex == 'Female'), (age - 55) / 20
    supine = float(projection == 'AP')
    return {
        'half': 0.96 + 0.04 * n[0] - 0.04 * female,
        'base': 0.64 + 0.07 * n[1] - 0.12 * supine,
        'fat': _limit(0.4 + 0.3 * n[2], 0, 1.2),
        'heart': 1 + 0.075 * n[3] + 0.03 * old + 0.065 * supine,
        'tilt': 0.25 + 0.08 * n[4],
        'vessel': 0.014 * n[5] + 0.008 * old,
        'knob': _limit(0.055 + 0.03 * old + 0.012 * n[6], 0.01, 0.14),
        'bone': _limit(1 - 0.18 * old + 0.12 * n[7], 0.45, 1.4),
        'bend': 0.03 * n[8],
        'rib': 0.205 + 0.008 * n[9],
        'rib_phase': 0.3 * n[10],
        'breast': female * _limit(0.9 + 0.4 * n[11], 0.2, 1.8),
        'breast_y': 0.42 + 0.06 * n[12] + 0.05 * max(old, 0),
        'scapula': 0.92 + 0.08 * n[13],
        'depth': 1 + 0.06 * n[14] + 0.05 * old,
        'gas': n[15],
        'tree': abs(n[16]) * 1e4,
        'slope': 0.06 * n[17],
        'clavicle': 0.04 * n[18],
        'arms': 0.55 + 0.1 * n[19] - 0.25 * supine,
    }


def frontal(scene: Scene, body: dict, severity: dict, where: dict, turn: float) -> None:
    """Fill an empty scene with the anatomy of a frontal view.

    `where` holds NUM_UNIFORMS numbers that place the sign of each label, and `turn` is the rotation
    of the patient, which moves the midline sideways.
    """
    half, soft = body['half'], max(0.011, 0.8 / scene.px)
    x, y, ax = scene.x, scene.y, np.abs(scene.x)
    loss, right_side = severity['Atelectasis'], where['Atelectasis'][0] < 0.5
    shift = turn + loss * (-0.07 if right_side else 0.07)
    push = max(severity['Pneumothorax'] - 0.5, 0)  # by a large pneumothorax
    shift += push * (0.12 if where['Pneumothorax'][0] < 0.5 else -0.12)
    flare = 0.93 + 0.07 * np.clip((y + 0.1) / 0.7, 0, 1)
    wall = 0.39 * half + half * (flare - 0.39) * dome((y - APEX) / 0.95)  # [H, 1]
    bases = (
        body['base'] - 0.2 * loss * right_side,
        body['base'] + 0.06 - 0.2 * loss * (not right_side),
    )
    scene.lungs = [Lung(-0.16, -half, APEX, bases[0], wall), Lung(0.16, half, APEX, bases[1], wall)]
    far = (ax - 0.42 * half) / (0.58 * half)
    floor = bases[0] + (bases[1] - bases[0]) * step(x, 0.07)
    floor = floor + 0.12 * far**2 + 0.16 * np.maximum(far, 0) ** 2  # [1, W]
    steep = np.sqrt(1 + np.minimum(np.gradient(wall[:, 0]) * scene.px, 6)[:, None] ** 2)
    cage, below = step(wall - ax, soft * steep), step(y - floor, soft)
    right, left = _mediastinum(y, body, severity)
    top = 0.39 * half - (0.39 * half - 0.13) * dome((y - APEX) / 0.35)
    reach = np.minimum(np.maximum(left, top) - x + shift, np.maximum(right, top) + x - shift)
    middle = step(reach, soft)
    depth = body['depth'] * (0.82 + 0.18 * bump(y, 0.15, 0.8))
    depth = depth * (0.8 + 0.2 * np.clip((ax - 0.1) / 0.5, 0, 1))
    scene.air = cage * (1 - 0.9 * middle) * (1 - below) * depth * step(y - APEX, soft)
    for sign in (-1, 1):  # hila
        center = sign * 0.24 + shift, 0.02 - 0.04 * sign
        window, r2 = scene.ellipse(center, (0.13, 0.2), 0.3 * sign)
        scene.air[window] *= 1 - 0.3 * np.exp(-r2)
    thick = TISSUE * (0.75 + 0.25 * np.sqrt(np.clip(1 - (x / 1.5) ** 2, 0, 1)))
    thick = thick + 0.07 * body['fat'] * bump(ax, 0, 0.9)
    scene.dense = thick + 0.09 * middle * bump(x - shift, 0.1, 0.35) + 0.13 * below * cage
    scene.dense -= 0.12 * step(-0.85 - y, 0.15) * step(ax - 0.3, 0.1)
    _ribs(scene, body, severity['Fracture'], where['Fracture'])
    _spine(scene, body, shift)
    _shoulders(scene, body)
    _soft_parts(scene, body)
    _outline(scene, body, 2 * soft)


def lateral(scene: Scene, body: dict, severity: dict, where: dict, turn: float) -> None:
    """Fill an empty scene like `frontal`, for a lateral view with the sternum on the left."""
    x, y, soft = scene.x, scene.y, max(0.012, 0.8 / scene.px)
    apex, base = APEX + 0.05, body['base'] - 0.05 - 0.15 * severity['Atelectasis']
    vault = dome((y - apex) / 0.9, 2.2)
    spine = 0.5 + 0.12 * bump(y, -0.1, 0.7) + 0.3 * turn  # its axis, [H, 1]
    front, back = -0.1 - (0.42 + 0.1 * body['depth']) * vault, 0.1 + spine * vault
    scene.lungs = [Lung(0.05, -0.6, apex, base, -front), Lung(0.05, 0.6, apex, base + 0.1, back)]
    floor = base + 0.3 * np.clip(x + 0.1, 0, 1) ** 1.6 + 0.1 * np.clip(-x, 0, 1)
    cage, below = step(np.minimum(x - front, back - x), 1.5 * soft), step(y - floor, soft)
    wide = 0.34 + 0.16 * severity['Cardiomegaly'] + 0.38 * (body['heart'] - 1)
    dx, dy = x + 0.24, y - 0.5
    heart = step(1 - (dx / wide) ** 2 - ((dy + 0.3 * dx) / 0.55) ** 2, 0.18)
    hilum = bump(np.hypot(x - 0.05, y + 0.08), 0, 0.11)
    arch_width = 0.05 + 0.05 * severity['Enlarged Cardiomediastinum']
    arch = bump(np.hypot(x - 0.12, y + 0.3), 0.16, arch_width) * step(x - 0.06, 0.05)
    vessels = np.minimum(hilum + arch * step(-0.15 - y, 0.1), 1)
    scene.air = cage * (1 - 0.75 * heart) * (1 - below) * (1 - 0.35 * vessels)
    scene.air *= 0.85 + 0.1 * bump(y, -0.3, 0.5)
    thick = TISSUE * (0.8 + 0.2 * bump(x, 0.05, 0.9)) + 0.12 * step(-0.7 - y, 0.12)
    phase = (y - 0.5 * x + 0.1 * x * x + body['rib_phase']) / (0.8 * body['rib'])
    ribs = 0.03 * _across_ribs(phase)[0] * cage * step(x + 0.2, 0.2)
    disc = (0.5 + 0.5 * np.cos(2 * np.pi * (y / 0.2 + body['rib_phase']))) ** 4
    vertebrae = (0.1 - 0.06 * disc - 0.06 * np.clip(y + 0.2, 0, 1)) * step(
        0.095 - np.abs(x - spine), 0.015
    )
    sternum = 0.1 * bump(x - front, -0.035, 0.025) * step(0.35 - np.abs(y + 0.05), 0.05)
    pipe = step(0.05 - np.abs(x - 0.16 - 0.12 * y), 0.015) * step(-0.15 - y, 0.04)
    scene.dense = thick + 0.09 * below + (ribs + vertebrae) * body['bone'] + sternum - 0.06 * pipe
    arms = 0.8 * step(-0.72 - y, 0.1)
    skin = np.minimum(x - front + 0.1 + 0.08 * body['fat'], spine + 0.33 - x)
    scene.dense *= step(skin + arms, 2 * soft)


def add_vessels(scene: Scene, body: dict) -> None:
    """Draw lung vessels where there is air and no pneumothorax."""
    for number, lung in enumerate(scene.lungs):
        low, high = sorted((lung.inner, lung.outer))
        middle = (low + high) / 2, (lung.apex + lung.base + 0.2) / 2
        window = scene.window(*middle, (high - low) / 2, middle[1] - lung.apex)
        height, width = scene.air[window].shape
        trees = _vessel_trees()
        tree = trees[(int(body['tree']) + 5 * number) % len(trees)]
        tree = np.asarray(tree.resize((width, height), Image.Resampling.BILINEAR), np.float32)
        free = scene.air[window] * (1 - scene.bare[window])
        scene.dense[window] += 0.00042 * scene.vessels * tree[:, :: lung.sign] * free


def _limit(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def _mediastinum(y: np.ndarray, body: dict, severity: dict) -> tuple[np.ndarray, np.ndarray]:
    """Return the right and left extent of the silhouette of vessels and heart, [H, 1] each."""
    level, larger, cardiac = y[:, 0], body['heart'] - 1, severity['Cardiomegaly']
    lower = np.clip((level + 0.05) / 0.35, 0, 1)
    upper = 0.16 * severity['Enlarged Cardiomediastinum'] * bump(level, -0.32, 0.4) + body['vessel']
    right = np.interp(level, BORDER_Y, RIGHT_BORDER) + lower * (0.4 * larger + 0.09 * cardiac)
    left = np.interp(level, BORDER_Y, LEFT_BORDER) + lower * (0.6 * larger + 0.2 * cardiac)
    left += lower * body['tilt'] * np.clip(level - 0.3, -0.3, 0.3)
    left += body['knob'] * bump(level, -0.36, 0.1)
    sigma = 0.045 * len(level) / float(level[-1] - level[0])
    smooth = [gaussian_filter1d(edge + upper, sigma, mode='nearest') for edge in (right, left)]
    return tuple(edge.astype(np.float32)[:, None] for edge in smooth)


def _across_ribs(phase: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the attenuation of posterior and of anterior ribs, from a table of one period."""
    t = np.arange(256, dtype=np.float32) / 256
    band = step(t - 0.22, 0.03) * step(0.64 - t, 0.03)
    edges = 0.55 * bump(t, 0.25, 0.035) + 0.8 * bump(t, 0.61, 0.03)
    index = (phase * 256).astype(np.int32) & 255
    return (0.6 * band + edges)[index], (0.7 * band + 0.25 * edges)[index]


def _ribs(scene: Scene, body: dict, fracture: float, where: list[float]) -> None:
    """Draw posterior and anterior ribs; a fracture breaks some of them."""
    x, y, wall = scene.x, scene.y, scene.lungs[0].wall
    u, edge = np.abs(x) / body['half'], wall - np.abs(x)
    arc, front_arc = 0.5 * u**2.3 - 0.22 * u + 0.04, 0.62 * u**1.4 - 0.5
    phase = (y - arc * (1 - 0.3 * y) + body['rib_phase']) / body['rib']
    front = (y + front_arc * (1 - 0.25 * y) + body['rib_phase']) / (1.22 * body['rib'])
    marks = _break_ribs(scene, phase, fracture, where) if fracture > 0.02 else 0.0
    wall_side = step(edge, 0.05)
    rim = 4 * wall_side * (1 - wall_side)  # ribs seen along their length
    fade = step(edge + 0.05, 0.02) * step(u - 0.16, 0.04)
    fade *= step(0.95 - y, 0.15) * (1 - 0.5 * step(y - 0.7, 0.1))
    bone = _across_ribs(phase)[0] * (0.052 + 0.06 * rim)
    bone += 0.036 * _across_ribs(front)[1] * step(u - 0.52, 0.1) * step(y + 0.75, 0.05)
    bone *= fade
    bone += 0.045 * rim * step(y + 0.9, 0.1) * step(0.75 - y, 0.15)
    scene.dense = scene.dense + bone * body['bone'] + marks


def _break_ribs(scene: Scene, phase: np.ndarray, severity: float, u: list[float]) -> np.ndarray:
    """Displace broken ribs by changing `phase` in place; return callus and gap, [H, W]."""
    marks = np.zeros_like(phase)
    lung, jump = scene.lungs[int(u[0] >= 0.5)], 0.5 * severity * (1 if u[8] < 0.5 else -1)
    for number in range(1 + int(2.4 * severity * u[3])):
        cx, cy = lung.point(0.5 + 0.35 * u[2] + 0.05 * u[4 + number], 0.25 + 0.45 * u[1])
        window, r2 = scene.ellipse((cx, cy + 0.205 * number), (0.13, 0.13))
        across = scene.x[:, window[1]] - cx
        phase[window] += jump * np.exp(-(r2**2)) * step(across * lung.sign, 0.012)
        callus = 0.07 * u[9] * np.exp(-4 * r2)
        marks[window] += severity * (callus - 0.09 * bump(across, 0, 0.014) * np.exp(-3 * r2))
    return marks


def _spine(scene: Scene, body: dict, shift: float) -> None:
    """Draw vertebrae, and the dark trachea in front of them."""
    window = scene.window(0.4 * shift, 0, 0.3, 9)
    x, y = scene.x[:, window[1]], scene.y
    axis = 0.3 * shift + body['bend'] * np.sin(2 * y + 90 * body['bend'])
    disc = 0.5 + 0.5 * np.cos(2 * np.pi * (y / 0.2 + body['rib_phase']))
    bone = 0.05 + 0.035 * body['bone'] * (1 - disc**4)
    scene.dense[window] += bone * step(0.105 + 0.02 * y - np.abs(x - axis), 0.014)
    scene.dense[window] += 0.03 * (1 - disc) * bump(x - axis, 0, 0.02)
    across = x - shift - 0.01
    pipe = step(0.052 - np.abs(across), 0.014) * step(-0.27 - y, 0.05)
    for slope in (-0.75, 0.75):
        branch = step(0.04 - np.abs(across - slope * (y + 0.32)), 0.014)
        pipe = np.maximum(pipe, branch * step(y + 0.36, 0.03) * step(-0.16 - y, 0.03))
    scene.dense[window] -= 0.1 * pipe


def _shoulders(scene: Scene, body: dict) -> None:
    """Draw clavicles, scapulae and heads of the humeri."""
    window, ax, bone = scene.window(0, -0.9, 9, 0.35), np.abs(scene.x), body['bone']
    centre = body['clavicle'] - 0.72 - 0.2 * np.sin(1.9 * np.clip(ax - 0.1, 0, 1))
    centre = centre + body['slope'] * scene.x
    across = (scene.y[window[0]] - centre) / (0.042 + 0.012 * bump(ax, 0.12, 0.12))
    shape = step(1 - np.abs(across), 0.2) * (0.6 + 0.5 * np.minimum(across**2, 1))
    scene.dense[window] += 0.13 * bone * shape * step(ax - 0.09, 0.02) * step(1.02 - ax, 0.03)
    for sign in (-1, 1):
        window, r2 = scene.ellipse((sign * 1.22, -0.77), (0.13, 0.15))
        scene.dense[window] += 0.08 * bone * step(1 - r2, 0.25)
        window, r2 = scene.ellipse((sign * body['scapula'], -0.35), (0.13, 0.36), -sign * 0.25)
        scene.dense[window] += 0.035 * bone * step(1 - r2, 0.12) * (0.6 + np.minimum(r2, 1))


def _soft_parts(scene: Scene, body: dict) -> None:
    """Draw breast shadows and stomach gas."""
    if body['breast']:
        dy = scene.y - body['breast_y']
        across = (np.abs(scene.x) - 0.47) / 0.4
        radius = np.sqrt(across**2 + (dy / (0.36 + 0.06 * body['breast'])) ** 2)
        shadow = step(1 - radius, 0.09) * np.clip(1 + 2 * dy, 0, 1.2)
        scene.dense += 0.085 * body['breast'] * shadow
    if body['gas'] > -0.5:
        center, radii = (0.42, scene.lungs[1].base + 0.13), (0.15 + 0.03 * body['gas'], 0.07)
        window, r2 = scene.ellipse(center, radii, 0.2)
        scene.dense[window] -= 0.16 * step(1 - r2, 0.3)


def _outline(scene: Scene, body: dict, soft: float) -> None:
    """Draw the upper arms, and set everything outside the body to air."""
    y, ax, fat = scene.y, np.abs(scene.x), body['fat']
    arm = 1.24 + 0.05 * fat + body['arms'] * (y + 0.75)
    shaft = 0.05 - np.abs(ax - arm)
    hollow = 0.7 - 5 * np.clip(shaft, 0, 0.06)
    scene.dense += 0.12 * body['bone'] * hollow * step(shaft, 0.012) * step(y + 0.7, 0.05)
    trunk = body['half'] + 0.13 + 0.12 * fat + 0.06 * np.clip(y, -1, 1)
    shoulder = 0.34 * np.clip(ax - 0.3, 0, 2) ** 1.2 + 1.6 * np.clip(ax - 1.15, 0, 1) ** 2
    top = -1.1 + 0.05 * fat + shoulder - 1.5 * step(0.24 - ax, 0.07)
    sides = np.maximum(trunk - ax, 0.2 + 0.06 * fat - np.abs(ax - arm))
    scene.dense *= step(sides, soft) * step(y - top, soft)


@lru_cache(maxsize=1)
def _vessel_trees() -> list[Image.Image]:
    """Return 8-bit images of vessel trees with the hilum at the left edge."""
    trees = []
    for number in range(12):
        rng = np.random.default_rng([20190121, number])
        tree = Image.new('L', (512, 512))
        pen = ImageDraw.Draw(tree)
        for angle in np.linspace(-1.35, 1.35, 8) + rng.normal(0, 0.12, 8):
            start = 110 + rng.normal(0, 12), 235 + 45 * angle
            _branch(pen, rng, start, angle, rng.uniform(5, 9))
        soft = gaussian_filter(np.asarray(tree, np.float32), 1.6)[::2, ::2]
        trees.append(Image.fromarray(soft.astype(np.uint8)))
    return trees


def _branch(
    pen: ImageDraw.ImageDraw, rng: np.random.Generator, start: tuple, angle: float, width: float
) -> None:
    """Draw a vessel and all its branches."""
    if width < 0.8:
        return
    points = [start]
    for direction in (angle, angle + rng.normal(0, 0.15)):
        length = 13 * width**0.6 * rng.uniform(0.7, 1.4)
        x, y = points[-1]
        points.append((x + length * math.cos(direction), y + length * math.sin(direction)))
    pen.line(points, fill=int(min(255, 60 + 22 * width)), width=max(1, round(width)))
    for turn in rng.normal([0.38, -0.38], 0.2):
        _branch(pen, rng, points[-1], direction + turn, width * rng.uniform(0.62, 0.86))


# Signs of disease and support devices. A function takes the scene, the severity s (0 to 1; readers
# disagree at 0.5) and NUM_UNIFORMS uniform numbers u that place and shape the sign, so that all
# views of a study show the same sign. Cardiomegaly, Enlarged Cardiomediastinum and Fracture are
# part of the anatomy.
NUM_UNIFORMS = 24
CIRCLE = np.linspace(0, 2 * np.pi, 25)


def _side(scene: Scene, u: float) -> Lung:
    return scene.lungs[int(u >= 0.5)]


def _edema(scene: Scene, s: float, u: list[float]) -> None:
    """Draw uneven haze around both hila, prominent vessels and a fine grain."""
    for lung, share in zip(scene.lungs, (u[2], 1 - u[2]), strict=True):
        center = lung.point(0.32 + 0.1 * u[3], 0.55 + 0.15 * u[4])
        radii = (0.38 + 0.15 * s, 0.45 + 0.25 * s)
        scene.haze(center, radii, 0.75 * s * (0.7 + 0.6 * share), patchy=0.2)
    scene.vessels += 1.1 * s
    grain = cut(noise_tiles()[0], u[5:7], scene.air.shape, 170 / scene.px)
    scene.dense += 0.012 * s * grain * scene.air


def _consolidation(scene: Scene, s: float, u: list[float]) -> None:
    """Draw a dense opacity in part of a lobe that ends at a fissure."""
    upper = u[1] < 0.35
    center = _side(scene, u[0]).point(0.35 + 0.4 * u[2], 0.3 if upper else 0.62 + 0.2 * u[3])
    radii = 0.2 + 0.14 * u[4], 0.17 + 0.12 * u[5]
    window, r2 = scene.ellipse(center, radii)
    dx, dy = scene.x[:, window[1]] - center[0], scene.y[window[0]] - center[1]
    fissure = 0.45 * radii[1] + (dy + 0.4 * (u[6] - 0.5) * dx) * (-1 if upper else 1)
    opacity = step(1.1 - r2, 0.45) * step(fissure, 0.02)
    opacity *= np.clip(0.9 + 0.15 * scene.texture[window], 0, 1)
    scene.air[window] *= 1 - min(1.1 * s, 0.95) * opacity


def _pneumonia(scene: Scene, s: float, u: list[float]) -> None:
    """Draw patches of different size, close together."""
    lung = _side(scene, u[0])
    for k in range(3 + int(4 * u[1])):
        a, b = u[4 + 2 * k], u[5 + 2 * k]
        center = lung.point(0.2 + 0.35 * u[2] + 0.35 * a, 0.4 + 0.3 * u[3] + 0.28 * b)
        radii = 0.07 + 0.08 * b, 0.06 + 0.07 * a
        scene.haze(center, radii, 0.85 * s * (0.5 + 0.7 * a), patchy=0.5)


def _lung_opacity(scene: Scene, s: float, u: list[float]) -> None:
    """Draw ill-defined opacities anywhere."""
    for k in range(1 + int(2.5 * u[0])):
        side, across, along, large = u[1 + 4 * k : 5 + 4 * k]
        radius = 0.13 + 0.15 * large
        center = _side(scene, side).point(0.25 + 0.6 * across, 0.25 + 0.65 * along)
        scene.haze(center, (radius, radius * (0.7 + 0.8 * u[13])), 0.65 * s, patchy=0.25)


def _lesion(scene: Scene, s: float, u: list[float]) -> None:
    """Draw one to three nodules, or a mass."""
    for k in range(1 + int(2.3 * u[0] * s)):
        side, across, along, large = u[1 + 4 * k : 5 + 4 * k]
        center = _side(scene, side).point(0.25 + 0.6 * across, 0.18 + 0.65 * along)
        radius = 0.028 + (0.03 + 0.06 * large**2) * (0.5 + s)
        window, r2 = scene.ellipse(center, (radius, radius * (0.85 + 0.3 * u[14])))
        ball = step(1 - r2, 0.25) * np.sqrt(np.clip(1.3 - r2, 0.1, 1))
        scene.dense[window] += 0.2 * s * ball


def _atelectasis(scene: Scene, s: float, u: list[float]) -> None:
    """Draw plates of collapsed lung and basal haze; the anatomy raises the diaphragm."""
    lung = _side(scene, u[0])
    for k in range(1 + int(2.2 * u[1])):
        across, along, long = u[2 + 3 * k : 5 + 3 * k]
        center = lung.point(0.3 + 0.4 * across, 0.6 + 0.3 * along)
        radii = 0.14 + 0.14 * long, 0.016 + 0.02 * u[11]
        window, r2 = scene.ellipse(center, radii, lung.sign * (u[12] - 0.3))
        scene.dense[window] += 0.2 * s * np.exp(-1.2 * r2)
    scene.haze(lung.point(0.45, 1.0), (0.4, 0.16), 0.7 * s)


def _pneumothorax(scene: Scene, s: float, u: list[float]) -> None:
    """Draw a dark rim without vessels outside a thin pleural line, widest at the apex."""
    lung = _side(scene, u[0])
    v = lung.depth(scene.y)
    gap = s * (0.06 + 0.3 * s) * (1.15 - v * (0.75 + 0.35 * u[1]))
    gap = gap + 0.01 * np.sin(9 * v + 6 * u[2])
    sunk = dome((scene.y - lung.apex - s * (0.06 + 0.3 * s)) / 0.95)
    edge = np.minimum(lung.wall, abs(lung.outer) * (0.42 + 0.56 * sunk)) - gap  # [H, 1]
    outside = lung.sign * scene.x - edge
    beyond, inside = step(outside, 0.012), scene.air * step(lung.sign * scene.x, 0.02)
    line = 0.05 * bump(outside, 0, 0.011) * step(0.92 - v, 0.05)
    scene.dense += inside * min(1, 2 * s) * (line - (0.03 + 0.07 * s) * beyond)
    scene.dense += 0.05 * s * s * inside * (1 - beyond)  # the collapsed lung is denser
    scene.bare = np.maximum(scene.bare, min(1, 2 * s) * beyond * (lung.sign * scene.x > 0))


def _effusion(scene: Scene, s: float, u: list[float]) -> None:
    """Draw fluid that rises towards the wall, on one or both sides, or a veil."""
    main, other = _side(scene, u[1]), 0.4 + 0.5 * u[2] if u[0] < 0.4 else 0.0
    for lung in scene.lungs:
        amount = (s if lung is main else s * other) ** 1.2
        across = np.clip((scene.x - lung.inner) / (lung.outer - lung.inner), -0.2, 1.1)
        level = lung.base + 0.22 - amount * (0.375 + 0.375 * np.clip(across, 0, 1.1) ** 2)
        level = level - 0.22 * (1 - s) * np.clip(0.55 - across, 0, 1)  # [1, W]
        if u[3] < 0.3:
            fluid = 0.55 * step(scene.y - level + 0.25, 0.3)
        else:
            fluid = step(scene.y - level, 0.025 + 0.03 * s)
        fluid = fluid * step(across + 0.05, 0.05) * min(0.96, 0.6 + 0.8 * s) * (amount > 0)
        scene.dense += 0.13 * fluid * scene.air
        scene.air *= 1 - fluid


def _pleural_other(scene: Scene, s: float, u: list[float]) -> None:
    """Draw unevenly thickened pleura along the wall, sometimes with an apical cap or a plaque."""
    lung = _side(scene, u[0])
    v = lung.depth(scene.y)
    wavy = 1 + 0.25 * np.sin((6 + 8 * u[3]) * v + 6 * u[10])
    thick = 0.12 * s * bump(v, 0.35 + 0.5 * u[1], 0.2 + 0.3 * u[2]) * wavy
    if u[4] < 0.4:
        thick = thick + 0.12 * s * bump(v, 0.0, 0.14)
    band = step(lung.sign * scene.x - lung.wall + thick, 0.02) * step(thick - 0.012, 0.01)
    scene.air *= 1 - 0.75 * min(1, 1.6 * s) * band
    if u[5] < 0.4:
        center = lung.point(0.55 + 0.3 * u[6], 0.5 + 0.4 * u[7])
        window, r2 = scene.ellipse(center, (0.1, 0.035), u[8] - 0.5)
        scene.dense[window] += 0.13 * s * step(1 - r2, 0.3) * (0.5 + u[9])


def _breathing_tube(scene: Scene, u: list[float], grey: float) -> None:
    x, tip = 0.02 * u[0] + 0.01, 0.15 * u[1] - 0.5
    for side in (x - 0.02, x + 0.02):
        path = bezier((side + 0.1 * u[2] - 0.05, -1.4), (side, -1.0), (side, tip))
        scene.line(path, 0.009, 0.8 * grey)


def _central_line(scene: Scene, u: list[float], grey: float) -> None:
    starts = [(-0.9, -0.72), (0.9, -0.72), (-0.22, -1.3), (0.22, -1.3), (-1.5, -0.2)]
    x, y = starts[int(4.99 * u[0])]
    tip = -0.15, 0.05 + 0.2 * u[1]
    scene.line(bezier((x, y), (x / 2, -0.95), (-0.1, -0.75), (-0.15, -0.3), tip), 0.014, 0.7 * grey)


def _feeding_tube(scene: Scene, u: list[float], grey: float) -> None:
    path = bezier((0.03, -1.4), (0, -0.6), (0.05, 0.3), (0.08, 0.8), (0.45 * u[0] + 0.1, 1.1))
    scene.line(path, 0.018, 0.6 * grey)


def _pacemaker(scene: Scene, u: list[float], grey: float) -> None:
    sign = 1 if u[0] < 0.75 else -1
    x, y = sign * (0.62 + 0.1 * u[1]), -0.52 + 0.1 * u[2]
    for end in [(0.25, 0.5), (-0.2, 0.3)][: 1 + (u[3] < 0.6)]:
        path = bezier((x, y - 0.1), (sign * 0.3, -0.95), (-0.25, -0.5), (-0.2, 0.5), end)
        scene.line(path, 0.016, grey)
    square = [np.sign(wave) * np.abs(wave) ** 0.6 for wave in (np.cos(CIRCLE), np.sin(CIRCLE))]
    scene.plate(np.stack([x + 0.12 * square[0], y + 0.1 * square[1]], 1), grey)


def _electrodes(scene: Scene, u: list[float], grey: float) -> None:
    leave = u[9] < 0.5
    for k in range(2 + int(2 * u[0])):
        sign, y = (1, -1)[k % 2], (-0.55, -0.5, 0.55, 0.6)[k] + 0.2 * u[5 + k]
        x = sign * (0.45 + 0.3 * u[1 + k])
        out = (0.3 * sign * u[10], 1.5) if leave else (1.6, 0.2)
        wire = bezier((x, y), (x + u[2] - 0.5, y + 0.3), (0.3 * x, 0.7 * u[3]), out)
        scene.line(wire, 0.008, 0.45 * grey)
        disc = np.stack([x + 0.035 * np.cos(CIRCLE), y + 0.035 * np.sin(CIRCLE)], 1)
        scene.plate(disc, 0.7 * grey)


def _chest_tube(scene: Scene, u: list[float], grey: float) -> None:
    sign = 1 if u[0] < 0.5 else -1
    path = [(1.2, 0.5 + 0.2 * u[1]), (0.7, 0.55), (0.75, 0.0), (0.35 + 0.2 * u[2], -0.6)]
    path = bezier(*[(sign * x, y) for x, y in path])
    for gap in (-0.016, 0.016):
        scene.line(path + gap, 0.009, 0.75 * grey)


def _sternal_wires(scene: Scene, u: list[float], grey: float) -> None:
    across, along = 0.035 * np.cos(CIRCLE), 0.02 * np.sin(CIRCLE) + 0.01 * np.cos(2 * CIRCLE)
    for k in range(4 + int(2 * u[0])):
        x, y = 0.02 * u[1 + k] - 0.01, 0.2 * k - 0.5
        scene.line(np.stack([x + across, y + along], 1), 0.01, grey)


DEVICES = [_breathing_tube, _central_line, _feeding_tube, _pacemaker]
DEVICES += [_electrodes, _chest_tube, _sternal_wires]


def _support_devices(scene: Scene, s: float, u: list[float]) -> None:
    """Draw tubes, lines and wires; their number and contrast increase with the severity."""
    grey = min(max(1.6 * s - 0.25, 0), 1)
    order = np.argsort(u[: len(DEVICES)])
    for number in order[: 1 + int(3 * s * u[7])]:
        DEVICES[number](scene, u[8 + number :] + u[: 8 + number], grey)


SIGNS = {
    'Lung Opacity': _lung_opacity,
    'Lung Lesion': _lesion,
    'Edema': _edema,
    'Consolidation': _consolidation,
    'Pneumonia': _pneumonia,
    'Atelectasis': _atelectasis,
    'Pneumothorax': _pneumothorax,
    'Pleural Effusion': _effusion,
    'Pleural Other': _pleural_other,
    'Support Devices': _support_devices,
}


def sample_rows(num_patients: int, split: str, seed: int, name: str) -> pd.DataFrame:
    """Return the rows of a split with the severities and numbers for drawing.

    `name` is the name of the data folder, which begins every `Path`.
    """
    studies = _studies(num_patients, split, seed)
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


def _studies(num_patients: int, split: str, seed: int) -> pd.DataFrame:
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
    thresholds = np.array([_threshold(row[0] + row[1] / 2) for row in POPULATION.values()])
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
    labels = _labels_of_reports(read, uniforms) if is_train else _labels_of_panel(read, thresholds)
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


VIEWS = {'Frontal': frontal, 'Lateral': lateral}


def make_phantom(
    output: str | Path,
    *,
    num_train: int = 700,
    num_valid: int = 100,
    num_test: int = 300,
    seed: int = 0,
    workers: int = 1,
    size: int = 390,
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
    settings = {'patients': patients, 'seed': seed, 'size': size}
    if output.exists() and any(output.iterdir()):
        file = output / SETTINGS_FILE
        found = json.loads(file.read_text()) if file.is_file() else {}
        if {key: found.get(key) for key in settings} != settings:
            raise ValueError(f'{output} must be empty, absent or a phantom with {settings}')
        return found | {'drawn': 0}
    output.mkdir(parents=True, exist_ok=True)
    counts = {}
    for number, (split, num_patients) in enumerate(patients.items()):
        table = sample_rows(num_patients, split, seed, output.name)
        replace_file(output / f'{split}.csv', table[list(COLUMNS)].to_csv(index=False))
        draw_all(table, output, (number, seed, size), workers)
        counts[split] = len(table)
    done = settings | {'images': counts}
    replace_file(output / SETTINGS_FILE, json.dumps(done, indent=1) + '\n')
    return done | {'drawn': sum(counts.values())}


def contact_sheet(output: str | Path, file: str | Path) -> None:
    """Write a PNG with the first 24 training images of a phantom."""
    output, cell, columns = Path(output).resolve(), 280, 6
    paths = pd.read_csv(output / 'train.csv')['Path'].head(24)
    sheet = Image.new('L', (columns * cell, math.ceil(len(paths) / columns) * cell), 255)
    for number, path in enumerate(paths):
        with Image.open(output.parent / path) as image:
            place = number % columns * cell, number // columns * cell
            sheet.paste(ImageOps.contain(image, (cell - 4, cell - 4)), place)
    with atomic_writer(file) as target:
        sheet.save(target, 'PNG')


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
        deque(bar(map(_draw_one, tasks)), maxlen=0)
    else:
        with multiprocessing.Pool(workers) as pool:
            deque(bar(pool.imap_unordered(_draw_one, tasks, chunksize=16)), maxlen=0)


def _draw_one(task: tuple) -> None:
    """Draw and write the image of a task of `draw_all`."""
    root, (split, seed, size), row, severities = task
    path, sex, age, projection, patient, study, view, kind = row
    who = [split, seed, patient - FIRST_PATIENT[SPLITS[split]]]
    body = make_body(np.random.default_rng([2, *who]), sex, age, projection)
    # All views of a study show the same signs. Position, exposure, noise and marker differ.
    uniforms = np.random.default_rng([3, *who, study]).random((len(LABELS), NUM_UNIFORMS))
    rng = np.random.default_rng([5, *who, study, view])
    severity = dict(zip(LABELS, severities.tolist(), strict=True))
    where = dict(zip(LABELS, uniforms.tolist(), strict=True))
    scene, shape, angle = make_scene(rng, kind, projection, size, where[NO_FINDING][:2])
    VIEWS[kind](scene, body, severity, where, rng.normal(0, 0.03))
    scene.bare = np.zeros_like(scene.air)
    for label, sign in SIGNS.items():
        if severity[label] > 0.02:
            sign(scene, severity[label], where[label])
    add_vessels(scene, body)
    add_marker(scene, rng)
    Image.fromarray(expose(scene, rng, shape, angle)).save(root / path, quality=90)
