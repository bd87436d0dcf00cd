"""Files of tables: all forms give the same texts with the numbers of their rows."""

import io
import pickle
import tracemalloc
import zipfile
from decimal import Decimal
from functools import partial
from pathlib import Path

import numpy as np
import openpyxl
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from csv_files import read, row
from tiny import config_with

from data.images.image_source import Folder
from data.tables.chexpert import open_data_set, read_csv, read_rows
from data.tables.table import Table
from data.tables.table_files import cell_text, csv_text

ROWS = [['a.png', '7', '1', 'Müller'], ['b.png', '', '0', 'x;y'], ['c.png', '61.5', '-1', 'a,b']]
HEADER = ['Path', 'Age', 'Edema', 'note']


def typed() -> pd.DataFrame:
    """The same rows with numbers and an empty cell."""
    values = [['a.png', 7, 1, 'Müller'], ['b.png', None, 0, 'x;y'], ['c.png', 61.5, -1, 'a,b']]
    return pd.DataFrame(values, columns=HEADER)


def write_csv(file: Path, separator: str, encoding: str = 'utf-8', start: str = '') -> None:
    text = pd.DataFrame(ROWS, columns=HEADER).to_csv(sep=separator, index=False)
    file.write_bytes((start + text).replace('\n', '\r\n').encode(encoding))


def write_mac(file: Path, start: list[str]) -> None:
    file.write_bytes('\r'.join([*start, *map('\t'.join, [HEADER, *ROWS])]).encode())


WRITERS = {
    'plain.csv': lambda file: write_csv(file, ','),
    'mark.csv': lambda file: write_csv(file, ',', 'utf-8-sig'),
    'german.csv': lambda file: write_csv(file, ';', 'utf-8-sig'),
    'excel.csv': lambda file: write_csv(file, ';', 'utf-8-sig', 'sep=;\n'),
    'tabs.tsv': lambda file: write_csv(file, '\t'),
    'mac.tsv': lambda file: write_mac(file, []),
    'mac_excel.tsv': lambda file: write_mac(file, ['sep=\t']),
    'unicode.txt': lambda file: write_csv(file, '\t', 'utf-16'),
    'book.xlsx': lambda file: typed().to_excel(file, index=False),
    'lines.jsonl': lambda file: typed().to_json(file, orient='records', lines=True),
    'data.parquet': lambda file: typed().to_parquet(file, index=False),
    'index.csv': lambda file: pd.DataFrame(ROWS, columns=HEADER).to_csv(file),
    'PACKED.CSV.GZ': lambda file: typed().to_csv(file, index=False, compression='gzip'),
}


@pytest.mark.parametrize('name', WRITERS)
def test_every_form_of_a_file_has_the_same_texts(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    table = Table(tmp_path / name)
    assert [*table.cells] == HEADER and table.row.tolist() == [0, 1, 2]
    cells = [table[column].tolist() for column in HEADER]
    cells[1] = [cell.removesuffix('.0') for cell in cells[1]]
    assert [*map(list, zip(*cells, strict=True))] == ROWS
    header = Table(tmp_path / name, lambda fault: None, num_rows=0)
    assert [*header.cells] == HEADER and not len(header)


@pytest.mark.parametrize('separator', [',', ';'])
def test_columns_of_many_different_cells_keep_their_texts(tmp_path: Path, separator: str) -> None:
    """Cells of one column differ from the first row on, and of another one from row 4,000 on."""
    rows = [[f'{n}.png', str(n % 3), str(max(0, n - 4_000))] for n in range(11_000)]
    lines = map(separator.join, [HEADER[:3], *rows])
    (tmp_path / 'a.csv').write_text('\n'.join(lines))
    table = Table(tmp_path / 'a.csv')
    assert [*map(list, zip(*map(table.__getitem__, HEADER[:3]), strict=True))] == rows


def test_memory_for_reading_is_a_small_multiple_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / 'a.csv'
    cells = ',Male,60,Frontal,AP,' + ','.join(['1.0', '', '0.0', '-1.0', ''] * 3)
    rows = [f'data/train/patient{n:05d}/study1/view1_frontal.jpg{cells}' for n in range(10_000)]
    file.write_text('\n'.join([','.join(map(str, range(20))), *rows]))
    tracemalloc.start()
    table = Table(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(table) == len(rows)
    assert peak < 6 * file.stat().st_size


def test_decimal_commas_belong_to_semicolons(tmp_path: Path) -> None:
    (tmp_path / 'a.csv').write_text('a;b;c\n0,5;-1,0;1,2,3\n')
    assert Table(tmp_path / 'a.csv').cells.iloc[0].tolist() == ['0.5', '-1.0', '1,2,3']
    (tmp_path / 'a.csv').write_text('Patient ;Study;p\n1,000;1,5;0,5\n1,000;2\n')
    table = Table(tmp_path / 'a.csv', lambda fault: None)
    assert table.cells.iloc[0].tolist() == ['1,000', '1,5', '0.5'], 'names are no numbers'
    (tmp_path / 'a.csv').write_text('a,b\n"0,5","x;y"\n')
    assert Table(tmp_path / 'a.csv').cells.iloc[0].tolist() == ['0,5', 'x;y']


@pytest.mark.parametrize(
    ('value', 'text'),
    [(1.0, '1'), (0.5, '0.5'), (np.nan, ''), (None, ''), (True, '1'), (np.False_, '0'), ('x', 'x'),
     (Decimal('1.00'), '1'), (Decimal('100'), '100'),
     (np.int64(7), '7'), (pd.NaT, ''), (pd.NA, ''), (1.5e17, '1.5e+17'),
     (2.0**53 - 1, '9007199254740991'), (2.0**53, '9007199254740992.0'), ([1, 'a'], '[1, "a"]')],
)  # fmt: skip
def test_a_typed_cell_has_one_text(value: object, text: str) -> None:
    assert cell_text(value) == text


def test_rows_keep_their_numbers_in_files(tmp_path: Path) -> None:
    table = pd.DataFrame({'a': [1.0, np.nan], 'b': ['x', 'y\nz']}, index=[2, 5])
    (tmp_path / 'a.csv').write_text(csv_text(table))
    again = Table(tmp_path / 'a.csv')
    assert again.row.tolist() == [2, 5] and again['a'].tolist() == ['1', '']
    assert again['b'].tolist() == ['x', 'y\nz']


def test_labels_may_be_in_a_spreadsheet(tmp_path: Path) -> None:
    rows = [row(f'X/train/patient0000{n}/study1/view1_frontal.jpg', Edema='1') for n in range(3)]
    plain = read(tmp_path, rows, look_up='none')
    frame = pd.read_csv(tmp_path / 'train.csv')
    frame.to_excel(tmp_path / 'train.xlsx', index=False)
    again = read_csv(tmp_path, 'train.xlsx', look_up='none')
    np.testing.assert_array_equal(again.labels, plain.labels)
    np.testing.assert_array_equal(again.age, plain.age)
    frame.assign(Edema=[1, 2, 1]).to_excel(tmp_path / 'train.xlsx', index=False)
    with pytest.raises(ValueError, match=r"train\.xlsx, row 3.*'Edema'.*'2'"):
        read_csv(tmp_path, 'train.xlsx', look_up='none')


def test_the_inner_folder_of_an_archive_is_named(tmp_path: Path) -> None:
    inner = tmp_path / 'archive/CheXpert-v1.0-small'
    inner.mkdir(parents=True)
    (inner / 'train.csv').write_text('Path\n')
    with pytest.raises(ValueError, match=f'it is in {inner}: use this folder'):
        read_csv(tmp_path, 'train.csv')


@pytest.mark.parametrize('name', ['a.xlsx', 'a.parquet', 'a.jsonl', 'a.csv.gz'])
def test_damaged_files_are_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b'PK\x03\x04 no such file')
    with pytest.raises(ValueError, match=name):
        Table(tmp_path / name)


PICTURE = b'\x89PNG\r\n'


def parquet(folder: Path, **columns: object) -> Table:
    pq.write_table(pa.table(columns), folder / 'a.parquet')
    return Table(folder / 'a.parquet')


def test_texts_that_are_bytes_and_nested_cells_are_read(tmp_path: Path) -> None:
    names = ['Müller'.encode(), b'', None]
    table = parquet(
        tmp_path,
        bytes=pa.array(names),
        large=pa.array(names, pa.large_binary()),
        fixed=pa.array([b'ab', b'cd', None], pa.binary(2)),
        coded=pa.array(names).dictionary_encode(),
        empty=pa.array([None] * 3, pa.binary()),
        pair=[{'a': 1, 'b': 'x'}, {'a': 2, 'b': 'y'}, None],
        list=[[1, 2], [], None],
        row=[1, 2, 3],
    )
    for name in ('bytes', 'large', 'coded'):
        assert table[name].tolist() == ['Müller', '', '']
    assert table['fixed'].tolist() == ['ab', 'cd', ''] and table['empty'].tolist() == [''] * 3
    assert table['pair'].tolist() == ['{"a": 1, "b": "x"}', '{"a": 2, "b": "y"}', '']
    assert table['list'].tolist() == ['[1, 2]', '[]', '']


NO_TEXTS = {
    'picture': [PICTURE],
    'UTF-16': ['train'.encode('utf-16')],
    'Latin-1 in a later row': [b'a', 'Müller'.encode('latin-1')],
    'bytes in a struct': [{'bytes': b'train', 'path': None}],
    'bytes in a list': [[b'train']],
    'bytes in a map': pa.array([[('a', b'train')]], pa.map_(pa.string(), pa.binary())),
}


@pytest.mark.parametrize('kind', NO_TEXTS)
def test_a_column_that_is_no_text_is_named_where_it_is_asked_for(tmp_path: Path, kind: str) -> None:
    cells = NO_TEXTS[kind]
    table = parquet(tmp_path, Split=cells, photo=cells, label=[1] * len(cells))
    row = len(cells) + 1
    for _ in range(2):
        assert 'Split' in table
        with pytest.raises(ValueError, match=rf"a\.parquet, row {row} .*'Split' has bytes"):
            table['Split']
        with pytest.raises(ValueError, match="'Split'"):
            table.texts()
    assert table['label'].tolist() == ['1'] * len(cells)
    others = parquet(tmp_path, photo=cells, label=[1] * len(cells))
    assert others['label'].tolist() == ['1'] * len(cells)


def test_no_row_of_another_split_trains(tmp_path: Path) -> None:
    """A split in bytes, of all rows, was not read, so that the rows of test trained."""
    frame = pd.DataFrame({'Path': [f'X/patient0000{n}/study1/view1_frontal.jpg' for n in range(3)]})
    data_set = open_data_set(
        config_with(DATA__TRAIN_CSV='t.parquet', DATA__DATASET='chexpert'), tmp_path
    )
    frame.assign(Split=[b'train', b'test', b'train']).to_parquet(tmp_path / 't.parquet')
    options = {'look_up': 'none', 'labels': ()}
    assert data_set.read('train', **options).row.tolist() == [0, 2]
    frame.assign(Split=[PICTURE] * 3).to_parquet(tmp_path / 't.parquet')
    with pytest.raises(ValueError, match="t.parquet.*'Split'"):
        data_set.read('train', **options)
    faults: list = []
    assert not len(data_set.read('train', on_fault=faults.append, **options))
    assert 'unreadable column' in {fault.kind for fault in faults}


def test_a_picture_named_like_a_label_stops_no_run(tmp_path: Path) -> None:
    cells = {'Path': ['X/patient1/study1/frontal.jpg'], 'Edema': [1], 'Edema mask': [PICTURE]}
    records = read_rows(parquet(tmp_path, **cells), Folder(tmp_path), labels=['Edema'])
    assert records.labels.tolist() == [[1]] and records.other_names == ()


def merged(file: Path, cells: str, rows: list[list[object]]) -> Path:
    book = openpyxl.Workbook()
    for row_of_cells in rows:
        book.active.append(row_of_cells)
    book.active.merge_cells(cells)
    book.save(file)
    return file


@pytest.mark.parametrize('cells', ['B2:B4', 'A3:B3', 'B1:C1', 'C2:D3'])
def test_merged_cells_are_no_empty_ones(tmp_path: Path, cells: str) -> None:
    rows = [['Path', 'Patient', 'Edema'], *([f'{n}.png', '7', 1] for n in range(3))]
    file = merged(tmp_path / 'a.xlsx', cells, rows)
    with pytest.raises(ValueError, match=f'a.xlsx.*the cells {cells} are merged.*unmerge'):
        Table(file)


def test_merged_cells_outside_the_table_or_without_a_value_are_no_fault(tmp_path: Path) -> None:
    rows = [['Path', 'Edema', None, None], ['a.png', 1, None, 'note'], ['b.png', None, None, None]]
    for cells in ('D2:D3', 'B3:C3'):
        table = Table(merged(tmp_path / 'a.xlsx', cells, rows))
        assert table['Edema'].tolist() == ['1', '']


@pytest.mark.parametrize('name', ['a.xlsx', 'a.parquet', 'a.jsonl', 'a.csv.gz'])
def test_tables_of_any_width_are_read(tmp_path: Path, name: str) -> None:
    wide = pd.DataFrame([[*range(1200)]] * 3, columns=[f'feature_{n}' for n in range(1200)])
    write = {
        '.xlsx': partial(wide.to_excel, index=False),
        '.parquet': wide.to_parquet,
        '.jsonl': partial(wide.to_json, orient='records', lines=True),
        '.gz': partial(wide.to_csv, index=False),
    }
    write[Path(name).suffix](tmp_path / name)
    table = Table(tmp_path / name)
    assert [*table['feature_1199']] == ['1199'] * 3


def test_a_formula_without_a_value_is_no_empty_cell(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    for cells in (['Path', 'Edema'], ['a.png', 1], ['b.png', '=IF(B2=1,0,1)']):
        book.active.append(cells)
    book.save(tmp_path / 'book.xlsx')
    with pytest.raises(ValueError, match='book.xlsx.*row 3 has a formula without its value'):
        Table(tmp_path / 'book.xlsx')


def test_a_hidden_sheet_in_front_is_not_read(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    book.active.append(['old'])
    book.active.sheet_state = 'hidden'
    labels = book.create_sheet('labels')
    labels.append(['Path', 'Edema'])
    labels.append(['a.png', 1])
    book.active = 1
    book.save(tmp_path / 'book.xlsx')
    assert Table(tmp_path / 'book.xlsx')['Edema'].tolist() == ['1']


def test_a_key_that_a_json_object_repeats_is_refused(tmp_path: Path) -> None:
    (tmp_path / 'a.jsonl').write_text('{"Path": "a.png", "Edema": 0, "Edema": 1}\n')
    with pytest.raises(ValueError, match='a.jsonl.*line 1.*a key twice'):
        Table(tmp_path / 'a.jsonl')


def contents_of(kind: str) -> bytes:
    """Return a small table in another format."""
    frame, file = typed(), io.BytesIO()
    if kind == 'archive':
        with zipfile.ZipFile(file, 'w') as archive:
            archive.writestr('train.csv', frame.to_csv())
    elif kind == 'OpenDocument':
        with zipfile.ZipFile(file, 'w') as archive:
            archive.writestr('mimetype', 'application/vnd.oasis.opendocument.spreadsheet')
    elif kind == 'pickle':
        pickle.dump(frame, file)
    elif kind == 'text':
        file.write(frame.to_csv().encode())
    else:
        getattr(
            frame, {'Office': 'to_excel', 'Parquet': 'to_parquet', 'Feather': 'to_feather'}[kind]
        )(file)
    return file.getvalue()


@pytest.mark.parametrize(
    'name, kind',
    [
        ('a.csv', 'Office'),
        ('a.xls', 'Office'),
        ('a.jsonl', 'Office'),
        ('a.zip', 'archive'),
        ('a.csv', 'archive'),
        ('a.ods', 'OpenDocument'),
        ('a.pkl', 'pickle'),
        ('a.csv', 'Parquet'),
        ('a.feather', 'Feather'),
        ('a.xlsx', 'text'),
        ('a.parquet', 'text'),
        ('a.csv.gz', 'text'),
    ],
)
def test_a_file_in_another_format_is_named(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / name).write_bytes(contents_of(kind))
    with pytest.raises(ValueError, match=rf'{name}.*it is .*{kind}.*\.xlsx') as error:
        Table(tmp_path / name)
    assert 'save it as UTF-8' not in str(error.value)


@pytest.mark.parametrize(
    'start, part',
    [
        (b'\xd0\xcf\x11\xe0\xa1\xb1', 'old Office'),
        (b'version https://git-lfs.github.com/spec/v1\noid sha256:0\n', 'git lfs pull'),
        (b'<!DOCTYPE html><html><body>Sign in, please</body></html>', 'a web page'),
        (b'%PDF-1.7\n', 'a PDF'),
        (bytes(range(256)), 'it is no text'),
        ('Path,Edema\na.png,1\n'.encode('utf-16-le'), 'it is no text'),
        ('Path,note\na.png,Müller\n'.encode('latin-1'), 'save it as UTF-8'),
    ],
)
def test_a_file_that_is_no_table_says_what_it_is(tmp_path: Path, start: bytes, part: str) -> None:
    (tmp_path / 'train.csv').write_bytes(start)
    with pytest.raises(ValueError, match=f'train.csv.*{part}'):
        Table(tmp_path / 'train.csv')


@pytest.mark.parametrize('header', ['BMI', 'PAR1', 'P1', 'GIF', 'Path', 'Müller', '7z', '%', '-'])
def test_a_column_may_be_called_like_a_format(tmp_path: Path, header: str) -> None:
    for separator in (',', ';', '\t'):
        (tmp_path / 'a.csv').write_text(f'{header}{separator}Edema\nx{separator}1\n', 'utf-8')
        assert Table(tmp_path / 'a.csv')[header].tolist() == ['x']


def test_a_workbook_with_macros_is_read(tmp_path: Path) -> None:
    (tmp_path / 'a.xlsm').write_bytes(contents_of('Office'))
    assert Table(tmp_path / 'a.xlsm')['Edema'].tolist() == ['1', '0', '-1']
