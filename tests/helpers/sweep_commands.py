"""Commands of scripts/ablate.py, with runs as short as possible."""

import sys
from pathlib import Path

from tiny import run_script

from sweeps.files import ROOT, Job, load_sweep, plan

SWEEP = ROOT / 'scripts/ablations/nano/mask_size.yaml'
SHORT = (
    'DATA.BATCH_SIZE 4 DATA.HOLDOUT_FRACTION 0.2 DATA.TRAIN_IMAGES 12 TRAIN.EPOCHS 3 '
    'TRAIN.WARMUP_EPOCHS 0 SAVE_FREQ 1'
).split()
PRETRAIN = [*SHORT, 'EVAL.HOLDOUT_IMAGES', '2']
FINETUNE = [*SHORT, 'REPORT.WRITE', 'False']


def command(name: str, sweep: Path, output: Path, data: Path, *more: str) -> list[str]:
    words = ['scripts/ablate.py', name, '--sweep', str(sweep), '--output', str(output)]
    if name == 'run':
        words += ['--data-path', str(data), '--pretrain-opts', *PRETRAIN]
        words += ['--finetune-opts', *FINETUNE]
    return [sys.executable, *words, *more]


def in_process(*arguments: object) -> int:
    return run_script('ablate', *command(*arguments)[2:])


def jobs_of(sweep: Path, output: Path, data: Path, seeds: int) -> list[Job]:
    return plan(
        load_sweep(sweep),
        seeds=list(range(seeds)),
        data=str(data),
        output=str(output),
        options={'simmim': PRETRAIN, 'finetune': FINETUNE},
    )
