"""The tables of a report as CSV files, for spreadsheets and scripts."""

import csv
from collections.abc import Iterator
from pathlib import Path

from data.tables import safe_cell

Row = dict[str, object]


def write_tables(folder: Path, report: dict) -> None:
    """Write report_labels.csv, report_groups.csv and, if there are any, report_comparisons.csv.

    Args:
        folder: where.
        report: as `report_view.plain` returns it.
    """
    _write(folder / 'report_labels.csv', ('set', 'level', 'views', 'label'), label_rows(report))
    _write(folder / 'report_groups.csv', ('set', 'column', 'group', 'label'), group_rows(report))
    comparisons = folder / 'report_comparisons.csv'
    comparisons.unlink(missing_ok=True)
    if report['comparisons']:
        _write(comparisons, ('set', 'a', 'b', 'label'), comparison_rows(report))


def label_rows(report: dict) -> Iterator[Row]:
    """A row a label and set, then the set's means."""
    for entry in report['sets']:
        keys = {'set': entry['name'], 'level': entry['level'], 'views': entry['views']}
        for label in entry['labels']:
            scaled = {f'{name}_scaled': label['scaled'].get(name) for name in ('brier', 'ece')}
            yield {
                **keys,
                **{name: label[name] for name in ('label', 'n', 'positives')},
                'uncertain_left_out': entry['uncertain'].get(label['label'], 0),
                **{name: label[name] for name in ('threshold', 'temperature')},
                **_columns({**label['scores'], **scaled, 'auroc_delong': label['delong']}),
                'radiologists_below': label['radiologists_below'],
            }
        for name, title in (
            ('five', '(mean of the five tasks)'),
            ('all', '(mean of all labels)'),
            ('labels_with_both_classes', '(mean of the labels with both classes)'),
        ):
            yield {**keys, 'label': title, **_columns(entry['means'][name] or {})}


def group_rows(report: dict) -> Iterator[Row]:
    """A row a label and group, the group's means, and the gap of each label between groups."""
    for entry in report['sets']:
        for column in entry['groups']:
            keys = {'set': entry['name'], 'column': column['column']}
            for group in column['groups']:
                yield from _rows_of_group({**keys, 'group': group['group']}, group)
            for label, gap in column['gaps'].items():
                pair = f'(gap: {gap["best"]} above {gap["worst"]})'
                yield {**keys, 'group': pair, 'label': label, **_columns({'gap': gap['gap']})}


def _rows_of_group(keys: Row, group: dict) -> Iterator[Row]:
    for label, values in group['labels'].items():
        scores = {**values['scores'], 'auroc_standardised': values['standardised_auroc']}
        counts = {name: values[name] for name in ('n', 'positives', 'few')}
        yield {**keys, 'label': label, **counts, **_columns(scores)}
    counts = {name: group[name] for name in ('rows', 'patients')}
    rates = _columns({'underdiagnosis': group['underdiagnosis']})
    yield {**keys, 'label': '(all cases)', **counts, **rates}
    for name, title in (
        ('five', '(mean of the five tasks)'),
        ('all_defined', '(mean of the defined labels)'),
    ):
        yield {**keys, 'label': title, **_columns({'auroc': group['means'][name]})}


def comparison_rows(report: dict) -> Iterator[Row]:
    """A row a label, then the mean of the five."""
    for entry in report['comparisons']:
        keys = {name: entry[name] for name in ('set', 'a', 'b')}
        rows = dict(entry['labels'])
        if entry['means']['five']:
            rows['(mean of the five tasks)'] = entry['means']['five']
        for label, row in rows.items():
            values = {name: value for name, value in row.items() if name != 'difference'}
            yield {**keys, 'label': label, **_columns({'difference': row['difference']}), **values}


def _columns(scores: dict[str, dict | None]) -> Row:
    """Score -> three columns: its value, and its interval."""
    row = {}
    for name, score in scores.items():
        score = score or {'value': None, 'low': None, 'high': None}
        row |= {name: score['value'], f'{name}_low': score['low'], f'{name}_high': score['high']}
    return row


def _write(path: Path, first: tuple[str, ...], rows: Iterator[Row]) -> None:
    rows = list(rows)
    header = list(dict.fromkeys([*first, *(name for row in rows for name in row)]))
    with path.open('w', encoding='utf-8', newline='') as file:
        writer = csv.writer(file, lineterminator='\n')
        writer.writerow([_cell(name) for name in header])
        writer.writerows([_cell(row.get(name)) for name in header] for row in rows)


def _cell(value: object) -> object:
    if value is None:
        return ''
    return safe_cell(value) if isinstance(value, str) else repr(value)
