"""Options and flags that cannot be: exit code 2, one clear line, no folder."""

import pytest
from mistakes import STAGES, config_of
from tiny import VIT, arguments

OPTIONS = {
    'unknown': ('DATA.BATCHSIZE 4', 'unknown key DATA.BATCHSIZE in ', 'mean DATA.BATCH_SIZE'),
    'unknown section': ('DATTA.IMG_SIZE 4', 'unknown key DATTA'),
    'text for integer': (
        'DATA.BATCH_SIZE four', 'DATA.BATCH_SIZE in ', "must be an integer, got 'four' (str)"),
    'fraction for integer': ('TRAIN.EPOCHS 1.5', 'TRAIN.EPOCHS in ', 'an integer, got 1.5'),
    'text for number': ('TRAIN.BASE_LR fast', 'TRAIN.BASE_LR in ', "a finite number, got 'fast'"),
    'infinite': ('TRAIN.BASE_LR 1e999', 'TRAIN.BASE_LR in ', 'a finite number, got inf'),
    'number for switch': ('TRAIN.AUTO_RESUME 1', 'TRAIN.AUTO_RESUME in ', 'True or False, got 1'),
    'number for list': ('MODEL.SWIN.DEPTHS 2', 'MODEL.SWIN.DEPTHS in ', 'a list, got 2'),
    'number for text': ('TAG 3', 'TAG in ', 'must be text, got 3 (int)'),
    'value for section': ('DATA 3', 'DATA in ', 'is a section of keys, got 3'),
    'choice': ('DATA.UNCERTAIN maybe', 'DATA.UNCERTAIN', "'zeros', 'ones', 'ignore'", "'maybe'"),
    'negative': ('DATA.BATCH_SIZE -1', 'DATA.BATCH_SIZE', '[1, inf)', 'got -1'),
    'window': (
        'MODEL.SWIN.WINDOW_SIZE 5', 'MODEL.SWIN.WINDOW_SIZE must be one of [1, 2, 4, 8]', 'got 5'),
    'odd stage': ('DATA.IMG_SIZE 30', 'DATA.IMG_SIZE must be a multiple of 4', 'got 30'),
    'heads': ('MODEL.SWIN.NUM_HEADS [3,2]', 'MODEL.SWIN.NUM_HEADS', 'divisors', 'got [3, 2]'),
    'stages': ('MODEL.SWIN.NUM_HEADS [1]', 'MODEL.SWIN.NUM_HEADS', 'DEPTHS, 2, got [1]'),
}  # fmt: skip
MASKS = {
    'mask and image': (
        'DATA.MASK_PATCH_SIZE 12', 'DATA.MASK_PATCH_SIZE', 'divisor of DATA.IMG_SIZE, 32', '12'),
    'mask and patch': ('DATA.MASK_PATCH_SIZE 1', 'multiple of MODEL.SWIN.PATCH_SIZE, 2', 'got 1'),
    'mask above image': ('DATA.MASK_PATCH_SIZE 64', 'DATA.MASK_PATCH_SIZE', 'got 64'),
    'nothing hidden': ('DATA.MASK_RATIO 0.0', 'DATA.MASK_RATIO', '(0, 1)', 'got 0.0'),
    'all hidden': ('DATA.MASK_RATIO 0.99', 'DATA.MASK_RATIO', '1 to 15 of the 16 units', '0.99'),
}  # fmt: skip
VALUES = [(stage, kind) for stage in STAGES for kind in OPTIONS] + [('simmim', m) for m in MASKS]


@pytest.mark.parametrize(('stage', 'kind'), VALUES)
def test_an_option_that_cannot_be(stage, kind, eight, tmp_path, refused):
    pair, *parts = (OPTIONS | MASKS)[kind]
    argv = arguments(config_of(tmp_path, stage), eight, tmp_path / 'out')
    refused(stage, [*argv, '--opts', *pair.split()], *parts)
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('kind', OPTIONS)
def test_an_option_in_a_yaml_file_that_cannot_be(kind, eight, tmp_path, refused):
    pair, *parts = OPTIONS[kind]
    key, value = pair.split()
    cfg, text = tmp_path / 'own.yaml', value
    for name in reversed(key.split('.')):
        text = f'{{{name}: {text}}}'
    base = config_of(tmp_path, 'simmim').name
    cfg.write_text(f'{{BASE: [{base}], {text[1:]}\n')
    source = [cfg] if parts[0].endswith(' in ') else []
    refused('simmim', arguments(cfg, eight, tmp_path / 'out'), *parts, *source)
    assert not (tmp_path / 'out').exists()


FLAGS = {
    'text': (['--batch-size', 'four'], '--batch-size', "'four'"),
    'choice': (['--amp-opt-level', 'O9'], '--amp-opt-level', 'O9', 'O0', 'O2'),
    'unknown': (['--batchsize', '4'], '--batchsize'),
    'half a pair': (['--opts', 'TAG'], 'pairs of KEY VALUE', 'TAG'),
}


@pytest.mark.parametrize('kind', FLAGS)
def test_a_flag_that_cannot_be(kind, eight, tmp_path, refused):
    more, *parts = FLAGS[kind]
    argv = arguments(config_of(tmp_path, 'simmim'), eight, tmp_path / 'out')
    refused('simmim', argv + more, *parts)
    assert not (tmp_path / 'out').exists()


def test_vit_sizes(eight, tmp_path, refused):
    argv = arguments(config_of(tmp_path, 'simmim', VIT), eight, tmp_path / 'out', '--opts')
    size = 'DATA.IMG_SIZE must be a multiple of MODEL.VIT.PATCH_SIZE, 8, got 36'
    refused('simmim', [*argv, 'DATA.IMG_SIZE', '36'], size)
    heads = 'MODEL.VIT.NUM_HEADS must be a divisor of MODEL.VIT.EMBED_DIM, 16, got 3'
    refused('simmim', [*argv, 'MODEL.VIT.NUM_HEADS', '3'], heads)
    assert not (tmp_path / 'out').exists()


def test_no_config_file(eight, tmp_path, refused):
    argv = arguments(tmp_path / 'none.yaml', eight, tmp_path / 'out')
    refused('simmim', argv, f'no config file {tmp_path / "none.yaml"}')


def test_fine_tuning_on_a_folder_without_labels(eight, tmp_path, refused):
    cfg = config_of(tmp_path, 'finetune', DATASET='folder')
    parts = ("DATA.DATASET must be 'chexpert'", "got 'folder'")
    refused('finetune', arguments(cfg, eight, tmp_path / 'out'), *parts)
    assert not (tmp_path / 'out').exists()
