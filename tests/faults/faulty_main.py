"""Pre-training in which one process fails in a given way at one step.

python faulty_main.py '[{"rank": 1, "step": 3, "do": "kill"}]' FLAGS...
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import main_simmim
from engine import launch
from system import distributed


def fail() -> None:
    raise ValueError('the image of patient 7 is broken')


def hang() -> None:
    """Notice neither signals nor broken connections, like a process that waits for a device."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    time.sleep(3600)


FAULTS = {
    'kill': lambda: os.kill(os.getpid(), signal.SIGKILL),
    'fail': fail,
    'abort': os.abort,  # as NCCL does
    'hang': hang,
    'wait': lambda: threading.Event().wait(),  # handlers of signals are still called
    'slow': lambda: time.sleep(3),
}


def with_faults(loss_fn: Callable, faults: list[dict]) -> Callable:
    """The loss, with each fault at its batch of its rank; `once` names a file that it creates."""
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
    main_simmim.reconstruction_loss = with_faults(
        main_simmim.reconstruction_loss, json.loads(sys.argv[1])
    )
    sys.exit(launch.launch('simmim', main_simmim.main, sys.argv[2:]))
