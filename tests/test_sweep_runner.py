"""The sweep runner: weights that a run began with, and stops that reach every process."""

import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from sweep_commands import SWEEP, jobs_of

import sweeps.runner
from config import config_text, default_config
from engine.launch import EXIT_PREEMPTED
from engine.run_record import RunRecord
from sweeps.files import Job
from sweeps.runner import Runner, state_of
from utils import checksum_file, save_checkpoint

DEADLINE = 30
DATA = {'fingerprint': 'f00', 'files': {}, 'images': 8}


def finished(job: Job, began_with: str, *, resumed_from: str | None = None) -> None:
    """The folder of a job's run that came to its end, begun with these weights."""
    job.folder.mkdir(parents=True, exist_ok=True)
    (job.folder / 'config.yaml').write_text(config_text(job.config))
    facts = {'stage': job.stage, 'code': 'c0ffee', 'data': DATA}
    record = RunRecord(job.folder, facts, logging.getLogger('test'))
    record.pretrained = began_with
    record.begin(resumed_from)
    record.finish()
    record.close()


def checkpoint(path: Path, value: float) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(path, {'model': {'weight': torch.tensor([value])}})
    return str(path)


def given(job: Job, pretrained: str) -> Job:
    """The same run with --pretrained."""
    config = job.config.clone()
    config.defrost()
    config.PRETRAINED = pretrained
    return Job(job.stage, job.run, 0, job.folder, job.arguments, config, weights=pretrained)


@pytest.fixture
def finetuning(tmp_path: Path) -> Job:
    jobs = jobs_of(SWEEP, tmp_path / 'runs', tmp_path, 1)
    return next(job for job in jobs if job.stage == 'finetune')


# Weights ---------------------------------------------------------------------------------------


def test_a_finetuning_is_of_the_checkpoint_that_its_pretraining_has(finetuning: Job) -> None:
    file = Path(finetuning.config.PRETRAINED)
    assert finetuning.needs == (file.parent,) and not finetuning.weights
    finished(finetuning, checkpoint(file, 1.0))
    before = file.read_bytes()
    assert state_of(finetuning) == 'finished'
    checkpoint(file, 2.0)  # the pre-training was made anew
    said = rf'^{finetuning.folder} holds another run \(weights: {file} is another file\)'
    with pytest.raises(ValueError, match=said):
        state_of(finetuning)
    checksum_file(file).unlink()
    with pytest.raises(ValueError, match=said):
        state_of(finetuning)
    file.write_bytes(before)
    assert state_of(finetuning) == 'finished'


def test_a_finetuning_whose_checkpoint_was_removed_stays_finished(finetuning: Job) -> None:
    file = Path(finetuning.config.PRETRAINED)
    finished(finetuning, checkpoint(file, 1.0))
    file.unlink()
    assert state_of(finetuning) == 'finished'


def test_a_run_that_began_without_weights_is_another(finetuning: Job, tmp_path: Path) -> None:
    file = checkpoint(tmp_path / 'a.pth', 1.0)
    with_weights, without = given(finetuning, file), given(finetuning, '')
    finished(without, '')
    assert state_of(without) == 'finished'
    with pytest.raises(ValueError, match=rf'weights: random weights -> {file}\): choose another'):
        state_of(with_weights)
    finished(with_weights, file)
    assert state_of(with_weights) == 'finished'
    with pytest.raises(ValueError, match=rf'weights: {file} -> random weights\): choose another'):
        state_of(without)


def test_what_a_run_began_with_may_be_unknown(finetuning: Job, tmp_path: Path) -> None:
    job = given(finetuning, checkpoint(tmp_path / 'a.pth', 1.0))
    finished(job, '', resumed_from='/else/ckpt_epoch_3.pth')
    assert state_of(job) == 'finished'


def test_of_an_address_the_text_counts(finetuning: Job) -> None:
    jobs = [given(finetuning, f'https://example.org/{name}.pth') for name in 'ab']
    finished(jobs[0], jobs[0].config.PRETRAINED)
    assert state_of(jobs[0]) == 'finished'
    for other in (jobs[1], given(finetuning, '')):
        with pytest.raises(ValueError, match=r'weights: https://example.org/a.pth -> '):
            state_of(other)


PRETRAIN = """\
import json, pathlib
folder = pathlib.Path({folder!r})
folder.mkdir(parents=True)
(folder / 'ckpt_epoch_0.pth').write_text({content!r})
(folder / 'run.json').write_text(json.dumps({{'finished': 'now'}}))
"""


@pytest.mark.parametrize(('content', 'code'), [('as before', 0), ('other weights', 1)])
def test_a_pretraining_that_is_made_anew_is_compared_at_once(
    content: str, code: int, tmp_path: Path
) -> None:
    folder = tmp_path / 'pretrain'
    words = ['-c', PRETRAIN.format(folder=str(folder), content=content)]
    pretraining = Job('simmim', 'a', 0, folder, words, default_config())
    config = default_config()
    config.PRETRAINED = str(tmp_path / 'pretrain/ckpt_epoch_0.pth')
    finetuned = tmp_path / 'finetune'
    finetuning = Job('finetune', 'a', 0, finetuned, ['-c', '1/0'], config, needs=(folder,))
    (tmp_path / 'before.pth').write_text('as before')
    finished(finetuning, str(tmp_path / 'before.pth'))
    lines: list[str] = []
    runner = Runner([pretraining, finetuning], [{}], 1, tmp_path / 'logs', lines.append)
    assert runner.run() == code
    assert lines[0] == '2 runs: 1 finished before' and runner.done == 1
    if code:
        assert lines[-1].startswith(
            f'finetune a seed 0: {finetuned} holds another run (weights: {config.PRETRAINED} is '
        )
    else:
        assert not runner.failed


# Stops -----------------------------------------------------------------------------------------

# What torchrun is here: it starts processes in sessions of their own, and waits for them.
LAUNCHER = """\
#!{python} -SE
import pathlib, signal, subprocess, sys
words = sys.argv[1:]
count = int(words[words.index('--nproc_per_node') + 1])
def told(*_):
    pathlib.Path(words[-1], 'launcher told').touch()
signal.signal(signal.SIGTERM, told)
options = {{'start_new_session': True}}
children = [
    subprocess.Popen([sys.executable, '-SE', *words[-3:], str(i)], **options)
    for i in range(count)
]
sys.exit(max(child.wait() for child in children))
"""
WORKER = """\
import pathlib, signal, sys, time
def stop(*_):
    (folder / ('saved' + sys.argv[2])).touch()
    sys.exit(75)
folder = pathlib.Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
signal.signal(signal.SIGTERM, stop)
(folder / ('ready' + sys.argv[2])).touch()
time.sleep(10)
"""


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Runs two processes under a stand-in for torchrun with a PATH, and stops them."""
    launcher = tmp_path / 'a (launcher) 1 2'  # its name is in what the system says of it
    launcher.write_text(LAUNCHER.format(python=sys.executable))
    launcher.chmod(0o755)
    monkeypatch.setenv('PYTHON', str(launcher))
    folder = tmp_path / 'run'

    def say(line: str) -> None:
        end = time.monotonic() + DEADLINE
        while line.startswith('started') and not all(
            (folder / f'ready{i}').exists() for i in range(2)
        ):
            assert time.monotonic() < end
            time.sleep(0.01)
        if line.startswith('started'):
            os.kill(os.getpid(), signal.SIGTERM)

    def run(path: str) -> None:
        monkeypatch.setenv('PATH', path)
        job = Job('simmim', 'a', 0, folder, ['-c', WORKER, str(folder)], default_config())
        runner = Runner([job], [{}], 2, tmp_path / 'logs', say)
        assert runner.run() == EXIT_PREEMPTED
        told = {path.name for path in folder.iterdir()}
        assert told == {'ready0', 'ready1', 'saved0', 'saved1'}, 'the launcher itself is not told'

    return run


def test_a_stop_reaches_every_process_without_other_programs(stopped, tmp_path: Path) -> None:
    stopped(str(tmp_path))


@pytest.mark.skipif(shutil.which('ps') is None, reason='there is no ps here')
def test_a_stop_reaches_every_process_where_there_is_no_proc(
    stopped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeps.runner, 'PROCESSES', tmp_path / 'none')
    stopped(os.environ['PATH'])
