"""The smallest runs of the mains: configs, and starting them in this process or in several."""

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import main_contrastive
import main_finetune
import main_simmim
from config import Config, default_config
from engine import loop
from engine.launch import launch

DEADLINE = 240  # seconds; what tests wait for takes much less
ROOT = Path(__file__).resolve().parents[2]
MAINS = {
    'simmim': main_simmim.main,
    'contrastive': main_contrastive.main,
    'finetune': main_finetune.main,
}
LABELS_DECIDE = {'NUM_CLASSES': 1000}  # the default: as many outputs as there are labels
SCRIPTS = {stage: f'main_{stage}.py' for stage in MAINS}

SWIN = {
    'TYPE': 'swin',
    'DROP_PATH_RATE': 0.2,
    'IN_CHANS': 1,
    'SWIN': {'PATCH_SIZE': 2, 'EMBED_DIM': 8, 'DEPTHS': [2, 2], 'NUM_HEADS': [1, 2],
             'WINDOW_SIZE': 4},
}  # fmt: skip
VIT = {
    'TYPE': 'vit',
    'DROP_PATH_RATE': 0.2,
    'IN_CHANS': 1,
    'VIT': {'PATCH_SIZE': 8, 'EMBED_DIM': 16, 'DEPTH': 2, 'NUM_HEADS': 2},
}  # fmt: skip
MAE = VIT | {
    'PRETRAIN': 'mae',
    'DROP_PATH_RATE': 0.0,
    'VIT': VIT['VIT'] | {'USE_SINCOS': True, 'USE_SHARED_RPB': False, 'INIT_VALUES': None},
    'MAE': {'DECODER_EMBED_DIM': 16, 'DECODER_DEPTH': 1, 'DECODER_NUM_HEADS': 2},
}
SMALLEST_SWIN = {  # for `config_with`
    'DATA__IMG_SIZE': 32,
    'DATA__MASK_PATCH_SIZE': 8,
    'MODEL__SWIN__EMBED_DIM': 8,
    'MODEL__SWIN__DEPTHS': [1, 1],
    'MODEL__SWIN__NUM_HEADS': [1, 2],
    'MODEL__SWIN__WINDOW_SIZE': 4,
}
FINETUNE_AUG = {'AUTO_AUGMENT': 'none', 'MIXUP': 0.0, 'CUTMIX': 0.0, 'HFLIP': 0.0}


def config_with(**options: object) -> Config:
    """The defaults with some options changed; `__` in a name stands for a dot."""
    config = default_config()
    for key, value in options.items():
        config.merge_from_list([key.replace('__', '.'), value])
    return config


def tiny_config(path: Path, stage: str, model: dict = SWIN, **sections: dict) -> Path:
    """Write the YAML of a tiny run to `path`; `sections` are merged over it."""
    model = model | {'NAME': f'tiny_{stage}'}
    if stage == 'finetune':
        model |= {'NUM_CLASSES': 14, 'LABEL_SMOOTHING': 0.0}
    config = {
        'MODEL': model,
        'DATA': {'DATASET': 'chexpert', 'IMG_SIZE': 32, 'BATCH_SIZE': 4, 'NUM_WORKERS': 0,
                 'HOLDOUT_FRACTION': 0.2, 'TRAIN_IMAGES': 28},
        'TRAIN': {'EPOCHS': 2, 'WARMUP_EPOCHS': 1, 'BASE_LR': 0.05, 'WARMUP_LR': 1e-4,
                  'ACCUMULATION_STEPS': 2},
        'PRINT_FREQ': 3, 'AMP_ON_CPU': 'never',
    }  # fmt: skip
    if stage == 'simmim':
        config['DATA']['MASK_PATCH_SIZE'] = 8
        config['EVAL'] = {'HOLDOUT_IMAGES': 2}  # a figure of more takes longer than the training
    if stage == 'finetune':
        config['DATA']['UNCERTAIN'] = 'ignore'
        config['AUG'] = dict(FINETUNE_AUG)
        config['TEST'] = {'CROP': False}
        config['REPORT'] = {'WRITE': False}
        config['EVAL'] = {'SELECT_ON': 'holdout'}  # by default, few images select no epoch
    for section, values in sections.items():
        config.setdefault(section, {})
        config[section] = config[section] | values if isinstance(values, dict) else values
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config))
    return path


def arguments(cfg: Path, data: Path, output: Path, *more: str) -> list[str]:
    return ['--cfg', str(cfg), '--data-path', str(data), '--output', str(output), *more]


def run_main(stage: str, argv: list[str]) -> int:
    """One run in this process; returns the exit code."""
    return launch(stage, MAINS[stage], argv)


def run_folder(output: Path, stage: str) -> Path:
    return output / f'tiny_{stage}' / 'default'


def finished_run(
    stage: str, data: Path, folder: Path, *more: str, model: dict = SWIN, **sections: dict
) -> Path:
    """Make a tiny run to its end, with all its files below `folder`; returns the run folder."""
    cfg = tiny_config(folder / f'{stage}.yaml', stage, model, **sections)
    assert run_main(stage, arguments(cfg, data, folder, *more)) == 0
    return run_folder(folder, stage)


def torchrun(stage: str, argv: list[str], processes: int) -> subprocess.CompletedProcess:
    """The same over several processes (gloo on the CPU)."""
    node = start_torchrun(stage, argv, ['--standalone', '--nproc_per_node', str(processes)])
    try:
        out, err = node.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        node.terminate()  # torchrun ends the processes that hang
        raise
    return subprocess.CompletedProcess(node.args, node.returncode, out, err)


def start_torchrun(stage: str, argv: list[str], flags: list[str]) -> subprocess.Popen:
    """Start torchrun with its own flags, for the processes of one node."""
    command = [sys.executable, '-m', 'torch.distributed.run', *flags, SCRIPTS[stage], *argv]
    env = os.environ | {'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
    return subprocess.Popen(command, cwd=ROOT, env=env, **pipes)


def killed_in_step_7(stage: str, argv: list[str]) -> None:
    """Start a run, and kill it in its seventh optimizer step."""
    step, calls = loop.optimizer_step, []

    def counted(*args: object) -> None:
        calls.append(0)
        if len(calls) == 7:
            raise KeyboardInterrupt
        step(*args)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, 'optimizer_step', counted)
        run_main(stage, argv)


def wait_until(condition: Callable[[], object], what: str = 'the condition') -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, f'{what}: not within {DEADLINE} s'
        time.sleep(0.05)


def load_script(name: str | Path) -> ModuleType:
    """A script below scripts/, named without its suffix, as a module."""
    path = (ROOT / 'scripts' / name).with_suffix('.py')
    spec = importlib.util.spec_from_file_location(f'script_{path.stem}', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_script(name: str, *words: object) -> int:
    """Run a script in this process; returns the exit code."""
    script = load_script(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', [name, *map(str, words)])
        args = script.parse_args()
    return script.main(args)
