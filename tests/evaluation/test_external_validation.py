"""A model with one label set is scored on the common findings of another data set."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from csv_files import image_path, touch
from sklearn.metrics import roc_auc_score
from tiny import run_script

from data.tables.known_sets import NIH_LABELS as FINDINGS
from data.tables.labels import LABELS

pytestmark = pytest.mark.usefixtures('few_cases_select')

OPACITIES = ['Atelectasis', 'Consolidation', 'Edema', 'Infiltration', 'Mass', 'Nodule', 'Pneumonia']
NUM_IMAGES = 60


def report(folder: Path, *words: object) -> dict:
    assert run_script('evaluate', *words, '--output', folder, '--resamples', 0) == 0
    return json.loads((folder / 'report.json').read_text())


def aurocs(found: dict) -> dict[str, float]:
    (entry,) = found['sets']
    return {part['label']: part['scores']['auroc']['value'] for part in entry['labels']}


def write_nih(root: Path) -> pd.DataFrame:
    """Write a folder in NIH's form with all images in the test list, and return the findings."""
    rng = np.random.default_rng(0)
    truth = pd.DataFrame(rng.random((NUM_IMAGES, len(FINDINGS))) < 0.3, columns=FINDINGS)
    truth.index = [f'{i // 2:08d}_{i % 2:03d}.png' for i in range(NUM_IMAGES)]
    table = pd.DataFrame({'Image Index': truth.index, 'Patient ID': np.arange(NUM_IMAGES) // 2})
    names = ['|'.join(np.array(FINDINGS)[row]) or 'No Finding' for row in truth.to_numpy()]
    table['Finding Labels'], table['Follow-up #'], table['View Position'] = names, 0, 'PA'
    table['Patient Age'], table['Patient Gender'] = '050Y', 'F'
    touch(root, 'train_val_list.txt', *(f'images/{name}' for name in truth.index))
    table.to_csv(root / 'Data_Entry_2017.csv', index=False)
    (root / 'test_list.txt').write_text('\n'.join(truth.index))
    return truth


def test_a_model_of_chexperts_labels_is_scored_on_nih(tmp_path: Path, capsys) -> None:
    root = tmp_path / 'nih'
    truth = write_nih(root)
    scores = pd.DataFrame(np.random.default_rng(1).random((NUM_IMAGES, 14)), columns=LABELS)
    scores.insert(0, 'Path', [f'{root}/images/{name}' for name in truth.index])
    scores.to_csv(tmp_path / 'model.csv', index=False)
    words = ['--predictions', tmp_path / 'model.csv', '--labels', root, '--dataset', 'nih']
    words += ['--label-sets', 'chexpert', 'nih', '--level', 'image']
    found = report(tmp_path / 'out', *words)
    printed = capsys.readouterr().out
    truth['Pleural Effusion'] = truth['Effusion']
    truth['Pleural Other'] = truth['Pleural_Thickening']
    truth['Lung Lesion'] = truth['Mass'] | truth['Nodule']
    truth['Lung Opacity'] = truth[OPACITIES].any(axis=1)
    truth['No Finding'] = ~truth[FINDINGS].any(axis=1)
    shared = [label for label in LABELS if label in truth and truth[label].nunique() == 2]
    absent = {'Enlarged Cardiomediastinum', 'Fracture', 'Support Devices'}
    assert {*shared} >= {*LABELS} - absent - {'No Finding'}
    expected = {label: roc_auc_score(truth[label], scores[label]) for label in shared}
    assert aurocs(found) == pytest.approx(expected)
    (entry,) = found['sets']
    assert (entry['rows'], entry['patients']) == (NUM_IMAGES, NUM_IMAGES // 2)
    (note,) = [line for line in found['warnings'] if 'left out' in line]
    left_out = absent | {'Emphysema', 'Fibrosis', 'Hernia'}
    assert all(name in note for name in left_out) and 'Pneumothorax' not in note
    made_of = {
        'Lung Opacity': f'labelled {" or ".join(OPACITIES)}',
        'Lung Lesion': 'labelled Mass or Nodule',
        'Pleural Effusion': 'labelled Effusion',
        'Pleural Other': 'labelled Pleural_Thickening',
    }
    assert entry['made_of'] == made_of
    page, latex = ((tmp_path / f'out/report{end}').read_text() for end in ('.html', '_scores.tex'))
    for label, text in made_of.items():
        (line,) = [line for line in printed.splitlines() if line.startswith(f'{label} ')]
        assert line.rstrip().endswith(f' {text}')
        # In the overview and in both tables of the set.
        assert page.count(f'{label}<small class="wrap">{text}</small>') == 3
        assert f'{label}: {text}'.replace('_', r'\_') in latex.replace('\n', ' ')
    assert printed.count('labelled') == len(made_of)


def test_a_model_of_nihs_findings_is_scored_on_chexpert(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    paths = [image_path(patient, folder='CheXpert/test') for patient in range(NUM_IMAGES)]
    labels = pd.DataFrame(rng.choice([0, 1, -1], (NUM_IMAGES, 14)), columns=LABELS)
    pd.concat([pd.Series(paths, name='Path'), labels], axis=1).to_csv(tmp_path / 'test.csv')
    scores = pd.DataFrame(rng.random((NUM_IMAGES, len(FINDINGS))), columns=FINDINGS)
    predicted = pd.concat([pd.Series(paths, name='Path'), scores], axis=1)
    predicted.to_csv(tmp_path / 'model.csv', index=False)
    words = ['--predictions', tmp_path / 'model.csv', '--labels', tmp_path / 'test.csv']
    found = report(tmp_path / 'out', *words, '--label-sets', 'nih', 'chexpert')
    theirs = {'Effusion': 'Pleural Effusion', 'Pleural_Thickening': 'Pleural Other'}
    both = [name for name in FINDINGS if theirs.get(name, name) in LABELS]
    pairs = {name: (theirs.get(name, name), scores[name]) for name in both}
    pairs['Lung Lesion'] = ('Lung Lesion', scores[['Mass', 'Nodule']].max(axis=1))
    pairs['Lung Opacity'] = ('Lung Opacity', scores[OPACITIES].max(axis=1))
    known = labels >= 0
    expected = {
        name: roc_auc_score(labels[label][known[label]], score[known[label]])
        for name, (label, score) in pairs.items()
    }
    assert aurocs(found) == pytest.approx(expected)
    (entry,) = found['sets']
    assert entry['made_of']['Lung Opacity'] == f'predicted {" or ".join(OPACITIES)}'
    assert entry['made_of']['Effusion'] == 'labelled Pleural Effusion'
    assert 'Edema' not in entry['made_of']
