"""Probes: votes by brute force, heads against scikit-learn, and what a probe leaves alone."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tiny import arguments, run_folder, run_main, tiny_config
from torch import nn

import main_finetune
import probing
from data.labels import LABELS
from probing import KnnClassifier, fit_linear_heads
from utils import read_checkpoint

NAN = float('nan')


def test_votes_equal_a_brute_force_count() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(30, 5)).astype(np.float32)
    targets = rng.choice([0.0, 1.0, NAN], size=(30, 3), p=[0.5, 0.3, 0.2]).astype(np.float32)
    queries = rng.normal(size=(4, 5)).astype(np.float32)
    shares = []
    for query in queries:
        similarity = [f @ query / np.linalg.norm(f) / np.linalg.norm(query) for f in features]
        nearest = sorted(range(30), key=lambda i: -similarity[i])[:7]
        row = []
        for k in range(3):
            votes = [(np.exp(similarity[i] / 0.07), targets[i, k]) for i in nearest]
            known = [(weight, target) for weight, target in votes if not np.isnan(target)]
            row.append(sum(w * t for w, t in known) / sum(w for w, _ in known))
        shares.append(row)
    probe = KnnClassifier(nn.Identity(), features, targets, 7)
    found = probe.vote(torch.from_numpy(queries)).sigmoid().numpy()
    np.testing.assert_allclose(found, shares, rtol=1e-5, atol=1e-9)


def test_a_label_that_no_neighbour_knows_gets_one_half() -> None:
    features = np.eye(3, dtype=np.float32)
    probe = KnnClassifier(nn.Identity(), features, np.full((3, 1), NAN, np.float32), 2)
    assert probe.vote(torch.from_numpy(features)).sigmoid().tolist() == [[0.5]] * 3


def test_linear_heads_equal_scikit_learns_pipeline() -> None:
    rng = np.random.default_rng(1)
    features = (rng.normal(size=(200, 6)) * [1, 5, 0.1, 2, 1, 1] + 3).astype(np.float32)
    features[:, 5] = 7  # a constant feature tells nothing
    targets = (features[:, :2] @ [0.5, 0.2] + rng.normal(size=200) > 2.3).astype(np.float32)
    targets = np.stack([targets, np.zeros(200, np.float32), targets], axis=1)
    targets[:50, 2] = NAN
    weight, bias = fit_linear_heads(features, targets, inverse_penalty=0.1)
    want = make_pipeline(StandardScaler(), LogisticRegression(C=0.1)).fit(features, targets[:, 0])
    np.testing.assert_allclose(
        features @ weight[0] + bias[0], want.decision_function(features), atol=1e-3
    )
    assert (weight[1] == 0).all(), 'a label with one class has nothing to fit'
    assert bias[1] == 0
    assert not np.allclose(weight[2], weight[0]), 'unknown targets are left out'


def test_a_soft_target_counts_as_both_classes() -> None:
    rng = np.random.default_rng(2)
    features = rng.normal(size=(60, 3)).astype(np.float32)
    soft = np.where(features[:, 0] > 0, 0.75, 0.0).astype(np.float32)
    weight, bias = fit_linear_heads(features, soft[:, None], inverse_penalty=1.0)
    standard = StandardScaler().fit_transform(features)
    rows = np.repeat(np.arange(60), 4)  # three in four positive
    classes = np.array([1, 1, 1, 0] * 60) * (soft[rows] > 0)
    want = LogisticRegression(C=1.0)
    want.fit(standard[rows], classes, sample_weight=np.full(240, 0.25))
    np.testing.assert_allclose(
        features @ weight[0] + bias[0], want.decision_function(standard), atol=2e-3
    )


@pytest.mark.parametrize('mode', ['linear_probe', 'knn'])
def test_a_probe_run_writes_scores_and_leaves_the_encoder_alone(
    mode: str, phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = {}

    def keep(run, model, loaders):
        kept['before'] = {k: v.clone() for k, v in model.state_dict().items()}
        kept['probe'] = probing.build_probe(run, model, loaders)
        return kept['probe']

    monkeypatch.setattr(main_finetune, 'build_probe', keep)
    cfg = tiny_config(tmp_path / 'c.yaml', 'finetune', FINETUNE={'MODE': mode})
    assert run_main('finetune', arguments(cfg, phantom, tmp_path / 'o')) == 0
    folder = run_folder(tmp_path / 'o', 'finetune')
    assert set(json.loads((folder / 'scores.json').read_text())) == {'valid', 'test'}
    table = pd.read_csv(folder / 'predictions_valid.csv')
    assert list(table.columns) == ['Path', *LABELS]
    assert table[list(LABELS)].to_numpy().std() > 0
    model = kept['probe'].encoder if mode == 'knn' else kept['probe']
    after = model.state_dict()
    changed = {k for k, v in kept['before'].items() if not torch.equal(v, after[k])}
    assert changed == (set() if mode == 'knn' else {'head.weight', 'head.bias'})


def test_last_layer_trains_the_head_alone(phantom: Path, tmp_path: Path) -> None:
    cfg = tiny_config(tmp_path / 'c.yaml', 'finetune', FINETUNE={'MODE': 'last_layer'})
    assert run_main('finetune', arguments(cfg, phantom, tmp_path / 'o')) == 0
    folder = run_folder(tmp_path / 'o', 'finetune')
    first = read_checkpoint(folder / 'ckpt_epoch_0.pth')['model']
    last = read_checkpoint(folder / 'ckpt_epoch_1.pth')['model']
    changed = {key for key, value in first.items() if not torch.equal(value, last[key])}
    assert changed == {'head.weight', 'head.bias'}


def test_a_probe_without_held_out_patients_is_refused(phantom: Path, tmp_path: Path, refused):
    cfg = tiny_config(
        tmp_path / 'c.yaml', 'finetune', FINETUNE={'MODE': 'knn'}, EVAL={'SELECT_ON': 'valid'}
    )
    argv = arguments(cfg, phantom, tmp_path / 'o', '--opts', 'DATA.HOLDOUT_FRACTION', '0.0')
    refused('finetune', argv, "FINETUNE.MODE 'knn'", 'DATA.HOLDOUT_FRACTION must be above 0')
