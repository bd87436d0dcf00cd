"""Which images are used: selection, views, hold-out, subsets."""

import hashlib
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from csv_files import image_path, read, row

from data.labels import LABELS
from data.records import Records, select_views, split_holdout, take_subset


def many(num_patients: int, seed: int = 0) -> list[dict[str, str]]:
    """Patients with one to three studies of one or two views, in a mixed order."""
    rng = np.random.default_rng(seed)
    paths = [
        image_path(patient, study, view)
        for patient in range(num_patients)
        for study in range(1, rng.integers(2, 5))
        for view in ('view1_frontal', 'view2_lateral')[: rng.integers(1, 3)]
    ]
    return [row(paths[i]) for i in rng.permutation(len(paths))]


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return read(tmp_path, many(200))


def test_select_takes_positions_or_a_mask_in_all_fields(records: Records) -> None:
    some = records.select(np.array([5, 2]))
    assert some.row.tolist() == [5, 2] and some.path.tolist() == list(records.path[[5, 2]])
    assert some.labels.shape == (2, len(LABELS)) and some.root == records.root
    assert records.select(records.row < 3).row.tolist() == [0, 1, 2]


def test_select_views(records: Records) -> None:
    frontal, lateral = select_views(records, 'frontal'), select_views(records, 'lateral')
    assert set(frontal.view) == {'frontal'} and set(lateral.view) == {'lateral'}
    assert sorted([*frontal.row, *lateral.row]) == records.row.tolist()
    assert len(select_views(records, 'all')) == len(records)
    with pytest.raises(ValueError, match='none of the .* images is lateral .*DATA.VIEWS'):
        select_views(frontal, 'lateral')


@pytest.mark.parametrize('fraction, held_out', [(0.02, 4), (0.021, 5), (0.5, 100), (0, 0)])
def test_holdout_takes_the_rounded_up_share_of_the_patients(
    records: Records, fraction: float, held_out: int
) -> None:
    train, holdout = split_holdout(records, fraction)
    assert len(set(holdout.patient)) == held_out
    assert not set(holdout.patient) & set(train.patient)
    assert sorted([*train.row, *holdout.row]) == records.row.tolist()
    assert (np.diff(train.row) > 0).all() and (np.diff(holdout.row) > 0).all()


def test_share_is_not_rounded_up_by_floating_point(tmp_path: Path) -> None:
    assert math.ceil(0.07 * 100) == 8
    records = read(tmp_path, [row(image_path(patient)) for patient in range(100)])
    assert len(split_holdout(records, 0.07)[1]) == 7
    assert len(take_subset(records, fraction=0.07, images=0, seed=0)) == 7


def test_holdout_patients_depend_on_their_names_alone(records: Records) -> None:
    held_out = set(split_holdout(records, 0.1)[1].patient)
    mixed = records.select(np.random.default_rng(1).permutation(len(records)))
    assert set(split_holdout(mixed, 0.1)[1].patient) == held_out
    train, holdout = split_holdout(records, 0.1)
    for views in ('frontal', 'lateral'):
        subset = take_subset(select_views(train, views), fraction=0.5, images=0, seed=3)
        assert not set(subset.patient) & held_out
        assert set(select_views(holdout, views).patient) <= held_out
    # The same from one version to the next, or pre-training and fine-tuning would disagree.
    names = sorted(
        set(records.patient),
        key=lambda name: hashlib.blake2b(name.encode(), key=b'holdout').digest(),
    )
    assert held_out == set(names[:20])


def test_holdout_of_everybody_is_refused(records: Records) -> None:
    with pytest.raises(ValueError, match='DATA.HOLDOUT_FRACTION 0.999 leaves none of the 200'):
        split_holdout(records, 0.999)


def test_subsets_are_nested_by_patient_and_seeded(records: Records) -> None:
    drawn = {}
    for seed in range(5):
        larger = set(records.row)
        for fraction in (0.5, 0.1, 0.05, 0.01):
            subset = take_subset(records, fraction=fraction, images=0, seed=seed)
            patients = set(subset.patient)
            assert len(patients) == math.ceil(fraction * 200)
            assert set(subset.row) == {r for r, p in enumerate(records.patient) if p in patients}
            assert set(subset.row) < larger and (np.diff(subset.row) > 0).all()
            larger = set(subset.row)
            drawn[seed, fraction] = tuple(sorted(patients))
    assert len({drawn[seed, 0.05] for seed in range(5)}) == 5


def test_number_of_images_is_exact_nested_and_by_patient(records: Records) -> None:
    everything = take_subset(records, fraction=1, images=len(records), seed=1)
    assert everything.row.tolist() == records.row.tolist()
    smaller: set[int] = set()
    for images in range(1, 60):
        subset = take_subset(records, fraction=1, images=images, seed=1)
        assert len(subset) == images and (np.diff(subset.row) > 0).all()
        assert smaller < set(subset.row)
        smaller = set(subset.row)
        whole = Counter(records.patient)
        cut = [p for p, count in Counter(subset.patient).items() if count < whole[p]]
        assert len(cut) <= 1
    patients = set(take_subset(records, fraction=0.1, images=0, seed=1).patient)
    assert set(take_subset(records, fraction=1, images=20, seed=1).patient) <= patients


def test_no_subset_is_all_records(records: Records) -> None:
    assert take_subset(records, fraction=1.0, images=0, seed=0) is records


@pytest.mark.parametrize(
    'fraction, images, problem',
    [
        (0.5, 10, 'not both: got DATA.TRAIN_FRACTION 0.5, DATA.TRAIN_IMAGES 10'),
        (0, 0, 'above 0 and at most 1: got DATA.TRAIN_FRACTION 0'),
        (1.5, 0, 'above 0 and at most 1: got DATA.TRAIN_FRACTION 1.5'),
        (1, 10_000, 'images to choose from: got .*DATA.TRAIN_IMAGES 10000'),
        (1, -1, 'images to choose from: got .*DATA.TRAIN_IMAGES -1'),
    ],
)
def test_impossible_subset_is_refused(
    records: Records, fraction: float, images: int, problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        take_subset(records, fraction=fraction, images=images, seed=0)
