"""--check: try what a run needs with its own code, and estimate its hours; --throughput."""

import itertools
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.data import DataLoader

from engine.causes import (
    NO_SHARED_MEMORY,
    SHARED_MEMORY_ADVICE,
    explain,
    has_small_shared_memory,
)
from engine.clock import duration
from engine.loop import LossFunction, begin, train_one_batch, wrap_model
from engine.run import Run
from engine.run_folder import is_locked
from engine.train_state import TrainState
from logger import wrap
from system import distributed
from system.device import autocast, busy_threads, to_device
from system.tool import EXIT_OTHER_PROCESS, command_of, share_of_cpus

Batch = tuple[torch.Tensor, ...]

ERRORS = (ValueError, ArithmeticError, OSError, RuntimeError, MemoryError)
STEP_SECONDS = 4.0  # target duration of a step on the CPU, where a whole batch may take minutes
NUM_STEPS = 5  # number of timed steps
LOADER_SECONDS = 4.0  # time to measure the loader, after all workers have started
WAITING = 0.1  # share of the time that the model may wait for data without a warning
DRIVER_FILE = Path('/proc/driver/nvidia/version')  # of NVIDIA's kernel module on Linux
DRIVER_VERSION = re.compile(r'Kernel Module(?: for \S+)?\s+([\d.]+)')
SETUP_PAGE = 'tutorial.md#1-set-up'
SAME_PATIENTS = 'use the DATA.TRAIN_CSV and DATA.HOLDOUT_FRACTION of that training'
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
    """Try what a run needs, and log a table of findings and a verdict.

    The steps use the training code and real batches. The weights are discarded, and only the log is
    written to the run folder. `loss_fn` is None for a probe, which trains nothing. `findings` are
    further lines of the table: (check, found, advice or '').

    Returns:
        Exit code: 0 if the run is ready, 1 if there is a problem.
    """
    check = Preflight(run, model, loaders, loss_fn)
    check.machine()
    check.data()
    for finding in findings:
        check.add(*finding)
    check.weights()
    seconds = math.nan
    if all(distributed.gather(check.state is not None)):
        if all(distributed.gather(check.batch is not None)):
            seconds = check.steps()
        if loss_fn is not None and not math.isnan(seconds):
            check.disk()
    return check.verdict(seconds)


def _why_cpu() -> tuple[str, str]:
    """Return what to report of a run on the CPU, and advice. An unused NVIDIA driver is named."""
    if not DRIVER_FILE.is_file():
        return 'CPU', 'use a GPU and a PyTorch version that supports its driver'
    driver = DRIVER_VERSION.search(DRIVER_FILE.read_text(encoding='utf-8'))
    cuda = f'CUDA {torch.version.cuda}' if torch.version.cuda else 'CPUs only'
    advice = f'install the PyTorch of this driver: docs/{SETUP_PAGE}'
    if os.environ.get('CUDA_VISIBLE_DEVICES') in ('', '-1'):
        advice = 'CUDA_VISIBLE_DEVICES hides the GPUs'
    number = driver[1] if driver else 'of unknown version'
    found = f'PyTorch {torch.__version__} is for {cuda}, and finds no GPU'
    return f'CPU, though there is an NVIDIA driver {number}: {found}', advice


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
        self.loaders = {name: each for name, each in loaders.items() if each is not None}
        self.main = self.loaders['train' if 'train' in self.loaders else 'plain']
        self.batch: Batch | None = None  # the first one of `main`
        self.state: TrainState | None = None  # None if the weights cannot be loaded
        self.findings: list[Finding] = []

    def add(self, check: str, found: str, advice: str = '', *, problem: bool = False) -> None:
        """Add a finding. With advice it is a warning."""
        status = 'problem' if problem else 'warning' if advice else 'ok'
        self.findings.append(Finding(check, status, found, advice))

    @contextmanager
    def attempt(self, check: str, advice: str = '', *, exchanges: bool = False) -> Iterator[None]:
        """Report an error inside the block as a problem.

        With `exchanges`, other processes would wait for this one, so its error ends the check.
        """
        try:
            yield
        except ERRORS as error:
            code, message = explain(error)
            if code == EXIT_OTHER_PROCESS or (exchanges and distributed.world_size() > 1):
                raise
            if isinstance(error, torch.OutOfMemoryError):
                check, advice = 'memory', self.less_memory()
            advice = '' if message.startswith(NO_SHARED_MEMORY) else advice  # which has its own
            self.add(check, message, advice, problem=True)

    def machine(self) -> None:
        """Report the device and unused GPUs, and whether the run folder can be written."""
        if self.run.device.type == 'cpu':
            self.add('device', *_why_cpu())
            if advice := busy_threads():
                self.add('threads', f'{torch.get_num_threads()}', advice)
        else:
            used, gpus = int(os.environ.get('LOCAL_WORLD_SIZE', 1)), torch.cuda.device_count()
            advice = f'use all: torchrun --nproc_per_node {gpus}' if used < gpus else ''
            self.add('device', f'GPUs: {used} of {gpus}, {torch.cuda.get_device_name()}', advice)
        if self.config.DATA.NUM_WORKERS and has_small_shared_memory():
            self.add('shared memory', 'a few batches fill /dev/shm', SHARED_MEMORY_ADVICE)
        folder = self.run.folder
        with self.attempt('output', 'choose another --output or --tag'):
            with tempfile.NamedTemporaryFile(dir=folder) as file:  # a quota may be used up
                file.write(bytes(2**20))
                file.flush()
            if distributed.is_main() and is_locked(folder):
                raise ValueError(f'another run is writing to the folder {folder}')
            self.add('output', f'{folder} can be written')

    def data(self) -> None:
        """Read the first batch of each split."""
        for name, loader in self.loaders.items():
            advice = f'{command_of("scripts/check_data.py")} reads every image'
            with self.attempt(f'data: {name}', advice):
                batch = next(iter(loader), None)
                if loader is self.main:
                    self.batch = batch
                number = f'{len(loader.dataset):,} images in {len(loader):,} batches'
                self.add(f'data: {name}', f'{number}; the first was read')
            if self.findings[-1].found.startswith(NO_SHARED_MEMORY):
                return  # the other splits would fail alike

    def weights(self) -> None:
        """Load the weights that the run would start from."""
        config = self.config
        with self.attempt('weights', 'choose another --pretrained or --resume, or another --tag'):
            state = begin(self.run, self.model, self.main)
            found, advice = f'starts from {config.PRETRAINED or "random weights"}', ''
            if state.epoch or state.batch:
                done = f'{state.epoch} of {config.TRAIN.EPOCHS} epochs are done'
                found = f'resumes from {state.source}: {done}'
                if state.is_done(config):
                    advice = 'nothing is left to train: raise TRAIN.EPOCHS or choose another --tag'
            elif not config.PRETRAINED and not self.run.is_pretrain:
                advice = 'choose a pre-trained encoder with --pretrained'
            self.add('weights', found, advice)
            for line in self.run.lineage.warnings:
                self.add('weights', line, SAME_PATIENTS)
            self.state = state

    def steps(self) -> float:
        """Make real steps, report memory, loss and speed, and return the seconds of the run.

        On the CPU they use so many images of the batch that a step takes about STEP_SECONDS. The
        result is NaN if a step fails.
        """
        size, device = len(self.batch[0]), self.run.device
        with self.attempt('step', 'speed and time were not measured', exchanges=True):
            wrap_model(self.run, self.state)
            # A contrastive loss compares the images of the whole batch.
            if device.type == 'cpu' and self.run.stage != 'contrastive':
                few = min(2, size)  # batch norm may need two images
                self.seconds_per_image(self.step, few, repeats=1)  # the first step takes longer
                most = int(STEP_SECONDS / self.seconds_per_image(self.step, few, repeats=1))
                size = max(few, min(size, most))
            self.seconds_per_image(self.step, size, repeats=2)  # compiles
            step = forward = self.seconds_per_image(self.step, size)
            if device.type == 'cuda':
                peak = torch.cuda.max_memory_allocated()
                available = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()
                found = f'{peak / 1e9:.1f} of {available / 1e9:.1f} GB for {size} images'
                is_full = peak > NEARLY_FULL * available
                self.add('memory', found, self.less_memory() if is_full else '')
            if self.loss_fn is None:
                self.add('step', f'computed the features of {size} images')
            else:
                self.loss(size)
                self.seconds_per_image(self.validation_step, size, repeats=1)
                forward = self.seconds_per_image(self.validation_step, size)
            times = distributed.gather((step, forward, self.read_seconds()))
            return self.hours(*map(max, zip(*times, strict=True)))
        return math.nan

    def step(self, batch: Batch) -> None:
        """Make a training step, or compute the features for a probe."""
        if self.loss_fn is not None:
            self.state.model.train()
            state = replace(self.state, accumulation=1)
            train_one_batch(self.run, state, batch, self.loss_fn, 0)
            return
        with torch.no_grad(), autocast(self.config, self.run.device):
            model = self.state.module.eval()
            model.forward_features(batch[0].to(self.run.device))

    @torch.no_grad()
    def validation_step(self, batch: Batch) -> None:
        """Compute the loss as in validation, whose model is not compiled."""
        model = self.state.scored.eval()
        with autocast(self.config, self.run.device):
            self.loss_fn(model, to_device(batch, self.run.device))

    def seconds_per_image(
        self, step: Callable[[Batch], None], size: int, *, repeats: int = NUM_STEPS
    ) -> float:
        """Make steps on the first `size` images of the batch."""
        batch = tuple(item[:size] for item in self.batch)
        start = synchronized_time(self.run.device)
        for _ in range(repeats):
            step(batch)
        return (synchronized_time(self.run.device) - start) / repeats / size

    def read_seconds(self) -> float:
        """Measure the seconds per image of the loader, after each worker has returned a batch."""
        images = 0
        for number, batch in enumerate(endless_batches(self.main)):
            now = synchronized_time(self.run.device)
            if number < max(1, self.main.num_workers):
                start = now
                continue
            images += len(batch[0])
            if now - start >= LOADER_SECONDS:
                break
        return (now - start) / images

    def loss(self, size: int) -> None:
        """Report loss and gradient norm of the timed steps."""
        losses = torch.stack(self.state.progress.waiting_losses).tolist()[-NUM_STEPS:]
        norms = [float(norm) for _, norm in self.state.progress.waiting_norms[-NUM_STEPS:]]
        # The first steps of a gradient scaler may overflow.
        checked = losses if self.state.scaler.is_enabled() else losses + norms
        is_finite = all(map(math.isfinite, checked))
        advice = 'check DATA.MEAN, DATA.STD and the weights; then try --amp-opt-level O0'
        found = f'{NUM_STEPS} steps on {size} images: loss {losses[0]:.4g} to {losses[-1]:.4g}'
        found += f', gradient norm {norms[-1]:.4g}'
        self.add('step', found, '' if is_finite else advice, problem=not is_finite)

    def hours(self, step: float, forward: float, read: float) -> float:
        """Report whether the model waits for data, and return the estimated seconds of the run.

        Arguments are seconds per image of a step, of a forward pass and of the loader.
        """
        config, state, world = self.config, self.state, distributed.world_size()

        def with_reading(seconds: float) -> float:
            return max(seconds, read) if config.DATA.NUM_WORKERS else seconds + read

        waits = 1 - step / with_reading(step)
        found = f'loader {world / read:,.1f} images/s, model {world / step:,.1f}: '
        found += f'the model waits {waits:.0%} of the time'
        has_cores = config.DATA.NUM_WORKERS < share_of_cpus()
        more = 'raise DATA.NUM_WORKERS' if has_cores else 'use more cores'
        advice = f'{more}, or pack the images: {command_of("scripts/pack.py")}'
        self.add('speed', found, advice if waits > WAITING else '')

        epochs, work, num_validations = 1.0, 'the features', 1
        if self.loss_fn is not None:
            work = f'{config.TRAIN.EPOCHS} epochs of {state.steps_per_epoch:,} steps'
            epochs = config.TRAIN.EPOCHS - state.epoch - state.batch / state.num_batches
            num_validations = math.ceil(epochs / config.EVAL.EVERY)
            num_validations += state.epoch == state.batch == 0  # a new run is validated first
        selecting = 'valid' if config.EVAL.SELECT_ON == 'valid' else 'holdout'
        validated = ('holdout', 'reference') if self.run.is_pretrain else (selecting,)
        scored = {self.loaders[name] for name in validated if name in self.loaders}
        num_scored = sum(len(loader.dataset) for loader in scored)
        images = len(self.main) * config.DATA.BATCH_SIZE
        training = epochs * images * with_reading(step)
        validation = num_validations * num_scored / world * with_reading(forward)
        rest = '' if self.run.is_pretrain else ', without final scores and report'
        found = f'{duration(training)} for {work}, {duration(validation)} for validation'
        self.add('time', found + rest)
        return training + validation

    def less_memory(self) -> str:
        """Return advice for a step that does not fit into memory."""
        if self.run.stage == 'contrastive':  # accumulation would split the compared images
            return 'use more processes with a smaller --batch-size, or --use-checkpoint'
        return 'lower --batch-size and raise --accumulation-steps, or use --use-checkpoint'

    def disk(self) -> None:
        """Compare the size of all kept checkpoints with the free space."""
        config, train, state = self.config, self.config.TRAIN, self.state
        epochs = range(state.epoch, train.EPOCHS)
        count = sum(e % config.SAVE_FREQ == 0 or e + 1 == train.EPOCHS for e in epochs)
        if train.SAVE_EVERY_STEPS:
            count += len(epochs) * state.steps_per_epoch // train.SAVE_EVERY_STEPS
        # The best checkpoint, and the next one before an old one is removed, also need space.
        count = min(count, config.SAVE_KEEP or count) + (not self.run.is_pretrain) + 1
        needed = count * checkpoint_bytes(state)
        free = shutil.disk_usage(self.run.folder).free
        found = f'up to {count:,} checkpoints need {needed / 1e9:.1f} GB, {free / 1e9:.1f} are free'
        advice = 'set SAVE_KEEP (such as 3), raise SAVE_FREQ, or choose another --output'
        is_full = needed > NEARLY_FULL * free
        self.add('disk', found, advice if is_full else '', problem=needed > free)

    def verdict(self, seconds: float) -> int:
        """Log the findings of rank 0 and the problems of all ranks, and return the exit code."""
        first, *others = distributed.gather(self.findings)
        first += [each for rank in others for each in rank if each.status == 'problem']
        problems = sum(finding.status == 'problem' for finding in first)
        number = '1 problem' if problems == 1 else f'{problems} problems'
        verdict = f'not ready: {number}' if problems else 'ready'
        if not problems and not math.isnan(seconds):
            verdict += f', about {duration(seconds)}'
        width, lines = max(len(finding.check) for finding in first), []
        for finding in first:
            head = f'{finding.status:<7}  {finding.check:<{width}}  '
            indent = ' ' * len(head)
            lines.append(wrap(head + finding.found, indent))
            if finding.advice:
                lines.append(wrap(f'{indent}-> {finding.advice}', indent))
        table = '\n'.join(lines)
        self.run.logger.info(f'preflight\n\n{table}\n\nverdict: {verdict}')
        return min(1, problems)


def endless_batches(loader: DataLoader) -> Iterator[Batch]:
    """Yield the batches of all epochs without end."""
    for epoch in itertools.count():
        if hasattr(loader.batch_sampler, 'set_epoch'):
            loader.batch_sampler.set_epoch(epoch)
        yield from loader


@torch.no_grad()
def log_throughput(
    run: Run,
    model: nn.Module,
    loaders: Mapping[str, DataLoader | None],
    *,
    num_inputs: int | None = None,
) -> int:
    """Log images per second of 30 forward passes, after 50 for warm-up (--throughput).

    `num_inputs` is the number of elements of a batch that the model takes; None: all.

    Returns:
        Exit code.
    """
    batch = next(iter(loaders['train'] or loaders['plain']))
    inputs = to_device(batch[:num_inputs], run.device)
    model.to(run.device).eval()
    for num_passes in (50, 30):
        start = synchronized_time(run.device)
        for _ in range(num_passes):
            with autocast(run.config, run.device):
                model(*inputs)
        seconds = synchronized_time(run.device) - start
    rate = num_passes * len(inputs[0]) / seconds
    run.logger.info(f'throughput {rate:.1f} images/s; --check measures training and its hours')
    return 0


def checkpoint_bytes(state: TrainState) -> int:
    """Return the bytes of the model and the optimizer in a checkpoint, after the first step."""
    moments = state.optimizer.state_dict()['state'].values()
    values = [
        *state.module.state_dict().values(),
        *(value for each in moments for value in each.values()),
    ]
    return sum(value.nbytes for value in values if isinstance(value, torch.Tensor))


def synchronized_time(device: torch.device) -> float:
    """Wait until the device is idle and return the seconds of a monotonic clock."""
    if device.type == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter()
