"""The tables of docs/results_methods.md say what the files of its runs say."""

import json
import re
import statistics

import pytest
from scipy import stats
from tiny import ROOT

PAGE = ROOT / 'docs' / 'results_methods.md'
FOLDER = ROOT / 'docs' / 'results' / 'nih1000_methods'
METHODS = {
    'SimMIM': 'simmim',
    'SimMIM (reference)': 'simmim',
    'MAE': 'mae',
    'MoCo v2': 'moco',
    'SimCLR': 'simclr',
    'BYOL': 'byol',
    'SwAV': 'swav',
    'from scratch': 'scratch',
}
SHARES = {'10 %': '0.1', '100 %': '1'}


def rows_of(name: str) -> list[list[str]]:
    """The cells of a table of the page, without its head."""
    table = re.search(rf'<!-- table {name} -->\n(.*?)<!-- end -->', PAGE.read_text(), re.DOTALL)[1]
    return [[cell.strip() for cell in line.split('|')[1:-1]] for line in table.splitlines()[2:]]


def values(method: str, share: str, score: str) -> list[float]:
    row = json.loads((FOLDER / f'methods_small_{method}_{share}.json').read_text())
    return [seed['finetune']['figures']['scores'][score] for seed in row['seeds']]


def spread(values: list[float]) -> str:
    return f'{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}'


def numbers(text: str) -> list[float]:
    return [float(part) for part in re.findall(r'[+-][0-9.]+', text.replace('\u2212', '-'))]


def test_selected_checkpoints() -> None:
    rows = rows_of('selected')
    assert len(rows) == 14
    for name, share, pneumonia, difference, over_seeds, _, _, five in rows:
        method, share = METHODS[name], SHARES[share]
        found = values(method, share, 'Pneumonia')
        assert (pneumonia, five) == (spread(found), spread(values(method, share, 'mean_of_five')))
        if name.endswith('(reference)'):
            continue
        pairs = zip(found, values('simmim', share, 'Pneumonia'), strict=True)
        differences = [one - other for one, other in pairs]
        mean, error = statistics.mean(differences), statistics.stdev(differences) / 3**0.5
        wanted = [mean, *stats.t.interval(0.95, 2, mean, error)]
        assert numbers(f'{difference} {over_seeds}') == pytest.approx(wanted, abs=5.1e-4)


def test_last_epochs() -> None:
    last = json.loads((FOLDER / 'last_epoch.json').read_text())
    rows = rows_of('last')
    assert len(rows) == 7
    for name, *cells in rows:
        scores = [last[f'{METHODS[name]}_{share}'] for share in SHARES.values()]
        assert cells == [spread(of) for part in scores for of in part.values()]


def test_its_figures_are_there() -> None:
    for figure in re.findall(r'\]\((results/[^)]+png)\)', PAGE.read_text()):
        assert (PAGE.parent / figure).is_file(), figure
