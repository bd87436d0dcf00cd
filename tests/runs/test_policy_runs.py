"""Label policies end to end: what is trained on, what a checkpoint knows, what is never touched."""

import logging
from argparse import Namespace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import VIT, finished_run, tiny_config

from config import get_config
from data.build import build_loader
from data.tables.labels import LABELS
from models import build_model
from utils import read_checkpoint

LOGGER = logging.getLogger('test')


def fine_tune(data: Path, folder: Path, *opts: str) -> Path:
    words = ['--opts', 'TRAIN.EPOCHS', '1', *opts]
    return finished_run('finetune', data, folder, *words, model=VIT, DATA={'TRAIN_IMAGES': 0})


def loaders_of(data: Path, folder: Path, *opts: str):
    cfg = tiny_config(folder / 'l.yaml', 'finetune', VIT, DATA={'TRAIN_IMAGES': 0})
    words = ['DATA.DATA_PATH', str(data), *opts]
    args = Namespace(cfg=str(cfg), opts=words, stage='finetune')
    return build_loader(get_config(args), LOGGER, is_pretrain=False)


@pytest.mark.slow
def test_self_training_takes_the_predictions_of_the_first_run(phantom, tmp_path) -> None:
    opts = ['DATA.UNCERTAIN', 'ignore', 'EVAL.PREDICT_TRAIN', 'True']
    first = fine_tune(phantom, tmp_path / '1', *opts)
    file = first / 'predictions_train.csv'
    opts = ['DATA.UNCERTAIN', 'self_train', 'DATA.SELF_TRAIN_PREDICTIONS', str(file)]
    train = loaders_of(phantom, tmp_path, *opts).train.dataset
    predicted = pd.read_csv(file).set_index('Path').loc[train.records.path].to_numpy()
    uncertain = train.records.labels == -1
    assert uncertain.sum() > 50
    np.testing.assert_allclose(train.targets[uncertain], predicted[uncertain], rtol=1e-6)
    assert np.isin(train.targets[~uncertain], [0, 1]).all()
    fine_tune(phantom, tmp_path / '2', *opts)


@pytest.mark.slow
def test_a_checkpoint_knows_its_three_outputs_per_label(phantom: Path, tmp_path: Path) -> None:
    folder = fine_tune(phantom, tmp_path, 'DATA.UNCERTAIN', 'multiclass')
    weights = read_checkpoint(folder / 'ckpt_epoch_0.pth')['model']['head.weight']
    assert len(weights) == 3 * len(LABELS)
    written = pd.read_csv(folder / 'predictions_valid.csv')
    cfg = tiny_config(tmp_path / 'm.yaml', 'finetune', VIT)
    opts = ['DATA.DATA_PATH', str(phantom), 'DATA.UNCERTAIN', 'multiclass']
    config = get_config(Namespace(cfg=str(cfg), opts=opts, stage='finetune'))
    model = build_model(config, is_pretrain=False).eval()
    model.load_state_dict(read_checkpoint(folder / 'ckpt_epoch_0.pth')['model'])
    images, _, index = next(iter(build_loader(config, LOGGER, is_pretrain=False).valid))
    with torch.no_grad():
        outputs = model(images.to('cpu')).reshape(len(images), len(LABELS), 3)
    pair = outputs[:, :, :2].softmax(dim=2)[:, :, 1]  # negative, positive
    np.testing.assert_allclose(pair, written[list(LABELS)].to_numpy()[index], rtol=1e-5)
    # The predictions are the same if the checkpoint is scored under another policy.
    words = ['--eval', '--resume', str(folder / 'ckpt_epoch_0.pth')]
    other = finished_run('finetune', phantom, tmp_path / 'e', *words, model=VIT)
    again = pd.read_csv(other / 'predictions_valid_eval.csv')
    pd.testing.assert_frame_equal(again, written)
