"""Weights that come with the project: found by name, complete, and as good as their page says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score
from tiny import ROOT, run_main
from transfers import LOGGER, load_run

from evaluation.probes.features import encoder_config, load_encoder
from models.weights.export import export, load_trained_model
from scripts import api
from system.downloads import check_exists, local_path, shipped_weights
from utils import read_checkpoint, trained_config

FOLDER = ROOT / 'examples' / 'weights'
NAMES = ('mae-vit-64px', 'simmim-vit-64px')
PAGE = (FOLDER / 'README.md').read_text(encoding='utf-8')


def test_a_name_is_the_path_of_shipped_weights_unless_a_file_has_it(tmp_path, monkeypatch) -> None:
    assert tuple(shipped_weights()) == NAMES
    assert local_path(NAMES[0]) == FOLDER / f'{NAMES[0]}.safetensors'
    assert local_path(f'{NAMES[0]}::encoder') == FOLDER / f'{NAMES[0]}.safetensors'
    monkeypatch.chdir(tmp_path)
    check_exists(NAMES[1])
    Path(NAMES[1]).write_bytes(b'')
    assert local_path(NAMES[1]) == Path(NAMES[1])


@pytest.mark.parametrize('name', ['mae', 'MAE-ViT-64px', 'mae_vit_64px'])
def test_an_unknown_name_lists_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError, match=f'^{name} is neither a file .* {", ".join(NAMES)}$'):
        api.load_encoder(name)


def test_a_file_that_is_missing_is_no_unknown_name() -> None:
    with pytest.raises(ValueError, match='is not a checkpoint file'):
        check_exists('mae-vit-64px.safetensors')


def test_shipped_files_are_small_and_name_no_folder() -> None:
    files = [file for file in (ROOT / 'examples').rglob('*') if file.is_file()]
    assert sum(file.stat().st_size for file in FOLDER.glob('*.safetensors')) < 5e6
    assert sum(file.stat().st_size for file in files) < 10e6
    for name in NAMES:
        config = trained_config(name)
        assert config.DATA.DATA_PATH == 'unlabelled' and config.DATA.LEAVE_OUT == 'leave_out.csv'
        assert '/' not in config.OUTPUT + config.PRETRAINED + config.TAG


@pytest.mark.parametrize('stage', ['simmim', 'finetune', 'contrastive'])
def test_an_exported_file_is_read_like_its_checkpoint(stage: str, tmp_path: Path) -> None:
    sections = {'CONTRASTIVE': {'QUEUE_SIZE': 32, 'NUM_PROTOTYPES': 8}} if stage[0] == 'c' else {}
    source, file = load_run(tmp_path, stage, **sections), tmp_path / 'out.safetensors'
    assert export(source, 'safetensors', file, overwrite=False) == 0
    again = load_trained_model(file, LOGGER)
    assert again.config.MODEL == source.config.MODEL and again.outputs == source.outputs
    images = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    found = []
    for path in (tmp_path / 'ckpt_epoch_1.pth', file):
        encoder, _ = load_encoder(encoder_config(path), path, torch.device('cpu'), is_own=True)
        with torch.no_grad():
            found.append(encoder(images))
    assert torch.equal(*found) and found[0].std() > 0.01
    assert {*read_checkpoint(file)} == {'model', 'config'}


def test_features_of_the_shipped_x_ray_come_from_one_call() -> None:
    encoder, transform = api.load_encoder(NAMES[0])
    features = encoder(transform(api.example_xray())[None])
    assert features.shape == (1, 96) and features.std() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize('name', NAMES)
def test_the_page_has_the_score_that_a_probe_of_the_shipped_weights_gets(name, tmp_path) -> None:
    """The AUROC of Pneumonia of the 200 X-rays of valid.csv, recomputed by scikit-learn."""
    config = 'configs/vit_nano__examples/simmim_finetune__vit_nano__img64__examples.yaml'
    words = ['--cfg', str(ROOT / config), '--data-path', str(ROOT / 'examples' / 'xrays')]
    words += ['--pretrained', name, '--output', str(tmp_path), '--tag', 'probe']
    words += ['--opts', 'EVAL.RESAMPLES', '0', 'EVAL.PREDICT_TRAIN', 'False']
    assert run_main('finetune', words) == 0
    predictions = pd.read_csv(tmp_path / 'simmim_finetune' / 'probe' / 'predictions_valid.csv')
    truth = pd.read_csv(ROOT / 'examples' / 'xrays' / 'valid.csv')
    rows = pd.Index(truth['Path']).get_indexer(predictions['Path'])
    assert len(rows) == 200 and (rows >= 0).all()
    score = roc_auc_score(truth['Pneumonia'].to_numpy()[rows], predictions['Pneumonia'])
    recorded = float(re.search(rf'\| `{name}` .*? \| (\.\d+) \(', PAGE)[1])
    np.testing.assert_allclose(score, recorded, atol=0.0015)


@pytest.mark.slow
def test_no_image_of_the_pre_training_is_one_of_the_labelled_x_rays(tmp_path: Path) -> None:
    """By the list of its images, and the search for copies where these images are."""
    images = ROOT.parent / 'shared' / 'mednist6000' / 'images'
    if not images.is_dir():
        pytest.skip('the images of the pre-training are not here')
    words = [ROOT / 'examples' / 'xrays', images, tmp_path, 'train.csv', 'valid.csv']
    environment = os.environ | {'PYTHON': sys.executable}
    command = ['bash', ROOT / 'scripts' / 'leave_out.sh', *words]
    subprocess.run(command, check=True, env=environment, capture_output=True)
    copies = {*pd.read_csv(tmp_path / 'leave_out.csv')['file']}
    used = {*(FOLDER / 'pretraining_images.txt').read_text('utf-8').split()}
    assert len(used) == 5999 and used | copies == {file.name for file in images.iterdir()}
    assert len(copies) == 1 and used.isdisjoint(copies)
