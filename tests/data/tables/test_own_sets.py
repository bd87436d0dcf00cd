"""Data sets of the user: a file with a function that makes the table, from files and packed."""

import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from csv_files import touch
from PIL import Image
from tiny import config_with, run_script
from xray_splits import LOGGER

from config import Config
from data.fingerprint import describe_data
from data.loader import Loaders
from data.packing import Settings, pack, read_source
from data.tables.chexpert import open_data_set, read_csv
from data.tables.known_sets import listed, majority
from data.tables.records import Records
from data.tables.table import refuse
from data.tables.table_warnings import SIMILAR
from engine.run_record import run_changes

NAN = np.nan
EXPORT = """file,who,sex,years,projection,findings,part
x/1.png,P1,F,61,pa,effusion; enlarged heart,a
x/2.png,P1,F,61,lat,normal,a
y/3.png,P2,,,oblique,,b
y/4.png,P3,male,0.5,pa,normal,c
y/5.png,P4,u,030Y,pa,effusion,d
"""
MINE = """
import pandas as pd
from data.tables.known_sets import ages, listed, open_table, sexes, views

def read(root):
    table = open_table(root, 'export.csv')
    made = pd.DataFrame({
        'Path': 'xrays/' + table['file'],
        'Split': table['part'].map({'a': 'train', 'b': 'train', 'c': 'valid', 'd': 'test'}),
        'Patient': table['who'], 'Sex': sexes(table['sex']), 'Age': ages(table['years']),
    })
    names = {'enlarged heart': 'Cardiomegaly', 'normal': 'No Finding'}
    labels = listed(table['findings'], ';').rename(columns=names)
    return made.join(views(table['projection'])).join(labels)
"""


def image(file: Path, seed: int = 0) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    grey = np.random.default_rng(seed).integers(0, 255, (40, 40), np.uint8)
    Image.fromarray(grey).save(file)


def described(root: Path, text: str = MINE, table: str = EXPORT) -> str:
    """A data set of the user below a folder; returns the path of its function."""
    for number, line in enumerate(table.splitlines()[1:]):
        image(root / 'data' / 'xrays' / line.partition(',')[0], number)
    (root / 'data' / 'export.csv').write_text(table)
    (root / 'mine.py').write_text(text)
    return str(root / 'mine.py')


def config_of(name: str, **options: object) -> Config:
    return config_with(DATA__DATASET=name, **options)


def read(root: Path, name: str, split: str, labels: tuple[str, ...] = (), **options) -> Records:
    return open_data_set(config_of(name), root / 'data').read(split, labels=labels, **options)


def written(root: Path, table: str, text: str, file: str = 'export.csv') -> str:
    """A table and a function of the user, without images; returns the path of the function."""
    (root / 'data').mkdir(exist_ok=True)
    (root / 'data' / file).write_text(table)
    (root / 'mine.py').write_text(text)
    return str(root / 'mine.py')


def test_a_function_of_the_user_makes_the_table(tmp_path: Path) -> None:
    name = described(tmp_path)
    labels = ('Cardiomegaly', 'effusion', 'No Finding')
    train = read(tmp_path, name, 'train', labels)
    assert train.file.tolist() == ['xrays/x/1.png', 'xrays/x/2.png', 'xrays/y/3.png']
    assert train.csv == 'export.csv' and train.row.tolist() == train.sample.tolist() == [0, 1, 2]
    assert train.patient.tolist() == ['P1', 'P1', 'P2']
    assert train.study.tolist() == train.file.tolist()
    assert train.view.tolist() == ['frontal', 'lateral', '']
    assert train.ap_pa.tolist() == ['PA', '', '']
    assert train.sex.tolist() == ['Female', 'Female', 'Unknown']
    np.testing.assert_array_equal(train.age, [61, 61, NAN])
    np.testing.assert_array_equal(train.labels, [[1, 1, 0], [0, 0, 1], [NAN] * 3])
    valid, test = (read(tmp_path, name, split, labels) for split in ('valid', 'test'))
    assert valid.row.tolist() == [3] and valid.age.tolist() == [0.5]
    assert test.labels.tolist() == [[0, 1, 0]] and test.age.tolist() == [30]


PLAIN = """
import pandas as pd

def read(root):
    table = pd.read_csv(root / 'export.csv')
    {line}
    return pd.DataFrame({{
        'Path': 'xrays/' + table['file'], 'Patient': table['who'], 'Frontal/Lateral': 'Frontal',
        'Age': table['years'].where(table['years'] != '030Y'), 'effusion': table['findings'].str.contains('eff', na=False),
    }})
"""  # noqa: E501


def test_typed_cells_are_read_as_texts(tmp_path: Path) -> None:
    name = described(tmp_path, PLAIN.format(line='table["who"] = [7.0, 7.0, 8, 9, 10]'))
    records = read(tmp_path, name, 'train', ('effusion',))
    assert records.patient.tolist() == ['7', '7', '8', '9', '10'] and records.csv == ''
    np.testing.assert_array_equal(records.age, [61, 61, NAN, 0.5, NAN])
    assert records.labels[:, 0].tolist() == [1, 0, 0, 0, 1]


@pytest.mark.parametrize(
    ('line', 'parts'),
    [
        ('return 3', ['pandas.DataFrame', 'int']),
        ('return {"val": table}', ['train, valid, test']),
        ('table["nothing"]', ['line 6', 'KeyError', 'nothing']),
        ('table.index = [0, 0, 1, 2, 3]', ['index', 'reset_index']),
        ('table.index = table["file"]', ['index', 'reset_index']),
        ('table["years"] = "old"', ['row 2', "'Age'", "'old'"]),
        ('table["file"] = "../" * 3 + table["file"]', ['row 2', "'Path'"]),
        ('table["file"] = "same.png"', ['row 3', "'Path'", 'row 2']),
        ('return table.rename(columns={"file": "Path"})', ["no column Patient"]),
        ('return table.assign(Split="final", Path=table["file"])', ['row 2', "'Split'", "'final'"]),
        ('return {"train": None}', ["'train': 'NoneType'"]),
        ('return pd.concat([table, table[["sex"]]], axis=1)', ["'sex'", 'twice']),
        ('return table.set_axis(pd.MultiIndex.from_product([["a"], table]), axis=1)', ['levels']),
        ('return table[:0]', ['empty tables']),
    ],
)  # fmt: skip
def test_what_a_function_does_wrong_is_named(tmp_path: Path, line: str, parts: list[str]) -> None:
    name = described(tmp_path, PLAIN.format(line=line))
    with pytest.raises(ValueError) as error:
        read(tmp_path, name, 'train')
    assert all(part in str(error.value) for part in ('mine.py', *parts)), error.value


BY_SPLIT = """
import pandas as pd

def read(root):
    rows = pd.read_csv(root / 'export.csv', keep_default_na=False)
    return {{split: rows.assign(Split={cells}) for split in ('train', 'test')}}
"""
ROWS = 'Path,Patient,Frontal/Lateral\na.png,1,Frontal\nb.png,2,Frontal\n'


def test_tables_by_split_whose_rows_say_another_split_are_refused(tmp_path: Path) -> None:
    options = {'look_up': 'none'}
    for cells in ('split', '[split, ""]', '""'):
        name = written(tmp_path, ROWS, BY_SPLIT.format(cells=cells))
        if cells != '""':
            count = len(read(tmp_path, name, 'test', **options))
            assert count == (2 if cells == 'split' else 1)
    with pytest.raises(ValueError, match='no split train, only empty tables'):
        read(tmp_path, name, 'train', **options)
    for cells, row in (('"test"', 2), ('[split, "valid"]', 3), ('[split, "val"]', 3)):
        name = written(tmp_path, ROWS, BY_SPLIT.format(cells=cells))
        with pytest.raises(ValueError, match=rf"mine.py: train, row {row}.*'Split'.*train, empty"):
            read(tmp_path, name, 'test', **options)


def test_rows_that_no_split_reads_are_counted(tmp_path: Path) -> None:
    text = ROWS.replace('Path,', 'Split,Path,').replace('a.png', 'train,a.png')
    (tmp_path / 'train.csv').write_text(text.replace('b.png', 'valid,b.png'))
    data_set, faults = open_data_set(config_of('chexpert'), tmp_path), []
    options = {'look_up': 'none', 'on_fault': faults.append}
    assert len(data_set.read('train', **options)) == len(data_set.read('valid', **options)) == 1
    assert not [fault for fault in faults if fault.severity != 'note']
    (tmp_path / 'valid.csv').write_text(ROWS)
    assert len(data_set.read('train', **options)) == 1
    (fault,) = [fault for fault in faults if fault.severity != 'note']
    assert fault.severity == 'warning' and 'train.csv: 1 rows are of the split valid' in str(fault)
    assert 'is read from valid.csv' in str(fault)


def test_a_column_in_another_spelling_is_told(tmp_path: Path) -> None:
    (tmp_path / 'train.csv').write_text(
        ROWS.replace('Path,', 'split,Path,').replace('\n', '\ntest,', 2)
    )
    faults: list = []
    read_csv(tmp_path, 'train.csv', labels=(), look_up='none', on_fault=faults.append)
    (fault,) = [fault for fault in faults if fault.severity == 'warning']
    assert "'split' is not read: its name must be 'Split'" in fault.detail


INDEXED = """
import pandas as pd

def read(root):
    table = pd.read_csv(root / 'export.csv', keep_default_na=False)
    table['Frontal/Lateral'] = 'Frontal'
    {line}
    return table
"""
PATIENTS = [50414267, 53189527, 50000014, 59999999]
IDS = zip('abcd', ('train', 'valid', 'train', 'train'), PATIENTS, strict=True)
LARGE = 'Path,Split,Patient,Edema\n' + '\n'.join(
    f'{a}.png,{split},{who},1' for a, split, who in IDS
)


@pytest.mark.parametrize(
    'line',
    [
        'table = table.set_index("Patient", drop=False)',
        'table.index = table["Patient"].to_numpy()',
        'table.index = table["Patient"].astype("uint64")',
        'table = table.set_index(pd.Index([9, 4, 1, 0]))',
        'table.index += 2**40',
    ],
)
def test_rows_are_counted_if_the_index_has_other_numbers(tmp_path: Path, line: str) -> None:
    name = written(tmp_path, LARGE, INDEXED.format(line=line))
    for number, letter in enumerate('abcd'):
        image(tmp_path / 'data' / f'{letter}.png', number)
    train, valid = (read(tmp_path, name, split) for split in ('train', 'valid'))
    assert train.sample.tolist() == train.row.tolist() == [0, 2, 3]
    assert valid.row.tolist() == [1] and train.patient[1] == '50000014'
    store = tmp_path / 'store'
    pack(read_source(tmp_path / 'data', dataset=name), store, Settings(size=None, square=False))
    assert max(file.stat().st_size for file in store.glob('*.csv')) < 500
    again = open_data_set(config_of(name), store).read('train')
    assert again.sample.tolist() == [0, 2, 3] and again.path.tolist() == train.path.tolist()
    words = ['--data-path', tmp_path / 'data', '--table', tmp_path / 'table.csv']
    options = ['DATA.DATASET', name, 'DATA.LABELS', "['Edema']"]
    assert run_script('describe_data', *words, '--opts', *options) == 0
    assert pd.read_csv(tmp_path / 'table.csv')['Patient'].tolist() == PATIENTS
    assert (tmp_path / 'table.csv').stat().st_size < 500


@pytest.mark.parametrize('line', ['table = table[table.index != 1]', 'table.index += 5'])
def test_numbers_of_rows_remain(tmp_path: Path, line: str) -> None:
    """Those of a table without some of its rows determine random numbers, as before."""
    name = written(tmp_path, LARGE, INDEXED.format(line=line))
    wanted = [0, 2, 3] if '!=' in line else [5, 7, 8]
    assert read(tmp_path, name, 'train', look_up='none').sample.tolist() == wanted
    of_file = INDEXED.replace('pd.read_csv(root / ', 'open_table(root, ').replace(
        ', keep_default_na=False', ''
    )
    of_file = 'from data.tables.known_sets import open_table\n' + of_file
    name = written(tmp_path, LARGE, of_file.format(line='table = table[::-1]'))
    records = read(tmp_path, name, 'train', look_up='none')
    assert records.row.tolist() == [3, 2, 0] and records.csv == 'export.csv'


def test_the_line_of_a_file_that_is_named_relatively_is_named(tmp_path: Path, monkeypatch) -> None:
    described(tmp_path, PLAIN.format(line='open_table'))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r'mine\.py: line 6: NameError'):
        read(Path('.'), 'mine.py', 'train')
    with pytest.raises(ValueError, match=f'no file {tmp_path / "other.py"}'):
        read(Path('.'), 'other.py', 'train')


@pytest.mark.parametrize('text', ['x = 1', 'def read(root)', 'import nowhere_to_be_found', None])
def test_a_file_without_a_usable_function_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / 'mine.py').write_text(text)
    with pytest.raises(ValueError, match=r'mine\.py'):
        read(tmp_path, str(tmp_path / 'mine.py'), 'train')


def test_an_edited_function_is_noticed_when_a_run_resumes(tmp_path: Path) -> None:
    def describe(text: str) -> dict:
        name = described(tmp_path, text)
        record = read(tmp_path, name, 'train', ('effusion',))
        dataset = SimpleNamespace(parts={'': SimpleNamespace(records=record)})
        return describe_data(config_of(name), Loaders(train=SimpleNamespace(dataset=dataset)))

    text = PLAIN.format(line='')
    before, same = describe(text), describe(text + '# a comment')
    assert set(before['files']) == {'DATA.DATASET'} and before == same
    after = describe(text.replace("'eff'", "'nor'"))
    (change,) = run_changes({'data': before}, {'data': after})
    assert change == 'data: DATA.DATASET (5 -> 5 images)'


def test_a_store_contains_the_table_and_refuses_another_version_of_the_function(tmp_path) -> None:
    text = MINE.replace("{'a': 'train'", "{'a': 'valid'")
    plain = "pd.read_csv(root / 'export.csv', dtype=str, na_filter=False)"
    name = described(tmp_path, text.replace("open_table(root, 'export.csv')", plain))
    store, labels = tmp_path / 'store', ('effusion', 'Cardiomegaly')
    pack(read_source(tmp_path / 'data', dataset=name), store, Settings(size=None, square=False))
    config = config_of(name)
    for split in ('train', 'valid', 'test'):
        a, b = (
            open_data_set(config, root).read(split, labels=labels, look_up='all')
            for root in (tmp_path / 'data', store)
        )
        for key in ('row', 'sample', 'path', 'file', 'patient', 'study', 'view', 'sex', 'ap_pa'):
            assert getattr(a, key).tolist() == getattr(b, key).tolist(), key
        for key in ('age', 'labels'):
            np.testing.assert_array_equal(getattr(a, key), getattr(b, key))
    shutil.rmtree(tmp_path / 'data')
    assert len(open_data_set(config, store).read('valid')) == 3
    with open(name, 'a') as file:
        file.write('# edited\n')
    with pytest.raises(ValueError, match=r'no table mine-.*another version'):
        open_data_set(config, store).read('valid')


def test_patients_in_another_file_and_rows_without_labels(tmp_path: Path, caplog) -> None:
    """Numbers of both files are compared in their canonical form."""
    text = """
import pandas as pd
from data.tables.known_sets import images_below, join, join_labels, open_table as table

def read(root):
    paths = images_below(root)
    images = pd.DataFrame({'Path': paths, 'image': paths.str.extract(r'IMG(\\d+)')[0]})
    images = images.join(join(images, table(root, 'who.csv'), ['image']))
    labels = table(root, 'labels.csv').rename(columns={'number': 'image'})
    labels = join_labels(images, labels.rename_axis('labels.csv'), ['image'])
    return images.rename(columns={'patient': 'Patient'}).assign(**{'Frontal/Lateral': 'Frontal'}).join(labels)
"""  # noqa: E501
    written(tmp_path, 'image;patient\n1.0;"A;7"\n2;B\n3;C\n', text, 'who.csv')
    name = written(tmp_path, 'number\tMass\n003\t1\n1\t0\n', text, 'labels.csv')
    for number in (1, 2, 3):
        image(tmp_path / 'data' / f'IMG{number:04d}.png')
    on_fault = partial(refuse, logger=LOGGER)
    records = read(tmp_path, name, 'train', ('Mass',), on_fault=on_fault)
    assert records.patient.tolist() == ['A;7', 'C'] and records.labels.tolist() == [[0], [1]]
    assert '1 of 3 rows have no row in labels.csv' in caplog.text
    assert '1 of 3 rows have no labels and are left out' in caplog.text
    assert len(read(tmp_path, name, 'train')) == 3  # pre-training uses all


LISTS = """
import pandas as pd
from data.tables.known_sets import listed, open_table as table

def read(root):
    cells = table(root, 'export.csv')
    labels = listed(cells['finding'], '|').rename(columns={'normal': 'No Finding'})
    view = {'Frontal/Lateral': 'Frontal'}
    return labels.assign(Path=cells['file'], Patient=cells['file'], **view)
"""


@pytest.mark.parametrize('rows', [4, 400])
def test_other_spellings_of_a_listed_label_give_a_warning(tmp_path: Path, rows: int) -> None:
    """Whatever their share; so do words that say that the list is not complete."""
    cells = ['Edema|edema?', 'no edema', 'Mass', 'Edema.|Mass', 'Unclear']
    cells += ['normal', 'Edema'] * rows
    table = 'file,finding\n' + ''.join(f'{n}.png,{cell}\n' for n, cell in enumerate(cells))
    faults: list = []
    name, options = written(tmp_path, table, LISTS), {'on_fault': faults.append, 'look_up': 'none'}
    read(tmp_path, name, 'train', ('No Finding', 'Edema'), **options)
    found = {fault.kind: fault for fault in faults}
    assert {fault.severity for fault in faults} <= {'warning', 'note'}
    for spelling in ('edema?', 'no edema', 'Edema.'):
        assert f'{spelling!r} (Edema, rows: 1)' in found[SIMILAR].detail
    assert "'Unclear'" in found['words for unknown labels'].detail


@pytest.mark.parametrize('separator', ['|', ''])
@pytest.mark.parametrize('cell', ['', ' ', '[]', '[ ]', "['']", '[nan]', '\u00a0', 'NaN'])
def test_a_list_of_nothing_says_nothing(cell: str, separator: str) -> None:
    values = listed(pd.Series([cell, 'Mass']), separator)
    np.testing.assert_array_equal(values['Mass'], [NAN, 1])


def test_each_reader_has_one_vote_and_a_tie_is_uncertain() -> None:
    rows = ['1,A,1,', '1,B,0,', '2,A,1,0', '2,A,0,1', '2,B,0,', '2,C,0,', '3,A,,1']
    table = pd.DataFrame(
        [row.split(',') for row in rows], columns=['file', 'rad_id', 'Mass', 'Edema']
    )
    votes = majority(table, 'file', ['Mass', 'Edema'])
    assert votes.index.tolist() == [0, 2, 6]
    np.testing.assert_array_equal(votes, [[-1, NAN], [0, 1], [NAN, 1]])


def test_one_table_with_a_column_split_is_enough(tmp_path: Path) -> None:
    """A semicolon table of a spreadsheet, with patients of any name and paths of any form."""
    lines = ['Path;Patient;Split;Sex;Age;Frontal/Lateral;Mass']
    for number in range(30):
        split = 'train' if number < 20 else ('valid', 'test')[number % 2]
        cells = (f'a/{number}.png', f'P-{number // 2 + 100 * (number >= 20) * (number % 2)}', split)
        lines.append(';'.join([*cells, 'Female', '61,5', 'Frontal', f'{number // 2 % 2},0']))
        image(tmp_path / 'data' / 'a' / f'{number}.png', number)
    (tmp_path / 'data' / 'train.csv').write_text('\n'.join(lines), 'utf-8-sig')
    config = config_with(DATA__DATASET='chexpert', DATA__DATA_PATH=str(tmp_path / 'data'))
    found = {
        split: open_data_set(config, tmp_path / 'data').read(split, labels=('Mass',), optional=True)
        for split in ('train', 'valid', 'test')
    }
    assert [part.row.tolist() for part in found.values()] == [
        [*range(20)], [*range(20, 30, 2)], [*range(21, 30, 2)]
    ]  # fmt: skip
    assert found['train'].labels[:4, 0].tolist() == [0, 0, 1, 1] and found['train'].age[0] == 61.5
    words = ['--data-path', tmp_path / 'data', '--opts', 'DATA.LABELS', "['Mass']"]
    table = tmp_path / 'read.csv'
    assert run_script('describe_data', '--table', table, *words) == 0
    shutil.copy(table, tmp_path / 'data' / 'train.csv')
    for split, part in found.items():
        same = open_data_set(config, tmp_path / 'data').read(split, labels=('Mass',))
        assert same.sample.tolist() == part.sample.tolist()
        np.testing.assert_array_equal(same.labels, part.labels)


def test_images_that_are_not_there_are_missing_and_not_repeated(tmp_path: Path) -> None:
    """A path without a folder has no first folder that could be another one on this disk."""
    (tmp_path / 'train.csv').write_text('Path,Patient,Frontal/Lateral\n0.png,1,\n1.png,2,\n')
    faults: list = []
    read_csv(tmp_path, 'train.csv', labels=(), look_up='all', on_fault=faults.append)
    assert [fault.kind for fault in faults if fault.severity == 'error'][-1] == 'missing images'
    assert 'duplicate path' not in {fault.kind for fault in faults}


STUDIES = """
import pandas as pd

def read(root):
    return pd.read_csv(root / 'export.csv').assign(**{'Frontal/Lateral': 'Frontal'})
"""


def test_images_of_studies_have_the_suffix_of_the_converted_files(tmp_path: Path) -> None:
    name = written(tmp_path, 'Study,Patient,Edema\na.1,a,0\nb,b,1\n', STUDIES)
    touch(tmp_path / 'data', 'a.1/x.dcm', 'a.1/x.png', 'b/y.png')
    config = config_of(name, DATA__IMAGE_SUFFIX='.png')
    records = open_data_set(config, tmp_path / 'data').read('train', labels=['Edema'])
    assert records.file.tolist() == ['a.1/x.png', 'b/y.png']
    assert records.study.tolist() == ['a.1', 'b']


@pytest.mark.parametrize(
    ('tables', 'options', 'finding'),
    [
        ({'train': 'train', 'valid': '', 'test': 'train'}, (), 'no usable row of the split test'),
        ({'train': 'train', 'valid': '', 'test': 'valid'}, (), 'no usable row of the split test'),
        ({'train': 'train'}, (), 'no usable row of the split valid'),
        ({'train': '', 'test': ''}, ('DATA.VALID_CSV', 'vaild.csv'), 'vaild.csv'),
    ],
)
def test_check_data_finds_a_split_that_is_not_scored(tmp_path, tables, options, finding) -> None:
    data = tmp_path / 'data'
    for name, split in tables.items():
        for number in range(2):
            image(data / f'{name}{number}.png', number)
        rows = ''.join(f'{name}{i}.png,{name}{i},Frontal,{i},{split}\n' for i in range(2))
        header = f'Path,Patient,Frontal/Lateral,Edema,{"Split" if split else "Note"}\n'
        (data / f'{name}.csv').write_text(header + rows)
    words = ['--data-path', data, '--output', tmp_path / 'problems.csv', '--workers', '1']
    assert run_script('check_data', *words, '--opts', 'DATA.LABELS', "['Edema']", *options) == 1
    assert finding in (tmp_path / 'problems.csv').read_text()
