"""The console commands of pyproject.toml become the Python programs."""

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from scripts.console import program_of

ROOT = Path(__file__).resolve().parents[1]
tomllib = pytest.importorskip('tomllib', reason='new in Python 3.11')
SETTINGS = tomllib.loads((ROOT / 'pyproject.toml').read_text(encoding='utf-8'))


@pytest.mark.parametrize('command, entry', SETTINGS['project']['scripts'].items())
def test_every_command_has_an_entry_point_and_a_program(command, entry) -> None:
    module, _, function = entry.partition(':')
    package, _, rest = module.partition('.')
    folder = SETTINGS['tool']['setuptools']['package-dir'][package]
    assert callable(getattr(import_module(f'{folder}.{rest}'), function))
    program = program_of(f'/usr/bin/{command}')
    assert program.is_file() and "if __name__ == '__main__':" in program.read_text()


def test_only_one_package_can_be_imported() -> None:
    """Other projects in the environment keep names such as data and utils."""
    tools = SETTINGS['tool']['setuptools']
    assert tools['packages'] == [*tools['package-dir']] == ['simmim_scripts']
    assert 'py-modules' not in tools


def run(tmp_path: Path, name: str, *words: str) -> subprocess.CompletedProcess:
    """Run a command as pip writes it, from another folder."""
    command = tmp_path / name
    command.write_text('from scripts.console import main\nmain()\n')
    environment = os.environ | {'PYTHONPATH': str(ROOT)}
    words = [sys.executable, str(command), *words]
    return subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)


def test_arguments_and_the_exit_code_are_those_of_the_program(tmp_path) -> None:
    done = run(tmp_path, 'simmim-check-data', '--data-path', 'no such folder')
    assert done.returncode == 2 and 'no such folder' in done.stderr
    assert done.stderr.startswith('error: ')


def test_a_command_without_a_program_is_named(tmp_path) -> None:
    done = run(tmp_path, 'simmim-dream')
    assert done.returncode == 1 and 'dream.py' in done.stderr
