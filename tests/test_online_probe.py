"""The probe during pre-training."""

import math
from pathlib import Path

import numpy as np
import pytest
from test_engine_loop import assert_same_weights, final_state
from tiny import VIT, finished_run

from evaluation import online_probe
from logger import read_metrics


def test_a_probe_of_every_second_epoch_changes_no_weight(phantom: Path, tmp_path: Path) -> None:
    plain = finished_run('simmim', phantom, tmp_path / 'plain')
    probed = finished_run('simmim', phantom, tmp_path, EVAL={'PROBE_EVERY': 2})
    assert_same_weights(final_state(probed), final_state(plain))
    rows = read_metrics(probed / 'metrics.jsonl')
    assert [row['epoch'] for row in rows if 'probe_rank' in row] == [-1, 1]
    assert all(row['holdout_l1'] > 0 for row in rows)
    assert 'probe of' in (probed / 'log_rank0.txt').read_text()


@pytest.mark.parametrize('is_known', [True, False])
def test_the_probe_finds_labels_that_the_features_contain(is_known, phantom, tmp_path, monkeypatch):
    def features(run, encoder, loader) -> np.ndarray:
        targets = loader.dataset.targets
        noise = np.random.default_rng(0).normal(size=targets.shape)
        return (is_known * 9 * np.nan_to_num(targets) + noise).astype(np.float32)

    monkeypatch.setattr(online_probe, 'extract_features', features)
    once = {'EPOCHS': 1, 'WARMUP_EPOCHS': 0}
    folder = finished_run(
        'contrastive', phantom, tmp_path, model=VIT, CONTRASTIVE={'METHOD': 'simclr'}, TRAIN=once,
        EVAL={'PROBE_EVERY': 1}, DATA={'HOLDOUT_FRACTION': 0.5},
    )  # fmt: skip
    last = read_metrics(folder / 'metrics.jsonl')[-1]
    assert (last['probe_mean_of_defined'] > 0.85) == is_known, last
    assert math.isfinite(last['probe_rank'])
