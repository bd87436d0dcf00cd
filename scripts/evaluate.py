r"""Score predictions of any model with the same report as for a run, without torch or images.

python scripts/evaluate.py --predictions FILE.csv [...] --labels LABELS.csv --output DIR
    [--thresholds-from HELD_OUT.csv [...] HELD_OUT_LABELS.csv | report.json [...]]
python scripts/evaluate.py --predictions FILE.csv --labels NIH_FOLDER --dataset nih --split test \
    --label-sets chexpert nih --level image --output DIR

Prediction files have a column Path (or Study) and one column of probabilities per label, in any
order. The label file has a column Path (or Study) and the labels as 1, 0, -1 (uncertain, excluded)
or empty. The names of the labels come from --label-names, from the JSON files next to the
predictions, or are CheXpert's observations. Several prediction files are compared with each other.
The second command is an external validation on another data set. It scores the findings that both
label sets have in common (evaluation/label_sets.yaml).
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import OPTIONS, RECIPE, config_changes, config_from_text, default_config
from data.images.views import views_warning
from data.tables.given_folders import read_data_set
from data.tables.groups import all_groups
from data.tables.predictions import (
    LabelTable,
    Predictions,
    read_label_file,
    read_predictions,
    standard_labels,
)
from data.tables.records import Records, make_task, select_views
from data.tasks import TASKS
from engine.run_record import OPTIONS_FILE, code_version, read_record
from evaluation.analysis import HeldOut, fit_held_out
from evaluation.calibration import TEMPERATURES
from evaluation.cases import Cases
from evaluation.matching import label_set, match, share_labels, shared_labels
from evaluation.metrics import METRICS, Protocol
from evaluation.notices import as_warnings, notices
from evaluation.report.document import (
    TASK_WORDS,
    build_document,
    classes_line,
    compare_sets,
    differences_table,
    overview_table,
    scores_table,
    write_report,
)
from evaluation.report.report_page import ONE_TRAINING
from evaluation.run_facts import Known, known_of_run, read_known
from system.tool import Paragraphs, at_least, tool

# Possible values of `fit_held_out`.
LIMITS = {'threshold': (0.0, 1.0), 'temperature': TEMPERATURES}


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Paragraphs)
    add, default = parser.add_argument, default_config()

    def choice(flag: str, key: str, value: str, text: str) -> None:
        add(flag, choices=OPTIONS[key].names, default=value, help=f'{text} (%(default)s)')

    files = 'prediction files, one per model'
    add('--predictions', nargs='+', type=Path, required=True, metavar='FILE', help=files)
    labels = 'label file, or with --dataset the folder or packed store of the data set'
    add('--labels', type=Path, required=True, metavar='CSV', help=labels)
    add('--dataset', metavar='NAME', help='data set with the labels, as in DATA.DATASET')
    add('--split', default='test', choices=('train', 'valid', 'test'), help='split of --dataset')
    sets = 'label sets of the predictions and of the labels, such as chexpert nih'
    add('--label-sets', nargs=2, metavar='NAME', help=sets)
    add('--output', type=Path, required=True, metavar='DIR', help='folder of the report')
    names = 'columns of the labels, as in DATA.LABELS (default: see above)'
    add('--label-names', nargs='+', default=[], metavar='NAME', help=names)
    add(
        '--thresholds-from',
        nargs='+',
        type=Path,
        default=[],
        metavar='FILE',
        help='predictions of other patients, one file per model in the same order, followed by '
        'their label file; or one report.json per model. Without it, scores that need a threshold '
        'are n/a',
    )
    add('--reference', type=Path, metavar='FILE', help='compare all other files only with this one')
    kinds = 'any: other numbers than probabilities, of which only the order is scored'
    add('--scores', choices=('probabilities', 'any'), default='probabilities', help=kinds)
    choice('--task', 'DATA.TASK', default.DATA.TASK, 'task that defines the labels')
    choice('--level', 'EVAL.LEVEL', default.EVAL.LEVEL, 'unit of evaluation')
    choice('--views', 'DATA.VIEWS', 'all', 'views to score')
    choice('--blank', 'DATA.BLANK', default.DATA.BLANK, 'value of a label that is not mentioned')
    choice('--threshold', 'EVAL.THRESHOLD', default.EVAL.THRESHOLD, 'rule for thresholds')
    add('--sensitivity', type=float, default=Protocol.sensitivity, help='target of this rule')
    whole = at_least(0)
    add(
        '--resamples',
        type=whole,
        default=default.EVAL.RESAMPLES,
        help='resamples of the patients (%(default)s; below 200 there are no intervals)',
    )
    add('--seed', type=whole, default=default.SEED, help='seed of the resamples (%(default)s)')
    add('--groups', nargs='+', default=[], metavar='COLUMN', help='more columns for subgroups')
    shown = 'metrics in the printed table and in report_scores.tex (default: the main ones)'
    add('--columns', nargs='+', default=[], choices=METRICS, metavar='METRIC', help=shown)
    add('--demographics', type=Path, metavar='FILE', help='.csv or .xlsx file with these columns')
    args = parser.parse_args(arguments)
    if not 0 < args.sensitivity <= 1:
        parser.error('--sensitivity must be above 0 and at most 1')
    if args.dataset and not TASKS[args.task].takes_names:
        parser.error(f'--dataset needs a --task that takes DATA.LABELS, not {args.task}')
    if args.demographics and not args.groups:
        parser.error('--demographics needs --groups with the columns for subgroups')
    if args.reference and args.reference not in args.predictions:
        parser.error('--reference must be one of the files of --predictions')
    if args.scores == 'any' and (args.thresholds_from or args.threshold == 'half'):
        parser.error('--scores any has no thresholds: leave out --thresholds-from')
    return args


@tool
def main(args: argparse.Namespace) -> int:
    document = score_files(args)
    page = write_report(args.output, document, columns=args.columns)
    print(format_scores(document, args.columns))
    print(f'The report is {page}. Not for clinical use.')
    return 0


def score_files(args: argparse.Namespace) -> dict[str, Any]:
    """Score all prediction files and return the document of the report."""
    protocol = Protocol(
        level=args.level,
        views=args.views,
        threshold=args.threshold,
        sensitivity=args.sensitivity,
        resamples=args.resamples,
        seed=args.seed,
        ranks_only=args.scores == 'any',
    )
    sets, warnings = read_cases(args)
    files = zip(sets, args.predictions, strict=True)
    run = {
        'Predictions': '; '.join(f'{cases.name}: {file}' for cases, file in files),
        'Labels': f'{args.labels} ({args.dataset}, {args.split})' if args.dataset else args.labels,
        'Predicts': TASK_WORDS.get(args.task, args.task),
        **({'Blank labels': args.blank} if TASKS[args.task].has_policies else {}),
        'Resamples': args.resamples,
        'Seed of the resamples': args.seed,
    }
    name = args.split if args.dataset else args.labels.stem
    named = dict(zip([cases.name for cases in sets], args.predictions, strict=True))
    names = [*named]
    reference = names[args.predictions.index(args.reference)] if args.reference else ''
    seeds = pairs_of_seeds(named)
    options = {'name': name, 'reference': reference, 'seeds': seeds}
    comparisons = compare_sets(sets, protocol, **options)
    compared = [{entry['a'], entry['b']} for entry in comparisons]
    for pair in combinations(names, 2):
        if {*pair} not in compared and reference in ('', *pair):
            names_of_pair = ' and '.join(pair)
            warnings.append(
                f'{names_of_pair} are not compared, because their rows or labels differ'
            )
    known = [notice.text for notice in notices(known_of_files(named))]
    fitted, source, notes = fit_thresholds(args, sets, protocol)
    document = build_document(
        sets,
        fitted,
        protocol,
        run=run | {'Thresholds': source, 'Code': code_version()},
        warnings=list(dict.fromkeys([*as_warnings(known), *warnings, *notes])),
        extras={'comparisons': comparisons, 'known': known},
    )
    return document


def pairs_of_seeds(files: Mapping[str, Path]) -> set[frozenset[str]]:
    """Return the pairs of names whose runs only differ in their seed, as far as that is known."""
    texts = {}
    for name, file in files.items():
        if read_record(file.parent) is not None:
            texts[name] = (file.parent / OPTIONS_FILE).read_text(encoding='utf-8')
    found = set()
    for a, b in combinations(texts, 2):
        changes = config_changes(texts[a], texts[b], *RECIPE)
        if [change.split(':')[0] for change in changes] == ['SEED']:
            found.add(frozenset((a, b)))
    return found


def known_of_files(files: Mapping[str, Path]) -> dict[tuple[str, str], list[Known]]:
    """Return what is recorded of the runs of prediction files."""
    found = {}
    for name, file in files.items():
        try:
            found[name, ''] = [known_of_run(file)]
        except ValueError:  # a file of another run in this folder, or damaged options
            found[name, ''] = [read_known(file)]
    return found


def read_cases(args: argparse.Namespace) -> tuple[list[Cases], list[str]]:
    """Read the cases of every prediction file, with warnings about rows that are not scored."""
    shared = shared_labels(*args.label_sets) if args.label_sets else []
    wanted = label_set(args.label_sets[1]) if args.label_sets else ()
    files = read_files(args, args.predictions)
    if args.dataset:
        given = dict.fromkeys(label for part in files for label in part.labels)
        labels = labels_of_data_set(args, wanted or tuple(given))
        files = [relative_to(predictions, args.labels) for predictions in files]
    else:
        labels = read_labels(args, args.labels, files, wanted)
    demographics = str(args.demographics.absolute()) if args.demographics else ''

    def groups(records: Records) -> dict[str, np.ndarray]:
        return all_groups(records, args.groups, demographics)

    sets, lacking = [], {}
    made_of = {label.name: label.made_of for label in shared if label.made_of}
    warnings = [f'{labels.file}: {doubt}' for doubt in labels.records.doubts]
    for given, name in zip(files, set_names(args), strict=True):
        predictions, table = given, labels
        if shared:
            predictions, table, note = share_labels(predictions, labels, shared)
            warnings.append(note)
        cases, notes = match(predictions, table, name=name, level=args.level, groups=groups)
        sets.append(replace(cases, made_of=made_of))
        warnings += [*notes, *view_warnings(cases, predictions)]
        if missing := [label for label in table.labels if label not in cases.labels]:
            lacking.setdefault(', '.join(missing), []).append(str(predictions.file))
    for missing, without in lacking.items():
        which = ', '.join(without) if len(without) < len(sets) else 'any prediction file'
        warnings.append(f'labels without a column in {which} are not scored: {missing}')
    return sets, warnings


def read_files(args: argparse.Namespace, files: Sequence[Path]) -> list[Predictions]:
    """Read prediction files, with the labels that the flags name."""
    labels = [*args.label_names, *(label_set(args.label_sets[0]) if args.label_sets else ())]
    task = args.task if TASKS[args.task].exclusive else ''
    options = {'task': task, 'labels': labels, 'any_scores': args.scores == 'any'}
    return [read_predictions(file, **options) for file in files]


def view_warnings(cases: Cases, predictions: Predictions) -> list[str]:
    """Warn of scored images whose view the model was not trained on, as far as that is known.

    DATA.VIEWS of the training is in the JSON file next to the predictions (`predict.py`), or in the
    options of the run.
    """
    if predictions.key == 'Study':
        return []
    folder, trained = predictions.file.parent, predictions.trained_views
    if not trained and read_record(folder) is not None:
        options = (folder / OPTIONS_FILE).read_text(encoding='utf-8')
        trained = config_from_text(options).DATA.VIEWS
    views = [name.partition(' ')[0].lower() for name in cases.groups['View']]
    warning = views_warning(views, trained)
    advice = f'--views {trained or "frontal"} leaves them out.'
    return [f'{predictions.file}: {warning}. {advice}'] if warning else []


def labels_of_data_set(args: argparse.Namespace, labels: Sequence[str]) -> LabelTable:
    """Read the labels of a split of --dataset."""
    options = {'task': args.task, 'groups': args.groups}
    records = read_data_set(args.dataset, str(args.labels), args.split, labels, **options)
    records = select_views(records, args.views)
    targets = make_task(args.task, LABELS=labels, BLANK=args.blank).scored(records)
    file = args.labels / records.csv
    return LabelTable(file, 'Path', args.task, args.views, records, tuple(labels), targets, ())


def relative_to(predictions: Predictions, root: Path) -> Predictions:
    """Make the names of predicted images relative to a folder."""
    start = f'{root}/'
    names = [name.removeprefix(start) for name in predictions.names]
    return replace(predictions, names=np.array(names, object))


def read_labels(
    args: argparse.Namespace,
    file: Path,
    predicted: Sequence[Predictions | Cases],
    wanted: Sequence[str] = (),
) -> LabelTable:
    """Read a label file.

    Args:
        args: Parsed flags.
        file: Label file.
        predicted: Predictions whose labels are read if some are not CheXpert's.
        wanted: Labels to read; () for --label-names or the predicted labels.
    """
    task, labels = TASKS[args.task], wanted or args.label_names
    if not labels:
        given = dict.fromkeys(label for part in predicted for label in part.labels)
        is_standard = task.has_policies and {*given} <= {*standard_labels()}
        labels = () if is_standard else tuple(given)
    return read_label_file(
        file,
        task=args.task,
        blank=args.blank,
        views=args.views,
        labels=labels if task.takes_names else (),
        groups=args.groups,
    )


def set_names(args: argparse.Namespace) -> list[str]:
    """Name each prediction file by its stem, with the folder or a number if stems are equal."""
    names = [file.stem for file in args.predictions]
    if len(set(names)) < len(names):
        names = [f'{file.absolute().parent.name}/{file.stem}' for file in args.predictions]
    if len(set(names)) < len(names):
        names = [f'{name} ({i})' for i, name in enumerate(names, start=1)]
    return names


def fit_thresholds(
    args: argparse.Namespace, sets: Sequence[Cases], protocol: Protocol
) -> tuple[list[HeldOut] | None, str, list[str]]:
    """Choose thresholds and temperatures of each model on other patients.

    Returns:
        Values of each model or None, a description of their source, and warnings.
    """
    files = args.thresholds_from
    if not files:
        return None, 'none', []
    from_reports = all(file.suffix == '.json' for file in files)
    if len(files) != len(sets) + (not from_reports):
        raise ValueError(
            f'--thresholds-from needs {len(sets)} prediction file(s), one for each file in '
            f'--predictions, and their label file, or {len(sets)} report.json; got {len(files)} '
            'file(s)'
        )
    if from_reports:
        return read_thresholds(files, sets, protocol)
    fitted, sources, warnings = [], [], []
    labels = read_labels(args, files[-1], sets)
    for predictions, cases in zip(read_files(args, files[:-1]), sets, strict=True):
        held_out, _ = match(predictions, labels, name='held-out', level=args.level, complete=False)
        fitted.append(fit_held_out(held_out, cases.labels, protocol))
        patients, scored = set(held_out.patient), set(cases.patient)
        sources.append(
            f'{args.threshold}, on {len(held_out)} rows of {len(patients)} patients '
            f'({predictions.file}, {labels.file})'
        )
        if shared := patients & scored:
            warnings.append(
                f'{cases.name}: the thresholds were chosen on scored patients, because '
                f'{len(shared)} of {len(scored)} patients are also in {labels.file}. Scores that '
                'need a threshold or a temperature are optimistic.'
            )
    return fitted, '; '.join(sources), warnings


def read_thresholds(
    files: Sequence[Path], sets: Sequence[Cases], protocol: Protocol
) -> tuple[list[HeldOut], str, list[str]]:
    """Read thresholds and temperatures from the headline's set of one report.json per model."""
    fitted, sources, warnings = [], [], []
    now = protocol.level, protocol.views
    for file, cases in zip(files, sets, strict=True):
        entry = read_headline_set(file)
        fitted.append(held_out_of(entry, cases.labels, file))
        then = entry['level'], entry['views']
        if then != now:
            warnings.append(
                f'{file}: the thresholds were chosen for {", ".join(then)}, but these '
                f'scores are for {", ".join(now)}'
            )
        sources.append(f'from {file} ({entry["name"]})')
    return fitted, '; '.join(sources), warnings


def read_headline_set(file: Path) -> dict[str, Any]:
    """Return the headline's set of a report.json, with its `labels` by their names."""
    try:
        # Integers with too many digits would raise an error.
        report = json.loads(file.read_text(encoding='utf-8'), parse_int=float)
        entry = {part['name']: part for part in report['sets']}[report['headline']['set']]
        labels = {part['label']: part for part in entry['labels']}
        if not all(isinstance(entry[key], str) for key in ('level', 'views')):
            raise TypeError('level and views must be names')
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f'{file} is not a report.json of one model: {error!r}') from error
    return entry | {'labels': labels}


def held_out_of(entry: dict[str, Any], labels: Sequence[str], file: Path) -> HeldOut:
    """Return what a set of a report.json chose for these labels, NaN where it has no value."""
    values = {key: np.full(len(labels), np.nan) for key in LIMITS}
    counts = []
    for k, label in enumerate(labels):
        part = entry['labels'].get(label, {})
        for key, (low, high) in LIMITS.items():
            value = part.get(key)
            if value is None:
                continue
            if not (type(value) is float and low <= value <= high):
                raise ValueError(
                    f'{file}: {key} of {label!r} must be a number in [{low:g}, {high:g}], got '
                    f'{value!r}'
                )
            values[key][k] = value
        # The `case_counts` behind the threshold, as far as the report has them.
        counts.append({'few': str(part.get('few_held_out', ''))})
        held_out = part.get('held_out')
        if isinstance(held_out, dict):
            numbers = {key: held_out.get(key) for key in ('n', 'positives')}
            if all(isinstance(number, float) for number in numbers.values()):
                counts[k] |= {key: int(number) for key, number in numbers.items()}
    if np.isnan(values['threshold']).all():
        raise ValueError(f'{file} has no threshold for any of these labels')
    missing = tuple(label for label in labels if label not in entry['labels'])
    return HeldOut(values['threshold'], values['temperature'], missing, tuple(counts))


def format_scores(document: dict[str, Any], columns: Sequence[str] = ()) -> str:
    """Format the comparisons and the scores of every set as tables, followed by the warnings.

    `columns` are names of metrics, see `scores_table`.
    """
    blocks = []
    made_of = {
        label: text for entry in document['sets'] for label, text in entry['made_of'].items()
    }

    def lines_of(table: pd.DataFrame) -> str:
        if made_of:
            table = table.assign(**{'stands for': [made_of.get(row, '') for row in table.index]})
        return table.to_string(na_rep='n/a')

    if document['comparisons']:
        blocks.append(ONE_TRAINING)
    if len(document['comparisons']) > 1:
        table = overview_table(document['comparisons']).to_string()
        blocks.append(f'Differences in the mean AUROC\n{table}')
    for entry in document['comparisons']:
        table = lines_of(differences_table(entry))
        remark = 'p of the bootstrap over patients; Holm corrects it for all p-values shown'
        if entry['only_seed']:
            remark = 'one recipe with two seeds: the spread between trainings, without p'
        title = f'{entry["a"]} minus {entry["b"]} ({remark})'
        blocks.append('\n'.join(filter(None, [title, table, entry['note']])))
    for entry in document['sets']:
        table = lines_of(scores_table(entry, columns))
        intervals = ' (95 % intervals over patients)' if '[' in table else ''
        title = (
            f'{entry["name"]}: {entry["level"]} level, {entry["views"]} views, '
            f'n = {entry["rows"]}, {entry["patients"]} patients{intervals}'
        )
        blocks.append('\n'.join(filter(None, [title, classes_line(entry), table])))
    warnings = '\n'.join(
        f'warning: {line}' for line in [*document['alerts'], *document['warnings']]
    )
    return '\n\n'.join([*blocks, warnings])


if __name__ == '__main__':
    sys.exit(main(parse_args()))
