"""What steps of a run take, tried on its own batches: memory and seconds.

The weights change as by training; they are to be thrown away.
"""

import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

import distributed
from device import autocast, synchronized_time
from engine import LossFunction, Run
from inference import views_of
from train_state import TrainState
from training_step import train_one_batch

STEP_SECONDS = 1.5  # of a step on the CPU, where the whole micro-batch may take minutes
MODEL_SECONDS = 6.0  # of all timed steps
LOADER_SECONDS = 4.0  # that the loader is timed, once its workers are busy
START_SECONDS = 20.0  # that it may take until then

Batch = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Trial:
    """Steps over two numbers of images: the peaks of memory, and the figures of the second."""

    images: tuple[int, int]
    peaks: tuple[int, int]  # bytes
    loss: float
    norm: float  # NaN with loss: nothing is trained

    @property
    def per_image(self) -> float:
        """Bytes that one more image takes."""
        less, more = self.images
        return max(0, self.peaks[1] - self.peaks[0]) / (more - less) if more > less else 0.0

    @property
    def fixed(self) -> float:
        """Bytes that are taken whatever the number of images."""
        return self.peaks[1] - self.per_image * self.images[1]


@dataclass(frozen=True)
class Times:
    """Seconds an image, of the slowest process."""

    step: float  # of training, or of features
    scored: float  # of the forward pass on held-out images; 0 where there are none
    read: float  # of the loader alone
    images: int  # of the micro-batch that was timed
    overlap: bool  # whether the loader works while the model does

    def pace(self, seconds: float) -> float:
        """Seconds an image where the model works on one for so long."""
        return max(seconds, self.read) if self.overlap else seconds + self.read


def slowest(times: Sequence[Times | None]) -> Times | None:
    """What sets the pace of all processes; None if one of them could not be timed."""
    if None in times:
        return None
    step, scored, read = (
        max(getattr(each, name) for each in times) for name in ('step', 'scored', 'read')
    )
    return replace(times[0], step=step, scored=scored, read=read)


class Bench:
    """Steps of one run.

    Args:
        run: the run.
        state: of `engine.begin`.
        loss_fn: as for `engine.fit`; None where features are computed and nothing is trained.
    """

    def __init__(self, run: Run, state: TrainState, loss_fn: LossFunction | None) -> None:
        self.run, self.loss_fn = run, loss_fn
        self.state = replace(state, accumulation=1)  # each micro-batch makes a step
        self.on_cpu = run.device.type == 'cpu'

    def trial(self, batch: Batch) -> Trial:
        """Steps of this process alone: what fails does not leave the others waiting.

        On the CPU over as many images as take STEP_SECONDS, else over as many as fit.
        """
        alone, size = replace(self.state, model=self.state.module), len(batch[0])
        contrastive = self.run.stage == 'contrastive'  # it compares images: never one alone
        if self.on_cpu and not contrastive:
            seconds = self._seconds(lambda: self._step(alone, part(batch, 1)))
            size = min(size, max(2, int(STEP_SECONDS / seconds)))
        while True:
            # A queue of keys takes half a batch where it takes a whole one.
            images = (size if contrastive and (size % 2 or size < 4) else max(1, size // 2)), size
            try:
                peaks = (
                    self._peak(alone, part(batch, images[0])),
                    self._peak(alone, part(batch, size)),
                )
                break
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
            size //= 2
            alone.optimizer.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
        losses = alone.progress.waiting_losses
        norms = [norm for _, norm in alone.progress.waiting_norms]
        loss, norm = (values[-1].item() if values else math.nan for values in (losses, norms))
        return Trial(images, peaks, loss, norm)

    def times(self, batch: Batch, held: Batch | None, loader: DataLoader) -> Times:
        """Steps with the other processes, the forward pass, and the loader, one after the other.

        Args:
            batch: as many images as a step is timed over.
            held: a held-out batch, if there is one.
            loader: of the run's training images.
        """
        size, workers = len(batch[0]), loader.num_workers
        step = self._steady_seconds(lambda: self._step(self.state, batch), distributed.gather)
        scored = 0.0
        if held is not None:
            views = held[0].shape[1] if held[0].ndim == 5 else 1
            held = part(held, max(1, size // views))
            scored = self._steady_seconds(lambda: self._score(held)) / len(held[0])
        read = self._loader_seconds(loader, workers)
        return Times(step / size, scored, read, size, workers > 0)

    def _loader_seconds(self, loader: DataLoader, workers: int) -> float:
        """Seconds an image of loading alone, once each worker has given a batch."""
        begin = start = synchronized_time(self.run.device)
        images = 0
        for number, batch in enumerate(_endless(loader)):
            now = synchronized_time(self.run.device)
            if number < max(1, workers) and now - begin < START_SECONDS:
                start = now
                continue
            images += len(batch[0])
            if now - start >= LOADER_SECONDS:
                break
        return (now - start) / images

    def _step(self, state: TrainState, batch: Batch) -> None:
        if self.loss_fn is None:
            self._score(batch)
        else:
            state.model.train()
            train_one_batch(self.run, state, batch, self.loss_fn, 0)

    @torch.no_grad()
    def _score(self, batch: Batch) -> None:
        model = self.state.module.eval()
        for view in views_of(batch[0], self.run.device):
            with autocast(self.run.config, self.run.device):
                output = self._forward(model, view, batch)
            output.float().cpu()

    def _forward(self, model: nn.Module, view: torch.Tensor, batch: Batch) -> torch.Tensor:
        if self.run.stage == 'contrastive':
            return model(*batch[1:])  # the loss of the views beside the image
        return model.reconstruct(view, batch[1]) if self.run.is_pretrain else model(view)

    def _steady_seconds(
        self, work: Callable[[], None], agree: Callable[[int], list[int]] = lambda count: [count]
    ) -> float:
        """Seconds of work without its first time, unless that took MODEL_SECONDS.

        Args:
            work: what is timed.
            agree: how often each process wants to do it -> that of all, where they do it together.
        """
        first = self._seconds(work)
        repeats = max(agree(min(20, int(MODEL_SECONDS / first))))
        return self._seconds(work, repeats) if repeats else first

    def _seconds(self, work: Callable[[], None], repeats: int = 1) -> float:
        start = synchronized_time(self.run.device)
        for _ in range(repeats):
            work()
        return (synchronized_time(self.run.device) - start) / repeats

    def _peak(self, state: TrainState, batch: Batch) -> int:
        """Bytes in use at the peak of a step."""
        if not self.on_cpu:
            torch.cuda.reset_peak_memory_stats()
            self._step(state, batch)
            return torch.cuda.max_memory_allocated()
        with suppress(OSError):  # it is the peak since the start then
            Path('/proc/self/clear_refs').write_text('5')
        self._step(state, batch)
        return linux_figure('/proc/self/status', 'VmHWM')


def part(batch: Batch, size: int) -> Batch:
    return tuple(item[:size] for item in batch)


def available_memory(device: torch.device, ranks_here: int) -> int:
    """Bytes that a process holds or could get: on the GPU, or its share of the machine's."""
    if device.type == 'cuda':
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    free = linux_figure('/proc/meminfo', 'MemAvailable') // ranks_here
    return linux_figure('/proc/self/status', 'VmRSS') + free


def linux_figure(file: str, name: str) -> int:
    """Bytes of a line such as 'MemAvailable:  23012 kB'."""
    return 1024 * int(re.search(rf'^{name}:\s*(\d+) kB', Path(file).read_text(), re.MULTILINE)[1])


def _endless(loader: DataLoader) -> Iterator[Batch]:
    for epoch in itertools.count():
        loader.batch_sampler.set_epoch(epoch)
        yield from loader
