"""Options: defaults, sources and their precedence, checks, and the config as text."""

import argparse
import re
from functools import reduce
from pathlib import Path

import pytest

from config import (
    _C,
    EFFECTS,
    FLAG_KEYS,
    OPTIONS,
    STAGES,
    build_parser,
    check_config,
    config_changes,
    config_from_text,
    config_text,
    default_config,
    flat_options,
    get_config,
    load_yaml,
    value_at,
)
from data.tables.splits import selecting_split

LABELS = [
    *('DATA.DATASET', 'chexpert', 'MODEL.NUM_CLASSES', 14, 'MODEL.LABEL_SMOOTHING', 0),
    *('AUG.AUTO_AUGMENT', 'none', 'AUG.MIXUP', 0, 'AUG.CUTMIX', 0),
]  # fmt: skip


def write(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    'wrong, similar',
    [
        ('configs/swin_nano__demo', 'configs/swin_nano__demo/simmim_'),
        ('simmim_pretrain__vit_tiny.yaml', 'configs/vit_tiny__chexpert_20ep/simmim_pretrain__'),
    ],
)
def test_a_config_that_does_not_exist_lists_shipped_ones_that_resemble_it(wrong, similar) -> None:
    for load_it in (load, default_config().merge_from_file):  # the second as the tools do
        with pytest.raises(ValueError, match=f'{wrong}.* {similar}'):
            load_it(wrong)


@pytest.mark.parametrize('stage', STAGES)
def test_the_example_in_the_help_of_a_main_is_accepted(stage) -> None:
    parser = build_parser(stage)
    words = re.search('Example: (.*--check)', parser.format_help(), re.DOTALL)[1].split()
    assert get_config(parser.parse_args(words)).TAG == 'first'


@pytest.fixture
def cfg(tmp_path) -> str:
    """A config file that changes nothing."""
    return write(tmp_path, 'run.yaml', 'TAG: default\n')


def load(cfg: str, *words: str, stage: str | None = 'simmim'):
    args = build_parser('simmim').parse_args(['--cfg', cfg, *words])
    args.stage = stage
    return get_config(args)


def changed(*pairs):
    config = default_config()
    config.merge_from_list(list(pairs))
    return config


def chexpert(*pairs):
    """Options that fine-tuning accepts, with changes."""
    return changed(*LABELS, *pairs)


def test_each_source_overrides_the_ones_before(tmp_path) -> None:
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


def test_base_files_are_relative_to_each_file_and_later_ones_win(tmp_path) -> None:
    write(tmp_path, 'base/first.yaml', 'BASE: [deeper/root.yaml]\nSEED: 1\nTAG: first')
    write(tmp_path, 'base/deeper/root.yaml', 'SEED: 9\nPRINT_FREQ: 9')
    write(tmp_path, 'base/second.yaml', 'BASE: [deeper/root.yaml]\nTAG: second')
    cfg = write(tmp_path, 'run/x.yaml', 'BASE: [../base/first.yaml, "", ../base/second.yaml]')
    config = load(cfg)
    assert (config.SEED, config.TAG, config.PRINT_FREQ) == (9, 'second', 9)


@pytest.mark.parametrize('flag', FLAG_KEYS)
def test_each_flag_overrides_opts(cfg, flag) -> None:
    words = {'batch_size': '3', 'accumulation_steps': '2', 'amp_opt_level': 'O2'}
    default = value_at(default_config(), FLAG_KEYS[flag])
    word = [] if isinstance(default, bool) else [words.get(flag, 'x')]
    opts = ['--opts', FLAG_KEYS[flag], repr(default)]
    config = load(cfg, *opts, '--' + flag.replace('_', '-'), *word)
    assert str(value_at(config, FLAG_KEYS[flag])) == (word[0] if word else 'True')


def test_a_flag_of_another_project_names_what_replaces_it(cfg, capsys) -> None:
    words = '--batch_size 8 --epochs=20 --lr 1 --accum_iter 2'.split()
    with pytest.raises(SystemExit):
        build_parser('simmim').parse_args(['--cfg', str(cfg), *words])
    error = capsys.readouterr().err
    assert '--batch_size is --batch-size here' in error
    assert '--epochs is an option here: --opts TRAIN.EPOCHS VALUE' in error
    assert '--lr is an option here: --opts TRAIN.BASE_LR VALUE' in error
    assert error.endswith('VALUE\n'), 'nothing replaces --accum_iter'
    with pytest.raises(SystemExit):  # argparse would take it for --accumulation-steps
        build_parser('simmim').parse_args(['--cfg', str(cfg), '--accum', '2'])


def test_a_flag_that_is_0_counts_and_one_that_is_absent_does_not(tmp_path) -> None:
    cfg = write(tmp_path, 'run.yaml', 'TAG: x\nTRAIN: {ACCUMULATION_STEPS: 4}\nAMP_OPT_LEVEL: O0')
    config = load(cfg, '--accumulation-steps', '0')
    assert (config.TRAIN.ACCUMULATION_STEPS, config.TAG, config.AMP_OPT_LEVEL) == (0, 'x', 'O0')
    assert get_config(argparse.Namespace(cfg=cfg)).TAG == 'x'


def test_the_config_is_frozen_and_launchers_may_give_a_rank(cfg) -> None:
    config = load(cfg, '--local_rank', '3')
    for node in (config, config.DATA):
        with pytest.raises(AttributeError):
            node.TAG = 'x'


@pytest.mark.parametrize(
    'key, text, want',
    [
        ('TRAIN.BASE_LR', '1e-4', 1e-4),
        ('TRAIN.CLIP_GRAD', '5', 5.0),
        ('MODEL.VIT.INIT_VALUES', 'None', None),
        ('MODEL.SWIN.DEPTHS', '(1, 1, 2, 1)', [1, 1, 2, 1]),
        ('TRAIN.OPTIMIZER.BETAS', '[0.9, 0.95]', (0.9, 0.95)),
        ('TEST.CROP', 'False', False),
        ('DATA.UNCERTAIN_BY_LABEL', "{'Pleural Effusion': 'zeros'}", {'Pleural Effusion': 'zeros'}),
        ('DATA.UNCERTAIN_BY_LABEL', '{Pleural Effusion: zeros}', {'Pleural Effusion': 'zeros'}),
        ('MODEL.SIMMIM.LOSS', '{l1: 1, frequency: 1e-1}', {'l1': 1.0, 'frequency': 0.1}),
        ('DATA.PREPROCESS', 'equalize', ['equalize']),
        ('DATA.LABELS', '[No Finding, Edema]', ['No Finding', 'Edema']),
    ],
)
def test_a_value_is_read_the_same_from_opts_and_from_yaml(tmp_path, cfg, key, text, want) -> None:
    nested = f'{{{key.replace(".", ": {")}: {text}{"}" * key.count(".")}}}'
    written = write(tmp_path, 'value.yaml', nested.replace('(', '[').replace(')', ']'))
    for config in (load(cfg, '--opts', key, text, stage=None), load(written, stage=None)):
        got = reduce(getattr, key.split('.'), config)
        assert got == want and (type(got) is type(want) or isinstance(want, dict))


def test_a_name_that_occurs_twice_in_a_mapping_is_refused(cfg) -> None:
    for text in ("{'l1': 1.0, 'l1': 2.0}", '{l1: 1.0, l1: 2.0}'):
        with pytest.raises(ValueError, match='MODEL.SIMMIM.LOSS in --opts .* occurs twice'):
            load(cfg, '--opts', 'MODEL.SIMMIM.LOSS', text, stage=None)


@pytest.mark.parametrize(
    'key, text',
    [
        ('TRAIN.EPOCHS', 'many'),
        ('TRAIN.EPOCHS', '10.5'),
        ('TRAIN.EPOCHS', '0100'),  # YAML 1.1 reads 64
        ('TRAIN.EPOCHS', '1:40'),  # 100
        ('TRAIN.EPOCHS', 'True'),
        ('TRAIN.BASE_LR', '1e999'),
        ('MODEL.SWIN.DEPTHS', '2'),
        ('DATA.IMG_SIZE', 'None'),
        ('DATA', '7'),
    ],
)
def test_a_value_of_the_wrong_type_names_key_and_source(tmp_path, cfg, key, text) -> None:
    nested = f'{{{key.replace(".", ": {")}: {text}{"}" * key.count(".")}}}'
    written = write(tmp_path, 'value.yaml', nested)
    with pytest.raises(ValueError, match=f'{key} .*--opts'):
        load(cfg, '--opts', key, text)
    with pytest.raises(ValueError, match=f'{key} .*{re.escape(written)}'):
        load(written)


@pytest.mark.parametrize(
    'opts, suggested',
    [
        (['IMG_SIZE', '192'], 'IMG_SIZE .*--opts.*DATA.IMG_SIZE'),
        (['TRAIN.OPTIMISER.NAME', 'sgd'], 'did you mean TRAIN.OPTIMIZER.NAME or'),
        (['TAG', 'x', 'SEED'], '--opts.*SEED'),
    ],
)
def test_an_unknown_key_is_an_error_that_suggests_a_similar_key(cfg, opts, suggested) -> None:
    with pytest.raises(ValueError, match=suggested):
        load(cfg, '--opts', *opts)


@pytest.mark.parametrize(
    'text',
    [
        '- 1',
        'TAG: !!python/object/apply:os.getcwd []',
        'BASE: x.yaml',
        'BASE: [no.yaml]',
        'BASE: [7]',
        'BASE: [run.yaml]',
        'TRAIN: !!map [1, 2]',
        'DATA: {IMG_SIZE: 224}\nDATA.IMG_SIZE: 192',
    ],  # fmt: skip
)
def test_a_file_that_is_not_a_config_is_named(tmp_path, text) -> None:
    path = write(tmp_path, 'run.yaml', text)
    with pytest.raises(ValueError, match=re.escape(str(tmp_path))):
        load(path)


@pytest.mark.parametrize('encoder', ['swin', 'vit'])
def test_a_legacy_key_sets_the_channels_of_the_selected_encoder(tmp_path, encoder) -> None:
    """Also of a BASE file that is read before the encoder is selected."""
    other = 'VIT' if encoder == 'swin' else 'SWIN'
    channels = f'{encoder.upper()}: {{IN_CHANS: 1}}, {other}: {{IN_CHANS: 3}}'
    write(tmp_path, 'base.yaml', f'LOCAL_RANK: 2\nMODEL: {{{channels}}}\n')
    path = write(tmp_path, 'run.yaml', f'BASE: [base.yaml]\nMODEL: {{TYPE: {encoder}}}')
    config = default_config()
    config.merge_from_file(path)
    assert config.MODEL.IN_CHANS == 1
    config.merge_from_list([f'MODEL.{other}.IN_CHANS', 3])
    assert config.MODEL.IN_CHANS == 1
    config.merge_from_list([f'MODEL.{encoder.upper()}.IN_CHANS', 3])
    assert config.MODEL.IN_CHANS == 3


@pytest.mark.parametrize('key', sorted(key for key in OPTIONS if OPTIONS[key].names))
def test_only_the_allowed_values_of_an_option_are_accepted(key) -> None:
    bad = {int: 7, list: ['nonsense']}.get(OPTIONS[key].kind, 'nonsense')
    with pytest.raises(ValueError, match=re.escape(key)) as error:
        check_config(changed(key, bad))
    assert all(repr(value) in str(error.value) for value in OPTIONS[key].names)
    assert OPTIONS[key].allows(OPTIONS[key].default)


@pytest.mark.parametrize(
    'key, bad',
    [
        ('DATA.BATCH_SIZE', 0), ('DATA.MASK_RATIO', 1), ('DATA.TRAIN_FRACTION', 0), ('SEED', 2**63),
        ('TRAIN.OPTIMIZER.BETAS', (0.9, 1)), ('TRAIN.OPTIMIZER.BETAS', ('a', 0.9)),
        ('TRAIN.OPTIMIZER.NAME', 'adam'), ('AUG.CROP_AREA', [0.9, 0.5]), ('AUG.CROP_AREA', [0.5]),
        ('TRAIN.WARMUP_EPOCHS', 301), ('TRAIN.START_EPOCH', 5), ('DATA.MEAN', [0, 0, 0]),
        ('DATA.STD', [1, 1]),
        ('DATA.UNCERTAIN_BY_LABEL', {'Oedema': 'zeros'}),
        ('DATA.UNCERTAIN_BY_LABEL', {'Edema': 'no'}), ('TRAIN.LR_SCHEDULER.NAME', 'multistep'),
        ('MODEL.SWIN.DEPTHS', [2, 0, 6, 2]), ('MODEL.SWIN.DEPTHS', [2, 2, 999, 2]),
        ('MODEL.SWIN.NUM_HEADS', [3, 6, 12, 25]),
        ('MODEL.SWIN.WINDOW_SIZE', 6), ('DATA.MASK_PATCH_SIZE', 30), ('DATA.MASK_PATCH_SIZE', 14),
        ('DATA.MASK_RATIO', 0.99), ('MODEL.NAME', '/other'), ('TAG', '../other'),
        ('EVAL.GROUPS', ['']), ('DATA.IMAGE_SUFFIX', 'png'),
    ],
)  # fmt: skip
def test_an_impossible_value_is_an_error_that_names_its_key(key, bad) -> None:
    others = {'DATA.MEAN': 'DATA.STD', 'DATA.STD': 'DATA.MEAN'}  # each needs the other
    others['TRAIN.LR_SCHEDULER.NAME'] = 'TRAIN.LR_SCHEDULER.MULTISTEPS'
    with pytest.raises(ValueError, match=others.get(key, key)):
        check_config(changed(key, bad), 'simmim')


SMALLEST = {  # what a config of each stage may have at least
    'simmim': 'DATA: {MASK_RATIO: 0.6}',
    'contrastive': 'CONTRASTIVE: {METHOD: moco}',
    'finetune': 'FINETUNE: {MODE: full}\nAUG: {AUTO_AUGMENT: none, MIXUP: 0, CUTMIX: 0}\n'
    'MODEL: {NUM_CLASSES: 14, LABEL_SMOOTHING: 0}\nDATA: {DATASET: chexpert}',
}


@pytest.mark.parametrize('stage', STAGES)
@pytest.mark.parametrize('of', STAGES)
def test_the_options_of_a_config_tell_its_stage(of, stage, tmp_path) -> None:
    """Those of the file itself count, or else those of its BASE files, or what a run recorded."""
    write(tmp_path, 'base.yaml', SMALLEST[of])
    other = next(name for name in STAGES if name not in (of, stage))
    write(tmp_path, 'other.yaml', SMALLEST[other])
    files = [
        write(tmp_path, 'plain.yaml', SMALLEST[of]),
        write(tmp_path, 'inherits.yaml', 'BASE: [base.yaml]\nSEED: 7'),
        write(tmp_path, 'overrides.yaml', f'BASE: [other.yaml]\n{SMALLEST[of]}'),
        write(tmp_path, 'config.yaml', config_text(load(str(tmp_path / 'base.yaml'), stage=of))),
    ]
    for file in files:
        if stage == of:
            assert load(file, stage=stage).STAGE == stage
        else:
            with pytest.raises(ValueError, match=rf'main_{of}\.py.*main_{stage}\.py'):
                load(file, stage=stage)


@pytest.mark.parametrize(
    'stage, key, value',
    [
        ('simmim', 'AUG.ROTATION', '5'),  # of two other stages
        ('contrastive', 'DATA.MASK_RATIO', '0.5'),
        ('finetune', 'MODEL.MAE.DECODER_DEPTH', '2'),
    ],
)
def test_an_option_of_another_stage_in_opts_is_refused(stage, key, value, tmp_path) -> None:
    cfg = write(tmp_path, 'run.yaml', SMALLEST[stage])
    with pytest.raises(ValueError, match=rf'{key} in --opts .*main_{stage}.py does not use it'):
        load(cfg, '--opts', key, value, stage=stage)


def test_a_file_may_have_options_of_other_stages_beside_its_own(tmp_path) -> None:
    cfg = write(tmp_path, 'run.yaml', 'DATA: {MASK_RATIO: 0.5, UNCERTAIN: zeros}')
    assert load(cfg).DATA.MASK_RATIO == 0.5
    lonely = write(tmp_path, 'lonely.yaml', 'AUG: {ROTATION: 5.0}')
    with pytest.raises(ValueError, match='AUG.ROTATION.*main_contrastive.py and main_finetune.py'):
        load(lonely)
    assert load(lonely, stage='contrastive').AUG.ROTATION == 5


@pytest.mark.parametrize(
    'value, images, fraction, wanted',
    [
        ('auto', 199, 0.02, 'last'),
        ('auto', 200, 0.02, 'holdout'),
        ('auto', 200, 0.0, 'last'),
        ('holdout', 10, 0.02, 'holdout'),
        ('last', 1000, 0.02, 'last'),
    ],
)
def test_few_training_images_select_no_epoch_by_default(value, images, fraction, wanted) -> None:
    config = chexpert('EVAL.SELECT_ON', value, 'DATA.HOLDOUT_FRACTION', fraction)
    check_config(config, 'finetune')
    assert selecting_split(config, images) == wanted


def test_options_of_other_stages_and_encoders_are_not_checked() -> None:
    check_config(chexpert('DATA.MASK_PATCH_SIZE', 30), 'finetune')
    check_config(changed('MODEL.TYPE', 'vit', 'MODEL.SWIN.WINDOW_SIZE', 5), 'simmim')
    check_config(changed('MODEL.VIT.PATCH_SIZE', 15), 'simmim')


def test_the_text_repeats_the_run(tmp_path) -> None:
    write(tmp_path, 'base.yaml', 'DATA: {UNCERTAIN_BY_LABEL: {Edema: zeros, Fracture: ignore}}')
    cfg = write(tmp_path, 'run.yaml', 'BASE: [base.yaml]\nTRAIN: {BASE_LR: 1e-4, MIN_LR: 1e-7}')
    opts = ['TRAIN.OPTIMIZER.BETAS', '(0.9, 0.95)', 'MODEL.VIT.INIT_VALUES', 'None']
    first = load(cfg, '--opts', *opts, '--tag', '7', '--output', 'null', stage=None)
    again = load(write(tmp_path, 'elsewhere/config.yaml', config_text(first)), stage=None)
    assert {**again, 'BASE': 0} == {**first, 'BASE': 0}
    assert again.BASE == [''] and again.OUTPUT == 'null'
    assert config_text(again) == config_text(first)
    assert first.is_frozen() and first.BASE == ['base.yaml']


def test_changes_between_two_texts_are_listed_by_key() -> None:
    before = config_text(default_config())
    after = config_text(changed('TRAIN.EPOCHS', 5, 'MODEL.SWIN.IN_CHANS', 1))
    changes = config_changes(before, after)
    assert sorted(changes) == ['MODEL.IN_CHANS: 3 -> 1', 'TRAIN.EPOCHS: 300 -> 5']
    old = before.replace('  IN_CHANS: 3\n', '').replace('  SWIN:\n', '  SWIN:\n    IN_CHANS: 3\n')
    assert config_changes(old, before) == []
    older = before.replace("  LEAVE_OUT: ''\n", '')
    assert older != before
    assert config_changes(older, before) == config_changes(before, older) == []
    left_out = config_changes(older, config_text(changed('DATA.LEAVE_OUT', 'some.csv')))
    assert left_out == ["DATA.LEAVE_OUT: '' -> some.csv"]
    assert flat_options(before)['TRAIN.OPTIMIZER.NAME'] == 'adamw'


@pytest.mark.parametrize(
    'key, value, effects',
    [
        ('SAVE_FREQ', 5, {'nothing'}),
        ('TRAIN.EPOCHS', 5, {'weights'}),
        ('MODEL.SWIN.WINDOW_SIZE', 6, {'model'}),
        ('MODEL.VIT.DEPTH', 6, set()),  # MODEL.TYPE is 'swin'
        ('DATA.HOLDOUT_FRACTION', 0.1, {'patients'}),
        ('DATA.LABELS', ['Edema'], {'outputs'}),
        ('DATA.BLANK', 'ignore', {'weights', 'selection'}),
        ('EVAL.LEVEL', 'image', {'selection', 'scores'}),
        ('EVAL.INTERNAL_SHARE', 0.5, {'patients', 'scores'}),
    ],
)
def test_a_change_is_listed_for_what_it_affects(key: str, value: object, effects: set[str]) -> None:
    texts = config_text(default_config()), config_text(changed(key, value))
    assert {effect for effect in EFFECTS if config_changes(*texts, effect)} == effects


def test_an_option_that_no_longer_exists_affects_the_weights() -> None:
    text = config_text(default_config())
    assert config_changes(f'{text}GONE: 1\n', text, 'weights') == ['GONE: 1 -> None']
    assert config_changes(f'{text}GONE: 1\n', text, 'scores') == []


def test_the_defaults_can_be_imported_as_in_simmim() -> None:
    config = _C.clone()
    config.TRAIN.EPOCHS = 1
    assert _C.TRAIN.EPOCHS == 300 and not hasattr(_C, 'GONE')


def test_saved_options_are_read_without_keys_that_no_longer_exist() -> None:
    config = config_from_text('GONE: 1\nSEED: 7\nDATA: {UNCERTAIN_BY_LABEL: {Edema: zeros}}')
    assert (config.SEED, config.DATA.UNCERTAIN_BY_LABEL) == (7, {'Edema': 'zeros'})
    with pytest.raises(ValueError):
        config_from_text('7')


@pytest.mark.parametrize('as_text', [False, True])
def test_a_key_that_occurs_twice_in_yaml_is_refused(as_text: bool) -> None:
    for text in ('a: 1\nb: 2\na: 1\n', 'DATA:\n  X: {k: 1, l: [2], k: 3}\n'):
        with pytest.raises(ValueError, match="line.*'[ak]'"):
            load_yaml(text, as_text=as_text)
    assert load_yaml('a: {k: 1}\nb: {k: 1}\n', as_text=as_text).keys() == {'a', 'b'}


def test_yaml_that_fills_the_memory_is_refused() -> None:
    """Ten levels of ten aliases each have 10^10 elements in 400 bytes."""
    levels = ['a0: &a0 [x, x, x, x, x, x, x, x, x, x]']
    levels += [f'a{i}: &a{i} [{", ".join([f"*a{i - 1}"] * 10)}]' for i in range(1, 11)]
    for text in ('\n'.join(levels), '[' * 1000, 'a: ' + 'b' * 1_000_001):
        with pytest.raises(ValueError, match='YAML'):
            config_from_text(text)
