"""Labels: the published order, what cells mean, targets under every policy, refused policies."""

import csv
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data.labels import (
    COMPETITION_LABELS,
    LABELS,
    POLICIES,
    UNCERTAIN_CLASS,
    check_two_classes,
    count_uncertain,
    evaluation_targets,
    multiclass_labels,
    read_labels,
    task_labels,
    task_targets,
    training_targets,
)

NAN = np.nan
K = len(LABELS)
# The four values that CheXpert has, one a row, for all labels.
FOUR = np.repeat(np.array([[1], [0], [-1], [NAN]], np.float32), K, axis=1)  # [4, K]


def columns(*values: list[float]) -> np.ndarray:
    """[N, K] labels, the first labels as given and the others with both classes."""
    labels = np.zeros((len(values[0]), K), np.float32)
    labels[0] = 1
    labels[:, : len(values)] = np.array(values, np.float32).T
    return labels


def targets_of(labels: np.ndarray, uncertain: str, blank: str, **by_label: str) -> np.ndarray:
    """Targets under any policy; rows 0, 1, ..., seed 0, every prediction 0.9."""
    return training_targets(
        labels,
        uncertain=uncertain,
        by_label=by_label,
        blank=blank,
        rows=np.arange(len(labels)),
        predictions=np.full(labels.shape, 0.9, np.float32),
    )


def test_labels_are_in_the_order_of_the_real_csv(nih1000: Path) -> None:
    with open(nih1000 / 'train.csv') as file:
        assert next(csv.reader(file))[5:] == list(LABELS)


def test_competition_labels_are_the_five_of_the_protocol() -> None:
    assert len(COMPETITION_LABELS) == 5 and set(COMPETITION_LABELS) < set(LABELS)
    assert [LABELS.index(label) for label in COMPETITION_LABELS] == [8, 2, 6, 5, 10]


@pytest.mark.parametrize(
    'uncertain, blank, expected',
    # Targets of a present, an absent, an uncertain and a blank label.
    [
        ('zeros', 'negative', [1, 0, 0, 0]),
        ('ones', 'negative', [1, 0, 1, 0]),
        ('ignore', 'negative', [1, 0, NAN, 0]),
        ('zeros', 'ignore', [1, 0, 0, NAN]),
        ('ones', 'ignore', [1, 0, 1, NAN]),
        ('ignore', 'ignore', [1, 0, NAN, NAN]),
        ('multiclass', 'negative', [1, 0, 2, 0]),
        ('multiclass', 'ignore', [1, 0, 2, NAN]),
        ('self_train', 'negative', [1, 0, np.float32(0.9), 0]),
        ('self_train', 'ignore', [1, 0, np.float32(0.9), NAN]),
    ],
)
def test_training_targets_by_policy_and_blank(
    uncertain: str, blank: str, expected: list[float]
) -> None:
    targets = targets_of(FOUR, uncertain, blank)
    assert targets.dtype == np.float32 and targets.shape == (4, K)
    for k in range(1, K):
        np.testing.assert_array_equal(targets[:, k], expected, err_msg=LABELS[k])
    # No Finding: blank is negative under both rules.
    np.testing.assert_array_equal(targets[:, 0], [*expected[:3], 0])


def test_exceptions_by_label_touch_these_labels_alone() -> None:
    targets = targets_of(FOUR, 'ones', 'ignore', Edema='zeros', Atelectasis='ignore')
    expected = np.ones(K)
    expected[LABELS.index('Edema')] = 0
    expected[LABELS.index('Atelectasis')] = NAN
    np.testing.assert_array_equal(targets[2], expected)
    np.testing.assert_array_equal(targets[:2], FOUR[:2])
    assert np.isnan(targets[3, 1:]).all() and targets[3, 0] == 0


def test_every_label_can_have_every_policy() -> None:
    expected = {policy: targets_of(FOUR, policy, 'negative')[2] for policy in POLICIES}
    for k, label in enumerate(LABELS):
        for policy in POLICIES:
            other = 'zeros' if policy == 'ones' else 'ones'
            targets = targets_of(FOUR, other, 'negative', **{label: policy})
            wanted = expected[other].copy()
            wanted[k] = expected[policy][k]
            np.testing.assert_array_equal(targets[2], wanted)
            np.testing.assert_array_equal(targets[[0, 1, 3]], np.nan_to_num(FOUR[[0, 1, 3]]))


def test_multiclass_labels_are_those_of_that_policy() -> None:
    assert UNCERTAIN_CLASS == 2
    assert multiclass_labels('multiclass', {}).all()
    some = multiclass_labels('ones', {'Edema': 'multiclass', 'Fracture': 'zeros'})
    assert np.flatnonzero(some).tolist() == [5]
    others = multiclass_labels('multiclass', {'Edema': 'ones'})
    assert np.flatnonzero(~others).tolist() == [5]


# ---- binary tasks


def test_task_labels_name_what_is_learned() -> None:
    assert task_labels('observations') == LABELS
    assert task_labels('any_finding') == ('Any Finding',)
    assert task_labels('effusion') == ('Pleural Effusion',)
    with pytest.raises(ValueError, match="DATA.TASK must be one of observations, .* got 'edema'"):
        task_labels('edema')
    with pytest.raises(ValueError, match="DATA.TASK must be one of any_finding, .*'observations'"):
        task_targets(FOUR, 'observations')


def test_task_targets_of_every_pair_of_values() -> None:
    """No Finding and one other observation, all values; effusion reads Pleural Effusion alone."""
    for k in range(1, K):
        for no_finding in (1, 0, -1, NAN):
            for value in (1, 0, -1, NAN):
                labels = np.full((1, K), NAN, np.float32)
                labels[0, 0], labels[0, k] = no_finding, value
                negative = 0 if no_finding == 1 else NAN
                any_finding = 1 if value == 1 else negative
                effusion = any_finding if LABELS[k] == 'Pleural Effusion' else negative
                for task, expected in (('any_finding', any_finding), ('effusion', effusion)):
                    targets = task_targets(labels, task)
                    assert targets.shape == (1, 1) and targets.dtype == np.float32
                    np.testing.assert_array_equal(targets[0, 0], expected, err_msg=LABELS[k])


def test_task_targets_of_real_labels(nih1000: Path) -> None:
    table = pd.read_csv(nih1000 / 'train.csv', dtype=str, na_filter=False)
    labels = read_labels(table, 'x')
    with open(nih1000 / 'train.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    found = [any(cells[label] == '1.0' for label in LABELS[1:]) for cells in rows]
    healthy = [cells['No Finding'] == '1.0' for cells in rows]
    targets = task_targets(labels, 'any_finding')[:, 0]
    assert (targets == 1).sum() == sum(found) > 0
    pairs = zip(found, healthy, strict=True)
    assert (targets == 0).sum() == sum(h and not f for f, h in pairs) > 0
    effusion = task_targets(labels, 'effusion')[:, 0]
    assert (effusion == 1).sum() == sum(cells['Pleural Effusion'] == '1.0' for cells in rows)


# ---- what stays as it is, is refused, or is checked


def test_targets_do_not_change_the_labels() -> None:
    labels = FOUR.copy()
    targets_of(labels, 'ones', 'negative')
    evaluation_targets(labels, blank='negative')
    np.testing.assert_array_equal(labels, FOUR)


def test_evaluation_leaves_uncertain_out_and_counts_it() -> None:
    np.testing.assert_array_equal(evaluation_targets(FOUR, blank='negative')[:, 5], [1, 0, NAN, 0])
    ignored = evaluation_targets(FOUR, blank='ignore')
    assert ignored.dtype == np.float32
    np.testing.assert_array_equal(ignored[:, 5], [1, 0, NAN, NAN])
    np.testing.assert_array_equal(ignored[:, 0], [1, 0, NAN, 0])
    labels = columns([-1, 0, 1], [-1, -1, NAN], [0, 0, 1])
    assert count_uncertain(labels) == {'No Finding': 1, 'Enlarged Cardiomediastinum': 2}


@pytest.mark.parametrize(
    'options, message',
    [
        (
            {'uncertain': 'u_ones'},
            f"DATA.UNCERTAIN must be one of {', '.join(POLICIES)}, got 'u_ones'",
        ),
        ({'by_label': {'Edemas': 'ones'}}, "DATA.UNCERTAIN_BY_LABEL must be .*, got 'Edemas'"),
        ({'by_label': {'Edema': 'one'}}, r"DATA.UNCERTAIN_BY_LABEL\['Edema'\] .* got 'one'"),
        ({'blank': 'zero'}, "DATA.BLANK must be one of negative, ignore, got 'zero'"),
    ],
)
def test_unknown_names_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        training_targets(
            FOUR, **{'uncertain': 'ones', 'by_label': {}, 'blank': 'negative', **options}
        )


def test_unknown_blank_rule_is_refused_in_evaluation() -> None:
    with pytest.raises(ValueError, match="DATA.BLANK must be .* got 'zero'"):
        evaluation_targets(FOUR, blank='zero')


@pytest.mark.parametrize(
    'values, uncertain, blank, left, keys',
    [
        ([1, 1, NAN], 'ones', 'ignore', '2 positive, 0 negative', 'DATA.BLANK'),
        *(
            ([1, 1, -1], policy, 'negative', left, 'DATA.UNCERTAIN or DATA.UNCERTAIN_BY_LABEL')
            for policy, left in (
                ('multiclass', '2 positive, 0 negative'),
                ('ones_smooth', '3 positive, 0 negative'),
            )
        ),
        (
            [-1, 0, 0],
            'multiclass',
            'negative',
            '0 positive, 2 negative',
            'DATA.UNCERTAIN or DATA.UNCERTAIN_BY_LABEL',
        ),
        (
            [1, 1, -1],
            'ones',
            'negative',
            '3 positive, 0 negative',
            'DATA.UNCERTAIN or DATA.UNCERTAIN_BY_LABEL',
        ),
        (
            [1, 1, -1],
            'ignore',
            'negative',
            '2 positive, 0 negative',
            'DATA.UNCERTAIN or DATA.UNCERTAIN_BY_LABEL',
        ),
        (
            [-1, 0, 0],
            'zeros',
            'negative',
            '0 positive, 3 negative',
            'DATA.UNCERTAIN or DATA.UNCERTAIN_BY_LABEL',
        ),
        (
            [-1, NAN, NAN],
            'ignore',
            'ignore',
            '0 positive, 0 negative',
            'DATA.UNCERTAIN or DATA.UNCERTAIN_BY_LABEL or DATA.BLANK',
        ),
    ],
)
def test_label_that_the_policies_leave_with_one_class_is_refused(
    values: list[float], uncertain: str, blank: str, left: str, keys: str
) -> None:
    labels = columns([1, 0, 0], values)
    with pytest.raises(ValueError, match='the label policies leave one class only') as error:
        check_two_classes(labels, targets_of(labels, uncertain, blank))
    message = str(error.value)
    assert f'Enlarged Cardiomediastinum: {left} targets left of' in message
    assert message.endswith(f'in the CSV; change {keys}')
    assert 'No Finding' not in message


def test_refusal_names_every_such_label() -> None:
    labels = columns([1, 0, 0], [1, NAN, NAN], [1, 1, NAN])
    with pytest.raises(
        ValueError, match='Enlarged Cardiomediastinum: 1 positive.*Cardiomegaly: 2 positive'
    ):
        check_two_classes(labels, targets_of(labels, 'ones', 'ignore'))
    assert check_two_classes(labels, targets_of(labels, 'ones', 'negative')) == []


@pytest.mark.parametrize('blank', ['negative', 'ignore'])
@pytest.mark.parametrize('uncertain', list(POLICIES))
def test_label_with_one_class_for_want_of_data_is_only_named(uncertain: str, blank: str) -> None:
    alone = [[NAN] * 3, [0] * 3, [1] * 3, [-1] * 3, [0, NAN, 0]]
    labels = columns([1, NAN, NAN], *alone)
    targets = targets_of(labels, uncertain, blank)
    assert check_two_classes(labels, targets) == list(LABELS[1:6])


def classes(targets: np.ndarray) -> set[int]:
    """The classes that there are, one entry at a time."""
    known = [value for value in targets.tolist() if value != 2 and not math.isnan(value)]
    return {int(value >= 0.5) for value in known}


def test_refused_are_just_the_labels_that_another_choice_would_save() -> None:
    """Against trying every choice, for every set of values that a label can have."""
    kinds = [1, 0, -1, NAN]
    for subset in range(1, 16):
        values = [kind for bit, kind in enumerate(kinds) if subset >> bit & 1]
        labels = columns([1, *[0] * (len(values))], [*values, values[0]])
        choices = [(policy, blank) for policy in POLICIES for blank in ('negative', 'ignore')]
        made = {choice: targets_of(labels, *choice) for choice in choices}
        two = {choice: classes(targets[:, 1]) == {0, 1} for choice, targets in made.items()}
        for choice, targets in made.items():
            if two[choice]:
                assert check_two_classes(labels, targets) == []
            elif any(two.values()):
                with pytest.raises(ValueError, match='Enlarged Cardiomediastinum'):
                    check_two_classes(labels, targets)
            else:
                assert check_two_classes(labels, targets) == ['Enlarged Cardiomediastinum']


@pytest.mark.parametrize('blank', ['negative', 'ignore'])
def test_real_labels_survive_the_check(nih1000: Path, blank: str) -> None:
    labels = read_labels(pd.read_csv(nih1000 / 'train.csv', dtype=str, na_filter=False), 'x')
    one_class = check_two_classes(labels, targets_of(labels, 'ones', blank))
    assert one_class == ['Enlarged Cardiomediastinum', 'Fracture', 'Support Devices']


def test_cells_of_every_allowed_form_are_read_by_name() -> None:
    cells = ['1.0', '1', '0.0', '0', '-1.0', '-1', '']
    names = list(reversed(LABELS))
    table = pd.DataFrame({name: cells for name in names})
    table['Edema'] = cells[::-1]
    labels = read_labels(table, 'train.csv')
    assert labels.dtype == np.float32
    expected = [1, 1, 0, 0, -1, -1, NAN]
    for k, name in enumerate(LABELS):
        wanted = expected[::-1] if name == 'Edema' else expected
        np.testing.assert_array_equal(labels[:, k], wanted, err_msg=name)


@pytest.mark.parametrize('value', ['2.0', '-0.5', 'nan', 'yes', ' 1.0', '1,0', '１'])
def test_other_cells_are_refused_with_row_column_and_value(value: str) -> None:
    table = pd.DataFrame({name: ['1.0', '', '0.0'] for name in LABELS}, dtype=object)
    table.loc[1, 'Fracture'] = value
    with pytest.raises(ValueError) as error:
        read_labels(table, 'some/train.csv')
    assert str(error.value) == (
        f"some/train.csv, row 3 (the header is row 1), column 'Fracture': {value!r} is not allowed "
        '(allowed: 1.0, 1, 0.0, 0, -1.0, -1, empty)'
    )


def test_importing_labels_and_chexpert_does_not_import_torch() -> None:
    code = "import sys, data.labels, data.chexpert; sys.exit('torch' in sys.modules)"
    root = Path(__file__).resolve().parents[1]
    assert subprocess.run([sys.executable, '-c', code], cwd=root).returncode == 0
