"""What a fine-tuning run ends with: scores, predictions and the report, in the run's folder."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from scipy.special import expit
from torch import nn
from torch.utils.data import DataLoader

import distributed
from config import Config, default_config
from data import Loaders
from data.groups import group_columns, standard_groups
from data.labels import COMPETITION_LABELS, count_uncertain, task_labels
from data.loader import XrayDataset
from engine import Run
from evaluation.cases import Cases
from evaluation.document import build_document
from evaluation.metrics import describe_scores, score_table
from evaluation.predictions import write_predictions
from evaluation.protocol import Protocol
from evaluation.report import write_report
from inference import mean_logits, predict
from logger import json_safe, read_metrics
from maps import write_maps
from models.losses import masked_bce
from provenance import code_version
from utils import read_checkpoint


def score(config: Any, logits: np.ndarray, loader: DataLoader) -> dict[str, Any]:
    """Scores of one split: `evaluation.metrics.score_table`, the loss, the views."""
    dataset = loader.dataset
    scores = score_table(
        expit(logits.astype(np.float64)),
        dataset.targets,
        dataset.records.study,
        labels=task_labels(config.DATA.TASK),
        five=COMPETITION_LABELS,
        level=config.EVAL.LEVEL,
        aggregate=config.EVAL.AGGREGATE,
    )
    scores['loss'] = masked_bce(torch.from_numpy(logits), torch.from_numpy(dataset.targets)).item()
    scores['views'] = config.EVAL.VIEWS or config.DATA.VIEWS
    return scores


class FinalScores:
    """Scores, predictions and the report of what a run ends with, in the run's folder."""

    def __init__(self, run: Run, loaders: Loaders) -> None:
        self.run = run
        self.suffix = '_eval' if run.config.EVAL_MODE else ''
        splits = ('holdout', 'valid', 'test')
        self.loaders = {name: getattr(loaders, name) for name in splits if getattr(loaders, name)}
        self.trained_on = loaders.train or loaders.plain
        self.whole = loaders.whole
        self.table: dict[str, dict[str, Any]] = {}

    def add(self, name: str, models: list[nn.Module]) -> dict[str, np.ndarray]:
        """Score the mean of the models on valid and test; logits of every split."""
        logits = {split: self._predict(models, loader) for split, loader in self.loaders.items()}
        for split in logits.keys() - {'holdout'}:
            scores = score(self.run.config, logits[split], self.loaders[split])
            self.run.logger.info(f'{split}, {name} checkpoint: {describe_scores(scores)}')
            self.table.setdefault(split, {})[name] = scores
        return logits

    def write(self, models: list[nn.Module], logits: dict[str, np.ndarray], source: str) -> None:
        """Write the scores, and predictions and report of the models that were added last."""
        run, loaders = self.run, dict(self.loaders)
        if self.whole is not None:
            loaders['train'], logits['train'] = self.whole, self._predict(models, self.whole)
        if not distributed.is_main():
            return
        for split, loader in loaders.items():
            records = loader.dataset.records
            write_predictions(
                run.folder / f'predictions_{split}{self.suffix}.csv',
                expit(logits[split].astype(np.float64)),
                paths=records.path,
                labels=task_labels(run.config.DATA.TASK),
                source={
                    'checkpoint': source,
                    'run': run.config.TAG,
                    'csv': records.csv,
                    'views': run.config.EVAL.VIEWS or run.config.DATA.VIEWS,
                    'rows': len(records),
                },
            )
        file = run.folder / f'scores{self.suffix}.json'
        file.write_text(json.dumps(json_safe(self.table), indent=1) + '\n', encoding='utf-8')
        run.logger.info(f'scores in {file}. Not for clinical use.')
        if run.config.REPORT.WRITE:
            about = {'source': source, 'suffix': self.suffix, 'patients': self._patients()}
            page = write_run_report(run, models, self.loaders, logits, about)
            run.logger.info(f'report in {page}')

    def _patients(self) -> dict[str, np.ndarray]:
        """Patients of each split, those trained on first."""
        loaders = {'train': self.trained_on} if self.trained_on else {}
        loaders |= self.loaders
        return {name: loader.dataset.records.patient for name, loader in loaders.items()}

    def _predict(self, models: list[nn.Module], loader: DataLoader) -> np.ndarray:
        config, device = self.run.config, self.run.device
        return mean_logits([predict(config, device, model, loader) for model in models])


def protocol_of(config: Any) -> Protocol:
    """How the options say that cases are scored."""
    choices = config.EVAL
    return Protocol(
        level=choices.LEVEL,
        aggregate=choices.AGGREGATE,
        views=choices.VIEWS or config.DATA.VIEWS,
        threshold=choices.THRESHOLD,
        sensitivity=choices.SENSITIVITY,
        resamples=choices.RESAMPLES,
        seed=config.SEED,
    )


def cases_of(config: Any, name: str, dataset: XrayDataset, logits: np.ndarray) -> Cases:
    """The cases of a split: what was predicted, what is true, and the groups asked for."""
    records, is_task = dataset.records, config.DATA.TASK != 'observations'
    groups = standard_groups(records, config.EVAL.AGE_BANDS)
    groups |= group_columns(records, config.EVAL.GROUPS, demographics=config.DATA.DEMOGRAPHICS)
    return Cases(
        name=name,
        labels=task_labels(config.DATA.TASK),
        path=records.path,
        study=records.study,
        patient=records.patient,
        probabilities=expit(logits.astype(np.float64)),
        targets=dataset.targets,
        groups=groups,
        uncertain={} if is_task else count_uncertain(records.labels),
    )


def write_run_report(
    run: Run,
    models: list[nn.Module],
    loaders: dict[str, DataLoader],
    logits: dict[str, np.ndarray],
    about: dict[str, Any],
) -> Path:
    """Write report.html, report.json, its tables and maps; returns the page.

    Args:
        run: the run.
        models: those scored; the maps are of the first.
        loaders: `holdout` where there is one, `valid`, `test` where there is one.
        logits: of each of them.
        about: `source` (the checkpoint), `suffix` ('' or '_eval'), `patients` of each split.
    """
    config = run.config
    folder = run.folder / f'report{about["suffix"]}' if about['suffix'] else run.folder
    splits = {
        name: cases_of(config, name, loader.dataset, logits[name])
        for name, loader in loaders.items()
    }
    holdout = splits.pop('holdout', None)
    shown, trained = list(splits)[-1], training_config(config, about['source'])
    document = build_document(
        list(splits.values()),
        holdout,
        protocol_of(config),
        run=describe_run(run, about['source'], len(models)),
        policy=trained.DATA.UNCERTAIN if trained else '',
        patients=about['patients'],
        warnings=_warn_of_selection(config),
        extras={'training': training_curves(run.folder, config.EVAL.SELECT_ON)},
    )
    thresholds = {part['label']: part['threshold'] for part in document['sets'][-1]['labels']}
    dataset = loaders[shown].dataset
    document |= write_maps(run, models[0], dataset, splits[shown], thresholds, folder)
    return write_report(folder, document)


def describe_run(run: Run, source: str, num_models: int) -> dict[str, str]:
    """What was run, name -> value, for the report's first screen."""
    config = run.config
    views = ['one view' if config.EVAL.TTA == 'none' else config.EVAL.TTA]
    return {
        'Task': config.DATA.TASK,
        'Model': f'{config.MODEL.TYPE}, {config.DATA.IMG_SIZE} px',
        'Run': f'{config.MODEL.NAME}/{config.TAG}',
        'Checkpoint': f'{source} (mean of {num_models})' if num_models > 1 else source,
        **_describe_training(training_config(config, source)),
        'Data': f'{config.DATA.DATA_PATH} ({config.DATA.DATASET})',
        'Blank labels': config.DATA.BLANK,
        'Thresholds': f'{config.EVAL.THRESHOLD}, on held-out training patients',
        'Test-time views': ', '.join(views + ['mirrored'] * config.EVAL.TTA_FLIP),
        'Seed': str(config.SEED),
        'Code': code_version(),
    }


def training_config(config: Config, source: str) -> Config | None:
    """The options that the scored model was trained with: with --eval, those in its checkpoint.

    None where they are not known: several checkpoints, or one that holds no options.
    """
    if not config.EVAL_MODE:
        return config
    text = read_checkpoint(source).get('config') if Path(source).is_file() else None
    if not isinstance(text, str):
        return None
    trained = default_config()
    trained.merge_from_other_cfg(yaml.safe_load(text))
    return trained


def _describe_training(trained: Config | None) -> dict[str, str]:
    if trained is None:
        return {'Training': 'not known'}
    data = trained.DATA
    exceptions = ', '.join(f'{k}: {v}' for k, v in data.UNCERTAIN_BY_LABEL.items())
    by_share = f'{data.TRAIN_FRACTION:.3g} of the patients'
    return {
        'Fitted': trained.FINETUNE.MODE,
        'Started from': trained.PRETRAINED or 'random weights',
        'Trained on': f'{data.TRAIN_IMAGES} images' if data.TRAIN_IMAGES else by_share,
        'Uncertain labels in training': data.UNCERTAIN + (f' ({exceptions})' if exceptions else ''),
        'Loss': trained.LOSS.NAME,
        'Selected on': trained.EVAL.SELECT_ON,
    }


def training_curves(folder: Path, split: str) -> dict[str, Any] | None:
    """Losses and the selecting score by epoch, from metrics.jsonl; None where nothing trained."""
    file = folder / 'metrics.jsonl'
    records = [r for r in read_metrics(file) if 'loss' in r] if file.is_file() else []
    if not records:
        return None
    names = {
        'Training loss': 'loss',
        f'Loss on {split}': f'{split}_loss',
        f'Mean AUROC on {split}': 'score',
    }
    curves = [
        {'name': name, 'values': [record.get(key) for record in records]}
        for name, key in names.items()
    ]
    return {'epochs': [record['epoch'] for record in records], 'curves': curves}


def _warn_of_selection(config: Any) -> list[str]:
    if config.EVAL.SELECT_ON == 'valid':
        return ['the checkpoint was selected on valid: the scores on valid are too good']
    return []
