"""The committed scores of maps on real X-rays follow from those of the cases."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny import ROOT, load_script

RESULTS = ROOT / 'docs/results/localisation'


def test_the_table_follows_from_the_scores_of_the_cases(tmp_path: Path) -> None:
    """With intervals; hit rate and mIoU also by hand."""
    study = load_script('studies/localisation')
    cases = pd.read_csv(RESULTS / 'cases.csv', keep_default_na=False)
    study.write(tmp_path, cases)
    found, committed = (pd.read_csv(place / 'localisation.csv') for place in (tmp_path, RESULTS))
    pd.testing.assert_frame_equal(found, committed, atol=1e-9)
    scores = pd.read_csv(RESULTS / 'localisation.csv', keep_default_na=False)
    everyone = scores[scores['group'] == ''].set_index(['row', 'label', 'score'])
    for (row, label), part in cases.groupby(['row', 'label']):
        for score in ('hit_rate', 'miou'):
            assert everyone.loc[(row, label, score), 'value'] == pytest.approx(part[score].mean())


def test_what_needs_no_model_is_joined_once(tmp_path: Path) -> None:
    study, lines = load_script('studies/localisation'), []
    for kind in ('', 'random weights'):
        lines += [{'row': 'x', 'source': 'x', 'kind': kind}]
    lines += [{'row': 'position prior', 'source': '', 'kind': 'position prior'}]
    rng = np.random.default_rng(0)
    for method in ('grad-cam', 'own'):
        cases = [
            line
            | {'path': f'p{n}', 'label': label, 'patient': f'p{n}', 'area': 0.1, 'has_signal': True}
            | {score: rng.random() for score in study.OF_MAPS.shown}
            for line in lines
            for label, count in (('Edema', 20), ('Mass', 3))
            for n in range(count)
        ]
        (tmp_path / method).mkdir()
        pd.DataFrame(cases).to_csv(tmp_path / method / 'localisation_cases.csv', index=False)
    found = study.read_cases([tmp_path / 'grad-cam', tmp_path / 'own'])
    rows = ['Grad-CAM', 'Grad-CAM: random weights', 'own', 'own: random weights', 'position prior']
    assert [*dict.fromkeys(found['row'])] == rows
    assert {*found['label']} == {'Edema'} and len(found) == 5 * 20
