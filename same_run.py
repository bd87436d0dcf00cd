"""Whether a start belongs to the run in its folder; if not it is refused, before it writes."""

from pathlib import Path

from checkpoint_files import find_newest_checkpoint
from config import Config, config_text, default_config
from config_checks import PROBES
from config_dump import has_more_epochs, training_changes
from config_merge import load_yaml
from provenance import OPTIONS_FILE, is_finished, read_record, weights_checksum

SHOWN = 3  # options in a message


def refuse_other_options(folder: Path, options: str) -> None:
    """Refuse to start a finished run with options that it was not trained with.

    It may be trained for more epochs, and evaluated and reported in another way.

    Raises:
        ValueError: naming them, or config.yaml if it cannot be read.
        OSError: if it cannot be opened.
    """
    path = folder / OPTIONS_FILE
    try:
        before = path.read_bytes()
    except FileNotFoundError:
        return
    if not is_finished(folder):
        return
    try:
        before = before.decode()
        if has_more_epochs(before, options):
            return
        changes = training_changes(before, options, config_text(default_config()))
    except ValueError as error:
        raise ValueError(
            f'{path} cannot be read ({error}): put it back, remove it, or choose another --tag or '
            '--output'
        ) from error
    if changes:
        shown = [f'{line:.200}' for line in changes[:SHOWN]]
        more = f'; and {len(changes) - SHOWN} more' if len(changes) > SHOWN else ''
        raise ValueError(
            f'{folder} holds a finished run of other options ({"; ".join(shown)}{more}): choose '
            'another --tag or --output'
        )


def refuse_other_weights(folder: Path, config: Config) -> None:
    """Refuse a file PRETRAINED other than a finished run, or one that goes on, began with.

    To go on it would not be loaded, but named in the report; a probe would be fitted anew, which is
    refused without PRETRAINED, too. Not known is what a run began with that went on from
    MODEL.RESUME, or that had its weights from an address, or whose record is lost.

    Raises:
        ValueError: naming the file.
        OSError: if it cannot be read.
    """
    given, is_probe = config.PRETRAINED, config.FINETUNE.MODE in PROBES
    goes_on = config.TRAIN.AUTO_RESUME and find_newest_checkpoint(folder)
    concerned = Path(given).is_file() or (is_probe and not given)
    if not concerned or not (goes_on or is_finished(folder)):
        return
    try:
        record = read_record(folder) or {}
        before = load_yaml((folder / OPTIONS_FILE).read_text('utf-8')).get('PRETRAINED', '')
    except (ValueError, AttributeError, FileNotFoundError):  # to start the run again mends it
        return
    begin = next(iter(record.get('starts', [])), {})
    if 'pretrained' not in record or begin.get('resumed_from') or '://' in str(before):
        return
    if weights_checksum(given) != record['pretrained']:
        raise ValueError(
            f'{folder} holds a run that began with other weights than PRETRAINED {given!r}: choose '
            'another --tag or --output'
        )
