"""Score the final models of a fine-tuning run, and write scores and predictions to its folder."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from torch.utils.data import DataLoader

from config import (
    PROBES,
    Config,
    config_changes,
    config_text,
    module_of_option,
    scored_steps,
    value_at,
)
from data.images.views import views_warning
from data.loader import Loaders
from data.tables.predictions import write_predictions
from data.tables.reading import SCORED_SPLITS
from data.tables.records import task_of
from engine.lineage import as_json
from engine.run import Run
from engine.run_record import (
    code_version,
    files_read,
    known_record,
    note_evaluation,
)
from evaluation.inference import predict, score
from evaluation.metrics import describe_scores
from evaluation.run_facts import KNOWN, ON_VALID, Known
from evaluation.scored_run import chosen_on, known_of, patients_of
from logger import json_safe
from system import distributed
from system.downloads import LINEAGE
from system.files import replace_file, sha256
from system.tool import command_of
from utils import trained_config


class FinalScores:
    """Collects the scores and predictions of a run, and writes them.

    With REPORT.WRITE, the module of this option writes the report (`evaluation.report.run_report`).
    """

    def __init__(self, run: Run, loaders: Loaders) -> None:
        self.run, self.task = run, task_of(run.config)
        self.suffix = '_eval' if run.config.EVAL_MODE else ''
        self.loaders = loaders
        self.scored = present({name: getattr(loaders, name) for name in SCORED_SPLITS})
        self.trained: Config | None = None  # options of the training of the scored model
        self.chosen_on = ''  # what chose its epoch, see `chosen_on`; '' for a probe
        self.looks = 0  # evaluations (--eval) of its run, with this one
        self.patients: dict[str, list[str]] = {}  # of each split
        self.known = Known()  # what is recorded beside the predictions
        self.table: dict[str, dict[str, Any]] = {}
        self.values: dict[str, np.ndarray] = {}  # logits of the images

    def score(self, name: str, model: nn.Module, **facts: Any) -> None:
        """Score the predictions of a model on SCORED_SPLITS under this name.

        `facts` are further entries of scores.json, such as what selected the checkpoint.
        """
        for split, loader in self.scored.items():
            self.values[split] = predict(self.run.config, self.run.device, model, loader)
            scores = score(self.run.config, self.values[split], loader)
            self.run.logger.info(f'{split}, {name} checkpoint: {describe_scores(scores)}')
            self.table.setdefault(split, {})[name] = scores | facts

    def write(self, model: nn.Module, source: str) -> None:
        """Write all scores, and the predictions and the report of a model.

        `source` is its checkpoint, or the kind of probe.
        """
        run = self.run
        others = present({'holdout': self.loaders.holdout, 'train': self.loaders.whole})
        for split, loader in others.items():  # in the same order on all ranks
            self.values[split] = predict(self.run.config, self.run.device, model, loader)
        self.trained = run.config if source in PROBES else trained_config(source)
        is_main = distributed.is_main()
        for split, loader in self.scored.items():
            views = loader.dataset.records.view
            if self.trained and (warning := views_warning(views, self.trained.DATA.VIEWS)):
                run.logger.warning(f'{split}: {warning}')
        if is_main:
            if run.config.EVAL_MODE:
                self.looks = note_evaluation(run.folder, source, self.scored, run.logger)
            self.chosen_on = chosen_on(self.trained, source, run.folder, is_own=not self.suffix)
            self.patients = patients_of(run.config, self.loaders, self.scored)
            self.known = known_of(
                run.lineage,
                self.trained,
                source,
                chosen=self.chosen_on,
                patients=self.patients,
                # With --eval, the run of the checkpoint has the facts.
                record=run.record.contents or known_record(Path(source).parent),
                device=run.device,
            )
            found = {s: self.task.probabilities(self.values[s]) for s in self.scored | others}
            self._write_predictions(found, source)
            file = run.folder / f'scores{self.suffix}.json'
            replace_file(file, (json.dumps(json_safe(self.table), indent=1) + '\n').encode())
            run.logger.info(f'scores in {file}. Not for clinical use.')
        if is_main and run.config.REPORT.WRITE:
            report = module_of_option('REPORT.WRITE').write_run_report(self, model, source)
            run.logger.info(f'report in {report}')
        if Path(source).is_file():
            words = f'IMAGE_OR_FOLDER --checkpoint {source} --output predictions.csv'
            command = f'{command_of("scripts/predict.py")} {words}'
            run.logger.info(f'next: predict other images with {command}')

    def _write_predictions(self, predictions: dict[str, np.ndarray], checkpoint: str) -> None:
        """Write predictions_<split>.csv for the predictions [N, K] of each split."""
        config = self.run.config
        source = {
            'checkpoint': checkpoint,
            'run': f'{config.MODEL.NAME}/{config.TAG}',
            'task': config.DATA.TASK,
            'views': config.EVAL.VIEWS or config.DATA.VIEWS,
            'trained_views': self.trained.DATA.VIEWS if self.trained else '',
            'preprocess': scored_steps(config),
            'patches': describe_dropped(config),
            'code': code_version(),
        }
        facts, doubts = self.known
        loaders = self.scored | {'holdout': self.loaders.holdout, 'train': self.loaders.whole}
        for split, values in predictions.items():
            records = loaders[split].dataset.records
            # Other splits did not choose the checkpoint.
            known = {
                'facts': facts,
                'doubts': doubts | ({} if split == 'valid' else {ON_VALID: []}),
            }
            about = {'csv': Path(records.csv).name, 'rows': len(records), KNOWN: known}
            if split == 'train':  # of which a student may learn
                about[LINEAGE] = as_json(self.run.lineage.contents())
            write_predictions(
                self.run.folder / f'predictions_{split}{self.suffix}.csv',
                values,
                paths=records.path,
                labels=self.task.labels,
                source=source | about,
            )


def check_scoring(run: Run, path: str | Path) -> None:
    """Compare the options of --eval with the options that a checkpoint was trained with.

    Raises:
        ValueError: If the checkpoint was trained for another task or other labels, or if patients
            that trained the model would be scored or held out now, or patients that selected the
            checkpoint would be scored.
    """
    config, trained = run.config, trained_config(path, 'finetune')
    if trained is None:
        return
    keys = ('DATA.TRAIN_CSV', 'DATA.HOLDOUT_FRACTION', 'EVAL.INTERNAL_SHARE')
    options = {key: (value_at(trained, key), value_at(config, key)) for key in keys}
    (old_table, table), (old_holdout, holdout), (old_share, share) = options.values()
    is_other_table = table != old_table and is_data_of(
        trained, Path(path).parent, config.DATA.DATA_PATH
    )
    # Internal patients are a share of the held-out ones. Of another number of held-out patients,
    # any share could contain some who chose the checkpoint.
    most_share = old_share if holdout == old_holdout else 0
    if is_other_table or holdout > old_holdout or share > most_share:
        changes = [f'{key} {a!r} (now {b!r})' for key, (a, b) in options.items() if a != b]
        raise ValueError(
            f'{path} was trained with {", ".join(changes)}, so --eval would score or hold out '
            'patients that trained the model or selected the checkpoint. Use the values of the '
            'training. DATA.TRAIN_CSV may be another file if --data-path is another data set'
        )
    if other := config_changes(config_text(trained), config_text(config), 'model'):
        raise ValueError(
            f'{path} has the weights of another model ({"; ".join(other)}): use the options of the '
            'training'
        )
    keys = 'TASK LABELS TRAIN_CSV HOLDOUT_FRACTION'
    keys += ' MEAN STD NORMALIZE PREPROCESS IMG_SIZE INTERPOLATION'
    for key in keys.split():
        before, now = trained.DATA[key], config.DATA[key]
        if now == before:
            continue
        problem = f'{path} was trained with DATA.{key} {before!r}, but --eval uses {now!r}'
        if key in ('TASK', 'LABELS'):
            raise ValueError(f'{problem}: add --opts DATA.{key} "{before}"')
        if key == 'TRAIN_CSV':
            problem += '. Patients that trained the model may be scored if the data are the same'
        run.logger.warning(problem)


def describe_dropped(config: Config) -> str:
    """Describe which patches of an image are not scored; '' if all are."""
    ratio = config.EVAL.MASK_RATIO
    return f'{100 * ratio:g} % dropped at random' if ratio else ''


def present(loaders: dict[str, DataLoader | None]) -> dict[str, DataLoader]:
    """Return the loaders that are not None. All ranks have the same loaders."""
    return {name: loader for name, loader in loaders.items() if loader is not None}


def is_data_of(trained: Config, folder: Path, data_path: str) -> bool:
    """Return whether a data folder holds the data that a run was trained on.

    It does if its path is the one in `trained`, the options of the run, or if it has an unchanged
    table of the run, as a copy and a packed store have. The SHA-256 of each table is in run.json in
    the run's `folder`.
    """
    data, root = trained.DATA, Path(data_path)
    tables = files_read(known_record(folder))
    # A folder without training patients can also have the test table and the demographics, and a
    # table with an absolute path belongs to no folder.
    others = {data.TEST_CSV, data.DEMOGRAPHICS, *filter(os.path.isabs, tables)}
    files = {root / name: tables[name] for name in {*tables} - others}
    return root.resolve() == Path(data.DATA_PATH).resolve() or any(
        file.is_file() and sha256(file) == known for file, known in files.items()
    )
