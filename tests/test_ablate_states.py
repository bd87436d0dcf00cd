"""What the sweep runner makes of the folders of runs, and what it does if one changes meanwhile."""

import json
import signal
import time
from pathlib import Path

import pytest
import yaml
from sweep_commands import SWEEP, held, in_process, jobs_of

from config import config_text, default_config
from engine.launch import RunLock, is_locked
from engine.run_record import RECORD_FILE, is_finished
from sweeps.files import ROOT, Job, load_sweep, plan
from sweeps.runner import Runner, progress, state_of

DEADLINE = 60


def made(job: Job, record: dict) -> None:
    """The folder of a job's run, that says so much of it."""
    job.folder.mkdir(parents=True)
    (job.folder / 'config.yaml').write_text(config_text(job.config))
    (job.folder / RECORD_FILE).write_text(json.dumps(record))


def job_with_weights(folder: Path) -> Job:
    (folder / 'train.csv').write_text('Path')
    (folder / 'imagenet.pth').touch()
    jobs = plan(
        load_sweep(ROOT / 'scripts/ablations/init.yaml'),
        seeds=[0],
        data=str(folder),
        output=str(folder),
        options={stage: ['DATA.BATCH_SIZE', '1'] for stage in ('simmim', 'finetune')},
        environment={'IMAGENET_WEIGHTS': str(folder / 'imagenet.pth')},
    )
    return next(job for job in jobs if job.run == 'init_imagenet_then_xray')


def test_states_of_a_run(tmp_path) -> None:
    job = jobs_of(SWEEP, tmp_path, tmp_path, 1)[0]
    assert state_of(job) == 'not started'
    job.folder.mkdir(parents=True)
    (job.folder / 'config.yaml').write_text(config_text(job.config))
    assert state_of(job) == 'stopped'
    (job.folder / RECORD_FILE).write_text(json.dumps({'finished': '2026-01-01T00:00:00+00:00'}))
    assert state_of(job) == 'finished'
    other = job.config.clone()
    other.defrost()
    other.OUTPUT = 'elsewhere'  # it may lie anywhere, and share out a step in any way
    other.MODEL.RESUME = 'a.pth'  # it may be continued by hand
    other.DATA.BATCH_SIZE, other.TRAIN.ACCUMULATION_STEPS = 2, 2
    (job.folder / 'config.yaml').write_text(config_text(other))
    assert state_of(job) == 'finished'
    other.TRAIN.EPOCHS = 9
    (job.folder / 'config.yaml').write_text(config_text(other))
    with pytest.raises(ValueError, match='TRAIN.EPOCHS: 9 -> 3'):
        state_of(job)


def test_a_run_of_a_version_that_lacked_an_option_is_the_same_run(tmp_path) -> None:
    job = jobs_of(SWEEP, tmp_path, tmp_path, 1)[0]
    made(job, {'finished': '2026-01-01T00:00:00+00:00'})
    options = yaml.safe_load((job.folder / 'config.yaml').read_text())
    del options['MODEL']['SIMMIM']['TARGET'], options['TRAIN']['SAVE_EVERY_STEPS'], options['TEST']
    (job.folder / 'config.yaml').write_text(yaml.safe_dump(options))
    assert state_of(job) == 'finished'
    del options['TRAIN']['EPOCHS']  # is not at its default in this sweep
    (job.folder / 'config.yaml').write_text(yaml.safe_dump(options))
    with pytest.raises(ValueError, match='TRAIN.EPOCHS: 300 -> 3'):
        state_of(job)


@pytest.mark.parametrize('text', ['', 'a: [', 'words', '\xff'])
def test_damaged_options_are_named_with_their_file(text, tmp_path, capsys) -> None:
    job = jobs_of(SWEEP, tmp_path, tmp_path, 1)[0]
    made(job, {})
    (job.folder / 'config.yaml').write_text(text, encoding='latin-1')
    assert in_process('run', SWEEP, tmp_path, tmp_path, '--seeds', '1') == 2
    assert f'error: {job.folder}/config.yaml ' in capsys.readouterr().err
    assert in_process('status', SWEEP, tmp_path, tmp_path, '--seeds', '1') == 0
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first.endswith('0 of 8 runs finished')
    assert last.startswith(f'refused: {job.folder}/config.yaml ')


@pytest.mark.parametrize(
    ('record', 'said'),
    [
        ({'processes': 2}, 'pictures a step: 8 -> 4'),
        ({'data': {'files': {'train.csv': 'f00'}}}, 'data: train.csv of .* is another file'),
        ({'pretrained': 'f00'}, 'weights: .*imagenet.pth is another file'),
        ({}, ''),
    ],
)
def test_a_run_of_other_data_weights_or_batch_is_not_taken_for_this_one(
    record, said, tmp_path
) -> None:
    job = job_with_weights(tmp_path)
    made(job, record)
    if said:
        with pytest.raises(ValueError, match=said):
            state_of(job)
    else:
        assert state_of(job) == 'stopped'


@pytest.mark.parametrize(
    ('record', 'name'),
    [
        ({'data': {'files': {'train.csv': 'f00'}}}, 'train.csv'),
        ({'pretrained': 'f00'}, 'imagenet.pth'),
    ],
)
def test_a_file_that_is_not_there_is_not_another_run(record, name, tmp_path) -> None:
    job = job_with_weights(tmp_path)
    made(job, record)
    (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=f'^there is no file {tmp_path}/{name} ') as caught:
        state_of(job)
    assert '--output' not in str(caught.value)


@pytest.mark.parametrize('torn', ['{"epoch": 1, "lo', '\0\0\0\0', '[]', '"epoch"'])
def test_a_torn_line_of_the_log_counts_no_epoch(torn, tmp_path, capsys) -> None:
    job = jobs_of(SWEEP, tmp_path, tmp_path, 1)[0]
    made(job, {})
    assert progress(job) == 'epoch 0 of 3'
    (job.folder / 'metrics.jsonl').write_text(f'{{"epoch": -1}}\n{{"epoch": 0}}\n{torn}')
    assert progress(job) == 'epoch 1 of 3'
    assert in_process('status', SWEEP, tmp_path, tmp_path, '--seeds', '1') == 0
    assert 'stopped (epoch 1 of 3)' in capsys.readouterr().out


def test_a_folder_is_locked_while_another_process_holds_it(tmp_path) -> None:
    assert not is_locked(tmp_path)
    with held(tmp_path):
        assert is_locked(tmp_path)
    assert not is_locked(tmp_path)
    RunLock(tmp_path).acquire().release()


FINISH = """\
import json, pathlib
folder = pathlib.Path({folder!r})
folder.mkdir(parents=True)
(folder / 'run.json').write_text(json.dumps({{'finished': 'now'}}))
"""
WAIT = """\
import pathlib, signal, sys, time
def stop(*_):
    (folder / 'saved').touch()
    sys.exit(75)
folder = pathlib.Path({folder!r})
folder.mkdir(parents=True)
signal.signal(signal.SIGTERM, stop)
(folder / 'ready').touch()
time.sleep(60)
"""


def made_job(folder: Path, code: str) -> Job:
    arguments = ['-c', code.format(folder=str(folder))]
    return Job('simmim', folder.name, 0, folder, arguments, default_config())


def test_a_run_that_can_no_longer_be_read_is_named_and_the_others_go_on(tmp_path) -> None:
    lines: list[str] = []
    damaged, last = tmp_path / 'runs/b', tmp_path / 'runs/c'
    spoil = (
        f'import os; os.makedirs({str(damaged)!r}); open({str(damaged)!r} + "/config.yaml", "w")\n'
    )
    jobs = [
        made_job(tmp_path / 'runs/a', spoil + FINISH),
        made_job(damaged, FINISH),
        made_job(last, FINISH),
    ]
    runner = Runner(jobs, [{}], 1, tmp_path / 'logs', lines.append)
    assert runner.run() == 1
    assert len(runner.failed) == 1
    assert runner.failed[0].startswith(
        f'pretrain b seed 0: not run, {damaged}/config.yaml is empty'
    )
    assert runner.failed[0] in lines
    assert (runner.done, is_finished(last), is_finished(damaged)) == (2, True, False)


def test_an_error_leaves_no_run_behind(tmp_path) -> None:
    jobs = [made_job(tmp_path / 'runs' / name, WAIT) for name in 'ab']

    def say(line: str) -> None:
        if line.startswith('started  pretrain b'):
            end = time.monotonic() + DEADLINE
            while not all((job.folder / 'ready').exists() for job in jobs):
                assert time.monotonic() < end
                time.sleep(0.05)
            raise OSError('the pipe is closed')

    before = signal.getsignal(signal.SIGTERM)
    runner = Runner(jobs, [{}, {}], 1, tmp_path / 'logs', say)
    with pytest.raises(OSError, match='the pipe is closed'):
        runner.run()
    assert [process.returncode for _, process, _ in runner.running.values()] == [75, 75]
    assert all((job.folder / 'saved').exists() for job in jobs)
    assert signal.getsignal(signal.SIGTERM) == before
