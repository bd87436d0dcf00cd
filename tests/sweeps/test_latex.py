r"""Tables in LaTeX: their pages, and that pdflatex compiles them without an overfull box."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from cases import make_cases
from tiny import ROOT

from sweeps.files import Sweep, load_sweep
from sweeps.groups import write_groups
from sweeps.long_table import Scored, score_runs
from sweeps.tables import compare, facts_cells, write_all_scores, write_score
from system.pages import MOST_ROWS
from system.tables import write_table

LABELS = ('Edema & fluid', 'US$ 5_%', 'a < b | c')
SCORES = ['mean', 'f1:mean', 'accuracy:mean', 'precision:mean', 'recall:mean']
DOCUMENT = r"""\documentclass{article}
\usepackage[a4paper, margin=2.5cm]{geometry}
\usepackage{adjustbox, booktabs}
\begin{document}
%s
\end{document}
"""


def write_tables(sweep: Sweep, folder: Path, num_labels: int) -> list[Path]:
    """Write all tables of a study with two seeds of each row, whose predictions are random."""
    rng = np.random.default_rng(0)
    targets = (rng.random((120, num_labels)) < 0.5).astype(float)
    groups = {'Sex': np.array(['Female', 'Male'] * 60, object)}
    labels, runs = LABELS[:num_labels], []
    for row in sweep.rows:
        for seed in (0, 1):
            values = rng.random(targets.shape)
            images = make_cases(values, targets, labels=labels, groups=groups)
            runs.append(Scored(row.name, seed, images, thresholds=dict.fromkeys(labels, 0.5)))
    table = score_runs(runs, SCORES, resamples=200, by_group=True)
    pairs = [(row.name, sweep.rows[0].name) for row in sweep.rows]
    subsets = {row.name: row.subset for row in sweep.rows}
    lines = {score: compare(table, pairs, score, subsets=subsets) for score in SCORES}
    notes = {'notes': [sweep.note, 'A note & 5 % of <it>.'], 'draws': '200 resamples'}
    write_score(folder, sweep.name, lines['mean'], table, sweep, **notes)
    write_all_scores(folder, f'{sweep.name}_all', lines, sweep, table, notes=notes['notes'])
    write_groups(folder, sweep, table, pairs, 'mean', **notes)
    facts = facts_cells(table.assign(metric='epochs'), sweep)
    write_table(folder, f'{sweep.name}_runs', facts, facts, [])
    return sorted(folder.glob('*.tex'))


def test_a_long_table_is_split_by_its_labels_and_old_pages_go(tmp_path: Path) -> None:
    shares = ['10 %'] * 34 + ['50 %'] * 34 + ['all'] * 34
    cells = [{'Row': f'row {n}', 'labels': share} for n, share in enumerate(shares)]
    write_table(tmp_path, 'long', cells, cells, ['a note'])
    pages = [tmp_path / f'long_{number}.tex' for number in (1, 2, 3)]
    assert sorted(tmp_path.glob('*.tex')) == pages
    for page, share in zip(pages, (r'10 \%', r'50 \%', 'all'), strict=True):
        found = re.findall(r'^row \d+ & (.*) \\\\$', page.read_text(), re.M)
        assert found == [share] * 34 and 'a note' in page.read_text()
    assert (tmp_path / 'long.md').read_text().count('| row ') == 102
    write_table(tmp_path, 'long', cells[:MOST_ROWS], cells[:MOST_ROWS], [])
    assert [path.name for path in tmp_path.glob('*.tex')] == ['long.tex']


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which('pdflatex'), reason='needs pdflatex with adjustbox')
def test_all_tables_of_the_studies_compile_without_errors_and_overfull_boxes(tmp_path) -> None:
    files = []
    for name, num_labels in (('simmim', 3), ('mae_resnet', 1), ('contrastive', 3)):
        sweep = load_sweep(ROOT / f'scripts/studies/{name}.yaml', 'full')
        files += write_tables(sweep, tmp_path / name, num_labels)
    assert len(files) > 25
    inputs = '\n'.join(rf'\input{{{file.relative_to(tmp_path)}}}\clearpage' for file in files)
    (tmp_path / 'all.tex').write_text(DOCUMENT % inputs)
    words = ['pdflatex', '-interaction=nonstopmode', '-halt-on-error', 'all.tex']
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    log = (tmp_path / 'all.log').read_text(errors='replace')
    assert 'Overfull' not in log and not re.search('^!', log, re.M)
