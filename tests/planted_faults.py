"""Faults planted in a data set in CheXpert's layout, and what the data check must say of them."""

import csv
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from csv_files import write
from PIL import Image

Found = tuple[str, str, int | None, str]  # kind, csv, row, file
SEX, AGE, VIEW, PROJECTION, LABEL = 1, 2, 3, 4, 12
EMPTY = ''


def findings_in(output: Path) -> list[Found]:
    with output.open(newline='') as file:
        rows = list(csv.DictReader(file))
    assert all(cells['severity'] and cells['detail'] for cells in rows)
    return [
        (cells['kind'], cells['csv'], int(cells['row']) if cells['row'] else None, cells['file'])
        for cells in rows
    ]


class Plant:
    """Plants faults in a data set in CheXpert's layout, each at a study of one image."""

    def __init__(self, root: Path, seed: int = 0) -> None:
        self.root = root
        self.rng = np.random.default_rng(seed)
        self.expected = []
        self.rows = {name: self._read(name) for name in ('train.csv', 'valid.csv')}
        self.places = {name: self._alone(rows) for name, rows in self.rows.items()}
        self.count = 0

    def _read(self, name: str) -> list[list[str]]:
        with (self.root / name).open(newline='') as file:
            return list(csv.reader(file))

    def _alone(self, rows: list[list[str]]) -> Iterator[int]:
        studies = Counter(cells[0].rsplit('/', 1)[0] for cells in rows)
        for place, cells in enumerate(rows[1:200], start=1):
            if studies[cells[0].rsplit('/', 1)[0]] == 1 and cells[VIEW] == 'Frontal':
                yield place

    def take(self, name: str = 'train.csv', other_than: str = '') -> tuple[int, list[str]]:
        """The next row, of another patient than this one, and its place."""
        rows = self.rows[name]
        place = next(
            place for place in self.places[name] if f'/{other_than}/' not in rows[place][0]
        )
        return place, rows[place]

    def expect(self, kind: str, name: str, row: int | None, file: str) -> None:
        self.expected.append((kind, name, row, file))

    def cell(self, kind: str, column: int, value: str) -> None:
        place, cells = self.take()
        cells[column] = value
        self.expect(kind, 'train.csv', place + 1, cells[0])
        self.count += 1

    def new_row(self, kind: str, change: Callable[[list[str]], object]) -> None:
        _, cells = self.take()
        cells = [*cells]
        change(cells)
        self.rows['train.csv'].append(cells)
        file = cells[0] if len(cells) == 19 and cells[0].isascii() else EMPTY
        file = file.partition('/')[2] if kind == 'missing image' else file
        self.expect(kind, 'train.csv', len(self.rows['train.csv']), file)
        self.count += 1

    def image(self, kind: str, change: Callable[[Path], object], name: str = 'train.csv') -> None:
        place, cells = self.take(name)
        file = cells[0].partition('/')[2]
        change(self.root / file)
        self.expect(kind, name, place + 1, file)
        self.count += 1

    def pixels(self, kind: str, pixels: np.ndarray) -> None:
        self.image(kind, lambda file: Image.fromarray(pixels).save(file, 'PNG', compress_level=1))

    def another(self, file: Path) -> None:
        """An image like no other."""
        pixels = self.rng.integers(0, 256, (80, 80), dtype=np.uint8)
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file, 'PNG')

    def write(self, bad_bytes: bytes) -> None:
        for name, rows in self.rows.items():
            with (self.root / name).open('w', newline='') as file:
                csv.writer(file, lineterminator='\n').writerows(rows)
        self.rows['train.csv'].append([])
        self.expect('row not in UTF-8', 'train.csv', len(self.rows['train.csv']), EMPTY)
        with (self.root / 'train.csv').open('ab') as file:
            file.write(bad_bytes)


def cut(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])


def make_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)  # reading it would never end


def plant_in_rows(plant: Plant) -> None:
    plant.cell('value of a label', LABEL, '2.0')
    plant.cell('value of a label', LABEL + 1, '=1+1')
    plant.cell('value of the sex', SEX, 'X')
    plant.cell('value of the age', AGE, '-5')
    plant.cell('unlikely age', AGE, '411')
    plant.cell('value of the view', VIEW, 'Oblique')
    plant.cell('value of the projection', PROJECTION, 'XX')
    plant.cell('view unlike the name', VIEW, 'Lateral')
    first = plant.rows['train.csv'][1][0].partition('/')[0]
    paths = {
        'form of a path': [f'{first}/train/patient00001/view1_frontal.jpg'],
        'path that leaves the folder': [
            f'{first}/../../train/patient00001/study1/view1_frontal.jpg',
            '/etc/patient00001/study1/view1_frontal.jpg',
        ],
        'missing image': [f'{first}/train/patient00001/study77/view1_frontal.jpg'],
    }
    for kind, values in paths.items():
        for value in values:
            plant.new_row(kind, lambda cells, value=value: cells.__setitem__(0, value))
    plant.new_row('duplicate row', lambda cells: None)
    plant.new_row('duplicate path', lambda cells: cells.__setitem__(AGE, '17'))
    plant.new_row('row of another width', lambda cells: cells.pop())


def plant_in_images(plant: Plant, outside: Path) -> None:
    rng = plant.rng
    for change in (
        cut,
        lambda file: file.write_text('not an image'),
        lambda file: file.write_bytes(b''),
    ):
        plant.image('unusable image', change)
    plant.pixels('unusable image', np.zeros((80, 80), np.uint8))
    plant.pixels('unusable image', np.full((80, 80), 130, np.uint8))
    plant.pixels('unusable image', rng.integers(0, 256, (15, 16), dtype=np.uint8))
    plant.pixels('small image', rng.integers(0, 256, (80, 63), dtype=np.uint8))
    plant.pixels('narrow image', rng.integers(0, 256, (64, 193), dtype=np.uint8))
    plant.pixels('large image', np.arange(10_001 * 3400).astype(np.uint8).reshape(-1, 3400))
    plant.pixels('few grey levels', rng.integers(0, 15, (80, 80), dtype=np.uint8))
    plant.pixels('bit depth', rng.integers(0, 256, (80, 80)).astype(np.uint16))
    plant.pixels('colour', rng.integers(0, 256, (80, 80, 3), dtype=np.uint8))

    def link(file: Path) -> None:
        shutil.move(file, outside)
        file.symlink_to(outside)

    plant.image('missing image', make_pipe)
    plant.image('link that leaves the folder', link)
    plant.another(plant.root / 'train' / 'unnamed.png')
    plant.expect('image that no CSV names', EMPTY, None, 'train/unnamed.png')
    plant.count += 1


def plant_across(plant: Plant) -> None:
    train, valid = plant.rows['train.csv'], plant.rows['valid.csv']
    place, cells = plant.take()
    with Image.open(plant.root / cells[0].partition('/')[2]) as image:
        copy = image.convert('RGB')
    # Once more as a file of another form, after the image itself and in another split.
    plant.image('same pixels', lambda file: copy.save(file, 'TIFF'))
    plant.image('same pixels in two splits', lambda file: copy.save(file, 'PNG'), 'valid.csv')

    _, cells = plant.take()
    path = f'{cells[0].rsplit("/", 1)[0]}/view2_frontal.jpg'
    plant.another(plant.root / path.partition('/')[2])
    train.append([path, *cells[1:-1], '1.0' if cells[-1] == '-1.0' else '-1.0'])
    plant.expect('labels of a study differ', 'train.csv', len(train), path)

    place, cells = plant.take()
    folder, _, rest = cells[0].partition('/train/')
    path = f'{folder}/valid/{rest.partition("/")[0]}/study9/view1_frontal.jpg'
    plant.another(plant.root / path.partition('/')[2])
    valid.append([path, *cells[1:]])
    plant.expect('patient in two splits', 'valid.csv', len(valid), EMPTY)

    place, cells = plant.take(other_than=path.split('/')[2])
    valid.append([*cells])  # one fault, of which two things are said
    plant.expect('image in two splits', 'valid.csv', len(valid), cells[0].partition('/')[2])
    plant.expect('patient in two splits', 'valid.csv', len(valid), EMPTY)

    for cells in valid:
        del cells[-2]
    plant.expect('missing column', 'valid.csv', None, EMPTY)
    write(plant.root / 'test.csv', [], train[0])
    plant.expect('empty CSV', 'test.csv', None, EMPTY)
    plant.count += 5


def plant_all(root: Path, outside: Path) -> Plant:
    plant = Plant(root)
    plant_in_rows(plant)
    plant_in_images(plant, outside)
    plant_across(plant)
    plant.write(b'X/train/patient\xff/study1/view1_frontal.jpg,Male,5,Frontal,AP' + b',' * 14)
    plant.count += 1
    return plant
