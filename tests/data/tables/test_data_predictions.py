"""Prediction files: what is written, read and refused, and which image a row belongs to."""

import os

import numpy as np
import pytest
from prediction_files import csv_of, image, study

from data.tables.identity import image_name, study_name
from data.tables.labels import LABELS
from data.tables.predictions import look_up, read_predictions, write_predictions

NAN = float('nan')


def test_what_is_written_is_read(tmp_path):
    values = np.array([[0.123456789012, 1e-12, 1.0], [0.0, 0.5, 1 / 3]])
    labels, file = ['Edema', 'No Finding', 'Cardiomegaly'], tmp_path / 'p.csv'
    write_predictions(file, values, paths=[image(1), image(2)], labels=labels, source={})
    read = read_predictions(file)
    assert (read.file, read.key) == (file, 'Path')
    assert read.names.tolist() == [image(1), image(2)]
    assert read.labels == ('No Finding', 'Cardiomegaly', 'Edema')
    np.testing.assert_allclose(read.probabilities, values[:, [1, 2, 0]], rtol=5e-9)
    assert sorted(os.listdir(tmp_path)) == ['p.csv', 'p.json']


@pytest.mark.parametrize(
    'text, message',
    [
        ('Image,Edema\na,0.5\n', 'p.csv.*Path.*Study.*Image'),
        ('Path,Oedema\na,0.5\n', 'p.csv.*Oedema'),
        (f'Path,Edema\n{image(1)},0\nb,0\n\n{image(1, suffix=".PNG")},0\n', 'p.csv, row 5.*row 2'),
        ('Path,Fracture,Edema\na,0,0\nb,0,1.0001\n', "p.csv, row 3.*'Edema'.*'1.0001'"),
        ('Path,Fracture,Edema\na,0,0\nb,0,nan\n', "p.csv, row 3.*'Edema'.*'nan'"),
        ('Path,Fracture,Edema\na,0,0\nb,0,\n', "p.csv, row 3.*'Edema'.*''"),
    ],
)
def test_a_bad_file_is_refused_by_row_and_column(text, message, tmp_path):
    file = tmp_path / 'p.csv'
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_predictions(file)


def test_probabilities_of_classes_add_up_to_one(tmp_path):
    file = tmp_path / 'p.csv'
    for cells, is_good in (('0.333,0.333,0.333', True), ('0.4,0.4,0.4', False), ('0,0,0', False)):
        file.write_text(f'Path,a,b,c\n{image(1)},1,0,0\n{image(2)},{cells}\n')
        options = {'task': 'single_label', 'labels': ('a', 'b', 'c')}
        if is_good:
            read_predictions(file, **options)
        else:
            with pytest.raises(ValueError, match='p.csv, row 3.*a, b, c'):
                read_predictions(file, **options)
        read_predictions(file, task='single_label', labels=('a', 'b', 'c', 'd'))  # without d
        read_predictions(file, labels=('a', 'b', 'c'))  # findings


def test_a_damaged_description_of_predictions_is_named(tmp_path):
    file = csv_of(tmp_path / 'p.csv', {'Path': [image(1)], 'Edema': [0.5]})
    for text in ('{"task": ', '[]', '{"labels": [{"id": 1}]}', '{"labels": "My label"}'):
        file.with_suffix('.json').write_text(text)
        with pytest.raises(ValueError, match='p.json'):
            read_predictions(file, task='observations')
        assert read_predictions(file).labels == ('Edema',)  # another file with this name


@pytest.mark.parametrize(
    'name, normalised, its_study',
    [
        (image(2, prefix='A/valid'), 'patient00002/study1/view1_frontal', 'patient00002/study1'),
        ('files/p10/p10000032/s50414267/x.1.JPEG', 'p10000032/s50414267/x.1', None),
        ('outpatient1/study1/a.png', 'outpatient1/study1/a', 'outpatient1/study1/a.png'),
        ('images/1.2.840.dcm', 'images/1.2.840', 'images/1.2.840.dcm'),
    ],
)
def test_a_name_begins_with_the_patient_and_has_no_suffix(name, normalised, its_study):
    assert image_name(name) == normalised
    assert study_name(name) == (its_study or 'p10000032/s50414267')


def test_predictions_for_images_come_in_their_order(tmp_path):
    columns = {
        'Path': [image(i, prefix='other', suffix='.png') for i in (3, 1, 7)],
        'Fracture': [0.3, 0.1, 0.7],
        'Edema': [0.03, 0.01, 0.07],
    }
    file = csv_of(tmp_path / 'p.csv', columns)
    found = look_up(read_predictions(file), [image(i) for i in (1, 2, 3)])
    expected = np.full((3, len(LABELS)), NAN)
    expected[:, LABELS.index('Fracture')] = 0.1, NAN, 0.3
    expected[:, LABELS.index('Edema')] = 0.01, NAN, 0.03
    np.testing.assert_array_equal(found, expected)
    wanted = look_up(read_predictions(file), [image(7), image(1)], labels=['Edema', 'Any Finding'])
    np.testing.assert_array_equal(wanted, [[0.07, NAN], [0.01, NAN]])


def test_predictions_of_studies_are_those_of_their_images(tmp_path):
    file = csv_of(tmp_path / 'p.csv', {'Study': [study(2), study(1)], 'Edema': [0.2, 0.1]})
    paths = [image(1), image(2), image(2, 'view2_lateral'), image(3)]
    found = look_up(read_predictions(file), paths, labels=['Edema'])
    np.testing.assert_array_equal(found[:, 0], [0.1, 0.2, 0.2, NAN])
