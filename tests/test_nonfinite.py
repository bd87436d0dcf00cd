"""A loss or gradient that is not finite: the run stops, or leaves the step out, and records it."""

import math

import pytest
import torch
from one_epoch import five_batches, one_epoch
from step_record import read_step_record
from tiny import arguments, run_folder, run_main, tiny_config

import main_simmim
from engine.train_state import Progress


@pytest.mark.parametrize('bad', [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_with_epoch_batch_and_rate(tmp_path, bad):
    batches = five_batches()
    batches[3] = (torch.full((4, 3), bad),)
    message = r'not finite in epoch 7, batch 3, learning rate 2\.5000e-05'
    with pytest.raises(FloatingPointError, match=message):
        one_epoch(tmp_path, batches, rate=2.5e-5, PRINT_FREQ=2)
    record = read_step_record(tmp_path / 'nonfinite_epoch_7_step_4.json')
    assert (record['batch'], record['accumulation'], record['stage']) == (3, 1, 'simmim')
    assert [rank['rows'] for rank in record['ranks']] == [[[103]]]


def test_a_step_that_is_not_finite_is_skipped_as_if_its_batches_were_not_there(tmp_path, caplog):
    batches, keys = five_batches(), {'TRAIN__ACCUMULATION_STEPS': 2, 'TRAIN__ON_NAN': 'skip'}
    bad = [*batches[:3], (torch.full((4, 3), math.nan),), batches[4]]
    figures, state, updates = one_epoch(tmp_path, bad, PRINT_FREQ=2, **keys)
    good = [*batches[:2], batches[4]]
    want, without, _ = one_epoch(tmp_path, good, **keys)
    for key, value in without.module.state_dict().items():  # with what the model notes itself
        assert torch.equal(state.module.state_dict()[key], value), key
    assert state.module.steps == state.module.slow == 2
    assert (figures['loss'], figures['grad_norm']) == (want['loss'], want['grad_norm'])
    assert (figures['skipped_steps'], want['skipped_steps']) == (1, 0)
    assert updates == [1, 3, 4], 'the schedule goes on'
    assert 'batch 2' in caplog.text and '1 of at most 10' in caplog.text
    record = read_step_record(tmp_path / 'nonfinite_epoch_7_step_2.json')
    assert record['ranks'][0]['rows'] == [[102], [103]]
    # By then the rate is that of the next step.
    assert set(record) == {'stage', 'epoch', 'batch', 'step', 'accumulation', 'ranks'}


def test_more_skipped_steps_than_allowed_stop_the_run(tmp_path):
    batches = [(torch.full((4, 3), math.nan),)] * 5
    with pytest.raises(FloatingPointError, match=r'more than TRAIN.NAN_LIMIT 2 steps'):
        one_epoch(tmp_path, batches, TRAIN__ON_NAN='skip', TRAIN__NAN_LIMIT=2)
    records = sorted(path.name for path in tmp_path.glob('nonfinite*'))
    assert records == [f'nonfinite_epoch_7_step_{step}.json' for step in (1, 2, 3)]


def test_a_gradient_norm_far_above_the_last_ones_is_warned_of(tmp_path, caplog):
    batches = [(torch.ones(4, 3),)] * 40
    batches[30] = (torch.full((4, 3), 4.0),)  # squares: 16 times the gradient
    _, state, _ = one_epoch(tmp_path, batches, rate=0.0)
    assert [line for line in caplog.text.splitlines() if 'gradient norm' in line] == [
        line for line in caplog.text.splitlines() if '16 times the median' in line
    ]
    assert caplog.text.count('16 times the median') == 1


def test_the_first_step_that_is_not_finite_is_named_though_the_next_losses_are_not_either(tmp_path):
    def root(model, batch):  # the gradient of the third step alone is not finite, then the weights
        loss = (model(batch[0]) ** 2).mean()
        if batch[0][0, 0] == 7:
            loss = loss + (model(batch[0]) * 0).abs().sqrt().mean()  # 0, of gradient 0 * inf
        return loss

    batches = [(torch.full((4, 3), float(i == 5) * 6 + 1),) for i in range(9)]
    keys = {'TRAIN__ACCUMULATION_STEPS': 2, 'TRAIN__CLIP_GRAD': 5.0, 'PRINT_FREQ': 7}
    with pytest.raises(FloatingPointError, match='not finite in epoch 7, batch 5'):
        one_epoch(tmp_path, batches, root, rate=0.001, **keys)
    assert read_step_record(tmp_path / 'nonfinite_epoch_7_step_3.json')['batch'] == 4


def test_a_gradient_that_is_not_finite_stops_too(tmp_path):
    def root(model, batch):  # its value is 0, its gradient 0 * inf
        return (model(batch[0]) * 0).abs().sqrt().mean()

    with pytest.raises(FloatingPointError, match='not finite in epoch 7, batch 0'):
        one_epoch(tmp_path, five_batches(), root)


def test_a_step_that_the_scaler_skips_is_left_out_of_the_mean_norm():
    def progress() -> Progress:
        values = [torch.tensor([1.0, math.inf, 3.0]), torch.ones(3)]
        norms, losses = (list(value) for value in values)
        return Progress(waiting_losses=losses, waiting_norms=list(enumerate(norms, start=1)))

    with_scaler = progress()
    assert with_scaler.settle(overflow_is_handled=True) is None
    assert with_scaler.mean_norm() == 2
    assert progress().settle(overflow_is_handled=False) == 1


def test_weights_after_a_loss_that_is_not_finite_are_not_saved(
    phantom, tmp_path, monkeypatch, capsys
):
    loss, calls = main_simmim.reconstruction_loss, []

    def breaks_in_the_second_epoch(model, batch):
        calls.append(0)
        return loss(model, batch) * (math.nan if len(calls) > 7 else 1)

    monkeypatch.setattr(main_simmim, 'reconstruction_loss', breaks_in_the_second_epoch)
    cfg = tiny_config(
        tmp_path / 'run.yaml', 'simmim', TRAIN={'SAVE_EVERY_STEPS': 1}, PRINT_FREQ=1000
    )
    assert run_main('simmim', arguments(cfg, phantom, tmp_path)) == 2
    assert 'not finite in epoch 1, batch 0' in capsys.readouterr().out
    saved = {path.name for path in run_folder(tmp_path, 'simmim').glob('ckpt_*')}
    assert 'ckpt_epoch_0.pth' in saved
    assert not any(name.startswith('ckpt_epoch_1') for name in saved)
