"""What README, YAML files and scripts tell the reader to type or open is there, and parses."""

import argparse
import ast
import importlib.util
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest
from torch.distributed.run import get_args_parser

from config import build_parser, default_config, get_config

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / 'README.md').read_text()
DIFFERENCES = re.search(r'^## Differences from SimMIM\n(.*?)^## ', README, re.M | re.S)[1]
SCRIPTS = sorted((ROOT / 'scripts').glob('*.py'))
COMMAND = re.compile(r'^(?:[A-Z]+=\S+ )*((?:bash|python|torchrun) .*\.(?:sh|py)\b.*)')
OPTIONAL = re.compile(r' \[((?:--|[A-Z])[^]]*)\]')


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


def readme_commands() -> list[str]:
    """Those of the blocks, and those inside sentences."""
    blocks = re.findall(r'^```bash\n(.*?)^```', README, re.M | re.S)
    sentences = re.sub(r'^```.*?^```', '', README, flags=re.M | re.S)
    inline = [' '.join(code.split()) for code in re.findall(r'`([^`]+)`', sentences)]
    return commands_in('\n'.join([*blocks, *inline]))


def sources() -> dict[str, list[str]]:
    """Commands by the file that has them."""
    patterns = ('main_*.py', 'scripts/*.py', 'scripts/*.sh', 'configs/*/*.yaml')
    paths = [path for pattern in patterns for path in sorted(ROOT.glob(pattern))]
    found = {str(path.relative_to(ROOT)): commands_in(opening(path)) for path in paths}
    return {'README.md': readme_commands()} | found


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
    if launcher == 'torchrun':
        launched = get_args_parser().parse_args([path, *words])
        path, words = launched.training_script, launched.training_script_args
    assert Path(path).is_file()
    if launcher == 'bash':
        text = Path(path).read_text()
        assert all(word in text for word in words if word.startswith('-'))
        assert not words or '$@' in text or (len(words) == 1 and '${1:-' in text)
        return
    args = parse(path, words, monkeypatch)
    if 'cfg' in args and args.cfg != 'configs/...':
        assert args.data_path is not None
        get_config(args)


def test_commands_are_found_where_they_are_written() -> None:
    found = sources()
    blocks = re.findall(r'^```bash\n(.*?)^```', README, re.M | re.S)
    starts = re.findall(r'^(?:bash|python|torchrun) ', '\n'.join(blocks), re.M)
    assert len(found['README.md']) > len(starts) >= 6
    without = {name for name, commands in found.items() if not commands}
    assert all(
        name.startswith('configs/base/')
        or name == 'scripts/setup.sh'
        or 'No command' in opening(ROOT / name)
        for name in without
    ), without


@pytest.mark.parametrize('path', SCRIPTS, ids=lambda path: path.name)
def test_importing_a_script_runs_nothing(path, monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', [path.name, '--no-such-flag'])
    load_script(path)
    assert capsys.readouterr() == ('', '')
    assert not list(tmp_path.iterdir())


def test_links_lead_to_files() -> None:
    links = re.findall(r'\]\(([^)#\s]+)', README)
    own = [link for link in links if not link.startswith('http')]
    assert own and [link for link in own if not (ROOT / link).is_file()] == []


def test_every_difference_names_tests_that_exist() -> None:
    rows = [line for line in DIFFERENCES.split('\n') if line.startswith('| ')][2:]
    assert len(rows) > 20
    for row in rows:
        tests = re.findall(r'`(test_\w+\.py)::(test_\w+)`', row.split(' | ')[-1])
        assert tests, row
        for file, name in tests:
            text = (ROOT / 'tests' / file).read_text()
            assert re.search(rf'^def {name}\(', text, re.M), f'{file}::{name}'


def test_config_folders_named_exist() -> None:
    named = re.findall(r'\bconfigs/(\w+)', README) + re.findall(r'^\| `(\w+__\w+)`', README, re.M)
    assert len(named) > 10
    assert [name for name in named if not (ROOT / 'configs' / name).is_dir()] == []


def test_options_named_exist() -> None:
    config = default_config()
    keys = set(re.findall(r'`((?:DATA|MODEL|TRAIN|AUG|TEST|EVAL|LOSS)\.[A-Z_.]+)', README))
    assert len(keys) > 10
    for key in keys:
        node = config
        for part in key.split('.'):
            assert part in node, key
            node = node[part]
