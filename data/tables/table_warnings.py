"""Warn of what is doubtful in a table: patients, names of labels, labels, and views."""

import re
from collections.abc import Iterator, Sequence

import numpy as np

from data.tables.identity import SCIENTIFIC, other_spellings
from data.tables.labels import (
    CELLS,
    NO_FINDING,
    POSITIVE,
    SUPPORT_DEVICES,
    describe_same,
    evaluation_targets,
    same_labels,
)
from data.tables.records import OTHER_VIEW, Records
from data.tables.table import READ, Table
from data.tables.unknown import is_unknown_word, known_cells

# Kinds of warnings that also belong into a report.
CONTRADICTION, SIMILAR = 'No Finding with a finding', 'name like a label'
NO_PATIENTS, LACKING_PATIENTS = 'unknown patients', 'rows without a patient'
TWO_SPELLINGS = 'two spellings of a patient or a study'
DOUBTS = (CONTRADICTION, SIMILAR, LACKING_PATIENTS, TWO_SPELLINGS)
NAMED = {'patient': 'patient(s)', 'study': 'studies of a patient'}
# Images of one patient above which the name may mean nobody: more than the first number, and more
# than this share of all or the last number. The most in public data are 184 of 112,120.
MANY_IMAGES, LARGE_SHARE, MOST_IMAGES = 50, 0.05, 500
READ_AS = {name.casefold(): name for name in READ}
SHOWN = 5  # names in a warning
LONG_LABEL = 4  # letters
NO_LABELS = 'n/a'  # cells of labels of an image of which no label is known
PRESENT = [cell for cell, value in CELLS.items() if value == POSITIVE]
# Words, beside those for unknown, by which a list of labels says that it is not complete.
INCOMPLETE = {'exclude', 'excluded', 'suboptimal study', 'unchanged', 'uncertain', 'unclear'}
INCOMPLETE |= {'not labelled', 'not labeled', 'unlabelled', 'unlabeled', 'no report'}
INCOMPLETE |= {'indeterminate', 'inconclusive', 'not assessed', 'not evaluable'}


def report_groups(table: Table, columns: Sequence[str]) -> None:
    """Warn of cells of own groups whose words count as unknown: `none` may be a group."""
    for name in columns:
        cells = table[name]
        counts = cells[(cells != '') & (known_cells(cells) == '')].value_counts()
        if len(counts):
            words = ', '.join(map(repr, counts.index[:SHOWN]))
            detail = (
                f'{counts.sum():,} cells of {name!r} ({words}) count as unknown, and are in no '
                "group: for patients without a finding or device write another word, such as 'no'"
            )
            table.fault('unknown groups', detail, severity='warning')


def names_nobody(table: Table) -> bool:
    """Return whether all images stand for patients, because the table names none."""
    return len(table) > 0 and all(map(str.endswith, table[table.key], table['patient']))


def report_patients(table: Table) -> None:
    """Warn of patients who are unknown, and of dropped digits."""
    names = table['patient']
    if names_nobody(table):
        if (table['Patient'] != '').any():  # otherwise `add_studies` has said it
            detail = 'it names no patients: each image counts as one, so splits may share patients'
            table.fault(NO_PATIENTS, detail, severity='warning')
        return
    counts = names.value_counts()
    limit = max(MANY_IMAGES, min(LARGE_SHARE * len(names), MOST_IMAGES))
    for name, count in counts[counts > limit].items():
        detail = (
            f'{count:,} of {len(names):,} rows are of the patient {name!r}: if this means that the '
            'patient is unknown, leave the cells empty, or they count as one person'
        )
        table.fault('one patient of many rows', detail, severity='warning')
    for column in ('Patient', 'Study'):
        cells = table[column] if column in table else ()
        if found := [cell for cell in {*cells} if SCIENTIFIC.fullmatch(cell.strip())]:
            detail = (
                f'column {column!r}: {len(found)} name(s) such as {min(found)!r} are in scientific '
                'notation: a spreadsheet has dropped digits, so several may have become one'
            )
            table.fault('scientific notation', detail, severity='warning')


def report_spellings(table: Table) -> None:
    """Warn of patients, and of studies of one patient, that may be spelt in two ways."""
    study, patient = table['study'], table['patient']
    patient_of = dict(zip(study, patient, strict=True))
    found = {'patient': [] if names_nobody(table) else other_spellings(patient)}
    found['study'] = [
        (one, other)
        for one, other in (other_spellings(study) if 'Study' in table else ())
        if patient_of[one] == patient_of[other]
    ]
    for column, pairs in found.items():
        for one, other in pairs[:1]:
            first = [(table[column] == name).to_numpy().argmax() for name in (one, other)]
            rows = [int(table.row[position]) + 2 for position in first]
            detail = (
                f'{len(pairs)} {NAMED[column]} may be spelt in two ways, such as {one!r} in row '
                f'{rows[0]} and {other!r} in row {rows[1]}. They are never in two splits, but each '
                'spelling counts as one'
            )
            table.fault(TWO_SPELLINGS, detail, severity='warning')


def report_names(table: Table, labels: Sequence[str], others: Sequence[str]) -> None:
    """Warn of other columns that look like a label, or that say that labels are unknown."""
    for name in others:
        wanted = READ_AS.get(name.casefold(), name)
        if wanted not in table:
            detail = f'column {name!r} is not read: its name must be {wanted!r}'
            table.fault('column in another spelling', detail, severity='warning')
    similar = similar_names(others, labels)
    is_incomplete = {
        name: name.casefold() in INCOMPLETE or is_unknown_word(name) for name in others
    }
    unknown = [name for name in others if is_incomplete[name]] if labels else []
    rows = {name: int(table[name].isin(PRESENT).sum()) for name in {*similar, *unknown}}
    if found := sorted(filter(rows.get, similar), key=lambda name: -rows[name]):
        shown = [f'{name!r} ({similar[name]}, rows: {rows[name]:,})' for name in found[:SHOWN]]
        rest = f' and {len(found) - SHOWN} more' if len(found) > SHOWN else ''
        detail = (
            f'columns {", ".join(shown)}{rest} look like a label that is read, but are other '
            'names: such a finding counts as negative'
        )
        table.fault(SIMILAR, detail, severity='warning')
    if words := [repr(name) for name in unknown if rows[name]]:
        detail = (
            f'{", ".join(words)} is positive in some rows, and their other labels count as '
            f'negative: are they unknown? Then leave these rows out, or write {NO_LABELS} in them'
        )
        table.fault('words for unknown labels', detail, severity='warning')


def similar_names(names: Sequence[str], labels: Sequence[str]) -> dict[str, str]:
    """Return name -> label for names that are no label, but look like one, such as 'edema?'.

    They equal a label up to case, spaces and punctuation, or contain it.
    """
    found = {}
    wanted = {label: re.findall(r'[^\W_]+', label.casefold()) for label in labels}
    for name in names:
        words = re.findall(r'[^\W_]+', name.casefold())
        for label, of_label in wanted.items():
            text, whole = ''.join(of_label), ''.join(words)
            # A short label must be a word of its own: 'TB' is in 'no TB', but not in 'outburst'.
            is_word = f' {" ".join(of_label)} ' in f' {" ".join(words)} '
            is_inside = len(text) >= LONG_LABEL and text in whole
            if name not in wanted and text and (text == whole or is_word or is_inside):
                found.setdefault(name, label)
    return found


def label_warnings(
    labels: np.ndarray, names: Sequence[str], images: Sequence[str], *, blank: str = ''
) -> Iterator[tuple[str, str]]:
    """Yield the kind of each doubt about the labels of a table, and a sentence about it.

    Args:
        labels: Labels [N, K]: 1 present, 0 absent, -1 uncertain, NaN not mentioned.
        names: Names of the labels, [K].
        images: Names of the images (or studies), [N].
        blank: DATA.BLANK if each label is learned on its own, and otherwise '': two classes of an
            image are always complementary.
    """
    if NO_FINDING in names:
        is_finding = np.array([name not in (NO_FINDING, SUPPORT_DEVICES) for name in names])
        found = (labels == POSITIVE) & is_finding
        is_wrong = (labels[:, names.index(NO_FINDING)] == POSITIVE) & found.any(axis=1)
        if is_wrong.any():
            first = int(np.argmax(is_wrong))
            yield (
                CONTRADICTION,
                f'{is_wrong.sum():,} of {len(labels):,} rows have both {NO_FINDING} and a finding, '
                f'such as {images[first]} ({names[int(np.argmax(found[first]))]})',
            )
    targets = evaluation_targets(labels, blank, names) if blank else labels[:0]
    if same := describe_same(same_labels(targets, names)):
        yield 'one label under several names', f'{len(labels):,} rows: {same}'


def report_views(table: Table, records: Records) -> None:
    """Report images whose view is neither stated nor in the name, and count other views."""
    key, unknown = table.key, records.view == ''
    if unknown.all() and 'Frontal/Lateral' not in table and len(table):
        detail = 'there is no column Frontal/Lateral, and no name like view1_frontal.jpg: add the '
        table.fault('value of the view', f'{detail}column (Frontal, Lateral or {OTHER_VIEW})', 0)
    else:
        problem = 'has neither a view nor a name like view1_frontal.jpg: write Frontal, Lateral or '
        problem += f'{OTHER_VIEW}, if it is unknown, into the column Frontal/Lateral'
        table.check(key, ~unknown, 'value of the view', problem)
    if others := int((records.view == OTHER_VIEW).sum()):
        detail = f'{others:,} of {len(records):,} images are neither frontal nor lateral'
        table.fault('other views', detail, severity='note')
