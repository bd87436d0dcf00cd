"""Cases to score: their selection, their studies, and how they come from records."""

from dataclasses import FrozenInstanceError, replace
from types import SimpleNamespace

import numpy as np
import pytest

from data.tables.groups import UNPROJECTED
from data.tables.labels import COMPETITION_LABELS, UNCERTAIN
from evaluation.cases import Cases, cases_of

NAN = np.nan


@pytest.fixture
def cases() -> Cases:
    """Three studies; the first has two images, the last is uncertain in both labels."""
    return Cases(
        name='valid',
        labels=('Edema', 'Fracture'),
        path=np.array(['b/1.jpg', 'b/2.jpg', 'a/1.jpg', 'c/1.jpg'], object),
        study=np.array(['b', 'b', 'a', 'c'], object),
        patient=np.array(['p', 'p', 'q', 'q'], object),
        probabilities=np.array([[0.2, 0.9], [0.7, 0.1], [0.6, 0.4], [0.5, 0.8]]),
        targets=np.array([[NAN, 0], [1, 0], [0, 0], [NAN, NAN]]),
        groups={
            'Sex': np.array(['Male', 'Male', 'Female', ''], object),
            'View': np.array(['Lateral', 'Frontal PA', 'Frontal AP', ''], object),
        },
        uncertain=np.array([[True, False], [False, False], [False, False], [True, True]]),
    )


def test_a_study_is_found_by_its_name_and_an_image_by_its_path(cases: Cases) -> None:
    assert cases.strongest_image('b', 'Edema') == 1 and cases.strongest_image('b', 'Fracture') == 0
    for row, path in enumerate(cases.path):
        assert cases.strongest_image(path, 'Edema') == row


def test_a_label_has_both_classes_if_1_and_0_occur() -> None:
    targets = np.array([[0, 1, NAN], [1, 1, 0], [1, 1, NAN], [0, NAN, 0]]).T
    names = np.array(['a', 'b', 'c'], object)
    cases = Cases('valid', tuple('ABCD'), names, names, names, targets, targets)
    assert cases.has_both_classes().tolist() == [True, True, False, False]


@pytest.mark.parametrize(('first', 'five'), [(0, COMPETITION_LABELS), (1, ())])
def test_the_mean_of_five_needs_all_five(first: int, five: tuple, few_cases_select: None) -> None:
    labels = (*COMPETITION_LABELS[first:], 'Fracture')
    names, targets = np.array(['a', 'b'], object), np.tile([[0.0], [1.0]], len(labels))
    cases = Cases('valid', labels, names, names, names, targets, targets)
    assert cases.mean_labels()['five'] == five


def test_two_classes_of_an_image_are_no_label_under_two_names() -> None:
    names, targets = np.array([*'abcdefghij'], object), np.eye(2)[[0, 1] * 5]
    cases = Cases('x', ('A', 'B'), names, names, names, targets, targets, exclusive=True)
    assert cases.mean_labels()['labels'] == ('A', 'B')
    assert replace(cases, exclusive=False).mean_labels()['labels'] == ('A',)


def test_a_study_is_one_row_and_uncertain_only_without_a_known_target(cases: Cases) -> None:
    assert cases.at_level('image') is cases
    studies = cases.at_level('study')
    assert studies.path.tolist() == ['a', 'b', 'c'] and studies.patient.tolist() == ['q', 'p', 'q']
    assert studies.groups['Sex'].tolist() == ['Female', 'Male', '']
    assert studies.groups['View'].tolist() == ['Frontal AP', 'Frontal PA and Lateral', '']
    np.testing.assert_array_equal(studies.probabilities, [[0.6, 0.4], [0.7, 0.9], [0.5, 0.8]])
    np.testing.assert_array_equal(studies.targets, [[0, 0], [1, 0], [NAN, NAN]])
    assert studies.count_uncertain() == {'Edema': 1, 'Fracture': 1}
    assert cases.count_uncertain() == {'Edema': 2, 'Fracture': 1}


def test_the_views_of_a_study_are_those_of_its_images() -> None:
    rng = np.random.default_rng(0)
    study = rng.choice(np.array([f's{number}' for number in range(40)], object), 100)
    views = np.array(['Lateral', 'Frontal AP', 'Frontal PA', UNPROJECTED, 'Other', ''], object)
    chances = [0.3, 0.3, 0.15, 0.1, 0.1, 0.05]
    view, values = rng.choice(views, 100, p=chances), np.zeros((100, 1))
    path = np.array([*map(str, range(100))], object)
    found = Cases('x', ('A',), path, study, study, values, values, {'View': view}).at_level('study')
    of_studies = [{*view[study == name]} for name in found.path]
    wanted = [
        '' if {'', UNPROJECTED} & names else ' and '.join(sorted(names)) for names in of_studies
    ]
    assert found.groups['View'].tolist() == wanted and '' in wanted
    assert max(text.count(' and ') for text in wanted) >= 1


def test_rows_and_labels_are_selected_everywhere(cases: Cases) -> None:
    last = cases.in_order_of(['c/1.jpg', 'b/2.jpg']).with_labels([False, True])
    assert last.labels == ('Fracture',) and last.patient.tolist() == ['q', 'p'] and len(last) == 2
    assert last.groups['Sex'].tolist() == ['', 'Male']
    np.testing.assert_array_equal(last.probabilities, [[0.8], [0.1]])
    np.testing.assert_array_equal(last.targets, [[NAN], [0]])
    np.testing.assert_array_equal(last.uncertain, [[True], [False]])
    with pytest.raises(FrozenInstanceError):
        last.name = 'test'


@pytest.mark.parametrize('has_policies', [True, False])
def test_cases_of_records_have_the_targets_of_the_task(cases: Cases, has_policies: bool) -> None:
    labels = np.array([[1, UNCERTAIN], [0, NAN]])
    names = {key: getattr(cases, key)[:2] for key in ('path', 'study', 'patient')}
    records = SimpleNamespace(labels=labels, **names)
    task = SimpleNamespace(labels=cases.labels, has_policies=has_policies)
    task.exclusive = not has_policies
    task.scored = lambda records: np.where(records.labels == UNCERTAIN, NAN, records.labels)
    made = cases_of(records, task, cases.probabilities[:2], name='valid')
    np.testing.assert_array_equal(made.targets, [[1, NAN], [0, NAN]])
    assert made.groups == {} and made.exclusive == (not has_policies)
    wanted = np.array([[False, True], [False, False]])
    assert np.array_equal(made.uncertain, wanted) if has_policies else made.uncertain is None
    groups = {'Sex': cases.groups['Sex'][:2]}
    given = cases_of(records, task, made.probabilities, name='x', targets=labels, groups=groups)
    assert given.targets is labels and given.groups is groups
