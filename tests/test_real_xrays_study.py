"""Figures of the cross-validated study, from tables of made-up scores."""

import pandas as pd
import pytest

from tools import real_xrays_figures as figures


@pytest.mark.parametrize('rows', [('simmim_0.1', 'scratch_0.1'), ('linear_epochs5_1', 'pixels_1')])
def test_the_figure_shows_a_study_that_is_not_finished(tmp_path, rows) -> None:
    scores = pd.DataFrame({'value': [0.8, 0.7], 'low': [0.7, 0.6], 'high': [0.9, 0.8]}, index=rows)
    figures.draw_shares(tmp_path / 'shares.png', scores, 'Pneumonia')
    assert (tmp_path / 'shares.png').stat().st_size > 10_000
