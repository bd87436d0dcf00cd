"""Phantoms in the layouts of other data sets, renamed from CheXpert's."""

import shutil
from pathlib import Path

import pandas as pd

from data.tables.labels import LABELS
from scripts.phantom import SPLITS, make_phantom

NIH_FINDINGS = {
    'Atelectasis': 'Atelectasis',
    'Cardiomegaly': 'Cardiomegaly',
    'Effusion': 'Pleural Effusion',
    'Infiltration': 'Lung Opacity',
    'Mass': 'Lung Lesion',
    'Pneumonia': 'Pneumonia',
    'Pneumothorax': 'Pneumothorax',
    'Consolidation': 'Consolidation',
    'Edema': 'Edema',
    'Pleural_Thickening': 'Pleural Other',
}
SECTIONS = ('narrative', 'clinical_history', 'history', 'comparison', 'technique')
SECTIONS += ('procedure_comments', 'findings', 'impression', 'end_of_impression', 'summary')
SECTIONS += ('accession_number',)  # of the reports of CheXpert Plus


def nih_phantom(root: Path, **options: int) -> None:
    """Make the frontal images of a phantom with the options of `make_phantom`."""
    table = drawn(root, options)
    table = table[table['Frontal/Lateral'] == 'Frontal'].reset_index(drop=True)
    patients, counts = table['patient'], table.groupby('patient').cumcount()
    pairs = list(zip(patients, counts, strict=True))
    images = [f'{patient:08d}_{count:03d}.png' for patient, count in pairs]
    folders = [f'images_{patient % 12 + 1:03d}/images' for patient in patients]
    move_images(root, table, [f'{a}/{b}' for a, b in zip(folders, images, strict=True)])
    marks = pd.DataFrame({name: table[label] == 1 for name, label in NIH_FINDINGS.items()})
    findings = ['|'.join(marks.columns[row]) or 'No Finding' for row in marks.to_numpy()]
    rows = {'Image Index': images, 'Finding Labels': findings, 'Follow-up #': counts}
    rows |= {'Patient ID': patients, 'Patient Age': table['Age']}
    rows |= {'Patient Gender': table['Sex'].str[0], 'View Position': table['AP/PA']}
    pd.DataFrame(rows).to_csv(root / 'Data_Entry_2017_v2020.csv', index=False)
    for name, listed in (
        ('train_val', table['split'] != 'test'),
        ('test', table['split'] == 'test'),
    ):
        names = pd.Series(images)[listed]
        (root / f'{name}_list.txt').write_text(''.join(f'{image}\n' for image in names))


def drawn(root: Path, options: dict[str, int]) -> pd.DataFrame:
    """Draw a phantom below a folder, and return all its rows with their patient and study."""
    make_phantom(root / 'phantom', **options)
    table = pd.concat(
        pd.read_csv(root / 'phantom' / f'{split}.csv').assign(split=split) for split in SPLITS
    ).reset_index(drop=True)
    numbers = table['Path'].str.extract(r'/patient(\d+)/study(\d+)/').astype(int)
    return table.assign(patient=numbers[0], study=numbers[1])


def move_images(root: Path, table: pd.DataFrame, names: list[str] | pd.Series) -> None:
    """Give the images other names below the folder, and remove the rest of the phantom."""
    for path, name in zip(table['Path'], names, strict=True):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / path).rename(root / name)
    shutil.rmtree(root / 'phantom')


def plus_phantom(root: Path, images: str = 'PNG', **options: int) -> None:
    """Make a phantom with the options of `make_phantom` as CheXpert Plus is downloaded."""
    table = drawn(root, options)
    table = table[table['split'] != 'test'].reset_index(drop=True)
    names = table['Path'].str.partition('/')[2]
    move_images(root, table, images + '/' + names.str.replace('.jpg', '.png'))
    columns = {'path_to_image': names, 'path_to_dcm': names.str.replace('.jpg', '.dcm')}
    columns |= {'frontal_lateral': table['Frontal/Lateral'], 'ap_pa': table['AP/PA']}
    patients = names.str.extract(r'/(patient\d+)/')[0]
    columns |= {'deid_patient_id': patients, 'patient_report_date_order': table['study']}
    text = f'FINDINGS:\n1. Clear, "as before",\n\n{"a, " * 30}b.'
    columns |= {'report': text} | {f'section_{name}': text for name in SECTIONS}
    columns |= {'age': table['Age'], 'sex': table['Sex'], 'race': patients.map(race_of)}
    columns |= {'ethnicity': 'Non-Hispanic/Non-Latino', 'interpreter_needed': 'No'}
    columns |= {'insurance_type': '', 'recent_bmi': 27.5, 'deceased': 'No', 'split': table['split']}
    pd.DataFrame(columns).to_csv(root / 'df_chexpert_plus_240401.csv', index=False)
    (root / 'chexbert_labels').mkdir()
    labels = table[sorted(LABELS)].assign(path_to_image=names)
    for kind in ('report', 'findings', 'impression'):
        file = root / 'chexbert_labels' / f'{kind}_fixed.json'
        labels.iloc[::-1].to_json(file, orient='records', lines=True)


def race_of(patient: str) -> str:
    """Return the race of a patient, one of two or, rarely, none."""
    return ('White, non-Hispanic', 'Asian', 'White, non-Hispanic', '')[int(patient[-1]) % 4]
