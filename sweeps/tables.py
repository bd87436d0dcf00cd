"""Tables of a sweep's results as Markdown, CSV and LaTeX, with notes on how to read them."""

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data.tables import safe_cell
from sweeps.summary import (
    L1_MARKS,
    MISSING,
    PUBLISHED,
    Collected,
    Spread,
    choose_scores,
    cost_spread,
    count_finished,
    has_distances,
    l1_caveat,
    l1_spread,
    notes,
    number,
    row_title,
    score_spread,
    score_title,
    subset_title,
)

LATEX_BREAK = r' \\ '
MARKDOWN = re.compile(r'([\\`*_\[\]|~$])')
LATEX = {
    '\\': r'\textbackslash{}', '{': r'\{', '}': r'\}', '$': r'\$', '&': r'\&', '#': r'\#',
    '%': r'\%', '_': r'\_', '^': r'\textasciicircum{}', '~': r'\textasciitilde{}',
    '<': r'\textless{}', '>': r'\textgreater{}', '|': r'\textbar{}', '–': r'\textendash{}',
    '`': r'\textasciigrave{}', '±': r'$\pm$', '−': r'$-$', '×': r'$\times$',
    '†': r'\textdagger{}', '‡': r'\textdaggerdbl{}',
    '*': r'\textasteriskcentered{}', '[': '{[}', ']': '{]}',  # options, where a row starts so
}  # fmt: skip


def markdown(collected: Collected, scores: Sequence[str] | None = None) -> str:
    """A table with its notes below."""
    listed = '\n'.join(markdown_notes(collected))
    return f'{markdown_table(collected, scores)}\n{listed}\n'


def markdown_table(collected: Collected, scores: Sequence[str] | None = None) -> str:
    """The table alone."""
    head, rows = _cells(collected, choose_scores(collected, scores))
    text = [f'| {" | ".join(map(_markdown_text, line))} |' for line in (head, *rows)]
    text.insert(1, '| --- ' * len(head) + '|')
    return '\n'.join(text) + '\n'


def markdown_notes(collected: Collected) -> list[str]:
    """What a reader must know of the table, a list item each."""
    return [f'- {_markdown_text(note)}' for note in notes(collected)]


def latex(collected: Collected, scores: Sequence[str] | None = None) -> str:
    r"""A tabular for each score, then the notes; for \usepackage{booktabs,graphicx,textcomp}."""
    tabulars = []
    for score in choose_scores(collected, scores):
        head, rows = _cells(collected, [score])
        lines = [rf'{" & ".join(map(_latex_cell, line))} \\' for line in (head, *rows)]
        tabulars += [
            r'\noindent\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%',
            r'\footnotesize\setlength{\tabcolsep}{3pt}%',
            rf'\begin{{tabular}}{{@{{}}l{"r" * (len(head) - 1)}@{{}}}}',
            *(r'\toprule', lines[0], r'\midrule', *lines[1:], r'\bottomrule'),
            r'\end{tabular}}\par\smallskip',
        ]
    listed = [rf'\item {_latex_text(note)}' for note in notes(collected)]
    style = r'\footnotesize\setlength{\itemsep}{0pt}\setlength{\parskip}{0pt}'
    return '\n'.join([*tabulars, rf'\begin{{itemize}}{style}', *listed, r'\end{itemize}', ''])


def csv_text(collected: Collected, scores: Sequence[str] | None = None) -> str:
    """Numbers in columns of their own, empty where not known; a row a row of the sweep."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    rows = list(_csv_rows(collected, choose_scores(collected, scores)))
    writer.writerow([safe_cell(name) for name in rows[0]])
    writer.writerows([safe_cell(value) for value in row.values()] for row in rows)
    return text.getvalue()


def _cells(collected: Collected, scores: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Head and rows as text, narrow: a line break is a wish, not for Markdown."""
    rows = [list(_row_cells(collected, row, scores)) for row in collected['rows']]
    return [head for head, _ in rows[0]], [[cell for _, cell in row] for row in rows]


def _row_cells(
    collected: Collected, row: Mapping[str, Any], scores: Sequence[str]
) -> Iterator[tuple[str, str]]:
    yield ' '.join(collected['title'].split()), ' '.join(row_title(collected, row).split())
    if 'methods' in collected:
        yield 'labels', subset_title(collected, row['subset'])
        for head, name, unit in (('images\nseen', 'images', 1), ('minutes', 'seconds', 60)):
            mean = cost_spread(row, name).mean
            known = number(mean and mean / unit, ',.0f' if unit == 1 else ',.1f')
            yield f'pre-training\n{head}', known if row['pretraining'] else 'none'
    if has_distances(collected):
        yield 'AvgDist\n(px)', number(row['average_distance_px'], '.2f')
        yield 'hidden\n(%)', number(row['hidden_percent'], '.1f')
    yield 'held-out L1\n(grey levels)', _l1_cell(row)
    for score in scores:
        part = row['compared'].get(score)
        yield (
            score_title(collected, score).replace(' ', '\n', 1),
            _spread(score_spread(row, score), '.3f'),
        )
        cells = [
            number(part and part['difference'], '+.3f'),
            *(_interval(part and part[key]) for key in ('over_seeds', 'over_patients')),
            part['verdict'] if part else MISSING,
        ]
        names = ('difference', '95 %\nover seeds', '95 %\nover patients', 'verdict')
        yield from zip(names, cells if row['against'] else [''] * len(names), strict=True)
    yield 'finished\nseeds', f'{count_finished(row)} of {len(row["seeds"])}'
    if collected['published']:
        value = collected['published']['values'].get(row['name'])
        yield PUBLISHED.replace(' ', '\n', 1), '' if value is None else str(value)


def _l1_cell(row: Mapping[str, Any]) -> str:
    contrastive = row.get('pretraining') == 'contrastive'  # which hides nothing
    if contrastive or all(entry['pretrain'] is None for entry in row['seeds']):
        return 'none'
    mark = L1_MARKS.get(l1_caveat(row), '')
    return f'{_spread(l1_spread(row), ".2f")} {mark}'.rstrip()


def _spread(spread: Spread, form: str) -> str:
    if spread.mean is None:
        return MISSING
    return number(spread.mean, form) + (f' ± {spread.sd:{form}}' if spread.sd is not None else '')


def _interval(part: Mapping[str, float | None] | None) -> str:
    if part is None or part['low'] is None:
        return MISSING
    return f'{number(part["low"], "+.3f")} to {number(part["high"], "+.3f")}'


def _csv_rows(collected: Collected, scores: Sequence[str]) -> Iterator[dict[str, Any]]:
    published = collected['published']
    for row in collected['rows']:
        l1 = l1_spread(row)
        line = {
            'row': row['name'],
            'run': row['run'],
            'against': row['against'],
            **_csv_method(row),
            'finished_seeds': count_finished(row),
            'seeds': len(row['seeds']),
            'average_distance_px': row['average_distance_px'],
            'hidden_percent': row['hidden_percent'],
            'held_out_l1_grey_mean': l1.mean,
            'held_out_l1_grey_sd': l1.sd,
            'held_out_l1_caveat': l1_caveat(row),
        }
        for score in scores:
            line |= _csv_score(row, score)
        if published:
            line[PUBLISHED] = published['values'].get(row['name'])
        yield line


def _csv_method(row: Mapping[str, Any]) -> dict[str, Any]:
    """Of a sweep of methods: which, with what labels, and what its pre-training took."""
    if 'method' not in row:
        return {}
    images, seconds = (cost_spread(row, name).mean for name in ('images', 'seconds'))
    own = {key: row[key] for key in ('method', 'subset', 'pretraining')}
    return own | {'pretrain_images': images, 'pretrain_seconds': seconds}


def _csv_score(row: Mapping[str, Any], score: str) -> dict[str, Any]:
    spread, part = score_spread(row, score), row['compared'].get(score)
    line = {f'{score}_mean': spread.mean, f'{score}_sd': spread.sd}
    for name in ('difference', 'verdict'):
        line[f'{score}_{name}'] = part and part[name]
    for name in ('over_seeds', 'over_patients'):
        for bound in ('low', 'high'):
            line[f'{score}_{name}_{bound}'] = part and part[name][bound]
    for name in ('p', 'p_holm'):
        line[f'{score}_{name}'] = part and part['over_patients'][name]
    return line


def _markdown_text(text: str) -> str:
    text = ' '.join(text.split())
    return MARKDOWN.sub(r'\\\1', text.replace('&', '&amp;').replace('<', '&lt;'))


def _latex_cell(text: str) -> str:
    """In as many lines as the text has."""
    lines = [_latex_text(line) for line in text.split('\n')]
    return lines[0] if len(lines) == 1 else rf'\shortstack[r]{{{LATEX_BREAK.join(lines)}}}'


def _latex_text(text: str) -> str:
    """Escaped for any TeX; what pdfLaTeX has no letter for is written as its code."""
    text = ' '.join(text.split())
    known = [LATEX.get(c, c if _is_letter_of_tex(c) else f'(U+{ord(c):04X})') for c in text]
    return re.sub('-(?=-)', '-{}', ''.join(known))  # two would become a dash


def _is_letter_of_tex(character: str) -> bool:
    return ' ' <= character <= '~' or ('À' <= character <= 'ÿ' and character not in '×÷ÐÞðþ')
