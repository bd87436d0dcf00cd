"""The trainings behind weights, and whether they saw patients that are scored now.

A checkpoint records each training that its weights have been through, with hashes of the patients.
A run that starts from it therefore finds its own patients there, however many runs lie between.
Predictions from which a student learns record the trainings of their model, too.
"""

import base64
import contextlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from config import Config, module_of_option
from engine.run_record import without_home
from system.downloads import FACTS, LINEAGE, MODEL_CONFIG, is_url, local_path, split_key
from system.tool import command_of
from utils import are_weights, name_damaged, read_checkpoint, saved_options

LEARNED = ('train', 'plain', 'whole')  # splits that a run learns from, and does not score
# Options of DATA by which trainings are compared whose patients are unknown.
OPTIONS = ('DATASET', 'DATA_PATH', 'TRAIN_CSV', 'HOLDOUT_FRACTION')
# One training: `run`, its name; `data`, its OPTIONS and SOURCES, or None if they are unknown, as of
# other projects; `patients`, hashes [N] int64, or None; and whether the file is `lost`.
Training = dict[str, Any]


@dataclass
class Lineage:
    """The patients of a run, and the trainings behind the weights that it starts from.

    Attributes:
        config: Options of the run.
        patients: Split -> hashes of its patients (`data.fingerprint.hash_patients`).
        trainings: Trainings behind its weights, the oldest first.
        teachers: Trainings behind the predictions that it learns from.
        warnings: What these may have seen of patients that the run does not learn from.
    """

    config: Config
    patients: Mapping[str, np.ndarray] = field(default_factory=dict)
    trainings: list[Training] = field(default_factory=list)
    teachers: list[Training] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def start_from(self, path: str, checkpoint: Mapping[str, Any], logger: logging.Logger) -> None:
        """Take note of the checkpoint with the weights that are trained or scored, and warn."""
        trainings = trainings_of(path, checkpoint)
        newest, own = trainings[-1] if trainings else None, self._own()
        # A run that resumes is no ancestor of itself, but a model that is evaluated was trained.
        kept = [entry for entry in trainings if not _is_same(entry, own)]
        self.trainings = trainings if self.config.EVAL_MODE else kept
        own = newest if self.config.EVAL_MODE else own
        self._warn(path, self.trainings, newest, own, logger)

    def learn_from(self, predictions: str, logger: logging.Logger) -> None:
        """Take note of a file with predictions that are learned, and warn of its model."""
        found = trainings_of_predictions(predictions)
        self.teachers += found
        self._warn(f'the teacher of {predictions}', found, found[-1], self._own(), logger)

    @property
    def is_known(self) -> bool:
        """Return whether the patients of all trainings behind the model are known."""
        return all(entry['patients'] is not None for entry in (*self.trainings, *self.teachers))

    def contents(self) -> list[Training]:
        """Return the entry of a checkpoint: all trainings behind it, its own last."""
        if self.config.EVAL_MODE:
            return self.trainings
        kept: list[Training] = []
        for entry in (*self.trainings, *self.teachers):
            if not any(_is_same(entry, other) for other in kept):
                kept.append(entry)
        return [*kept, self._own()]

    def _warn(
        self,
        name: str,
        trainings: Sequence[Training],
        newest: Training | None,
        own: Training | None,
        logger: logging.Logger,
    ) -> None:
        now = (self.patients, self.config.DATA)
        for line in seen_patients(name, trainings, *now, newest=newest, own=own):
            if line not in self.warnings:
                self.warnings.append(line)
                logger.warning(line)

    def _own(self) -> Training:
        learned = (self.patients[split] for split in LEARNED if split in self.patients)
        return training(self.config, next(learned, None))


def training(config: Config, patients: np.ndarray | None) -> Training:
    """Describe the training of a run with these options and patients."""
    sources = [{'dataset': str(entry['dataset'])} for entry in config.DATA.SOURCES]
    return {
        'run': f'{config.MODEL.NAME}/{config.TAG}',
        'data': {key: config.DATA[key] for key in OPTIONS} | {'SOURCES': sources},
        'patients': None if patients is None else torch.from_numpy(patients.astype(np.int64)),
        'lost': False,
    }


def _unknown(path: str | Path, *, lost: bool) -> Training:
    """Describe the training of weights of another project, or of a file that is lost."""
    return {'run': without_home(str(path)), 'data': None, 'patients': None, 'lost': lost}


def trainings_of(
    path: str | Path, checkpoint: Mapping[str, Any], known: Sequence[str] = ()
) -> list[Training]:
    """Return the trainings behind a checkpoint, its own last.

    A checkpoint without a record names the weights that it started from in its options. `known`
    are the files that were read on the way to it.

    Raises:
        ValueError: If the record is damaged. The message names the file.
    """
    with name_damaged(path):
        if LINEAGE in checkpoint:
            return [_checked(entry) for entry in checkpoint[LINEAGE]]
        trained = saved_options(dict(checkpoint))
    if trained is None:
        return _trainings_of_export(path) or [_unknown(path, lost=False)]
    given, older = trained.MODEL.RESUME or trained.PRETRAINED, []
    file = str(Path(split_key(given)[0]).resolve()) if given else ''
    if given and file not in known:
        older = _trainings_of_file(given, [*known, file])
    return [*older, training(trained, None)]


def _trainings_of_export(path: str | Path) -> list[Training]:
    """Return the trainings that the file beside exported weights states, whose patients it lacks.

    Raises:
        ValueError: If the record is damaged. The message names the file.
    """
    file = local_path(path).with_name(MODEL_CONFIG)
    if not file.is_file():
        return []
    with name_damaged(file):
        facts = json.loads(file.read_text('utf-8')).get(FACTS) or {}
        return [
            _checked(entry | {'patients': None, 'lost': False}) for entry in facts.get(LINEAGE, [])
        ]


def trainings_of_predictions(file: str | Path) -> list[Training]:
    """Return the trainings behind the model that made predictions, its own last.

    The JSON file beside them records these, or names a checkpoint that does.

    Raises:
        ValueError: If the record is damaged. The message names the file.
    """
    about, description = Path(file).with_suffix('.json'), None
    with contextlib.suppress(OSError, ValueError, RecursionError):
        description = json.loads(about.read_bytes())
    # Programs that are not ours may write anything.
    description = description if isinstance(description, dict) else {}
    found: list[Training] = []
    if LINEAGE in description:
        with name_damaged(about):
            found = [_checked(_decoded(entry)) for entry in description[LINEAGE]]
    elif given := description.get('checkpoint'):
        found = _trainings_of_file(str(given), [])
    return found or [_unknown(file, lost=False)]


def as_json(trainings: Sequence[Training]) -> list[dict[str, Any]]:
    """Return trainings for a JSON file: the hashes of patients are 8 bytes each, in base64."""
    texts = []
    for patients in (entry['patients'] for entry in trainings):
        given = patients is not None
        texts.append(base64.b64encode(patients.numpy().astype('<i8')).decode() if given else None)
    return [entry | {'patients': text} for entry, text in zip(trainings, texts, strict=True)]


def _decoded(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return an entry of `as_json` with the hashes as a tensor."""
    patients = entry['patients']
    if patients is not None:
        hashes = np.frombuffer(base64.b64decode(patients, validate=True), '<i8')
        patients = torch.from_numpy(hashes.astype(np.int64))
    return {**entry, 'patients': patients}


def _trainings_of_file(path: str, known: Sequence[str]) -> list[Training]:
    """Return the trainings behind a file, or say that it is lost."""
    if not is_url(path) and Path(split_key(path)[0]).is_file():
        with contextlib.suppress(ValueError):
            return trainings_of(path, read_checkpoint(path), known)
    return [_unknown(path, lost=True)]


def seen_patients(
    path: str,
    trainings: Iterable[Training],
    patients: Mapping[str, np.ndarray],
    data: Mapping[str, Any],
    *,
    newest: Training | None,
    own: Training | None,
) -> list[str]:
    """Return warnings that weights may have seen patients that a run holds out or scores.

    Args:
        path: File with the weights.
        trainings: Trainings behind them.
        patients: Split -> hashes of the patients of the run.
        data: Options DATA of the run.
        newest: Training that wrote the file.
        own: Training of the run itself, or of the checkpoint that it evaluates, whose options need
            not be compared with those of the run.
    """
    scored = {split: numbers for split, numbers in patients.items() if split not in LEARNED}
    # Held-out images with other masks are the same images.
    scored.pop('reference', None)
    # With --eval, the training of the checkpoint has the patients that the run does not load.
    known = [*patients.values()]
    known += [own['patients'].numpy()] if own and own['patients'] is not None else []
    lines = []
    for entry in trainings:
        name = path if entry is newest else f'{entry["run"]}, from which {path} comes,'
        if entry['lost']:
            lines.append(f'{name} cannot be read, so the patients of its training are unknown')
        if entry['data'] is None:
            continue
        if entry['patients'] is not None:
            learned = entry['patients'].numpy()
            counts = {split: np.isin(numbers, learned).sum() for split, numbers in scored.items()}
            found = [
                f'{count:,} of the {len(scored[split]):,} patients of {split}'
                for split, count in counts.items()
                if count
            ]
            if found:
                lines.append(
                    f'{name} was trained with {", ".join(found)}, so their scores are too high'
                )
            # Common patients show that both runs name patients alike, so that nobody is missed.
            others = known if entry is not own else ()
            if found or any(np.isin(numbers, learned).any() for numbers in others):
                continue
        if entry is not own:
            told = module_of_option('PRETRAINED').seen_patients(name, entry['data'], data)
            if entry['patients'] is not None and not told:  # an export may give people new names
                told = [
                    f'{name} was trained on {entry["data"]["DATA_PATH"]}, which names none of the '
                    'patients of this run. If it shows some of them under other names, the scores '
                    f'are too high: {command_of("scripts/check_data.py")} finds X-rays in both, if '
                    'you have these images'
                ]
            lines += told
    return [*dict.fromkeys(lines)]


def _is_same(entry: Training, own: Training) -> bool:
    """Return whether two entries are of one run, whose patients have not changed."""
    # The folder may have another name on each machine.
    data, now = ((each['data'] or {}) | {'DATA_PATH': ''} for each in (entry, own))
    if (entry['run'], data) != (own['run'], now):
        return False
    before, now = entry['patients'], own['patients']
    return before is None or (now is not None and torch.equal(before, now))


def _checked(entry: Mapping[str, Any]) -> Training:
    """Return an entry of a file, whose values may be of any type, with values of the right ones."""
    given, patients = entry['data'], entry['patients']
    if patients is not None and not (
        are_weights({'patients': patients}) and patients.dtype == torch.int64 and patients.ndim == 1
    ):
        raise ValueError('the hashes of patients must be whole numbers')
    data = given
    if given is not None:
        data = {key: str(given[key]) for key in OPTIONS}
        data['HOLDOUT_FRACTION'] = float(given['HOLDOUT_FRACTION'])
        data['SOURCES'] = [{'dataset': str(source['dataset'])} for source in given['SOURCES']]
    lost = bool(entry['lost'])
    return {'run': str(entry['run']), 'data': data, 'patients': patients, 'lost': lost}
