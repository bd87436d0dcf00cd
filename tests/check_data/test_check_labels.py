"""What the data check says of labels: those of one class in a split, those of a study."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
from mistakes import edit
from planted_faults import LABEL, Plant

from data.labels import LABELS


def absent_values(table: pd.DataFrame, csv_name: str, split: str) -> set[tuple[str, str, str]]:
    """What the check says of a table, blanks being negative, as pandas counts it."""
    found = set()
    for label in LABELS:
        values = table[label].fillna(0).astype(float)
        for name, value in (('positive', 1), ('negative', 0)):
            if not (values == value).any():
                detail = f'{label}: no {name} in the {len(table):,} rows of {split}'
                found.add((f'label without a {name}', csv_name, detail))
    return found


def test_labels_that_real_x_rays_do_not_have(nih1000: Path, one_class: Callable) -> None:
    """NIH has no such labels; their columns are blank in both splits."""
    expected = set()
    for split in ('train', 'valid'):
        expected |= absent_values(pd.read_csv(nih1000 / f'{split}.csv'), f'{split}.csv', split)
    assert one_class(nih1000) == expected
    text = 'Support Devices: no positive in the 800 rows of train'
    assert ('label without a positive', 'train.csv', text) in expected


def test_labels_of_one_class(spoilt: Path, one_class: Callable) -> None:
    table = pd.read_csv(spoilt / 'train.csv', dtype=str, na_filter=False)
    values = {'Fracture': '', 'Edema': '1.0', 'Pneumonia': '-1.0', 'No Finding': ''}
    for label, value in values.items():
        table[label] = value
    table.loc[0, 'No Finding'] = '1.0'  # as in CheXpert, which has no other cells
    table.loc[0, 'Edema'] = '-1.0'
    table['Lung Lesion'] = ['1.0', *[''] * (len(table) - 1)]
    table.to_csv(spoilt / 'train.csv', index=False)
    (spoilt / 'valid.csv').unlink()
    found = {
        (kind.rpartition(' ')[2], detail.partition(':')[0])
        for kind, name, detail in one_class(spoilt)
        if name == 'train.csv'
    }
    common = {('positive', 'Fracture'), ('negative', 'Edema')}
    common |= {('positive', 'Pneumonia'), ('negative', 'Pneumonia')}
    told = common & found, {label for _, label in found} & {'No Finding', 'Lung Lesion'}
    assert told == (common, set())
    found = {
        (kind.rpartition(' ')[2], detail.partition(':')[0])
        for kind, *_, detail in one_class(spoilt, '--opts', 'DATA.BLANK', 'ignore')
    }
    assert found >= {*common, ('negative', 'Fracture'), ('negative', 'Lung Lesion')}
    assert ('negative', 'No Finding') not in found


def test_labels_of_one_class_in_mimic(clean_mimic: Path, one_class: Callable) -> None:
    """By split: each study's row of labels counts once."""
    images, labels = (
        pd.read_csv(next(clean_mimic.glob(f'mimic-cxr-*-{kind}.csv*')))
        for kind in ('split', 'chexpert')
    )
    name = next(clean_mimic.glob('mimic-cxr-*-chexpert.csv*')).name
    expected = set()
    for split in ('train', 'validate', 'test'):
        studies = images.loc[images['split'] == split, 'study_id']
        table = labels[labels['study_id'].isin(studies)]
        expected |= absent_values(table, name, split)
    assert expected and one_class(clean_mimic) == expected


def test_a_study_whose_labels_differ_is_one_finding(spoilt: Path, check: Callable) -> None:
    def change(rows: list[list[str]]) -> None:
        folder = spoilt.parent / rows[1][0].rpartition('/')[0]
        for number, label in ((7, 'x'), (8, '1.0'), (9, '0.0')):
            Plant(spoilt, seed=number).another(folder / f'view{number}_frontal.png')
            path = f'{rows[1][0].rpartition("/")[0]}/view{number}_frontal.png'
            rows.append([path, *rows[1][1:LABEL], label, *rows[1][LABEL + 1 :]])
        rows[1][LABEL] = '-1.0'
        paths.extend(cells[0] for cells in rows[-3:])
        places.extend(range(len(rows) - 2, len(rows) + 1))

    paths, places = [], []
    edit(spoilt / 'train.csv', change)
    assert check(spoilt)[1] == [
        ('value of a label', 'train.csv', places[0], paths[0]),  # and no word on this one's study
        ('labels of a study differ', 'train.csv', places[1], paths[1]),
    ]
