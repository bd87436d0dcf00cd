"""Position tables and embeddings of pre-trained weights: other kinds, windows, image sizes."""

import numpy as np
import pytest
import torch
from transfers import TABLE, assert_same, make_config, transfer

from models.convert import Report, _resize_tables, resize_position_embedding

SHARED = f'rel_pos_bias.{TABLE}'


# ViT's position tables


def vit(table, *, pool=False, size=32):
    return make_config(
        'vit',
        1,
        DATA__IMG_SIZE=size,
        MODEL__VIT__USE_MEAN_POOLING=pool,
        MODEL__VIT__USE_SHARED_RPB=table in ('shared', 'both'),
        MODEL__VIT__USE_RPB=table in ('blocks', 'both'),
    )


def table_of(model, block, prefix=''):
    return model.state_dict()[f'{prefix}blocks.{block}.attn.{TABLE}']


def test_shared_table_is_put_into_every_block(tmp_path, log):
    source, target = transfer(
        vit('shared'), vit('blocks', pool=True), tmp_path, stages=(True, False)
    )
    for block in range(2):
        assert torch.equal(table_of(target, block), source.state_dict()[f'encoder.{SHARED}'])
    assert 'shared position table put into 2 blocks' in log.text
    assert 'fc_norm.weight' in log.text  # new; norm.* is left over


def test_shared_and_block_tables_are_added_where_a_model_has_only_the_latter(tmp_path):
    source, target = transfer(vit('both'), vit('blocks'), tmp_path)
    state = source.state_dict()
    for block in range(2):
        expected = state[f'encoder.{SHARED}'] + table_of(source, block, 'encoder.')
        assert torch.equal(table_of(target, block, 'encoder.'), expected)


@pytest.mark.parametrize('table', ['shared', 'blocks', 'both', 'none'])
def test_tables_of_the_same_kind_are_kept(table, tmp_path):
    source, target = transfer(vit(table), vit(table), tmp_path, stages=(False, False))
    for key, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], value), key


def test_block_tables_are_not_made_into_a_shared_one(tmp_path):
    with pytest.raises(ValueError, match=rf'2 unexpected \(blocks\.0\.attn\.{TABLE}'):
        transfer(vit('blocks'), vit('shared'), tmp_path)


def test_official_finetuned_vit_goes_into_pretraining_that_pools(tmp_path, log):
    source, target = transfer(
        vit('blocks', pool=True), vit('blocks', pool=True), tmp_path, stages=(False, True)
    )
    assert torch.equal(table_of(target, 1, 'encoder.'), table_of(source, 1))
    assert 'head.weight, head.bias, fc_norm.weight, fc_norm.bias' in log.text
    with pytest.raises(ValueError, match=r'2 unexpected \(fc_norm\.weight, fc_norm\.bias\)'):
        transfer(vit('blocks', pool=True), vit('blocks'), tmp_path, stages=(False, False))


def test_class_token_rows_stay_when_the_grid_grows(tmp_path, log):
    source, target = transfer(vit('shared'), vit('shared', size=64), tmp_path)
    old, new = source.state_dict()[f'encoder.{SHARED}'], target.state_dict()[f'encoder.{SHARED}']
    assert (len(old), len(new)) == (7 * 7 + 3, 15 * 15 + 3)
    assert torch.equal(new[-3:], old[-3:])
    assert_same(new[15 * 15 // 2], old[7 * 7 // 2])  # the centre
    assert f'{TABLE} 52 -> 228 rows (1)' in log.text


# Sizes


def test_table_is_resized_from_window_6_to_7():
    key = f'layers.0.blocks.0.attn.{TABLE}'
    table, report = torch.arange(121.0).reshape(121, 1) / 121, Report()
    resized = _resize_tables({key: table}, {key: torch.zeros(169, 1)}, report)[key].flatten()
    expected = [5.42318e-7, 5.75358e-3, 1.18741e-2]
    np.testing.assert_allclose(resized[:3], expected, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(resized[[84, 168]], [0.49586776, 0.99173498], rtol=1e-6)
    assert report.resized == [key]


def test_swin_goes_to_a_larger_image_and_window(tmp_path, log):
    config = make_config('swin', 1, DATA__IMG_SIZE=48, MODEL__SWIN__WINDOW_SIZE=6)
    source, target = transfer(make_config('swin', 1), config, tmp_path)
    assert table_of(target, 0, 'encoder.layers.0.').shape == (121, 2)
    assert_same(
        table_of(target, 0, 'encoder.layers.0.')[60], table_of(source, 0, 'encoder.layers.0.')[24]
    )
    assert f'resized      3  {TABLE}' in log.text or f'{TABLE} 49 -> 121 rows (3)' in log.text


@pytest.mark.parametrize('class_rows', [0, 1])
def test_position_embeddings_keep_identity_and_constants(class_rows):
    embedding = torch.randn(1, class_rows + 36, 5)
    assert_same(
        resize_position_embedding(embedding, class_rows + 36, class_rows=class_rows), embedding
    )
    embedding[:, class_rows:] = torch.arange(5.0)
    resized = resize_position_embedding(embedding, class_rows + 81, class_rows=class_rows)
    assert torch.equal(resized[:, :class_rows], embedding[:, :class_rows])
    assert_same(resized[:, class_rows:], torch.arange(5.0).expand(1, 81, 5))


def test_position_embeddings_keep_rows_and_columns():
    columns = torch.arange(6.0).repeat(6).reshape(1, 36, 1)  # each row of the grid is 0 ... 5
    resized = resize_position_embedding(columns, 144, class_rows=0).reshape(12, 12)
    assert_same(resized, resized[:1].expand(12, 12))
    # Cubic convolution (a = -0.75) a quarter of a pixel beside columns 2 and 3.
    assert_same(resized[0, 5:7], torch.tensor([2.296875, 2.703125]))


@pytest.mark.parametrize(
    'kind, option, key',
    [
        ('swin', 'MODEL__SWIN__APE', 'absolute_pos_embed'),
        ('vit', 'MODEL__VIT__USE_APE', 'pos_embed'),
    ],
)
def test_position_embeddings_follow_the_image_size(kind, option, key, tmp_path, log):
    config = make_config(kind, 1, **{option: True})
    larger = make_config(kind, 1, DATA__IMG_SIZE=64, **{option: True})
    source, target = transfer(config, larger, tmp_path, stages=(True, False))
    old, new = source.state_dict()[f'encoder.{key}'], target.state_dict()[key]
    rows = int(kind == 'vit')
    assert new.shape[1] - rows == 4 * (old.shape[1] - rows)
    assert torch.equal(new[:, :rows], old[:, :rows])
    assert_same(new, resize_position_embedding(old, new.shape[1], class_rows=rows))
    assert f'{key} {old.shape[1]} -> {new.shape[1]} rows (1)' in log.text


def test_grid_that_is_not_square_is_refused():
    with pytest.raises(ValueError, match='must be square grids, got 35 positions for 16'):
        resize_position_embedding(torch.zeros(1, 36, 4), 17, class_rows=1)
