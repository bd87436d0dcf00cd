"""From the command line to a run: its settings, process group, seeds, folder, logs, exit code."""

import contextlib
import faulthandler
import fcntl
import json
import logging
import os
import random
import re
import signal
import socket
import sys
import threading
import time
import traceback
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from logging import Logger
from pathlib import Path
from signal import SIGTERM, SIGUSR1
from types import FrameType, TracebackType
from typing import Any, TextIO

import numpy as np
import torch
import torch.distributed as dist

from config import (
    PROBES,
    Config,
    build_parser,
    config_text,
    default_config,
    get_config,
    has_more_epochs,
    load_yaml,
    training_changes,
)
from engine import distributed
from engine.device import describe_precision, local_device
from engine.files import BUSY, NO_LOCKS
from engine.run_record import (
    OPTIONS_FILE,
    RunRecord,
    code_version,
    environment,
    is_finished,
    read_record,
    weights_checksum,
    without_home,
)
from logger import ScalarLog, create_logger
from utils import find_newest_checkpoint

# ==== preemption: What may interrupt training between two steps: a signal or the clock, agreed by all ranks.

EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: the same command goes on
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)  # USR1: Slurm's --signal


class Preempted(Exception):  # noqa: N818 (no error: the run goes on later)
    """The run was asked to stop, and has saved where it stands."""


class Interruptions:
    """Requests to stop or to save, while it is entered; between the ranks they agree.

    SIGTERM, SIGUSR1 and SIGINT (Ctrl-C) ask to stop after the current step; a second SIGINT stops
    at once.  With several ranks what one of them was asked is known to all a step later, so that
    no step waits for the exchange, and all stop at the same step.

    Args:
        save_minutes: a save is due when the last one was so long ago, by rank 0's clock; 0: never.
        timeout_minutes: that a rank waits for the others.
    """

    def __init__(self, save_minutes: float = 0.0, timeout_minutes: float = 30.0) -> None:
        self.timeout = timedelta(minutes=timeout_minutes)
        self.signal = ''  # the first that this process received
        self.save_seconds = save_minutes * 60
        self.last_save = time.monotonic()
        self.group = None
        self.pending = None

    def __enter__(self) -> 'Interruptions':
        if dist.is_initialized():
            # Of its own, on the CPU: it neither waits for the device nor for the gradients.
            self.group = dist.new_group(backend='gloo', timeout=self.timeout)
        self.before = {}
        if threading.current_thread() is threading.main_thread():  # others cannot take signals
            self.before = {number: signal.signal(number, self._receive) for number in STOP_SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if self.group is not None and error is None:
            self._finish()
            dist.destroy_process_group(self.group)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal:
            raise KeyboardInterrupt
        if not self.signal:
            self.signal = signal.Signals(number).name
            # No logging in a handler: the log may be what it interrupts.
            os.write(2, f'{self.signal}: this step is finished, then saved\n'.encode())

    def saved(self) -> None:
        """A checkpoint was written: the clock starts again."""
        self.last_save = time.monotonic()

    def due(self, *, wait: bool) -> tuple[bool, bool]:
        """Whether to stop now, and whether to save now: the same answer on all ranks.

        Every rank must call it after every step.

        Args:
            wait: for what is asked at this step, not at the one before.
        """
        late = 0 < self.save_seconds <= time.monotonic() - self.last_save
        if self.group is None:
            return bool(self.signal), late
        answer = self._finish()
        # A save that was asked for is not asked for again before it is done.
        self._start([bool(self.signal), late and dist.get_rank() == 0 and not answer[1]])
        if wait:
            answer = [a or b for a, b in zip(answer, self._finish(), strict=True)]
        return answer[0], answer[1]

    def _start(self, asked: list[bool]) -> None:
        flags = torch.tensor(asked, dtype=torch.uint8)
        work = dist.all_reduce(flags, dist.ReduceOp.MAX, group=self.group, async_op=True)
        self.pending = work, flags

    def _finish(self) -> list[bool]:
        """The answer under way; nothing is asked where there is none."""
        if self.pending is None:
            return [False, False]
        (work, flags), self.pending = self.pending, None
        work.wait()
        return flags.bool().tolist()


# ==== failures: What ended a process of a run: in words, in the run's folder, and told to the other processes.

EXIT_UNEXPECTED, EXIT_MISTAKE, EXIT_OTHER_PROCESS = 1, 2, 3
POLL_SECONDS = 2  # between two looks for failures of other processes
GRACE_SECONDS = 15  # for a process to end by itself after the failure of another
LOOK_SECONDS = 5  # after a broken connection, for the other's record to appear

MISTAKES = (ValueError, FloatingPointError, OSError, torch.OutOfMemoryError)
_WORKER = re.compile(r'\n\w[\w.]*: ')  # of the traceback that a loader's worker sends
_CONNECTION = re.compile(
    r'clos|reset|refused|broken pipe|remote|network|unreachable|no route|aborted|recv', re.I
)
_SILENCE = re.compile(r'timed? ?out', re.I)
_LOOK = (
    'look at the last lines of each log_rank<r>.txt, at what torchrun says of each process, '
    "and at the kernel's log (dmesg) of each node"
)
_GONE = (
    'another process of this run ended without a word (killed, out of memory, crashed) or the '
    f'network to it was cut: {_LOOK}'
)
_SILENT = (
    'another process of this run did not answer within TRAIN.RANK_TIMEOUT_MINUTES: it stands '
    f'still, is much slower, or the network to it was cut: {_LOOK}'
)


class Terminated(BaseException):
    """A signal to stop, named in the text, where nothing is trained."""


def explain(error: BaseException) -> tuple[int, str]:
    """Exit code of the process, and the error in one line."""
    text = str(error).strip()
    if text.startswith('Caught '):  # in a loader's worker
        text = _WORKER.split(text)[-1].strip()
    if isinstance(error, Terminated):
        return EXIT_PREEMPTED, f'stopped by {text}, with nothing to save; the same command goes on'
    if isinstance(error, MISTAKES):
        return EXIT_MISTAKE, text
    if isinstance(error, RuntimeError) and 'have a deterministic implementation' in text:
        operation = text.split(' does not ')[0]
        return EXIT_MISTAKE, (
            f'TRAIN.DETERMINISTIC: {operation} has no deterministic version in this torch; '
            'leave the option off, or what needs this operation'
        )
    if isinstance(error, RuntimeError) and text.startswith('DataLoader worker'):
        return EXIT_MISTAKE, (
            f'{text} - if it ran out of memory, lower DATA.NUM_WORKERS or --batch-size'
        )
    if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and 'gloo' in text):
        if _SILENCE.search(text):
            return EXIT_OTHER_PROCESS, _SILENT
        if _CONNECTION.search(text):
            return EXIT_OTHER_PROCESS, _GONE
    return EXIT_UNEXPECTED, f'unexpected {type(error).__name__}: {text.partition(chr(10))[0]}'


def tell_torchrun(message: str) -> None:
    """Have torchrun show what ended this process in the table that it ends with."""
    if path := os.environ.get('TORCHELASTIC_ERROR_FILE'):
        report = {'message': message, 'extraInfo': {'timestamp': str(int(time.time()))}}
        with contextlib.suppress(OSError):
            Path(path).write_text(json.dumps({'message': report}), encoding='utf-8')


class Failures:
    """Failures of this run's processes: a file `failure_rank<r>.json` in its folder for each.

    What fails because another process is gone leaves no file, so that the earliest is the cause.
    With one process there are none. All ranks must make it at once.

    Args:
        folder: the run's folder.
        clear: whether to remove the files of a run before.
    """

    def __init__(self, folder: Path, *, clear: bool) -> None:
        self.folder = folder
        if clear and distributed.is_main():
            for path in folder.glob('failure_rank*.json'):
                path.unlink(missing_ok=True)
        # Files of another run in this folder, such as an evaluation, are told apart by its start.
        starts = distributed.gather(f'{socket.gethostname()} {os.getpid()} {time.time_ns()}')
        self.run = starts[0]

    def record(self, message: str) -> None:
        """Tell the other processes of a failure of this one."""
        if distributed.world_size() == 1:
            return
        rank, host = distributed.rank(), socket.gethostname()
        path = self.folder / f'failure_rank{rank}.json'
        record = {'time': time.time(), 'rank': rank, 'host': host, 'message': message}
        with contextlib.suppress(OSError):  # the folder may be what failed; the log has it
            temporary = path.with_suffix('.tmp')
            temporary.write_text(json.dumps(record | {'run': self.run}), encoding='utf-8')
            os.replace(temporary, path)

    def first_elsewhere(self, seconds: float) -> str:
        """The earliest failure of another process in one line; '' if none appears in `seconds`."""
        if distributed.world_size() == 1:
            return ''
        end = time.monotonic() + seconds
        while not (records := self._others()) and time.monotonic() < end:
            time.sleep(0.1)
        if not records:
            return ''
        first = min(records, key=lambda record: record['time'])
        return f'rank {first["rank"]} on host {first["host"]} failed first: {first["message"]}'

    def watch(self, logger: Logger) -> None:
        """End this process when another has failed and it does not notice, in a thread."""

        def look() -> None:
            while not self._others():
                time.sleep(POLL_SECONDS)
            time.sleep(GRACE_SECONDS)
            logger.error(self.first_elsewhere(0))
            os._exit(EXIT_OTHER_PROCESS)

        if distributed.world_size() > 1:
            threading.Thread(target=look, daemon=True).start()

    def _others(self) -> list[dict[str, Any]]:
        own = f'failure_rank{distributed.rank()}.json'
        paths = [path for path in self.folder.glob('failure_rank*.json') if path.name != own]
        records = []
        for path in paths:
            with contextlib.suppress(OSError, ValueError):  # gone, or of something else
                records.append(json.loads(path.read_text(encoding='utf-8')))
        return [record for record in records if record['run'] == self.run]


# ==== run_lock: One run in a folder at a time.

LOCK_FILE = 'run.lock'
WAIT_SECONDS = 2.0  # for a lock that no living run is known to have
POLL_SECONDS_run_lock = 0.01
HOLDER = re.compile(r'host (\S+), process (\d{1,9}), since .+')


class RunLock:
    """Keeps a second run out of a run's folder, from `acquire` until `release` or the process ends.

    The lock is the file system's on `run.lock`, which is free by itself when its process died; who
    holds it stands in the file.  Where the file system has no locks, that text decides: a run goes
    on unless its process lives on this host.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / LOCK_FILE
        self.file = None

    def acquire(self) -> 'RunLock':
        """Take the lock.

        Raises:
            ValueError: naming host, process and time, if another run has it.
        """
        file = open(self.path, 'a+', encoding='utf-8', errors='replace')  # noqa: SIM115
        try:
            self._lock(file)
            file.truncate(0)
            now = time.strftime('%Y-%m-%d %H:%M:%S')
            file.write(f'host {socket.gethostname()}, process {os.getpid()}, since {now}\n')
            file.flush()
        except BaseException:
            file.close()
            raise
        self.file = file
        return self

    def release(self) -> None:
        """Give the lock back; the file stays, empty."""
        if self.file is not None:
            self.file.truncate(0)
            self.file.close()
            self.file = None

    def __enter__(self) -> 'RunLock':
        return self.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def _lock(self, file: TextIO) -> None:
        """Take the lock, after `is_locked` of other processes, which has it for a moment."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not self._try_lock(file, fcntl.LOCK_EX):
            holder = _read(file)
            if _goes_on(holder) or time.monotonic() > deadline:
                raise self._refusal(holder)
            time.sleep(POLL_SECONDS_run_lock)

    def _try_lock(self, file: TextIO, kind: int) -> bool:
        """Take a lock of this kind, which the end of the file's use gives back; False: busy."""
        try:
            fcntl.lockf(file, kind | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in BUSY:
                return False
            if error.errno not in NO_LOCKS:
                raise
            self._judge(_read(file))
        return True

    def _judge(self, holder: str) -> None:
        """Without locks: refuse if the run that the text names goes on, as far as can be seen."""
        if _goes_on(holder):
            raise self._refusal(holder)
        if holder:
            logging.getLogger(__name__).warning(
                f'{self.path}: the file system has no locks; the run named there ({holder}) is '
                'taken for ended'
            )

    def _refusal(self, holder: str) -> ValueError:
        return ValueError(
            f'{self.path.parent}: another run is going on in this folder '
            f'({holder or "its process is not named"}); end it, or choose another --tag or --output'
        )


def is_locked(folder: str | Path) -> bool:
    """Whether a run of another process goes on in this folder, as far as can be seen."""
    lock = RunLock(folder)
    try:
        file = open(lock.path, encoding='utf-8', errors='replace')  # noqa: SIM115
    except (FileNotFoundError, PermissionError):
        return False
    with file:
        try:
            return not lock._try_lock(file, fcntl.LOCK_SH)  # who only reads cannot take the other
        except ValueError:
            return True


def _read(file: TextIO) -> str:
    file.seek(0)
    return file.read(1000).strip()


def _goes_on(holder: str) -> bool:
    """Whether the text names a process that runs on this host."""
    match = HOLDER.fullmatch(holder)
    return bool(match) and match[1] == socket.gethostname() and _lives(int(match[2]))


def _lives(process: int) -> bool:
    """Whether another process of this number runs on this host."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's
        pass
    return True


# ==== same_run: Whether a start belongs to the run in its folder; if not it is refused, before it writes.

SHOWN = 3  # options in a message


def refuse_other_options(folder: Path, options: str) -> None:
    """Refuse to start a finished run with options that it was not trained with.

    It may be trained for more epochs, and evaluated and reported in another way.

    Raises:
        ValueError: naming them, or config.yaml if it cannot be read.
        OSError: if it cannot be opened.
    """
    path = folder / OPTIONS_FILE
    try:
        before = path.read_bytes()
    except FileNotFoundError:
        return
    if not is_finished(folder):
        return
    try:
        before = before.decode()
        if has_more_epochs(before, options):
            return
        changes = training_changes(before, options, config_text(default_config()))
    except ValueError as error:
        raise ValueError(
            f'{path} cannot be read ({error}): put it back, remove it, or choose another --tag or '
            '--output'
        ) from error
    if changes:
        shown = [f'{line:.200}' for line in changes[:SHOWN]]
        more = f'; and {len(changes) - SHOWN} more' if len(changes) > SHOWN else ''
        raise ValueError(
            f'{folder} holds a finished run of other options ({"; ".join(shown)}{more}): choose '
            'another --tag or --output'
        )


def refuse_other_weights(folder: Path, config: Config) -> None:
    """Refuse a file PRETRAINED other than a finished run, or one that goes on, began with.

    To go on it would not be loaded, but named in the report; a probe would be fitted anew, which is
    refused without PRETRAINED, too. Not known is what a run began with that went on from
    MODEL.RESUME, or that had its weights from an address, or whose record is lost.

    Raises:
        ValueError: naming the file.
        OSError: if it cannot be read.
    """
    given, is_probe = config.PRETRAINED, config.FINETUNE.MODE in PROBES
    goes_on = config.TRAIN.AUTO_RESUME and find_newest_checkpoint(folder)
    concerned = Path(given).is_file() or (is_probe and not given)
    if not concerned or not (goes_on or is_finished(folder)):
        return
    try:
        record = read_record(folder) or {}
        before = load_yaml((folder / OPTIONS_FILE).read_text('utf-8')).get('PRETRAINED', '')
    except (ValueError, AttributeError, FileNotFoundError):  # to start the run again mends it
        return
    begin = next(iter(record.get('starts', [])), {})
    if 'pretrained' not in record or begin.get('resumed_from') or '://' in str(before):
        return
    if weights_checksum(given) != record['pretrained']:
        raise ValueError(
            f'{folder} holds a run that began with other weights than PRETRAINED {given!r}: choose '
            'another --tag or --output'
        )


# ==== launcher: From the command line to a run: its settings, process group, seeds, folder, logs, exit code.


@dataclass(frozen=True)
class Run:
    """What one run is: its settings, its folder, its device and where it reports to."""

    config: Any
    stage: str
    folder: Path
    device: torch.device
    logger: logging.Logger
    scalars: ScalarLog
    failures: Failures | None = None
    lock: RunLock | None = None
    record: RunRecord = field(default_factory=RunRecord)

    @property
    def is_pretrain(self) -> bool:
        return self.stage in ('simmim', 'contrastive')

    def close(self) -> None:
        """Write what is left of the curves and the record, and let another run into the folder."""
        try:
            self.scalars.close()
            self.record.close()
        finally:
            if self.lock is not None:
                self.lock.release()


def setup_run(args: Namespace) -> Run:
    """Config, process group, seeds, the run's folder, and the logs.

    Only a run that trains writes to its folder more than the log.

    Raises:
        ValueError: on all ranks, for a bad config, or an output folder that cannot be written, that
            another run is writing to, or that holds a run of other options or weights.
    """
    config = get_config(args)
    _set_determinism(config.TRAIN.DETERMINISTIC)
    device = local_device()
    distributed.init_process_group(device, config.TRAIN.RANK_TIMEOUT_MINUTES)
    seed = config.SEED + distributed.rank()
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)

    folder = Path(config.OUTPUT) / config.MODEL.NAME / config.TAG
    trains = not (config.EVAL_MODE or config.THROUGHPUT_MODE or config.CHECK_MODE)
    writes = trains and distributed.is_main()
    problem, lock = '', None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if writes:
            lock = RunLock(folder).acquire()
        if distributed.is_main() and (trains or config.CHECK_MODE):
            refuse_other_options(folder, config_text(config))
            refuse_other_weights(folder, config)
        logger = create_logger(folder, distributed.rank(), name=config.MODEL.NAME)
        scalars = ScalarLog(folder, enabled=writes, logger=logger)
    except OSError as error:
        problem = (
            f'OUTPUT: cannot write to the folder {folder} ({error.strerror}); '
            'choose another with --output'
        )
    except ValueError as error:
        problem = str(error)
    if problems := [text for text in distributed.gather(problem) if text]:
        if lock is not None:
            lock.release()
        raise ValueError(problems[0])
    failures = Failures(folder, clear=trains)
    gpu = torch.cuda.get_device_name(device) if device.type == 'cuda' else None
    gpus = [name for name in distributed.gather(gpu) if name]
    record = RunRecord(folder, _facts(args, config.SEED, gpus), logger) if writes else RunRecord()
    run = Run(config, args.stage, folder, device, logger, scalars, failures, lock, record)
    _describe(run)
    if distributed.world_size() > 1:
        run.failures.watch(logger)
        # A crash outside Python, such as NCCL's own end of a process, leaves its place in the log.
        faulthandler.enable(open(folder / f'log_rank{distributed.rank()}.txt', 'ab'))  # noqa: SIM115
    return run


def _facts(args: Namespace, seed: int, gpus: list[str]) -> dict[str, Any]:
    """What `run.json` says of the start of this process."""
    program, *words = getattr(args, 'command', sys.argv)
    return {
        'stage': args.stage,
        'command': [Path(program).name, *map(without_home, words)],
        'code': code_version(),
        'seed': seed,
        'processes': distributed.world_size(),
        'environment': environment(gpus=gpus, threads=torch.get_num_threads()),
    }


def _set_determinism(wanted: bool) -> None:
    if wanted:
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')  # read when CUDA starts
    torch.use_deterministic_algorithms(wanted)
    torch.backends.cudnn.deterministic = wanted
    torch.backends.cudnn.benchmark = not wanted


def _describe(run: Run) -> None:
    config, logger, processes = run.config, run.logger, distributed.world_size()
    logger.debug(config_text(config))
    logger.info(
        f'run folder {run.folder}; {processes} process(es) on {run.device.type}, '
        f'{torch.get_num_threads()} threads each; torch {torch.__version__}; seed {config.SEED}'
    )
    if processes > 1:
        minutes = config.TRAIN.RANK_TIMEOUT_MINUTES
        logger.info(
            f'when one process ends, all end within {distributed.END_SECONDS} s; one that does not '
            f'answer is waited for {minutes:g} minutes (TRAIN.RANK_TIMEOUT_MINUTES)'
        )
    logger.info(describe_precision(config, run.device))
    if config.TRAIN.DETERMINISTIC:
        logger.info('TRAIN.DETERMINISTIC: only deterministic algorithms')
    schedule = config.TRAIN.LR_SCHEDULER.NAME
    if schedule not in ('cosine', 'onecycle'):
        logger.info(f'TRAIN.MIN_LR has no effect with the {schedule} schedule')


def launch(stage: str, main: Callable[[Run], int | None], argv: list[str] | None = None) -> int:
    """Parse the flags, set up, run `main`; whatever ends it is the last line of the log.

    Returns:
        The exit code: main's, or 0; 2 for a user's mistake; 75 for a run that was stopped by a
        signal, and saved if there was something to save; 3 where another process of the run failed
        or does not answer; 1 for the unexpected, with its traceback.
    """
    args = build_parser(stage).parse_args(argv)
    args.command = sys.argv if argv is None else [f'main_{stage}.py', *argv]
    run = None
    with _on_stop(_terminate):
        try:
            run = setup_run(args)
            return _finish(run, main)
        except (Exception, Terminated) as error:
            with _on_stop(signal.SIG_IGN):  # torchrun's, after the failure of another process
                return _fail(run, error)


def _finish(run: Run, main: Callable[[Run], int | None]) -> int:
    """Run `main` to its end, or to where it was asked to stop."""
    try:
        code = main(run) or 0
        run.record.finish()
    except Preempted as stop:
        with _on_stop(signal.SIG_IGN):  # it is saved
            distributed.barrier()  # torchrun ends the others soon after the first that leaves
        run.logger.warning(str(stop))
        code = EXIT_PREEMPTED
    run.close()
    distributed.destroy_process_group()
    return code


def _fail(run: Run | None, error: BaseException) -> int:
    """Say what ended the run, or what ended the process without which it cannot go on."""
    code, message = explain(error)
    if code in (EXIT_OTHER_PROCESS, EXIT_PREEMPTED):
        if run is not None and (first := run.failures.first_elsewhere(LOOK_SECONDS)):
            code, message = EXIT_OTHER_PROCESS, first
    elif run is not None:
        run.failures.record(message)
    tell_torchrun(message)
    unexpected = code == EXIT_UNEXPECTED
    if run is not None:
        run.logger.log(logging.ERROR if unexpected else logging.DEBUG, 'traceback:', exc_info=error)
        run.logger.error(message)
        with contextlib.suppress(Exception):  # curves that cannot be written any more
            run.close()
    if run is None or not distributed.is_main():  # no logger, or none that shows it
        if unexpected:
            traceback.print_exception(error)
        print(f'error: {message}', file=sys.stderr)  # noqa: T201
    return code


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated(signal.Signals(number).name)


@contextlib.contextmanager
def _on_stop(handler: Callable | signal.Handlers) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # others cannot take signals
        yield
        return
    before = {number: signal.signal(number, handler) for number in (SIGTERM, SIGUSR1)}
    try:
        yield
    finally:
        for number, handler_before in before.items():
            signal.signal(number, handler_before)
