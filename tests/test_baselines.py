"""The networks that docs/howto/baselines.md names: one channel, one step of fine-tuning each."""

import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import ROOT, arguments, run_folder, run_main, tiny_config

from config import default_config
from logger import read_metrics
from models import build_model

ROW = re.compile(r'^\| [^|]+ \| `(\w+)`[^|]* \| \**(\d+) px\** \| ([\d.]+) M \| (any|0) \|$', re.M)
ROWS = ROW.findall((ROOT / 'docs' / 'howto' / 'baselines.md').read_text(encoding='utf-8'))
FEW = {'BATCH_SIZE': 4, 'TRAIN_IMAGES': 4}


def options(name: str, rate: float) -> dict:
    return {'TYPE': 'timm', 'DROP_PATH_RATE': rate, 'IN_CHANS': 1, 'TIMM': {'NAME': name}}


def test_the_page_names_them_all() -> None:
    assert [name for name, *_ in ROWS] == [
        'resnet18', 'resnet50', 'inception_v3', 'densenet121', 'convnext_tiny',
        'vit_small_patch16_224',
    ]  # fmt: skip


@pytest.mark.parametrize('name, size, millions, rate', ROWS)
def test_sizes_and_parameters_are_those_of_the_page(name, size, millions, rate) -> None:
    """Timm's own word for the size its weights were trained at; counted without memory."""
    config = default_config()
    config.MODEL.TYPE, config.MODEL.TIMM.NAME, config.MODEL.IN_CHANS = 'timm', name, 1
    config.MODEL.NUM_CLASSES, config.DATA.IMG_SIZE = 14, int(size)
    config.MODEL.DROP_PATH_RATE = 0.1
    with torch.device('meta'):
        if rate == '0':
            with pytest.raises(ValueError, match=f'MODEL.DROP_PATH_RATE must be 0 for {name}'):
                build_model(config, is_pretrain=False)
            config.MODEL.DROP_PATH_RATE = 0.0
        model = build_model(config, is_pretrain=False)
    assert model.encoder.default_cfg['input_size'][1:] == (int(size), int(size))
    assert f'{sum(p.numel() for p in model.parameters()) / 1e6:.1f}' == millions


@pytest.mark.slow
@pytest.mark.parametrize('name, rate', [(row[0], 0.1 * (row[3] == 'any')) for row in ROWS])
def test_each_takes_a_step_and_timm_warns_of_nothing(
    name: str, rate: float, phantom: Path, tmp_path
) -> None:
    size = 75 if name == 'inception_v3' else 32
    train = {'EPOCHS': 1, 'WARMUP_EPOCHS': 0, 'ACCUMULATION_STEPS': 1, 'BASE_LR': 1e-3}
    cfg = tiny_config(
        tmp_path / 'run.yaml', 'finetune', options(name, rate),
        DATA=FEW | {'IMG_SIZE': size}, TRAIN=train, EVAL={'RESAMPLES': 0},
    )  # fmt: skip
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        assert run_main('finetune', arguments(cfg, phantom, tmp_path)) == 0
    assert [str(w.message) for w in seen if 'timm' in w.filename] == []
    (epoch,) = [r for r in read_metrics(run_folder(tmp_path, 'finetune') / 'metrics.jsonl')
                if r.get('epoch') == 0]  # fmt: skip
    assert np.isfinite(epoch['loss']) and epoch['grad_norm'] > 0
