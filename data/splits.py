"""Where the data lies, and the records of a split of whichever labelled data set it is."""

import logging
from pathlib import Path

import numpy as np

from config import Config
from data.chexpert import Records, read_csv, select_views, take_subset
from data.labels import task_targets
from data.packed import STORE_FILE, describe_form, file_crc32, is_store, read_about

LABELLED = ('chexpert', 'mimic-cxr')  # values of DATA.DATASET whose images have labels
MIMIC_SPLITS = {'train': 'train', 'valid': 'validate', 'test': 'test'}


def data_root(config: Config, logger: logging.Logger) -> str:
    """The folder to read: DATA.DATA_PATH, or the copy of that store in DATA.CACHE_DIR.

    Copies are told apart by what they hold: stores may share the folder, and one that was added to
    is copied anew, while a run that reads the older copy goes on.

    Raises:
        ValueError: if DATA.CACHE_DIR is for no store, or cannot hold it.
    """
    data = config.DATA
    if not data.CACHE_DIR:
        return data.DATA_PATH
    from data.store_files import copy_store

    source = Path(data.DATA_PATH)
    if not is_store(source):
        raise ValueError(
            f'DATA.CACHE_DIR is for packed stores, and DATA.DATA_PATH {source} is none: pack it '
            'with scripts/pack.py and name the store, or leave DATA.CACHE_DIR empty'
        )
    target = Path(data.CACHE_DIR) / f'{source.resolve().name}-{file_crc32(source / STORE_FILE):08x}'
    try:
        return str(copy_store(source, target, logger))
    except OSError as error:
        raise ValueError(f'DATA.CACHE_DIR: cannot copy {source} to {target}: {error}') from error


def describe_pictures(data_path: str | Path) -> str:
    """In what form the pictures are read."""
    return (
        f'packed {describe_form(read_about(data_path)["settings"])}'
        if is_store(data_path)
        else 'files'
    )


def log_store(config: Config, logger: logging.Logger) -> None:
    """Say what form the pictures of a store have, and warn where views enlarge them."""
    path = config.DATA.DATA_PATH
    if not is_store(path):
        return
    about = read_about(path)
    logger.info(f'{path}: {about["images"]} pictures, {describe_pictures(path)}')
    size, side = config.DATA.IMG_SIZE, about['settings']['size']
    needed = int(256 / 224 * size) if config.TEST.CROP else size
    if side is not None and side < needed:
        logger.warning(
            f'{path}: pictures of {side} px are enlarged, for views of {size} px need {needed} px '
            f'(DATA.IMG_SIZE, TEST.CROP): pack them with scripts/pack.py --size {needed} or more'
        )


def read_split(
    config: Config, split: str, logger: logging.Logger, *, optional: bool = False
) -> Records | None:
    """All records of 'train', 'valid' or 'test'; None for an optional split that is not there."""
    data, root = config.DATA, data_root(config, logger)
    options = {'image_suffix': data.IMAGE_SUFFIX, 'logger': logger}
    if data.DATASET == 'mimic-cxr':
        from data.mimic import read_mimic

        name = MIMIC_SPLITS[split]
        options |= {'labeller': data.LABELLER, 'optional': optional}
        return read_mimic(root, name, **options)
    csv_name = {'train': data.TRAIN_CSV, 'valid': data.VALID_CSV, 'test': data.TEST_CSV}[split]
    if optional and not (Path(root) / csv_name).is_file():
        return None
    return read_csv(root, csv_name, **options)


def describe_subset(config: Config) -> str:
    """What part of the training images is taken, by which option; '' for all of them."""
    data = config.DATA
    if data.TRAIN_IMAGES:
        return f'{data.TRAIN_IMAGES} of the images: DATA.TRAIN_IMAGES'
    if data.TRAIN_FRACTION < 1:
        return f'{100 * data.TRAIN_FRACTION:g} % of the patients: DATA.TRAIN_FRACTION'
    return ''


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
