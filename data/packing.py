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
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from checksums import LOCK_FILE, locked, replace_file
from data.packed import (
    BAD_FILE,
    ROUNDED,
    STORE_FILE,
    UNFINISHED_FILE,
    VERSION,
    Store,
    describe_form,
    encode_about,
    file_crc32,
    is_store,
    open_store,
    read_about,
    read_index,
)
from data.packing_images import Encoded, Settings, encode, encode_all
from data.packing_shards import JOURNAL_FILE, SHARD_FILE, ShardWriter
from data.packing_source import Source, read_addition, read_source
from data.store_files import check_space, copy_file, write_bad

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
    with locked(output, wait=False):
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
    with locked(output, wait=False):
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
