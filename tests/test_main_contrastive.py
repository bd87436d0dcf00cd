"""main_contrastive.py: whole runs, held-out metrics, and what comes before and after a run."""

import argparse
import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import SWIN, arguments, run_folder, run_main, tiny_config

from config import get_config
from data.data_contrastive import build_loader_contrastive
from engine import preflight as preflight_bench
from logger import read_metrics
from models import build_model
from models.contrastive import MoCo, build_contrastive
from sweeps.files import load_config
from system.device import to_device
from utils import read_checkpoint

EASY = {'CROP_AREA': [0.6, 1.0], 'HFLIP': 0.0, 'COLOR_JITTER': 0.1}
SMALL = {'QUEUE_SIZE': 32, 'NUM_PROTOTYPES': 8, 'LOCAL_CROPS': 2}
DATA = {'BATCH_SIZE': 16, 'TRAIN_IMAGES': 96}
TRAIN = {'EPOCHS': 2, 'ACCUMULATION_STEPS': 1, 'BASE_LR': 0.3}
FEW = {'HOLDOUT_IMAGES': 16}


def write(path: Path, method: str, model: dict = SWIN, **sections: dict) -> Path:
    sections = {
        'DATA': DATA | sections.pop('DATA', {}),
        'TRAIN': TRAIN | sections.pop('TRAIN', {}),
        'CONTRASTIVE': SMALL | {'METHOD': method} | sections.pop('CONTRASTIVE', {}),
    } | sections
    return tiny_config(path, 'contrastive', model, AUG=EASY, EVAL=FEW, **sections)


@pytest.fixture(scope='module')
def simclr(phantom, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('simclr')
    cfg = write(folder / 'run.yaml', 'simclr', TRAIN={'EPOCHS': 4})
    assert run_main('contrastive', arguments(cfg, phantom, folder)) == 0
    return run_folder(folder, 'contrastive')


def test_simclr_learns(simclr) -> None:
    before, *epochs = read_metrics(simclr / 'metrics.jsonl')
    assert epochs[-1]['loss'] < 0.8 * epochs[0]['loss']
    assert before['epoch'] == -1 and 'loss' not in before


def test_held_out_figures_are_those_of_the_saved_weights(simclr) -> None:
    """By NumPy, from the features and embeddings of the last checkpoint."""
    config = load_config(simclr)
    loaders = build_loader_contrastive(config, logging.getLogger('test'), (2, 0))
    model = build_contrastive(config, total_steps=1).eval()
    model.load_state_dict(read_checkpoint(simclr / 'ckpt_epoch_3.pth')['model'])
    batch = to_device(*loaders.holdout, torch.device('cpu'))
    with torch.no_grad():
        rows = model.encoder.forward_features(batch[0]).double().numpy()
        pairs = [model.project(view).double().numpy() for view in batch[1:]]
    figures = read_metrics(simclr / 'metrics.jsonl')[-1]

    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    spread = units.std(axis=0).mean() * math.sqrt(rows.shape[1])
    assert figures['holdout_feature_spread'] == pytest.approx(spread, rel=1e-4)
    singular = np.linalg.svd(rows - rows.mean(axis=0), compute_uv=False)
    shares = singular / singular.sum()
    rank = math.exp(-(shares * np.log(shares)).sum())
    assert figures['holdout_effective_rank'] == pytest.approx(rank, rel=1e-4)

    z = np.concatenate([pair / np.linalg.norm(pair, axis=1, keepdims=True) for pair in pairs])
    likeness = np.exp(z @ z.T / 0.1)
    np.fill_diagonal(likeness, 0)
    other = np.roll(np.arange(32), 16)
    loss = -np.log(likeness[np.arange(32), other] / likeness.sum(axis=1)).mean()
    assert figures['holdout_loss'] == pytest.approx(loss, rel=1e-4)


def test_a_run_starts_from_weights_of_another(phantom, tmp_path, monkeypatch) -> None:
    """The encoder's, before the first step; its slow copy is the same then."""
    cfg = write(tmp_path / 'run.yaml', 'moco', TRAIN={'EPOCHS': 1})
    config = get_config(argparse.Namespace(cfg=str(cfg), stage='contrastive', opts=[]))
    torch.manual_seed(1)
    before = build_model(config, is_pretrain=False).state_dict()
    torch.save({'model': before}, tmp_path / 'weights.pth')
    seen = []
    begin_step = MoCo.begin_step

    def spy(self: MoCo) -> None:
        begin_step(self)
        seen.append({key: value.clone() for key, value in self.state_dict().items()})

    monkeypatch.setattr(MoCo, 'begin_step', spy)
    argv = arguments(cfg, phantom, tmp_path, '--pretrained', str(tmp_path / 'weights.pth'))
    assert run_main('contrastive', argv) == 0
    for key, value in before.items():
        if not key.startswith('head.'):
            assert torch.equal(seen[0][f'encoder.{key}'], value), key
            assert torch.equal(seen[0][f'momentum_encoder.{key}'], value), key


def test_the_check_finds_no_problem(phantom, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(preflight_bench, 'LOADER_SECONDS', 0.05)
    cfg = write(tmp_path / 'run.yaml', 'moco')
    assert run_main('contrastive', arguments(cfg, phantom, tmp_path, '--check')) == 0
    log = (run_folder(tmp_path, 'contrastive') / 'log_rank0.txt').read_text()
    assert 'verdict: ready' in log and '5 steps on 16 images' in log
