"""Pseudo-labels: predict unlabelled patients, keep confident predictions, and train on them.

The teacher learns from the real labels alone. The student starts from the same weights and also
learns from the confident predictions of the teacher. In each further round, the last student is the
teacher of a new student.
"""

import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from config import PROBES, build_parser, get_config
from data.tables.predictions import look_up, read_predictions, write_predictions
from data.tables.reading import read_split
from data.tables.records import Records, select_views, task_of
from data.tables.splits import (
    selecting_split,
    split_patients,
    training_records,
    unlabelled_records,
)
from engine.lineage import as_json, trainings_of_predictions
from evaluation.calibration import choose_threshold
from evaluation.cases import cases_of
from evaluation.model_comparison import summarise
from evaluation.pseudo_label_choice import MIN_CASES, audit, choose_values
from evaluation.run_facts import KNOWN, known_of_run
from logger import json_safe
from sweeps.files import MAINS, Job, share_steps, sweep_of_runs, without_cache
from sweeps.long_table import (
    MEANS,
    Scored,
    lines_of_known,
    notes_about_labels,
    rows_of,
    score_runs,
)
from sweeps.plots import BY_SEED, add_note, bars_note, bars_of, drawing, marked
from sweeps.run_scores import SPLITS, read_runs
from sweeps.runner import LOGS, Runner
from sweeps.tables import compare, score_title, shown, write_score
from system.downloads import LINEAGE
from system.files import sha256

TEACHER, STUDENT, ALL_LABELS = 'teacher', 'student', 'all_labels'
TABLE = 'pseudo_labels'
METRICS = ('auroc', 'accuracy', 'precision', 'recall')
SIDES = ('positive', 'negative')


@dataclass
class PseudoLabels:
    """Runs teacher and student one after the other, and skips finished runs.

    Attributes:
        cfg: YAML file of fine-tuning. DATA.TRAIN_FRACTION or TRAIN_IMAGES selects the real labels.
        data: --data-path.
        output: Folder of all runs.
        options: KEY VALUE pairs that override the YAML file.
        pretrained: Checkpoint that every run starts from, or ''.
        processes: Number of processes of a run.
        confidence: See `evaluation.pseudo_label_choice.choose_values`.
        equal_steps: Whether runs with more images have fewer epochs, so that all runs take about
            the same number of steps.
        say: Function that receives each line about the progress.
        jobs: Finished runs.
        ended: Why there are fewer rounds than wanted, or ''.
        steps: Steps of each run, in epochs of the teacher.

    Raises:
        ValueError: If no patients are held out, or the CSV file cannot be read.
    """

    cfg: str
    data: str
    output: Path
    options: Sequence[str] = ()
    pretrained: str = ''
    processes: int = 1
    confidence: float = 0.9
    equal_steps: bool = False
    say: Callable[[str], None] = print
    jobs: list[Job] = field(default_factory=list, init=False)
    select_on: str = field(default='', init=False)
    ended: str = field(default='', init=False)
    steps: dict[str, float] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.config = without_cache(self.job(STUDENT).config)
        if not self.config.DATA.HOLDOUT_FRACTION:
            raise ValueError(
                'DATA.HOLDOUT_FRACTION must be above 0, got 0.0: held-out patients select the '
                'predictions'
            )
        self.task = task_of(self.config)
        everything = read_split(self.config, 'train', logging.getLogger(__name__))
        train, held_out, _ = split_patients(self.config, everything)
        self.held_out = select_views(held_out, self.config.DATA.VIEWS)
        self.unlabelled = unlabelled_records(self.config, train)
        self.labelled = training_records(self.config, train)
        self.all_images = len(self.labelled) + len(self.unlabelled)
        # Pseudo-labels do not decide whether a checkpoint is selected, so runs stay comparable.
        self.select_on = selecting_split(self.config, len(self.labelled))

    def run(self, *, all_labels: bool, rounds: int = 1) -> int:
        """Run the teacher, a student in each round, and a run on all real labels if wanted.

        The rounds end early if no prediction is confident enough.

        Returns:
            The exit code of the last run.
        """
        real = len(self.labelled)
        if code := self._run(self.job(TEACHER)):
            return code
        for number in range(1, rounds + 1):
            images = self.choose(number)
            if not images:
                teacher, confidence = self.jobs[-1].run, f'--confidence {self.confidence:g}'
                self.ended = (
                    f'Round {number}: no prediction of {teacher} is confident enough for '
                    f'{confidence}, so there is no {student(number)}. A label needs {MIN_CASES} '
                    'held-out cases beyond a threshold, with few errors: try a lower '
                    '--confidence, or a larger DATA.HOLDOUT_FRACTION.'
                )
                self.say(self.ended)
                break
            if code := self._run(self.job(student(number), growth=1 + images / real)):
                return code
        if all_labels and (code := self._run(self.job(ALL_LABELS, growth=self.all_images / real))):
            return code
        return 0

    def choose(self, number: int) -> int:
        """Choose and write the pseudo-labels of a round, and return the number of images."""
        teacher = self.jobs[-1]
        values, cuts = choose_values(
            self._predicted(teacher, 'holdout', self.held_out),
            self.task.scored(self.held_out),
            self._predicted(teacher, 'train', self.unlabelled),
            confidence=self.confidence,
        )
        kept = ~np.isnan(values).all(axis=1)
        if not kept.any():
            return 0
        pairs = zip(self.task.labels, cuts, strict=True)
        predictions = teacher.folder / 'predictions_train.csv'
        source = {
            'task': self.config.DATA.TASK,
            'predictions': sha256(predictions),
            'confidence': self.confidence,
            'cuts': {k: dict(zip(SIDES, map(asdict, pair), strict=True)) for k, pair in pairs},
            KNOWN: known_of_run(predictions)._asdict(),
            LINEAGE: as_json(trainings_of_predictions(predictions)),
        }
        options = {'paths': self.unlabelled.path[kept], 'labels': self.task.labels}
        file = self.output / file_of(student(number))
        write_predictions(file, values[kept], source=json_safe(source), **options)
        return int(kept.sum())

    def _run(self, job: Job) -> int:
        code = Runner([job], [{}], self.output / LOGS, self.say).run()
        if not code:
            self.jobs.append(job)
        return code

    def job(self, tag: str, *, growth: float = 1.0) -> Job:
        """Return a run with `growth` times the images of the teacher."""
        changes = {'EVAL.PREDICT_TRAIN': 'True'}
        if tag == ALL_LABELS:
            changes = {'DATA.TRAIN_FRACTION': '1.0', 'DATA.TRAIN_IMAGES': '0'}
        elif tag != TEACHER:
            changes['DATA.PSEUDO_LABELS'] = str(self.output / file_of(tag))
        changes |= {'EVAL.SELECT_ON': self.select_on} if self.select_on else {}
        arguments = ['--cfg', self.cfg, '--data-path', self.data, '--output', str(self.output)]
        arguments += ['--pretrained', self.pretrained] if self.pretrained else []
        arguments += ['--tag', tag, '--opts', *self.options]
        arguments += [word for pair in changes.items() for word in pair]
        if self.equal_steps:
            train = get_config(build_parser('finetune').parse_args(arguments)).TRAIN
            arguments += ['TRAIN.EPOCHS', str(max(1, round(train.EPOCHS / growth)))]
            arguments += ['TRAIN.WARMUP_EPOCHS', str(round(train.WARMUP_EPOCHS / growth))]
        arguments, config = share_steps('finetune', arguments, self.processes)
        self.steps[tag] = growth * config.TRAIN.EPOCHS
        return Job(
            stage='finetune',
            run=tag,
            seed=config.SEED,
            folder=Path(config.OUTPUT) / config.MODEL.NAME / tag,
            arguments=[MAINS['finetune'], *arguments],
            config=config,
            processes=self.processes,
        )

    def _predicted(self, job: Job, split: str, records: Records) -> np.ndarray:  # [N, K]
        """Return the predictions of a run for records, with NaN where there is no prediction."""
        return self._values(job.folder / f'predictions_{split}.csv', records)

    def _values(self, file: Path, records: Records) -> np.ndarray:
        predictions = read_predictions(file, allow_empty=True, labels=self.task.labels)
        return look_up(predictions, records.path, self.task.labels)

    # What the tables show -------------------------------------------------------------------------

    def about_pseudo_labels(self) -> list[str]:
        """Say how many images have no prediction, and how often pseudo-labels are right."""
        notes = [*self._not_predicted(), *self._more_steps()]
        for name in self.students():  # real labels, which were never used
            found = audit(self._chosen(name), self.task.scored(self.unlabelled))
            sides = []
            for side in SIDES:
                right = shown(found[f'{side}_confirmed'], '.1%')
                chance = shown(found[f'{side}_by_chance'], '.1%')
                number = found[f'{side}_values']
                sides.append(f'{number} {side}, {right} confirmed ({chance} by chance)')
            notes.append(
                f'Pseudo-labels of {name} against real labels that were never used: '
                f'{"; ".join(sides)}.'
            )
        return notes + ([self.ended] if self.ended else [])

    def students(self) -> list[str]:
        """Return the names of the students in the order of the rounds."""
        return [job.run for job in self.jobs if job.run not in (TEACHER, ALL_LABELS)]

    def splits(self) -> list[list[Scored]]:
        """Return the scored images of all runs, for each split of valid, test and training."""
        runs = {job.run: {self.config.SEED: job.folder} for job in self.jobs}
        splits = [
            read_runs(runs, sweep_of_runs([*runs]), split=split).scored
            for split in SPLITS
            if (self.jobs[0].folder / f'predictions_{split}.csv').is_file()
        ]
        thresholds = {}  # those that are best on held-out patients, by Youden's index
        known = self.task.scored(self.held_out)
        for job in self.jobs:
            predicted = self._predicted(job, 'holdout', self.held_out)
            thresholds[job.run] = {
                label: choose_threshold(predicted[:, k], known[:, k], rule='youden', sensitivity=0)
                for k, label in enumerate(self.task.labels)
            }
        # A score on pseudo-labels would compare each student with the guesses of its own teacher.
        splits.append([self._labelled(job) for job in self.jobs if job.config.EVAL.PREDICT_TRAIN])
        return [[run._replace(thresholds=thresholds[run.row]) for run in runs] for runs in splits]

    def _labelled(self, job: Job) -> Scored:
        """Return the labelled training images that a run has predicted."""
        records = self.labelled.select(~np.isnan(self.task.scored(self.labelled)).all(axis=1))
        probabilities = self._predicted(job, 'train', records)
        is_known = ~np.isnan(probabilities).any(axis=1)
        records, probabilities = records.select(is_known), probabilities[is_known]
        cases = cases_of(records, self.task, probabilities, name='labelled')
        known = known_of_run(job.folder / 'predictions_train.csv')
        return Scored(job.run, job.seed, cases, 'labelled', known=(known,))

    def _not_predicted(self) -> list[str]:
        """Say how many training images the teacher has not predicted, which are not scored."""
        notes, views = [], self.config.EVAL.VIEWS or self.config.DATA.VIEWS
        groups = {
            'labelled': (self.labelled, 'are not scored'),
            'unlabelled': (self.unlabelled, 'get no pseudo-labels'),
        }
        for name, (records, then) in groups.items():
            lacking = np.isnan(self._predicted(self.jobs[0], 'train', records)).any(axis=1).sum()
            if lacking:
                notes.append(
                    f'{lacking:,} of {len(records):,} {name} images have no prediction and {then}: '
                    f'the runs predict the {views} views (EVAL.VIEWS) of DATA.VIEWS '
                    f'{self.config.DATA.VIEWS}.'
                )
        return notes

    def _more_steps(self) -> list[str]:
        """Say which runs take more steps than the teacher."""
        ratios = {job.run: self.steps[job.run] / self.steps[TEACHER] for job in self.jobs}
        more = [f'{name} {ratio:.1f}' for name, ratio in ratios.items() if ratio > 1.1]
        if not more or self.config.FINETUNE.MODE in PROBES:
            return []
        return [
            f'Steps of training, as multiples of those of the teacher: {", ".join(more)}. They may '
            'explain a difference: --equal-steps gives all runs about the same number.'
        ]

    def _chosen(self, name: str) -> np.ndarray:  # [N, K]
        """Return the pseudo-labels of a student for the unlabelled images."""
        return self._values(self.output / file_of(name), self.unlabelled)


def write_tables(works: Sequence[PseudoLabels], output: Path) -> list[Path]:
    """Write a table of each metric, and a figure of the AUROC by round.

    Args:
        works: Finished runs of each seed.
        output: Folder of the tables.

    Returns:
        The paths of the Markdown files.
    """
    scores = {metric: f'{metric}:{MEANS[2]}' for metric in METRICS}
    how = {'resamples': works[0].config.EVAL.RESAMPLES, 'seed': works[0].config.SEED}
    splits: dict[str, list[Scored]] = {}
    for work in works:
        for runs in work.splits():
            splits.setdefault(runs[0].split, []).extend(runs)
    drawn = pd.concat(
        [
            score_runs(runs, [*scores.values()], **how).assign(group=split)
            for split, runs in splits.items()
        ]
        + [
            pd.DataFrame(lines_of_known(runs, len(works) if len(works) > 1 else 0))
            for runs in splits.values()
        ]
    )
    found = dict.fromkeys(job.run for work in works for job in work.jobs)
    sweep = sweep_of_runs([*found])
    students = [name for name in found if name not in (TEACHER, ALL_LABELS)]
    pairs = [(name, TEACHER if name != TEACHER else '') for name in found]
    pairs += [(later, earlier) for earlier, later in itertools.pairwise(students)]
    notes = [
        f'{split}: {note}'
        for split, runs in splits.items()
        for note in itertools.chain(*notes_about_labels(runs))
    ]
    notes.append(
        'Labelled images are training images: they show how well a run learned their labels.'
    )
    for work in works:
        seed = f'Seed {work.config.SEED}: ' if len(works) > 1 else ''
        notes += [f'{seed}{note}' for note in work.about_pseudo_labels()]
    about_thresholds = "Thresholds are the best ones on held-out patients by Youden's index."
    thresholds = splits['labelled'][0].thresholds.items()
    if lacking := [label for label, value in thresholds if np.isnan(value)]:
        about_thresholds += (
            ' Labels without positives or without negatives there have none, and are not in '
            f'the mean: {", ".join(lacking)}.'
        )
    draws = '{resamples:,} resamples of the patients, seed {seed}'.format(**how)
    pages = []
    for metric, score in scores.items():
        lines = compare(drawn, pairs, score, subsets={}, groups=[*splits])
        if lines:  # without a threshold there are no decisions
            below = notes if metric == 'auroc' else [*notes, about_thresholds]
            options = {'notes': below, 'draws': draws}
            pages.append(write_score(output, f'{TABLE}_{metric}', lines, drawn, sweep, **options))
    ended = ' '.join(dict.fromkeys(work.ended for work in works if work.ended))
    for suffix in ('png', 'pdf'):
        path = output / f'{TABLE}_rounds.{suffix}'
        plot_rounds(path, drawn, [TEACHER, *students], note=ended)
    return pages


def plot_rounds(path: Path, table: pd.DataFrame, runs: Sequence[str], *, note: str = '') -> None:
    """Draw the AUROC by round on each split, with intervals over patients and a dot for each seed.

    `table` is a long table whose groups are splits, and `runs` are its rows by round. The `note`
    stands first below the figure.
    """
    score, splits = f'auroc:{MEANS[2]}', [group for group in table['group'].unique() if group]
    with drawing(path, 3.8) as figure:
        axis, drawn = figure.subplots(), []
        for number, split in enumerate(splits):
            rows = rows_of(table, score, split)
            found = pd.DataFrame([summarise(rows[name]) for name in runs if name in rows])
            rounds = np.array([place for place, name in enumerate(runs) if name in rows])
            if not len(found):
                continue
            places = rounds + 0.06 * (number - (len(splits) - 1) / 2)  # keeps bars apart
            drawn.append(found)
            style = marked(number) | {'markersize': 5, 'linewidth': 1, 'label': split}
            axis.errorbar(places, found['value'], yerr=bars_of(found), **style)
            for place, name in zip(places, (name for name in runs if name in rows), strict=True):
                seeds = rows[name].iloc[:, 0]
                if len(seeds) > 1:
                    axis.plot([place] * len(seeds), seeds, **BY_SEED)
        axis.set_xticks(range(len(runs)), ['teacher', *map(str, range(1, len(runs)))])
        axis.set_xlabel('round')
        axis.set_ylabel(score_title(score))
        axis.grid(axis='y')
        figure.legend(loc='outside upper center', ncols=len(splits))
        seeds = table.loc[table['row'] == TEACHER, 'seed'].nunique()
        dots = f'Dots: each of {seeds} seeds.' if seeds > 1 else 'One seed.'
        note = f'{note} {bars_note(pd.concat(drawn))} {dots} '.lstrip()
        note += 'Labelled images are training images. Splits may have a mean over other labels.'
        add_note(figure, note, table, sweep_of_runs(runs))


def student(number: int) -> str:
    """Return the name of the student of a round, from 1 on: student, student_2, ..."""
    return STUDENT if number == 1 else f'{STUDENT}_{number}'


def file_of(name: str) -> str:
    """Return the name of the file with the pseudo-labels of a student."""
    return f'{TABLE}{name.removeprefix(STUDENT)}.csv'
