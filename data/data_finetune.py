"""Build the data of fine-tuning: labelled images, and images with pseudo-labels.

Training targets follow the policies for uncertain labels. Uncertain labels are never scored.
"""

import logging
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
from torch.utils.data import DataLoader

from config import PROBES, Config, default_config
from data.augmentation import TrainTransform
from data.loader import Loaders, XrayDataset, make_loader
from data.tables.chexpert import DataSet, open_data_set
from data.tables.groups import all_groups
from data.tables.identity import shared_patients
from data.tables.labels import count_uncertain
from data.tables.predictions import Predictions, look_up, read_predictions, rows_of
from data.tables.reading import (
    data_root,
    log_loading,
    read_split,
    refuse_shared_patients,
    report_names_not_found,
    scored_images,
)
from data.tables.records import Records, csv_names, select_views, task_of
from data.tables.splits import (
    describe_subset,
    split_patients,
    training_records,
    unlabelled_records,
)
from data.tables.table import Fault, refuse
from data.transforms import EvalTransform


def build_loader_finetune(config: Config, logger: logging.Logger) -> Loaders:
    """Build the loaders of fine-tuning (see data.Loaders).

    With EVAL_MODE there is no train, and no holdout if the training CSV is absent.
    """
    log_loading(config, logger)
    data, task, parts, teacher = config.DATA, task_of(config), {}, None
    if task.needs_predictions and not config.EVAL_MODE:
        file = data.SELF_TRAIN_PREDICTIONS
        teacher = read_predictions(file, task=data.TASK, labels=data.LABELS)
    data_set = open_data_set(config, data_root(config, logger))
    options = {'optional': config.EVAL_MODE, 'data_set': data_set}
    everything = read_split(config, 'train', logger, **options)
    read = {'train': everything, 'test': _scored_records(data_set, 'test', logger)}
    read['valid'] = _scored_records(data_set, 'valid', logger, has_test=read['test'] is not None)
    report_names_not_found(config, read.values(), partial(refuse, logger=logger))
    refuse_shared_patients(config, read, logger)
    scored = {name: read[name] for name in ('valid', 'test') if read[name] is not None}
    if everything is not None:
        # Patients who choose the checkpoint are taken away before any subset of labels is drawn.
        train_records, holdout, internal = split_patients(config, everything)
        if not config.EVAL_MODE:
            parts = _training_loaders(config, train_records, teacher, logger)
        if config.EVAL.PREDICT_TRAIN:
            parts['whole'] = _eval_loader(config, 'all training', train_records, logger)
        held_out = {'holdout': holdout, 'internal': internal}
        scored = {name: records for name, records in held_out.items() if len(records)} | scored
    for split, records in scored.items():
        parts[split] = _eval_loader(config, split, records, logger)
    loaders = Loaders(**parts)
    _warn_of_one_class(logger, loaders, task.labels)
    if teacher:
        _warn_of_teacher(logger, loaders, teacher)
    return loaders


def patient_leaks(loaders: Loaders) -> list[str]:
    """Return a sentence for each two splits that share patients."""
    train = loaders.train or loaders.plain
    own = loaders._replace(train=train, plain=None, whole=None)._asdict()  # whole contains train
    return shared_patients({name: [*e.dataset.records.patient] for name, e in own.items() if e})


def _training_loaders(
    config: Config, everything: Records, teacher: Predictions | None, logger: logging.Logger
) -> dict[str, DataLoader]:
    """Build `train` or, for probes, `plain`."""
    data = config.DATA
    records = training_records(config, everything)
    predictions = None
    if teacher:
        predictions = look_up(teacher, records.path, records.label_names).astype(np.float32)
    # [N, K]: policies decide about uncertain labels, and NaN is excluded from the loss.
    targets = task_of(config).learned(records, predictions)
    unused = np.isnan(targets).sum()
    remark = f'{unused} labels are ignored' if unused else ''
    _log_split(logger, 'train', records, remark, subset=describe_subset(config))
    if data.PSEUDO_LABELS:
        pseudo_labelled, values = _read_pseudo_labels(config, everything)
        _log_split(logger, 'pseudo-labelled', pseudo_labelled, data.PSEUDO_LABELS)
        both = [vars(records), vars(pseudo_labelled)]
        arrays = [name for name, value in both[0].items() if isinstance(value, np.ndarray)]
        joined = {name: np.concatenate([part[name] for part in both]) for name in arrays}
        records = replace(records, **joined)
        # Soft labels are used as they are: the loss takes any target in [0, 1].
        targets = np.concatenate([targets, values])
    if config.FINETUNE.MODE in PROBES:
        transform = EvalTransform(config, is_scored=False).sample
        dataset = XrayDataset(records, transform, seed=config.SEED, targets=targets)
        return {'plain': make_loader(dataset, config, shuffle=False)}
    dataset = XrayDataset(records, TrainTransform(config), seed=config.SEED, targets=targets)
    weights = None
    if data.SAMPLER == 'weighted':
        weights = inverse_frequency_weights(targets, one_hot=task_of(config).exclusive)
    return {'train': make_loader(dataset, config, shuffle=True, weights=weights)}


def _scored_records(
    data_set: DataSet, split: str, logger: logging.Logger, *, has_test: bool = False
) -> Records | None:
    """Read the records of valid or test, if present, and check the columns of subgroups."""
    config = data_set.config
    optional = split == 'test' or (has_test and config.EVAL.SELECT_ON != 'valid')
    if not config.EVAL_MODE and csv_names(config)[split] != csv_names(default_config())[split]:
        optional = False  # a name that was chosen may be misspelt
    records = read_split(config, split, logger, optional=optional, data_set=data_set)
    if records is not None:
        all_groups(records, config.EVAL.GROUPS, config.DATA.DEMOGRAPHICS)
    else:
        name = csv_names(config)[split]
        logger.info(f'there is no split {split} to score (DATA.{split.upper()}_CSV {name})')
    return records


def _eval_loader(
    config: Config, split: str, records: Records, logger: logging.Logger
) -> DataLoader:
    records = select_views(records, config.EVAL.VIEWS or config.DATA.VIEWS)
    records = scored_images(config, records, logger)
    task = task_of(config)
    # [N, K]: no policy changes what is scored, so that runs with other policies can be compared.
    targets, remark = task.scored(records), ''
    if task.has_policies:
        uncertain = count_uncertain(records.labels, records.label_names)
        named = ', '.join(f'{label} {count}' for label, count in uncertain.items())
        remark = f'uncertain and left out: {named}' if named else ''
    elif unknown := np.isnan(targets).all(axis=1).sum():
        remark = f'{unknown} images without a target are left out'
    _log_split(logger, split, records, remark)
    if task.exclusive and config.EVAL.LEVEL == 'study':
        known = ~np.isnan(targets).any(axis=1)
        classes = pd.Series(targets[known].argmax(axis=1)).groupby(records.study[known]).nunique()
        if several := (classes > 1).sum():
            logger.warning(
                f'{split}: {several} of {len(classes)} studies have images of several classes and '
                'are not scored; EVAL.LEVEL image scores each image'
            )
    transform = EvalTransform(config).sample
    dataset = XrayDataset(records, transform, seed=config.SEED, targets=targets)
    return make_loader(dataset, config, shuffle=False)


def _warn_of_one_class(logger: logging.Logger, loaders: Loaders, labels: tuple[str, ...]) -> None:
    """Log the labels for which a split has one class only."""
    splits: dict[str, list[str]] = {}
    for split, loader in loaders._asdict().items():
        if loader is not None:
            targets = loader.dataset.targets
            both = ((targets >= 0.5) & (targets <= 1)).any(axis=0) & (targets < 0.5).any(axis=0)
            name = 'train' if split == 'plain' else split
            splits.setdefault(', '.join(np.array(labels)[~both]), []).append(name)
    found = [f'{", ".join(names)}: {missing}' for missing, names in splits.items() if missing]
    if found:
        logger.warning(
            f'labels with one class in a split are not learned or scored there: {"; ".join(found)}'
        )


def _warn_of_teacher(logger: logging.Logger, loaders: Loaders, teacher: Predictions) -> None:
    """Log how many scored images the model that predicted the uncertain labels may have seen."""
    splits = {name: getattr(loaders, name) for name in ('holdout', 'internal', 'valid', 'test')}
    scored = {name: loader.dataset.records.path for name, loader in splits.items() if loader}
    counts = {
        name: (rows_of(path, teacher.names, teacher.key, teacher.file) >= 0).sum()
        for name, path in scored.items()
    }
    if found := [f'{count} images of {name}' for name, count in counts.items() if count]:
        logger.warning(
            f'DATA.SELF_TRAIN_PREDICTIONS has predictions of {", ".join(found)}. If its model '
            'learned from them, the scores of this run are too high: give both the same '
            'DATA.TRAIN_CSV and DATA.HOLDOUT_FRACTION'
        )


def _log_split(
    logger: logging.Logger, split: str, records: Records, remark: str, *, subset: str = ''
) -> None:
    views, counts = np.unique(records.view, return_counts=True)
    by_view = ', '.join(f'{count} {view}' for view, count in zip(views, counts, strict=True))
    about = f'{subset}; {by_view}' if subset else by_view
    line = f'{split}: {len(records)} images of {len(set(records.patient))} patients ({about})'
    logger.info(f'{line}; {remark}' if remark else line)


def _read_pseudo_labels(config: Config, records: Records) -> tuple[Records, np.ndarray]:
    """Read pseudo-labels from the file DATA.PSEUDO_LABELS.

    Args:
        config: Run configuration, see `unlabelled_records`.
        records: Records of all training images that are not held out.

    Returns:
        Records of M images without labels (all NaN), and pseudo-labels [M, K] float32 in [0, 1],
        NaN for empty cells.

    Raises:
        ValueError: If the file is not a predictions file, if it has no values, if an image is held
            out, unknown or in the labelled subset, or if a label with a third class has a value
            between 0 and 1.
    """
    data, file = config.DATA, config.DATA.PSEUDO_LABELS
    task = task_of(config)
    labels = task.labels
    predictions = read_predictions(file, task=data.TASK, allow_empty=True, labels=labels)
    unlabelled = unlabelled_records(config, records)
    names = (predictions.names, unlabelled.path)
    _refuse_row(
        predictions,
        rows_of(*names, predictions.key, predictions.file) < 0,
        f'the image must have a view of DATA.VIEWS {config.DATA.VIEWS!r} and belong to a training '
        'patient outside the subset of DATA.TRAIN_FRACTION or DATA.TRAIN_IMAGES',
    )
    values = predictions.probabilities
    third_class = np.array(labels)[task.third_class]
    soft = np.isin(predictions.labels, third_class) & (values > 0) & (values < 1)
    for k, label in enumerate(predictions.labels):
        problem = f'{label} must be 0, 1 or empty, because uncertain is a third class'
        _refuse_row(predictions, soft[:, k], problem)
    values = look_up(predictions, unlabelled.path, labels).astype(np.float32)
    has_value = ~np.isnan(values).all(axis=1)
    if not has_value.any():
        raise ValueError(f'DATA.PSEUDO_LABELS {file} has no value of {", ".join(labels)}')
    kept = unlabelled.select(has_value)
    return replace(kept, labels=np.full_like(kept.labels, np.nan)), values[has_value]


def _refuse_row(predictions: Predictions, bad: np.ndarray, problem: str) -> None:
    """Raise an error that names the first bad row, if there is one."""
    if bad.any():
        place = f'DATA.PSEUDO_LABELS {predictions.file}', int(predictions.row[np.argmax(bad)]) + 2
        refuse(Fault('pseudo-label', problem, *place))


def inverse_frequency_weights(targets: np.ndarray, *, one_hot: bool = False) -> np.ndarray:
    """Return sampling weights [N] that are larger for images with rare labels.

    A weight is the mean, over the known labels of an image, of 1 / (number of images with the same
    value of that label). With one label, each of its values is drawn equally often, and with
    classes (`one_hot`) each class. An image without known labels has the mean weight of the others.

    Args:
        targets: Targets [N, K]: 0.5 or more is positive, 2 is a third class, NaN is unknown.
        one_hot: Whether the columns are classes, one of which is 1.
    """
    if one_hot:
        targets = np.where(targets >= 0.5, targets, np.nan)
    known = ~np.isnan(targets)
    values = np.where(targets > 1, 2, targets >= 0.5)
    shares = np.zeros(targets.shape)
    for value in range(3):
        same = known & (values == value)
        shares += same / np.maximum(same.sum(axis=0), 1)
    # Unknown labels say nothing about how rare an image is.
    num_known = known.sum(axis=1)
    weights = shares.sum(axis=1) / np.maximum(num_known, 1)
    unknown = num_known == 0
    weights[unknown] = 1.0 if unknown.all() else weights[~unknown].mean()
    return weights
