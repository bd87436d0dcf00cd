"""Tasks with one class per image: targets, losses, metrics, probes, and runs."""

from argparse import Namespace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, f1_score
from sklearn.utils.class_weight import compute_class_weight
from tiny import LABELS_DECIDE, VIT, config_with, tiny_config
from torch.nn import functional as F
from xray_splits import LOGGER, make_config

from config import get_config
from data.build import build_loader
from data.tables.records import make_task
from evaluation.analysis import score_classes
from evaluation.cases import Cases
from evaluation.intervals import CaseWeights
from evaluation.metrics import OF_CLASSES, Decisions, applicable, compute, score_table, study_level
from evaluation.tuning import fit_softmax
from models.losses import build_label_loss, class_weights

pytestmark = pytest.mark.usefixtures('few_cases_select')
NAN = np.nan
NAMES = ('Normal', 'Pneumonia', 'Covid')


def one_hot(classes: list[int], num_classes: int = 3) -> np.ndarray:
    """Targets [N, K]; class -1 is unknown."""
    rows = np.eye(num_classes + 1, dtype=np.float32)[np.array(classes)][:, :num_classes]
    rows[np.array(classes) < 0] = NAN
    return rows


def records(labels: np.ndarray, **more: object) -> Namespace:
    paths = [f'{i}.png' for i in range(len(labels))]
    return Namespace(labels=labels, root=Path('root'), csv='a.csv', path=paths, **more)


def test_a_single_label_is_one_hot_and_several_classes_are_refused() -> None:
    task = make_task('single_label', LABELS=NAMES)
    labels = np.array([[0, 1, 0], [NAN, NAN, 1], [0, 0, NAN], [-1, NAN, 0], [-1, 1, 0]], np.float32)
    np.testing.assert_array_equal(task.scored(records(labels)), one_hot([1, 2, -1, -1, 1]))
    labels[2] = 1
    with pytest.raises(ValueError, match=r'a\.csv: 2\.png.*Normal, Pneumonia, Covid.*1 of 5'):
        task.learned(records(labels))


@pytest.mark.parametrize(
    'options, loss, outputs',
    [
        ([], 'bce', 14),
        (['DATA.TASK', 'any_finding'], 'bce', 1),
        (['DATA.TASK', 'single_label', 'DATA.LABELS', str([*NAMES])], 'cross_entropy', 3),
    ],
)
def test_the_task_decides_the_loss_and_the_number_of_outputs(tmp_path, options, loss, outputs):
    cfg = tiny_config(tmp_path / 'c.yaml', 'finetune', VIT, MODEL=LABELS_DECIDE)
    config = get_config(Namespace(cfg=str(cfg), stage='finetune', opts=options))
    assert (config.LOSS.NAME, config.MODEL.NUM_CLASSES) == (loss, outputs)


@pytest.mark.parametrize(
    ('name', 'weight'),
    [('cross_entropy', None), ('weighted_cross_entropy', torch.tensor([7 / 3, 7 / 12, 7 / 6]))],
)
def test_cross_entropy_is_torchs_and_ignores_images_without_a_class(name, weight) -> None:
    outputs, classes = torch.randn(8, 3), torch.tensor([0, 1, 2, 2, -1, 1, 1, 1])
    targets, known = torch.from_numpy(one_hot(classes.tolist())), classes >= 0
    config = config_with(DATA__TASK='single_label', DATA__LABELS=[*NAMES], LOSS__NAME=name)
    loss = build_label_loss(config, targets.numpy())(outputs, targets)
    total = F.cross_entropy(outputs[known], classes[known], weight, reduction='sum')
    torch.testing.assert_close(loss, total / 8)
    balanced = compute_class_weight('balanced', classes=np.arange(3), y=classes[known].numpy())
    np.testing.assert_allclose(class_weights(targets.numpy()), balanced, rtol=1e-6)


def test_the_logits_of_classes_are_the_logarithms_of_their_probabilities() -> None:
    outputs = np.random.default_rng(0).normal(size=(5, 3))
    task = make_task('single_label', LABELS=NAMES)
    logits = task.logits(torch.from_numpy(outputs).float()).numpy()
    np.testing.assert_allclose(logits, log_softmax(outputs, 1), rtol=1e-5)
    np.testing.assert_allclose(task.probabilities(logits), softmax(outputs, 1), rtol=1e-5)


def drawn(num_cases: int = 200) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw probabilities, one-hot targets with unknown rows, and weights of resamples."""
    rng = np.random.default_rng(3)
    classes = rng.choice([0, 1, 2, -1], num_cases, p=[0.5, 0.3, 0.1, 0.1])
    scores = rng.normal(size=(num_cases, 3)) + np.nan_to_num(one_hot([*classes]))
    return softmax(scores, axis=1), one_hot([*classes]), rng.integers(0, 4, (5, num_cases))


def test_the_metrics_of_classes_are_those_of_scikit_learn() -> None:
    probabilities, targets, weights = drawn()
    known = ~np.isnan(targets[:, 0])
    cases = targets[known].argmax(axis=1), probabilities[known].argmax(axis=1)
    decisions = Decisions.of(probabilities, targets, CaseWeights(weights.T, np.arange(200)))
    found = compute(decisions)
    wanted = {
        'accuracy': accuracy_score,
        'balanced_accuracy': balanced_accuracy_score,
        'macro_f1': partial(f1_score, average='macro'),
    }
    assert {*applicable(OF_CLASSES)} == {*found} == {*wanted}
    for row, weight in enumerate(weights[:, known]):
        matrix = confusion_matrix(*cases, sample_weight=weight)
        np.testing.assert_allclose(decisions.confusion[row], matrix)
        for name, function in wanted.items():
            np.testing.assert_allclose(found[name][row], function(*cases, sample_weight=weight))


def test_a_class_without_cases_is_left_out_of_the_means() -> None:
    probabilities, targets = softmax(np.eye(3)[[0, 0, 1, 2]] * 3, axis=1), one_hot([0, 1, 1, 0])
    found = compute(Decisions.of(probabilities, targets, CaseWeights.ones(4)))
    assert found['balanced_accuracy'] == [0.5]
    f1 = f1_score([0, 1, 1, 0], [0, 0, 1, 2], average='macro', labels=[0, 1, 2], zero_division=0)
    np.testing.assert_allclose(found['macro_f1'], f1)
    nobody = compute(Decisions.of(probabilities, one_hot([-1] * 4), CaseWeights.ones(4)))
    assert all(np.isnan(values).all() for values in nobody.values())


@pytest.mark.parametrize('least, few', [(18, ''), (19, '18 of Covid')])
def test_a_class_with_few_cases_leaves_no_interval(least: int, few: str, monkeypatch) -> None:
    """The rule of labels holds for classes: an interval over few cases would be too narrow."""
    monkeypatch.setattr('evaluation.analysis.FEW_CASES', least)
    probabilities, targets, _ = drawn()
    targets[np.flatnonzero(targets[:, 2] == 1)[18:]] = NAN
    names = np.arange(len(targets)).astype(str)
    rows = Cases('x', NAMES, names, names, names, probabilities, targets, exclusive=True)
    weights = np.random.default_rng(0).integers(0, 4, (201, len(names)))
    weights[0] = 1
    weights = CaseWeights(weights.T, np.arange(len(names)))
    found = score_classes(rows, weights)
    assert found['few'] == few
    values_of = compute(Decisions.of(probabilities, targets, weights))
    for name, score in found['scores'].items():
        values = values_of[name]
        ends = [NAN, NAN] if few else np.percentile(values[1:], [2.5, 97.5])
        wanted = dict(zip(('value', 'low', 'high'), (values[0], *ends), strict=True))
        assert score == pytest.approx(wanted, nan_ok=True)


def test_the_probabilities_of_a_study_sum_to_one() -> None:
    probabilities, targets, _ = drawn(6)
    targets[:] = one_hot([0, 0, 1, 2, -1, 2])
    studies = np.array(['a', 'a', 'b', 'b', 'c', 'd'])
    joined, known, names = study_level(probabilities, targets, studies, exclusive=True)
    np.testing.assert_allclose(joined.sum(axis=1), 1)
    largest = probabilities[:2].max(axis=0)
    np.testing.assert_allclose(joined[0], largest / largest.sum())
    np.testing.assert_array_equal(known, one_hot([0, -1, -1, 2]), 'images of b have two classes')
    assert names.tolist() == [*'abcd']
    options = {'labels': NAMES, 'level': 'study', 'exclusive': True}
    table = score_table(probabilities, targets, studies, **options)
    assert table['accuracy'] == (joined[[0, 3]].argmax(axis=1) == [0, 2]).mean()
    assert (table['rows'], table['positives']) == (4, {'Normal': 1, 'Pneumonia': 0, 'Covid': 1})


@pytest.mark.parametrize('num_classes', [3, 2])
def test_the_linear_probe_of_classes_is_scikit_learns(num_classes: int) -> None:
    rng = np.random.default_rng(5)
    features = rng.normal(size=(90, 4))
    targets = one_hot([*(features[:, :3] + rng.normal(size=(90, 3))).argmax(axis=1)])
    targets[::9] = NAN
    if num_classes == 2:
        targets = np.concatenate([targets[:, :1], 1 - targets[:, :1]], axis=1)
    weight, bias, choices = fit_softmax(features, targets, np.arange(90).astype(str))
    known = ~np.isnan(targets[:, 0])
    model = LogisticRegression(C=choices[0].value, tol=1e-8, max_iter=10_000)
    model.fit(features[known], targets[known].argmax(axis=1))
    found = softmax(features @ weight.T + bias, axis=1)
    np.testing.assert_allclose(found, model.predict_proba(features), atol=1e-4)
    assert len({*choices}) == 1 and choices[0].loss < np.log(num_classes)


@pytest.mark.parametrize('images', [4, 7])
def test_a_number_of_images_counts_those_with_a_target(data_path: Path, images: int) -> None:
    """Of 32 images, some have neither Pleural Effusion nor No Finding."""
    options = ('DATA.TASK', 'effusion', 'MODEL.NUM_CLASSES', 1, 'DATA.UNCERTAIN', 'ones')
    options += ('DATA.TRAIN_IMAGES', images, 'DATA.BATCH_SIZE', 2)
    train = build_loader(make_config(data_path, *options), LOGGER, is_pretrain=False).train.dataset
    assert len(train) == images and not np.isnan(train.targets).any()
