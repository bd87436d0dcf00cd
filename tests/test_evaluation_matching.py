"""Matching of predictions and labels by name, and errors in label files."""

from pathlib import Path

import numpy as np
import pytest
from test_data_predictions import PREFIX, csv_of, image, study

from data.groups import standard_groups
from data.identity import canonical
from data.labels import LABELS
from data.predictions import read_label_file, read_predictions
from evaluation.cases import Cases
from evaluation.matching import SharedLabel, match, share_labels

NAN = float('nan')
SCORES = [0.9, 0.8, 0.7, 0.6, 0.4, 0.4]
TRUTH = [1, 0, 1, 1, 0, 1]


def matched(
    predictions: Path, labels: Path, *, level: str = 'study', complete: bool = True, **options
) -> tuple[Cases, list[str]]:
    table = read_label_file(labels, **options)
    return match(read_predictions(predictions), table, name='it', level=level, complete=complete)


def refusal(*arguments, **options) -> str:
    with pytest.raises(ValueError) as error:
        matched(*arguments, **options)
    return str(error.value)


def write_pair(folder: Path, *, extra: int = 0, prefix: str = PREFIX) -> tuple[Path, Path]:
    """Write six labelled images of six patients, and predictions in reverse with more rows."""
    paths = [image(i, prefix=prefix) for i in reversed(range(6))]
    scores = SCORES[::-1]
    for i in range(extra):
        paths.insert(2 * i % 7, image(100 + i, prefix=prefix))
        scores.insert(2 * i % 7, 0.99)
    return (
        csv_of(folder / 'p.csv', {'Edema': scores, 'Path': paths}),
        csv_of(folder / 'l.csv', {'Path': [image(i) for i in range(6)], 'Edema': TRUTH}),
    )


@pytest.mark.parametrize('extra, prefix', [(0, PREFIX), (14, 'elsewhere/CheXpert')])
def test_rows_are_matched_by_name_and_rows_without_labels_are_ignored(extra, prefix, tmp_path):
    cases, notes = matched(*write_pair(tmp_path, extra=extra, prefix=prefix))
    assert cases.path.tolist() == [image(i) for i in range(6)]
    assert cases.study.tolist() == [study(i) for i in range(6)]
    assert cases.patient.tolist() == [f'patient{i:05d}' for i in range(6)]
    assert cases.labels == ('Edema',)
    assert cases.probabilities[:, 0].tolist() == SCORES
    assert cases.targets[:, 0].tolist() == TRUTH
    assert any('14 of 20 rows' in note for note in notes) == (extra > 0)
    assert not any('patient' in note for note in notes)


@pytest.mark.parametrize('key', ['Path', 'Study'])
def test_rows_of_one_patient_under_two_spellings_are_matched_with_a_note(key, tmp_path):
    names = [image(i) if key == 'Path' else study(i) for i in range(6)]
    other = [name.replace('patient0000', 'Patient').replace('study1', 'study01') for name in names]
    predictions = csv_of(tmp_path / 'p.csv', {key: other[::-1], 'Edema': SCORES[::-1]})
    labels = csv_of(tmp_path / 'l.csv', {key: names, 'Edema': TRUTH})
    cases, notes = matched(predictions, labels)
    order = [[canonical(name) for name in names].index(canonical(name)) for name in cases.path]
    assert cases.probabilities[:, 0].tolist() == [SCORES[place] for place in order]
    assert cases.targets[:, 0].tolist() == [TRUTH[place] for place in order]
    (note,) = [note for note in notes if 'spelt' in note]
    assert '6 of 6 names are spelt in two ways' in note and 'Patient' in note and 'patient0' in note


def test_a_label_file_may_name_its_patients(tmp_path):
    """Then paths may have any form, and the predictions of the same paths are matched."""
    paths = [f'a/{i}.png' for i in range(6)]
    columns = {'Path': paths, 'Patient': [7, 7, 8, 8, 9, 9], 'Study': [1, 1, 1, 2, 1, 1]}
    labels = csv_of(tmp_path / 'l.csv', columns | {'Frontal/Lateral': 'Frontal', 'Edema': TRUTH})
    predictions = csv_of(tmp_path / 'p.csv', {'Path': paths, 'Edema': SCORES})
    cases, _ = matched(predictions, labels)
    assert cases.patient.tolist() == ['7', '7', '8', '8', '9', '9']
    assert cases.study.tolist() == ['7/1', '7/1', '8/1', '8/2', '9/1', '9/1']


def test_images_get_the_labels_of_their_study(tmp_path):
    """The probability of a study is the largest one of its images."""
    paths = [image(1), image(1, 'view2_lateral'), image(2), image(3), image(3, 'view2_frontal')]
    predictions = csv_of(tmp_path / 'p.csv', {'Path': paths, 'Edema': [0.1, 0.9, 0.6, 0.5, 0.3]})
    labels = csv_of(
        tmp_path / 'l.csv', {'Study': [study(i) for i in (3, 2, 1)], 'Edema': [0, 0, 1]}
    )
    cases, _ = matched(predictions, labels)
    assert cases.path.tolist() == paths
    assert cases.targets[:, 0].tolist() == [1, 1, 0, 0, 0]
    rows = cases.at_level('study')
    assert rows.path.tolist() == [study(i) for i in (1, 2, 3)]
    np.testing.assert_allclose(rows.probabilities[:, 0], [0.9, 0.6, 0.5])
    assert rows.targets[:, 0].tolist() == [1, 0, 0]
    frontal, notes = matched(predictions, labels, views='frontal')
    assert frontal.path.tolist() == [image(1), image(2), image(3), image(3, 'view2_frontal')]
    assert '1 of 5 rows' in notes[0]
    lateral, notes = matched(predictions, labels, views='lateral')
    assert lateral.path.tolist() == [image(1, 'view2_lateral')]
    assert '2 of 3 studies' in notes[1]


def test_studies_get_the_labels_of_their_images(tmp_path):
    paths = [image(1), image(1, 'view2_lateral'), image(2), image(3)]
    labels = csv_of(tmp_path / 'l.csv', {'Path': paths, 'Edema': [0, 1, 1, 0]})
    columns = {'Study': [study(i) for i in (3, 2, 1)], 'Edema': [0.1, 0.4, 0.7]}
    rows = matched(csv_of(tmp_path / 'p.csv', columns), labels)[0].at_level('study')
    assert rows.path.tolist() == [study(i) for i in (1, 2, 3)]
    assert rows.probabilities[:, 0].tolist() == [0.7, 0.4, 0.1]
    assert rows.targets[:, 0].tolist() == [1, 1, 0]


@pytest.mark.parametrize('of_studies', ['p', 'l'])
def test_studies_are_not_scored_as_images(of_studies, tmp_path):
    names = {'Path': [image(1), image(2)]}, {'Study': [study(1), study(2)]}
    files = {
        stem: csv_of(tmp_path / f'{stem}.csv', names[stem == of_studies] | {'Edema': [0, 1]})
        for stem in 'pl'
    }
    assert str(files[of_studies]) in refusal(files['p'], files['l'], level='image')


def test_views_that_are_not_selected_need_no_prediction(tmp_path):
    predictions, _ = write_pair(tmp_path)
    paths = [image(0), image(0, 'view2_lateral'), image(1), image(1, 'view2'), image(2)]
    columns = {'Path': paths, 'Edema': [1, 1, 0, 0, 1]}
    described = {'Frontal/Lateral': ['Frontal', '', 'Frontal', 'Lateral', 'Frontal']}
    labels = csv_of(tmp_path / 'l.csv', described | columns)
    shown = refusal(predictions, labels)
    assert image(0, 'view2_lateral') in shown and '--views frontal leaves them out' in shown
    frontal, _ = matched(predictions, labels, views='frontal')
    assert frontal.path.tolist() == [image(i) for i in range(3)]
    error = refusal(predictions, csv_of(tmp_path / 'l.csv', columns), views='frontal')
    assert 'row 5' in error and image(1, 'view2') in error


def test_uncertain_labels_are_left_out_and_counted_blank_follows_the_rule(tmp_path):
    paths = [image(1), image(2), image(3), image(4)]
    columns = {'Path': paths, 'Fracture': ['1.0', '-1.0', '', '0'], 'Edema': ['-1', '-1', '', '1']}
    files = (
        csv_of(tmp_path / 'p.csv', {'Path': paths, 'Edema': [0.5] * 4, 'Fracture': [0.5] * 4}),
        csv_of(tmp_path / 'l.csv', columns),
    )
    for blank, value in (('negative', 0), ('ignore', NAN)):
        cases, _ = matched(*files, blank=blank)
        expected = [[NAN, 1], [NAN, NAN], [value, value], [1, 0]]
        np.testing.assert_array_equal(cases.targets, np.array(expected))
        assert cases.count_uncertain() == {'Edema': 2, 'Fracture': 1}


def test_a_binary_task_is_scored_by_its_own_targets(tmp_path):
    rows = [{'Fracture': 1}, {'No Finding': 1}, {'Edema': -1}, {'No Finding': 1, 'Edema': 1}, {}]
    paths = [image(i) for i in range(5)]
    labels = csv_of(
        tmp_path / 'l.csv',
        {'Path': paths} | {label: [row.get(label, '') for row in rows] for label in LABELS},
    )
    files = csv_of(tmp_path / 'p.csv', {'Path': paths, 'Any Finding': [0.1] * 5}), labels
    cases, _ = matched(*files, task='any_finding')
    assert (cases.labels, cases.count_uncertain()) == (('Any Finding',), {})
    np.testing.assert_array_equal(cases.targets[:, 0], [1, 0, NAN, 1, NAN])
    assert 'observations' in refusal(*files)
    assert 'No Finding' in refusal(files[0], write_pair(tmp_path)[1], task='any_finding')


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
    with pytest.raises(ValueError) as error:
        read_label_file(csv_of(tmp_path / 'l.csv', columns))
    for part in parts:
        assert part in str(error.value)


def test_groups_contain_only_scored_rows(tmp_path):
    labels = {
        'Study': [study(i) for i in (4, 3, 2)],
        'Sex': ['Male', 'Female', ''],
        'Age': ['39', '40', ''],
        'Edema': [1, 0, 1],
    }
    predicted = [image(3), image(4), image(3, 'view2_lateral'), image(2)]
    file = csv_of(tmp_path / 'p.csv', {'Path': predicted, 'Edema': [0.1, 0.2, 0.3, 0.4]})
    cases, _ = match(
        read_predictions(file),
        read_label_file(csv_of(tmp_path / 'l.csv', labels)),
        name='it',
        level='study',
        groups=standard_groups,
    )
    assert cases.groups['Sex'].tolist() == ['Female', 'Male', 'Female', '']
    assert cases.groups['Age'].tolist() == ['40-59', '0-39', '40-59', '']
    assert cases.groups['View'].tolist() == ['Frontal', 'Frontal', 'Lateral', 'Frontal']


def test_a_labelled_row_without_prediction_raises_an_error(tmp_path):
    predictions, _ = write_pair(tmp_path)
    columns = {'Path': [image(i) for i in (0, 7, 1)], 'Edema': [1, 0, 0]}
    labels = csv_of(tmp_path / 'l.csv', columns)
    error = refusal(predictions, labels)
    assert str(labels) in error and image(7) in error
    cases, _ = matched(predictions, labels, complete=False)
    assert cases.path.tolist() == [image(0), image(1)]


def test_only_the_labels_of_both_files_are_scored(tmp_path):
    predictions = {'Path': [image(1), image(2)], 'Edema': [0.5, 0.1], 'Fracture': [0.1, 0.1]}
    labels = {'Path': [image(1), image(2)], 'Edema': [1, 0], 'Cardiomegaly': [1, 0]}
    files = csv_of(tmp_path / 'p.csv', predictions), csv_of(tmp_path / 'l.csv', labels)
    cases, notes = matched(*files)
    assert cases.labels == ('Edema',)
    assert 'Fracture' in notes[-1] and str(files[1]) in notes[-1]
    other = csv_of(tmp_path / 'o.csv', {'Path': [image(1)], 'Pneumonia': [1]})
    assert 'Edema, Fracture' in refusal(files[0], other)
    other = csv_of(tmp_path / 'o.csv', {'Path': [image(77)], 'Edema': [1]})
    assert image(77) in refusal(files[0], other)


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
