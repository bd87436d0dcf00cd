"""The layout: modules at the root, imports that go one way, and a core that needs no other part."""

import ast
import functools
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from tiny import ROOT, arguments, run_folder, tiny_config

ROOT_MODULES = {
    *('main_simmim', 'main_finetune', 'main_contrastive'),
    *('config', 'utils', 'logger', 'lr_scheduler', 'optimizer', 'simmim_xray'),
}
# A module may import modules of its own row and of the rows above it, from the ground up. A folder
# in a folder is a room of its own.
ROWS = [
    ['options'],
    ['config'],
    ['system'],
    ['logger', 'lr_scheduler', 'optimizer', 'utils'],
    ['data.images'],
    ['data.tables'],
    ['data'],
    ['data.describe'],
    ['models'],
    ['models.weights'],
    ['engine'],  # also the home of new optimizers and schedules
    ['evaluation.maps'],
    ['evaluation'],
    ['evaluation.probes'],
    ['evaluation.report'],
    ['evaluation.regions'],
    ['main_simmim', 'main_finetune', 'main_contrastive'],
    ['sweeps', 'scripts'],
    ['simmim_xray', 'tools'],
]
ROW = {room: number for number, row in enumerate(ROWS) for room in row}
FOLDERS = sorted({room.partition('.')[0] for room in ROW})
# What the engine needs of models and data is passed in.
NEVER = {'engine': {'models', 'data'}}
# Modules of `data` that models may import.
ONLY = {'models': {'data.tables.labels', 'data.tables.metadata', 'data.masking'}}
# The most files and lines of this project that a main may load, directly and indirectly, with some
# slack. What a run records beside its checkpoints and predictions takes about 650 of these lines,
# and what tables say of unknown and doubtful cells about 500.
# The options do not count (config.py and options/), nor do parts that an option names.
LIMITS = {'main_simmim': (52, 9_650), 'main_finetune': (58, 11_950)}
# The rooms that the mains load, and the files in them that CheXpert and a Swin do not need.
# PRETRAINED needs models/weights/pretrained.py and what it imports: convert, recognise,
# timm_classifier.
CORE = ['options', 'system', 'data', 'models', 'engine', 'evaluation']
NOT_NEEDED = {
    'engine': 'compilation model_tool preflight simmim_checkpoint',
    'data': 'auto_augment build data_contrastive packing',
    'data/tables': 'given_folders metadata',
    'data/images': 'dicom noted_images preprocess_steps store store_files',
    'data/describe': 'check description',
    'models': 'contrastive mae patient_head',
    'models/weights': 'export',
    'evaluation': 'matching pseudo_label_choice',
    'evaluation/probes': 'attentive build features online_probe',
}


def room_of(module: str) -> str:
    """Return the room of a module: its folder, or itself if it is at the root."""
    room = module
    while room not in ROW:
        room = room.rpartition('.')[0]
    return room


def module_name(path: Path) -> str:
    return '.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__')


MODULES = {
    module_name(path): path
    for pattern in ('*.py', *(f'{folder}/**/*.py' for folder in FOLDERS))
    for path in sorted(ROOT.glob(pattern))
}


@functools.cache
def imports(name: str) -> list[tuple[str, bool]]:
    """Return our modules that a module imports, and whether a function contains the import."""
    tree, found = ast.parse(MODULES[name].read_text(encoding='utf-8')), []
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    inside = {node for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        targets = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            full = [f'{node.module}.{alias.name}' for alias in node.names]
            targets = [target if target in MODULES else node.module for target in full]
        found += [(target, node in inside) for target in targets if target in MODULES]
    return found


def test_only_the_named_modules_are_at_the_root() -> None:
    assert {path.stem for path in ROOT.glob('*.py')} == ROOT_MODULES


def test_each_folder_of_a_room_is_a_room_in_the_order_and_in_the_wheel() -> None:
    packages = tomllib.loads((ROOT / 'pyproject.toml').read_text())['tool']['setuptools'][
        'packages'
    ]
    folders = {module_name(path) for path in ROOT.glob('*/**/__init__.py')} & set(MODULES)
    assert folders - {'tools'} <= ROW.keys()
    in_wheel = {name.removeprefix('simmim_xray.') for name in packages}
    assert folders - {'tools'} <= in_wheel, 'add it to packages in pyproject.toml'


def test_imports_go_one_way_and_none_is_inside_a_function() -> None:
    wrong = []
    for name in MODULES:
        package = name.partition('.')[0]
        for target, in_function in imports(name):
            other = target.partition('.')[0]
            is_wrong = ROW[room_of(target)] > ROW[room_of(name)]
            is_wrong |= other in NEVER.get(package, ())
            is_wrong |= package in ONLY and other == 'data' and target not in ONLY[package]
            if is_wrong or in_function:
                wrong.append(f'{name}: {target}')
    assert wrong == []


def test_no_test_imports_from_a_module_of_tests() -> None:
    """What several of them need is in tests/helpers."""
    from_tests = re.compile(r'^ *(?:from|import) +(?:[\w.]+\.)?test_', re.M)
    files = sorted((ROOT / 'tests').rglob('*.py'))
    assert [path.name for path in files if from_tests.search(path.read_text('utf-8'))] == []


def test_imports_form_no_cycle() -> None:
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, ' -> '.join([*path, name])
        if name not in done:
            for target, _ in imports(name):
                visit(target, (*path, name))
            done.add(name)

    for name in MODULES:
        visit(name, ())


def loaded_by(main: str) -> set[str]:
    """Return the modules that a main loads, directly and indirectly."""
    found, waiting = set(), {main}
    while waiting:
        name = waiting.pop()
        found.add(name)
        waiting |= {target for target, _ in imports(name)} - found
    return found


@pytest.mark.parametrize('main', LIMITS)
def test_what_a_main_loads_does_not_grow(main: str) -> None:
    texts = {name: MODULES[name].read_text(encoding='utf-8') for name in loaded_by(main)}
    needs_pyarrow = [name for name, text in texts.items() if 'pyarrow' in text]
    assert needs_pyarrow == [], 'stores and Parquet files alone need it'
    names = [name for name in texts if name.split('.')[0] not in ('config', 'options')]
    lines = sum(len(texts[name].splitlines()) for name in names)
    most_files, most_lines = LIMITS[main]
    assert len(names) <= most_files and lines <= most_lines, (
        f'{main} loads {len(names)} files ({most_files} allowed), {lines} lines ({most_lines}). '
        'Code that only some runs need belongs in a module that its option names (parts or file, '
        'see docs/howto/extend.md). If every run needs it, raise the limit and say why.'
    )


@pytest.mark.slow
def test_the_core_trains_without_the_optional_parts(phantom: Path, tmp_path: Path) -> None:
    code = tmp_path / 'code'
    for room in CORE:
        shutil.copytree(ROOT / room, code / room, ignore=shutil.ignore_patterns('__pycache__'))
    for path in [*ROOT.glob('*.py'), ROOT / 'requirements.txt']:
        shutil.copy(path, code)
    (code / 'main_contrastive.py').unlink()
    for room, names in NOT_NEEDED.items():
        for name in names.split():
            (code / room / f'{name}.py').unlink()

    one_epoch = {'EPOCHS': 1, 'WARMUP_EPOCHS': 0}
    checkpoint = run_folder(tmp_path, 'simmim') / 'ckpt_epoch_0.pth'
    for stage, start in (('simmim', []), ('finetune', ['--pretrained', str(checkpoint)])):
        cfg = tiny_config(tmp_path / f'{stage}.yaml', stage, TRAIN=one_epoch)
        command = [sys.executable, f'main_{stage}.py', *arguments(cfg, phantom, tmp_path, *start)]
        env = os.environ | {'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}
        done = subprocess.run(command, cwd=code, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert (run_folder(tmp_path, stage) / 'ckpt_epoch_0.pth').is_file()


@pytest.mark.slow
@pytest.mark.parametrize('script', ['evaluate', 'ablate'])
def test_a_script_that_trains_nothing_does_not_import_torch(script: str) -> None:
    command = f'import sys, scripts.{script}; sys.exit("torch" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', command], cwd=ROOT, check=False).returncode == 0
    assert importlib.util.find_spec('torch')


@pytest.mark.slow
@pytest.mark.parametrize(
    ('script', 'slow'),
    [
        ('dense_probe', 'torch'),
        ('export', 'torch'),
        ('external', 'torch'),
        ('features', 'pandas'),
        ('localise', 'torch'),
        ('predict', 'pandas'),
    ],
)
def test_a_script_answers_help_before_it_imports_what_takes_seconds(script: str, slow: str) -> None:
    """Features and predictions need torch for a flag; pandas and timm come after it."""
    command = (
        f'import runpy, sys; sys.argv = ["{script}", "--help"]\n'
        f'try: runpy.run_path("scripts/{script}.py", run_name="__main__")\n'
        f'finally: assert not {{"{slow}", "timm"}} & sys.modules.keys()'
    )
    done = subprocess.run([sys.executable, '-c', command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and '--output' in done.stdout, done.stderr
