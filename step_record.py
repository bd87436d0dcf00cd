"""A record of one step, from which `scripts/replay.py` repeats it."""

import base64
import json
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

import distributed
from launcher import Run
from train_state import TrainState


def write_step_record(run: Run, state: TrainState, loader: DataLoader, batch: int) -> Path:
    """Write what the step that begins at micro-batch `batch` of this epoch is made of.

    Every rank must call it. The record is a JSON object: `epoch`, `batch`, `step`, `accumulation`,
    and for each of the `ranks` `rows` (of the training CSV, as in Records.row; a list for each
    micro-batch of the step; of what was drawn, whatever took a bad image's place) and `rng` (random
    states at its start, base64).
    """
    size = min(state.accumulation, state.num_batches - batch)
    mine = {
        'rows': sample_rows(loader, state.epoch, batch, size),
        'rng': {key: encode(value) for key, value in state.rng_marks.get(batch, {}).items()},
    }
    ranks = distributed.gather(mine)
    step = batch // state.accumulation + 1
    path = run.folder / f'nonfinite_epoch_{state.epoch}_step_{step}.json'
    record = {
        'stage': run.stage,
        'epoch': state.epoch,
        'batch': batch,
        'step': step,
        'accumulation': state.accumulation,
        'ranks': ranks,
    }
    if distributed.is_main():
        try:
            path.write_text(json.dumps(record, indent=1) + '\n', encoding='utf-8')
        except OSError as error:  # what it would tell is worth no run
            run.logger.warning(f'{path} cannot be written ({error.strerror})')
    return path


def sample_rows(loader: DataLoader, epoch: int, batch: int, size: int) -> list[list[int]]:
    """Records.row of this rank's images of `size` micro-batches from `batch` on."""
    sampler = loader.batch_sampler
    sampler.set_epoch(epoch, first_batch=batch)
    keys = iter(sampler)
    rows = loader.dataset.records.row
    return [[int(rows[index]) for _, index, *_ in next(keys)] for _ in range(size)]


def read_step_record(path: str | Path) -> dict[str, Any]:
    """A record of `write_step_record`.

    Raises:
        ValueError: naming the file, if it is none.
    """
    try:
        record = json.loads(Path(path).read_text(encoding='utf-8'))
        _ = record['stage'], record['epoch'], record['batch'], record['ranks'][0]['rows']
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(f'{path}: not a record of a step ({error!r})') from error
    return record


def encode(state: torch.Tensor) -> str:
    """A random state as text."""
    return base64.b64encode(bytes(state.cpu().numpy())).decode()
