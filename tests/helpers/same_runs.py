"""What a finished run leaves: its last state, metrics and curves, to compare bit for bit."""

from pathlib import Path

import torch
from curves import curves

from logger import read_metrics
from utils import read_checkpoint

LAST = 'ckpt_epoch_1.pth'
TIMING = {'seconds', 'data_seconds', 'images_per_second'}


def final_state(folder: Path) -> dict:
    return read_checkpoint(folder / LAST)


def last_metrics(folder: Path) -> dict:
    values = read_metrics(folder / 'metrics.jsonl')[-1]
    return {key: value for key, value in values.items() if key not in TIMING}


def untimed_curves(folder: Path) -> dict:
    return {tag: rows for tag, rows in curves(folder).items() if tag.split('/')[1] not in TIMING}


def assert_same_weights(got: dict, want: dict) -> None:
    """Weights and moments of the optimizer are equal bit for bit."""
    assert got['model'].keys() == want['model'].keys()
    for key, value in want['model'].items():
        assert torch.equal(got['model'][key], value), key
    for index, moments in want['optimizer']['state'].items():
        for name, value in moments.items():
            found = got['optimizer']['state'][index][name]
            is_same = torch.equal(found, value) if torch.is_tensor(value) else found == value
            assert is_same and type(found) is type(value), (index, name)
            assert getattr(found, 'dtype', None) == getattr(value, 'dtype', None), (index, name)
