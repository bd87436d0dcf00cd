"""Folders of sweep runs as the mains leave them, with made-up figures and no training."""

import csv
import json
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from matplotlib.figure import Figure
from scipy.special import expit

from config import config_text
from data.labels import LABELS
from data.records import DESCRIPTION, write_predictions
from evaluation.metrics import score_table
from logger import json_safe
from sweeps.files import ROOT, Published, Row, Sweep, changed_config, run_folder
from sweeps.results import collect

RARE = 'Fracture'  # has no positive: not scored
SEEDS = [0, 1, 2]
SCORES = {}  # cache
EPOCH_IMAGES = 80  # of a made pre-training
FOLDER = tempfile.TemporaryDirectory()  # of the reference's files
OPTIONS = {
    'simmim': {'BASE': [f'{ROOT}/configs/base/chexpert_pretrain.yaml']},
    'contrastive': {'BASE': [f'{ROOT}/configs/base/chexpert_contrastive.yaml']},
    'finetune': {'BASE': [f'{ROOT}/configs/base/chexpert_finetune.yaml']},
}


@cache
def reference_files() -> dict[str, Path]:
    files = {stage: Path(FOLDER.name) / f'{stage}.yaml' for stage in OPTIONS}
    for stage, file in files.items():
        file.write_text(yaml.safe_dump(OPTIONS[stage]))
    return files


def make_row(name: str, run: str, pretrain: dict | None = None, **more: Any) -> Row:
    more = {'finetune': {}, 'configs': reference_files(), 'pretrain_run': run} | more
    return Row(name=name, run=run, pretrain=pretrain or {}, **more)


def make_sweep(names: list[str], *, key: str = 'MODEL.DROP_RATE', reference: int = 0) -> Sweep:
    rows = tuple(
        make_row(name, f'swept_{i}', {key: name}) if i != reference else make_row(name, 'reference')
        for i, name in enumerate(names)
    )
    return Sweep(
        name='swept',
        path=Path('swept.yaml'),
        title='Masked share',
        keys={'pretrain': [key], 'finetune': []},
        rows=rows,
        reference=rows[reference],
        published=Published('A and B 2020', 'top-1 on ImageNet', {names[0]: 82.8}, 'Other data.'),
    )


def methods_file(folder: Path, **changes: Any) -> Path:
    """A sweep of three methods with a tenth and all of the labels."""
    files = {stage: str(file) for stage, file in reference_files().items()}
    content = {
        'title': 'Method',
        'reference': 'simmim',
        'methods': {
            'simmim': {'pretrain': files['simmim'], 'finetune': files['finetune']},
            'moco': {'pretrain': files['contrastive'], 'finetune': files['finetune']},
            'scratch': {
                'finetune': files['finetune'],
                'finetune_options': {'TRAIN.LAYER_DECAY': 0.9},
            },
        },
        'shares': {0.1: {'TRAIN.EPOCHS': 60}, 1: {'TRAIN.EPOCHS': 20}},
    } | changes
    content = {key: value for key, value in content.items() if value is not None}
    path = folder / 'mine.yaml'
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def saved_figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved from now on."""
    saved, save = [], Figure.savefig

    def keep(figure: Figure, *args: Any, **options: Any) -> None:
        save(figure, *args, **options)
        saved.append(figure)

    monkeypatch.setattr(Figure, 'savefig', keep)
    return saved


def with_rows(sweep: Sweep, **changes: dict[str, Any]) -> Sweep:
    """The sweep with fields of some rows changed, by run."""
    rows = tuple(replace(row, **changes.get(row.run, {})) for row in sweep.rows)
    reference = next(row for row in rows if row.name == sweep.reference.name)
    return replace(sweep, rows=rows, reference=reference)


class MadeRuns:
    """A data set of random labels, and runs that were scored on it.

    Attributes:
        targets: [N, K] of the test split.
        patients: [N].
        paths: [N].
    """

    def __init__(self, folder: Path, *, size: int = 60, level: str = 'study') -> None:
        self.level = level
        self.data, self.output = folder / 'CheXpert-made', folder / 'output'
        rng = np.random.default_rng(0)
        self.targets = (rng.random((size, len(LABELS))) < 0.4).astype(float)
        self.targets[:, LABELS.index(RARE)] = 0
        # Every third patient has two studies; the order is not that of the names.
        numbers = np.repeat(np.arange(size), np.where(np.arange(size) % 3, 1, 2))[:size]
        numbers = rng.permutation(numbers)
        self.patients = [f'patient{n:05d}' for n in numbers]
        self.paths = [
            f'CheXpert-made/test/{p}/study{i}/view1_frontal.jpg'
            for i, p in enumerate(self.patients)
        ]
        image = self.data.parent / self.paths[0]
        image.parent.mkdir(parents=True)
        image.touch()
        with open(self.data / 'test.csv', 'w', newline='') as file:
            writer = csv.writer(file)
            writer.writerow(['Path', *DESCRIPTION, *LABELS])
            for path, row in zip(self.paths, self.targets, strict=True):
                writer.writerow([path, 'Male', 50, 'Frontal', 'AP', *map(int, row)])

    def probabilities(self, strength: float, seed: int) -> np.ndarray:
        """[N, K]; runs are correlated, as real ones are."""
        shared = np.random.default_rng(1).normal(0, 1, self.targets.shape)
        own = np.random.default_rng([2, seed, int(100 * strength)])
        return expit(strength * self.targets + shared + own.normal(0, 0.4, self.targets.shape))

    def scores(self, strength: float, seed: int) -> dict[str, Any]:
        """As in scores.json."""
        key = (len(self.paths), self.level, strength, seed)
        if key not in SCORES:
            SCORES[key] = score_table(
                self.probabilities(strength, seed),
                self.targets,
                [path.rpartition('/')[0] for path in self.paths],
                labels=LABELS,
                level=self.level,
            )
        return json_safe(SCORES[key] | {'views': 'frontal', 'loss': 0.3})

    def add(self, row: Row, seed: int, *, l1: float = 20.0, **finetuning: Any) -> np.ndarray:
        """Write both stages of a row; returns its probabilities."""
        pretraining = run_folder(self.output, row.pretraining, row, seed)
        if row.pretrain is not None and not pretraining.is_dir():
            self.add_pretraining(row, seed, l1=l1)
        return self.add_finetuning(row, seed, **finetuning)

    def add_finetuning(
        self, row: Row, seed: int, *, strength: float = 1.0, finished: bool = True
    ) -> np.ndarray:
        folder = run_folder(self.output, 'finetune', row, seed)
        self._write_run(folder, 'finetune', row.finetune, seed, finished)
        probabilities = self.probabilities(strength, seed)
        if not finished:
            return probabilities
        records = [{'epoch': epoch, 'loss': 0.5, 'score': 0.6} for epoch in (-1, 0, 1)]
        _write_records(folder, records)
        scores = {'test': {'last': None, 'selected': self.scores(strength, seed)}}
        scores['valid'] = scores['test']
        (folder / 'scores.json').write_text(json.dumps(scores))
        file = folder / 'predictions_test.csv'
        # In another order: they are matched by name.
        options = {'paths': self.paths[::-1], 'labels': LABELS, 'source': {}}
        write_predictions(file, probabilities[::-1], **options)
        return probabilities

    def add_pretraining(
        self, row: Row, seed: int, *, l1: float = 20.0, epoch_seconds: float = 10.0
    ) -> None:
        folder = run_folder(self.output, row.pretraining, row, seed)
        self._write_run(folder, row.pretraining, row.pretrain, seed, True)
        speed = {'seconds': epoch_seconds, 'images_per_second': EPOCH_IMAGES / epoch_seconds}
        if row.pretraining == 'contrastive':
            _write_records(folder, [{'epoch': epoch, 'loss': 1.0} | speed for epoch in (0, 1)])
            return
        normalised = row.pretrain.get('MODEL.SIMMIM.TARGET') == 'patch_normalised'
        own = '_given_patch_statistics' if normalised else ''
        records = []
        for epoch, value in ((-1, 60.0), (0, l1 + 10), (1, l1 + seed)):
            records.append({'epoch': epoch, 'loss': value / 100} | (speed if epoch >= 0 else {}))
            for masks, off in (('holdout', -5), ('reference', 0)):
                key = f'{masks}_l1_grey'
                records[-1] |= {f'{key}{own}': value + off, f'{key}_mean': 43.5 + off}
                records[-1] |= {f'{key}_linear': 37.1 + off}
        _write_records(folder, records)

    def _write_run(
        self, folder: Path, stage: str, changes: dict, seed: int, finished: bool
    ) -> None:
        folder.mkdir(parents=True)
        text = _config_text(stage, tuple(changes.items()), self.level)
        text = text.replace('THE_TAG', folder.name).replace('THE_DATA', str(self.data))
        (folder / 'config.yaml').write_text(text)
        record = {
            'stage': stage,
            'command': ['main.py', '--output', str(self.output)],
            'code': 'v1-2-gabc',
            'seed': seed,
            'processes': 1,
            'environment': {'gpus': [], 'packages': {'torch': '2.6'}},
            'data': {'fingerprint': 'f00', 'files': {'train.csv': 'ba5e'}},
            'starts': [{'time': '2020-01-01T00:00:00+00:00'}],
            'finished': '2020-01-01T00:10:00+00:00' if finished else None,
            'seconds': 600.123456789,
        }
        (folder / 'run.json').write_text(json.dumps(record))


def collect_five(folder: Path) -> dict[str, Any]:
    """A row above the reference, one below, one inside the noise with one seed, one missing."""
    made = MadeRuns(folder)
    sweep = make_sweep(['0.1', '0.6', '0.7', '0.8', '0.9'], reference=1)
    strengths = {'0.1': 2.5, '0.6': 1.0, '0.7': 1.01, '0.8': 0.1}
    for row in sweep.rows[:4]:
        for seed in SEEDS[:1] if row.name == '0.7' else SEEDS:
            made.add(row, seed, strength=strengths[row.name], l1=20)
    return collect(sweep, SEEDS, made.output, resamples=200)


def row_of(collected: dict[str, Any], name: str) -> dict[str, Any]:
    return next(row for row in collected['rows'] if row['name'] == name)


@cache
def _config_text(stage: str, changes: tuple[tuple[str, Any], ...], level: str) -> str:
    config = changed_config(reference_files()[stage], stage).clone()
    config.defrost()
    config.DATA.DATA_PATH, config.TAG = 'THE_DATA', 'THE_TAG'
    config.EVAL.LEVEL = level
    config.merge_from_list([word for pair in changes for word in pair])
    return config_text(config)


def _write_records(folder: Path, records: list[dict[str, Any]]) -> None:
    (folder / 'metrics.jsonl').write_text(''.join(f'{json.dumps(r)}\n' for r in records))
