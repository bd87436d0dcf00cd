"""Matching of predictions and labels by name, and errors in label files."""

import numpy as np
import pytest
from prediction_files import PREFIX, csv_of, image, study

from data.tables.groups import UNPROJECTED, standard_groups
from data.tables.identity import canonical
from data.tables.labels import LABELS
from data.tables.predictions import read_label_file, read_predictions
from evaluation.matching import SharedLabel, match, share_labels

NAN = float('nan')
IMAGES, STUDIES = [image(i) for i in range(6)], [study(i) for i in range(6)]
SCORES = [0.9, 0.8, 0.7, 0.6, 0.4, 0.4]
TRUTH = [1, 0, 1, 1, 0, 1]
PREDICTED = {'Path': IMAGES, 'Edema': SCORES}


def matched(folder, predictions, labels, *, level='study', complete=True, groups=None, **options):
    """Write both files and match them; returns the cases and the notes."""
    predicted = read_predictions(csv_of(folder / 'p.csv', predictions))
    table = read_label_file(csv_of(folder / 'l.csv', labels), **options)
    return match(predicted, table, name='it', level=level, complete=complete, groups=groups)


def refusal(*arguments, **options) -> str:
    with pytest.raises(ValueError) as error:
        matched(*arguments, **options)
    return str(error.value)


@pytest.mark.parametrize('extra, prefix', [(0, PREFIX), (14, 'elsewhere/CheXpert')])
def test_rows_are_matched_by_name_and_rows_without_labels_are_ignored(extra, prefix, tmp_path):
    paths = [image(i, prefix=prefix) for i in reversed(range(6))]
    scores = SCORES[::-1]
    for i in range(extra):
        paths.insert(2 * i % 7, image(100 + i, prefix=prefix))
        scores.insert(2 * i % 7, 0.99)
    labels = {'Path': IMAGES, 'Edema': TRUTH}
    cases, notes = matched(tmp_path, {'Edema': scores, 'Path': paths}, labels)
    assert cases.path.tolist() == IMAGES and cases.study.tolist() == STUDIES
    assert cases.patient.tolist() == [f'patient{i:05d}' for i in range(6)]
    assert cases.labels == ('Edema',)
    assert cases.probabilities[:, 0].tolist() == SCORES
    assert cases.targets[:, 0].tolist() == TRUTH
    assert any('14 of 20 rows' in note for note in notes) == (extra > 0)
    assert not any('patient' in note for note in notes)


@pytest.mark.parametrize('key, names', [('Path', IMAGES), ('Study', STUDIES)])
def test_rows_of_one_patient_under_two_spellings_are_matched_with_a_note(key, names, tmp_path):
    other = [name.replace('patient0000', 'Patient').replace('study1', 'study01') for name in names]
    predictions, labels = {key: other[::-1], 'Edema': SCORES[::-1]}, {key: names, 'Edema': TRUTH}
    cases, notes = matched(tmp_path, predictions, labels)
    order = [[*map(canonical, names)].index(canonical(name)) for name in cases.path]
    assert cases.probabilities[:, 0].tolist() == [SCORES[place] for place in order]
    assert cases.targets[:, 0].tolist() == [TRUTH[place] for place in order]
    (note,) = [note for note in notes if 'spelt' in note]
    assert '6 of 6 names are spelt in two ways' in note and 'Patient' in note and 'patient0' in note


def test_a_label_file_may_name_its_patients(tmp_path):
    """Then paths may have any form, and the predictions of the same paths are matched."""
    paths = [f'a/{i}.png' for i in range(6)]
    labels = {'Path': paths, 'Patient': [7, 7, 8, 8, 9, 9], 'Study': [1, 1, 1, 2, 1, 1]}
    labels |= {'Frontal/Lateral': 'Frontal', 'Edema': TRUTH}
    cases, _ = matched(tmp_path, {'Path': paths, 'Edema': SCORES}, labels)
    assert cases.patient.tolist() == ['7', '7', '8', '8', '9', '9']
    assert cases.study.tolist() == ['7/1', '7/1', '8/1', '8/2', '9/1', '9/1']


def test_images_get_the_labels_of_their_study(tmp_path):
    """The probability of a study is the largest one of its images."""
    paths = [image(1), image(1, 'view2_lateral'), image(2), image(3), image(3, 'view2_frontal')]
    predictions = {'Path': paths, 'Edema': [0.1, 0.9, 0.6, 0.5, 0.3]}
    labels = {'Study': [study(i) for i in (3, 2, 1)], 'Edema': [0, 0, 1]}
    cases, _ = matched(tmp_path, predictions, labels)
    assert cases.path.tolist() == paths
    assert cases.targets[:, 0].tolist() == [1, 1, 0, 0, 0]
    rows = cases.at_level('study')
    assert rows.path.tolist() == STUDIES[1:4]
    np.testing.assert_allclose(rows.probabilities[:, 0], [0.9, 0.6, 0.5])
    assert rows.targets[:, 0].tolist() == [1, 0, 0]
    frontal, notes = matched(tmp_path, predictions, labels, views='frontal')
    assert frontal.path.tolist() == [path for path in paths if 'frontal' in path]
    assert '1 of 5 rows' in notes[0]
    lateral, notes = matched(tmp_path, predictions, labels, views='lateral')
    assert lateral.path.tolist() == [image(1, 'view2_lateral')]
    assert '2 of 3 studies' in notes[1]


def test_studies_get_the_labels_of_their_images(tmp_path):
    predictions = {'Study': [study(i) for i in (3, 2, 1)], 'Edema': [0.1, 0.4, 0.7]}
    paths = [image(1), image(1, 'view2_lateral'), image(2), image(3)]
    cases, _ = matched(tmp_path, predictions, {'Path': paths, 'Edema': [0, 1, 1, 0]})
    rows = cases.at_level('study')
    assert rows.path.tolist() == STUDIES[1:4]
    assert rows.probabilities[:, 0].tolist() == [0.7, 0.4, 0.1]
    assert rows.targets[:, 0].tolist() == [1, 1, 0]


def test_studies_are_not_scored_as_images(tmp_path):
    labels = {'Path': IMAGES, 'Edema': TRUTH}
    assert 'p.csv' in refusal(tmp_path, {'Study': STUDIES, 'Edema': SCORES}, labels, level='image')
    labels = {'Study': STUDIES, 'Edema': TRUTH}
    assert 'l.csv' in refusal(tmp_path, PREDICTED, labels, level='image')


def test_views_that_are_not_selected_need_no_prediction(tmp_path):
    paths = [image(0), image(0, 'view2_lateral'), image(1), image(1, 'view2'), image(2)]
    labels = {'Path': paths, 'Edema': [1, 1, 0, 0, 1]}
    views = {'Frontal/Lateral': ['Frontal', '', 'Frontal', 'Lateral', 'Frontal']}
    shown = refusal(tmp_path, PREDICTED, labels | views)
    assert image(0, 'view2_lateral') in shown and '--views frontal leaves them out' in shown
    frontal, _ = matched(tmp_path, PREDICTED, labels | views, views='frontal')
    assert frontal.path.tolist() == IMAGES[:3]
    error = refusal(tmp_path, PREDICTED, labels, views='frontal')
    assert 'row 5' in error and image(1, 'view2') in error


@pytest.mark.parametrize('blank, value', [('negative', 0), ('ignore', NAN)])
def test_uncertain_labels_are_left_out_and_counted_blank_follows_the_rule(blank, value, tmp_path):
    paths = IMAGES[:4]
    labels = {'Path': paths, 'Fracture': ['1.0', '-1.0', '', '0'], 'Edema': ['-1', '-1', '', '1']}
    predictions = {'Path': paths, 'Edema': [0.5] * 4, 'Fracture': [0.5] * 4}
    cases, _ = matched(tmp_path, predictions, labels, blank=blank)
    np.testing.assert_array_equal(cases.targets, [[NAN, 1], [NAN, NAN], [value] * 2, [1, 0]])
    assert cases.count_uncertain() == {'Edema': 2, 'Fracture': 1}


def test_a_binary_task_is_scored_by_its_own_targets(tmp_path):
    rows = [{'Fracture': 1}, {'No Finding': 1}, {'Edema': -1}, {'No Finding': 1, 'Edema': 1}, {}]
    labels = {'Path': IMAGES[:5]} | {name: [row.get(name, '') for row in rows] for name in LABELS}
    predictions = {'Path': IMAGES[:5], 'Any Finding': [0.1] * 5}
    cases, _ = matched(tmp_path, predictions, labels, task='any_finding')
    assert (cases.labels, cases.count_uncertain()) == (('Any Finding',), {})
    np.testing.assert_array_equal(cases.targets[:, 0], [1, 0, NAN, 1, NAN])
    assert 'observations' in refusal(tmp_path, predictions, labels)
    one_label = {'Path': IMAGES, 'Edema': TRUTH}
    assert 'No Finding' in refusal(tmp_path, predictions, one_label, task='any_finding')


@pytest.mark.parametrize(
    'columns, parts',
    [
        ({'Image': [image(1)], 'Edema': [1]}, ['l.csv', 'Path', 'Study']),
        ({'Path': [image(1)], 'Oedema': [1]}, ['l.csv', 'No Finding', 'Oedema']),
        ({'Path': [image(1), image(2)], 'Edema': ['1', '2']}, ['l.csv, row 3', 'Edema', "'2'"]),
        ({'Path': ['images/1.png'], 'Edema': [1]}, ['l.csv, row 2', 'Path']),
    ],
)
def test_an_error_in_a_label_file_names_row_and_column(columns, parts, tmp_path):
    shown = refusal(tmp_path, PREDICTED, columns)
    assert all(part in shown for part in parts), shown


def test_groups_contain_only_scored_rows(tmp_path):
    labels = {'Study': [study(i) for i in (4, 3, 2)], 'Edema': [1, 0, 1]}
    labels |= {'Sex': ['Male', 'Female', ''], 'Age': ['39', '40', '']}
    paths = [image(3), image(4), image(3, 'view2_lateral'), image(2)]
    predictions = {'Path': paths, 'Edema': [0.1, 0.2, 0.3, 0.4]}
    cases, _ = matched(tmp_path, predictions, labels, groups=standard_groups)
    assert cases.groups['Sex'].tolist() == ['Female', 'Male', 'Female', '']
    assert cases.groups['Age'].tolist() == ['40-59', '0-39', '40-59', '']
    views = [UNPROJECTED, UNPROJECTED, 'Lateral', UNPROJECTED]
    assert cases.groups['View'].tolist() == views


def test_a_labelled_row_without_prediction_raises_an_error(tmp_path):
    labels = {'Path': [image(i) for i in (0, 7, 1)], 'Edema': [1, 0, 0]}
    error = refusal(tmp_path, PREDICTED, labels)
    assert str(tmp_path / 'l.csv') in error and image(7) in error
    cases, _ = matched(tmp_path, PREDICTED, labels, complete=False)
    assert cases.path.tolist() == IMAGES[:2]


def test_only_the_labels_of_both_files_are_scored(tmp_path):
    paths = IMAGES[1:3]
    predictions = {'Path': paths, 'Edema': [0.5, 0.1], 'Fracture': [0.1, 0.1]}
    labels = {'Path': paths, 'Edema': [1, 0], 'Cardiomegaly': [1, 0]}
    cases, notes = matched(tmp_path, predictions, labels)
    assert cases.labels == ('Edema',)
    assert 'Fracture' in notes[-1] and str(tmp_path / 'l.csv') in notes[-1]
    assert 'Edema, Fracture' in refusal(tmp_path, predictions, {'Path': paths, 'Pneumonia': [1, 0]})
    assert image(77) in refusal(tmp_path, predictions, {'Path': [image(77)], 'Edema': [1]})


@pytest.mark.parametrize('blank, target', [('ignore', NAN), ('negative', 0)])
def test_blank_labels_of_a_common_finding_are_not_uncertain(blank, target, tmp_path):
    """The finding has two labels; a blank one is unknown with DATA.BLANK ignore."""
    paths = [image(i) for i in range(8)]
    marks = {'Mass': ['', '', '-1', '0', '', '1', '-1', '-1']}
    marks |= {'Nodule': ['', '0', '', '0', '1', '-1', '0', '-1']}
    labels = csv_of(tmp_path / 'l.csv', {'Path': paths} | marks)
    table = read_label_file(labels, blank=blank, labels=('Mass', 'Nodule'))
    scores = {'Path': paths, 'Lung Lesion': [0.5] * 8}
    predictions = read_predictions(csv_of(tmp_path / 'p.csv', scores))
    shared = [SharedLabel('Lung Lesion', ('Lung Lesion',), ('Mass', 'Nodule'))]
    predictions, table, _ = share_labels(predictions, table, shared)
    cases, _ = match(predictions, table, name='it', level='image')
    np.testing.assert_array_equal(cases.targets[:, 0], [target, target, NAN, 0, 1, 1, NAN, NAN])
    assert cases.count_uncertain() == {'Lung Lesion': 3}
    assert cases.select(np.arange(2)).count_uncertain() == {}  # blank or absent
