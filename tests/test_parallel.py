"""What processes exchange."""

import pytest
import torch
from tiny import SWIN, arguments, run_folder, tiny_config, torchrun

from utils import read_checkpoint


@pytest.mark.slow
def test_gradients_may_be_exchanged_in_half_the_bytes(phantom, tmp_path) -> None:
    """After the first step of AdamW the first moment is 0.1 times the gradient that it had."""
    model = SWIN | {'DROP_PATH_RATE': 0.0}
    train = {'SAVE_EVERY_STEPS': 1, 'EPOCHS': 1, 'WARMUP_EPOCHS': 0, 'CLIP_GRAD': 0.0}
    cfg = tiny_config(tmp_path / 'run.yaml', 'simmim', model, TRAIN=train)
    gradients = {}
    for kind in ('float32', 'bfloat16'):
        options = ['--batch-size', '2', '--opts', 'TRAIN.GRADIENT_EXCHANGE', kind]
        done = torchrun('simmim', arguments(cfg, phantom, tmp_path / kind, *options), processes=2)
        assert done.returncode == 0, done.stdout + done.stderr
        saved = read_checkpoint(run_folder(tmp_path / kind, 'simmim') / 'ckpt_epoch_0_step_1.pth')
        gradients[kind] = [10 * one['exp_avg'] for one in saved['optimizer']['state'].values()]
    for exact, rounded in zip(*gradients.values(), strict=True):
        back = rounded.bfloat16().float()  # 0.1 and 10 are no powers of 2: not bit for bit
        torch.testing.assert_close(rounded, back, rtol=1e-6, atol=0)
        scale = exact.abs().max()
        torch.testing.assert_close(rounded, exact, rtol=2**-7, atol=2**-7 * scale)
        assert not torch.equal(rounded, exact)
