"""The recorded cases of tests/golden: listing, config and comparison."""

import importlib.util
import json
from functools import cache
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parents[1] / 'golden'

_spec = importlib.util.spec_from_file_location('golden_fill', GOLDEN / 'fill.py')
fill = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fill)


@cache
def _index() -> list[dict]:
    return json.loads((GOLDEN / 'index.json').read_text())['cases']


def cases(*kinds: str) -> list[dict]:
    """The cases of the given kinds, in the index's order."""
    return [case for case in _index() if case['kind'] in kinds]


def case_id(case: dict) -> str:
    return case['name']


def recorded(case: dict) -> tuple[dict, dict]:
    """What a case recorded: (values of its .json, arrays of its .npz)."""
    values, arrays = {}, {}
    for name in case['files']:
        if name.endswith('.json'):
            values = json.loads((GOLDEN / name).read_text())
        else:
            arrays = dict(np.load(GOLDEN / name))
    return values, arrays


def case_config(case: dict):
    """The defaults with the case's keys merged in, frozen."""
    from config import default_config

    config = default_config()
    for key, value in case['config'].items():
        config.merge_from_list([key, value])
    config.freeze()
    return config


def assert_close(got, want, *, rtol: float, atol: float, what: str) -> None:
    """|got - want| <= atol + rtol * |want|, with the worst place in the message."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape, f'{what}: shape {got.shape}, recorded {want.shape}'
    excess = np.abs(got - want) - (atol + rtol * np.abs(want))
    worst = np.unravel_index(np.argmax(excess), excess.shape) if excess.size else ()
    assert excess.size == 0 or excess[worst] <= 0, (
        f'{what}: {got[worst]!r} at {worst}, recorded {want[worst]!r}'
    )
