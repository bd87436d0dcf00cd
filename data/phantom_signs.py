"""Signs of disease and support devices on phantom chest X-rays.

Each sign takes the scene, its severity (0 to 1; 0.5 is where readers part) and `NUM_UNIFORMS`
uniform numbers that place and shape it, so that a study shows the same sign in all of its views.
Cardiomegaly, Enlarged Cardiomediastinum and Fracture are drawn with the anatomy.
"""

import numpy as np

from data.phantom_scene import Lung, Scene, bezier, bump, cut, dome, noise_tiles, step

NUM_UNIFORMS = 24
CIRCLE = np.linspace(0, 2 * np.pi, 25)


def _side(scene: Scene, u: float) -> Lung:
    return scene.lungs[int(u >= 0.5)]


def _edema(scene: Scene, s: float, u: list[float]) -> None:
    """Haze around both hila, uneven, with plainer vessels and a fine grain."""
    for lung, share in zip(scene.lungs, (u[2], 1 - u[2]), strict=True):
        center = lung.point(0.32 + 0.1 * u[3], 0.55 + 0.15 * u[4])
        radii = (0.38 + 0.15 * s, 0.45 + 0.25 * s)
        scene.haze(center, radii, 0.75 * s * (0.7 + 0.6 * share), patchy=0.2)
    scene.vessels += 1.1 * s
    grain = cut(noise_tiles()[0], u[5:7], scene.air.shape, 170 / scene.px)
    scene.dense += 0.012 * s * grain * scene.air


def _consolidation(scene: Scene, s: float, u: list[float]) -> None:
    """Dense opacity of part of a lobe that stops at a fissure."""
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
    """Patches of unequal size, close together."""
    lung = _side(scene, u[0])
    for k in range(3 + int(4 * u[1])):
        a, b = u[4 + 2 * k], u[5 + 2 * k]
        center = lung.point(0.2 + 0.35 * u[2] + 0.35 * a, 0.4 + 0.3 * u[3] + 0.28 * b)
        radii = 0.07 + 0.08 * b, 0.06 + 0.07 * a
        scene.haze(center, radii, 0.85 * s * (0.5 + 0.7 * a), patchy=0.5)


def _lung_opacity(scene: Scene, s: float, u: list[float]) -> None:
    """Ill-defined opacities anywhere, of no particular shape."""
    for k in range(1 + int(2.5 * u[0])):
        side, across, along, large = u[1 + 4 * k : 5 + 4 * k]
        radius = 0.13 + 0.15 * large
        center = _side(scene, side).point(0.25 + 0.6 * across, 0.25 + 0.65 * along)
        scene.haze(center, (radius, radius * (0.7 + 0.8 * u[13])), 0.65 * s, patchy=0.25)


def _lesion(scene: Scene, s: float, u: list[float]) -> None:
    """One to three nodules, or a mass."""
    for k in range(1 + int(2.3 * u[0] * s)):
        side, across, along, large = u[1 + 4 * k : 5 + 4 * k]
        center = _side(scene, side).point(0.25 + 0.6 * across, 0.18 + 0.65 * along)
        radius = 0.028 + (0.03 + 0.06 * large**2) * (0.5 + s)
        window, r2 = scene.ellipse(center, (radius, radius * (0.85 + 0.3 * u[14])))
        ball = step(1 - r2, 0.25) * np.sqrt(np.clip(1.3 - r2, 0.1, 1))
        scene.dense[window] += 0.2 * s * ball


def _atelectasis(scene: Scene, s: float, u: list[float]) -> None:
    """Plates of collapsed lung and haze at the base; the anatomy raises the diaphragm."""
    lung = _side(scene, u[0])
    for k in range(1 + int(2.2 * u[1])):
        across, along, long = u[2 + 3 * k : 5 + 3 * k]
        center = lung.point(0.3 + 0.4 * across, 0.6 + 0.3 * along)
        radii = 0.14 + 0.14 * long, 0.016 + 0.02 * u[11]
        window, r2 = scene.ellipse(center, radii, lung.sign * (u[12] - 0.3))
        scene.dense[window] += 0.2 * s * np.exp(-1.2 * r2)
    scene.haze(lung.point(0.45, 1.0), (0.4, 0.16), 0.7 * s)


def _pneumothorax(scene: Scene, s: float, u: list[float]) -> None:
    """Dark rim without vessels outside a thin pleural line, widest at the apex."""
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
    scene.dense += 0.05 * s * s * inside * (1 - beyond)  # the lung that is left is denser
    scene.bare = np.maximum(scene.bare, min(1, 2 * s) * beyond * (lung.sign * scene.x > 0))


def _effusion(scene: Scene, s: float, u: list[float]) -> None:
    """Fluid that rises towards the wall, on one or both sides; a veil in some who lie."""
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
    """Thickened pleura along the wall, uneven, perhaps with a cap at the apex or a plaque."""
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


DEVICES = (
    _breathing_tube,
    _central_line,
    _feeding_tube,
    _pacemaker,
    _electrodes,
    _chest_tube,
    _sternal_wires,
)


def _support_devices(scene: Scene, s: float, u: list[float]) -> None:
    """Tubes, lines and wires: the more severe, the more of them and the plainer."""
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
