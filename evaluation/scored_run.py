"""What is known of the run whose model is scored: what chose its epoch, its facts, and doubts."""

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from config import NO_ENCODER, PROBES, Config
from data.loader import Loaders
from data.tables.identity import shared_patients
from data.tables.reading import read_split
from engine.lineage import Lineage
from engine.run_record import weights_checksum
from evaluation.run_facts import (
    BY_HAND,
    CHOSEN_ON,
    EPOCH,
    GIVEN_BY_HAND,
    ON_VALID,
    PRECISION,
    RANDOM,
    SEEN,
    SELECTED_ON_VALID,
    SHARED,
    SIZE,
    WEIGHTS,
    Known,
    facts_of_options,
)
from system.device import autocast_dtype
from system.files import BEST_CHECKPOINT, checkpoint_position
from utils import selected_checkpoint


def known_of(
    lineage: Lineage,
    trained: Config | None,
    source: str,
    *,
    chosen: str,
    patients: Mapping[str, Sequence[str]],
    record: Mapping[str, Any],
    device: torch.device,
) -> Known:
    """Collect what a reader of predictions must know of the run whose model makes them.

    Args:
        lineage: Trainings behind the model, with the options of the scoring.
        trained: Options of the training; None if they are unknown.
        source: Checkpoint, or kind of probe.
        chosen: Result of `chosen_on`.
        patients: Result of `patients_of`.
        record: Contents of the run.json of the training, {} if it is unknown.
        device: Device of the scoring.
    """
    facts = facts_of(trained, lineage.config, chosen, record, device) if trained else {}
    selects = trained is not None and trained.EVAL.SELECT_ON == 'valid'
    is_renamed = chosen == 'hand' and checkpoint_position(Path(source).name) is None
    is_optimistic = chosen == 'valid' or (is_renamed and selects)
    doubts = {
        SHARED: shared_patients(patients),
        # Without the patients of a training, that nothing was found says little.
        **({SEEN: lineage.warnings} if lineage.warnings or lineage.is_known else {}),
        ON_VALID: [SELECTED_ON_VALID] if is_optimistic else [],
        BY_HAND: [GIVEN_BY_HAND] if chosen == 'hand' else [],
    }
    return Known(facts, doubts)


def patients_of(
    config: Config, loaders: Loaders, scored: Mapping[str, DataLoader]
) -> dict[str, list[str]]:
    """Return the patients of each split that the scored model learned from or is scored on."""
    own = {'train': loaders.train or loaders.plain, 'holdout': loaders.holdout, **scored}
    patients = {
        split: [*loader.dataset.records.patient]
        for split, loader in own.items()
        if loader is not None
    }
    # Of the training table, --eval loads no image that is not scored.
    if config.EVAL_MODE and config.DATA.ALLOW_SHARED_PATIENTS:
        records = read_split(config, 'train', logging.getLogger('quiet'), optional=True)
        if records is not None:
            held_out = ('holdout', 'internal')  # which are in this table
            others = {split: v for split, v in patients.items() if split not in held_out}
            patients = {'train': [*records.kept().patient]} | others
    return patients


def chosen_on(
    trained: Config | None, source: str | Path, folder: Path, *, is_own: bool = False
) -> str:
    """Return what chose a checkpoint: a split, 'last', 'unfinished', 'hand', or '' for a probe.

    A checkpoint is compared with the one that the run in its folder, or in the run folder, has
    selected. Any other one was given by hand, except by the run itself (`is_own`).
    """
    if trained is None or trained.FINETUNE.MODE in PROBES:
        return 'hand' if trained is None else ''
    selected = Path(source) if is_own else None
    for place in dict.fromkeys((Path(source).parent, folder)):
        found = None if selected else selected_checkpoint(place)
        if found and is_same_file(found, Path(source)):
            selected = found
    if selected is None:
        return 'hand'
    if selected.name == BEST_CHECKPOINT:
        return 'valid' if trained.EVAL.SELECT_ON == 'valid' else 'holdout'
    epoch, step = checkpoint_position(selected.name)
    return 'last' if epoch + 1 >= trained.TRAIN.EPOCHS and math.isinf(step) else 'unfinished'


def is_same_file(one: Path, other: Path) -> bool:
    """Return whether two paths are one file, or two files with the same contents."""
    if not other.is_file() or one.stat().st_size != other.stat().st_size:
        return False
    return one.samefile(other) or weights_checksum(str(one)) == weights_checksum(str(other))


def facts_of(
    trained: Config,
    config: Config,
    chosen: str,
    record: Mapping[str, Any],
    device: torch.device,
) -> dict[str, str]:
    """Return the facts about predictions.

    Args:
        trained: Options of the training.
        config: Options of the scoring.
        chosen: Result of `chosen_on`.
        record: Contents of the run.json of the training, {} if it is unknown.
        device: Device of the scoring.
    """
    facts = facts_of_options(trained) | {EPOCH: CHOSEN_ON.get(chosen, chosen)}
    if trained.FINETUNE.MODE in NO_ENCODER:
        return facts | {PRECISION: '', WEIGHTS: ''}
    facts[SIZE] = both(facts[SIZE], f'{config.DATA.IMG_SIZE} px', 'scored at')
    if 'precision' in record:
        scored = str(autocast_dtype(config, device) or torch.float32).removeprefix('torch.')
        starts = [start.get('precision', '') for start in record.get('starts', [])]
        trained_in = ', then '.join(dict.fromkeys(filter(None, [record['precision'], *starts])))
        facts[PRECISION] = both(trained_in, scored, 'scored in')
        gpus = (record.get('environment') or {}).get('gpus')
        facts[PRECISION] += ' with TF32' if trained.AMP_TF32 and gpus else ''
    if 'pretrained' in record:
        facts[WEIGHTS] = record['pretrained'] or RANDOM
    return facts


def both(before: str, now: str, words: str) -> str:
    """Return a fact about training and, if it differs, about scoring."""
    return before if before == now else f'{before}, {words} {now}'
