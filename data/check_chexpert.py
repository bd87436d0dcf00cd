"""All that is wrong in a CSV file in CheXpert's layout."""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from data.check_findings import Findings
from data.check_tables import BAD_LABEL, Folder, Split, TableCheck, mark_missing, refused
from data.chexpert import (
    AGE,
    DESCRIPTION,
    IMAGE_PATH,
    IMAGE_SUFFIXES,
    PROJECTIONS,
    SEXES,
    STUDY_PATH,
    VIEW_CELLS,
    VIEW_NAME,
    PathRule,
    match_paths,
    views_from_names,
)
from data.labels import LABELS
from data.packed import Store

MAX_AGE = 120  # in years


def check_csv(
    split: str,
    name: str,
    pictures: Folder | Store,
    *,
    image_suffix: str,
    blank: str,
    findings: Findings,
) -> Split | None:
    """Find all that is wrong in a CSV file, but in the pictures themselves.

    Args:
        split: whose file it is, such as 'train'.
        name: the file's.
        pictures: the folder of the file, or the store.
        image_suffix: as DATA.IMAGE_SUFFIX.
        blank: as DATA.BLANK.
        findings: where all that is wrong goes.

    Returns:
        The rows whose pictures are there, each picture once; None where no row is of use.
    """
    check = TableCheck(Path(pictures.path), name, findings)
    table = check.table
    if table is None:
        return None
    described = any(column in table for column in DESCRIPTION) and 'Path' in table
    check.columns([*(DESCRIPTION if described else ()), *LABELS], one_of=('Path', 'Study'))
    if described:
        _check_description(check)
    labels = check.labels()
    check.classes(split, labels, blank=blank)
    if 'Path' in table:
        return _check_images(check, split, pictures, labels=labels, suffix=image_suffix)
    if 'Study' in table:
        return _check_studies(check, split, pictures, suffix=image_suffix)
    return None


def _check_description(check: TableCheck) -> None:
    check.cells('Sex', 'value of the sex', SEXES)
    check.cells('Frontal/Lateral', 'value of the view', VIEW_CELLS)
    check.cells('AP/PA', 'value of the projection', PROJECTIONS)
    if 'Age' not in check.table:
        return
    texts = [text for text in check.table['Age'].unique() if AGE.fullmatch(text)]
    check.cells('Age', 'value of the age', texts, allowed='numbers from 0')
    unlikely = check.table['Age'].isin([text for text in texts if float(text) > MAX_AGE])
    for position in np.flatnonzero(unlikely).tolist():
        age = check.table['Age'].iloc[position]
        check.add('unlikely age', f'{age} years are more than {MAX_AGE}', position)


def _check_images(
    check: TableCheck, split: str, pictures: Folder | Store, *, labels: np.ndarray, suffix: str
) -> Split | None:
    paths = check.table['Path']
    good = _check_paths(check, paths, IMAGE_PATH)
    if not good.any():
        return None
    parts = match_paths(paths[good], IMAGE_PATH, check.name)
    rule = _rule(paths[good], parts['prefix'], pictures, suffix)
    files = np.full(len(paths), None, object)
    files[good] = [rule.file(path) for path in paths[good]]
    good &= check.firsts('Path', 'duplicate path', files)
    _check_views(check, np.flatnonzero(good))
    parts = match_paths(paths[good], IMAGE_PATH, check.name)
    _check_study_labels(check, parts['study'], labels, np.flatnonzero(good))
    rows = paths.index.to_numpy()[good] + 2
    found = Split(split, check.name, rows, files[good], parts['patient'].to_numpy(object))
    return mark_missing(found, pictures, check.findings)


def _check_studies(
    check: TableCheck, split: str, pictures: Folder | Store, *, suffix: str
) -> Split | None:
    """The rows are those of the studies; every picture of a study has its row."""
    studies = check.table['Study']
    good = _check_paths(check, studies, STUDY_PATH)
    good &= check.firsts('Study', 'duplicate path', np.where(good, studies, None))
    if not good.any():
        return None
    parts = match_paths(studies[good], STUDY_PATH, check.name)
    rule = _rule(studies[good], parts['prefix'], pictures, '')
    suffixes = (suffix.lower(),) if suffix else IMAGE_SUFFIXES
    rows, files, patients = [], [], []
    for position, patient in zip(np.flatnonzero(good).tolist(), parts['patient'], strict=True):
        place = rule.file(studies.iloc[position])
        below = [file for file in pictures.below(place) if file.lower().endswith(suffixes)]
        if not below:
            tried = f'{Path(pictures.path) / place}/...{" ".join(suffixes)}'
            check.add('missing picture', f'the study has no picture; tried {tried}', position)
        rows += [int(studies.index[position]) + 2] * len(below)
        files += below
        patients += [patient] * len(below)
        _check_names(check, pd.Series(below, name='Path', dtype=object), [position] * len(below))
    arrays = np.array(rows, np.int64), np.array(files, object), np.array(patients, object)
    return mark_missing(Split(split, check.name, *arrays), pictures, check.findings)


def _check_paths(check: TableCheck, paths: pd.Series, form: re.Pattern) -> np.ndarray:  # [N] bool
    good = np.ones(len(paths), bool)
    for position, text in refused(partial(match_paths, form=form, source=check.name), paths):
        good[position] = False
        leaves = 'leaves the data root' in text
        check.add('path that leaves the folder' if leaves else 'form of a path', text, position)
    return good


def _rule(paths: pd.Series, prefixes: pd.Series, pictures: Folder | Store, suffix: str) -> PathRule:
    """The readers' rule from paths to files; if they have none, that which finds most pictures."""
    root = pictures if isinstance(pictures, Store) else pictures.path
    try:
        return PathRule.decide(paths, prefixes, root, '', suffix)
    except ValueError:
        rules = PathRule(True, suffix), PathRule(False, suffix)
        return max(rules, key=lambda rule: sum(_is_there(rule.file(p), pictures) for p in paths))


def _is_there(file: str, pictures: Folder | Store) -> bool:
    return file in pictures or bool(pictures.below(file))


def _check_views(check: TableCheck, positions: np.ndarray) -> None:
    """Views in names against those in cells; without cells every name must have one."""
    paths = check.table['Path']
    if not any(check.has(name) for name in DESCRIPTION):
        _check_names(check, paths.iloc[positions], positions)
    elif check.has('Frontal/Lateral'):
        cells = check.table['Frontal/Lateral']
        for position in positions.tolist():
            named, view = (
                VIEW_NAME.search(paths.iloc[position]),
                VIEW_CELLS.get(cells.iloc[position]),
            )
            if named and view and named[1] != view:
                detail = f'the view is {view}, the name says {named[1]}'
                check.add('view unlike the name', detail, position)


def _check_names(check: TableCheck, paths: pd.Series, positions: Sequence[int]) -> None:
    """Find which of these names have no view; they belong to the rows at these positions."""
    for place, text in refused(partial(views_from_names, source=check.name), paths):
        check.add('value of the view', text, int(positions[place]))


def _check_study_labels(
    check: TableCheck, studies: pd.Series, labels: np.ndarray, positions: np.ndarray
) -> None:
    """Compare the labels of each image with those of the first of its study.

    Args:
        check: of the table.
        studies: [M] of these rows.
        labels: [N, K] of all rows, BAD_LABEL where a cell is wrong.
        positions: [M] of the rows that count.
    """
    codes = pd.factorize(studies)[0]
    firsts = positions[np.unique(codes, return_index=True)[1]]
    own, first = labels[positions], labels[firsts[codes]]
    same = (own == first) | (np.isnan(own) & np.isnan(first))
    differ = ~same & (own != BAD_LABEL) & (first != BAD_LABEL)
    told = set()
    for place in np.flatnonzero(differ.any(axis=1)).tolist():
        if codes[place] in told:  # one finding a study
            continue
        told.add(codes[place])
        reference = int(firsts[codes[place]])
        names = ', '.join(label for label, d in zip(LABELS, differ[place], strict=True) if d)
        row = int(check.table.index[reference]) + 2
        check.add('labels of a study differ', f'from row {row}: {names}', int(positions[place]))
