"""Write packed stores, in parallel, resumably and reproducibly.

Worker processes read and resize the images. The main process writes them in the order of the file
names, so the store does not depend on the number of workers. When a file of images (a shard) is
complete, packing.json lists it with its checksum. An interrupted call resumes after the last
complete shard, which costs at most SHARD_IMAGES images.
"""

import logging
import multiprocessing
import os
import signal
import threading
import time
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import ipc
from tqdm import tqdm

from config import Config, default_config, import_by_name, selected_part
from data.images.files import FULL_RANGE_BITS, BadImageError, full_size, grey_levels
from data.images.image_source import open_images
from data.images.preprocess import Setup, apply_steps
from data.images.preprocess_steps import squeezed
from data.images.store import SCHEMA, open_store, read_rows, rows_checksum
from data.images.store_files import LOCK_FILE, copy_file, write_json, write_manifest
from data.images.store_manifest import (
    BAD_FILE,
    SHARD_SUFFIX,
    STORE_FILE,
    UNFINISHED_FILE,
    VERSION,
    Settings,
    file_crc32,
    file_problems,
    is_store,
    read_json,
    read_manifest,
    shard_names,
)
from data.tables.chexpert import SPLITS, open_data_set, read_csv, with_suffix
from data.tables.data_sets import MadeDataSet, packed_name
from data.tables.folder import MIMIC_TABLES, read_folder, signs_of_scores
from data.tables.table import refuse
from data.tables.table_files import csv_text
from system.files import allow_open_files, atomic_writer, locked, replace_file

CHUNK_IMAGES = 16  # number of resized images that a worker returns at once
SHARD_IMAGES = 1024  # the most in a file: a killed call loses these, less than a minute of work
TABLES = ('train.csv', 'valid.csv', 'test.csv')
TABLE_FORMS = ('*.csv', '*.csv.gz', '*.tsv', '*.xlsx', '*.xlsm', '*.jsonl')


@dataclass(frozen=True)
class Source:
    """The files of a folder to pack."""

    root: Path
    files: list[str]  # sorted image files, relative to the root
    splits: dict[str, str]  # split or table of the files that a table names
    tables: dict[str, Path | bytes]  # path or contents of tables by the name in the store
    scored: bool  # whether `read_folder` refuses to train on all images

    def signature(self) -> dict[str, object]:
        """Return checksums that identify the source."""
        names = b'\0'.join(map(os.fsencode, self.files))
        return {
            'images': len(self.files),
            'names_crc32': zlib.crc32(names),
            'tables_crc32': {
                name: zlib.crc32(table) if isinstance(table, bytes) else file_crc32(table)
                for name, table in self.tables.items()
            },
        }


class Row(NamedTuple):
    """The columns of SCHEMA but the name, and whether more than 8 bits were rounded to 8."""

    height: int
    width: int
    full_height: int
    full_width: int
    white: int
    crc32: int
    pixels: bytes
    is_rounded: bool


def pack(
    source: Source,
    output: str | Path,
    settings: Settings,
    *,
    workers: int = 1,
    skip_bad: bool = False,
) -> dict[str, Any]:
    """Pack the files of a source, or resume an interrupted call with the same settings.

    Args:
        source: Files to pack, see `read_source`.
        output: Folder of the store: a new folder, or the folder of an interrupted call.
        settings: Settings of the store.
        workers: Number of processes that read and resize.
        skip_bad: Leave out damaged images and list them in bad_images.csv.

    Returns:
        The contents of store.json.

    Raises:
        ValueError: If an image cannot be read, or if `output` has other contents or was begun with
            other settings.
    """
    output = Path(output)
    job = {'version': VERSION, 'settings': asdict(settings), 'source': source.signature()}
    if output.resolve().is_relative_to(source.root.resolve()):
        raise ValueError(
            f'--output {output} must not lie in the folder to be packed, {source.root}'
        )
    found = set(os.listdir(output)) if output.is_dir() else set()
    if found - {LOCK_FILE} and not found & {STORE_FILE, UNFINISHED_FILE}:
        raise ValueError(f'--output {output} must be empty or a store, but it has {min(found)}')
    with locked(output / LOCK_FILE, wait=False):
        if (output / STORE_FILE).is_file():
            manifest = read_manifest(output)
            _refuse_other(output, manifest, job)
            if problems := file_problems(output, manifest):
                raise ValueError(f'{problems[0]}: pack the images again, into a new folder')
        else:
            manifest = _build(source, output, settings, job, workers=workers, skip_bad=skip_bad)
        (output / UNFINISHED_FILE).unlink(missing_ok=True)
    return manifest


def read_source(
    data_path: str | Path,
    *,
    csv_names: Sequence[str] = (),
    image_suffix: str = '',
    all_images: bool = False,
    dataset: str = '',
) -> Source:
    """List the files of a folder to pack.

    All tables directly in the folder are packed, and the images that they name: images of a
    `dataset`, of MIMIC-CXR-JPG, or of the tables in `csv_names` (by default train.csv, valid.csv
    and test.csv). Without such files, or with `all_images`, all images below the folder are packed.
    If a function makes the tables of a data set, the tables that it made are packed, too.
    """
    root = Path(data_path)
    if not root.is_dir() or is_store(root):
        raise ValueError(f'--data-path must be a folder with CSV files and images, got {root}')
    tables = _find_tables(root, csv_names)
    config = default_config()
    if not (dataset or csv_names) and any(root.glob(MIMIC_TABLES)):
        dataset = 'mimic-cxr'
    config.DATA.DATASET, config.DATA.IMAGE_SUFFIX = dataset or 'chexpert', image_suffix
    scored = bool(signs_of_scores(root, [], [*tables]))
    if dataset == 'mimic-cxr':
        # Also the images without labels.
        listed = import_by_name('data.tables.known_sets:mimic_images')(root)
        files = with_suffix(listed['Path'], image_suffix)
        splits = dict(zip(files, listed['Split'], strict=True))
    elif config.DATA.DATASET != 'chexpert' and selected_part(config, 'DATA.DATASET').labelled:
        splits, made = _read_splits(config, root)
        tables |= made
        scored = {*splits.values()} != {'train'}
    else:
        names = csv_names or [name for name in TABLES if name in tables]
        read = partial(read_csv, root, image_suffix=image_suffix, labels=())
        splits = {file: name for name in names for file in read(name).file}
    images = {*splits}
    if all_images or not splits:
        on_fault = partial(refuse, logger=logging.getLogger(__name__))
        images.update(read_folder(root, allow_all_images=all_images, on_fault=on_fault).file)
        scored = scored or bool(signs_of_scores(root, *open_images(root).scan()))
    for file in images:
        if file.encode('utf-8', 'replace') != os.fsencode(file):
            raise ValueError(
                f'{root}: rename the images whose names are not UTF-8, such as {file!r}'
            )
    return Source(root, sorted(images, key=os.fsencode), splits, tables, scored)


def _find_tables(root: Path, csv_names: Sequence[str]) -> dict[str, Path | bytes]:
    """Return the tables directly in a folder by name, to which `csv_names` must belong.

    A Parquet file with images is no table.
    """
    has_images = import_by_name('data.images.hub:image_names')
    paths = [path for form in TABLE_FORMS for path in root.glob(form)]
    paths += [path for path in root.glob('*.parquet') if not has_images(root, path.name)]
    tables = {path.name: path for path in sorted(paths)}
    if BAD_FILE in tables:
        raise ValueError(f'{tables[BAD_FILE]}: rename this file, because a store uses its name')
    for name in csv_names:
        if name not in tables:
            raise ValueError(f'--csv must name CSV files directly in {root}, got {name!r}')
    return tables


def _read_splits(config: Config, root: Path) -> tuple[dict[str, str], dict[str, Path | bytes]]:
    """Return the images of all splits with their split, and the tables that the splits read."""
    splits, tables, data_set = {}, {}, open_data_set(config, root)
    for split in SPLITS:
        records = data_set.read(split, labels=(), optional=True, look_up='none')
        if records is None:
            continue
        splits |= dict.fromkeys(records.file, split)
        if isinstance(data_set, MadeDataSet):
            tables[packed_name(config, split)] = csv_text(data_set.table(split)).encode()
        elif records.csv:
            tables[records.csv] = root / records.csv
    return splits, tables


def copies_in_splits(source: Source, output: str | Path) -> list[tuple[str, str]]:
    """Return the images of a store that have the pixels of an image of another split.

    Returns:
        (image, earlier image with the same pixels) for each, in the order of the names.
    """
    store, first, copies = open_store(output), {}, []
    for position, file in enumerate(store.files):
        if file not in source.splits:
            continue
        entry = store.index[position]
        key = entry['height'], entry['width'], entry['crc32']
        other = first.setdefault(key, (file, position))
        if source.splits[file] != source.splits[other[0]]:
            pixels = [np.asarray(store.image(place)) for place in (other[1], position)]
            if np.array_equal(*pixels):  # the checksum has only 32 bits
                copies.append((file, other[0]))
    return copies


def encode(image: Image.Image, settings: Settings) -> Row:
    """Convert an image to its stored form."""
    setup = Setup(settings.size, settings.lung_masks)
    image = apply_steps(image, settings.preprocess, setup)
    full_height, full_width = full_size(image)
    size, short = settings.size, min(image.size)
    if settings.square:
        image = squeezed(image, (size, size))
    elif size is not None and short > size:
        image = squeezed(image, tuple(round(side * size / short) for side in image.size))
    pixels = np.asarray(image)
    white = 255
    if image.mode != 'L':
        if not settings.keep_16bit:
            pixels = grey_levels(image)
        elif size is None:
            white, pixels = _exact_levels(pixels)
        else:
            white = 2**16 - 1
            pixels = np.rint(np.clip(pixels, 0, 255) * np.float32(white / 255)).astype('<u2')
    data = pixels.tobytes()
    is_rounded = image.mode != 'L' and not settings.keep_16bit
    full = full_height, full_width
    return Row(*pixels.shape, *full, white, zlib.crc32(data), data, is_rounded)


def start_worker() -> None:
    """Let the parent process handle Ctrl-C, and end with it, which releases its lock."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    end = (os.getpid(), signal.SIGTERM)
    threading.Thread(target=lambda: (parent.join(), os.kill(*end)), daemon=True).start()


def _refuse_other(output: Path, found: dict[str, Any], job: dict[str, Any]) -> None:
    """Refuse to resume if the settings or the source have changed."""
    found, job = ({**d, **d['settings'], **d['source']} for d in (found, job))
    for key in (*job['settings'], *job['source']):
        if found[key] != job[key]:
            raise ValueError(
                f'{output} was packed with other settings or from other data: {key} was '
                f'{found[key]} and is now {job[key]}; use the same ones, or a new folder'
            )


def _build(
    source: Source,
    output: Path,
    settings: Settings,
    job: dict[str, Any],
    *,
    workers: int,
    skip_bad: bool,
) -> dict[str, Any]:
    """Write the missing shards, the tables, and store.json last; return its contents."""
    progress = job | {'done': 0, 'rounded': 0, 'left_out': {}, 'files': {}}
    progress['begun'] = time.time_ns()
    if (output / UNFINISHED_FILE).is_file():
        found = read_json(output / UNFINISHED_FILE, {'done': int, 'begun': int})
        _refuse_other(output, found, job)
        may_resume = skip_bad or not found['left_out']
        may_resume = may_resume and not file_problems(output, found, every_byte=True)
        changed = _changed_since(found['begun'], source.root, source.files[: found['done']])
        if changed:  # or repaired, if it was left out
            warning = f'{changed} was changed after it was packed: begin again'
            logging.getLogger(__name__).warning(warning)
        elif may_resume:
            progress = found
    write_json(output / UNFINISHED_FILE, progress)
    rest = source.files[progress['done'] :]
    with closing(_encode_all(source, rest, settings, workers)) as images:
        _write_shards(output, rest, images, settings, progress, skip_bad=skip_bad)
    if not progress['files']:
        raise ValueError(f'none of the images in {source.root} can be read')
    names, index = read_rows([output / name for name in shard_names(progress)])
    manifest = {k: value for k, value in progress.items() if k not in ('done', 'begun')}
    manifest |= {'images': len(index), 'scored': source.scored}
    manifest |= {'rows_crc32': rows_checksum(names, index), 'files': {**progress['files']}}
    for name, table in source.tables.items():
        crc32 = job['source']['tables_crc32'][name]
        size = len(table) if isinstance(table, bytes) else table.stat().st_size
        if isinstance(table, bytes):
            replace_file(output / name, table)
        else:
            copy_file(table, output / name, size, crc32)
        manifest['files'][name] = [size, crc32]
    write_manifest(output, manifest)
    return manifest


def _changed_since(begun: int, root: Path, files: Sequence[str]) -> str:
    """Return the first file that was changed after a time in ns, or ''."""
    for file in files:
        path = root / file
        while not path.exists():  # an image in a Parquet file
            path = path.parent
        # Unlike the time of the contents, this one also shows that an older file replaced it.
        if path.stat().st_ctime_ns > begun:
            return file
    return ''


def _write_shards(
    output: Path,
    files: Sequence[str],
    images: Iterator[Row | str],
    settings: Settings,
    progress: dict[str, Any],
    *,
    skip_bad: bool,
) -> None:
    """Write encoded images to shards, and bring the progress up to date."""
    count = progress['done']
    bar = tqdm(images, 'pack', count + len(files), unit='image', initial=count, disable=None)
    rows: list[tuple[Any, ...]] = []
    num_bytes = 0
    for file, image in zip(files, bar, strict=True):
        if isinstance(image, str) and not skip_bad:
            raise ValueError(f'{image} (--skip-bad leaves out damaged images)')
        if isinstance(image, str):
            progress['left_out'][file] = image
        else:
            is_full = num_bytes + len(image.pixels) > settings.shard_bytes
            if rows and (is_full or len(rows) == SHARD_IMAGES):
                _save_shard(output, rows, progress)
                rows, num_bytes = [], 0
            rows.append((file, *image[:-1]))
            num_bytes += len(image.pixels)
            progress['rounded'] += image.is_rounded
        progress['done'] += 1
    if rows:
        _save_shard(output, rows, progress)


def _save_shard(output: Path, rows: list[tuple[Any, ...]], progress: dict[str, Any]) -> None:
    """Write the rows of SCHEMA to an Arrow file, and the progress from which packing resumes."""
    columns = zip(*rows, strict=True)
    arrays = [pa.array(values, kind) for values, kind in zip(columns, SCHEMA.types, strict=True)]
    file = output / f'images_{len(progress["files"]):05d}{SHARD_SUFFIX}'
    with atomic_writer(file) as opened, ipc.new_file(opened, SCHEMA) as writer:
        writer.write_batch(pa.record_batch(arrays, schema=SCHEMA))
    progress['files'][file.name] = [file.stat().st_size, file_crc32(file)]
    write_json(output / UNFINISHED_FILE, progress)


def _encode_all(
    source: Source, files: Sequence[str], settings: Settings, workers: int
) -> Iterator[Row | str]:
    """Yield the encoded files in order, or the reason why an image is damaged."""
    encode_chunk = partial(_encode_chunk, source.root, settings)
    if workers == 1:
        for file in files:
            yield from encode_chunk([file])
        return
    length = CHUNK_IMAGES if settings.size else 1
    waiting = deque()  # bounded, because the results of all chunks would not fit into memory
    allow_open_files(workers)
    pool = ProcessPoolExecutor(workers, initializer=start_worker)
    try:
        for start in range(0, len(files), length):
            waiting.append(pool.submit(encode_chunk, files[start : start + length]))
            if len(waiting) == 2 * workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    except BrokenProcessPool as error:
        raise ValueError(f'a worker process was killed (out of memory?): {error}') from error
    finally:
        pool.shutdown(cancel_futures=True)


def _encode_chunk(root: Path, settings: Settings, files: Sequence[str]) -> list[Row | str]:
    encoded: list[Row | str] = []
    read = open_images(root).reader(files)
    for position in range(len(files)):
        try:
            encoded.append(encode(read(position), settings))
        except BadImageError as error:
            encoded.append(str(error))
    return encoded


def _exact_levels(pixels: np.ndarray) -> tuple[int, np.ndarray]:
    """Return the integers and the one for grey level 255, or 255 and the unchanged grey levels."""
    for bits in FULL_RANGE_BITS:
        white = 2**bits - 1
        scale = np.float32(255 / white)
        levels = np.clip(np.rint(pixels / scale), 0, white).astype('<u2')
        if (levels * scale == pixels).all():
            return white, levels
    return 255, pixels.astype('<f4')
