"""Read files of regions: CheXlocalize, NIH, VinDr-CXR, RSNA, and a table of one's own.

To add a format, write a function from its table to rows of COLUMNS, and its line in READERS. The
columns of a file show its format.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from data.tables.identity import image_name, one_spelling
from data.tables.table import Table
from evaluation.matching import shared_labels
from evaluation.regions.regions import BOX, SIZE, Regions, as_regions

Row = dict[str, Any]
SIDE = 1024  # of the squares on which the boxes of NIH and RSNA were drawn, in pixels
NIH_BOX = ('Bbox [x', 'y', 'w', 'h]')  # the header has commas inside its brackets
NIH_NAMES = {'Infiltrate': 'Infiltration'}  # in the file of boxes -> in that of labels
CHEXLOCALIZE = 'CheXlocalize'
CHEXLOCALIZE_NAMES = {'Airspace Opacity': 'Lung Opacity'}  # -> CheXpert's
CHEXLOCALIZE_IMAGE = re.compile(r'(patient\d+)_(study\d+)_(.+)')
VINDR_BOX = ('x_min', 'y_min', 'x_max', 'y_max')
VINDR_NONE = 'No finding'
READER = 'rad_id'  # column of VinDr-CXR's training images, which several readers marked
UNION = 'Several readers marked the images: a pixel counts that at least one of them marked.'
MOST = 1e6  # pixels
LABEL_SETS = {'NIH': 'nih', 'VinDr-CXR': 'vindr'}  # of formats; of others CheXpert's
RSNA_LABEL = 'Lung Opacity'  # what the boxes of the pneumonia challenge show
# Names of columns of an own table in lower case -> columns of the table of regions.
OWN = {
    **{'path': 'path', 'label': 'label', 'category_name': 'label', 'counts': 'counts'},
    **{'x': 'x', 'y': 'y', 'w': 'width', 'width': 'width', 'h': 'height', 'height': 'height'},
    **{name: name for name in ('patient', *SIZE)},
}


def read_regions(file: str | Path) -> Regions:
    """Read a file of regions, whose columns or suffix show its format.

    Raises:
        ValueError: If the format is unknown, or a value is not of the kind that it must be.
    """
    file = Path(file)
    if file.suffix.lower() == '.json':
        return _one_name(as_regions(file, CHEXLOCALIZE, chexlocalize(file)))
    table = Table(file)
    for name, (columns, read) in READERS.items():
        if all(column in table for column in columns):
            notes = [UNION] if READER in table else []
            return _one_name(as_regions(file, name, read(table), notes))
    return _one_name(as_regions(file, 'own table', own(table)))


def names_of_models(regions: Regions, predicted: Sequence[str]) -> dict[str, str]:
    """Return region label -> label of the models, for findings that both call differently.

    They are the lines of `evaluation/label_sets.yaml` with a single label of the models. If a label
    of regions stands in several lines, the finding with the fewest labels counts.
    """
    ours, found = {*predicted}, {}
    theirs = LABEL_SETS.get(regions.kind, 'chexpert')
    for label in regions.labels:
        choices = [
            (len(finding.labelled), finding.predicted[0])
            for name in ('chexpert', 'nih', 'vindr')
            for finding in shared_labels(name, theirs)
            if label in finding.labelled and len(finding.predicted) == 1
        ]
        choices = [choice for choice in choices if choice[1] in ours]
        if label not in ours and choices:
            found[label] = min(choices)[1]
    return found


def chexlocalize(file: Path) -> Iterator[Row]:
    """Yield the regions of CheXlocalize: image -> observation -> size and run-length mask.

    Each image has all observations, and those that are absent have a mask without pixels.

    Source: Saporta et al. 2022, Nature Machine Intelligence 4, 867-878.
    """
    try:
        contents = json.loads(file.read_bytes())
        for image, observations in contents.items():
            for name, mask in observations.items():
                height, width = map(int, mask['size'])
                yield {
                    # The images lie in folders of patients and studies.
                    'path': CHEXLOCALIZE_IMAGE.sub(r'\1/\2/\3', image),
                    'label': CHEXLOCALIZE_NAMES.get(name, name),
                    'counts': _text(mask['counts']),
                    **dict(zip(SIZE, (height, width), strict=True)),
                    'row': f'{image}, {name}',
                }
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f'{file} must be CheXlocalize\N{RIGHT SINGLE QUOTATION MARK}s gt_segmentations_*.json: '
            '{image: {observation: {"size": [height, width], "counts": text}}}, got '
            f'{type(error).__name__}: {error}'
        ) from error


def nih(table: Table) -> Iterator[Row]:
    """Yield the boxes of NIH's BBox_List_2017.csv, drawn on images of 1,024 x 1,024 pixels.

    Source: Wang et al. 2017, arXiv:1705.02315.
    """
    boxes = numbers(table, NIH_BOX, can_be_empty=False)
    labels = table['Finding Label'].replace(NIH_NAMES)
    names = zip(lines(table), table['Image Index'], labels, boxes, strict=True)
    for line, path, label, box in names:
        yield {'path': path, 'label': label, 'row': line} | _box(box) | _square(SIDE)


def vindr(table: Table) -> Iterator[Row]:
    """Yield the boxes of VinDr-CXR's annotations_*.csv, in pixels of the DICOM images.

    All findings were looked for in each image, so a finding without a box is absent.

    Source: Nguyen et al. 2022, Scientific Data 9, 429.
    """
    corners = numbers(table, VINDR_BOX)
    names, images = table['class_name'], table['image_id']
    for line, path, label, (left, top, right, bottom) in zip(
        lines(table), images, names, corners, strict=True
    ):
        if not np.isnan(left):
            box = _box((left, top, right - left, bottom - top))
            yield {'path': path, 'label': label, 'row': line} | box
    findings = [name for name in names.unique() if name != VINDR_NONE]
    found = {*zip(images, names, strict=True)}
    for path in images.unique():
        for label in findings:
            if (path, label) not in found:
                yield {'path': path, 'label': label, 'row': f'{path} without a box'}


def rsna(table: Table) -> Iterator[Row]:
    """Yield the boxes of RSNA's pneumonia challenge, drawn on images of 1,024 x 1,024 pixels.

    Source: Shih et al. 2019, Radiology: Artificial Intelligence 1(1), e180041.
    """
    boxes = numbers(table, BOX)
    for line, path, box in zip(lines(table), table['patientId'], boxes, strict=True):
        row = {'path': path, 'label': RSNA_LABEL, 'patient': path, 'row': line}
        yield row | _box(box) | _square(SIDE)


def own(table: Table) -> Iterator[Row]:
    """Yield the regions of an own table: boxes, masks, and images without a region.

    Its columns are `Path`, `Label`, and `x`, `y`, `width`, `height` in pixels or `counts`, the text
    of a run-length mask; `image_height` and `image_width` if the regions were drawn on images of
    another size; and perhaps `Patient`. Lower case and `w`, `h` are allowed. A row without box and
    mask states that the image has no region of the label.
    """
    columns = {OWN[name.lower()]: name for name in table.cells if name.lower() in OWN}
    if not ({'path', 'label', *BOX} <= {*columns} or {'path', 'label', 'counts'} <= {*columns}):
        known = '; '.join(f'{name}: {", ".join(wanted)}' for name, (wanted, _) in READERS.items())
        raise ValueError(
            f'{table.file}: the columns show no format of regions. An own table has Path, Label, '
            f'x, y, width, height. Known are {known}; and the JSON files of {CHEXLOCALIZE}. Found: '
            f'{", ".join(table.cells)}'
        )
    table.empty_unknown(*(columns[name] for name in ('counts',) if name in columns))
    values = {
        name: numbers(table, [columns[name]])[:, 0] for name in (*BOX, *SIZE) if name in columns
    }
    texts = {name: table[columns.get(name, '')] for name in ('path', 'label', 'counts', 'patient')}
    for place, line in enumerate(lines(table)):
        row = {name: column[place] for name, column in values.items()}
        row |= {name: column.iloc[place] for name, column in texts.items()}
        has_number = [not np.isnan(row.get(name, np.nan)) for name in BOX]
        has_size = all(not np.isnan(row.get(name, np.nan)) for name in SIZE)
        problem = ''
        if any(has_number) and (not all(has_number) or row['counts']):
            problem = f'a row needs all of {", ".join(BOX)}, or counts alone'
        elif row['counts'] and not has_size:
            problem = f'a mask needs {", ".join(SIZE)}'
        if problem:
            raise ValueError(f'{table.file}, {line}: {problem}')
        yield row | {'row': line}


# Format -> the columns that tell it from others, and a function from a table to rows of regions.
READERS: dict[str, tuple[tuple[str, ...], Callable[[Table], Iterator[Row]]]] = {
    'NIH': (('Image Index', 'Finding Label', *NIH_BOX), nih),
    'VinDr-CXR': (('image_id', 'class_name', *VINDR_BOX), vindr),
    'RSNA': (('patientId', *BOX, 'Target'), rsna),
}


def numbers(
    table: Table, columns: Sequence[str], *, can_be_empty: bool = True
) -> np.ndarray:  # [N, C]
    """Return columns as numbers, NaN where a cell is empty."""
    table.empty_unknown(*columns)
    options = {'least': -MOST, 'most': MOST, 'can_be_empty': can_be_empty}
    return np.stack([table.numbers(name, 'region', **options) for name in columns], axis=1)


def lines(table: Table) -> list[str]:
    """Return the place of each row for messages, as a data check does."""
    return [f'row {row} (the header is row 1)' for row in table.row + 2]


def _one_name(regions: Regions) -> Regions:
    """Give all rows of an image its first name in the file, so that their regions are united.

    Folders above the patient, suffixes and blanks do not count.
    """
    paths = regions.table['path'].drop_duplicates().to_numpy(object)
    forms = one_spelling([image_name(path.strip()) for path in paths])
    first = pd.Series(paths).groupby(forms).transform('first').to_numpy(object)
    others = np.flatnonzero(first != paths)
    if not len(others):
        return regions
    note = (
        f'{len(others)} names of images are other spellings and count as one image with the first: '
        f'{paths[others[0]]} is {first[others[0]]}.'
    )
    path = regions.table['path'].map(dict(zip(paths, first, strict=True)))
    notes = (*regions.notes, note)
    return replace(regions, table=regions.table.assign(path=path), notes=notes)


def _box(box: Any) -> Row:
    return dict(zip(BOX, box, strict=True))


def _square(side: int) -> Row:
    return dict.fromkeys(SIZE, side)


def _text(counts: Any) -> str:
    if not isinstance(counts, str):
        raise TypeError(f'counts must be text, got {type(counts).__name__}')
    return counts
