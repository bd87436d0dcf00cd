"""--check: test data, memory, disk and a training step of a run, and estimate its duration."""

import itertools
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.data import DataLoader

from config import Config
from engine.clock import duration
from engine.launch import EXIT_OTHER_PROCESS, explain
from engine.loop import LossFunction, begin, train_one_batch, wrap_model
from engine.run_record import Run, is_locked
from engine.train_state import TrainState
from logger import wrap
from optimizer import optimizer_kind
from system import distributed
from system.device import autocast, synchronized_time, to_device, views_of
from utils import checkpoint_bytes

Batch = tuple[torch.Tensor, ...]

ERRORS = (ValueError, ArithmeticError, OSError, RuntimeError, MemoryError)
STEP_SECONDS = 4.0  # target duration of a step on the CPU, where a whole batch may take minutes
NUM_STEPS = 5  # number of timed steps
LOADER_SECONDS = 4.0  # time to measure the loader, after all workers have started
WAITING = 0.1  # share of the time that the model may wait for data without a warning
NEARLY_FULL = 0.95  # share of memory or disk that may be used without a warning


class Finding(NamedTuple):
    """One line of the table. The status is 'ok', 'warning' or 'problem'."""

    check: str
    status: str
    found: str
    advice: str = ''


def preflight(
    run: Run,
    model: nn.Module,
    loaders: Mapping[str, DataLoader | None],
    loss_fn: LossFunction | None = None,
    findings: Iterable[tuple[str, str, str]] = (),
) -> int:
    """Check and time a run, and log a table of findings and a verdict.

    The steps use the training code and real batches. The weights are discarded, and only the log is
    written to the run folder. `loss_fn` is None for a probe, which trains nothing. `findings` are
    further lines of the table: (check, found, advice or '').

    Returns:
        Exit code: 0 if the run is ready, 1 if there is a problem.
    """
    check = Preflight(run, model, loaders, loss_fn)
    check.device()
    check.output()
    for name in check.loaders:
        check.read_batch(name)
    for finding in findings:
        check.add(*finding)
    state = check.weights()
    seconds = check.measure(state)
    if loss_fn is not None:
        check.schedule(state)
        check.disk(state)
    return check.verdict(seconds)


def log_throughput(
    run: Run,
    model: nn.Module,
    loaders: Mapping[str, DataLoader | None],
    loss_fn: LossFunction | None = None,
    *,
    num_inputs: int | None = None,
) -> int:
    """Log images per second of the forward pass and of training (--throughput).

    Args:
        run: Run.
        model: Model on any device.
        loaders: Loaders by split, see `data.Loaders`.
        loss_fn: Function of the loss, or None for a probe.
        num_inputs: Number of elements of a batch that the model takes; None: all.

    Returns:
        Exit code.
    """
    inputs = next(iter(loaders['train'] or loaders['plain']))[:num_inputs]
    rate = throughput(run.config, model, inputs, run.device)
    run.logger.info(f'throughput {rate:.1f} images/s')
    if loss_fn is not None:
        run.logger.info(Preflight(run, model, loaders, loss_fn).training_time())
        run.logger.info('--check also tests reading, validation, memory and disk')
    return 0


@torch.no_grad()
def throughput(config: Config, model: nn.Module, inputs: Batch, device: torch.device) -> float:
    """Measure images per second of the forward pass in 30 passes, after 50 for warm-up."""
    model.to(device).eval()
    inputs = to_device(inputs, device)
    for num_passes in (50, 30):
        start = synchronized_time(device)
        for _ in range(num_passes):
            with autocast(config, device):
                model(*inputs)
        seconds = synchronized_time(device) - start
    return num_passes * len(inputs[0]) / seconds


class Preflight:
    """Checks a run. Each method adds the findings of this rank."""

    def __init__(
        self,
        run: Run,
        model: nn.Module,
        loaders: Mapping[str, DataLoader | None],
        loss_fn: LossFunction | None,
    ) -> None:
        self.run, self.config, self.model, self.loss_fn = run, run.config, model, loss_fn
        self.loaders = {k: loader for k, loader in loaders.items() if loader is not None}
        self.main = 'train' if 'train' in self.loaders else 'plain'
        self.batches: dict[str, Batch | None] = {}
        self.findings: list[Finding] = []

    def add(self, check: str, found: str, advice: str = '', *, problem: bool = False) -> None:
        """Add a finding. With advice it is a warning."""
        status = 'problem' if problem else 'warning' if advice else 'ok'
        self.findings.append(Finding(check, status, found, advice))

    @contextmanager
    def attempt(self, check: str, advice: str = '') -> Iterator[None]:
        """Report an error inside the block as a problem."""
        try:
            yield
        except ERRORS as error:
            code, message = explain(error)
            lacks_memory = isinstance(error, torch.OutOfMemoryError)  # the others wait for this one
            if code == EXIT_OTHER_PROCESS or (lacks_memory and distributed.world_size() > 1):
                raise
            self.add(check, message, advice, problem=True)

    def device(self) -> None:
        """Report the device and unused GPUs."""
        if self.run.device.type == 'cpu':
            self.add('device', 'CPU', 'use a GPU and a PyTorch version that supports its driver')
            return
        used, gpus = int(os.environ.get('LOCAL_WORLD_SIZE', 1)), torch.cuda.device_count()
        advice = f'use all: torchrun --nproc_per_node {gpus}' if used < gpus else ''
        self.add('device', f'{used} of {gpus} GPU(s), {torch.cuda.get_device_name()}', advice)

    def output(self) -> None:
        """Check that the run folder can be written and that no other run is writing to it."""
        folder = self.run.folder
        with self.attempt('output', 'choose another --output or --tag'):
            with tempfile.NamedTemporaryFile(dir=folder) as probe:
                probe.write(bytes(2**20))
                probe.flush()
            if distributed.is_main() and is_locked(folder):
                raise ValueError(f'another run is writing to the folder {folder}')
            own = next(folder.glob('ckpt_*.pth'), None)
            resumes = self.config.TRAIN.AUTO_RESUME or self.config.MODEL.RESUME
            if own and not resumes and self.loss_fn is not None:
                found = f'{folder} has checkpoints, such as {own.name}'
                self.add('output', found, 'choose another --tag, or they will be overwritten')
            else:
                self.add('output', f'{folder} can be written')

    def read_batch(self, name: str) -> None:
        """Read the first batch of a split."""
        loader = self.loaders[name]
        with self.attempt(f'data: {name}', 'scripts/check_data.py reads every image'):
            self.batches[name] = next(iter(loader), None)
            found = f'{len(loader.dataset):,} images in {len(loader):,} batches; the first was read'
            self.add(f'data: {name}', found)

    def weights(self) -> TrainState:
        """Load the weights that the run would start from, or random weights if that fails."""
        config, epochs, loader = self.config, self.config.TRAIN.EPOCHS, self.loaders[self.main]
        # A probe never resumes from a checkpoint.
        resumes = config.TRAIN.AUTO_RESUME and self.loss_fn is not None
        own, state = {'CHECK_MODE': False, 'TRAIN.AUTO_RESUME': resumes}, None
        with self.attempt('weights', 'choose another --pretrained or --resume, or another --tag'):
            state = begin(_with_options(self.run, own), self.model, loader)
            found, advice = f'starts from {config.PRETRAINED or "random weights"}', ''
            if state.epoch or state.batch:
                found = f'resumes from {state.source}: {state.epoch} of {epochs} epochs are done'
                if state.is_done(config):
                    advice = 'nothing is left to train: raise TRAIN.EPOCHS or choose another --tag'
            elif not config.PRETRAINED and not self.run.is_pretrain:
                advice = 'choose a pre-trained encoder with --pretrained'
            self.add('weights', found, advice)
        # `begin` exchanges values, so all processes begin again if one has failed.
        return state if all(distributed.gather(state is not None)) else self.random_weights()

    def random_weights(self) -> TrainState:
        """Begin without a checkpoint, whatever the config names."""
        nothing = {'MODEL.RESUME': '', 'PRETRAINED': '', 'TRAIN.AUTO_RESUME': False}
        return begin(_with_options(self.run, nothing), self.model, self.loaders[self.main])

    def training_time(self) -> str:
        """Time training steps on one batch, and describe the time of the whole run.

        Every rank must call it. The weights are discarded.
        """
        state, batch = self.random_weights(), next(iter(self.loaders[self.main]))
        wrap_model(self.run, state)
        self._step(state, batch)
        step = max(distributed.gather(self._seconds(lambda: self._step(state, batch), NUM_STEPS)))
        rate, epochs = len(batch[0]) * distributed.world_size() / step, self.config.TRAIN.EPOCHS
        return (
            f'training {rate:,.1f} images/s: {duration(epochs * state.num_batches * step)} for '
            f'{epochs} epochs from a measured step, without reading and validation'
        )

    def measure(self, state: TrainState) -> float:
        """Try a step, time steps and loader, and return the estimated seconds of the run or NaN."""
        batch, size, times = self.batches.get(self.main), 0, None
        if batch is not None:
            with self.attempt('step', 'speed and time were not measured'):
                size = self.try_step(state, batch)
        size = min(distributed.gather(size))
        if size:
            with self.attempt('speed'):
                wrap_model(self.run, state)
                batch = first_images(batch, size)
                self._step(state, batch)
                step = self._seconds(lambda: self._step(state, batch), NUM_STEPS) / size
                forward = step
                if self.loss_fn is not None:
                    self._forward(state, batch)  # the first one takes longer
                    forward = self._seconds(lambda: self._forward(state, batch), NUM_STEPS) / size
                times = step, forward, self._read_seconds(self.loaders[self.main])
        measured = distributed.gather(times)
        if None in measured:
            return math.nan
        return self.time(state, *map(max, zip(*measured, strict=True)))

    def try_step(self, state: TrainState, batch: Batch) -> int:
        """Try a step without the other ranks, so that none of them waits if it fails.

        On the CPU, the number of images is chosen so that a step takes about STEP_SECONDS. With
        fewer images, the optimizer would take most of the time.

        Returns:
            Number of images in the step, or 0 if they do not fit into memory.
        """
        is_contrastive, size = self.run.stage == 'contrastive', len(batch[0])

        def seconds(size: int) -> float:
            return self._seconds(lambda: self._step(state, first_images(batch, size)))

        # A contrastive loss needs the whole batch.
        if self.run.device.type == 'cpu' and not is_contrastive:
            whole, size = size, min(2, size)  # batch norm may need two images
            seconds(size)  # the first step takes longer
            while size < whole and seconds(size) < STEP_SECONDS / 2:
                size = min(2 * size, whole)
        advice = 'lower --batch-size and raise --accumulation-steps, or use --use-checkpoint'
        if is_contrastive:
            advice = 'use more processes with a smaller --batch-size, or --use-checkpoint'
        try:
            for _ in range(2):  # from the second step on, the optimizer has its averages
                self._step(state, first_images(batch, size))
        except torch.OutOfMemoryError:
            found = f'a step of {size} images without compilation does not fit'
            self.add('memory', found, advice, problem=True)
            return 0
        if self.run.device.type == 'cuda':
            peak = torch.cuda.max_memory_allocated()
            available = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()
            found = f'{format_bytes(peak)} of {format_bytes(available)} for {size} images'
            self.add('memory', found, advice if peak > NEARLY_FULL * available else '')
        if self.loss_fn is None:
            self.add('step', f'computed the features of {size} images')
            return size
        progress = state.progress
        loss, norm = progress.waiting_losses[-1].item(), progress.waiting_norms[-1][1].item()
        scaled = state.scaler.is_enabled()  # the first steps of a gradient scaler may overflow
        is_finite = math.isfinite(loss) and (math.isfinite(norm) or scaled)
        advice = 'check DATA.MEAN, DATA.STD and the weights; then try --amp-opt-level O0'
        found = f'loss {loss:.4g}, gradient norm {norm:.4g} over {size} images'
        self.add('step', found, '' if is_finite else advice, problem=not is_finite)
        return size

    def time(self, state: TrainState, step: float, forward: float, read: float) -> float:
        """Report whether the model waits for data, and estimate the duration of the run.

        Args:
            state: State at the start of training.
            step: Seconds per image of a training step, or of computing features for a probe.
            forward: Seconds per image of a forward pass, or for a probe the same as `step`.
            read: Seconds per image of the loader.

        Returns:
            Estimated seconds of the run.
        """
        data, world = self.config.DATA, distributed.world_size()

        def with_reading(seconds: float) -> float:
            return max(seconds, read) if data.NUM_WORKERS else seconds + read

        waits = 1 - step / with_reading(step)
        found = f'loader {world / read:,.1f} images/s, model {world / step:,.1f}: '
        found += f'the model waits {waits:.0%} of the time'
        advice = 'raise DATA.NUM_WORKERS, or pack the images with scripts/pack.py'
        self.add('speed', found, advice if waits > WAITING else '')

        epochs, before = 1.0, 0
        if self.loss_fn is not None:
            before = state.epoch == state.batch == 0  # a new run is validated before training
            epochs = self.config.TRAIN.EPOCHS - state.epoch - state.batch / state.num_batches
        own = 'valid' if self.config.EVAL.SELECT_ON == 'valid' else 'holdout'
        validated = ('holdout', 'reference') if self.run.is_pretrain else (own,)
        scored = {self.loaders[name] for name in validated if name in self.loaders}
        others = sum(len(loader.dataset) for loader in scored)
        images = len(self.loaders[self.main]) * data.BATCH_SIZE
        training = epochs * images * with_reading(step)
        validations = math.ceil(epochs / self.config.EVAL.EVERY) + before
        validation = validations * others / world * with_reading(forward)
        work = 'training' if self.loss_fn else 'features'
        found = f'{duration(training)} of {work}, {duration(validation)} of validation'
        rest = '' if self.run.is_pretrain else ', without final scores and report'
        self.add('time', found + rest)
        return training + validation

    def schedule(self, state: TrainState) -> None:
        """Report epochs, steps, effective batch size and warm-up."""
        train, steps = self.config.TRAIN, state.steps_per_epoch
        warmup = int(train.WARMUP_EPOCHS * steps)
        images = self.config.DATA.BATCH_SIZE * state.accumulation * distributed.world_size()
        found = f'{train.EPOCHS} epochs of {steps:,} steps of {images:,} images, '
        found += f'{warmup:,} steps of warm-up'
        self.add('schedule', found, 'raise TRAIN.WARMUP_EPOCHS' if warmup < 2 else '')

    def disk(self, state: TrainState) -> None:
        """Compare the size of all kept checkpoints with the free space."""
        config, train = self.config, self.config.TRAIN
        epochs = range(state.epoch, train.EPOCHS)
        count = sum(e % config.SAVE_FREQ == 0 or e + 1 == train.EPOCHS for e in epochs)
        if train.SAVE_EVERY_STEPS:
            count += len(epochs) * state.steps_per_epoch // train.SAVE_EVERY_STEPS
        # The best checkpoint, and the next one before an old one is removed, also need space.
        count = min(count, config.SAVE_KEEP or count) + (not self.run.is_pretrain) + 1
        needed = count * checkpoint_bytes(state.module, optimizer_kind(config).moments)
        free = shutil.disk_usage(self.run.folder).free
        found = f'up to {count:,} checkpoints need {format_bytes(needed)}, '
        found += f'{format_bytes(free)} are free'
        advice = 'set SAVE_KEEP (such as 3), raise SAVE_FREQ, or choose another --output'
        full = needed > NEARLY_FULL * free
        self.add('disk', found, advice if full else '', problem=needed > free)

    def verdict(self, seconds: float) -> int:
        """Log the findings of rank 0 and the problems of all ranks, and return the exit code."""
        first, *others = distributed.gather(self.findings)
        first += [each for rank in others for each in rank if each.status == 'problem']
        problems = sum(finding.status == 'problem' for finding in first)
        verdict = f'not ready: {problems} problem(s)' if problems else 'ready'
        if not problems and not math.isnan(seconds):
            verdict += f', about {duration(seconds)}'
        self.run.logger.info(f'preflight\n\n{table(first)}\n\nverdict: {verdict}')
        return min(1, problems)

    def _step(self, state: TrainState, batch: Batch) -> None:
        """Make a training step, or compute the features for a probe."""
        if self.loss_fn is not None:
            state.model.train()
            train_one_batch(self.run, replace(state, accumulation=1), batch, self.loss_fn, 0)
            return
        with torch.no_grad():
            model = state.module.eval()
            for view in views_of(batch[0], self.run.device):
                with autocast(self.config, self.run.device):
                    model(view)

    @torch.no_grad()
    def _forward(self, state: TrainState, batch: Batch) -> None:
        """Compute the loss of a batch as in validation, whose model is not compiled."""
        state.module.eval()
        with autocast(self.config, self.run.device):
            self.loss_fn(state.module, to_device(batch, self.run.device))

    def _seconds(self, work: Callable[[], None], repeats: int = 1) -> float:
        start = synchronized_time(self.run.device)
        for _ in range(repeats):
            work()
        return (synchronized_time(self.run.device) - start) / repeats

    def _read_seconds(self, loader: DataLoader) -> float:
        """Measure the seconds per image of the loader, after each worker has returned a batch."""
        images = 0
        for number, batch in enumerate(endless_batches(loader)):
            now = synchronized_time(self.run.device)
            if number < max(1, loader.num_workers):
                start = now
                continue
            images += len(batch[0])
            if now - start >= LOADER_SECONDS:
                break
        return (now - start) / images


def table(findings: list[Finding]) -> str:
    """Format the findings as lines, each with its advice below."""
    width, lines = max(len(finding.check) for finding in findings), []
    for finding in findings:
        head = f'{finding.status:<7}  {finding.check:<{width}}  '
        indent = ' ' * len(head)
        lines.append(wrap(head + finding.found, indent))
        if finding.advice:
            lines.append(wrap(f'{indent}-> {finding.advice}', indent))
    return '\n'.join(lines)


def format_bytes(num_bytes: float) -> str:
    """Format bytes with a unit, such as '3.2 MB'."""
    unit, size = ('GB', 1e9) if num_bytes >= 1e9 else ('MB', 1e6)
    return f'{num_bytes / size:,.1f} {unit}'


def endless_batches(loader: DataLoader) -> Iterator[Batch]:
    """Yield the batches of all epochs without end."""
    for epoch in itertools.count():
        if hasattr(loader.batch_sampler, 'set_epoch'):
            loader.batch_sampler.set_epoch(epoch)
        yield from loader


def first_images(batch: Batch, size: int) -> Batch:
    """Return the first `size` images of a batch."""
    return tuple(item[:size] for item in batch)


def _with_options(run: Run, options: dict[str, Any]) -> Run:
    """Return a copy of the run with other options."""
    config = run.config.clone()
    config.defrost()
    config.merge_from_list([item for pair in options.items() for item in pair])
    config.freeze()
    return replace(run, config=config)
