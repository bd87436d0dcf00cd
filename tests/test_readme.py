"""What README, docs, YAML files and scripts tell the reader to type is there, and parses."""

import argparse
import ast
import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from torch.distributed.run import get_args_parser

from config import build_parser, default_config, get_config

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding='utf-8')
    for path in [ROOT / 'README.md', *sorted((ROOT / 'docs').rglob('*.md'))]
}
DIFFERENCES = PAGES['docs/explanation/differences.md']
SCRIPTS = sorted((ROOT / 'scripts').glob('*.py'))
BLOCK = re.compile(r'^```bash\n(.*?)^```', re.M | re.S)
SETTINGS = r"(?:[A-Z_]+=(?:'[^']*'|\S+) )*"
COMMAND = re.compile(rf'^{SETTINGS}((?:bash|python|torchrun|sbatch) .*\.(?:sh|py|sbatch)\b.*)')
OPTIONAL = re.compile(r' \[((?:--|[A-Z])[^]]*)\]')
# Programs that are not the project's, in ```bash blocks: their lines are parsed by the shell alone.
OTHERS = ('source', 'unzip', 'mkdocs', 'pytest', 'python3', '.venv/bin/pip')


def opening(path: Path) -> str:
    """The comment that a file begins with; of Python, the docstring."""
    text = path.read_text()
    if path.suffix == '.py':
        return ast.get_docstring(ast.parse(text))
    lines = text.split('\n')
    end = next(i for i, line in enumerate(lines) if not line.startswith('#'))
    return '\n'.join(line.lstrip('#!').strip() for line in lines[:end])


def commands_in(text: str) -> list[str]:
    """Its lines that are commands: continued ones joined, remarks left out, options put in."""
    lines = re.sub(r'\s*\\\n\s*', ' ', text).split('\n')
    found = [match[1] for line in lines if (match := COMMAND.match(line.strip()))]
    bare = [re.split(r'  | #| \(', command)[0].rstrip() for command in found]
    return [OPTIONAL.sub(lambda m: '' if '...' in m[1] else f' {m[1]}', line) for line in bare]


def commands_on(page: str) -> list[str]:
    """Those of the blocks, and those inside sentences."""
    sentences = re.sub(r'^```.*?^```', '', page, flags=re.M | re.S)
    inline = [' '.join(code.split()) for code in re.findall(r'`([^`]+)`', sentences)]
    return commands_in('\n'.join([*BLOCK.findall(page), *inline]))


def sources() -> dict[str, list[str]]:
    """Commands by the file that has them."""
    patterns = (
        *('main_*.py', 'scripts/*.py', 'scripts/*.sh', 'configs/*/*.yaml'),
        *('scripts/ablations/*.sh', 'scripts/ablations/nano/*.sh'),
    )
    paths = [path for pattern in patterns for path in sorted(ROOT.glob(pattern))]
    found = {str(path.relative_to(ROOT)): commands_in(opening(path)) for path in paths}
    return {name: commands_on(page) for name, page in PAGES.items()} | found


CASES = [(name, command) for name, commands in sources().items() for command in commands]


def load_script(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f'script_{path.stem}', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parse(path: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """What the program's own parser makes of the words."""
    if stage := re.fullmatch(r'main_(\w+)\.py', path):
        return build_parser(stage[1]).parse_args(words)
    monkeypatch.setattr(sys, 'argv', [path, *words])
    return load_script(Path(path)).parse_args()


@pytest.mark.parametrize(('source', 'command'), CASES)
def test_command_parses(source, command, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    launcher, path, *words = shlex.split(command)
    while launcher == 'sbatch':  # its options, a script, and what that starts
        launcher = 'sbatch' if path.startswith('--') else 'python'
        assert launcher == 'sbatch' or (Path(path).is_file() and path.endswith('.sbatch'))
        path, *words = words
    if launcher == 'torchrun':
        launched = get_args_parser().parse_args([path, *words])
        path, words = launched.training_script, launched.training_script_args
    assert Path(path).is_file()
    if launcher == 'bash':
        text = Path(path).read_text()
        assert all(word in text for word in words if word.startswith('-'))
        taken = [int(number) for number in re.findall(r'\$\{?([1-9])', text)]
        assert '$@' in text or len(words) <= max(taken, default=0)
        return
    args = parse(path, words, monkeypatch)
    if 'cfg' in args and args.cfg != 'configs/...':
        assert Path(args.cfg).is_file()
        if path.startswith('main_'):
            assert args.data_path is not None
            get_config(args)


def test_commands_are_found_where_they_are_written() -> None:
    found = sources()
    starts = re.findall(
        r'^(?:bash|python|torchrun) ', '\n'.join(BLOCK.findall(PAGES['README.md'])), re.M
    )
    assert len(found['README.md']) > len(starts) >= 6
    found = {name: commands for name, commands in found.items() if not name.endswith('.md')}
    without = {name for name, commands in found.items() if not commands}
    assert all(
        name.startswith('configs/base/')
        or name == 'scripts/setup.sh'
        or 'No command' in opening(ROOT / name)
        for name in without
    ), without


@pytest.mark.parametrize('name', PAGES)
def test_every_line_of_a_block_is_a_command(name) -> None:
    for block in BLOCK.findall(PAGES[name]):
        subprocess.run(['bash', '-n'], input=block, text=True, check=True)
        for line in re.sub(r'\s*\\\n\s*', ' ', block).splitlines():
            words = line.split()
            assert not words or COMMAND.match(line) or words[0] in OTHERS, line
            own = [word for word in words if re.match(r'(?:scripts|tests|configs|docs)/', word)]
            assert [word for word in own if not (ROOT / word).exists()] == [], line


@pytest.mark.parametrize('path', SCRIPTS, ids=lambda path: path.name)
def test_importing_a_script_runs_nothing(path, monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', [path.name, '--no-such-flag'])
    load_script(path)
    assert capsys.readouterr() == ('', '')
    assert not list(tmp_path.iterdir())


def rows_of(table: str) -> dict[str, str]:
    """First cell -> the others, of a Markdown table."""
    rows = [line.strip('| ').split(' | ', 1) for line in table.splitlines() if '|' in line]
    return dict(rows[2:])


def test_every_difference_names_tests_that_exist() -> None:
    differences, tests = map(rows_of, DIFFERENCES.split('\n## Tests\n'))
    assert list(differences) == list(tests) and len(tests) > 20
    for row in tests.values():
        named = re.findall(r'`(test_\w+\.py)::(test_\w+)`', row)
        assert named, row
        for file, name in named:
            text = (ROOT / 'tests' / file).read_text()
            assert re.search(rf'^def {name}\(', text, re.M), f'{file}::{name}'


def test_config_folders_named_exist() -> None:
    text = '\n'.join(PAGES.values())
    named = re.findall(r'\bconfigs/(\w+)', text) + re.findall(r'^\| `(\w+__\w+)`', text, re.M)
    assert len(named) > 20
    assert [name for name in named if not (ROOT / 'configs' / name).is_dir()] == []


@pytest.mark.parametrize('name', PAGES)
def test_options_named_exist(name) -> None:
    sections = '|'.join(key for key, value in default_config().items() if isinstance(value, dict))
    for key in set(re.findall(rf'`((?:{sections})\.[A-Z_.]+)\b', PAGES[name])):
        node = default_config()
        for part in key.split('.'):
            assert part in node, key
            node = node[part]
