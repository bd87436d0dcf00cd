"""Masks against SimMIM's recorded ones."""

import numpy as np
import pytest
from golden_cases import case_id, cases, recorded

from data.masking import MaskGenerator


def _masks(case: dict, *args: np.random.RandomState) -> np.ndarray:
    generator = MaskGenerator(**case['inputs']['generator'])
    return np.stack([generator(*args) for _ in range(case['inputs']['count'])])


@pytest.mark.parametrize('case', cases('masks'), ids=case_id)
def test_masks_are_as_recorded(case):
    inputs, (values, arrays) = case['inputs'], recorded(case)
    np.random.seed(inputs['seed'])
    got = _masks(case)
    assert got.dtype == np.int64
    assert got.shape[1:] == tuple(values['shape'])
    assert got.sum(axis=(1, 2)).tolist() == np.ravel(values['hidden']).tolist()
    assert (len(np.unique(got, axis=0)) > 1) == inputs['varied']
    scale = inputs['generator']['mask_patch_size'] // inputs['generator']['model_patch_size']
    units = got[:, ::scale, ::scale]
    assert np.array_equal(units.repeat(scale, axis=1).repeat(scale, axis=2), got)
    if inputs['mode'] == 'exact':
        assert np.array_equal(got, arrays['masks'])
        assert np.array_equal(_masks(case, np.random.RandomState(inputs['seed'])), got)
