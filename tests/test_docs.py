"""The documentation: links lead to files and headings, every option is listed, the site builds."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from markdown.extensions.toc import slugify
from test_readme import ROOT

from scripts.config_reference import options_page

DOCS = ROOT / 'docs'
PAGES = [ROOT / 'README.md', *sorted(DOCS.rglob('*.md'))]
FENCED = re.compile(r'^```.*?^```', re.M | re.S)
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


def test_a_link_to_a_missing_file_or_heading_is_found(tmp_path) -> None:
    page = tmp_path / 'page.md'
    page.write_text('# A `b`\n[1](#a-b) [2](#c) [3](no.md) [4](page.md#a-b) [5](page.md#d)\n')
    assert broken_links(page) == ['#c', 'no.md', 'page.md#d']


def pages_in(entry: object) -> list[str]:
    """Return the files of a part of the navigation."""
    if isinstance(entry, str):
        return [entry]
    values = entry if isinstance(entry, list) else entry.values()
    return [page for value in values for page in pages_in(value)]


def test_the_navigation_lists_every_page_once() -> None:
    settings = yaml.safe_load((ROOT / 'mkdocs.yml').read_text(encoding='utf-8'))
    listed = sorted(pages_in(settings['nav']))
    assert listed == sorted(str(path.relative_to(DOCS)) for path in PAGES[1:])


def test_the_page_of_options_lists_every_key() -> None:
    written = (DOCS / 'reference' / 'config.md').read_text(encoding='utf-8')
    keys = [re.findall(r'^\| `([A-Z_.]+)`', page, re.M) for page in (written, options_page())]
    assert keys[0] == keys[1], 'run python scripts/config_reference.py'
    assert len(keys[0]) > 150


@pytest.mark.slow
def test_the_site_builds_without_warnings(tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--site-dir', str(tmp_path / 'site')],
        cwd=ROOT,
        env=os.environ | {'NO_MKDOCS_2_WARNING': '1'},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
