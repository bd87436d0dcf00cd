"""What job.sh and launch.sh do, seen by programs that stand for Slurm, Python and torchrun."""

import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny import ROOT, load_script, wait_until
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

# Ends with CODE; with WORKER it has a child as torchrun has, and ends with its code. PyTorch sees
# SEEN GPUs.
PROGRAM = """\
#!/usr/bin/env bash
case "$*" in *torch.cuda*) echo "${SEEN-1}"; exit ;; esac
printf '%s\\n' "$@" >"$0.words"
[ -n "${WORKER-}" ] || exit "${CODE-0}"
trap 'echo killed >"$0.killed"' TERM
bash -c "$WORKER" &
worker=$!
wait "$worker"
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / 'python'
    path.write_text(PROGRAM)
    path.chmod(0o755)
    return path


def start(program: Path, *arguments: str, **environment: str) -> subprocess.Popen:
    env = {key: value for key, value in os.environ.items() if not key.startswith('SLURM')}
    env |= {'PYTHON': str(program), 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': '29600'}
    return subprocess.Popen(
        ['bash', 'scripts/slurm/launch.sh', *arguments], cwd=ROOT, env=env | environment,
        text=True, stdout=subprocess.PIPE,
    )  # fmt: skip


def words_of(program: Path, *arguments: str, **environment: str) -> list[str]:
    """What torchrun is asked to run."""
    assert start(program, 'main_simmim.py', *arguments, **environment).wait(20) == 0
    words = Path(f'{program}.words').read_text().splitlines()
    return words[words.index('main_simmim.py') :]


def test_the_script_of_whole_nodes_says_that_it_shares_them_with_nobody() -> None:
    text = (ROOT / 'scripts/slurm/node.sbatch').read_text()
    comments = ' '.join(line for line in text.splitlines() if line.startswith('# '))
    page = (ROOT / 'docs/howto/slurm.md').read_text()
    (row,) = (line for line in page.splitlines() if line.startswith('| `node.sbatch`'))
    for option in ('--exclusive', '--mem=0'):
        assert f'#SBATCH {option}\n' in text and option in comments and option in row


def test_a_store_is_copied_to_the_node(program: Path, tmp_path: Path) -> None:
    (tmp_path / 'store.json').touch()
    arguments = ['--data-path', str(tmp_path)]
    plain, cached = ['main_simmim.py', *arguments], ['--opts', 'DATA.CACHE_DIR', '/local']
    assert words_of(program, *arguments) == plain
    assert words_of(program, *arguments, CACHE_DIR='/local') == [*plain, *cached]
    assert words_of(program, *arguments, SLURM_TMPDIR='/local', CACHE_DIR='') == plain


@pytest.mark.parametrize(
    ('environment', 'processes'),
    [
        ({'SEEN': '4'}, '4'),
        ({'SEEN': '4', 'SLURM_GPUS_ON_NODE': '4', 'PROCESSES': '2'}, '2'),
        ({'SEEN': '0', 'CPU_ONLY': '1'}, '1'),
        ({'SEEN': '0', 'CPU_ONLY': '1', 'PROCESSES': '2'}, '2'),
    ],
)
def test_a_process_for_each_gpu(environment: dict, processes: str, program: Path) -> None:
    assert start(program, 'main_simmim.py', **environment).wait(20) == 0
    words = Path(f'{program}.words').read_text().splitlines()
    assert words[words.index('--nproc_per_node') + 1] == processes


@pytest.mark.parametrize('plain', [[], ['--plain']])
@pytest.mark.parametrize('environment', [{'SEEN': '0'}, {'SEEN': '1', 'SLURM_GPUS_ON_NODE': '2'}])
def test_missing_gpus_end_the_job(environment: dict, plain: list[str], program: Path) -> None:
    assert start(program, *plain, 'main_simmim.py', **environment).wait(20) == 2
    assert not Path(f'{program}.words').exists()


def test_a_signal_is_for_the_processes_alone(program: Path, tmp_path: Path) -> None:
    ready = tmp_path / 'ready'
    worker = f'trap "exit 75" TERM; touch {ready}; for _ in {{1..400}}; do sleep 0.05; done'
    run = start(program, 'main_simmim.py', WORKER=worker)
    wait_until(ready.exists, 'the worker')
    os.kill(run.pid, signal.SIGTERM)
    assert run.wait(20) == 75
    assert not Path(f'{program}.killed').exists()


@pytest.mark.parametrize('code', [0, 2, 3, 134])
def test_another_node_that_is_done_waits_for_the_first(code: int, program: Path) -> None:
    """The report of rank 0 may take long. torchrun's port is open on the first node until then."""
    with socket.create_server(('127.0.0.1', 0)) as server:
        server.settimeout(20)
        node = {'SLURM_NNODES': '2', 'SLURM_NODEID': '1', 'GLOO_SOCKET_IFNAME': 'lo'}
        node |= {'MASTER_PORT': str(server.getsockname()[1]), 'CODE': str(code)}
        shown = {2: 202}.get(code, code)  # above 134, because srun returns the highest code
        run = start(program, 'main_simmim.py', **node)
        if code == 0:  # it looks again and again
            for _ in range(2):
                server.accept()[0].close()
        else:
            assert run.wait(20) == shown
    assert run.wait(20) == shown


@pytest.mark.parametrize(
    ('exitcode', 'code', 'shown'),
    [(2, 2, True), (75, 75, False), (76, 76, False), (-15, 143, True)],
)
def test_torchrun_ends_like_the_first_failure(exitcode, code, shown, monkeypatch, capsys) -> None:
    module = load_script('slurm/torchrun')

    def fail() -> None:
        first = SimpleNamespace(exitcode=exitcode)
        error = ChildFailedError.__new__(ChildFailedError)
        error.get_first_failure = lambda: (0, first)
        raise error

    monkeypatch.setattr(module, 'main', fail)
    assert module.exit_code() == code
    assert bool(capsys.readouterr().err) == shown


SLURM = """\
#!/usr/bin/env bash
case "${0##*/} $1" in
    srun*) [ -z "${EDIT-}" ] || echo false >"$EDIT"; exit "$CODE" ;;
    squeue*)
        [ -z "${BUSY-}" ] || [ -e "$0.asked" ] || { touch "$0.asked"; exit 1; }
        echo "$STATE" ;;
    'scontrol requeue') echo "$2" >"$0.requeued" ;;
    'scontrol show') echo node0 ;;
esac
"""


def run_job(folder: Path, root: Path, **environment: str) -> subprocess.CompletedProcess:
    """Run job.sh of a repository with programs in `folder` that stand for Slurm's."""
    for name in ('srun', 'squeue', 'scontrol'):
        (folder / name).write_text(SLURM)
        (folder / name).chmod(0o755)
    env = {key: value for key, value in os.environ.items() if not key.startswith('SLURM')}
    env |= {'PATH': f'{folder}:{env["PATH"]}', 'STATE': 'RUNNING', 'PYTHON': '/bin/true'}
    env |= {'SLURM_JOB_ID': '7', 'SLURM_JOB_NODELIST': 'node0', 'WAIT': '0'}
    command = ['bash', 'scripts/slurm/job.sh', 'main_simmim.py']
    return subprocess.run(
        command, cwd=root, env=env | environment, text=True, capture_output=True, timeout=20,
        check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ('environment', 'requeued'),
    [
        ({'CODE': '75'}, '7'),
        ({'CODE': '76'}, None),
        ({'CODE': '134'}, None),
        ({'CODE': '134', 'ABORT_SECONDS': '0'}, '7'),
        ({'CODE': '143'}, '7'),
        ({'CODE': '75', 'SLURM_ARRAY_JOB_ID': '5', 'SLURM_ARRAY_TASK_ID': '2'}, '5_2'),
        ({'CODE': '75', 'SLURM_RESTART_COUNT': '50'}, None),
        ({'CODE': '75', 'STATE': 'COMPLETING'}, None),
        ({'CODE': '143', 'STATE': 'COMPLETING'}, None),
        ({'CODE': '75', 'BUSY': '1'}, '7'),  # squeue fails once
        ({'CODE': '2'}, None),
        ({'CODE': '202'}, None),  # of one of several nodes
    ],
)
def test_a_job_is_queued_again_if_it_was_stopped_or_aborted_and_still_runs(
    environment: dict[str, str], requeued: str | None, tmp_path: Path
) -> None:
    done = run_job(tmp_path, ROOT, **environment)
    assert done.returncode == int(environment['CODE']) % 200, done.stderr
    asked = tmp_path / 'scontrol.requeued'
    assert (asked.read_text().strip() if asked.exists() else None) == requeued
    assert ('not requeued' in done.stdout) == (done.returncode != 2 and requeued is None)


def test_a_script_that_is_edited_while_a_job_runs_still_queues_it_again(tmp_path: Path) -> None:
    shutil.copytree(ROOT / 'scripts/slurm', tmp_path / 'scripts/slurm')
    (tmp_path / 'main_simmim.py').touch()
    script = tmp_path / 'scripts/slurm/job.sh'
    done = run_job(tmp_path, tmp_path, CODE='75', EDIT=str(script))
    assert script.read_text() == 'false\n' and done.returncode == 75, done.stderr
    assert (tmp_path / 'scontrol.requeued').read_text().strip() == '7'
