"""The options of a sweep's runs: as their folders have them, as its files do, what differs."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from config import Config, config_changes, config_text, default_config
from config_dump import FREE_OPTIONS
from config_merge import put, value_at
from provenance import OPTIONS_FILE, is_finished
from sweeps.rows import Row, Sweep, changed_config, run_folder

STEP, COMPARED = 'pictures a step', 'pictures compared at once'


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


def images_per_step(config: Config, processes: int) -> int:
    """Images of an optimizer step."""
    return config.DATA.BATCH_SIZE * micro_batches(config) * processes


def batch_counts(config: Config, record: Mapping[str, Any], stage: str) -> dict[str, int]:
    """By STEP, and in contrastive pre-training COMPARED: how many pictures a run takes together.

    Args:
        config: of the run.
        record: of its run.json, of which `processes` and `starts` are read; {}: one process.
        stage: of the run.
    """
    processes = record.get('processes', 1)
    if stage != 'contrastive':
        return {STEP: images_per_step(config, processes)}
    # It goes on with as many compared: on other processes with options of its own for these.
    for start in record.get('starts', []):
        processes = start.get('processes', processes)
    return {
        STEP: images_per_step(config, processes),
        COMPARED: config.DATA.BATCH_SIZE * processes,
    }


def micro_batches(config: Config) -> int:
    """Of an optimizer step, in one process."""
    return max(config.TRAIN.ACCUMULATION_STEPS, 1)


def check_encoder(
    folder: Path, changes: Mapping[str, tuple[str, str]], expected: Config, sweep: Sweep
) -> None:
    """Refuse a run with another encoder or size of image than the files of the sweep have.

    Args:
        folder: of the run.
        changes: what differs from the expected options, see `changed_options`.
        expected: the options as the files have them.
        sweep: the sweep.

    Raises:
        ValueError: naming folder, sweep and option.
    """
    section = f'MODEL.{expected.MODEL.TYPE.upper()}.'
    for key, (old, new) in changes.items():
        if key in ('DATA.IMG_SIZE', 'MODEL.TYPE') or key.startswith(section):
            raise ValueError(
                f'{folder} is no run of {sweep.path}: {key} is {new} in its options, {old} in the '
                'files of the sweep'
            )


class Finetuned(NamedTuple):
    """A finished fine-tuning: its folder, that of its pre-training, and what share that hid."""

    folder: Path
    pretraining: Path | None
    masked: float | None


def finetuned_runs(sweep: Sweep, seeds: Sequence[int], output: str | Path) -> list[Finetuned]:
    """The finished fine-tunings of a sweep, row by row.

    Raises:
        ValueError: if there is none.
    """
    found = []
    for row in sweep.rows:
        for seed in seeds:
            folder = run_folder(output, 'finetune', row, seed)
            if is_finished(folder):
                hiding = run_folder(output, 'simmim', row, seed)
                masked = load_config(hiding).DATA.MASK_RATIO if hiding else None
                pretraining = run_folder(output, row.pretraining, row, seed)
                found.append(Finetuned(folder, pretraining, masked))
    if not found:
        raise ValueError(f'{output}: no fine-tuning of {sweep.path} is finished')
    return found


def unfinished_seeds(
    sweep: Sweep, seeds: Sequence[int], output: str | Path
) -> dict[str, list[int]]:
    """Row -> seeds whose fine-tuning is not finished, for the rows that have any."""
    unfinished = {
        row.name: [s for s in seeds if not is_finished(run_folder(output, 'finetune', row, s))]
        for row in sweep.rows
    }
    return {name: left for name, left in unfinished.items() if left}


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
