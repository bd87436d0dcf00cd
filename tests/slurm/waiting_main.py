"""Pre-training that stands at its 5th micro-batch, on its first start, until a signal comes.

python waiting_main.py FILE FLAGS...        FILE is what the first start leaves
"""

import signal
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import main_simmim
from engine import distributed
from engine.launch import launch

loss_of, done = main_simmim.reconstruction_loss, 0


def waiting_loss(model: torch.nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
    global done
    done += 1
    if done == 5 and distributed.is_main() and not FILE.exists():
        FILE.touch()
        interruptions = signal.getsignal(signal.SIGTERM).__self__
        while not interruptions.signal:
            time.sleep(0.05)
    return loss_of(model, batch)


if __name__ == '__main__':
    FILE = Path(sys.argv[1])
    main_simmim.reconstruction_loss = waiting_loss
    sys.exit(launch('simmim', main_simmim.main, sys.argv[2:]))
