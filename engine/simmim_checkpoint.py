"""Resume training from a checkpoint that SimMIM's own code wrote after an epoch."""

import json
import logging
import math
from pathlib import Path

from system import distributed
from utils import rng_state


def from_simmim(saved: dict, path: str | Path, logger: logging.Logger) -> dict:
    """Return the entries of `utils.RESUME_KEYS` for a checkpoint of SimMIM.

    Its learning rates are not used, because the config has the schedule. SimMIM saves no
    random states, so the own ones stay. Its best score is an accuracy, which selects nothing here.
    """
    options = saved['config']
    options['DATA']['HOLDOUT_FRACTION'] = 0.0  # SimMIM learns from all images
    logger.info(
        f'{path} is of SimMIM: training continues after its {saved["epoch"] + 1} epochs, with new '
        'random states and without its best score'
    )
    return {
        'model': saved['model'],
        'optimizer': saved['optimizer'],
        'scaler': saved.get('scaler'),  # apex's `amp` has another form
        'epoch': saved['epoch'],
        'batch': 0,
        'num_batches': 0,
        'accumulation': max(1, options['TRAIN']['ACCUMULATION_STEPS']),
        'finished': True,
        'best_score': -math.inf,
        'progress': {},
        'rng': [rng_state()] * distributed.world_size(),
        'config': json.dumps(options),  # JSON is YAML
    }
