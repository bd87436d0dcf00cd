"""The data check's script, and clean data sets to spoil for it."""

import csv
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from planted_faults import Found, findings_in
from tiny import ROOT

from data.phantom import make_phantom, make_phantom_mimic

# Warnings on splits as a whole, which small ones always have: their tests look at them alone.
ONE_CLASS = ('label without a positive', 'label without a negative')


@pytest.fixture(scope='session')
def script() -> Callable[..., int]:
    names = runpy.run_path(str(ROOT / 'scripts/check_data.py'))
    return lambda *arguments: names['main'](names['parse_args']([*map(str, arguments)]))


@pytest.fixture
def check(
    script: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture
) -> Callable[..., tuple[int, list[Found]]]:
    """Runs the script on a folder; gives the exit code and its list without those of ONE_CLASS."""

    def run(root: Path, *arguments: object) -> tuple[int, list[Found]]:
        output = tmp_path / 'lists' / 'problems.csv'
        code = script('--data-path', root, '--output', output, '--workers', 2, *arguments)
        assert code in (0, 1), capsys.readouterr().err
        found = findings_in(output)
        assert code == ('\nerror,' in output.read_text())
        return code, [cells for cells in found if cells[0] not in ONE_CLASS]

    return run


@pytest.fixture
def one_class(check: Callable, tmp_path: Path) -> Callable[..., set[tuple[str, str, str]]]:
    """Runs the script on a folder; gives kind, CSV and detail of each warning of ONE_CLASS."""

    def run(root: Path, *arguments: object) -> set[tuple[str, str, str]]:
        check(root, *arguments)
        with open(tmp_path / 'lists' / 'problems.csv', newline='') as file:
            rows = [cells for cells in csv.DictReader(file) if cells['kind'] in ONE_CLASS]
        assert {(cells['severity'], cells['row'], cells['file']) for cells in rows} <= {
            ('warning', '', '')
        }
        found = {(cells['kind'], cells['csv'], cells['detail']) for cells in rows}
        assert len(found) == len(rows)
        return found

    return run


@pytest.fixture(scope='session')
def clean_phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms as large as the check wants them; no test split."""
    folder = tmp_path_factory.mktemp('check') / 'CheXpert-phantom'
    make_phantom(folder, num_train=40, num_valid=8, num_test=1, size=120, seed=1)
    (folder / 'test.csv').unlink()
    shutil.rmtree(folder / 'test')
    return folder


@pytest.fixture
def spoilt(clean_phantom: Path, tmp_path: Path) -> Path:
    """A copy of the phantoms, to spoil."""
    return Path(shutil.copytree(clean_phantom, tmp_path / clean_phantom.name))


@pytest.fixture(scope='module')
def clean_mimic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('mimic') / 'MIMIC'
    make_phantom_mimic(folder, num_train=8, num_valid=3, num_test=3, size=120, seed=1)
    return folder
