"""A reader of JSON lines as a user would write it, which `tests/test_reader.py` uses."""

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from config import Config
from data.chexpert import records_of
from data.image_source import open_images
from data.records import Records, existing_records, register_dataset
from data.table import OnFault, Table, refuse

FILE = 'images.jsonl'  # keys: file, who, part, and names of labels


@register_dataset('lines', labelled=True, splits=lambda config: ['train', 'valid'])
def read_lines(
    config: Config,
    root: str | Path,
    split: str,
    *,
    labels: Sequence[str] = (),
    optional: bool = False,
    look_up: str = 'first',
    on_fault: OnFault = refuse,
) -> Records | None:
    """Read the images whose part is the split."""
    file = Path(root) / FILE
    cells = pd.DataFrame(map(json.loads, file.read_text('utf-8').splitlines()), dtype=object)
    cells = cells[cells['part'] == split]
    if optional and not len(cells):
        return None
    cells = cells.assign(path=cells['file'], patient=cells['who'], study=cells['file'])
    records = records_of(Table(file, on_fault, cells=cells), labels)
    return existing_records(records, open_images(root), look_up, on_fault)
