"""Rounds of pseudo-labels: predict unlabelled patients, keep the confident, train anew, score.

Round 0 learns from the real labels of the subset alone. Each round after it learns from these and
from the pseudo-labels that the last round's model is confident of, from the same start. A round
that does not raise the held-out score is the last, and the one before it is the best.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from checksums import sha256
from config import Config, build_parser, get_config
from data.chexpert import Records, select_views, split_holdout
from data.labels import scored_targets, task_labels
from data.predictions import (
    check_task,
    look_up,
    read_predictions,
    row_names,
    write_predictions,
)
from data.pseudo_labels import unlabelled_records
from data.splits import read_split, training_records
from evaluation.confidence import check_choice, choose_values
from evaluation.metrics import selection_score
from logger import json_safe
from provenance import read_record
from reporting import score_probabilities
from sweeps.plan import Job, share_of_steps
from sweeps.runner import Runner

LOGS = 'logs'  # folder below the output
ALL_LABELS = 'all_labels'  # tag of the run that learns from every real label


@dataclass(frozen=True)
class Setup:
    """What all rounds share.

    Attributes:
        cfg: YAML of fine-tuning, whose DATA.TRAIN_FRACTION or TRAIN_IMAGES are the real labels.
        data: --data-path.
        output: folder of all rounds.
        pretrained: checkpoint that every round starts from, or ''.
        options: KEY VALUE pairs put over the YAML's.
        processes: of a run; above 1 it is started by torchrun.
        keep: see `evaluation.confidence.choose_values`.
        confidence: likewise.
        equal_steps: whether runs with more pictures have fewer epochs, so that none is better for
            its greater number of steps alone.
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
        """The run of a round: an ordinary one of main_finetune.py.

        Args:
            number: of the round; 0 learns from the real labels of the subset alone.
            growth: how many times the pictures of round 0 it learns from.
        """
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
        config = get_config(build_parser('finetune').parse_args(arguments))
        if self.equal_steps and growth != 1:
            arguments += _fewer_epochs(config, growth)
            config = get_config(build_parser('finetune').parse_args(arguments))
        if self.processes > 1:
            steps = share_of_steps(config, self.processes)
            arguments += ['--accumulation-steps', str(steps)]
            config = get_config(build_parser('finetune').parse_args(arguments))
        return Job(
            stage='finetune',
            run=tag,
            seed=config.SEED,
            folder=Path(config.OUTPUT) / config.MODEL.NAME / tag,
            arguments=['main_finetune.py', *arguments],
            config=config,
            processes=self.processes,
            weights=self.pretrained,
        )


def _fewer_epochs(config: Config, growth: float) -> list[str]:
    """Options, after others, with which so many times the pictures take about as many steps."""
    epochs = {key: config.TRAIN[key] / growth for key in ('EPOCHS', 'WARMUP_EPOCHS')}
    least = {'EPOCHS': 1, 'WARMUP_EPOCHS': 0}
    return [
        word
        for key, value in epochs.items()
        for word in (f'TRAIN.{key}', str(max(least[key], round(value))))
    ]


class Patients:
    """The training patients of a setup: held out, labelled, unlabelled.

    Args:
        config: of round 0.

    Raises:
        ValueError: if the CSV cannot be read, no patient is held out, or held-out pictures of the
            views that are learned from are not predicted.
    """

    def __init__(self, config: Config) -> None:
        config = config.clone()
        config.defrost()
        config.DATA.CACHE_DIR = ''  # the CSV files are where the data are
        if not config.DATA.HOLDOUT_FRACTION:
            raise ValueError(
                'DATA.HOLDOUT_FRACTION must be above 0, got 0.0: on held-out patients is chosen '
                'which predictions are kept, and which round'
            )
        learned, scored = config.DATA.VIEWS, config.EVAL.VIEWS or config.DATA.VIEWS
        if scored not in (learned, 'all'):
            raise ValueError(
                f"EVAL.VIEWS must be '', 'all' or as DATA.VIEWS ({learned!r}), got {scored!r}: on "
                'held-out pictures of all views that are learned from is chosen which predictions '
                'are kept'
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
        """What the run in a folder predicts of some records, [N, K]; NaN where it does not."""
        file = folder / f'predictions_{split}.csv'
        predictions = read_predictions(file)
        check_task(file, self.config.DATA.TASK)
        return look_up(predictions, row_names(predictions, records.path), self.labels)

    def held_out_score(self, folder: Path) -> float:
        """The mean AUROC by EVAL.SELECT of a run's held-out predictions."""
        views = self.config.EVAL.VIEWS or self.config.DATA.VIEWS
        records = select_views(self.held_out, views)
        probabilities = self.predicted(folder, 'holdout', records)
        table = score_probabilities(self.config, probabilities, self.real(records), records.study)
        return selection_score(table, self.config.EVAL.SELECT)


@dataclass
class Rounds:
    """The rounds of a setup, run one after the other; finished ones are left alone.

    Attributes:
        setup: what they share.
        say: takes a line on the progress.
        jobs: the rounds that were run, by number.
        scores: their held-out scores.
        best: number of the best one.
        reason: why there is no further round.
        reference: the run on all labels, if there is one.
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
        self.setup.round(1)  # options that no round can work with are refused before any is run
        self.patients = Patients(self.setup.round(0).config)
        self.real_pictures = len(training_records(self.patients.config, self.patients.train))

    def run(self, rounds: int, *, after_round: Callable[['Rounds'], None]) -> int:
        """Run up to so many rounds after round 0; returns 0, or the code of a run that did not end.

        Args:
            rounds: 1 or more.
            after_round: called after each, and once it is known why there is no other.
        """
        for number in range(rounds + 1):
            pictures = self._choose(number) if number else 0
            if number and not pictures:
                self.reason = f'no prediction of round {number - 1} is confident enough'
                break
            job = self.setup.round(number, growth=1 + pictures / self.real_pictures)
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
        """Run what learns from all real labels; returns 0 or its code."""
        pictures = len(training_records(self.setup.all_labels().config, self.patients.train))
        job = self.setup.all_labels(growth=pictures / self.real_pictures)
        code = self._run_job(job)
        self.reference = None if code else job
        return code

    def _run_job(self, job: Job) -> int:
        file = job.config.DATA.PSEUDO_LABELS
        record = read_record(job.folder) or {}
        known = record.get('data', {}).get('files', {}).get('DATA.PSEUDO_LABELS')
        if known and known != sha256(Path(file)):
            raise ValueError(f'{job.folder} was trained on another {file}: {_OTHER}')
        slots, logs = [dict[str, str]()], self.setup.output / LOGS
        return Runner([job], slots, self.setup.processes, logs, self.say).run()

    def _choose(self, number: int) -> int:
        """Write the pseudo-labels of a round, if there are any; returns of how many pictures."""
        setup, patients, teacher = self.setup, self.patients, self.jobs[number - 1]
        # Held-out pictures of the views that are learned from: those that are to be labelled.
        held_out = select_views(patients.held_out, patients.config.DATA.VIEWS)
        values, cuts = choose_values(
            patients.predicted(teacher.folder, 'holdout', held_out),
            patients.real(held_out),
            patients.predicted(teacher.folder, 'train', patients.unlabelled),
            keep=setup.keep,
            confidence=setup.confidence,
        )
        kept, file = ~np.isnan(values).all(axis=1), setup.file(number)
        if not kept.any():
            return 0
        if file.exists():
            before = read_predictions(file, allow_empty=True)
            names = row_names(before, patients.unlabelled.path)
            if not np.array_equal(look_up(before, names, patients.labels), values, equal_nan=True):
                raise ValueError(f'{file} holds other pseudo-labels than are chosen now: {_OTHER}')
            return int(kept.sum())
        by_label = {
            label: {'positive': asdict(positive), 'negative': asdict(negative)}
            for label, (positive, negative) in zip(patients.labels, cuts, strict=True)
        }
        source = {
            'task': patients.config.DATA.TASK,
            'teacher': teacher.run,
            'predictions': sha256(teacher.folder / 'predictions_train.csv'),
            'keep': setup.keep,
            'confidence': setup.confidence,
            'labels': by_label,
        }
        write_predictions(
            file,
            values[kept],
            paths=patients.unlabelled.path[kept],
            labels=patients.labels,
            source=json_safe(source),
        )
        return int(kept.sum())


_OTHER = (
    'choose another --output, or give the --keep and --confidence that the rounds there were '
    'run with'
)
