"""Running the jobs of a sweep on this machine: each once, several at a time, stopped at will."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

from checkpoint_files import checksum_file, newest_first
from checksums import sha256
from config import Config
from preemption import EXIT_PREEMPTED
from provenance import OPTIONS_FILE, is_finished, read_record
from run_lock import is_locked
from sweeps.plan import ROOT, Job
from sweeps.run_options import batch_counts, changed_options, load_config

LOOK_SECONDS = 0.5
SHOWN = 3  # differences that an error names
RANDOM = 'random weights'
LOGS = 'ablate_logs'  # folder below the output
PROCESSES = Path('/proc')


def state_of(job: Job) -> str:
    """'finished', 'running', 'stopped' (goes on when started again) or 'not started'.

    Raises:
        ValueError: if the folder holds a run of other options, pictures or weights, or its options
            cannot be read, or a file that it is to be compared with is not there.
    """
    if not (job.folder / OPTIONS_FILE).is_file():  # it comes when the run begins to train
        return 'running' if is_locked(job.folder) else 'not started'
    if changes := list(differences(job)):
        raise ValueError(
            f'{job.folder} holds another run ({"; ".join(changes[:SHOWN])}): choose another '
            '--output, or give the options that it was run with'
        )
    if is_finished(job.folder):
        return 'finished'
    return 'running' if is_locked(job.folder) else 'stopped'


def differences(job: Job) -> Iterator[str]:
    """What of the run in the job's folder is other than the job says, in words."""
    config = load_config(job.folder)
    for key, (old, new) in changed_options(config, job.config).items():
        yield f'{key}: {old} -> {new}'
    try:
        record = read_record(job.folder) or {}
    except ValueError:  # to start the run again mends it
        return
    before = batch_counts(config, record, job.stage)
    now = batch_counts(job.config, {'processes': job.processes}, job.stage)
    for key, count in now.items():
        if before[key] != count:
            yield f'{key}: {before[key]} -> {count}'
    data = job.config.DATA
    for name in (data.TRAIN_CSV, data.VALID_CSV, data.TEST_CSV) if data.DATA_PATH else ():
        known = record.get('data', {}).get('files', {}).get(name)
        if known and known != _checksum(Path(data.DATA_PATH) / name, 'of --data-path'):
            yield f'data: {name} of {data.DATA_PATH} is another file'
    yield from _weights_differences(job, config, record)


def _weights_differences(job: Job, before: Config, record: Mapping[str, Any]) -> Iterator[str]:
    """How what the run began with is other than what the job begins with, in words.

    Not known is what a run began with that was continued by hand, or whose record was lost or is of
    an older version; nor what it would begin with now, if that was another run's and was removed.
    """
    old, new = before.PRETRAINED, job.config.PRETRAINED
    begin = next(iter(record.get('starts', [])), {})
    if 'pretrained' not in record or begin.get('resumed_from'):
        return
    if '://' in old + new:  # an address has no checksum
        if old != new:
            yield f'weights: {old or RANDOM} -> {new or RANDOM}'
        return
    known, now = record['pretrained'], None
    if job.weights:
        now = _checksum(Path(job.weights), 'the weights')
    elif Path(new).is_file():
        now = _checkpoint_checksum(Path(new))
    elif new:
        return
    if known and now and known != now:
        yield f'weights: {new} is another file'
    elif known != now:
        yield f'weights: {old if known else RANDOM} -> {new or RANDOM}'


def _checkpoint_checksum(path: Path) -> str:
    """What a run wrote down with its checkpoint; to read those of a whole sweep takes long."""
    beside = checksum_file(path)
    written = beside.read_text('utf-8', 'replace').split() if beside.is_file() else []
    return written[0] if written else _checksum(path, 'the weights')


def _checksum(path: Path, named_by: str) -> str:
    if not path.is_file():
        raise ValueError(f'there is no file {path} ({named_by}): is its drive mounted?')
    return _sha256(path, path.stat().st_mtime_ns)


@cache
def _sha256(path: Path, changed_ns: int) -> str:
    return sha256(path)


def progress(job: Job) -> str:
    """How far a run is that was started: epochs done, and of how many."""
    file, epochs = job.folder / 'metrics.jsonl', [-1]
    for line in file.read_bytes().splitlines() if file.is_file() else ():
        # One that a power cut tore, or that is being written, counts no epoch.
        with contextlib.suppress(ValueError, TypeError, KeyError):
            epochs.append(int(json.loads(line)['epoch']))
    return f'epoch {max(epochs) + 1} of {job.config.TRAIN.EPOCHS}'


@dataclass
class Runner:
    """Starts the jobs of a plan as processes, as many at a time as there are slots.

    Jobs that are finished are left alone, half-done ones go on, one that another process is
    running is waited for.  SIGTERM and Ctrl-C are passed on: the runs save, and a later start of
    the same sweep goes on.

    Args:
        jobs: each after what it needs.
        slots: one job at a time in each: the environment variables that it gets.
        processes: of each job; above 1 it is started by torchrun.
        logs: folder of what the runs print.
        say: takes a line on the progress.
    """

    jobs: Sequence[Job]
    slots: Sequence[dict[str, str]]
    processes: int
    logs: Path
    say: Callable[[str], None]
    running: dict[int, tuple[Job, subprocess.Popen, float]] = field(default_factory=dict)
    broken: set[Path] = field(default_factory=set)
    failed: list[str] = field(default_factory=list)
    signal: str = ''

    def run(self) -> int:
        """Run all; returns 0, 1 if jobs failed, or 75 if it was stopped."""
        self.logs.mkdir(parents=True, exist_ok=True)
        states = [(job, state_of(job)) for job in self.jobs]
        self.waiting = [job for job, state in states if state != 'finished']
        self.total, self.done = len(self.waiting), 0
        self.say(f'{len(self.jobs)} runs: {len(self.jobs) - self.total} finished before')
        with self._on_signals():
            try:
                self._run_waiting()
            finally:
                self._end_all()
        self._check([job for job, state in states if state == 'finished' and job.needs])
        for line in self.failed:
            self.say(line)
        if self.signal:
            left = self.total - self.done
            self.say(f'stopped by {self.signal}, {left} runs left: start the same command to go on')
            return EXIT_PREEMPTED
        return 1 if self.failed else 0

    def _run_waiting(self) -> None:
        while (self.waiting and not self.signal) or self.running:
            if self.signal:
                self._pass_on()
            else:
                self.waiting = [job for job in self.waiting if not self._start(job)]
            self._reap()
            if self.running or self.waiting:
                time.sleep(LOOK_SECONDS)

    def _end_all(self) -> None:
        """After an error: no run goes on that nobody looks after."""
        while any(process.poll() is None for _, process, _ in self.running.values()):
            self._pass_on()
            time.sleep(LOOK_SECONDS)

    def _check(self, finished: Sequence[Job]) -> None:
        """Name those whose pre-training was made anew meanwhile, with another end."""
        for job in finished:
            try:
                state_of(job)
            except ValueError as error:
                self._fail(job, str(error))

    def _start(self, job: Job) -> bool:
        """Start a job if it can be started; returns whether it need not be looked at again."""
        if lost := [folder for folder in job.needs if folder in self.broken]:
            self._fail(job, f'not run, it needs {lost[0]}')
            return True
        try:
            state = state_of(job)
        except ValueError as error:  # its folder or its data were changed meanwhile
            self._fail(job, f'not run, {error}')
            self.say(self.failed[-1])
            return True
        if state == 'finished':  # by another process, meanwhile
            self.done += 1
            return True
        free = len(self.running) < len(self.slots)
        if free and state != 'running' and all(map(is_finished, job.needs)):
            self._launch(job)
            return True
        return False

    def _fail(self, job: Job, reason: str) -> None:
        self.broken.add(job.folder)
        self.failed.append(f'{job.name}: {reason}')

    def _launch(self, job: Job) -> None:
        slot = next(i for i in range(len(self.slots)) if i not in self.running)
        launcher = [os.environ.get('PYTHON', sys.executable)]
        if self.processes > 1:
            launcher += ['-m', 'torch.distributed.run', '--standalone']
            launcher += ['--nproc_per_node', str(self.processes)]
        with open(self._log(job), 'ab') as log:
            process = subprocess.Popen(
                [*launcher, *job.arguments],
                cwd=ROOT,
                env=os.environ | self.slots[slot],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches it through this process alone
            )
        self.running[slot] = (job, process, time.monotonic())
        going_on = ', going on' if newest_first(job.folder) else ''
        self.say(f'started  {job.name}{going_on}')

    def _reap(self) -> None:
        """Look which jobs have ended, and how."""
        for slot, (job, process, start) in list(self.running.items()):
            code = process.poll()
            if code is None:
                continue
            del self.running[slot]
            seconds = time.monotonic() - start
            if is_finished(job.folder):
                self.done += 1
                self.say(f'finished {job.name}: {seconds:.0f} s [{self.done}/{self.total}]')
            elif code == EXIT_PREEMPTED or self.signal:
                self.signal = self.signal or 'a signal to the run'
                self.say(f'stopped  {job.name} after {seconds:.0f} s')
            elif is_locked(job.folder):  # another process was quicker
                self.waiting.append(job)
            else:
                self._fail(job, f'failed with code {code}, see {self._log(job)}')
                self.say(self.failed[-1])

    def _log(self, job: Job) -> Path:
        return self.logs / f'{job.folder.parent.name}__{job.folder.name}.log'

    @contextlib.contextmanager
    def _on_signals(self) -> Iterator[None]:
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
        before = {number: signal.signal(number, self._stop) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number).name

    def _pass_on(self) -> None:
        for _, process, _ in self.running.values():
            if self.processes == 1:
                process.terminate()
            elif process.poll() is None:
                # torchrun itself would kill its workers after half a minute.
                for child in _children(process.pid):
                    with contextlib.suppress(ProcessLookupError):  # it has ended
                        os.kill(child, signal.SIGTERM)


def _children(process: int) -> list[int]:
    """The processes that a process has started; without other programs where there is /proc."""
    if PROCESSES.is_dir():
        pairs = filter(None, map(_with_parent, PROCESSES.glob('[0-9]*/stat')))
    else:
        words = ['ps', '-A', '-o', 'pid=,ppid=']
        lines = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        pairs = (map(int, line.split()) for line in lines.splitlines())
    return [child for child, parent in pairs if parent == process]


def _with_parent(file: Path) -> tuple[int, int] | None:
    """A process and its parent by its `stat`; None if it has ended."""
    try:
        _, _, rest = file.read_bytes().rpartition(b')')  # its name may hold anything
    except OSError:
        return None
    return int(file.parent.name), int(rest.split()[1])
