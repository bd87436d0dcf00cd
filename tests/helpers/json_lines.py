"""A reader of a data set as users write it; `tests/data/tables/test_reader.py` uses."""

from collections.abc import Sequence

from data.images.image_source import open_images
from data.tables.chexpert import DATASETS, DataSet, records_of
from data.tables.records import Records, existing_records
from data.tables.table import OnFault, Table, refuse

FILE = 'images.jsonl'  # keys: file, who, part, and names of labels


@DATASETS.register('lines')
class Lines(DataSet):
    """The images whose part is the split."""

    def read(
        self,
        split: str,
        *,
        labels: Sequence[str] = (),
        optional: bool = False,
        look_up: str = 'first',
        on_fault: OnFault = refuse,
    ) -> Records | None:
        table = Table(self.root / FILE, on_fault)
        table.cells = table.cells[table['part'] == split]
        if optional and not len(table):
            return None
        table.add(path=table['file'], patient=table['who'], study=table['file'])
        records = records_of(table, labels)
        return existing_records(records, open_images(self.root), look_up, on_fault)
