"""Data sets of a hub: Parquet files with images as bytes."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from packed_data import contents, killed_after, noise, packed
from PIL import Image
from tiny import run_script
from xray_splits import LOGGER, make_config, samples_of

from data.build import build_loader
from data.hub import class_names
from data.image_source import Folder
from data.images import BadImageError, load_image
from data.packing import Settings, pack, read_source
from data.store import open_store

NATIVE = Settings(size=None, square=False, keep_16bit=True)


def write_parquet(file: Path, images: list[bytes | None], column: str = 'image', **others) -> None:
    """Write images as the hub does, in groups of 20 rows."""
    file.parent.mkdir(parents=True, exist_ok=True)
    structs = [{'bytes': image, 'path': None} for image in images]
    kind = pa.struct([('bytes', pa.binary()), ('path', pa.string())])
    table = pa.table({column: pa.array(structs, kind), **others})
    pq.write_table(table, file, row_group_size=20)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """50 images in files named as in Parquet files, one of them with 12 bits."""
    for number in range(50):
        shard, row = ('0', number) if number < 45 else ('1', number - 45)
        file = tmp_path / 'files' / 'data' / f'train-0000{shard}.parquet' / f'{row:07d}.png'
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(number, 4095 if number == 3 else 255)).save(file)
    return tmp_path / 'files'


@pytest.fixture
def hub(files: Path, tmp_path: Path) -> Path:
    for folder in (files / 'data').iterdir():
        images = [file.read_bytes() for file in sorted(folder.iterdir())]
        write_parquet(tmp_path / 'hub' / 'data' / folder.name, images, label=[0] * len(images))
    (tmp_path / 'hub' / 'README.md').write_text('A data set.')
    return tmp_path / 'hub'


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
    assert contents(packed(hub, tmp_path / 'hub_store', NATIVE, all_images=True)) == wanted
    source = read_source(hub, all_images=True)
    with killed_after(30):
        pack(source, tmp_path / 'killed', NATIVE)
    pack(source, tmp_path / 'killed', NATIVE, workers=2)
    assert contents(tmp_path / 'killed') == wanted


def test_pre_training_has_the_samples_of_the_files(files: Path, hub: Path) -> None:
    def samples(folder: Path) -> list[np.ndarray]:
        options = ('DATA.DATASET', 'folder', 'DATA.BATCH_SIZE', 1, 'DATA.IMG_SIZE', 32)
        loaders = build_loader(make_config(folder, *options), LOGGER, is_pretrain=True)
        return [sample[0].numpy() for sample in samples_of(loaders.train, 0)]

    assert all(map(np.array_equal, samples(hub), samples(files)))


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
    table = pq.read_table(hub / 'data' / 'train-00001.parquet')
    mask = table.rename_columns(['mask', 'label'])['mask']
    two = table.append_column('mask', mask)
    (tmp_path / 'bad').mkdir()
    pq.write_table(two, tmp_path / 'bad' / 'two.parquet')
    assert len(Folder(tmp_path / 'bad').below()) == 5  # the column `image`
    pq.write_table(two.rename_columns(['a', 'label', 'b']), tmp_path / 'bad' / 'two.parquet')
    with pytest.raises(ValueError, match="two.parquet.*a, b.*'image'"):
        Folder(tmp_path / 'bad').below()
    whole = (hub / 'data' / 'train-00001.parquet').read_bytes()
    (tmp_path / 'bad' / 'two.parquet').write_bytes(whole[:-9])
    words = ['--data-path', tmp_path / 'bad', '--output', tmp_path / 's', '--size', '16']
    assert run_script('pack', *words) == 2
    assert 'two.parquet cannot be read' in capsys.readouterr().err
    pq.write_table(table.select(['label']), tmp_path / 'bad' / 'two.parquet')  # a table alone
    assert Folder(tmp_path / 'bad').below() == []


def test_a_small_file_with_a_huge_image_is_refused(tmp_path: Path) -> None:
    huge = pa.array([bytes(2**27)])
    table = pa.table({'image': huge})
    pq.write_table(table, tmp_path / 'bomb.parquet', compression='zstd')
    assert (tmp_path / 'bomb.parquet').stat().st_size < 2**16
    with pytest.raises(ValueError, match='bomb.parquet.*more than 67,108,864 bytes'):
        Folder(tmp_path).below()


def test_names_of_classes_are_those_that_the_library_datasets_wrote(tmp_path: Path) -> None:
    kind = {'names': ['Edema', 'Mass'], '_type': 'ClassLabel'}
    features = {
        'label': {'names': ['normal', 'ill'], '_type': 'ClassLabel'},
        'findings': {'feature': kind, '_type': 'List'},
        'age': {'dtype': 'int64', '_type': 'Value'},
    }
    for name, written, wanted in (
        (
            'a',
            {'info': {'features': features}},
            {'label': ['normal', 'ill'], 'findings': ['Edema', 'Mass']},
        ),
        ('b', {}, {}),
        ('c', {'info': {'features': {'label': 'ClassLabel'}}}, None),
        ('d', [], None),
    ):
        metadata = {'huggingface': json.dumps(written)}
        table = pa.table({'label': [0, 1]}).replace_schema_metadata(metadata)
        pq.write_table(table, tmp_path / f'{name}.parquet')
        if wanted is None:
            with pytest.raises(ValueError, match=f'{name}.parquet: its classes'):
                class_names(tmp_path, f'{name}.parquet')
        else:
            assert class_names(tmp_path, f'{name}.parquet') == wanted
