"""In what precision a run computes."""

from types import SimpleNamespace

import pytest
import torch

from engine import device
from engine.device import autocast_dtype, cpu_has_bf16, describe_precision

CPU = torch.device('cpu')


def options(level: str, on_cpu: bool) -> SimpleNamespace:
    return SimpleNamespace(AMP_OPT_LEVEL=level, AMP_ON_CPU=on_cpu)


@pytest.mark.parametrize(
    ('flags', 'has'),
    [('fpu avx512f avx512_bf16 sse', True), ('fpu amx_bf16', True), ('avx512_bf16x', False)],
)
def test_a_cpu_says_what_it_has(flags, has, tmp_path) -> None:
    (tmp_path / 'cpuinfo').write_text(f'processor : 0\nflags\t\t: {flags}\n')
    assert cpu_has_bf16(tmp_path / 'cpuinfo') is has
    assert cpu_has_bf16(tmp_path / 'none') is False


@pytest.mark.parametrize(
    ('level', 'on_cpu', 'has', 'dtype', 'line'),
    [
        ('O1', False, True, None, 'precision O1: float32'),
        ('O1', True, True, torch.bfloat16, 'precision O1: autocast to torch.bfloat16'),
        (
            'O1',
            True,
            False,
            None,
            'precision O1: float32 (AMP_ON_CPU: this CPU has no instructions for bfloat16)',
        ),
        ('O0', True, True, None, 'precision O0: float32'),
        ('O0', True, False, None, 'precision O0: float32'),
    ],
)
def test_precision_on_a_cpu(level, on_cpu, has, dtype, line, monkeypatch) -> None:
    monkeypatch.setattr(device, 'cpu_has_bf16', lambda: has)
    assert autocast_dtype(options(level, on_cpu), CPU) is dtype
    assert describe_precision(options(level, on_cpu), CPU) == line
    with device.autocast(options(level, on_cpu), CPU):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype is (dtype or torch.float32)
