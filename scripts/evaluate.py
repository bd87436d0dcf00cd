"""Score predictions of any model: the same report as for a run, without torch and without images.

python scripts/evaluate.py --predictions FILE.csv [...] --labels LABELS.csv --output DIR
    [--thresholds-from HELD_OUT.csv [...] HELD_OUT_LABELS.csv | report.json [...]]

Prediction files have a column Path (or Study) and probabilities in one column per label, in any
order. The label file has Path (or Study) and CheXpert's observations as 1, 0, -1 (uncertain, left
out) or empty. Several prediction files are compared with each other.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import allowed_values, default_config
from data.records import (
    LabelTable,
    Records,
    group_columns,
    read_label_file,
    read_predictions,
    standard_groups,
)
from engine.run_record import code_version
from evaluation.analysis import HeldOut, fit_held_out
from evaluation.cases import Cases, match
from evaluation.metrics import METRICS, Protocol
from evaluation.report import (
    MEAN_TITLES,
    NO_HELD_OUT,
    NO_INTERVAL,
    SALT_FILE,
    Names,
    build_document,
    compare_sets,
    names_for,
    rename_images,
    write_report,
)


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, default = parser.add_argument, default_config()

    def choice(flag: str, key: str, value: str, text: str) -> None:
        add(flag, choices=allowed_values(key), default=value, help=f'{text} (%(default)s)')

    add('--predictions', nargs='+', type=Path, required=True, metavar='FILE', help='one per model')
    add('--labels', type=Path, required=True, metavar='CSV')
    add('--output', type=Path, required=True, metavar='DIR', help='folder of the report')
    add(
        '--thresholds-from',
        nargs='+',
        type=Path,
        default=[],
        metavar='FILE',
        help='predictions for other patients, one file per model in the same order, followed by '
        'their labels; or one report.json per model; otherwise scores that need a threshold are '
        'n/a',
    )
    choice('--task', 'DATA.TASK', default.DATA.TASK, 'what the labels are converted to')
    choice('--level', 'EVAL.LEVEL', default.EVAL.LEVEL, 'what is scored')
    choice('--aggregate', 'EVAL.AGGREGATE', default.EVAL.AGGREGATE, 'over the images of a study')
    choice('--views', 'DATA.VIEWS', 'all', 'images that are scored')
    choice('--blank', 'DATA.BLANK', default.DATA.BLANK, 'a label that is not mentioned')
    choice('--threshold', 'EVAL.THRESHOLD', default.EVAL.THRESHOLD, 'rule')
    add('--sensitivity', type=float, default=default.EVAL.SENSITIVITY, help='for that rule')
    add('--resamples', type=int, default=default.EVAL.RESAMPLES, help='0: no intervals')
    add('--seed', type=int, default=default.SEED, help='of the resamples')
    add('--groups', nargs='+', default=[], metavar='COLUMN', help='further columns to score by')
    add('--demographics', type=Path, metavar='CSV', help='of patients, with these columns')
    add(
        '--anonymise',
        action='store_true',
        help='replace the names of images in the report by hashes, salted with '
        f'DIR/{SALT_FILE} (REPORT.ANONYMISE)',
    )
    args = parser.parse_args(arguments)
    if args.resamples < 0 or args.seed < 0:
        parser.error('--resamples and --seed must be 0 or greater')
    if not 0 < args.sensitivity <= 1:
        parser.error('--sensitivity must be above 0 and at most 1')
    if args.demographics and not args.groups:
        parser.error('--demographics needs --groups with the columns to score by')
    return args


def main(args: argparse.Namespace) -> int:
    try:
        document = score_files(args)
        page = write_report(args.output, document)
    except (ValueError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    print(format_scores(document, has_intervals=args.resamples > 0))
    print(f'report in {page}. Not for clinical use.')
    return 0


def score_files(args: argparse.Namespace) -> dict[str, Any]:
    """Score all prediction files and return the document of the report."""
    protocol = Protocol(
        level=args.level,
        aggregate=args.aggregate,
        views=args.views,
        threshold=args.threshold,
        sensitivity=args.sensitivity,
        resamples=args.resamples,
        seed=args.seed,
    )
    names = names_for(args.output, anonymise=args.anonymise)
    sets, warnings = read_cases(args, names)
    fitted, source, notes = fit_thresholds(args, sets, protocol, names=names)
    files = [
        f'{cases.name}: {names.file(file)}'
        for cases, file in zip(sets, args.predictions, strict=True)
    ]
    document = build_document(
        sets,
        fitted,
        protocol,
        run={
            'Predictions': '; '.join(files),
            'Labels': names.file(args.labels),
            'Task': args.task,
            'Blank labels': args.blank,
            'Resamples': args.resamples,
            'Seed': args.seed,
            'Thresholds': source,
            'Code': code_version(),
        },
        warnings=list(dict.fromkeys([*warnings, *notes, *row_warnings(sets, protocol)])),
        extras={'comparisons': compare_sets(sets, protocol, name=args.labels.stem)},
    )
    rename_images(document, names)
    document['warnings'] = [
        f'{line}; use --thresholds-from' if line == NO_HELD_OUT else line
        for line in document['warnings']
    ]
    return document


def read_cases(args: argparse.Namespace, names: Names) -> tuple[list[Cases], list[str]]:
    """The cases of every prediction file, and warnings about rows that are not scored."""
    labels = read_labels(args, args.labels, names)
    demographics = str(args.demographics.absolute()) if args.demographics else ''

    def groups(records: Records) -> dict[str, np.ndarray]:
        further = group_columns(
            records, args.groups, demographics=demographics, options=('--groups', '--demographics')
        )
        return standard_groups(records, default_config().EVAL.AGE_BANDS) | further

    sets, warnings = [], []
    for file, name in zip(
        args.predictions, set_names(args.predictions, anonymise=args.anonymise), strict=True
    ):
        predictions = replace(read_predictions(file), file=Path(names.file(file)))
        cases, notes = match(predictions, labels, name=name, level=args.level, groups=groups)
        sets.append(cases)
        warnings += notes
    return sets, warnings


def read_labels(args: argparse.Namespace, file: Path, names: Names) -> LabelTable:
    """Read a label file; messages about it use its name in the report."""
    table = read_label_file(file, task=args.task, blank=args.blank, views=args.views)
    return replace(table, file=Path(names.file(file)))


def set_names(files: Sequence[Path], *, anonymise: bool = False) -> list[str]:
    """A name for each file: its stem, preceded by as many folders as needed to tell them apart.

    With `anonymise`, a number replaces the folders.
    """
    parts = [file.absolute().with_suffix('').parts for file in files]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ['/'.join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            numbered = anonymise and depth > 1
            return [f'{f.stem} ({i})' for i, f in enumerate(files, 1)] if numbered else names
    raise ValueError(f'--predictions: a file is given twice: {", ".join(map(str, files))}')


def fit_thresholds(
    args: argparse.Namespace, sets: Sequence[Cases], protocol: Protocol, *, names: Names
) -> tuple[list[HeldOut] | None, str, list[str]]:
    """Thresholds and temperatures of each model, a description of their source, and warnings."""
    files = args.thresholds_from
    if not files:
        return None, 'none', []
    from_reports = all(file.suffix == '.json' for file in files)
    if len(files) != len(sets) + (not from_reports):
        raise ValueError(
            f'--thresholds-from takes {len(sets)} prediction file(s), one for each of '
            f'--predictions, and their labels, or {len(sets)} report.json; got {len(files)} file(s)'
        )
    fitted, sources, warnings = [], [], []
    if from_reports:
        for file, cases in zip(files, sets, strict=True):
            held_out, differs = read_thresholds(file, cases.labels, protocol)
            fitted.append(held_out)
            sources.append(f'of {names.file(file)}')
            warnings += [f'{names.file(file)}: {differs}'] if differs else []
        return fitted, '; '.join(sources), warnings
    labels = read_labels(args, files[-1], names)
    for file, cases in zip(files[:-1], sets, strict=True):
        predictions = read_predictions(file)
        held_out, _ = match(predictions, labels, name='held-out', level=args.level, complete=False)
        fitted.append(fit_held_out(held_out, cases.labels, protocol))
        patients, scored = set(held_out.patient), set(cases.patient)
        sources.append(
            f'{args.threshold}, on {len(held_out)} rows of {len(patients)} patients '
            f'({names.file(file)}, {labels.file})'
        )
        if shared := patients & scored:
            warnings.append(
                f'{cases.name}: the thresholds were chosen on patients that are scored: '
                f'{len(shared)} of {len(scored)} patients are also in {labels.file}; scores that '
                'need a threshold or a temperature are optimistic'
            )
    return fitted, '; '.join(sources), warnings


def read_thresholds(file: Path, labels: Sequence[str], protocol: Protocol) -> tuple[HeldOut, str]:
    """Thresholds and temperatures of the headline set of a report.json.

    Returns:
        The values, and how the protocol of that report differs from this one ('' if it does not).
    """
    try:
        report = json.loads(file.read_text(encoding='utf-8'))
        (entry,) = (e for e in report['sets'] if e['name'] == report['headline']['set'])
        parts = {part['label']: part for part in entry['labels']}
        values = [
            [parts[label][name] if label in parts else None for label in labels]
            for name in ('threshold', 'temperature')
        ]
        thresholds, temperatures = np.array(values, float)  # None becomes NaN
        then = entry['level'], entry['aggregate'], entry['views']
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{file} is not a report.json with thresholds: {error!r}') from error
    now = protocol.level, protocol.aggregate, protocol.views
    differs = f'its thresholds are for {", ".join(then)}; scored here: {", ".join(now)}'
    return HeldOut(thresholds, temperatures), differs if then != now else ''


def row_warnings(sets: Sequence[Cases], protocol: Protocol) -> list[str]:
    """Pairs of files that cannot be compared because their rows differ."""
    paths = {cases.name: set(cases.at_level(protocol.level).path) for cases in sets}
    return [
        f'{a} and {b} are not compared: their rows differ'
        for a, b in combinations(paths, 2)
        if paths[a] != paths[b]
    ]


def format_scores(document: dict[str, Any], *, has_intervals: bool) -> str:
    """Tables of the scores of every set and of the comparisons, followed by the warnings."""
    shown = {name: entry.title for name, entry in METRICS.items() if entry.in_summary}
    lines = []
    for entry in document['sets']:
        lines += [
            f'{entry["name"]}: {entry["level"]} level, {entry["views"]} views, '
            f'n = {entry["rows"]}, {entry["patients"]} patients (95 % intervals over patients)',
            f'  {"":<34}{"n":>7}{"pos.":>7}' + ''.join(f'{title:>23}' for title in shown.values()),
        ]
        for part in entry['labels']:
            scores = ''.join(f'{_show(part["scores"][name]):>23}' for name in shown)
            lines.append(f'  {part["label"]:<34}{part["n"]:>7}{part["positives"]:>7}{scores}')
        for key in ('five', 'labels_with_both_classes'):
            means = entry['means'][key] or dict.fromkeys(shown)
            scores = ''.join(f'{_show(means[name]):>23}' for name in shown)
            lines.append(f'  {MEAN_TITLES[key]:<48}{scores}')
        if has_intervals and (five := entry['means']['five']):
            lines += _missing_interval(five['auroc'])
        lines.append('')
    for entry in document['comparisons']:
        lines.append(f'AUROC of {entry["a"]} minus {entry["b"]} (p-values adjusted by Holm)')
        rows = {label: (part, part['p_holm']) for label, part in entry['labels'].items()}
        if five := entry['means']['five']:
            rows[MEAN_TITLES['five']] = five, five['p_bootstrap']
        for label, (part, p_value) in rows.items():
            lines.append(f'  {label:<48}{_show(part["difference"]):>23}{_number(p_value, 4):>9}')
        if has_intervals and five:
            lines += _missing_interval(five['difference'])
        lines.append('')
    lines += [f'warning: {line}' for line in document['warnings']]
    return '\n'.join(lines)


def _missing_interval(mean: dict[str, float]) -> list[str]:
    """The reason why the mean of the five has a value but no interval, if that is the case."""
    has_none = not np.isnan(mean['value']) and np.isnan(mean['low'])
    return [f'  {MEAN_TITLES["five"]}: {NO_INTERVAL}'] if has_none else []


def _show(score: dict[str, float] | None) -> str:
    if score is None or np.isnan(score['value']):
        return 'n/a'
    return f'{score["value"]:.3f} [{_number(score["low"])}, {_number(score["high"])}]'


def _number(value: float, digits: int = 3) -> str:
    return 'n/a' if np.isnan(value) else f'{value:.{digits}f}'


if __name__ == '__main__':
    sys.exit(main(parse_args()))
