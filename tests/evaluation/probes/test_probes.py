"""Probes: k-NN against brute force, linear heads against scikit-learn, unchanged encoders."""

import json
import logging
import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from same_runs import assert_same_weights, final_state
from scipy.special import expit, logit
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tiny import (
    SWIN,
    VIT,
    arguments,
    finished_run,
    run_folder,
    run_main,
    run_script,
    tiny_config,
    torchrun,
)
from torch import nn

from config import default_config
from data.tables.labels import LABELS
from data.tables.metadata import NAMES, metadata_features
from data.tables.records import Records
from evaluation.probes import build as probes
from evaluation.probes.attentive import fit_attention_head
from evaluation.probes.build import KnnClassifier, choose_neighbours, fit_linear_head, fit_pixels
from evaluation.probes.metadata import read_metadata
from logger import read_metrics
from models.classifier_heads import AttentionHead
from models.losses import masked_bce

NAN = float('nan')


def test_votes_equal_a_brute_force_count() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(30, 5)).astype(np.float32)
    targets = rng.choice([0.0, 1.0, NAN], size=(30, 3), p=[0.5, 0.3, 0.2]).astype(np.float32)
    queries = rng.normal(size=(4, 5)).astype(np.float32)
    shares, counts = [], (7, 12, 7)
    for query in queries:
        similarity = [f @ query / np.linalg.norm(f) / np.linalg.norm(query) for f in features]
        nearest = sorted(range(30), key=lambda i: -similarity[i])
        row = []
        for k, count in enumerate(counts):
            votes = [(np.exp(similarity[i] / 0.07), targets[i, k]) for i in nearest[:count]]
            known = [(weight, target) for weight, target in votes if not np.isnan(target)]
            row.append(sum(w * t for w, t in known) / sum(w for w, _ in known))
        shares.append(row)
    encoder = nn.Identity()
    encoder.forward_features = encoder.forward
    probe = KnnClassifier(encoder, features, targets, counts)
    found = probe(torch.from_numpy(queries)).sigmoid().numpy()
    np.testing.assert_allclose(found, shares, rtol=1e-5, atol=1e-9)


def test_a_linear_head_is_at_scikit_learns_minima() -> None:
    """The variances of the features span four orders of magnitude."""
    rng = np.random.default_rng(4)
    mixing = np.linalg.qr(rng.normal(size=(20, 20)))[0]
    features = rng.normal(size=(300, 20)) * np.arange(1, 21) ** -1.5 @ mixing + 0.5
    features = features.astype(np.float32)
    before = features.copy()
    z = features @ rng.normal(size=(20, 3))
    targets = ((z - z.mean(axis=0)) / z.std(axis=0) + rng.normal(size=z.shape) > [0, 1, 2]) * 1.0
    targets[rng.random(targets.shape) < 0.1] = NAN
    all_targets = np.hstack([targets, np.zeros((300, 1))]).astype(np.float32)
    weight, bias, choices = fit_linear_head(features, all_targets, patients(300))
    np.testing.assert_array_equal(features, before)
    assert not weight[3].any() and bias[3] == 0, 'a label with one class is not fitted'
    standard = StandardScaler().fit_transform(features.astype(np.float64))
    for k, target in enumerate(targets.T):
        known = ~np.isnan(target)
        want = LogisticRegression(C=choices[k].value, tol=1e-10, max_iter=10_000)
        want.fit(standard[known], target[known])
        got = features @ weight[k] + bias[k]
        np.testing.assert_allclose(got, want.decision_function(standard), rtol=0, atol=1e-3)


def test_a_soft_target_counts_as_both_classes() -> None:
    rng = np.random.default_rng(2)
    features = rng.normal(size=(60, 3)).astype(np.float32)
    soft = np.where(features[:, 0] > 0, 0.75, 0.0).astype(np.float32)
    weight, bias, (choice,) = fit_linear_head(features, soft[:, None], patients(60))
    standard = StandardScaler().fit_transform(features)
    rows = np.repeat(np.arange(60), 4)  # three in four positive
    classes = np.array([1, 1, 1, 0] * 60) * (soft[rows] > 0)
    want = LogisticRegression(C=choice.value, tol=1e-8)
    want.fit(standard[rows], classes, sample_weight=np.full(240, 0.25))
    np.testing.assert_allclose(
        features @ weight[0] + bias[0], want.decision_function(standard), atol=2e-3
    )


def test_images_of_one_patient_do_not_choose_the_number_of_neighbours() -> None:
    """Copies of an image would predict random labels with few neighbours."""
    rng = np.random.default_rng(5)
    features = np.repeat(rng.normal(size=(40, 6)), 6, axis=0).astype(np.float32)
    targets = np.repeat(rng.permutation(np.arange(40) % 2), 6)[:, None].astype(np.float32)
    device, copies = torch.device('cpu'), np.repeat(patients(40), 6)
    [grouped] = choose_neighbours(features, targets, copies, device)
    [mixed] = choose_neighbours(features, targets, patients(240), device)
    assert mixed.value == 5 and mixed.loss < 0.1
    assert grouped.value == probes.PLAIN_NUM_NEIGHBOURS and np.isnan(grouped.loss)


def hidden_findings(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw 16 tokens per image, one of which has a marked direction and the sign of the label."""
    rng = np.random.default_rng(seed)
    tokens = rng.normal(scale=0.5, size=(count, 16, 16)).astype(np.float32)
    target = np.arange(count) % 2
    place = rng.integers(16, size=count)
    tokens[np.arange(count), place, 0] += 6  # here the second direction has a meaning
    tokens[:, :, 1] = rng.normal(scale=3, size=(count, 16))
    tokens[np.arange(count), place, 1] = 3 * (2 * target - 1)
    return tokens, target[:, None].astype(np.float32)


def test_an_attention_head_finds_what_the_mean_of_the_tokens_hides(monkeypatch) -> None:
    train, targets = hidden_findings(0, 300)
    test, truth = hidden_findings(1, 300)
    monkeypatch.setattr('evaluation.probes.attentive.RATES', (1e-6, 3e-2))
    monkeypatch.setattr('evaluation.probes.attentive.EPOCHS', 12)
    monkeypatch.setattr('evaluation.tuning.FOLDS', 2)
    monkeypatch.setattr('evaluation.probes.attentive.BATCH_SIZE', 32)
    given = partial(AttentionHead, 16, 1), train, targets, patients(300)
    options = {'loss_fn': masked_bce, 'device': torch.device('cpu')}
    head, choice = fit_attention_head(*given, **options)
    assert choice.value == 3e-2
    scores = head(torch.from_numpy(test))[:, 0].detach()
    weight, bias, _ = fit_linear_head(train.mean(axis=1), targets, patients(300))
    mean = test.mean(axis=1) @ weight[0] + bias[0]
    assert roc_auc_score(truth[:, 0], scores) > 0.95
    assert roc_auc_score(truth[:, 0], mean) < 0.8
    torch.manual_seed(5)  # the result depends only on the seed of the arguments
    again, _ = fit_attention_head(*given, **options)
    assert all(map(torch.equal, head.parameters(), again.parameters()))


def test_tokens_that_would_fill_the_memory_are_refused(phantom, tmp_path, monkeypatch, refused):
    monkeypatch.setattr(probes, 'MIB', 1000)
    monkeypatch.setenv('SLURM_MEM_PER_NODE', '10')
    section = {'MODE': 'attentive_probe'}
    model = SWIN | {'HEAD': 'attention'}
    cfg = tiny_config(tmp_path / 'c.yaml', 'finetune', model, FINETUNE=section)
    refused('finetune', arguments(cfg, phantom, tmp_path / 'o'), 'attentive_probe', 'TRAIN_IMAGES')


def shaded_images(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw images [N, 1024] with noise that are brighter on the left if the label is 1."""
    rng = np.random.default_rng(seed)
    target = np.arange(count) % 2
    x, y = np.meshgrid(*[np.linspace(-1, 1, 32)] * 2)
    shades = np.stack([np.cos(i * x + j * y) for i in range(4) for j in range(4)]).reshape(16, -1)
    images = 0.5 + rng.normal(scale=0.05, size=(count, 16)) @ shades
    images += 0.2 * target[:, None] * (x.ravel() < 0) + rng.normal(scale=0.05, size=images.shape)
    return images.astype(np.float32), target.astype(np.float32)[:, None]


def patients(count: int) -> np.ndarray:
    return np.arange(count).astype(str)


@pytest.mark.parametrize('num_images, components', [(20, 10), (39, 19), (240, 100)])
def test_the_baseline_on_pixels_is_a_pipeline_of_scikit_learn(num_images, components) -> None:
    train, targets = shaded_images(1, num_images)
    test, truth = shaded_images(2, 200)
    weight, bias, (choice,) = fit_pixels(train, targets, patients(num_images))
    logistic = LogisticRegression(C=choice.value, tol=1e-8, max_iter=10_000)
    reduce = PCA(components, svd_solver='full')
    want = make_pipeline(reduce, logistic).fit(train, targets[:, 0]).predict_proba(test)[:, 1]
    found = test @ weight[0] + bias[0]
    np.testing.assert_allclose(expit(found), want, atol=1e-3)
    assert roc_auc_score(truth[:, 0], found) > 0.9


def test_a_run_on_pixels_predicts_from_components_of_small_images(phantom, tmp_path) -> None:
    words = ['--opts', 'FINETUNE.MODE', 'pixels', 'EVAL.PREDICT_TRAIN', 'True']
    data = {'TRAIN_IMAGES': 0, 'VIEWS': 'all'}
    folder = finished_run('finetune', phantom, tmp_path, *words, DATA=data)
    scores = json.loads((folder / 'scores.json').read_text())['test']['selected']
    pixels, logits = {}, {}
    for split in ('train', 'test'):
        table = pd.read_csv(folder / f'predictions_{split}.csv', index_col='Path')
        images = [Image.open(phantom.parent / path).convert('L') for path in table.index]
        small = [np.array(image.resize((64, 64))).ravel() / 255 for image in images]
        pixels[split], logits[split] = np.stack(small), logit(table.to_numpy())
        assert table.columns.tolist() == [*scores['chosen']]
    reduce = PCA(len(pixels['train']) // 2).fit(pixels['train'])
    ones = {split: np.ones((len(values), 1)) for split, values in pixels.items()}
    parts = {split: np.hstack([reduce.transform(pixels[split]), ones[split]]) for split in pixels}
    line = np.linalg.lstsq(parts['train'], logits['train'], rcond=None)[0]
    assert logits['test'].std(axis=0).max() > 0.5
    np.testing.assert_allclose(parts['test'] @ line, logits['test'], atol=0.03)


def test_a_run_on_metadata_is_scikit_learns_regression_on_the_columns(phantom, tmp_path) -> None:
    data = tmp_path / phantom.name
    shutil.copytree(phantom, data)
    tables = {}
    for split in ('train', 'test'):
        table = pd.read_csv(data / f'{split}.csv', dtype=str, keep_default_na=False)
        table.loc[::7, 'Age'], table.loc[::5, 'Sex'] = '0', ''
        table.to_csv(data / f'{split}.csv', index=False)
        tables[split] = table.set_index('Path')
    options = {'TRAIN_IMAGES': 0, 'VIEWS': 'all', 'UNCERTAIN': 'ones'}
    words = ['--opts', 'EVAL.PREDICT_TRAIN', 'True', 'REPORT.WRITE', 'True', 'EVAL.RESAMPLES', '0']
    folder = probe_run(data, tmp_path, 'metadata', *words, DATA=options)
    assert 'metadata: the' not in log_of(folder)
    columns, predicted = {}, {}
    for split, table in tables.items():
        predicted[split] = pd.read_csv(folder / f'predictions_{split}.csv', index_col='Path')
        own = table.loc[predicted[split].index]
        age, number = own['Age'].astype(float), own.index.str.extract(r'study(\d+)/')[0]
        marks = [own[column] == name for column, name in (
            ('Frontal/Lateral', 'Frontal'), ('Frontal/Lateral', 'Lateral'), ('AP/PA', 'AP'),
            ('AP/PA', 'PA'), ('Sex', 'Male'), ('Sex', 'Female'))]  # fmt: skip
        columns[split] = np.stack([*marks, age, age == 0, number.astype(float)], axis=1)
    target = tables['train'].loc[predicted['train'].index, 'Edema'].isin(['1.0', '-1.0'])
    chosen = json.loads((folder / 'scores.json').read_text())['test']['selected']['chosen']
    model = make_pipeline(StandardScaler(), LogisticRegression(C=chosen['Edema'], tol=1e-8))
    want = model.fit(columns['train'], target).predict_proba(columns['test'])[:, 1]
    assert want.std() > 0.003
    np.testing.assert_allclose(predicted['test']['Edema'], want, atol=1e-4)
    page = (folder / 'report.html').read_text()
    assert 'the metadata baseline' in page and 'class="thumbnail"' not in page


def test_unknown_metadata_have_features_of_their_own_and_are_named(log) -> None:
    texts = {'view': ['frontal', 'lateral', ''], 'ap_pa': ['PA', 'LL', ''],
             'sex': ['Male', 'Unknown', 'Female'], 'patient': ['a', 'b', 'c'],
             'study': ['patient1/study12', 'p10000032/s50414267', '3']}  # fmt: skip
    rows = dict.fromkeys(('row', 'sample', 'path', 'file'), np.arange(3))
    rows |= {name: np.array(values, object) for name, values in texts.items()}
    rows |= {'age': np.array([61.0, 0, NAN]), 'labels': None, 'root': Path(), 'csv': ''}
    wanted = pd.DataFrame(0.0, range(3), NAMES)
    wanted.loc[0, ['frontal', 'PA', 'Male', 'age', 'number']] = 1, 1, 1, 61, 12
    wanted.loc[1, ['lateral', 'age unknown', 'number unknown']] = 1
    wanted.loc[2, ['Female', 'age unknown', 'number']] = 1, 1, 3
    records = Records(**rows)
    np.testing.assert_array_equal(metadata_features(records), wanted)
    records = replace(records, sex=np.full(3, 'Unknown', object), age=np.zeros(3))
    loader = SimpleNamespace(dataset=SimpleNamespace(records=records))
    read_metadata(SimpleNamespace(config=default_config(), logger=logging.getLogger()), [loader])
    assert re.findall('metadata: the (.*) of no image is known', log.text) == ['sex', 'age']


def test_a_linear_probe_writes_scores_and_leaves_the_encoder_alone(phantom, tmp_path, monkeypatch):
    kept, build_probe = {}, probes.build_probe

    def keep(run, model, loaders):
        kept['before'] = {k: v.clone() for k, v in model.state_dict().items()}
        without = loaders._replace(holdout=None, internal=None)  # the head must not see these
        kept['probe'], kept['chosen'] = build_probe(run, model, without)
        return kept['probe'], kept['chosen']

    monkeypatch.setattr(probes, 'build_probe', keep)
    folder = probe_run(phantom, tmp_path, 'linear_probe')
    scores = json.loads((folder / 'scores.json').read_text())
    assert set(scores) == {'valid', 'test'}
    assert scores['test']['selected']['chosen'] == kept['chosen']
    assert set(kept['chosen']) == set(LABELS)
    assert all(f'linear_probe, {label}: selected' in log_of(folder) for label in LABELS)
    assert pd.read_csv(folder / 'predictions_valid.csv')[list(LABELS)].to_numpy().std() > 0
    after = kept['probe'].state_dict()
    changed = {k for k, v in kept['before'].items() if not torch.equal(v, after[k])}
    assert changed == {'head.weight', 'head.bias'}


def probe_run(phantom: Path, folder: Path, mode: str, *more: str, **sections: dict) -> Path:
    return finished_run('finetune', phantom, folder, *more, FINETUNE={'MODE': mode}, **sections)


@pytest.mark.parametrize('mode', ['linear_probe', 'attentive_probe'])
def test_a_fitted_head_predicts_other_images_from_its_checkpoint(mode, phantom, tmp_path) -> None:
    head = {'HEAD': 'attention' if mode == 'attentive_probe' else 'linear'}
    folder = probe_run(phantom, tmp_path, mode, model=SWIN | head)
    wanted = pd.read_csv(folder / 'predictions_valid.csv')
    assert wanted[list(LABELS)].to_numpy().std() > 1e-4
    output, checkpoint = tmp_path / 'p.csv', folder / 'ckpt_best.pth'
    images = [phantom.parent / path for path in wanted['Path']]
    words = ['--checkpoint', checkpoint, '--output', output, '--num-workers', 0]
    assert run_script('predict', *images, *words) == 0
    found = pd.read_csv(output)[list(LABELS)]
    np.testing.assert_allclose(found, wanted[list(LABELS)], rtol=0, atol=1e-6)
    told = [json.loads(file.with_suffix('.json').read_text())['known'] for file in (
        output, folder / 'predictions_valid.csv')]  # fmt: skip
    assert told[0] == told[1] and told[0]['facts']['epoch chosen on'] == ''
    eval_words = ['--eval', *arguments(tmp_path / 'finetune.yaml', phantom, tmp_path)]
    assert run_main('finetune', eval_words) == 0
    scored = pd.read_csv(folder / 'predictions_valid_eval.csv')[list(LABELS)]
    np.testing.assert_allclose(scored, wanted[list(LABELS)], rtol=0, atol=1e-6)


def log_of(folder: Path) -> str:
    return (folder / 'log_rank0.txt').read_text()


@pytest.mark.slow
@pytest.mark.parametrize('mode', ['knn', 'attentive_probe'])
def test_two_processes_probe_the_same_random_weights_as_one(mode, phantom, tmp_path) -> None:
    head = {'HEAD': 'attention' if mode == 'attentive_probe' else 'linear'}
    one = probe_run(phantom, tmp_path, mode, model=SWIN | head)
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
    lines = [re.findall(rf'{mode}, .*: selected .*\n', log_of(run)) for run in (one, two)]
    assert len(lines[0]) == len(LABELS)
    assert lines[1] == lines[0]


def test_an_online_probe_of_every_second_epoch_changes_no_weight(phantom, tmp_path) -> None:
    plain = finished_run('simmim', phantom, tmp_path / 'plain')
    probed = finished_run('simmim', phantom, tmp_path, EVAL={'PROBE_EVERY': 2})
    assert_same_weights(final_state(probed), final_state(plain))
    rows = read_metrics(probed / 'metrics.jsonl')
    assert [row['epoch'] for row in rows if 'probe_rank' in row] == [-1, 1]
    assert all(row['holdout_l1'] > 0 for row in rows)
    assert 'probe of' in log_of(probed)


@pytest.mark.parametrize('is_known', [True, False])
def test_an_online_probe_finds_labels_in_the_features(is_known, phantom, tmp_path, monkeypatch):
    def features(run, encoder, loader) -> np.ndarray:
        targets = loader.dataset.targets
        noise = np.random.default_rng(0).normal(size=targets.shape)
        return (is_known * 9 * np.nan_to_num(targets) + noise).astype(np.float32)

    monkeypatch.setattr('evaluation.probes.online_probe.extract_features', features)
    sections = {'CONTRASTIVE': {'METHOD': 'simclr'}, 'TRAIN': {'EPOCHS': 1, 'WARMUP_EPOCHS': 0}}
    sections |= {'EVAL': {'PROBE_EVERY': 1}, 'DATA': {'HOLDOUT_FRACTION': 0.5}}
    folder = finished_run('contrastive', phantom, tmp_path, model=VIT, **sections)
    last = read_metrics(folder / 'metrics.jsonl')[-1]
    assert (last['probe_mean_of_defined'] > 0.85) == is_known, last
    assert np.isfinite(last['probe_rank'])
