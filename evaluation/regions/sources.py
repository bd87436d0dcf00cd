"""Where maps come from: the interface of a source, baselines without a model, and given files.

To add a source, write a subclass of `MapSource`. Maps of runs are in `model_maps.py`.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from data.images.files import full_size
from data.images.image_source import open_images
from data.tables.identity import STUDY, image_name, look_up_names
from evaluation.regions.regions import Size
from evaluation.regions.scores import PlacedMap, PositionPrior, centre_map, random_map

Case = tuple[str, str]  # path and label
OWN = ''  # kind of the map that a source explains a label with; other kinds are its baselines
PRIOR, CENTRE, RANDOM = 'position prior', 'centre', 'random map'
BETWEEN = '__'  # of image and label in the names of given maps
NIH_NAME = re.compile(r'(\d{8})_\d{3}')  # patient, and number of the image


class MapSource(ABC):
    """Maps of images and labels.

    Attributes:
        name: Name in tables.
        title: What its maps are, such as 'Grad-CAM'.
        kinds: Kinds of maps; `row_name` names them.
        notes: Sentences for the report.
        patients: Image -> patient, of all images of which the source knows it.
    """

    kinds: Sequence[str] = (OWN,)
    title = 'given maps'

    def __init__(self, name: str) -> None:
        self.name = name
        self.notes: list[str] = []
        self.patients: dict[str, str] = {}

    def row_name(self, kind: str) -> str:
        """Return the name of a kind of map in tables."""
        return f'{self.name}: {kind}' if kind != OWN else self.name

    @abstractmethod
    def find(self, cases: Sequence[Case], absent: Sequence[Case] = ()) -> set[Case]:
        """Return the cases that the source can explain.

        It is called once, before any other method. The notes say which cases it leaves out.

        Args:
            cases: Cases (path, label) with a region, which have a map.
            absent: Cases without a region, of which it is known whether one is marked.
        """

    @abstractmethod
    def maps(self, path: str, label: str) -> dict[str, PlacedMap]:
        """Return the map of each kind; a kind without a map is left out."""

    def marks(self, path: str, label: str) -> bool:
        """Return whether a region is marked in an image that has none of this label."""
        raise NotImplementedError

    def image(self, path: str) -> Image.Image | None:
        """Return the X-ray, if it is at hand."""
        return None

    def order(self, paths: Sequence[str]) -> list[str]:
        """Return images in the order in which their maps are made fastest."""
        return [*paths]


class Baselines(MapSource):
    """The maps that need no model: where others have the finding, the centre, and chance."""

    kinds = (PRIOR, CENTRE, RANDOM)

    def __init__(self, prior: PositionPrior, patients: Mapping[str, str], seed: int) -> None:
        super().__init__('')
        self.prior, self.seed = prior, seed
        self.patients |= patients

    def row_name(self, kind: str) -> str:
        return kind

    def find(self, cases: Sequence[Case], absent: Sequence[Case] = ()) -> set[Case]:
        return {*cases}

    def maps(self, path: str, label: str) -> dict[str, PlacedMap]:
        return {
            PRIOR: self.prior.of(label, self.patients[path]),
            CENTRE: centre_map(),
            RANDOM: random_map(path, label, self.seed),
        }


class GivenMaps(MapSource):
    """Maps of another program: arrays [h, w] in files `IMAGE__LABEL.npy` below a folder.

    IMAGE is the name of an image as in the regions, with or without its suffix, in which `/` may be
    a folder or `_`. A map shows the whole image, at any size.
    """

    def __init__(self, folder: Path, name: str, images: 'ImageFolder | None' = None) -> None:
        super().__init__(name)
        self.folder, self.images = folder, images
        files = [file.relative_to(folder).as_posix() for file in sorted(folder.rglob('*.npy'))]
        if not files:
            raise ValueError(f'--maps: {folder} has no file IMAGE{BETWEEN}LABEL.npy')
        self.files: dict[str, str] = {}
        for file in files:
            name = flat(file.removesuffix('.npy'))
            if name in self.files:
                raise ValueError(
                    f'--maps: {self.files[name]} and {file} in {folder} are maps of one name, '
                    f'{name}, because / is read as _'
                )
            self.files[name] = file

    def find(self, cases: Sequence[Case], absent: Sequence[Case] = ()) -> set[Case]:
        # Some images or labels may not have been explained. A single map that lacks is an accident.
        explained = [case for case in (*cases, *absent) if self._is_explained(*case)]
        known = {*explained}
        self._refuse_shared(explained)
        wanted = [case for case in cases if case in known]
        if not wanted:
            raise ValueError(
                f'--maps: no map in {self.folder} belongs to a region. The map of the first case '
                f'would be {flat(cases[0][0])}{BETWEEN}{flat(cases[0][1])}.npy, and the first map '
                f'is {next(iter(self.files.values()))}'
            )
        lacking = [case for case in wanted if self._file(*case) is None]
        if lacking:
            path, label = lacking[0]
            raise ValueError(
                f'--maps: {len(lacking)} of {len(cases)} cases with a region have no map in '
                f'{self.folder}, first {label} in {path}. A model that leaves out cases would '
                'score too high. A map of zeros marks nothing'
            )
        for place, what in ((0, 'images'), (1, 'labels')):
            scored = {case[place] for case in wanted}
            left_out = [*dict.fromkeys(case[place] for case in cases if case[place] not in scored)]
            if left_out:
                self.notes.append(
                    f'{self.name}: {len(left_out)} {what} with a region are not scored, because '
                    f'they have no map, such as {left_out[0]}'
                )
        labels = {label for _, label in wanted}
        unknown = [case for case in absent if case[1] in labels and self._file(*case) is None]
        if unknown:
            path, label = unknown[0]
            self.notes.append(
                f'{self.name}: {len(unknown)} cases without a region have no map, first {label} in '
                f'{path}. They are not in the score of false alarms. A map of zeros marks nothing.'
            )
        if self.images is not None:
            self.images.find([*dict.fromkeys(path for path, _ in wanted)])
        return known - {*unknown}

    def image(self, path: str) -> Image.Image | None:
        return self.images.image(path) if self.images is not None else None

    def maps(self, path: str, label: str) -> dict[str, PlacedMap]:
        file = self.folder / self._file(path, label)
        try:
            cells = np.load(file, allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise ValueError(f'{file} cannot be read: {error}') from error
        is_number = isinstance(cells, np.ndarray) and cells.dtype.kind in 'fiub'
        if not is_number or cells.ndim != 2 or not cells.size:
            shape = getattr(cells, 'shape', 'several arrays')
            raise ValueError(f'{file} must be an array [h, w] of numbers, got {shape}')
        with np.errstate(over='ignore'):  # a value that is too large becomes infinite
            cells = cells.astype(np.float64)
        if not np.isfinite(cells).all():
            raise ValueError(f'{file} has values that are NaN or infinite')
        return {OWN: PlacedMap(cells)}

    def marks(self, path: str, label: str) -> bool:
        cells = self.maps(path, label)[OWN].cells
        return bool(cells.min() < cells.max())

    def _is_explained(self, path: str, label: str) -> bool:
        """Return whether the folder has maps of the image, and maps of the label."""
        images, labels = self._explained
        return flat(label) in labels and any(name in images for name in _names(path))

    @cached_property
    def _explained(self) -> tuple[set[str], set[str]]:
        parts = [name.rpartition(BETWEEN) for name in self.files]
        return {image for image, _, _ in parts}, {label for _, _, label in parts}

    def _refuse_shared(self, cases: Sequence[Case]) -> None:
        """Refuse a map that belongs to two cases."""
        owner: dict[str, Case] = {}
        for case in cases:
            file = self._file(*case)
            if file is not None and owner.setdefault(file, case) != case:
                one, other = (f'{label} in {path}' for path, label in (owner[file], case))
                raise ValueError(
                    f'--maps: {self.folder / file} may be the map of {one} and of {other}, because '
                    '/ is read as _. Rename one of them'
                )

    def _file(self, path: str, label: str) -> str | None:
        names = dict.fromkeys(f'{name}{BETWEEN}{flat(label)}' for name in _names(path))
        files = [self.files[name] for name in names if name in self.files]
        if len(files) > 1:
            raise ValueError(
                f'--maps: {files[0]} and {files[1]} in {self.folder} may both be the map of '
                f'{label} in {path}'
            )
        return files[0] if files else None


def _names(path: str) -> tuple[str, ...]:
    """Return the names that an image may have in the name of a map."""
    stem = str(PurePosixPath(path).with_suffix(''))
    return flat(path), flat(stem), flat(image_name(path))


class ImageFolder:
    """The X-rays below a folder or in a store, found by their names in the regions."""

    def __init__(self, root: str | Path) -> None:
        self.images = open_images(root)
        self.file: dict[str, str] = {}

    def find(self, paths: Sequence[str]) -> None:
        """Look up images, of which `image` then returns those that are there."""
        files = self.images.below()
        places = find_names(paths, files, str(self.images.path))
        found = zip(paths, places.tolist(), strict=True)
        self.file = {path: files[place] for path, place in found if place >= 0}
        if not self.file:
            raise ValueError(
                f'--images: {self.images.path} has none of the {len(paths)} images with regions, '
                f'such as {paths[0]}'
            )

    def image(self, path: str) -> Image.Image | None:
        return self.images.reader([self.file[path]])(0) if path in self.file else None


def find_names(paths: Sequence[str], known: Sequence[str], where: str) -> np.ndarray:  # [N]
    """Return the position of each image among known ones, or -1.

    Folders above the patient and suffixes do not count. A name without a folder is compared with
    the last part of the known ones, if it is the name of one of them alone.
    """
    names = [image_name(name) for name in known]
    places = look_up_names([image_name(path) for path in paths], names, where)
    last = [name.rpartition('/')[2] for name in names]
    ends: dict[str, list[int]] = {}
    for place, name in enumerate(last):
        ends.setdefault(name, []).append(place)
    for number in np.flatnonzero(places < 0).tolist():
        name = image_name(paths[number])
        if '/' not in name and len(ends.get(name, ())) == 1:
            places[number] = ends[name][0]
    return places


def patient_of(path: str) -> str:
    """Return the patient that the name of an image states, or the name itself."""
    if match := STUDY.match(path):
        return match['patient']
    name = image_name(path).rpartition('/')[2]
    match = NIH_NAME.fullmatch(name)
    return match[1] if match else image_name(path)


def size_of_image(image: Image.Image) -> Size:
    """Return the size of an image before it was packed."""
    return Size(*full_size(image))


def flat(name: str) -> str:
    """Return a name in which folders are separated by `_`."""
    return name.replace('/', '_')
