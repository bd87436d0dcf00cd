"""The extras of pyproject.toml: their lines, who names them, and what scripts/setup.sh installs."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from page_commands import PAGES
from tiny import ROOT

from tools.requirements import read_project, requirement_lines

EXTRAS = read_project()['optional-dependencies']
NAMED = re.compile(
    r"'\.\[([\w,]+)\]'|\bsimmim-xray\[([\w,]+)\]|^setup (\w+)|"
    r'python tools/requirements\.py (\w+)|extra_requirements: \[([\w, ]+)\]',
    re.M,
)
FILES = [
    *(ROOT / page for page in PAGES),
    *sorted(ROOT.glob('scripts/**/*.sh')),
    *sorted(ROOT.glob('environments/*')),
    *sorted(ROOT.glob('notebooks/*.ipynb')),
    *(ROOT / name for name in ('.ci/run', '.readthedocs.yaml', 'models/weights/export.py')),
    *(ROOT / name for name in ('CHANGELOG.md', 'pyproject.toml', 'tools/requirements.py')),
]
# Does what setup.sh asks for, but writes what pip would install to installed.txt.
PYTHON = f"""#!/bin/bash
case "$*" in
    '-m venv'*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
    '-m pip --version') ;;
    '-m pip install'*) cat "${{!#}}" >>installed.txt && echo call >>installed.txt ;;
    *) exec {sys.executable} "$@" ;;
esac
"""
OLD_PYTHON = f"""#!/bin/bash
exec {sys.executable} -c 'import sys; sys.version_info = (3, 10); exec(sys.stdin.read())'
"""


def test_every_extra_that_a_page_or_a_script_names_exists() -> None:
    named = {
        (extra.strip(), path.relative_to(ROOT))
        for path in FILES
        for groups in NAMED.findall(path.read_text(encoding='utf-8'))
        for extra in ''.join(groups).split(',')
    }
    assert [(extra, str(path)) for extra, path in named if extra not in EXTRAS] == []
    assert {'studies', 'export', 'dev'} <= {extra for extra, _ in named}


def test_the_lines_of_dev_are_those_of_all_extras_each_once() -> None:
    lines = requirement_lines(['dev'])
    assert set(lines) == {line for extra in EXTRAS for line in requirement_lines([extra])}
    assert all(re.fullmatch(r'[\w-]+>=[\d.]+(,<[\d.]+)?', line) for line in lines)
    names = [re.match(r'[\w-]+', line)[0] for line in lines]
    assert len(names) == len({*names}) and 'simmim-xray' not in names
    assert {'torch', 'opencv-python-headless', 'onnx', 'pydicom', 'pytest'} <= {*names}


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    for name in ('pyproject.toml', 'requirements.txt', 'scripts/setup.sh', 'tools/requirements.py'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    for name, text in (('python', PYTHON), ('old_python', OLD_PYTHON)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return tmp_path


def set_up(clone: Path, extra: str = '', *, python: str = 'python') -> str:
    """Return what setup.sh prints, and what it installed, in the end."""
    done = subprocess.run(
        ['bash', '-c', f'set -euo pipefail; . scripts/setup.sh; setup {extra}'],
        cwd=clone,
        env=os.environ | {'PYTHON': str(clone / python)},
        capture_output=True,
        text=True,
    )
    assert bool(done.returncode) == ('error: ' in done.stderr), done.stderr
    installed = clone / 'installed.txt'
    text = done.stdout + done.stderr + (installed.read_text() if installed.is_file() else '')
    installed.unlink(missing_ok=True)
    return text


def test_setup_installs_once_in_one_call_and_again_after_a_change_of_an_extra(clone) -> None:
    first = set_up(clone, 'studies')
    assert 'set-up: installing requirements.txt and the extra studies into .venv' in first
    assert first.count('call') == 1 and 'set-up: done in' in first
    assert {*requirement_lines(['studies'])} <= {*first.split('\n')}
    assert set_up(clone, 'studies') == 'set-up: .venv is up to date\n'

    project = clone / 'pyproject.toml'
    project.write_text(project.read_text().replace('line-length = 100', 'line-length = 99'))
    assert set_up(clone, 'studies') == 'set-up: .venv is up to date\n'
    project.write_text(project.read_text().replace('opencv-python-headless>=4.10', 'opencv>=5'))
    assert '\nopencv>=5\ncall\n' in set_up(clone, 'studies')


def test_setup_of_dev_covers_the_others(clone) -> None:
    assert 'pytest' in set_up(clone, 'dev')
    assert set_up(clone) == set_up(clone, 'export') == 'set-up: .venv is up to date\n'
    with (clone / 'requirements.txt').open('a') as file:
        file.write('one-more>=1\n')
    again = set_up(clone)
    assert 'set-up: installing requirements.txt into .venv' in again
    assert '\none-more>=1\ncall\n' in again and 'pytest' not in again


def test_setup_refuses_a_wrong_python_and_an_unknown_extra(clone) -> None:
    assert 'error: Python 3.11 to 3.14 is needed' in set_up(clone, python='old_python')
    assert not (clone / '.venv').exists()
    assert 'error: pyproject.toml has no extra study' in set_up(clone, 'study')
    assert 'done' not in set_up(clone, 'study')


def test_the_files_that_a_recipe_reads_from_the_root_exist() -> None:
    folder = ROOT / 'environments'
    recipes = {name: (folder / name).read_text() for name in ('Dockerfile', 'simmim.def')}
    copied = ' '.join(re.findall(r'^COPY (.+) \S+$', recipes['Dockerfile'], re.M)).split()
    listed = re.search(r'^%files\n(.+?)\n\n', recipes['simmim.def'], re.M | re.S)[1].split('\n')
    assert all(len(line.split()) == 2 for line in listed), 'Apptainer reads one source a line'
    copied += [line.split()[0] for line in listed]
    assert len(copied) == 9 and all((ROOT / name).exists() for name in copied)
    (pip,) = re.findall(r'- -r (\S+)', (folder / 'environment.yml').read_text())
    assert (folder / pip).resolve() == ROOT / 'requirements.txt'
