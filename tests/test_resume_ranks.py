"""A run goes on with another number of processes: a step keeps its images, or it is refused."""

import pytest
import torch
from tiny import SWIN, arguments, run_folder, run_main, tiny_config, torchrun

from utils import read_checkpoint


@pytest.fixture(scope='module')
def two_ranks(phantom, tmp_path_factory):
    """A run of two processes with a checkpoint after every step; without what is drawn by rank."""
    root = tmp_path_factory.mktemp('two')
    cfg = tiny_config(
        root / 'run.yaml', 'simmim', SWIN | {'DROP_PATH_RATE': 0.0},
        TRAIN={'SAVE_EVERY_STEPS': 1, 'ACCUMULATION_STEPS': 1, 'WARMUP_EPOCHS': 0,
               'LR_SCHEDULER': {'NAME': 'step'}},
        DATA={'TRAIN_IMAGES': 32},
    )  # fmt: skip
    done = torchrun('simmim', arguments(cfg, phantom, root), 2)
    assert done.returncode == 0, done.stdout + done.stderr
    return cfg, run_folder(root, 'simmim')


@pytest.mark.slow
def test_one_process_goes_on_with_two_micro_batches_a_step(two_ranks, phantom, tmp_path):
    cfg, folder = two_ranks
    stop = folder / 'ckpt_epoch_0_step_2.pth'
    want = read_checkpoint(folder / 'ckpt_epoch_1.pth')
    assert run_main('simmim', arguments(cfg, phantom, tmp_path, '--resume', str(stop))) == 0
    alone = run_folder(tmp_path, 'simmim')
    got = read_checkpoint(alone / 'ckpt_epoch_1.pth')
    assert (want['accumulation'], got['accumulation']) == (1, 2)
    assert (want['num_batches'], got['num_batches']) == (4, 8)
    for key, value in want['model'].items():
        torch.testing.assert_close(got['model'][key], value, rtol=1e-4, atol=1e-5)
    text = (alone / 'log_rank0.txt').read_text()
    assert '1 process(es) in place of 2: 2 micro-batches a step in place of 1' in text
    assert 'epoch 0, micro-batch 4' in text
    rates = [read_checkpoint(f / 'ckpt_epoch_1.pth')['optimizer']['param_groups'][0]['lr']
             for f in (folder, alone)]  # fmt: skip
    assert rates[0] == pytest.approx(rates[1])


def test_three_processes_are_refused_in_words(two_ranks, phantom, tmp_path, capsys, monkeypatch):
    from engine import distributed

    monkeypatch.setattr(distributed, 'world_size', lambda: 3)
    cfg, folder = two_ranks
    stop = folder / 'ckpt_epoch_0_step_2.pth'
    assert run_main('simmim', arguments(cfg, phantom, tmp_path, '--resume', str(stop))) == 2
    assert '8 images a step on 2 process(es); 3 processes' in capsys.readouterr().out


@pytest.mark.slow
def test_the_same_images_a_step_by_other_options_go_on_inside_an_epoch(
    two_ranks, phantom, tmp_path
):
    cfg, folder = two_ranks
    stop = folder / 'ckpt_epoch_0_step_2.pth'
    more = ('--resume', str(stop), '--batch-size', '8')
    assert run_main('simmim', arguments(cfg, phantom, tmp_path, *more)) == 0
    got, want = (
        read_checkpoint(f / 'ckpt_epoch_1.pth')['model']
        for f in (run_folder(tmp_path, 'simmim'), folder)
    )
    for key, value in want.items():
        torch.testing.assert_close(got[key], value, rtol=1e-4, atol=1e-5)
