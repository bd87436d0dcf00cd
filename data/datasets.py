"""The registry of data sets. To add one, write one reader with `@register_dataset`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config import Config, Registry, all_parts
from data.store import is_store

DATASETS = Registry('DATA.DATASET')


@dataclass(frozen=True)
class DataSet:
    """An entry of DATASETS."""

    # Reader of a split of a folder or a packed store, with the arguments of `read_layout`.
    read: Callable[..., Any]  # -> Records | None
    labelled: bool  # whether images have labels
    # (config, root) -> existing files that are read, without the images; a store contains them
    tables: Callable[[Config, Path], list[Path]]
    # config -> splits that are read and packed; None: those whose files `read_source` recognises
    splits: Callable[[Config], Sequence[str]] | None
    # config -> YAML file that describes the data set; None: the reader alone does
    layout: Callable[[Config], Path] | None = None

    def check(self, config: Config, stage: str | None) -> None:
        """Refuse fine-tuning without labels, and an output folder inside the folder of images."""
        root = config.DATA.DATA_PATH
        if stage == 'finetune' and not self.labelled:
            names = ' or '.join(
                repr(name) for name, entry in all_parts('DATA.DATASET').items() if entry.labelled
            )
            raise ValueError(
                f'DATA.DATASET must be {names} for fine-tuning, got {config.DATA.DATASET!r}'
            )
        is_read = stage and root and not config.DATA.SOURCES
        is_folder = is_read and not self.labelled and not is_store(root)
        if is_folder and Path(config.OUTPUT).resolve().is_relative_to(Path(root).resolve()):
            raise ValueError(
                f'OUTPUT {config.OUTPUT} must lie outside DATA.DATA_PATH {root}: the next run '
                'would train on the images that this run writes'
            )


def register_dataset(*names: str, **facts: Any) -> Callable:
    """Return a decorator that registers a reader of splits with the fields of `DataSet`."""

    def add(read: Callable) -> Callable:
        for name in names:
            DATASETS.register(name)(DataSet(read, **facts))
        return read

    return add
