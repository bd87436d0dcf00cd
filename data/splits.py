"""The records of a split, whichever labelled data set DATA.DATASET names."""

import logging
from pathlib import Path

from config import Config
from data.chexpert import Records, read_csv

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
