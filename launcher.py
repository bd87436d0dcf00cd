"""From the command line to a run: its settings, process group, seeds, folder, logs, exit code."""

import logging
import random
import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import distributed
from config import build_parser, config_text, get_config
from device import describe_precision, local_device
from logger import ScalarLog, create_logger


@dataclass(frozen=True)
class Run:
    """What one run is: its settings, its folder, its device and where it reports to."""

    config: Any
    stage: str
    folder: Path
    device: torch.device
    logger: logging.Logger
    scalars: ScalarLog

    @property
    def is_pretrain(self) -> bool:
        return self.stage == 'simmim'


def setup_run(args: Namespace) -> Run:
    """Config, process group, seeds, the run's folder with its config.yaml, and the logs.

    Raises:
        ValueError: for a bad config, or an output folder that cannot be written.
    """
    config = get_config(args)
    device = local_device()
    distributed.init_process_group(device)
    seed = config.SEED + distributed.rank()
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
    torch.backends.cudnn.benchmark = True

    folder = Path(config.OUTPUT) / config.MODEL.NAME / config.TAG
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trains = not (config.EVAL_MODE or config.THROUGHPUT_MODE)
        if distributed.is_main() and trains:
            (folder / 'config.yaml').write_text(config_text(config), encoding='utf-8')
        logger = create_logger(folder, distributed.rank(), name=config.MODEL.NAME)
        scalars = ScalarLog(folder, enabled=distributed.is_main())
    except OSError as error:
        raise ValueError(
            f'OUTPUT: cannot write to the folder {folder} ({error.strerror}); '
            'choose another with --output'
        ) from error
    logger.debug(config_text(config))
    logger.info(
        f'run folder {folder}; {distributed.world_size()} process(es) on {device.type}, '
        f'{torch.get_num_threads()} threads each; torch {torch.__version__}; seed {config.SEED}'
    )
    run = Run(config, args.stage, folder, device, logger, scalars)
    logger.info(describe_precision(config, device))
    schedule = config.TRAIN.LR_SCHEDULER.NAME
    if schedule not in ('cosine', 'onecycle'):
        logger.info(f'TRAIN.MIN_LR has no effect with the {schedule} schedule')
    return run


def launch(stage: str, main: Callable[[Run], None], argv: list[str] | None = None) -> int:
    """Parse the flags, set up, run `main`; a user's mistake ends in one line and exit code 2."""
    args = build_parser(stage).parse_args(argv)
    run = None
    try:
        run = setup_run(args)
        main(run)
        distributed.destroy_process_group()
        return 0
    except (ValueError, FloatingPointError, OSError) as error:
        # A loader's worker puts its traceback into the message.
        message = str(error).rsplit('\nValueError: ', 1)[-1].strip()
        if run is not None:
            run.logger.debug('traceback', exc_info=True)
            run.logger.error(message)
        if run is None or not distributed.is_main():  # no logger, or none that shows it
            print(f'error: {message}', file=sys.stderr)  # noqa: T201
        return 2
    finally:
        if run is not None:
            run.scalars.close()
