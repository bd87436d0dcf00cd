"""The data check: planted faults are found, each once, and nothing else; the script."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tiny import run_script

from data.packing import Settings, pack, read_source
from data.tables.labels import LABELS
from scripts.phantom import make_phantom

Found = tuple[str, str, float | None, str]  # kind, csv, row, file
# Warnings on splits as a whole, which small ones always have: a test looks at them alone.
ONE_CLASS = ('labels without a positive', 'labels without a negative')


@pytest.fixture
def check(tmp_path: Path) -> Callable[..., list[Found]]:
    """Runs the script on a folder; its list is tmp_path/lists/problems.csv."""
    return partial(run_check, tmp_path / 'lists' / 'problems.csv')


def run_check(output: Path, root: Path, *options: str) -> list[Found]:
    """Run the script on a folder; returns its list without the warnings of ONE_CLASS."""
    words = ['--opts', *options] if options else []
    words = ['--data-path', root, '--output', output, '--workers', 2, *words]
    code = run_script('check_data', *words)
    table = read_text(output)
    assert code == int('error' in set(table['severity']))
    table = table[~table['kind'].isin(ONE_CLASS)]
    rows = [int(row) if row else None for row in table['row']]
    return sorted(zip(table['kind'], table['csv'], rows, table['file'], strict=True), key=str)


def read_text(file: Path) -> pd.DataFrame:
    return pd.read_csv(file, dtype=str, na_filter=False)


@pytest.fixture(scope='module')
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('check') / 'CheXpert-phantom'
    make_phantom(folder, num_train=10, num_valid=3, num_test=1, size=64, seed=1)
    (folder / 'test.csv').unlink()
    shutil.rmtree(folder / 'test')
    return folder


@pytest.fixture
def spoilt(clean: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(clean, tmp_path / clean.name))


def noise(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (80, 80), dtype=np.uint8)
    return Image.fromarray(pixels)


class Spoilt:
    """A copy of the clean folder into which each function of PLANTED plants a fault."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.train, self.valid = (read_text(root / name) for name in ('train.csv', 'valid.csv'))
        self.paths = [*self.train['Path']]
        self.first = self.paths[0].partition('/')[0]

    def file(self, index: int) -> str:
        """The file of an image of train.csv."""
        return self.paths[index].partition('/')[2]

    def save(self, index: int, image: Image.Image, kind: str = 'JPEG') -> tuple:
        image.save(self.root / self.file(index), kind)
        return 'train.csv', None, self.file(index)


def cell(row: int, column: str, value: str) -> Callable[[Spoilt], tuple]:
    def plant(data: Spoilt) -> tuple:
        data.train.loc[row, column] = value
        return 'train.csv', row + 2, data.paths[row]

    return plant


def added_row(path: str) -> Callable[[Spoilt], tuple]:
    """Add the first row once more with another path, in which {first} stands for the first part."""

    def plant(data: Spoilt) -> tuple:
        shown = path.format(first=data.first) or data.paths[0]
        row = data.train.loc[0].replace({data.paths[0]: shown, '2.0': ''})
        data.train.loc[len(data.train)] = row
        return 'train.csv', len(data.train) + 1, shown

    return plant


def missing_image(data: Spoilt) -> tuple:
    csv, row, path = added_row('{first}/train/patient00001/study77/view1_frontal.jpg')(data)
    return csv, row, path.partition('/')[2]


def truncated_image(data: Spoilt) -> tuple:
    path = data.root / data.file(7)
    path.write_bytes(path.read_bytes()[:300])
    return 'train.csv', None, data.file(7)


def image_of_one_level(data: Spoilt) -> tuple:
    return data.save(8, Image.fromarray(np.full((80, 80), 130, np.uint8)))


def few_grey_levels(data: Spoilt) -> tuple:
    return data.save(9, Image.fromarray(np.arange(6400).astype(np.uint8).reshape(80, 80) % 9))


def same_pixels(data: Spoilt) -> tuple:
    data.save(10, noise(1), 'PNG')
    return data.save(11, noise(1).convert('RGB'), 'TIFF')


def colour_image(data: Spoilt) -> tuple:
    colours = np.random.default_rng(3).integers(0, 256, (80, 80, 3), np.uint8)
    return data.save(13, Image.fromarray(colours), 'PNG')


def same_pixels_in_two_splits(data: Spoilt) -> tuple:
    copy = data.valid['Path'][0].partition('/')[2]
    noise(1).save(data.root / copy, 'PNG')
    return 'valid.csv', None, copy


def unnamed_image(data: Spoilt) -> tuple:
    noise(2).save(data.root / 'train' / 'unnamed.png')
    return '', None, 'train/unnamed.png'


def add_view(data: Spoilt, table: pd.DataFrame, study: str, seed: int) -> str:
    """Add a view of a study with the values of another one of row 12; returns its file."""
    file = f'{study.partition("/")[2]}/view9_frontal.png'
    (data.root / file).parent.mkdir(parents=True, exist_ok=True)
    noise(seed).save(data.root / file)
    table.loc[1000] = data.train.loc[12].replace(data.paths[12], f'{data.first}/{file}')
    return file


def labels_of_a_study_differ(data: Spoilt) -> tuple:
    study = data.paths[12].rpartition('/')[0]
    add_view(data, data.train, study, seed=3)
    data.train.loc[1000, 'Fracture'] = '0.0' if data.train.loc[12, 'Fracture'] == '1.0' else '1.0'
    return 'train.csv', None, study


def no_finding_with_a_finding(data: Spoilt) -> tuple:
    data.train.loc[1000, ['No Finding', 'Edema']] = '1.0'
    return 'train.csv', None, ''


def patient_in_two_splits(data: Spoilt) -> tuple:
    study = data.paths[12].rpartition('/')[0].replace('/train/', '/valid/')
    return 'valid.csv', None, add_view(data, data.valid, study, seed=4)


def row_of_another_width(data: Spoilt) -> tuple:
    data.train.to_csv(data.root / 'train.csv', index=False)
    with (data.root / 'train.csv').open('a') as out:
        out.write('cut off,')
    return 'train.csv', len(data.train) + 2, ''


def missing_column(data: Spoilt) -> tuple:
    data.valid.drop(columns='Fracture').to_csv(data.root / 'valid.csv', index=False)
    return 'valid.csv', None, ''


# (kind that the check gives it, what plants it and returns CSV, row and file), in this order.
PLANTED = [
    ('value of a label', cell(0, 'Edema', '2.0')),
    ('value of the sex', cell(1, 'Sex', 'X')),
    ('value of the age', cell(2, 'Age', '-5')),
    ('value of the view', cell(3, 'Frontal/Lateral', 'Up')),
    ('value of the projection', cell(4, 'AP/PA', 'XX')),
    (
        'path that leaves the folder',
        added_row('{first}/../../patient00001/study1/view1_frontal.jpg'),
    ),
    ('form of a path', added_row('{first}/train/patient00001/view1_frontal.jpg')),
    ('duplicate path', added_row('')),
    ('missing image', missing_image),
    ('unusable image', truncated_image),
    ('unusable image', image_of_one_level),
    ('few grey levels', few_grey_levels),
    ('same pixels', same_pixels),
    ('colour image', colour_image),
    ('same pixels in two splits', same_pixels_in_two_splits),
    ('image that no CSV names', unnamed_image),
    ('labels of a study differ', labels_of_a_study_differ),
    ('No Finding with a finding', no_finding_with_a_finding),
    ('patient in two splits', patient_in_two_splits),
    ('row of another width', row_of_another_width),
    ('missing column', missing_column),
]


@pytest.fixture(scope='module')
def planted(
    clean: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[Found], list[Found]]:
    """What the check must find of PLANTED, and what it finds."""
    folder = tmp_path_factory.mktemp('planted')
    data = Spoilt(Path(shutil.copytree(clean, folder / clean.name)))
    wanted = [(kind, *plant(data)) for kind, plant in PLANTED]
    return wanted, run_check(folder / 'problems.csv', data.root)


@pytest.mark.parametrize('number', range(len(PLANTED)), ids=[kind for kind, _ in PLANTED])
def test_a_planted_fault_is_found_once(number: int, planted: tuple) -> None:
    wanted, found = planted
    assert found.count(wanted[number]) == 1, [
        each for each in found if each[0] == wanted[number][0]
    ]


def test_nothing_but_planted_faults_is_found(planted: tuple, clean: Path, check: Callable) -> None:
    wanted, found = planted
    assert set(found) == set(wanted) and len(found) == len(wanted)
    assert check(clean) == []


def test_doubtful_labels_are_warnings(spoilt: Path, check: Callable) -> None:
    table = read_text(spoilt / 'train.csv')
    table['Fracture'] = table['Pneumonia'] = ['1.0', '0.0'] * (len(table) // 2)
    table['No Finding'] = ['1.0'] * 4 + [''] * (len(table) - 4)
    for label in set(LABELS) - {'Fracture', 'Pneumonia', 'No Finding', 'Support Devices'}:
        table.loc[:3, label] = ''
    table['no edema'] = ['1'] * 3 + ['0'] * (len(table) - 3)
    table['Edema comment'] = 'none'
    table.to_csv(spoilt / 'train.csv', index=False)
    kinds = {'No Finding with a finding', 'one label under several names', 'name like a label'}
    assert kinds <= {kind for kind, *_ in check(spoilt)}


def test_faults_in_a_file_of_studies(spoilt: Path, check: Callable) -> None:
    studies = sorted(set(read_text(spoilt / 'valid.csv')['Path'].str.rpartition('/')[0]))
    table = pd.DataFrame({'Study': studies}).reindex(columns=['Study', *LABELS], fill_value='')
    table.to_csv(spoilt / 'valid.csv', index=False)
    unknown = ('missing description', 'valid.csv', None, '')
    assert check(spoilt) == [unknown]
    first = spoilt / studies[0].partition('/')[2]
    next(first.iterdir()).rename(first / 'noview.jpg')
    table.loc[1, 'Edema'] = 'x'
    gone = f'{studies[0].rsplit("/", 1)[0]}/study88'
    table.loc[len(table)] = table.loc[2]
    table.loc[len(table)] = ['', *table.loc[2][1:]]
    table.loc[len(table) - 1, 'Study'] = gone
    table.to_csv(spoilt / 'valid.csv', index=False)
    assert check(spoilt) == [
        ('duplicate path', 'valid.csv', len(table), studies[2]),
        unknown,
        ('missing image', 'valid.csv', len(table) + 1, gone),
        ('value of a label', 'valid.csv', 3, studies[1]),
        ('value of the view', 'valid.csv', 2, studies[0]),
    ]


def test_a_folder_of_images_and_a_damaged_store(spoilt, tmp_path, check: Callable) -> None:
    shutil.copy(min(spoilt.rglob('*.jpg')), spoilt / 'zzz.png')
    (spoilt / 'valid.csv').unlink()
    found = check(spoilt, 'DATA.DATASET', 'folder')
    assert found == [
        ('folder with scores', '', None, 'train.csv'),
        ('folder with scores', '', None, 'valid/patient80001/study1'),
        ('same pixels', '', None, 'zzz.png'),
    ]
    store = tmp_path / 'store'
    min((spoilt / 'train').rglob('*.jpg')).write_bytes(b'')
    pack(read_source(spoilt), store, Settings(size=32), skip_bad=True)
    shard = next(store.glob('images_*.arrow'))
    pixels = bytearray(shard.read_bytes())
    pixels[len(pixels) // 2] ^= 1
    shard.write_bytes(pixels)
    kinds = ['left out of the store', 'missing file', 'unusable image']
    assert [cells[0] for cells in check(store)] == kinds
    (store / 'store.json').write_text('{}')
    assert 'unreadable data set' in {cells[0] for cells in check(store)}


def test_a_split_without_any_image_is_one_fault_and_its_labels_are_checked(
    spoilt: Path, tmp_path: Path, check: Callable
) -> None:
    shutil.rmtree(spoilt / 'train')
    kinds = [kind for kind, *_ in check(spoilt)]
    assert kinds.count('missing images') == 1 and 'missing image' not in kinds
    table = read_text(tmp_path / 'lists' / 'problems.csv')
    assert 'train.csv' in {*table[table['kind'].isin(ONE_CLASS)]['csv']}
