"""Where a run computes and in what precision."""

import contextlib
import os
import time
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn


def local_device() -> torch.device:
    """The CUDA device of this process (torchrun's LOCAL_RANK), or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device('cpu')
    device = torch.device('cuda', int(os.environ.get('LOCAL_RANK', 0)))
    torch.cuda.set_device(device)
    return device


def autocast_dtype(config: Any, device: torch.device) -> torch.dtype | None:
    """Type that matrix products run in under O1 and O2; None for float32.

    On the CPU that is float32, but with AMP_ON_CPU where it has instructions for bfloat16.
    """
    if config.AMP_OPT_LEVEL == 'O0':
        return None
    if device.type == 'cpu':
        return torch.bfloat16 if config.AMP_ON_CPU and cpu_has_bf16() else None
    return (
        torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    )


@cache
def cpu_has_bf16(cpuinfo: Path = Path('/proc/cpuinfo')) -> bool:
    """Whether the x86 CPU multiplies bfloat16 by instructions of its own (AVX-512 BF16, AMX)."""
    try:
        words = cpuinfo.read_text().split()
    except OSError:
        return False
    return not {'avx512_bf16', 'amx_bf16'}.isdisjoint(words)


def autocast(config: Any, device: torch.device) -> contextlib.AbstractContextManager:
    """Context of the forward pass."""
    return autocast_to(autocast_dtype(config, device), device)


def autocast_to(
    dtype: torch.dtype | None, device: torch.device
) -> contextlib.AbstractContextManager:
    """Context in which matrix products run in `dtype`; None: in float32."""
    return torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext()


def describe_precision(config: Any, device: torch.device) -> str:
    """One line for the log; it says so where a level is accepted but means another."""
    dtype = autocast_dtype(config, device)
    line = f'precision {config.AMP_OPT_LEVEL}: {f"autocast to {dtype}" if dtype else "float32"}'
    wanted = config.AMP_ON_CPU and config.AMP_OPT_LEVEL != 'O0' and device.type == 'cpu'
    if wanted and dtype is None:
        line += ' (AMP_ON_CPU: this CPU has no instructions for bfloat16)'
    if config.AMP_OPT_LEVEL == 'O2':
        line += ' (O2 means O1: apex.amp no longer exists, and PyTorch has one level)'
    return line


def to_device(batch: tuple[torch.Tensor, ...], device: torch.device) -> tuple[torch.Tensor, ...]:
    return tuple(item.to(device, non_blocking=True) for item in batch)


@torch.no_grad()
def throughput(
    config: Any, model: nn.Module, inputs: tuple[torch.Tensor, ...], device: torch.device
) -> float:
    """Images per second of the forward pass on one batch: 50 passes to warm up, 30 timed."""
    model.to(device).eval()
    inputs = to_device(inputs, device)
    for num_passes in (50, 30):
        start = synchronized_time(device)
        for _ in range(num_passes):
            with autocast(config, device):
                model(*inputs)
        seconds = synchronized_time(device) - start
    return num_passes * len(inputs[0]) / seconds


def synchronized_time(device: torch.device) -> float:
    """Seconds by a clock that is read once the device has done all its work."""
    if device.type == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter()
