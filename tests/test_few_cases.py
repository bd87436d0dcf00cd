"""Labels with too few cases to select by are counted and named."""

import numpy as np
import pytest

from evaluation.metrics import describe_few, rarer_cases

NAN = np.nan


@pytest.mark.parametrize(
    ('five', 'rule', 'wanted'),
    [
        (['a', 'b'], 'auto', {'a': 1, 'b': 0}),
        (['b'], 'five', {'b': 0}),
        (['a', 'b'], 'all', {'a': 1, 'b': 0, 'c': 2}),
        (['a', 'other'], 'auto', {'a': 1, 'b': 0, 'c': 2}),
    ],
)
def test_rarer_cases(five, rule, wanted):
    targets = np.array([[1, 0, 1], [0, 0, 1], [0, 0, 0], [NAN, NAN, 0], [0, 0, 0]], float)
    assert rarer_cases(targets, ['a', 'b', 'c'], five, rule) == wanted


def test_the_few_are_named() -> None:
    assert describe_few({'a': 9, 'b': 10, 'c': 0}) == 'a 9, c 0'
    assert describe_few({'b': 10}) == ''
