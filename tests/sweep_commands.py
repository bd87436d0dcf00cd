"""Commands of scripts/ablate.py, with runs as short as possible."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from sweeps.files import ROOT, Job, load_sweep, plan

SWEEP = ROOT / 'scripts/ablations/nano/mask_size.yaml'
SHORT = (
    'DATA.BATCH_SIZE 4 DATA.HOLDOUT_FRACTION 0.2 DATA.TRAIN_IMAGES 12 EVAL.HOLDOUT_IMAGES 2 '
    'TRAIN.EPOCHS 3 TRAIN.WARMUP_EPOCHS 0 SAVE_FREQ 1'
)
PRETRAIN = SHORT.split()
FINETUNE = [*PRETRAIN, 'REPORT.WRITE', 'False']


def load_script(name: str) -> ModuleType:
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / 'scripts' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def command(name: str, sweep: Path, output: Path, data: Path, *more: str) -> list[str]:
    words = ['scripts/ablate.py', name, '--sweep', str(sweep), '--output', str(output)]
    if name in ('budget', 'run', 'status'):
        words += ['--data-path', str(data), '--pretrain-opts', *PRETRAIN]
        words += ['--finetune-opts', *FINETUNE]
    return [sys.executable, *words, *more]


def in_process(*arguments: object) -> int:
    script = load_script('ablate')
    return script.main(script.parse_args(command(*arguments)[2:]))


def jobs_of(sweep: Path, output: Path, data: Path, seeds: int) -> list[Job]:
    return plan(
        load_sweep(sweep),
        seeds=list(range(seeds)),
        data=str(data),
        output=str(output),
        options={'simmim': PRETRAIN, 'finetune': FINETUNE},
    )
