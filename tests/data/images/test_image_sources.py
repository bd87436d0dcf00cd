"""A place of images of one's own needs one file, and its line in config.py."""

import pickle
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from packed_data import file_of, make_data, packed
from xray_splits import LOGGER, make_config, samples_of

from config import IMAGE_SOURCES
from data.build import build_loader
from data.describe.check import look_at
from data.images.image_source import FILE_NAME, ImageSource, open_images
from data.images.store import open_store
from data.packing import Settings

DATABASE = 'images.sqlite'
NATIVE = Settings(size=None, square=False)


class SqliteImages(ImageSource):
    """Images in a database below the folder of the CSV files."""

    def select(self, what: str, *values: str) -> list[tuple]:
        with sqlite3.connect(self.path / DATABASE) as connection:
            return connection.execute(f'SELECT {what}', values).fetchall()

    def exists(self, file: str) -> bool:
        return bool(self.select('1 FROM images WHERE name = ?', file) or self.below(file))

    def below(self, place: str = '') -> list[str]:
        names = [name for (name,) in self.select('name FROM images ORDER BY name')]
        return [name for name in names if name.startswith(place and f'{place}/')]

    def read(self, file: str) -> bytes:
        ((data,),) = self.select('data FROM images WHERE name = ?', file)
        return data


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_data(tmp_path / 'files', p3=4095)


@pytest.fixture
def database(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The images of `root` in a database."""
    monkeypatch.setitem(IMAGE_SOURCES, DATABASE, f'{__name__}:SqliteImages')
    folder = tmp_path / 'database'
    folder.mkdir()
    with sqlite3.connect(folder / DATABASE) as connection:
        connection.execute('CREATE TABLE images (name TEXT PRIMARY KEY, data BLOB)')
        for path in root.rglob('*.png'):
            row = path.relative_to(root).as_posix(), path.read_bytes()
            connection.execute('INSERT INTO images VALUES (?, ?)', row)
    for path in root.glob('*.csv'):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def samples(folder: Path, *, is_pretrain: bool) -> list[np.ndarray]:
    config = make_config(folder, 'DATA.BATCH_SIZE', 1, 'DATA.IMG_SIZE', 32, 'DATA.VIEWS', 'all')
    loaders = build_loader(config, LOGGER, is_pretrain=is_pretrain)
    parts = loaders.train, loaders.holdout if is_pretrain else loaders.valid
    return [sample[0].numpy() for loader in parts for sample in samples_of(loader, 0)]


@pytest.mark.parametrize('is_pretrain', [True, False])
def test_a_database_is_trained_on_and_packed_like_files(root, database, tmp_path, is_pretrain):
    wanted = samples(root, is_pretrain=is_pretrain)
    store = packed(database, tmp_path / 'store', NATIVE)
    packed_files = packed(root, tmp_path / 'other', NATIVE)
    assert np.array_equal(open_store(store).index, open_store(packed_files).index)
    assert len(wanted) > 4
    assert all(map(np.array_equal, samples(database, is_pretrain=is_pretrain), wanted))
    same = samples(packed_files, is_pretrain=is_pretrain)  # of rounded pixels
    assert all(map(np.array_equal, samples(store, is_pretrain=is_pretrain), same))


def test_every_source_names_its_images_and_is_pickled(root, database, tmp_path):
    for folder in (root, database, packed(database, tmp_path / 'store', NATIVE)):
        images = pickle.loads(pickle.dumps(open_images(folder)))
        assert images.exists(file_of(3)) and not images.exists('x.png')
        assert images.below() == open_images(root).below()
        assert images.reader([file_of(3)])(0).info[FILE_NAME] == file_of(3)
        assert look_at(images, file_of(3))[1] == ''
