"""Options: defaults, merging, flags, and what is rejected with which words."""

import argparse
import re
from functools import reduce
from pathlib import Path

import pytest
import yaml

from config import (
    CHECKPOINT_GLOBALS,
    FLAG_KEYS,
    build_parser,
    config_text,
    default_config,
    encoder_node,
    get_config,
)

STAGES = ('simmim', 'finetune')


def write(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


@pytest.fixture
def cfg(tmp_path) -> str:
    """A config file that changes nothing."""
    return write(tmp_path, 'run.yaml', 'TAG: default\n')


def load(cfg: str, *words: str, stage: str = 'simmim'):
    return get_config(build_parser(stage).parse_args(['--cfg', cfg, *words]))


def changed(*pairs):
    config = default_config()
    config.merge_from_list(list(pairs))
    return config


# Defaults and comments


def test_only_two_defaults_of_simmim_are_others() -> None:
    config = default_config()
    assert (config.AMP_OPT_LEVEL, config.OUTPUT) == ('O1', 'output')
    assert config.BASE == ['']
    assert config.TRAIN.OPTIMIZER.BETAS == (0.9, 0.999)


def test_every_key_has_its_comment_and_keys_beyond_simmims_say_so() -> None:
    root = Path(__file__).parents[1]
    lines = [line for path in root.glob('config*.py') for line in path.read_text().splitlines()]
    golden = root / 'tests' / 'golden' / 'configs' / 'configs_base_opts_flags.json'
    simmim = set(yaml.safe_load(golden.read_text()))
    simmim, seen = simmim | {'BASE', 'AMP_OPT_LEVEL', 'OUTPUT'}, set()
    for above, line in zip(lines, lines[1:], strict=False):
        match = re.match(r'(?:_C\.|(?=\w+\.))([A-Z_.]+) = (?!CN\(\)$|[A-Z]+$)', line)
        if match:
            seen.add(match[1])
            assert above.startswith('# '), f'{match[1]} has no comment'
            if match[1] != 'DATA.DATASET':
                assert ('[CheXpert]' in above) == (match[1] not in simmim), match[1]
    assert simmim < seen
    assert all(reduce(getattr, key.split('.'), default_config()) is not ... for key in seen)


def test_each_default_config_is_a_copy() -> None:
    default_config().DATA.IMG_SIZE = 1
    default_config().DATA.UNCERTAIN_BY_LABEL['Edema'] = 'zeros'
    assert default_config().DATA.IMG_SIZE == 224
    assert default_config().DATA.UNCERTAIN_BY_LABEL == {}


def test_encoder_node_follows_the_type() -> None:
    assert encoder_node(changed('MODEL.TYPE', 'swin')).WINDOW_SIZE == 7
    assert encoder_node(changed('MODEL.TYPE', 'vit')).DEPTH == 12
    with pytest.raises(ValueError, match=r"MODEL.TYPE must be one of .*'swin', 'vit'.*'resnet'"):
        encoder_node(changed('MODEL.TYPE', 'resnet'))


def test_checkpoint_globals_are_what_simmims_and_maes_checkpoints_hold() -> None:
    assert [(c.__module__, c.__name__) for c in CHECKPOINT_GLOBALS] == [
        ('yacs.config', 'CfgNode'),
        ('argparse', 'Namespace'),
    ]


# Order of merging


def test_each_level_wins_over_the_one_before(tmp_path) -> None:
    keys = 'EPOCHS WARMUP_EPOCHS ACCUMULATION_STEPS SAVE_EVERY_STEPS'.split()
    write(tmp_path, 'base.yaml', 'TRAIN: {' + ', '.join(f'{key}: 11' for key in keys) + '}')
    cfg = write(
        tmp_path,
        'run.yaml',
        'BASE: [base.yaml]\nTRAIN: {EPOCHS: 12, ACCUMULATION_STEPS: 12, SAVE_EVERY_STEPS: 12}',
    )
    opts = ['--opts', 'TRAIN.SAVE_EVERY_STEPS', '13', 'TRAIN.ACCUMULATION_STEPS', '13']
    train = load(cfg, *opts, '--accumulation-steps', '14').TRAIN
    assert [train[key] for key in keys] == [12, 11, 14, 13]
    assert train.BASE_LR == 5e-4


def test_base_chains_are_relative_to_each_file_and_later_entries_win(tmp_path) -> None:
    write(tmp_path, 'base/first.yaml', 'BASE: [deeper/root.yaml]\nSEED: 1\nTAG: first')
    write(tmp_path, 'base/deeper/root.yaml', 'SEED: 9\nPRINT_FREQ: 9')
    write(tmp_path, 'base/second.yaml', 'BASE: [deeper/root.yaml]\nTAG: second')
    cfg = write(tmp_path, 'run/x.yaml', 'BASE: [../base/first.yaml, "", ../base/second.yaml]')
    config = load(cfg)
    assert (config.SEED, config.TAG, config.PRINT_FREQ) == (9, 'second', 9)
    assert config.BASE == ['../base/first.yaml', '', '../base/second.yaml']


def test_opts_may_be_given_twice(cfg) -> None:
    config = load(cfg, '--opts', 'SEED', '3', '--tag', 't', '--opts', 'PRINT_FREQ', '4')
    assert (config.SEED, config.TAG, config.PRINT_FREQ) == (3, 't', 4)


def test_a_plain_namespace_with_less_than_all_flags_will_do(cfg) -> None:
    assert get_config(argparse.Namespace(cfg=cfg)).DATA.BATCH_SIZE == 128
    args = argparse.Namespace(cfg=cfg, opts=None, batch_size=3, tag=None)
    assert get_config(args).DATA.BATCH_SIZE == 3


def test_the_config_is_frozen(cfg) -> None:
    config = load(cfg)
    for node in (config, config.DATA, config.DATA.UNCERTAIN_BY_LABEL, config.MODEL.SWIN):
        with pytest.raises(AttributeError, match='immutable'):
            node.TAG = 'x'
    with pytest.raises(AttributeError, match='immutable'):
        config.merge_from_list(['SEED', 1])


# Values and types


@pytest.mark.parametrize(
    'key, text, want',
    [
        ('TRAIN.BASE_LR', '1e-4', 1e-4),
        ('TRAIN.BASE_LR', '1.5E-4', 1.5e-4),
        ('TRAIN.CLIP_GRAD', '5', 5.0),
        ('AUG.MIXUP', '0', 0.0),
        ('MODEL.SWIN.MLP_RATIO', '4', 4.0),
        ('MODEL.VIT.MLP_RATIO', '3.5', 3.5),
        ('MODEL.VIT.MLP_RATIO', '4', 4.0),
        ('MODEL.VIT.INIT_VALUES', 'None', None),
        ('MODEL.SWIN.QK_SCALE', '1', 1.0),
        ('MODEL.SWIN.DEPTHS', '[1, 1, 2, 1]', [1, 1, 2, 1]),
        ('MODEL.SWIN.DEPTHS', '(1, 1, 2, 1)', [1, 1, 2, 1]),
        ('TRAIN.OPTIMIZER.BETAS', '[0.9, 0.95]', (0.9, 0.95)),
        ('TEST.CROP', 'False', False),
        ('DATA.UNCERTAIN_BY_LABEL', "{'Pleural Effusion': 'zeros'}", {'Pleural Effusion': 'zeros'}),
    ],
)
def test_a_value_is_read_the_same_from_opts_and_from_yaml(tmp_path, cfg, key, text, want) -> None:
    nested = f'{{{key.replace(".", ": {")}: {text}{"}" * key.count(".")}}}'
    written = write(tmp_path, 'value.yaml', nested.replace('(', '[').replace(')', ']'))
    for config in (load(cfg, '--opts', key, text), load(written)):
        got = reduce(getattr, key.split('.'), config)
        assert got == want
        assert type(got) is type(want) or isinstance(want, dict)


def test_text_in_yaml_stays_text_and_a_flag_too(tmp_path, cfg) -> None:
    assert load(write(tmp_path, 'text.yaml', "TAG: '7'\nOUTPUT: 'None'")).TAG == '7'
    assert load(cfg, '--tag', '7', '--data-path', '2024').TAG == '7'
    assert load(cfg, '--opts', 'TAG', "'7'").TAG == '7'


@pytest.mark.parametrize(
    'key, text, message',
    [
        ('TAG', '7', r'TAG in {} must be text, got 7 \(int\)'),
        ('TRAIN.EPOCHS', 'many', r"TRAIN.EPOCHS in {} must be an integer, got 'many' \(str\)"),
        ('TRAIN.EPOCHS', '10.5', r'TRAIN.EPOCHS in {} must be an integer, got 10.5 \(float\)'),
        ('TRAIN.EPOCHS', 'True', r'TRAIN.EPOCHS in {} must be an integer, got True \(bool\)'),
        ('TRAIN.BASE_LR', 'True', r'TRAIN.BASE_LR in {} must be a finite number, got True'),
        ('TRAIN.BASE_LR', '1e999', r'TRAIN.BASE_LR in {} must be a finite number, got inf'),
        ('TEST.CROP', '1', r'TEST.CROP in {} must be True or False, got 1 \(int\)'),
        ('MODEL.SWIN.DEPTHS', '2', r'MODEL.SWIN.DEPTHS in {} must be a list, got 2'),
        ('MODEL.SWIN.QK_SCALE', 'x', r"QK_SCALE in {} must be a finite number or None, got 'x'"),
        ('DATA.IMG_SIZE', 'None', r'DATA.IMG_SIZE in {} must be an integer, got None'),
        ('DATA', '7', r'DATA in {} is a section of keys, got 7'),
        ('DATA.UNCERTAIN_BY_LABEL', 'zeros', r'must be a mapping of text to text, got .zeros'),
        ('DATA.UNCERTAIN_BY_LABEL', '{"Edema": 1}', r'must be a mapping of text to text'),
    ],
)
def test_a_wrong_type_is_named(tmp_path, cfg, key, text, message) -> None:
    nested = f'{{{key.replace(".", ": {")}: {text}{"}" * key.count(".")}}}'
    written = write(tmp_path, 'value.yaml', nested)
    with pytest.raises(ValueError, match=message.format('--opts')):
        load(cfg, '--opts', key, text)
    with pytest.raises(ValueError, match=message.format(re.escape(written))):
        load(written)


def test_the_way_to_write_a_number_as_text_is_told(tmp_path, cfg) -> None:
    with pytest.raises(ValueError, match='; as text it is "\'7\'"$'):
        load(cfg, '--opts', 'TAG', '7')
    with pytest.raises(ValueError, match="; as text it is '7'$"):
        load(write(tmp_path, 'value.yaml', 'TAG: 7'))


def test_an_unknown_key_is_named_with_its_file_and_its_likes(tmp_path, cfg) -> None:
    written = write(tmp_path, 'typo.yaml', 'TRAIN: {EPOCH: 3}')
    with pytest.raises(ValueError, match=rf'TRAIN.EPOCH in {written}; did you mean TRAIN.EPOCHS'):
        load(written)
    with pytest.raises(ValueError, match='IMG_SIZE in --opts; did you mean DATA.IMG_SIZE'):
        load(cfg, '--opts', 'IMG_SIZE', '192')
    for key in ('NOTHING.LIKE_IT', 'DATA.IMG_SIZE.X', 'DATA.UNCERTAIN_BY_LABEL.Edema', 'data.x'):
        with pytest.raises(ValueError, match=f'unknown key {key} in --opts'):
            load(cfg, '--opts', key, '1')


def test_opts_without_a_value_are_refused(cfg) -> None:
    with pytest.raises(ValueError, match=r'--opts takes pairs of KEY VALUE, got 3 words.*SEED'):
        load(cfg, '--opts', 'TAG', 'x', 'SEED')


# Files


@pytest.mark.parametrize(
    'text, message',
    [
        ('', 'is empty'),
        ('# nothing\n', 'is empty'),
        ('- 1\n', r'must be a mapping of keys to values, got \[1\]'),
        ('just words\n', "must be a mapping of keys to values, got 'just words'"),
        ('TAG: !!python/object/apply:os.getcwd []\n', 'cannot be read as plain YAML'),
        ('TAG: [\n', 'cannot be read as plain YAML'),
        ('BASE: base.yaml\n', "BASE in .* must be a list of paths .*, got 'base.yaml'"),
        ('BASE: [1]\n', r'BASE in .* must be a list of paths .*, got \[1\]'),
        ('BASE: [gone.yaml]\n', 'there is no config file .*gone.yaml, which BASE in .*run.yaml'),
        ('7: 1\n', 'unknown key 7 in .*run.yaml'),
    ],
)
def test_a_file_that_is_no_config_is_refused(tmp_path, text, message) -> None:
    path = write(tmp_path, 'run.yaml', text)
    with pytest.raises(ValueError, match=message) as error:
        load(path)
    assert path in str(error.value)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ValueError, match='there is no config file nowhere/x.yaml'):
        load('nowhere/x.yaml')


def test_a_loop_of_base_is_named(tmp_path) -> None:
    first = write(tmp_path, 'a.yaml', 'BASE: [b.yaml]')
    second = write(tmp_path, 'b.yaml', 'BASE: [c/../a.yaml]')
    (tmp_path / 'c').mkdir()
    with pytest.raises(ValueError, match=f'BASE goes in a loop: {first} -> {second} -> .*a.yaml'):
        load(first)


# Flags


def test_flags_default_to_none_so_that_yaml_and_opts_count(tmp_path) -> None:
    cfg = write(tmp_path, 'run.yaml', 'AMP_OPT_LEVEL: O0\nOUTPUT: here\nTAG: mine')
    for stage in STAGES:
        args = build_parser(stage).parse_args(['--cfg', cfg])
        assert args.stage == stage
        assert all(getattr(args, flag) is None for flag in FLAG_KEYS)
    config = load(cfg)
    assert (config.AMP_OPT_LEVEL, config.OUTPUT, config.TAG) == ('O0', 'here', 'mine')


FLAGS = [
    ('--batch-size', '3', 'DATA.BATCH_SIZE', 3),
    ('--data-path', 'd', 'DATA.DATA_PATH', 'd'),
    ('--pretrained', 'p', 'PRETRAINED', 'p'),
    ('--resume', 'r', 'MODEL.RESUME', 'r'),
    ('--accumulation-steps', '2', 'TRAIN.ACCUMULATION_STEPS', 2),
    ('--use-checkpoint', None, 'TRAIN.USE_CHECKPOINT', True),
    ('--amp-opt-level', 'O2', 'AMP_OPT_LEVEL', 'O2'),
    ('--output', 'o', 'OUTPUT', 'o'),
    ('--tag', 't', 'TAG', 't'),
    ('--eval', None, 'EVAL_MODE', True),
    ('--throughput', None, 'THROUGHPUT_MODE', True),
    ('--check', None, 'CHECK_MODE', True),
]


@pytest.mark.parametrize('stage', STAGES)
@pytest.mark.parametrize('flag, word, key, want', FLAGS)
def test_each_flag_sets_its_key_over_opts(cfg, stage, flag, word, key, want) -> None:
    default = reduce(getattr, key.split('.'), default_config())
    words = ['--cfg', cfg, '--opts', key, repr(default), flag, *([] if word is None else [word])]
    args = build_parser(stage).parse_args(words)
    args.stage = None
    config = get_config(args)
    assert reduce(getattr, key.split('.'), config) == want != default


def test_the_table_of_flags_is_complete() -> None:
    assert {flag[2:].replace('-', '_') for flag, *_ in FLAGS} == set(FLAG_KEYS)


def test_flags_that_are_not_true_count_too(tmp_path) -> None:
    cfg = write(tmp_path, 'run.yaml', 'TAG: x\nTRAIN: {ACCUMULATION_STEPS: 4}')
    config = load(cfg, '--accumulation-steps', '0', '--tag', '')
    assert (config.TRAIN.ACCUMULATION_STEPS, config.TAG) == (0, '')
    with pytest.raises(ValueError, match='DATA.BATCH_SIZE must be a number in .1, inf., got 0'):
        load(cfg, '--batch-size', '0')


@pytest.mark.parametrize('stage', STAGES)
def test_launchers_rank_is_accepted_and_ignored(cfg, stage) -> None:
    for words in (['--local_rank', '3'], ['--local-rank=3'], ['--local_rank=3']):
        args = build_parser(stage).parse_args(['--cfg', cfg, *words])
        args.stage = None
        get_config(args)


@pytest.mark.parametrize('stage', STAGES)
def test_help_lists_every_flag(stage, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        build_parser(stage).parse_args(['--help'])
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    assert all(flag in shown for flag, *_ in FLAGS)
    assert '--cfg' in shown and '--opts' in shown


@pytest.mark.parametrize('words', [['--batch', '3'], ['--amp-opt-level', 'O3'], ['--nonsense']])
def test_shortened_or_unknown_flags_are_refused(cfg, words) -> None:
    with pytest.raises(SystemExit):
        build_parser('simmim').parse_args(['--cfg', cfg, *words])


def test_a_config_file_is_required() -> None:
    with pytest.raises(SystemExit):
        build_parser('finetune').parse_args([])


# The dump


def test_the_dump_repeats_the_run(tmp_path) -> None:
    write(tmp_path, 'base.yaml', 'DATA: {UNCERTAIN_BY_LABEL: {Edema: zeros, Fracture: ignore}}')
    cfg = write(tmp_path, 'run.yaml', 'BASE: [base.yaml]\nTRAIN: {BASE_LR: 1e-4, MIN_LR: 1e-7}')
    opts = ['TRAIN.OPTIMIZER.BETAS', '(0.9, 0.95)', 'MODEL.VIT.INIT_VALUES', 'None']
    first = load(
        cfg,
        '--opts',
        *opts,
        'DATA.MEAN',
        '[1e-3, 0.5, 1]',
        'DATA.STD',
        '[1, 1, 1]',
        '--tag',
        '7',
        '--output',
        'null',
        '--batch-size',
        '64',
    )
    dumped = write(tmp_path, 'elsewhere/config.yaml', config_text(first))
    again = load(dumped)
    assert again.TRAIN.BASE_LR == 1e-4 and again.TAG == '7' and again.OUTPUT == 'null'
    assert again.DATA.UNCERTAIN_BY_LABEL == {'Edema': 'zeros', 'Fracture': 'ignore'}
    assert {**again, 'BASE': 0} == {**first, 'BASE': 0}
    assert again.BASE == ['']
    assert config_text(again) == config_text(first)
    assert first.is_frozen() and first.BASE == ['base.yaml']


def test_the_dump_holds_what_was_asked_for(cfg) -> None:
    config = load(cfg, '--batch-size', '256', '--output', 'o', '--tag', 't')
    dumped = yaml.safe_load(config_text(config))
    assert dumped['TRAIN']['BASE_LR'] == 5e-4
    assert dumped['OUTPUT'] == 'o' and dumped['MODEL']['NUM_CLASSES'] == 1000
    assert list(dumped['DATA'])[:2] == ['BATCH_SIZE', 'DATA_PATH']


def test_later_exceptions_by_label_take_the_place_of_earlier_ones(tmp_path) -> None:
    write(tmp_path, 'base.yaml', 'DATA: {UNCERTAIN_BY_LABEL: {Edema: zeros}}')
    cfg = write(
        tmp_path, 'x.yaml', 'BASE: [base.yaml]\nDATA: {UNCERTAIN_BY_LABEL: {Fracture: ones}}'
    )
    assert load(cfg).DATA.UNCERTAIN_BY_LABEL == {'Fracture': 'ones'}
    assert load(cfg, '--opts', 'DATA.UNCERTAIN_BY_LABEL', '{}').DATA.UNCERTAIN_BY_LABEL == {}


def test_the_flags_stage_decides_which_checks_run(cfg) -> None:
    assert load(cfg, stage='simmim').DATA.DATASET == 'imagenet'
    with pytest.raises(ValueError, match='DATA.DATASET'):
        load(cfg, stage='finetune')
