"""Packages that only exports need."""

import importlib
from types import ModuleType

REQUIREMENTS = 'requirements-export.txt'


def load_package(name: str, target: str) -> ModuleType:
    """Import a package of REQUIREMENTS.

    Raises:
        ValueError: if it is not installed, saying how it is.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(
            f'--to {target} needs the package {name}: pip install -r {REQUIREMENTS} ({error})'
        ) from error
