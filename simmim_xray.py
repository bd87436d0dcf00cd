"""SimMIM for chest X-rays: features, predictions and scores in Python. Not for clinical use.

`from simmim_xray import load_encoder` works in a clone and with the installed package, of which
this file is the `__init__`.
"""

from options.parts import import_by_name

FUNCTIONS = ('evaluate', 'example_xray', 'load_encoder', 'load_image', 'predict')
__all__ = [*FUNCTIONS]


def __getattr__(name: str) -> object:
    if name not in FUNCTIONS:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return import_by_name(f'scripts.api:{name}')  # imports PyTorch, which takes seconds
