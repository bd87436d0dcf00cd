"""The pages, the commands in them, and how the program that they start parses their words."""

import argparse
import re
import sys
from pathlib import Path

import pytest
from tiny import ROOT, load_script

from config import build_parser

FIRST_PAGES = ['README.md', 'CONTRIBUTING.md', 'environments/README.md']
FIRST_PAGES += ['examples/README.md', 'examples/weights/README.md']
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding='utf-8')
    for path in [*(ROOT / name for name in FIRST_PAGES), *sorted(ROOT.glob('docs/**/*.md'))]
}
SETTINGS = r"(?:[A-Z_]+=(?:'[^']*'|\S+) )*"
COMMAND = re.compile(rf'^{SETTINGS}((?:bash|python|torchrun|sbatch) .*\.(?:sh|py|sbatch)\b.*)')
OPTIONAL = re.compile(r' \[((?:--|[A-Z])[^]]*)\]')


def commands_in(text: str) -> list[str]:
    """Return the command lines: continued lines joined, remarks removed, options included."""
    lines = re.sub(r'\s*\\\n\s*', ' ', text).split('\n')
    found = [match[1] for line in lines if (match := COMMAND.match(line.strip()))]
    bare = [re.split(r'  | #| \(', command)[0].rstrip() for command in found]
    return [OPTIONAL.sub(lambda m: '' if '...' in m[1] else f' {m[1]}', line) for line in bare]


def python_blocks(page: str) -> list[str]:
    """Return the blocks of Python code of a page."""
    return re.findall(r'^```python\n(.*?)^```', PAGES[page], re.M | re.S)


def parse(path: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    if stage := re.fullmatch(r'main_(\w+)\.py', path):
        return build_parser(stage[1]).parse_args(words)
    monkeypatch.setattr(sys, 'argv', [path, *words])
    return load_script(Path(path).resolve()).parse_args()
