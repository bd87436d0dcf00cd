"""Input speed: images per second of each source and number of workers, and where the time goes.

Every case is measured several times, all cases in turn, so that a busy moment of the machine does
not fall on one of them alone; figures are medians.  Files are read over and over: they come from
the system's memory, as in later epochs.  A disk or network drive is slower the first time.
"""

import json
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.chexpert import Records, read_csv, read_folder
from data.input_sources import STAGES, Source, Stopwatch

BASELINE = 'published'
TRACED_IMAGES = 256  # stages are measured on


@dataclass
class Case:
    """A source with a number of workers, and what was measured of it."""

    source: Source
    num_workers: int
    rates: list[float] = field(default_factory=list)  # images/s, one a repeat
    stages_us: dict[str, float] = field(default_factory=dict)  # of an image, in one process

    @property
    def rate(self) -> float:
        """The median."""
        return statistics.median(self.rates)


def one_thread() -> None:
    """Let this process use one thread: workers share the cores, figures are a process's."""
    torch.set_num_threads(1)
    with suppress(ImportError):
        import cv2

        cv2.setNumThreads(0)


def read_records(path: str | Path) -> Records:
    """The images that train.csv names; those of the whole folder or store, where there is none."""
    if (Path(path) / 'train.csv').is_file():
        return read_csv(path, 'train.csv')
    return read_folder(path, allow_all_images=True)


def measure(
    sources: Sequence[Source],
    *,
    workers: Sequence[int],
    seconds: float,
    repeats: int,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> list[Case]:
    """Measure every source with every number of workers.

    Args:
        sources: what to measure.
        workers: numbers of processes that load; 0 loads in this one.
        seconds: how long a repeat lasts.
        repeats: how often each case is measured.
        progress: wraps what is gone through, as tqdm does.
    """
    cases = [Case(source, count) for count in workers for source in sources]
    for case in progress(cases * repeats):
        warm_up = 1 + 2 * case.num_workers  # batches that workers have made ahead
        batches = case.source.batches(case.num_workers)
        case.rates.append(measure_rate(batches, seconds, warm_up=warm_up))
        del batches  # and with them the workers
    traces = [[measure_stages(source, TRACED_IMAGES) for source in sources] for _ in range(repeats)]
    for source, *of_source in zip(sources, *traces, strict=True):
        medians = {stage: _median(of_source, stage) for stage in of_source[0]}
        for case in cases:
            case.stages_us |= medians if case.source is source else {}
    return cases


def measure_rate(
    batches: Iterable[Any],
    seconds: float,
    *,
    warm_up: int,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Images per second of batches whose first item has an image a row.

    Args:
        batches: may be gone through several times.
        seconds: at least how long, and at least one batch.
        warm_up: batches before the measurement.
        clock: seconds.
    """
    endless = _endless(batches)
    for _ in range(warm_up):
        next(endless)
    _wait_for_device()
    start, num_images, passed = clock(), 0, 0.0
    while passed < seconds or not num_images:
        num_images += len(next(endless)[0])
        passed = clock() - start
    _wait_for_device()
    return num_images / (clock() - start)


def measure_stages(
    source: Source, num_images: int, *, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Stage -> microseconds an image, made in this process one batch after another.

    Args:
        source: what to measure.
        num_images: how many images at least; a batch before them counts for nothing.
        clock: seconds.
    """
    size, rng = source.setting.batch_size, np.random.default_rng(0)
    num_batches = -(-num_images // size)
    watch = Stopwatch(clock)
    for batch in range(1 + num_batches):
        if batch == 1:
            watch.seconds.clear()
        source.trace(rng.integers(len(source.dataset), size=size), watch)
    return {
        stage: watch.seconds[stage] / (num_batches * size) * 1e6
        for stage in STAGES
        if stage in watch.seconds
    }


def as_rows(cases: Sequence[Case], *, needs: float) -> list[dict[str, Any]]:
    """The figures of each case, ready for JSON.

    Args:
        cases: of `measure`.
        needs: images/s that the model works off.
    """
    published = {case.num_workers: case.rate for case in cases if case.source.name == BASELINE}
    return [
        {
            'source': case.source.name,
            'workers': case.num_workers,
            'images_per_second': case.rate,
            'lowest': min(case.rates),
            'highest': max(case.rates),
            'repeats': case.rates,
            'needs': needs,
            'share_of_needs': case.rate / needs,
            'times_published': case.rate / published[case.num_workers],
            'stages_us': case.stages_us,
            'stages_sum_us': sum(case.stages_us.values()),
            'device': str(case.source.setting.device),
            'size_px': case.source.setting.size,
            'batch_size': case.source.setting.batch_size,
        }
        for case in cases
    ]


def format_rates(rows: Sequence[dict[str, Any]]) -> str:
    """The table of sources and workers."""
    head = f'{"source":<18}{"workers":>8}{"images/s":>10}{"lowest to highest":>20}'
    lines = [f'{head}{"of needs":>10}{"x published":>13}']
    for row in rows:
        spread = f'{row["lowest"]:,.0f} to {row["highest"]:,.0f}'
        lines.append(
            f'{row["source"]:<18}{row["workers"]:>8}{row["images_per_second"]:>10,.0f}{spread:>20}'
            f'{row["share_of_needs"]:>10.0%}{row["times_published"]:>13.2f}'
        )
    return '\n'.join(lines)


def format_stages(rows: Sequence[dict[str, Any]]) -> str:
    """The table of sources and stages."""
    by_source = {row['source']: row for row in rows}
    stages = [stage for stage in STAGES if any(stage in row['stages_us'] for row in rows)]
    titles = [*stages, 'sum']
    lines = [f'{"source":<18}' + ''.join(f'{title:>9}' for title in titles)]
    for name, row in by_source.items():
        values = [row['stages_us'].get(stage) for stage in stages]
        cells = ['-' if value is None else f'{value:.1f}' for value in values]
        cells.append(f'{row["stages_sum_us"]:.1f}')
        lines.append(f'{name:<18}' + ''.join(f'{cell:>9}' for cell in cells))
    return '\n'.join(lines)


def save_rows(rows: Sequence[dict[str, Any]], path: str | Path) -> None:
    """Write a line of JSON for each case."""
    Path(path).write_text(''.join(f'{json.dumps(row)}\n' for row in rows))


def _median(traces: Sequence[dict[str, float]], stage: str) -> float:
    return statistics.median(trace[stage] for trace in traces)


def _endless(batches: Iterable[Any]) -> Iterator[Any]:
    return chain.from_iterable(repeat(batches))


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
