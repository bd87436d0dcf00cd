"""Data sets of a hub: Parquet files with images as bytes."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from packed_data import contents, killed_after, noise, packed
from PIL import Image
from tiny import run_script
from xray_splits import LOGGER, make_config, samples_of

from data.build import build_loader
from data.images.files import BadImageError, load_image
from data.images.image_source import Folder
from data.images.store import open_store
from data.packing import Settings, pack, read_source
from data.tables.known_sets import hub

NATIVE = Settings(size=None, square=False, keep_16bit=True)


def write_parquet(file: Path, images: list[bytes | None], metadata=None, **others) -> None:
    """Write images as the hub does, in groups of 20 rows."""
    file.parent.mkdir(parents=True, exist_ok=True)
    structs = [{'bytes': image, 'path': None} for image in images]
    kind = pa.struct([('bytes', pa.binary()), ('path', pa.string())])
    table = pa.table({'image': pa.array(structs, kind), **others})
    pq.write_table(table.replace_schema_metadata(metadata), file, row_group_size=20)


def metadata_of(features: dict) -> dict[str, str]:
    return {'huggingface': json.dumps({'info': {'features': features}})}


@pytest.fixture(scope='module')
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 images in files named as in Parquet files, one of them with 12 bits."""
    root = tmp_path_factory.mktemp('files')
    for number in range(50):
        shard, row = divmod(number, 45)
        file = root / 'data' / f'train-0000{shard}.parquet' / f'{row:07d}.png'
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(number, 4095 if number == 3 else 255)).save(file)
    return root


@pytest.fixture(name='hub', scope='module')
def hub_folder(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp('hub')
    for folder in (files / 'data').iterdir():
        images = [file.read_bytes() for file in sorted(folder.iterdir())]
        write_parquet(root / 'data' / folder.name, images, label=[0] * len(images))
    (root / 'README.md').write_text('A data set.')
    return root


def test_images_are_those_of_the_files_in_any_order(files: Path, hub: Path) -> None:
    images = Folder(hub)
    names = images.below()
    assert names == Folder(files).below() and len(names) == 50
    read = images.reader(names)
    for place in np.random.default_rng(0).integers(0, 50, 120).tolist() + [*range(50)]:
        same = load_image(files / names[place])
        assert read(place).mode == same.mode and read(place).tobytes() == same.tobytes()
    wrong = ['data/train-00000.parquet/0000045.png', 'data/x.parquet/0000000.png', 'x.parquet/y']
    assert all(map(images.exists, names)) and not any(map(images.exists, wrong))
    for name in wrong:
        with pytest.raises(ValueError, match='there is no image'):
            images.read(name)


def test_a_store_has_the_bytes_of_one_packed_from_files(files: Path, hub: Path, tmp_path) -> None:
    wanted = contents(packed(files, tmp_path / 'store', NATIVE, all_images=True))
    source = read_source(hub, all_images=True)
    with killed_after(30):
        pack(source, tmp_path / 'hub_store', NATIVE)
    pack(source, tmp_path / 'hub_store', NATIVE, workers=2)
    assert contents(tmp_path / 'hub_store') == wanted


def test_rows_without_an_image_are_listed(hub: Path, tmp_path: Path) -> None:
    image = next((hub / 'data').iterdir()).read_bytes()
    good = Folder(hub).read('data/train-00001.parquet/0000000.png')
    write_parquet(tmp_path / 'few' / 'a.parquet', [good, None, image, good])
    with pytest.raises(BadImageError, match='0000001.png.*no bytes'):
        Folder(tmp_path / 'few').read('a.parquet/0000001.png')
    packed(tmp_path / 'few', tmp_path / 'store', NATIVE, skip_bad=True)
    store = open_store(tmp_path / 'store')
    assert store.files == ['a.parquet/0000000.png', 'a.parquet/0000003.png']
    assert [*store.left_out] == ['a.parquet/0000001.png', 'a.parquet/0000002.png']


def test_files_that_cannot_be_read_are_named(hub: Path, tmp_path: Path, capsys) -> None:
    whole = hub / 'data' / 'train-00001.parquet'
    table = pq.read_table(whole)
    two = table.append_column('mask', table['image'])
    bad = tmp_path / 'bad' / 'two.parquet'
    bad.parent.mkdir()
    pq.write_table(two, bad)
    assert len(Folder(bad.parent).below()) == 5  # the column `image`
    pq.write_table(two.rename_columns(['a', 'label', 'b']), bad)
    with pytest.raises(ValueError, match="two.parquet.*a, b.*'image'"):
        Folder(bad.parent).below()
    bad.write_bytes(whole.read_bytes()[:-9])
    words = ['--data-path', bad.parent, '--output', tmp_path / 's', '--size', '16']
    assert run_script('pack', *words) == 2
    assert 'two.parquet cannot be read' in capsys.readouterr().err
    pq.write_table(table.select(['label']), bad)  # a table alone
    assert Folder(bad.parent).below() == []


def test_a_small_file_with_a_huge_image_is_refused(tmp_path: Path) -> None:
    table = pa.table({'image': [bytes(2**26 + 1)]})
    pq.write_table(table, tmp_path / 'bomb.parquet', compression='zstd')
    assert (tmp_path / 'bomb.parquet').stat().st_size < 2**16
    with pytest.raises(ValueError, match='bomb.parquet.*more than 67,108,864 bytes'):
        Folder(tmp_path).below()


@pytest.mark.parametrize('written', [{'info': {'features': {'label': 'ClassLabel'}}}, []])
def test_a_damaged_list_of_classes_is_named(tmp_path: Path, written: object) -> None:
    metadata = {'huggingface': json.dumps(written)}
    write_parquet(tmp_path / 'a.parquet', [b'x'], label=[0], metadata=metadata)
    with pytest.raises(ValueError, match='a.parquet: its classes'):
        hub(tmp_path)


MY_SET = """
from data.tables.known_sets import hub


def read(root):
    table = hub(root).rename(columns={'patient_id': 'Patient', 'age': 'Age'})
    return table.assign(**{'Frontal/Lateral': 'Frontal'})
"""


def write_labelled(root: Path) -> tuple[Path, Path]:
    """Write a labelled data set as Parquet files of a hub, and as images with tables of text.

    Cells have types: numbers, missing numbers, True and False.
    """
    names, files = ['normal', 'Edema', 'Mass'], root / 'files'
    kind = {'feature': {'names': names, '_type': 'ClassLabel'}, '_type': 'List'}
    metadata = metadata_of({'findings': kind})
    shards = {'train-00000': 9, 'train-00001': 7, 'validation-00000': 6, 'test-0': 5}
    for number, (shard, count) in enumerate(shards.items()):
        file = f'data/{shard}.parquet'
        (files / file).mkdir(parents=True)
        findings = [([0], [1], [1, 2])[n % 3] for n in range(count)]
        patients = [1000 * number + n for n in range(count)]
        ages = [None if n == 2 else 40.0 + n for n in range(count)]
        rows = pd.DataFrame({'Path': [f'{file}/{n:07d}.png' for n in range(count)]})
        rows['Patient'], rows['Frontal/Lateral'] = patients, 'Frontal'
        rows['Age'] = ['' if age is None else int(age) for age in ages]
        for k, name in enumerate(names):
            rows[name] = [int(k in of_image) for of_image in findings]
        for path, patient in zip(rows['Path'], patients, strict=True):
            Image.fromarray(noise(patient)).save(files / path)
        table = files / f'{shard.split("-")[0].replace("idation", "id")}.csv'
        rows.to_csv(table, mode='a', header=not table.exists(), index=False)
        images = [(files / path).read_bytes() for path in rows['Path']]
        columns = {'findings': findings, 'patient_id': patients}
        columns['age'] = pa.array(ages, pa.float32())
        write_parquet(root / 'hub' / file, images, metadata=metadata, **columns)
    (root / 'my_set.py').write_text(MY_SET)
    return root / 'hub', files


def test_a_labelled_set_has_the_samples_of_files_and_tables_also_packed(tmp_path: Path) -> None:
    hub, files = write_labelled(tmp_path)
    my_set = str(tmp_path / 'my_set.py')
    words = ['--data-path', hub, '--dataset', my_set, '--size', 'native', '--keep-16bit']
    assert run_script('pack', *words, '--output', tmp_path / 'store', '--workers', 1) == 0

    def samples(folder: Path, dataset: str) -> list[list[np.ndarray]]:
        options = ('DATA.DATASET', dataset, 'DATA.BATCH_SIZE', 1, 'DATA.IMG_SIZE', 32)
        options += ('DATA.LABELS', ['Edema', 'Mass'])
        loaders = build_loader(make_config(folder, *options), LOGGER, is_pretrain=False)
        return [
            [part.numpy() for sample in samples_of(loader, 0) for part in sample[:2]]
            for loader in (loaders.valid, loaders.test, loaders.train)
        ]

    found, packed = samples(hub, my_set), samples(tmp_path / 'store', my_set)
    # Those of files for training have other crops, because their rows have other numbers.
    of_files = samples(files, 'chexpert')[:2]
    assert [*map(len, found[:2])] == [12, 10] and len(found[2]) > 20
    for split, same in zip([*found, *found[:2]], [*packed, *of_files], strict=True):
        assert len(split) == len(same) and all(map(np.array_equal, split, same))


@pytest.mark.parametrize(
    'file, split',
    [
        ('data/latest-train-00000-of-00001', 'train'),
        ('default/validation/0000', 'valid'),
        ('chest_test/dev-0', 'valid'),
        ('Test-00000', 'test'),
        ('contest/retrieval', 'train'),
        ('data/testing-0', 'test'),
        ('train/eval', 'test'),
        ('0000', 'train'),
    ],
)
def test_the_name_of_a_file_tells_the_split(tmp_path: Path, file: str, split: str) -> None:
    write_parquet(tmp_path / f'{file}.parquet', [b'x', b'y'], age=[50, 60])
    write_parquet(tmp_path / '.cache' / 'test.parquet', [b'x'], age=[70])
    pq.write_table(pa.table({'age': [1]}), tmp_path / 'test_labels.parquet')
    table = hub(tmp_path)
    assert table['Split'].tolist() == [split] * 2 and table['age'].tolist() == ['50', '60']
    assert table['Path'].tolist() == [f'{file}.parquet/000000{n}.png' for n in range(2)]


def test_numbers_of_classes_become_columns(tmp_path: Path) -> None:
    metadata = metadata_of({'label': {'names': ['no', 'yes'], '_type': 'ClassLabel'}})
    write_parquet(tmp_path / 'a.parquet', [b'x'] * 4, label=[0, 1, -1, None], metadata=metadata)
    table = hub(tmp_path)
    assert table['yes'].tolist() == [0, 1, '', ''] and table['no'].tolist() == [1, 0, '', '']
    for wrong in (2, 'yes'):
        write_parquet(tmp_path / 'a.parquet', [b'x'], label=[wrong], metadata=metadata)
        words = f"a.parquet.*'label'.*{wrong!r} is not a number of 2 classes"
        with pytest.raises(ValueError, match=words):
            hub(tmp_path)


def test_two_columns_with_the_same_classes_are_told_apart(tmp_path: Path) -> None:
    kind = {'names': ['no', 'yes'], '_type': 'ClassLabel'}
    features = {'edema': kind, 'mass': kind, 'sex': kind | {'names': ['f', 'm']}}
    columns = {'edema': [0, 1], 'mass': [1, 1], 'sex': [1, 0]}
    write_parquet(tmp_path / 'a.parquet', [b'x'] * 2, metadata=metadata_of(features), **columns)
    table = hub(tmp_path)
    assert table['edema yes'].tolist() == [0, 1] and table['mass yes'].tolist() == [1, 1]
    assert table['m'].tolist() == [1, 0] and 'yes' not in table


def class_label(*names: str) -> dict[str, str]:
    return metadata_of({'label': {'names': [*names], '_type': 'ClassLabel'}})


@pytest.mark.parametrize(
    'columns, metadata, parts',
    [
        ({'label': [0]}, None, ["only b.parquet has 'label'", "only a.parquet has 'no', 'yes'"]),
        ({'other': [0]}, class_label('no', 'yes'), ["b.parquet has 'other'"]),
        ({}, None, ["only a.parquet has 'no', 'yes'"]),
        ({'label': [0]}, class_label('no', 'maybe'), ["'maybe'", "'yes'"]),
        ({'label': [0], 'age': [5]}, class_label('no', 'yes'), ["only b.parquet has 'age'"]),
    ],
)
def test_files_with_other_columns_or_classes_are_refused(
    tmp_path, columns, metadata, parts
) -> None:
    write_parquet(tmp_path / 'a.parquet', [b'x'], label=[1], metadata=class_label('no', 'yes'))
    if 'other' in columns:
        metadata = metadata_of({'other': {'names': ['no', 'yes'], '_type': 'ClassLabel'}})
        columns['more'] = [1]
        parts = ["only b.parquet has 'more'"]
    write_parquet(tmp_path / 'b.parquet', [b'x'], metadata=metadata, **columns)
    with pytest.raises(ValueError) as error:
        hub(tmp_path)
    assert all(part in str(error.value) for part in (*parts, str(tmp_path)))


def test_the_same_classes_in_another_order_are_the_same(tmp_path: Path) -> None:
    write_parquet(tmp_path / 'a.parquet', [b'x'], label=[1], metadata=class_label('no', 'yes'))
    write_parquet(tmp_path / 'b.parquet', [b'x'], label=[1], metadata=class_label('yes', 'no'))
    table = hub(tmp_path)
    assert table['yes'].tolist() == [1, 0] and table['no'].tolist() == [0, 1]


@pytest.mark.parametrize('cells', [['train', 'test', ''], [b'train', b'test', b'']])
def test_a_column_of_splits_is_kept(tmp_path: Path, cells: list) -> None:
    write_parquet(tmp_path / 'train-0.parquet', [b'x'] * 3, Split=cells)
    assert hub(tmp_path)['Split'].tolist() == ['train', 'test', '']
    write_parquet(tmp_path / 'train-0.parquet', [b'x'] * 3, Split=[b'\x89\xff'] * 3)
    with pytest.raises(ValueError, match="train-0.parquet.*'Split' has bytes"):
        hub(tmp_path)


@pytest.mark.parametrize('name', ['test-0', 'validation-0'])
def test_rows_of_another_split_than_the_name_of_their_file_are_refused(tmp_path, name) -> None:
    write_parquet(tmp_path / f'{name}.parquet', [b'x'] * 2, Split=['train', 'train'])
    with pytest.raises(ValueError, match=f"{name}.parquet: its name says .*'train'"):
        hub(tmp_path)


def test_a_labelled_set_is_checked_like_files(tmp_path: Path, capsys) -> None:
    hub, _ = write_labelled(tmp_path)
    options = ['--opts', 'DATA.DATASET', tmp_path / 'my_set.py', 'DATA.LABELS', "['Edema', 'Mass']"]
    words = ['--data-path', hub, '--workers', 1, '--output', tmp_path / 'problems.csv']
    assert run_script('check_data', *words, *options) == 0, capsys.readouterr().out
    table = pq.read_table(hub / 'data' / 'test-0.parquet')
    ages = pa.array([40.0, 200.0, None, 1.5, -1.0], pa.float32())
    table = table.set_column(table.schema.get_field_index('age'), 'age', ages)
    pq.write_table(table, hub / 'data' / 'test-0.parquet')
    assert run_script('check_data', *words, *options) == 1
    faults = pd.read_csv(tmp_path / 'problems.csv').query('severity == "error"')
    wrong = [f'data/test-0.parquet/000000{n}.png' for n in (1, 4)]
    assert sorted(faults['file']) == wrong
