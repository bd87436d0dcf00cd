"""Jobs in a real Slurm of two nodes: time limits, requeueing, mistakes and cancelling."""

from pathlib import Path

import pytest
from cluster import running_cluster
from faults.runs import assert_same_weights, tiny_arguments
from packed_data import packed
from tiny import run_folder, torchrun

from data.packing import Settings
from utils import read_checkpoint

pytestmark = pytest.mark.slow
WAITING = str(Path(__file__).with_name('waiting_main.py'))
AGAIN = 'slurm: stopped and saved; queued again, to resume'


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


def test_a_job_that_hits_its_time_limit_resumes_and_ends_like_an_undisturbed_one(
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
