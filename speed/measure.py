"""Images per second, memory and compile time of each case, all measured in turn."""

import gc
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from compilation import training_flops
from device import synchronized_time
from failures import in_one_line
from speed.cases import Case
from speed.kernels import kernel_shares
from speed.published import as_published
from speed.steps import Batch, Setting, Steps, build, build_steps, synthetic_batch

FIRST_STEPS = 2  # in which models are compiled, kernels chosen, and memory is taken
MATRIX_SIDE = {'cuda': 8192, 'cpu': 1024}  # of the plain product
MATRIX_REPEATS = 20


@dataclass
class Measured:
    """A case and what was measured of it, by round."""

    case: Case
    rates: list[float] = field(default_factory=list)  # images/s
    first_seconds: list[float] = field(default_factory=list)  # of FIRST_STEPS beyond steady ones
    peak_memory: int | None = None  # bytes; None: not measured
    loss: float = math.nan  # of the last step
    kernel_shares: dict[str, float] = field(default_factory=dict)
    options: dict[str, str | bool] = field(default_factory=dict)  # what really ran
    dtype: torch.dtype | None = None  # of matrix products; None: float32
    error: str = ''  # one line, where it failed

    @property
    def rate(self) -> float | None:
        """The median."""
        return statistics.median(self.rates) if self.rates else None


def measure(
    setting: Setting,
    cases: Sequence[Case],
    *,
    steps: int,
    warmup: int,
    rounds: int,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> list[Measured]:
    """Measure every case in every round; a case that fails is left out from then on.

    Each turn builds its case anew and alone, so that no case takes another's memory. Profiles are
    made after all rounds: a profiler slows what follows it.

    Args:
        setting: what is trained.
        cases: ways to train it.
        steps: that are timed in a round.
        warmup: steps before them, at least FIRST_STEPS.
        rounds: how often each case has its turn.
        progress: wraps what is gone through, as tqdm does.
    """
    torch.backends.cudnn.benchmark = True
    measured = [Measured(case) for case in cases]
    turns = [(number, one) for number in range(rounds + 1) for one in measured]
    for number, one in progress(turns):
        if one.error:
            continue
        try:
            if number < rounds:
                _time(setting, one, steps, warmup)
            else:
                _profile(setting, one, warmup)
        except Exception as error:  # of a compiler, a kernel, or for want of memory: others go on
            one.error = in_one_line(error)
        _free(setting.device)
    return measured


def _time(setting: Setting, one: Measured, steps: int, warmup: int) -> None:
    on_gpu, size = setting.device.type == 'cuda', setting.batch_size
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    step = build_steps(setting, one.case)
    first = _seconds(step, FIRST_STEPS, setting.device)
    _seconds(step, warmup - FIRST_STEPS, setting.device)
    steady = _seconds(step, steps, setting.device) / steps
    one.loss = step.loss.item()
    if not math.isfinite(one.loss):
        raise FloatingPointError(f'the loss is {one.loss} after {warmup + steps} steps')
    one.rates.append(size / steady)
    one.first_seconds.append(max(0.0, first - FIRST_STEPS * steady))
    one.options, one.dtype = step.describe(), step.dtype
    if on_gpu:
        one.peak_memory = max(one.peak_memory or 0, torch.cuda.max_memory_allocated())


def _profile(setting: Setting, one: Measured, warmup: int) -> None:
    step = build_steps(setting, one.case)
    _seconds(step, warmup, setting.device)
    one.kernel_shares = kernel_shares(step, setting.device)


def _seconds(step: Steps, repeats: int, device: torch.device) -> float:
    start = synchronized_time(device)
    for _ in range(repeats):
        step()
    return synchronized_time(device) - start


def _free(device: torch.device) -> None:
    """Forget compiled code, and give the case's memory back."""
    torch.compiler.reset()
    gc.collect()
    if device.type == 'cuda':
        torch.cuda.empty_cache()


def flops_per_image(setting: Setting) -> float:
    """FLOPs of a training step for an image, counted on the published model.

    Raises:
        ValueError: if the config is not possible.
    """
    run = setting.run()
    model, _ = build(run)
    inputs: Batch = tuple(item.to('meta') for item in synthetic_batch(run))
    return training_flops(as_published(model).to('meta'), inputs[: 2 if run.is_pretrain else 1])


def matrix_rate(device: torch.device, dtype: torch.dtype | None) -> float:
    """FLOP/s of a plain product of two matrices, the best of several."""
    side, noise = MATRIX_SIDE[device.type], torch.Generator(device).manual_seed(0)
    a, b = torch.rand(2, side, side, generator=noise, device=device).to(dtype or torch.float32)
    out, best = torch.empty_like(a), math.inf
    for _ in range(MATRIX_REPEATS):
        start = synchronized_time(device)
        torch.mm(a, b, out=out)
        best = min(best, synchronized_time(device) - start)
    return 2 * side**3 / best
