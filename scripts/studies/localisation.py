"""Join the scores of several methods of maps, folders of scripts/localise.py, in one table.

python scripts/studies/localisation.py FOLDER [FOLDER ...] --output RESULTS

A folder is named after its method. RESULTS/cases.csv has the scores of each case, from which the
tables and the figure follow. Labels with few cases are left out.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import pandas as pd

from evaluation.metrics import FEW_CASES
from evaluation.regions.analysis import OF_MAPS, RegionCases, Row, analyse
from evaluation.regions.page import Localisation, write_scores
from system.files import replace_file
from system.tool import tool

TITLES = {
    'grad-cam': 'Grad-CAM',
    'rollout': 'rollout',
    'occlusion': 'occlusion',
    'attention': 'head attention',
}
CASE = ['path', 'label', 'patient', 'area']
SCORES = [*OF_MAPS.shown, 'has_signal']
RESAMPLES, SEED = 1000, 0
FEW = 'Few cases of one finding, drawn by one group: nothing follows for other images.'


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('folders', nargs='+', type=Path, metavar='FOLDER')
    parser.add_argument('--output', type=Path, required=True, metavar='RESULTS')
    return parser.parse_args(arguments)


def read_cases(folders: Sequence[Path]) -> pd.DataFrame:
    """Return the scores of all maps; what needs no model is the same in each folder."""
    parts = []
    for folder in folders:
        part = pd.read_csv(folder / 'localisation_cases.csv', keep_default_na=False)
        title, is_model = TITLES.get(folder.name, folder.name), part['source'] != ''
        kind = part['kind'].where(part['kind'] == '', ': ' + part['kind'])
        part['row'] = part['row'].mask(is_model, title + kind)
        part['source'] = part['source'].mask(is_model, title)
        parts.append(part)
    cases = pd.concat(parts).drop_duplicates(['row', *CASE[:3]])
    counts = cases.groupby('label')['path'].nunique()
    cases = cases[cases['label'].isin(counts.index[counts >= FEW_CASES])]
    # Models first, then what needs none.
    cases = cases.sort_values('source', key=lambda names: names == '', kind='stable')
    return cases[['row', 'source', 'kind', *CASE, *SCORES]]


def localisation_of(cases: pd.DataFrame) -> Localisation:
    """Return tables and sentences of the scores of cases."""
    found, rows = {}, []
    for name, part in cases.groupby('row', sort=False):
        part = part.set_index(['path', 'label'])
        marked = found.setdefault('cases', part[['patient', 'area']])
        scores = part.loc[marked.index, SCORES].reset_index(drop=True)
        rows.append(Row(name, part['source'].iloc[0], part['kind'].iloc[0], scores))
    marked = found['cases'].reset_index()
    absent = pd.DataFrame(columns=['path', 'label', 'patient'])
    region_cases = RegionCases(marked, absent, None, ())
    document = analyse(region_cases, rows, resamples=RESAMPLES, seed=SEED)
    return Localisation(None, region_cases, rows, {}, document, {}, [FEW])


def write(folder: Path, cases: pd.DataFrame) -> Path:
    """Write tables and figure of the scores of cases; return the table in Markdown."""
    table = write_scores(folder, 'localisation', localisation_of(cases), OF_MAPS)
    (folder / 'localisation_cases.csv').unlink()  # cases.csv has the same
    return table


@tool
def main(args: argparse.Namespace) -> int:
    args.output.mkdir(parents=True, exist_ok=True)
    file = args.output / 'cases.csv'
    text = read_cases(args.folders).to_csv(index=False, float_format='%.4g', lineterminator='\n')
    replace_file(file, text)
    table = write(args.output, pd.read_csv(file, keep_default_na=False))
    print(table.read_text('utf-8'))
    return 0


if __name__ == '__main__':
    sys.exit(main(parse_args()))
