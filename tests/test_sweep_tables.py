"""Tables and figures of a sweep: what they say of values, of what is missing, of hostile names."""

import csv
import io
import shutil
import subprocess
from copy import deepcopy

import numpy as np
import pytest
from sweep_runs import collect_five, make_sweep, saved_figures, with_rows

from data.records import plain_cell
from sweeps import results as tables
from sweeps.plots import numbers_of, plot_sweep
from sweeps.results import collect, read_rows, write_rows

HOSTILE = [
    '=1+1|x', '[a] & $b$ --- \\input{x}', '*<b>_`~^#%{}"\'', '@patient\n| ä 漢 |', '--'
]  # fmt: skip
HEAD = (
    'difference', '95 % over seeds', '95 % over patients', 'verdict', 'finished seeds'
)  # fmt: skip


@pytest.fixture(scope='module')
def collected(tmp_path_factory):
    return collect_five(tmp_path_factory.mktemp('runs'))


def lines_of(text):
    """Cells of a Markdown table's lines."""
    lines = [line for line in text.splitlines() if line.startswith('|')]
    return [[cell.strip() for cell in line.strip('|').split(' | ')] for line in lines]


def test_markdown_says_what_was_found(collected):
    head, rule, *rows = lines_of(tables.markdown(collected))
    assert head == [
        'Masked share', 'held-out L1 (grey levels)', 'AUROC, mean of five', *HEAD,
        'published, context only',
    ]  # fmt: skip
    assert set(rule) == {'---'} and len(rule) == len(head)
    assert [row[0] for row in rows] == ['0.1', '0.6 (reference)', '0.7', '0.8', '0.9']
    # l1 is 20 + seed in the last epoch
    assert [row[1] for row in rows] == ['21.00 ± 1.00'] * 2 + ['20.00', '21.00 ± 1.00', 'n/a']
    assert [row[6] for row in rows] == ['above', '', 'inside the noise', 'below', 'n/a']
    assert [row[7] for row in rows] == ['3 of 3', '3 of 3', '1 of 3', '3 of 3', '0 of 3']
    assert [row[8] for row in rows] == ['82.8', '', '', '', '']
    values = [e['finetune']['figures']['scores']['mean_of_five'] for e in rows_of(collected)[0]]
    assert rows[0][2] == f'{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}'
    part = collected['rows'][3]['compared']['mean_of_five']
    assert part['difference'] < 0
    assert rows[3][3] == f'−{-part["difference"]:.3f}'
    low, high = part['over_patients']['low'], part['over_patients']['high']
    assert rows[3][5] == f'−{-low:.3f} to −{-high:.3f}'


def rows_of(collected):
    return [row['seeds'] for row in collected['rows']]


def test_csv_has_the_numbers(collected):
    rows = list(csv.DictReader(io.StringIO(tables.csv_text(collected, ['Edema', 'mean_of_five']))))
    assert [row['run'] for row in rows] == ['swept_0', 'reference', 'swept_2', 'swept_3', 'swept_4']
    part = collected['rows'][3]['compared']['Edema']
    assert float(rows[3]['Edema_difference']) == part['difference']
    assert float(rows[3]['Edema_over_seeds_low']) == part['over_seeds']['low']
    assert float(rows[3]['Edema_p_holm']) == part['over_patients']['p_holm']
    assert rows[4]['Edema_mean'] == rows[2]['Edema_over_seeds_low'] == ''
    assert float(rows[0]['held_out_l1_grey_mean']) == 21
    assert rows[3]['mean_of_five_verdict'] == 'below'


def test_tables_are_made_of_files_alone(collected, tmp_path):
    write_rows(collected, tmp_path)
    again = read_rows(tmp_path, 'swept')
    for make in (tables.markdown, tables.csv_text, tables.latex):
        assert make(again) == make(collected)


def test_mean_of_the_defined_labels_stands_in_where_one_of_five_is_missing(collected):
    changed = deepcopy(collected)
    for entry in changed['rows'][0]['seeds']:
        entry['finetune']['figures']['scores']['mean_of_five'] = None
    assert lines_of(tables.markdown(changed))[0][2] == 'AUROC, mean of 13 labels'


def test_unknown_score_is_refused(collected):
    with pytest.raises(ValueError, match="no score 'Oedema'; there are mean_of_five, mean_of_def"):
        tables.markdown(collected, ['Oedema'])


def test_distances_and_other_targets_have_their_columns_and_notes(collected):
    changed = deepcopy(collected)
    changed['rows'][0] |= {'average_distance_px': 12.345, 'hidden_percent': 62.5}
    for entry in changed['rows'][3]['seeds']:
        figures = entry['pretrain']['figures']
        figures['target'] = 'patch_normalised'
        figures['reference']['after'] = None
    changed['rows'][2]['other_pictures'] = ['DATA.VIEWS', 'TEST.CROP']
    for entry in changed['rows'][0]['seeds']:
        entry['pretrain']['figures']['target_px'] = 4
    for entry in changed['rows'][4]['seeds']:
        entry['pretrain'] = None
    text = tables.markdown(changed)
    head, _, *rows = lines_of(text)
    assert head[1] == 'AvgDist (px)' and [rows[0][1], rows[1][1]] == ['12.35', 'n/a']
    assert head[2] == 'hidden (%)' and [rows[0][2], rows[1][2]] == ['62.5', 'n/a']
    assert [row[3] for row in rows] == [
        '21.00 ± 1.00 ‡', '21.00 ± 1.00', 'n/a †', r'n/a \*', 'none'
    ]  # fmt: skip
    assert r'\* It predicts normalised patches' in text and 'over 200 masks' in text
    assert "† Its held-out pictures are not the reference's (DATA.VIEWS, TEST.CROP)" in text
    assert '‡ It predicts one value for each cell of several pixels' in text
    assert not any(sign in tables.markdown(collected) for sign in ('†', '‡', r'\*', 'AvgDist'))
    assert r'21.00 $\pm$ 1.00 \textdaggerdbl{}' in tables.latex(changed)
    lines = list(csv.DictReader(io.StringIO(tables.csv_text(changed))))
    assert [line['held_out_l1_caveat'] for line in lines] == [
        'coarse target', '', 'other pictures', 'other target', ''
    ]  # fmt: skip
    assert [line['held_out_l1_grey_mean'] for line in lines] == ['21.0', '21.0', '', '', '']
    assert lines[0]['hidden_percent'] == '62.5'


def test_titles_tell_the_reference_and_the_other_row(collected):
    changed = deepcopy(collected)
    changed['rows'][1]['against'] = '0.9'
    changed['rows'][2]['against'] = '0.9'
    titles = [row[0] for row in lines_of(tables.markdown(changed))[2:5]]
    assert titles == ['0.1', '0.6 (reference, against 0.9)', '0.7 (against 0.9)']


def hostile(collected):
    """The same with names that would be markup, formulas or code."""
    changed = deepcopy(collected) | {'title': HOSTILE[1], 'reference': HOSTILE[1]}
    for row, name in zip(changed['rows'], HOSTILE, strict=True):
        row |= {'name': name, 'against': row['against'] and HOSTILE[1], 'problem': name}
    changed['published'] = {key: HOSTILE[2] for key in ('source', 'measure', 'note')}
    changed['published']['values'] = {HOSTILE[0]: HOSTILE[0], HOSTILE[3]: -1}
    return changed


def test_hostile_names_are_text_in_markdown(collected):
    text = tables.markdown(hostile(collected))
    head, *rows = [line for line in text.splitlines() if line.startswith('|')]
    wanted = head.replace(r'\|', '').count('|')
    assert len(rows) == 6
    assert [row.replace(r'\|', '').count('|') for row in rows] == [wanted] * 6
    assert '<' not in text
    assert r'\*&lt;b>\_\`\~^#%{}"' in text


def test_hostile_names_are_no_formulas_in_csv(collected):
    rows = list(csv.reader(io.StringIO(tables.csv_text(hostile(collected)))))
    assert {len(row) for row in rows} == {len(rows[0])}
    cells = [cell for row in rows for cell in row]
    for cell in cells:
        assert not cell.startswith(('=', '+', '@')), cell
    assert [plain_cell(row[0]) for row in rows[1:]] == HOSTILE


def test_hostile_names_are_text_in_latex(collected):
    text = tables.latex(hostile(collected))
    assert r'\input' not in text and '漢' not in text and '(U+6F22)' in text
    assert r'{[}a{]} \& \$b\$ -{}-{}- \textbackslash{}input\{x\}' in text
    assert '--' not in text


@pytest.mark.parametrize('make', [dict, hostile])
def test_latex_compiles(collected, tmp_path, make):
    command = shutil.which('pdflatex') or shutil.which('tectonic')
    if command is None:
        pytest.skip('there is no pdflatex and no tectonic')
    scores = ['mean_of_five', 'Edema']
    file = tmp_path / 'table.tex'
    file.write_text(
        '\\documentclass{article}\n\\usepackage{booktabs,graphicx,textcomp}\n\\begin{document}\n'
        f'{tables.latex(make(collected), scores)}\\end{{document}}\n',
        encoding='utf-8',
    )
    options = ['-interaction=nonstopmode', '-halt-on-error', '-draftmode']
    options = options if command.endswith('pdflatex') else []
    done = subprocess.run(
        [command, *options, file.name], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-2000:]


@pytest.mark.parametrize(
    'names, wanted',
    [
        (['0.1', '2', '-3.5'], [0.1, 2, -3.5]),
        (['4', 'all'], None),
        (['1000_0.25', '2'], None),
        (['nan', '1'], None),
        (['1e3', '1'], None),
        (['1', '1.0'], None),
    ],
)
def test_names_that_are_numbers(names, wanted):
    assert numbers_of({'rows': [{'name': name} for name in names]}) == wanted


@pytest.fixture
def figures(monkeypatch):
    return saved_figures(monkeypatch)


def errorbars(axis):
    return [container for container in axis.containers if container.has_yerr or container.has_xerr]


def test_figure_shows_means_seeds_and_what_is_missing(collected, figures, tmp_path):
    plot_sweep(tmp_path / 'new' / 'figure.png', collected)
    left, right = figures[0].axes
    values = [e['finetune']['figures']['scores']['mean_of_five'] for e in rows_of(collected)[3]]
    drawn = [line.get_xydata().tolist() for line in right.lines]
    assert [[0.8, value] for value in values] in drawn
    assert [[0.8, pytest.approx(np.mean(values), abs=1e-6)]] in drawn
    crosses = [line for line in right.lines if line.get_marker() == 'x']
    assert [line.get_xdata()[0] for line in crosses] == [0.9]
    assert 'n = 1' in [text.get_text() for text in right.texts]
    assert [text.get_text() for text in right.get_xticklabels()] == [
        '0.1',
        '0.6',
        '0.7',
        '0.8',
        '0.9',
    ]
    assert left.get_xlabel() == 'Masked share' and left.get_xscale() == 'linear'
    assert sorted(line.get_ydata()[0] for line in left.lines if line.get_linestyle() in '--:')[
        -2:
    ] == [37.1, 43.5]


def test_figure_marks_what_does_not_compare(collected, figures, tmp_path):
    changed = deepcopy(collected)
    changed['rows'][0]['other_pictures'] = ['DATA.VIEWS']
    for entry in changed['rows'][3]['seeds']:
        entry['pretrain']['figures']['target_px'] = 4
    plot_sweep(tmp_path / 'figure.png', changed)
    left = figures[0].axes[0]
    labels = [text.get_text() for text in left.get_xticklabels()]
    assert labels == ['0.1', '0.6', '0.7', '0.8 ‡', '0.9']
    crosses = [line for line in left.lines if line.get_marker() == 'x']
    assert [line.get_xdata()[0] for line in crosses] == [0.1, 0.9]
    assert figures[0].get_supxlabel().startswith('‡ Held-out L1: see the notes')


def test_sizes_are_drawn_by_powers_of_two(collected, figures, tmp_path):
    plot_sweep(tmp_path / 'f.png', collected | {'keys': {'pretrain': ['DATA.MASK_PATCH_SIZE']}})
    assert [axis.get_xscale() for axis in figures[0].axes] == ['log', 'log']


def test_long_names_do_not_overlap(collected, figures, tmp_path):
    changed = deepcopy(collected)
    rows = [deepcopy(changed['rows'][i % 5]) for i in range(12)]
    for number, row in enumerate(rows):
        row |= {'name': f'row {number} with a name that is long, and $ and _ and more of it'}
    plot_sweep(tmp_path / 'figure.png', changed | {'rows': rows, 'reference': rows[1]['name']})
    figure = figures[0]
    figure.canvas.draw()
    left = figure.axes[0]
    boxes = [label.get_window_extent() for label in left.get_yticklabels()]
    boxes.sort(key=lambda box: box.y0)
    assert len(boxes) == 12
    assert all(below.y1 <= above.y0 for below, above in zip(boxes, boxes[1:], strict=False))
    assert min(box.x0 for box in boxes) >= 0
    shown = ' '.join(left.get_yticklabels()[4].get_text().split())
    assert shown.startswith('row 4 ') and shown.endswith('0 of 3 seeds')


@pytest.mark.parametrize('suffix', ['png', 'pdf', 'svg'])
def test_the_same_figure_is_the_same_file(collected, tmp_path, suffix):
    files = [tmp_path / f'{name}.{suffix}' for name in 'ab']
    for file in files:
        plot_sweep(file, collected, 'Edema')
    assert files[0].read_bytes() == files[1].read_bytes()
    assert files[0].stat().st_size > 5000


def test_another_format_is_refused(collected, tmp_path):
    with pytest.raises(ValueError, match=r'must end in \.png, \.pdf, \.svg'):
        plot_sweep(tmp_path / 'figure.bmp', collected)


def test_nothing_finished_is_a_table_and_a_figure(figures, tmp_path):
    sweep = with_rows(make_sweep(['a', 'b']), swept_1={'pretrain': None, 'pretrain_run': ''})
    found = collect(sweep, [0, 1], tmp_path)
    rows = lines_of(tables.markdown(found))[2:]
    assert rows == [
        ['a (reference)', 'n/a', 'n/a', '', '', '', '', '0 of 2', '82.8'],
        ['b', 'none', 'n/a', 'n/a', 'n/a', 'n/a', 'n/a', '0 of 2', ''],
    ]
    ruled = tables.latex(found).split(r'\midrule')[1].split(r'\bottomrule')[0]
    cells = [[cell.strip() for cell in line.split('&')] for line in ruled.split(r'\\')]
    assert cells[:-1] == rows
    for line, name in zip(csv.DictReader(io.StringIO(tables.csv_text(found))), 'ab', strict=True):
        known = {key: cell for key, cell in line.items() if cell}
        published = {'published, context only': '82.8'} if name == 'a' else {'against': 'a'}
        run = 'reference' if name == 'a' else 'swept_1'
        assert known == {'row': name, 'run': run, 'finished_seeds': '0', 'seeds': '2'} | published
    plot_sweep(tmp_path / 'figure.png', found)
    assert (tmp_path / 'figure.png').stat().st_size > 5000
    for axis in figures[0].axes:
        drawn = [(line.get_marker(), line.get_ydata()[0]) for line in axis.lines]
        assert drawn == [('x', 0), ('x', 1)]
    names = [' '.join(text.get_text().split()) for text in figures[0].axes[0].get_yticklabels()]
    assert names == ['a (reference), 0 of 2 seeds', 'b, 0 of 2 seeds']
