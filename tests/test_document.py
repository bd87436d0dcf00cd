"""The report as a whole: its warnings, the order of its sets, and what is compared."""

from dataclasses import replace

import numpy as np
import pytest
from cases import make_cases
from sklearn.metrics import roc_auc_score

from evaluation.metrics import Protocol
from evaluation.report import HeldOut, build_document, compare_sets

LABELS = ('Edema', 'Fracture')
NO_HOLDOUT = 'no held-out training patients: '
NO_THRESHOLD = 'no threshold for want of held-out cases: '
PROTOCOL = Protocol(level='image', resamples=0)


def some_cases(name='test', *, seed=0, labels=LABELS):
    rng = np.random.default_rng(seed)
    targets = (np.random.default_rng(9).random((60, len(labels))) < 0.5).astype(float)
    return make_cases(rng.random(targets.shape), targets, name=name, labels=labels)


def warnings_of(holdout, sets=None):
    return build_document(sets or [some_cases()], holdout, PROTOCOL, run={})['warnings']


def one_class(*columns):
    holdout = some_cases('holdout', seed=5)
    holdout.targets[:, columns] = 0.0
    return holdout


def of_thresholds(lines):
    return [line for line in lines if NO_HOLDOUT in line or NO_THRESHOLD in line]


@pytest.mark.parametrize(
    'columns, named', [((), None), ((1,), 'Fracture'), ((0, 1), 'Edema, Fracture')]
)
def test_labels_without_a_threshold_are_warned_of(columns, named):
    wanted = [f'test: {NO_THRESHOLD}{named}'] if named else []
    assert of_thresholds(warnings_of(one_class(*columns))) == wanted


def test_the_only_label_of_a_task_is_warned_of():
    sets = [some_cases(labels=('Pleural Effusion',))]
    holdout = some_cases('holdout', labels=('Pleural Effusion',))
    holdout.targets[:] = 1.0
    assert of_thresholds(warnings_of(holdout, sets)) == [f'test: {NO_THRESHOLD}Pleural Effusion']


def test_thresholds_that_are_given_are_warned_of_set_by_set():
    sets = [some_cases('a'), some_cases('b', seed=1)]
    nothing, both = np.full(2, np.nan), np.array([0.5, 0.5])
    fitted = [HeldOut(nothing, nothing), HeldOut(both, both)]
    assert of_thresholds(warnings_of(fitted, sets)) == [f'a: {NO_THRESHOLD}Edema, Fracture']


def test_without_held_out_patients_one_line_says_so():
    sets = [some_cases('valid'), some_cases('test')]
    (line,) = of_thresholds(warnings_of(None, sets))
    assert line.startswith(NO_HOLDOUT)


def test_sets_keep_their_order_and_the_last_is_the_headlines():
    sets = [some_cases(name) for name in ('valid', 'test', 'a')]
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        document = build_document([sets[i] for i in order], None, PROTOCOL, run={})
        names = [entry['name'] for entry in document['sets']]
        assert names == [sets[i].name for i in order]
        assert document['headline']['set'] == names[-1]


def test_sets_of_one_run_are_not_compared_with_themselves():
    """TEST_CSV may be VALID_CSV: the same rows, and the same model."""
    sets = [some_cases('valid'), some_cases('test')]
    assert build_document(sets, None, PROTOCOL, run={})['comparisons'] == []


def test_models_of_the_same_rows_are_compared_in_pairs():
    a, b, c = (some_cases(name, seed=i) for i, name in enumerate('abc'))
    b = b.select(np.random.default_rng(3).permutation(60))
    other = replace(c, path=np.array([f'elsewhere/{path}' for path in c.path], object))
    found = compare_sets([a, b, c, other], PROTOCOL, name='labels')
    assert [(e['set'], e['a'], e['b']) for e in found] == [
        ('labels', *pair) for pair in ('ab', 'ac', 'bc')
    ]
    areas = [roc_auc_score(m.targets[:, 0], m.probabilities[:, 0]) for m in (a, b)]
    difference = found[0]['labels']['Edema']['difference']['value']
    assert difference == pytest.approx(areas[0] - areas[1])
    document = build_document([a, b], None, PROTOCOL, run={}, extras={'comparisons': found})
    assert document['comparisons'] == found


def test_patients_in_two_splits_are_warned_of():
    patients = {'train': ['p1', 'p2', 'p2'], 'valid': ['p3'], 'test': ['p2', 'p1', 'p4']}
    document = build_document([some_cases()], None, PROTOCOL, run={}, patients=patients)
    (line,) = (line for line in document['warnings'] if 'in both' in line)
    assert line.startswith('2 patient(s) are in both train and test, such as p1')
