"""Memory, open files and shared memory do not grow over 2,000 steps and 287 validations."""

import os
import sys
from pathlib import Path

import pytest
from runs import Started, log_lines, started, tiny_arguments, wait_until
from tiny import SCRIPTS

GROWTH_MIB = 12
# What is freed goes back at once, so that memory is what is held.
RETURNED = {'MALLOC_TRIM_THRESHOLD_': '65536', 'MALLOC_MMAP_THRESHOLD_': '65536'}


def figures(process):
    """MiB of memory of its own of the run and of its first worker, open files, shared memory."""
    children = Path(f'/proc/{process}/task/{process}/children').read_text().split()
    found = [process, int(children[0])]
    rollups = [Path(f'/proc/{pid}/smaps_rollup').read_text() for pid in found]
    memory = sum(int(text.split('Anonymous:')[1].split()[0]) / 1024 for text in rollups)
    files = sum(len(os.listdir(f'/proc/{pid}/fd')) for pid in found)
    return memory, files, len(list(Path('/dev/shm').iterdir()))


def lowest(run, folder, first, last):
    """The least of each figure between the starts of two epochs.

    A checkpoint that is being written, or a validation's worker, has some of the moment.
    """
    seen = []

    def begins(epoch):
        return any(f'Train: [{epoch}/' in line for line in log_lines(folder))

    def ends():
        seen.append(figures(run.process.pid))
        return begins(last)

    wait_until(lambda: begins(first), f'epoch {first}', 590)
    wait_until(ends, f'epoch {last}', 590)
    return [min(values) for values in zip(*seen, strict=True)]


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
    command = [sys.executable, SCRIPTS['simmim'], *argv]
    with started([Started(command, tmp_path / 'out.txt', **RETURNED)]) as (run,):
        before = lowest(run, tmp_path, epochs // 4, epochs // 2)
        after = lowest(run, tmp_path, 3 * epochs // 4, epochs - 2)
        assert run.wait(120) == 0, run.text
    with capsys.disabled():
        print('\nquarter, MiB, open files, files in /dev/shm')
        for quarter, (memory, files, shared) in (('second', before), ('last', after)):
            print(quarter, f'{memory:.0f}', files, shared, sep='\t')
    assert after[0] - before[0] < GROWTH_MIB
    assert after[1] <= before[1]
    assert after[2] <= before[2]
