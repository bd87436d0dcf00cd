"""Rounds of pseudo-labels: predict unlabelled patients, keep confident predictions, train again.

Round 0 learns only from the real labels of the subset. Each later round starts from the same
weights and also learns from the confident predictions of the previous round. Rounds stop as soon as
one of them does not raise the held-out score.
"""

import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from config import build_parser, get_config, selecting_split
from data.predictions import look_up, read_predictions, write_predictions
from data.reading import read_split
from data.records import Records, select_views
from data.splits import split_patients, training_records, unlabelled_records
from data.tasks import task_of
from engine.run_record import files_read, read_record
from evaluation.metrics import (
    FEW_CASES,
    auroc_per_label,
    mean_defined,
    score_table,
    selection_score,
)
from evaluation.pseudo_label_choice import audit, choose_values
from logger import json_safe
from sweeps.files import MAINS, Job, share_steps, without_cache
from sweeps.row_comparison import ENDS, MEANS, compare_rows, summarise
from sweeps.run_scores import ScoredPatients, read_scores
from sweeps.runner import Runner
from sweeps.table_format import (
    NOT_FOR_CLINICAL_USE,
    columns,
    markdown_table,
    shown,
    with_interval,
    write_table,
)
from system.files import sha256

LOGS = 'logs'  # folder below the output
TABLE = 'rounds'  # name of the table without suffix
ALL_LABELS = {'DATA.TRAIN_FRACTION': '1.0', 'DATA.TRAIN_IMAGES': '0'}
SIDES = ('positive', 'negative')


@dataclass
class Rounds:
    """Runs the rounds one after the other, and skips finished ones.

    Attributes:
        cfg: YAML file of fine-tuning. DATA.TRAIN_FRACTION or TRAIN_IMAGES selects the real labels.
        data: --data-path.
        output: Folder of all rounds.
        options: KEY VALUE pairs that override the YAML file.
        pretrained: Checkpoint that every round starts from, or ''.
        processes: Number of processes of a run.
        keep: See `evaluation.pseudo_label_choice.choose_values`.
        confidence: See `evaluation.pseudo_label_choice.choose_values`.
        equal_steps: Whether runs with more images have fewer epochs, so that all runs take about
            the same number of steps.
        say: Function that receives each line about the progress.
        jobs: Finished runs: the rounds, and then the run on all labels.
        best: Number of the best round.
        select_on: EVAL.SELECT_ON of all runs, which the number of real labels decides if it is
            'auto'.
        reason: Reason why there are no further rounds.

    Raises:
        ValueError: If no patients are held out, or the CSV file cannot be read.
    """

    cfg: str
    data: str
    output: Path
    options: Sequence[str] = ()
    pretrained: str = ''
    processes: int = 1
    keep: str = 'threshold'
    confidence: float = 0.9
    equal_steps: bool = False
    say: Callable[[str], None] = print
    jobs: list[Job] = field(default_factory=list, init=False)
    best: int = field(default=0, init=False)
    select_on: str = field(default='', init=False)
    reason: str = field(default='not the last', init=False)

    def __post_init__(self) -> None:
        self.config = without_cache(self.round(1).config)
        if not self.config.DATA.HOLDOUT_FRACTION:
            raise ValueError(
                'DATA.HOLDOUT_FRACTION must be above 0, got 0.0: held-out patients select the '
                'predictions and the round'
            )
        self.task = task_of(self.config)
        self.labels = self.task.labels
        everything = read_split(self.config, 'train', logging.getLogger(__name__))
        self.train, self.held_out, _ = split_patients(self.config, everything)
        self.unlabelled = unlabelled_records(self.config, self.train)
        self.real_images = len(training_records(self.config, self.train))
        self.select_on = selecting_split(self.config, self.real_images)

    def run(self, rounds: int) -> int:
        """Run round 0 and at most `rounds` further rounds, and return the last exit code."""
        scores = []
        for number in range(rounds + 1):
            images = self.choose(number) if number else 0
            if number and not images:
                self.reason = f'no prediction of round {number - 1} is confident enough'
                break
            if code := self._run(self.round(number, growth=1 + images / self.real_images)):
                return code
            scores.append(self.held_out_score(self.jobs[number]))
            self.say(f'round {number}: held-out mean AUROC {scores[-1]:.4f}')
            if np.isnan(scores[number]):
                self.reason = f'no label has {FEW_CASES} held-out cases of each class to select by'
                break
            if number and not scores[number] > scores[self.best]:
                self.reason = f'round {number} does not raise the held-out score'
                break
            self.best = number
            write_rounds(self)
        else:
            self.reason = f'{rounds} rounds were requested'
        self.say(f'best: round {self.best}; {self.reason}')
        write_rounds(self)
        return 0

    def run_all_labels(self) -> int:
        """Run the comparison that learns from all real labels, and return its exit code."""
        images = len(training_records(self.all_labels().config, self.train))
        code = self._run(self.all_labels(growth=images / self.real_images))
        if not code:
            write_rounds(self)
        return code

    def choose(self, number: int) -> int:
        """Choose and write the pseudo-labels of a round, and return the number of images.

        Raises:
            ValueError: If the run of the round has already learned from other pseudo-labels.
        """
        teacher = self.jobs[number - 1]
        held_out = select_views(self.held_out, self.config.DATA.VIEWS)
        values, cuts = choose_values(
            self.predicted(teacher, 'holdout', held_out),
            self.task.scored(held_out),
            self.predicted(teacher, 'train', self.unlabelled),
            keep=self.keep,
            confidence=self.confidence,
        )
        kept = ~np.isnan(values).all(axis=1)
        if kept.any():
            self._write_values(number, values, kept, cuts)
        return int(kept.sum())

    def _write_values(
        self, number: int, values: np.ndarray, kept: np.ndarray, cuts: Sequence[tuple]
    ) -> None:
        """Write the kept rows of the pseudo-labels of a round."""
        teacher = self.jobs[number - 1]
        source = {
            'task': self.config.DATA.TASK,
            'teacher': teacher.run,
            'predictions': sha256(teacher.folder / 'predictions_train.csv'),
            'keep': self.keep,
            'confidence': self.confidence,
            'cuts': {
                label: dict(zip(SIDES, map(asdict, pair), strict=True))
                for label, pair in zip(self.labels, cuts, strict=True)
            },
        }
        paths = self.unlabelled.path[kept]
        options = {'paths': paths, 'labels': self.labels, 'source': json_safe(source)}
        with tempfile.TemporaryDirectory(dir=self.output) as folder:
            chosen = Path(folder) / Path(self.file(number)).name
            write_predictions(chosen, values[kept], **options)
            _refuse_others(self.round(number).folder, chosen)
            for file in (chosen.with_suffix('.json'), chosen):
                file.replace(self.output / file.name)

    def _run(self, job: Job) -> int:
        code = Runner([job], [{}], self.output / LOGS, self.say).run()
        if not code:
            self.jobs.append(job)
        return code

    def file(self, number: int) -> str:
        """Return the file with the pseudo-labels of a round, or '' for round 0."""
        return str(self.output / f'pseudo_labels_round{number}.csv') if number else ''

    def round(self, number: int, *, growth: float = 1.0) -> Job:
        """Return the run of a round with `growth` times the images of round 0."""
        changes = {'EVAL.PREDICT_TRAIN': 'True', 'DATA.PSEUDO_LABELS': self.file(number)}
        return self._job(f'round{number}', changes, growth)

    def all_labels(self, *, growth: float = 1.0) -> Job:
        """Return the run that learns from the real labels of all training patients."""
        return self._job('all_labels', ALL_LABELS, growth)

    def _job(self, tag: str, changes: Mapping[str, str], growth: float) -> Job:
        arguments = ['--cfg', self.cfg, '--data-path', self.data, '--output', str(self.output)]
        arguments += ['--pretrained', self.pretrained] if self.pretrained else []
        arguments += ['--tag', tag, '--opts', *self.options]
        # Pseudo-labels do not decide whether a checkpoint is selected, so runs stay comparable.
        changes = changes | ({'EVAL.SELECT_ON': self.select_on} if self.select_on else {})
        arguments += [word for pair in changes.items() for word in pair]
        if self.equal_steps:
            train = get_config(build_parser('finetune').parse_args(arguments)).TRAIN
            arguments += ['TRAIN.EPOCHS', str(max(1, round(train.EPOCHS / growth)))]
            arguments += ['TRAIN.WARMUP_EPOCHS', str(round(train.WARMUP_EPOCHS / growth))]
        arguments, config = share_steps('finetune', arguments, self.processes)
        return Job(
            stage='finetune',
            run=tag,
            seed=config.SEED,
            folder=Path(config.OUTPUT) / config.MODEL.NAME / tag,
            arguments=[MAINS['finetune'], *arguments],
            config=config,
            processes=self.processes,
        )

    def predicted(self, job: Job, split: str, records: Records) -> np.ndarray:  # [N, K]
        """Return the predictions of a run for records, with NaN where there is no prediction."""
        return self._values(job.folder / f'predictions_{split}.csv', records)

    def held_out_score(self, job: Job) -> float:
        """Return the mean AUROC (EVAL.SELECT) of a run on the held-out patients."""
        options = self.config.EVAL
        records = select_views(self.held_out, options.VIEWS or self.config.DATA.VIEWS)
        probabilities = self.predicted(job, 'holdout', records)
        table = score_table(
            probabilities,
            self.task.scored(records),
            records.study,
            labels=self.labels,
            level=options.LEVEL,
            aggregate=options.AGGREGATE,
        )
        return selection_score(table, options.SELECT)

    def labelled_score(self, job: Job) -> float:
        """Return the mean AUROC of a round on the labelled images of its training."""
        records = training_records(self.config, self.train)
        predicted = self.predicted(job, 'train', records)
        return mean_defined(auroc_per_label(predicted, self.task.scored(records)))

    def pseudo_figures(self, job: Job) -> dict[str, float]:
        """Return number, AUROC and correctness of the pseudo-labels that a round learned from."""
        values = self._values(job.config.DATA.PSEUDO_LABELS, self.unlabelled)
        has_value = ~np.isnan(values).all(axis=1)
        predicted = self.predicted(job, 'train', self.unlabelled.select(has_value))
        areas = auroc_per_label(predicted, values[has_value])
        return {
            'pseudo_images': int(has_value.sum()),
            'auroc': mean_defined(areas),
            'auroc_labels': int((~np.isnan(areas)).sum()),
            **audit(values, self.task.scored(self.unlabelled)),
        }

    def _values(self, file: str | Path, records: Records) -> np.ndarray:
        predictions = read_predictions(file, allow_empty=True, labels=self.labels)
        return look_up(predictions, records.path, self.labels)


def _refuse_others(folder: Path, chosen: Path) -> None:
    """Raise a ValueError if a run has learned from other pseudo-labels than those in a file."""
    learned = files_read(read_record(folder)).get('DATA.PSEUDO_LABELS')
    if learned and learned != sha256(chosen):
        raise ValueError(
            f'{folder} learned from other pseudo-labels than the present options choose: give the '
            'same --keep and --confidence as for that run, or choose another --output'
        )


# The table --------------------------------------------------------------------------------------


def write_rounds(rounds: Rounds) -> Path:
    """Write rounds.md and rounds.csv to the output folder, and return the path of rounds.md."""
    rows = collect_rounds(rounds)
    best, held_out = f'round {rounds.best}', len(set(rounds.held_out.patient))
    text = f"""{markdown_table([_cells(row) for row in rows])}
- The held-out score selects {best}; {rounds.reason}. Rule {rounds.keep}, confidence
  {rounds.confidence:g}; seed {rounds.config.SEED}.
- The {held_out} held-out patients also selected checkpoints and thresholds, so the held-out score
  is too optimistic.
- Labelled and pseudo-labelled images are training images, scored against the labels that the round
  learned from.
- In brackets: 95 % intervals over patients of one run. Another seed may differ by more.
- Confirmed: share of the pseudo-labels that agree with the real labels, which were set aside and
  never used. By chance: the same share for images drawn at random.
- {NOT_FOR_CLINICAL_USE}
"""
    return write_table(rounds.output, TABLE, rows, text)


def collect_rounds(rounds: Rounds) -> list[dict[str, Any]]:
    """Collect the results of each run.

    Returns:
        For each run: `run`, `best` (whether the held-out score selected it), `epochs`,
        `real_images`, `pseudo_images` and `held_out` (the held-out score); for each scored split
        and mean the value and its difference from round 0, each with `_low` and `_high` (95 % over
        patients); for rounds also `labelled_auroc` and the values of `Rounds.pseudo_figures`. NaN
        marks undefined values.
    """
    rows = [
        {
            'run': job.run,
            'best': i == rounds.best,
            'epochs': job.config.TRAIN.EPOCHS,
            'real_images': len(training_records(job.config, rounds.train)),
            'pseudo_images': 0,
            'held_out': rounds.held_out_score(job),
        }
        for i, job in enumerate(rounds.jobs)
    ]
    for split in ('valid', 'test'):
        if (rounds.jobs[0].folder / f'predictions_{split}.csv').is_file():
            _add_scores(rows, rounds, split)
    for row, job in zip(rows, rounds.jobs, strict=True):
        if job.config.EVAL.PREDICT_TRAIN:
            row['labelled_auroc'] = rounds.labelled_score(job)
        if job.config.DATA.PSEUDO_LABELS:
            row |= rounds.pseudo_figures(job)
    return rows


def _add_scores(rows: list[dict[str, Any]], rounds: Rounds, split: str) -> None:
    """Add the means of each run on a split, and their differences from those of round 0."""
    runs = [read_scores(job.folder, split) for job in rounds.jobs]
    resamples, seed = rounds.config.EVAL.RESAMPLES, rounds.config.SEED
    patients = ScoredPatients(runs[0], resamples=resamples, seed=seed)
    table = {
        job.run: {seed: patients.samples(run)} for job, run in zip(rounds.jobs, runs, strict=True)
    }
    first, *others = table
    pairs = [(first, ''), *((other, first) for other in others)]
    for mean in (mean for mean in MEANS if mean in runs[0].figures['scores']):
        for row, part in zip(rows, compare_rows(table, pairs, mean), strict=True):
            own, name = summarise(table[row['run']], mean), f'{split}_{mean}'
            row |= columns(name, own['value'], own)
            if part:
                row |= columns(f'{name}_minus_round0', part['difference'], part['over_patients'])


def _cells(row: Mapping[str, Any]) -> dict[str, str]:
    """Return the cells of a row of the Markdown table. Missing values are empty."""

    def cell(name: str, form: str) -> str:
        bounds = {end: row.get(f'{name}_{end}') for end in ENDS}
        return with_interval(row[name], bounds, form) if name in row else ''

    cells = {
        'run': f'**{row["run"]}**' if row['best'] else row['run'],
        'real / pseudo-labelled images': f'{row["real_images"]} / {row["pseudo_images"]}',
        'epochs': str(row['epochs']),
        'held-out AUROC (chose)': shown(row['held_out'], '.3f'),
    }
    for split in ('valid', 'test'):
        for mean in MEANS:
            name, title = f'{split}_{mean}', f'{split}: {mean.replace("_", " ")}'
            if name in row:
                cells[title] = cell(name, '.3f')
                cells[f'{title} minus round 0'] = cell(f'{name}_minus_round0', '+.3f')
    titles = {'labelled_auroc': 'labelled images: AUROC', 'auroc': 'pseudo-labelled images: AUROC'}
    cells |= {t: shown(row[name], '.3f') if name in row else '' for name, t in titles.items()}
    for side in SIDES:
        title, counts = f'{side} pseudo-labels, confirmed (by chance)', ''
        if 'auroc' in row:
            shares = [shown(row[f'{side}_{name}'], '.1%') for name in ('confirmed', 'by_chance')]
            counts = f'{row[f"{side}_values"]}, {shares[0]} ({shares[1]})'
        cells[title] = counts
    return cells
