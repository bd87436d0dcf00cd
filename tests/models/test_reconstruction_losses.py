"""Terms of the loss of masked pre-training: values by hand, what they see, and their sums."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from same_runs import assert_same_weights, final_state
from tiny import (
    SMALLEST_SWIN,
    SWIN,
    arguments,
    config_with,
    finished_run,
    run_folder,
    run_main,
    tiny_config,
)
from torch.nn import functional as F

from config import check_config
from logger import read_metrics
from models.build import build_model
from models.reconstruction_losses import LOSSES, Term, loss_terms, term_values

SIDE = 8
SUM = {'l1': 1.0, 'frequency': 0.1, 'gradient': 0.5}


def tensors(channels: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Predictions, targets and hidden cells [3, 1, S, S]; of the last image nothing is hidden."""
    generator = torch.Generator().manual_seed(1)
    predictions, targets = torch.randn(2, 3, channels, SIDE, SIDE, generator=generator)
    hidden = (torch.rand(3, 1, SIDE, SIDE, generator=generator) < 0.4).float()
    hidden[2] = 0
    return predictions, targets, hidden


def value(name: str, predictions, targets, hidden, **options: float) -> torch.Tensor:
    options = LOSSES.options_of(name) | options
    terms = {name: Term(1.0, partial(LOSSES[name], **options))}
    return term_values(terms, predictions, targets, hidden)[0]


@pytest.mark.parametrize('name', LOSSES)
def test_no_term_sees_what_is_predicted_for_visible_cells(name: str) -> None:
    """Neither its value nor its gradient; a hidden cell changes the value."""
    predictions, targets, hidden = tensors()
    want = value(name, predictions, targets, hidden)
    visible, covered = (int(torch.nonzero(hidden[0, 0].flatten() == k)[3]) for k in (0, 1))
    for place, is_same in ((visible, True), (covered, False)):
        changed = predictions.clone()
        changed[0, 1].view(-1)[place] += 5
        changed.requires_grad_()
        found = value(name, changed, targets, hidden)
        assert torch.equal(found, want) == is_same
        found.backward()
        assert (changed.grad[0, 1].view(-1)[place] == 0) == is_same
        assert (changed.grad.where(hidden == 0, 0) == 0).all()


@pytest.mark.parametrize('name', LOSSES)
def test_a_term_is_a_finite_scalar_that_is_0_for_a_perfect_prediction(name: str) -> None:
    predictions, targets, hidden = tensors()
    assert value(name, targets, targets, hidden) == 0
    assert value(name, predictions, targets, torch.zeros_like(hidden)) == 0
    found = value(name, predictions.bfloat16(), targets, hidden.to(torch.uint8))
    assert found.dtype == torch.float32 and found.shape == () and 0 < found < math.inf
    # Equal predictions have no frequency with the largest error, which must not divide by 0.
    same = targets.clone().requires_grad_()
    value(name, same, targets, hidden).backward()
    assert same.grad.isfinite().all()


@pytest.mark.parametrize('alpha', [0.0, 1.0, 2.0])
def test_the_focal_frequency_loss_equals_a_sum_over_frequencies(alpha: float) -> None:
    """With NumPy's transform of each image and channel; alpha 0 is the mean squared error."""
    predictions, targets, hidden = tensors()
    found, total = value('frequency', predictions, targets, hidden, alpha=alpha), 0.0
    for b, c in np.ndindex(3, 2):
        filled = np.where(hidden[b, 0], predictions[b, c], targets[b, c])
        difference = np.fft.fft2(filled) - np.fft.fft2(targets[b, c])
        distance = np.abs(difference) / SIDE  # orthonormal
        weight = (distance / max(distance.max(), 1e-30)) ** alpha if alpha else 1.0
        total += (weight * distance**2).sum()
    assert found.item() == pytest.approx(total / hidden.sum().item() / 2, rel=1e-5)
    if alpha == 0:
        want = value('l2', predictions, targets, hidden)
        assert found.item() == pytest.approx(want.item(), rel=1e-5)


def test_the_gradient_loss_equals_a_loop_over_pairs_that_touch_a_hidden_cell() -> None:
    predictions, targets, hidden = tensors(channels=1)
    filled = torch.where(hidden.bool(), predictions, targets)
    total, count = 0.0, 0
    for b, row, column in np.ndindex(3, SIDE, SIDE):
        for other in ((row + 1, column), (row, column + 1)):
            if max(other) < SIDE and (hidden[b, 0, row, column] or hidden[(b, 0, *other)]):
                got = filled[(b, 0, *other)] - filled[b, 0, row, column]
                want = targets[(b, 0, *other)] - targets[b, 0, row, column]
                total, count = total + abs(got - want).item(), count + 1
    found = value('gradient', predictions, targets, hidden)
    assert found.item() == pytest.approx(total / count, rel=1e-5)


def test_a_term_that_returns_a_value_for_each_cell_is_refused(monkeypatch) -> None:
    monkeypatch.setitem(LOSSES.data, 'mine', lambda p, t, hidden: F.l1_loss(p, t, reduction='none'))
    with pytest.raises(ValueError, match=r"MODEL.SIMMIM.LOSS 'mine' .* \[3, 2, 8, 8\]"):
        value('mine', *tensors())


@pytest.mark.parametrize(
    'given', [SUM, str(SUM), "{'l1': '1.0', 'frequency': 0.1, 'gradient': 5e-1}"]
)
def test_a_sum_of_terms_is_read_from_yaml_and_from_opts(given) -> None:
    config = config_with(MODEL__SIMMIM__LOSS=given)
    check_config(config, 'simmim')
    assert dict(config.MODEL.SIMMIM.LOSS) == SUM
    assert {name: term.weight for name, term in loss_terms(config).items()} == SUM
    config.merge_from_list(['MODEL.SIMMIM.LOSS', 'l2'])  # replaces the mapping
    assert config.MODEL.SIMMIM.LOSS == 'l2'


@pytest.mark.parametrize(
    'given', ['l3', {}, {'l3': 1.0}, *({'l1': w} for w in (0.0, -1.0, math.inf, 'a', True, [1.0]))]
)
def test_a_wrong_term_or_weight_is_refused(given) -> None:
    with pytest.raises(ValueError, match='MODEL.SIMMIM.LOSS must be one of .*weights above 0'):
        check_config(config_with(MODEL__SIMMIM__LOSS=given), 'simmim')


def test_the_loss_of_a_model_is_the_weighted_sum_of_its_terms() -> None:
    torch.manual_seed(0)
    x, mask = torch.randn(2, 1, 32, 32), torch.arange(64).view(1, 8, 8).expand(2, 8, 8) // 3 % 2

    def loss_and_logged(loss: object) -> tuple[float, dict[str, float]]:
        torch.manual_seed(1)
        config = config_with(**SMALLEST_SWIN, MODEL__IN_CHANS=1, MODEL__SIMMIM__LOSS=loss)
        model = build_model(config).eval()
        total = model(x, mask).item()
        assert not [key for key in model.state_dict() if 'term_losses' in key]
        return total, {name: float(term) for name, term in model.logged_values().items()}

    alone = {name: loss_and_logged(name) for name in SUM}
    assert all(logged == {} for _, logged in alone.values())
    total, terms = loss_and_logged(SUM)
    assert terms == pytest.approx({f'loss_{name}': alone[name][0] for name in SUM}, rel=1e-6)
    want = sum(weight * alone[name][0] for name, weight in SUM.items())
    assert total == pytest.approx(want, rel=1e-6)


def test_terms_are_logged_beside_the_sum_and_resume_bit_for_bit(phantom, tmp_path) -> None:
    model = SWIN | {'SIMMIM': {'LOSS': SUM}}
    sections = {'TRAIN': {'SAVE_EVERY_STEPS': 1}, 'EVAL': {'HOLDOUT_IMAGES': 2}}
    whole = finished_run('simmim', phantom, tmp_path / 'a', model=model, **sections)
    *_, last = read_metrics(whole / 'metrics.jsonl')
    want = sum(weight * last[f'loss_{name}'] for name, weight in SUM.items())
    assert last['loss'] == pytest.approx(want, rel=1e-5)
    assert ' loss_frequency ' in (whole / 'log_rank0.txt').read_text()

    cfg = tiny_config(tmp_path / 'run.yaml', 'simmim', model, **sections)
    start = ['--resume', str(whole / 'ckpt_epoch_1_step_1.pth')]
    assert run_main('simmim', arguments(cfg, phantom, tmp_path / 'b', *start)) == 0
    resumed = run_folder(tmp_path / 'b', 'simmim')
    assert_same_weights(final_state(resumed), final_state(whole))
    *_, again = read_metrics(resumed / 'metrics.jsonl')
    assert {k: again[k] for k in again if k.startswith('loss')} == {
        k: last[k] for k in last if k.startswith('loss')
    }


def test_a_term_receives_its_options() -> None:
    options = {'MODEL__SIMMIM__LOSS': 'frequency', 'MODEL__SIMMIM__FREQUENCY__ALPHA': 0}
    given = tensors()
    found = term_values(loss_terms(config_with(**options)), *given)[0]
    assert found == value('frequency', *given, alpha=0) != value('frequency', *given)
