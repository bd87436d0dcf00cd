"""main_simmim.py: runs of MAE, held-out reconstruction, and evaluation."""

import argparse
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_mae import mae_config
from tiny import MAE, ROOT, arguments, finished_run, run_folder, run_main
from torch import nn

from config import check_config, default_config, get_config
from evaluation import held_out
from logger import read_metrics
from lr_scheduler import scaled_lr
from models import build_model
from utils import read_checkpoint

TRAIN = {'WARMUP_EPOCHS': 0, 'ACCUMULATION_STEPS': 1, 'BASE_LR': 0.5, 'EPOCHS': 3}
FEW = {'HOLDOUT_IMAGES': 6}
REFUSED = [
    ({'MODEL__TYPE': 'swin'}, 'MODEL.TYPE'),
    ({'MODEL__VIT__USE_SINCOS': False}, 'MODEL.VIT.USE_SINCOS'),
    ({'DATA__MASK_PATCH_SIZE': 4}, 'DATA.MASK_PATCH_SIZE'),
    ({'MODEL__MAE__DECODER_NUM_HEADS': 3}, 'MODEL.MAE.DECODER_NUM_HEADS'),
]


@pytest.mark.parametrize(('options', 'key'), REFUSED)
def test_options_that_mae_cannot_use_are_refused_by_name(options: dict, key: str) -> None:
    with pytest.raises(ValueError, match=key):
        check_config(mae_config(**options), 'simmim')


def load(pair: str, stage: str):
    recipe = pair.partition('__')[2]
    (path,) = (ROOT / 'configs' / pair).glob(f'simmim_{stage}__*__{recipe}.yaml')
    name = {'pretrain': 'simmim'}.get(stage, stage)
    return get_config(argparse.Namespace(cfg=str(path), stage=name, opts=[]))


PAIRS = {'vit_small__mae_100ep': (384, 1), 'vit_base__mae_800ep': (768, 8)}


@pytest.mark.parametrize('pair', PAIRS)
def test_configs_have_the_sizes_and_rates_of_mae_and_their_stages_fit(pair: str) -> None:
    (width, gpus), configs = PAIRS[pair], [load(pair, stage) for stage in ('pretrain', 'finetune')]
    with torch.device('meta'):
        mae, classifier = (build_model(c, p) for c, p in zip(configs, (True, False), strict=True))
    # A block of width D: 12 D^2 weights, biases of query, value and the others, two norms.
    encoder = 12 * (12 * width**2 + 12 * width) + (256 + 1 + 1 + 2) * width
    decoder = 8 * (12 * 512**2 + 12 * 512) + (width + 1 + 1 + 2) * 512 + 512 * 256 + 256
    assert sum(p.numel() for p in mae.parameters()) == encoder + decoder
    given, taken = mae.encoder.state_dict(), classifier.state_dict()
    new = {'head.weight', 'head.bias', 'fc_norm.weight', 'fc_norm.bias'}
    assert taken.keys() == given.keys() - {'norm.weight', 'norm.bias'} | new
    assert all(taken[key].shape == given[key].shape for key in taken.keys() - new)
    train, data = configs[0].TRAIN, configs[0].DATA
    images = data.BATCH_SIZE * train.ACCUMULATION_STEPS * gpus
    assert scaled_lr(configs[0], gpus).base == pytest.approx(1.5e-4 * images / 256)
    assert (tuple(train.OPTIMIZER.BETAS), train.WEIGHT_DECAY) == ((0.9, 0.95), 0.05)
    assert (data.MASK_PATCH_SIZE, data.MASK_RATIO) == (16, 0.75)


@pytest.fixture(scope='module')
def pretrained(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of MAE."""
    folder = tmp_path_factory.mktemp('mae')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(held_out, 'IN_TENSORBOARD', 2)
        return finished_run('simmim', phantom, folder, model=MAE, TRAIN=TRAIN, EVAL=FEW)


def test_mae_learns_and_draws_reconstructions(pretrained) -> None:
    before, *epochs = read_metrics(pretrained / 'metrics.jsonl')
    assert epochs[-1]['holdout_l1'] < 0.9 * before['holdout_l1']
    assert epochs[-1]['loss'] < 0.9 * epochs[0]['loss']
    with Image.open(pretrained / 'reconstructions' / 'epoch_2.png') as image:
        image.verify()
    log = ' '.join((pretrained / 'log_rank0.txt').read_text().split())
    assert f'main_finetune.py --pretrained {pretrained / "ckpt_epoch_2.pth"}' in log
    board = EventAccumulator(str(pretrained / 'tensorboard'))
    board.Reload()
    assert [event.step for event in board.Images('reconstructions')] == [1, 2]


def test_evaluation_repeats_the_held_out_metrics(pretrained, phantom, tmp_path, refused) -> None:
    cfg = pretrained / 'config.yaml'
    argv = ['--eval', '--pretrained', str(pretrained / 'ckpt_epoch_2.pth')]
    assert run_main('simmim', arguments(cfg, phantom, tmp_path, *argv)) == 0
    log = (run_folder(tmp_path, 'simmim') / 'log_rank0.txt').read_text()
    assert f'{read_metrics(pretrained / "metrics.jsonl")[-1]["holdout_l1"]:.4f}' in log
    assert not (run_folder(tmp_path, 'simmim') / 'metrics.jsonl').exists()
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
def test_equal_masks_are_evaluated_once_and_only_in_validated_epochs(
    phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated, reconstruct = [], held_out.reconstruct

    def counted(*args: object):
        evaluated.append(0)
        return reconstruct(*args)

    monkeypatch.setattr(held_out, 'reconstruct', counted)
    data = {'MASK_PATCH_SIZE': 4, 'TRAIN_IMAGES': 8}  # the reference's unit at 32 px
    sections = {'DATA': data, 'TRAIN': {'EPOCHS': 4}, 'EVAL': FEW | {'EVERY': 3}}
    records = read_metrics(finished_run('simmim', phantom, tmp_path, **sections) / 'metrics.jsonl')
    assert [r['epoch'] for r in records if 'holdout_l1' in r] == [-1, 2, 3]  # the last one, too
    assert ['loss' in r for r in records] == [False] + [True] * 4
    assert len(evaluated) == 3
    assert records[-1]['reference_l1_grey'] == records[-1]['holdout_l1_grey']


def test_held_out_images_are_reconstructed_in_evaluation_mode() -> None:
    class Model(nn.Module):
        patch_size, target = 2, None

        def predict(self, x, mask):
            assert not self.training
            return x

    batch = torch.zeros(2, 1, 4, 4), torch.ones(2, 2, 2), torch.ones(2, 1), torch.zeros(2, 1)
    run = SimpleNamespace(config=default_config(), device=torch.device('cpu'))
    assert len([*held_out.reconstruct(run, Model().train(), [batch])]) == 2
