"""Label policies end to end: what is trained on, what a checkpoint knows, what is never touched."""

import logging
from argparse import Namespace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from mistakes import edit, linked
from tiny import VIT, arguments, run_folder, run_main, tiny_config

from config import get_config
from data import build_loader
from data.labels import LABELS, POLICIES
from models import build_model
from utils import read_checkpoint

LOGGER = logging.getLogger('test')
PLANTED = ('Edema', 'Atelectasis', 'Pneumonia', 'Pleural Effusion', 'Lung Opacity')


@pytest.fixture(scope='module')
def planted(nih1000: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A third of the real X-rays, every fifth of some labels uncertain, in valid.csv every 7th."""

    def plant(every: int):
        def change(rows: list[list[str]]) -> None:
            columns = [rows[0].index(name) for name in PLANTED]
            rows[1:] = rows[1::3]
            cells = [(row, k) for row in rows[1:] for k in columns]
            for row, k in cells[::every]:
                row[k] = '-1.0'

        return change

    folder = linked(nih1000, tmp_path_factory.mktemp('planted') / nih1000.name)
    edit(folder / 'train.csv', plant(5))
    edit(folder / 'valid.csv', plant(7))
    return folder


def fine_tune(data: Path, folder: Path, *opts: str, model: dict = VIT) -> Path:
    cfg = tiny_config(folder / 'c.yaml', 'finetune', model, DATA={'TRAIN_IMAGES': 0})
    argv = arguments(cfg, data, folder / 'out', '--opts', 'TRAIN.EPOCHS', '1', *opts)
    assert run_main('finetune', argv) == 0
    return run_folder(folder / 'out', 'finetune')


def loaders_of(data: Path, folder: Path, *opts: str):
    cfg = tiny_config(folder / 'l.yaml', 'finetune', VIT, DATA={'TRAIN_IMAGES': 0})
    words = ['DATA.DATA_PATH', str(data), *opts]
    args = Namespace(cfg=str(cfg), opts=words, stage='finetune')
    return build_loader(get_config(args), LOGGER, is_pretrain=False)


def test_no_policy_touches_what_is_scored(planted: Path, tmp_path: Path) -> None:
    predictions = pd.read_csv(planted / 'train.csv')[['Path', *LABELS]].assign(
        **dict.fromkeys(LABELS, 0.3)
    )
    predictions.to_csv(tmp_path / 'predictions.csv', index=False)
    scored, trained = [], []
    for policy in POLICIES:
        opts = ['DATA.UNCERTAIN', policy]
        if policy == 'self_train':
            opts += ['DATA.SELF_TRAIN_PREDICTIONS', str(tmp_path / 'predictions.csv')]
        loaders = loaders_of(planted, tmp_path, *opts)
        scored.append([getattr(loaders, name).dataset.targets for name in ('holdout', 'valid')])
        trained.append(loaders.train.dataset.targets)
    raw = pd.read_csv(planted / 'valid.csv')[list(LABELS)].to_numpy()
    assert (raw == -1).sum() > 30
    for holdout, valid in scored:
        np.testing.assert_array_equal(holdout, scored[0][0])
        np.testing.assert_array_equal(valid, scored[0][1])
        np.testing.assert_array_equal(np.isnan(valid), raw == -1)
        np.testing.assert_array_equal(valid == 1, raw == 1)
    for i, targets in enumerate(trained):
        others = [other for other in trained[:i] if np.array_equal(other, targets, equal_nan=True)]
        assert not others, f'{list(POLICIES)[i]} trains on the same targets as another policy'


@pytest.mark.slow
def test_self_training_takes_the_predictions_of_the_first_run(
    planted: Path, tmp_path: Path
) -> None:
    first = fine_tune(
        planted, tmp_path / '1', 'DATA.UNCERTAIN', 'ignore', 'EVAL.PREDICT_TRAIN', 'True'
    )
    file = first / 'predictions_train.csv'
    opts = ['DATA.UNCERTAIN', 'self_train', 'DATA.SELF_TRAIN_PREDICTIONS', str(file)]
    train = loaders_of(planted, tmp_path, *opts).train.dataset
    predicted = pd.read_csv(file).set_index('Path').loc[train.records.path].to_numpy()
    uncertain = train.records.labels == -1
    assert uncertain.sum() > 50
    np.testing.assert_allclose(train.targets[uncertain], predicted[uncertain], rtol=1e-6)
    assert np.isin(train.targets[~uncertain], [0, 1]).all()
    fine_tune(planted, tmp_path / '2', *opts)


@pytest.mark.slow
def test_a_checkpoint_knows_its_three_outputs_per_label(planted: Path, tmp_path: Path) -> None:
    folder = fine_tune(planted, tmp_path, 'DATA.UNCERTAIN', 'multiclass')
    weights = read_checkpoint(folder / 'ckpt_epoch_0.pth')['model']['head.weight']
    assert len(weights) == 3 * len(LABELS)
    written = pd.read_csv(folder / 'predictions_valid.csv')
    cfg = tiny_config(tmp_path / 'm.yaml', 'finetune', VIT)
    opts = ['DATA.DATA_PATH', str(planted), 'DATA.UNCERTAIN', 'multiclass']
    config = get_config(Namespace(cfg=str(cfg), opts=opts, stage='finetune'))
    model = build_model(config, is_pretrain=False).eval()
    model.load_state_dict(read_checkpoint(folder / 'ckpt_best.pth')['model'])
    images, _, index = next(iter(build_loader(config, LOGGER, is_pretrain=False).valid))
    with torch.no_grad():
        outputs = model(images).reshape(len(images), len(LABELS), 3)
    pair = outputs[:, :, :2].softmax(dim=2)[:, :, 1]  # negative, positive
    np.testing.assert_allclose(pair, written[list(LABELS)].to_numpy()[index], rtol=1e-5)
    # The predictions are the same if the checkpoint is scored under another policy.
    cfg = tiny_config(tmp_path / 'e.yaml', 'finetune', VIT)
    argv = arguments(cfg, planted, tmp_path / 'e', '--eval', '--resume')
    assert run_main('finetune', [*argv, str(folder / 'ckpt_best.pth')]) == 0
    again = pd.read_csv(run_folder(tmp_path / 'e', 'finetune') / 'predictions_valid_eval.csv')
    pd.testing.assert_frame_equal(again, written)
