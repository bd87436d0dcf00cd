"""The console commands of pyproject.toml become the Python programs."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from sysconfig import get_path

import pytest

from scripts.console import program_of
from system.tool import command_of

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = tomllib.loads((ROOT / 'pyproject.toml').read_text(encoding='utf-8'))


@pytest.mark.parametrize('command', SETTINGS['project']['scripts'])
def test_every_command_has_a_program(command: str) -> None:
    program = program_of(f'/usr/bin/{command}')
    assert program.is_file() and "if __name__ == '__main__':" in program.read_text()


@pytest.mark.parametrize('program', ['main_finetune.py', 'scripts/check_data.py'])
def test_a_wheel_calls_a_program_by_its_command(program: str, tmp_path: Path) -> None:
    assert command_of(program) == f'python {program}'
    command = command_of(program, root=tmp_path)
    assert command in SETTINGS['project']['scripts']
    assert program_of(command) == ROOT / program


@pytest.mark.slow
def test_the_wheel_trains_in_an_empty_folder(phantom: Path, tmp_path: Path) -> None:
    """A fresh environment has the wheel, and takes the requirements from the one of the tests."""
    pip = [sys.executable, '-m', 'pip', '--disable-pip-version-check', '-q']
    others = ('.*', 'build', 'docs', 'output', 'tests', '*.egg-info')
    source = shutil.copytree(ROOT, tmp_path / 'source', ignore=shutil.ignore_patterns(*others))
    built = subprocess.run(
        [*pip, 'wheel', '--no-deps', '-w', tmp_path, source], capture_output=True, text=True
    )
    if built.returncode and 'setuptools' in built.stderr:
        pytest.skip('the build needs setuptools from the package index')
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob('*.whl')
    venv, empty = tmp_path / 'venv', tmp_path / 'empty'
    empty.mkdir()
    subprocess.run([sys.executable, '-m', 'venv', venv], check=True)
    subprocess.run([venv / 'bin/pip', '-q', 'install', '--no-deps', wheel], check=True)
    (site,) = venv.glob('lib/python*/site-packages')
    (site / 'requirements.pth').write_text(get_path('purelib') + '\n')
    assert not any((site / name).exists() for name in ('data', 'utils.py', 'models'))
    tiny = ['TRAIN.EPOCHS', '1', 'TRAIN.WARMUP_EPOCHS', '0', 'DATA.NUM_WORKERS', '0']
    tiny += ['DATA.BATCH_SIZE', '8', 'DATA.HOLDOUT_FRACTION', '0.2']
    pair = 'configs/swin_nano__demo/simmim_{}__swin_nano__img64_window4__demo.yaml'
    for stage, options, next_command in (
        ('pretrain', [], 'simmim-finetune --cfg CONFIG'),
        ('finetune', ['DATA.TRAIN_FRACTION', '1.0', 'EVAL.RESAMPLES', '0'], 'simmim-predict'),
    ):
        command = [venv / 'bin' / f'simmim-{stage}', '--cfg', pair.format(stage)]
        command += ['--data-path', phantom, '--opts', *tiny, *options]
        done = subprocess.run(command, cwd=empty, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert next_command in ' '.join(done.stdout.split())
    assert [*empty.rglob('report.html')] and [*empty.rglob('ckpt_epoch_0.pth')]


def test_arguments_and_the_exit_code_are_those_of_the_program(tmp_path) -> None:
    """The command is as pip writes it, and runs in another folder."""
    command = tmp_path / 'simmim-check-data'
    command.write_text('from scripts.console import main\nmain()\n')
    words = [sys.executable, str(command), '--data-path', 'no such folder']
    environment = os.environ | {'PYTHONPATH': str(ROOT)}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and 'no such folder' in done.stderr
    assert done.stderr.startswith('error: ')
