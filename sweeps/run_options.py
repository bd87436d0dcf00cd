"""The options of a sweep's runs: as their folders have them, as its files do, what differs."""

from functools import lru_cache
from pathlib import Path

from config import Config, config_changes, config_text, default_config
from config_dump import FREE_OPTIONS
from config_merge import put, value_at
from provenance import OPTIONS_FILE
from sweeps.sweep_file import Row, Sweep, changed_config


def load_config(folder: Path) -> Config:
    """The options of a run, from its config.yaml; what an older version lacked is at its default.

    Raises:
        ValueError: naming the file, if it is damaged.
    """
    file = folder / OPTIONS_FILE
    return _parsed(file, file.read_bytes()).clone()


@lru_cache(maxsize=1024)
def _parsed(file: Path, content: bytes) -> Config:
    """Of a file with this content: the same is asked for again and again."""
    config = default_config()
    config.merge_from_file(str(file))
    return config


def expected_config(sweep: Sweep, row: Row, stage: str) -> Config:
    """The options of a row's stage as the files of the sweep have them, before flags."""
    config = changed_config(sweep.reference.configs[stage], stage).clone()
    config.defrost()
    changes = row.changes(stage)
    config.merge_from_list([str(word) for pair in changes.items() for word in pair])
    return config


def changed_options(
    before: Config, after: Config, *, but: tuple[str, ...] = ()
) -> dict[str, tuple[str, str]]:
    """Option -> its value before and after, where these differ; not FREE_OPTIONS, nor `but`."""
    after = after.clone()
    after.defrost()
    for key in ('BASE', *FREE_OPTIONS, *but):  # BASE is merged already
        put(after, key, value_at(before, key), 'before')
    if after == before:  # as texts they are slow to compare
        return {}
    changes = {}
    for line in config_changes(config_text(before), config_text(after)):
        key, _, values = line.partition(': ')
        old, _, new = values.partition(' -> ')
        changes[key] = old, new
    return changes
