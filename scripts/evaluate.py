"""Score predictions of any model: a report as a run has, without torch and without the images.

python scripts/evaluate.py --predictions FILE.csv [...] --labels LABELS.csv --output DIR
    [--thresholds-from HELD_OUT.csv [...] HELD_OUT_LABELS.csv | report.json [...]]

Predictions: Path (or Study) and probabilities by label, in any order. Labels: Path (or Study) and
CheXpert's observations as 1, 0, -1 (uncertain, left out) or empty. Several files are compared.
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
from evaluation.cases import SUCH_AS, Cases, match
from evaluation.metrics import Protocol
from evaluation.report import (
    NO_HELD_OUT,
    NO_INTERVAL,
    SALT_FILE,
    HeldOut,
    Names,
    build_document,
    compare_sets,
    fit_held_out,
    names_for,
    rename_images,
    write_report,
)

SHOWN = {
    'auroc': 'AUROC',
    'average_precision': 'avg. precision',
    'recall': 'sensitivity',
    'specificity': 'specificity',
}
MEANS = {
    'five': 'mean of the five tasks',
    'labels_with_both_classes': 'mean of labels with both classes',
}


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, default = parser.add_argument, default_config()

    def choice(flag: str, key: str, value: str, text: str) -> None:
        add(flag, choices=allowed_values(key), default=value, help=f'{text} (%(default)s)')

    add('--predictions', nargs='+', type=Path, required=True, metavar='FILE', help='one a model')
    add('--labels', type=Path, required=True, metavar='CSV')
    add('--output', type=Path, required=True, metavar='DIR', help='folder of the report')
    add(
        '--thresholds-from',
        nargs='+',
        type=Path,
        default=[],
        metavar='FILE',
        help='predictions of other patients, one a model in the same order, then their labels; '
        'or a report.json a model; without it, what needs a threshold is n/a',
    )
    choice('--task', 'DATA.TASK', default.DATA.TASK, 'what the labels become')
    choice('--level', 'EVAL.LEVEL', default.EVAL.LEVEL, 'what is scored')
    choice('--aggregate', 'EVAL.AGGREGATE', default.EVAL.AGGREGATE, "over a study's images")
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
        help=f'name images by hashes in the report, salted with DIR/{SALT_FILE} (REPORT.ANONYMISE)',
    )
    args = parser.parse_args(arguments)
    if args.resamples < 0 or args.seed < 0:
        parser.error('--resamples and --seed must be 0 or greater')
    if args.demographics and not args.groups:
        parser.error('--demographics needs --groups: which of its columns to score by')
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
    """The report's document."""
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
        options = {'name': name, 'level': args.level, 'groups': groups}
        predictions = read_predictions(file)
        predictions = replace(predictions, file=Path(names.file(file)))
        cases, notes = match(predictions, labels, **options)
        sets.append(cases)
        # A row of a file that others have names a patient, too.
        warnings += [note.partition(SUCH_AS)[0] if args.anonymise else note for note in notes]
    fitted, about, notes = fit_thresholds(args, sets, protocol, names=names)
    document = build_document(
        sets,
        fitted,
        protocol,
        run=describe_run(args, sets, names=names) | about | {'Code': code_version()},
        warnings=list(dict.fromkeys([*warnings, *notes, *warn_of_rows(sets, protocol)])),
        extras={'comparisons': compare_sets(sets, protocol, name=args.labels.stem)},
    )
    rename_images(document, names)
    document['warnings'] = [
        f'{line}; give --thresholds-from' if line == NO_HELD_OUT else line
        for line in document['warnings']
    ]
    return document


def read_labels(args: argparse.Namespace, file: Path, names: Names) -> LabelTable:
    """The labels; what is said of the file has the name that it goes by."""
    table = read_label_file(file, task=args.task, blank=args.blank, views=args.views)
    return replace(table, file=Path(names.file(file)))


def set_names(files: Sequence[Path], *, anonymise: bool = False) -> list[str]:
    """A name for each file: its stem, after as many of its folders as tell them all apart.

    With `anonymise` it is a number that tells them apart.
    """
    parts = [file.absolute().with_suffix('').parts for file in files]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ['/'.join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            numbered = anonymise and depth > 1
            return [f'{f.stem} ({i})' for i, f in enumerate(files, 1)] if numbered else names
    raise ValueError(f'--predictions: a file is given twice: {", ".join(map(str, files))}')


def describe_run(
    args: argparse.Namespace, sets: Sequence[Cases], *, names: Names
) -> dict[str, str]:
    pairs = zip(sets, args.predictions, strict=True)
    files = [f'{cases.name}: {names.file(file)}' for cases, file in pairs]
    return {
        'Predictions': '; '.join(files),
        'Labels': names.file(args.labels),
        'Task': args.task,
        'Blank labels': args.blank,
        'Resamples': str(args.resamples),
        'Seed': str(args.seed),
    }


def fit_thresholds(
    args: argparse.Namespace, sets: Sequence[Cases], protocol: Protocol, *, names: Names
) -> tuple[list[HeldOut] | None, dict[str, str], list[str]]:
    """Thresholds and temperatures of each model; a row on where they are from; warnings."""
    files = args.thresholds_from
    if not files:
        return None, {'Thresholds': 'none'}, []
    from_reports = all(file.suffix == '.json' for file in files)
    wanted = len(sets) + (not from_reports)
    if len(files) != wanted:
        raise ValueError(
            f'--thresholds-from takes {len(sets)} prediction file(s), one for each of '
            f'--predictions, and their labels, or {len(sets)} report.json; got {len(files)} file(s)'
        )
    fitted, rows, warnings = [], [], []
    if from_reports:
        for file, cases in zip(files, sets, strict=True):
            held_out, differs = read_thresholds(file, cases.labels, protocol)
            fitted.append(held_out)
            rows.append(f'of {names.file(file)}')
            warnings += [f'{names.file(file)}: {differs}'] if differs else []
        return fitted, {'Thresholds': '; '.join(rows)}, warnings
    labels = read_labels(args, files[-1], names)
    for file, cases in zip(files[:-1], sets, strict=True):
        options = {'name': 'held-out', 'level': args.level, 'complete': False}
        held_out, _ = match(read_predictions(file), labels, **options)
        fitted.append(fit_held_out(held_out, cases.labels, protocol))
        patients = set(held_out.patient)
        rows.append(
            f'{args.threshold}, on {len(held_out)} rows of {len(patients)} patients '
            f'({names.file(file)}, {labels.file})'
        )
        if shared := patients & set(cases.patient):
            warnings.append(
                f'{cases.name}: thresholds chosen on what is scored: {len(shared)} of '
                f'{len(set(cases.patient))} patients are in {labels.file}, too; what needs a '
                'threshold or a temperature is too good'
            )
    return fitted, {'Thresholds': '; '.join(rows)}, warnings


def read_thresholds(file: Path, labels: Sequence[str], protocol: Protocol) -> tuple[HeldOut, str]:
    """Those of the set that a report.json puts first, and how else it was scored, if it was."""
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
        raise ValueError(f'{file} is no report.json with thresholds: {error!r}') from error
    now = protocol.level, protocol.aggregate, protocol.views
    differs = f'its thresholds are for {", ".join(then)}; scored here: {", ".join(now)}'
    return HeldOut(thresholds, temperatures), differs if then != now else ''


def warn_of_rows(sets: Sequence[Cases], protocol: Protocol) -> list[str]:
    """Pairs of files that are not compared, for want of the same rows."""
    paths = {cases.name: set(cases.at_level(protocol.level).path) for cases in sets}
    return [
        f'{a} and {b} are not compared: their rows differ'
        for a, b in combinations(paths, 2)
        if paths[a] != paths[b]
    ]


def format_scores(document: dict[str, Any], *, has_intervals: bool) -> str:
    """Tables of every set's scores and of the comparisons, then what to beware of."""
    lines = []
    for entry in document['sets']:
        lines += [
            f'{entry["name"]}: {entry["level"]} level, {entry["views"]} views, '
            f'n = {entry["rows"]}, {entry["patients"]} patients (95 % intervals over patients)',
            f'  {"":<34}{"n":>7}{"pos.":>7}' + ''.join(f'{name:>23}' for name in SHOWN.values()),
        ]
        for part in entry['labels']:
            shown = ''.join(f'{_show(part["scores"][metric]):>23}' for metric in SHOWN)
            lines.append(f'  {part["label"]:<34}{part["n"]:>7}{part["positives"]:>7}{shown}')
        for key, name in MEANS.items():
            means = entry['means'][key] or dict.fromkeys(SHOWN)
            shown = ''.join(f'{_show(means[metric]):>23}' for metric in SHOWN)
            lines.append(f'  {name:<48}{shown}')
        if has_intervals and (five := entry['means']['five']):
            lines += _why_no_interval(five['auroc'])
        lines.append('')
    for entry in document['comparisons']:
        lines.append(f'AUROC of {entry["a"]} minus {entry["b"]} (p by Holm over the labels)')
        for label, part in entry['labels'].items():
            shown = f'{_show(part["difference"]):>23}{_number(part["p_holm"], ".4f"):>9}'
            lines.append(f'  {label:<48}{shown}')
        if five := entry['means']['five']:
            shown = f'{_show(five["difference"]):>23}{_number(five["p_bootstrap"], ".4f"):>9}'
            lines.append(f'  {MEANS["five"]:<48}{shown}')
            lines += _why_no_interval(five['difference']) if has_intervals else []
        lines.append('')
    lines += [f'warning: {line}' for line in document['warnings']]
    return '\n'.join(lines)


def _why_no_interval(mean: dict[str, float]) -> list[str]:
    """A line on the mean of the five where it has a value and no interval."""
    has_none = not np.isnan(mean['value']) and np.isnan(mean['low'])
    return [f'  {MEANS["five"]}: {NO_INTERVAL}'] if has_none else []


def _show(score: dict[str, float] | None) -> str:
    if score is None or np.isnan(score['value']):
        return 'n/a'
    return f'{score["value"]:.3f} [{_number(score["low"])}, {_number(score["high"])}]'


def _number(value: float, form: str = '.3f') -> str:
    return 'n/a' if np.isnan(value) else f'{value:{form}}'


if __name__ == '__main__':
    sys.exit(main(parse_args()))
