"""Run the jobs of a sweep as processes on this machine, several at a time."""

import contextlib
import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import FrameType

from data.tables.reading import read_split
from data.tables.splits import pretrain_records
from engine.run_folder import SHOWN, is_locked, weights_changes
from engine.run_record import OPTIONS_FILE, files_read, is_finished, read_record
from sweeps.files import (
    ROOT,
    SECTIONS,
    Job,
    Sweep,
    fold_names,
    load_config,
    option_changes,
    run_folder,
    training_changes,
    without_cache,
)
from system.files import BEST_CHECKPOINT, checkpoint_name, checksum_file, newest_first, sha256
from system.tool import EXIT_NOT_KEPT, EXIT_PREEMPTED, STOP_SIGNALS

POLL_SECONDS = 0.5
REPORT_SECONDS = 300  # between two lines about the epochs of running jobs
LOGS = 'ablate_logs'  # folder below the output
MOST_EPOCHS = 200  # of pre-training on few images


def state_of(job: Job) -> str:
    """Return the state of a job: 'finished', 'running', 'stopped' or 'not started'.

    Raises:
        ValueError: If the folder contains a run with other options, images or weights, or if the
            options or a file to compare cannot be read.
    """
    if (job.folder / OPTIONS_FILE).is_file() and (changes := differences(job)):
        raise ValueError(
            f'{job.folder} contains another run ({"; ".join(changes[:SHOWN])}): choose '
            'another --output, or give the same options as for that run'
        )
    return folder_state(job.folder)


def folder_state(folder: Path) -> str:
    """Return the state of the run in a folder (see `state_of`), without comparing options."""
    has_begun = (folder / OPTIONS_FILE).is_file()  # written at the start of training
    if has_begun and is_finished(folder):
        return 'finished'
    if is_locked(folder):
        return 'running'
    return 'stopped' if has_begun else 'not started'


def finished_runs(
    sweep: Sweep, seeds: Sequence[int], output: str | Path, *, folds: int = 0
) -> tuple[dict[str, dict[int, list[Path]]], list[str]]:
    """Return row -> seed -> folder of the finished run, or folders of its folds, and the others.

    A cross-validated run is finished if all its folds are.

    Raises:
        ValueError: If no run is finished.
    """
    names = fold_names(folds)
    runs: dict[str, dict[int, list[Path]]] = {}
    others = []
    for row, seed in ((row, seed) for row in sweep.rows for seed in seeds):
        folders = [run_folder(output, 'finetune', row, seed, fold) for fold in names]
        states = zip(names, map(folder_state, folders), strict=True)
        missing = [f'{fold} {state}'.strip() for fold, state in states if state != 'finished']
        if missing:
            others.append(f'{row.name} seed {seed} ({", ".join(missing)})')
        else:
            runs.setdefault(row.name, {})[seed] = folders
    if not runs:
        shown = '; '.join(others[:SHOWN])
        hint = '' if folds else ' (`ablate.py join` joins the folds of a cross-validation)'
        raise ValueError(f'--output {output}: no run of {sweep.path} is finished{hint}: {shown}')
    return runs, others


def differences(job: Job) -> list[str]:
    """List how the run in the folder of a job differs from the job."""
    config = load_config(job.folder)
    try:
        record = read_record(job.folder) or {}
    except ValueError:  # the next start of the run repairs the record
        return option_changes(config, job.config)
    now = (job.config, {'processes': job.processes})
    lines = training_changes(job.stage, (config, record), now)
    data = job.config.DATA
    tables = (data.TRAIN_CSV, data.VALID_CSV, data.TEST_CSV) if data.DATA_PATH else ()
    files = {name: Path(data.DATA_PATH) / name for name in tables}
    files['DATA.PSEUDO_LABELS'] = Path(data.PSEUDO_LABELS)
    for name, path in files.items():
        known = files_read(record).get(name)
        if not known:
            continue
        if not path.is_file():
            raise ValueError(f'the file {path} does not exist, but the run was started with it')
        if known != _sha256(path, path.stat().st_mtime_ns):
            lines.append(f'data: {path} is another file')
    return lines + weights_changes(job.folder, job.config, config.PRETRAINED)


@cache
def _sha256(path: Path, changed_ns: int) -> str:
    return sha256(path)


def describe_runs(jobs: Sequence[Job]) -> Iterator[str]:
    """Yield two lines about each run of a plan, then the numbers of runs and refused folders."""
    states, reasons = [], []
    for number, job in enumerate(jobs):
        state = folder_state(job.folder)
        states.append(state)
        try:
            state += f' ({progress(job.folder)})' if state in ('running', 'stopped') else ''
            state_of(job)
        except ValueError as error:  # for example without the --pretrain-opts of the run
            state += ' *'
            reasons.append(str(error))
        yield f'{number:4d}  {job.name:<50} {state}'
        words = job.arguments[job.arguments.index('--opts') + 1 :]
        yield f'      {os.path.relpath(job.arguments[2], ROOT)}: {" ".join(words)}'
    counts = Counter(SECTIONS[job.stage] for job in jobs)
    numbers = ', '.join(f'{count} {section}' for section, count in counts.items())
    yield f'{len(jobs)} runs ({numbers}), {states.count("finished")} of them already finished'
    if reasons:
        yield f'* {len(reasons)} folders contain runs with other options, which `run` refuses'
    yield from (f'  {reason}' for reason in reasons[:SHOWN])


def epochs_for(jobs: Sequence[Job], images_seen: int, logger: logging.Logger) -> int:
    """Return the epochs, rounded up, in which the first pre-training sees a number of images."""
    configs = [job.config for job in jobs if SECTIONS[job.stage] == 'pretrain']
    if not configs:
        raise ValueError(f'--images-seen {images_seen}: the sweep has no pre-training')
    if not configs[0].DATA.DATA_PATH:
        raise ValueError(f'--images-seen {images_seen} needs --data-path')
    records = read_split(without_cache(configs[0]), 'train', logger)
    images = len(pretrain_records(configs[0], records)[0])
    return min(math.ceil(images_seen / images), MOST_EPOCHS)


def progress(folder: Path) -> str:
    """Return the number of finished epochs of the run in a folder as text."""
    if not (folder / OPTIONS_FILE).is_file():
        return 'not begun'
    file = folder / 'metrics.jsonl'
    # The last line may be incomplete.
    lines = file.read_bytes().split(b'\n')[:-1] if file.is_file() else []
    epoch = json.loads(lines[-1])['epoch'] if lines else -1
    return f'epoch {epoch + 1} of {load_config(folder).TRAIN.EPOCHS}'


def launcher(job: Job) -> list[str]:
    """Return the words before the script of a run: Python, or torchrun for several processes."""
    words = [os.environ.get('PYTHON', sys.executable)]
    if job.processes > 1:
        words += ['-m', 'torch.distributed.run', '--standalone']
        words += ['--nproc_per_node', str(job.processes)]
    return words


def remove_checkpoints(job: Job) -> None:
    """Remove the checkpoints of a finished run that no later step reads.

    Pre-training keeps the last checkpoint, from which fine-tuning starts. Fine-tuning keeps the
    selected checkpoint, or the last one if none was selected.
    """
    best, kept = job.folder / BEST_CHECKPOINT, checkpoint_name(job.config.TRAIN.EPOCHS - 1)
    if job.stage == 'finetune':
        scores = json.loads((job.folder / 'scores.json').read_bytes())
        kept = best.name if any('selected' in split for split in scores.values()) else kept
    if (job.folder / kept).is_file():
        for path in (*newest_first(job.folder), best):
            if path.name != kept:
                checksum_file(path).unlink(missing_ok=True)
                path.unlink(missing_ok=True)


@dataclass
class Runner:
    """Runs the jobs of a plan as processes, one at a time in each slot.

    Finished jobs are skipped and interrupted ones resume. If another process is running a job, the
    runner waits for it. SIGTERM and Ctrl-C are forwarded: the runs save a checkpoint, and the same
    command resumes them later.

    Args:
        jobs: Jobs in an order in which every job comes after the jobs that it needs.
        slots: Environment variables of each slot.
        logs: Folder for the output of the runs; None to print to the terminal.
        say: Function that receives each line about the progress.
        keep: 'all', or 'best' to call `remove_checkpoints` for finished runs.
    """

    jobs: Sequence[Job]
    slots: Sequence[dict[str, str]]
    logs: Path | None
    say: Callable[[str], None]
    keep: str = 'all'
    running: dict[int, tuple[Job, subprocess.Popen, float]] = field(default_factory=dict)
    broken: set[Path] = field(default_factory=set)
    failed: list[str] = field(default_factory=list)
    signal: str = ''
    stopped: set[int] = field(default_factory=set)  # exit codes of stopped runs

    def run(self) -> int:
        """Run all jobs, and return the exit code.

        It is 0, 1 if jobs failed, 75 if the sweep was stopped, and 76 if it was stopped and this
        call has neither finished a run nor brought one forward.
        """
        if self.logs is not None:
            self.logs.mkdir(parents=True, exist_ok=True)
        states = [(job, state_of(job)) for job in self.jobs]
        self.waiting = [job for job, state in states if state != 'finished']
        for job in [job for job, state in states if state == 'finished']:
            self._remove_checkpoints(job)
        self.total, self.done = len(self.waiting), 0
        self.say(f'{len(self.jobs)} runs, {len(self.jobs) - self.total} of them already finished')
        with self._on_signals():
            try:
                reported = time.monotonic()
                while (self.waiting and not self.signal) or self.running:
                    if self.signal:
                        self._forward_signal()
                    else:
                        self.waiting = [job for job in self.waiting if not self._start(job)]
                    self._collect_ended()
                    if time.monotonic() - reported > REPORT_SECONDS:
                        reported = time.monotonic()
                        for job, *_ in self.running.values():
                            self.say(f'running {job.name}: {progress(job.folder)}')
                    if self.running or self.waiting:
                        time.sleep(POLL_SECONDS)
            finally:  # after an error of the runner, no run stays behind
                while any(process.poll() is None for _, process, _ in self.running.values()):
                    self._forward_signal()
                    time.sleep(POLL_SECONDS)
        for line in self.failed:  # failures are repeated at the end
            self.say(line)
        if self.signal and self.waiting:
            left = len(self.waiting)
            self.say(f'stopped by {self.signal}, {left} runs left: the same command resumes them')
            nothing_kept = self.stopped == {EXIT_NOT_KEPT} and not self.done
            return EXIT_NOT_KEPT if nothing_kept else EXIT_PREEMPTED
        return 1 if self.failed else 0

    def _start(self, job: Job) -> bool:
        """Start a job if possible, and return whether it no longer has to wait."""
        if lost := [folder for folder in job.needs if folder in self.broken]:
            self._fail(job, f'not run, because the run {lost[0]} failed')
            return True
        try:
            state = state_of(job)
        except ValueError as error:  # the folder or the data have changed
            self._fail(job, f'not run: {error}')
            return True
        if state == 'finished':  # another process has run the job
            self.done += 1
            return True
        is_full = len(self.running) == len(self.slots)
        if is_full or state == 'running' or not all(map(is_finished, job.needs)):
            return False
        slot = next(i for i in range(len(self.slots)) if i not in self.running)
        with contextlib.ExitStack() as stack:
            log = self.logs and stack.enter_context(open(self._log(job), 'ab'))
            process = subprocess.Popen(
                [*launcher(job), *job.arguments],
                cwd=ROOT,
                env=os.environ | self.slots[slot],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT if log else None,
                start_new_session=True,  # this process forwards Ctrl-C
            )
        self.running[slot] = (job, process, time.monotonic())
        resumes = newest_first(job.folder)
        how = f'resumed from {resumes[0].name}:' if resumes else 'started'
        self.say(f'{how} {job.name}')
        return True

    def _fail(self, job: Job, reason: str) -> None:
        self.broken.add(job.folder)
        self.failed.append(f'{job.name}: {reason}')
        self.say(self.failed[-1])

    def _collect_ended(self) -> None:
        """Report the jobs that have ended, and queue stopped ones again."""
        for slot, (job, process, start) in list(self.running.items()):
            code = process.poll()
            if code is None:
                continue
            del self.running[slot]
            seconds = time.monotonic() - start
            if is_finished(job.folder):
                self.done += 1
                self._remove_checkpoints(job)
                self.say(f'finished {job.name}: {seconds:.0f} s [{self.done}/{self.total}]')
            elif code in (EXIT_PREEMPTED, EXIT_NOT_KEPT) or self.signal:
                self.stopped.add(code)
                self.signal = self.signal or 'a signal to the run'
                self.waiting.append(job)
                self.say(f'stopped {job.name} after {seconds:.0f} s')
            elif is_locked(job.folder):  # another process started it first
                self.waiting.append(job)
            else:
                where = f', see {self._log(job)}' if self.logs else ''
                self._fail(job, f'failed with code {code}{where}')

    def _remove_checkpoints(self, job: Job) -> None:
        if self.keep == 'best':
            remove_checkpoints(job)

    def _log(self, job: Job) -> Path:
        return self.logs / f'{job.folder.parent.name}__{job.folder.name}.log'

    @contextlib.contextmanager
    def _on_signals(self) -> Iterator[None]:
        def stop(number: int, frame: FrameType | None) -> None:
            self.signal = signal.Signals(number).name

        numbers = (*STOP_SIGNALS, signal.SIGINT)
        before = {number: signal.signal(number, stop) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _forward_signal(self) -> None:
        """Send SIGTERM to the processes of all runs."""
        for job, process, _ in self.running.values():
            numbers: list[int] = []
            if job.processes > 1:
                # torchrun would kill its workers after 30 s, so they receive the signal directly.
                with contextlib.suppress(OSError):  # systems without /proc
                    children = Path(f'/proc/{process.pid}/task/{process.pid}/children')
                    numbers = [int(number) for number in children.read_text().split()]
            for number in numbers or [process.pid]:
                with contextlib.suppress(ProcessLookupError):  # the process has ended
                    if process.poll() is None:
                        os.kill(number, signal.SIGTERM)
