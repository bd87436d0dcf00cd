"""Read the data sets of DATA.SOURCES for pre-training.

Each source is read like a single data set, with a copy of the config that has its DATA.DATASET and
DATA.DATA_PATH, and patients are held out from each source.
"""

import logging
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from config import OPTIONS, Config, refuse_unless, selected_part
from data.tables.chexpert import open_data_set
from data.tables.reading import (
    data_root,
    log_loading,
    read_split,
    refuse_shared_patients,
    report_names_not_found,
    scored_splits,
)
from data.tables.records import Records
from data.tables.splits import describe_subset, pretrain_records, take_subset
from data.tables.table import refuse

LIMITS = ('share', 'images')  # optional keys, of which an entry may have one
# Key of an entry -> check of the value, and allowed values. Keys outside LIMITS are required.
RULES = {
    'name': (
        lambda v: isinstance(v, str) and re.fullmatch(r'[A-Za-z0-9_-]+', v),
        'text made of letters, digits, - and _ (a number needs quotes)',
    ),
    'dataset': (OPTIONS['DATA.DATASET'].allows, OPTIONS['DATA.DATASET'].allowed),
    'path': (lambda v: isinstance(v, str) and v, 'a folder or a packed store'),
    'share': (lambda v: type(v) in (int, float) and 0 < v <= 1, 'a number in (0, 1]'),
    'images': (lambda v: type(v) is int and v >= 1, 'a whole number from 1 on'),
}


def source_configs(config: Config) -> dict[str, Config]:
    """Return the config of each source by name; without DATA.SOURCES, {'': config}."""
    if not config.DATA.SOURCES:
        return {'': config}
    configs = {}
    for entry in config.DATA.SOURCES:
        configs[entry['name']] = source = config.clone()
        source.defrost()
        # From here on the source is read like any single data set.
        source.DATA.SOURCES = []
        source.DATA.DATASET = entry['dataset']
        source.DATA.DATA_PATH = str(Path(config.DATA.DATA_PATH) / entry['path'])
        source.DATA.TRAIN_FRACTION = entry.get('share', 1.0)
    return configs


def read_sources(
    config: Config, logger: logging.Logger
) -> tuple[dict[str, Records], dict[str, Records]]:
    """Read the images of each source for pre-training.

    Returns:
        (train, holdout), each by the name of the source; without DATA.SOURCES the name is ''. The
        held-out images are limited to EVAL.HOLDOUT_IMAGES per source.
    """
    training, held_out, read = {}, {}, []
    entries = {entry['name']: entry for entry in config.DATA.SOURCES}
    for name, own in source_configs(config).items():
        log_loading(own, logger)
        data_set = open_data_set(own, data_root(own, logger))
        options = {'labelled': False, 'source': name, 'data_set': data_set}
        whole = read_split(own, 'train', logger, **options)
        scored = scored_splits(data_set, name)
        read += [whole, *scored.values()]
        refuse_shared_patients(own, {'train': whole} | scored, logger)
        entry = entries.get(name, {})
        train, holdout = pretrain_records(own, whole)
        # Patient by patient, so that a smaller number is a subset of a larger one.
        if most := min(entry.get('images', 0), len(train)):
            train = take_subset(train, fraction=1.0, images=most, seed=config.SEED)
        limits = [f'{key} {entry[key]}' for key in LIMITS if key in entry]
        subset = ', '.join(filter(None, [describe_subset(config), *limits]))
        logger.info(
            f'{f"{name}: " if name else ""}pre-training on {len(train)} images of '
            f'{len(set(train.patient))} patients{f" ({subset})" if subset else ""}; '
            f'{len(holdout)} images of {len(set(holdout.patient))} patients held out'
        )
        if name and not len(train):
            raise ValueError(
                f'DATA.SOURCES: no training image of {name!r} is left (DATA.VIEWS, DATA.LEAVE_OUT)'
            )
        # Each source has its own held-out patients, so that its error can be shown.
        training[name] = train
        count = config.EVAL.HOLDOUT_IMAGES or len(holdout)
        if count < len(holdout):  # evenly spread over their order
            holdout = holdout.select(np.arange(count) * len(holdout) // count)
        held_out[name] = holdout
    report_names_not_found(config, read, partial(refuse, logger=logger))
    return training, held_out


def check(config: Config, stage: str | None) -> None:
    """Refuse entries of DATA.SOURCES that cannot be read, and sources that share a folder."""
    data, entries = config.DATA, config.DATA.SOURCES
    if not entries:
        return
    refuse_unless(stage != 'finetune', config, 'DATA.SOURCES', '[] for fine-tuning')
    for key, default in (('TRAIN_FRACTION', 1), ('TRAIN_IMAGES', 0)):
        allowed = f'{default} with DATA.SOURCES, whose entries have share or images'
        refuse_unless(data[key] == default, config, f'DATA.{key}', allowed)
    for number, entry in enumerate(entries):
        _check_entry(f'DATA.SOURCES[{number}]', entry)
    names = [entry['name'] for entry in entries]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise ValueError(f'DATA.SOURCES: the name {min(repeated)!r} is given twice')
    configs = source_configs(config)
    folders = {name: Path(own.DATA.DATA_PATH).resolve() for name, own in configs.items()}
    for name, folder in folders.items():
        for other in names:
            if other != name and folder.is_relative_to(folders[other]):
                raise ValueError(
                    f'DATA.SOURCES: the folder of {name!r} ({folder}) is inside the folder of '
                    f'{other!r}, but an image must belong to one source'
                )
        selected_part(configs[name], 'DATA.DATASET').check(configs[name], stage)


def _check_entry(place: str, entry: Any) -> None:
    """Refuse an entry of DATA.SOURCES with a missing, unknown or wrong key."""
    if not isinstance(entry, dict):
        raise ValueError(f'{place} must be a mapping with the keys {", ".join(RULES)}, got {entry}')
    for key in [*entry, *(key for key in RULES if key not in LIMITS)]:
        if key not in RULES:
            raise ValueError(f'{place} has the unknown key {key}; allowed: {", ".join(RULES)}')
        is_allowed, allowed = RULES[key]
        if not is_allowed(entry.get(key)):
            raise ValueError(f'{place}: {key} must be {allowed}, got {entry.get(key)!r}')
    if entry.keys() >= set(LIMITS):
        raise ValueError(f'{place} must have share or images, not both')
