"""scripts/ablate.py and the shell scripts on top of it: whole sweeps, job arrays, mistakes."""

import argparse
import json
import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packed_data import make_data, packed
from sweep_commands import FINETUNE, PRETRAIN, SWEEP, command, in_process, jobs_of
from sweep_runs import methods_file
from tiny import DEADLINE, load_script, run_script, wait_until
from warm_python import warm_python

from config import config_text
from engine.run_folder import is_locked, run_lock
from engine.run_record import RECORD_FILE, is_finished, read_record
from logger import read_metrics
from sweeps.files import ROOT
from sweeps.runner import LOGS, MOST_EPOCHS, epochs_for

ENV = {'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}


@pytest.fixture(scope='module')
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with warm_python(tmp_path_factory.mktemp('warm')) as path:
        yield path


@pytest.mark.slow
def test_a_sweep_that_is_killed_three_times_loses_no_run_and_repeats_none(
    python, phantom, tmp_path, capsys
) -> None:
    content = yaml.safe_load(SWEEP.read_text())
    # With six runs, those that a killed runner leaves behind and two that end while they are
    # being stopped could be the last ones.
    rows = {size: {'pretrain': {'DATA.MASK_PATCH_SIZE': size}} for size in (4, 16, 32)}
    content['rows'] = {8: {}} | rows
    sweep, output = tmp_path / 'mine.yaml', tmp_path / 'runs'
    sweep.write_text(yaml.safe_dump(content))
    env = os.environ | ENV | {'PYTHON': str(python)}
    words = command('run', sweep, output, phantom, '--seeds', '1', '--parallel', '2')
    folders = [job.folder for job in jobs_of(sweep, output, phantom, 1)]
    assert len(folders) == 4 * 2

    def finished() -> dict[Path, bytes]:
        return {f: (f / RECORD_FILE).read_bytes() for f in folders if is_finished(f)}

    def half_done() -> bool:
        begun = [f for f in folders if (f / 'ckpt_epoch_0.pth').is_file() and not is_finished(f)]
        return any(map(is_locked, begun))

    kept = {}
    stopped = {75, 76}  # 76: a resumed run has not yet made a step
    kills = (signal.SIGKILL, 1, {-9}), (signal.SIGTERM, 2, stopped), (signal.SIGINT, 3, stopped)
    for number, least, codes in (*kills, (None, 8, {0})):
        with subprocess.Popen(words, cwd=ROOT, env=env) as runner:
            if number is not None:
                wait_until(lambda least=least: len(finished()) >= least and half_done())
                kept |= finished()
                runner.send_signal(number)
            assert runner.wait(DEADLINE) in codes
        if number is not None:  # the runs of a killed runner continue to their end
            wait_until(lambda: not any(map(is_locked, folders)))
    assert len(finished()) == 8
    assert {f: data for f, data in finished().items() if f in kept} == kept
    for folder in folders:
        starts = read_record(folder)['starts']
        assert [start['resumed_from'] is None for start in starts].count(True) == 1
        epochs = [record['epoch'] for record in read_metrics(folder / 'metrics.jsonl')]
        assert epochs == [-1, 0, 1, 2]
    assert in_process('run', sweep, output, phantom, '--seeds', '1', '--list') == 0
    assert '8 of them already finished' in capsys.readouterr().out
    for name in ('table', 'plot'):
        assert in_process(name, sweep, output, phantom, '--seeds', '1') == 0
    files = [output / f'mine_mean_of_defined.{kind}' for kind in ('csv', 'png')]
    assert all(file.stat().st_size > 300 for file in files)


# The smallest runs of the same form.
SWIN = (
    'MODEL.SWIN.EMBED_DIM 8 MODEL.SWIN.DEPTHS [1,1,1,1] MODEL.SWIN.NUM_HEADS [1,1,2,2] '
    'DATA.NUM_WORKERS 0 DATA.BATCH_SIZE 4 DATA.HOLDOUT_FRACTION 0.2 TRAIN.EPOCHS 1 '
    'TRAIN.WARMUP_EPOCHS 0 DATA.TRAIN_IMAGES 12'
)
SWIN_PRETRAIN, SWIN_FINETUNE = f'{SWIN} EVAL.HOLDOUT_IMAGES 2', f'{SWIN} REPORT.WRITE False'


def test_options_may_be_one_text_with_quoted_values() -> None:
    labels = "['Pleural Effusion', 'Edema']"
    for words, wanted in (
        (['A 1  B 2'], ['A', '1', 'B', '2']),
        (['A', '1', f'L "{labels}" B 2'], ['A', '1', 'L', labels, 'B', '2']),
        (['L', labels, ''], ['L', labels]),
        (["L ['Edema','Fracture']"], ['L', "['Edema','Fracture']"]),
    ):
        assert load_script('ablate').split_options(words) == wanted


@pytest.mark.slow
def test_a_row_runs_to_its_end_by_its_script(python, phantom, tmp_path, capsys) -> None:
    clone, output = tmp_path / 'clone', tmp_path / 'o'
    (clone / '.venv/bin').mkdir(parents=True)
    (clone / '.venv/bin/python').symlink_to(python)
    for name in ('scripts', 'configs', 'main_simmim.py', 'main_finetune.py'):
        (clone / name).symlink_to(ROOT / name)
    env = ENV | {'PRETRAIN_OPTS': SWIN_PRETRAIN, 'FINETUNE_OPTS': SWIN_FINETUNE, 'SEED': '1'}
    words = ['bash', 'clone/scripts/ablations/nano/mask_ratio_0.1.sh', str(phantom), 'o']
    for _ in range(2):  # the second time everything is finished
        done = subprocess.run(
            words, cwd=tmp_path, env=os.environ | env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    found = [path.parent.name for path in output.rglob(RECORD_FILE)]
    assert found == ['nano_mask_ratio_0.1_seed1'] * 2
    sweep = ROOT / 'scripts/ablations/nano/mask_ratio.yaml'
    row = [
        '--sweep',
        sweep,
        '--row',
        '0.1',
        '--seed',
        1,
        '--output',
        output,
        '--data-path',
        phantom,
    ]
    given = ['--pretrain-opts', SWIN_PRETRAIN, '--finetune-opts', SWIN_FINETUNE]
    assert run_script('ablate', 'run', '--list', *row, *given) == 0
    shown = capsys.readouterr().out
    assert shown.count('finished\n') == 3 and '2 of them already finished' in shown


NANO = ROOT / 'configs/vit_nano__demo'
BYOL = next((ROOT / 'configs/vit_nano__methods_demo').glob('contrastive*byol*.yaml'))


@pytest.mark.slow
def test_methods_are_compared_from_end_to_end(python, phantom, tmp_path) -> None:
    tiny = {'MODEL.VIT.EMBED_DIM': 16, 'MODEL.VIT.DEPTH': 1, 'MODEL.VIT.NUM_HEADS': 2}
    finetune, pretrain = (
        str(NANO / f'simmim_{s}__vit_nano__img64__demo.yaml') for s in ('finetune', 'pretrain')
    )
    given = {'finetune': finetune, 'pretrain_options': tiny, 'finetune_options': tiny}
    methods = {'simmim': given | {'pretrain': pretrain}, 'byol': given | {'pretrain': str(BYOL)}}
    shares = {0.5: {'TRAIN.EPOCHS': 1}, 1: {'TRAIN.EPOCHS': 1}}
    path = methods_file(tmp_path, methods=methods, shares=shares)
    short = 'DATA.BATCH_SIZE 8 DATA.HOLDOUT_FRACTION 0.2 DATA.NUM_WORKERS 0'
    env = os.environ | ENV | {
        'PYTHON': str(python), 'SEEDS': '1',
        'PRETRAIN_OPTS': f'{short} EVAL.HOLDOUT_IMAGES 8 TRAIN.EPOCHS 2 TRAIN.WARMUP_EPOCHS 0',
        'FINETUNE_OPTS': f'{short} TRAIN.WARMUP_EPOCHS 0 REPORT.WRITE False',
    }  # fmt: skip
    words = ['bash', 'scripts/compare_methods.sh', str(phantom), str(tmp_path / 'o'), str(path)]
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    names = ('mean_of_defined.md', 'scores.csv', 'mean_of_defined.png', 'labels.png', 'curves.pdf')
    assert all((tmp_path / 'o' / f'mine_{name}').stat().st_size > 300 for name in names)


def test_the_time_of_a_sweep_is_estimated_without_training(
    python, phantom, tmp_path, capsys, monkeypatch
) -> None:
    monkeypatch.setenv('PYTHON', str(python))
    more = ['--seeds', '2', '--row', '4', '--check']
    assert in_process('run', SWEEP, tmp_path / 'runs', phantom, *more) == 0
    *kinds, last = capsys.readouterr().out.splitlines()
    assert len(kinds) == 2 and all(' 2 runs such as ' in line for line in kinds)
    assert all('3 epochs x 12 images' in line for line in kinds), kinds  # as in SHORT
    assert '4 of 4 runs are left: about ' in last
    assert not (tmp_path / 'runs').exists()


def test_runs_with_other_options_count_as_finished(tmp_path, capsys) -> None:
    job = jobs_of(SWEEP, tmp_path, tmp_path, 1)[0]
    job.folder.mkdir(parents=True)
    (job.folder / 'config.yaml').write_text(config_text(job.config))
    (job.folder / RECORD_FILE).write_text(json.dumps({'finished': 'now'}))
    words = ['run', '--list', '--sweep', str(SWEEP), '--output', str(tmp_path), '--seeds', '1']
    assert run_script('ablate', *words) == 0  # without the options of the run
    shown = capsys.readouterr().out
    assert f'{job.name:<50} finished *' in shown and '1 of them already finished' in shown
    assert 'DATA.TRAIN_IMAGES' in shown


@pytest.fixture
def submitted(tmp_path, monkeypatch) -> Path:
    """The arguments of a stand-in for sbatch. The queue is empty."""
    text = f'echo "$@" >>{tmp_path}/notes\necho $((100 + $(wc -l <{tmp_path}/notes)))\n'
    for name, commands in (('sbatch', text), ('squeue', '')):
        (tmp_path / name).write_text(f'#!/usr/bin/env bash\n{commands}')
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path}:{os.environ["PATH"]}')
    return tmp_path / 'notes'


def test_job_arrays_wait_for_the_runs_they_need(submitted, tmp_path) -> None:
    more = ['--seeds', '1', '--slurm', 'partition=gpu']
    assert in_process('run', SWEEP, tmp_path / 'runs', tmp_path, *more) == 0
    first, second = submitted.read_text().splitlines()
    logs = tmp_path / 'runs' / LOGS
    assert logs.is_dir()  # Slurm does not make it
    options = f'--output={logs}/slurm-%A_%a.out --partition=gpu'
    assert '--array=0,1,2,3 ' in first and options in first and '--dependency' not in first
    assert '--array=4,5,6,7' in second and '--dependency=afterany:101' in second
    # A task of the array makes the same plan.
    words = second.split()[second.split().index('--sweep') :]
    script = load_script('ablate')
    args = script.parse_args(['run', *words, '--job', '4'])
    assert script.jobs_of(args)[4].name == 'finetune nano_mask_size_4 seed 0'


def test_a_dry_run_prints_what_would_be_submitted_and_changes_nothing(
    submitted, tmp_path, monkeypatch, capsys
) -> None:
    more = ['--seeds', '1', '--slurm', 'partition=gpu']
    assert in_process('run', SWEEP, tmp_path / 'runs', tmp_path, *more) == 0
    sent = submitted.read_text().splitlines()
    for name in ('squeue', 'sbatch'):
        (tmp_path / name).unlink()
    shutil.rmtree(tmp_path / 'runs')
    monkeypatch.setenv('PATH', str(tmp_path))  # no Slurm is needed
    capsys.readouterr()
    assert in_process('run', SWEEP, tmp_path / 'runs', tmp_path, *more, '--dry-run') == 0
    shown = capsys.readouterr().out.splitlines()
    printed = [shlex.split(line) for line in shown if line.startswith('sbatch ')]
    # The stand-in for sbatch prints its arguments without quotes.
    assert [' '.join(words[1:]) for words in printed] == [
        line.replace('afterany:101', 'afterany:ID_OF_ARRAY_1') for line in sent
    ]
    assert '8 runs would be submitted (--dry-run: nothing was)' in shown[-1]
    assert not (tmp_path / 'runs').exists() and submitted.read_text().splitlines() == sent
    assert in_process('run', SWEEP, tmp_path / 'runs', tmp_path, '--dry-run') == 2
    assert '--dry-run needs --slurm' in capsys.readouterr().err


def test_a_dry_run_prints_where_rows_start_from(tmp_path, monkeypatch, capsys) -> None:
    """A task of the array reads it in its environment."""
    monkeypatch.setenv('MAE_WEIGHTS', 'mae-vit-64px')
    sweep, words = ROOT / 'scripts/studies/patient_data.yaml', ['--slurm', '--dry-run']
    assert in_process('run', sweep, tmp_path / 'runs', tmp_path, *words) == 0
    assert capsys.readouterr().out.startswith('MAE_WEIGHTS=mae-vit-64px sbatch --parsable ')


def test_a_slurm_that_does_not_answer_is_a_sentence(submitted, tmp_path, capsys) -> None:
    (tmp_path / 'squeue').write_text('#!/usr/bin/env bash\necho no controller >&2\nexit 1\n')
    assert in_process('run', SWEEP, tmp_path / 'runs', tmp_path, '--slurm') == 2
    shown = capsys.readouterr().err
    assert 'no Slurm answers on this machine; use a login node' in shown
    assert 'no controller' in shown and '--dry-run' in shown
    assert not (tmp_path / 'runs').exists() and not submitted.exists()


def test_a_task_requests_the_resources_of_all_its_processes(submitted, tmp_path) -> None:
    more = ['--seeds', '1', '--processes', '2', '--slurm', 'mem=50G']
    for stage, options in (('pretrain', PRETRAIN), ('finetune', FINETUNE)):
        more += [f'--{stage}-opts', *options, 'TRAIN.ACCUMULATION_STEPS', '2']
    assert in_process('run', SWEEP, tmp_path / 'runs', tmp_path, *more) == 0
    options = submitted.read_text().splitlines()[0]
    assert '--gpus-per-node=2 --cpus-per-task=16 --mem=64G --mem=50G' in options


def test_runs_that_wait_for_a_running_one_are_left_out(submitted, tmp_path, capsys) -> None:
    jobs = jobs_of(SWEEP, tmp_path / 'runs', tmp_path, 1)
    with run_lock(jobs[0].folder):
        assert in_process('run', SWEEP, tmp_path / 'runs', tmp_path, '--seeds', '1', '--slurm') == 0
    first, second = submitted.read_text().splitlines()
    assert '--array=1,2,3 ' in first and '--array=5,6,7 ' in second
    assert '6 runs submitted; 2 have finished' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('command', 'more', 'key'),
    [
        ('run', ['--pretrain-opts', 'NO.KEY', '1'], 'NO.KEY'),
        ('run', ['--finetune-opts', "DATA.LABELS \"['Edema']", '--list'], 'DATA.LABELS'),
        ('run', ['--row', 'none'], '--row'),
        ('run', ['--slurm'], 'sbatch'),
        ('table', [], 'no run of'),
    ],
)
def test_mistakes_are_reported_before_anything_runs(
    command, more, key, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv('PATH', str(tmp_path))
    assert in_process(command, SWEEP, tmp_path / 'runs', tmp_path, *more) == 2
    assert key in capsys.readouterr().err
    assert not (tmp_path / 'runs').exists()


def test_a_store_that_lacks_the_steps_of_a_row_is_refused_before_the_first_run(
    tmp_path, capsys
) -> None:
    store = packed(make_data(tmp_path / 'data'), tmp_path / 'store')
    content = yaml.safe_load(SWEEP.read_text())
    content['rows'] |= {'resized': {'pretrain': {'DATA.PREPROCESS': ['resize']}}}
    (tmp_path / 'mine.yaml').write_text(yaml.safe_dump(content))
    assert in_process('run', tmp_path / 'mine.yaml', tmp_path / 'runs', store) == 2
    assert "DATA.PREPROCESS 'resize' changes the shape" in capsys.readouterr().err
    assert not (tmp_path / 'runs').exists()


def test_runs_of_one_gpu_share_what_there_is(monkeypatch) -> None:
    ablate = load_script('ablate')
    counted = subprocess.CompletedProcess([], 0, stdout='2\n')
    monkeypatch.setattr(ablate.subprocess, 'run', lambda *_, **__: counted)
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)

    def gpus(parallel: int | None, processes: int) -> list[str]:
        args = argparse.Namespace(parallel=parallel, processes=processes, row=None)
        return [slot['CUDA_VISIBLE_DEVICES'] for slot in ablate.slots_of(args)]

    assert gpus(None, 1) == ['0', '1']
    assert gpus(5, 1) == ['0', '1', '0', '1', '0']
    assert gpus(1, 2) == ['0,1']
    with pytest.raises(ValueError):
        gpus(2, 2)


def test_runs_are_listed_without_the_data(tmp_path, capsys) -> None:
    path = methods_file(tmp_path, scales={'full': {'methods': ['simmim'], 'seeds': 1}})
    words = ['run', '--sweep', str(path), '--scale', 'full', '--output', str(tmp_path), '--list']
    words += ['--finetune-opts', 'EVAL.EVERY', '2']
    assert run_script('ablate', *words) == 0
    shown = capsys.readouterr().out
    assert re.search(r'mine_simmim_0\.1 seed 0 +not started\n', shown)
    assert '3 runs (1 pretrain, 2 finetune), 0 of them' in shown
    assert 'reference.yaml: SEED 0 DATA.TRAIN_FRACTION 0.1 TRAIN.EPOCHS 60 EVAL.EVERY 2' in shown
    assert run_script('ablate', *words, '--images-seen', '9') == 2
    assert '--images-seen 9 needs --data-path' in capsys.readouterr().err


@pytest.mark.parametrize(('images', 'epochs'), [(24, 2), (25, 3), (1, 1), (10**6, MOST_EPOCHS)])
def test_the_epochs_that_show_a_number_of_images_are_rounded_up(
    images, epochs, phantom, tmp_path
) -> None:
    jobs = jobs_of(SWEEP, tmp_path, phantom, 1)  # 12 images in an epoch
    assert epochs_for(jobs, images, logging.getLogger()) == epochs
    fine_tuning = [job for job in jobs if job.stage == 'finetune']
    with pytest.raises(ValueError, match='--images-seen'):
        epochs_for(fine_tuning, images, logging.getLogger())
