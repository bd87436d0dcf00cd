"""Writing a packed store: in parallel, resumable, and always with the same bytes.

Worker processes read and resize the images. The main process writes them in the order of the file
names, so the store does not depend on the number of workers. When a file of pixels (a shard) is
complete, a file with its index and its checksum is written next to it, from which an interrupted
call resumes.
"""

import io
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from data.images import BadImageError, load_image
from data.records import SCORED_FILES, named_images, read_csv, read_folder
from data.store import (
    BAD_FILE,
    BYTES,
    ENTRY,
    FLOATS,
    LEVEL_FORMS,
    LOCK_FILE,
    ROUNDED,
    STORE_FILE,
    UNFINISHED_FILE,
    VERSION,
    check_space,
    copy_file,
    describe_form,
    file_crc32,
    is_store,
    read_about,
    write_about,
)
from engine.files import locked, replace_file

RESAMPLE = Image.Resampling.BICUBIC
CHUNK_BYTES = 2**22  # of pixels that a worker returns at once
CHUNK_IMAGES = 64
WAITING_BYTES = 2**27  # of pixels that may wait to be written
SAMPLED_IMAGES = 16  # from which the size of a store is estimated
# More damaged images than both of these mean that the copy of the data set is damaged.
MOST_DAMAGED, MOST_DAMAGED_SHARE = 10, 0.01
TABLES = (*SCORED_FILES, 'test.csv')


@dataclass(frozen=True)
class Settings:
    """The settings that the bytes of a store depend on.

    Attributes:
        size: Side of square images in pixels, or the short side if the aspect is kept, in which
            case no image is enlarged. None keeps the sizes of the images.
        square: Squeeze images to squares. The crop of training undoes the squeeze, because the
            original height and width are stored.
        keep_16bit: Keep more than 8 bits; otherwise such images are rounded to 8 bits.
        shard_bytes: Largest size of a file of pixels.
        image_suffix: As DATA.IMAGE_SUFFIX.
    """

    size: int | None
    square: bool = True
    keep_16bit: bool = False
    shard_bytes: int = 10**9
    image_suffix: str = ''

    def __post_init__(self) -> None:
        if self.square and self.size is None:
            raise ValueError('--square needs a --size in pixels, not native')
        if self.size is not None and self.size < 1:
            raise ValueError(f'--size must be a number of pixels or native, got {self.size}')
        if self.shard_bytes < 1:
            raise ValueError(f'--shard-size must be above 0, got {self.shard_bytes}')


@dataclass(frozen=True)
class Source:
    """What is packed."""

    root: Path
    files: list[str]  # image files, relative to root, sorted
    tables: dict[str, Path]  # CSV files: name in the store -> path
    scored: bool  # whether `read_folder` refuses to train on all images of the folder

    def signature(self) -> dict[str, object]:
        """Numbers by which the same source is recognised."""
        names = b'\0'.join(map(os.fsencode, self.files))
        return {
            'images': len(self.files),
            'names_crc32': zlib.crc32(names),
            'tables_crc32': {name: file_crc32(path) for name, path in self.tables.items()},
        }


class Encoded(NamedTuple):
    """An image as it is stored."""

    form: int
    height: int
    width: int
    full_height: int  # of the image before it was resized
    full_width: int
    crc32: int
    data: bytes


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
    """Pack a folder (see `read_source`), or resume an earlier call with the same settings.

    Args:
        data_path: The folder.
        output: The store: a new folder, or one that an earlier call began.
        settings: What is stored.
        workers: Number of processes that read and resize.
        skip_bad: Leave out damaged images if they are few, and list them in bad_images.csv.
        csv_names: The CSV files whose images are packed, see `read_source`.
        all_images: Pack all images below the folder.
        report: Called with lines about the progress.

    Returns:
        The contents of store.json.

    Raises:
        ValueError: If an image cannot be read, if `output` was begun with other settings or
            contains something else, or if the disk is too small.
    """
    output = Path(output)
    source = read_source(
        data_path,
        csv_names=csv_names,
        image_suffix=settings.image_suffix,
        all_images=all_images,
    )
    job = {
        'version': VERSION,
        'settings': asdict(settings),
        'source': source.signature(),
        'generation': 0,
    }
    _refuse_place(Path(data_path), output)
    with locked(output / LOCK_FILE, wait=False):
        if (output / STORE_FILE).is_file():
            about = read_about(output)
            _refuse_other(output, {key: about[key] for key in job}, job)
            report(f'{output} is complete: {about["images"]} images')
        else:
            _begin(output, job)
            about = _build(
                source, output, settings, job, workers=workers, skip_bad=skip_bad, report=report
            )
        _remove_unfinished(output, about)
    return about


def read_source(
    data_path: str | Path,
    *,
    csv_names: Sequence[str] = (),
    image_suffix: str = '',
    all_images: bool = False,
) -> Source:
    """List what has to be packed; all CSV files directly in the folder belong to it.

    The images are those that the CSV files name: those of MIMIC-CXR-JPG, or in CheXpert's layout
    train.csv, valid.csv and test.csv. If there are none of them, all images below the folder.

    Args:
        data_path: The folder.
        csv_names: In CheXpert's layout, the files whose images are packed instead of those three.
        image_suffix: As DATA.IMAGE_SUFFIX.
        all_images: Also pack all other images below the folder.

    Raises:
        ValueError: If a CSV file or the folder cannot be read.
    """
    root = Path(data_path)
    if not root.is_dir():
        raise ValueError(f'--data-path is not a folder: {root}')
    if is_store(root):
        raise ValueError(f'--data-path is a packed store: {root} (pack what it was packed from)')
    tables = {path.name: path for path in sorted([*root.glob('*.csv'), *root.glob('*.csv.gz')])}
    if BAD_FILE in tables:
        raise ValueError(f'{tables[BAD_FILE]}: a store keeps another file under this name')
    for name in csv_names:
        if name not in tables:
            raise ValueError(f'--csv must name CSV files directly in {root}, got {name!r}')
    named = set()
    if not csv_names and any(root.glob('mimic-cxr-*-split.csv*')):
        named |= named_images(root, image_suffix=image_suffix)
    else:
        for name in csv_names or [name for name in TABLES if name in tables]:
            named.update(read_csv(root, name, image_suffix=image_suffix).file)
    scored = any(name in tables for name in SCORED_FILES)
    if all_images or not named:
        named.update(read_folder(root, allow_all_images=all_images).file)
        below = (found for _, _, found in os.walk(root))
        scored = scored or any(name in found for found in below for name in SCORED_FILES)
    return Source(root, sorted(named), tables, scored)


def encode(
    path: str | os.PathLike[str], settings: Settings, root: str | os.PathLike[str] = ''
) -> Encoded:
    """Read an image and convert it to what is stored; raises the errors of `load_image`."""
    image = load_image(path, root)
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


class ShardWriter:
    """Writes images one after another into shards of limited size.

    An image that is larger than a shard may be has its own. Beside each complete shard there is
    `<shard>.json` with what is needed to resume after it.

    Attributes:
        index: [count] ENTRY, filled up to `done`.
        problems: Position of an image -> why it could not be read.
        shards: Name, size and CRC-32 of each complete shard.
        done: Number of images so far.
    """

    def __init__(self, folder: Path, count: int, *, shard_bytes: int) -> None:
        self.folder = folder
        self.shard_bytes = shard_bytes
        self.index = np.zeros(count, ENTRY)
        self.problems: dict[int, str] = {}
        self.shards: list[tuple[str, int, int]] = []
        self.done = 0
        self._resume()
        self._first = self.done  # image of the open shard
        self._file = open(self._path(), 'wb')
        self._size = self._crc = 0

    @property
    def num_bytes(self) -> int:
        """Bytes of pixels in complete shards."""
        return sum(size for _, size, _ in self.shards)

    def add(self, image: Encoded | str) -> None:
        """Write the next image, or note why there is none."""
        if isinstance(image, str):
            self.problems[self.done] = image
        else:
            form, *sizes, crc, data = image
            if self._size and self._size + len(data) > self.shard_bytes:
                self._complete()
                self._file = open(self._path(), 'wb')
            self.index[self.done] = (len(self.shards), self._size, *sizes, form, crc)
            self._file.write(data)
            self._size, self._crc = self._size + len(data), zlib.crc32(data, self._crc)
        self.done += 1

    def finish(self) -> None:
        """Complete the last shard."""
        if self._size:
            self._complete()

    def close(self) -> None:
        self._file.close()

    def retry_problems(self) -> None:
        """Let the next call resume before the first image that could not be read."""
        first = min(self.problems)
        for shard in range(len(self.shards)):
            path = self._path(shard, '.json')
            if json.loads(path.read_bytes())['done'] > first:
                path.unlink()

    def _path(self, shard: int | None = None, suffix: str = '') -> Path:
        number = len(self.shards) if shard is None else shard
        return self.folder / f'pixels_{number:05d}.bin{suffix}'

    def _complete(self) -> None:
        """Write the open shard to disk, and then the file that says so."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        part = {
            'shard': [self._path().name, self._size, self._crc],
            'first': self._first,
            'done': self.done,
            'index': self.index[self._first : self.done].tolist(),
            'problems': {k: v for k, v in self.problems.items() if k >= self._first},
        }
        replace_file(self._path(suffix='.json'), json.dumps(part))
        self.shards.append(tuple(part['shard']))
        self._first, self._size, self._crc = self.done, 0, 0

    def _resume(self) -> None:
        """Take over the complete shards of an earlier call, up to the first that is not intact."""
        while (path := self._path(suffix='.json')).is_file():
            part = json.loads(path.read_bytes())
            name, size, crc = part['shard']
            shard = self.folder / name
            if not shard.is_file() or shard.stat().st_size != size or file_crc32(shard) != crc:
                return
            rows = [tuple(row) for row in part['index']]
            self.index[part['first'] : part['done']] = rows
            self.problems |= {int(k): v for k, v in part['problems'].items()}
            self.done = part['done']
            self.shards.append((name, size, crc))


def start_worker() -> None:
    """Leave Ctrl-C to the parent process, and end when it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    end = (os.getpid(), signal.SIGTERM)
    threading.Thread(target=lambda: (parent.join(), os.kill(*end)), daemon=True).start()


def _refuse_place(root: Path, output: Path) -> None:
    """Refuse a folder that belongs to the data set, or to something else."""
    if output.resolve().is_relative_to(root.resolve()):
        raise ValueError(f'--output {output} must not lie in --data-path {root}')
    found = set(os.listdir(output)) if output.is_dir() else set()
    if found - {LOCK_FILE} and not found & {STORE_FILE, UNFINISHED_FILE}:
        raise ValueError(f'--output {output} is neither a store nor empty: it holds {min(found)}')


def _refuse_other(output: Path, found: dict[str, Any], job: dict[str, Any]) -> None:
    """Refuse to resume with other settings or another source than the store was begun with."""
    found, job = ({**d, **d['settings'], **d['source']} for d in (found, job))
    for key in ('version', *asdict(Settings(1)), *job['source']):
        if found[key] != job[key]:
            raise ValueError(
                f'{output} was packed with other settings or from other data: {key} was '
                f'{found[key]}, is now {job[key]}; use the same, or a new folder'
            )


def _begin(output: Path, job: dict[str, Any]) -> None:
    """Note what is built, or check that it is what was begun."""
    unfinished = output / UNFINISHED_FILE
    if unfinished.is_file():
        _refuse_other(output, json.loads(unfinished.read_bytes()), job)
    else:
        replace_file(unfinished, json.dumps(job, indent=1))


def _build(
    source: Source,
    output: Path,
    settings: Settings,
    job: dict[str, Any],
    *,
    workers: int,
    skip_bad: bool,
    report: Callable[[str], None],
) -> dict[str, Any]:
    count = len(source.files)
    with closing(ShardWriter(output, count, shard_bytes=settings.shard_bytes)) as writer:
        before = writer.done
        if writer.problems and not skip_bad:
            raise _stop(next(iter(writer.problems.values())))
        each = _bytes_each(source, settings, before)
        left = each * (count - before)
        report(
            f'{count} images {describe_form(asdict(settings))}, {before} of them packed already: '
            f'about {(writer.num_bytes + left) / 1e9:.2f} GB in {output}, '
            f'{shutil.disk_usage(output).free / 1e9:.2f} GB free'
        )
        check_space(output, int(left * 1.02))
        start = time.perf_counter()
        encoded = _encode_all(
            source.root, source.files[before:], settings, workers=workers, each=each
        )
        with closing(_progress(count, before)) as progress:
            for images in encoded:
                for image in images:
                    if isinstance(image, str) and not skip_bad:
                        raise _stop(image)
                    writer.add(image)
                _refuse_many_damaged(writer, count)
                progress.update(len(images))
        writer.finish()
    about = _finish(source, output, job, writer)
    seconds = time.perf_counter() - start
    report(
        f'packed {count - before} images in {seconds:.1f} s '
        f'({(count - before) / seconds:.1f} images/s); {output} has {about["images"]} images, '
        f'{sum(size for size, _ in about["files"].values()) / 1e9:.2f} GB'
    )
    if about['rounded']:
        report(f'{about["rounded"]} images of more than 8 bits were rounded to 8 (--keep-16bit)')
    if about['left_out']:
        report(f'{len(about["left_out"])} images could not be read: see {output / BAD_FILE}')
    return about


def _finish(
    source: Source, output: Path, job: dict[str, Any], writer: ShardWriter
) -> dict[str, Any]:
    """Write the index, copy the CSV files, and make the folder a store."""
    left_out = {source.files[position]: text for position, text in writer.problems.items()}
    names = np.array([os.fsencode(file) for file in source.files], bytes)
    packed = np.array([file not in left_out for file in source.files], bool)
    if not packed.any():
        raise ValueError(f'none of the {len(names)} images of {source.root} can be read')
    order = np.argsort(names[packed], kind='stable')
    index = writer.index[packed][order]
    files = {}
    for kind, values in {'names': names[packed][order], 'pictures': index}.items():
        buffer = io.BytesIO()
        np.save(buffer, values)
        name, data = f'{kind}_00000.npy', buffer.getvalue()
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
        'left_out': dict(sorted(left_out.items())),
        'scored': source.scored,
        'shards': [name for name, _, _ in writer.shards],
        'files': dict(sorted(files.items())),
    }
    write_about(output, about)
    return about


def _remove_unfinished(output: Path, about: dict[str, Any]) -> None:
    """Remove what is of use only until the store is complete."""
    for pattern in ('pixels_*', '*.tmp', UNFINISHED_FILE):
        for path in output.glob(pattern):
            if path.name not in about['files']:
                path.unlink()


def _encode_all(
    root: Path, files: Sequence[str], settings: Settings, *, workers: int, each: float
) -> Iterator[list[Encoded | str]]:
    """Encode files in order, some at a time; a text says why an image is damaged.

    Args:
        root: The folder of the files.
        files: Relative to the root.
        settings: What is stored.
        workers: Number of processes.
        each: Mean size of an encoded image in bytes.

    Raises:
        ValueError: If a worker was killed, or a file cannot be read at the moment.
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
        raise ValueError(f'a worker process was killed (out of memory?): {error}') from error
    finally:
        pool.shutdown(cancel_futures=True)


def _encode_chunk(root: Path, files: Sequence[str], settings: Settings) -> list[Encoded | str]:
    images = []
    for file in files:
        try:
            images.append(encode(root / file, settings, root))
        except BadImageError as error:
            images.append(str(error))
    return images


def _resized(image: Image.Image, settings: Settings) -> Image.Image:
    size, short = settings.size, min(image.size)
    if settings.square:
        return image.resize((size, size), RESAMPLE)
    if size is None or short <= size:
        return image
    return image.resize([round(side * size / short) for side in image.size], RESAMPLE)


def _exact_levels(pixels: np.ndarray) -> tuple[int, np.ndarray]:
    """Return the integer levels that these grey levels came from, or the grey levels themselves."""
    for bits in LEVEL_FORMS:
        scale = np.float32(255 / (2**bits - 1))
        levels = np.clip(np.rint(pixels / scale), 0, 2**bits - 1).astype('<u2')
        if (levels * scale == pixels).all():
            return bits, levels
    return FLOATS, pixels.astype('<f4')


def _bytes_each(source: Source, settings: Settings, done: int) -> float:
    """Estimate the mean size of the images that are still to be packed."""
    if settings.square:
        return settings.size**2 * (2 if settings.keep_16bit else 1)
    sizes = []
    for file in source.files[done :: max(1, (len(source.files) - done) // SAMPLED_IMAGES)]:
        try:
            sizes.append(len(encode(source.root / file, settings).data))
        except ValueError:  # it is reported when it is packed
            continue
    return float(np.mean(sizes)) if sizes else 0.0


def _refuse_many_damaged(writer: ShardWriter, count: int) -> None:
    damaged = len(writer.problems)
    if damaged > max(MOST_DAMAGED, MOST_DAMAGED_SHARE * count):
        first = next(iter(writer.problems.values()))
        writer.retry_problems()
        raise ValueError(
            f'{damaged} of {count} images are damaged, more than {MOST_DAMAGED} and '
            f'{MOST_DAMAGED_SHARE:.0%}; the first: {first} (copy the data again, or remove their '
            'rows from the CSV files, and run the same command again)'
        )


def _stop(problem: str) -> ValueError:
    return ValueError(f'{problem} (--skip-bad leaves out damaged images)')


def _progress(total: int, initial: int) -> tqdm:
    interval = 0.5 if sys.stderr.isatty() else 30  # seconds; a log file gets few lines
    return tqdm(total=total, initial=initial, desc='pack', unit='image', mininterval=interval)
