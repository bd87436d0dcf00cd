"""The commands in README, docs, YAML files and scripts name existing files and parse."""

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from page_commands import PAGES, commands_in, parse, python_blocks
from tiny import ROOT, load_script
from torch.distributed.run import get_args_parser

from config import default_config, get_config, value_at

DESIGNS = [
    name for name in PAGES if name.startswith('docs/studies/') or name.endswith('/design.md')
]
PROGRAMS = sorted([*ROOT.glob('scripts/*.py'), *ROOT.glob('tools/*.py')])
BLOCK = re.compile(r'^```bash\n(.*?)^```', re.M | re.S)


def opening(path: Path) -> str:
    """Return the comment that a file begins with; of Python files, the docstring."""
    text = path.read_text()
    if path.suffix == '.py':
        return ast.get_docstring(ast.parse(text)) or ''
    lines = text.split('\n')
    end = next(i for i, line in enumerate(lines) if not line.startswith('#'))
    return '\n'.join(line.lstrip('#!').strip() for line in lines[:end])


def commands_on(page: str) -> list[str]:
    """Return the commands of a page, from blocks and from inside sentences."""
    sentences = re.sub(r'^```.*?^```', '', page, flags=re.M | re.S)
    inline = [' '.join(code.split()) for code in re.findall(r'`([^`]+)`', sentences)]
    return commands_in('\n'.join([*BLOCK.findall(page), *inline]))


def all_commands() -> list[tuple[str, str]]:
    """Return (file, command) for pages, scripts, and one YAML file per folder."""
    paths = [
        *ROOT.glob('main_*.py'),
        *PROGRAMS,
        *ROOT.glob('scripts/*.sh'),
        *ROOT.glob('tools/*.sh'),
    ]
    paths += [min(folder.glob('*.yaml')) for folder in sorted(ROOT.glob('configs/*__*'))]
    found = {name: commands_on(page) for name, page in PAGES.items()}
    found |= {str(path.relative_to(ROOT)): commands_in(opening(path)) for path in sorted(paths)}
    return [(name, command) for name, commands in found.items() for command in commands]


@pytest.mark.parametrize(('source', 'command'), all_commands())
def test_command_parses(source, command, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    launcher, path, *words = shlex.split(command)
    if launcher == 'python' and path.startswith('-'):  # a script that is copied elsewhere
        assert Path('scripts', words[0]).is_file()
        return
    while launcher == 'sbatch':  # its options, a script, and what that script starts
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
        return
    args = parse(path, words, monkeypatch)
    if getattr(args, 'cfg', None) not in (None, 'configs/...', 'CFG', 'RUN/config.yaml'):
        assert Path(args.cfg).is_file()
        if path.startswith('main_'):
            get_config(args)


def test_the_first_page_is_short_and_no_command_is_wider_than_it() -> None:
    page = PAGES['README.md']
    assert len(page.splitlines()) <= 110 and len(page.split()) <= 850
    blocks = re.findall(r'^```\w*\n(.*?)^```', page, re.M | re.S)
    assert len(blocks) > 3
    assert [line for block in blocks for line in block.splitlines() if len(line) > 100] == []


@pytest.mark.parametrize('name', DESIGNS)
def test_the_first_page_says_what_the_design_of_a_study_promised_of_it(name) -> None:
    """A design that promises a sentence names it in a comment, once its outcome has come."""
    page, first_page = PAGES[name], ' '.join(PAGES['README.md'].split())
    promised = re.findall(r'<!-- README says: (.+?) -->', page)
    assert [sentence for sentence in promised if sentence not in first_page] == []
    promises = re.search(r'README (and this page )?says? so', page)
    assert promised or not promises or 'The runs are not finished.' in page


def test_the_first_page_s_python_runs_in_the_clone() -> None:
    """It also runs with the wheel alone: tests/scripts/test_console.py."""
    (block,) = python_blocks('README.md')
    code = f'{block}\nassert features.shape == (1, 96)'
    subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True)


@pytest.mark.parametrize('path', PROGRAMS, ids=lambda path: path.name)
def test_importing_a_script_runs_nothing(path, monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', [path.name, '--no-such-flag'])
    load_script(path)
    assert capsys.readouterr() == ('', '')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('name', PAGES)
def test_options_and_config_folders_exist(name) -> None:
    page, config = PAGES[name], default_config()
    sections = '|'.join(key for key, value in config.items() if isinstance(value, dict))
    if name != 'docs/reference/config.md':  # lists the keys of earlier versions, too
        for key in set(re.findall(rf'`((?:{sections})\.[A-Z_.]+)\b', page)):
            value_at(config, key)
    for folder in re.findall(r'\bconfigs/(\w+)', page):
        assert (ROOT / 'configs' / folder).is_dir()


def test_every_difference_names_existing_tests() -> None:
    tests = yaml.safe_load((ROOT / 'tests/differences.yaml').read_text(encoding='utf-8'))
    rows = re.findall(r'^\| ([^|]+) \|', PAGES['docs/explanation/differences.md'], re.M)
    assert rows[1:] == [*tests], 'apart from the rule below the heading, both have the same rows'
    named = [test.split('::') for row in tests.values() for test in row]
    assert len(named) > 20
    for file, name in named:
        text = (ROOT / 'tests' / file).read_text()
        assert re.search(rf'^def {name}\(', text, re.M), f'{file}::{name}'
