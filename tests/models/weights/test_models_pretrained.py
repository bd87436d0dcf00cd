"""Conversion of weights from other models, stages and numbers of channels."""

import re
from argparse import Namespace

import pytest
import torch
from golden_cases import fill
from tiny import ROOT
from transfers import (
    GREY,
    IMAGENET,
    LOGGER,
    TABLE,
    assert_same,
    grey_images,
    in_grey_levels,
    load,
    make_config,
    make_model,
    transfer,
)

from config import config_text
from models.weights.convert import resize_position_embedding
from utils import load_pretrained, read_checkpoint

SHARED = f'rel_pos_bias.{TABLE}'


def masks(model):
    return torch.from_numpy(fill.masks(6, 2, 32, 8, model.patch_size, 0.5))


# Channels


@pytest.mark.parametrize(
    'kind, head', [('swin', 'linear'), ('vit', 'mlp'), ('swin', 'inverse_swin_nano')]
)
@torch.no_grad()
def test_three_channels_fold_to_one_exactly(kind, head, tmp_path):
    options = {'MODEL__SIMMIM__HEAD': head}
    rgb, grey = transfer(make_config(kind, 3, **options), make_config(kind, 1, **options), tmp_path)
    x_rgb, x_grey, mask = grey_images(IMAGENET), grey_images(GREY), masks(grey)
    assert_same(grey.encoder(x_grey, mask), rgb.encoder(x_rgb, mask))
    assert_same(
        in_grey_levels(grey.reconstruct(x_grey, mask), GREY),
        in_grey_levels(rgb.reconstruct(x_rgb, mask), IMAGENET),
    )


@torch.no_grad()
def test_one_channel_spreads_to_three_exactly(tmp_path):
    grey, rgb = transfer(make_config('swin', 1), make_config('swin', 3), tmp_path)
    x_rgb, x_grey, mask = grey_images(IMAGENET), grey_images(GREY), masks(grey)
    assert_same(rgb.encoder(x_rgb, mask), grey.encoder(x_grey, mask))
    mean, std = (torch.tensor(values)[:, None, None] for values in IMAGENET)
    every_channel = rgb.reconstruct(x_rgb, mask) * std + mean
    expected = in_grey_levels(grey.reconstruct(x_grey, mask), GREY)
    assert_same(every_channel, expected[:, None].expand(-1, 3, -1, -1))


@torch.no_grad()
def test_classifier_folds_from_its_own_recorded_statistics(tmp_path):
    source_stats, target_stats = ([0.1, 0.3, 0.6], [0.5, 0.25, 0.125]), ([0.4], [0.2])
    rgb, grey = transfer(
        make_config('vit', 3, DATA__MEAN=source_stats[0], DATA__STD=source_stats[1]),
        make_config('vit', 1, DATA__MEAN=target_stats[0], DATA__STD=target_stats[1]),
        tmp_path,
        stages=(False, False),
        own=True,
    )
    assert_same(grey(grey_images(target_stats)), rgb(grey_images(source_stats)))


def test_channels_normalised_by_image_are_summed(tmp_path):
    by_image = make_config('swin', 1, DATA__NORMALIZE='image')
    rgb, grey = transfer(make_config('swin', 3), by_image, tmp_path, own=True)
    old, new = (model.encoder.patch_embed.proj for model in (rgb, grey))
    assert_same(new.weight, old.weight.sum(1, keepdim=True))
    assert_same(new.bias, old.bias)


# Stages and sources


@torch.no_grad()
def test_the_recipe_of_the_page_renames_the_entries_of_an_own_swin(tmp_path, monkeypatch):
    page = (ROOT / 'docs/howto/imagenet_weights.md').read_text(encoding='utf-8')
    (recipe,) = re.findall(r'^```python\n(.*?)^```', page, re.M | re.S)
    source = make_model(make_config('swin', 1), is_pretrain=False)
    own = {
        f'backbone.{key}'.replace('layers.', 'stages.').replace('attn.', 'self_attn.'): value
        for key, value in source.state_dict().items()
    }
    target = make_model(make_config('swin', 1), seed=2, is_pretrain=False)
    with pytest.raises(ValueError, match='PRETRAINED'):
        load(own, make_config('swin', 1), target, tmp_path)
    monkeypatch.chdir(tmp_path)
    torch.save(own, 'own.pth')
    exec(recipe, {})  # noqa: S102
    renamed = torch.load('renamed.pth', weights_only=True)['model']
    load(renamed, make_config('swin', 1), target, tmp_path)
    images = grey_images(GREY)
    assert_same(target.forward_features(images), source.forward_features(images))


# Errors


@pytest.mark.parametrize(
    'change, message',
    [
        ({'encoder.extra.weight': torch.ones(1)}, r'extra\.weight'),
        ({'encoder.norm.bias': torch.ones(5)}, r'norm\.bias'),
        ({'encoder.norm.weight': None}, r'norm\.weight'),
        ({f'encoder.layers.0.blocks.0.attn.{TABLE}': torch.tensor(1.0)}, TABLE),
    ],
)
def test_unknown_entries_stop_the_run(change, message, tmp_path):
    state = make_model(make_config('swin', 1)).state_dict() | change
    state = {key: value for key, value in state.items() if value is not None}
    model = make_model(make_config('swin', 1), seed=2)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r'PRETRAINED .*source\.pth.*' + message):
        load(state, make_config('swin', 1), model, tmp_path)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ('labels', 'loaded'), [(['Edema', 'Fracture'], True), (['Fracture', 'Edema'], False)]
)
def test_the_head_of_other_labels_is_not_used(labels, loaded, tmp_path, log):
    before, now = (
        make_config('swin', 1, MODEL__NUM_CLASSES=2, DATA__LABELS=names)
        for names in (['Edema', 'Fracture'], labels)
    )
    new = make_model(now, seed=2, is_pretrain=False).head.weight.clone()
    source, target = transfer(before, now, tmp_path, stages=(False, False), own=True)
    assert torch.equal(target.head.weight, source.head.weight if loaded else new)
    assert ('head of the checkpoint is not used' in log.text) == (not loaded)


# ViT's position tables


def vit(table, *, pool=False):
    return make_config(
        'vit',
        1,
        MODEL__VIT__USE_MEAN_POOLING=pool,
        MODEL__VIT__USE_SHARED_RPB=table in ('shared', 'both'),
        MODEL__VIT__USE_RPB=table in ('blocks', 'both'),
    )


def table_of(model, block, prefix=''):
    return model.state_dict()[f'{prefix}blocks.{block}.attn.{TABLE}']


def test_shared_table_is_put_into_every_block(tmp_path):
    source, target = transfer(
        vit('shared'), vit('blocks', pool=True), tmp_path, stages=(True, False)
    )
    for block in range(2):
        assert torch.equal(table_of(target, block), source.state_dict()[f'encoder.{SHARED}'])


def test_shared_and_block_tables_are_added_where_a_model_has_only_the_latter(tmp_path):
    source, target = transfer(vit('both'), vit('blocks'), tmp_path)
    state = source.state_dict()
    for block in range(2):
        expected = state[f'encoder.{SHARED}'] + table_of(source, block, 'encoder.')
        assert torch.equal(table_of(target, block, 'encoder.'), expected)


def test_block_tables_are_not_made_into_a_shared_one(tmp_path):
    with pytest.raises(ValueError, match=rf'blocks\.0\.attn\.{TABLE}'):
        transfer(vit('blocks'), vit('shared'), tmp_path)


def test_official_finetuned_vit_goes_into_pretraining_that_pools(tmp_path):
    source, target = transfer(
        vit('blocks', pool=True), vit('blocks', pool=True), tmp_path, stages=(False, True)
    )
    assert torch.equal(table_of(target, 1, 'encoder.'), table_of(source, 1))
    with pytest.raises(ValueError, match=r'fc_norm\.weight'):
        transfer(vit('blocks', pool=True), vit('blocks'), tmp_path, stages=(False, False))


# Sizes


def test_position_embeddings_keep_rows_and_columns():
    columns = torch.arange(6.0).repeat(6).reshape(1, 36, 1)  # each row of the grid is 0 ... 5
    resized = resize_position_embedding(columns, 144).reshape(12, 12)
    assert_same(resized, resized[:1].expand(12, 12))
    # Cubic convolution (a = -0.75) at a distance of a quarter of a pixel from columns 2 and 3.
    assert_same(resized[0, 5:7], torch.tensor([2.296875, 2.703125]))


@pytest.mark.parametrize(
    'kind, option, key',
    [
        ('swin', 'MODEL__SWIN__APE', 'absolute_pos_embed'),
        ('vit', 'MODEL__VIT__USE_APE', 'pos_embed'),
    ],
)
def test_position_embeddings_follow_the_image_size(kind, option, key, tmp_path):
    config = make_config(kind, 1, **{option: True})
    larger = make_config(kind, 1, DATA__IMG_SIZE=64, **{option: True})
    source, target = transfer(config, larger, tmp_path, stages=(True, False))
    old, new = source.state_dict()[f'encoder.{key}'], target.state_dict()[key]
    rows = int(kind == 'vit')
    assert new.shape[1] - rows == 4 * (old.shape[1] - rows)
    assert torch.equal(new[:, :rows], old[:, :rows])
    assert_same(new, resize_position_embedding(old, new.shape[1]))


# Files of other projects


def wrapped(state, wrapper):
    """A file of another project: keys around the weights, or names before theirs."""
    for name in reversed(wrapper.split()):
        if name.endswith('.'):
            state = {f'{name}{key}': value for key, value in state.items()}
        else:
            state = {name: state, 'epoch': 3, 'optimizer': {'state': {0: {'step': torch.ones(1)}}}}
    return state


WRAPPERS = [
    *('state_dict module.', 'teacher', 'checkpoint state_dict model.backbone.'),
    *('model module.encoder.', 'state_dict model.encoder.module.', '_orig_mod.'),
]


@pytest.mark.parametrize('wrapper', WRAPPERS)
@pytest.mark.parametrize('kind', ['swin', 'vit'])
def test_the_encoder_of_another_project_is_found_by_its_names(kind, wrapper, tmp_path, log):
    state = two_encoders(kind)[0]
    others = {'projector.0.weight': torch.ones(2), 'omni_heads.0.weight': torch.ones(2, 2)}
    torch.save(wrapped(state | others, wrapper), tmp_path / 'other.pth')
    assert_starts_from(tmp_path / 'other.pth', '', state, kind)
    assert 'assumed' in log.text


@pytest.mark.parametrize(
    ('wrapper', 'message'),
    [
        ({'student': '', 'teacher': ''}, r'keys; there are student, teacher: .*x\.pth::student$'),
        ({'state_dict': 'student.', 'state_dict_ema': ''}, r'state_dict, state_dict_ema'),
        ({'epoch': None}, r"no weights under the key 'model'; there are epoch"),
    ],
)
def test_a_file_with_several_models_or_none_names_its_keys(wrapper, message, tmp_path):
    state = two_encoders()[0]
    saved = {name: 3 if start is None else wrapped(state, start) for name, start in wrapper.items()}
    torch.save(saved, tmp_path / 'x.pth')
    with pytest.raises(ValueError, match=message):
        read_checkpoint(tmp_path / 'x.pth')


def assert_starts_from(file, address, wanted, kind='vit'):
    """The encoder that a file has for an address has these weights, apart from the head."""
    config = make_config(kind, 1)
    config.PRETRAINED = f'{file}{address}'
    model = make_model(config, seed=9, is_pretrain=False)
    load_pretrained(config, model, LOGGER)
    for key, value in model.state_dict().items():
        assert key.startswith('head.') or torch.equal(value, wanted[key]), key


def two_encoders(kind='vit'):
    config = make_config(kind, 1)
    return [make_model(config, seed=n, is_pretrain=False).state_dict() for n in (1, 2)]


@pytest.mark.parametrize(
    ('address', 'seed'),
    [
        ('::state_dict_ema', 2),
        ('::state_dict', 1),
        ('::nested.inner', 1),
        ('::nested.inner.module', 1),
        ('::module', 1),  # the beginning of names
    ],
)
@pytest.mark.parametrize('kind', ['swin', 'vit'])
def test_a_key_in_the_address_chooses_the_weights(kind, address, seed, tmp_path):
    """The file is one of timm's CheckpointSaver, whose `args` are an argparse.Namespace."""
    first, second = two_encoders(kind)
    checkpoint = {'state_dict_ema': second, 'state_dict': first, 'args': Namespace(model='x')}
    if 'nested' in address:
        checkpoint = {'nested': {'inner': wrapped(first, 'module.')}, 'other': second}
    elif address == '::module':
        checkpoint = {'module.' + key: value for key, value in first.items()} | second
    torch.save(checkpoint, tmp_path / 'x.pth')
    assert_starts_from(tmp_path / 'x.pth', address, (first, second)[seed - 1], kind)


def test_one_of_two_encoders_in_a_state_dict_is_chosen_by_the_beginning_of_its_names(tmp_path):
    """As in files of MoCo v3 and DINO; the message without a key names both."""
    first, second = two_encoders()
    names = ('module.base_encoder.', 'module.momentum_encoder.')
    both = wrapped(first, names[0]) | wrapped(second, names[1])
    file = tmp_path / 'x.pth'
    torch.save({'epoch': 1, 'arch': 'vit', 'state_dict': both}, file)
    assert_starts_from(file, '::module.base_encoder', first)
    assert_starts_from(file, '::base_encoder', first)
    assert_starts_from(file, '::state_dict.module.momentum_encoder', second)
    for address, message in (
        ('', r'base_encoder.*momentum_encoder.*FILE::base_encoder'),
        ('::teacher', r"no weights under 'teacher'; there are state_dict, base_"),
    ):
        with pytest.raises(ValueError, match=message):
            assert_starts_from(file, address, {})


def test_a_key_keeps_the_options_of_a_checkpoint_of_this_project(tmp_path, log):
    """Otherwise another normalisation would be assumed."""
    config = make_config('vit', 1)
    first, second = two_encoders()
    state = wrapped(first, 'encoder.') | wrapped(second, 'momentum_encoder.')
    checkpoint = {'model': state, 'config': config_text(config)}
    torch.save(checkpoint, tmp_path / 'x.pth')
    assert_starts_from(tmp_path / 'x.pth', '::momentum_encoder', second)
    assert 'assumed' not in log.text


@pytest.mark.parametrize('kind', ['swin', 'vit'])
def test_names_of_wrappers_are_removed_wherever_they_stand(kind, tmp_path):
    state = two_encoders(kind)[0]
    others = {
        re.sub(r'blocks\.(\d+)\.', r'blocks.\1._fsdp_wrapped_module._orig_mod.', key): value
        for key, value in state.items()
    }
    others = wrapped(others, 'backbone._checkpoint_wrapped_module.')
    # A wrapper may have entries of its own, such as the counter of an average.
    others = wrapped(others, 'module._orig_mod.') | {'n_averaged': torch.tensor(3)}
    torch.save(others, tmp_path / 'x.pth')
    assert_starts_from(tmp_path / 'x.pth', '', state, kind)


def test_two_entries_that_differ_by_a_wrapper_are_not_mixed(tmp_path):
    state = two_encoders()[0]
    torch.save(state | {'blocks.0.module.norm1.weight': torch.ones(32)}, tmp_path / 'x.pth')
    with pytest.raises(ValueError, match=r'both blocks\.0\.norm1\.weight and blocks\.0\.module'):
        assert_starts_from(tmp_path / 'x.pth', '', state)


@pytest.mark.parametrize('stated', [[0.5056, 0.252], [0.5056] * 3 + [0.252] * 3])
def test_the_statistics_of_a_foreign_file_can_be_stated(stated, tmp_path, log):
    source = make_model(make_config('vit', 3), is_pretrain=False)
    target = make_model(make_config('vit', 1), seed=2, is_pretrain=False)
    own = make_config('vit', 1, PRETRAINED_STATISTICS=stated)
    load(source.state_dict(), own, target, tmp_path)
    wanted = source.forward_features(grey_images(([0.5056] * 3, [0.252] * 3)))
    assert_same(target.forward_features(grey_images(GREY)), wanted)
    assert 'assumed' not in log.text
    wrong = make_config('vit', 1, PRETRAINED_STATISTICS=[0.5])
    ours = {'config': config_text(make_config('vit', 3))}  # our files state theirs
    for config, more in ((wrong, {}), (own, ours)):
        with pytest.raises(ValueError, match='PRETRAINED_STATISTICS'):
            load(source.state_dict(), config, target, tmp_path, **more)
