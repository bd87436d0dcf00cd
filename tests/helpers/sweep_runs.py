"""Folders of sweep runs as the mains leave them, with made-up figures and no training."""

import csv
import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy.special import expit

from config import config_text, default_config
from data.tables.chexpert import DESCRIPTION
from data.tables.labels import LABELS
from data.tables.predictions import write_predictions
from evaluation.metrics import score_table
from logger import json_safe
from sweeps.files import ROOT, Row, Sweep, load_sweep, run_folder

RARE = 'Fracture'  # has no positive: not scored
SEEDS = [0, 1, 2]
SEED = 987_654  # stands for the seed of a run
FOLDER = tempfile.TemporaryDirectory()  # of the reference's files
OPTIONS = {
    'simmim': {'BASE': [f'{ROOT}/configs/base/chexpert_pretrain.yaml']},
    'contrastive': {'BASE': [f'{ROOT}/configs/base/chexpert_contrastive.yaml']},
    'finetune': {'BASE': [f'{ROOT}/configs/base/chexpert_finetune.yaml']},
}


@cache
def reference_files() -> dict[str, Path]:
    files = {stage: Path(FOLDER.name) / f'{stage}__reference.yaml' for stage in OPTIONS}
    for stage, file in files.items():
        file.write_text(yaml.safe_dump(OPTIONS[stage]))
    return files


def ablation_file(folder: Path, rows: dict[str, Any], **changes: Any) -> Path:
    """A sweep file with these rows."""
    files = reference_files()
    content = {
        'title': 'Masked share',
        'reference': {'pretrain': str(files['simmim']), 'finetune': str(files['finetune'])},
        'rows': rows,
    } | changes
    path = folder / 'swept.yaml'
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def make_sweep(folder: Path, names: list[str], *, reference: int = 0, **changes: Any) -> Sweep:
    """An ablation with these rows, one of which changes nothing."""
    rows = {
        name: {} if i == reference else {'pretrain': {'MODEL.DROP_RATE': i / 10}}
        for i, name in enumerate(names)
    }
    return load_sweep(ablation_file(folder, rows, **changes))


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


class MadeRuns:
    """A data set of random labels, and runs that were scored on it.

    Attributes:
        targets: [N, K] of the test split.
        patients: [N].
        paths: [N].
    """

    def __init__(self, folder: Path, *, level: str = 'study', size: int = 120) -> None:
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

    def scores(self, probabilities: np.ndarray) -> dict[str, Any]:
        """As in scores.json."""
        studies = [path.rpartition('/')[0] for path in self.paths]
        table = score_table(probabilities, self.targets, studies, labels=LABELS, level=self.level)
        return json_safe(table | {'views': 'frontal'})

    def add(
        self, row: Row, seed: int, *, strength: float = 1.0, finished: bool = True
    ) -> np.ndarray:
        """Write both stages of a row; returns its probabilities."""
        if row.pretraining and not run_folder(self.output, row.pretraining, row, seed).is_dir():
            self.add_pretraining(row, seed)
        folder = run_folder(self.output, 'finetune', row, seed)
        self._write_run(folder, 'finetune', row.changes['finetune'], seed, finished)
        probabilities = self.probabilities(strength, seed)
        if not finished:
            return probabilities
        _write_records(folder, [{'epoch': 0, 'score': strength / 10}, {'epoch': 1, 'score': None}])
        scores = {'test': {'last': None, 'selected': self.scores(probabilities)}}
        (folder / 'scores.json').write_text(json.dumps(scores))
        file = folder / 'predictions_test.csv'
        # In another order: they are matched by name.
        options = {'paths': self.paths[::-1], 'labels': LABELS, 'source': {}}
        write_predictions(file, probabilities[::-1], **options)
        return probabilities

    def add_pretraining(self, row: Row, seed: int) -> None:
        """A pre-training of two epochs with 80 images each."""
        folder, stage = run_folder(self.output, row.pretraining, row, seed), row.pretraining
        self._write_run(folder, stage, row.changes[stage], seed, True)
        records = [{'epoch': n, 'seconds': 10.0, 'images_per_second': 8.0} for n in (0, 1)]
        if stage == 'simmim':
            records[-1]['reference_l1_grey'] = 20.0 + seed
        _write_records(folder, records)

    def _write_run(
        self, folder: Path, stage: str, changes: dict, seed: int, finished: bool
    ) -> None:
        folder.mkdir(parents=True)
        text = _config_text(stage, tuple(changes.items()), self.level)
        text = text.replace('THE_TAG', folder.name).replace('THE_DATA', str(self.data))
        text = text.replace(f'SEED: {SEED}', f'SEED: {seed}')
        (folder / 'config.yaml').write_text(text)
        record = {
            'stage': stage,
            'code': 'v1-2-gabc',
            'seed': seed,
            'processes': 1,
            'data': {'fingerprint': 'f00', 'files': {'train.csv': 'ba5e'}},
            'finished': '2020-01-01T00:10:00+00:00' if finished else None,
        }
        (folder / 'run.json').write_text(json.dumps(record))


@cache
def _config_text(stage: str, changes: tuple[tuple[str, Any], ...], level: str) -> str:
    config = default_config()
    config.merge_from_file(str(reference_files()[stage]))
    config.DATA.DATA_PATH, config.TAG = 'THE_DATA', 'THE_TAG'
    config.EVAL.LEVEL, config.SEED = level, SEED
    config.merge_from_list([word for pair in changes for word in pair])
    return config_text(config)


def _write_records(folder: Path, records: list[dict[str, Any]]) -> None:
    (folder / 'metrics.jsonl').write_text(''.join(f'{json.dumps(r)}\n' for r in records))
