"""What a run knew when it wrote predictions: facts about it, and doubts about its scores.

The JSON file beside predictions records both. Of what is not there, nothing is assumed. What tables
and comparisons say about the facts of several runs is in `evaluation.notices`.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from config import NO_ENCODER, PROBES, Config, config_from_text, default_config
from engine.run_record import OPTIONS_FILE, known_record

KNOWN = 'known'  # key of the JSON file
# Facts, as text. '' is a fact that a kind of run does not have, such as the epoch of a probe.
SEED, SIZE, PRECISION, LABELS = 'seed', 'input size', 'precision', 'share of labels'
EPOCH, WEIGHTS, MODE = 'epoch chosen on', 'initial weights', 'trained part'
COMPARED = (SIZE, PRECISION, LABELS, EPOCH, MODE)  # of which a reader must know if they differ
FACTS = (SEED, *COMPARED, WEIGHTS)
# Doubts, each with sentences: none if nothing was found. Of a missing one, nothing is known.
SHARED = 'patients in two splits'
SEEN = 'weights that may have seen scored patients'
ON_VALID = 'checkpoint selected on valid'
BY_HAND = 'checkpoint given by hand'
DOUBTS = (SHARED, SEEN, ON_VALID, BY_HAND)

RANDOM = 'random'  # initial weights
CHOSEN_ON = {
    'holdout': 'held-out training patients',
    'last': 'no images: it is the last epoch',
    'unfinished': 'no images: it is the newest epoch of an unfinished training',
    'hand': 'given by hand',
}
SELECTED_ON_VALID = 'the checkpoint was selected on valid, so the scores on valid are optimistic'
GIVEN_BY_HAND = (
    'the checkpoint was given by hand and is not the one that the run selected: if it was chosen '
    'by its scores, they are too high'
)
OF_RUN = re.compile(r'predictions_[a-z]+\.csv')  # files that a training writes to its folder


class Known(NamedTuple):
    """Facts about a run, and doubts about its scores."""

    facts: Mapping[str, str] = {}  # noqa: RUF012
    doubts: Mapping[str, Sequence[str]] = {}  # noqa: RUF012


def facts_of_options(trained: Config) -> dict[str, str]:
    """Return the facts that the options of a training tell."""
    data, mode = trained.DATA, trained.FINETUNE.MODE
    share = f'{100 * data.TRAIN_FRACTION:g} % of the patients'
    if data.TRAIN_IMAGES:
        share = f'{data.TRAIN_IMAGES} images' + (f' of {share}' if data.TRAIN_FRACTION < 1 else '')
    # Tables of folds have a path; of the others, the name of a table tells of its share, too.
    if data.TRAIN_CSV != default_config().DATA.TRAIN_CSV and not os.path.isabs(data.TRAIN_CSV):
        share += f' of {data.TRAIN_CSV}'
    return {
        SEED: str(trained.SEED),
        SIZE: '' if mode in NO_ENCODER else f'{data.IMG_SIZE} px',
        LABELS: f'{share}{" and pseudo-labels" if data.PSEUDO_LABELS else ""}',
        MODE: mode,
    }


def read_known(file: str | Path) -> Known:
    """Read what is known of the run that wrote predictions, from the JSON file beside them."""
    return checked(_read_json(Path(file).with_suffix('.json')).get(KNOWN))


def known_of_run(file: Path) -> Known:
    """Read the same of predictions in a run folder, whose files tell facts that are not recorded.

    Raises:
        ValueError: If the predictions are of another run than the one in the folder.
    """
    known, folder, record = read_known(file), file.parent, known_record(file.parent)
    options = folder / OPTIONS_FILE
    if not (record and options.is_file() and OF_RUN.fullmatch(file.name)):
        return known
    trained = config_from_text(options.read_text(encoding='utf-8'))
    facts = facts_of_options(trained)
    run, name = _read_json(file.with_suffix('.json')).get('run'), trained.TAG
    if run not in (None, name, f'{trained.MODEL.NAME}/{name}'):
        raise ValueError(
            f'{file} was written by the run {run}, but {folder} has the run '
            f'{trained.MODEL.NAME}/{name}: predictions must stay in the folder of their run'
        )
    if 'precision' in record:
        facts[PRECISION] = str(record['precision'])
    if 'pretrained' in record:
        facts[WEIGHTS] = str(record['pretrained'] or RANDOM)
    for fact in (SIZE, PRECISION, WEIGHTS) if trained.FINETUNE.MODE in NO_ENCODER else ():
        facts[fact] = ''
    return Known({**facts, **known.facts}, known.doubts)


def checked(content: Any) -> Known:
    """Return what a file tells, which may have any content, without what is of another type."""
    content = content if isinstance(content, dict) else {}
    facts, doubts = (content.get(key) for key in Known._fields)
    return Known(
        {
            fact: value
            for fact, value in (facts if isinstance(facts, dict) else {}).items()
            if fact in FACTS and isinstance(value, str)
        },
        {
            doubt: [line for line in lines if isinstance(line, str)]
            for doubt, lines in (doubts if isinstance(doubts, dict) else {}).items()
            if doubt in DOUBTS and isinstance(lines, list)
        },
    )


def may_be_equal(one: Sequence[Known], other: Sequence[Known], mode: str = 'full') -> bool:
    """Return whether two runs with other seeds may predict the same: as probes of equal weights.

    `mode` is their FINETUNE.MODE if that is not recorded.
    """
    modes = {part.facts.get(MODE, mode) for part in (*one, *other)}
    weights = [{part.facts.get(WEIGHTS) for part in parts} for parts in (one, other)]
    return modes <= {*PROBES} and (weights[0] == weights[1] or None in weights[0] | weights[1])


def _read_json(file: Path) -> dict[str, Any]:
    """Read a JSON file, {} if there is none, or if it is no description."""
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
