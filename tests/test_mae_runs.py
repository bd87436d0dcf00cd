"""MAE: options that cannot work, and whole runs of it."""

import argparse
from pathlib import Path

import pytest
import test_two_ranks
import torch
from compilers import record_graphs
from PIL import Image
from test_mae import mae_config
from tiny import MAE, ROOT, arguments, run_folder, run_main, tiny_config

from config import check_config, get_config
from logger import read_metrics
from lr_scheduler import scaled_lr
from models import build_model
from models.vision_transformer import VisionTransformer
from utils import read_checkpoint

# Options


REFUSED = [
    ({'MODEL__TYPE': 'swin'}, r"MODEL.TYPE must be 'vit' with MODEL.PRETRAIN 'mae', got 'swin'"),
    ({'MODEL__VIT__USE_RPB': True}, 'MODEL.VIT.USE_RPB must be False with .*no grid, got True'),
    ({'MODEL__VIT__USE_SHARED_RPB': True}, 'MODEL.VIT.USE_SHARED_RPB must be False with .*True'),
    ({'MODEL__VIT__USE_APE': True}, 'MODEL.VIT.USE_SINCOS must be False with USE_APE.*got True'),
    ({'MODEL__VIT__USE_SINCOS': False}, r'USE_SINCOS must be True \(or USE_APE\) with .*got False'),
    (
        {'MODEL__VIT__EMBED_DIM': 30, 'MODEL__VIT__NUM_HEADS': 3},
        'MODEL.VIT.USE_SINCOS must be False with .* no multiple of 4, got True',
    ),
    ({'DATA__MASK_PATCH_SIZE': 4}, 'DATA.MASK_PATCH_SIZE must be .*MODEL.VIT.PATCH_SIZE, 8, got 4'),
    ({'MODEL__SIMMIM__HEAD': 'mlp'}, "SIMMIM.HEAD must be 'linear', the default, .*got 'mlp'"),
    ({'MODEL__SIMMIM__LOSS': 'l2'}, "SIMMIM.LOSS must be 'l1', .*does not read it, got 'l2'"),
    ({'MODEL__SIMMIM__LOSS_PIXELS': 'all'}, "SIMMIM.LOSS_PIXELS must be 'masked', .*got 'all'"),
    ({'MODEL__SIMMIM__TARGET_SIZE': 8}, 'SIMMIM.TARGET_SIZE must be 0, .*got 8'),
    (
        {'MODEL__SIMMIM__TARGET': 'patch_normalised'},
        "SIMMIM.TARGET must be 'pixels', .*MODEL.MAE.NORM_PIX_LOSS True.*got 'patch_normalised'",
    ),
    ({'MODEL__MAE__DECODER_NUM_HEADS': 3}, 'DECODER_NUM_HEADS must be a divisor .*, 16, got 3'),
    ({'MODEL__MAE__DECODER_NUM_HEADS': 0}, r'DECODER_NUM_HEADS must be .*\[1, inf\), got 0'),
    ({'MODEL__MAE__DECODER_EMBED_DIM': 18}, 'DECODER_EMBED_DIM must be a multiple of 4.*, got 18'),
    ({'MODEL__MAE__DECODER_DEPTH': 0}, r'DECODER_DEPTH must be a number in \[1, inf\), got 0'),
    ({'MODEL__PRETRAIN': 'beit'}, r"PRETRAIN must be one of \['simmim', 'mae'\], got 'beit'"),
]  # fmt: skip


@pytest.mark.parametrize('options, message', REFUSED)
def test_what_cannot_work_is_refused_in_words(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_config(mae_config(**options), 'simmim')


def test_what_mae_asks_is_no_matter_to_fine_tuning() -> None:
    labels = {'DATA__DATASET': 'chexpert', 'MODEL__LABEL_SMOOTHING': 0.0, 'AUG__MIXUP': 0.0,
              'AUG__AUTO_AUGMENT': 'none', 'AUG__CUTMIX': 0.0}  # fmt: skip
    config = mae_config(MODEL__VIT__USE_RPB=True, MODEL__SIMMIM__LOSS='l2', **labels)
    check_config(config, 'finetune')
    assert isinstance(build_model(config, is_pretrain=False), VisionTransformer)


# The configs


def load(pair: str, stage: str):
    (path,) = (ROOT / 'configs' / pair).glob(f'simmim_{stage}__*.yaml')
    name = {'pretrain': 'simmim'}.get(stage, stage)
    return get_config(argparse.Namespace(cfg=str(path), stage=name, opts=[]))


PAIRS = {'vit_small__mae_100ep': (384, 1), 'vit_base__mae_800ep': (768, 8)}


@pytest.mark.parametrize('pair', PAIRS)
def test_configs_have_maes_sizes_and_rates_and_their_stages_fit(pair: str) -> None:
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
    assert [key for key, _ in classifier.named_parameters() if key == 'pos_embed']  # they learn
    train, data = configs[0].TRAIN, configs[0].DATA
    images = data.BATCH_SIZE * train.ACCUMULATION_STEPS * gpus
    assert scaled_lr(configs[0], gpus).base == pytest.approx(1.5e-4 * images / 256)
    assert (tuple(train.OPTIMIZER.BETAS), train.WEIGHT_DECAY) == ((0.9, 0.95), 0.05)
    assert train.WARMUP_EPOCHS == train.EPOCHS // 20
    assert (data.MASK_PATCH_SIZE, data.MASK_RATIO) == (16, 0.75)


# Runs

TRAIN = {'WARMUP_EPOCHS': 0, 'ACCUMULATION_STEPS': 1, 'BASE_LR': 0.5, 'EPOCHS': 3}
FEW = {'HOLDOUT_IMAGES': 6}


@pytest.fixture(scope='module')
def pretrained(phantom, tmp_path_factory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp('mae')
    cfg = tiny_config(folder / 'mae.yaml', 'simmim', MAE, TRAIN=TRAIN, EVAL=FEW)
    assert run_main('simmim', arguments(cfg, phantom, folder)) == 0
    return run_folder(folder, 'simmim')


def test_a_run_learns(pretrained) -> None:
    before, *epochs = read_metrics(pretrained / 'metrics.jsonl')
    assert epochs[-1]['holdout_l1'] < 0.9 * before['holdout_l1']
    assert epochs[-1]['loss'] < 0.9 * epochs[0]['loss']
    with Image.open(pretrained / 'reconstructions' / 'epoch_2.png') as picture:
        picture.verify()


def test_fine_tuning_starts_from_it(pretrained, phantom, tmp_path) -> None:
    """At a rate of almost 0 the encoder's weights, fixed positions too, are what they were."""
    train, few = {'EPOCHS': 1, 'BASE_LR': 1e-9, 'WARMUP_LR': 1e-9, 'MIN_LR': 1e-9}, {'RESAMPLES': 0}
    model = MAE | {'VIT': MAE['VIT'] | {'USE_MEAN_POOLING': True}}
    cfg = tiny_config(tmp_path / 'tune.yaml', 'finetune', model, TRAIN=train, EVAL=few)
    learned = pretrained / 'ckpt_epoch_2.pth'
    argv = arguments(cfg, phantom, tmp_path, '--pretrained', str(learned))
    assert run_main('finetune', argv) == 0
    folder = run_folder(tmp_path, 'finetune')
    assert 'decoder dropped: a classifier has none' in (folder / 'log_rank0.txt').read_text()
    learned = read_checkpoint(learned)['model']
    tuned = read_checkpoint(folder / 'ckpt_epoch_0.pth')['model']
    new = {key for key in tuned if f'encoder.{key}' not in learned}
    assert new == {'head.weight', 'head.bias', 'fc_norm.weight', 'fc_norm.bias'}
    for key in tuned.keys() - new:
        torch.testing.assert_close(tuned[key], learned[f'encoder.{key}'], rtol=0, atol=1e-6)


def test_figures_of_normalised_patches_have_names_of_their_own(phantom, tmp_path) -> None:
    model = MAE | {'MAE': MAE['MAE'] | {'NORM_PIX_LOSS': True}}
    train = TRAIN | {'EPOCHS': 1}
    cfg = tiny_config(tmp_path / 'mae.yaml', 'simmim', model, TRAIN=train, EVAL=FEW)
    assert run_main('simmim', arguments(cfg, phantom, tmp_path)) == 0
    records = read_metrics(run_folder(tmp_path, 'simmim') / 'metrics.jsonl')
    for record in records:
        assert 'holdout_l1_given_patch_statistics' in record and 'holdout_l1' not in record
        # Told each patch's mean, even an untrained model beats the visible mean.
        own, mean = record['holdout_l1_given_patch_statistics'], record['holdout_l1_mean']
        assert own < 0.8 * mean


@pytest.mark.slow
def test_a_compiled_run_is_one_graph_and_the_same_run(phantom, tmp_path, monkeypatch) -> None:
    train = {'EPOCHS': 1, 'BASE_LR': 0.05}
    cfg = tiny_config(tmp_path / 'mae.yaml', 'simmim', MAE, TRAIN=train, EVAL=FEW)
    assert run_main('simmim', arguments(cfg, phantom, tmp_path / 'eager')) == 0
    graphs = record_graphs(monkeypatch)
    options = ['--opts', 'TRAIN.COMPILE', 'max']
    assert run_main('simmim', arguments(cfg, phantom, tmp_path / 'compiled', *options)) == 0
    assert len(graphs) == 1, 'one graph of the whole model, compiled once'
    weights = [
        read_checkpoint(run_folder(tmp_path / name, 'simmim') / 'ckpt_epoch_0.pth')['model']
        for name in ('eager', 'compiled')
    ]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


@pytest.mark.slow
def test_a_run_that_stops_goes_on_to_the_same_weights(phantom, tmp_path) -> None:
    train = {'SAVE_EVERY_STEPS': 2, 'EPOCHS': 2, 'BASE_LR': 0.05}
    cfg = tiny_config(tmp_path / 'mae.yaml', 'simmim', MAE, TRAIN=train, EVAL=FEW)
    assert run_main('simmim', arguments(cfg, phantom, tmp_path / 'whole')) == 0
    whole = run_folder(tmp_path / 'whole', 'simmim')
    want = read_checkpoint(whole / 'ckpt_epoch_1.pth')
    stops = sorted(whole.glob('ckpt_epoch_*_step_*.pth'))
    assert len(stops) > 2
    for number, stop in enumerate([stops[0], stops[-1], whole / 'ckpt_epoch_0.pth']):
        output = tmp_path / f'from_{number}'
        assert run_main('simmim', arguments(cfg, phantom, output, '--resume', str(stop))) == 0
        got = read_checkpoint(run_folder(output, 'simmim') / 'ckpt_epoch_1.pth')
        assert got['model'].keys() == want['model'].keys()
        for key, value in want['model'].items():
            assert torch.equal(got['model'][key], value), key


@pytest.mark.slow
def test_two_processes_learn_as_one(phantom, tmp_path) -> None:
    test_two_ranks.test_two_ranks_equal_one('simmim', MAE, phantom, tmp_path)


@pytest.mark.slow
def test_the_check_before_a_run_goes_through(phantom, tmp_path) -> None:
    cfg = tiny_config(tmp_path / 'mae.yaml', 'simmim', MAE, EVAL=FEW)
    assert run_main('simmim', arguments(cfg, phantom, tmp_path, '--check')) == 0
