"""Figures and power of the cross-validated study, from tables of made-up scores."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scripts.studies import power
from scripts.studies import real_xrays_figures as figures
from sweeps.comparison import t_interval


@pytest.mark.parametrize('rows', [('simmim_0.1', 'scratch_0.1'), ('linear_epochs5_1', 'pixels_1')])
def test_figures_show_a_study_that_is_not_finished(tmp_path: Path, rows: tuple[str, str]) -> None:
    scores = pd.DataFrame({'value': [0.8, 0.7], 'low': [0.7, 0.6], 'high': [0.9, 0.8]}, index=rows)
    runs = pd.DataFrame(columns=['holdout_l1_grey', 'linear'], dtype=float)
    figures.draw_shares(tmp_path / 'shares.png', scores, 'Pneumonia', figures.METHODS)
    figures.draw_shares(tmp_path / 'encoders.png', scores, 'Pneumonia', figures.ENCODERS)
    figures.draw_epochs(tmp_path / 'epochs.png', scores, runs, 'Pneumonia')
    assert len([*tmp_path.glob('*.png')]) == 3
    assert all(path.stat().st_size > 10_000 for path in tmp_path.glob('*.png'))


def test_deviations_between_seeds_are_those_of_the_intervals() -> None:
    """Two seeds with differences -1 and 1 have the deviation sqrt(2); the row has more seeds."""
    low, high = t_interval([-1.0, 1.0])
    line = {'against': 'scratch_1', 'seeds': 9, 'seeds_low': low, 'seeds_high': high}
    line['by_seed'] = '-1.0 1.0'
    rows = [{'row': 'mae_1', **line}, {'row': 'linear_mae_1', **line}, {'row': 'knn_mae_1'}]
    found = power.observed_deviations(pd.DataFrame(rows))
    assert found.to_dict() == pytest.approx({'fine-tuning': 2**0.5, 'linear': 2**0.5})
    found = power.observed_deviations(pd.DataFrame(rows), ['mae_1/scratch_1'])
    assert found.to_dict() == pytest.approx({'mae_1/scratch_1': 2**0.5})
    with pytest.raises(ValueError, match='knn_mae_1'):
        power.observed_deviations(pd.DataFrame(rows), ['knn_mae_1/scratch_1'])


def test_seeds_that_move_the_whole_model_hide_a_difference() -> None:
    """Deviations of images average out over the images, and those of seeds do not."""
    targets, found = np.repeat([1.0, 0.0], 300), {}
    for moves in (0.0, 0.05):
        rng = np.random.default_rng(0)
        options = {'area': 0.85, 'difference': 0.06, 'moves': moves}
        options |= {'seeds': (3, 10), 'comparisons': (6, 123)}
        found[moves] = np.mean([power.finds(rng, targets, **options) for _ in range(40)], axis=0)
    three, ten = found[0.05]
    assert found[0.0].min() > 0.9
    assert three.max() < 0.5 < ten.min()
