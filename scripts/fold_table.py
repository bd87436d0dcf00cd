"""Join the folds of a cross-validated sweep, and write a table from the joined predictions.

python scripts/ablate.py run --sweep F --output D --data-path DATA --folds 5 --unlabelled IMAGES
python scripts/fold_table.py join --sweep F --output D --folds 5 --seeds 3 --save P
python scripts/fold_table.py table --sweep F --predictions P --labels DATA/all.csv --save T

`join` writes P/ROW_seed0.csv.gz for each row and seed. It contains each image once, with the rank
of the prediction among the images of the fold, from 0 to 1, because predictions of different models
have no common scale. scripts/evaluate.py can also read these files. With --tune, rows that only
differ in fine-tuning become one row: each fold takes the predictions of the row with the highest
mean AUROC on the training patients whom its runs did not learn from (EVAL.PREDICT_TRAIN), and
P/tuning.csv lists the choices.

`table` compares each row with
all rows in `against`, in which `pixels` is the logistic regression on pixels (REPORT.PIXEL_FLOOR),
and with all in `against_best_of`, because the joined predictions have no held-out scores.
"""

import argparse
import gzip
import logging
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.labels import task_labels
from data.predictions import Predictions, look_up, read_label_file, read_predictions
from data.reading import read_split
from data.splits import split_patients, unlabelled_records
from engine.run_record import SHOWN
from evaluation.cases import match
from evaluation.footnotes import Footnotes
from evaluation.intervals import Resamples, interval
from evaluation.metrics import FEW_CASES, auroc_per_label, label_scores
from sweeps.comparison import (
    compare_over_patients,
    compare_over_seeds,
    correct_comparisons,
    real_targets,
)
from sweeps.files import (
    PIXELS,
    Row,
    Sweep,
    comparable_rows,
    load_config,
    load_sweep,
    only_rows,
    pixel_row,
    run_folder,
    without_cache,
)
from sweeps.runner import folder_state
from sweeps.tables import (
    MISSING,
    NOT_FOR_CLINICAL_USE,
    ONE_SEED,
    markdown_table,
    missing_value,
    shown,
    write_table,
)
from system.files import replace_file
from system.tool import tool

LOGGER = logging.getLogger('fold_table')
FEW_RESAMPLES = (
    'Too few cases: fewer than 95 % of the resamples have positives and negatives of every label.'
)
MEAN = 'mean'  # score: mean over the labels with enough cases
Runs = dict[int, list[Path]]  # seed -> run folder of each fold


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest='command', required=True)
    for name, function in (('join', join), ('table', table)):
        command = commands.add_parser(name)
        command.set_defaults(function=function)
        add = command.add_argument
        add('--sweep', type=Path, required=True, help='sweep file')
        add('--scale', default='', help='scale of the sweep')
        add('--save', type=Path, required=True, help='output folder')
        if name == 'join':
            add('--output', type=Path, required=True, help='root of the run folders')
            add('--folds', type=int, required=True, help='the same as for ablate.py run')
            add('--seeds', type=int, default=3, help='seeds 0 to N - 1')
            add('--tune', action='store_true', help='join rows with the same pre-training')
            continue
        add('--predictions', type=Path, required=True, help='folder that join wrote')
        add('--labels', type=Path, required=True, help='CSV file with the labels of all images')
        add('--row', nargs='+', default=[], help='only these rows, compared with each other')
        add('--against', metavar='ROW', help='compare all rows with this one')
        add('--scores', nargs='+', default=[], help="labels, or 'mean'; default: all")
        add('--cases', type=int, default=FEW_CASES, metavar='N',
            help='positives and negatives that a label in the mean needs')  # fmt: skip
        add('--resamples', type=int, default=10_000, help='number of resamples of the patients')
        add('--seed', type=int, default=0, help='seed of the resamples')
    return parser.parse_args(argv)


def join(args: argparse.Namespace) -> None:
    """Write the joined predictions of every row and seed whose folds have all finished.

    Raises:
        ValueError: If there is no such row.
    """
    if min(args.folds, args.seeds) < 1:
        raise ValueError(f'--folds {args.folds} and --seeds {args.seeds} must be at least 1')
    sweep, runs, skipped = load_sweep(args.sweep, args.scale), {}, []
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
    runs = tune(sweep, runs, args) if args.tune else runs
    for row in [row for row in sweep.rows if row.name in runs]:
        for seed, folders in runs[row.name].items():
            for kind, name in (('', row.name), ('_pixels', pixel_row(row))):
                files = [folder / f'predictions_valid{kind}.csv' for folder in folders]
                if kind == '' or files[0].is_file():
                    save_ranks(args.save / f'{name}_seed{seed}.csv.gz', files)


def tune(sweep: Sweep, runs: Mapping[str, Runs], args: argparse.Namespace) -> dict[str, Runs]:
    """Return one row for all rows with the same pre-training and labels, and write tuning.csv.

    In each fold, it has the runs of the row with the highest mean AUROC over the seeds on training
    patients of the fold whom the runs did not learn from (`mean_score`). A patient is scored by a
    setting that other patients chose, and these patients see the runs that are scored: a run that
    fails is not chosen. The row has the name of the first of its rows.

    Raises:
        ValueError: If rows that are tuned together have not finished the same seeds.
    """
    arms: dict[tuple[str, str], list[str]] = {}
    for row in [row for row in sweep.rows if row.name in runs]:
        learned = row.pretrain_run if row.pretraining else ''
        arms.setdefault((learned, row.subset), []).append(row.name)
    tuned: dict[str, Runs] = {}
    choices = []
    for names in arms.values():
        first = names[0]
        if unequal := [name for name in names if runs[name].keys() != runs[first].keys()]:
            raise ValueError(f'{first} and {unequal[0]} have not finished the same seeds')
        tuned[first] = {seed: [] for seed in runs[first]}
        for fold in range(args.folds):
            scores = {
                name: mean_score([folders[fold] for folders in runs[name].values()])
                for name in names
            }
            best = max(scores, key=scores.get)
            for seed, folders in runs[best].items():
                tuned[first][seed].append(folders[fold])
            for name, score in scores.items():
                choice = {'row': first, 'fold': fold, 'candidate': name, 'mean_auroc': score}
                choices.append(choice | {'chosen': name == best})
    args.save.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(choices).to_csv(index=False, float_format='%.4f')
    replace_file(args.save / 'tuning.csv', table.encode())
    return tuned


def mean_score(folders: Sequence[Path]) -> float:
    """Return the mean AUROC of runs over labels, on training patients whom they did not learn from.

    These are the patients outside the share of the labels. Labels with few cases of a class among
    them do not count.

    Raises:
        ValueError: If there are no such patients, or all labels have few cases among them.
    """
    scores = []
    for folder in folders:
        config = without_cache(load_config(folder))
        train, *_ = split_patients(config, read_split(config, 'train', LOGGER))
        records = unlabelled_records(config, train)
        labels = task_labels(config.DATA.TASK, config.DATA.LABELS)
        predictions = read_predictions(folder / 'predictions_train.csv', labels=labels)
        probabilities = look_up(predictions, records.path, labels)
        targets = real_targets(config, records)
        counted = enough_cases(targets, FEW_CASES)
        if not counted.any():
            raise ValueError(
                f'{folder}: no label has {FEW_CASES} cases of each class among the '
                f'{len(records)} training images that the run did not learn from'
            )
        scores.append(auroc_per_label(probabilities[:, counted], targets[:, counted]).mean())
    return float(np.mean(scores))


def enough_cases(targets: np.ndarray, number: int) -> np.ndarray:
    """Return which labels have at least a number of positives and of negatives, [K] bool."""
    return ((targets == 1).sum(axis=0) >= number) & ((targets == 0).sum(axis=0) >= number)


def save_ranks(path: Path, files: Sequence[Path]) -> None:
    """Write the predictions of all folds as ranks, see `join_ranks`."""
    joined = join_ranks(files)
    table = pd.DataFrame(joined.probabilities, joined.names, joined.labels)
    text = table.rename_axis(joined.key).sort_index().to_csv(float_format='%.4g').encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, gzip.compress(text, mtime=0))  # without a time, the file is reproducible


def join_ranks(files: Sequence[Path]) -> Predictions:
    """Join predictions of several folds as ranks in (0, 1) within their fold. Ties share a rank.

    Raises:
        ValueError: If an image is in two folds, or the folds have different labels.
    """
    parts = [read_predictions(file) for file in files]
    if len({part.labels for part in parts}) > 1:
        raise ValueError(f'{files[0]} and the files of the other folds have different labels')
    names = np.concatenate([part.names for part in parts])
    if len(set(names)) < len(names):
        name = next(name for name, count in Counter(names).items() if count > 1)
        raise ValueError(f'{name} is in two of the folds that begin with {files[0]}')
    ranks = [(rankdata(part.probabilities, axis=0) - 0.5) / len(part.names) for part in parts]
    return replace(parts[0], names=names, probabilities=np.concatenate(ranks))


def table(args: argparse.Namespace) -> None:
    """Write a table of each score as Markdown and CSV files."""
    sweep = load_sweep(args.sweep, args.scale)
    sweep = only_rows(sweep, args.row) if args.row else sweep
    samples = read_samples(args, [row.name for row in sweep.rows])
    if args.against and args.against not in samples:
        raise ValueError(f'--against must be among {[*samples]}, got {args.against!r}')
    rows = [*sweep_rows(sweep, samples, args)]
    known = [*next(iter(next(iter(samples.values())).values()))]
    if unknown := [score for score in args.scores if score not in known]:
        raise ValueError(f'--scores must be among {known}, got {unknown}')
    for score in args.scores or known:
        figures = compare_scores(rows, samples, score)
        path = write_table(
            args.save,
            f'{sweep.name}_{score}'.replace(' ', '_'),
            figures,
            page(score, figures, args),
        )
        print(path)


def read_samples(
    args: argparse.Namespace, names: Sequence[str]
) -> dict[str, dict[int, dict[str, np.ndarray]]]:
    """Return row -> seed -> score -> [1 + R], the AUROC of all patients and of each resample."""
    found: dict[str, dict[int, dict[str, np.ndarray]]] = {}
    draws: Resamples | None = None
    for file in sorted(args.predictions.glob('*_seed*.csv.gz')):
        name, _, seed = file.name.removesuffix('.csv.gz').rpartition('_seed')
        if name not in names and not name.startswith(f'{PIXELS}_'):
            continue
        predictions = read_predictions(file)
        labels = read_label_file(args.labels, labels=predictions.labels)
        cases, _ = match(predictions, labels, name=name, level='image')
        draws = draws or Resamples(cases.patient, resamples=args.resamples, seed=args.seed)
        weights, scores = draws.score_weights(cases.patient), {}
        for label in cases.labels:
            part = label_scores(
                *cases.of_label(label), threshold=None, weights=weights, names=['auroc']
            )
            scores[label] = part['auroc']
        counted = cases.with_labels(enough_cases(cases.targets, args.cases)).labels
        if counted:
            scores = {MEAN: np.mean([scores[label] for label in counted], axis=0)} | scores
        found.setdefault(name, {})[int(seed)] = scores
    if not found:
        raise ValueError(f'{args.predictions} has no predictions of the rows of {args.sweep}')
    return found


def sweep_rows(
    sweep: Sweep, samples: Mapping[str, Any], args: argparse.Namespace
) -> Iterator[tuple[str, str, str]]:
    """Yield (row, labels, compared row or '') for each comparison, and then the pixel baseline.

    Rows without a common seed are not compared. With --row, a row is only compared with other named
    rows.
    """
    for row in sweep.rows:
        if row.name in samples:
            own = samples[row.name].keys()
            others = [
                name for name in compared_rows(row, args) if own & samples.get(name, {}).keys()
            ]
            for other in others or ('',):
                yield row.name, row.subset, other
    for name in samples:
        if name.startswith(f'{PIXELS}_'):
            yield name, name.removeprefix(f'{PIXELS}_'), ''


def compared_rows(row: Row, args: argparse.Namespace) -> Sequence[str]:
    """Return the rows with which the flags and the sweep file compare a row."""
    if args.against:
        return [args.against] if args.against != row.name else []
    return [name for name in comparable_rows(row) if not args.row or name in args.row]


def compare_scores(
    rows: Sequence[tuple[str, str, str]],
    samples: Mapping[str, Mapping[int, Mapping[str, np.ndarray]]],
    score: str,
) -> list[dict[str, Any]]:
    """Return a table row for each row and comparison, corrected by Holm over all comparisons."""
    figures, parts = [], {}
    for place, (name, subset, other) in enumerate(rows):
        values = np.array([scores[score] for scores in samples[name].values()])  # [seeds, 1 + R]
        low, high = interval(values.mean(axis=0)[1:])
        entry = {
            'row': name,
            'labels': subset,
            'seeds': len(values),
            'score': score,
            'value': values[:, 0].mean(),
            'sd': values[:, 0].std(ddof=1) if len(values) > 1 else np.nan,
            'low': low,
            'high': high,
            'against': other,
        }
        if other:
            seeds = [seed for seed in samples[name] if seed in samples[other]]
            paired = np.array([samples[name][s][score] - samples[other][s][score] for s in seeds])
            parts[place] = compare_over_seeds(paired[:, 0])
            parts[place]['over_patients'] |= compare_over_patients(paired.mean(axis=0)[1:])
        figures.append(entry)
    correct_comparisons(list(parts.values()))
    for place, part in parts.items():
        figures[place] |= {
            'difference': part['difference'],
            **{f'seeds_{end}': part['over_seeds'][end] for end in ('low', 'high')},
            **{f'patients_{end}': part['over_patients'][end] for end in ('low', 'high')},
            **{name: part['over_patients'][name] for name in ('p', 'p_holm')},
            'verdict': part['verdict'],
        }
    return figures


def page(score: str, figures: Sequence[Mapping[str, Any]], args: argparse.Namespace) -> str:
    """Return the table of a score as Markdown."""
    footnotes = Footnotes()

    def bounds(entry: Mapping[str, Any], kind: str, form: str = '+.3f') -> str:
        ends = [shown(entry[f'{kind}{end}'], form) for end in ('low', 'high')]
        reason = ONE_SEED if kind == 'seeds_' else FEW_RESAMPLES
        return missing_value(footnotes, [reason]) if MISSING in ends else ' to '.join(ends)

    rows = []
    for entry in figures:
        sd = f' ± {entry["sd"]:.3f}' if entry['seeds'] > 1 else ''
        is_compared = bool(entry['against'])
        cells = [bounds(entry, kind) if is_compared else '' for kind in ('seeds_', 'patients_')]
        verdict = entry.get('verdict', '')
        marks = [cell.removeprefix(MISSING) for cell in cells if cell.startswith(MISSING)]
        rows.append({
            'row': entry['row'],
            f'AUROC, {score}': shown(entry['value'], '.3f') + sd,
            '95 % over patients': bounds(entry, '', '.3f'),
            'against': entry['against'],
            'difference': shown(entry['difference'], '+.3f') if is_compared else '',
            'over seeds': cells[0],
            'over patients': cells[1],
            'verdict': verdict + ''.join(marks) if verdict == MISSING else verdict,
        })  # fmt: skip
    compared = sum(bool(entry['against']) for entry in figures)
    mean = f'Mean: labels with at least {args.cases} cases of each class. ' if score == MEAN else ''
    notes = (
        *footnotes.take(),
        'Each image is scored by a model that was not trained on its patient, with the rank of the '
        f'prediction within the fold. {mean}Mean ± standard deviation over seeds.',
        f'Over patients: 95 % percentile interval from {args.resamples:,} resamples of the '
        f"patients, seed {args.seed}. Over seeds: 95 % interval by Student's t. Verdict: above or "
        'below if both intervals exclude 0 and the bootstrap p-value, corrected by Holm over the '
        f'{compared} comparisons of this table, is below 0.05.',
        NOT_FOR_CLINICAL_USE,
    )
    return markdown_table(rows) + ''.join(f'\n- {note}' for note in notes) + '\n'


@tool
def main(args: argparse.Namespace) -> int:
    args.function(args)
    return 0


if __name__ == '__main__':
    sys.exit(main(parse_args()))
