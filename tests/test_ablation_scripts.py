"""Every script of scripts/ablations runs to its end at its smallest setting, on phantom X-rays."""

import os
import subprocess
from collections.abc import Iterator
from functools import reduce
from pathlib import Path

import pytest
import torch
import yaml
from warm_python import warm_python

from engine.run_record import is_finished
from sweeps.files import MODEL_NAMES, load_sweep, run_folder, script_path, sweep_files

# Over the YAML files: one step or two of a model of the same form.
SWIN = (
    'MODEL.SWIN.EMBED_DIM 8 MODEL.SWIN.DEPTHS [1,1,1,1] MODEL.SWIN.NUM_HEADS [1,1,2,2] '
    'DATA.NUM_WORKERS 0'
)
VIT = 'MODEL.VIT.EMBED_DIM 16 MODEL.VIT.DEPTH 1 MODEL.VIT.NUM_HEADS 2 DATA.NUM_WORKERS 0'
SHORT = (
    'DATA.BATCH_SIZE 4 DATA.HOLDOUT_FRACTION 0.2 EVAL.HOLDOUT_IMAGES 2 TRAIN.EPOCHS 1 '
    'TRAIN.WARMUP_EPOCHS 0 REPORT.WRITE False'
)
# Keys that are put over those of the YAML files, because so few pictures do not allow them.
SHORTENED = ('BATCH_SIZE', 'EPOCHS', 'WARMUP_EPOCHS', 'TRAIN_IMAGES', 'TRAIN_FRACTION')
FEW = 'DATA.TRAIN_IMAGES 12'
# Rows whose number of pictures or share of patients so few pictures do not have.
SHARE = 'DATA.TRAIN_FRACTION 0.5'
CASES = [
    pytest.param(sweep, row, id=f'{sweep.path.parent.name}-{row.run}')
    for sweep in map(load_sweep, sweep_files())
    for row in sweep.rows
    if row is not sweep.reference or sweep.name in ('mask_ratio', 'mae_study')
]


@pytest.fixture(scope='module')
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with warm_python(tmp_path_factory.mktemp('warm')) as path:
        yield path


@pytest.fixture(scope='module')
def output(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One folder for the scripts of each size: what they share runs once."""
    return {name: tmp_path_factory.mktemp(name) for name in ('ablations', 'nano')}


@pytest.fixture(scope='module')
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 3-channel SimMIM checkpoint of the small form, with official keys."""
    from models.simmim import SimMIM, SwinTransformerForSimMIM

    torch.manual_seed(0)
    encoder = SwinTransformerForSimMIM(
        img_size=192, patch_size=4, in_chans=3, embed_dim=8, depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2], window_size=6,
    )  # fmt: skip
    path = tmp_path_factory.mktemp('weights') / 'imagenet.pth'
    torch.save({'model': SimMIM(encoder).state_dict()}, path)
    return path


def smallest(sweep: object, row: object) -> dict[str, str]:
    form = VIT if sweep.name == 'mae_study' else SWIN
    nano = 'MODEL.SWIN.WINDOW_SIZE 4' if sweep.path.parent.name == 'nano' else ''
    share = 'DATA.TRAIN_FRACTION' in row.finetune
    return {
        'PRETRAIN_OPTS': f'{form} {nano} {SHORT} {FEW}',
        'FINETUNE_OPTS': f'{form} {nano} {SHORT} {SHARE if share else FEW}',
    }


@pytest.mark.slow
@pytest.mark.parametrize(('sweep', 'row'), CASES)
def test_a_script_runs_to_its_end(sweep, row, python, output, imagenet, phantom) -> None:
    runs = output[sweep.path.parent.name]
    env = os.environ | smallest(sweep, row)
    env |= {'PYTHON': str(python), 'SEED': '1', 'IMAGENET_WEIGHTS': str(imagenet)}
    done = subprocess.run(
        ['bash', str(script_path(sweep, row)), str(phantom), str(runs)],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    for stage in row.stages:
        folder = run_folder(runs, stage, row, 1)
        assert is_finished(folder)
        assert (folder / 'ckpt_epoch_0.pth').is_file()
        changes = row.finetune if stage == 'finetune' else row.pretrain
        text = yaml.safe_load((folder / 'config.yaml').read_text())
        for key, value in changes.items():
            if key.rpartition('.')[2] not in SHORTENED:
                assert reduce(dict.__getitem__, key.split('.'), text) == value
    scored = runs / MODEL_NAMES['finetune'] / f'{row.run}_seed1'
    assert (scored / 'predictions_test.csv').is_file()
