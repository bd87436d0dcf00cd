"""The documentation: links, files, options and examples exist, and the site builds."""

import re
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from markdown.extensions.toc import slugify
from mkdocs.commands.build import build
from mkdocs.config import load_config
from test_readme import ROOT

import config
from config import OPTIONS
from scripts.config_reference import options_page

DOCS = ROOT / 'docs'
SITE = sorted(DOCS.rglob('*.md'))
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *SITE]
FENCED = re.compile(r'^```.*?^```', re.M | re.S)
FOLDERS = 'configs|data|docs|engine|evaluation|models|notebooks|scripts|sweeps|tests'
FILE = re.compile(rf'`((?:{FOLDERS})/[\w./-]+)`')
LINK = re.compile(r'\]\(([^)\s]+)\)')


def prose(path: Path) -> str:
    return FENCED.sub('', path.read_text(encoding='utf-8'))


def anchors(path: Path) -> set[str]:
    headings = re.findall(r'^#+ +(.*)$', prose(path), re.M)
    return {slugify(heading.replace('`', ''), '-') for heading in headings}


def broken_links(path: Path) -> list[str]:
    """Return the relative links whose file or heading does not exist."""
    broken = []
    for link in LINK.findall(prose(path)):
        file, _, anchor = link.partition('#')
        target = (path.parent / file).resolve() if file else path
        is_there = target.is_file() and (not anchor or anchor in anchors(target))
        if not is_there and not re.match(r'https?:', link):
            broken.append(link)
    return broken


@pytest.mark.parametrize('path', PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(path) -> None:
    assert broken_links(path) == []


@pytest.mark.parametrize('path', PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_of_the_project_that_a_page_names_exist(path) -> None:
    assert [name for name in FILE.findall(prose(path)) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize(
    ('heading', 'module', 'registry'),
    [
        ('A mask type with a fixed ratio', 'data.masking', 'MASKS'),
        ('A head of two convolutions', 'models.simmim', 'HEADS'),
        ('A prediction target', 'models.simmim', 'TARGETS'),
        ('A head of the classifier', 'models.classifier_heads', 'CLASSIFIER_HEADS'),
        ('A label policy', 'data.labels', 'POLICIES'),
        ('A task', 'data.tasks', 'TASKS'),
        ('An optimizer', 'optimizer', 'OPTIMIZERS'),
        ('A schedule', 'lr_scheduler', 'SCHEDULES'),
        ('A logger', 'logger', 'WRITERS'),
        ('A metric', 'evaluation.metrics', 'METRICS'),
    ],
)
def test_examples_of_new_parts_register_a_part(heading, module, registry, monkeypatch) -> None:
    page = (DOCS / 'howto' / 'extend.md').read_text(encoding='utf-8')
    code = page.split(f'## {heading}\n')[1].split('```')[1].removeprefix('python\n')
    names = vars(import_module(module))
    if key := getattr(names[registry], 'key', None):  # its option declares the name
        name = re.search(r"register\w*\('(\w+)'", code)[1]
        declared = replace(OPTIONS[key], one_of=(*OPTIONS[key].one_of, name))
        monkeypatch.setitem(OPTIONS, key, declared)
    before = set(names[registry])
    exec(code, dict(names))
    [added] = set(names[registry]) - before
    del names[registry][added]


def pages_in(entry: object) -> list[str]:
    """Return the files of a part of the navigation."""
    if isinstance(entry, str):
        return [entry]
    values = entry if isinstance(entry, list) else entry.values()
    return [page for value in values for page in pages_in(value)]


def test_the_navigation_lists_every_page_once() -> None:
    settings = yaml.safe_load((ROOT / 'mkdocs.yml').read_text(encoding='utf-8'))
    listed = sorted(pages_in(settings['nav']))
    assert listed == sorted(str(path.relative_to(DOCS)) for path in SITE)


def test_options_of_parts_are_on_the_page(monkeypatch) -> None:
    monkeypatch.setattr(config, 'OPTIONS', dict(OPTIONS))
    monkeypatch.setattr(config, '_DEFAULTS', config.default_config())
    monkeypatch.setattr('scripts.config_reference.OPTIONS', config.OPTIONS)
    option = config.Own(4, 'Side of a token, in pixels.', within='[1, inf)')
    config.add_options('MODEL.CONVNEXT', {'PATCH_SIZE': option})
    assert '## `MODEL.CONVNEXT`' in options_page()
    row = '| `MODEL.CONVNEXT.PATCH_SIZE` **own** | `4` | `[1, inf)` | Side of a token, in pixels. |'
    assert row in options_page().splitlines()
    options = config.default_config()
    config.check_config(options)
    options.merge_from_list(['MODEL.CONVNEXT.PATCH_SIZE', 0])
    with pytest.raises(ValueError, match='MODEL.CONVNEXT.PATCH_SIZE'):
        config.check_config(options)


def test_the_page_of_options_lists_every_key() -> None:
    written = (DOCS / 'reference' / 'config.md').read_text(encoding='utf-8')
    keys = [re.findall(r'^\| `([A-Z_.]+)`', page, re.M) for page in (written, options_page())]
    assert keys[0] == keys[1], 'run python scripts/config_reference.py'
    assert len(keys[0]) > 150


@pytest.mark.slow
def test_the_site_builds_without_warnings(tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setenv('NO_MKDOCS_2_WARNING', '1')
    settings = load_config(str(ROOT / 'mkdocs.yml'), site_dir=str(tmp_path / 'site'))
    build(settings)
    assert [record for record in caplog.records if record.levelname in ('WARNING', 'ERROR')] == []
    assert (tmp_path / 'site' / 'index.html').is_file()
