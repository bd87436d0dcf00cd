"""Choice of a hyperparameter by cross-validation: folds, log loss per label, what is logged."""

import logging

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from evaluation.probes.attentive import fit_attention_head
from evaluation.tuning import (
    FOLDS,
    INVERSE_PENALTIES,
    PLAIN_INVERSE_PENALTY,
    Choice,
    choose,
    fit_linear,
    fit_logistic,
    fit_softmax,
    log_choices,
    patient_folds,
)
from models.classifier_heads import AttentionHead
from models.losses import masked_bce

NAN = float('nan')


def two_labels(num_patients: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw two images of each patient: one label is a feature's sign, the other mostly noise."""
    rng = np.random.default_rng(0)
    patients = np.repeat([f'patient{i}' for i in range(num_patients)], 2)
    features = rng.normal(size=(len(patients), 12))
    noise = rng.normal(size=len(patients))
    clean, noisy = features[:, 0] > 0, features[:, 1] + 3 * noise > 0.5
    return features, np.stack([clean, noisy], axis=1).astype(np.float32), patients


def test_folds_share_no_patient_and_spread_rare_labels_in_any_order_of_the_images() -> None:
    rng = np.random.default_rng(1)
    patients = np.repeat(np.arange(60), 3).astype(str)
    targets = (rng.random((180, 3)) < 0.4).astype(np.float32)
    targets[:, 2] = 0
    rare = np.isin(patients, ['4', '11', '25', '26', '58'])
    targets[rare, 2] = 1
    targets[::7, 0] = NAN
    fold = patient_folds(targets, patients)
    assert all(np.unique(fold[patients == name]).size == 1 for name in patients)
    assert np.unique(fold[rare]).size == FOLDS == np.unique(fold).size
    assert np.bincount(fold).tolist() == FOLDS * [36]
    order = rng.permutation(180)
    np.testing.assert_array_equal(patient_folds(targets[order], patients[order]), fold[order])


def held_out_losses(features: np.ndarray, classes: np.ndarray, fold: np.ndarray) -> list[float]:
    """Return scikit-learn's log loss on the left-out folds, for each penalty."""
    losses = []
    for penalty in INVERSE_PENALTIES:
        chances = np.empty((len(classes), len(np.unique(classes))))
        for left_out in (fold == number for number in range(FOLDS)):
            model = LogisticRegression(C=penalty, tol=1e-8, max_iter=10_000)
            model.fit(features[~left_out], classes[~left_out])
            chances[left_out] = model.predict_proba(features[left_out])
        losses.append(log_loss(classes, chances))
    return losses


def test_each_label_gets_the_penalty_with_the_lowest_log_loss_of_other_patients() -> None:
    features, targets, patients = two_labels(60)
    fold = patient_folds(targets, patients)
    weight, bias, choices = fit_logistic(features, targets, patients)
    for k, target in enumerate(targets.T):
        losses = held_out_losses(features, target, fold)
        assert choices[k].value == INVERSE_PENALTIES[np.argmin(losses)]
        assert choices[k].loss == pytest.approx(min(losses), abs=1e-5)
        want = LogisticRegression(C=choices[k].value, tol=1e-8, max_iter=10_000)
        want.fit(features, target)
        np.testing.assert_allclose(weight[k], want.coef_[0], rtol=1e-3, atol=1e-4)
        assert bias[k] == pytest.approx(want.intercept_[0], abs=1e-3)
    assert choices[0].value > 0.1 >= choices[1].value, 'the labels need different penalties'


@pytest.mark.parametrize(('exclusive', 'wide'), [(False, 256), (False, 40), (True, 256)])
def test_with_fewer_images_than_features_the_choice_and_the_weights_are_those_of_scikit_learn(
    exclusive: bool, wide: int, monkeypatch
) -> None:
    """With the Hessian of few images, and without the Hessian of many."""
    monkeypatch.setattr('evaluation.tuning.WIDE', wide)
    features, targets, patients = two_labels(30)
    others = np.random.default_rng(2).normal(size=(60, 90))
    features = np.concatenate([features, others], axis=1)  # [60, 102]
    if exclusive:
        targets = np.stack([targets[:, 0], 1 - targets[:, 0]], axis=1)
    weight, bias, choices = fit_linear(features, targets, patients, exclusive=exclusive)
    fold = patient_folds(targets, patients)
    losses = held_out_losses(features, targets[:, 0], fold)
    assert choices[0].loss == pytest.approx(min(losses), abs=1e-6)
    assert choices[0].value == INVERSE_PENALTIES[int(np.argmin(losses))]
    model = LogisticRegression(C=choices[0].value, tol=1e-10, max_iter=10_000)
    model.fit(features, targets[:, 0])
    if exclusive:  # the difference of the two classes; the second one's weights are the model's
        weight, bias = weight[:1] - weight[1:], bias[:1] - bias[1:]
    np.testing.assert_allclose(weight[0], model.coef_[0], atol=1e-6)
    np.testing.assert_allclose(bias[0], model.intercept_[0], atol=1e-5 if exclusive else 1e-6)


def test_unknown_targets_do_not_count() -> None:
    target, fold = np.array([1.0, 0, NAN, 1, 0, NAN]), np.array([0, 0, 0, 1, 1, 1])
    right = np.array([2.0, -2, 9, 2, -2, -9])
    choice = choose((1, 2), [right, -right], target=target, fold=fold, plain=0)
    assert choice == Choice(1, pytest.approx(np.log1p(np.exp(-2))))
    features, targets, patients = two_labels(40)
    targets[:9, 0] = NAN
    weight, _, (choice, _) = fit_logistic(features, targets, patients)
    want = LogisticRegression(C=choice.value, tol=1e-8, max_iter=10_000)
    want.fit(features[9:], targets[9:, 0])
    np.testing.assert_allclose(weight[0], want.coef_[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('positive', [(), ('a', 'a')])
def test_a_label_of_one_patient_gets_the_plain_value(positive: tuple[str, ...]) -> None:
    patients = np.array([*positive, *'bcdefgh'])
    targets = np.isin(patients, positive)[:, None].astype(np.float32)
    features = np.random.default_rng(2).normal(size=(len(patients), 3))
    weight, _, (choice,) = fit_logistic(features, targets, patients)
    assert choice.value == PLAIN_INVERSE_PENALTY
    assert np.isnan(choice.loss)
    assert weight.any() == bool(positive), 'a label with one class has no weights'


def test_a_label_that_no_penalty_predicts_gets_the_plain_value() -> None:
    """Pairs of equal images with opposite labels: the log loss is at least log 2."""
    features = np.repeat(np.random.default_rng(3).normal(size=(60, 4)), 2, axis=0)
    targets, patients = np.tile([0.0, 1.0], 60)[:, None], np.arange(120).astype(str)
    _, _, (choice,) = fit_logistic(features, targets, patients)
    assert choice.value == PLAIN_INVERSE_PENALTY
    assert np.isnan(choice.loss)


def test_a_search_ends_after_options_in_a_row_that_are_worse() -> None:
    target, fold, computed = np.array([1.0, 0, 1, 0]), np.array([0, 0, 1, 1]), []

    def logits():
        for scale in (0, 1, 9, -1, -2, -3, -4, -5, -6):
            computed.append(scale)
            yield scale * (target * 2 - 1)

    assert choose(range(9), logits(), target=target, fold=fold, plain=0).value == 2
    assert computed == [0, 1, 9, -1, -2, -3, -4]


@pytest.mark.parametrize(
    'choice, warns', [((1, 0.5), 1), ((2, 0.5), 0), ((3, 0.5), 1), ((1, NAN), 0)]
)
def test_a_value_at_the_edge_of_the_grid_that_was_chosen_gives_a_warning(choice, warns, log):
    chosen = log_choices(logging.getLogger(), 'knn', {'Edema': Choice(*choice)}, (1, 2, 3))
    (record,) = log.records
    assert (record.levelno == logging.WARNING) == bool(warns)
    assert 'knn' in record.message and 'Edema' in record.message
    assert chosen == {'Edema': choice[0]}


def test_the_rate_of_an_attention_head_is_chosen_on_other_patients(monkeypatch) -> None:
    """Random labels of few images: other patients are predicted no better than by chance."""
    monkeypatch.setattr('evaluation.probes.attentive.RATES', (1e-2,))
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(40, 4, 16)).astype(np.float32)
    targets = rng.permutation(np.arange(40) % 2)[:, None].astype(np.float32)
    names = np.arange(40).astype(str)
    options = {'loss_fn': masked_bce, 'device': torch.device('cpu')}
    _, choice = fit_attention_head(lambda: AttentionHead(16, 1), tokens, targets, names, **options)
    assert choice.loss > np.log(2)


def test_softmax_has_the_penalty_with_the_lowest_log_loss_on_other_patients() -> None:
    rng = np.random.default_rng(0)
    features, patients = rng.normal(size=(60, 30)), np.repeat(np.arange(30), 2).astype(str)
    classes = np.digitize(2 * features[:, 0] + rng.normal(size=60), [-0.9, 0.9])
    targets = np.eye(3)[classes]
    losses = held_out_losses(features, classes, patient_folds(targets, patients))
    _, _, choices = fit_softmax(features, targets, patients)
    assert {choice.value for choice in choices} == {INVERSE_PENALTIES[np.argmin(losses)]}
    assert choices[0].loss == pytest.approx(min(losses), abs=1e-4)
