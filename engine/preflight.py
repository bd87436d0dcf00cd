"""--check: is all there that a run needs, does it fit, and how long will it take."""

from __future__ import annotations

import itertools
import logging
import math
import os
import re
import shutil
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from data import Loaders
from data.labels import COMPETITION_LABELS, task_labels
from data.store import is_store
from engine import distributed
from engine.device import autocast, synchronized_time
from engine.launch import EXIT_OTHER_PROCESS, LOCK_FILE, Run, RunLock, explain
from engine.loop import LossFunction, begin, train_one_batch
from engine.train_state import TrainState
from evaluation.inference import views_of
from evaluation.metrics import describe_few, more_cases, rarer_cases

# ==== preflight_report: What a check of a run found: a line for each check, their table and the verdict.

STATUSES = ('ok', 'warning', 'problem')  # the worse ones later
ERRORS = (ValueError, ArithmeticError, OSError, RuntimeError, MemoryError)
WIDTH = 100  # columns of the table


@dataclass(frozen=True)
class Finding:
    """One line of the table."""

    check: str
    status: str
    found: str
    advice: str = ''


class Findings:
    """The findings of this rank, in the order of the checks."""

    def __init__(self) -> None:
        self.found: list[Finding] = []

    def add(self, check: str, found: str, advice: str = '') -> None:
        """What was found; with an advice it is a warning."""
        self.found.append(Finding(check, 'warning' if advice else 'ok', found, advice))

    def problem(self, check: str, found: str, advice: str = '') -> None:
        self.found.append(Finding(check, 'problem', found, advice))

    @contextmanager
    def attempt(self, check: str, advice: str = '') -> Iterator[None]:
        """What fails inside is a problem, and the next check goes on."""
        try:
            yield
        except ERRORS as error:
            code, message = explain(error)
            if code == EXIT_OTHER_PROCESS:
                raise
            self.problem(check, message, advice)

    def log(self, logger: logging.Logger, seconds: float, *, rest: str = '') -> int:
        """Log the table over all ranks and the verdict; returns the number of problems.

        Args:
            logger: of the run.
            seconds: that the run will take.
            rest: what is not in these, in words.
        """
        findings = merge(distributed.gather(self.found))
        problems = sum(finding.status == 'problem' for finding in findings)
        plural = 's' if problems > 1 else ''
        verdict = f'not ready: {problems} problem{plural}' if problems else 'ready'
        if not problems and not math.isnan(seconds):
            verdict += f', about {duration(seconds)}{rest}'
        logger.info(f'preflight\n\n{table(findings)}\n\nverdict: {verdict}')
        return problems


def merge(by_rank: Sequence[Sequence[Finding]]) -> list[Finding]:
    """Of each check the worst that any rank found; of equals that of the lowest rank."""
    worst = {}
    for rank, findings in enumerate(by_rank):
        for finding in findings:
            held = worst.get(finding.check)
            if held is None or STATUSES.index(finding.status) > STATUSES.index(held.status):
                found = f'rank {rank}: {finding.found}' if rank else finding.found
                worst[finding.check] = replace(finding, found=found)
    return list(worst.values())


def table(findings: Sequence[Finding]) -> str:
    """A line for each finding, what to do below it; no wider than WIDTH, but for long paths."""
    width = max(len(finding.check) for finding in findings)
    lines = []
    for finding in findings:
        head = f'{finding.status:<7}  {finding.check:<{width}}  '
        margin = ' ' * len(head)
        lines += _wrapped(finding.found, head, margin)
        if finding.advice:
            lines += _wrapped(finding.advice, f'{margin}-> ', f'{margin}   ')
    return '\n'.join(lines)


def amount(num_bytes: float) -> str:
    """Bytes in words: '3.2 MB'."""
    units = [('TB', 1e12), ('GB', 1e9), ('MB', 1e6), ('kB', 1e3)]
    unit, size = next((each for each in units if num_bytes >= each[1]), units[-1])
    return f'{num_bytes / size:,.{0 if num_bytes >= 100 * size else 1}f} {unit}'


def rate(value: float) -> str:
    """A number a second: '1,165', '0.6'."""
    return f'{value:,.{0 if value >= 10 else 1}f}'


def duration(seconds: float) -> str:
    """Seconds in words: '3.2 hours', '12.0 minutes'."""
    units = [('hours', 3600), ('minutes', 60), ('seconds', 1)]
    unit, size = next((each for each in units if seconds >= each[1]), units[-1])
    return f'{seconds / size:,.1f} {unit}'


def _wrapped(text: str, first: str, others: str) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=others,
        break_long_words=False,
        break_on_hyphens=False,
    )


# ==== preflight_bench: What steps of a run take, tried on its own batches: memory and seconds.
#
# The weights change as by training; they are to be thrown away.

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


# ==== preflight_costs: What a run costs: its memory, disk and time, from what was measured.

WAITING = 0.1  # share of the time that the model may wait for data
NEARLY_FULL = 0.95  # of memory or disk: used up to here without a warning
SLIGHT = 0.01  # of memory: less than that is no more than noise
LOG_BYTES = 2**19, 2**9  # of an epoch with its pictures, of a line of the log: upper estimates


class Costs:
    """Adds a line for each cost to the findings.

    Args:
        run: the run.
        state: where it would start.
        findings: added to.
        trains: whether the model is trained; else it gives features.
    """

    def __init__(self, run: Run, state: TrainState, findings: Findings, *, trains: bool) -> None:
        self.run, self.config, self.state, self.findings = run, run.config, state, findings
        self.trains = trains
        self.ranks_here = int(os.environ.get('LOCAL_WORLD_SIZE', 1))

    def step(self, trial: Trial) -> None:
        """Whether loss and gradient are numbers."""
        images = trial.images[1]
        if not self.trains:
            self.findings.add('step', f'features of {images} images computed')
            return
        found = f'loss {trial.loss:.4g}, gradient norm {trial.norm:.4g} over {images} images'
        # A gradient scaler finds its scale in the first steps.
        has_norm = math.isfinite(trial.norm) or self.state.scaler.is_enabled()
        if math.isfinite(trial.loss) and has_norm:
            self.findings.add('step', found)
        else:
            advice = 'check DATA.MEAN, DATA.STD and the weights; then try --amp-opt-level O0'
            self.findings.problem('step', found, advice)

    def memory(self, trial: Trial, asked: int) -> None:
        """What a micro-batch takes, on the line through the two that were measured."""
        on_cpu, (less, measured) = self.run.device.type == 'cpu', trial.images
        overflowed = measured < asked and not on_cpu  # on the CPU a part is measured to be quick
        # A copy waits in memory while it is written.
        fixed = trial.fixed + (checkpoint_bytes(self.state) if on_cpu else 0)
        activations, largest = trial.per_image * asked, asked
        available = available_memory(self.run.device, self.ranks_here)
        found = f'{amount(fixed + activations)} of {amount(available)}: {amount(activations)} for '
        found += f'{asked} images, {amount(fixed)} for all else'
        if trial.per_image:
            largest = max(0, int((NEARLY_FULL * available - fixed) / trial.per_image))
        if overflowed:  # whatever the line says
            largest = min(largest, asked - 1)
            found = f'{asked} images overflow it: {found}'
        if activations > SLIGHT * available:
            found += f'; at most about {largest:,} would fit'
        if measured < asked:
            found += f' (by steps over {less} and {measured})'
        smaller = f'--batch-size {largest} and more --accumulation-steps'
        if self.run.stage == 'contrastive':  # it compares the images of a micro-batch
            smaller = 'more processes with less --batch-size (the same product), a smaller model'
        advice = f'take {smaller if largest else "a smaller model"}, or --use-checkpoint'
        if overflowed or fixed + activations > available:
            self.findings.problem('memory', found, advice)
        else:
            self.findings.add('memory', found, advice if largest < asked else '')

    def speed(self, times: Times) -> None:
        """Who waits for whom."""
        data, world = self.config.DATA, distributed.world_size()
        share = 1 - times.step / times.pace(times.step)
        found = f'loader {rate(world / times.read)} images/s, model {rate(world / times.step)}'
        if times.images < data.BATCH_SIZE:
            found += f' ({times.images} at a time, not {data.BATCH_SIZE})'
        found += f': the model waits {share:.0%} of the time' if share > 0 else ': no waiting'
        more = []
        if data.NUM_WORKERS * self.ranks_here < num_cores():
            more.append(f'raise DATA.NUM_WORKERS from {data.NUM_WORKERS}')
        if not is_store(data.DATA_PATH):
            more.append('pack the images with scripts/pack.py')
        advice = ', or '.join(more) or 'take a machine with more cores'
        self.findings.add('speed', found, advice if share > WAITING else '')

    def time(self, times: Times, num_trained: int, num_scored: int) -> float:
        """Seconds of what is left.

        Args:
            times: measured.
            num_trained: images of an epoch and process, or whose features are computed.
            num_scored: held-out images of a process, after each epoch.
        """
        state, epochs = self.state, self.config.TRAIN.EPOCHS
        left = max(0, epochs - state.epoch - state.batch / state.num_batches)
        left = left if self.trains else 1
        training = left * num_trained * times.pace(times.step)
        validation = math.ceil(left) * num_scored * times.pace(times.scored)
        work = 'training' if self.trains else 'features'
        found = f'{duration(training)} of {work} and {duration(validation)} of validation'
        self.findings.add('time', found)
        return training + validation

    def disk(self, seconds: float) -> None:
        """Checkpoints that are kept, and logs, against what is free."""
        config, train, state = self.config, self.config.TRAIN, self.state
        epochs = range(state.epoch, train.EPOCHS) if self.trains else range(1)
        count = sum(e % config.SAVE_FREQ == 0 or e + 1 == train.EPOCHS for e in epochs)
        if train.SAVE_EVERY_STEPS:
            count += len(epochs) * state.steps_per_epoch // train.SAVE_EVERY_STEPS
        if train.SAVE_EVERY_MINUTES and not math.isnan(seconds):
            count += int(seconds / 60 / train.SAVE_EVERY_MINUTES)
        count = min(count, config.SAVE_KEEP or count)
        # Beside them the best one, and one that is whole before another goes.
        count = count + (not self.run.is_pretrain) + 1 if self.trains else 0
        each, lines = checkpoint_bytes(state), len(epochs) * state.num_batches / config.PRINT_FREQ
        needed = count * each + len(epochs) * LOG_BYTES[0] + lines * LOG_BYTES[1]
        free = shutil.disk_usage(self.run.folder).free
        found = f'{amount(needed)} of {amount(free)} that are free'
        if count:
            found += f': up to {count:,} checkpoints of {amount(each)}, and logs'
        advice = 'set SAVE_KEEP (such as 3), raise SAVE_FREQ, or choose another --output'
        if needed > free:
            self.findings.problem('disk', found, advice)
        else:
            self.findings.add('disk', found, advice if needed > NEARLY_FULL * free else '')


def checkpoint_bytes(state: TrainState) -> int:
    """Bytes of a checkpoint's tensors: the model's, and moments as the optimizer will have."""
    model = sum(v.numel() * v.element_size() for v in state.module.state_dict().values())
    trained = [p for group in state.optimizer.param_groups for p in group['params']]
    moments = sum(p.numel() * p.element_size() for p in trained)
    if isinstance(state.optimizer, torch.optim.AdamW):
        return model + 2 * moments + 4 * len(trained)  # and how many steps, for each
    return model + moments


def num_cores() -> int:
    """Cores that this process may use."""
    known = getattr(os, 'sched_getaffinity', None)  # not on macOS
    return len(known(0)) if known else os.cpu_count() or 1


# ==== preflight: --check: is all there that a run needs, does it fit, and how long will it take.

NETWORK_DRIVE = re.compile(r'nfs|cifs|smb|lustre|ceph|gpfs|beegfs|9p|fuse(\.|$)')
READ_ALL = 'mend or remove it; scripts/check_data.py reads every image'


def preflight(
    run: Run,
    model: nn.Module,
    loaders: Loaders,
    loss_fn: LossFunction | None = None,
    *,
    convert: Callable[..., Any],
) -> int:
    """Check and measure what the run is made of, and log a table of it that ends in a verdict.

    What trains is the engine's own code on the run's own batches; the weights are thrown away.

    Args:
        run: the run; nothing but the log is written into its folder.
        model: built model, on any device.
        loaders: of the stage.
        loss_fn: as for `engine.fit`; None where nothing is trained (a probe).
        convert: fits pre-trained weights to the model; see `utils.load_pretrained`.

    Returns:
        Exit code: 0 if the run is ready, 1 if a problem was found.
    """
    check = Preflight(run, model, loaders, loss_fn, convert)
    check.machine()
    check.drive()
    check.output()
    for name in check.loaders:
        check.read_batch(name)
    check.selection()
    state = check.weights()
    check.schedule(state)
    seconds = check.costs(state)
    work = 'training' if loss_fn else 'features'
    rest = '' if run.is_pretrain else f' of {work}, plus scoring and report'
    return min(1, check.findings.log(run.logger, seconds, rest=rest))


class Preflight:
    """The checks of one run; each adds to the findings of this rank."""

    def __init__(
        self,
        run: Run,
        model: nn.Module,
        loaders: Loaders,
        loss_fn: LossFunction | None,
        convert: Callable[..., Any],
    ) -> None:
        self.run, self.config, self.model, self.loss_fn = run, run.config, model, loss_fn
        self.convert = convert
        self.loaders = {k: loader for k, loader in loaders._asdict().items() if loader is not None}
        self.main = 'plain' if loaders.train is None else 'train'
        self.scored = [run.config.EVAL.SELECT_ON if loss_fn else 'holdout']
        if run.is_pretrain:
            self.scored = ['holdout', 'reference']
        self.batches: dict[str, Any] = {}
        self.findings = Findings()
        self.ranks_here = int(os.environ.get('LOCAL_WORLD_SIZE', 1))

    def machine(self) -> None:
        """Device, processor cores and shared memory."""
        add, data, ranks = self.findings.add, self.config.DATA, self.ranks_here
        if self.run.device.type == 'cuda':
            gpus = torch.cuda.device_count()
            advice = f'use all: torchrun --nproc_per_node {gpus}' if ranks < gpus else ''
            add('device', f'{ranks} of {gpus} GPU(s), {torch.cuda.get_device_name()}', advice)
        elif any(Path('/dev').glob('nvidia[0-9]*')):
            add('device', 'the CPU, though there is a GPU', 'install a torch that fits its driver')
        else:
            add('device', 'the CPU, there is no GPU', 'for more than a trial take one with a GPU')
        cores, workers = num_cores(), data.NUM_WORKERS * ranks
        advice = f'lower DATA.NUM_WORKERS to {max(1, cores // ranks)}' if workers > cores else ''
        add('workers', f'{workers} on {cores} cores, for {ranks} process(es)', advice)
        if workers and Path('/dev/shm').is_dir():
            free = shutil.disk_usage('/dev/shm').free
            pixels = data.BATCH_SIZE * self.config.MODEL.IN_CHANS * data.IMG_SIZE**2
            needed = 2 * workers * pixels * 4  # each has two batches of float32 under way
            found = f'/dev/shm has {amount(free)} free, the workers fill up to {amount(needed)}'
            advice = 'enlarge it (docker run --shm-size), or lower DATA.NUM_WORKERS'
            add('shared memory', found, advice if needed > free else '')

    def drive(self) -> None:
        """The file system of the data: many small files over a network are slow."""
        data = self.config.DATA
        kind = file_system(Path(data.DATA_PATH))
        slow = NETWORK_DRIVE.match(kind) and not data.CACHE_DIR
        pack = '' if is_store(data.DATA_PATH) else 'pack the images (scripts/pack.py) and '
        advice = f'{pack}name a folder on this machine as DATA.CACHE_DIR' if slow else ''
        self.findings.add('drive', f'{data.DATA_PATH} ({kind})', advice)

    def output(self) -> None:
        """The run's folder: can it be written, and is it this run's own."""
        config, folder = self.config, self.run.folder
        with self.findings.attempt('output', 'choose another with --output or --tag'):
            with tempfile.NamedTemporaryFile(dir=folder) as probe:
                probe.write(bytes(2**20))
                probe.flush()
                os.fsync(probe.fileno())
            if distributed.is_main() and (folder / LOCK_FILE).exists():
                RunLock(folder).acquire().release()
            others = sorted(path.name for path in folder.glob('ckpt_*.pth'))
            goes_on = config.TRAIN.AUTO_RESUME or config.MODEL.RESUME
            if others and not goes_on and self.loss_fn is not None:
                found = f'{folder} has checkpoints of another run, such as {others[0]}'
                self.findings.add('output', found, 'choose another --tag, or they are written over')
            else:
                self.findings.add('output', f'can be written: {folder}')

    def read_batch(self, name: str) -> None:
        """The first batch of a split."""
        loader = self.loaders[name]
        with self.findings.attempt(f'data: {name}', READ_ALL):
            self.batches[name] = next(iter(loader), None)
            found = f'{len(loader.dataset):,} images in {len(loader):,} batches; the first was read'
            self.findings.add(f'data: {name}', found)

    def selection(self) -> None:
        """Whether held-out images are enough to choose a checkpoint, or a probe, by them."""
        config, name = self.config, self.scored[0]
        if self.run.is_pretrain or name not in self.loaders:
            return
        labels, targets = task_labels(config.DATA.TASK), self.loaders[name].dataset.targets
        cases = rarer_cases(targets, labels, COMPETITION_LABELS, config.EVAL.SELECT)
        few = describe_few(cases)
        found = f'by {len(targets):,} images of {name}; of the rarer class: '
        found += few or f'at least {min(cases.values()):,}'
        if config.EVAL.SELECT == 'five' and not all(cases.values()):
            advice = f'EVAL.SELECT five needs both classes of each: {more_cases(name)}'
            self.findings.problem('selection', found, advice)
        else:
            advice = f'so few choose by chance: {more_cases(name)}' if few else ''
            self.findings.add('selection', found, advice)

    def weights(self) -> TrainState:
        """What the run would start with; random weights where that cannot be loaded."""
        config, epochs, loader = self.config, self.config.TRAIN.EPOCHS, self.loaders[self.main]
        # As the run will be; a probe never goes on from a checkpoint.
        goes_on = config.TRAIN.AUTO_RESUME and self.loss_fn is not None
        own = {'CHECK_MODE': False, 'TRAIN.AUTO_RESUME': goes_on}
        advice = 'name another with --pretrained or --resume, or start anew under another --tag'
        with self.findings.attempt('weights', advice):
            state = begin(_with(self.run, own), self.model, loader, self.convert)
            found, advice = f'starts from {config.PRETRAINED or "random weights"}', ''
            if state.epoch or state.batch:
                found = f'goes on from {state.source}: {state.epoch} of {epochs} epochs are done'
                if state.epoch >= epochs:
                    advice = 'nothing is left to train: raise TRAIN.EPOCHS or take another --tag'
            elif not config.PRETRAINED and not self.run.is_pretrain:
                advice = 'name a pre-trained encoder with --pretrained'
            self.findings.add('weights', found, advice)
            return state
        nothing = {'MODEL.RESUME': '', 'PRETRAINED': '', 'TRAIN.AUTO_RESUME': False}
        return begin(_with(self.run, nothing), self.model, loader, self.convert)

    def schedule(self, state: TrainState) -> None:
        """Epochs, steps, images of a step, warm-up."""
        train, steps = self.config.TRAIN, state.steps_per_epoch
        if self.loss_fn is None:
            return
        warmup = int(train.WARMUP_EPOCHS * steps)
        images = self.config.DATA.BATCH_SIZE * state.accumulation * distributed.world_size()
        found = f'{train.EPOCHS} epochs of {steps:,} steps of {images:,} images'
        found += f', {warmup:,} steps of warm-up'
        advice = 'the first steps go at the full rate: raise TRAIN.WARMUP_EPOCHS'
        self.findings.add('schedule', found, advice if warmup < 2 else '')

    def costs(self, state: TrainState) -> float:
        """Try a step, measure, and add what follows from it; seconds of the run, or NaN."""
        # A loss that is no number is a finding: it is not to be left out.
        bench = Bench(_with(self.run, {'TRAIN.ON_NAN': 'stop'}), state, self.loss_fn)
        batch = self.batches.get(self.main)
        costs = Costs(self.run, state, self.findings, trains=self.loss_fn is not None)
        trial, times, seconds = None, None, math.nan
        if batch is None:
            found = 'not tried, and memory, speed and time not measured: there is no batch'
            self.findings.add('step', found, 'mend the data first')
        else:
            self.run.logger.info('trying steps, then timing them and the loader')
            with self.findings.attempt('step', 'memory, speed and time were not measured'):
                trial = bench.trial(batch)
                costs.step(trial)
                costs.memory(trial, len(batch[0]))
        trials = distributed.gather(trial)
        if None not in trials:
            held = [self.batches[name] for name in self.scored if name in self.batches]
            with self.findings.attempt('speed', READ_ALL):
                batch = part(batch, min(each.images[1] for each in trials))
                times = bench.times(batch, held[0] if held else None, self.loaders[self.main])
        times = slowest(distributed.gather(times))
        if times is not None:
            costs.speed(times)
            scored = sum(len(self.loaders[k].dataset) for k in self.scored if k in self.loaders)
            images = len(self.loaders[self.main]) * self.config.DATA.BATCH_SIZE
            seconds = costs.time(times, images, scored / distributed.world_size())
        costs.disk(seconds)
        return seconds


def file_system(path: Path) -> str:
    """Its type, such as 'ext4', by the longest mount point above the path; '' if not known."""
    try:
        mounts = [line.split()[1:3] for line in Path('/proc/mounts').read_text().splitlines()]
    except OSError:
        return ''
    above = [(len(point), kind) for point, kind in mounts if path.resolve().is_relative_to(point)]
    return max(above)[1] if above else ''


def _with(run: Run, options: Mapping[str, Any]) -> Run:
    """The run with other options."""
    config = run.config.clone()
    config.defrost()
    config.merge_from_list([item for pair in options.items() for item in pair])
    config.freeze()
    return replace(run, config=config)
