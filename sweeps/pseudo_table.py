"""The table of pseudo-label rounds: on real labels and, apart, on pseudo-labelled pictures."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from checksums import replace_file
from data.predictions import look_up, read_predictions, row_names
from data.splits import training_records
from data.tables import safe_cell
from evaluation.confidence import audit
from evaluation.intervals import interval
from evaluation.metrics import auroc_per_label, mean_defined
from sweeps.comparison import MEANS, Scored, ScoredPatients
from sweeps.plan import Job
from sweeps.pseudo_rounds import Patients, Rounds
from sweeps.summary import MISSING, NOT_FOR_CLINICAL_USE

TABLE = 'rounds'  # name of the files, without suffix
SHOWN = {'mean_of_five': 'mean of five', 'mean_of_defined': 'mean of defined'}


def write_table(rounds: Rounds) -> Path:
    """Write rounds.md and rounds.csv into the output folder; returns the first."""
    rows, folder = collect(rounds), rounds.setup.output
    replace_file(folder / f'{TABLE}.csv', csv_text(rows).encode())
    replace_file(folder / f'{TABLE}.md', markdown(rounds, rows).encode())
    return folder / f'{TABLE}.md'


def collect(rounds: Rounds) -> list[dict[str, Any]]:
    """A row a run, NaN where a figure is not defined.

    Returns:
        Of each round, and of the run on all labels if there is one: `run`, `best` (whether the
        held-out score chose it), `epochs`, `real_pictures` and `pseudo_pictures` it learned from,
        `held_out` (the score that chose); of each scored split and mean its `value` with `low` and
        `high` (95 % over patients), and the same of its difference to round 0; and of the
        pseudo-labels `auroc` (of the round's model against them: mean over `auroc_labels` labels
        with both values) and, for positive and negative, what `audit` gives.
    """
    patients, rows = rounds.patients, []
    runs = [(job, rounds.setup.file(i) if i else None) for i, job in enumerate(rounds.jobs)]
    runs += [(rounds.reference, None)] if rounds.reference else []
    splits = _Splits(rounds.jobs[0])
    for i, (job, file) in enumerate(runs):
        rows.append(
            {
                'run': job.run,
                'best': i == rounds.best,
                'epochs': job.config.TRAIN.EPOCHS,
                'real_pictures': len(training_records(job.config, patients.train)),
                'pseudo_pictures': 0,
                'held_out': patients.held_out_score(job.folder),
                **splits.scores(job),
                **(_pseudo_figures(patients, job, file) if file else {}),
            }
        )
    return rows


class _Splits:
    """Scores of runs on the splits that they were all scored on, with intervals over patients."""

    def __init__(self, supervised: Job) -> None:
        self.supervised, evaluation = supervised, supervised.config.EVAL
        options = {'resamples': evaluation.RESAMPLES, 'seed': supervised.config.SEED}
        self.patients = {
            split: ScoredPatients(_scored(supervised.folder, split), **options)
            for split in ('valid', 'test')
            if (supervised.folder / f'predictions_{split}.csv').is_file()
        }

    def scores(self, job: Job) -> dict[str, float]:
        figures = {}
        for split, patients in self.patients.items():
            run, first = (_scored(folder, split) for folder in (job.folder, self.supervised.folder))
            for mean in MEANS:
                values = [_number(part.figures['scores'][mean]) for part in (run, first)]
                drawn = [
                    patients.samples(part).get(mean, np.array([np.nan])) for part in (run, first)
                ]
                name = f'{split}_{mean}'
                figures |= _with_interval(name, values[0], drawn[0])
                if job is not self.supervised:
                    difference = values[0] - values[1], drawn[0] - drawn[1]
                    figures |= _with_interval(f'{name}_minus_round0', *difference)
        return figures


def _with_interval(name: str, value: float, drawn: np.ndarray) -> dict[str, float]:
    low, high = interval(drawn)
    return {name: value, f'{name}_low': low, f'{name}_high': high}


def _scored(folder: Path, split: str) -> Scored:
    """A run's scores on a split, of the selected checkpoint or the last one."""
    file = folder / 'scores.json'
    try:
        table = json.loads(file.read_bytes())[split]
        scores = table.get('selected') or table['last']
        figures = {'split': split, 'undefined': scores['undefined']}
        figures['scores'] = {mean: scores[mean] for mean in MEANS} | scores['auroc']
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f'{file} of a finished run cannot be read: {error!r}') from error
    return Scored(folder, figures)


def _number(value: float | None) -> float:
    return float('nan') if value is None else value


def _pseudo_figures(patients: Patients, job: Job, file: Path) -> dict[str, float]:
    """Of the pseudo-labels that a round learned from: how many, how learned, how true."""
    records, labels = patients.unlabelled, patients.labels
    read = read_predictions(file, allow_empty=True)
    values = look_up(read, row_names(read, records.path), labels)
    pictures = ~np.isnan(values).all(axis=1)
    predicted = patients.predicted(job.folder, 'train', records.select(pictures))
    areas = auroc_per_label(predicted, values[pictures])
    return {
        'pseudo_pictures': int(pictures.sum()),
        'auroc': mean_defined(areas),
        'auroc_labels': int((~np.isnan(areas)).sum()),
        **{
            f'{side}_{key}': value
            for side, counts in audit(values, patients.real(records)).items()
            for key, value in counts.items()
        },
    }


def csv_text(rows: Sequence[dict[str, Any]]) -> str:
    """Every figure in a column of its own, empty where it is not defined."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval='', lineterminator='\n')
    writer.writeheader()
    for row in rows:
        writer.writerow({key: '' if value != value else safe_cell(value)
                         for key, value in row.items()})  # fmt: skip
    return text.getvalue()


def markdown(rounds: Rounds, rows: Sequence[dict[str, Any]]) -> str:
    """Two tables, and what a reader must know of them."""
    parts = ['## Scores on real labels\n', _table([_real_cells(row) for row in rows])]
    pseudo = [_pseudo_cells(row) for row in rows if 'auroc' in row]
    if pseudo:
        parts += ['\n## On the pseudo-labelled pictures\n', _table(pseudo)]
    return ''.join([*parts, '\n', *(f'- {note}\n' for note in _notes(rounds))])


def _table(rows: Sequence[dict[str, str]]) -> str:
    lines = [list(rows[0]), ['---'] * len(rows[0]), *(list(row.values()) for row in rows)]
    return '\n' + ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def _real_cells(row: dict[str, Any]) -> dict[str, str]:
    cells = {
        'run': _title(row),
        'real / pseudo-labelled pictures': f'{row["real_pictures"]} / {row["pseudo_pictures"]}',
        'epochs': str(row['epochs']),
        'held-out AUROC (chose)': _shown(row['held_out'], '.3f'),
    }
    for split in ('valid', 'test'):
        for mean, title in SHOWN.items():
            if f'{split}_{mean}' in row:
                cells[f'{split}: {title}'] = _spread(row, f'{split}_{mean}', '.3f')
    last = 'test' if 'test_mean_of_five' in row else 'valid'
    mean = MEANS[int(np.isnan(row[f'{last}_mean_of_five']))]
    cells[f'{last}: {SHOWN[mean]} minus round 0'] = (
        _spread(row, f'{last}_{mean}_minus_round0', '+.3f')
        if f'{last}_{mean}_minus_round0' in row
        else ''
    )
    return cells


def _title(row: dict[str, Any]) -> str:
    names = {'round0': 'round 0: supervised only', 'all_labels': 'all labels'}
    title = names.get(row['run'], row['run'].replace('round', 'round '))
    return f'**{title}**' if row['best'] else title


def _pseudo_cells(row: dict[str, Any]) -> dict[str, str]:
    cells = {
        'run': _title(row),
        'pictures': str(row['pseudo_pictures']),
        'AUROC against the pseudo-labels': (
            f'{_shown(row["auroc"], ".3f")} ({row["auroc_labels"]} labels)'
        ),
    }
    for side in ('positive', 'negative'):
        cells[f'{side} values'] = str(row[f'{side}_values'])
        shares = [_shown(row[f'{side}_{key}'], '.1%') for key in ('confirmed', 'by_chance')]
        cells[f'confirmed (by chance), {side}'] = f'{shares[0]} ({shares[1]})'
    return cells


def _shown(value: float, form: str) -> str:
    return MISSING if np.isnan(value) else f'{value:{form}}'.replace('-', '−')


def _spread(row: dict[str, Any], name: str, form: str) -> str:
    """A figure and its interval, where it has one."""
    bounds = [row[f'{name}_{bound}'] for bound in ('low', 'high')]
    shown = ' to '.join(_shown(bound, form) for bound in bounds)
    return _shown(row[name], form) + ('' if np.isnan(bounds).any() else f' ({shown})')


def _notes(rounds: Rounds) -> list[str]:
    setup, config = rounds.setup, rounds.patients.config
    held_out = len(set(rounds.patients.held_out.patient))
    return [
        f'Best by the held-out score: round {rounds.best}; {rounds.reason or "going on"}. '
        f'Kept by {setup.keep}, confidence {setup.confidence:g}; seed {config.SEED}.',
        f'The {held_out} held-out patients chose checkpoints, thresholds and round: the held-out '
        'score is too good for that.',
        f'In brackets 95 % intervals over patients ({config.EVAL.RESAMPLES} resamples) of one run: '
        'another seed may differ by more.',
        'Confirmed: the share of pseudo-labels that the real labels, which were put aside, '
        'confirm; by chance: if as many values of each label went to pictures drawn at random. '
        'This is an audit: nothing was trained on or chosen by these labels.',
        NOT_FOR_CLINICAL_USE,
    ]
