"""Rounds of pseudo-labels: predict unlabelled patients, keep the confident, train anew, score.

Round 0 learns from the real labels of the subset alone. Each round after it learns from these and
from the pseudo-labels that the last round's model is confident of, from the same start. A round
that does not raise the held-out score is the last, and the one before it is the best.
"""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from statistics import median
from types import FrameType
from typing import Any

import numpy as np

from config import Config, build_parser, get_config
from data.data_finetune import unlabelled_records
from data.labels import scored_targets, task_labels
from data.records import (
    Records,
    check_task,
    look_up,
    read_predictions,
    read_split,
    row_names,
    select_views,
    split_holdout,
    training_records,
    write_predictions,
)
from engine.files import sha256
from engine.launch import EXIT_PREEMPTED, is_locked
from engine.run_record import OPTIONS_FILE, is_finished, read_record
from evaluation.metrics import score_probabilities, selection_score
from evaluation.pseudo_labels import check_choice, choose_values
from logger import json_safe
from sweeps.files import ROOT, Job, batch_counts, changed_options, load_config, share_of_steps
from utils import checksum_file, newest_first

# ==== sweeps.costs: What a pre-training took: images and seconds of its epochs, and the machines that it ran on.


def epoch_seconds(records: Sequence[Mapping[str, Any]]) -> list[float]:
    """Seconds of training of each epoch, without evaluation, from the lines of metrics.jsonl.

    An epoch that a stop cut in two is logged from where it went on; at its own rate it counts as a
    whole one.
    """
    images = _epoch_images(records)
    return [images / record['images_per_second'] for record in _trained(records)]


def training_cost(records: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
    """`epochs`, `images` seen and `seconds` (epochs x the median one); None where none is timed.

    An epoch that a stop cut off at its last step is logged without a batch: it counts, untimed.
    """
    measured = epoch_seconds(records)
    if not measured:
        return None
    epochs = sum(record['epoch'] >= 0 for record in records)
    images = epochs * _epoch_images(records)
    return {'epochs': epochs, 'images': images, 'seconds': epochs * median(measured)}


def machines(folder: Path) -> list[tuple[str, ...]]:
    """What a run's seconds go by, each once: processes and their GPUs, or CPU and threads.

    By run.json: what the run began on, then what each start that trained was on. Starts that older
    versions wrote down do not say it.
    """
    record = read_record(folder) or {}
    begin = (record.get('environment') or {}) | {'processes': record.get('processes', 1)}
    starts = [start for start in record.get('starts', []) if 'processes' in start]
    return list(dict.fromkeys(map(_machine, [begin, *starts])))


def _machine(facts: Mapping[str, Any]) -> tuple[str, ...]:
    devices = facts.get('gpus') or [str(facts.get('cpu')), f'{facts.get("threads")} threads each']
    return (f'{facts["processes"]} process(es)', *devices)


def _trained(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [r for r in records if r['epoch'] >= 0 and r.get('seconds') and r['images_per_second']]


def _epoch_images(records: Sequence[Mapping[str, Any]]) -> int:
    """Of a whole epoch, on all processes."""
    found = (round(r['images_per_second'] * r['seconds']) for r in _trained(records))
    return max(found, default=0)


# ==== sweeps.runner: Running the jobs of a sweep on this machine: each once, several at a time, stopped at will.

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


# ==== sweeps.pseudo_rounds: Rounds of pseudo-labels: predict unlabelled patients, keep the confident, train anew, score.
#
# Round 0 learns from the real labels of the subset alone. Each round after it learns from these and
# from the pseudo-labels that the last round's model is confident of, from the same start. A round
# that does not raise the held-out score is the last, and the one before it is the best.

LOGS_pseudo_rounds = 'logs'  # folder below the output
ALL_LABELS = 'all_labels'  # tag of the run that learns from every real label


@dataclass(frozen=True)
class Setup:
    """What all rounds share.

    Attributes:
        cfg: YAML of fine-tuning, whose DATA.TRAIN_FRACTION or TRAIN_IMAGES are the real labels.
        data: --data-path.
        output: folder of all rounds.
        pretrained: checkpoint that every round starts from, or ''.
        options: KEY VALUE pairs put over the YAML's.
        processes: of a run; above 1 it is started by torchrun.
        keep: see `evaluation.confidence.choose_values`.
        confidence: likewise.
        equal_steps: whether runs with more pictures have fewer epochs, so that none is better for
            its greater number of steps alone.
    """

    cfg: str
    data: str
    output: Path
    pretrained: str = ''
    options: Sequence[str] = ()
    processes: int = 1
    keep: str = 'threshold'
    confidence: float = 0.9
    equal_steps: bool = False

    def round(self, number: int, *, growth: float = 1.0) -> Job:
        """The run of a round: an ordinary one of main_finetune.py.

        Args:
            number: of the round; 0 learns from the real labels of the subset alone.
            growth: how many times the pictures of round 0 it learns from.
        """
        file = str(self.file(number)) if number else ''
        options = ['EVAL.PREDICT_TRAIN', 'True', 'DATA.PSEUDO_LABELS', file]
        return self._job(f'round{number}', growth, *options)

    def all_labels(self, *, growth: float = 1.0) -> Job:
        """The run that learns from the real labels of all training patients."""
        whole = ['DATA.TRAIN_FRACTION', '1.0', 'DATA.TRAIN_IMAGES', '0', 'DATA.PSEUDO_LABELS', '']
        return self._job(ALL_LABELS, growth, *whole)

    def file(self, number: int) -> Path:
        """The pseudo-labels that a round learns from."""
        return self.output / f'pseudo_labels_round{number}.csv'

    def _job(self, tag: str, growth: float, *options: str) -> Job:
        arguments = ['--cfg', self.cfg, '--data-path', self.data, '--output', str(self.output)]
        arguments += ['--tag', tag]
        arguments += ['--pretrained', self.pretrained] if self.pretrained else []
        arguments += ['--opts', *self.options, *options]
        config = get_config(build_parser('finetune').parse_args(arguments))
        if self.equal_steps and growth != 1:
            arguments += _fewer_epochs(config, growth)
            config = get_config(build_parser('finetune').parse_args(arguments))
        if self.processes > 1:
            steps = share_of_steps(config, self.processes)
            arguments += ['--accumulation-steps', str(steps)]
            config = get_config(build_parser('finetune').parse_args(arguments))
        return Job(
            stage='finetune',
            run=tag,
            seed=config.SEED,
            folder=Path(config.OUTPUT) / config.MODEL.NAME / tag,
            arguments=['main_finetune.py', *arguments],
            config=config,
            processes=self.processes,
            weights=self.pretrained,
        )


def _fewer_epochs(config: Config, growth: float) -> list[str]:
    """Options, after others, with which so many times the pictures take about as many steps."""
    epochs = {key: config.TRAIN[key] / growth for key in ('EPOCHS', 'WARMUP_EPOCHS')}
    least = {'EPOCHS': 1, 'WARMUP_EPOCHS': 0}
    return [
        word
        for key, value in epochs.items()
        for word in (f'TRAIN.{key}', str(max(least[key], round(value))))
    ]


class Patients:
    """The training patients of a setup: held out, labelled, unlabelled.

    Args:
        config: of round 0.

    Raises:
        ValueError: if the CSV cannot be read, no patient is held out, or held-out pictures of the
            views that are learned from are not predicted.
    """

    def __init__(self, config: Config) -> None:
        config = config.clone()
        config.defrost()
        config.DATA.CACHE_DIR = ''  # the CSV files are where the data are
        if not config.DATA.HOLDOUT_FRACTION:
            raise ValueError(
                'DATA.HOLDOUT_FRACTION must be above 0, got 0.0: on held-out patients is chosen '
                'which predictions are kept, and which round'
            )
        learned, scored = config.DATA.VIEWS, config.EVAL.VIEWS or config.DATA.VIEWS
        if scored not in (learned, 'all'):
            raise ValueError(
                f"EVAL.VIEWS must be '', 'all' or as DATA.VIEWS ({learned!r}), got {scored!r}: on "
                'held-out pictures of all views that are learned from is chosen which predictions '
                'are kept'
            )
        self.config, self.labels = config, task_labels(config.DATA.TASK)
        everything = read_split(config, 'train', logging.getLogger(__name__))
        self.train, self.held_out = split_holdout(everything, config.DATA.HOLDOUT_FRACTION)
        self.unlabelled = unlabelled_records(config, self.train)

    def real(self, records: Records) -> np.ndarray:
        """The real labels of some records as they are scored, [N, K]."""
        data = self.config.DATA
        return scored_targets(records.labels, task=data.TASK, blank=data.BLANK)

    def predicted(self, folder: Path, split: str, records: Records) -> np.ndarray:
        """What the run in a folder predicts of some records, [N, K]; NaN where it does not."""
        file = folder / f'predictions_{split}.csv'
        predictions = read_predictions(file)
        check_task(file, self.config.DATA.TASK)
        return look_up(predictions, row_names(predictions, records.path), self.labels)

    def held_out_score(self, folder: Path) -> float:
        """The mean AUROC by EVAL.SELECT of a run's held-out predictions."""
        views = self.config.EVAL.VIEWS or self.config.DATA.VIEWS
        records = select_views(self.held_out, views)
        probabilities = self.predicted(folder, 'holdout', records)
        table = score_probabilities(self.config, probabilities, self.real(records), records.study)
        return selection_score(table, self.config.EVAL.SELECT)


@dataclass
class Rounds:
    """The rounds of a setup, run one after the other; finished ones are left alone.

    Attributes:
        setup: what they share.
        say: takes a line on the progress.
        jobs: the rounds that were run, by number.
        scores: their held-out scores.
        best: number of the best one.
        reason: why there is no further round.
        reference: the run on all labels, if there is one.
    """

    setup: Setup
    say: Callable[[str], None]
    jobs: list[Job] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    best: int = 0
    reason: str = ''
    reference: Job | None = None

    def __post_init__(self) -> None:
        check_choice(self.setup.keep, self.setup.confidence)
        self.setup.round(1)  # options that no round can work with are refused before any is run
        self.patients = Patients(self.setup.round(0).config)
        self.real_pictures = len(training_records(self.patients.config, self.patients.train))

    def run(self, rounds: int, *, after_round: Callable[['Rounds'], None]) -> int:
        """Run up to so many rounds after round 0; returns 0, or the code of a run that did not end.

        Args:
            rounds: 1 or more.
            after_round: called after each, and once it is known why there is no other.
        """
        for number in range(rounds + 1):
            pictures = self._choose(number) if number else 0
            if number and not pictures:
                self.reason = f'no prediction of round {number - 1} is confident enough'
                break
            job = self.setup.round(number, growth=1 + pictures / self.real_pictures)
            if code := self._run_job(job):
                return code
            self.jobs.append(job)
            self.scores.append(self.patients.held_out_score(job.folder))
            self.say(f'round {number}: held-out mean AUROC {self.scores[-1]:.4f}')
            if np.isnan(self.scores[0]):
                raise ValueError(f'{job.folder}: no label has both classes among held-out patients')
            if number and not self.scores[number] > self.scores[self.best]:
                self.reason = (
                    f'round {number} does not raise the held-out score of round {self.best}'
                )
                break
            self.best = number
            after_round(self)
        self.reason = self.reason or f'{rounds} rounds were asked for'
        self.say(f'best: round {self.best}; {self.reason}')
        after_round(self)
        return 0

    def run_reference(self) -> int:
        """Run what learns from all real labels; returns 0 or its code."""
        pictures = len(training_records(self.setup.all_labels().config, self.patients.train))
        job = self.setup.all_labels(growth=pictures / self.real_pictures)
        code = self._run_job(job)
        self.reference = None if code else job
        return code

    def _run_job(self, job: Job) -> int:
        file = job.config.DATA.PSEUDO_LABELS
        record = read_record(job.folder) or {}
        known = record.get('data', {}).get('files', {}).get('DATA.PSEUDO_LABELS')
        if known and known != sha256(Path(file)):
            raise ValueError(f'{job.folder} was trained on another {file}: {_OTHER}')
        slots, logs = [dict[str, str]()], self.setup.output / LOGS_pseudo_rounds
        return Runner([job], slots, self.setup.processes, logs, self.say).run()

    def _choose(self, number: int) -> int:
        """Write the pseudo-labels of a round, if there are any; returns of how many pictures."""
        setup, patients, teacher = self.setup, self.patients, self.jobs[number - 1]
        # Held-out pictures of the views that are learned from: those that are to be labelled.
        held_out = select_views(patients.held_out, patients.config.DATA.VIEWS)
        values, cuts = choose_values(
            patients.predicted(teacher.folder, 'holdout', held_out),
            patients.real(held_out),
            patients.predicted(teacher.folder, 'train', patients.unlabelled),
            keep=setup.keep,
            confidence=setup.confidence,
        )
        kept, file = ~np.isnan(values).all(axis=1), setup.file(number)
        if not kept.any():
            return 0
        if file.exists():
            before = read_predictions(file, allow_empty=True)
            names = row_names(before, patients.unlabelled.path)
            if not np.array_equal(look_up(before, names, patients.labels), values, equal_nan=True):
                raise ValueError(f'{file} holds other pseudo-labels than are chosen now: {_OTHER}')
            return int(kept.sum())
        by_label = {
            label: {'positive': asdict(positive), 'negative': asdict(negative)}
            for label, (positive, negative) in zip(patients.labels, cuts, strict=True)
        }
        source = {
            'task': patients.config.DATA.TASK,
            'teacher': teacher.run,
            'predictions': sha256(teacher.folder / 'predictions_train.csv'),
            'keep': setup.keep,
            'confidence': setup.confidence,
            'labels': by_label,
        }
        write_predictions(
            file,
            values[kept],
            paths=patients.unlabelled.path[kept],
            labels=patients.labels,
            source=json_safe(source),
        )
        return int(kept.sum())


_OTHER = (
    'choose another --output, or give the --keep and --confidence that the rounds there were '
    'run with'
)
