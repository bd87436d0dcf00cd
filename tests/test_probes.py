"""Probes: k-NN against brute force, linear heads against scikit-learn, unchanged encoders."""

import json
import logging
import re
import weakref
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tiny import arguments, finished_run, run_folder, tiny_config, torchrun
from torch import nn

import main_finetune
from config import default_config, get_config
from data.labels import LABELS
from evaluation import pixel_floor as module
from evaluation import probes
from evaluation.pixel_floor import pixel_floor
from evaluation.probes import KnnClassifier, fit_linear_heads
from models import build_model

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
    encoder = nn.Identity()
    encoder.forward_features = encoder.forward
    probe = KnnClassifier(encoder, features, targets, 7)
    found = probe(torch.from_numpy(queries)).sigmoid().numpy()
    np.testing.assert_allclose(found, shares, rtol=1e-5, atol=1e-9)


def test_a_grid_of_linear_heads_is_at_scikit_learns_minima() -> None:
    """The variances of the features span four orders of magnitude."""
    rng = np.random.default_rng(4)
    mixing = np.linalg.qr(rng.normal(size=(20, 20)))[0]
    features = rng.normal(size=(300, 20)) * np.arange(1, 21) ** -1.5 @ mixing + 0.5
    features = features.astype(np.float32)
    before = features.copy()
    z = features @ rng.normal(size=(20, 3))
    targets = ((z - z.mean(axis=0)) / z.std(axis=0) + rng.normal(size=z.shape) > [0, 1, 2]) * 1.0
    targets[rng.random(targets.shape) < 0.1] = NAN
    one_class = np.zeros((300, 1))
    penalties = (1e-6, 1e-3, 0.1)
    all_targets = np.hstack([targets, one_class]).astype(np.float32)
    heads = fit_linear_heads(features, all_targets, inverse_penalties=penalties)
    np.testing.assert_array_equal(features, before)
    standard = StandardScaler().fit_transform(features.astype(np.float64))
    for penalty, (weight, bias) in zip(penalties, heads, strict=True):
        assert not weight[3].any() and bias[3] == 0, 'a label with one class is not fitted'
        for k, target in enumerate(targets.T):
            known = ~np.isnan(target)
            want = LogisticRegression(C=penalty, tol=1e-10, max_iter=10_000)
            want.fit(standard[known], target[known])
            got = features @ weight[k] + bias[k]
            np.testing.assert_allclose(got, want.decision_function(standard), rtol=0, atol=1e-3)


def test_a_soft_target_counts_as_both_classes() -> None:
    rng = np.random.default_rng(2)
    features = rng.normal(size=(60, 3)).astype(np.float32)
    soft = np.where(features[:, 0] > 0, 0.75, 0.0).astype(np.float32)
    [(weight, bias)] = fit_linear_heads(features, soft[:, None], inverse_penalties=[1.0])
    standard = StandardScaler().fit_transform(features)
    rows = np.repeat(np.arange(60), 4)  # three in four positive
    classes = np.array([1, 1, 1, 0] * 60) * (soft[rows] > 0)
    want = LogisticRegression(C=1.0)
    want.fit(standard[rows], classes, sample_weight=np.full(240, 0.25))
    np.testing.assert_allclose(
        features @ weight[0] + bias[0], want.decision_function(standard), atol=2e-3
    )


def shaded_images(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw images [N, 1024] with noise that are brighter on the left if the label is 1."""
    rng = np.random.default_rng(seed)
    target = np.arange(count) % 2
    x, y = np.meshgrid(*[np.linspace(-1, 1, 32)] * 2)
    shades = np.stack([np.cos(i * x + j * y) for i in range(4) for j in range(4)]).reshape(16, -1)
    images = 0.5 + rng.normal(scale=0.05, size=(count, 16)) @ shades
    images += 0.2 * target[:, None] * (x.ravel() < 0) + rng.normal(scale=0.05, size=images.shape)
    return images.astype(np.float32), target.astype(np.float32)[:, None]


@pytest.mark.parametrize('num_images, components', [(20, 10), (39, 19), (240, 100)])
def test_the_pixel_floor_is_a_pipeline_of_scikit_learn(num_images, components) -> None:
    train, targets = shaded_images(1, num_images)
    test, truth = shaded_images(2, 200)
    found, count = pixel_floor(train, targets, test)
    assert count == components
    logistic = LogisticRegression(C=0.01, max_iter=2000)
    reduce = PCA(components, svd_solver='full')
    want = make_pipeline(reduce, logistic).fit(train, targets[:, 0]).predict_proba(test)[:, 1]
    np.testing.assert_allclose(found[:, 0], want, atol=1e-3)
    assert roc_auc_score(truth[:, 0], found[:, 0]) > 0.9


def test_the_pixel_floor_has_no_component_without_variance() -> None:
    train, targets = shaded_images(1, 8)
    train, targets = np.repeat(train, 50, axis=0), np.repeat(targets, 50, axis=0)
    found, count = pixel_floor(train, np.hstack([targets, 0 * targets]), train)
    assert count == 7, 'eight different images span seven directions'
    assert found[targets[:, 0] == 1, 0].min() > 0.6 > 0.4 > found[targets[:, 0] == 0, 0].max()
    assert (found[:, 1] == 0.5).all(), 'one class'


def test_the_pixel_floor_leaves_out_unknown_targets_and_a_third_class() -> None:
    train, targets = shaded_images(1, 60)
    want, _ = pixel_floor(train, np.where(np.arange(60)[:, None] < 9, NAN, targets), train)
    third = targets.copy()
    third[:9] = 2
    np.testing.assert_allclose(pixel_floor(train, third, train)[0], want)


def test_pixels_are_copied_so_that_no_tensor_of_a_worker_stays_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refs = []

    def loader(dataset, config, shuffle):
        for place in range(3):
            batch = [torch.full((1, 4), place), torch.zeros(1, 2), torch.tensor([place])]
            refs.extend(map(weakref.ref, batch))
            yield batch
            del batch
            assert all(ref() is None for ref in refs[:-3])

    monkeypatch.setattr(module, 'make_loader', loader)
    monkeypatch.setattr(module, 'XrayDataset', MagicMock())
    dataset = MagicMock(targets=np.zeros((3, 2)))
    dataset.__len__.return_value = 3
    pixels, _ = module.read_pixels(default_config(), dataset)
    np.testing.assert_allclose(pixels[:, 0] * 255, range(3), atol=1e-5)


def test_a_linear_probe_writes_scores_and_leaves_the_encoder_alone(
    phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = {}

    def keep(run, model, loaders):
        kept['before'] = {k: v.clone() for k, v in model.state_dict().items()}
        kept['probe'] = probes.build_probe(run, model, loaders)
        return kept['probe']

    monkeypatch.setattr(main_finetune, 'build_probe', keep)
    folder = probe_run(phantom, tmp_path, 'linear_probe')
    assert set(json.loads((folder / 'scores.json').read_text())) == {'valid', 'test'}
    table = pd.read_csv(folder / 'predictions_valid.csv')
    assert list(table.columns) == ['Path', *LABELS]
    assert table[list(LABELS)].to_numpy().std() > 0
    after = kept['probe'].state_dict()
    changed = {k for k, v in kept['before'].items() if not torch.equal(v, after[k])}
    assert changed == {'head.weight', 'head.bias'}


@pytest.mark.parametrize(('best', 'warnings'), [(0, 1), (1, 0), (2, 1)])
def test_a_choice_at_the_edge_of_the_grid_gives_a_warning(
    best: int, warnings: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scores = iter([0.9 if place == best else 0.5 for place in range(3)])
    monkeypatch.setattr(probes, 'score_probabilities', lambda *values: {})
    monkeypatch.setattr(probes, 'selection_score', lambda *values: next(scores))
    config = default_config()
    config.FINETUNE.MODE = 'linear_probe'
    run = SimpleNamespace(config=config, logger=logging.getLogger())
    loaders = SimpleNamespace(holdout=SimpleNamespace(dataset=MagicMock()))
    with caplog.at_level(logging.WARNING):
        assert probes._choose(run, loaders, (0.01, 0.1, 1.0), 3 * [np.zeros((2, 2))]) == best
    assert len(caplog.records) == warnings


def probe_run(phantom: Path, folder: Path, mode: str, **sections: dict) -> Path:
    return finished_run('finetune', phantom, folder, FINETUNE={'MODE': mode}, **sections)


def log_of(folder: Path) -> str:
    return (folder / 'log_rank0.txt').read_text()


@pytest.mark.slow
def test_the_grid_is_scored_as_the_run_is(phantom: Path, tmp_path: Path) -> None:
    """The best logged score equals the score of the predictions with the EVAL options."""
    options = {'LEVEL': 'study', 'AGGREGATE': 'mean', 'TTA_FLIP': True, 'SELECT': 'all'}
    data = {'VIEWS': 'all', 'HOLDOUT_FRACTION': 0.4, 'TRAIN_IMAGES': 0, 'UNCERTAIN': 'ones'}
    folder = probe_run(phantom, tmp_path, 'knn', EVAL=options, DATA=data)
    scores = re.findall(r'knn, \d+: mean AUROC at study level .* ([\d.]+)\n', log_of(folder))
    assert len(scores) == len(probes.NUM_NEIGHBOURS)
    predicted = pd.read_csv(folder / 'predictions_holdout.csv').set_index('Path')
    truth = pd.read_csv(phantom / 'train.csv').set_index('Path').loc[predicted.index, list(LABELS)]
    truth = truth.fillna(0).where(lambda cells: cells != -1)
    studies = predicted.index.str.rsplit('/', n=1).str[0]
    p, y = predicted.groupby(studies).mean(), truth.groupby(studies).max()
    known = {label: y[label].notna() for label in LABELS if y[label].nunique() == 2}
    areas = [roc_auc_score(y.loc[rows, k], p.loc[rows, k]) for k, rows in known.items()]
    assert max(map(float, scores)) == pytest.approx(np.mean(areas), abs=6e-5)


@pytest.mark.slow
def test_two_processes_probe_the_same_random_weights_as_one(phantom: Path, tmp_path: Path) -> None:
    one = probe_run(phantom, tmp_path, 'knn')
    argv = arguments(tmp_path / 'finetune.yaml', phantom, tmp_path / 'two')
    done = torchrun('finetune', argv, processes=2)
    assert done.returncode == 0, done.stdout + done.stderr
    two = run_folder(tmp_path / 'two', 'finetune')
    for split in ('holdout', 'valid', 'test'):
        want, got = (
            pd.read_csv(folder / f'predictions_{split}.csv')[list(LABELS)].to_numpy()
            for folder in (one, two)
        )
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
    scores = [re.findall(r'knn, .*: mean AUROC .* (.*)\n', log_of(run)) for run in (one, two)]
    assert len(set(scores[0])) > 1
    assert scores[1] == scores[0]


@pytest.mark.slow
def test_non_finite_features_raise_an_error(phantom: Path, tmp_path: Path, refused) -> None:
    cfg = tiny_config(tmp_path / 'c.yaml', 'finetune', FINETUNE={'MODE': 'linear_probe'})
    model = build_model(get_config(Namespace(cfg=str(cfg), opts=[], stage='finetune')), False)
    torch.nn.init.constant_(model.norm.weight, NAN)
    torch.save({'model': model.state_dict()}, tmp_path / 'bad.pth')
    more = ['--pretrained', str(tmp_path / 'bad.pth')]
    argv = arguments(cfg, phantom, tmp_path / 'o', *more)
    refused('finetune', argv, 'train.csv', 'CheXpert')
