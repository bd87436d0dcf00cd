"""Start and end of a run: process group, seeds, run folder, lock, logs and exit codes."""

import contextlib
import faulthandler
import logging
import os
import random
import signal
import sys
import time
import traceback
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

from config import PROBES, Config, build_parser, config_text, get_config
from engine.causes import explain
from engine.interruptions import Preempted
from engine.run import Run
from engine.run_folder import refuse_another_run, remove_unused, run_lock
from engine.run_record import RunRecord, code_version, environment, without_home
from logger import ScalarLog, create_logger
from system import distributed
from system.device import autocast_dtype, busy_threads, describe_precision, local_device
from system.start import cause_from_torchrun, check_paths, report_to_torchrun
from system.tool import (
    EXIT_MISTAKE,
    EXIT_NOT_KEPT,
    EXIT_OTHER_PROCESS,
    EXIT_PREEMPTED,
    EXIT_UNEXPECTED,
    STOP_SIGNALS,
)

# A process that another one ended waits at most this long until torchrun stops it, because torchrun
# shows the first process to end.
CAUSE_SECONDS = 5


class Terminated(BaseException):
    """Raised when a signal stops a process outside training. The text is the signal's name."""


def launch(stage: str, main: Callable[[Run], int | None], argv: list[str] | None = None) -> int:
    """Parse the flags, set up the run and call `main`. An error becomes the last line of the log.

    Returns:
        Exit code: the code of `main` or 0; 1 for an unexpected error, whose traceback is logged; 2
        for a mistake of the user; 3 if another process failed or does not answer; 75 if a signal
        stopped the run after its state was saved; 76 if a signal stopped a run that keeps nothing,
        such as a probe.
    """
    args = build_parser(stage).parse_args(argv)
    args.command = sys.argv if argv is None else [f'main_{stage}.py', *argv]
    process = Process()
    with _handled(_terminate, *STOP_SIGNALS):
        try:
            setup_run(args, process)
            run = process.run
            try:
                code = main(run) or 0
                run.record.finish()
            except Preempted as stop:
                with _handled(signal.SIG_IGN, *STOP_SIGNALS):  # the state is already saved
                    # torchrun ends all processes soon after the first one exits.
                    distributed.barrier()
                run.logger.warning(str(stop))
                code = EXIT_PREEMPTED
            process.close(code)
            distributed.destroy_process_group()
            return code
        except (Exception, Terminated) as error:
            # torchrun sends SIGTERM after another process failed. The handler of the loader raises
            # whenever a worker ends.
            ignored = _handled(signal.SIG_IGN, *STOP_SIGNALS)
            with ignored, _handled(signal.SIG_DFL, signal.SIGCHLD):
                return _fail(process, error)
        finally:
            process.lock.close()  # also after a second Ctrl-C, for example in a notebook


@dataclass
class Process:
    """Holds the resources of this process during a run."""

    config: Config | None = None
    run: Run | None = None
    has_new_folder: bool = False  # whether no start before this one had the run folder
    lock: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def close(self, code: int) -> None:
        """Close the run with its exit code, and release the lock of its folder."""
        with self.lock:
            if self.run is not None:
                self.run.close(code)


def setup_run(args: Namespace, process: Process) -> None:
    """Read the config, join the process group, set the seeds, and open the run folder and the logs.

    Only a run that trains locks its folder and writes metrics, run.json and config.yaml.

    Raises:
        ValueError: On all ranks, if the config is invalid, or if the folder is not writable, is
            in use, or contains another run, or if the checkpoint to start from does not exist.
    """
    process.config = config = get_config(args)
    check_paths(config)
    set_determinism(config.TRAIN.DETERMINISTIC)
    device = local_device(tf32=config.AMP_TF32)
    distributed.init_process_group(device, config.TRAIN.RANK_TIMEOUT_MINUTES)
    # Ranks draw different dropout; the initial weights are those of rank 0.
    seed = config.SEED + distributed.rank()
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)

    folder = Path(config.OUTPUT) / config.MODEL.NAME / config.TAG
    process.has_new_folder = not any(distributed.gather(folder.exists()))
    problem, opened = '', None
    try:
        opened = _open_folder(folder, config, process.lock)
    except OSError as error:
        problem = (
            f'OUTPUT: the folder {folder} cannot be written ({error.strerror}): choose another '
            'with --output'
        )
    except ValueError as error:
        problem = str(error)
    # All ranks must agree, or the others would wait for a rank that has stopped.
    if problems := [text for text in distributed.gather(problem) if text]:
        raise ValueError(problems[0])
    logger, scalars = opened
    facts = _facts(args, config, device)
    record = RunRecord(folder, facts, logger) if scalars.enabled else RunRecord()
    process.run = Run(config, args.stage, folder, device, logger, scalars, record)

    logger.debug(config_text(config))
    logger.info(
        f'run folder {folder}; device {device.type}; processes: {distributed.world_size()}, '
        f'threads of each: {torch.get_num_threads()}; torch {torch.__version__}; '
        f'seed {config.SEED}'
    )
    logger.info(describe_precision(config, device))
    if device.type == 'cpu' and (advice := busy_threads()):
        logger.warning(advice)
    if distributed.world_size() > 1:
        faulthandler.enable()  # for crashes outside Python, such as NCCL aborting the process


def set_determinism(wanted: bool) -> None:
    """Choose deterministic operations, or else the fastest convolutions of cuDNN."""
    if wanted:
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')  # read when CUDA starts
    torch.use_deterministic_algorithms(wanted)
    torch.backends.cudnn.deterministic = wanted
    torch.backends.cudnn.benchmark = not wanted


def _open_folder(
    folder: Path, config: Config, lock: contextlib.ExitStack
) -> tuple[logging.Logger, ScalarLog]:
    """Make the run folder, lock it on rank 0, and open its logs.

    Raises:
        OSError: If the folder cannot be written.
        ValueError: If it is in use, or contains another run.
    """
    writes = _trains(config) and distributed.is_main()
    is_safe = True
    folder.mkdir(parents=True, exist_ok=True)
    if writes:
        is_safe = lock.enter_context(run_lock(folder))
    if writes or (config.CHECK_MODE and distributed.is_main()):
        refuse_another_run(folder, config)
    logger = create_logger(folder, distributed.rank(), name=config.MODEL.NAME)
    if not is_safe:
        logger.warning(f'{folder} cannot be locked: do not start two runs with this --tag')
    return logger, ScalarLog(folder, writes, config=config, logger=logger)


def _facts(args: Namespace, config: Config, device: torch.device) -> dict[str, Any]:
    """Return the facts about the start of the run for `run.json`. All processes must call this."""
    program, *words = args.command
    gpu = torch.cuda.get_device_name(device) if device.type == 'cuda' else None
    precision = str(autocast_dtype(config, device) or torch.float32).removeprefix('torch.')
    gpus = [name for name in distributed.gather(gpu) if name]
    precisions = sorted(set(distributed.gather(precision)))  # CPUs of nodes may differ
    return {
        'stage': args.stage,
        'command': [Path(program).name, *map(without_home, words)],
        'code': code_version(),
        'seed': config.SEED,
        'processes': distributed.world_size(),
        'precision': ', '.join(precisions),
        'environment': environment(gpus=gpus, threads=torch.get_num_threads()),
    }


def _fail(process: Process, error: BaseException) -> int:
    """Report why this process or another process of the run failed, and return the exit code."""
    run, config = process.run, process.config
    resumes = config is None or (_trains(config) and config.FINETUNE.MODE not in PROBES)
    # Where a signal interrupts a library, its clean-up may fail and would hide the signal.
    stop = error
    while stop is not None and not isinstance(stop, Terminated):
        stop = stop.__context__
    if stop is not None:
        code = EXIT_PREEMPTED if resumes else EXIT_NOT_KEPT
        message = f'stopped by {stop}: the same command {"resumes" if resumes else "begins again"}'
    else:
        code, message = explain(error)
    failed_itself = code in (EXIT_UNEXPECTED, EXIT_MISTAKE)
    if not failed_itself:
        # Another process of this node may have failed, whose error file torchrun still waits for.
        if code == EXIT_OTHER_PROCESS and 'TORCHELASTIC_ERROR_FILE' in os.environ:
            with contextlib.suppress(Terminated), _handled(_terminate, signal.SIGTERM):
                time.sleep(CAUSE_SECONDS)
        if cause := cause_from_torchrun():
            code, message = EXIT_OTHER_PROCESS, cause
    report_to_torchrun(message, is_cause=failed_itself)
    unexpected = code == EXIT_UNEXPECTED
    if run is not None:
        run.logger.log(logging.ERROR if unexpected else logging.DEBUG, 'traceback:', exc_info=error)
        run.logger.error(message)
    with contextlib.suppress(Exception):  # the last metrics may be impossible to write
        process.close(code)
    if run is not None and code == EXIT_MISTAKE and process.has_new_folder:
        remove_unused(run.folder)
    if run is None or not distributed.is_main():  # only the logger of rank 0 writes to the console
        if unexpected:
            traceback.print_exception(error)
        print(f'error: {message}', file=sys.stderr)  # noqa: T201
    return code


def _trains(config: Config) -> bool:
    return not (config.EVAL_MODE or config.THROUGHPUT_MODE or config.CHECK_MODE)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated(signal.Signals(number).name)


@contextlib.contextmanager
def _handled(handler: Callable | signal.Handlers, *numbers: int) -> Iterator[None]:
    """Handle signals with `handler` inside the block."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler_before in before.items():
            signal.signal(number, handler_before)
