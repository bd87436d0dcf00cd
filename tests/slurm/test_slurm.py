"""Jobs in a real Slurm of one node on this machine, whose two GPUs are /dev/null and /dev/zero."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from sweep_commands import FINETUNE, PRETRAIN, SWEEP, in_process
from tiny import ROOT, wait_until

pytestmark = pytest.mark.slow
PROGRAMS = ('munged', 'slurmctld', 'slurmd', 'sbatch', 'srun')
# cred_expire is also how long a job that was requeued waits.
CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CryptoType=crypto/munge
SlurmUser=root
SlurmdUser=root
SlurmdParameters=config_overrides
ProctrackType=proctrack/pgid
TaskPlugin=task/affinity
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=sched_interval=1
GresTypes=gpu
JobRequeue=1
KillWait=20
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/node0
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
NodeName=node0 NodeHostname={host} NodeAddr=127.0.0.1 CPUs=64 RealMemory=256000 Gres=gpu:2
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
GRES = 'Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n'
# Stands for Python: PyTorch sees the GPUs of the step, and the training process is WORKER.
PROGRAM = """\
#!/usr/bin/env bash
case "$*" in
    *torch.cuda*) tr ',' '\\n' <<<"${CUDA_VISIBLE_DEVICES-}" | grep -c . ; exit 0 ;;
    -c*) echo stand-in; exit ;;
    *ablate.py*) exec bash -c "$WORKER" ;;
esac
bash -c "${WORKER-true}" &
wait "$!"
"""
SET_UP = 'touch {ready}; for _ in {{1..1000}}; do sleep 0.05; done'
WAIT = f'trap "exit 75" TERM; {SET_UP}'


class Cluster:
    """Jobs are submitted in the repository, and print into `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.program = folder / 'python'
        self.program.write_text(PROGRAM)
        self.program.chmod(0o755)

    def run(self, *command: str, **environment: str) -> str:
        """What a command prints."""
        env = os.environ | {'PYTHON': str(self.program), 'OMP_NUM_THREADS': '1'} | environment
        done = subprocess.run(
            command, cwd=ROOT, env=env, text=True, check=False, capture_output=True, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def submit(self, *words: str, **environment: str) -> str:
        """Number of the new job."""
        output = f'--output={self.folder}/%A.out'
        return self.run('sbatch', '--parsable', output, *words, **environment).strip()

    def text(self, job: str) -> str:
        path = self.folder / f'{job}.out'
        return path.read_text() if path.exists() else ''

    def facts(self, job: str) -> dict[str, str]:
        """What Slurm says about a job."""
        words = self.run('scontrol', 'show', 'job', '--oneliner', job).split()
        return dict(word.split('=', 1) for word in words if '=' in word)

    def end_of(self, job: str) -> dict[str, str]:
        """What Slurm says about a job once it has ended."""
        going = ('PENDING', 'RUNNING', 'COMPLETING')
        wait_until(lambda: self.facts(job)['JobState'] not in going, f'end of job {job}')
        return self.facts(job)


@pytest.fixture(scope='module')
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if missing := [program for program in PROGRAMS if not shutil.which(program)]:
        pytest.skip(f'no Slurm here: {", ".join(missing)} not found')
    if os.getuid() != 0:
        pytest.skip('starting a Slurm needs root')
    folder = tmp_path_factory.mktemp('cluster')
    host, ports = socket.gethostname().partition('.')[0], []
    with socket.socket() as first, socket.socket() as second:
        for probe in (first, second):
            probe.bind(('127.0.0.1', 0))
            ports.append(probe.getsockname()[1])
    (folder / 'slurm.conf').write_text(CONF.format(host=host, folder=folder, ports=ports))
    (folder / 'gres.conf').write_text(GRES)
    (folder / 'munge.key').write_bytes(secrets.token_bytes(128))
    (folder / 'munge.key').chmod(0o600)
    for name in ('state', 'node0'):
        (folder / name).mkdir()
    files = {'socket': 'socket', 'key-file': 'key', 'pid-file': 'pid', 'seed-file': 'seed'}
    munged = [f'--{flag}={folder}/munge.{name}' for flag, name in files.items()]
    daemons = [['munged', '--force', '--foreground', *munged]]
    daemons += [['slurmctld', '-D', '-i'], ['slurmd', '-D', '-N', 'node0']]
    cluster, processes = Cluster(folder), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('SLURM_CONF', str(folder / 'slurm.conf'))
        try:
            for command in daemons:
                with open(folder / f'{command[0]}.log', 'w') as log:
                    output = {'stdout': log, 'stderr': log, 'start_new_session': True}
                    processes.append(subprocess.Popen(command, **output))
                if command[0] == 'munged':
                    wait_until((folder / 'munge.socket').exists, 'munged')
            wait_until(lambda: _is_idle(processes), f'an idle node; see {folder}/*.log')
            yield cluster
        finally:
            subprocess.run(['scancel', '--me'], check=False, capture_output=True, timeout=30)
            for process in reversed(processes):
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGTERM)
                process.wait(30)


def _is_idle(processes: list[subprocess.Popen]) -> bool:
    assert all(process.poll() is None for process in processes), 'a daemon ended, see its log'
    command = ['sinfo', '--noheader', '--states=idle', '--format=%D']
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)
    return done.stdout.strip() == '1'


@pytest.mark.parametrize(('options', 'processes'), [([], 2), (['--gpus-per-node=1'], 1)])
def test_a_whole_node_uses_its_gpus(options: list[str], processes: int, cluster: Cluster) -> None:
    # As if sbatch is called in a job that has another number of GPUs.
    around = {'SLURM_GPUS_PER_NODE': str(3 - processes)}
    job = cluster.submit(*options, 'scripts/slurm/node.sbatch', 'main_simmim.py', **around)
    assert cluster.end_of(job)['JobState'] == 'COMPLETED', cluster.text(job)
    assert f'{processes} GPUs, processes: {processes}' in cluster.text(job)


def test_a_cancelled_job_is_not_queued_again(cluster: Cluster, tmp_path: Path) -> None:
    ready = tmp_path / 'ready'
    job = cluster.submit(
        'scripts/slurm/node.sbatch', 'main_simmim.py', WORKER=WAIT.format(ready=ready)
    )
    wait_until(ready.exists, 'the training process')
    cluster.run('scancel', job)
    facts = cluster.end_of(job)
    assert (facts['JobState'], facts['Restarts']) == ('CANCELLED', '0')
    assert 'stopped by a signal, and not requeued' in cluster.text(job)


@pytest.mark.parametrize('work', [SET_UP, WAIT])
def test_only_the_stopped_task_of_an_array_is_queued_again(work, cluster, tmp_path) -> None:
    ready = tmp_path / 'ready'
    worker = f'[ $SLURM_ARRAY_TASK_ID = 1 ] && [ ! -e {ready} ] || exit 0; '
    worker += work.format(ready=ready)
    array = cluster.submit('--array=0,1', 'scripts/slurm/array.sbatch', WORKER=worker)
    wait_until(ready.exists, 'the task')
    cluster.run('scancel', '--signal=TERM', f'{array}_1')
    wait_until(lambda: cluster.facts(f'{array}_1')['Restarts'] == '1', 'the second start')
    ends = [cluster.end_of(f'{array}_{task}') for task in (0, 1)]
    assert [(end['JobState'], end['Restarts']) for end in ends] == [
        ('COMPLETED', '0'),
        ('COMPLETED', '1'),
    ]
    assert f'slurm: job {array}_1, requeued 1 times' in cluster.text(array)


def test_a_sweep_requests_what_processes_need_and_is_queued_once(cluster, tmp_path, capsys) -> None:
    more = ['--seeds', '1', '--processes', '2', '--slurm', 'hold']
    for stage, options in (('pretrain', PRETRAIN), ('finetune', FINETUNE)):
        more += [f'--{stage}-opts', *options, 'TRAIN.ACCUMULATION_STEPS', '2']
    for code in (0, 2):
        assert in_process('run', SWEEP, tmp_path / 'runs', tmp_path, *more) == code
    ids = cluster.run('squeue', '--noheader', '--format=%F').split()
    assert len(ids) == 2
    facts = cluster.facts(ids[0])
    assert 'cpu=16,mem=64G' in facts['TRES'] and facts['TresPerNode'] == 'gres:gpu:2'
    assert 'are in the queue' in capsys.readouterr().err
    cluster.run('scancel', '--me')
