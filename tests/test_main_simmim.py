"""main_simmim.py: runs of MAE, held-out reconstruction, and evaluation."""

from pathlib import Path

import pytest
import torch
from curves import curves, image_steps
from PIL import Image
from tiny import MAE, arguments, finished_run, run_folder, run_main

from evaluation import held_out
from evaluation.reconstruction import plot_reconstructions
from logger import read_metrics
from utils import read_checkpoint

TRAIN = {'WARMUP_EPOCHS': 0, 'ACCUMULATION_STEPS': 1, 'BASE_LR': 0.5, 'EPOCHS': 3}
FEW = {'HOLDOUT_IMAGES': 2}


@pytest.fixture(scope='module')
def pretrained(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('mae')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(held_out, 'IN_TENSORBOARD', 2)
        patch.setattr(held_out, 'plot_reconstructions', plot_reconstructions)
        return finished_run('simmim', phantom, folder, model=MAE, TRAIN=TRAIN, EVAL=FEW)


def test_mae_learns_and_draws_reconstructions(pretrained) -> None:
    before, *epochs = read_metrics(pretrained / 'metrics.jsonl')
    assert epochs[-1]['holdout_l1'] < 0.9 * before['holdout_l1']
    assert epochs[-1]['loss'] < 0.9 * epochs[0]['loss']
    figures = sorted((pretrained / 'reconstructions').iterdir())
    assert [file.name for file in figures] == [f'epoch_{n}.png' for n in range(3)]
    with Image.open(figures[-1]) as image:
        assert min(image.size) > 100
    log = ' '.join((pretrained / 'log_rank0.txt').read_text().split())
    words = '--cfg CONFIG --data-path DIR --pretrained'
    assert f'main_finetune.py {words} {pretrained / "ckpt_epoch_2.pth"}' in log
    assert image_steps(pretrained) == {'reconstructions': [1, 2]}
    batches = [step for step, _ in curves(pretrained)['step/lr']]  # 0, 3 and 6 of 7, in each epoch
    assert batches == [0, 3, 6, 7, 10, 13, 14, 17, 20]


def test_evaluation_repeats_the_held_out_metrics(pretrained, phantom, tmp_path, refused) -> None:
    cfg = pretrained / 'config.yaml'
    argv = ['--eval', '--pretrained', str(pretrained / 'ckpt_epoch_2.pth')]
    assert run_main('simmim', arguments(cfg, phantom, tmp_path, *argv)) == 0
    log = (run_folder(tmp_path, 'simmim') / 'log_rank0.txt').read_text()
    assert f'{read_metrics(pretrained / "metrics.jsonl")[-1]["holdout_l1"]:.4f}' in log
    assert not (run_folder(tmp_path, 'simmim') / 'metrics.jsonl').exists()
    shown = run_folder(tmp_path, 'simmim') / 'reconstructions'
    assert [file.name for file in shown.iterdir()] == ['eval.png']
    argv += ['--opts', 'DATA.HOLDOUT_FRACTION', '0.0']
    refused('simmim', arguments(cfg, phantom, tmp_path / 'none', *argv), 'DATA.HOLDOUT_FRACTION')


def test_fine_tuning_starts_from_the_encoder(pretrained, phantom, tmp_path) -> None:
    """At a rate of almost 0 its weights, fixed positions included, do not change."""
    train = {'EPOCHS': 1, 'BASE_LR': 1e-9, 'WARMUP_LR': 1e-9, 'MIN_LR': 1e-9}
    model = MAE | {'VIT': MAE['VIT'] | {'USE_MEAN_POOLING': True}}
    sections = {'TRAIN': train, 'EVAL': {'RESAMPLES': 0}}
    words = ['--pretrained', str(pretrained / 'ckpt_epoch_2.pth')]
    folder = finished_run('finetune', phantom, tmp_path, *words, model=model, **sections)
    learned = read_checkpoint(pretrained / 'ckpt_epoch_2.pth')['model']
    tuned = read_checkpoint(folder / 'ckpt_epoch_0.pth')['model']
    new = {key for key in tuned if f'encoder.{key}' not in learned}
    assert new == {'head.weight', 'head.bias', 'fc_norm.weight', 'fc_norm.bias'}
    for key in tuned.keys() - new:
        torch.testing.assert_close(tuned[key], learned[f'encoder.{key}'], rtol=0, atol=1e-6)


@pytest.mark.slow
def test_equal_masks_are_evaluated_once_and_in_validated_epochs(phantom, tmp_path, monkeypatch):
    evaluated, reconstruct = [], held_out.reconstruct

    def counted(*args: object):
        evaluated.append(0)
        return reconstruct(*args)

    monkeypatch.setattr(held_out, 'reconstruct', counted)
    data = {'MASK_PATCH_SIZE': 4, 'TRAIN_IMAGES': 8}  # the reference's unit at 32 px
    sections = {'DATA': data, 'TRAIN': {'EPOCHS': 4}, 'EVAL': FEW | {'EVERY': 3}}
    folder = finished_run('simmim', phantom, tmp_path, **sections)
    records = read_metrics(folder / 'metrics.jsonl')
    assert [r['epoch'] for r in records if 'holdout_l1' in r] == [-1, 2, 3]  # the last one, too
    assert ['loss' in r for r in records] == [False] + [True] * 4
    assert len(evaluated) == 3
    assert (folder / 'log_rank0.txt').read_text().count('masked L1') == 3, 'a line for both'
    assert records[-1]['reference_l1_grey'] == records[-1]['holdout_l1_grey']
