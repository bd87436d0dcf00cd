"""The pointing game's rules, and that the maps of trained models win it."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from scripts import pointing_game
from scripts.pointing_game import CHANCE, SQUARE, hit_rate, peak, plant


def test_square_is_planted_where_the_label_is_1_and_nowhere_else():
    pool = np.random.default_rng(0).uniform(0, 255, (5, 64, 64))
    planted = plant(pool, 20, np.random.default_rng(1))
    grey = ((planted.images[:, 0] * 0.292 + 0.503) * 255).numpy()
    assert planted.targets[:, 0].tolist() == [0, 1] * 10
    for without, image, (row, column) in zip(
        grey[::2], grey[1::2], planted.corners[1::2], strict=True
    ):
        assert without.max() < 0.6 * 255 + 0.01
        changed = np.argwhere(np.abs(image - without) > 1e-3)
        assert changed.min(axis=0).tolist() == [row, column]
        assert changed.max(axis=0).tolist() == [row + SQUARE - 1, column + SQUARE - 1]
        assert len(changed) == SQUARE**2
        np.testing.assert_allclose(image[tuple(changed.T)], 255, atol=1e-3)


def test_maximum_counts_inside_the_square_alone():
    maps = torch.zeros(6, 64, 64)
    for number, (row, column) in enumerate([(10, 20), (25, 35), (26, 20), (9, 20), (10, 36)]):
        maps[number, row, column] = 1
    hits = [hit_rate(one[None], np.array([[10, 20]])) for one in maps]
    assert hits == [1, 1, 0, 0, 0, 0]
    assert hit_rate(maps, np.array([[10, 20]] * 6)) == pytest.approx(2 / 6)


def test_middle_of_a_level_top_is_the_maximum():
    saliency = np.zeros((64, 64))
    saliency[4:7, 10:15] = 1
    assert peak(saliency).tolist() == [5, 12]
    assert peak(np.zeros((64, 64))) is None


def test_random_points_hit_by_chance():
    rng = np.random.default_rng(0)
    maps = torch.zeros(4000, 64, 64)
    maps[np.arange(4000), rng.integers(0, 64, 4000), rng.integers(0, 64, 4000)] = 1
    corners = rng.integers(0, 64 - SQUARE + 1, (4000, 2))
    assert hit_rate(maps, corners) == pytest.approx(CHANCE, abs=0.015)


@pytest.mark.slow
def test_maps_of_trained_models_find_the_square(tmp_path, monkeypatch):
    """Far above the chance of 6 %, and lost with the weights: 97, 76 and 99 % when written.

    The script tells of other seeds: of five Swins, one keeps no evidence in its place.
    """
    monkeypatch.setattr(sys, 'argv', ['pointing_game.py', '--output', str(tmp_path), '--seed', '2'])
    threads = torch.get_num_threads()
    try:
        assert pointing_game.main(pointing_game.parse_args()) == 0
    finally:
        torch.set_num_threads(threads)
    models = json.loads((tmp_path / 'pointing_game.json').read_text())['models']
    for name, method, least in (
        ('Swin', 'Grad-CAM', 5 * CHANCE),
        ('ViT', 'Grad-CAM', 5 * CHANCE),
        ('ViT', 'attention rollout', 0.9),
    ):
        scores = models[name]['methods'][method]
        assert models[name]['accuracy'] > 0.95
        assert scores['hits'] > least
        assert scores['hits'] > scores['hits_random_weights'] + 0.2
        assert abs(scores['similarity']) < 0.5
        assert Image.open(tmp_path / f'pointing_game_{name.lower()}.png').width > 300
