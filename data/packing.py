"""Building the packed store of `data.packed`: in parallel, resumable, always the same bytes.

Workers read and resize the pictures; this process alone writes them, in the order of the file
names, with a journal.  So the store depends neither on the number of workers nor on how often the
building was killed.
"""

import io
import json
import os
import re
import shutil
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data.packed import (
    BAD_FILE,
    ROUNDED,
    STORE_FILE,
    UNFINISHED_FILE,
    VERSION,
    encode_about,
    file_crc32,
    is_store,
    open_store,
    read_about,
    read_index,
)
from data.packing_images import Settings, encode, encode_all
from data.packing_shards import JOURNAL_FILE, SHARD_FILE, ShardWriter
from data.packing_source import Source, read_addition, read_source
from data.store_files import LOCK_FILE, check_space, copy_file, locked, replace_file, write_bad

SAMPLED_IMAGES = 16  # tell the size of a store before it is built
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
        skip_bad: leave out what cannot be read, and list it in bad_images.csv.
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
    with locked(output, wait=False):
        if (output / STORE_FILE).is_file():
            about = read_about(output)
            _refuse_other(output, {key: about[key] for key in job if key != 'generation'}, job)
            _clean(output, about)
            report(f'{output} is complete: {about["images"]} pictures')
            return about
        _begin(output, job, [])
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

    Pictures that were left out stay so.  Until all is done, the store is as it was.

    Args:
        data_path: the folder that holds the pictures.
        output: the store; its settings hold.
        csv_file: inside the folder, or elsewhere.
        workers: processes that read and resize.
        skip_bad: leave out what cannot be read.
        report: told, line by line, what is done.

    Returns:
        What store.json says.

    Raises:
        ValueError: as `pack`, and if the store has another CSV file of this name.
    """
    output = Path(output)
    if not is_store(output):
        raise ValueError(f'--append adds to a store: {output} is none')
    settings = Settings(**read_about(output)['settings'])
    source = read_addition(data_path, csv_file, image_suffix=settings.image_suffix)
    ((name, path),) = source.tables.items()
    with locked(output, wait=False):
        store = open_store(output)
        about = store.about
        here = about['files'].get(name)
        if here and here[1] != file_crc32(path):
            raise ValueError(f'{output} has another {name} already: give {path} another name')
        places = store.position(source.files)
        new = [source.files[i] for i in np.flatnonzero(places < 0)]
        new = [file for file in new if file not in store.left_out]
        if _is_behind(output, about) or (here and not new):
            _clean(output, about)
        if here and not new:
            report(f'{output} has {name} and its pictures already')
            return about
        source = replace(source, files=new, scored=source.scored or about['scored'])
        job = _describe_job(settings, source, generation=about['generation'] + 1)
        _begin(output, job, list(about['files']))
        options = {'workers': workers, 'skip_bad': skip_bad, 'report': report}
        return _build(source, output, settings, job, old=about, **options)


def _is_behind(output: Path, about: dict[str, Any]) -> bool:
    """Whether what was begun here is in the store already."""
    unfinished = output / UNFINISHED_FILE
    if not unfinished.is_file():
        return False
    return json.loads(unfinished.read_bytes())['generation'] <= about['generation']


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


def _begin(output: Path, job: dict[str, Any], expected: list[str]) -> None:
    """Note what is built, or check that it is what was begun."""
    unfinished = output / UNFINISHED_FILE
    if unfinished.is_file():
        _refuse_other(output, json.loads(unfinished.read_bytes()), job)
        return
    allowed = {*expected, LOCK_FILE, STORE_FILE, JOURNAL_FILE, f'{UNFINISHED_FILE}.tmp'}
    strangers = sorted(set(os.listdir(output)) - allowed)
    if strangers and not expected:
        raise ValueError(f'{output} is no store and not empty: it holds {strangers[0]}')
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
        report(
            f'{len(source.files)} pictures {settings.describe()}, {before} of them packed already: '
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
    return ValueError(f'{problem} (--skip-bad leaves out what cannot be read)')


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
    with tqdm(
        total=len(source.files),
        initial=writer.done,
        unit='image',
        desc='pack',
        mininterval=0.5 if sys.stderr.isatty() else 30,  # a log gets a line now and then
    ) as progress:
        files = source.files[writer.done :]
        for pictures in encode_all(source.root, files, settings, workers=workers, each=each):
            for picture in pictures:
                if isinstance(picture, str) and not skip_bad:
                    raise _stop(picture)
                writer.add(picture)
            writer.flush()
            progress.update(len(pictures))


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
