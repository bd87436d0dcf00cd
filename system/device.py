"""Device of a process, and precision."""

import contextlib
import os
from pathlib import Path

import torch

from config import PROBES, Config, refuse_unless


def check(config: Config, stage: str | None) -> None:
    """Check that the run computes in float32, and no features for a probe."""
    is_allowed = config.AMP_OPT_LEVEL == 'O0' and config.FINETUNE.MODE not in PROBES
    refuse_unless(
        is_allowed, config, 'AMP_TF32', "False except with AMP_OPT_LEVEL 'O0' and without a probe"
    )


def local_device(*, tf32: bool = False) -> torch.device:
    """Select the CUDA device of this process (torchrun's LOCAL_RANK), or the CPU without CUDA.

    This also sets whether GPUs use TF32, which PyTorch allows for convolutions by default.

    Raises:
        ValueError: If this computer has fewer GPUs than processes.
    """
    allow_tf32(tf32)
    if not torch.cuda.is_available():
        return torch.device('cpu')
    # torchrun numbers the processes of a computer from 0, and each takes the GPU of its number.
    number, gpus = int(os.environ.get('LOCAL_RANK', 0)), torch.cuda.device_count()
    if number >= gpus:
        raise ValueError(
            f'process {number} of this computer has no GPU, because PyTorch finds {gpus}: start '
            f'torchrun with --nproc_per_node {gpus}'
        )
    device = torch.device('cuda', number)
    torch.cuda.set_device(device)
    return device


def busy_threads(load: Path = Path('/proc/loadavg')) -> str:
    """Warn that several threads of this process on the CPU compute on busy cores; '' otherwise.

    Each step of the threads waits for the slowest one. A linear probe of 15 s took over 9 minutes
    with two threads on two cores that four other processes used.

    Args:
        load: Linux's file with the number of runnable processes, of which this one is one.
    """
    threads, cores = torch.get_num_threads(), os.cpu_count() or 1
    if threads == 1 or not load.is_file():
        return ''
    others = int(load.read_text().split()[3].partition('/')[0]) - 1
    if others < cores:
        return ''
    return (
        f'{others} other processes are computing on the {cores} cores of this computer, and this '
        f'one uses {threads} threads, which wait for each other and can make it many times slower: '
        'put OMP_NUM_THREADS=1 before the command'
    )


def to_device(batch: tuple[torch.Tensor, ...], device: torch.device) -> tuple[torch.Tensor, ...]:
    """Copy a batch to the device."""
    return tuple(item.to(device, non_blocking=True) for item in batch)


def autocast_dtype(config: Config, device: torch.device) -> torch.dtype | None:
    """Return the data type of autocast under AMP_OPT_LEVEL O1 and O2; None for float32.

    On a CPU, AMP_ON_CPU decides. Probes always use float32, because their features are computed
    only once and rounding to bfloat16 changed AUROCs by up to 0.004.
    """
    if config.AMP_OPT_LEVEL == 'O0' or config.FINETUNE.MODE in PROBES:
        return None
    if device.type == 'cpu':
        wanted = {'always': True, 'never': False, 'auto': cpu_computes_bfloat16()}
        return torch.bfloat16 if wanted[config.AMP_ON_CPU] else None
    # bfloat16 has the range of float32 and needs no gradient scaler; older GPUs only have float16.
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if has_bf16 else torch.float16


def cpu_computes_bfloat16() -> bool:
    """Return whether the CPU has instructions for matrix products in bfloat16.

    Without them, PyTorch computes these products more slowly than those in float32.
    """
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def autocast(config: Config, device: torch.device) -> contextlib.AbstractContextManager:
    """Return the autocast context of a forward pass."""
    dtype = autocast_dtype(config, device)
    return torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext()


def describe_precision(config: Config, device: torch.device) -> str:
    """Return a log line about the precision. Outside autocast it is float32, or TF32."""
    dtype = str(autocast_dtype(config, device) or '').removeprefix('torch.')
    line = f'precision {config.AMP_OPT_LEVEL}: '
    line += f'autocast to {dtype}, outside it float32' if dtype else 'float32'
    if device.type == 'cuda' and config.AMP_TF32:
        line += ', products in TF32'
    if device.type == 'cpu' and config.AMP_ON_CPU == 'auto' and config.AMP_OPT_LEVEL != 'O0':
        line += (
            f' (AMP_ON_CPU auto: this CPU has {"" if cpu_computes_bfloat16() else "no "}bfloat16)'
        )
    if config.AMP_OPT_LEVEL == 'O2':
        line += ' (O2 is treated as O1: apex.amp no longer exists, and PyTorch has only one level)'
    return line


def allow_tf32(allowed: bool) -> None:
    """Let GPUs compute matrix products and convolutions of float32 in TF32, or in float32."""
    # PyTorch 2.8 only has these switches. Newer versions cannot read them once the newer are set.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed
