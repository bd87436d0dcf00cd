"""Read the data sets whose table is made by a function: the known ones, and a file my_set.py.

`DATA.DATASET nih` calls `nih(root)` of `data.tables.known_sets`, and `DATA.DATASET my_set.py` the
function `read(root)` in that file. A packed store contains the tables that were made, and is read
without the function.
"""

import hashlib
import importlib.util
import inspect
import traceback
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from config import FUNCTION_SUFFIX, Config
from data.images.image_source import open_images
from data.images.store_manifest import is_store
from data.tables.chexpert import DATASETS, SPLITS, DataSet
from data.tables.known_sets import FUNCTIONS
from data.tables.table import DESCRIPTION, KEYS, Fault, OnFault, Table, refuse
from system.files import is_below
from system.tool import command_of

MOST_ROWS = 2**22  # of a table; an index with greater numbers has other ones than those of rows
FUNCTION = 'read'  # name of the function in a file of the user
# Arguments that a function may have besides the folder -> the options that they are.
ARGUMENTS = {'labeller': 'LABELLER', 'image_suffix': 'IMAGE_SUFFIX'}


def make_tables(
    config: Config, root: str | Path, on_fault: OnFault = refuse
) -> dict[str, pd.DataFrame]:
    """Call the function of DATA.DATASET, and return its table for each split that has rows.

    Raises:
        ValueError: If the function fails, or returns something else.
    """
    name = config.DATA.DATASET
    function = function_of(name)
    known = inspect.signature(function).parameters
    options = {key: config.DATA[option] for key, option in ARGUMENTS.items() if key in known}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        try:
            made = function(Path(root), **options)
        except Exception as error:
            raise ValueError(f'DATA.DATASET {name}: {_describe(error, name)}') from error
    for warning in told:
        if issubclass(warning.category, UserWarning):
            text = f'DATA.DATASET {name}: {warning.message}'
            on_fault(Fault('warning of the data set', text, severity='warning'))
    tables = made if isinstance(made, dict) else {'train': made}
    kinds = {split: type(table).__name__ for split, table in tables.items()}
    is_frame = all(isinstance(table, pd.DataFrame) for table in tables.values())
    if not is_frame or not {*tables} <= {*SPLITS}:
        raise ValueError(
            f'DATA.DATASET {name}: the function must return a pandas.DataFrame, or one for each of '
            f'{", ".join(SPLITS)}, got {kinds if tables is made else kinds["train"]}'
        )
    for table in tables.values():
        repeated = table.columns[table.columns.duplicated()]
        if table.columns.nlevels > 1 or len(repeated):
            fault = f'{repeated[0]!r} is given twice' if len(repeated) else 'has several levels'
            raise ValueError(f'DATA.DATASET {name}: a column of its table {fault}')
    found: dict[str, pd.DataFrame] = {}
    for own, table in tables.items():
        # Of one table for each split, the rows may say their split again, but no other one.
        allowed = (own,) if tables is made else SPLITS
        place = f'DATA.DATASET {name}{f": {own}" if tables is made else ""}'
        found |= _by_split(_numbered(table, root, place), place, allowed, on_fault)
    filled = [split for split in SPLITS if split in found and len(found[split])]
    return {split: found[split] for split in filled}


@DATASETS.register(*FUNCTIONS, FUNCTION_SUFFIX)
class MadeDataSet(DataSet):
    """A data set whose tables are made by a function, which is called once for all splits."""

    def __init__(self, config: Config, root: str | Path) -> None:
        super().__init__(config, root)
        self._made: dict[str, pd.DataFrame] | None = None

    def own_table(
        self,
        split: str,
        *,
        labels: Sequence[str] = (),
        optional: bool = False,
        on_fault: OnFault = refuse,
    ) -> Table | None:
        """Return the table of a split, as it was packed or as the function made it."""
        open_images(self.root)  # a store checks its tables
        packed = packed_tables(self.config, self.root)
        if not packed and self._made is None:
            self._made = make_tables(self.config, self.root, on_fault)
        tables, name = packed or self._made, self.config.DATA.DATASET
        if split not in tables:
            if optional:
                return None
            raise ValueError(
                f'DATA.DATASET {name} has no split {split}, only '
                f'{", ".join(tables) or "empty tables"}: give its table a column Split, or choose '
                f'patients to score: {command_of("scripts/folds.py")}'
            )
        if packed:
            table = Table(self.root / packed[split], on_fault)
        else:
            cells = self._made[split]
            file = _file_of(cells, self.root)
            place = self.root / file if file else f'DATA.DATASET {name}'
            table = Table(place, on_fault, cells=cells)
            table.csv = file
            made = {other: Table(other, cells=cells) for other, cells in self._made.items()}
            table.digest = _digest(made | {split: table}, [*labels, *self.config.EVAL.GROUPS])
        table.may_lack_images = True
        return table


def function_of(name: str) -> Callable[..., Any]:
    """Return the function of a known data set, or `read` in the file of the user at a path."""
    if not name.endswith(FUNCTION_SUFFIX):
        return FUNCTIONS[name]
    file = Path(name)
    if not file.is_file():
        raise ValueError(f'DATA.DATASET {name}: there is no file {file.absolute()}')
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f'DATA.DATASET {name}: {_describe(error, name)}') from error
    if not callable(getattr(module, FUNCTION, None)):
        raise ValueError(f'DATA.DATASET {name}: it must define a function {FUNCTION}(root)')
    return getattr(module, FUNCTION)


def packed_name(config: Config, split: str) -> str:
    """Return the name of the table of a split in a store, which changes with my_set.py."""
    name = config.DATA.DATASET
    if name.endswith(FUNCTION_SUFFIX):
        name = f'{Path(name).stem}-{zlib.crc32(Path(name).read_bytes()):08x}'
    return f'{name}_{split}.csv'


def packed_tables(config: Config, root: str | Path) -> dict[str, str]:
    """Return the tables in a store by split; {} for a folder, or if the function is to be called.

    Raises:
        ValueError: If the store has no table that the present function made.
    """
    if not is_store(root):
        return {}
    # The tables of MIMIC-CXR-JPG are packed as they are, because DATA.LABELLER chooses among them.
    if 'labeller' in inspect.signature(function_of(config.DATA.DATASET)).parameters:
        return {}
    names = {split: packed_name(config, split) for split in SPLITS}
    found = {split: name for split, name in names.items() if (Path(root) / name).is_file()}
    if not found:
        raise ValueError(
            f'{root} has no table {names["train"]}: it was packed without --dataset '
            f'{config.DATA.DATASET}, or with another version of it. Pack again, or write the table '
            f'of the folder ({command_of("scripts/describe_data.py")} --table FILE) and use '
            'DATA.DATASET chexpert with DATA.TRAIN_CSV FILE'
        )
    return found


def _by_split(
    table: pd.DataFrame, place: str, splits: Sequence[str], on_fault: OnFault
) -> dict[str, pd.DataFrame]:
    """Divide a table by its column Split, whose other cells are faults; without it, by none."""
    if 'Split' not in table:
        return {splits[0]: table}
    cells = {name: name for name in (*splits, '')}
    checked = Table(place, on_fault, cells=table)
    found = checked.map('Split', cells, 'value of the split', dtype=object)
    return {split: table[found == split] for split in splits}


def _numbered(table: pd.DataFrame, root: str | Path, place: str) -> pd.DataFrame:
    """Return a table whose index has the numbers of its rows, in a file or else in itself.

    Another column may have become the index (`set_index('study_id')`). Its numbers are no rows: a
    packed table would have an empty line for each number that is missing.
    """
    index = table.index
    is_numbered = pd.api.types.is_integer_dtype(index) and index.is_unique
    if not is_numbered or (index < 0).any():
        raise ValueError(
            f'{place}: the index of its table must have a number for each row, without '
            'repetitions (reset_index(drop=True))'
        )
    has_rows = index.is_monotonic_increasing and index.max() < MOST_ROWS if len(index) else True
    return table if has_rows or _file_of(table, root) else table.reset_index(drop=True)


def _file_of(table: pd.DataFrame, root: str | Path) -> str:
    """Return the file that the rows of a table are in, which is the name of its index, or ''."""
    name = str(table.index.name or '')
    return name if name and is_below(name) and (Path(root) / name).is_file() else ''


def _digest(tables: Mapping[str, Table], names: Sequence[str]) -> str:
    """Return the SHA-256 of the columns that a run reads, in all splits."""
    found = hashlib.sha256()
    for split, table in tables.items():
        for name in (*KEYS, 'Patient', *DESCRIPTION, *names):
            if name in table:
                hashes = pd.util.hash_pandas_object(table[name]).to_numpy()
                found.update(f'{split} {name}'.encode() + hashes.tobytes())
    return found.hexdigest()


def _describe(error: Exception, file: str) -> str:
    """Describe an error in the user's file with its line there; our own errors say where."""
    if isinstance(error, ValueError) and not file.endswith(FUNCTION_SUFFIX):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    own = Path(file).resolve()
    lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == own]
    place = f'line {lines[-1]}: ' if lines else ''
    return f'{place}{type(error).__name__}: {" ".join(str(error).split())}'
