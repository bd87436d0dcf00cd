"""Which pictures and CSV files of a folder go into a packed store."""

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.chexpert import SCORED_FILES, read_csv, read_folder
from data.mimic import named_images
from data.packed import BAD_FILE, file_crc32, is_store

TABLES = (*SCORED_FILES, 'test.csv')


@dataclass(frozen=True)
class Source:
    """What is to be packed."""

    root: Path
    files: list[str]  # pictures, relative to root, sorted
    tables: dict[str, Path]  # CSV files: name in the store -> where it is
    scored: bool  # whether `read_folder` refuses to train on all of the folder's pictures

    def signature(self) -> dict[str, object]:
        """Numbers by which the same source is known again."""
        names = b'\0'.join(map(os.fsencode, self.files))
        return {
            'images': len(self.files),
            'names_crc32': zlib.crc32(names),
            'tables_crc32': {name: file_crc32(path) for name, path in self.tables.items()},
        }


def read_source(
    data_path: str | Path,
    *,
    csv_names: Sequence[str] = (),
    image_suffix: str = '',
    all_images: bool = False,
) -> Source:
    """List what a folder has to be packed; all CSV files directly in it are.

    The pictures are those that its CSV files name: MIMIC-CXR-JPG's, or in CheXpert's layout
    train.csv, valid.csv and test.csv.  Where there is none of them, all pictures below it.

    Args:
        data_path: the folder.
        csv_names: CheXpert's layout: the files whose pictures are packed, in place of those three.
        image_suffix: as DATA.IMAGE_SUFFIX.
        all_images: take all pictures below the folder, too.

    Raises:
        ValueError: if a CSV file or the folder cannot be read by `data.chexpert`, `data.mimic`.
    """
    root = Path(data_path)
    if not root.is_dir():
        raise ValueError(f'--data-path is no folder: {root}')
    if is_store(root):
        raise ValueError(f'--data-path is a packed store: {root} (pack what it was packed from)')
    tables = _tables(sorted([*root.glob('*.csv'), *root.glob('*.csv.gz')]))
    for name in csv_names:
        if name not in tables:
            raise ValueError(
                f'--csv must name CSV files (.csv, .csv.gz) directly in {root}, got {name!r}'
            )
    names = csv_names or [name for name in TABLES if (root / name).is_file()]
    named = set()
    is_mimic = not csv_names and any(root.glob('mimic-cxr-*-split.csv*'))
    if is_mimic:
        named |= named_images(root, image_suffix=image_suffix)
    else:
        for name in names:
            named.update(read_csv(root, name, image_suffix=image_suffix).file)
    scored = any((root / name).is_file() for name in SCORED_FILES)
    if all_images or not named:
        named.update(read_folder(root, allow_all_images=all_images).file)
        scored = scored or _holds(root, SCORED_FILES)
    return Source(root, sorted(named), tables, scored)


def read_addition(data_path: str | Path, csv_file: str | Path, *, image_suffix: str) -> Source:
    """One more CSV file in CheXpert's layout, inside the folder or elsewhere, and its pictures.

    Pictures that it has a label of are to be scored, whatever the name of the file.
    """
    root = Path(data_path)
    path = root / csv_file if (root / csv_file).is_file() else Path(csv_file).absolute()
    tables = _tables([path])
    records = read_csv(root, str(path), image_suffix=image_suffix)
    scored = path.name in SCORED_FILES or not np.isnan(records.labels).all()
    return Source(root, sorted(records.file), tables, scored)


def _tables(paths: Sequence[Path]) -> dict[str, Path]:
    """CSV files by their names in the store, where they must not stand for the store's own."""
    for path in paths:
        if path.name.lower() == BAD_FILE:
            raise ValueError(f'{path}: a store keeps another file under this name')
        if not path.name.endswith(('.csv', '.csv.gz')):
            raise ValueError(f'the name of a CSV file must end in .csv or .csv.gz, got {path}')
    return {path.name: path for path in paths}


def _holds(root: Path, names: Sequence[str]) -> bool:
    return any(name in found for _, _, found in os.walk(root) for name in names)
