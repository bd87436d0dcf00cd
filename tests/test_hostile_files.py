"""Files that somebody made to do harm: nothing of them runs, fills the memory or leads elsewhere.

What the fuzzer (tests/fuzz) does not find by chance; checkpoints also in test_bad_checkpoints.py.
"""

import ast
import csv
import gzip
import importlib.util
import os
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from csv_files import HEADER, image_path, row, touch, write
from PIL import Image
from tiny import ROOT

import data.records
from data.images import load_image
from data.labels import LABELS
from data.records import (
    plain_cell,
    predictions_for,
    read_csv,
    read_predictions,
    read_table,
    safe_cell,
    write_predictions,
)
from evaluation.report import _write
from sweeps.results import write_csv
from utils import read_checkpoint

FORMULAS = ('=1+1', '+1', '-1+1', '@SUM(A1)', '\t=1', '\n=1', '＝1+1', "'=1", "''@x")
HARMLESS = ('', 'a', "'a", "'", 'a=1', '<script>alert(1)</script>', 'a\nb', 'a,"b"', '1')

SOURCES = sorted(
    path
    for path in (*ROOT.glob('*.py'), *(ROOT / 'tests').rglob('*.py'), *ROOT.glob('*/*.py'))
    if 'tests' not in path.relative_to(ROOT).parts
)


class Payload:
    """Pickled, it asks the reader to make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


# What reads pickles


def test_no_source_reads_pickles_or_yaml_that_can_run_code() -> None:
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                given = {word.arg: ast.unparse(word.value) for word in node.keywords}
                unsafe = name in (
                    *('pickle.load', 'pickle.loads', 'pd.read_pickle', 'joblib.load'),
                    *('yaml.load', 'yaml.unsafe_load', 'yaml.full_load', 'eval', 'exec'),
                )
                loads = name.endswith(('torch.load', 'load_state_dict_from_url'))
                unsafe |= loads and given.get('weights_only') != 'True'
                unsafe |= name == 'np.load' and 'allow_pickle' not in given
                unsafe |= given.get('allow_pickle', 'False') != 'False'
                found += [f'{path.name}: {name}'] * unsafe
    assert len(SOURCES) > 60 and found == []


@pytest.mark.parametrize('place', ['model', 'config', 'SimMIM config', 'optimizer'])
def test_a_pickle_that_would_run_code_does_not(place: str, tmp_path: Path) -> None:
    from yacs.config import CfgNode

    payload = Payload(tmp_path / 'it_ran')
    contents = {'model': {'a': torch.ones(1)}}
    if place == 'SimMIM config':
        contents['config'] = CfgNode({'DATA': CfgNode({'A': 1})})
        dict.__setitem__(contents['config'].DATA, 'B', [payload])
    else:
        contents[place] = {'a': payload}
    torch.save(contents, tmp_path / 'c.pth')
    with pytest.raises(ValueError, match=r'c\.pth: refused, it holds a pickled object of'):
        read_checkpoint(tmp_path / 'c.pth')
    assert not (tmp_path / 'it_ran').exists()


def store_of(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    (folder / 'pictures').mkdir()
    for name in 'ab':
        pixels = rng.integers(0, 255, (40, 40), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f'pictures/{name}.png')
    pack(folder / 'pictures', folder / 'store', Settings(16, True))
    return folder / 'store'


def with_checksum(store: Path, name: str, data: bytes) -> None:
    """Replace a file of a store, and have store.json say that this is what was written."""
    about = read_about(store)
    (store / name).write_bytes(data)
    about['files'][name] = [len(data), zlib.crc32(data)]
    (store / 'store.json').write_bytes(encode_about(about))


# What unpacks to more than it is


def run_limited(code: str, *arguments: object, more_bytes: int = 2**31) -> str:
    """Run Python with so much memory above what it has after its imports; returns what it says."""
    start = (
        'import resource, sys\n'
        'import checkpoint_files, data.tables, data.images\n'
        "pages = int(open('/proc/self/statm').read().split()[0])\n"
        f'limit = pages * resource.getpagesize() + {more_bytes}\n'
        'resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n'
    )
    done = subprocess.run(
        [sys.executable, '-c', start + code, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done.stdout + done.stderr[-2000:]


REFUSAL = """
try:
    {call}
    print('taken')
except ValueError as error:
    print('refused:', str(error)[:500])
"""


@pytest.mark.slow
def test_a_checkpoint_that_unpacks_to_gigabytes_is_refused_before(tmp_path: Path) -> None:
    torch.save({'model': {'a': torch.ones(1)}}, tmp_path / 'small.pth')
    with (
        zipfile.ZipFile(tmp_path / 'small.pth') as source,
        zipfile.ZipFile(tmp_path / 'bomb.pth', 'w', zipfile.ZIP_DEFLATED, compresslevel=1) as bomb,
    ):
        for name in source.namelist():
            with bomb.open(name, 'w', force_zip64=True) as entry:
                entry.write(source.read(name))
                if name.endswith('data/0'):
                    for _ in range(4096):
                        entry.write(bytes(2**20))
    assert (tmp_path / 'bomb.pth').stat().st_size < 2**25
    said = run_limited(
        REFUSAL.format(call='checkpoint_files.read_checkpoint(sys.argv[1])'), tmp_path / 'bomb.pth'
    )
    assert said.startswith('refused:') and 'would unpack to 4,29' in said


def test_a_checkpoint_with_compressed_entries_is_refused(tmp_path: Path) -> None:
    torch.save({'model': {'a': torch.zeros(10_000)}}, tmp_path / 'stored.pth')
    with (
        zipfile.ZipFile(tmp_path / 'stored.pth') as source,
        zipfile.ZipFile(tmp_path / 'c.pth', 'w', zipfile.ZIP_DEFLATED) as copy,
    ):
        for name in source.namelist():
            copy.writestr(name, source.read(name))
    with pytest.raises(ValueError, match=r'c\.pth: .*entries are compressed and would unpack to'):
        read_checkpoint(tmp_path / 'c.pth')


def test_a_tensor_of_more_entries_than_it_holds_is_refused(tmp_path: Path) -> None:
    torch.save({'model': {'a': torch.zeros(1).expand(10**6, 10**6)}}, tmp_path / 'c.pth')
    with pytest.raises(ValueError, match='it has no weights'):
        read_checkpoint(tmp_path / 'c.pth')


def test_a_gzip_that_unpacks_to_too_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data.tables, 'MAX_BYTES', 1000)
    for size, refused in ((999, False), (2000, True)):
        text = 'a\n' + 'x' * (size - 2)
        (tmp_path / 'x.csv.gz').write_bytes(gzip.compress(text.encode()))
        if refused:
            with pytest.raises(ValueError, match=r'x\.csv\.gz .*more than 1,000 bytes'):
                read_table(tmp_path / 'x.csv.gz')
        else:
            assert len(read_table(tmp_path / 'x.csv.gz')) == 1


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['a line', 'columns', 'cells', 'gzip'])
def test_a_csv_of_a_gigabyte_is_refused_within_memory(kind: str, tmp_path: Path) -> None:
    file = tmp_path / ('x.csv.gz' if kind == 'gzip' else 'x.csv')
    block = {'a line': b'x' * 2**20, 'columns': b',' * 2**20}.get(kind, b'a,b\n' * 2**18)
    with gzip.open(file, 'wb', compresslevel=1) if kind == 'gzip' else open(file, 'wb') as stream:
        for _ in range(1024):
            stream.write(block)
    said = run_limited(
        REFUSAL.format(call='data.tables.read_table(__import__("pathlib").Path(sys.argv[1]))'), file
    )
    assert said.startswith(f'refused: {file} is not a readable CSV file: it has more than'), said


def test_limits_of_a_csv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / 'x.csv'
    for text, problem in (
        ('a\n' + 'x' * (2**20 + 1), 'a line of more than 1,048,576 bytes'),
        (','.join(['a'] * 1001) + '\n', 'more than 1,000 columns'),
        ('a\n' + ',' * 1001 + '\n', 'more than 1,000 columns'),
        ('a\nb\0c\n', 'a NUL byte'),
        ('a,b\n"' + 'x\n' * 100_000 + '"\n', 'field larger than field limit'),
        ('a,b\n' + 'x' * 200_000 + '\n', 'field larger than field limit'),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=f'x.csv is not a readable CSV file: .*{problem}'):
            read_table(file)
    monkeypatch.setattr(data.tables, 'MAX_CELLS', 5)
    file.write_text('a,b\n1,2\n3,4\n')
    with pytest.raises(ValueError, match='more than 5 cells'):
        read_table(file)


def test_a_pipe_is_no_csv(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / 'x.csv')
    with pytest.raises(ValueError, match=r'x\.csv .*it is no file'):
        read_table(tmp_path / 'x.csv')


def test_columns_in_a_message_are_cut(tmp_path: Path) -> None:
    names = ['x' * 5000, 'a\nb', *(f'c{i}' for i in range(500))]
    write(tmp_path / 'train.csv', [], names)
    (tmp_path / 'train.csv').open('a').write(',' * (len(names) - 1) + 'x\n')
    with pytest.raises(ValueError, match='missing column: Path') as error:
        read_csv(tmp_path, 'train.csv')
    assert '\n' not in str(error.value) and len(str(error.value)) < 1500


# Numbers and patterns that would take for ever


def test_long_cells_are_refused_at_once(tmp_path: Path) -> None:
    """Each would take a pattern minutes that goes back and forth in it."""
    rows = [row(image_path(1)), row('patient1/study1/' * 40_000)]
    write(tmp_path / 'train.csv', rows)
    touch(tmp_path, image_path(1).partition('/')[2])
    with pytest.raises(ValueError, match=r'train\.csv, row 3 .*is not of the form'):
        read_csv(tmp_path, 'train.csv')
    digits = '1' * 900_000 + 'x'
    lines = ['Path,Edema', f'{image_path(1)},0', f'{image_path(2)},{digits}', '']
    (tmp_path / 'p.csv').write_text('\n'.join(lines))
    with pytest.raises(ValueError, match=r"p\.csv, row 3 .*column 'Edema'"):
        read_predictions(tmp_path / 'p.csv')


# What is written for spreadsheets


@pytest.mark.parametrize('text', [*FORMULAS, *HARMLESS])
def test_a_cell_is_text_and_comes_back_as_it_was(text: str) -> None:
    safe = safe_cell(text)
    assert safe == (f"'{text}" if text in FORMULAS else text)
    assert not safe.startswith(('=', '+', '-', '@', '\t', '\r', '\n', '＝'))
    assert plain_cell(safe) == text
    assert safe_cell('\r=1') == '\\r=1'


def cells_of(file: Path) -> list[str]:
    with file.open(newline='', encoding='utf-8') as stream:
        return [cell for cells in csv.reader(stream) for cell in cells]


def test_what_is_written_holds_no_formulas(tmp_path: Path) -> None:
    from data.describe import Description, save_description

    paths = [f'{text}/patient0000{i}/study1/a.jpg' for i, text in enumerate(FORMULAS)]
    values = np.full((len(paths), len(LABELS)), 0.5)
    file = tmp_path / 'predictions.csv'
    write_predictions(file, values, paths=paths, labels=LABELS, source={})
    assert read_predictions(file).names.tolist() == paths, 'our own reader has them as they were'
    assert np.isfinite(predictions_for(file, paths)).all()

    write_bad(tmp_path, {'left_out': {f'{text}.png': text for text in FORMULAS}})
    _write(tmp_path / 'report.csv', (), iter([{text: text} for text in FORMULAS]))
    settings = {name: '=1+1' for name in ('images', 'model', 'augmented', 'masked')}
    scores = dict.fromkeys(('accuracy', 'precision', 'f1', 'recall', 'auroc'), 0.5)
    write_csv(tmp_path / 'findings.csv', [settings | scores | {'run': '@x'}])
    import pandas as pd

    table = pd.DataFrame({'split': FORMULAS, 'images': 1, 'column': FORMULAS})
    if importlib.util.find_spec('matplotlib'):
        description = Description(splits=table, counts=table, targets=table, notes=[])
        with pytest.raises(Exception):  # noqa: B017 (its picture needs more than this)
            save_description(description, tmp_path / 'described')
    files = [*tmp_path.glob('*.csv'), *(tmp_path / 'described').glob('*.csv')]
    assert len(files) == 7
    for written in files:
        bad = [cell for cell in cells_of(written) if cell.startswith(('=', '+', '@', '\t', '＝'))]
        assert bad == [], written


def test_a_sheet_in_a_csv_stays_text_in_the_groups_of_a_report(tmp_path: Path) -> None:
    from data.records import group_columns

    rows = [{**row(image_path(i)), 'Site': text} for i, text in enumerate(FORMULAS, start=1)]
    for cells in rows:
        touch(tmp_path, cells['Path'].partition('/')[2])
    write(tmp_path / 'train.csv', rows, [*HEADER, 'Site'])
    found = group_columns(read_csv(tmp_path, 'train.csv'), ['Site'])['Site']
    assert [safe_cell(text)[0] for text in found] == ["'"] * len(FORMULAS)
