"""Labels: the published order, targets under every policy and task, and refused settings."""

import csv
import itertools
from argparse import Namespace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data.tables.labels import (
    COMPETITION_LABELS,
    LABELS,
    POLICIES,
    UNCERTAIN_CLASS,
    Policy,
    count_uncertain,
    describe_same,
    evaluation_targets,
    same_labels,
    training_targets,
)
from data.tables.records import make_task
from data.tables.table import Fault, Table
from data.tables.table_warnings import label_warnings, report_names, similar_names

NAN = np.nan
K = len(LABELS)
# The four values that CheXpert has, one per row, for all labels.
FOUR = np.repeat(np.array([[1], [0], [-1], [NAN]], np.float32), K, axis=1)  # [4, K]
FIXED = {'zeros': 0, 'ones': 1, 'ignore': NAN, 'multiclass': 2, 'self_train': np.float32(0.9)}
TEN = '0000011111'  # cells of a column
RANGES = {'zeros_smooth': (0, 0.3), 'ones_smooth': (0.55, 0.85)}


def targets_of(labels: np.ndarray, uncertain: str, blank: str, **by_label: str) -> np.ndarray:
    """Targets under any policy; rows 0, 1, ..., seed 0, every prediction 0.9."""
    task = make_task('observations', UNCERTAIN=uncertain, UNCERTAIN_BY_LABEL=by_label)
    policies, predictions = [*task.policies.values()], np.full(labels.shape, 0.9, np.float32)
    given = {'rows': np.arange(len(labels)), 'predictions': predictions}
    return training_targets(labels, policies, blank=blank, **given)


def smooth(policy: str, rows: np.ndarray, seed: int = 0) -> np.ndarray:
    """[N, K] targets of images that are uncertain in every label."""
    labels = np.full((len(rows), K), -1, np.float32)
    return training_targets(labels, [policy] * K, blank='ignore', rows=rows, seed=seed)


def test_labels_are_in_the_order_of_the_real_csv(nih1000: Path) -> None:
    with open(nih1000 / 'train.csv') as file:
        assert next(csv.reader(file))[5:] == list(LABELS)
    assert [LABELS.index(label) for label in COMPETITION_LABELS] == [8, 2, 6, 5, 10]


@pytest.mark.parametrize(
    ('columns', 'expected'),
    [
        ({'a': TEN, 'b': TEN}, {'b': 'a'}),
        ({'a': TEN, 'b': TEN[::-1]}, {'b': 'a'}),
        ({'a': TEN, 'b': '0' + TEN[:-1]}, {}),
        ({'a': '1' * 10, 'b': '0' * 10}, {}),
        # With fewer cases of a class they may agree by chance.
        ({'a': '0000001111', 'b': '0000001111'}, {}),
        # A known cell of the other label is missing for 1 of 11 images, and for 2 of 12.
        ({'a': TEN + '1', 'b': TEN + '?'}, {'b': 'a'}),
        ({'a': TEN + '11', 'b': TEN + '??'}, {}),
        ({'a': TEN, 'b': TEN[::-1], 'c': TEN}, {'b': 'a', 'c': 'a'}),
        # One of CheXpert's five counts, and No Finding does not.
        ({'No Finding': TEN, 'Pneumonia': TEN[::-1]}, {'No Finding': 'Pneumonia'}),
        (
            {'No Finding': TEN, 'Pneumonia': TEN, 'Edema': TEN},
            {'Pneumonia': 'Edema', 'No Finding': 'Edema'},
        ),
    ],
)
def test_equal_and_complementary_labels_are_found(columns: dict, expected: dict) -> None:
    values = {'0': 0, '1': 1, '?': NAN}
    targets = np.array([[values[cell] for cell in column] for column in columns.values()]).T
    assert same_labels(targets, [*columns]) == expected
    assert bool(describe_same(expected)) == bool(expected)


def test_no_finding_with_a_finding_is_counted_and_named() -> None:
    names = ('Edema', 'No Finding', 'Support Devices', 'nodule')
    labels = [[1, 1, 0, 0], [0, 1, 1, 0], [-1, 1, 0, NAN], [1, 0, 1, 1], [NAN, 1, 1, 1]]
    ((_, warning),) = label_warnings(np.array(labels), names, [*'abcde'])
    assert warning.startswith('2 of 5 rows') and warning.endswith('such as a (Edema)')
    assert not [*label_warnings(np.array(labels)[[1, 2, 3]], names, [*'abc'])]
    assert not [*label_warnings(np.ones((1, 1)), ('Edema',), ['a'])]


@pytest.mark.parametrize(
    ('name', 'label', 'expected'),
    [
        ('edema?', 'Edema', True),
        ('Edema (mild)', 'Edema', True),
        ('oedema', 'Edema', True),
        ('pleural  effusion', 'Pleural_Effusion', True),
        ('PleuralEffusion', 'Pleural Effusion', True),
        ('no TB', 'TB', True),
        ('outburst', 'TB', False),
        ('Pneumothorax', 'Pneumonia', False),
        ('Effusion', 'Pleural Effusion', False),
        ('Edema', 'Edema', False),  # the label itself
        ('Ödem?', 'Ödem', True),
    ],
)
def test_names_that_look_like_a_label_are_named(name: str, label: str, expected: bool) -> None:
    assert similar_names([name, 'other'], [label]) == ({name: label} if expected else {})


def test_the_most_frequent_similar_names_are_shown() -> None:
    faults: list[Fault] = []
    marks = {f'mass {n}': ['1'] * n + [''] * (9 - n) for n in range(9)}
    table = Table('made', faults.append, cells=pd.DataFrame(marks))
    report_names(table, ['Edema', 'Mass'], [*marks])
    (fault,) = faults
    assert "'mass 8' (Mass, rows: 8), 'mass 7'" in fault.detail and ' and 3 more ' in fault.detail


@pytest.mark.parametrize('blank', ['negative', 'ignore'])
@pytest.mark.parametrize('policy', POLICIES)
def test_training_targets_by_policy_and_blank(policy: str, blank: str) -> None:
    targets = targets_of(FOUR, policy, blank)
    assert targets.dtype == np.float32 and targets.shape == (4, K)
    np.testing.assert_array_equal(targets[:2], FOUR[:2])
    np.testing.assert_array_equal(targets[3, 1:], 0 if blank == 'negative' else NAN)
    assert targets[3, 0] == 0, 'a blank No Finding is negative'
    if policy in FIXED:
        np.testing.assert_array_equal(targets[2], FIXED[policy])
    else:
        low, high = RANGES.get(policy, (0, 1))
        assert (low <= targets[2]).all() and (targets[2] <= high).all()


def test_a_label_can_have_its_own_policy() -> None:
    targets = targets_of(FOUR, 'ones', 'negative', Edema='multiclass', Fracture='ignore')
    wanted = np.ones(K)
    wanted[[LABELS.index('Edema'), LABELS.index('Fracture')]] = UNCERTAIN_CLASS, NAN
    np.testing.assert_array_equal(targets[2], wanted)


def test_smooth_target_is_this_number_of_philox() -> None:
    """Pinned by NumPy's own generator, so that a rerun years later draws the same."""
    for seed, row, k in ((0, 0, 0), (5, 17, 3), (7, 223_413, 13)):
        bits = np.random.Philox(key=[seed, k], counter=[0, 0, 3, 0])
        drawn = np.random.Generator(bits).random(row + 1)[row]
        for policy, (low, high) in RANGES.items():
            target = smooth(policy, np.array([row]), seed)[0, k]
            assert target == pytest.approx(low + (high - low) * drawn, abs=1e-7)


def test_self_train_reads_predictions_only_where_uncertain() -> None:
    labels = np.zeros((3, K), np.float32)
    labels[:, 1], labels[:, 2] = [-1, 0, 1], [NAN, -1, -1]
    predictions = np.full((3, K), NAN)
    predictions[0, 1], predictions[1, 2], predictions[2, 2] = 0, 0.25, 1
    options = {'blank': 'negative', 'rows': np.array([4, 40, 7])}
    targets = training_targets(labels, ['self_train'] * K, predictions=predictions, **options)
    assert targets[:, 1].tolist() == [0, 0, 1] and targets[:, 2].tolist() == [0, 0.25, 1]
    for value in (NAN, -0.001, 1.001, np.inf):
        predictions[2, 2] = value
        with pytest.raises(ValueError, match=rf'DATA\.SELF_TRAIN_PREDICTIONS.*{LABELS[2]}.*row 9'):
            training_targets(labels, ['self_train'] * K, predictions=predictions, **options)
    with pytest.raises(ValueError, match=r'DATA\.SELF_TRAIN_PREDICTIONS'):
        training_targets(labels, ['self_train'] * K, **options)


@pytest.mark.parametrize(
    ('returned', 'third_class', 'got'),
    [
        ([0, 0.5, 1, NAN], False, None),
        ([0, 1, UNCERTAIN_CLASS, NAN], True, None),
        ([0, UNCERTAIN_CLASS, 1, NAN], False, '2.0'),
        ([0, 1, 1.5, NAN], True, '1.5'),
        ([0, 1, -0.1, 1.5], False, '-0.1'),
        (None, False, 'None'),
    ],
)
def test_a_policy_must_return_targets_that_a_loss_can_use(
    returned: list | None, third_class: bool, got: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = None if returned is None else np.array(returned)
    monkeypatch.setitem(POLICIES, 'mine', Policy(lambda images: values, third_class))
    labels = np.full((4, K), -1, np.float32)
    arguments = {'blank': 'ignore', 'rows': np.arange(4), 'seed': 0}
    if got is None:
        targets = training_targets(labels, ['mine'] * K, **arguments)
        np.testing.assert_array_equal(targets[:, 5], returned)
    else:
        with pytest.raises(ValueError, match=f"'mine'.*DATA.UNCERTAIN.*got {got}$"):
            training_targets(labels, ['mine'] * K, **arguments)


def test_targets_of_the_binary_tasks_for_every_pair_of_values() -> None:
    """No Finding and one other observation, all values; effusion reads Pleural Effusion alone."""
    tasks = {name: make_task(name) for name in ('any_finding', 'any_finding_or_none', 'effusion')}
    assert tasks['any_finding'].labels == ('Any Finding',)
    assert tasks['effusion'].labels == ('Pleural Effusion',)
    values = (1, 0, -1, NAN)
    for k, no_finding, value in itertools.product(range(1, K), values, values):
        labels = np.full((1, K), NAN, np.float32)
        labels[0, 0], labels[0, k] = no_finding, value
        negative = 0 if no_finding == 1 else NAN
        any_finding = 1 if value == 1 else negative
        effusion = any_finding if LABELS[k] == 'Pleural Effusion' else negative
        wanted = {'any_finding': any_finding, 'effusion': effusion}
        wanted['any_finding_or_none'] = float(value == 1)
        for task, expected in wanted.items():
            targets = tasks[task].scored(Namespace(labels=labels))
            assert targets.shape == (1, 1) and targets.dtype == np.float32
            np.testing.assert_array_equal(targets[0, 0], expected, err_msg=LABELS[k])


def test_evaluation_excludes_uncertain_and_counts_it() -> None:
    np.testing.assert_array_equal(evaluation_targets(FOUR, blank='negative')[:, 5], [1, 0, NAN, 0])
    ignored = evaluation_targets(FOUR, blank='ignore')
    assert ignored.dtype == np.float32
    np.testing.assert_array_equal(ignored[:, 5], [1, 0, NAN, NAN])
    np.testing.assert_array_equal(ignored[:, 0], [1, 0, NAN, 0])
    assert count_uncertain(FOUR[[0, 2, 2]]) == dict.fromkeys(LABELS, 2)
    assert count_uncertain(FOUR[:2]) == {}
