"""main_finetune.py: the selected checkpoint is the run's own, and chosen by valid scores."""

import json
import math
import shutil
from pathlib import Path

import pytest
from tiny import VIT, arguments, run_folder, run_main, tiny_config

import main_finetune
from utils import read_checkpoint


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Scores on the held-out patients after each epoch, in order; they replace the real ones."""
    given: list[float] = []

    def figures(self, run, model, epoch):
        return {'score': given.pop(0)} if epoch >= 0 else {}

    monkeypatch.setattr(main_finetune.Selection, '__call__', figures)
    return given


def finetune(phantom: Path, output: Path, *more: str) -> Path:
    train = {'EPOCHS': 3, 'WARMUP_EPOCHS': 0}
    cfg = tiny_config(output.parent / 'c.yaml', 'finetune', VIT, TRAIN=train)
    assert run_main('finetune', arguments(cfg, phantom, output, *more)) == 0
    return run_folder(output, 'finetune')


def scored(folder: Path) -> str:
    return Path(json.loads((folder / 'predictions_test.json').read_text())['checkpoint']).name


def test_the_best_of_epochs_that_were_given_up_is_not_scored(
    phantom: Path, tmp_path: Path, scores: list[float]
) -> None:
    """A run that resumes from an older checkpoint leaves the newer ones and their best behind."""
    scores += [0.6, 0.5, 0.9]
    folder = finetune(phantom, tmp_path / 'out')
    assert scored(folder) == 'ckpt_best.pth'
    again = ('--tag', 'again', '--resume', str(tmp_path / 'first.pth'))
    shutil.copy(folder / 'ckpt_epoch_0.pth', tmp_path / 'first.pth')
    shutil.copytree(folder, folder.with_name('again'))
    (folder.with_name('again') / 'run.json').unlink()
    scores += [0.3, 0.4]
    folder = finetune(phantom, tmp_path / 'out', *again).with_name('again')
    assert scores == []
    assert read_checkpoint(folder / 'ckpt_best.pth')['best_score'] == 0.9
    assert scored(folder) == 'ckpt_epoch_2.pth'
    finetune(phantom, tmp_path / 'out', '--tag', 'again', '--eval')
    source = json.loads((folder / 'predictions_test_eval.json').read_text())
    assert Path(source['checkpoint']).name == 'ckpt_epoch_2.pth'


def test_an_epoch_without_a_score_does_not_end_the_selection(
    phantom: Path, tmp_path: Path, scores: list[float]
) -> None:
    scores += [math.nan, 0.5, 0.4]
    folder = finetune(phantom, tmp_path / 'out')
    assert scored(folder) == 'ckpt_best.pth'
    assert read_checkpoint(folder / 'ckpt_best.pth')['epoch'] == 1
    assert read_checkpoint(folder / 'ckpt_epoch_2.pth')['best_score'] == 0.5
