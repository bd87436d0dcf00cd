"""The published counts of CheXpert's labels come out of a CSV that was made to have them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from config import default_config
from data.describe import build_description, format_description

# Positive and uncertain of 187,641 training studies; the rest counts as negative.
# Source: Irvin et al. 2019, arXiv:1901.07031, Table 1.
PUBLISHED = {
    'No Finding': (16627, 0, 171014),
    'Enlarged Cardiomediastinum': (9020, 10148, 168473),
    'Cardiomegaly': (23002, 6597, 158042),
    'Lung Opacity': (92669, 4341, 90631),
    'Lung Lesion': (6856, 1071, 179714),
    'Edema': (48905, 11571, 127165),
    'Consolidation': (12730, 23976, 150935),
    'Pneumonia': (4576, 15658, 167407),
    'Atelectasis': (29333, 29377, 128931),
    'Pneumothorax': (17313, 2663, 167665),
    'Pleural Effusion': (75696, 9419, 102526),
    'Pleural Other': (2441, 1771, 183429),
    'Fracture': (7270, 484, 179887),
    'Support Devices': (105831, 898, 80912),
}


@pytest.mark.slow
def test_published_counts_come_out(tmp_path: Path) -> None:
    """A CSV of CheXpert's size: 187,641 studies, the first 35,773 of two images."""
    num_studies, rng = 187_641, np.random.default_rng(0)
    study = np.concatenate([np.arange(num_studies), np.arange(35_773)])
    kind = np.repeat(['frontal', 'lateral'], [num_studies, 35_773])
    table = {
        'Path': [
            f'CheXpert-v1.0/train/patient{s % 64540:05d}/study{s // 64540 + 1}/view1_{k}.jpg'
            for s, k in zip(study, kind, strict=True)
        ],
        'Sex': 'Female',
        'Age': 50,
        'Frontal/Lateral': np.char.title(kind),
        'AP/PA': np.where(kind == 'frontal', 'AP', ''),
    }
    for label, (positive, uncertain, negative) in PUBLISHED.items():
        explicit = negative // 3
        counts = [positive, uncertain, explicit, negative - explicit]
        cells = np.repeat(['1.0', '-1.0', '0.0', ''], counts)
        table[label] = rng.permutation(cells)[study]
    pd.DataFrame(table).to_csv(tmp_path / 'train.csv', index=False)

    config = default_config()
    config.DATA.DATA_PATH = str(tmp_path)
    description = build_description(config)
    counts = description.counts
    whole = counts[
        (counts['split'] == 'train + holdout')
        & (counts['column'] == 'All')
        & (counts['level'] == 'study')
    ].set_index('label')
    for label, (positive, uncertain, negative) in PUBLISHED.items():
        found = whole.loc[label]
        assert (found['positive'], found['uncertain']) == (positive, uncertain), label
        assert found['negative'] == negative // 3, label
        assert found['negative'] + found['blank'] == negative, label
    splits = description.splits.set_index('split')
    assert splits['images'].sum() == 223_414 and splits['studies'].sum() == num_studies
    assert splits['patients'].to_dict() == {'train': 64540 - 1291, 'holdout': 1291}
    assert splits['lateral'].sum() == 35_773
    note = 'train + holdout: labels that differ between the images of a study: 0'
    assert any(line.startswith(note) for line in description.notes)
    printed = format_description(description)
    for number in ('105,831', 'Female (n = 223,414)', f'{splits.loc["holdout", "images"]:,}'):
        assert number in printed
