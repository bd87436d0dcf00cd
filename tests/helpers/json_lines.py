"""A reader of a data set as users write it; `tests/data/tables/test_reader.py` uses."""

from typing import Any

from data.tables.chexpert import DATASETS, DataSet
from data.tables.table import OnFault, Table, refuse

FILE = 'images.jsonl'  # keys: file, who, part, and names of labels


@DATASETS.register('lines')
class Lines(DataSet):
    """The images whose part is the split."""

    def own_table(
        self, split: str, *, optional: bool = False, on_fault: OnFault = refuse, **others: Any
    ) -> Table | None:
        table = Table(self.root / FILE, on_fault)
        table.cells = table.cells[table['part'] == split]
        table.add(Path=table['file'], Patient=table['who'])
        return table if len(table) or not optional else None
