"""A training process is killed at random moments, again and again: nothing of its result changes.

pytest tests/faults/test_kills.py --all --kills 50 -s
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
from runs import DEADLINE, Started
from test_engine_loop import assert_same_weights
from tiny import SCRIPTS, SWIN, VIT, arguments, run_folder, tiny_config

from utils import read_checkpoint

EPOCHS = 30
MOMENTS = ('any time', 'any time', 'a file is being written')
CASES = {'simmim': SWIN, 'finetune': VIT}


@pytest.fixture(scope='module')
def commands(phantom, tmp_path_factory):
    """Flags of a run of each stage, with a checkpoint after every step."""
    root = tmp_path_factory.mktemp('kills')
    train = {'EPOCHS': EPOCHS, 'SAVE_EVERY_STEPS': 1, 'WARMUP_EPOCHS': 1}
    found = {}
    for stage, model in CASES.items():
        cfg = tiny_config(
            root / f'{stage}.yaml', stage, model, TRAIN=train, SAVE_KEEP=3, PRINT_FREQ=1,
            DATA={'NUM_WORKERS': 1}, EVAL={'HOLDOUT_IMAGES': 1},
        )  # fmt: skip
        found[stage] = arguments(cfg, phantom, root / 'whole')
    return found


def start(stage: str, argv: list[str], output: Path) -> Started:
    argv = [*argv, '--output', str(output)]
    output.mkdir(exist_ok=True)
    return Started([sys.executable, SCRIPTS[stage], *argv], output / 'console.txt')


def kill_at(run: Started, folder: Path, moment: str, draw: random.Random) -> str:
    """Kill at a moment drawn once the run trains; what it last said, '' if it ended before."""
    seen, after = len(steps_in(folder)), draw.uniform(0, 3)
    begun = end = None
    deadline = time.monotonic() + DEADLINE
    while run.process.poll() is None:
        assert time.monotonic() < deadline, run.text
        now = time.monotonic()
        if begun is None and len(steps_in(folder)) > seen:
            begun, end = now, now + after
        is_writing = any(folder.glob('.ckpt_*.tmp'))
        if begun and now >= end and (is_writing or moment == 'any time'):
            os.killpg(run.process.pid, signal.SIGKILL)
            run.process.wait()
            lines = steps_in(folder)
            return lines[-1]
    return ''


def steps_in(folder: Path) -> list[str]:
    log = folder / 'log_rank0.txt'
    lines = log.read_text(errors='replace').splitlines() if log.exists() else []
    return [line for line in lines if 'Train: [' in line]


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_like_one_that_was_not(
    commands, tmp_path, pytestconfig, capsys
):
    wanted, draw, table = pytestconfig.getoption('--kills'), random.Random(0), []
    for stage, argv in commands.items():
        whole = start(stage, argv, tmp_path / f'{stage}_whole')
        assert whole.wait(600) == 0, whole.text
        want = read_checkpoint(run_folder(whole.output.parent, stage) / last_name())
        kills = attempt = 0
        while kills < wanted // 2:
            attempt += 1
            output = tmp_path / f'{stage}_{attempt}'
            folder, going = run_folder(output, stage), True
            while going:
                run = start(stage, argv, output)
                moment = draw.choice(MOMENTS)
                step = kill_at(run, folder, moment, draw) if kills < wanted // 2 else ''
                if step:
                    kills += 1
                    part = folder.glob('.ckpt_*.tmp')
                    table.append((stage, attempt, moment, place(step), len(list(part))))
                else:
                    assert run.wait(600) == 0, run.text
                    going = False
            assert_same_weights(read_checkpoint(folder / last_name()), want)
    with capsys.disabled():
        print('\nkilled: stage, run, moment, at epoch and micro-batch, files half-written')
        for row in table:
            print(*row, sep='\t')
        writing = sum(row[-1] > 0 for row in table)
        print(f'{len(table)} kills, {writing} in the middle of a file: all final weights equal')
    assert len(table) == 2 * (wanted // 2)


def last_name() -> str:
    return f'ckpt_epoch_{EPOCHS - 1}.pth'


def place(line: str) -> str:
    return line.split('Train: ')[1].split('\t')[0]
