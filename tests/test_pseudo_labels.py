"""Pseudo-labels: which predictions become labels, whose they may be, and what is trained on."""

import logging
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mistakes import edit, linked
from packed_data import SMALL
from tiny import tiny_config
from xray_splits import LOGGER, make_config

from checksums import sha256
from config import Config, build_parser, get_config
from data import build_loader
from data.labels import LABELS
from data.packing import pack
from data.phantom import make_phantom
from data.phantom_mimic import make_phantom_mimic
from data.predictions import read_predictions
from evaluation.confidence import (
    KEEP,
    MIN_CASES,
    MIN_EXPECTED,
    SHARES,
    audit,
    choose_values,
)
from provenance import describe_data

NAN = np.nan


# Which predictions are kept ----------------------------------------------------------------------


def is_seldom_wrong(cases: list[bool], wrong: list[bool], confidence: str) -> bool:
    """Whether these cases are enough, and seldom enough wrong, in exact fractions."""
    base = Fraction(sum(wrong), len(wrong))
    expected, limit = len(cases) * base, (1 - Fraction(confidence)) * base
    is_enough = len(cases) >= MIN_CASES and expected >= Fraction(MIN_EXPECTED)
    return is_enough and Fraction(sum(cases), len(cases)) <= limit


def brute_force(
    p: list[float], y: list[float], q: list[float], side: int, keep: str, confidence: str
) -> list[bool]:
    """Which of the probabilities q get the value `side`, by trying every threshold or share."""
    known = [(a, b != side) for a, b in zip(p, y, strict=True) if not np.isnan(b)]
    wrong = [b for _, b in known]

    def beyond(a: float, t: float) -> bool:
        return a >= t if side == 1 else a <= t

    def most_confident(values: list[float], share: float) -> float | None:
        """The threshold that the most of these values reach which are not over the share."""
        room = int(Fraction(str(share)) * len(values))
        fitting = [t for t in values if sum(beyond(a, t) for a in values) <= room]
        return (min if side == 1 else max)(fitting, default=None)

    if keep == 'threshold':
        good = []
        for t in {a for a, _ in known}:
            cases = [b for a, b in known if beyond(a, t)]
            if is_seldom_wrong(cases, wrong, confidence):
                good.append(t)
        threshold = (min if side == 1 else max)(good, default=None)
    else:
        threshold = None
        for share in sorted(SHARES):
            t = most_confident([a for a, _ in known], share)
            cases = [] if t is None else [b for a, b in known if beyond(a, t)]
            if cases and is_seldom_wrong(cases, wrong, confidence):
                threshold = most_confident([a for a in q if not np.isnan(a)], share)
    return [threshold is not None and beyond(a, threshold) for a in q]


@pytest.mark.parametrize('keep', KEEP)
@pytest.mark.parametrize('confidence', ['0.1', '0.5', '0.75', '0.9', '1'])
def test_values_are_those_of_every_threshold_tried(keep: str, confidence: str) -> None:
    rng = np.random.default_rng(7)
    rates = np.array([0.02, 0.1, 0.3, 0.5, 0.8, 0.97])
    targets = (rng.random((240, 6)) < rates).astype(float)
    held_out = 1 / (1 + np.exp(-rng.normal(4 * targets - 2, 1)))
    held_out[:, 3] = rng.random(240)  # knows nothing
    held_out = np.round(held_out, 2)  # with ties
    targets[rng.random(targets.shape) < 0.1] = NAN
    unlabelled = np.round(rng.random((150, 6)), 2)
    unlabelled[rng.random(unlabelled.shape) < 0.05] = NAN
    values, cuts = choose_values(
        held_out, targets, unlabelled, keep=keep, confidence=float(confidence)
    )
    assert values.dtype == np.float32
    for k in range(6):
        columns = held_out[:, k].tolist(), targets[:, k].tolist(), unlabelled[:, k].tolist()
        ones, zeros = (brute_force(*columns, side, keep, confidence) for side in (1, 0))
        expected = [
            NAN if one == zero else float(one) for one, zero in zip(ones, zeros, strict=True)
        ]
        np.testing.assert_array_equal(values[:, k], expected, err_msg=f'label {k}')
        for cut, side in zip(cuts[k], (1, 0), strict=True):
            if keep == 'threshold' and not np.isnan(cut.threshold):
                p, y = held_out[:, k], targets[:, k]
                beyond = (p >= cut.threshold) if side else (p <= cut.threshold)
                assert cut.cases == (beyond & ~np.isnan(y)).sum()
                assert cut.errors == (beyond & (y == 1 - side)).sum()
    found = ~np.isnan(values).all(axis=0)
    assert found.sum() >= (1 if confidence == '1' else 3)
    assert confidence == '0.1' or not found[3]


def test_what_is_called_both_gets_no_value() -> None:
    """Middling cases in plenty are as often right as the few at either end are wrong."""
    targets = np.array([[0.0], [1.0]] * 40)
    held_out = np.linspace(0, 1, 80)[:, None]
    held_out[:, 0] += 0.3 * (targets[:, 0] - 0.5)
    held_out = np.clip(held_out, 0, 1)
    values, [(positive, negative)] = choose_values(
        held_out, targets, held_out, keep='threshold', confidence=0.05
    )
    assert positive.threshold < negative.threshold
    both = (held_out >= positive.threshold) & (held_out <= negative.threshold)
    assert both.sum() > 10
    np.testing.assert_array_equal(np.isnan(values), both)


@pytest.mark.parametrize(('clean', 'kept'), [(249, 0), (250, 250)])
def test_a_rare_label_wants_many_cases_to_be_called_negative(clean: int, kept: int) -> None:
    """Of 2 % positives, 5 errors are expected of 250 cases called negative, and none is found."""
    held_out = np.arange(1000)[:, None] / 1000
    targets = np.zeros((1000, 1))
    targets[clean : clean + 20] = 1
    values, [(_, negative)] = choose_values(
        held_out, targets, held_out, keep='threshold', confidence=0.99
    )
    assert (values == 0).sum() == kept == negative.cases
    # An NPV of 98 % is what calling everybody negative has: not even a little confidence.
    shuffled = np.random.default_rng(0).permutation(targets)
    values, _ = choose_values(held_out, shuffled, held_out, keep='threshold', confidence=0.9)
    assert np.isnan(values).all()


def test_the_threshold_of_a_table_by_hand() -> None:
    """Half are positive; 1 error in 10 is allowed with confidence 0.8, among 10 cases or more."""
    p = np.round(np.linspace(0.99, 0.01, 40), 3)
    y = np.array([1] * 9 + [0] + [1] * 6 + [0] * 4 + [0] * 11 + [1] + [0] * 4 + [1] * 4, float)
    y[-4:] = NAN
    # Of the known 36, 16 are positive: 10 % of 20 / 36 may be wrong of those called positive.
    order = [(p[:i], int((y[:i] == 0).sum())) for i in range(10, 37)]
    good = [len(part) for part, wrong in order if wrong / len(part) <= 0.2 * 20 / 36]
    assert good[-1] == 16  # 1 wrong of 16 is below 11.1 %; 2 of 17 is above
    values, [(positive, _)] = choose_values(
        p[:, None], y[:, None], p[:, None], keep='threshold', confidence=0.8
    )
    assert (positive.threshold, positive.cases, positive.errors) == (p[15], 16, 1)
    assert (values == 1).sum() == 16


@pytest.mark.parametrize('side', [0, 1])
def test_one_class_alone_gives_no_labels(side: int) -> None:
    held_out = np.random.default_rng(0).random((100, 1))
    for targets in (np.full((100, 1), float(side)), np.full((100, 1), NAN)):
        for keep in KEEP:
            values, _ = choose_values(held_out, targets, held_out, keep=keep, confidence=0.5)
            assert np.isnan(values).all()


@pytest.mark.parametrize(
    ('keep', 'confidence', 'message'),
    [
        ('most', 0.9, "keep must be one of threshold, top_share, got 'most'"),
        ('threshold', 0.0, 'confidence must be above 0 and at most 1, got 0.0'),
        ('top_share', 1.1, 'confidence must be above 0 and at most 1, got 1.1'),
        ('top_share', NAN, 'confidence must be above 0 and at most 1, got nan'),
    ],
)
def test_other_choices_are_refused(keep: str, confidence: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_values(*[np.zeros((1, 1))] * 3, keep=keep, confidence=confidence)


def test_confirmed_pseudo_labels_are_counted_one_by_one() -> None:
    rng = np.random.default_rng(1)
    real = rng.choice([0.0, 1.0, NAN], (50, 4), p=[0.6, 0.3, 0.1])
    values = rng.choice([0.0, 1.0, NAN], (50, 4), p=[0.3, 0.2, 0.5])
    figures = audit(values, real)
    for name, side in (('positive', 1), ('negative', 0)):
        total = known = right = 0
        chance = 0.0
        for i, k in np.ndindex(values.shape):
            if values[i, k] == side:
                total += 1
                if not np.isnan(real[i, k]):
                    known += 1
                    right += real[i, k] == side
                    column = [x for x in real[:, k] if not np.isnan(x)]
                    chance += column.count(side) / len(column)
        assert (figures[name]['values'], figures[name]['known']) == (total, known)
        assert figures[name]['confirmed'] == pytest.approx(right / known)
        assert figures[name]['by_chance'] == pytest.approx(chance / known)
    nothing = audit(np.full((3, 1), NAN), np.ones((3, 1)))['positive']
    assert nothing['values'] == 0 and np.isnan([nothing['confirmed'], nothing['by_chance']]).all()


# What is trained on ------------------------------------------------------------------------------


def files(folder: Path) -> Path:
    root = folder / 'CheXpert-phantom'
    make_phantom(root, num_train=20, num_valid=3, num_test=3, size=32, seed=0)
    return root


def store(folder: Path) -> Path:
    pack(files(folder), folder / 'store', SMALL)
    return folder / 'store'


def mimic(folder: Path) -> Path:
    make_phantom_mimic(folder / 'mimic', num_train=20, num_valid=3, num_test=3, size=32, seed=0)
    return folder / 'mimic'


def loaders_of(root: Path, *options: object):
    name = 'mimic-cxr' if root.name == 'mimic' else 'chexpert'
    options = ('DATA.DATASET', name, 'DATA.TRAIN_FRACTION', 0.5, 'DATA.UNCERTAIN', 'ones', *options)
    return build_loader(make_config(root, *options), LOGGER, is_pretrain=False)


def parts_of(root: Path, *options: object) -> tuple:
    """Records that are labelled, held out, and the others, as loaders without the key have them."""
    loaders = loaders_of(root, 'EVAL.PREDICT_TRAIN', True, *options)
    whole, labelled = loaders.whole.dataset.records, loaders.train.dataset
    others = whole.select(~np.isin(whole.patient.astype(str), labelled.records.patient.astype(str)))
    return labelled, loaders.holdout.dataset.records, others


def write(file: Path, paths, values: np.ndarray) -> Path:
    table = pd.DataFrame(values, columns=list(LABELS))
    table.insert(0, 'Path', list(paths))
    table.to_csv(file, index=False)
    return file


@pytest.mark.parametrize('make', [files, store, mimic])
def test_the_files_values_are_learned_beside_the_labels_of_the_subset(
    make: Callable[[Path], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = make(tmp_path)
    labelled, held_out, others = parts_of(root)
    assert min(len(labelled), len(held_out), len(others)) > 3
    rng = np.random.default_rng(0)
    values = rng.choice([0.0, 0.25, 1.0, NAN], (len(others), len(LABELS)))
    values[[0, 2]] = NAN  # rows without a value are not learned from
    order = rng.permutation(len(others))
    file = write(tmp_path / 'p.csv', others.path[order], values[order])
    with caplog.at_level(logging.INFO):
        loaders = loaders_of(root, 'DATA.PSEUDO_LABELS', str(file))
    train = loaders.train.dataset
    count = len(labelled)
    kept = np.delete(np.arange(len(others)), [0, 2])
    assert train.records.path.tolist() == [*labelled.records.path, *others.path[kept]]
    np.testing.assert_array_equal(train.targets[:count], labelled.targets)
    np.testing.assert_array_equal(train.targets[count:], values[kept])
    assert train.targets.dtype == np.float32
    assert np.isnan(train.records.labels[count:]).all()
    assert loaders.holdout.dataset.records.path.tolist() == held_out.path.tolist()
    positive, negative = (values[:, 0] == 1).sum(), (values[:, 0] < 0.5).sum()
    patients = len(set(others.patient[kept]))
    (line,) = [text for text in caplog.messages if text.startswith('pseudo-labelled: ')]
    assert line.startswith(f'pseudo-labelled: {len(kept)} images of {patients} patients (')
    assert f'{file}: positive + negative values: No Finding {positive} + {negative}, ' in line
    seen = np.concatenate([batch[1].numpy() for batch in loaders.train])
    assert len(seen) == len(train) // 4 * 4


def test_the_labels_that_were_put_aside_are_never_learned(tmp_path: Path) -> None:
    """Two data sets whose labels contradict each other there train on the same targets."""
    root = files(tmp_path)
    _, _, others = parts_of(root)
    values = np.random.default_rng(0).choice([0.0, 1.0, NAN], (len(others), len(LABELS)))
    file = write(tmp_path / 'p.csv', others.path, values)
    other = linked(root, tmp_path / 'other' / root.name)
    hidden = set(others.path)

    def contradict(rows: list[list[str]]) -> None:
        first = rows[0].index(LABELS[0])
        for row in rows[1:]:
            if row[0] in hidden:
                row[first:] = ['0.0' if cell == '1.0' else '1.0' for cell in row[first:]]

    edit(other / 'train.csv', contradict)
    for options in ([], ['DATA.SAMPLER', 'weighted'], ['FINETUNE.MODE', 'linear_probe']):
        options = ['DATA.PSEUDO_LABELS', str(file), *options]
        loaders = [loaders_of(place, *options) for place in (root, other)]
        first, second = ((part.train or part.plain).dataset for part in loaders)
        assert first.records.path.tolist() == second.records.path.tolist()
        np.testing.assert_array_equal(first.targets, second.targets)
        np.testing.assert_array_equal(first.records.labels, second.records.labels)


def test_a_binary_task_takes_its_own_column(tmp_path: Path) -> None:
    root, task = files(tmp_path), ['DATA.TASK', 'any_finding', 'MODEL.NUM_CLASSES', 1]
    labelled, _, others = parts_of(root, *task)
    outside = ~np.isin(others.patient.astype(str), labelled.records.patient.astype(str))
    paths = others.path[outside]
    table = pd.DataFrame({'Path': paths, 'Any Finding': np.linspace(0, 1, len(paths))})
    table.to_csv(tmp_path / 'p.csv', index=False)
    options = [*task, 'DATA.PSEUDO_LABELS', str(tmp_path / 'p.csv')]
    targets = loaders_of(root, *options).train.dataset.targets
    np.testing.assert_allclose(targets[len(labelled) :, 0], np.linspace(0, 1, len(paths)))
    (tmp_path / 'p.json').write_text('{"task": "observations"}')
    with pytest.raises(ValueError, match="needed are 'any_finding'"):
        loaders_of(root, *options)


def test_rows_that_may_have_no_pseudo_labels_are_refused(tmp_path: Path) -> None:
    root, views = files(tmp_path), ['DATA.VIEWS', 'frontal', 'EVAL.VIEWS', 'all']
    labelled, held_out, others = parts_of(root, *views)
    frontal, lateral = (others.path[others.view == view] for view in ('frontal', 'lateral'))
    valid, test = (pd.read_csv(root / f'{split}.csv') for split in ('valid', 'test'))
    test = test['Path'] if 'Path' in test else test['Study'] + '/view1_frontal.jpg'
    unknown = 'of no training image of train.csv'
    file = tmp_path / 'p.csv'
    for path, reason in [
        (held_out.path[0], 'of a held-out patient'),
        (labelled.records.path[1], 'of a patient whose real labels are learned from'),
        (lateral[0], "not of DATA.VIEWS 'frontal'"),
        (valid['Path'][0], unknown),
        (test[0], unknown),
        ('CheXpert-phantom/train/patient99999/study1/view1_frontal.jpg', unknown),
    ]:
        write(file, [*frontal[:2], path], np.ones((3, len(LABELS))))
        with pytest.raises(ValueError) as error:
            loaders_of(root, *views, 'DATA.PSEUDO_LABELS', str(file))
        assert str(error.value) == (
            f'DATA.PSEUDO_LABELS {file}, row 4 (the header is row 1): it is {reason}; only '
            'training patients whose labels DATA.TRAIN_FRACTION or DATA.TRAIN_IMAGES leaves out '
            'may have pseudo-labels'
        )


def test_a_file_of_other_cells_is_refused(tmp_path: Path) -> None:
    root, file = files(tmp_path), tmp_path / 'p.csv'
    _, _, others = parts_of(root)
    options = 'DATA.PSEUDO_LABELS', str(file)
    with pytest.raises(ValueError, match=f'no such CSV file: {file}'):
        loaders_of(root, *options)
    for cells, message in [
        (['-1'] * 14, r"row 2 .*'-1' is not allowed \(allowed: numbers from 0 to 1, or empty\)"),
        ([''] * 14, f'DATA.PSEUDO_LABELS {file} has no value of No Finding, '),
    ]:
        write(file, others.path[:1], np.array([cells]))
        with pytest.raises(ValueError, match=message):
            loaders_of(root, *options)
    write(file, others.path[:1], np.full((1, 14), NAN))
    with pytest.raises(ValueError, match=r'allowed: numbers from 0 to 1\)'):
        read_predictions(file)  # of a model, no cell is empty


def test_where_all_labels_are_learned_from_nobody_is_left(tmp_path: Path) -> None:
    cfg = tiny_config(tmp_path / 'c.yaml', 'finetune', DATA={'PSEUDO_LABELS': 'p.csv'})

    def load(*options: str) -> Config:
        words = ['--cfg', str(cfg), '--opts', *options]
        return get_config(build_parser('finetune').parse_args(words))

    assert load('DATA.TRAIN_IMAGES', '9').DATA.PSEUDO_LABELS == 'p.csv'
    whole = ['DATA.TRAIN_IMAGES', '0']
    message = r'DATA.TRAIN_FRACTION must be below 1 \(or DATA.TRAIN_IMAGES above 0\)'
    with pytest.raises(ValueError, match=message):
        load(*whole)
    assert load(*whole, 'EVAL_MODE', 'True').DATA.PSEUDO_LABELS == 'p.csv'


def test_the_file_counts_as_data(tmp_path: Path) -> None:
    root = files(tmp_path)
    _, _, others = parts_of(root)
    found = []
    for value in (0.0, 1.0):
        file = write(tmp_path / 'p.csv', others.path, np.full((len(others), 14), value))
        options = 'DATA.UNCERTAIN', 'ones', 'DATA.PSEUDO_LABELS', str(file)
        config = make_config(root, 'DATA.TRAIN_FRACTION', 0.5, *options)
        loaders = build_loader(config, LOGGER, is_pretrain=False)
        found.append(describe_data(config, loaders))
        assert found[-1]['files']['DATA.PSEUDO_LABELS'] == sha256(file)
    assert found[0]['fingerprint'] != found[1]['fingerprint']
