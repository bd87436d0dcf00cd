"""Several data sets in one pre-training: the entries of DATA.SOURCES.

Each source is read as a data set of its own, through a config that has its DATA.DATASET and
DATA.DATA_PATH, and holds out its own patients.
"""

import logging
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from config import Config, register_check, require
from data.records import (
    DATASETS,
    Fault,
    Records,
    Table,
    check_dataset,
    describe_subset,
    pretrain_records,
    read_split,
    refuse,
    take_subset,
)
from data.store import is_store, read_about

REQUIRED = ('name', 'dataset', 'path')
LIMITS = ('share', 'images')  # optional, at most one of them
NAME = re.compile(r'[A-Za-z0-9_-]+')


def source_configs(config: Config) -> dict[str, Config]:
    """Return the config of each source by its name; without DATA.SOURCES, {'': config}."""
    if not config.DATA.SOURCES:
        return {'': config}
    return {entry['name']: _own_config(config, entry) for entry in config.DATA.SOURCES}


def read_sources(
    config: Config, logger: logging.Logger
) -> tuple[dict[str, Records], dict[str, Records]]:
    """Read the images of each source for pre-training.

    Returns:
        (train, holdout), each by the name of the source; without DATA.SOURCES the name is ''.
    """
    training, held_out, left_out, found = {}, {}, _left_out(config), set()
    entries = {entry['name']: entry for entry in config.DATA.SOURCES}
    for name, own in source_configs(config).items():
        whole, entry = read_split(own, 'train', logger, labelled=False), entries.get(name, {})
        train, holdout = pretrain_records(own, whole)
        if left_out:
            found |= left_out.intersection(_names(name, whole))
            train, holdout = (_without(name, part, left_out) for part in (train, holdout))
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
        training[name], held_out[name] = train, holdout
    if left_out:
        logger.info(f'{len(found)} training images are left out ({config.DATA.LEAVE_OUT})')
    if left_out and not found:
        raise ValueError(
            f'DATA.LEAVE_OUT {config.DATA.LEAVE_OUT}: none of its {len(left_out)} images is a '
            f'training image; with DATA.SOURCES a name begins with that of its source'
        )
    return training, held_out


@register_check
def check_sources(config: Config, stage: str | None) -> None:
    """Refuse entries of DATA.SOURCES that cannot be read, and sources that share a folder."""
    data, entries = config.DATA, config.DATA.SOURCES
    holds = stage != 'finetune' or not data.LEAVE_OUT
    require(holds, config, 'DATA.LEAVE_OUT', "'' for fine-tuning")
    if not entries:
        return
    require(stage != 'finetune', config, 'DATA.SOURCES', '[] for fine-tuning')
    for key in ('TRAIN_FRACTION', 'TRAIN_IMAGES'):
        holds = data[key] == (1 if key == 'TRAIN_FRACTION' else 0)
        allowed = 'at its default with DATA.SOURCES, whose entries have share or images'
        require(holds, config, f'DATA.{key}', allowed)
    for number, entry in enumerate(entries):
        if problem := _problem(entry):
            raise ValueError(f'DATA.SOURCES[{number}] {problem}, got {entry!r}')
    names = [entry['name'] for entry in entries]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise ValueError(f'DATA.SOURCES: the name {min(repeated)!r} is given twice')
    configs = source_configs(config)
    folders = {name: Path(own.DATA.DATA_PATH).resolve() for name, own in configs.items()}
    for name, folder in folders.items():
        for other in names:
            if other != name and folder.is_relative_to(folders[other]):
                raise ValueError(
                    f'DATA.SOURCES: the path of {name!r} lies in that of {other!r} ({folder}): '
                    'an image must belong to one source'
                )
        check_dataset(configs[name], stage)


def _left_out(config: Config) -> set[str]:
    """Return the images that DATA.LEAVE_OUT lists, which may be none."""
    if not config.DATA.LEAVE_OUT:
        return set()

    def on_fault(fault: Fault) -> None:
        if fault.kind != 'empty CSV':  # a check that found no duplicate
            refuse(fault)

    table = Table(config.DATA.LEAVE_OUT, on_fault, ' (see DATA.LEAVE_OUT)')
    table.require(['file'])
    return set(table['file'])


def _names(source: str, records: Records) -> list[str]:
    """Return the names of images, which the name of their source begins."""
    return [os.path.join(source, file) for file in records.file]


def _without(source: str, records: Records, left_out: set[str]) -> Records:
    return records.select(np.array([n not in left_out for n in _names(source, records)], bool))


def _problem(entry: Any) -> str:
    """Return what is wrong with an entry, '' if nothing."""
    if not isinstance(entry, dict) or set(REQUIRED) - set(entry):
        return f'must be a mapping with {", ".join(REQUIRED)}'
    if unknown := set(entry) - {*REQUIRED, *LIMITS}:
        return f'has an unknown key {min(unknown, key=str)!r} (allowed: {REQUIRED + LIMITS})'
    if not all(isinstance(entry[key], str) and entry[key] for key in REQUIRED):
        return f'must have text for {", ".join(REQUIRED)}'
    if not NAME.fullmatch(entry['name']):
        return 'must have a name of letters, digits, - and _'
    if entry['dataset'] not in DATASETS:
        return f'must have one of {list(DATASETS)}{DATASETS.others} as dataset'
    share, images = entry.get('share', 1.0), entry.get('images', 1)
    if set(LIMITS) <= set(entry):
        return 'must have share or images, not both'
    if type(share) not in (int, float) or not 0 < share <= 1:
        return 'must have a share in (0, 1]'
    if type(images) is not int or images < 1:
        return 'must have a number of images from 1 on'
    return ''


def _own_config(config: Config, entry: dict[str, Any]) -> Config:
    own = config.clone()
    own.defrost()
    own.DATA.SOURCES = []
    own.DATA.DATASET = entry['dataset']
    root, name = Path(config.DATA.DATA_PATH), entry['name']
    is_packed = config.DATA.DATA_PATH and is_store(root)
    if is_packed and name not in (packed := read_about(root).get('sources', {})):
        raise ValueError(f'DATA.SOURCES: the store {root} has no source {name!r}: {[*packed]}')
    own.DATA.DATA_PATH = str(root / (name if is_packed else entry['path']))
    own.DATA.TRAIN_FRACTION = entry.get('share', 1.0)
    return own
