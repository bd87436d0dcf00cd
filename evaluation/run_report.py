"""Write the scores, the predictions and the report of a fine-tuning run to the run folder."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from config import (
    PROBES,
    Config,
    config_changes,
    config_text,
    encoder_name,
    scored_steps,
    value_at,
)
from data.groups import all_groups
from data.labels import UNCERTAIN
from data.loader import Loaders, XrayDataset
from data.predictions import write_predictions
from data.reading import SCORED_SPLITS, TRAINING_LABELS, describe_images
from data.tasks import task_of
from engine.run_record import Run, code_version, is_data_of
from evaluation.cases import Cases
from evaluation.classes import describe_split
from evaluation.inference import predict, score
from evaluation.metrics import Protocol
from evaluation.pixel_floor import pixel_floor, read_pixels
from evaluation.report import (
    FLOOR,
    build_document,
    floor_part,
    write_report,
)
from evaluation.saliency import NO_MAPS, lacks_maps, write_maps
from evaluation.tuning import INVERSE_PENALTIES, log_choices
from logger import json_safe, read_metrics
from system import distributed
from system.files import BEST_CHECKPOINT, checkpoint_position, replace_file
from utils import read_checkpoint, seen_patients, trained_config

INTERNAL = f'internal: these are held-out training patients, with {TRAINING_LABELS}'
THUMBNAIL_PX = 112
SELECTED_ON_VALID = 'the checkpoint was selected on valid, so the scores on valid are optimistic'
AVERAGED = (
    'saliency maps are those of the first checkpoint and of one view of the image, while the '
    'probabilities below them are means over all checkpoints and test-time views'
)


class FinalScores:
    """Collect the scores and predictions of a run, and write them and the report."""

    def __init__(self, run: Run, loaders: Loaders) -> None:
        self.run, self.task = run, task_of(run.config)
        self.suffix = '_eval' if run.config.EVAL_MODE else ''
        self.loaders = loaders
        self.scored = _present({name: getattr(loaders, name) for name in SCORED_SPLITS})
        self.trained: Config | None = None  # options of the training of the scored model
        self.table: dict[str, dict[str, Any]] = {}
        self.values: dict[str, np.ndarray] = {}  # logits of the images
        self.floor: dict[str, Any] = {}  # numbers of images and components of the pixel baseline
        self.floor_predictions: dict[str, np.ndarray] = {}

    def score(self, name: str, models: list[nn.Module], **facts: Any) -> None:
        """Score the averaged predictions of the models on SCORED_SPLITS under this name.

        `facts` are further entries of scores.json, such as what selected the checkpoint.
        """
        for split, loader in self.scored.items():
            self._predict(split, models, loader)
            scores = score(self.run.config, self.values[split], loader)
            self.run.logger.info(f'{split}, {name} checkpoint: {describe_split(scores)}')
            self.table.setdefault(split, {})[name] = scores | facts

    def write(self, models: list[nn.Module], sources: list[str]) -> None:
        """Write all scores, and the predictions and the report of these models.

        `sources` contains their checkpoints, or the kind of probe.
        """
        run = self.run
        others = _present({'holdout': self.loaders.holdout, 'train': self.loaders.whole})
        for split, loader in others.items():  # in the same order on all ranks
            self._predict(split, models, loader)
        self.trained = _training_config(run, sources)
        is_main = distributed.is_main()
        if is_main:
            found = {s: self.task.probabilities(self.values[s]) for s in self.scored | others}
            self._write_predictions(found, ', '.join(sources))
            run.logger.info(f'scores in {self._write_scores()}. Not for clinical use.')
        if run.config.REPORT.PIXEL_FLOOR:  # after the scores, so that a failure does not lose them
            self._score_floor()
        if is_main and run.config.REPORT.WRITE:
            run.logger.info(f'report in {self._write_report(models, sources)}')
        if len(sources) == 1 and Path(sources[0]).is_file():
            command = f'scripts/predict.py --checkpoint {sources[0]}'
            run.logger.info(f'next: predict other images with {command}')

    def _predict(self, split: str, models: list[nn.Module], loader: DataLoader) -> None:
        self.values[split] = predict(self.run.config, self.run.device, models, loader)

    def _score_floor(self) -> None:
        """Fit and score the baseline on pixels. All ranks read images, and rank 0 fits."""
        config, logger = self.run.config, self.run.logger
        loader = self.loaders.train or self.loaders.plain
        if loader is None:
            logger.warning('REPORT.PIXEL_FLOOR is skipped, because --eval reads no training images')
            return
        train, targets, patients = read_pixels(config, loader.dataset)
        pixels = {
            split: read_pixels(config, scored.dataset, limit=len(scored.dataset))[0]
            for split, scored in self.scored.items()
        }
        if not distributed.is_main():
            return
        test = np.concatenate([*pixels.values()])
        exclusive = self.task.exclusive
        found, count, choices = pixel_floor(train, targets, patients, test, exclusive=exclusive)
        chosen = dict(zip(self.task.labels, choices, strict=True))
        chosen = log_choices(logger, 'pixels', chosen, INVERSE_PENALTIES)
        self.floor = {'images': len(train), 'components': count, 'chosen': chosen}
        about = f'{FLOOR} ({count} components of {len(train)} images)'
        ends = np.cumsum([len(values) for values in pixels.values()])[:-1]
        for split, values in zip(pixels, np.split(found, ends), strict=True):
            scores = score(config, values, self.scored[split]) | self.floor
            logger.info(f'{split}, {about}: {describe_split(scores)}')
            self.table[split]['pixel_floor'] = scores
            self.floor_predictions[split] = self.task.probabilities(values)
        self._write_predictions(self.floor_predictions, about, kind='_pixels')
        self._write_scores()

    def _write_scores(self) -> Path:
        file = self.run.folder / f'scores{self.suffix}.json'
        replace_file(file, (json.dumps(json_safe(self.table), indent=1) + '\n').encode())
        return file

    def _write_predictions(
        self, predictions: dict[str, np.ndarray], checkpoint: str, *, kind: str = ''
    ) -> None:
        """Write predictions_<split><kind>.csv for the predictions [N, K] of each split."""
        config = self.run.config
        source = {
            'checkpoint': checkpoint,
            'run': f'{config.MODEL.NAME}/{config.TAG}',
            'task': config.DATA.TASK,
            'views': config.EVAL.VIEWS or config.DATA.VIEWS,
            'trained_views': self.trained.DATA.VIEWS if self.trained else '',
            'preprocess': scored_steps(config),
            'test_time_views': describe_views(config),
            'code': code_version(),
        }
        loaders = self.scored | {'holdout': self.loaders.holdout, 'train': self.loaders.whole}
        for split, values in predictions.items():
            records = loaders[split].dataset.records
            write_predictions(
                self.run.folder / f'predictions_{split}{kind}{self.suffix}.csv',
                values,
                paths=records.path,
                labels=self.task.labels,
                source=source | {'csv': records.csv, 'rows': len(records)},
            )

    def _write_report(self, models: list[nn.Module], sources: list[str]) -> Path:
        """Write report.html, report.json, the tables, and saliency maps of the first model."""
        run, config = self.run, self.run.config
        folder = run.folder / 'report_eval' if config.EVAL_MODE else run.folder
        train = self.loaders.train or self.loaders.plain
        others = _present({'train': train, 'holdout': self.loaders.holdout})
        datasets = {name: loader.dataset for name, loader in (others | self.scored).items()}
        sets = [self._cases(name) for name in self.scored]

        trained = self.trained
        select_on = _selected_on(trained or config, sources[0])
        training = _describe_training(trained, select_on)
        training |= _describe_effort(run.folder, select_on, sources, train)
        about = {
            'run': _describe_run(config, sources, training),
            'patients': {split: [*dataset.records.patient] for split, dataset in datasets.items()},
            'warnings': self._warnings(models[0], sources),
        }
        protocol = _protocol(config)
        floor = floor_part(sets, self.floor_predictions, protocol, facts=self.floor)
        document = build_document(
            sets,
            self._cases('holdout') if self.loaders.holdout else None,
            protocol,
            policy=trained.DATA.UNCERTAIN if trained else '',
            extras={'training': self._training_curves(sources), 'pixel_floor': floor},
            **about,
        )
        document |= self._write_maps(models[0], datasets, sets[-1], document, folder)
        thumbnails = _thumbnails(config, datasets, sets, document)
        for line in document['alerts']:
            run.logger.warning(line)
        report = write_report(folder, document, thumbnails)
        run.scalars.write_file(report)
        return report

    def _write_maps(
        self,
        model: nn.Module,
        datasets: dict[str, XrayDataset],
        cases: Cases,
        document: dict[str, Any],
        folder: Path,
    ) -> dict[str, Any]:
        """Write saliency maps of a set of cases, the last of the document; return their part."""
        config = self.run.config
        thresholds = {part['label']: part['threshold'] for part in document['sets'][-1]['labels']}
        found = write_maps(
            config, model, datasets[cases.name], cases, thresholds=thresholds, folder=folder
        )
        for entry in found['maps']:
            file = folder / entry['file']
            self.run.scalars.write_image(f'maps/{file.stem}', file, config.TRAIN.EPOCHS - 1)
        return found

    def _training_curves(self, sources: list[str]) -> dict[str, Any] | None:
        """Return losses and selection score by epoch, if the model was trained in this folder."""
        records = _epochs(self.run.folder, sources)
        if not records:
            return None
        select_on = (self.trained or self.run.config).EVAL.SELECT_ON
        split = 'valid' if select_on == 'valid' else 'holdout'  # that of `Selection`
        names = {
            'Training loss': 'loss',
            f'Loss on {split} ({self.task.losses[0]})': f'{split}_loss',
            f'Mean AUROC on {split}': 'score',
        }
        curves = [
            {'name': name, 'values': [record.get(key) for record in records]}
            for name, key in names.items()
        ]
        return {'epochs': [record['epoch'] for record in records], 'curves': curves}

    def _warnings(self, model: nn.Module, sources: list[str]) -> list[str]:
        """Return what a reader of the report must know about its scores."""
        config = self.run.config
        configs = [self.trained] if len(sources) == 1 else [*map(trained_config, sources)]
        warnings = _seen_patients(configs, config)
        if _are_selected_on_valid(configs, sources):
            warnings.append(SELECTED_ON_VALID)
        if 'internal' in self.scored:
            warnings.append(INTERNAL)
        if fold := config.DATA.FOLD:
            warnings.append(f'valid: part {fold} of the training patients, with {TRAINING_LABELS}')
        if config.EVAL.MASK_RATIO:
            warnings.append(
                f'scores drop {100 * config.EVAL.MASK_RATIO:g} % of the patches of each image '
                '(EVAL.MASK_RATIO); saliency maps use all'
            )
        if config.REPORT.MAPS and lacks_maps(model, config.REPORT.METHOD):
            warnings.append(f'there are no saliency maps: the encoder has {NO_MAPS}')
        elif config.REPORT.MAPS and _is_averaged(config, sources):
            warnings.append(AVERAGED)
        return warnings

    def _cases(self, name: str) -> Cases:
        """Return the cases of a split, with groups if the split is scored."""
        config, dataset = self.run.config, getattr(self.loaders, name).dataset
        records, groups = dataset.records, {}
        if name in SCORED_SPLITS:
            options = config.EVAL.AGE_BANDS, config.EVAL.GROUPS, config.DATA.DEMOGRAPHICS
            groups = all_groups(records, *options)
        is_uncertain = records.labels == UNCERTAIN if self.task.has_policies else None
        return Cases(
            name=name,
            labels=self.task.labels,
            path=records.path,
            study=records.study,
            patient=records.patient,
            probabilities=self.task.probabilities(self.values[name]),
            targets=dataset.targets,
            groups=groups,
            uncertain=is_uncertain,
            exclusive=self.task.exclusive,
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
    keys = ('DATA.FOLD', 'DATA.HOLDOUT_FRACTION', 'EVAL.INTERNAL_SHARE')
    options = {key: (value_at(trained, key), value_at(config, key)) for key in keys}
    (old_fold, fold), (old_holdout, holdout), (old_share, share) = options.values()
    is_other_fold = fold != old_fold and (
        fold or is_data_of(trained, Path(path).parent, config.DATA.DATA_PATH)
    )
    most_share = old_share if holdout == old_holdout else 0
    if is_other_fold or holdout > old_holdout or share > most_share:
        changes = [f'{key} {a!r} (now {b!r})' for key, (a, b) in options.items() if a != b]
        raise ValueError(
            f'{path} was trained with {", ".join(changes)}, so --eval would score or hold out '
            'patients that trained the model or selected the checkpoint. Use the values of the '
            'training. DATA.FOLD may be empty if --data-path is another data set'
        )
    if other := config_changes(config_text(trained), config_text(config), 'model'):
        raise ValueError(
            f'{path} has the weights of another model ({"; ".join(other)}): use the options of the '
            'training'
        )
    keys = 'TASK LABELS TRAIN_CSV FOLD HOLDOUT_FRACTION'
    keys += ' MEAN STD NORMALIZE PREPROCESS IMG_SIZE INTERPOLATION'
    for key in keys.split():
        before, now = trained.DATA[key], config.DATA[key]
        if now == before:
            continue
        problem = f'{path} was trained with DATA.{key} {before!r}, but --eval uses {now!r}'
        if key in ('TASK', 'LABELS'):
            raise ValueError(problem)
        if key in ('TRAIN_CSV', 'FOLD'):
            problem += '. Patients that trained the model may be scored if the data are the same'
        run.logger.warning(problem)


def describe_views(config: Config) -> str:
    """Describe the test-time views of an image that are averaged."""
    views = 'one view' if config.EVAL.TTA == 'none' else config.EVAL.TTA
    views = f'{views}, each also mirrored' if config.EVAL.TTA_FLIP else views
    ratio = config.EVAL.MASK_RATIO
    return f'{views}, {100 * ratio:g} % of the patches dropped at random' if ratio else views


def _present(loaders: dict[str, DataLoader | None]) -> dict[str, DataLoader]:
    """Return the loaders that are not None. All ranks have the same loaders."""
    return {name: loader for name, loader in loaders.items() if loader is not None}


def _protocol(config: Any) -> Protocol:
    return Protocol(
        level=config.EVAL.LEVEL,
        aggregate=config.EVAL.AGGREGATE,
        views=config.EVAL.VIEWS or config.DATA.VIEWS,
        threshold=config.EVAL.THRESHOLD,
        sensitivity=config.EVAL.SENSITIVITY,
        resamples=config.EVAL.RESAMPLES,
        seed=config.SEED,
    )


def _training_config(run: Run, sources: list[str]) -> Config | None:
    """Return the config that the scored model was trained with; None if unknown."""
    if sources[0] in PROBES:
        return run.config
    return trained_config(sources[0]) if len(sources) == 1 else None


def _seen_patients(configs: list[Config | None], config: Config) -> list[str]:
    """Return warnings that the weights in PRETRAINED of a training may have seen scored patients.

    A file that no longer exists gives no warning. The log of the training has it.
    """
    lines = {}
    for path in {trained.PRETRAINED: None for trained in configs if trained}:
        before = trained_config(path) if Path(path).is_file() else None
        if before:
            lines |= dict.fromkeys(seen_patients(path, before.DATA, config.DATA))
    return [*lines]


def _are_selected_on_valid(configs: list[Config | None], sources: list[str]) -> bool:
    """Return whether the split valid selected one of the scored checkpoints."""
    return any(
        trained and trained.FINETUNE.MODE not in PROBES and _selected_on(trained, source) == 'valid'
        for trained, source in zip(configs, sources, strict=True)
    )


def _describe_run(config: Config, sources: list[str], training: dict[str, str]) -> dict[str, str]:
    """Return the table of run details for the first screen of the report."""
    data = config.DATA
    checkpoint = ', '.join(sources)
    labeller = f', labels of {data.LABELLER}' if data.DATASET == 'mimic-cxr' else ''
    data_set = f'{data.DATASET}{labeller}'
    steps = ', '.join(scored_steps(config)) or 'none'
    return {
        'Task': data.TASK,
        **({'Labels': ', '.join(data.LABELS)} if data.LABELS else {}),
        'Model': f'{encoder_name(config)}, {data.IMG_SIZE} px',
        'Run': f'{config.MODEL.NAME}/{config.TAG}',
        'Checkpoint': f'mean of {checkpoint}' if len(sources) > 1 else checkpoint,
        **training,
        'Data': f'{data.DATA_PATH} ({data_set})',
        **({'Blank labels': data.BLANK} if task_of(config).has_policies else {}),
        'Images': describe_images(config.EVAL.DATA_PATH or data.DATA_PATH),
        'Pixels': f'preprocessing {steps}, normalised by {data.NORMALIZE}',
        'Threshold rule': config.EVAL.THRESHOLD,
        'Test-time views': describe_views(config),
        'Seed': str(config.SEED),
        'Code': code_version(),
    }


def _is_averaged(config: Config, sources: list[str]) -> bool:
    """Return whether a probability is a mean over several checkpoints or views of an image."""
    return len(sources) > 1 or config.EVAL.TTA != 'none' or config.EVAL.TTA_FLIP


def _selected_on(trained: Config, source: str) -> str:
    """Return the split that selected a checkpoint, 'last', or 'unknown' if it was renamed."""
    name, chosen = Path(source).name, trained.EVAL.SELECT_ON
    if chosen == 'last' or checkpoint_position(name):
        return 'last'  # also if no label had enough cases to select a checkpoint
    if chosen == 'valid':  # also if renamed, so that a report rather warns too often
        return chosen
    return 'holdout' if name == BEST_CHECKPOINT else 'unknown'


def _describe_training(trained: Config | None, select_on: str) -> dict[str, str]:
    if trained is None:
        return {'Training': 'unknown'}
    data, is_probe = trained.DATA, trained.FINETUNE.MODE in PROBES
    exceptions = ', '.join(f'{k}: {v}' for k, v in data.UNCERTAIN_BY_LABEL.items())
    policy = data.UNCERTAIN + (f' ({exceptions})' if exceptions else '')
    by_share = f'{100 * data.TRAIN_FRACTION:g} % of the patients'
    start = trained.MODEL.RESUME or trained.PRETRAINED
    rows = {
        'Fitted': trained.FINETUNE.MODE,
        'Started from': start or 'random weights',
        'Trained on': f'{data.TRAIN_IMAGES} images' if data.TRAIN_IMAGES else by_share,
        **({'Uncertain labels in training': policy} if task_of(trained).has_policies else {}),
    }
    if data.FOLD:
        rows['Trained on'] += f', without fold {data.FOLD}'
    if data.PSEUDO_LABELS:
        rows['Trained on'] += f', and pseudo-labels of {data.PSEUDO_LABELS}'
    if is_probe:
        return rows | {'Grid chosen on': 'training patients, by cross-validation'}
    selected = 'not selected: the last epoch' if select_on == 'last' else select_on
    if patience := trained.TRAIN.PATIENCE:
        rows['Early stopping'] = (
            f'after {patience} validations without a better score, at most {trained.TRAIN.EPOCHS} '
            'epochs'
        )
    return rows | {'Loss': trained.LOSS.NAME, 'Selected on': selected}


def _describe_effort(
    folder: Path, select_on: str, sources: list[str], train: DataLoader | None
) -> dict[str, str]:
    """Return the number of training images, the selected epoch and the training time, if known."""
    rows, records = {}, _epochs(folder, sources)
    if train is not None:
        images = train.dataset.records
        rows['Training images'] = f'{len(images)} of {len(set(images.patient))} patients'
    if records and Path(sources[0]).name == BEST_CHECKPOINT:
        best = read_checkpoint(sources[0])
        rows['Selected epoch'] = (
            f'{best["epoch"] + 1} of {records[-1]["epoch"] + 1}, mean AUROC '
            f'{best["best_score"]:.4f} on {select_on}'
        )
    if records:
        seconds = sum(record['seconds'] for record in records)
        rows['Training time'] = f'{timedelta(seconds=round(seconds))}, without validation'
    return rows


def _epochs(folder: Path, sources: list[str]) -> list[dict[str, Any]]:
    """Read the records of the trained epochs, if the model was trained in this folder."""
    file = folder / 'metrics.jsonl'
    own = len(sources) == 1 and Path(sources[0]).parent == folder
    return [r for r in read_metrics(file) if 'loss' in r] if own and file.is_file() else []


def _thumbnails(
    config: Config, datasets: dict[str, XrayDataset], sets: list[Cases], document: dict[str, Any]
) -> dict[tuple[str, str, str], Image.Image]:
    """Return (set, label, kind) -> thumbnail of each worst error, or {} if REPORT.MAPS is 0."""
    found = {}
    for cases, scored in zip(sets, document['sets'], strict=True):
        for error in scored['worst_errors'] if config.REPORT.MAPS else []:
            label, kind = error['label'], error['kind']
            image = datasets[cases.name].image(cases.strongest_image(error['path'], label))
            # A new image has no metadata, which could contain the patient's name.
            small = Image.fromarray(np.array(image))
            small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
            found[cases.name, label, kind] = small
    return found
