"""Reports of hostile CSV files, names and options in a real browser: text stays text."""

import csv
import json
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from mistakes import edit, linked
from report_example import example_report
from test_report_browser import DESKTOP, OPEN_ALL, PHONE, Browser, started
from tiny import ROOT, arguments, run_main, tiny_config

from data.labels import LABELS
from evaluation.charts import CODES
from evaluation.report import write_report

pytestmark = pytest.mark.slow
RIGHT_TO_LEFT = '\u05e9\u05dc\u05d5\u05dd 12'
# No '/' in them: they can be a part of a path, and the name of a file.
PARTS = {
    'script': '<script>window.hacked=1;alert(1)<!--',
    'image': '<img src=x onerror=window.hacked=2>',
    'attribute': '" onmouseover="window.hacked=3" x=\'',
    'link': 'javascript:window.hacked=4',
    'anchor': '<a href=javascript:window.hacked=5>click',
    'svg': '<svg onload=window.hacked=6>',
    'frame': '<iframe srcdoc="<script>parent.hacked=7">',
    'refresh': '<meta http-equiv=refresh content="0;url=data:,x">',
    'import': '<link rel=stylesheet href=data:text.css>@import "x";',
    'style': '<style>*{display:none!important}',
    'form': '<form action=javascript:alert(8)><button>go',
    'base': '<base href=data:x>',
    'comment': '<!-- --!> ]]> <![CDATA[',
    'template': '{{ 7 * 7 }}{% raw %}${7*7}',
    'entity': '&lt;script&gt;&#60;b&#62;&amp;',
    'formula': '=HYPERLINK("data:x","click")',
    'plus': "+cmd|' C'!A0",
    'minus': '-2+3',
    'at': '@SUM(1+1)',
    'tab': '\t=1',
    'override': '\u202egnp.exe \u202dx',
    'isolate': '\u2066\u2067\u2068x\u2069',
    'marks': 'a\u200e\u200f\u061cb',
    'hebrew': RIGHT_TO_LEFT,
    'zero width': 'Fe\u200bma\u200cl\u200de\u2060\ufeff\u00ad',
    'controls': 'a\x01\x08\x0b\x1b[31mb\x7f\x85',
    'lines': 'one\ntwo\u2028three',
    'full width': '\uff1dHYPERLINK(1)',
    'tags': 'flag\U000e0041\U000e007f',
    'long': 'W' * 200,
}
CLOSING = '</style></script></title></table></div><h1>Hello</h1>'  # where a '/' can be
NOT_IN_A_PATH = {'long', 'tab', 'controls', 'lines'}  # such are refused
UNSEEN = (
    '\0\x1b\x7f\x85\u00ad\u061c\u200b\u200d\u200e\u200f\u2028\u202e\u2060\u2066\ufeff\U000e0041'
)
COLUMNS = (PARTS['image'], PARTS['override'], PARTS['formula'], PARTS['link'])


class Hostile(NamedTuple):
    """A page, and what is to be read on it."""

    page: Path
    texts: list[str]


def shown(text: str) -> str:
    """As the page has it."""
    return text.translate(CODES)


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    with path.open('w', encoding='utf-8', newline='') as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def score_hostile_files(folder: Path) -> Hostile:
    """The page of scripts/evaluate.py: each hostile text is a path, a group and part of a file."""
    rng, texts = np.random.default_rng(0), [*PARTS.values(), CLOSING]
    paths = [f'{text}/patient{i:05d}/study1/{text}.jpg' for i, text in enumerate(texts)]
    labels, groups = [], []
    tables = [[], []]
    for i, path in enumerate(paths):
        truth = {label: int((i + k) % 3 == 0) for k, label in enumerate(LABELS)}
        labels.append({'Path': path, **truth, COLUMNS[0]: texts[i], COLUMNS[1]: texts[i % 2]})
        people = {name: texts[-i % 3] for name in COLUMNS[2:]}
        groups.append({'PATIENT': f'patient{i:05d}', **people})
        for table in tables:
            # The most confident mistakes of label k are those of rows 2 k and 2 k + 1.
            wrong = {label: i // 2 == k for k, label in enumerate(LABELS)}
            noise = dict(zip(LABELS, rng.uniform(0, 0.4, len(LABELS)), strict=True))
            table.append(
                {'Path': path}
                | {k: abs(truth[k] - (1 if wrong[k] else noise[k] + 0.15)) for k in LABELS}
            )
    names = [f'{PARTS["image"]}.csv', f'{PARTS["override"]}{RIGHT_TO_LEFT}\n.csv']
    files = [write(folder / name, table) for name, table in zip(names, tables, strict=True)]
    script = runpy.run_path(str(ROOT / 'scripts/evaluate.py'))
    command = ['--predictions', *files, '--labels', write(folder / '=1+<b>.csv', labels)]
    command += ['--thresholds-from', *files, folder / '=1+<b>.csv', '--level', 'image']
    command += ['--output', folder / 'out', '--resamples', '20']
    command += ['--demographics', write(folder / 'people <i>.csv', groups), '--groups', *COLUMNS]
    assert script['main'](script['parse_args']([*map(str, command)])) == 0
    report = json.loads((folder / 'out/report.json').read_text(encoding='utf-8'))
    errors = [error['path'] for part in report['sets'] for error in part['worst_errors']]
    assert len(set(errors)) > 20
    columns = {part['column']: part['groups'] for part in report['sets'][0]['groups']}
    assert {group['group'] for group in columns[COLUMNS[0]]} == set(texts)
    return Hostile(folder / 'out/report.html', [*texts, *errors, *columns, names[1][:-4]])


def run_with_hostile_names(folder: Path, data: Path) -> Hostile:
    """The page of --eval: paths, a tag, a checkpoint and a column of a hostile user."""
    data = linked(data, folder / f'data {PARTS["image"]}')
    texts = [text for name, text in PARTS.items() if name not in NOT_IN_A_PATH]

    def spoil(rows: list[list[str]]) -> None:
        rows[0].append(COLUMNS[0])
        for i, row in enumerate(rows[1:]):
            row[0] = texts[i % len(texts)] + '/' + row[0].partition('/')[2]
            row.append((*PARTS.values(), CLOSING)[i % (len(PARTS) + 1)])

    for split in ('train', 'valid', 'test'):
        edit(data / f'{split}.csv', spoil)
    report = {'WRITE': True, 'MAPS': 1}
    more = {'EVAL': {'RESAMPLES': 20, 'GROUPS': [COLUMNS[0]]}, 'TAG': PARTS['script']}
    cfg = tiny_config(folder / 'c.yaml', 'finetune', REPORT=report, **more)
    assert run_main('finetune', arguments(cfg, data, folder / 'o')) == 0
    run = folder / 'o' / 'tiny_finetune' / PARTS['script']
    checkpoint = run / f'{PARTS["override"]}{PARTS["svg"]}{RIGHT_TO_LEFT}.pth'
    (run / 'ckpt_best.pth').rename(checkpoint)
    argv = arguments(cfg, data, folder / 'o', '--eval', '--resume', str(checkpoint))
    assert run_main('finetune', argv) == 0
    page = run / 'report_eval/report.html'
    paths = [part['path'] for part in json.loads(page.with_suffix('.json').read_text())['maps']]
    assert len(set(paths)) > 3
    return Hostile(page, [*paths, str(checkpoint), PARTS['script'], str(data)])


def inject(value: object, text: str) -> object:
    """A copy with the text after every text that is free, and in place of nothing."""
    fixed = {'set', 'level', 'aggregate', 'file', 'label', 'name', 'undefined', 'values'}
    if isinstance(value, dict):
        return {k: item if k in fixed else inject(item, text) for k, item in value.items()}
    if isinstance(value, list):
        return [inject(item, text) for item in value]
    return f'{value} {text}' if isinstance(value, str) else value


def write_injected(folder: Path, data: Path) -> Hostile:
    """Any text of a document, NUL included, which neither a CSV nor a name of a file can hold."""
    texts = '\0 '.join([*PARTS.values(), CLOSING])
    report = example_report(folder, hostile=False)
    return Hostile(write_report(folder, inject(report, texts)), [texts])


MAKERS = {
    'files': lambda folder, data: score_hostile_files(folder),
    'run': run_with_hostile_names,
    'document': write_injected,
}


@pytest.fixture(scope='module')
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    yield from started(tmp_path_factory.mktemp('profile'))


@pytest.fixture(scope='module', params=['files', 'run', 'document'])
def hostile(
    request: pytest.FixtureRequest, phantom: Path, tmp_path_factory: pytest.TempPathFactory
) -> Hostile:
    return MAKERS[request.param](tmp_path_factory.mktemp('hostile'), phantom)


USE_ALL = """
    for (const table of document.querySelectorAll('table.sortable'))
      table.querySelector('th:last-child button').click();
    for (const name of ['mouseover', 'focus', 'click', 'error', 'load'])
      for (const element of document.querySelectorAll('bdi'))
        element.dispatchEvent(new Event(name, { bubbles: true }));
"""
ACTIVE = """
    const active = [];
    for (const element of document.querySelectorAll('*')) {
      for (const { name, value } of element.attributes) {
        if (/^on|^style$|^srcdoc$|^action$|^formaction$/i.test(name)) active.push([name, value]);
        const isLink = ['src', 'href', 'xlink:href'].includes(name);
        const isOwn = /^(#|data:image\\/jpeg;base64,|data:,$)/.test(value);
        if (isLink && !isOwn) active.push([name, value]);
      }
    }
    const odd = 'iframe, form, base, object, embed, svg script, svg image, body style';
    return [...active, ...[...document.querySelectorAll(odd)].map((e) => e.outerHTML)];
"""


@pytest.mark.parametrize('size', [DESKTOP, PHONE])
def test_nothing_runs_or_loads_or_scrolls_sideways(
    chromium: Browser, hostile: Hostile, size: tuple
) -> None:
    from selenium.common.exceptions import NoAlertPresentException

    chromium.run('document.title')  # the browser's own first page is there
    chromium.events('')  # what other tests did
    chromium.driver.get_log('browser')
    chromium.open(hostile.page, size)
    chromium.run(OPEN_ALL)
    chromium.run(USE_ALL)
    with pytest.raises(NoAlertPresentException):
        _ = chromium.driver.switch_to.alert.text
    assert chromium.run('return [window.hacked, document.title.slice(0, 5)]') == [None, 'Chest']
    assert chromium.run(ACTIVE) == []
    address = hostile.page.resolve().as_uri()
    requests = [event['request']['url'] for event in chromium.events('Network.requestWillBeSent')]
    assert {url for url in requests if not url.startswith('data:')} == {address}
    assert chromium.driver.get_log('browser') == []
    assert chromium.run('return location.href').partition('#')[0] == address
    wide, inner = chromium.run(
        'const root = document.scrollingElement; return [root.scrollWidth, root.clientWidth]'
    )
    assert size[0] - 20 < inner <= size[0]  # a bar at the side may take some
    assert wide <= inner


def test_all_of_it_is_there_as_text(chromium: Browser, hostile: Hostile) -> None:
    chromium.open(hostile.page)
    text = chromium.run('return document.body.textContent')
    assert [words for words in hostile.texts if shown(words) not in text] == []
    assert [c for c in text if c != '\n' and CODES[ord(c)] != ord(c)] == []
    html = hostile.page.read_text(encoding='utf-8')
    assert [c for c in UNSEEN if c in html] == []
    assert [c for c in html if c != '\n' and CODES[ord(c)] != ord(c)] == []


# Words before and after a name stay there, whichever way the name itself runs.
TURNED = """
    const box = (node, end) => {
      const range = document.createRange();
      range.selectNodeContents(node);
      const boxes = [...range.getClientRects()].filter((b) => b.width);
      return end ? boxes.at(-1) : boxes[0];
    };
    const beside = (node, side) => {
      do { node = node[side]; } while (node && !node.textContent.trim());
      return node;
    };
    const turned = [];
    let compared = 0;
    for (const name of document.querySelectorAll('bdi, .bare')) {
      if (!/[\\u0590-\\u08ff]/.test(name.textContent)) continue;
      const pairs = [];
      const [before, after] = [beside(name, 'previousSibling'), beside(name, 'nextSibling')];
      if (before) pairs.push([before, name]);
      if (after) pairs.push([name, after]);
      for (const pair of pairs) {
        const [left, right] = [box(pair[0], true), box(pair[1], false)];
        if (!left || !right || Math.abs(left.top - right.top) > 3) continue;
        compared += 1;
        if (left.right > right.left + 1) turned.push(pair.map((node) => node.textContent));
      }
    }
    return [compared, turned.length];
"""


def test_names_from_right_to_left_turn_nothing_beside_them(
    chromium: Browser, tmp_path: Path
) -> None:
    report = example_report(None, hostile=False)
    report['comparisons'][0] |= {'a': RIGHT_TO_LEFT, 'b': f'12 {RIGHT_TO_LEFT}', 'set': 'test'}
    for part in (*report['sets'], report['headline']):
        part |= {'views': RIGHT_TO_LEFT, 'uncertain': {RIGHT_TO_LEFT: 11, 'Edema': 3}}
    report['warnings'] += [f'groups: {RIGHT_TO_LEFT} (Sex), 5 {RIGHT_TO_LEFT}.png']
    chromium.open(write_report(tmp_path, report))
    chromium.run(OPEN_ALL)
    compared, turned = chromium.run(TURNED)
    assert compared >= 5
    assert turned == 0
    chromium.run("""
        for (const name of document.querySelectorAll('bdi:not(bdi bdi)')) {
          const bare = document.createElement('span');
          bare.className = 'bare';
          bare.textContent = name.textContent;
          name.replaceWith(bare);
        }
    """)
    assert chromium.run(TURNED)[1] > 0  # the measure can fail


def test_cells_of_the_tables_beside_it_are_no_formulas(hostile: Hostile) -> None:
    cells, texts = 0, 0
    for file in hostile.page.parent.glob('report_*.csv'):
        with file.open(encoding='utf-8', newline='') as stream:
            rows = list(csv.reader(stream))
        assert {len(row) for row in rows} == {len(rows[0])}
        for cell in (cell for row in rows for cell in row if cell):
            cells += 1
            try:
                float(cell)
            except ValueError:
                texts += 1
                assert not cell.startswith(('=', '+', '-', '@', '\t', '\r', '\n', '\uff1d')), cell
    assert cells > 500 and texts > 100
