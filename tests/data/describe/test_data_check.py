"""The data check: planted faults are found, each once, and nothing else; the script."""

import shutil
from collections.abc import Callable
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
    """Runs the script on a folder; returns its list without the warnings of ONE_CLASS."""

    def run(root: Path, *options: str) -> list[Found]:
        output = tmp_path / 'lists' / 'problems.csv'
        words = ['--opts', *options] if options else []
        words = ['--data-path', root, '--output', output, '--workers', 2, *words]
        code = run_script('check_data', *words)
        table = read_text(output)
        assert code == int('error' in set(table['severity']))
        table = table[~table['kind'].isin(ONE_CLASS)]
        rows = [int(row) if row else None for row in table['row']]
        return sorted(zip(table['kind'], table['csv'], rows, table['file'], strict=True), key=str)

    return run


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


def test_every_planted_fault_is_found_and_nothing_else(spoilt: Path, check: Callable) -> None:
    assert check(spoilt) == []
    train, valid = (read_text(spoilt / name) for name in ('train.csv', 'valid.csv'))
    expected = []
    cells = {'Edema': '2.0', 'Sex': 'X', 'Age': '-5', 'Frontal/Lateral': 'Up', 'AP/PA': 'XX'}
    kinds = ('a label', 'the sex', 'the age', 'the view', 'the projection')
    for i, ((column, value), kind) in enumerate(zip(cells.items(), kinds, strict=True)):
        train.loc[i, column] = value
        expected.append((f'value of {kind}', 'train.csv', i + 2, train['Path'][i]))
    first = train['Path'][0].partition('/')[0]
    paths = {
        'path that leaves the folder': f'{first}/../../patient00001/study1/view1_frontal.jpg',
        'form of a path': f'{first}/train/patient00001/view1_frontal.jpg',
        'duplicate path': train['Path'][0],
        'missing image': f'{first}/train/patient00001/study77/view1_frontal.jpg',
    }
    for kind, path in paths.items():
        train.loc[len(train)] = train.loc[0].replace({train['Path'][0]: path, '2.0': ''})
        file = path.partition('/')[2] if kind == 'missing image' else path
        expected.append((kind, 'train.csv', len(train) + 1, file))
    files = train['Path'].str.partition('/')[2]
    (spoilt / files[7]).write_bytes((spoilt / files[7]).read_bytes()[:300])
    Image.fromarray(np.full((80, 80), 130, np.uint8)).save(spoilt / files[8])
    Image.fromarray(np.arange(6400).astype(np.uint8).reshape(80, 80) % 9).save(spoilt / files[9])
    noise(1).save(spoilt / files[10], 'PNG')
    noise(1).convert('RGB').save(spoilt / files[11], 'TIFF')
    colours = np.random.default_rng(3).integers(0, 256, (80, 80, 3), np.uint8)
    Image.fromarray(colours).save(spoilt / files[13], 'PNG')
    kinds = dict.fromkeys((7, 8), 'unusable image') | {9: 'few grey levels', 11: 'same pixels'}
    kinds[13] = 'colour image'
    expected += [(kind, 'train.csv', None, files[i]) for i, kind in kinds.items()]
    copy = valid['Path'][0].partition('/')[2]
    noise(1).save(spoilt / copy, 'PNG')
    expected.append(('same pixels in two splits', 'valid.csv', None, copy))
    noise(2).save(spoilt / 'train' / 'unnamed.png')
    expected.append(('image that no CSV names', '', None, 'train/unnamed.png'))
    study = train['Path'][12].rpartition('/')[0]
    for i, name in enumerate((study, study.replace('/train/', '/valid/'))):
        file = f'{name.partition("/")[2]}/view9_frontal.png'
        (spoilt / file).parent.mkdir(parents=True, exist_ok=True)
        noise(3 + i).save(spoilt / file)
        (train, valid)[i].loc[1000] = train.loc[12].replace(train['Path'][12], f'{first}/{file}')
    train.loc[1000, 'Fracture'] = '0.0' if train.loc[12, 'Fracture'] == '1.0' else '1.0'
    expected.append(('labels of a study differ', 'train.csv', None, study))
    expected.append(('No Finding with a finding', 'train.csv', None, ''))
    expected.append(('patient in two splits', 'valid.csv', None, file))
    train.to_csv(spoilt / 'train.csv', index=False)
    with (spoilt / 'train.csv').open('a') as out:
        out.write('cut off,')
    expected.append(('row of another width', 'train.csv', len(train) + 2, ''))
    valid.drop(columns='Fracture').to_csv(spoilt / 'valid.csv', index=False)
    expected.append(('missing column', 'valid.csv', None, ''))
    assert check(spoilt) == sorted(expected, key=str)


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
