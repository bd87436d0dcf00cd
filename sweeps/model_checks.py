"""Check options that models and methods refuse, for sweeps.budget: `python -m sweeps.model_checks`.

This is a separate process, because it needs torch and scripts/ablate.py does not import it. The
input is a JSON list of [name, stage, text of config.yaml]. The output is the first problem.
"""

import json
import sys

import models.build  # noqa: F401 (registers the parts and their checks)
from config import check_config, config_from_text

if __name__ == '__main__':
    for name, stage, text in json.load(sys.stdin):
        try:
            check_config(config_from_text(text), stage)
        except ValueError as error:
            sys.exit(f'{name}: {error}')
