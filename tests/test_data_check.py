"""The data check: planted faults are found, each once, and nothing else; the script."""

import csv
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from csv_files import write
from PIL import Image
from planted_faults import Found, findings_in, plant_all
from tiny import ROOT

from data.check import look_at
from data.labels import LABELS
from data.packing import Settings, pack
from data.phantom import make_phantom, make_phantom_mimic

# Warnings on splits as a whole, which small ones always have: a test looks at them alone.
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


def test_every_planted_fault_is_found_and_nothing_else(
    spoilt: Path, tmp_path: Path, check: Callable
) -> None:
    assert check(spoilt) == (0, [])
    plant = plant_all(spoilt, tmp_path / 'outside.png')
    code, found = check(spoilt)
    assert code == 1
    assert sorted(found, key=str) == sorted(plant.expected, key=str)
    assert plant.count >= 30
    assert len({kind for kind, *_ in found}) >= 30


@pytest.mark.slow
def test_real_x_rays_hold_one_image_twice(nih1000: Path, check: Callable) -> None:
    file = 'train/patient02658/study2/view1_frontal.png'  # as study 1, to the byte
    assert check(nih1000) == (0, [('same pixels', 'train.csv', 313, file)])


@pytest.mark.slow
def test_a_file_of_studies_is_checked(spoilt: Path, check: Callable) -> None:
    with (spoilt / 'valid.csv').open(newline='') as file:
        rows = list(csv.DictReader(file))
    studies = sorted({cells['Path'].rsplit('/', 1)[0] for cells in rows})
    labels = {name: '' for name in list(rows[0])[5:]}
    header = ['Study', *labels]
    named = [{'Study': study, **labels} for study in studies]
    write(spoilt / 'valid.csv', named, header)
    assert check(spoilt) == (0, [])
    first = spoilt / studies[0].partition('/')[2]
    Path(next(first.iterdir())).rename(first / 'noview.jpg')
    named[1] |= {'Edema': 'x'}
    gone = {'Study': f'{studies[0].rsplit("/", 1)[0]}/study88', **labels}
    write(spoilt / 'valid.csv', [*named, named[2], gone], header)
    assert sorted(check(spoilt)[1]) == [
        ('duplicate row', 'valid.csv', len(named) + 2, studies[2]),
        ('missing image', 'valid.csv', len(named) + 3, gone['Study']),
        ('value of a label', 'valid.csv', 3, studies[1]),
        ('value of the view', 'valid.csv', 2, studies[0]),
    ]


def test_faults_in_mimic(clean_mimic: Path, tmp_path: Path, check: Callable) -> None:
    assert check(clean_mimic) == (0, [])
    root = Path(shutil.copytree(clean_mimic, tmp_path / 'MIMIC'))
    split, metadata, labels = (
        next(root.glob(f'mimic-cxr-*-{kind}.csv*')) for kind in ('split', 'metadata', 'chexpert')
    )
    tables = {
        file: pd.read_csv(file, dtype=str, na_filter=False) for file in (split, metadata, labels)
    }
    images, others, cells = tables.values()
    ids = images.loc[images['split'] == 'train', 'dicom_id'].tolist()
    several = images['study_id'].duplicated(keep=False) & (images.index > 5)
    last = int(np.argmax(several))
    assert several[last]
    file = 'files/p{0:.2}/p{0}/s{1}/{2}.jpg'.format
    gone = file(*images.loc[1, ['subject_id', 'study_id', 'dicom_id']])
    (root / gone).unlink()
    images.loc[len(images)] = images.loc[0]
    images.loc[len(images)] = images.loc[0].replace({'train': 'no split', ids[0]: 'new'})
    images.loc[len(images)] = images.loc[0].replace({ids[0]: '../x'})
    others.loc[0, 'study_id'] = '1'
    others = others[others['dicom_id'] != ids[2]]
    study = images.loc[last, 'study_id']
    cells.loc[0, 'Edema'] = '3'
    place = cells.index[cells['study_id'] == study][0]
    cells = cells.drop(index=place)
    for path, table in zip(tables, (images, others, cells), strict=True):
        table.to_csv(path, index=False)
    found = check(root)[1]
    expected = [
        ('duplicate row', split.name, len(images) - 1, ids[0]),
        ('value of the split', split.name, len(images), 'new'),
        ('form of an id', split.name, len(images) + 1, '../x'),
        ('ids that differ', metadata.name, 2, ids[0]),
        ('missing row', split.name, 4, ids[2]),
        ('value of a label', labels.name, 2, cells['study_id'].iloc[0]),
        ('missing image', split.name, 3, gone),
    ]
    first = images.index[images['study_id'] == study][0]
    found = [cells for cells in found if cells[0] != 'image that no CSV names']
    expected.append(('study without labels', split.name, first + 2, images.loc[first, 'dicom_id']))
    assert sorted(found, key=str) == sorted(expected, key=str)


@pytest.mark.parametrize(
    'arguments, part',
    [
        (['--data-path', 'nowhere'], 'nowhere'),
        (['--output', '{root}/x.csv'], '--output'),
        (['--opts', 'DATA.NO', '1'], 'DATA.NO'),
    ],
)
def test_wrong_calls_end_with_2(
    clean_phantom: Path, tmp_path: Path, script: Callable, capsys: pytest.CaptureFixture,
    arguments: list[str], part: str,
) -> None:  # fmt: skip
    given = [argument.format(root=clean_phantom) for argument in arguments]
    assert script('--data-path', clean_phantom, '--output', tmp_path / 'p.csv', *given) == 2
    assert part in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_folder_of_images(spoilt: Path, tmp_path: Path, check: Callable) -> None:
    outside = Path(shutil.move(spoilt / 'valid', tmp_path / 'outside'))
    (spoilt / 'valid').symlink_to(outside)
    image = min(spoilt.rglob('*.jpg'))
    shutil.copy(image, spoilt / 'zzz.png')
    found = [
        ('folder with scores', '', None, 'train.csv'),
        ('folder with scores', '', None, 'valid.csv'),
        ('link that leaves the folder', '', None, 'valid'),
        ('same pixels', '', None, 'zzz.png'),
    ]
    assert sorted(check(spoilt, '--dataset', 'folder')[1]) == found
    for name in ('train.csv', 'valid.csv'):
        (spoilt / name).unlink()
    assert check(spoilt)[1] == found[2:]


def test_a_packed_store(spoilt: Path, tmp_path: Path, check: Callable) -> None:
    store = tmp_path / 'store'
    first = min((spoilt / 'train').rglob('*.jpg'))
    first.write_bytes(b'')
    pack(spoilt, store, Settings(size=32), skip_bad=True)
    found = check(store)[1]
    assert [cells[0] for cells in found] == ['left out of the store']
    shard = next(store.glob('pixels_*.bin'))
    pixels = bytearray(shard.read_bytes())
    pixels[5] ^= 1
    shard.write_bytes(pixels)
    kinds = [cells[0] for cells in check(store)[1]]
    assert kinds == ['left out of the store', 'unusable image']
    shard.write_bytes(pixels[: len(pixels) // 2])
    kinds = {cells[0] for cells in check(store)[1]}
    assert kinds & {'damaged store', 'unusable image'}


def digest(folder: Path, pixels: np.ndarray, name: str, mode: str = '') -> bytes:
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(folder / name)
    return look_at(folder, name).digest


def test_digests_are_of_pixels_not_of_files(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90), dtype=np.uint8)
    first = digest(tmp_path, pixels, 'a.png')
    assert len(first) == 16
    assert digest(tmp_path, pixels, 'b.bmp') == first
    assert digest(tmp_path, pixels, 'c.tif', 'RGB') == first
    assert digest(tmp_path, pixels.astype(np.uint16) * 257, 'd.png') == first
    assert digest(tmp_path, pixels.astype(np.uint16) * 256, 'e.png') != first
    assert digest(tmp_path, pixels.T.copy(), 'f.png') != first
    assert digest(tmp_path, pixels.reshape(90, 70), 'g.png') != first
    changed = pixels.copy()
    changed[69, 89] ^= 1
    assert digest(tmp_path, changed, 'h.png') != first


def test_labels_of_one_class_are_found(spoilt: Path, tmp_path: Path, check: Callable) -> None:
    table = pd.read_csv(spoilt / 'train.csv', dtype=str, na_filter=False)
    table['Fracture'], table['Edema'], table['Pneumonia'] = '', '1.0', '-1.0'
    table.to_csv(spoilt / 'train.csv', index=False)
    check(spoilt)
    rows = pd.read_csv(tmp_path / 'lists' / 'problems.csv')
    rows = rows[rows['kind'].isin(ONE_CLASS) & (rows['csv'] == 'train.csv')]
    assert set(rows['severity']) == {'warning'}
    found = {(k.split()[-1], d.partition(':')[0]) for k, d in rows[['kind', 'detail']].to_numpy()}
    for label in LABELS:
        values = pd.to_numeric(table[label]).fillna(0)
        for name, value in (('positive', 1), ('negative', 0)):
            assert ((name, label) in found) == (not (values == value).any()), label
