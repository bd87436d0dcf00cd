"""Where material lies that tests use if it is there, and skip without."""

import os
from pathlib import Path

SHARED = Path(os.environ.get('SIMMIM_SHARED', Path(__file__).resolve().parents[3] / 'shared'))
