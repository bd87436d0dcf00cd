"""The documentation: links lead somewhere, the generated page is up to date, the site builds."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from markdown.extensions.toc import slugify
from test_readme import load_script
from tiny import ROOT

from config import _flatten, default_config

DOCS = ROOT / 'docs'
REFERENCE = load_script(ROOT / 'scripts/config_reference.py')
PAGES = [ROOT / 'README.md', *sorted(DOCS.rglob('*.md'))]
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]
FENCED = re.compile(r'^```.*?^```', re.M | re.S)
LINK = re.compile(r'\]\(([^)\s]+)\)')


def prose(path: Path) -> str:
    return FENCED.sub('', path.read_text(encoding='utf-8'))


def anchors(path: Path) -> set[str]:
    """Of a page's headings, as MkDocs (and, for these headings, GitHub) makes them."""
    headings = re.findall(r'^#+ +(.*)$', prose(path), re.M)
    return {slugify(heading.replace('`', ''), '-') for heading in headings}


def broken_links(path: Path) -> list[str]:
    """Relative links whose file or heading is not there."""
    broken = []
    for link in LINK.findall(prose(path)):
        if re.match(r'https?:', link):
            continue
        file, _, anchor = link.partition('#')
        target = (path.parent / file).resolve() if file else path
        if not target.is_file() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


@pytest.mark.parametrize('path', PAGES, ids=NAMES)
def test_links_lead_to_files_and_headings(path) -> None:
    assert broken_links(path) == []


def test_a_link_to_no_file_or_no_heading_is_broken(tmp_path) -> None:
    page = tmp_path / 'page.md'
    page.write_text('# A `b`\n[1](#a-b) [2](#c) [3](no.md) [4](page.md#a-b) [5](page.md#d)\n')
    assert broken_links(page) == ['#c', 'no.md', 'page.md#d']


def test_there_are_links_to_check() -> None:
    assert len(PAGES) > 25
    assert sum(len(LINK.findall(prose(path))) for path in PAGES) > 80


def pages_in(entry: object) -> list[str]:
    """The files below a part of the navigation."""
    if isinstance(entry, str):
        return [entry]
    values = entry if isinstance(entry, list) else entry.values()
    return [page for value in values for page in pages_in(value)]


def test_every_page_stands_once_in_the_navigation() -> None:
    settings = yaml.safe_load((ROOT / 'mkdocs.yml').read_text(encoding='utf-8'))
    listed = pages_in(settings['nav'])
    assert sorted(listed) == sorted(str(path.relative_to(DOCS)) for path in PAGES[1:])


def test_the_page_of_options_is_that_of_the_config() -> None:
    page = (DOCS / 'reference' / 'config.md').read_text(encoding='utf-8')
    assert page == REFERENCE.page(), 'run python scripts/config_reference.py'


def test_options_are_read_with_default_and_comment() -> None:
    options = {o.key: o for o in REFERENCE.all_options()}
    assert set(options) == set(dict(_flatten(default_config())))
    ratio, policy = options['DATA.MASK_RATIO'], options['DATA.UNCERTAIN_BY_LABEL']
    assert (ratio.default, ratio.is_new) == (0.6, False)
    assert ratio.meaning == 'Share of the masking units that is hidden, in (0, 1).'
    assert (policy.default, policy.is_new) == ({}, True)
    assert not policy.meaning.startswith('[CheXpert]')
    with pytest.raises(ValueError, match=r'DATA\.MASK_RATIO has no comment'):
        REFERENCE.read_options('DATA = CN()\nDATA.MASK_RATIO = 0.6\n')


@pytest.mark.slow
def test_the_site_builds_without_warnings_and_loads_nothing_from_elsewhere(tmp_path) -> None:
    site = tmp_path / 'site'
    done = subprocess.run(
        [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--site-dir', str(site)],
        cwd=ROOT,
        env=os.environ | {'NO_MKDOCS_2_WARNING': '1'},
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0 and 'WARNING' not in said and 'ERROR' not in said, said
    for path in PAGES[1:]:
        page = site / path.relative_to(DOCS).with_suffix('.html')
        html = page.read_text(encoding='utf-8')
        assert '<h1' in html, page
        assert re.findall(r'<(?:script|img|iframe)[^>]+src="(?:https?:)?//', html) == [], page
        loaded = re.findall(r'<link[^>]+href="(?:https?:)?//[^>]*>', html)
        assert [link for link in loaded if 'canonical' not in link] == [], page
