"""Pre-training in which one process does something at one step: the fault that a test asks for.

python faulty_main.py '{"rank": 1, "step": 3, "do": "kill"}' FLAGS...
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import main_simmim
from engine import distributed
from engine import launch as failures
from engine.launch import launch


def fail() -> None:
    raise ValueError('the picture of patient 7 is broken')


def bug() -> None:
    return {}['nobody expected this']


def stand_still() -> None:
    time.sleep(3600)


def wait_for_end() -> None:
    """Wait where neither a signal nor a broken connection is noticed, as in a device's queue."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    stand_still()


FAULTS = {
    'kill': lambda: os.kill(os.getpid(), signal.SIGKILL),
    'abort': os.abort,
    'fail': fail,
    'bug': bug,
    'memory': lambda: torch.empty(2**60),
    'stand_still': stand_still,
    'wait_for_end': wait_for_end,
    'slow': lambda: time.sleep(3),
    'undeterministic': lambda: torch.zeros(4).put_(torch.tensor([0]), torch.ones(1)),
}


def with_faults(loss_fn: Callable, faults: list[dict]) -> Callable:
    """The loss, with each fault at its micro-batch of its rank; `once` names a file it leaves."""
    done = 0

    def faulty_loss(model: torch.nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        nonlocal done
        for fault in faults:
            if fault['rank'] == distributed.rank() and fault['step'] == done:
                first = 'once' not in fault or not Path(fault['once']).exists()
                if first and 'once' in fault:
                    Path(fault['once']).touch()
                if first:
                    FAULTS[fault['do']]()
        done += 1
        return loss_fn(model, batch)

    return faulty_loss


if __name__ == '__main__':
    settings = json.loads(sys.argv[1])
    for name, value in settings.get('constants', {}).items():
        setattr(failures, name, value)
    main_simmim.reconstruction_loss = with_faults(
        main_simmim.reconstruction_loss, settings.get('faults', [])
    )
    sys.exit(launch('simmim', main_simmim.main, sys.argv[2:]))
