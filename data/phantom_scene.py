"""The canvas of phantom chest X-rays: body coordinates, textures, and the film that pictures them.

Body coordinates: x runs to the right of the picture (the patient's left), y downwards; 1 is about
half a thorax.
"""

import math
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

AIR = 0.40  # attenuation that full lungs take from the trunk
LETTERS = {
    'L': [[(0, 0), (0, 1), (0.6, 1)]],
    'R': [[(0, 1), (0, 0), (0.5, 0), (0.62, 0.25), (0.5, 0.5), (0, 0.5), (0.6, 1)]],
}


@dataclass
class Lung:
    """A lung as a frame: u runs from its inner (0) to its outer edge (1), v from apex to base."""

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
        """Return v of body heights."""
        return np.clip((y - self.apex) / (self.base - self.apex), 0, 1.1)


@dataclass
class Scene:
    """A picture in the making."""

    x: np.ndarray  # [1, W]
    y: np.ndarray  # [H, 1]
    px: float  # pixels per unit
    layer: Image.Image  # tubes, wires and markers, at twice the resolution
    texture: np.ndarray  # of tissue, unit deviation, [H, W]
    air: np.ndarray = None  # aerated lung (0 to 1), [H, W]
    dense: np.ndarray = None  # attenuation of all else, [H, W]
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
        """Return the window around an ellipse and the squared radius there (1 on the edge)."""
        (cx, cy), (rx, ry) = center, radii
        reach = (max(radii), max(radii)) if tilt else radii
        window = self.window(cx, cy, 2.2 * reach[0], 2.2 * reach[1])
        dx, dy = self.x[:, window[1]] - cx, self.y[window[0]] - cy
        if tilt:
            cos, sin = math.cos(tilt), math.sin(tilt)
            dx, dy = dx * cos + dy * sin, dy * cos - dx * sin
        return window, (dx / rx) ** 2 + (dy / ry) ** 2

    def haze(self, center: tuple, radii: tuple, amount: float, patchy: float = 0.0) -> None:
        """Fill lung with an ill-defined opacity."""
        window, r2 = self.ellipse(center, radii)
        opacity = amount * np.exp(-0.9 * r2 * r2 - 0.5 * r2)
        if patchy:
            opacity *= np.clip(0.75 + patchy * self.texture[window], 0, 1.25)
        self.air[window] *= 1 - np.minimum(opacity, 0.97)

    def line(self, points: np.ndarray | list, width: float, grey: float) -> None:
        """Lay a tube or wire through body points [N, 2]."""
        pen, width_px = ImageDraw.Draw(self.layer), max(1, round(width * self.px * 2))
        pen.line(self._layer_points(points), fill=int(grey * 255), width=width_px, joint='curve')

    def plate(self, points: np.ndarray | list, grey: float) -> None:
        """Lay a solid shape with corners [N, 2]."""
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
    """Return part of a tile, [H, W] of unit deviation; `scale` of its pixels make one of these."""
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
    """Place a patient before the film.

    Returns:
        An empty scene, larger than the picture by what the rotation turns in; the picture's shape
        [H, W]; the rotation in radians.
    """
    short = round(size * min(max(rng.normal(0.82, 0.02), 0.75), 0.9))
    wide = rng.random() < (0.8 if projection == 'AP' else 0.35) and view == 'frontal'
    height, width = (short, size) if wide else (size, short)
    zoom = math.exp(rng.normal(0.0, 0.06))
    px = zoom * min(height / 2.15, width / (2.15 if view == 'frontal' else 1.7))
    angle = min(max(rng.normal(0, 0.03), -0.09), 0.09)
    pad = 2 + 2 * math.ceil(abs(math.sin(angle)) * size / 2)
    x = (np.arange(width + pad, dtype=np.float32) - (width + pad - 1) / 2) / px
    y = (np.arange(height + pad, dtype=np.float32) - (height + pad - 1) / 2) / px
    layer = Image.new('L', (2 * x.size, 2 * y.size))
    texture = cut(noise_tiles()[1], place, (y.size, x.size), 75 / px)
    x, y = x[None] + rng.normal(0, 0.05), y[:, None] + rng.normal(0.02, 0.06)
    return Scene(x, y, px, layer, texture), (height, width), angle


def add_marker(scene: Scene, rng: np.random.Generator) -> None:
    """Lay the letter of the patient's side beside the shoulder."""
    letter, sign = ('L', 1) if rng.random() < 0.6 else ('R', -1)
    x = sign * abs(float(scene.x[0, -1 if sign > 0 else 0])) * rng.uniform(0.75, 0.88)
    y = float(scene.y[0, 0]) + rng.uniform(0.15, 0.5)
    size = rng.uniform(0.06, 0.11)
    for stroke in LETTERS[letter]:
        scene.line([(x + size * u, y + size * v) for u, v in stroke], width=0.016, grey=0.95)


def expose(
    scene: Scene, rng: np.random.Generator, shape: tuple[int, int], angle: float
) -> np.ndarray:
    """Turn attenuation into grey levels: scatter, film curve, rotation, noise, collimation.

    Returns:
        uint8 [H, W].
    """
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


def _rotate(picture: np.ndarray, shape: tuple[int, int], angle: float) -> np.ndarray:
    """Turn about the centre and cut out [H, W]."""
    (height, width), cos, sin = shape, math.cos(angle), math.sin(angle)
    cy, cx = (side / 2 for side in picture.shape)
    left, top = cx - (cos * width + sin * height) / 2, cy + (sin * width - cos * height) / 2
    turned = Image.fromarray(picture).transform(
        (width, height),
        Image.Transform.AFFINE,
        (cos, sin, left, -sin, cos, top),
        Image.Resampling.BILINEAR,
    )
    return np.asarray(turned)
