"""Read the data in a folder, store or table that a script was given, outside a run."""

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from config import Config, check_config, default_config, put
from data.images.image_source import TABLE_SUFFIXES
from data.images.store_manifest import is_store, packed_steps, read_manifest
from data.tables.chexpert import read_csv
from data.tables.folder import MIMIC_TABLES, read_folder
from data.tables.reading import read_split
from data.tables.records import Records, csv_names
from data.tables.table import Fault, Table, refuse

SAID = ('patient', 'study', 'view')  # of an image, by a table


def read_data_set(
    dataset: str,
    root: str,
    split: str,
    labels: Sequence[str] = (),
    *,
    task: str = 'observations',
    groups: Sequence[str] = (),
) -> Records:
    """Read all records of a split outside a run; all other options have their defaults."""
    config = default_config()
    options = {'DATASET': dataset, 'DATA_PATH': root, 'LABELS': list(labels), 'TASK': task}
    if is_store(root):
        options['PREPROCESS'] = packed_steps(read_manifest(root))
    for name, value in options.items():
        put(config, f'DATA.{name}', value, '--dataset')
    put(config, 'EVAL.GROUPS', list(groups), '--groups')
    check_config(config)
    if is_store(root):  # of any size, which may not fit the default encoder
        config.DATA.IMG_SIZE = read_manifest(root)['settings']['size'] or config.DATA.IMG_SIZE
    records = read_split(config, split, logging.getLogger(__name__), labelled=bool(labels))
    if records is None:
        raise ValueError(f'--split: the data set {dataset} in {root} has no split {split}')
    return records


def read_images(place: str, dataset: str = '', split: str = 'train') -> Records:
    """Read the images of a folder, a packed store or a table in CheXpert's form, unlabelled.

    With `dataset`, the folder or store contains this data set, and only the images of the split are
    read. Without it, tables in a folder or store that are in CheXpert's form, such as those that a
    store keeps of each data set, say patient, study and view of their images.
    """
    if dataset:
        return read_data_set(dataset, place, split)
    if not Path(place).is_dir() and place.lower().endswith(TABLE_SUFFIXES):
        folder, name = os.path.split(place)
        return read_csv(folder or '.', name, labels=())
    on_fault = partial(refuse, logger=logging.getLogger(__name__))
    return _described(read_folder(place, allow_all_images=True, on_fault=on_fault))


def _described(records: Records) -> Records:
    """Return images with what the tables in their folder or store say of them.

    A table in which something is wrong is not read, and named.
    """
    found: list[pd.DataFrame] = []
    for file in sorted(records.root.glob('*.csv')):
        header = {*Table(file, lambda _: None, num_rows=1).cells}
        if 'Path' not in header or not header & {'Patient', 'Frontal/Lateral'}:
            continue  # such as boxes of findings
        faults: list[Fault] = []
        own = read_csv(records.root, file.name, labels=(), look_up='none', on_fault=faults.append)
        if wrong := [fault for fault in faults if fault.severity == 'error']:
            told = f'{file} is not read for patients and views: {wrong[0].detail}'
            logging.getLogger(__name__).warning(told)
            continue
        found.append(pd.DataFrame({name: getattr(own, name) for name in ('file', *SAID)}))
    if not found:
        return records
    told = pd.concat(found).drop_duplicates('file').set_index('file').reindex(records.file)
    is_told = told['patient'].notna().to_numpy()
    return replace(
        records,
        **{name: np.where(is_told, told[name], getattr(records, name)) for name in SAID},
    )


def config_of_data(data_path: str, cfg: str | None, opts: list[str]) -> Config:
    """Return the config of a data set; unless DATA.DATASET is given, detect it from the files.

    Args:
        data_path: Folder or store (`--data-path`).
        cfg: YAML file of options (`--cfg`), if any.
        opts: Further options, key and value in turn (`--opts`).

    Raises:
        ValueError: If the folder does not exist, or an option is wrong.
    """
    config = default_config()
    if cfg:
        config.merge_from_file(cfg)
    config.merge_from_list(opts)
    put(config, 'DATA.DATA_PATH', data_path, '--data-path')
    if not Path(data_path).is_dir():
        raise ValueError(f'--data-path is not a folder: {data_path}')
    root = Path(data_path)
    if config.DATA.DATASET == default_config().DATA.DATASET:  # the files show what it is
        config.DATA.DATASET = 'folder'
        if any((root / name).is_file() for name in csv_names(config).values()):
            config.DATA.DATASET = 'chexpert'
        if any(root.glob(MIMIC_TABLES)):
            config.DATA.DATASET = 'mimic-cxr'
    check_config(config)
    return config
