"""The hooks of training: an average of the weights, and a loss with random numbers of its own."""

import copy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from one_epoch import five_batches, one_epoch, squares
from test_engine_loop import assert_same_weights, final_state, last_metrics
from tiny import VIT, arguments, run_folder, run_main, tiny_config
from torch import Tensor, nn

import main_finetune
from utils import read_checkpoint

DECAY = 0.5


def averaged(model: nn.Module) -> nn.Module:
    """Score an exponential average of a model's weights instead of the weights."""

    def after_step(state: object) -> None:
        new = dict(model.named_parameters())
        with torch.no_grad():
            for name, old in model.scored.named_parameters():
                old.lerp_(new[name], 1 - DECAY)

    model.scored = copy.deepcopy(model).requires_grad_(False)
    model.after_step = after_step
    model.encoder_loaded = lambda: None
    return model


@pytest.mark.usefixtures('few_cases_select')
def test_an_average_of_the_weights_is_scored_saved_and_resumed_bit_for_bit(
    phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, predict, models = main_finetune.build_model, main_finetune.predict, []

    def noting(config, device, model, loader):
        models.append(model)
        return predict(config, device, model, loader)

    monkeypatch.setattr(main_finetune, 'build_model', lambda *a, **k: averaged(build(*a, **k)))
    monkeypatch.setattr(main_finetune, 'predict', noting)
    cfg = tiny_config(tmp_path / 'run.yaml', 'finetune', VIT, TRAIN={'SAVE_EVERY_STEPS': 2})
    assert run_main('finetune', arguments(cfg, phantom, tmp_path / 'whole')) == 0
    assert len(models) == 3 and not any(hasattr(model, 'scored') for model in models)

    whole = run_folder(tmp_path / 'whole', 'finetune')
    best = read_checkpoint(whole / 'ckpt_best.pth')
    regular = read_checkpoint(whole / f'ckpt_epoch_{best["epoch"]}.pth')
    average = {key: value for key, value in regular['model'].items() if key.startswith('scored.')}
    assert best['model'].keys() == regular['model'].keys() - average.keys()
    for key, value in best['model'].items():
        assert torch.equal(value, average[f'scored.{key}']), key
    assert not torch.equal(best['model']['head.weight'], regular['model']['head.weight'])

    shutil.copytree(tmp_path / 'whole', tmp_path / 'resumed')
    resumed = run_folder(tmp_path / 'resumed', 'finetune')
    for path in (*resumed.glob('ckpt_epoch_1.*'), *resumed.glob('ckpt_epoch_1_step_4.*')):
        path.unlink()
    (resumed / 'scores.json').unlink()
    assert run_main('finetune', arguments(cfg, phantom, tmp_path / 'resumed')) == 0
    assert_same_weights(final_state(resumed), final_state(whole))
    assert last_metrics(resumed) == last_metrics(whole)
    assert (resumed / 'scores.json').read_text() == (whole / 'scores.json').read_text()


def test_the_average_follows_each_optimizer_step(tmp_path: Path) -> None:
    weights = []

    def wrap(model: nn.Module) -> nn.Module:
        model = averaged(model)
        after_step = model.after_step

        def noting(state: object) -> None:
            after_step(state)
            weights.append(state.module.weight.clone())

        model.after_step = noting
        return model

    _, state, steps = one_epoch(tmp_path, five_batches(), wrap=wrap, TRAIN__ACCUMULATION_STEPS=2)
    assert len(weights) == len(steps) == 3
    expected = torch.tensor([[1.0, 2.0, 3.0]])
    for weight in weights:
        expected = DECAY * expected + (1 - DECAY) * weight
    assert state.scored is state.module.scored
    torch.testing.assert_close(state.scored.weight.data, expected.data)


class Mixup:
    """Mixes each image with the next one by a drawn share."""

    def begin_batch(self, rng: np.random.Generator) -> None:
        self.share = rng.random()

    def __call__(self, model: nn.Module, batch: tuple[Tensor]) -> Tensor:
        (images,) = batch
        return squares(model, (self.share * images + (1 - self.share) * images.roll(1, 0),))


def test_the_draws_of_a_loss_depend_on_seed_epoch_and_batch_alone(tmp_path: Path) -> None:
    class Noting(Mixup):
        def begin_batch(self, rng: np.random.Generator) -> None:
            super().begin_batch(rng)
            draws.append(self.share)

    def draws_of(epoch: int, seed: int, first: int = 0) -> list[float]:
        draws.clear()
        np.random.seed(first)
        torch.manual_seed(first)
        one_epoch(tmp_path, five_batches(), Noting(), epoch=epoch, first_batch=first, SEED=seed)
        return [*draws]

    draws = []
    whole = draws_of(epoch=7, seed=0)
    assert len({*whole}) == 5
    assert draws_of(epoch=7, seed=0, first=2) == whole[2:]
    assert not {*draws_of(epoch=8, seed=0), *draws_of(epoch=7, seed=1)} & {*whole}
