"""What is measured: the published way, ours, and the steps that lead from one to the other."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec

import torch

from config import Config

BASELINE = 'published'
WITH_DATA = 'ours, with data'


@dataclass(frozen=True)
class Published:
    """How steps of the published model are made."""

    dtype: torch.dtype | None  # of autocast; None: float32
    waits: bool = True  # for the device, after each step
    fused: bool = False  # AdamW


@dataclass(frozen=True)
class Case:
    """One way to make training steps: with the published model, or with ours under options."""

    name: str
    published: Published | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    reads_data: bool = False  # in place of one synthetic batch again and again


def list_cases(
    config: Config, device: torch.device, *, baseline: bool, levers: bool, data: bool = False
) -> tuple[list[Case], list[str]]:
    """The cases of a run, and a line for each that the device or the model does not have.

    Args:
        config: of the run.
        device: that is measured on.
        baseline: whether the published way is measured, too.
        levers: whether the steps between both are: each on top of those before, but one way to
            compute attention in place of another, and compiled with the config's own.
        data: whether ours is measured with data, too.

    Raises:
        ValueError: if the published way has no such optimizer.
    """
    name = config.TRAIN.OPTIMIZER.NAME
    if (baseline or levers) and name.lower() != 'adamw':
        raise ValueError(f"TRAIN.OPTIMIZER.NAME must be 'adamw' for a baseline, got {name!r}")
    on_gpu = device.type == 'cuda'
    half = torch.float16 if on_gpu and config.AMP_OPT_LEVEL != 'O0' else None
    cases, notes = [Case(BASELINE, Published(half))] * (baseline or levers), []
    if cases and not on_gpu:
        notes.append(f'{BASELINE}: in float32, since the published code itself needs a GPU')
    with_data = [Case(WITH_DATA, reads_data=True)] * data
    if not levers:
        return [*cases, Case('ours'), *with_data], notes
    where = 'on the CPU'
    if on_gpu:
        where = f'on {torch.cuda.get_device_name(device)} with MODEL.TYPE {config.MODEL.TYPE}'
        where += f', AMP_OPT_LEVEL {config.AMP_OPT_LEVEL}'
    for name, applies, change in _published_levers(on_gpu, half):
        if applies:
            cases.append(Case(name, replace(cases[-1].published, **change)))
        else:
            notes.append(f'{name}: not applicable {where}')
    for name, applies, options in _own_levers(on_gpu, config.MODEL.TYPE):
        if applies:
            cases.append(Case(name, options=options))
        else:
            notes.append(f'{name}: not applicable {where}')
    return [*cases, *with_data], notes


def _published_levers(on_gpu: bool, half: torch.dtype | None) -> list[tuple[str, bool, dict]]:
    """Name, whether it applies, and what changes in `Published`."""
    has_bfloat16 = half is not None and torch.cuda.is_bf16_supported(including_emulation=False)
    return [
        ('bfloat16 for float16', has_bfloat16, {'dtype': torch.bfloat16}),
        ('no wait per step', on_gpu, {'waits': False}),
        ('fused AdamW', True, {'fused': True}),
    ]


def _own_levers(on_gpu: bool, model: str) -> list[tuple[str, bool, dict]]:
    """Name, whether it applies, and the options of the engine's own steps."""
    attention, compiled = 'MODEL.ATTENTION', 'TRAIN.COMPILE'
    ours = model != 'timm'  # whose attention is its own
    has_triton = on_gpu and model == 'swin' and find_spec('triton') is not None
    return [
        ('our code, eager', True, {attention: 'eager' if ours else 'auto', compiled: 'none'}),
        ('attention sdpa', ours, {attention: 'sdpa', compiled: 'none'}),
        ('attention triton', has_triton, {attention: 'triton', compiled: 'none'}),
        ('compile auto', on_gpu, {compiled: 'auto'}),
        ('compile max', True, {compiled: 'max'}),
    ]
