"""--check: whether a run has everything it needs, whether it fits, and how long it will take."""

import itertools
import math
import os
import re
import shutil
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from data import Loaders
from data.labels import task_labels
from data.store import is_store
from engine import distributed
from engine.device import autocast, synchronized_time, views_of
from engine.launch import EXIT_OTHER_PROCESS, explain, is_locked
from engine.loop import LossFunction, begin, train_one_batch
from engine.run_record import Run
from engine.train_state import TrainState
from evaluation.metrics import describe_few, more_cases, rarer_cases

Batch = tuple[torch.Tensor, ...]

STATUSES = ('ok', 'warning', 'problem')  # from good to bad
ERRORS = (ValueError, ArithmeticError, OSError, RuntimeError, MemoryError)
WIDTH = 100  # columns of the table
STEP_SECONDS = 1.5  # of a step on the CPU, where a whole batch may take minutes
MODEL_SECONDS = 6.0  # of all timed steps
LOADER_SECONDS = 4.0  # for which the loader is timed, once its workers are busy
START_SECONDS = 20.0  # until then at most
WAITING = 0.1  # fraction of the time that the model may wait for data without a warning
NEARLY_FULL = 0.95  # fraction of memory or disk that may be used without a warning
LOG_BYTES = 2**19  # of the logs and images of an epoch, at most
NETWORK_DRIVE = re.compile(r'nfs|cifs|smb|lustre|ceph|gpfs|beegfs|9p|fuse(\.|$)')
UNREADABLE = 'repair or remove the file; scripts/check_data.py reads every image'


def preflight(
    run: Run,
    model: nn.Module,
    loaders: Loaders,
    loss_fn: LossFunction | None = None,
    *,
    convert: Callable[..., Any],
) -> int:
    """Check and measure a run, and log a table of the findings that ends in a verdict.

    The training steps use the engine's own code and the run's own batches. The weights are thrown
    away, and nothing but the log is written into the run folder.

    Args:
        run: The run.
        model: Built model, on any device.
        loaders: Loaders of the stage.
        loss_fn: As for `engine.loop.fit`; None if nothing is trained (a probe).
        convert: Fits pre-trained weights to the model; see `utils.load_pretrained`.

    Returns:
        Exit code: 0 if the run is ready, 1 if there is a problem.
    """
    check = Preflight(run, model, loaders, loss_fn, convert)
    check.machine()
    check.output()
    for name in check.loaders:
        check.read_batch(name)
    check.selection()
    state = check.weights()
    check.schedule(state)
    seconds = check.measure(state)
    check.disk(state)
    return check.verdict(seconds)


@dataclass(frozen=True)
class Finding:
    """One line of the table."""

    check: str
    status: str
    found: str
    advice: str = ''


@dataclass(frozen=True)
class Times:
    """Measured seconds per image."""

    step: float  # of training, or of computing features
    scored: float  # of the forward pass on held-out images; 0 if there are none
    read: float  # of the loader alone
    overlap: bool  # whether the loader works while the model does

    def total(self, seconds: float) -> float:
        """Seconds per image if the model needs `seconds` for it."""
        return max(seconds, self.read) if self.overlap else seconds + self.read


class Preflight:
    """The checks of one run; each adds findings of this rank."""

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
        if run.is_pretrain:
            self.scored = ['holdout', 'reference']
        else:
            self.scored = [run.config.EVAL.SELECT_ON if loss_fn else 'holdout']
        self.batches: dict[str, Batch | None] = {}
        self.findings: list[Finding] = []
        self.ranks_here = int(os.environ.get('LOCAL_WORLD_SIZE', 1))
        self.on_cpu = run.device.type == 'cpu'

    def add(self, check: str, found: str, advice: str = '', *, problem: bool = False) -> None:
        """Add a finding; with an advice it is a warning."""
        status = 'problem' if problem else 'warning' if advice else 'ok'
        self.findings.append(Finding(check, status, found, advice))

    @contextmanager
    def attempt(self, check: str, advice: str = '') -> Iterator[None]:
        """Turn an error inside the block into a problem."""
        try:
            yield
        except ERRORS as error:
            code, message = explain(error)
            if code == EXIT_OTHER_PROCESS:
                raise
            self.add(check, message, advice, problem=True)

    def machine(self) -> None:
        """Check device, CPU cores, shared memory and the drive of the data."""
        data, ranks = self.config.DATA, self.ranks_here
        if self.on_cpu:
            has_gpu = any(Path('/dev').glob('nvidia[0-9]*'))
            advice = 'install a PyTorch that fits the driver' if has_gpu else 'use a GPU'
            self.add(
                'device', f'the CPU, {"despite a GPU" if has_gpu else "without a GPU"}', advice
            )
        else:
            gpus = torch.cuda.device_count()
            advice = f'use all: torchrun --nproc_per_node {gpus}' if ranks < gpus else ''
            self.add('device', f'{ranks} of {gpus} GPU(s), {torch.cuda.get_device_name()}', advice)
        cores, workers = num_cores(), data.NUM_WORKERS * ranks
        advice = f'lower DATA.NUM_WORKERS to {max(1, cores // ranks)}' if workers > cores else ''
        self.add('workers', f'{workers} on {cores} cores, for {ranks} process(es)', advice)
        if workers and Path('/dev/shm').is_dir():
            free = shutil.disk_usage('/dev/shm').free
            pixels = data.BATCH_SIZE * self.config.MODEL.IN_CHANS * data.IMG_SIZE**2
            needed = 2 * workers * pixels * 4  # each worker prepares two batches of float32
            advice = 'enlarge /dev/shm (docker run --shm-size), or lower DATA.NUM_WORKERS'
            found = f'/dev/shm has {amount(free)} free, the workers use up to {amount(needed)}'
            self.add('shared memory', found, advice if needed > free else '')
        kind = file_system(Path(data.DATA_PATH))
        is_slow = NETWORK_DRIVE.match(kind) and not data.CACHE_DIR
        advice = 'pack the images (scripts/pack.py) and set DATA.CACHE_DIR to a local folder'
        self.add('drive', f'{data.DATA_PATH} ({kind})', advice if is_slow else '')

    def output(self) -> None:
        """Check that the run folder can be written and belongs to this run."""
        folder = self.run.folder
        with self.attempt('output', 'choose another --output or --tag'):
            with tempfile.NamedTemporaryFile(dir=folder) as probe:
                probe.write(bytes(2**20))
                probe.flush()
                os.fsync(probe.fileno())
            if distributed.is_main() and is_locked(folder):
                raise ValueError(f'another run is writing to the folder {folder}')
            others = sorted(path.name for path in folder.glob('ckpt_*.pth'))
            resumes = self.config.TRAIN.AUTO_RESUME or self.config.MODEL.RESUME
            if others and not resumes and self.loss_fn is not None:
                found = f'{folder} has checkpoints of another run, such as {others[0]}'
                self.add('output', found, 'choose another --tag, or they will be overwritten')
            else:
                self.add('output', f'can be written: {folder}')

    def read_batch(self, name: str) -> None:
        """Read the first batch of a split."""
        loader = self.loaders[name]
        with self.attempt(f'data: {name}', UNREADABLE):
            self.batches[name] = next(iter(loader), None)
            found = f'{len(loader.dataset):,} images in {len(loader):,} batches; the first was read'
            self.add(f'data: {name}', found)

    def selection(self) -> None:
        """Check that there are enough held-out images to choose a checkpoint or a probe."""
        config, name = self.config, self.scored[0]
        if self.run.is_pretrain or name not in self.loaders:
            return
        labels, targets = task_labels(config.DATA.TASK), self.loaders[name].dataset.targets
        cases = rarer_cases(targets, labels, config.EVAL.SELECT)
        few = describe_few(cases)
        found = f'on {len(targets):,} images of {name}; cases of the rarer class: '
        found += few or f'at least {min(cases.values()):,}'
        undefined = config.EVAL.SELECT == 'five' and not all(cases.values())
        self.add(
            'selection', found, more_cases(name) if few or undefined else '', problem=undefined
        )

    def weights(self) -> TrainState:
        """Load what the run would start from; random weights if that fails."""
        config, epochs, loader = self.config, self.config.TRAIN.EPOCHS, self.loaders[self.main]
        # A probe never resumes from a checkpoint.
        resumes = config.TRAIN.AUTO_RESUME and self.loss_fn is not None
        own = {'CHECK_MODE': False, 'TRAIN.AUTO_RESUME': resumes}
        advice = 'choose another --pretrained or --resume, or start from scratch with another --tag'
        with self.attempt('weights', advice):
            state = begin(_with(self.run, own), self.model, loader, self.convert)
            found, advice = f'starts from {config.PRETRAINED or "random weights"}', ''
            if state.epoch or state.batch:
                found = f'resumes from {state.source}: {state.epoch} of {epochs} epochs are done'
                if state.epoch >= epochs:
                    advice = 'nothing is left to train: raise TRAIN.EPOCHS or choose another --tag'
            elif not config.PRETRAINED and not self.run.is_pretrain:
                advice = 'choose a pre-trained encoder with --pretrained'
            self.add('weights', found, advice)
            return state
        nothing = {'MODEL.RESUME': '', 'PRETRAINED': '', 'TRAIN.AUTO_RESUME': False}
        return begin(_with(self.run, nothing), self.model, loader, self.convert)

    def schedule(self, state: TrainState) -> None:
        """Report epochs, steps, images per step and warm-up."""
        if self.loss_fn is None:
            return
        train, steps = self.config.TRAIN, state.steps_per_epoch
        warmup = int(train.WARMUP_EPOCHS * steps)
        images = self.config.DATA.BATCH_SIZE * state.accumulation * distributed.world_size()
        found = f'{train.EPOCHS} epochs of {steps:,} steps of {images:,} images, '
        found += f'{warmup:,} steps of warm-up'
        self.add('schedule', found, 'raise TRAIN.WARMUP_EPOCHS' if warmup < 2 else '')

    def measure(self, state: TrainState) -> float:
        """Try steps and time them and the loader; returns the seconds of the run, or NaN."""
        batch, size, times = self.batches.get(self.main), 0, None
        # A step with a non-finite loss must be found, not skipped.
        bench = Bench(_with(self.run, {'TRAIN.ON_NAN': 'stop'}), state, self.loss_fn)
        if batch is None:
            self.add('step', 'not tried, because no batch could be read', 'repair the data first')
        else:
            self.run.logger.info('trying steps, then timing them and the loader')
            with self.attempt('step', 'speed and time were not measured'):
                size = self.try_step(bench, batch)
        size = min(distributed.gather(size))
        if size:
            held = [self.batches[k] for k in self.scored if self.batches.get(k) is not None]
            with self.attempt('speed', UNREADABLE):
                held_out = held[0] if held else None
                times = bench.times(part(batch, size), held_out, self.loaders[self.main])
        measured = distributed.gather(times)
        if None in measured:
            return math.nan
        step, scored, read = (
            max(getattr(each, name) for each in measured) for name in ('step', 'scored', 'read')
        )
        return self.time(state, Times(step, scored, read, measured[0].overlap))

    def try_step(self, bench: 'Bench', batch: Batch) -> int:
        """Try a step and compare its memory with what is available; returns its batch size."""
        asked = len(batch[0])
        try:
            size, peak, loss, norm = bench.trial(batch)
        except torch.OutOfMemoryError:
            self.add('memory', f'{asked} images do not fit', self._smaller(), problem=True)
            return 0
        if self.loss_fn is None:
            self.add('step', f'computed the features of {size} images')
        else:
            scaled = bench.state.scaler.is_enabled()  # it finds its scale in the first steps
            is_finite = math.isfinite(loss) and (math.isfinite(norm) or scaled)
            advice = 'check DATA.MEAN, DATA.STD and the weights; then try --amp-opt-level O0'
            found = f'loss {loss:.4g}, gradient norm {norm:.4g} over {size} images'
            self.add('step', found, '' if is_finite else advice, problem=not is_finite)
        if self.on_cpu:
            peak += checkpoint_bytes(bench.state)  # a copy stays in memory while it is written
        available = available_memory(self.run.device, self.ranks_here)
        found = f'{amount(peak)} of {amount(available)} for {asked} images'
        advice = self._smaller() if peak > NEARLY_FULL * available else ''
        self.add('memory', found, advice, problem=peak > available)
        return size

    def _smaller(self) -> str:
        if self.run.stage == 'contrastive':  # the loss compares the images of a batch
            return 'use more processes with a smaller --batch-size, or --use-checkpoint'
        return 'lower --batch-size and raise --accumulation-steps, or use --use-checkpoint'

    def time(self, state: TrainState, times: Times) -> float:
        """Report who waits for whom, and how long the rest of the run takes; returns seconds."""
        data, world = self.config.DATA, distributed.world_size()
        waits = 1 - times.step / times.total(times.step)
        found = f'loader {world / times.read:,.1f} images/s, model {world / times.step:,.1f}: '
        found += f'the model waits {waits:.0%} of the time'
        more = []
        if data.NUM_WORKERS * self.ranks_here < num_cores():
            more.append(f'raise DATA.NUM_WORKERS from {data.NUM_WORKERS}')
        if not is_store(data.DATA_PATH):
            more.append('pack the images with scripts/pack.py')
        advice = ', or '.join(more) or 'use a machine with more cores'
        self.add('speed', found, advice if waits > WAITING else '')
        left = 1.0
        if self.loss_fn is not None:
            done = state.epoch + state.batch / state.num_batches
            left = max(0.0, self.config.TRAIN.EPOCHS - done)
        images = len(self.loaders[self.main]) * data.BATCH_SIZE
        held_out = sum(len(self.loaders[k].dataset) for k in self.scored if k in self.loaders)
        training = left * images * times.total(times.step)
        validation = math.ceil(left) * held_out / world * times.total(times.scored)
        work = 'training' if self.loss_fn else 'features'
        self.add('time', f'{duration(training)} of {work}, {duration(validation)} of validation')
        return training + validation

    def disk(self, state: TrainState) -> None:
        """Compare the checkpoints that are kept, and the logs, with the free space."""
        config, train = self.config, self.config.TRAIN
        epochs = range(state.epoch, train.EPOCHS) if self.loss_fn else range(1)
        count = sum(e % config.SAVE_FREQ == 0 or e + 1 == train.EPOCHS for e in epochs)
        if train.SAVE_EVERY_STEPS:
            count += len(epochs) * state.steps_per_epoch // train.SAVE_EVERY_STEPS
        count = min(count, config.SAVE_KEEP or count)
        # Also the best one, and the next one before an old one is removed.
        count = count + (not self.run.is_pretrain) + 1 if self.loss_fn else 0
        needed = count * checkpoint_bytes(state) + len(epochs) * LOG_BYTES
        free = shutil.disk_usage(self.run.folder).free
        found = f'{amount(needed)} of {amount(free)} free, for up to {count:,} checkpoints and logs'
        advice = 'set SAVE_KEEP (such as 3), raise SAVE_FREQ, or choose another --output'
        full = needed > NEARLY_FULL * free
        self.add('disk', found, advice if full else '', problem=needed > free)

    def verdict(self, seconds: float) -> int:
        """Log the table of all ranks and the verdict; returns the exit code."""
        findings = merge(distributed.gather(self.findings))
        problems = sum(finding.status == 'problem' for finding in findings)
        verdict = f'not ready: {problems} problem(s)' if problems else 'ready'
        if not problems and not math.isnan(seconds):
            verdict += f', about {duration(seconds)}'
            if not self.run.is_pretrain:
                verdict += ', plus the final scoring and report'
        self.run.logger.info(f'preflight\n\n{table(findings)}\n\nverdict: {verdict}')
        return min(1, problems)


class Bench:
    """Runs steps of a run on its own batches; the weights change and are to be thrown away.

    Args:
        run: The run.
        state: From `engine.loop.begin`.
        loss_fn: As for `engine.loop.fit`; None if features are computed and nothing is trained.
    """

    def __init__(self, run: Run, state: TrainState, loss_fn: LossFunction | None) -> None:
        self.run, self.loss_fn = run, loss_fn
        self.state = replace(state, accumulation=1)  # each batch makes a step
        self.on_cpu = run.device.type == 'cpu'

    def trial(self, batch: Batch) -> tuple[int, float, float, float]:
        """Run steps of this process alone, so that no other rank waits if they fail.

        On the CPU they use only as many images as take STEP_SECONDS.

        Returns:
            The images of a step; bytes of memory that a step over the whole batch needs at its
            peak; loss and gradient norm, which are NaN if nothing is trained.
        """
        alone, size = replace(self.state, model=self.state.module), len(batch[0])
        sizes = [size]
        if self.on_cpu and self.run.stage != 'contrastive':  # whose loss needs a whole batch
            seconds = self._seconds(lambda: self._step(alone, part(batch, 1)))
            size = min(size, max(2, int(STEP_SECONDS / seconds)))
            sizes = [max(1, size // 2), size]
        peaks = [self._peak(alone, part(batch, each)) for each in sizes]
        per_image = max(0.0, (peaks[-1] - peaks[0]) / max(1, sizes[-1] - sizes[0]))
        peak = peaks[-1] + per_image * (len(batch[0]) - size)
        losses = alone.progress.waiting_losses
        norms = [norm for _, norm in alone.progress.waiting_norms]
        loss, norm = (values[-1].item() if values else math.nan for values in (losses, norms))
        return size, peak, loss, norm

    def times(self, batch: Batch, held_out: Batch | None, loader: DataLoader) -> Times:
        """Time steps together with the other processes, the forward pass, and the loader."""
        size = len(batch[0])
        step = self._steady_seconds(lambda: self._step(self.state, batch), distributed.gather)
        scored = 0.0
        if held_out is not None:
            views = held_out[0].shape[1] if held_out[0].ndim == 5 else 1
            held_out = part(held_out, max(1, size // views))
            scored = self._steady_seconds(lambda: self._score(held_out)) / len(held_out[0])
        return Times(step / size, scored, self._read_seconds(loader), loader.num_workers > 0)

    def _read_seconds(self, loader: DataLoader) -> float:
        """Seconds per image of the loader alone, after each worker has returned a batch."""
        begin = start = synchronized_time(self.run.device)
        images = 0
        for number, batch in enumerate(_endless(loader)):
            now = synchronized_time(self.run.device)
            if number < max(1, loader.num_workers) and now - begin < START_SECONDS:
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
                if self.run.stage == 'contrastive':
                    output = model(*(each.to(self.run.device) for each in batch[1:]))
                elif self.run.is_pretrain:
                    output = model.reconstruct(view, batch[1].to(self.run.device))
                else:
                    output = model(view)
            output.float().cpu()

    def _steady_seconds(
        self, work: Callable[[], None], agree: Callable[[int], list[int]] = lambda count: [count]
    ) -> float:
        """Seconds of `work` without its first call, unless that took MODEL_SECONDS.

        Args:
            work: What is timed.
            agree: Returns the number of repeats that each process wants; all do the largest.
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
        with suppress(OSError):  # otherwise it is the peak since the process started
            Path('/proc/self/clear_refs').write_text('5')
        self._step(state, batch)
        return linux_figure('/proc/self/status', 'VmHWM')


def merge(by_rank: list[list[Finding]]) -> list[Finding]:
    """The worst finding of each check over all ranks; among equals that of the lowest rank."""
    worst: dict[str, Finding] = {}
    for rank, findings in enumerate(by_rank):
        for finding in findings:
            held = worst.get(finding.check)
            if held is None or STATUSES.index(finding.status) > STATUSES.index(held.status):
                found = f'rank {rank}: {finding.found}' if rank else finding.found
                worst[finding.check] = replace(finding, found=found)
    return list(worst.values())


def table(findings: list[Finding]) -> str:
    """A line for each finding with the advice below it, wrapped at WIDTH columns."""
    width, lines = max(len(finding.check) for finding in findings), []
    for finding in findings:
        head = f'{finding.status:<7}  {finding.check:<{width}}  '
        margin = ' ' * len(head)
        lines += _wrap(finding.found, head, margin)
        if finding.advice:
            lines += _wrap(finding.advice, f'{margin}-> ', f'{margin}   ')
    return '\n'.join(lines)


def amount(num_bytes: float) -> str:
    """Bytes with a unit, such as '3.2 MB'."""
    units = [('TB', 1e12), ('GB', 1e9), ('MB', 1e6), ('kB', 1e3)]
    unit, size = next((each for each in units if num_bytes >= each[1]), units[-1])
    return f'{num_bytes / size:,.{0 if num_bytes >= 100 * size else 1}f} {unit}'


def duration(seconds: float) -> str:
    """Seconds with a unit, such as '3.2 hours'."""
    units = [('hours', 3600), ('minutes', 60), ('seconds', 1)]
    unit, size = next((each for each in units if seconds >= each[1]), units[-1])
    return f'{seconds / size:,.1f} {unit}'


def part(batch: Batch, size: int) -> Batch:
    """The first `size` images of a batch."""
    return tuple(item[:size] for item in batch)


def checkpoint_bytes(state: TrainState) -> int:
    """Bytes of a checkpoint's tensors: the model, and the moments that the optimizer will have."""
    model = sum(v.numel() * v.element_size() for v in state.module.state_dict().values())
    trained = [p for group in state.optimizer.param_groups for p in group['params']]
    moments = sum(p.numel() * p.element_size() for p in trained)
    if isinstance(state.optimizer, torch.optim.AdamW):
        return model + 2 * moments + 4 * len(trained)  # and a step counter for each
    return model + moments


def available_memory(device: torch.device, ranks_here: int) -> int:
    """Bytes that this process has or could get: on the GPU, or its share of the machine's."""
    if device.type == 'cuda':
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    free = linux_figure('/proc/meminfo', 'MemAvailable') // ranks_here
    return linux_figure('/proc/self/status', 'VmRSS') + free


def linux_figure(file: str, name: str) -> int:
    """Bytes of a line such as 'MemAvailable:  23012 kB'."""
    return 1024 * int(re.search(rf'^{name}:\s*(\d+) kB', Path(file).read_text(), re.MULTILINE)[1])


def num_cores() -> int:
    """CPU cores that this process may use."""
    known = getattr(os, 'sched_getaffinity', None)  # not on macOS
    return len(known(0)) if known else os.cpu_count() or 1


def file_system(path: Path) -> str:
    """The type of the file system of a path, such as 'ext4'; '' if it is not known."""
    try:
        mounts = [line.split()[1:3] for line in Path('/proc/mounts').read_text().splitlines()]
    except OSError:
        return ''
    above = [(len(point), kind) for point, kind in mounts if path.resolve().is_relative_to(point)]
    return max(above)[1] if above else ''


def _wrap(text: str, first: str, others: str) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=others,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _endless(loader: DataLoader) -> Iterator[Batch]:
    for epoch in itertools.count():
        loader.batch_sampler.set_epoch(epoch)
        yield from loader


def _with(run: Run, options: dict[str, Any]) -> Run:
    """The run with other options."""
    config = run.config.clone()
    config.defrost()
    config.merge_from_list([item for pair in options.items() for item in pair])
    config.freeze()
    return replace(run, config=config)
