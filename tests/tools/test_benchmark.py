"""The published way of computing, and the ratio of two cases."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from tiny import SWIN, VIT, tiny_config

from models import relative_position
from models.build import build_model
from tools import benchmark, peers


@pytest.mark.parametrize('model', [SWIN, VIT | {'VIT': VIT['VIT'] | {'USE_RPB': True}}])
def test_the_published_layers_change_the_way_and_not_the_result(
    model, tmp_path, monkeypatch
) -> None:
    cfg = tiny_config(tmp_path / 'c.yaml', 'simmim', model, DATA={'BATCH_SIZE': 2})
    words = ['train', '--cfg', str(cfg), '--batch-size', '2']
    config = benchmark.training_config(benchmark.parse_args(words), [])
    encoder = build_model(config).eval().encoder
    images, gathered = torch.randn(2, 1, 32, 32), []
    expected = encoder.forward_features(images)
    gather = relative_position.gather_bias
    monkeypatch.setattr(
        benchmark, 'gather_bias', lambda *parts: gathered.append(0) or gather(*parts)
    )
    with benchmark.published_layers():
        found = encoder.forward_features(images)
    torch.testing.assert_close(found, expected)
    blocks = len(getattr(encoder, 'blocks', ())) or 4
    assert len(gathered) == blocks
    assert torch.equal(encoder.forward_features(images), expected) and len(gathered) == blocks


def test_the_ratio_has_the_interval_of_the_paired_rounds(monkeypatch) -> None:
    """Rounds of 1, 2 and 4 s for 8 images, against 2, 2 and 2 s; the first turn does not count."""
    now, durations = [0.0], {'published': [9.0, 2.0, 2.0, 2.0], 'ours': [9.0, 1.0, 2.0, 4.0]}
    monkeypatch.setattr(benchmark, 'synchronized_time', lambda device: now[0])

    def case(name: str) -> benchmark.Case:
        def run() -> int:
            now[0] += durations[name].pop(0)
            return 8

        return run

    _, ours = benchmark.measure({name: case(name) for name in durations.copy()}, repeats=3)
    logs = np.log([2.0, 1.0, 0.5])
    interval = stats.t.interval(0.95, 2, logs.mean(), stats.sem(logs))
    assert ours['ratio_interval'] == pytest.approx(np.exp(interval))
    assert (ours['ratio'], ours['images_per_second']) == (1, 4)


def test_the_bootstrap_of_the_comparison_equals_a_loop_with_scikit_learn() -> None:
    """From the same draws of patients, so that the ratio of their times is of the same work."""
    args = peers.parse_args(['bootstrap', '--cases', '400', '--resamples', '200'])
    cases = peers.cases_of_bootstrap(args)
    low, high = cases['ours']()
    assert 0.5 < low < high < 1
    np.testing.assert_allclose(cases['scikit-learn, loop'](), [low, high], rtol=1e-12)


def test_the_inputs_of_other_libraries_are_normalised_grey_images(tmp_path) -> None:
    levels = np.full((64, 64), 200, np.uint8)
    Image.fromarray(levels).save(tmp_path / 'a.png')
    found = peers.peers_of_input([str(tmp_path / 'a.png')], 32)
    assert len(found) >= 2
    for dataset in found.values():
        image = dataset[0]
        assert image.shape == (1, 32, 32) and image.dtype == torch.float32
        torch.testing.assert_close(image, torch.full((1, 32, 32), (200 / 255 - 0.503) / 0.292))
