"""The folder of a run: its lock, and refusing a folder that contains another run."""

import contextlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from config import TRAINED, Config, config_changes, config_from_text, config_text
from engine.run_record import OPTIONS_FILE, is_finished, known_record, run_changes, weights_checksum
from system.downloads import is_url, split_key
from system.files import BEST_CHECKPOINT, locked

LOCK_FILE = 'run.lock'
LOCK_ATTEMPTS = 20
SHOWN = 3  # maximum number of differences in an error message


def refuse_another_run(folder: Path, config: Config) -> None:
    """Refuse to start a run in the folder of another run, before anything is written.

    A run may resume with other options, and a finished run may be trained for more epochs, as long
    as the pre-trained weights and the options that affect the model, the patients and the outputs
    stay the same. If a finished run is started without more epochs, all options that change the
    trained model must stay the same.

    Raises:
        ValueError: If the folder contains another run or checkpoints that this run would not
            resume from, or its config.yaml cannot be read.
    """
    path, finished = folder / OPTIONS_FILE, is_finished(folder)
    has_regular, reason = any(folder.glob('ckpt_epoch_*.pth')), ''
    if has_regular and not config.TRAIN.AUTO_RESUME:
        reason = 'TRAIN.AUTO_RESUME is False'
    elif finished and not has_regular and (folder / BEST_CHECKPOINT).exists():
        reason = f'only {BEST_CHECKPOINT} was kept'
    if reason and not config.MODEL.RESUME:
        raise ValueError(
            f'{folder} has checkpoints from which this run would not resume, because {reason}: '
            'choose another --tag, or score the run with --eval'
        )
    resumes = config.TRAIN.AUTO_RESUME and has_regular
    if not path.is_file() or not (finished or resumes):
        return
    try:
        before = config_from_text(path.read_text('utf-8'))
    except ValueError as error:
        raise ValueError(f'{path} cannot be read ({error}): restore or remove the file') from error
    # More epochs continue a run; its learning rates may then change, but not what it learns.
    continues = not finished or config.TRAIN.EPOCHS > before.TRAIN.EPOCHS
    kept = ('model', 'outputs', 'patients') if continues else TRAINED
    changes = config_changes(config_text(before), config_text(config), *kept)
    changes = weights_changes(folder, config, before.PRETRAINED) + changes
    if changes:
        raise ValueError(
            f'{folder} contains another run ({"; ".join(changes[:SHOWN])}): choose another --tag '
            'or --output'
        )


def weights_changes(folder: Path, config: Config, before: str) -> list[str]:
    """List how PRETRAINED of a config differs from the initial weights of the run in a folder.

    `before` is PRETRAINED of that run. Files are compared by SHA-256. URLs are compared as text,
    because nothing is downloaded. The list is empty if the run began with a checkpoint, because
    the weights that this checkpoint started from are unknown.
    """
    given, record = config.PRETRAINED, known_record(folder)
    first = next(iter(record.get('starts', [])), {})
    if first.get('resumed_from'):
        return []
    starts_anew = not given and not config.MODEL.RESUME and record.get('pretrained')
    file, key = split_key(given)
    has_other_key = bool(given) and key != split_key(before)[1]
    if not has_other_key and (Path(file).is_file() or starts_anew):
        return run_changes(record, {'pretrained': weights_checksum(given)})
    # Downloading only to compare would take minutes at each start.
    is_other = has_other_key or (is_url(given) and before != given)
    return [f'PRETRAINED: {before or "none"} -> {given}'] if is_other else []


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[bool]:
    """Lock a run folder against other runs, see `system.files.locked`.

    Raises:
        ValueError: If another run is writing to the folder.
    """
    with contextlib.ExitStack() as stack:
        for attempt in range(LOCK_ATTEMPTS):
            try:
                is_safe = stack.enter_context(locked(folder / LOCK_FILE, wait=False))
                break
            except ValueError:  # `is_locked` holds the lock for a moment
                if attempt + 1 == LOCK_ATTEMPTS:
                    raise
                time.sleep(0.1)
        yield is_safe


def is_locked(folder: str | Path) -> bool:
    """Return whether another run is writing to this run folder."""
    path = Path(folder) / LOCK_FILE
    try:
        if path.exists():
            with locked(path, wait=False):
                pass
    except ValueError:
        return True
    except PermissionError:  # the folder belongs to another user
        pass
    return False


def remove_unused(folder: Path) -> None:
    """Remove the folder of a run that wrote nothing but its log, for example without its data."""
    names = [file.name for file in folder.iterdir()]
    if all(name == LOCK_FILE or name.startswith('log_rank') for name in names):
        shutil.rmtree(folder, ignore_errors=True)
