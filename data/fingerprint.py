"""Describe the data of a run, so that a later run on other data is noticed."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from config import Config
from data.images.store_manifest import STORE_FILE, is_store
from data.loader import Loaders
from data.tables.identity import patient_forms
from data.tables.records import task_of
from data.tables.sources import source_configs
from system.files import sha256


def describe_data(config: Config, loaders: Loaders) -> dict[str, Any]:
    """Compute a fingerprint of the data of a run without opening any image.

    The fingerprint covers the contents of all tables, also of those that a function makes, and the
    names of all images. For a packed store it covers `store.json`, which contains checksums of the
    packed files. It does not cover the pixels of images in separate files.

    Returns:
        `fingerprint`, the SHA-256 of everything; `files`, the SHA-256 of each table;
        `images`, the number of different images; in fine-tuning, `training`, with the number of
        `images` that are trained on. With DATA.SOURCES, file names begin with the name of the
        source.
    """
    datasets = [loader.dataset for loader in loaders if loader is not None]
    tables, made, names = {}, {}, set()
    for source, own in source_configs(config).items():
        parts = [dataset.parts[source] for dataset in datasets if source in dataset.parts]
        records = [part.records for part in parts]
        own_tables = _tables(own, records, is_pretrain=not (loaders.valid or loaders.test))
        tables |= {os.path.join(source, name): path for name, path in own_tables}
        made |= {os.path.join(source, 'DATA.DATASET'): e.digest for e in records if e.digest}
        names |= {os.path.join(source, file) for part in records for file in part.file}
    files = dict(sorted((made | {name: sha256(path) for name, path in tables.items()}).items()))
    images = sorted(map(os.fsencode, names))
    # Names and not pixels: hashing all images would read the whole data set at each start.
    total = hashlib.sha256(json.dumps(files).encode())
    for image in images:
        total.update(b'\0' + image)
    described = {'fingerprint': total.hexdigest(), 'files': files, 'images': len(images)}
    learned = loaders.train or loaders.plain
    targets = None if learned is None else getattr(learned.dataset, 'targets', None)
    if targets is not None:
        described['training'] = {'images': len(targets)}
    return described


def hash_patients(config: Config, loaders: Loaders) -> dict[str, np.ndarray]:  # split -> int64 [N]
    """Return hashes of the patients of each split, by which runs on a data set are compared.

    A patient of another DATA.DATASET has another hash, even if the names are equal.
    """
    data_sets = {source: own.DATA.DATASET for source, own in source_configs(config).items()}
    found = {}
    for split, loader in loaders._asdict().items():
        if loader is None:
            continue
        parts = loader.dataset.parts.items()
        found[split] = hash_names((data_sets[name], part.records.patient) for name, part in parts)
    return found


def hash_names(patients: Iterable[tuple[str, Sequence[str]]]) -> np.ndarray:  # int64 [N]
    """Return sorted hashes of patients, given the names of those of each DATA.DATASET."""
    numbers = [
        patient_numbers(data_set, pd.unique(np.asarray(names, object)))
        for data_set, names in patients
    ]
    return np.unique(np.concatenate(numbers))


def patient_numbers(data_set: str, patients: Sequence[str]) -> np.ndarray:  # [N] int64
    """Return the hash of each patient of a DATA.DATASET; spellings of one name have one hash."""
    texts = (f'{data_set}\0{name}' for name in patient_forms(patients))
    digests = (hashlib.blake2b(os.fsencode(text), digest_size=8).digest() for text in texts)
    return np.frombuffer(b''.join(digests), '<i8')


def _tables(config: Config, records: list[Any], *, is_pretrain: bool) -> Iterator[tuple[str, Path]]:
    """Yield the name and path of each table that a run reads."""
    data, root = config.DATA, records[0].root
    yield from ((part.csv, root / part.csv) for part in records if part.csv)
    if is_store(root):
        yield STORE_FILE, root / STORE_FILE
    # Pre-training reads no labels, so the files below do not change its result.
    if is_pretrain:
        return
    if config.EVAL.DATA_PATH and is_store(config.EVAL.DATA_PATH):
        yield 'EVAL.DATA_PATH', Path(config.EVAL.DATA_PATH) / STORE_FILE
    demographics = root / data.DEMOGRAPHICS
    if demographics.is_file():
        yield data.DEMOGRAPHICS, demographics
    if task_of(config).needs_predictions:
        yield 'DATA.SELF_TRAIN_PREDICTIONS', Path(data.SELF_TRAIN_PREDICTIONS)
    if data.PSEUDO_LABELS:
        yield 'DATA.PSEUDO_LABELS', Path(data.PSEUDO_LABELS)
