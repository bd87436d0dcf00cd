"""The registry of data sets. To add one, write one reader with `@register_dataset`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config import LAYOUT_SUFFIX, Config, Registry


class _DataSets(Registry):
    """Registry of data sets; the path of a YAML file is a valid name, too (see `data.layouts`)."""

    def __missing__(self, name: str) -> 'DataSet':
        if not name.endswith(LAYOUT_SUFFIX):
            return super().__missing__(name)
        return self['nih']  # all layouts have the same reader


DATASETS = _DataSets('DATA.DATASET')


@dataclass(frozen=True)
class DataSet:
    """An entry of DATASETS."""

    # Reader of a split, with the arguments of `read_mimic`.
    read: Callable[..., Any]  # -> Records | None
    labelled: bool  # whether images have labels
    # (config, root) -> existing files that are read, without the images
    tables: Callable[[Config, Path], list[Path]]
    # config -> splits of a layout; None for train, valid and test
    splits: Callable[[Config], Sequence[str]] | None = None


def register_dataset(*names: str, **facts: Any) -> Callable:
    """Return a decorator that registers a reader of splits with the fields of `DataSet`."""

    def add(read: Callable) -> Callable:
        for name in names:
            DATASETS.register(name)(DataSet(read, **facts))
        return read

    return add
