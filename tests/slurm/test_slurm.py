"""Jobs in a real Slurm of two nodes: limits, queueing again, mistakes, arrays, several nodes."""

import re
import sys
from pathlib import Path

import pytest
from cluster import running_cluster
from faults.runs import tiny_arguments
from packed_data import packed
from sweep_commands import held
from test_engine_loop import assert_same_weights
from tiny import run_folder, torchrun

from data.packing import Settings
from utils import read_checkpoint

pytestmark = pytest.mark.slow
WAITING = str(Path(__file__).with_name('waiting_main.py'))
AGAIN = 'slurm: stopped and saved; queued again, to go on'


@pytest.fixture(scope='module')
def cluster(tmp_path_factory):
    with running_cluster(tmp_path_factory.mktemp('cluster')) as running:
        yield running


@pytest.fixture(scope='module')
def store(phantom, tmp_path_factory):
    return packed(phantom, tmp_path_factory.mktemp('drive') / 'store', Settings(32))


@pytest.fixture(scope='module')
def undisturbed(store, tmp_path_factory):
    """The last checkpoint of a run of two processes that Slurm has nothing to do with."""
    folder = tmp_path_factory.mktemp('undisturbed')
    done = torchrun('simmim', tiny_arguments(folder, store), 2)
    assert done.returncode == 0, done.stderr
    return last_checkpoint(folder)


def last_checkpoint(folder):
    return read_checkpoint(run_folder(folder / 'out', 'simmim') / 'ckpt_epoch_1.pth')


def test_a_job_that_hits_its_time_limit_goes_on_and_ends_like_an_undisturbed_one(
    cluster, store, undisturbed, tmp_path
):
    argv = [WAITING, str(tmp_path / 'started'), *tiny_arguments(tmp_path, store)]
    options = ['--gpus-per-node=2', '--time=2', '--signal=TERM@70']  # 20 to 50 s after the start
    job = cluster.submit('node', argv, *options, CACHE_DIR=str(tmp_path / 'cache'))
    facts, text = cluster.wait(job, 'COMPLETED'), cluster.text(job)
    assert facts['TimeLimit'] == '00:02:00'
    assert facts['Restarts'] == str(text.count(AGAIN)) != '0'
    assert text.count('stopped by SIGTERM and saved in epoch') >= 1
    assert f'slurm: job {job}, queued again 1 times' in text
    assert '2 GPUs, 2 process(es)' in text
    assert len(list((tmp_path / 'cache').glob('store-*'))) == 1
    assert_same_weights(last_checkpoint(tmp_path), undisturbed)


def test_two_nodes_that_were_stopped_end_like_one_with_two_processes(
    cluster, store, undisturbed, tmp_path
):
    started = tmp_path / 'started'
    argv = [WAITING, str(started), *tiny_arguments(tmp_path, store)]
    job = cluster.submit('nodes', argv, '--gpus-per-node=1')
    cluster.wait_for(job, started.exists)
    cluster.run('scancel', '--signal=TERM', job)
    facts, text = cluster.wait(job, 'COMPLETED'), cluster.text(job)
    assert facts['Restarts'] == '1'
    assert text.count(AGAIN) == 1
    for number in (0, 1):
        assert f'slurm: node{number}: node {number + 1} of 2' in text
        assert f'1 GPUs, 1 process(es), gloo on slurm{number}' in text
        assert f'slurm: node{number}: asked to stop' in text
    assert_same_weights(last_checkpoint(tmp_path), undisturbed)


def test_a_mistake_ends_the_job_with_its_code(cluster, phantom, tmp_path):
    argv = ['main_simmim.py', *tiny_arguments(tmp_path, phantom, '--opts', 'TRAIN.NO_SUCH', '1')]
    job = cluster.submit('one_gpu', argv)
    facts = cluster.wait(job, 'FAILED')
    assert (facts['ExitCode'], facts['Restarts']) == ('2:0', '0')
    assert 'error: ' in cluster.text(job)
    assert 'TRAIN.NO_SUCH' in cluster.text(job).partition('error: ')[2]


def test_a_cancelled_job_saves_and_is_not_queued_again(cluster, phantom, tmp_path):
    started = tmp_path / 'started'
    job = cluster.submit('one_gpu', [WAITING, str(started), *tiny_arguments(tmp_path, phantom)])
    cluster.wait_for(job, started.exists)
    cluster.run('scancel', job)
    assert cluster.wait(job, 'CANCELLED')['Restarts'] == '0'
    text = cluster.text(job)
    assert 'stopped by SIGTERM and saved in epoch' in text
    assert 'slurm: stopped and not queued again: the job is ' in text
    assert AGAIN not in text


CONFIGS = 'configs/swin_nano__ablations'
SWEEP = f"""\
title: Loss
reference:
  pretrain: {CONFIGS}/simmim_pretrain__swin_nano__img64_window4__nano_reference.yaml
  finetune: {CONFIGS}/simmim_finetune__swin_nano__img64_window4__nano_reference.yaml
keys:
  pretrain: [MODEL.SIMMIM.LOSS]
rows:
  l1: {{}}
  l2: {{pretrain: {{MODEL.SIMMIM.LOSS: l2}}}}
"""
SMALL = [
    'DATA.TRAIN_IMAGES',
    '16',
    'DATA.BATCH_SIZE',
    '8',
    'TRAIN.EPOCHS',
    '1',
    'TRAIN.WARMUP_EPOCHS',
    '0',
]


def test_a_task_whose_run_is_running_elsewhere_fails_and_is_not_queued_again(
    cluster, phantom, tmp_path
):
    sweep = tmp_path / 'loss.yaml'
    sweep.write_text(SWEEP)
    where = ['--sweep', str(sweep), '--output', str(tmp_path), '--data-path', str(phantom)]
    with held(tmp_path / 'simmim_pretrain/nano_reference_seed0'):
        output = f'--output={tmp_path}/%a.txt'
        job = cluster.submit('array', where, '--array=0', output)
        facts = cluster.wait(f'{job}_0', 'FAILED')
    assert (facts['ExitCode'], facts['Restarts']) == ('2:0', '0')
    assert 'pretrain nano_reference seed 0, is running' in (tmp_path / '0.txt').read_text()


def test_four_ablation_runs_in_arrays_finish_in_their_order_though_one_was_stopped(
    cluster, phantom, tmp_path
):
    sweep, output = tmp_path / 'loss.yaml', tmp_path / 'out'
    sweep.write_text(SWEEP)
    ablate = [sys.executable, 'scripts/ablate.py']
    where = ['--sweep', sweep, '--output', output, '--data-path', phantom, '--seeds', '1']
    where += ['--pretrain-opts', *SMALL, 'EVAL.HOLDOUT_IMAGES', '1']
    where += ['--finetune-opts', *SMALL, 'REPORT.WRITE', 'False', 'EVAL.RESAMPLES', '0']
    printed = cluster.run(*ablate, 'run', *where, '--slurm', f'output={tmp_path}/%a.txt')
    pretraining, finetuning = re.findall(r'^array (\d+): 2 runs', printed, re.M)
    # Of the array's last task the job's number is that of the whole array.
    stopped = tmp_path / '1.txt'
    cluster.wait_for('1', lambda: stopped.exists() and 'started  pretrain' in stopped.read_text())
    cluster.run('scancel', '--signal=TERM', f'{pretraining}_1')
    jobs = [f'{pretraining}_0', f'{pretraining}_1', f'{finetuning}_2', f'{finetuning}_3']
    restarts = [cluster.wait(job, 'COMPLETED')['Restarts'] for job in jobs]
    assert restarts == ['0', '1', '0', '0']
    assert f'slurm: job {pretraining}_1, queued again 1 times' in stopped.read_text()
    assert 'Loss: 4 of 4 runs finished' in cluster.run(*ablate, 'status', *where)
    assert cluster.run('squeue', '--noheader') == ''
