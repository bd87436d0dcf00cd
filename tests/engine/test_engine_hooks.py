"""The hooks of training: an average of the weights, and random numbers of each batch."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from one_epoch import five_batches, one_epoch, squares
from same_runs import assert_same_weights, final_state, last_metrics
from tiny import VIT, arguments, finished_run, run_folder, run_main, run_script
from torch import Tensor, nn

import main_finetune
from engine.average import average_weights
from engine.run import Run
from utils import read_checkpoint

DECAY = 0.5


@pytest.fixture(scope='module')
def averaged(few_cases_select, phantom, tmp_path_factory) -> tuple[Path, list[Tensor]]:
    """The folder of a run with an average, and the weights of the head at each validation."""
    predict, heads = main_finetune.predict, []

    def noting(config, device, model, loader):
        heads.append(model.head.weight.clone())
        return predict(config, device, model, loader)

    folder = tmp_path_factory.mktemp('averaged')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(main_finetune, 'predict', noting)
        train = {'SAVE_EVERY_STEPS': 2, 'AVERAGE': DECAY}
        finished_run('finetune', phantom, folder, model=VIT, TRAIN=train)
    return folder, heads


def test_an_average_is_scored_saved_and_resumed_bit_for_bit(averaged, phantom, tmp_path) -> None:
    folder, heads = averaged
    whole = run_folder(folder, 'finetune')
    saved = final_state(whole)
    assert saved['model'].keys() == saved['trained'].keys()
    assert torch.equal(saved['model']['head.weight'], heads[-1])
    assert not torch.equal(saved['trained']['head.weight'], heads[-1])
    best = read_checkpoint(whole / 'ckpt_best.pth')
    assert torch.equal(best['model']['head.weight'], heads[best['epoch'] + 1])

    output = tmp_path / 'predictions.csv'
    words = ('--checkpoint', whole / 'ckpt_epoch_1.pth', '--output', output)
    image = next((phantom / 'train').rglob('*.jpg'))
    assert run_script('predict', image, *words) == 0 and output.is_file()

    shutil.copytree(folder, tmp_path / 'resumed')
    resumed = run_folder(tmp_path / 'resumed', 'finetune')
    for path in (*resumed.glob('ckpt_epoch_1.*'), *resumed.glob('ckpt_epoch_1_step_4.*')):
        path.unlink()
    (resumed / 'scores.json').unlink()
    cfg = folder / 'finetune.yaml'
    assert run_main('finetune', arguments(cfg, phantom, tmp_path / 'resumed')) == 0
    assert_same_weights(final_state(resumed), saved)
    assert last_metrics(resumed) == last_metrics(whole)
    assert (resumed / 'scores.json').read_text() == (whole / 'scores.json').read_text()


def test_an_average_may_begin_or_end_at_a_resume(averaged, phantom, tmp_path) -> None:
    """It does not change the training, so the trained weights are the same in all four runs."""
    plain = finished_run('finetune', phantom, tmp_path / 'plain', model=VIT)
    first = run_folder(averaged[0], 'finetune')
    ends = {(0.0, 0.0): final_state(plain), (DECAY, DECAY): final_state(first)}
    for folder, before, after in ((plain, 0.0, DECAY), (first, DECAY, 0.0)):
        more = ['--resume', str(folder / 'ckpt_epoch_0.pth')]
        more += ['--opts', 'TRAIN.AVERAGE', str(after)]
        other = finished_run('finetune', phantom, tmp_path / str(after), *more, model=VIT)
        ends[before, after] = final_state(other)
        log = (other / 'log_rank0.txt').read_text()
        assert f'changed since the checkpoint: TRAIN.AVERAGE: {before} -> {after}' in log
    trained = ends[0.0, 0.0]['model']
    for (_, last), saved in ends.items():
        assert bool(saved['trained']) == bool(last)
        for key, value in (saved['trained'] or saved['model']).items():
            assert torch.equal(value, trained[key])
    begun = ends[0.0, DECAY]['model']['head.weight']
    assert not torch.equal(begun, trained['head.weight'])
    assert not torch.equal(begun, ends[DECAY, DECAY]['model']['head.weight'])


def test_the_average_follows_each_optimizer_step(tmp_path: Path) -> None:
    weights = []

    def wrap(model: nn.Module) -> nn.Module:
        average_weights(model, DECAY)
        model.encoder_loaded()
        update = model.after_step

        def noting(state: object) -> None:
            update(state)
            weights.append(state.module.weight.clone())

        model.after_step = noting
        return model

    _, state, steps = one_epoch(tmp_path, five_batches(), wrap=wrap, TRAIN__ACCUMULATION_STEPS=2)
    assert len(weights) == len(steps) == 3
    expected = torch.tensor([[1.0, 2.0, 3.0]])
    for weight in weights:
        expected = DECAY * expected + (1 - DECAY) * weight
    torch.testing.assert_close(state.scored.weight.data, expected.data)


def test_random_numbers_depend_on_seed_epoch_and_batch_alone(tmp_path, monkeypatch) -> None:
    runs = []
    monkeypatch.setattr('one_epoch.Run', lambda *facts: runs.append(Run(*facts)) or runs[-1])

    def draws_of(epoch: int, seed: int, first: int = 0) -> list[float]:
        np.random.seed(first)
        torch.manual_seed(first)
        draws = []

        def noting(model: nn.Module, batch: tuple[Tensor]) -> Tensor:
            draws.append(runs[-1].batch_rng.random())
            return squares(model, batch)

        one_epoch(tmp_path, five_batches(), noting, epoch=epoch, first_batch=first, SEED=seed)
        return draws

    whole = draws_of(epoch=7, seed=0)
    assert len({*whole}) == 5
    assert draws_of(epoch=7, seed=0, first=2) == whole[2:]
    assert not {*draws_of(epoch=8, seed=0), *draws_of(epoch=7, seed=1)} & {*whole}
