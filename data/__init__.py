"""Load chest X-rays, from CSV files or folders to batches.

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
