"""Console commands: `simmim-check-data ARGUMENTS` runs `python scripts/check_data.py ARGUMENTS`.

`pip install` of the wheel or of the repository makes the commands that pyproject.toml lists. The
process of a command becomes the Python program, so that arguments, signals and exit codes are the
program's.
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MAINS = {'pretrain': 'simmim', 'finetune': 'finetune', 'contrastive': 'contrastive'}


def program_of(command: str) -> Path:
    """Return the program of a command, such as scripts/check_data.py of simmim-check-data."""
    name = Path(command).name.removeprefix('simmim-')
    if name in MAINS:
        return ROOT / f'main_{MAINS[name]}.py'
    return ROOT / 'scripts' / f'{name.replace("-", "_")}.py'


def main() -> None:
    program = program_of(sys.argv[0])
    if not program.is_file():
        sys.exit(f'error: there is no {program}')
    start = [str(program)]
    if not (ROOT / 'pyproject.toml').is_file():
        # In a wheel it is a module of the package. -P: modules in the user's folder, such as a
        # data.py, replace no others.
        name = '.'.join(program.relative_to(ROOT.parent).with_suffix('').parts)
        start = ['-P', '-m', name]
    os.execv(sys.executable, [sys.executable, *start, *sys.argv[1:]])
