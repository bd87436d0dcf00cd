"""Two processes with half the batch each are one process with the whole batch."""

import shutil

import numpy as np
import pytest
from tiny import SWIN, VIT, arguments, run_folder, run_main, tiny_config, torchrun

from logger import read_metrics
from utils import read_checkpoint


@pytest.mark.parametrize(
    ('stage', 'model'),
    [('simmim', SWIN), pytest.param('finetune', VIT, marks=pytest.mark.slow)],
)
def test_two_ranks_equal_one(stage, model, phantom, tmp_path):
    """Uncertain labels ignored, accumulation on, drop path 0."""
    model = model | {'DROP_PATH_RATE': 0.0}
    cfg = tiny_config(tmp_path / 'run.yaml', stage, model, TRAIN={'SAVE_EVERY_STEPS': 1})
    one, two = tmp_path / 'one', tmp_path / 'two'
    assert run_main(stage, arguments(cfg, phantom, one)) == 0
    done = torchrun(stage, arguments(cfg, phantom, two, '--batch-size', '2'), processes=2)
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = run_folder(one, stage), run_folder(two, stage)

    first = [read_checkpoint(f / 'ckpt_epoch_0_step_1.pth')['optimizer'] for f in (one, two)]
    for index, moments in first[0]['state'].items():  # after one step: 0.1 times the gradient
        gradient, other = moments['exp_avg'], first[1]['state'][index]['exp_avg']
        np.testing.assert_allclose(other, gradient, rtol=0, atol=1e-5 * gradient.abs().max())
    last = [read_checkpoint(f / 'ckpt_epoch_1.pth')['model'] for f in (one, two)]
    for key, value in last[0].items():
        np.testing.assert_allclose(last[1][key], value, rtol=0, atol=1e-5, err_msg=key)

    for got, want in zip(*(read_metrics(f / 'metrics.jsonl') for f in (two, one)), strict=True):
        for key in set(want) - {'seconds', 'data_seconds', 'images_per_second'}:
            assert_same_figures(got[key], want[key], key)
    if stage == 'finetune':
        got, want = (
            np.genfromtxt(f / 'predictions_valid.csv', delimiter=',', skip_header=1)[:, 1:]
            for f in (two, one)
        )
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


def assert_same_figures(got, want, key):
    if isinstance(want, dict):
        for name, value in want.items():
            assert_same_figures(got[name], value, f'{key} {name}')
    elif want is None:
        assert got is None, key
    else:
        assert got == pytest.approx(want, abs=1e-5, rel=1e-5), key


@pytest.mark.slow
def test_fewer_images_than_ranks_are_scored(phantom, tmp_path):
    """A rank without images of a split takes part in what all ranks do."""
    data = tmp_path / 'data'
    shutil.copytree(phantom, data)
    for split in ('valid', 'test'):
        path = data / f'{split}.csv'
        path.write_text(''.join(path.read_text().splitlines(keepends=True)[:2]))
    cfg = tiny_config(
        tmp_path / 'run.yaml', 'finetune', VIT, TRAIN={'EPOCHS': 1, 'WARMUP_EPOCHS': 0}
    )
    done = torchrun('finetune', arguments(cfg, data, tmp_path / 'out'), processes=2)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = run_folder(tmp_path / 'out', 'finetune')
    for split in ('valid', 'test', 'holdout'):
        assert (folder / f'predictions_{split}.csv').is_file(), split
