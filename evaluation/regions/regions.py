"""Regions that people marked in images: one table of boxes and masks, and their pixels.

A case is an image and a label. It has any number of regions, whose union counts, or the statement
that there is none. Boxes and masks are in pixels of the image on which they were drawn, whose size
the file states, or which is the image itself.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

# Columns of the table. A row without box and mask states that the image has no region of the label.
BOX = ['x', 'y', 'width', 'height']  # pixels; x and y are the left and the upper edge
SIZE = ['image_height', 'image_width']  # of the image on which the region was drawn; NaN: its own
COLUMNS = ['path', 'label', *BOX, 'counts', *SIZE, 'patient', 'row']
OUTSIDE = 0.01  # share of a side by which a rounded box may leave the image
SAME_SHAPE = 0.02  # relative difference of two ratios of height to width that rounding explains
INSTALL = "pip install 'pycocotools>=2.0.8' decodes masks"


class Size(NamedTuple):
    """Height and width of an image in pixels."""

    height: int
    width: int

    def __str__(self) -> str:
        return f'{self.height} x {self.width} pixels (height x width)'


@dataclass(frozen=True, eq=False)
class Regions:
    """The regions of a file.

    Attributes:
        file: Where they are from.
        kind: Kind of the file, a name in `evaluation.regions.readers.READERS`.
        table: A row for each region, with COLUMNS; `counts` is the text of a COCO run-length mask,
            or '', `patient` a name, or '', and `row` the line of the file, or its key.
        notes: Sentences about the file that a report shows.
    """

    file: Path
    kind: str
    table: pd.DataFrame
    notes: tuple[str, ...] = ()

    @property
    def labels(self) -> list[str]:
        """Return the labels in the order of the file."""
        return [*self.table['label'].unique()]

    @cached_property
    def rows(self) -> Mapping[tuple[str, str], pd.DataFrame]:
        """Return the rows of each case, (path, label)."""
        return dict(iter(self.table.groupby(['path', 'label'], sort=False)))

    def has_region(self, path: str, label: str) -> bool:
        """Return whether a case has a region."""
        rows = self.rows[path, label]
        return bool((rows['counts'].ne('') | rows['x'].notna()).any())

    def select(self, keep: np.ndarray) -> 'Regions':
        """Select rows by a mask [N]."""
        return replace(self, table=self.table[keep].reset_index(drop=True))

    def renamed(self, names: Mapping[str, str]) -> 'Regions':
        """Give labels other names; two labels with one name become one, with all their regions."""
        label = self.table['label'].replace(dict(names))
        return replace(self, table=self.table.assign(label=label))

    def drawn_on(self, size: Size) -> 'Regions':
        """State the size of the images of all regions whose file does not."""
        sizes = dict(zip(SIZE, size, strict=True))
        return replace(self, table=self.table.fillna(sizes))

    def patients(self) -> dict[str, str]:
        """Return the patient of each image for which the file states one."""
        named = self.table[self.table['patient'] != '']
        return dict(zip(named['path'], named['patient'], strict=True))

    def states_size(self, path: str, label: str) -> bool:
        """Return whether the file states the size of the image of a case."""
        return bool(self.rows[path, label][SIZE].notna().all(axis=None))

    def size_of(self, path: str, label: str, image: Size | None) -> Size:
        """Return the size of the image on which the regions of a case were drawn.

        Args:
            path: Image of the case.
            label: Label of the case.
            image: Size of the image itself; None if it is not known.

        Raises:
            ValueError: If nothing states the size, or the regions of a case have several.
        """
        rows = self.rows[path, label]
        found = {Size(*map(int, pair)) for pair in rows[SIZE].dropna().to_numpy()}
        if not found and image is not None:
            return image
        if len(found) != 1:
            what = 'no size' if not found else ' and '.join(map(str, sorted(found)))
            raise ValueError(
                f'{self.place(rows)}: the regions of {label} in {path} must state one size of the '
                f'image on which they were drawn (columns {", ".join(SIZE)}, or --annotated-size), '
                f'got {what}'
            )
        return found.pop()

    def mask(self, path: str, label: str, size: Size) -> np.ndarray:  # [H, W] bool
        """Return the pixels of the regions of a case in an image of this size (`size_of`).

        Raises:
            ValueError: If a box is not in the image, or a mask cannot be decoded.
        """
        mask = np.zeros(size, bool)
        for row in self.rows[path, label].itertuples(index=False):
            if row.counts:
                mask |= self._decoded(row, size)
            elif not np.isnan(row.x):
                rows, columns = self._extent(row, size)
                mask[rows, columns] = True
        return mask

    def place(self, rows: pd.DataFrame) -> str:
        """Return the file and the first line of some rows, for messages."""
        return f'{self.file}, {rows["row"].iloc[0]}'

    def _extent(self, row: Any, size: Size) -> tuple[slice, slice]:
        """Return the rows and columns of pixels whose centres are in a box, at least one each."""
        if not (row.width > 0 and row.height > 0):
            raise ValueError(
                f'{self.file}, {row.row}: width and height of a box must be above 0, got '
                f'{row.width:g} and {row.height:g}'
            )
        ends = (row.y, row.y + row.height, size.height), (row.x, row.x + row.width, size.width)
        found = []
        for start, end, side in ends:
            reach = OUTSIDE * side
            if not (-reach <= start < side and 0 < end <= side + reach):
                raise ValueError(
                    f'{self.file}, {row.row}: the box x {row.x:g}, y {row.y:g}, width '
                    f'{row.width:g}, height {row.height:g} must lie in the image {row.path} of '
                    f'{size}. If it was drawn on an image of another size, state that: columns '
                    f'{", ".join(SIZE)}, or --annotated-size HEIGHT WIDTH'
                )
            # The centre of pixel i is at i + 0.5.
            first = min(max(0, round_up(start - 0.5)), side - 1)
            found.append(slice(first, max(first + 1, round_up(end - 0.5))))
        return found[0], found[1]

    def _decoded(self, row: Any, size: Size) -> np.ndarray:  # [H, W] bool
        """Decode a COCO run-length mask."""
        coco = _masks_of_coco()
        found = {'size': [*size], 'counts': row.counts.encode()}
        try:
            mask = coco.decode(found)
            # The decoder fills what the runs do not with any values, and ignores what is too much.
            is_whole = coco.encode(mask)['counts'] == found['counts']
        except Exception as error:  # damaged text
            raise ValueError(f'{self.file}, {row.row}: the mask is damaged: {error}') from error
        if not is_whole:
            raise ValueError(f'{self.file}, {row.row}: the mask does not fit its size, {size}')
        return mask.astype(bool)


def round_up(value: float) -> int:
    """Return the smallest whole number that is not below a value."""
    return int(np.ceil(value))


def as_regions(
    file: Path, kind: str, rows: Iterable[Mapping[str, Any]], notes: Sequence[str] = ()
) -> Regions:
    """Return the regions of rows in which some of the COLUMNS may be missing."""
    table = pd.DataFrame([*rows]).reindex(columns=COLUMNS)
    if not len(table):
        raise ValueError(f'{file}: there is no region in the file')
    for name in ('path', 'label'):
        is_blank = table[name].astype(str).str.strip() == ''
        if is_blank.any():
            line = table['row'][is_blank.idxmax()]
            raise ValueError(f'{file}, {line}: the {name} must not be empty')
    table[['counts', 'patient']] = table[['counts', 'patient']].astype(object).fillna('')
    # A mask without pixels states that there is no region.
    masks = table['counts'] != ''
    if masks.any():
        area = _masks_of_coco().area
        for row in table[masks].itertuples():
            size = [int(row.image_height), int(row.image_width)]
            try:
                has_pixels = area({'size': size, 'counts': row.counts.encode()})
            except Exception as error:  # damaged text
                raise ValueError(f'{file}, {row.row}: the mask is damaged: {error}') from error
            if not has_pixels:
                table.loc[row.Index, 'counts'] = ''
    numbers = [*BOX, *SIZE]
    table[numbers] = table[numbers].astype(float)
    return Regions(file, kind, table, tuple(notes))


def refuse_other_shape(path: str, drawn: Size, image: Size) -> None:
    """Refuse an image with another shape than the one on which its regions were drawn.

    A map can only be laid on the regions if both show the same part of the body.
    """
    shapes = drawn.height / drawn.width, image.height / image.width
    if abs(shapes[0] / shapes[1] - 1) > SAME_SHAPE:
        swapped = ' Are height and width swapped?' if drawn[::-1] == image else ''
        raise ValueError(
            f'the regions of {path} were drawn on {drawn}, but the image has {image}, which is '
            f'another shape.{swapped} If the whole image was squeezed to this shape, without '
            'padding or cropping, use --squeezed'
        )


def is_swapped(shape: tuple[int, int], image: Size) -> bool:
    """Return whether height and width of a map, of any size, are those of the image in turn."""
    ratio = image.height / image.width
    is_square = abs(ratio - 1) <= SAME_SHAPE
    return not is_square and abs(shape[0] / shape[1] * ratio - 1) <= SAME_SHAPE


def _masks_of_coco() -> ModuleType:
    try:
        from pycocotools import mask
    except ImportError as error:
        raise ValueError(f'the file has run-length masks: {INSTALL} ({error})') from error
    return mask
