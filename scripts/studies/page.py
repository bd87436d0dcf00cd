"""Write the page of a study: its tables and figures under the headings of scripts/studies/pages.

python scripts/studies/page.py simmim --scale tiny --output OUT

OUT/index.md and OUT/index.html show what is in OUT, and name what is not finished. A line
`![caption](file)` of the source, alone in its paragraph, is a figure (.png, perhaps with several
pages file_1.png, file_2.png, ...), a table (.md or .csv), a link (.html) or, with `*`, small
images. Tables and figures in OUT that the source does not name are linked at the end. BEST_ROW,
BEST_RUN, WORST_ROW and WORST_RUN stand for the rows with the best and the worst first score of the
sweep, and for the folders of their first runs. With --best-and-worst, these folders are printed,
and with --reconstructions the TITLE=FOLDER of the pre-trainings that have some, and no page is
written. Not for clinical use.
"""

import argparse
import html
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown import Markdown

from config import NO_ENCODER
from evaluation.report.report_page import TEMPLATES
from sweeps.files import ROOT, Row, Sweep, load_sweep, run_folder
from sweeps.long_table import MEANS, facts_of, is_synthetic, read_table
from sweeps.tables import file_name, name_of, title_of
from system.files import replace_files
from system.pages import markdown_table
from system.tool import tool

PAGES = Path(__file__).parent / 'pages'
PART = re.compile(r'^!\[(?P<caption>.+)\]\((?P<name>\S+)\)$', re.MULTILINE)
OTHER_FORMS = ('.pdf', '.svg', '.csv', '.tex')  # that are linked below a figure or table
MOST_ROWS, MOST_PAGES = 12, 3  # of a table or figure that is not folded
LINE = re.compile(r'^\|', re.MULTILINE)
LINK = re.compile(r'\]\(([^)]+)\)')
UNKNOWN = {'BEST_ROW': 'not known yet', 'WORST_ROW': 'not known yet'}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = sorted(file.stem for file in PAGES.glob('*.md'))
    parser.add_argument('study', choices=names)
    parser.add_argument('--scale', required=True, help='scale of the sweep')
    parser.add_argument('--output', required=True, type=Path, help='folder of the study')
    parser.add_argument('--best-and-worst', action='store_true', help='see above')
    parser.add_argument('--reconstructions', action='store_true', help='see above')
    return parser.parse_args()


def fill(source: str, folder: Path, words: Mapping[str, str]) -> tuple[str, list[str]]:
    """Replace the parts of a source by what is in the folder.

    Args:
        source: Text in Markdown, see the top of this file.
        folder: Folder of the study.
        words: Word in the source -> what stands in its place.

    Returns:
        The text in Markdown, and the names of what is missing.
    """
    missing, numbers = [], Counter()

    def part(match: re.Match) -> str:
        caption, name = match['caption'], match['name']
        files = found(folder, name)
        if not files:
            missing.append(name)
            return f'> **Not finished:** {caption} (`{name}`)'
        if name.endswith('.html'):
            return f'[{caption}]({name})'
        kind = 'Figure' if name.endswith('.png') else 'Table'
        numbers[kind] += 1
        title = f'{kind} {numbers[kind]}'
        if kind == 'Table':
            return table(folder, files[0], title, caption)
        if '*' in name:
            return f'**{title}.** {caption}\n\n{small_images(folder, files)}'
        shown = '\n'.join(f'![{title}]({file.relative_to(folder)})' for file in files)
        shown = f'{shown}\n\n{links(folder, files)}'
        if len(files) > MOST_PAGES:
            return folded(title, f'{caption} ({len(files)} pages)', shown)
        return f'**{title}.** {caption}\n\n{shown}'

    for word, value in words.items():
        source = source.replace(word, value)
    return PART.sub(part, source), missing


def found(folder: Path, name: str) -> list[Path]:
    """Return the files of a name, or the pages of a figure, in the order of their numbers."""
    stem, dot, suffix = name.rpartition('.')
    files = [*folder.glob(name)] or [*folder.glob(f'{stem}_[0-9]{dot}{suffix}')]
    files = files or [*folder.glob(f'{stem}_[0-9][0-9]{dot}{suffix}')]
    return sorted(files)


def table(folder: Path, file: Path, title: str, caption: str) -> str:
    """Return a table and the notes below it, folded if it is long."""
    if file.suffix == '.csv':
        cells = pd.read_csv(file, dtype=str, keep_default_na=False)
        text = markdown_table(cells.to_dict('records'))
    else:
        text = file.read_text(encoding='utf-8')
    rows, _, notes = text.partition('\n\n')
    text = f'<div class="scroll" markdown="1">\n\n{rows}\n\n</div>\n\n{notes}\n\n'
    text += links(folder, [file])
    count = len(LINE.findall(rows)) - 2
    if count <= MOST_ROWS:
        return f'**{title}.** {caption}\n\n{text}'
    return folded(title, f'{caption} ({count} rows)', text)


def folded(title: str, caption: str, text: str) -> str:
    """Return a text that a click on its caption shows."""
    summary = f'<summary><span><b>{title}.</b> {html.escape(caption)}</span></summary>'
    return f'<details markdown="1">{summary}\n\n{text}\n\n</details>'


def small_images(folder: Path, files: list[Path]) -> str:
    """Return images beside each other, each with its name as caption."""
    figures = ''.join(
        f'<figure><img src="{file.relative_to(folder)}" alt=""><figcaption>'
        f'{html.escape(file.stem.replace("_", " ").removesuffix(" 1"))}</figcaption></figure>\n'
        for file in files
    )
    return f'<div class="panels">\n{figures}</div>'


def links(folder: Path, files: list[Path]) -> str:
    """Return links to files and to their other forms."""
    forms = [form for file in files for form in (file, *map(file.with_suffix, OTHER_FORMS))]
    forms = [part for form in forms for part in found(folder, str(form.relative_to(folder)))]
    names = dict.fromkeys(form.relative_to(folder) for form in forms)
    return f'<small>Files: {", ".join(f"[{name.name}]({name})" for name in names)}</small>'


def others(folder: Path, text: str) -> str:
    """Return links to the tables and figures that a text does not link, in the same folders.

    Those of single runs are in the reports of these runs.
    """
    linked = {*LINK.findall(text)}
    parts = {Path(name).parent for name in linked if name.count('/') < 2}
    names = sorted(
        str(file.relative_to(folder))
        for part in {Path(), *parts}
        for file in (folder / part).iterdir()
        if file.suffix in ('.md', '.png', *OTHER_FORMS) and file.stem != 'index'
    )
    forms: dict[str, list[str]] = {}  # name without suffix -> links
    for name in names:
        if name not in linked:
            stem, _, suffix = name.rpartition('.')
            forms.setdefault(stem, []).append(f'[{suffix}]({name})')
    if not forms:
        return ''
    lines = ''.join(f'- {stem}: {", ".join(links)}\n' for stem, links in forms.items())
    return f'\n\n## Other tables and figures\n\n{lines}'


def describe(sweep: Sweep, scale: str, scores: pd.DataFrame | None) -> Iterator[str]:
    """Say below the title which runs and cases the scores are of."""
    yield f'Scale `{scale}` of `{sweep.path.relative_to(ROOT)}`.'
    if scores is None:
        yield '**No score is finished.**'
        return
    cases = facts_of(scores, 'cases')
    seeds = sorted({*cases.index.get_level_values('seed')}, key=int)
    runs = scores[scores['seed'] != '']
    split, level = (', '.join(filter(None, runs[key].unique())) for key in ('split', 'level'))
    rows = cases.index.get_level_values('row').nunique()
    numbers = ' to '.join(f'{number:,.0f}' for number in sorted({cases.min(), cases.max()}))
    kind = 'synthetic ' if is_synthetic(scores) else ''
    cases = f'{numbers} {kind}cases ({split}, one {level} each)'
    seeds = f'seed{"s" if len(seeds) > 1 else ""} {", ".join(seeds)}'
    yield f'Scored: {cases}, {rows} rows, {seeds}.'


def best_and_worst(sweep: Sweep, folder: Path) -> dict[str, str]:
    """Return the folders of the first run of the rows with the best and the worst score."""
    scores = [*sweep.scores, *MEANS]
    tables = [folder / f'{file_name(sweep.name, score)}.csv' for score in scores]
    if not (known := [file for file in tables if file.is_file()]):
        return {}
    lines = pd.read_csv(known[0], dtype={'row': str}).drop_duplicates('row').set_index('row')
    # A baseline has no encoder whose maps could be shown.
    rows = {row.name: row for row in sweep.rows if row.method not in NO_ENCODER}
    values = lines['value'].reindex([*rows]).dropna()
    words = {}
    for word, name in (('BEST', values.idxmax()), ('WORST', values.idxmin())):
        run = first_run(folder, rows[name]).relative_to(folder)
        words |= {f'{word}_ROW': name_of(sweep, name), f'{word}_RUN': str(run)}
    return words


def first_run(folder: Path, row: Row) -> Path:
    """Return the run folder of the row with the first seed that is there."""
    pattern = run_folder(folder, 'finetune', row, 0)
    runs = sorted(pattern.parent.glob(f'{pattern.name.removesuffix("0")}*'))
    return next(iter(runs), pattern)


def reconstructed(sweep: Sweep, folder: Path) -> list[str]:
    """Return TITLE=FOLDER of the first seed of each pre-training that has reconstructions."""
    runs = {run_folder(folder, 'simmim', row, 0): row for row in sweep.rows}
    return [
        f'{title_of(sweep, row.name)[1]}={run}'
        for run, row in runs.items()
        if run is not None and (run / 'reconstructions').is_dir()
    ]


def render(title: str, text: str, flags: list[str]) -> str:
    """Return a page in HTML, in the style of the reports."""
    markdown = Markdown(extensions=['tables', 'toc', 'md_in_html', 'sane_lists'])
    body = markdown.convert(text)
    environment = Environment(
        loader=FileSystemLoader(PAGES), autoescape=False, undefined=StrictUndefined
    )
    return environment.get_template('page.html.j2').render(
        title=html.escape(title),
        style=(TEMPLATES / 'report.css').read_text(encoding='utf-8'),
        flags=flags,
        sections=[entry for top in markdown.toc_tokens for entry in (top, *top['children'])],
        body=body,
    )


@tool
def main(args: argparse.Namespace) -> int:
    folder = args.output
    sweep = load_sweep(PAGES.parent / f'{args.study}.yaml', args.scale)
    words = UNKNOWN | best_and_worst(sweep, folder)
    if args.best_and_worst:
        print(words['BEST_RUN'], words['WORST_RUN'], sep='\n')
        return 0
    if args.reconstructions:
        print('\n'.join(reconstructed(sweep, folder)))
        return 0
    file = next(folder.glob(f'{sweep.name}_scores.csv*'), None)
    scores = read_table(file) if file else None
    source = (PAGES / f'{args.study}.md').read_text(encoding='utf-8')
    title, _, source = source.partition('\n')
    title = title.removeprefix('# ')
    text, missing = fill(source, folder, words)
    text += others(folder, text)
    flags = ['Not for clinical use'] + ['Synthetic X-rays'] * is_synthetic(scores)
    if missing:
        lacking = f'{len(missing)} part{"s are" if len(missing) > 1 else " is"} not finished'
        flags.append(lacking)
    about = ' '.join(describe(sweep, args.scale, scores))
    page = f'# {title}\n\n**{". ".join(flags)}.**\n\n{about}\n{text}'
    body = f'{about}\n{text}'
    replace_files({folder / 'index.md': page, folder / 'index.html': render(title, body, flags)})
    for name in missing:
        print(f'not finished: {name}')
    print(f'the page of the study: {folder / "index.html"}')
    return 0


if __name__ == '__main__':
    sys.exit(main(parse_args()))
