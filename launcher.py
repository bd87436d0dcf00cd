"""From the command line to a run: its settings, process group, seeds, folder, logs, exit code."""

import contextlib
import faulthandler
import logging
import os
import random
import signal
import sys
import threading
import traceback
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGTERM, SIGUSR1
from types import FrameType
from typing import Any

import numpy as np
import torch

import distributed
from config import build_parser, config_text, get_config
from device import describe_precision, local_device
from failures import (
    EXIT_OTHER_PROCESS,
    EXIT_UNEXPECTED,
    LOOK_SECONDS,
    Failures,
    Terminated,
    explain,
    tell_torchrun,
)
from logger import ScalarLog, create_logger
from preemption import EXIT_PREEMPTED, Preempted
from provenance import RunRecord, code_version, environment, without_home
from run_lock import RunLock
from same_run import refuse_other_options, refuse_other_weights


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
