"""The options of a sweep's runs: as their folders have them, as its files do, what differs."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from config import Config, config_changes, config_text, default_config
from config_dump import FREE_OPTIONS
from config_merge import put, value_at
from provenance import OPTIONS_FILE, is_finished
from sweeps.rows import Row, Sweep, changed_config, run_folder


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
    config = changed_config(sweep.base(row, stage), stage).clone()
    config.defrost()
    changes = row.changes(stage)
    config.merge_from_list([str(word) for pair in changes.items() for word in pair])
    return config


def finetuned_runs(
    sweep: Sweep, seeds: Sequence[int], output: str | Path
) -> list[tuple[Path, float | None]]:
    """Folders of the finished fine-tunings, and what share their pre-training hid (None: none).

    Raises:
        ValueError: if there is none.
    """
    found = []
    for row in sweep.rows:
        for seed in seeds:
            folder = run_folder(output, 'finetune', row, seed)
            pretraining = run_folder(output, 'simmim', row, seed)
            if is_finished(folder):
                masked = load_config(pretraining).DATA.MASK_RATIO if pretraining else None
                found.append((folder, masked))
    if not found:
        raise ValueError(f'{output}: no fine-tuning of {sweep.path} is finished')
    return found


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
