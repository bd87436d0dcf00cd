"""Maps of trained runs: each image is explained by a run that did not train on its patient."""

import json
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn

from config import RECIPE, Config, config_changes, config_text, scored_steps
from data.fingerprint import patient_numbers
from data.images.files import full_size
from data.loader import XrayDataset
from data.tables.chexpert import SPLITS, open_data_set
from data.tables.reading import data_root, scored_images
from data.tables.records import task_of
from data.transforms import EvalTransform
from engine.lineage import Training, trainings_of
from engine.run_record import known_record
from evaluation.inference import load_classifier
from evaluation.regions.scores import PlacedMap, View, case_rng
from evaluation.regions.sources import OWN, Case, MapSource, find_names
from evaluation.saliency import label_maps, map_method, map_title, reason_without_maps
from models.build import build_model
from utils import read_checkpoint, selected_checkpoint

RANDOM_WEIGHTS, OTHER_LABEL = 'random weights', 'another label'
FOLD_TABLES = {'DATA.TRAIN_CSV', 'DATA.VALID_CSV'}  # in which the folds of one model differ
FOLD = re.compile(r'_fold\d+\Z')  # end of the name of the folder of a run


class Trained(NamedTuple):
    """A fine-tuned checkpoint and its options."""

    checkpoint: Path
    config: Config


@dataclass(frozen=True)
class Found:
    """An image in one of the splits of a run."""

    run: int
    split: str
    position: int
    patient: str


class RunMaps(MapSource):
    """Maps of a model, which is one run or the runs of several folds.

    Args:
        runs: Runs that differ in their folds alone (`folds_of_one_model`).
        name: Name in tables.
        device: Where the model computes.
        seed: Seed of the random weights and of the choice of another label.
        method: Kind of maps, see `evaluation.saliency.label_maps`.
    """

    kinds = (OWN, RANDOM_WEIGHTS, OTHER_LABEL)

    def __init__(
        self, runs: Sequence[Trained], name: str, *, device: torch.device, seed: int, method: str
    ) -> None:
        super().__init__(name)
        self.runs, self.device, self.seed, self.method = runs, device, seed, method
        self.labels = task_of(runs[0].config).labels
        self.thresholds = thresholds_of([run.checkpoint.parent for run in runs])
        self.found: dict[str, Found] = {}
        self._loaded: tuple[int, nn.Module, nn.Module] | None = None
        for run in runs:
            if 'lung_crop' in scored_steps(run.config):
                raise ValueError(
                    f"{run.checkpoint}: DATA.PREPROCESS 'lung_crop' cuts a part out of each image, "
                    'and where it lay is not kept, so that its maps cannot be laid on regions'
                )

    def find(self, cases: Sequence[Case], absent: Sequence[Case] = ()) -> set[Case]:
        marked = {*(path for path, _ in cases)}
        seen = dict.fromkeys(path for path, _ in (*cases, *absent))
        for number in range(len(self.runs)):
            for path, found, is_seen in self._find_in(number, [*seen]):
                self.patients[path] = found.patient
                seen[path] = seen[path] or is_seen
                if not is_seen:
                    self.found.setdefault(path, found)
        lost = [path for path in seen if path in marked and path not in self.found]
        for paths, reason in (
            ([path for path in lost if seen[path]], 'the model was trained on their patients'),
            ([path for path in lost if not seen[path]], 'the run has no such images'),
        ):
            if paths:
                self._note(
                    f'{len(paths)} of {len(marked)} images with a region are not scored, because '
                    f'{reason}, such as {paths[0]}'
                )
        lacking = dict.fromkeys(label for _, label in cases if label not in self.labels)
        if lacking:
            self._note(f'it does not predict, so not scored: {", ".join(lacking)}')
        predicted = [case for case in cases if case[1] in self.labels]
        predicted += [case for case in absent if case[1] in self.thresholds]
        return {case for case in predicted if case[0] in self.found}

    def maps(self, path: str, label: str) -> dict[str, PlacedMap]:
        found = self.found[path]
        config, k = self.runs[found.run].config, self.labels.index(label)
        model, random_model = self._models(found.run)
        image, view = self._input(path)
        wanted = {OWN: (model, k), RANDOM_WEIGHTS: (random_model, k)}
        others = [other for other in range(len(self.labels)) if other != k]
        if others and map_method(model, self.method).depends_on_label:
            other = case_rng(path, label, self.seed).integers(len(others))
            wanted[OTHER_LABEL] = model, others[other]
        return {
            kind: PlacedMap(
                label_maps(config, source, image, number, self.method)[0].float().cpu().numpy(),
                view,
            )
            for kind, (source, number) in wanted.items()
        }

    @property
    def title(self) -> str:
        return map_title(self._models(0)[0], self.method)

    def marks(self, path: str, label: str) -> bool:
        return bool(self._probabilities(path)[self.labels.index(label)] >= self.thresholds[label])

    def image(self, path: str) -> Image.Image | None:
        found = self.found[path]
        return self._datasets[found.run][found.split].image(found.position)

    def order(self, paths: Sequence[str]) -> list[str]:
        return sorted(paths, key=lambda path: self.found[path].run)

    @cached_property
    def _datasets(self) -> list[dict[str, XrayDataset]]:
        """The images of each split of each run."""
        return [read_datasets(run.config) for run in self.runs]

    def _find_in(self, number: int, paths: Sequence[str]) -> list[tuple[str, Found, bool]]:
        """Find images in the splits of a run, and return whether it trained on their patients."""
        run, datasets = self.runs[number], self._datasets[number]
        trainings = trainings_of(run.checkpoint, read_checkpoint(run.checkpoint))
        learned = trainings[-1]['patients']
        if learned is None:  # of an older checkpoint: all patients of its table
            self._note(
                f'{run.checkpoint} does not say with which patients it was trained, so those of '
                'all images of train are left out'
            )
            known = datasets['train'].records.patient if 'train' in datasets else ()
            learned = patient_numbers(run.config.DATA.DATASET, known)
        else:
            learned = learned.numpy()
        found = []
        for split, dataset in datasets.items():
            records = dataset.records
            places = find_names(paths, records.path, f'{records.root / records.csv}')
            for path, place in zip(paths, places.tolist(), strict=True):
                if place >= 0:
                    found.append((path, Found(number, split, place, records.patient[place])))
        patients = [entry.patient for _, entry in found]
        numbers = patient_numbers(run.config.DATA.DATASET, patients)
        for name, count in seen_by(trainings[:-1], numbers):
            self._note(
                f'{name}, from which the training started, had seen {count} patients with regions'
            )
        is_seen = np.isin(numbers, learned).tolist()
        return [(*pair, seen) for pair, seen in zip(found, is_seen, strict=True)]

    def _note(self, text: str) -> None:
        """Add a note, once for all folds."""
        if (note := f'{self.name}: {text}.') not in self.notes:
            self.notes.append(note)

    def _models(self, number: int) -> tuple[nn.Module, nn.Module]:
        """Return the model of a run, and the same model with random weights."""
        if self._loaded is None or self._loaded[0] != number:
            checkpoint, config = self.runs[number]
            self._loaded = None  # two models need more memory than one
            model = load_classifier(config, checkpoint, self.device, logging.getLogger('localise'))
            if lacking := reason_without_maps(model, self.method):
                raise ValueError(f'{checkpoint} has {lacking}')
            with torch.random.fork_rng():
                torch.manual_seed(self.seed)
                outputs = len(model.head.weight)
                untrained = build_model(config, is_pretrain=False, num_outputs=outputs)
            self._loaded = number, model.eval(), untrained.to(self.device).eval()
        return self._loaded[1:]

    def _input(self, path: str) -> tuple[torch.Tensor, View]:
        """Return an image as the model sees it, [1, C, S, S], and the part that this shows."""
        transform = EvalTransform(self.runs[self.found[path].run].config)
        image = transform.preprocess(self.image(path))
        pixels = torch.from_numpy(transform.normalize(transform.square(image)))
        return pixels[None].to(self.device), view_of(transform, image)

    @lru_cache(maxsize=1)  # noqa: B019 - the labels of one image follow each other
    @torch.no_grad()
    def _probabilities(self, path: str) -> np.ndarray:  # [K]
        model, _ = self._models(self.found[path].run)
        task = task_of(self.runs[0].config)
        logits = task.logits(model(self._input(path)[0]).float()).cpu().numpy()
        return task.probabilities(logits)[0]


def seen_by(trainings: Sequence[Training], numbers: np.ndarray) -> list[tuple[str, int | str]]:
    """Return the trainings that had seen some of these patients, and how many.

    Args:
        trainings: Result of `trainings_of`.
        numbers: Patients, `patient_numbers`.
    """
    found: list[tuple[str, int | str]] = []
    for entry in trainings:
        count = 'an unknown number of'
        if entry['patients'] is not None:
            count = len({*numbers[np.isin(numbers, entry['patients'].numpy())].tolist()})
        if count:
            found.append((entry['run'], count))
    return found


def thresholds_of(folders: Sequence[Path]) -> dict[str, float]:
    """Return the thresholds in the report of a run, label -> threshold; {} with several folds.

    They decide whether the model marks a region in an image without one.
    """
    file = folders[0] / 'report.json'
    if len(folders) > 1 or not file.is_file():
        return {}
    report = json.loads(file.read_text('utf-8'))
    scored = {part['name']: part for part in report['sets']}[report['headline']['set']]
    known = {part['label']: part['threshold'] for part in scored['labels']}
    return {label: value for label, value in known.items() if value is not None}


def view_of(transform: EvalTransform, image: Image.Image) -> View:
    """Return which part of a preprocessed image a transform shows."""
    height, width = full_size(image)
    box = transform.view(image).box
    return View(box.top / height, box.left / width, box.height / height, box.width / width)


def read_datasets(config: Config) -> dict[str, XrayDataset]:
    """Open the images of all splits of a config, as they are scored."""
    data_set, found = open_data_set(config, data_root(config, logging.getLogger('localise'))), {}
    for split in SPLITS:
        records = data_set.read(split, labels=(), optional=True, look_up='none')
        if records is not None:
            records = scored_images(config, records, logging.getLogger('localise'))
            found[split] = XrayDataset(records, EvalTransform(config), seed=0)
    if not found:
        raise ValueError(f'DATA.DATA_PATH {config.DATA.DATA_PATH} has no images of {SPLITS}')
    return found


def checkpoint_of(run: Path) -> Path:
    """Return the selected checkpoint of a run folder, or the checkpoint that was given."""
    if not run.is_dir():
        return run
    checkpoint = selected_checkpoint(run)
    if checkpoint is None:
        raise ValueError(f'--run: {run} has no checkpoint')
    return checkpoint


def told_of_unfinished(checkpoints: Iterable[Path]) -> list[str]:
    """Say which runs have begun and not finished."""
    records = {each: known_record(each.parent) for each in checkpoints}
    return [
        f'The run {each.parent} has not finished: {each.name} is scored, and not what it would '
        'have selected at its end.'
        for each, record in records.items()
        if record and record.get('finished') is None
    ]


def folds_of_one_model(runs: Sequence[Trained]) -> list[list[Trained]]:
    """Group runs that differ in the patients of their fold alone."""
    groups: list[list[Trained]] = []
    for run in runs:
        for group in groups:
            texts = (config_text(each.config) for each in (group[0], run))
            keys = {change.partition(':')[0] for change in config_changes(*texts, *RECIPE)}
            if keys and keys <= FOLD_TABLES:
                group.append(run)
                break
        else:
            groups.append([run])
    return groups


def run_names(groups: Sequence[Sequence[Trained]]) -> list[str]:
    """Name each model by the folder of its run, or of several folds without their number."""
    names = []
    for group in groups:
        name = group[0].checkpoint.absolute().parent.name
        names.append(FOLD.sub('', name) if len(group) > 1 else name)
    if len({*names}) < len(names):
        names = [f'{name} ({i})' for i, name in enumerate(names, start=1)]
    return names
