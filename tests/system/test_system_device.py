"""Device and precision of a run."""

from pathlib import Path

import pytest
import torch
from tiny import config_with

from config import default_config
from system import device as module
from system.device import autocast_dtype, cpu_computes_bfloat16, describe_precision

CPU = torch.device('cpu')


@pytest.mark.parametrize(
    ('level', 'on_cpu', 'mode', 'dtype'),
    [
        ('O1', 'never', 'full', None),
        ('O1', 'always', 'full', torch.bfloat16),
        ('O0', 'always', 'full', None),
        ('O1', 'always', 'last_layer', torch.bfloat16),
        ('O1', 'always', 'knn', None),
    ],
)
def test_precision_on_a_cpu(level, on_cpu, mode, dtype) -> None:
    options = {'AMP_OPT_LEVEL': level, 'AMP_ON_CPU': on_cpu, 'FINETUNE__MODE': mode}
    config = config_with(AMP_TF32=True, **options)
    assert autocast_dtype(config, CPU) is dtype
    line = describe_precision(config, CPU)
    assert 'TF32' not in line, 'only GPUs have it'
    assert level in line and ('bfloat16' if dtype else 'float32') in line
    with module.autocast(config, CPU):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype is (dtype or torch.float32)


@pytest.mark.parametrize(('avx512', 'amx'), [(True, False), (False, True), (False, False)])
def test_autocast_follows_the_instructions_of_the_cpu(avx512, amx, monkeypatch) -> None:
    monkeypatch.setattr(torch.cpu, '_is_avx512_bf16_supported', lambda: avx512)
    monkeypatch.setattr(torch.cpu, '_is_amx_tile_supported', lambda: amx)
    monkeypatch.setattr(module, 'cpu_computes_bfloat16', cpu_computes_bfloat16)
    options, is_able = default_config(), avx512 or amx
    assert options.AMP_ON_CPU == 'auto'
    assert autocast_dtype(options, CPU) is (torch.bfloat16 if is_able else None)
    line = describe_precision(options, CPU)
    assert ('has bfloat16' if is_able else 'has no bfloat16') in line


def test_float32_is_not_tf32(device, recwarn) -> None:
    """PyTorch's default allows TF32 in convolutions; `device` restores what this test sets."""
    switches = torch.backends.cudnn, torch.backends.cuda.matmul
    for switch in switches:
        switch.allow_tf32 = True
    module.local_device()
    assert not any(switch.allow_tf32 for switch in switches)
    assert torch.get_float32_matmul_precision() == 'highest'
    module.local_device(tf32=True)
    assert all(switch.allow_tf32 for switch in switches)
    options = config_with(AMP_OPT_LEVEL='O0', AMP_TF32=True)
    assert describe_precision(options, torch.device('cuda')).endswith('float32, products in TF32')
    assert not recwarn.list


def test_a_process_without_a_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setenv('LOCAL_RANK', '2')
    with pytest.raises(ValueError, match='--nproc_per_node 2'):
        module.local_device()


@pytest.mark.parametrize(
    ('threads', 'running', 'warns'), [(2, 5, True), (2, 4, False), (2, 1, False), (1, 9, False)]
)
def test_several_threads_on_busy_cores_are_named(
    threads: int, running: int, warns: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file has the running processes, of which one is this one: here, on four cores."""
    load = tmp_path / 'loadavg'
    load.write_text(f'9.00 9.00 9.00 {running}/321 77\n')
    monkeypatch.setattr(torch, 'get_num_threads', lambda: threads)
    monkeypatch.setattr('os.cpu_count', lambda: 4)
    found = module.busy_threads(load)
    assert ('OMP_NUM_THREADS=1' in found) == warns == bool(found)
    assert module.busy_threads(tmp_path / 'absent') == ''
