"""Load chest X-rays, from CSV files or folders to batches.

In: a config. Out: a loader for each stage. Read `data_simmim.py` first: what a sample of
pre-training passes through. Its table comes from `tables/`, its image from `images/`.

Importing this package or one of its modules loads no other part. `build_loader`, as in SimMIM, and
`Loaders` are imported when they are used.
"""

from importlib import import_module
from typing import Any

PLACES = {'build_loader': '.build', 'Loaders': '.loader'}


def __getattr__(name: str) -> Any:
    if name not in PLACES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(PLACES[name], __name__), name)
