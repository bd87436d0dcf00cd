"""Write packed stores, in parallel, resumably and reproducibly.

Worker processes read and resize the images. The main process writes them in the order of the file
names, so the store does not depend on the number of workers. When a file of pixels (a shard) is
complete, packing.json lists it with its checksum. An interrupted call resumes after the last
complete shard.
"""

import io
import multiprocessing
import os
import signal
import threading
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
from PIL import Image
from tqdm import tqdm

from config import REGISTRIES, Config, default_config, part
from data.chexpert import read_csv
from data.folder import read_folder, signs_of_scores
from data.image_source import open_images
from data.images import BadImageError, full_size
from data.mimic import named_images
from data.preprocess import Setup, apply_steps
from data.preprocess_steps import squeezed
from data.store import (
    BYTES,
    ENTRY,
    FLOATS,
    INDEX_FILE,
    LEVEL_FORMS,
    NAMES_FILE,
    ROUNDED,
    open_store,
)
from data.store_about import (
    BAD_FILE,
    STORE_FILE,
    UNFINISHED_FILE,
    VERSION,
    Settings,
    file_crc32,
    is_store,
    read_about,
    read_json,
)
from data.store_files import LOCK_FILE, copy_file, write_about, write_json
from system.files import allow_open_files, locked, replace_file

CHUNK_IMAGES = 16  # number of resized images that a worker returns at once
TABLES = ('train.csv', 'valid.csv', 'test.csv')
PARTIAL_INDEX_FILE = 'packing.npy'


@dataclass(frozen=True)
class Source:
    """The files of a folder to pack."""

    root: Path
    files: list[str]  # sorted image files, relative to the root
    splits: dict[str, str]  # split or table of the files that a table names
    tables: dict[str, Path]  # path of CSV and Excel files by the name in the store
    scored: bool  # whether `read_folder` refuses to train on all images

    def signature(self) -> dict[str, object]:
        """Return checksums that identify the source."""
        names = b'\0'.join(map(os.fsencode, self.files))
        return {
            'images': len(self.files),
            'names_crc32': zlib.crc32(names),
            'tables_crc32': {name: file_crc32(path) for name, path in self.tables.items()},
        }


class Encoded(NamedTuple):
    """An image in its stored form."""

    form: int
    height: int
    width: int
    full_height: int  # height of the image before it was resized
    full_width: int
    crc32: int
    data: bytes


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
            about = read_about(output)
            _refuse_other(output, about, job)
        else:
            about = _build(source, output, settings, job, workers=workers, skip_bad=skip_bad)
        for name in (UNFINISHED_FILE, PARTIAL_INDEX_FILE):
            (output / name).unlink(missing_ok=True)
    return about


def read_source(
    data_path: str | Path,
    *,
    csv_names: Sequence[str] = (),
    image_suffix: str = '',
    all_images: bool = False,
    dataset: str = '',
) -> Source:
    """List the files of a folder to pack.

    All CSV and Excel files directly in the folder are packed, and the images that they name: images
    of a `dataset` that names its splits, of MIMIC-CXR-JPG, or of the CSV files in `csv_names` (by
    default train.csv, valid.csv and test.csv). Without such files, or with `all_images`, all images
    below the folder are packed.
    """
    root = Path(data_path)
    if not root.is_dir() or is_store(root):
        raise ValueError(f'--data-path must be a folder with CSV files and images, got {root}')
    paths = [path for form in ('*.csv', '*.csv.gz', '*.xlsx') for path in root.glob(form)]
    tables = {path.name: path for path in sorted(paths)}
    if BAD_FILE in tables:
        raise ValueError(f'{tables[BAD_FILE]}: rename this file, because a store uses its name')
    for name in csv_names:
        if name not in tables:
            raise ValueError(f'--csv must name CSV files directly in {root}, got {name!r}')
    config = default_config()
    config.DATA.DATASET, config.DATA.IMAGE_SUFFIX = dataset, image_suffix
    named, scored = {}, bool(signs_of_scores(root, [*tables]))
    if dataset and REGISTRIES['DATA.DATASET'][dataset].splits:
        named, own_tables, scored = _read_splits(config, root)
        tables |= own_tables
    elif not csv_names and any(root.glob('mimic-cxr-*-split.csv*')):
        named |= named_images(config, root)
    else:
        for name in csv_names or [name for name in TABLES if name in tables]:
            files = read_csv(root, name, image_suffix=image_suffix, labels=()).file
            named |= dict.fromkeys(files, name)
    every = {*named}
    if all_images or not named:
        every.update(read_folder(root, allow_all_images=all_images).file)
        scored = scored or bool(signs_of_scores(root, sum(open_images(root).scan(), [])))
    return Source(root, sorted(every, key=os.fsencode), named, tables, scored)


def _read_splits(config: Config, root: Path) -> tuple[dict[str, str], dict[str, Path], bool]:
    """Return images with their split, and tables, and whether some images are scored."""
    kind = part(config, 'DATA.DATASET')
    splits = kind.splits(config)
    records = [kind.read(config, root, split, labels=()) for split in splits]
    pairs = zip(splits, records, strict=True)
    files = {file: split for split, own in pairs for file in own.file}
    tables = {own.csv: root / own.csv for own in records if own.csv}
    tables |= {file.relative_to(root).as_posix(): file for file in kind.tables(config, root)}
    return files, tables, list(splits) != ['train']


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
        key = tuple(entry[name].item() for name in ('height', 'width', 'crc32'))
        other = first.setdefault(key, (file, position))
        if source.splits[file] != source.splits[other[0]]:
            pixels = [np.asarray(store.image(place)) for place in (other[1], position)]
            if np.array_equal(*pixels):  # the checksum has only 32 bits
                copies.append((file, other[0]))
    return copies


def encode(image: Image.Image, settings: Settings) -> Encoded:
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
    if image.mode == 'L':
        form = BYTES
    elif not settings.keep_16bit:
        form, pixels = ROUNDED, np.rint(np.clip(pixels, 0, 255)).astype('u1')
    elif size is None:
        form, pixels = _exact_levels(pixels)
    else:
        form, pixels = 16, np.rint(np.clip(pixels, 0, 255) * np.float32(257)).astype('<u2')
    data = pixels.tobytes()
    return Encoded(form, *pixels.shape, full_height, full_width, zlib.crc32(data), data)


class ShardWriter:
    """Writes images one after another into shards of limited size.

    An unfinished store must have been begun with the same job. An image that is larger than the
    limit has its own shard.

    Attributes:
        index: Array [count] of ENTRY, filled up to `done`.
        left_out: Reason why an image could not be read, by position.
        shards: Name, size and CRC-32 of each complete shard.
        done: Number of images so far.
    """

    def __init__(self, folder: Path, job: dict[str, Any], count: int, *, shard_bytes: int) -> None:
        self.folder = folder
        self.job = job
        self.shard_bytes = shard_bytes
        self.index = np.zeros(count, ENTRY)
        self.left_out: dict[int, str] = {}
        self.shards: list[tuple[str, int, int]] = []
        self.done = 0
        if (folder / UNFINISHED_FILE).is_file():
            self._resume(read_json(folder / UNFINISHED_FILE))
        else:
            self._save()
        self._size = self._crc = 0  # of the open shard

    def add(self, image: Encoded | str) -> None:
        """Write the next image, or record the reason why it could not be read."""
        if isinstance(image, str):
            self.left_out[self.done] = image
        else:
            form, *sizes, crc, data = image
            if self._size and self._size + len(data) > self.shard_bytes:
                self.complete()
            if not self._size:
                self._file = open(self.folder / f'pixels_{len(self.shards):05d}.bin', 'wb')
            self.index[self.done] = (len(self.shards), self._size, *sizes, form, crc)
            self._file.write(data)
            self._size, self._crc = self._size + len(data), zlib.crc32(data, self._crc)
        self.done += 1

    def complete(self) -> None:
        """Write the open shard to disk, followed by the files from which packing resumes."""
        if not self._size:
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self.shards.append((Path(self._file.name).name, self._size, self._crc))
        self._size = self._crc = 0
        self._save()

    def retry_left_out(self) -> None:
        """Start from scratch if images were left out, because they may have been repaired since."""
        if self.left_out:
            self.index[:] = 0
            self.left_out, self.shards, self.done = {}, [], 0

    def close(self) -> None:
        if self._size:
            self._file.close()

    def _save(self) -> None:
        replace_file(self.folder / PARTIAL_INDEX_FILE, _npy(self.index))
        left_out = [*self.left_out.items()]
        state = {'shards': self.shards, 'done': self.done, 'left_out': left_out}
        write_json(self.folder / UNFINISHED_FILE, self.job | state)

    def _resume(self, found: dict[str, Any]) -> None:
        """Resume after the complete shards, or start from scratch if one of them is damaged."""
        _refuse_other(self.folder, found, self.job)
        shards, index = found['shards'], self._load_index()
        if index is None or not all(self._is_intact(*shard) for shard in shards):
            return
        self.index, self.shards, self.done = index, shards, found['done']
        self.left_out = dict(found['left_out'])

    def _load_index(self) -> np.ndarray | None:
        """Read the index up to the last complete shard; None if the file is damaged."""
        try:
            index = np.load(self.folder / PARTIAL_INDEX_FILE)
        except Exception:  # a damaged file makes NumPy raise almost anything
            return None
        return index if (index.dtype, index.shape) == (ENTRY, self.index.shape) else None

    def _is_intact(self, name: str, size: int, crc: int) -> bool:
        path = self.folder / name
        return path.is_file() and path.stat().st_size == size and file_crc32(path) == crc


def start_worker() -> None:
    """Let the parent process handle Ctrl-C, and end with it, which releases its lock."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    end = (os.getpid(), signal.SIGTERM)
    threading.Thread(target=lambda: (parent.join(), os.kill(*end)), daemon=True).start()


def _refuse_other(output: Path, found: dict[str, Any], job: dict[str, Any]) -> None:
    """Refuse to resume if the settings or the source have changed."""
    found, job = ({**d, **d['settings'], **d['source']} for d in (found, job))
    for key in ('version', *job['settings'], *job['source']):
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
    count = len(source.files)
    with closing(ShardWriter(output, job, count, shard_bytes=settings.shard_bytes)) as writer:
        if not skip_bad:
            writer.retry_left_out()
        images = _encode_all(source, source.files[writer.done :], settings, workers)
        bar = tqdm(images, 'pack', count, unit='image', initial=writer.done, disable=None)
        with closing(images):
            for image in bar:
                writer.add(image)
                if writer.left_out and not skip_bad:
                    problem = next(iter(writer.left_out.values()))
                    raise ValueError(f'{problem} (--skip-bad leaves out damaged images)')
        writer.complete()
    return _finish(source, output, job, writer)


def _finish(
    source: Source, output: Path, job: dict[str, Any], writer: ShardWriter
) -> dict[str, Any]:
    """Write the index, copy the CSV files, and make the folder a store."""
    names = np.array([os.fsencode(file) for file in source.files], bytes)
    packed = np.ones(len(names), bool)
    packed[list(writer.left_out)] = False
    left_out = {source.files[position]: text for position, text in writer.left_out.items()}
    if not packed.any():
        raise ValueError(f'none of the images in {source.root} can be read')
    index = writer.index[packed]
    files = {}
    for name, values in {NAMES_FILE: names[packed], INDEX_FILE: index}.items():
        data = _npy(values)
        replace_file(output / name, data)
        files[name] = [len(data), zlib.crc32(data)]
    for name, path in source.tables.items():
        files[name] = [path.stat().st_size, job['source']['tables_crc32'][name]]
        copy_file(path, output / name, *files[name])
    files |= {name: numbers for name, *numbers in writer.shards}
    about = {
        **job,
        'images': len(index),
        'rounded': int((index['form'] == ROUNDED).sum()),
        'left_out': left_out,
        'scored': source.scored,
        'shards': [name for name, _, _ in writer.shards],
        'files': dict(sorted(files.items())),
    }
    write_about(output, about)
    return about


def _encode_all(
    source: Source, files: Sequence[str], settings: Settings, workers: int
) -> Iterator[Encoded | str]:
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


def _encode_chunk(root: Path, settings: Settings, files: Sequence[str]) -> list[Encoded | str]:
    encoded: list[Encoded | str] = []
    read = open_images(root).reader(files)
    for position in range(len(files)):
        try:
            encoded.append(encode(read(position), settings))
        except BadImageError as error:
            encoded.append(str(error))
    return encoded


def _exact_levels(pixels: np.ndarray) -> tuple[int, np.ndarray]:
    """Return the form and the integer levels of grey levels, or FLOATS and the grey levels."""
    for bits in LEVEL_FORMS:
        scale = np.float32(255 / (2**bits - 1))
        levels = np.clip(np.rint(pixels / scale), 0, 2**bits - 1).astype('<u2')
        if (levels * scale == pixels).all():
            return bits, levels
    return FLOATS, pixels.astype('<f4')


def _npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()
