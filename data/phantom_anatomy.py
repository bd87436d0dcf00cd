"""Anatomy of phantom chest X-rays: the frontal and the lateral view."""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from data.phantom_scene import Lung, Scene, bump, dome, step

TISSUE = 0.62  # attenuation of the trunk
APEX = -0.95  # height of the lungs' tops
# Silhouette of vessels and heart: reach from the midline at these heights.
BORDER_Y = (-1.1, -0.6, -0.4, -0.22, -0.08, 0.1, 0.3, 0.5, 0.64, 0.85)
LEFT_BORDER = (0.2, 0.155, 0.165, 0.165, 0.225, 0.3, 0.42, 0.53, 0.55, 0.44)
RIGHT_BORDER = (0.18, 0.15, 0.16, 0.165, 0.17, 0.24, 0.31, 0.32, 0.28, 0.2)


class Subject(NamedTuple):
    """Who is drawn; the seeds fix a patient's anatomy and where the signs of a study sit."""

    sex: str = 'Female'
    age: float = 60.0
    projection: str = 'AP'
    anatomy_seed: int | list[int] = 0
    findings_seed: int | list[int] = 0


def make_body(subject: Subject) -> dict[str, float]:
    """Return the measures of a patient, which vary with sex, age and projection."""
    n = np.random.default_rng(subject.anatomy_seed).standard_normal(20).tolist()
    female, old = float(subject.sex == 'Female'), (subject.age - 55) / 20
    supine = float(subject.projection == 'AP')
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
    """Draw a frontal view.

    Args:
        scene: filled with lungs, air and attenuation.
        body: the patient's measures.
        severity: by label; here of what changes the anatomy.
        where: [24] uniform numbers by label, which place its sign.
        turn: how far the patient stands turned: moves the middle sideways.
    """
    half, soft = body['half'], max(0.011, 0.8 / scene.px)
    x, y, ax = scene.x, scene.y, np.abs(scene.x)
    loss, right_side = severity['Atelectasis'], where['Atelectasis'][0] < 0.5
    shift = turn + loss * (-0.07 if right_side else 0.07) + _tension(severity, where)
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
    """Draw a lateral view, breastbone on the left, spine on the right; arguments: `frontal`."""
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
    """Add the lungs' vessels where there is air and no bare rim."""
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


def _tension(severity: dict, where: dict) -> float:
    """Return how far a large pneumothorax pushes the middle away."""
    return max(severity['Pneumothorax'] - 0.5, 0) * (
        0.12 if where['Pneumothorax'][0] < 0.5 else -0.12
    )


def _mediastinum(y: np.ndarray, body: dict, severity: dict) -> tuple[np.ndarray, np.ndarray]:
    """Return how far the silhouette of vessels and heart reaches right and left, [H, 1]."""
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


@lru_cache(maxsize=1)
def _rib_profiles() -> tuple[np.ndarray, np.ndarray]:
    """Return attenuation over one rib and gap in 256 steps: posterior, anterior."""
    t = np.arange(256, dtype=np.float32) / 256
    band = step(t - 0.22, 0.03) * step(0.64 - t, 0.03)
    edges = 0.55 * bump(t, 0.25, 0.035) + 0.8 * bump(t, 0.61, 0.03)
    return 0.6 * band + edges, 0.7 * band + 0.25 * edges


def _across_ribs(phase: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    index = (phase * 256).astype(np.int32) & 255
    posterior, anterior = _rib_profiles()
    return posterior[index], anterior[index]


def _ribs(scene: Scene, body: dict, fracture: float, where: list[float]) -> None:
    """Add posterior and anterior ribs; a fracture breaks some of them."""
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
    """Displace ribs beyond their breaks (changes `phase`); return callus and gap, [H, W]."""
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
    """Add vertebrae, and the dark windpipe in front of them."""
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
    """Add clavicles, shoulder blades and heads of the upper arms."""
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
    """Add breast shadows and the gas in the stomach."""
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
    """Add the upper arms, and cut the body out of the air around it."""
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
    """Return vessels of lungs whose hilum is at the left edge, 8 bit."""
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
    """Draw a vessel and what it divides into, down to the finest."""
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
