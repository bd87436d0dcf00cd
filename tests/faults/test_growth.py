"""Memory, open files and shared memory do not grow over 2,000 steps and 287 validations."""

import os
import sys
from pathlib import Path

import pytest
from runs import Started, log_lines, started, tiny_arguments, wait_until
from tiny import SCRIPTS

GROWTH_MIB = 12


def figures(process):
    """MiB of memory of its own of the run and of its first worker, open files, shared memory."""
    children = Path(f'/proc/{process}/task/{process}/children').read_text().split()
    found = [process, int(children[0])]
    rollups = [Path(f'/proc/{pid}/smaps_rollup').read_text() for pid in found]
    memory = sum(int(text.split('Anonymous:')[1].split()[0]) / 1024 for text in rollups)
    files = sum(len(os.listdir(f'/proc/{pid}/fd')) for pid in found)
    return memory, files, len(list(Path('/dev/shm').iterdir()))


@pytest.mark.slow
def test_nothing_grows(phantom, tmp_path, capsys):
    images, steps = 4, 7  # of an epoch
    epochs = 2 + 2000 // steps
    argv = tiny_arguments(
        tmp_path, phantom, train={'ACCUMULATION_STEPS': 1, 'SAVE_EVERY_STEPS': 50},
        DATA={'BATCH_SIZE': images, 'TRAIN_IMAGES': images * steps, 'NUM_WORKERS': 1}, SAVE_KEEP=2,
        PRINT_FREQ=1, EVAL={'HOLDOUT_IMAGES': 8},
    )  # fmt: skip
    argv += ['--opts', 'TRAIN.EPOCHS', str(epochs)]
    seen = {}
    with started([Started([sys.executable, SCRIPTS['simmim'], *argv], tmp_path / 'out.txt')]) as (
        run,
    ):
        for epoch in (epochs // 4, epochs // 2, 3 * epochs // 4, epochs - 2):
            start = f'Train: [{epoch}/{epochs}]'
            wait_until(lambda s=start: any(s in x for x in log_lines(tmp_path)), start, 590)
            seen[epoch] = figures(run.process.pid)
        assert run.wait(120) == 0, run.text
    with capsys.disabled():
        print('\nepoch, steps, MiB, open files, files in /dev/shm')
        for epoch, (memory, files, shared) in seen.items():
            print(epoch, epoch * steps, f'{memory:.0f}', files, shared, sep='\t')
    # A checkpoint that is being written, or a validation's worker, has files of the moment.
    halves = list(seen.values())[:2], list(seen.values())[2:]
    first, last = ([max(values) for values in zip(*half, strict=True)] for half in halves)
    assert last[0] - first[0] < GROWTH_MIB
    assert last[1] <= first[1] + 3
    assert last[2] <= first[2] + 3
