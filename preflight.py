"""--check: is all there that a run needs, does it fit, and how long will it take."""

import math
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import distributed
from config import encoder_node
from data import Loaders
from data.labels import COMPETITION_LABELS, task_labels
from data.packed import is_store
from engine import LossFunction, Run, begin
from evaluation.few_cases import describe_few, more_cases, rarer_cases
from preflight_bench import Bench, part, slowest
from preflight_costs import Costs, num_cores
from preflight_report import Findings, amount
from run_lock import LOCK_FILE, RunLock
from train_state import TrainState

NETWORK_DRIVE = re.compile(r'nfs|cifs|smb|lustre|ceph|gpfs|beegfs|9p|fuse(\.|$)')
READ_ALL = 'mend or remove it; scripts/check_data.py reads every image'


def preflight(
    run: Run, model: nn.Module, loaders: Loaders, loss_fn: LossFunction | None = None
) -> int:
    """Check and measure what the run is made of, and log a table of it that ends in a verdict.

    What trains is the engine's own code on the run's own batches; the weights are thrown away.

    Args:
        run: the run; nothing but the log is written into its folder.
        model: built model, on any device.
        loaders: of the stage.
        loss_fn: as for `engine.fit`; None where nothing is trained (a probe).

    Returns:
        Exit code: 0 if the run is ready, 1 if a problem was found.
    """
    check = Preflight(run, model, loaders, loss_fn)
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
        self, run: Run, model: nn.Module, loaders: Loaders, loss_fn: LossFunction | None
    ) -> None:
        self.run, self.config, self.model, self.loss_fn = run, run.config, model, loss_fn
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
            pixels = data.BATCH_SIZE * encoder_node(self.config).IN_CHANS * data.IMG_SIZE**2
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
            state = begin(_with(self.run, own), self.model, loader)
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
        return begin(_with(self.run, nothing), self.model, loader)

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
