"""Split patients: hold-out and subsets, and the images that a run trains on."""

import hashlib
import math
import os

import numpy as np
import pandas as pd

from config import Config, selected_part
from data.tables.identity import patient_forms
from data.tables.records import Records, select_views, task_of

FEW_TRAINING_IMAGES = 200  # with fewer, EVAL.SELECT_ON 'auto' chooses no checkpoint


def split_holdout(records: Records, fraction: float) -> tuple[Records, Records]:
    """Split off a fraction of the patients, which is the same for every seed.

    Call this on all records of `read_split`, before views and subsets are selected, so that the
    same patients are held out whatever is selected.

    Returns:
        (train, holdout): holdout has the first `fraction` of the patients, rounded up, in the order
        of a hash of their names.
    """
    rank, num_patients = _patient_order(records.patient, key='holdout')
    num_held_out = _share(fraction, num_patients)
    if num_held_out >= num_patients:
        raise ValueError(
            f'DATA.HOLDOUT_FRACTION {fraction} leaves none of the {num_patients} patients of '
            f'{records.csv} to train on'
        )
    return records.select(rank >= num_held_out), records.select(rank < num_held_out)


def split_patients(config: Config, records: Records) -> tuple[Records, Records, Records]:
    """Split the training CSV by patient, in the same way for every seed; see `split_holdout`.

    Returns:
        (train, holdout, internal): holdout chooses the checkpoint and the thresholds; internal, the
        fraction EVAL.INTERNAL_SHARE of the held-out patients, is only scored.
    """
    train, held_out = split_holdout(records, config.DATA.HOLDOUT_FRACTION)
    rank, num_patients = _patient_order(held_out.patient, key='internal')
    share = config.EVAL.INTERNAL_SHARE
    num_internal = _share(share, num_patients)
    if share and not 0 < num_internal < num_patients:
        raise ValueError(
            f'EVAL.INTERNAL_SHARE {share} leaves none of the {num_patients} patients held out by '
            f'DATA.HOLDOUT_FRACTION {config.DATA.HOLDOUT_FRACTION} to choose a checkpoint'
        )
    is_internal = rank < num_internal
    parts = (train, held_out.select(~is_internal), held_out.select(is_internal))
    return tuple(records.kept() for records in parts)


def selecting_split(config: Config, num_images: int) -> str:
    """Return the value of EVAL.SELECT_ON for a number of training images, with 'auto' resolved."""
    if config.EVAL.SELECT_ON != 'auto':
        return config.EVAL.SELECT_ON
    chooses = config.DATA.HOLDOUT_FRACTION and num_images >= FEW_TRAINING_IMAGES
    return 'holdout' if chooses else 'last'


def take_subset(records: Records, *, fraction: float, images: int, seed: int) -> Records:
    """Select a share of the patients or a number of images; larger subsets contain smaller ones.

    Args:
        records: Records to select from; their order is kept.
        fraction: Share of the patients, rounded up; 1 selects all (DATA.TRAIN_FRACTION).
        images: Number of images, patient by patient; 0 selects all (DATA.TRAIN_IMAGES).
        seed: Seed of the order of the patients.
    """
    if images == 0 and fraction == 1:
        return records
    if images > len(records):
        raise ValueError(
            f'DATA.TRAIN_IMAGES must be at most {len(records)}, the number of images, got {images}'
        )
    rank, num_patients = _patient_order(records.patient, key=str(seed))
    if images:
        # Patient by patient: a smaller number takes the first images of the same order.
        return records.select(np.sort(np.argsort(rank, kind='stable')[:images]))
    return records.select(rank < _share(fraction, num_patients))


def training_records(config: Config, records: Records) -> Records:
    """Select the images that fine-tuning learns from, out of all that are not held out.

    Images of other views than DATA.VIEWS are dropped. In a task without policies for uncertain
    labels, images without a target are dropped, too. Then the subset of DATA.TRAIN_FRACTION or
    DATA.TRAIN_IMAGES is taken.
    """
    data, task = config.DATA, task_of(config)
    records = select_views(records, data.VIEWS)
    # Before the subset, so that TRAIN_IMAGES counts images that teach something.
    if not task.has_policies:
        records = records.select(~np.isnan(task.learned(records)).all(axis=1))
    return take_subset(
        records, fraction=data.TRAIN_FRACTION, images=data.TRAIN_IMAGES, seed=config.SEED
    )


def unlabelled_records(config: Config, records: Records) -> Records:
    """Select the images of DATA.VIEWS of the patients outside the training subset.

    The records are all training images that are not held out. The selected records keep their
    labels, which training must not use.
    """
    labelled = training_records(config, records).patient
    outside = ~np.isin(patient_forms(records.patient), patient_forms(labelled))
    return select_views(records.select(outside), config.DATA.VIEWS)


def pretrain_records(config: Config, records: Records) -> tuple[Records, Records]:
    """Split the images of the training CSV into images for pre-training and held-out images."""
    data = config.DATA
    # Patients are held out before views are selected, so that the choice of views moves nobody.
    train, holdout = (e.kept() for e in split_holdout(records, data.HOLDOUT_FRACTION))
    if selected_part(config, 'DATA.DATASET').labelled:
        train = select_views(train, data.VIEWS)
        holdout = select_views(holdout, data.VIEWS) if len(holdout) else holdout
    train = take_subset(
        train, fraction=data.TRAIN_FRACTION, images=data.TRAIN_IMAGES, seed=config.SEED
    )
    return train, holdout


def describe_subset(config: Config) -> str:
    """Describe the part of the training images that is used; '' for all of them."""
    data, parts = config.DATA, []
    if data.TRAIN_IMAGES:
        parts.append(f'{data.TRAIN_IMAGES} of the images: DATA.TRAIN_IMAGES')
    if data.TRAIN_FRACTION < 1:
        parts.append(f'{100 * data.TRAIN_FRACTION:g} % of the patients: DATA.TRAIN_FRACTION')
    return ', '.join(parts)


def patient_hashes(patients: np.ndarray, key: str) -> tuple[np.ndarray, list[bytes]]:
    """Return the number of the patient of each record [N], and a keyed hash of each patient.

    Two spellings of a name, which may be one patient, have one number and the hash of the first of
    them in alphabetical order, so that they are never apart.
    """
    # A hash and not a draw: a patient keeps its place if other patients join or leave.
    codes, names = pd.factorize(patients)
    forms, spelt = pd.factorize(patient_forms(names))
    if len(spelt) < len(names):
        names = pd.Series(names).groupby(forms).min().to_numpy(object)
        codes = forms[codes]
    hashes = (hashlib.blake2b(os.fsencode(name), key=key.encode()) for name in names)
    return codes, [each.digest() for each in hashes]


def _patient_order(patients: np.ndarray, *, key: str) -> tuple[np.ndarray, int]:
    """Rank patients by a keyed hash; return the rank of each record [N] and their number."""
    codes, hashes = patient_hashes(patients, key)
    order = sorted(range(len(hashes)), key=hashes.__getitem__)
    rank = np.empty(len(hashes), np.int64)
    rank[order] = np.arange(len(hashes))
    return rank[codes], len(hashes)


def _share(fraction: float, count: int) -> int:
    """Return a fraction of a count, rounded up; 0.07 of 100 is 7, without rounding errors."""
    # 0.07 * 100 is 7.000000000000001 in floating point, which would be rounded up to 8.
    return math.ceil(fraction * count * (1 - 1e-12))
