"""Commands of scripts/ablate.py, and what stands in for other programs that they meet."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from test_readme import load_script

from sweeps.files import ROOT, Job, load_sweep, plan

SWEEP = ROOT / 'scripts/ablations/nano/mask_size.yaml'
SHORT = (
    'DATA.BATCH_SIZE 4 DATA.HOLDOUT_FRACTION 0.2 DATA.TRAIN_IMAGES 12 EVAL.HOLDOUT_IMAGES 2 '
    'TRAIN.EPOCHS 3 TRAIN.WARMUP_EPOCHS 0 SAVE_FREQ 1'
)
PRETRAIN = SHORT.split()
FINETUNE = [*PRETRAIN, 'REPORT.WRITE', 'False']
HOLDER = (
    'import sys; from run_lock import RunLock; lock = RunLock(sys.argv[1]).acquire(); '
    'print("held", flush=True); sys.stdin.read()'
)


def command(name: str, sweep: Path, output: Path, data: Path, *more: str) -> list[str]:
    words = [sys.executable, 'scripts/ablate.py', name, '--sweep', str(sweep), '--output',
             str(output)]  # fmt: skip
    if name in ('run', 'status'):
        words += ['--data-path', str(data), '--pretrain-opts', *PRETRAIN]
        words += ['--finetune-opts', *FINETUNE]
    return [*words, *more]


def in_process(*arguments: object) -> int:
    script = load_script(ROOT / 'scripts/ablate.py')
    return script.main(script.parse_args(command(*arguments)[2:]))


def jobs_of(sweep: Path, output: Path, data: Path, seeds: int) -> list[Job]:
    return plan(
        load_sweep(sweep),
        seeds=list(range(seeds)),
        data=str(data),
        output=str(output),
        options={'simmim': PRETRAIN, 'finetune': FINETUNE},
    )


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Another process has the lock of a run's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, '-c', HOLDER, str(folder)]
    pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as holder:
        assert holder.stdout.readline() == b'held\n'
        yield
        holder.stdin.close()
        holder.wait(30)
