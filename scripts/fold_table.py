"""Join the folds of a cross-validated sweep, and write tables and figures from them.

python scripts/ablate.py run --sweep F --output D --data-path DATA --folds 5 --unlabelled IMAGES
python scripts/fold_table.py join --sweep F --output D --folds 5 --seeds 3 --save P
python scripts/fold_table.py table --sweep F --predictions P --labels DATA/all.csv --save T
python scripts/fold_table.py figure --table T/F_Pneumonia.csv --save F.png
python scripts/fold_table.py extract --predictions P --row simmim_1 --seed 0 --save ROW.csv

`join` writes P/predictions.csv.gz. For each row and seed it contains each image once, with the rank
of the prediction among the images of the fold, from 0 to 1, because predictions of different models
have no common scale. `join` also adds the seed, minutes and commit of each run to P/runs.csv. Other
rows and seeds stay, so a sweep may run in parts.

With --tune, rows that only differ in TRAIN.BASE_LR become one row: each fold takes the predictions
of the row with the highest mean AUROC on the training patients whom its runs did not learn from.
These patients are those outside the share of the labels (EVAL.PREDICT_TRAIN) and, with
EVAL.SELECT_ON last, the held-out patients. `join` adds the AUROCs to P/tuning.csv, and `table`
writes the choices to T/tuning.csv.

`table` compares each row with all rows in `against`, in which `pixels` is the logistic regression
on pixels (REPORT.PIXEL_FLOOR), and with all in `against_best_of`, because the joined predictions
have no held-out scores.

`figure` draws the differences of such a table, or only those of some pairs. The verdicts stay those
of the table. `extract` writes a row for scripts/evaluate.py.
"""

import argparse
import itertools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.folds import folds_of
from data.predictions import LabelTable, read_label_file, row_names, write_predictions
from engine.run_record import SHOWN
from evaluation.cases import Cases
from evaluation.footnotes import Footnotes
from evaluation.intervals import Resamples
from evaluation.matching import match
from evaluation.metrics import FEW_CASES, count_classes, label_scores, labels_with_few_cases
from sweeps.files import (
    PIXELS,
    Sweep,
    comparable_rows,
    load_sweep,
    only_rows,
    pixel_row,
    run_folder,
)
from sweeps.folds import (
    Runs,
    arms_of,
    choose_rates,
    compose,
    read_ranks,
    read_scores,
    save_ranks,
    save_runs,
    save_scores,
)
from sweeps.plots import Difference, plot_differences
from sweeps.row_comparison import ENDS, SIGNIFICANT, LongTable, compare_rows, summarise
from sweeps.runner import folder_state
from sweeps.table_format import (
    NOT_FOR_CLINICAL_USE,
    interval_text,
    missing_intervals,
    missing_value,
    shown,
    verdict_text,
    with_notes,
    write_table,
)
from system.files import replace_file
from system.tool import Paragraphs, at_least, tool

FEW_RESAMPLES = (
    f'Too few cases: fewer than {FEW_CASES} of a class, fewer than 95 % of the resamples have '
    'positives and negatives of every label, or all have the same score.'
)
PREDICTIONS, TUNING = 'predictions.csv.gz', 'tuning.csv'
DRAWN = ('row', 'against', 'score', 'difference', 'by_seed', 'verdict')  # columns
NOISE = {'over_seeds': 'seeds', 'over_patients': 'patients'}  # name of its columns in the CSV file
MEAN = 'mean'  # score: mean over the labels with enough cases


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Paragraphs)
    commands = parser.add_subparsers(dest='command', required=True)
    functions = {'join': join, 'table': table, 'figure': figure, 'extract': extract}
    for name, function in functions.items():
        command = commands.add_parser(name)
        command.set_defaults(function=function)
        add = command.add_argument
        if name == 'figure':
            add('--table', type=Path, required=True, help='CSV file that `table` wrote')
            add('--pairs', nargs='+', default=[], metavar='ROW/ROW', help='pairs; default: all')
            add('--save', type=Path, required=True, help='.png, .pdf or .svg file')
            continue
        if name == 'extract':
            add('--predictions', type=Path, required=True, help='folder that join wrote')
            add('--row', required=True, help='name of a row; pixels_1 names a baseline')
            add('--seed', type=int, default=0, help='seed of the row')
            add('--save', type=Path, required=True, help='CSV file')
            continue
        add('--sweep', type=Path, required=True, help='sweep file')
        add('--scale', default='', help='scale of the sweep')
        add('--save', type=Path, required=True, help='output folder')
        if name == 'join':
            add('--output', type=Path, required=True, help='root of the run folders')
            add('--folds', type=int, required=True, help='the same as for ablate.py run')
            add('--seeds', type=int, default=3, help='seeds 0 to N - 1')
            add('--tune', action='store_true', help='also write the scores that choose a rate')
            continue
        add('--tune', action='store_true', help='choose between rows that differ in TRAIN.BASE_LR')
        add('--predictions', type=Path, required=True, help='folder that join wrote')
        add('--labels', type=Path, required=True, help='CSV file with the labels of all images')
        add(
            '--seeds',
            type=at_least(1),
            help='seeds 0 to N - 1 (default: as in the scale of the sweep, or all)',
        )
        add(
            '--row',
            nargs='+',
            default=[],
            help='only these rows, compared with each other; pixels_1 names a baseline',
        )
        add('--against', metavar='ROW', help='compare all rows with this one')
        add('--scores', nargs='+', default=[], help="labels, or 'mean'; default: all")
        add('--cases', type=int, default=FEW_CASES, metavar='N',
            help='positives and negatives that a label in the mean needs')  # fmt: skip
        whole = at_least(0)
        add('--resamples', type=whole, default=10_000, help='number of resamples of the patients')
        add('--seed', type=whole, default=0, help='seed of the resamples')
    return parser.parse_args(argv)


def join(args: argparse.Namespace) -> None:
    """Write the joined predictions of every row and seed whose folds have all finished."""
    if min(args.folds, args.seeds) < 1:
        raise ValueError(f'--folds {args.folds} and --seeds {args.seeds} must be at least 1')
    sweep = load_sweep(args.sweep, args.scale)
    runs = finished_runs(sweep, args)
    used: list[Path] = []  # run folders
    predictions: dict[tuple[str, int], list[Path]] = {}
    for row in [row for row in sweep.rows if row.name in runs]:
        for seed, folders in runs[row.name].items():
            if row.pretraining:
                used.append(run_folder(args.output, row.pretraining, row, seed))
            used += folders
            for kind, name in (('', row.name), ('_pixels', pixel_row(row))):
                files = [folder / f'predictions_valid{kind}.csv' for folder in folders]
                if kind == '' or files[0].is_file():
                    predictions[name, seed] = files
    save_ranks(args.save / PREDICTIONS, predictions)
    save_runs(args.save / 'runs.csv', used)
    if args.tune:
        save_scores(args.save / TUNING, sweep, runs)


def finished_runs(sweep: Sweep, args: argparse.Namespace) -> dict[str, Runs]:
    """Return the runs of every row and seed whose folds have all finished, and print the others.

    Raises:
        ValueError: If there is no such row.
    """
    runs: dict[str, Runs] = {}
    skipped = []
    for row in sweep.rows:
        for seed in range(args.seeds):
            parts = [f'{part}/{args.folds}' for part in range(args.folds)]
            folders = [run_folder(args.output, 'finetune', row, seed, part) for part in parts]
            states = zip(parts, map(folder_state, folders), strict=True)
            if missing := [f'{part} {state}' for part, state in states if state != 'finished']:
                skipped.append(f'{row.name} seed {seed} (fold {", ".join(missing)})')
                print(f'skipped {skipped[-1]}')
                continue
            runs.setdefault(row.name, {})[seed] = folders
    if not runs:
        raise ValueError(
            f'--output {args.output}: no run of {args.sweep} has finished all {args.folds} folds: '
            + '; '.join(skipped[:SHOWN])
        )
    return runs


def table(args: argparse.Namespace) -> None:
    """Write a table of each score as Markdown and CSV files."""
    sweep = load_sweep(args.sweep, args.scale)
    args.seeds = args.seeds or sweep.scale.seeds or sys.maxsize
    chosen = tuned(sweep, args) if args.tune else {}
    replaced = {name: arm[0] for arm in arms_of(sweep) for name in arm[1:]} if args.tune else {}
    if candidates := [name for name in args.row if name in replaced]:
        name = candidates[0]
        raise ValueError(f'--row: with --tune, {name} is a rate of {replaced[name]}: name that row')
    rows = [name for name in args.row if not name.startswith(f'{PIXELS}_')]
    sweep = only_rows(sweep, rows) if rows else sweep
    names = [row.name for row in sweep.rows if row.name not in replaced]
    samples = read_samples(args, names, chosen)
    if untuned := [name for name in samples if name in {*replaced.values()} - chosen.keys()]:
        file = args.predictions / TUNING
        raise ValueError(f'{file} has no scores of {untuned[0]}, which `join --tune` adds')
    if args.against and args.against not in samples:
        raise ValueError(f'--against must be among {[*samples]}, got {args.against!r}')
    pairs = compared_pairs(sweep, samples, args)
    known = [*next(iter(next(iter(samples.values())).values()))]
    if unknown := [score for score in args.scores if score not in known]:
        raise ValueError(f'--scores must be among {known}, got {unknown}')
    for score in args.scores or known:
        print(write_score(sweep, score, pairs, samples, args))


def tuned(sweep: Sweep, args: argparse.Namespace) -> dict[str, list[str]]:
    """Write the choices of rates, and return row -> chosen row of each fold."""
    file = args.predictions / TUNING
    if not file.is_file():
        raise ValueError(f'--tune needs {file}, which `join --tune` writes')
    scores = read_scores(file)
    choices = choose_rates(sweep, scores[scores['seed'] < args.seeds])
    args.save.mkdir(parents=True, exist_ok=True)
    text = choices.to_csv(index=False, float_format='%.4f')
    replace_file(args.save / TUNING, text.encode())
    taken = choices[choices['chosen'].astype(bool)].sort_values('fold')
    return taken.groupby('row')['candidate'].agg(list).to_dict()


def read_samples(
    args: argparse.Namespace, names: Sequence[str], chosen: Mapping[str, Sequence[str]]
) -> LongTable:
    """Return the AUROCs of the joined predictions of rows and seeds.

    Args:
        args: Arguments of the command.
        names: Rows.
        chosen: Row -> row whose predictions each fold takes, see `tuned`.
    """
    rows = {*names, *itertools.chain(*chosen.values())}
    joined = read_ranks(
        args.predictions / PREDICTIONS, lambda name: name in rows or name.startswith(f'{PIXELS}_')
    )
    seeds = {seed for by_seed in joined.values() for seed in by_seed}
    if others := sorted(seed for seed in seeds if seed >= args.seeds):
        print(f'--seeds {args.seeds}: seeds {others} are left out', file=sys.stderr)
    found: dict[str, dict[int, dict[str, np.ndarray]]] = {}
    draws: Resamples | None = None
    labels: LabelTable | None = None
    for name in [name for name in joined if name in names or name.startswith(f'{PIXELS}_')]:
        for seed, predictions in joined[name].items():
            if seed in others:
                continue
            if labels is None:
                labels = read_label_file(args.labels, labels=predictions.labels)
                if labels.missing:
                    absent = ', '.join(labels.missing)
                    print(f'{args.labels} has no column {absent}: not scored', file=sys.stderr)
            if name in chosen:
                if lacking := [row for row in chosen[name] if seed not in joined.get(row, {})]:
                    raise ValueError(f'{args.predictions} has no {lacking[0]} with seed {seed}')
                records = labels.records
                place = row_names(records.path).get_indexer(row_names(predictions.names))
                folds = folds_of(records.patient[place], len(chosen[name]))
                predictions = compose([joined[row][seed] for row in chosen[name]], folds)
            cases, _ = match(predictions, labels, name=name, level='image')
            draws = draws or Resamples(cases.patient, resamples=args.resamples, seed=args.seed)
            found.setdefault(name, {})[seed] = scores_of(cases, draws, args.cases)
    if not found:
        raise ValueError(f'{args.predictions} has no predictions of the rows of {args.sweep}')
    return found


def scores_of(cases: Cases, draws: Resamples, least: int) -> dict[str, np.ndarray]:
    """Return the AUROC of each label in all resamples, and the mean over labels.

    A label in the mean needs `least` positives and negatives.
    """
    weights = draws.score_weights(cases.patient)
    scores = {
        label: label_scores(
            *cases.of_label(label), threshold=None, weights=weights, names=['auroc']
        )['auroc']
        for label in cases.labels
    }
    few = labels_with_few_cases(count_classes(cases.targets, cases.labels), least)
    if counted := [label for label in cases.labels if label not in few]:
        return {MEAN: np.mean([scores[label] for label in counted], axis=0)} | scores
    return scores


def compared_pairs(
    sweep: Sweep, samples: LongTable, args: argparse.Namespace
) -> list[tuple[str, str]]:
    """Return each row with each row to compare it with, or with '', and then the pixel baselines.

    Rows without a common seed are not compared. With --row, a row is only compared with other named
    rows, also with the pixels only if they are named.
    """
    pairs = []
    for row in [row for row in sweep.rows if row.name in samples]:
        named = [name for name in comparable_rows(row) if not args.row or name in args.row]
        others = [
            name
            for name in ([args.against] if args.against else named)
            if name != row.name and samples[row.name].keys() & samples.get(name, {}).keys()
        ]
        pairs += [(row.name, other) for other in others or ['']]
    return pairs + [(name, '') for name in samples if name.startswith(f'{PIXELS}_')]


def write_score(
    sweep: Sweep,
    score: str,
    pairs: Sequence[tuple[str, str]],
    samples: LongTable,
    args: argparse.Namespace,
) -> Path:
    """Write the table of a score, and return the path of the Markdown file."""
    subsets = {row.name: row.subset for row in sweep.rows}
    figures, cells, footnotes = [], [], Footnotes()
    compared = compare_rows(samples, pairs, score)
    for (row, other), part in zip(pairs, compared, strict=True):
        own = summarise(samples[row], score)
        line = {'row': row, 'labels': subsets.get(row, row.removeprefix(f'{PIXELS}_'))}
        line |= {'seeds': own['seeds'], 'score': score, **own, 'against': other}
        compared_figures, compared_cells = comparison(part, own['seeds'], footnotes)
        figures.append(line | compared_figures)
        sd = f' ± {own["sd"]:.3f}' if own['seeds'] > 1 else ''
        interval = interval_text(own, '.3f') or missing_value(footnotes, [FEW_RESAMPLES])
        cell = {'row': row, f'AUROC, {score}': shown(own['value'], '.3f') + sd}
        cell |= {'95 % over patients': interval, 'against': other}
        cells.append(cell | compared_cells)
    mean = f'Mean: labels with at least {args.cases} cases of each class. ' if score == MEAN else ''
    notes = (
        *footnotes.take(),
        'Each image is scored by a model that was not trained on its patient, with the rank of the '
        f'prediction within the fold. {mean}Mean ± standard deviation over seeds.',
        f'Over patients: 95 % percentile interval from {args.resamples:,} resamples of the '
        f"patients, seed {args.seed}. Over seeds: 95 % interval by Student's t. Verdict: above or "
        'below if both intervals exclude 0 and the bootstrap p-value, corrected by Holm over the '
        f'{sum(map(bool, compared))} comparisons of this table, is below {SIGNIFICANT}.',
        NOT_FOR_CLINICAL_USE,
    )
    name = f'{sweep.name}_{score}'.replace(' ', '_')
    return write_table(args.save, name, figures, with_notes(cells, notes))


def comparison(
    part: Mapping[str, Any] | None, seeds: int, footnotes: Footnotes
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the columns of a comparison in the CSV file, and its cells.

    The cell of a difference states its seeds if the row has more, `seeds`.
    """
    titles = ('difference', 'over seeds', 'over patients', 'verdict')
    if part is None:
        return {}, dict.fromkeys(titles, '')
    by_seed = ' '.join(f'{value:.6f}' for value in part['by_seed'])
    figures = {'difference': part['difference'], 'by_seed': by_seed}
    paired = f' ({part["seeds"]} of {seeds} seeds)' if part['seeds'] != seeds else ''
    cells = [shown(part['difference'], '+.3f') + paired]
    missing = missing_intervals(part, FEW_RESAMPLES)
    for noise, name in NOISE.items():
        figures |= {f'{name}_{end}': part[noise][end] for end in ENDS}
        text = interval_text(part[noise], '+.3f')
        cells.append(text or missing_value(footnotes, [missing[noise]]))
    figures |= {key: part['over_patients'][key] for key in ('p', 'p_holm')}
    figures['verdict'] = part['verdict']
    cells.append(verdict_text(part, missing, footnotes))
    return figures, dict(zip(titles, cells, strict=True))


def figure(args: argparse.Namespace) -> None:
    """Draw the differences of a table of `table`."""
    options = {'keep_default_na': False, 'na_values': ['']}  # a verdict may be 'n/a'
    options['dtype'] = {'row': str, 'against': str}
    options['converters'] = {'by_seed': lambda text: [float(word) for word in text.split()]}
    try:
        found = pd.read_csv(args.table, **options)
    except ValueError as error:
        raise ValueError(f'{args.table} is no table of `fold_table.py table`: {error}') from error
    columns = [*DRAWN, *(f'{noise}_{end}' for noise in NOISE.values() for end in ENDS)]
    if missing := [name for name in columns if name not in found]:
        raise ValueError(
            f'{args.table} must be a table of `fold_table.py table` in which rows are compared: '
            f'it lacks {missing}'
        )
    found = found[found['difference'].notna()]
    if found.empty:
        raise ValueError(f'{args.table} has no known difference')
    found.index = found['row'] + '/' + found['against']
    if unknown := [pair for pair in args.pairs if pair not in found.index]:
        raise ValueError(f'--pairs: {args.table} does not compare {unknown[0]!r}')
    parts = [_part(line) for _, line in found.loc[args.pairs or found.index].iterrows()]
    seeds = max(part['seeds'] for part in parts)
    note = 'Right of 0: better than the row in brackets. Names end in the share of the labels. '
    note += f'{seeds} seed{"s" * (seeds != 1)}, unless a number is shown.'
    plot_differences(
        args.save,
        [Difference(part['title'], part, seeds) for part in parts],
        score=f'AUROC, {found["score"].iloc[0]}',
        notes=[note, NOT_FOR_CLINICAL_USE],
    )


def extract(args: argparse.Namespace) -> None:
    """Write the joined predictions of a row with a seed as a CSV file."""
    file = args.predictions / PREDICTIONS
    by_seed = read_ranks(file, args.row.__eq__).get(args.row, {})
    if args.seed not in by_seed:
        raise ValueError(f'{file} has no row {args.row} with seed {args.seed}')
    found = by_seed[args.seed]
    write_predictions(
        args.save, found.probabilities, paths=found.names, labels=found.labels, source={}
    )


def _part(line: pd.Series) -> dict[str, Any]:
    """Return a line of a table, with a `title`, as `sweeps.row_comparison.compare_rows` does."""
    ends = {noise: {end: line[f'{name}_{end}'] for end in ENDS} for noise, name in NOISE.items()}
    part = {'title': f'{line["row"]} ({line["against"]})', 'seeds': len(line['by_seed'])}
    return part | ends | {**line[['difference', 'by_seed', 'verdict']]}


@tool
def main(args: argparse.Namespace) -> int:
    args.function(args)
    return 0


if __name__ == '__main__':
    sys.exit(main(parse_args()))
