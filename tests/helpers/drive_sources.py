"""Entries of DATA.SOURCES for the three folders of the fixture `drive`, and their loaders."""

from pathlib import Path

from xray_splits import LOGGER, make_config

from data.build import build_loader

HERE = {'name': 'here', 'dataset': 'chexpert', 'path': 'A'}
THERE = {'name': 'there', 'dataset': 'chexpert', 'path': 'B'}
LOOSE = {'name': 'loose', 'dataset': 'folder', 'path': 'C'}


def config_of(drive: Path, *entries: dict, options: tuple = ()):
    return make_config(drive, 'DATA.SOURCES', list(entries), *options)


def loaders_of(drive: Path, *entries: dict, options: tuple = ()):
    return build_loader(config_of(drive, *entries, options=options), LOGGER, is_pretrain=True)
