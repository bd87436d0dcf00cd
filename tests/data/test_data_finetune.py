"""What fine-tuning loads: targets, views, subsets, the splits there are; what it logs of them."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from xray_splits import LOGGER, cells_of, make_config, write_split

from data.build import build_loader
from data.tables.labels import LABELS, POLICIES


def test_finetuning_batches_carry_targets_and_positions(data_path):
    loaders = build_loader(make_config(data_path), LOGGER, is_pretrain=False)
    for images, targets, index in loaders.valid:
        assert images.to('cpu').shape[1:] == (1, 64, 64)
        assert targets.dtype == torch.float32 and index.dtype == torch.int64
        for target, i in zip(targets, index, strict=True):
            meaning = {'1.0': 1, '0.0': 0, '-1.0': np.nan, '': 0}
            wanted = [meaning[cell] for cell in cells_of(int(i))]
            np.testing.assert_array_equal(target, wanted)


def test_no_policy_touches_what_is_scored(data_path, tmp_path):
    predictions = pd.read_csv(data_path / 'train.csv')[['Path', *LABELS]]
    predictions.assign(**dict.fromkeys(LABELS, 0.3)).to_csv(tmp_path / 'p.csv', index=False)
    raw = pd.read_csv(data_path / 'valid.csv')[list(LABELS)].to_numpy()
    assert (raw == -1).sum() > 30
    trained = {}
    for policy in POLICIES:
        given = ['DATA.SELF_TRAIN_PREDICTIONS', str(tmp_path / 'p.csv')] * (policy == 'self_train')
        config = make_config(data_path, 'DATA.UNCERTAIN', policy, *given)
        loaders = build_loader(config, LOGGER, is_pretrain=False)
        train, holdout, valid = (
            each.dataset for each in (loaders.train, loaders.holdout, loaders.valid)
        )
        trained[policy] = train.targets
        np.testing.assert_array_equal(np.isnan(holdout.targets), holdout.records.labels == -1)
        np.testing.assert_array_equal(np.isnan(valid.targets), raw == -1)
        for scored in (holdout, valid):
            np.testing.assert_array_equal(scored.targets == 1, scored.records.labels == 1)
    uncertain = train.records.labels == -1
    assert (trained['ones'][uncertain] == 1).all() and np.isnan(trained['ignore'][uncertain]).all()
    for one, other in itertools.combinations(trained, 2):
        same = np.array_equal(trained[one], trained[other], equal_nan=True)
        assert not same, f'{one} and {other} train on the same targets'


@pytest.mark.parametrize('scored', [True, False])
def test_a_teacher_that_may_have_seen_scored_patients_is_named(data_path, tmp_path, log, scored):
    file = tmp_path / 'p.csv'
    given = ['DATA.UNCERTAIN', 'self_train', 'DATA.SELF_TRAIN_PREDICTIONS', str(file)]
    config = make_config(data_path, *given)
    predictions = pd.read_csv(data_path / 'train.csv')[['Path', *LABELS]]
    predictions = predictions.assign(**dict.fromkeys(LABELS, 0.3))
    predictions.to_csv(file, index=False)
    held_out = build_loader(config, LOGGER, is_pretrain=False).holdout.dataset.records.path
    log.clear()
    if not scored:
        predictions[~predictions['Path'].isin(held_out)].to_csv(file, index=False)
    build_loader(config, LOGGER, is_pretrain=False)
    assert (f'predictions of {len(held_out)} images of holdout' in log.text) == scored


def test_views_are_chosen_for_training_and_scoring_apart(data_path):
    config = make_config(data_path, 'DATA.VIEWS', 'frontal', 'EVAL.VIEWS', 'all')
    loaders = build_loader(config, LOGGER, is_pretrain=False)
    assert set(loaders.train.dataset.records.view) == {'frontal'}
    for loader in (loaders.holdout, loaders.valid):
        assert set(loader.dataset.records.view) == {'frontal', 'lateral'}


@pytest.mark.parametrize('is_pretrain', [True, False])
def test_subsets_are_taken_after_the_hold_out(data_path, is_pretrain):
    whole = build_loader(make_config(data_path), LOGGER, is_pretrain)
    part = build_loader(make_config(data_path, 'DATA.TRAIN_FRACTION', 0.5), LOGGER, is_pretrain)
    held_out = whole.holdout.dataset.records.row.tolist()
    assert part.holdout.dataset.records.row.tolist() == held_out
    assert len(part.train.dataset) == 16
    assert set(part.train.dataset.records.row) < set(whole.train.dataset.records.row)


def test_training_needs_its_table(tmp_path):
    write_split(tmp_path, 'valid', 2)
    with pytest.raises(ValueError, match=r'train\.csv'):
        build_loader(make_config(tmp_path), LOGGER, is_pretrain=False)
