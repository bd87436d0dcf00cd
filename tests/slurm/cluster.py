"""A real Slurm of two nodes on one machine, each in a network namespace of its own."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from faults.runs import ENVIRONMENT, Started, started, two_nodes, wait_until
from tiny import ROOT

NAME = 'slurm'  # of the namespaces: slurm0, slurm1
PROGRAMS = ('munged', 'slurmctld', 'slurmd', 'sbatch', 'srun', 'ip', 'nsenter')
JOB_SECONDS = 200  # that a job may take
START_SECONDS = 60
POLL_SECONDS = 0.5
# The nodes have no CPUs and GPUs like these: what a job gets is counted, not used.  cred_expire is
# also how long a job that was queued again waits.
CONF = """\
ClusterName=test
SlurmctldHost={host}(10.77.0.1)
SlurmctldPort=6817
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
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
NodeName=node0 NodeHostname={host} NodeAddr=10.77.0.1 Port=6818 {has}
NodeName=node1 NodeHostname={host} NodeAddr=10.77.0.2 Port=6819 {has}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
HAS = 'CPUs=16 RealMemory=64000 Gres=gpu:2'
GRES = 'Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n'


class Cluster:
    """Jobs are submitted in the repository on node0; what they print is in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {'SLURM_CONF': str(folder / 'slurm.conf'), 'PYTHON': sys.executable}

    def run(self, *command: str | Path, **environment: str) -> str:
        """What a command prints."""
        done = subprocess.run(
            inside(0, *command), cwd=ROOT, text=True, check=False, capture_output=True, timeout=60,
            env=ENVIRONMENT | self.environment | environment,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def submit(self, script: str, arguments: list[str], *options: str, **environment: str) -> str:
        """Number of the new job; `options` are sbatch's."""
        output = f'--output={self.folder}/%j.out'
        path = f'scripts/slurm/{script}.sbatch'
        words = ['sbatch', '--parsable', output, *options, path, *arguments]
        return self.run(*words, **environment).strip()

    def text(self, job: str) -> str:
        """What a job has printed."""
        path = self.folder / f'{job}.out'
        return path.read_text() if path.exists() else ''

    def facts(self, job: str) -> dict[str, str]:
        """What Slurm says of a job."""
        words = self.run('scontrol', 'show', 'job', '--oneliner', job).split()
        return dict(word.split('=', 1) for word in words if '=' in word)

    def wait(self, job: str, state: str) -> dict[str, str]:
        """What Slurm says of a job once it has ended, which must be in this state."""
        end = time.monotonic() + JOB_SECONDS
        while (facts := self.facts(job))['JobState'] in ('PENDING', 'RUNNING', 'COMPLETING'):
            assert time.monotonic() < end, f'{facts}\n{self.text(job)}'
            time.sleep(POLL_SECONDS)
        assert facts['JobState'] == state, f'{facts}\n{self.text(job)}'
        return facts

    def wait_for(self, job: str, condition: Callable[[], bool]) -> None:
        """Wait for something that a job does."""
        wait_until(condition, f'something in {self.text(job)}')


def inside(node: int, *command: str | Path) -> list[str]:
    """The command in the network of a node; `ip netns exec` would hide the control groups."""
    return ['nsenter', f'--net=/run/netns/{NAME}{node}', *map(str, command)]


@contextmanager
def running_cluster(folder: Path) -> Iterator[Cluster]:
    """Start munged, slurmctld and two slurmd; end them with all that they started.

    Skipped without the programs or the rights; a daemon that does not start is a failure.
    """
    if missing := [program for program in PROGRAMS if not shutil.which(program)]:
        pytest.skip(f'no Slurm here: {", ".join(missing)} not found')
    if os.getuid() != 0:
        pytest.skip('a Slurm of its own needs root')
    cluster = Cluster(folder)
    host = socket.gethostname().partition('.')[0]
    (folder / 'slurm.conf').write_text(CONF.format(host=host, folder=folder, has=HAS))
    (folder / 'gres.conf').write_text(GRES)
    for name in ('state', 'node0', 'node1'):
        (folder / name).mkdir()
    key = folder / 'munge.key'
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    files = {'socket': 'socket', 'key-file': 'key', 'pid-file': 'pid', 'seed-file': 'seed'}
    munged = [f'--{flag}={folder}/munge.{name}' for flag, name in files.items()]
    daemons = {
        'munged': ['munged', '--force', '--foreground', *munged],
        'slurmctld': inside(0, 'slurmctld', '-D', '-i'),
        'slurmd0': inside(0, 'slurmd', '-D', '-N', 'node0'),
        'slurmd1': inside(1, 'slurmd', '-D', '-N', 'node1'),
    }
    with two_nodes(NAME), started([]) as processes:
        for name, command in daemons.items():
            log = folder / f'{name}.log'
            processes.append(Started(command, log, **cluster.environment))
            if name == 'munged':
                _wait_for_daemons(processes, (folder / 'munge.socket').exists, name)
        idle = ['sinfo', '--noheader', '--states=idle', '--format=%D']
        _wait_for_daemons(processes, lambda: _answers(cluster, idle) == '2', 'two idle nodes')
        yield cluster


def _wait_for_daemons(processes: list[Started], condition: Callable[[], bool], what: str) -> None:
    """Wait for what they do once they have started; fails with their logs if one ends."""

    def ended() -> list[str]:
        return [p.output.name for p in processes if p.process.poll() is not None]

    try:
        wait_until(lambda: ended() or condition(), what, START_SECONDS)
        assert not ended(), f'{what}: {", ".join(ended())} tells why a daemon ended'
    except AssertionError as error:
        last = [f'{process.output.name}:\n{process.text[-1000:]}' for process in processes]
        pytest.fail('\n'.join([f'Slurm does not start: {error}', *last]), pytrace=False)


def _answers(cluster: Cluster, command: list[str]) -> str:
    try:
        return cluster.run(*command).strip()
    except AssertionError:  # it has not started yet
        return ''
