"""Rounds of pseudo-labels: predict unlabelled patients, keep confident predictions, train again.

Round 0 learns from the real labels of the subset alone. Each later round learns from these and from
the pseudo-labels that the model of the round before is confident of, from the same start. A round
that does not raise the held-out score is the last, and the round before it is the best.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from config import Config, build_parser, get_config
from data.data_finetune import unlabelled_records
from data.labels import scored_targets, task_labels
from data.records import (
    Records,
    look_up,
    read_predictions,
    read_split,
    select_views,
    split_holdout,
    training_records,
    write_predictions,
)
from engine.files import sha256
from engine.run_record import read_record
from evaluation.intervals import interval
from evaluation.metrics import (
    auroc_per_label,
    mean_defined,
    score_probabilities,
    selection_score,
)
from evaluation.pseudo_labels import audit, check_choice, choose_values
from logger import json_safe
from sweeps.files import MAINS, Job, share_steps
from sweeps.results import (
    MEANS,
    NOT_FOR_CLINICAL_USE,
    ScoredPatients,
    markdown_table,
    read_scores,
    shown,
    with_interval,
    write_table,
)
from sweeps.runner import Runner

LOGS = 'logs'  # folder below the output
TABLE = 'rounds'  # name of the table's files, without suffix
ALL_LABELS = 'all_labels'  # tag of the run that learns from every real label
MEAN_TITLES = {'mean_of_five': 'mean of five', 'mean_of_defined': 'mean of defined'}
CHANGED = 'choose another --output, or give the --keep and --confidence of the rounds there'


@dataclass(frozen=True)
class Setup:
    """What all rounds share.

    Attributes:
        cfg: YAML file of fine-tuning; DATA.TRAIN_FRACTION or TRAIN_IMAGES are the real labels.
        data: --data-path.
        output: Folder of all rounds.
        pretrained: Checkpoint that every round starts from, or ''.
        options: KEY VALUE pairs put over the YAML file.
        processes: Processes of a run; above 1 it is started by torchrun.
        keep: See `evaluation.pseudo_labels.choose_values`.
        confidence: See `evaluation.pseudo_labels.choose_values`.
        equal_steps: Whether runs with more images have fewer epochs, so that no run is better only
            because it takes more steps.
    """

    cfg: str
    data: str
    output: Path
    pretrained: str = ''
    options: Sequence[str] = ()
    processes: int = 1
    keep: str = 'threshold'
    confidence: float = 0.9
    equal_steps: bool = False

    def round(self, number: int, *, growth: float = 1.0) -> Job:
        """The run of a round, which has `growth` times the images of round 0."""
        file = str(self.file(number)) if number else ''
        options = ['EVAL.PREDICT_TRAIN', 'True', 'DATA.PSEUDO_LABELS', file]
        return self._job(f'round{number}', growth, *options)

    def all_labels(self, *, growth: float = 1.0) -> Job:
        """The run that learns from the real labels of all training patients."""
        whole = ['DATA.TRAIN_FRACTION', '1.0', 'DATA.TRAIN_IMAGES', '0', 'DATA.PSEUDO_LABELS', '']
        return self._job(ALL_LABELS, growth, *whole)

    def file(self, number: int) -> Path:
        """The pseudo-labels that a round learns from."""
        return self.output / f'pseudo_labels_round{number}.csv'

    def _job(self, tag: str, growth: float, *options: str) -> Job:
        arguments = ['--cfg', self.cfg, '--data-path', self.data, '--output', str(self.output)]
        arguments += ['--tag', tag]
        arguments += ['--pretrained', self.pretrained] if self.pretrained else []
        arguments += ['--opts', *self.options, *options]
        if self.equal_steps and growth != 1:
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
            weights=self.pretrained,
        )


class Patients:
    """The training patients of a setup: held out, labelled and unlabelled.

    Args:
        config: Run configuration of round 0.

    Raises:
        ValueError: If the CSV cannot be read, no patient is held out, or held-out images of the
            training views are not predicted.
    """

    def __init__(self, config: Config) -> None:
        config = config.clone()
        config.defrost()
        config.DATA.CACHE_DIR = ''  # the CSV files are in the data folder
        if not config.DATA.HOLDOUT_FRACTION:
            raise ValueError(
                'DATA.HOLDOUT_FRACTION must be above 0, got 0.0: held-out patients decide which '
                'predictions and which round are kept'
            )
        learned, scored = config.DATA.VIEWS, config.EVAL.VIEWS or config.DATA.VIEWS
        if scored not in (learned, 'all'):
            raise ValueError(
                f"EVAL.VIEWS must be '', 'all' or as DATA.VIEWS ({learned!r}), got {scored!r}: "
                'held-out images of all training views decide which predictions are kept'
            )
        self.config, self.labels = config, task_labels(config.DATA.TASK)
        everything = read_split(config, 'train', logging.getLogger(__name__))
        self.train, self.held_out = split_holdout(everything, config.DATA.HOLDOUT_FRACTION)
        self.unlabelled = unlabelled_records(config, self.train)

    def real(self, records: Records) -> np.ndarray:
        """The real labels of some records as they are scored, [N, K]."""
        data = self.config.DATA
        return scored_targets(records.labels, task=data.TASK, blank=data.BLANK)

    def predicted(self, folder: Path, split: str, records: Records) -> np.ndarray:
        """Predictions of a run for some records, [N, K]; NaN where there are none."""
        file = folder / f'predictions_{split}.csv'
        predictions = read_predictions(file, task=self.config.DATA.TASK)
        return look_up(predictions, records.path, self.labels)

    def held_out_score(self, folder: Path) -> float:
        """The mean AUROC of a run's held-out predictions that EVAL.SELECT names."""
        options = self.config.EVAL
        records = select_views(self.held_out, options.VIEWS or self.config.DATA.VIEWS)
        probabilities = self.predicted(folder, 'holdout', records)
        table = score_probabilities(self.config, probabilities, self.real(records), records.study)
        return selection_score(table, options.SELECT)


@dataclass
class Rounds:
    """The rounds of a setup, run one after the other; finished rounds are left alone.

    Attributes:
        setup: What they share.
        say: Takes a line about the progress.
        jobs: The rounds that were run, by number.
        scores: Their held-out scores.
        best: Number of the best one.
        reason: Why there is no further round.
        reference: The run on all labels, if there is one.
    """

    setup: Setup
    say: Callable[[str], None]
    jobs: list[Job] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    best: int = 0
    reason: str = ''
    reference: Job | None = None

    def __post_init__(self) -> None:
        check_choice(self.setup.keep, self.setup.confidence)
        self.setup.round(1)  # refuses options that no round can work with
        self.patients = Patients(self.setup.round(0).config)
        self.real_images = len(training_records(self.patients.config, self.patients.train))

    def run(self, rounds: int, *, after_round: Callable[[Rounds], object]) -> int:
        """Run at most this many rounds after round 0.

        Args:
            rounds: 1 or more.
            after_round: Called after each round, and when it is known why there is no other.

        Returns:
            0, or the exit code of a run that did not finish.
        """
        for number in range(rounds + 1):
            images = self._choose(number) if number else 0
            if number and not images:
                self.reason = f'no prediction of round {number - 1} is confident enough'
                break
            job = self.setup.round(number, growth=1 + images / self.real_images)
            if code := self._run_job(job):
                return code
            self.jobs.append(job)
            self.scores.append(self.patients.held_out_score(job.folder))
            self.say(f'round {number}: held-out mean AUROC {self.scores[-1]:.4f}')
            if np.isnan(self.scores[0]):
                raise ValueError(f'{job.folder}: no label has both classes among held-out patients')
            if number and not self.scores[number] > self.scores[self.best]:
                self.reason = (
                    f'round {number} does not raise the held-out score of round {self.best}'
                )
                break
            self.best = number
            after_round(self)
        self.reason = self.reason or f'{rounds} rounds were asked for'
        self.say(f'best: round {self.best}; {self.reason}')
        after_round(self)
        return 0

    def run_reference(self) -> int:
        """Run what learns from all real labels; returns its exit code."""
        images = len(training_records(self.setup.all_labels().config, self.patients.train))
        job = self.setup.all_labels(growth=images / self.real_images)
        code = self._run_job(job)
        self.reference = None if code else job
        return code

    def _run_job(self, job: Job) -> int:
        file = job.config.DATA.PSEUDO_LABELS
        record = read_record(job.folder) or {}
        known = record.get('data', {}).get('files', {}).get('DATA.PSEUDO_LABELS')
        if known and known != sha256(Path(file)):
            raise ValueError(f'{job.folder} was trained on another {file}: {CHANGED}')
        logs = self.setup.output / LOGS
        return Runner([job], [{}], self.setup.processes, logs, self.say).run()

    def _choose(self, number: int) -> int:
        """Write the pseudo-labels of a round if there are any; returns the number of images."""
        setup, patients, teacher = self.setup, self.patients, self.jobs[number - 1]
        # The views that are to be labelled: those that are trained on.
        held_out = select_views(patients.held_out, patients.config.DATA.VIEWS)
        values, cuts = choose_values(
            patients.predicted(teacher.folder, 'holdout', held_out),
            patients.real(held_out),
            patients.predicted(teacher.folder, 'train', patients.unlabelled),
            keep=setup.keep,
            confidence=setup.confidence,
        )
        kept, file = ~np.isnan(values).all(axis=1), setup.file(number)
        if kept.any() and file.exists():
            if not np.array_equal(self._values(number), values, equal_nan=True):
                raise ValueError(f'{file} holds other pseudo-labels than are chosen now: {CHANGED}')
        elif kept.any():
            source = {
                'task': patients.config.DATA.TASK,
                'teacher': teacher.run,
                'predictions': sha256(teacher.folder / 'predictions_train.csv'),
                'keep': setup.keep,
                'confidence': setup.confidence,
                'labels': {
                    label: {'positive': asdict(positive), 'negative': asdict(negative)}
                    for label, (positive, negative) in zip(patients.labels, cuts, strict=True)
                },
            }
            paths = patients.unlabelled.path[kept]
            options = {'paths': paths, 'labels': patients.labels, 'source': json_safe(source)}
            write_predictions(file, values[kept], **options)
        return int(kept.sum())

    def _values(self, number: int) -> np.ndarray:
        """[N, K] pseudo-labels of a round for all unlabelled images, NaN where there are none."""
        read = read_predictions(self.setup.file(number), allow_empty=True)
        patients = self.patients
        return look_up(read, patients.unlabelled.path, patients.labels)

    def pseudo_figures(self, number: int) -> dict[str, float]:
        """How many pseudo-labels a round learned from, how well, and how many are right."""
        values, patients = self._values(number), self.patients
        has_value = ~np.isnan(values).all(axis=1)
        records = patients.unlabelled.select(has_value)
        predicted = patients.predicted(self.jobs[number].folder, 'train', records)
        areas = auroc_per_label(predicted, values[has_value])
        return {
            'pseudo_images': int(has_value.sum()),
            'auroc': mean_defined(areas),
            'auroc_labels': int((~np.isnan(areas)).sum()),
        } | {
            f'{side}_{key}': value
            for side, counts in audit(values, patients.real(patients.unlabelled)).items()
            for key, value in counts.items()
        }


# The table --------------------------------------------------------------------------------------


def write_rounds(rounds: Rounds) -> Path:
    """Write rounds.md and rounds.csv into the output folder; returns the first."""
    rows = collect_rounds(rounds)
    text = f'## Scores on real labels\n\n{markdown_table([_real_cells(row) for row in rows])}'
    if pseudo := [_pseudo_cells(row) for row in rows if 'auroc' in row]:
        text += f'\n## On the pseudo-labelled images\n\n{markdown_table(pseudo)}'
    text += ''.join(['\n', *(f'- {note}\n' for note in _notes(rounds))])
    return write_table(rounds.setup.output, TABLE, rows, text)


def collect_rounds(rounds: Rounds) -> list[dict[str, Any]]:
    """The figures of each round, and of the run on all labels if there is one.

    Returns:
        For each run: `run`, `best` (whether the held-out score chose it), `epochs`, `real_images`,
        `pseudo_images` and `held_out` (the score that chose); for each scored split and mean its
        value with `_low` and `_high` (95 % over patients) and the same of its difference from round
        0; and what `Rounds.pseudo_figures` gives. NaN stands for undefined figures.
    """
    patients, config = rounds.patients, rounds.jobs[0].config
    first, rows = rounds.jobs[0].folder, []
    resampled = {
        split: ScoredPatients(
            read_scores(first, split), resamples=config.EVAL.RESAMPLES, seed=config.SEED
        )
        for split in ('valid', 'test')
        if (first / f'predictions_{split}.csv').is_file()
    }
    for i, job in enumerate([*rounds.jobs, *([rounds.reference] if rounds.reference else [])]):
        is_pseudo = 0 < i < len(rounds.jobs)
        row = {
            'run': job.run,
            'best': i == rounds.best,
            'epochs': job.config.TRAIN.EPOCHS,
            'real_images': len(training_records(job.config, patients.train)),
            'pseudo_images': 0,
            'held_out': patients.held_out_score(job.folder),
        }
        for split, source in resampled.items():
            row |= _split_figures(source, split, job.folder, first)
        rows.append(row | (rounds.pseudo_figures(i) if is_pseudo else {}))
    return rows


def _split_figures(
    source: ScoredPatients, split: str, folder: Path, first: Path
) -> dict[str, float]:
    """The means of a run on a split, and their differences from those of round 0."""
    figures = {}
    runs = read_scores(folder, split), read_scores(first, split)
    for mean in MEANS:
        values = [np.nan if (v := r.figures['scores'][mean]) is None else v for r in runs]
        drawn = [source.samples(run).get(mean, np.array([np.nan])) for run in runs]
        figures |= _bounded(f'{split}_{mean}', values[0], drawn[0])
        if folder != first:
            name = f'{split}_{mean}_minus_round0'
            figures |= _bounded(name, values[0] - values[1], drawn[0] - drawn[1])
    return figures


def _bounded(name: str, value: float, drawn: np.ndarray) -> dict[str, float]:
    low, high = interval(drawn)
    return {name: value, f'{name}_low': low, f'{name}_high': high}


def _real_cells(row: Mapping[str, Any]) -> dict[str, str]:
    def cell(name: str, form: str) -> str:
        return with_interval(*(row.get(f'{name}{end}') for end in ('', '_low', '_high')), form)

    cells = {
        'run': _title(row),
        'real / pseudo-labelled images': f'{row["real_images"]} / {row["pseudo_images"]}',
        'epochs': str(row['epochs']),
        'held-out AUROC (chose)': shown(row['held_out'], '.3f'),
    }
    splits = [split for split in ('valid', 'test') if f'{split}_mean_of_five' in row]
    for split in splits:
        for mean, title in MEAN_TITLES.items():
            cells[f'{split}: {title}'] = cell(f'{split}_{mean}', '.3f')
    for split in splits[-1:]:
        mean = MEANS[int(np.isnan(row[f'{split}_mean_of_five']))]
        name = f'{split}_{mean}_minus_round0'
        title = f'{split}: {MEAN_TITLES[mean]} minus round 0'
        cells[title] = cell(name, '+.3f') if name in row else ''
    return cells


def _pseudo_cells(row: Mapping[str, Any]) -> dict[str, str]:
    cells = {
        'run': _title(row),
        'images': str(row['pseudo_images']),
        'AUROC against the pseudo-labels': (
            f'{shown(row["auroc"], ".3f")} ({row["auroc_labels"]} labels)'
        ),
    }
    for side in ('positive', 'negative'):
        cells[f'{side} values'] = str(row[f'{side}_values'])
        shares = [shown(row[f'{side}_{key}'], '.1%') for key in ('confirmed', 'by_chance')]
        cells[f'confirmed (by chance), {side}'] = f'{shares[0]} ({shares[1]})'
    return cells


def _title(row: Mapping[str, Any]) -> str:
    names = {'round0': 'round 0: supervised only', ALL_LABELS: 'all labels'}
    title = names.get(row['run'], row['run'].replace('round', 'round '))
    return f'**{title}**' if row['best'] else title


def _notes(rounds: Rounds) -> list[str]:
    setup, config = rounds.setup, rounds.patients.config
    held_out = len(set(rounds.patients.held_out.patient))
    return [
        f'Best by the held-out score: round {rounds.best}; {rounds.reason or "not the last"}. '
        f'Kept by {setup.keep}, confidence {setup.confidence:g}; seed {config.SEED}.',
        f'The {held_out} held-out patients chose checkpoints, thresholds and the round, so the '
        'held-out score is too optimistic.',
        f'In brackets 95 % intervals over patients ({config.EVAL.RESAMPLES} resamples) of one run: '
        'another seed may differ by more.',
        'Confirmed: the share of pseudo-labels that the real labels confirm, which were put aside; '
        'by chance: the same if as many values of each label went to images drawn at random. '
        'Nothing was trained on or chosen by these labels.',
        NOT_FOR_CLINICAL_USE,
    ]
