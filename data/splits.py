"""The records of a split, whichever labelled data set DATA.DATASET names."""

import logging
from pathlib import Path

import numpy as np

from config import Config
from data.chexpert import Records, read_csv, select_views, take_subset
from data.labels import task_targets

LABELLED = ('chexpert', 'mimic-cxr')  # values of DATA.DATASET whose images have labels
MIMIC_SPLITS = {'train': 'train', 'valid': 'validate', 'test': 'test'}


def read_split(
    config: Config, split: str, logger: logging.Logger, *, optional: bool = False
) -> Records | None:
    """All records of 'train', 'valid' or 'test'; None for an optional split that is not there."""
    data = config.DATA
    options = {'image_suffix': data.IMAGE_SUFFIX, 'logger': logger}
    if data.DATASET == 'mimic-cxr':
        from data.mimic import read_mimic

        name = MIMIC_SPLITS[split]
        return read_mimic(data.DATA_PATH, name, labeller=data.LABELLER, **options)
    csv_name = {'train': data.TRAIN_CSV, 'valid': data.VALID_CSV, 'test': data.TEST_CSV}[split]
    if optional and not (Path(data.DATA_PATH) / csv_name).is_file():
        return None
    return read_csv(data.DATA_PATH, csv_name, **options)


def training_records(config: Config, records: Records) -> Records:
    """The images that fine-tuning learns from, of those that are not held out.

    Those of DATA.VIEWS; in a binary task those that say something of it; of these the subset.
    """
    data = config.DATA
    records = select_views(records, data.VIEWS)
    if data.TASK != 'observations':
        records = records.select(~np.isnan(task_targets(records.labels, data.TASK)[:, 0]))
    return take_subset(
        records, fraction=data.TRAIN_FRACTION, images=data.TRAIN_IMAGES, seed=config.SEED
    )
