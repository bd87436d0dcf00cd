"""The sweep runner: each run once, whatever stops it."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from sweep_commands import SWEEP, command, held, in_process, jobs_of
from test_readme import load_script
from warm_python import warm_python

from engine.launch import is_locked
from engine.run_record import RECORD_FILE, is_finished, read_record
from logger import read_metrics
from sweeps.files import ROOT

DEADLINE = 240


def ablate(*arguments: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    env = os.environ | {'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''} | (env or {})
    return subprocess.run(
        command(*arguments), cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope='module')
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with warm_python(tmp_path_factory.mktemp('warm')) as path:
        yield path


def wait_for(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
def test_a_sweep_that_is_killed_twice_loses_no_run_and_does_none_twice(
    python, phantom, tmp_path
) -> None:
    output = tmp_path / 'runs'
    env = os.environ | {'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '', 'PYTHON': str(python)}
    words = command('run', SWEEP, output, phantom, '--seeds', '3', '--parallel', '2')
    folders = [job.folder for job in jobs_of(SWEEP, output, phantom, 3)]
    assert len(folders) == 4 * 3 * 2

    def finished() -> dict[Path, bytes]:
        return {f: (f / RECORD_FILE).read_bytes() for f in folders if is_finished(f)}

    def half_done() -> bool:
        return any((f / 'ckpt_epoch_0.pth').is_file() and not is_finished(f) for f in folders)

    kept = {}
    for number, least, code in ((signal.SIGKILL, 5, -9), (signal.SIGTERM, 12, 75), (None, 24, 0)):
        with subprocess.Popen(words, cwd=ROOT, env=env) as runner:
            if number is not None:
                wait_for(lambda least=least: len(finished()) >= least and half_done())
                kept |= finished()
                runner.send_signal(number)
            assert runner.wait(DEADLINE) == code
        if number is not None:  # runs whose runner was killed go on to their end
            wait_for(lambda: not any(map(is_locked, folders)))
    assert len(finished()) == 24
    assert {f: data for f, data in finished().items() if f in kept} == kept
    resumed = 0
    for folder in folders:
        starts = read_record(folder)['starts']
        assert [start['resumed_from'] is None for start in starts].count(True) == 1
        resumed += len(starts) - 1
        epochs = [record['epoch'] for record in read_metrics(folder / 'metrics.jsonl')]
        assert epochs == [-1, 0, 1, 2]
    assert resumed <= 4  # two at a time, stopped twice
    status = ablate('status', SWEEP, output, phantom, '--seeds', '3').stdout
    assert '24 of 24 runs finished' in status
    again = ablate('run', SWEEP, output, phantom, '--seeds', '3')
    assert again.returncode == 0 and '24 runs: 24 finished before' in again.stdout
    table = ablate('table', SWEEP, output, phantom, '--seeds', '3')
    assert table.returncode == 0, table.stderr
    assert [line.split('|')[1].split()[0] for line in table.stdout.splitlines()
            if line.startswith('| ') and line.split('|')[1].strip()[:1].isdigit()] == [
        '4', '8', '16', '32']  # fmt: skip


@pytest.mark.slow
def test_a_run_that_fails_is_named_and_what_needs_it_is_not_run(python, phantom, tmp_path) -> None:
    broken = tmp_path / 'CheXpert-phantom'
    broken.mkdir()
    (broken / 'train.csv').write_text('nothing')
    done = ablate('run', SWEEP, tmp_path / 'runs', broken, '--seeds', '1',
                  env={'PYTHON': str(python)})  # fmt: skip
    assert done.returncode == 1
    lines = [line.partition('  ')[2] for line in done.stdout.splitlines()]
    assert sum('failed with code 2, see' in line for line in lines) >= 4
    assert sum('not run, it needs' in line for line in lines) == 4
    log = next((tmp_path / 'runs/ablate_logs').glob('simmim_pretrain__nano_reference*'))
    assert 'train.csv' in log.read_text()


def test_a_sweep_file_of_ones_own_needs_no_other_file(tmp_path) -> None:
    content = yaml.safe_load(SWEEP.read_text())
    content['rows'] = {8: {}, 2: {'pretrain': {'DATA.MASK_PATCH_SIZE': 4}}}
    sweep = tmp_path / 'mine.yaml'
    sweep.write_text(yaml.safe_dump(content))
    jobs = {job.run: job for job in jobs_of(sweep, tmp_path, tmp_path, 1) if job.stage == 'simmim'}
    assert jobs['nano_reference'].config.DATA.MASK_PATCH_SIZE == 8
    assert jobs['nano_mine_2'].config.DATA.MASK_PATCH_SIZE == 4


def test_a_run_of_an_array_is_found_by_its_name(tmp_path, capsys) -> None:
    names = tmp_path / 'plan.json'
    names.write_text(json.dumps(['finetune nano_mask_size_4 seed 0', 'pretrain gone seed 0']))
    more = ['--plan', str(names), '--job']
    assert in_process('run', SWEEP, tmp_path / 'runs', tmp_path, *more, '0') == 2
    assert 'simmim_pretrain/nano_mask_size_4_seed0 is not finished' in capsys.readouterr().err
    assert in_process('run', SWEEP, tmp_path / 'runs', tmp_path, *more, '1') == 2
    assert 'has no pretrain gone seed 0 any more' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('more', 'said'),
    [
        (['--seeds', '0'], '--seeds must be at least 1'),
        (['--job', '99'], '--job must be 0 to'),
        (['--job', '23'], 'is not finished'),
        (['--pretrain-opts', 'DATA.IMG_SIZE', '128'],
         'runs/simmim_pretrain/nano_mask_size_4_seed0 is no run of'),
        (['--pretrain-opts', 'DATA.IMG_SIZE', '128'],
         'mask_size.yaml: DATA.IMG_SIZE is 128 in its options, 64 in the files of the sweep'),
        (['--finetune-opts', 'MODEL.DROP_RATE', '0.1', 'MODEL.SWIN.MLP_RATIO', '2'],
         'MODEL.SWIN.MLP_RATIO is 2.0 in its options, 4.0 in the files of the sweep'),
        (['--pretrain-opts', 'NO.KEY', '1'], 'NO.KEY'),
        (['--parallel', '-1'], '--parallel must be at least 1, got -1'),
        (['--processes', '0'], '--processes must be at least 1, got 0'),
        (['--plan', 'no.json', '--job', '0'], "No such file or directory: 'no.json'"),
        (['--slurm'], 'there is no sbatch here: is this a login node of the cluster?'),
    ],
)  # fmt: skip
def test_mistakes_are_named_before_anything_runs(more, said, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv('PATH', str(tmp_path))
    assert in_process('run', SWEEP, tmp_path / 'runs', tmp_path, *more) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / 'runs').exists()


def test_a_figure_of_two_scores_is_refused(tmp_path, capsys) -> None:
    more = ['--scores', 'Edema', 'mean_of_five']
    assert in_process('plot', SWEEP, tmp_path, tmp_path, *more) == 2
    assert 'error: --scores: a figure shows one score, got Edema, mean_of_five' in (
        capsys.readouterr().err
    )
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_cannot_be_made_is_named(tmp_path, capsys) -> None:
    assert in_process('run', SWEEP, '/proc/none', tmp_path) == 2
    assert "error: [Errno 2] No such file or directory: '/proc/none" in capsys.readouterr().err


@pytest.mark.parametrize(('text', 'said'), [('[', 'as JSON'), ('{"a": 1}', 'a list of names')])
def test_a_damaged_plan_is_named(text, said, tmp_path, capsys) -> None:
    (tmp_path / 'plan.json').write_text(text)
    more = ['--plan', str(tmp_path / 'plan.json'), '--job', '0']
    assert in_process('run', SWEEP, tmp_path / 'runs', tmp_path, *more) == 2
    error = capsys.readouterr().err
    assert f'error: --plan {tmp_path}/plan.json' in error and said in error


@pytest.mark.parametrize('name', ['table', 'plot'])
def test_seeds_are_those_of_the_files_of_results(name, tmp_path, capsys) -> None:
    more = ['--from', str(tmp_path), '--seeds', '2']
    assert in_process(name, SWEEP, tmp_path / 'out', tmp_path, *more) == 2
    assert '--from takes the seeds of its files' in capsys.readouterr().err
    assert in_process(name, SWEEP, tmp_path / 'out', tmp_path, '--seeds', '0') == 2
    assert '--seeds must be at least 1, got 0' in capsys.readouterr().err


@pytest.fixture
def submitted(tmp_path, monkeypatch) -> Path:
    """What a stand-in for sbatch was given."""
    sbatch = tmp_path / 'sbatch'
    sbatch.write_text(f'#!/usr/bin/env bash\necho "$@" >>{tmp_path}/notes\n'
                      f'echo $((100 + $(wc -l <{tmp_path}/notes)))\n')  # fmt: skip
    sbatch.chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path}:{os.environ["PATH"]}')
    return tmp_path / 'notes'


def test_arrays_are_submitted_wave_by_wave(submitted, tmp_path, capsys) -> None:
    more = ['--seeds', '1', '--slurm', 'partition=gpu']
    assert in_process('run', SWEEP, tmp_path / 'runs', tmp_path, *more) == 0
    first, second = submitted.read_text().splitlines()
    assert '--array=0,1,2,3 --partition=gpu' in first and '--dependency' not in first
    assert '--array=4,5,6,7' in second and '--dependency=afterany:101' in second
    assert 'scripts/slurm/array.sbatch --sweep' in second
    assert '8 runs submitted; 0 were finished, 0 are running' in capsys.readouterr().out
    (plan_file,) = (tmp_path / 'runs/ablate_logs').glob('plan_*.json')
    assert f'--plan {plan_file}' in second
    assert json.loads(plan_file.read_text())[4] == 'finetune nano_mask_size_4 seed 0'


def test_what_needs_a_running_run_is_not_submitted(submitted, tmp_path, capsys) -> None:
    folder = tmp_path / 'runs/simmim_pretrain/nano_mask_size_4_seed0'
    with held(folder):
        assert in_process('run', SWEEP, tmp_path / 'runs', tmp_path, '--seeds', '1', '--slurm') == 0
    printed = capsys.readouterr().out
    assert f'left out: finetune nano_mask_size_4 seed 0 needs {folder}, which is running' in printed
    assert '6 runs submitted; 0 were finished, 1 are running' in printed
    first, second = submitted.read_text().splitlines()
    assert '--array=1,2,3 ' in first and '--array=5,6,7 ' in second


def test_what_needs_a_run_that_is_left_out_is_left_out_too(tmp_path) -> None:
    content = yaml.safe_load(SWEEP.read_text())
    rows = {'a': {}, 'b': {'pretrain': {'DATA.MASK_PATCH_SIZE': 4}, 'learns_from': 'a'}}
    (tmp_path / 'mine.yaml').write_text(yaml.safe_dump(content | {'rows': rows}))
    jobs = jobs_of(tmp_path / 'mine.yaml', tmp_path, tmp_path, 1)
    states = {job.folder: 'not started' for job in jobs} | {jobs[0].folder: 'running'}
    left, held_back = load_script(ROOT / 'scripts/ablate.py')._to_submit(jobs, states)
    assert [job.name for job in left] == ['pretrain nano_mine_b seed 0']
    assert [(job.name, need) for job, need in held_back] == [
        ('finetune nano_reference seed 0', jobs[0].folder),
        ('finetune nano_mine_b seed 0', jobs[0].folder),
    ]


def test_a_task_whose_run_is_running_elsewhere_has_not_done_it(tmp_path, capsys) -> None:
    with held(tmp_path / 'runs/simmim_pretrain/nano_mask_size_4_seed0'):
        assert in_process('run', SWEEP, tmp_path / 'runs', tmp_path, '--job', '0') == 2
    assert 'nano_mask_size_4 seed 0, is running elsewhere' in capsys.readouterr().err


def test_options_without_their_stage_are_told_where_they_go(capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        in_process('run', SWEEP, Path('o'), Path('d'), '--opts', 'TRAIN.EPOCHS', '1')
    assert ended.value.code == 2
    assert 'arguments: --opts TRAIN.EPOCHS 1: say --pretrain-opts' in capsys.readouterr().err
