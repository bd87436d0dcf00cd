"""scripts/ablations/*.sh: their commands are those of the rows of the sweeps."""

import os
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

from config import build_parser, config_text, get_config
from sweeps.files import ROOT, Job, Row, Sweep, load_sweep, only_rows, plan

FOLDER = ROOT / 'scripts/ablations'
SCRIPTS = sorted(FOLDER.rglob('*.sh'))
# Notes its name and words, one a line, and an empty line.
STAND_IN = '#!/usr/bin/env bash\nprintf "%s\\n" "${0##*/}" "$@" "" >>"$CALLS"\n'
OPTIONS = {
    'simmim': ['TRAIN.EPOCHS', '11', 'TRAIN.WARMUP_EPOCHS', '1'],
    'finetune': ['DATA.LABELS', "['Edema','Fracture']"],
}


def name_of(path: Path) -> str:
    return str(path.relative_to(FOLDER).with_suffix(''))


@cache
def rows_of(folder: Path) -> dict[str, tuple[Sweep, Row]]:
    """Return the rows of the sweeps in a folder by the name of their run."""
    sweeps = [load_sweep(path) for path in sorted(folder.glob('*.yaml'))]
    return {row.run: (sweep, row) for sweep in sweeps for row in sweep.rows}


def jobs_of(path: Path, gpus: int, folder: Path, options: dict) -> list[Job]:
    run = f'nano_{path.stem}' if path.parent.name == 'nano' else path.stem
    sweep, row = rows_of(path.parent)[run]
    output = str(folder / 'out')
    flags = {'seeds': [1], 'data': str(folder), 'output': output, 'gpus': gpus}
    return plan(only_rows(sweep, [row.name]), options=options, **flags)


def calls_of(path: Path, words: list[object], folder: Path, options: dict) -> list[list[str]]:
    """Run a script with stand-ins for Python and torchrun, and return the words of their calls."""
    programs = folder / 'clone/.venv/bin'
    programs.mkdir(parents=True)
    (folder / 'clone/scripts').symlink_to(ROOT / 'scripts')
    for name in ('python', 'torchrun'):
        (programs / name).write_text(STAND_IN)
        (programs / name).chmod(0o755)
    calls = folder / 'calls'
    given = {'SEED': '1', 'CALLS': str(calls)}
    given |= {'PRETRAIN_OPTS': ' '.join(options.get('simmim', []))}
    given |= {'FINETUNE_OPTS': ' '.join(options.get('finetune', []))}
    script = folder / 'clone' / path.relative_to(ROOT)
    command = ['bash', str(script), *map(str, words)]
    subprocess.run(command, check=True, env=os.environ | given, cwd=folder)
    return [call.split('\n') for call in calls.read_text().removesuffix('\n\n').split('\n\n')]


def check_commands(path: Path, gpus: int, folder: Path, options: dict) -> None:
    """Compare the calls of a script with the plan of its row."""
    is_nano = path.parent.name == 'nano'
    jobs = jobs_of(path, gpus, folder, options)
    jobs[0].folder.mkdir(parents=True)
    last = jobs[0].config.TRAIN.EPOCHS - 1
    for name in (9, last, f'{last}_step_5'):  # 9 is the last by the alphabet
        (jobs[0].folder / f'ckpt_epoch_{name}.pth').touch()
    calls = calls_of(path, ['.', 'out'] if is_nano else ['.', 'out', gpus], folder, options)
    launcher = ['torchrun', '--standalone', '--nproc_per_node', str(gpus)]
    for call, job in zip(calls, jobs, strict=True):
        before, words = call[: call.index('--cfg')], call[call.index('--cfg') :]
        assert before == [*(['python'] if is_nano else launcher), job.arguments[0]]
        words[1] = str(ROOT / words[1])
        assert words[1] == job.arguments[2]
        config = get_config(build_parser(job.stage).parse_args(words))
        # Data, output, tag, seed and the checkpoint to start from are in it.
        assert config_text(config) == config_text(job.config)


@pytest.mark.parametrize('path', SCRIPTS, ids=name_of)
def test_the_commands_of_a_script_are_those_of_its_row(path: Path, tmp_path: Path) -> None:
    for gpus in [1] if path.parent.name == 'nano' else [1, 4]:
        check_commands(path, gpus, tmp_path / str(gpus), {})


def test_options_of_the_environment_follow_those_of_the_row(tmp_path: Path) -> None:
    for name, gpus in (('views_all_in_both', 2), ('nano/views_all_in_both', 1)):
        check_commands(FOLDER / f'{name}.sh', gpus, tmp_path / str(gpus), OPTIONS)


@pytest.mark.parametrize('path', SCRIPTS, ids=name_of)
def test_a_script_shows_its_usage_for_other_arguments(path: Path, tmp_path: Path) -> None:
    text = path.read_text()
    named = [ROOT / name for name in re.findall(r'^#   bash (\S+) DATA OUTPUT', text, re.M)]
    assert named[0] == path and all(file.is_file() for file in named)
    assert [file.parent for file in named] == [FOLDER, FOLDER / 'nano'][path.parent != FOLDER :]
    for words in ([tmp_path], [tmp_path, 'out', 'full'], [tmp_path, 'out', 'nano', 8]):
        done = subprocess.run(
            ['bash', path, *map(str, words)], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 2 and f'/{path.name} DATA OUTPUT' in done.stderr
    assert not [*tmp_path.iterdir()]
