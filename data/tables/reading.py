"""Read the data set of a config."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from config import Config, module_of_option, scored_steps
from data.images.files import enlarged_side
from data.images.image_source import open_images
from data.images.preprocess import LUNG_STEPS, SHAPE_STEPS
from data.images.store_manifest import (
    BAD_FILE,
    STORE_FILE,
    file_crc32,
    is_store,
    packed_steps,
    read_manifest,
)
from data.tables.chexpert import DataSet, open_data_set
from data.tables.identity import shared_patients
from data.tables.records import LEFT_OUT, Records, existing_records, task_of
from data.tables.table import Fault, OnFault, refuse
from system.files import NETWORK_SYSTEMS, file_system
from system.tool import command_of, num_workers, share_of_cpus, usable_cpus

PACK = command_of('scripts/pack.py')
CHECK = command_of('scripts/check_data.py')
SCORED_SPLITS = ('internal', 'valid', 'test')  # in the order of reports
TRAINING_LABELS = 'labels of the training CSV (in CheXpert, a labeller made them, not radiologists)'


def log_loading(config: Config, logger: logging.Logger) -> None:
    """Log more loader processes than cores, and the form of the images of a store.

    A network file system and views that enlarge the images cause warnings.
    """
    workers, share = config.DATA.NUM_WORKERS, share_of_cpus()
    if workers > share:
        about = f'DATA.NUM_WORKERS {workers}: the share of a training process is {share} of the '
        about += f'{usable_cpus()} usable cores'
        if num_workers(config) < workers:
            logger.info(f'{about}, so it has as many loader processes (another value is kept)')
        else:
            logger.warning(f'{about}, which the loader processes share')
    path = config.DATA.DATA_PATH
    if not is_store(path):
        return
    manifest = read_manifest(path)
    logger.info(f'{path}: {manifest["images"]} images, {describe_images(path)}')
    kind = file_system(path)
    if kind in NETWORK_SYSTEMS and not config.DATA.CACHE_DIR:
        logger.warning(
            f'every epoch reads the store {path} from a network file system ({kind}): copy it once '
            'to a folder on the local disk with DATA.CACHE_DIR'
        )
    if manifest['left_out']:
        count = len(manifest['left_out'])
        logger.warning(f'{path}: {count} images could not be read when it was packed ({BAD_FILE})')
    # Enlarged pixels add no detail, which costs accuracy without any other sign.
    size, side = config.DATA.IMG_SIZE, manifest['settings']['size']
    needed = enlarged_side(size) if config.TEST.CROP else size
    if side is not None and side < needed:
        cut = f', from which views of {size} px are cut (TEST.CROP)' if config.TEST.CROP else ''
        logger.warning(
            f'{path}: its images of {side} px are enlarged to {needed} px{cut}. For sharper images '
            f'pack them: {PACK} --size {needed} or more'
        )


def read_split(
    config: Config,
    split: str,
    logger: logging.Logger,
    *,
    optional: bool = False,
    labelled: bool = True,
    source: str = '',
    data_set: DataSet | None = None,
) -> Records | None:
    """Read all records of 'train', 'valid' or 'test'; return None if an optional split is absent.

    Images that DATA.LEAVE_OUT lists are marked in train (`Records.left_out`), because patients are
    held out before they are left out, and are absent in other splits. With `labelled=False` no
    labels are read, and their columns may be missing. `source` is the name of an entry of
    DATA.SOURCES. A caller that reads several splits opens the `data_set` once for all of them.
    """
    labels = task_of(config).columns if labelled else ()

    def on_fault(fault: Fault) -> None:
        if fault.kind != LEFT_OUT:  # `log_loading` counts these images
            refuse(fault, logger)

    data_set = data_set or open_data_set(config, data_root(config, logger))
    records = data_set.read(split, labels=labels, optional=optional, on_fault=on_fault)
    if records is None or not config.DATA.LEAVE_OUT:
        return records
    records = mark_left_out(config, records, source)
    logger.info(f'{records.num_left_out} images of {split} are left out ({config.DATA.LEAVE_OUT})')
    return records if split == 'train' else records.kept()


def mark_left_out(config: Config, records: Records, source: str = '') -> Records:
    """Mark the images that DATA.LEAVE_OUT lists, which `Records.kept` removes."""
    if not config.DATA.LEAVE_OUT:
        return records
    listed, found = module_of_option('DATA.LEAVE_OUT').find_listed(config, records, source)
    return replace(records, left_out=listed, num_left_out=int(listed.sum()), found_names=found)


def report_names_not_found(
    config: Config, parts: Iterable[Records | None], on_fault: OnFault
) -> None:
    """Report the names in DATA.LEAVE_OUT that are in none of the splits or sources of a command."""
    if not config.DATA.LEAVE_OUT:
        return
    found = {name for part in parts if part is not None for name in part.found_names}
    fault = module_of_option('DATA.LEAVE_OUT').names_not_found(config, found)
    if fault is not None:
        on_fault(fault)


def refuse_shared_patients(
    config: Config, splits: Mapping[str, Records | None], logger: logging.Logger
) -> None:
    """Refuse patients in two splits, or warn of them with DATA.ALLOW_SHARED_PATIENTS.

    Images that DATA.LEAVE_OUT lists do not count.
    """
    lines = shared_patients(
        {name: part.kept().patient for name, part in splits.items() if part is not None}
    )
    for line in lines:
        if not config.DATA.ALLOW_SHARED_PATIENTS:
            raise ValueError(
                f'{line}: {CHECK} lists them, DATA.LEAVE_OUT leaves them out, and '
                'DATA.ALLOW_SHARED_PATIENTS True allows it, and the report says so'
            )
        logger.warning(line)


def scored_splits(data_set: DataSet, source: str = '') -> dict[str, Records]:
    """Read the scored splits that exist for pre-training, to compare their patients.

    Tables that cannot be read are not compared: pre-training does not need them.
    """
    found = {}
    options = {'labels': (), 'optional': True, 'look_up': 'none', 'on_fault': lambda fault: None}
    for split in ('valid', 'test'):
        try:
            records = data_set.read(split, **options)
        except ValueError:
            continue
        found[split] = records and mark_left_out(data_set.config, records, source)
    return found


def data_root(config: Config, logger: logging.Logger) -> str:
    """Return the folder to read: DATA.DATA_PATH, or the copy of this store in DATA.CACHE_DIR.

    The name of a copy contains the checksum of its contents, so several stores can share
    DATA.CACHE_DIR.

    Raises:
        ValueError: If DATA.CACHE_DIR is set but DATA.DATA_PATH is not a store, if the copy fails,
            or if the images do not fit DATA.PREPROCESS (see `require_packed_steps`).
    """
    data = config.DATA
    source = Path(data.DATA_PATH)
    require_packed_steps(config, source)
    # Without a copy every epoch reads from DATA_PATH, which may be a network drive.
    if not data.CACHE_DIR:
        return data.DATA_PATH
    if not is_store(source):
        raise ValueError(
            f'DATA.CACHE_DIR is for packed stores, but DATA.DATA_PATH {source} is not a store: '
            f'pack it ({PACK}), or leave DATA.CACHE_DIR empty'
        )
    source = source.resolve()
    target = Path(data.CACHE_DIR) / f'{source.name}-{file_crc32(source / STORE_FILE):08x}'
    try:
        return str(module_of_option('DATA.CACHE_DIR').copy_store(source, target, logger))
    except OSError as error:
        raise ValueError(f'DATA.CACHE_DIR: cannot copy {source} to {target}: {error}') from error


def require_packed_steps(config: Config, source: str | Path, key: str = 'DATA.PREPROCESS') -> None:
    """Raise a ValueError if the images of a folder or store do not fit the steps of an option.

    A store must be packed with the first steps. The other steps are applied when an image is read,
    except those that change the shape, which must be packed, for 'resize' to the size of the run.
    """
    steps = scored_steps(config) if key == 'EVAL.PREPROCESS' else config.DATA.PREPROCESS
    if not is_store(source):
        masks, needs_masks = config.DATA.LUNG_MASKS, {*LUNG_STEPS}.intersection(steps)
        if needs_masks and not (masks and Path(masks).is_dir()):
            raise ValueError(f'DATA.LUNG_MASKS must be a folder with {key} {steps}, got {masks!r}')
        return
    settings = read_manifest(source)['settings']
    # Pixels in a store have had their first steps, which cannot be undone.
    packed = settings['preprocess']
    if packed != steps[: len(packed)]:
        hint = ', or EVAL.DATA_PATH another store' if key == 'EVAL.PREPROCESS' else ''
        raise ValueError(
            f'{key} must begin with {packed}, with which the store {source} was packed '
            f'({PACK} --preprocess){hint}, got {steps}'
        )
    if missing := [name for name in SHAPE_STEPS if name in steps[len(packed) :]]:
        raise ValueError(
            f'{key} {missing[0]!r} changes the shape of the images, so the store {source} must be '
            f'packed with it: {PACK} --preprocess, got {packed}'
        )
    if 'resize' in packed and settings['size'] != config.DATA.IMG_SIZE:
        raise ValueError(
            f'DATA.IMG_SIZE must be {settings["size"]}, the size of the store {source}, which was '
            f"packed with 'resize', got {config.DATA.IMG_SIZE}"
        )


def scored_images(config: Config, records: Records, logger: logging.Logger) -> Records:
    """Let the records of scored images read them from EVAL.DATA_PATH, for EVAL.PREPROCESS.

    Raises:
        ValueError: If an image is missing there or was left out when it was packed, or if that
            folder or store does not fit EVAL.PREPROCESS.
    """
    place = config.EVAL.DATA_PATH or config.DATA.DATA_PATH
    require_packed_steps(config, place, 'EVAL.PREPROCESS')
    if not config.EVAL.DATA_PATH:
        return records
    own = config.clone()
    own.defrost()
    own.DATA.DATA_PATH, own.DATA.PREPROCESS = place, scored_steps(config)
    root = data_root(own, logger)
    logger.info(f'the scored images are read from {place} (EVAL.DATA_PATH)')
    images = open_images(root)
    if missing := len(records) - len(existing_records(records, images, 'all', refuse)):
        raise ValueError(
            f'EVAL.DATA_PATH {place}: {missing} of {len(records)} scored images could not be read '
            f'when the store was packed (see {images.path / BAD_FILE}); every one must be there'
        )
    return replace(records, image_root=Path(root))


def describe_images(data_path: str | Path) -> str:
    """Describe the form in which the images are read: as files or from a packed store."""
    if not is_store(data_path):
        return 'files'
    manifest = read_manifest(data_path)
    size, steps = manifest['settings']['size'], packed_steps(manifest)
    bits = 'more than 8 bits kept' if manifest['settings']['keep_16bit'] else '8 bits'
    form = f'with a short side of at most {size} px, aspect kept'
    if size is None:
        form = 'at their own sizes'
    elif manifest['settings']['square']:
        form = f'as squares of {size} x {size} px'
    return ', '.join([f'packed {form}', bits, *steps])
