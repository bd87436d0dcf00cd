"""The sweep runner: states of run folders, what makes a run another one, failures and stops."""

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from sweep_commands import SWEEP, jobs_of
from sweep_runs import methods_file
from tiny import wait_until

from config import config_text, default_config
from engine.run_folder import run_lock
from engine.run_record import RECORD_FILE, is_finished
from sweeps.estimate import estimate, kinds_of
from sweeps.files import Job, load_sweep, plan
from sweeps.runner import Runner, progress, state_of
from system.files import sha256
from system.tool import EXIT_PREEMPTED

FINISHED = {'finished': '2026-01-01T00:00:00+00:00'}
# The start after the end of the training trained nothing, so it has no processes.
RESUMED_ON_TWO = {'processes': 1, 'starts': [{'processes': 1}, {'processes': 2}, {}]}
RESUMED = {'pretrained': None, 'starts': [{'resumed_from': 'ckpt_epoch_3.pth'}]}
BATCHES = {
    (size, steps): {'DATA.BATCH_SIZE': size, 'TRAIN.ACCUMULATION_STEPS': steps}
    for size, steps in ((64, 1), (64, 2), (64, 4), (128, 1))
}


def write_run(job: Job, record: dict) -> None:
    job.folder.mkdir(parents=True, exist_ok=True)
    (job.folder / 'config.yaml').write_text(config_text(job.config))
    (job.folder / RECORD_FILE).write_text(json.dumps(record))


def test_a_run_is_started_stopped_and_finished(tmp_path: Path) -> None:
    job = jobs_of(SWEEP, tmp_path, tmp_path, 1)[0]
    assert state_of(job) == 'not started'
    with run_lock(job.folder):
        assert state_of(job) == 'running'
    write_run(job, {})
    assert state_of(job) == 'stopped' and progress(job.folder) == 'epoch 0 of 3'
    (job.folder / 'metrics.jsonl').write_text('{"epoch": -1}\n{"epoch": 0}\n{"epoch": 1, "lo')
    assert progress(job.folder) == 'epoch 1 of 3'
    write_run(job, FINISHED)
    assert state_of(job) == 'finished'


@pytest.mark.parametrize(
    ('stage', 'before', 'record', 'gpus', 'key'),
    [
        ('simmim', {'OUTPUT': 'elsewhere'}, {}, 1, ''),  # folders do not matter
        ('simmim', {'TRAIN.EPOCHS': 9}, {}, 1, 'TRAIN.EPOCHS'),
        ('simmim', {}, {'data': {'files': {'train.csv': 'f00'}}}, 1, 'train.csv'),
        ('simmim', {}, {'pretrained': None}, 1, 'PRETRAINED'),
        ('simmim', {}, RESUMED, 1, ''),
        ('simmim', BATCHES[64, 2], {}, 1, ''),
        ('simmim', BATCHES[64, 4], {}, 1, 'images per step'),
        ('simmim', BATCHES[64, 1], RESUMED_ON_TWO, 1, ''),
        ('simmim', BATCHES[64, 2], RESUMED_ON_TWO, 1, 'images per step'),
        ('contrastive', BATCHES[64, 2], {}, 1, 'images compared at once'),
        ('contrastive', BATCHES[128, 1], {}, 2, ''),
    ],
)
def test_a_run_with_other_options_or_data_is_another_run(
    stage, before, record, gpus, key, tmp_path: Path
) -> None:
    (tmp_path / 'train.csv').write_text('Path')
    (tmp_path / 'imagenet.pth').touch()
    entries = {'simmim': {'weights': 'WEIGHTS'}, 'moco': {}}
    sweep = load_sweep(methods_file(tmp_path, scales={'all': {'methods': entries}}), 'all')
    jobs = plan(
        sweep,
        seeds=[0],
        data=str(tmp_path),
        output=str(tmp_path),
        gpus=gpus,
        options={stage: ['DATA.BATCH_SIZE', '128', 'TRAIN.ACCUMULATION_STEPS', '1']},
        environment={'WEIGHTS': str(tmp_path / 'imagenet.pth')},
    )
    job = next(job for job in jobs if job.stage == stage)
    earlier = job.config.clone()
    earlier.defrost()
    earlier.merge_from_list([word for pair in before.items() for word in pair])
    write_run(replace(job, config=earlier), record | FINISHED)
    if key:
        with pytest.raises(ValueError, match=key):
            state_of(job)
    else:
        assert state_of(job) == 'finished'


def test_a_finetuning_belongs_to_the_checkpoint_of_its_pretraining(tmp_path: Path) -> None:
    jobs = jobs_of(SWEEP, tmp_path / 'runs', tmp_path, 1)
    job = next(job for job in jobs if job.stage == 'finetune')
    file = Path(job.config.PRETRAINED)
    assert job.needs == (file.parent,)
    file.parent.mkdir(parents=True)
    file.write_bytes(b'weights')
    checksum = file.with_name(f'{file.name}.sha256')
    checksum.write_text(f'f00  {file.name}\n')
    write_run(job, FINISHED | {'pretrained': 'f00'})
    assert state_of(job) == 'finished'
    checksum.write_text(f'ba5  {file.name}\n')  # the pre-training was repeated
    with pytest.raises(ValueError, match='PRETRAINED'):
        state_of(job)
    checksum.write_text('')
    write_run(job, FINISHED | {'pretrained': sha256(file)})
    assert state_of(job) == 'finished'
    file.unlink()  # nothing is known about a checkpoint that was removed
    assert state_of(job) == 'finished'


FINISH = """\
import json, pathlib
folder = pathlib.Path({folder!r})
folder.mkdir(parents=True)
(folder / 'run.json').write_text(json.dumps({{'finished': 'now'}}))
"""
WAIT = """\
import pathlib, signal, sys, time
def stop(*_):
    (folder / 'saved{rank}').touch()
    sys.exit(75)
folder = pathlib.Path({folder!r})
folder.mkdir(parents=True, exist_ok=True)
signal.signal(signal.SIGTERM, stop)
(folder / 'ready{rank}').touch()
time.sleep(60)
"""
PROBE = WAIT.replace('75', '76')


def made_job(folder: Path, code: str, **needs: tuple[Path, ...]) -> Job:
    arguments = ['-c', code.format(folder=str(folder), rank='')]
    return Job('simmim', folder.name, 0, folder, arguments, default_config(), **needs)


def runner_of(jobs: list[Job], folder: Path, *, slots: int = 1, keep: str = 'all') -> Runner:
    return Runner(jobs, [{}] * slots, folder / 'logs', lambda line: None, keep)


def test_a_damaged_run_is_reported_and_the_others_run(tmp_path: Path) -> None:
    damaged, last = tmp_path / 'runs/b', tmp_path / 'runs/c'
    spoil = f'import os; os.makedirs({str(damaged)!r})\n'
    spoil += f'open({str(damaged)!r} + "/config.yaml", "w")\n'
    jobs = [made_job(tmp_path / 'runs/a', spoil + FINISH), made_job(damaged, FINISH)]
    runner = runner_of([*jobs, made_job(last, FINISH)], tmp_path)
    assert runner.run() == 1
    assert len(runner.failed) == 1 and f'{damaged}/config.yaml' in runner.failed[0]
    assert (runner.done, is_finished(last), is_finished(damaged)) == (2, True, False)


def test_what_needs_a_failed_run_is_not_run_and_its_checkpoints_are_kept(tmp_path: Path) -> None:
    first, second = tmp_path / 'runs/a', tmp_path / 'runs/b'
    first.mkdir(parents=True)
    (first / 'ckpt_epoch_1.pth').touch()
    jobs = [made_job(first, 'raise SystemExit(2)'), made_job(second, FINISH, needs=(first,))]
    runner = runner_of(jobs, tmp_path, slots=2, keep='best')
    assert runner.run() == 1
    assert len(runner.failed) == 2 and str(first) in runner.failed[1]
    assert not second.exists()
    assert (first / 'ckpt_epoch_1.pth').exists()


@pytest.mark.parametrize(
    ('scripts', 'slots', 'code'),
    [([PROBE], 1, 76), ([PROBE, WAIT], 2, 75), ([FINISH, PROBE], 1, 75)],
)
def test_a_stop_that_kept_nothing_has_its_own_code(scripts, slots, code, tmp_path, monkeypatch):
    """A Slurm job does not requeue itself after it."""
    jobs = [made_job(tmp_path / f'runs/{i}', script) for i, script in enumerate(scripts)]
    monkeypatch.setattr('sweeps.runner.REPORT_SECONDS', 0)

    def say(line: str) -> None:
        if line.startswith(f'running {jobs[-1].name}'):
            wait_until(lambda: all((job.folder / 'ready').exists() for job in jobs[-slots:]))
            os.kill(os.getpid(), signal.SIGTERM)

    assert Runner(jobs, [{}] * slots, tmp_path / 'logs', say).run() == code


@pytest.mark.parametrize(('waiting', 'code'), [(0, 0), (1, EXIT_PREEMPTED)])
def test_a_signal_after_the_last_run_stops_nothing(waiting: int, code: int, tmp_path: Path) -> None:
    stop = 'import os, signal\nos.kill(os.getppid(), signal.SIGTERM)\n'
    jobs = [made_job(tmp_path / 'runs/0', FINISH + stop)]
    jobs += [made_job(tmp_path / f'runs/{i + 1}', FINISH) for i in range(waiting)]
    assert runner_of(jobs, tmp_path).run() == code
    assert is_finished(jobs[0].folder)


@pytest.mark.parametrize(
    ('stage', 'checkpoint', 'kept'),
    [
        ('simmim', 'last', 'ckpt_epoch_2.pth'),
        ('finetune', 'selected', 'ckpt_best.pth'),
        ('finetune', 'last', 'ckpt_epoch_2.pth'),  # the best one is of epochs that were given up
    ],
)
def test_of_a_finished_run_only_what_later_steps_read_is_kept(stage, checkpoint, kept, tmp_path):
    job = next(job for job in jobs_of(SWEEP, tmp_path, tmp_path, 1) if job.stage == stage)
    write_run(job, FINISHED)
    (job.folder / 'scores.json').write_text(json.dumps({'valid': {checkpoint: {}}}))
    for name in ('epoch_1', 'epoch_2', 'epoch_2_step_5', 'best'):
        (job.folder / f'ckpt_{name}.pth').touch()
        (job.folder / f'ckpt_{name}.pth.sha256').touch()
    for _ in range(2):  # it stays finished
        assert runner_of([job], tmp_path, keep='best').run() == 0
    assert {path.name for path in job.folder.glob('ckpt_*')} == {kept, f'{kept}.sha256'}


def test_an_error_of_the_runner_leaves_no_process_behind(tmp_path: Path) -> None:
    jobs = [made_job(tmp_path / 'runs' / name, WAIT) for name in 'ab']

    def say(line: str) -> None:
        if line.startswith('started pretrain b'):
            wait_until(lambda: all((job.folder / 'ready').exists() for job in jobs))
            raise OSError('the pipe is closed')

    before = signal.getsignal(signal.SIGTERM)
    runner = Runner(jobs, [{}, {}], tmp_path / 'logs', say)
    with pytest.raises(OSError, match='the pipe is closed'):
        runner.run()
    assert [process.returncode for _, process, _ in runner.running.values()] == [75, 75]
    assert all((job.folder / 'saved').exists() for job in jobs)
    assert signal.getsignal(signal.SIGTERM) == before


# Stands for torchrun: starts processes in sessions of their own, and waits for them.
LAUNCHER = """\
#!{python} -SE
import pathlib, signal, subprocess, sys
words = sys.argv[1:]
count = int(words[words.index('--nproc_per_node') + 1])
folder = words[-1]
signal.signal(signal.SIGTERM, lambda *_: pathlib.Path(folder, 'launcher stopped').touch())
code = {code!r}
children = [
    subprocess.Popen(
        [sys.executable, '-SE', '-c', code.format(folder=folder, rank=i)], start_new_session=True)
    for i in range(count)
]
sys.exit(max(child.wait() for child in children))
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='needs /proc')
def test_a_stop_reaches_every_process_of_a_run(tmp_path: Path, monkeypatch) -> None:
    launcher, folder = tmp_path / 'torchrun', tmp_path / 'run'
    launcher.write_text(LAUNCHER.format(python=sys.executable, code=WAIT))
    launcher.chmod(0o755)
    monkeypatch.setenv('PYTHON', str(launcher))

    def say(line: str) -> None:
        if line.startswith('started'):
            wait_until(lambda: all((folder / f'ready{i}').exists() for i in range(2)))
            os.kill(os.getpid(), signal.SIGTERM)

    job = Job('simmim', 'a', 0, folder, [str(folder)], default_config(), processes=2)
    assert Runner([job], [{}], tmp_path / 'logs', say).run() == EXIT_PREEMPTED
    assert {path.name for path in folder.iterdir()} == {'ready0', 'ready1', 'saved0', 'saved1'}


LOG = """12:00:00 run folder
ok       time           6 min for 3 epochs of 4
                        steps, 1 s for validation
verdict: {verdict}
"""


@pytest.fixture
def check(tmp_path: Path, monkeypatch) -> Path:
    """A stand-in for Python that prints a log of --check, and the file of its arguments."""
    path = tmp_path / 'python'
    path.write_text(f'#!/usr/bin/env bash\necho "$@" >>{tmp_path}/words\ncat {tmp_path}/log\n')
    path.chmod(0o755)
    monkeypatch.setenv('PYTHON', str(path))
    (tmp_path / 'log').write_text(LOG.format(verdict='ready, about 6 min'))
    return tmp_path / 'words'


def test_a_kind_of_runs_differs_in_seed_fold_and_rate_alone(tmp_path: Path) -> None:
    finetune = str(load_sweep(SWEEP).rows[0].configs['finetune'])
    methods = {
        'simmim': {'finetune': finetune},
        'low': {'finetune': finetune, 'finetune_options': {'TRAIN.BASE_LR': 0.001}},
        'probe': {'finetune': finetune, 'finetune_options': {'FINETUNE.MODE': 'linear_probe'}},
    }
    sweep = load_sweep(methods_file(tmp_path, methods=methods))
    jobs = plan(sweep, seeds=[0, 1], data=str(tmp_path), output=str(tmp_path), folds=5)
    names = [sorted({job.run for job in kind}) for kind in kinds_of(jobs)]
    assert names == [
        ['mine_low_0.1', 'mine_simmim_0.1'], ['mine_probe_0.1'],
        ['mine_low_1', 'mine_simmim_1'], ['mine_probe_1'],
    ]  # fmt: skip
    assert [len(kind) for kind in kinds_of(jobs)] == [20, 10, 20, 10]


def test_the_time_of_a_sweep_is_that_of_finished_runs_or_of_one_check(check, tmp_path) -> None:
    jobs = jobs_of(SWEEP, tmp_path / 'o', tmp_path, 3)  # 4 pre-trainings and their fine-tunings
    rows = len(jobs) // 6
    for job, seconds in zip(jobs[1:3], (100, 300), strict=True):  # two rows, of one seed
        write_run(job, FINISHED | {'seconds': seconds})
    lines: list[str] = []
    assert estimate(jobs, parallel=2, measure=True, say=lines.append) == 0
    other, first, second, *others, last = lines
    others.append(other)
    assert first.strip().startswith('2 runs such as pretrain') and '100 s each' in first
    assert '(median of 1 finished), 3 min' in first and '5 min each' in second
    # Every kind that is not finished is measured once, without a checkpoint that does not exist.
    calls = check.read_text().splitlines()
    assert len(calls) == len(others) == rows - 2 + 1
    assert all(line.endswith(' --check') and '--pretrained' not in line for line in calls)
    assert all(str(tmp_path / 'o') not in line.split('--tag')[0] for line in calls)
    assert '6 min each' in others[0] and '3 epochs x 16 images' in others[0]
    # In seconds: 2 x 100, 2 x 300, and the others 6 minutes each, with a start of less than 30 s.
    hours = (200 + 600 + (len(jobs) - 6) * 360) / 3600
    assert f'{len(jobs) - 2} of {len(jobs)} runs are left: about {hours:.1f} h one at a' in last
    assert f'at best {hours / 2:.1f} h with 2 at once' in last

    lines.clear()
    assert estimate(jobs, parallel=1, measure=False, say=lines.append) == 0
    assert len(check.read_text().splitlines()) == len(calls)
    assert f'; {len(jobs) - 6} of unknown time' in lines[-1]


def test_a_run_that_is_not_ready_is_told_with_its_reason(check, tmp_path: Path) -> None:
    (tmp_path / 'log').write_text(LOG.format(verdict='not ready: 1 problem'))
    lines: list[str] = []
    jobs = jobs_of(SWEEP, tmp_path / 'o', tmp_path, 1)
    assert estimate(jobs, parallel=1, measure=True, say=lines.append) == 1
    assert all('verdict: not ready: 1 problem' in line for line in lines[:-1])
    assert f'{len(jobs)} of {len(jobs)} runs are left; {len(jobs)} of unknown time' in lines[-1]
