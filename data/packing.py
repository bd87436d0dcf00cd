"""Building the packed store of `data.packed`: in parallel, resumable, always the same bytes.

Workers read and resize the pictures; this process alone writes them, in the order of the file
names, with a journal.  So the store depends neither on the number of workers nor on how often the
building was killed.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from data.images import is_passing, load_image, refuse_link_out
from data.records import SCORED_FILES, named_images, read_csv, read_folder
from data.store import (
    BAD_FILE,
    BYTES,
    DTYPES,
    LOCK_FILE,
    FLOATS,
    LEVEL_FORMS,
    PICTURE,
    ROUNDED,
    STORE_FILE,
    UNFINISHED_FILE,
    VERSION,
    Store,
    check_space,
    copy_file,
    describe_form,
    encode_about,
    file_crc32,
    is_store,
    open_store,
    read_about,
    read_index,
    write_bad,
)
from engine.files import locked, replace_file

# ==== data.packing_images: Pictures as a packed store keeps them: read, resized and encoded, by several processes.

RESAMPLE = Image.Resampling.BICUBIC
CHUNK_BYTES = 2**22  # of pixels that a worker hands over at once
CHUNK_IMAGES = 64
WAITING_BYTES = 2**27  # of pixels that may wait to be written
SEE_TO_IT = (
    '(--skip-bad leaves out only damaged pictures: see to it that all files can be read, and give '
    'the same command again)'
)


@dataclass(frozen=True)
class Settings:
    """What the bytes of a store depend on, beside the pictures.

    `size` is the side of square pictures; with the aspect kept, their short side, and no picture
    is enlarged.  Squares are the default: a batch of them is copied at once and finished where the
    model runs.  Their own heights and widths are stored, too, and undo the squeeze.
    """

    size: int | None  # in pixels; None: the pictures' own sizes
    square: bool = True
    keep_16bit: bool = False  # else pictures of more than 8 bits are rounded to 8
    shard_bytes: int = 10**9
    image_suffix: str = ''  # as DATA.IMAGE_SUFFIX

    def __post_init__(self) -> None:
        if self.square and self.size is None:
            raise ValueError('pictures of their own sizes are no squares: give a size')
        if self.size is not None and self.size < 1:
            raise ValueError(f'--size must be a number of pixels or native, got {self.size}')
        if self.shard_bytes < 1:
            raise ValueError(f'--shard-size must be above 0, got {self.shard_bytes}')


class DamagedPicture(ValueError):
    """A file that is no whole picture, and would not be one another time."""


class Encoded(NamedTuple):
    """A picture as it is stored."""

    form: int
    height: int
    width: int
    full_height: int  # of the picture before it was resized
    full_width: int
    crc32: int
    data: bytes


def encode(path: str | os.PathLike[str], settings: Settings) -> Encoded:
    """Read a picture and make of it what is stored.

    Raises:
        DamagedPicture: if the file is there, was read, and is no whole picture.
        ValueError: if it could not be read now; another time it may be.
    """
    try:
        image = load_image(path)
    except ValueError as error:
        if is_passing(error, path):
            raise ValueError(f'{error} {SEE_TO_IT}') from error
        raise DamagedPicture(str(error)) from error
    try:
        return _encode_image(image, settings)
    except MemoryError as error:
        raise ValueError(f'{path}: not enough memory {SEE_TO_IT}') from error


def _encode_image(image: Image.Image, settings: Settings) -> Encoded:
    full_width, full_height = image.size
    image = _resized(image, settings)
    pixels = np.asarray(image)
    if image.mode == 'L':
        form = BYTES
    elif not settings.keep_16bit:
        form, pixels = ROUNDED, np.rint(np.clip(pixels, 0, 255)).astype('u1')
    elif settings.size is None:
        form, pixels = _exact_levels(pixels)
    else:
        form, pixels = 16, np.rint(np.clip(pixels, 0, 255) * np.float32(257)).astype('<u2')
    data = pixels.tobytes()
    return Encoded(form, *pixels.shape, full_height, full_width, zlib.crc32(data), data)


def encode_all(
    root: Path, files: Sequence[str], settings: Settings, *, workers: int, each: float
) -> Iterator[list[Encoded | str]]:
    """What becomes of the files, some at a time, in order; text says how one is damaged.

    Args:
        root: the folder of the files.
        files: relative to it.
        settings: what is stored.
        workers: processes; each has two tasks under way at most.
        each: mean size of an encoded picture, in bytes.

    Raises:
        ValueError: if a worker was killed, or a file could not be read now, see `encode`.
    """
    length = int(np.clip(CHUNK_BYTES // max(each, 1), 1, CHUNK_IMAGES))
    chunks = (files[i : i + length] for i in range(0, len(files), length))
    if workers == 1:
        yield from (_encode_chunk(root, chunk, settings) for chunk in chunks)
        return
    room = WAITING_BYTES // max(length * each, 1)
    most = int(np.clip(room, workers + 1, 2 * workers))
    pool = ProcessPoolExecutor(workers, initializer=start_worker)
    waiting = deque()
    try:
        for chunk in chunks:
            waiting.append(pool.submit(_encode_chunk, root, chunk, settings))
            if len(waiting) == most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise ValueError(f'a worker was ended from outside (memory?): {error}') from error
    finally:
        pool.shutdown(cancel_futures=True)


def _encode_chunk(root: Path, files: Sequence[str], settings: Settings) -> list[Encoded | str]:
    pictures = []
    for file in files:
        refuse_link_out(root, root / file)
        try:
            pictures.append(encode(root / file, settings))
        except DamagedPicture as error:
            pictures.append(str(error))
    return pictures


def start_worker() -> None:
    """Leave Ctrl-C to the parent, and end when it ends, however that is."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    end = (os.getpid(), signal.SIGTERM)
    threading.Thread(target=lambda: (parent.join(), os.kill(*end)), daemon=True).start()


def _resized(image: Image.Image, settings: Settings) -> Image.Image:
    size, short = settings.size, min(image.size)
    if settings.square:
        return image.resize((size, size), RESAMPLE)
    if size is None or short <= size:
        return image
    return image.resize([round(side * size / short) for side in image.size], RESAMPLE)


def _exact_levels(pixels: np.ndarray) -> tuple[int, np.ndarray]:
    """The whole levels that these grey levels came from, or the grey levels themselves."""
    for bits in LEVEL_FORMS:
        levels = np.empty(pixels.shape, '<u2')
        if all(_to_levels(row, bits, out) for row, out in zip(pixels, levels, strict=True)):
            return bits, levels
    return FLOATS, pixels.astype('<f4')


def _to_levels(pixels: np.ndarray, bits: int, out: np.ndarray) -> bool:
    """Write the nearest levels of so many bits; whether they give the same grey levels again."""
    scale = np.float32(255 / (2**bits - 1))
    np.clip(np.rint(pixels / scale), 0, 2**bits - 1, out=out, casting='unsafe')
    return bool((out * scale == pixels).all())


# ==== data.packing_shards: The pixel files of a packed store while it is built, with the journal that they resume from.

JOURNAL_FILE = f'{UNFINISHED_FILE}l'
SHARD_FILE = re.compile(r'pixels_(\d{5})\.bin')


class ShardWriter:
    """Writes pictures one after another into files of at most so many bytes.

    The journal gets a line for each picture, after its pixels, from which all else follows: where
    a picture lies is where those before it end.  A picture larger than a file may be has its own.

    Attributes:
        pictures: [count] PICTURE, filled up to `done`.
        problems: position -> why a picture could not be read.
        shards: name, size and CRC-32 of each file.
    """

    def __init__(self, folder: Path, count: int, *, first_shard: int, shard_bytes: int) -> None:
        self.folder = folder
        self.first_shard = first_shard
        self.shard_bytes = shard_bytes
        self.pictures = np.zeros(count, PICTURE)
        self.problems: dict[int, str] = {}
        self.shards: list[tuple[str, int, int]] = []
        self.done = 0
        self._pixels: BinaryIO | None = None
        self._resume()
        self._journal = open(folder / JOURNAL_FILE, 'ab')

    @property
    def num_bytes(self) -> int:
        """Of the pixels so far."""
        return sum(size for _, size, _ in self.shards)

    def add(self, picture: Encoded | str) -> None:
        """Write the next picture, or why there is none."""
        if not isinstance(picture, str):
            self._seek(len(picture.data)).write(picture.data)
        self._note(picture)
        entry = picture if isinstance(picture, str) else picture[:-1]
        self._journal.write(json.dumps(entry).encode() + b'\n')

    def flush(self) -> None:
        """Hand what was written to the operating system, so that it outlives this process."""
        if self._pixels is not None:
            self._pixels.flush()
        self._journal.flush()

    def close(self) -> None:
        self._close_pixels()
        self._journal.close()

    def forget_problems(self) -> None:
        """Close, and have the next run go on with the first picture that could not be read."""
        self.close()
        journal = self.folder / JOURNAL_FILE
        lines = journal.read_bytes().splitlines(keepends=True)
        os.truncate(journal, sum(map(len, lines[: min(self.problems)])))

    def _place(self, size: int) -> tuple[int, int]:
        """Shard (counted from this writer's first) and offset of the next picture."""
        if not self.shards:
            return 0, 0
        used = self.shards[-1][1]
        if used and used + size > self.shard_bytes:
            return len(self.shards), 0
        return len(self.shards) - 1, used

    def _seek(self, size: int) -> BinaryIO:
        """The file that the next picture goes into, at its place."""
        shard, offset = self._place(size)
        if offset == 0 or self._pixels is None:
            self._close_pixels()
            path = self.folder / self._name(shard)
            self._pixels = open(path, 'r+b' if path.exists() else 'w+b')
        self._pixels.seek(offset)
        return self._pixels

    def _note(self, picture: Encoded | str) -> None:
        if isinstance(picture, str):
            self.problems[self.done] = picture
        else:
            form, *sizes, crc, data = picture
            shard, offset = self._place(len(data))
            name, size, running = self._name(shard), 0, 0
            if shard < len(self.shards):
                _, size, running = self.shards.pop()
            self.shards.append((name, size + len(data), zlib.crc32(data, running)))
            place = self.first_shard + shard, offset
            self.pictures[self.done] = (*place, *sizes, form, crc)
        self.done += 1

    def _name(self, shard: int) -> str:
        return f'pixels_{self.first_shard + shard:05d}.bin'

    def _close_pixels(self) -> None:
        if self._pixels is not None:
            self._pixels.flush()
            os.fsync(self._pixels.fileno())
            self._pixels.close()
            self._pixels = None

    def _resume(self) -> None:
        """Take over what journal and pixels agree on, and cut off what is behind it."""
        journal, good = self.folder / JOURNAL_FILE, 0
        if journal.exists():
            with open(journal, 'rb') as lines:
                for line in lines:
                    if self.done == len(self.pictures) or not self._replay(line):
                        break
                    good += len(line)
            os.truncate(journal, good)
        self._close_pixels()
        for path in self.folder.iterdir():
            match = SHARD_FILE.fullmatch(path.name)
            if match and int(match[1]) >= self.first_shard + len(self.shards):
                path.unlink()
        if self.shards:
            os.truncate(self.folder / self.shards[-1][0], self.shards[-1][1])

    def _replay(self, line: bytes) -> bool:
        """Take over one picture of the journal; False if it is not what the journal says."""
        try:
            entry = json.loads(line) if line.endswith(b'\n') else None
        except ValueError:
            return False
        if isinstance(entry, str):
            self._note(entry)
            return True
        if entry is None:
            return False
        form, height, width, *_, crc = entry
        size = height * width * DTYPES[form].itemsize
        data = self._seek(size).read(size)
        if len(data) != size or zlib.crc32(data) != crc:
            return False
        self._note(Encoded(*entry, data))
        return True


# ==== data.packing_source: Which pictures and CSV files of a folder go into a packed store.

TABLES = (*SCORED_FILES, 'test.csv')


@dataclass(frozen=True)
class Source:
    """What is to be packed."""

    root: Path
    files: list[str]  # pictures, relative to root, sorted
    tables: dict[str, Path]  # CSV files: name in the store -> where it is
    scored: bool  # whether `read_folder` refuses to train on all of the folder's pictures

    def signature(self) -> dict[str, object]:
        """Numbers by which the same source is known again."""
        names = b'\0'.join(map(os.fsencode, self.files))
        return {
            'images': len(self.files),
            'names_crc32': zlib.crc32(names),
            'tables_crc32': {name: file_crc32(path) for name, path in self.tables.items()},
        }


def read_source(
    data_path: str | Path,
    *,
    csv_names: Sequence[str] = (),
    image_suffix: str = '',
    all_images: bool = False,
) -> Source:
    """List what a folder has to be packed; all CSV files directly in it are.

    The pictures are those that its CSV files name: MIMIC-CXR-JPG's, or in CheXpert's layout
    train.csv, valid.csv and test.csv.  Where there is none of them, all pictures below it.

    Args:
        data_path: the folder.
        csv_names: CheXpert's layout: the files whose pictures are packed, in place of those three.
        image_suffix: as DATA.IMAGE_SUFFIX.
        all_images: take all pictures below the folder, too.

    Raises:
        ValueError: if a CSV file or the folder cannot be read by `data.chexpert`, `data.mimic`.
    """
    root = Path(data_path)
    if not root.is_dir():
        raise ValueError(f'--data-path is no folder: {root}')
    if is_store(root):
        raise ValueError(f'--data-path is a packed store: {root} (pack what it was packed from)')
    tables = _tables(sorted([*root.glob('*.csv'), *root.glob('*.csv.gz')]))
    for name in csv_names:
        if name not in tables:
            raise ValueError(
                f'--csv must name CSV files (.csv, .csv.gz) directly in {root}, got {name!r}'
            )
    names = csv_names or [name for name in TABLES if (root / name).is_file()]
    named = set()
    is_mimic = not csv_names and any(root.glob('mimic-cxr-*-split.csv*'))
    if is_mimic:
        named |= named_images(root, image_suffix=image_suffix)
    else:
        for name in names:
            named.update(read_csv(root, name, image_suffix=image_suffix).file)
    scored = any((root / name).is_file() for name in SCORED_FILES)
    if all_images or not named:
        named.update(read_folder(root, allow_all_images=all_images).file)
        scored = scored or _holds(root, SCORED_FILES)
    return Source(root, sorted(named), tables, scored)


def read_addition(data_path: str | Path, csv_file: str | Path, *, image_suffix: str) -> Source:
    """One more CSV file in CheXpert's layout, inside the folder or elsewhere, and its pictures.

    Pictures that it has a label of are to be scored, whatever the name of the file.
    """
    root = Path(data_path)
    path = root / csv_file if (root / csv_file).is_file() else Path(csv_file).absolute()
    tables = _tables([path])
    records = read_csv(root, str(path), image_suffix=image_suffix)
    scored = path.name in SCORED_FILES or not np.isnan(records.labels).all()
    return Source(root, sorted(records.file), tables, scored)


def _tables(paths: Sequence[Path]) -> dict[str, Path]:
    """CSV files by their names in the store, where they must not stand for the store's own."""
    for path in paths:
        if path.name.lower() == BAD_FILE:
            raise ValueError(f'{path}: a store keeps another file under this name')
        if not path.name.endswith(('.csv', '.csv.gz')):
            raise ValueError(f'the name of a CSV file must end in .csv or .csv.gz, got {path}')
    return {path.name: path for path in paths}


def _holds(root: Path, names: Sequence[str]) -> bool:
    return any(name in found for _, _, found in os.walk(root) for name in names)


# ==== data.packing: Building the packed store of `data.packed`: in parallel, resumable, always the same bytes.
#
# Workers read and resize the pictures; this process alone writes them, in the order of the file
# names, with a journal.  So the store depends neither on the number of workers nor on how often the
# building was killed.

SAMPLED_IMAGES = 16  # tell the size of a store before it is built
# More damaged pictures than both of these are a damaged copy of the data.
MOST_DAMAGED, MOST_DAMAGED_SHARE = 10, 0.01
INDEX_FILE = re.compile(r'(names|pictures)_\d{5}\.npy')
OWN_FILE = re.compile(rf'{INDEX_FILE.pattern}|{SHARD_FILE.pattern}|.*\.tmp')


def pack(
    data_path: str | Path,
    output: str | Path,
    settings: Settings,
    *,
    workers: int = 1,
    skip_bad: bool = False,
    csv_names: Sequence[str] = (),
    all_images: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Pack a folder (see `read_source`), or go on where an earlier call was stopped.

    Args:
        data_path: the folder.
        output: the store; a new folder, or one with a store begun with the same settings.
        settings: what is stored.
        workers: processes that read and resize.
        skip_bad: leave out damaged pictures, if they are few, and list them in bad_images.csv.
        csv_names: whose pictures, see `read_source`.
        all_images: all pictures below the folder.
        report: told, line by line, what is done.

    Returns:
        What store.json says.

    Raises:
        ValueError: if a picture cannot be read; if the folder, the disk or what `output` holds
            already does not allow it.
    """
    output = Path(output)
    suffix = settings.image_suffix
    source = read_source(data_path, csv_names=csv_names, image_suffix=suffix, all_images=all_images)
    job = _describe_job(settings, source)
    _refuse_place(Path(data_path), output)
    with locked(output / LOCK_FILE, wait=False):
        if (output / STORE_FILE).is_file():
            about = read_about(output)
            _refuse_other(output, {key: about[key] for key in job if key != 'generation'}, job)
            _clean(output, about)
            report(f'{output} is complete: {about["images"]} pictures')
            return about
        _begin(output, job)
        options = {'workers': workers, 'skip_bad': skip_bad, 'report': report}
        return _build(source, output, settings, job, **options)


def append(
    data_path: str | Path,
    output: str | Path,
    csv_file: str | Path,
    *,
    workers: int = 1,
    skip_bad: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Add a CSV file in CheXpert's layout, and those of its pictures that the store lacks.

    Pictures that were left out stay so.  Until all is done, the store is as it was.  What another
    call began and did not end is dropped.

    Args:
        data_path: the folder that holds the pictures; those that the store has must be the same.
            Or the store itself, for a CSV file of its pictures.
        output: the store; its settings hold.
        csv_file: inside the folder, or elsewhere.
        workers: processes that read and resize.
        skip_bad: leave out damaged pictures, if they are few.
        report: told, line by line, what is done.

    Returns:
        What store.json says.

    Raises:
        ValueError: as `pack`, and if the store has another CSV file, or another picture, of a name.
    """
    output = Path(output)
    if not is_store(output):
        raise ValueError(f'--append adds to a store: {output} is none')
    settings = Settings(**read_about(output)['settings'])
    source = read_addition(data_path, csv_file, image_suffix=settings.image_suffix)
    ((name, path),) = source.tables.items()
    with locked(output / LOCK_FILE, wait=False):
        store = open_store(output)
        about = store.about
        here = about['files'].get(name)
        if here and here[1] != file_crc32(path):
            raise ValueError(f'{output} has another {name} already: give {path} another name')
        if Path(data_path).resolve() != output.resolve():
            _refuse_other_pictures(store, source, settings, workers)
        absent = [source.files[i] for i in np.flatnonzero(store.position(source.files) < 0)]
        new = [file for file in absent if file not in store.left_out]
        source = replace(source, files=new, scored=source.scored or about['scored'])
        job = _describe_job(settings, source, generation=about['generation'] + 1)
        _drop_other(output, about, job, report)
        if here and not new:
            report(f'{output} has {name} and its pictures already')
            return about
        _begin(output, job)
        options = {'workers': workers, 'skip_bad': skip_bad, 'report': report}
        return _build(source, output, settings, job, old=about, **options)


def _refuse_other_pictures(store: Store, source: Source, settings: Settings, workers: int) -> None:
    """Refuse files that have the name of a picture in the store and are not what was packed."""
    places = store.position(source.files)
    files = [source.files[i] for i in np.flatnonzero(places >= 0)]
    each = _bytes_each(replace(source, files=files), settings, 0)
    encoded = encode_all(source.root, files, settings, workers=workers, each=each)
    pictures = (picture for some in encoded for picture in some)
    pairs = zip(files, places[places >= 0], pictures, strict=True)
    for file, place, found in _progress(pairs, len(files), desc='compare'):
        if isinstance(found, str):
            raise ValueError(f'{found}; {store.path} has a picture of this name')
        packed = store.pictures[place]
        if found[:-1] != tuple(packed[list(Encoded._fields[:-1])].tolist()):
            raise ValueError(
                f'{source.root / file} is not the picture that {store.path} has under this name: '
                'it is of another data set, or was changed; pack it into a store of its own'
            )


def _drop_other(
    output: Path, about: dict[str, Any], job: dict[str, Any], report: Callable[[str], None]
) -> None:
    """Remove what an unfinished `append` of something else, or one done but for this, has left."""
    unfinished = output / UNFINISHED_FILE
    begun = json.loads(unfinished.read_bytes()) if unfinished.is_file() else job
    if begun == job:
        return
    _clean(output, about)
    if begun['generation'] > about['generation']:
        tables = ', '.join(begun['source']['tables_crc32'])
        report(f'dropped what an unfinished --append of {tables} left; the store is as it was')


def _describe_job(settings: Settings, source: Source, generation: int = 0) -> dict[str, Any]:
    return {
        'version': VERSION,
        'settings': asdict(settings),
        'source': source.signature(),
        'generation': generation,
    }


def _refuse_other(output: Path, found: dict[str, Any], job: dict[str, Any]) -> None:
    """Refuse to go on with other settings or another source than a store was begun with."""
    for part in found:
        was, wanted = found[part], job[part]
        if was != wanted and isinstance(was, dict):
            key = next(key for key in wanted if was.get(key) != wanted[key])
            part, was, wanted = f'{part}, {key}', was.get(key), wanted[key]
        if was != wanted:
            raise ValueError(
                f'{output} was packed with other settings or from other data: {part} was {was}, '
                f'is now {wanted}; take the same, or a new folder'
            )


def _refuse_place(root: Path, output: Path) -> None:
    """Refuse a folder that is of the data, or of something else, before anything is written."""
    if output.resolve().is_relative_to(root.resolve()):
        raise ValueError(f'--output {output} must not lie in --data-path {root}')
    found = set(os.listdir(output)) if output.is_dir() else set()
    strangers = found - {LOCK_FILE, JOURNAL_FILE, f'{UNFINISHED_FILE}.tmp'}
    if strangers and not found & {STORE_FILE, UNFINISHED_FILE}:
        raise ValueError(f'{output} is no store and not empty: it holds {min(strangers)}')


def _begin(output: Path, job: dict[str, Any]) -> None:
    """Note what is built, or check that it is what was begun."""
    unfinished = output / UNFINISHED_FILE
    if unfinished.is_file():
        _refuse_other(output, json.loads(unfinished.read_bytes()), job)
        return
    (output / JOURNAL_FILE).unlink(missing_ok=True)
    replace_file(unfinished, json.dumps(job, indent=1).encode())


def _build(
    source: Source,
    output: Path,
    settings: Settings,
    job: dict[str, Any],
    *,
    workers: int,
    skip_bad: bool,
    report: Callable[[str], None],
    old: dict[str, Any] | None = None,
) -> dict[str, Any]:
    shards = len(old['shards']) if old else 0
    options = {'first_shard': shards, 'shard_bytes': settings.shard_bytes}
    with closing(ShardWriter(output, len(source.files), **options)) as writer:
        before = writer.done
        if writer.problems and not skip_bad:
            raise _stop(next(iter(writer.problems.values())))
        each = _bytes_each(source, settings, before)
        left = each * (len(source.files) - before)
        form = describe_form(asdict(settings))
        report(
            f'{len(source.files)} pictures {form}, {before} of them packed already: '
            f'about {(writer.num_bytes + left) / 1e9:.2f} GB in {output}, '
            f'{shutil.disk_usage(output).free / 1e9:.2f} GB free'
        )
        check_space(output, int(left * 1.02))
        start = time.perf_counter()
        _write_all(writer, source, settings, workers=workers, skip_bad=skip_bad, each=each)
    about = _finish(source, output, job, writer, old)
    seconds, packed = time.perf_counter() - start, writer.done - before
    report(
        f'packed {packed} pictures in {seconds:.1f} s ({packed / seconds:.1f} images/s, '
        f'{packed / seconds / workers:.1f} a worker); {output} has {about["images"]}, '
        f'{sum(size for size, _ in about["files"].values()) / 1e9:.2f} GB'
    )
    if about['rounded']:
        report(f'{about["rounded"]} pictures of more than 8 bits were rounded to 8 (--keep-16bit)')
    if about['left_out']:
        report(f'{len(about["left_out"])} pictures could not be read: see {output / BAD_FILE}')
    return about


def _stop(problem: str) -> ValueError:
    return ValueError(f'{problem} (--skip-bad leaves out damaged pictures)')


def _bytes_each(source: Source, settings: Settings, done: int) -> float:
    """Mean size of what is still to be packed, from some of it."""
    if settings.square:
        return settings.size**2 * (2 if settings.keep_16bit else 1)
    sizes = []
    for file in source.files[done :: max(1, (len(source.files) - done) // SAMPLED_IMAGES)]:
        try:
            sizes.append(len(encode(source.root / file, settings).data))
        except ValueError:  # met again, and told, in its place
            continue
    return float(np.mean(sizes)) if sizes else 0.0


def _write_all(
    writer: ShardWriter,
    source: Source,
    settings: Settings,
    *,
    workers: int,
    skip_bad: bool,
    each: float,
) -> None:
    count, done = len(source.files), writer.done
    encoded = encode_all(source.root, source.files[done:], settings, workers=workers, each=each)
    _refuse_many_damaged(writer, count)  # a run was killed before it did
    with closing(_progress(None, count, desc='pack', initial=done)) as progress:
        for pictures in encoded:
            for picture in pictures:
                if isinstance(picture, str) and not skip_bad:
                    raise _stop(picture)
                writer.add(picture)
            writer.flush()
            _refuse_many_damaged(writer, count)
            progress.update(len(pictures))


def _refuse_many_damaged(writer: ShardWriter, count: int) -> None:
    damaged = len(writer.problems)
    if damaged > max(MOST_DAMAGED, MOST_DAMAGED_SHARE * count):
        first = next(iter(writer.problems.values()))
        writer.forget_problems()
        raise ValueError(
            f'{damaged} of {count} pictures are damaged, more than {MOST_DAMAGED} and '
            f'{MOST_DAMAGED_SHARE:.0%}; the first: {first} (copy the data again, or take their '
            'rows out of the CSV files, and give the same command again)'
        )


def _progress(steps: Iterable | None, total: int, *, desc: str, initial: int = 0) -> tqdm:
    interval = 0.5 if sys.stderr.isatty() else 30  # a log gets a line now and then
    options = {'total': total, 'initial': initial, 'unit': 'image', 'mininterval': interval}
    return tqdm(steps, desc=desc, **options)


def _finish(
    source: Source,
    output: Path,
    job: dict[str, Any],
    writer: ShardWriter,
    old: dict[str, Any] | None,
) -> dict[str, Any]:
    """Write the index, copy the CSV files, and make the folder a store."""
    left_out = {source.files[position]: text for position, text in writer.problems.items()}
    names = np.array([os.fsencode(file) for file in source.files], bytes)
    packed = np.array([file not in left_out for file in source.files], bool)
    names, pictures = names[packed], writer.pictures[packed]
    files, shards = {}, []
    if old:
        old_names, old_pictures = read_index(output, old)
        names = np.concatenate([old_names, names])
        pictures = np.concatenate([old_pictures, pictures])
        left_out, shards = old['left_out'] | left_out, old['shards']
        files = {name: old['files'][name] for name in old['files'] if not INDEX_FILE.match(name)}
    if not len(names):
        raise ValueError(f'none of the {len(source.files)} pictures of {source.root} can be read')
    order = np.argsort(names, kind='stable')
    for kind, values in {'names': names[order], 'pictures': pictures[order]}.items():
        buffer = io.BytesIO()
        np.save(buffer, values)
        file, data = output / f'{kind}_{job["generation"]:05d}.npy', buffer.getvalue()
        replace_file(file, data)
        files[file.name] = [len(data), zlib.crc32(data)]
    for name, path in source.tables.items():
        files[name] = [path.stat().st_size, job['source']['tables_crc32'][name]]
        copy_file(path, output / name, *files[name])
    about = {
        **job,
        'source': old['source'] if old else job['source'],
        'images': len(names),
        'rounded': int((pictures['form'] == ROUNDED).sum()),
        'left_out': dict(sorted(left_out.items())),
        'scored': source.scored,
        'shards': [*shards, *(name for name, _, _ in writer.shards)],
        'files': dict(
            sorted((files | {name: list(rest) for name, *rest in writer.shards}).items())
        ),
    }
    replace_file(output / STORE_FILE, encode_about(about))
    _clean(output, about)
    return about


def _clean(output: Path, about: dict[str, Any]) -> None:
    """List what was left out; remove what was of use only before, and an older index."""
    write_bad(output, about)
    for name in os.listdir(output):
        if OWN_FILE.fullmatch(name) and name not in about['files']:
            (output / name).unlink()
    (output / JOURNAL_FILE).unlink(missing_ok=True)
    (output / UNFINISHED_FILE).unlink(missing_ok=True)
