"""Options: defaults, sources and their precedence, checks, and the config as text."""

import argparse
import ast
import re
from functools import reduce
from pathlib import Path

import pytest
import yaml

import main_contrastive
import main_finetune
import main_simmim  # noqa: F401  (the mains fill all registries)
from config import (
    CHOICES,
    FLAG_KEYS,
    FREE_OPTIONS,
    LEGACY_KEYS,
    RANGES,
    REGISTRIES,
    allowed_values,
    build_parser,
    check_config,
    config_changes,
    config_text,
    default_config,
    flat_options,
    get_config,
    load_options,
    load_yaml,
    value_at,
)

ROOT = Path(__file__).parents[1]
STAGES = {'simmim': main_simmim, 'contrastive': main_contrastive, 'finetune': main_finetune}


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


def chexpert(*pairs):
    """Options that fine-tuning accepts, with changes."""
    labels = ['DATA.DATASET', 'chexpert', 'MODEL.NUM_CLASSES', 14, 'MODEL.LABEL_SMOOTHING', 0]
    return changed(*labels, 'AUG.AUTO_AUGMENT', 'none', 'AUG.MIXUP', 0, 'AUG.CUTMIX', 0, *pairs)


# Defaults


def test_every_key_has_a_comment_and_keys_beyond_simmims_are_marked() -> None:
    source = (ROOT / 'config.py').read_text()
    lines, marked = source.splitlines(), {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).startswith('_C.'):
            if ast.unparse(node.value) == 'CN()':
                continue
            start = node.lineno - 1
            while lines[start - 1].startswith('# '):
                start -= 1
            key = ast.unparse(node.targets[0]).removeprefix('_C.')
            marked[key] = '[CheXpert]' in ' '.join(lines[start : node.lineno - 1])
            assert start < node.lineno - 1, f'{key} has no comment'
    golden = ROOT / 'tests' / 'golden' / 'configs' / 'configs_base_opts_flags.json'
    simmim = set(yaml.safe_load(golden.read_text())) | {'BASE', 'AMP_OPT_LEVEL', 'OUTPUT'}
    simmim = (simmim - set(LEGACY_KEYS)) | {'MODEL.IN_CHANS'}
    assert simmim <= set(marked)
    wrong = {key for key, mark in marked.items() if mark == (key in simmim)}
    assert wrong <= {'DATA.DATASET'}, 'this SimMIM key has values of our own'


def test_the_tables_of_checks_name_existing_keys() -> None:
    keys = {*CHOICES, *REGISTRIES, *FREE_OPTIONS, *FLAG_KEYS.values()}
    keys |= {key for names in RANGES.values() for key in names.split()}
    config = default_config()
    for key in keys | set(filter(None, LEGACY_KEYS.values())):
        value_at(config, key)


def test_each_default_config_is_a_copy() -> None:
    default_config().DATA.UNCERTAIN_BY_LABEL['Edema'] = 'zeros'
    assert default_config().DATA.UNCERTAIN_BY_LABEL == {}


# Precedence


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


@pytest.mark.parametrize('stage', STAGES)
def test_each_flag_overrides_opts(cfg, stage) -> None:
    words = {'batch_size': '3', 'accumulation_steps': '2', 'amp_opt_level': 'O2'}
    for flag, key in FLAG_KEYS.items():
        default = value_at(default_config(), key)
        word = [] if isinstance(default, bool) else [words.get(flag, 'x')]
        line = ['--cfg', cfg, '--opts', key, repr(default), '--' + flag.replace('_', '-'), *word]
        args = build_parser(stage).parse_args(line)
        args.stage = None
        got = value_at(get_config(args), key)
        assert got != default and str(got) == (word[0] if word else 'True')


def test_a_flag_that_is_0_counts_and_one_that_is_absent_does_not(tmp_path) -> None:
    cfg = write(tmp_path, 'run.yaml', 'TAG: x\nTRAIN: {ACCUMULATION_STEPS: 4}\nAMP_OPT_LEVEL: O0')
    config = load(cfg, '--accumulation-steps', '0')
    assert (config.TRAIN.ACCUMULATION_STEPS, config.TAG, config.AMP_OPT_LEVEL) == (0, 'x', 'O0')
    assert get_config(argparse.Namespace(cfg=cfg)).TAG == 'x'


def test_the_config_is_frozen(cfg) -> None:
    config = load(cfg)
    for node in (config, config.DATA, config.MODEL.SWIN):
        with pytest.raises(AttributeError):
            node.TAG = 'x'


@pytest.mark.parametrize('words', [['--local_rank', '3'], ['--local-rank=3']])
def test_the_rank_of_old_launchers_is_accepted(cfg, words) -> None:
    load(cfg, *words)


# Values


@pytest.mark.parametrize(
    'key, text, want',
    [
        ('TRAIN.BASE_LR', '1e-4', 1e-4),
        ('TRAIN.CLIP_GRAD', '5', 5.0),
        ('MODEL.VIT.INIT_VALUES', 'None', None),
        ('MODEL.SWIN.QK_SCALE', '1', 1.0),
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
        assert got == want and (type(got) is type(want) or isinstance(want, dict))


@pytest.mark.parametrize(
    'key, text',
    [
        ('TAG', '7'),
        ('TRAIN.EPOCHS', 'many'),
        ('TRAIN.EPOCHS', '10.5'),
        ('TRAIN.EPOCHS', 'True'),
        ('TRAIN.BASE_LR', '1e999'),
        ('TEST.CROP', '1'),
        ('MODEL.SWIN.DEPTHS', '2'),
        ('MODEL.SWIN.IN_CHANS', 'grey'),
        ('DATA.IMG_SIZE', 'None'),
        ('DATA', '7'),
        ('DATA.UNCERTAIN_BY_LABEL', '{"Edema": 1}'),
    ],
)
def test_a_value_of_the_wrong_type_is_an_error_that_names_key_and_source(
    tmp_path, cfg, key, text
) -> None:
    nested = f'{{{key.replace(".", ": {")}: {text}{"}" * key.count(".")}}}'
    written = write(tmp_path, 'value.yaml', nested)
    with pytest.raises(ValueError, match=f'{key} .*--opts'):
        load(cfg, '--opts', key, text)
    with pytest.raises(ValueError, match=f'{key} .*{re.escape(written)}'):
        load(written)


def test_an_unknown_key_is_an_error_that_suggests_a_similar_key(tmp_path, cfg) -> None:
    written = write(tmp_path, 'typo.yaml', 'TRAIN: {EPOCH: 3}')
    with pytest.raises(ValueError, match=rf'TRAIN.EPOCH .*{written}.*TRAIN.EPOCHS'):
        load(written)
    with pytest.raises(ValueError, match='IMG_SIZE .*--opts.*DATA.IMG_SIZE'):
        load(cfg, '--opts', 'IMG_SIZE', '192')
    with pytest.raises(ValueError, match='--opts.*SEED'):
        load(cfg, '--opts', 'TAG', 'x', 'SEED')


@pytest.mark.parametrize(
    'text',
    ['', '- 1', 'TAG: !!python/object/apply:os.getcwd []', 'TAG: [', 'BASE: x.yaml', 'BASE: [no]'],
)
def test_a_file_that_is_not_a_config_is_named(tmp_path, text) -> None:
    path = write(tmp_path, 'run.yaml', text)
    with pytest.raises(ValueError, match=re.escape(path)):
        load(path)


def test_a_missing_file_and_a_cycle_of_base_files_are_named(tmp_path) -> None:
    with pytest.raises(ValueError, match='nowhere/x.yaml'):
        load('nowhere/x.yaml')
    first = write(tmp_path, 'a.yaml', 'BASE: [b.yaml]')
    second = write(tmp_path, 'b.yaml', 'BASE: [c/../a.yaml]')
    (tmp_path / 'c').mkdir()
    with pytest.raises(ValueError, match=f'{first} -> {second} -> .*a.yaml'):
        load(first)


# Keys of SimMIM and of earlier versions


@pytest.mark.parametrize('encoder', ['swin', 'vit', 'timm'])
def test_a_legacy_key_sets_the_channels_of_the_selected_encoder(encoder) -> None:
    pair, kind = [f'MODEL.{encoder.upper()}.IN_CHANS', 1], ['MODEL.TYPE', encoder]
    other = ['MODEL.TYPE', 'vit' if encoder == 'swin' else 'swin']
    for pairs in (pair + kind, kind + pair):
        config = changed(*pairs)
        assert config.MODEL.IN_CHANS == 1
        config.merge_from_list(other)
        assert config.MODEL.IN_CHANS == 3
    assert changed(*kind, *pair, 'MODEL.IN_CHANS', 3).MODEL.IN_CHANS == 3


def test_the_text_of_an_older_run_is_read_with_todays_keys(tmp_path) -> None:
    text = 'LOCAL_RANK: 2\nMODEL: {TYPE: vit, VIT: {IN_CHANS: 1}, SWIN: {IN_CHANS: 3}}\n'
    assert load_options(text)['MODEL'] == {'TYPE': 'vit', 'VIT': {}, 'SWIN': {}, 'IN_CHANS': 1}
    assert load(write(tmp_path, 'old.yaml', text)).MODEL.IN_CHANS == 1


# Checks


@pytest.mark.parametrize('key', sorted({*CHOICES, *REGISTRIES}))
def test_only_the_allowed_values_of_an_option_are_accepted(key) -> None:
    kind = int if key == 'MODEL.IN_CHANS' else str
    with pytest.raises(ValueError, match=re.escape(key)):
        check_config(changed(key, 7 if kind is int else 'nonsense'))
    assert value_at(default_config(), key) in allowed_values(key)


@pytest.mark.parametrize(
    'key, bad',
    [
        ('DATA.BATCH_SIZE', 0), ('DATA.NUM_WORKERS', -1), ('DATA.MASK_RATIO', 1),
        ('DATA.TRAIN_FRACTION', 0), ('DATA.HOLDOUT_FRACTION', 1), ('TRAIN.BASE_LR', 0),
        ('TRAIN.EPOCHS', 0), ('SAVE_FREQ', 0), ('SEED', -1), ('SEED', 2**63),
        ('TRAIN.OPTIMIZER.BETAS', (0.9, 1)), ('TRAIN.OPTIMIZER.BETAS', (0.9,)),
        ('TRAIN.OPTIMIZER.BETAS', ('a', 0.9)), ('TRAIN.OPTIMIZER.NAME', 'adam'),
        ('AUG.CROP_AREA', [0.9, 0.5]), ('AUG.CROP_AREA', [0.5]), ('AUG.CROP_AREA', [0.5, 2]),
        ('DATA.IMAGE_SUFFIX', 'png'), ('TRAIN.WARMUP_EPOCHS', 301), ('TRAIN.START_EPOCH', 5),
        ('DATA.MEAN', [0, 0, 0]), ('DATA.STD', [1, 1]), ('MODEL.NAME', '../other'),
        ('TAG', '/other'), ('TAG', 'a/../../b'), ('EVAL.AGE_BANDS', [40, 0]),
        ('EVAL.AGE_BANDS', []), ('EVAL.GROUPS', ['']), ('EVAL.ENSEMBLE', [3]),
        ('EVAL.SENSITIVITY', 1), ('DATA.UNCERTAIN_BY_LABEL', {'Oedema': 'zeros'}),
        ('DATA.UNCERTAIN_BY_LABEL', {'Edema': 'no'}), ('TRAIN.LR_SCHEDULER.NAME', 'multistep'),
        ('MODEL.SWIN.DEPTHS', [2, 0, 6, 2]), ('MODEL.SWIN.NUM_HEADS', [3, 6, 12, 25]),
        ('MODEL.SWIN.WINDOW_SIZE', 6), ('DATA.MASK_PATCH_SIZE', 30), ('DATA.MASK_PATCH_SIZE', 14),
        ('DATA.MASK_RATIO', 0.99),
    ],
)  # fmt: skip
def test_an_impossible_value_is_an_error_that_names_its_key(key, bad) -> None:
    with pytest.raises(ValueError, match=key.partition('.')[0]):
        check_config(changed(key, bad), 'simmim')


@pytest.mark.parametrize(
    'key, value',
    [
        ('DATA.DATASET', 'folder'), ('DATA.DATASET', 'imagenet'), ('MODEL.NUM_CLASSES', 5),
        ('MODEL.LABEL_SMOOTHING', 0.1), ('AUG.AUTO_AUGMENT', 'rand-m9-mstd0.5-inc1'),
        ('AUG.MIXUP', 0.8), ('AUG.CUTMIX', 1.0), ('AUG.CUTMIX_MINMAX', [0.2, 0.8]),
        ('DATA.HOLDOUT_FRACTION', 0), ('REPORT.METHOD', 'rollout'),
    ],
)  # fmt: skip
def test_finetuning_rejects_what_does_not_suit_the_labels(key, value) -> None:
    check_config(chexpert(), 'finetune')
    check_config(chexpert(key, value), 'simmim')
    with pytest.raises(ValueError, match=key):
        check_config(chexpert(key, value), 'finetune')


def test_a_probe_needs_held_out_patients_and_does_not_resume() -> None:
    probe = ['FINETUNE.MODE', 'linear_probe', 'EVAL.SELECT_ON', 'valid']
    check_config(chexpert(*probe), 'finetune')
    for key, value in (('DATA.HOLDOUT_FRACTION', 0), ('MODEL.RESUME', 'x.pth')):
        with pytest.raises(ValueError, match=key):
            check_config(chexpert(*probe, key, value), 'finetune')
        check_config(chexpert(*probe, key, value, 'EVAL_MODE', True), 'finetune')


@pytest.mark.parametrize(
    'size, window, fits',
    [(192, 6, True), (224, 7, True), (192, 48, True), (192, 7, False), (224, 8, False)],
)
def test_a_window_fits_if_it_contains_or_divides_every_stage(size, window, fits) -> None:
    config = changed('DATA.IMG_SIZE', size, 'MODEL.SWIN.WINDOW_SIZE', window)
    if fits:
        check_config(config, 'simmim')
    else:
        with pytest.raises(ValueError, match='MODEL.SWIN.WINDOW_SIZE'):
            check_config(config, 'simmim')


def test_options_of_other_stages_and_encoders_are_not_checked() -> None:
    check_config(chexpert('DATA.MASK_PATCH_SIZE', 30), 'finetune')
    check_config(changed('MODEL.TYPE', 'vit', 'MODEL.SWIN.WINDOW_SIZE', 5), 'simmim')
    check_config(changed('MODEL.VIT.PATCH_SIZE', 15), 'simmim')


def test_only_one_mode_replaces_training() -> None:
    with pytest.raises(ValueError, match='CHECK_MODE'):
        check_config(changed('EVAL_MODE', True, 'CHECK_MODE', True))


def test_a_faulty_option_ends_a_main_with_code_2_and_creates_no_folder(
    cfg, tmp_path, refused
) -> None:
    output = tmp_path / 'runs'
    for stage in STAGES:
        words = ['--cfg', cfg, '--output', str(output), '--opts', 'DATA.BATCHSIZE', '4']
        refused(stage, words, 'DATA.BATCHSIZE')
    assert not output.exists()


# The config as text


def test_the_text_repeats_the_run(tmp_path) -> None:
    write(tmp_path, 'base.yaml', 'DATA: {UNCERTAIN_BY_LABEL: {Edema: zeros, Fracture: ignore}}')
    cfg = write(tmp_path, 'run.yaml', 'BASE: [base.yaml]\nTRAIN: {BASE_LR: 1e-4, MIN_LR: 1e-7}')
    opts = ['TRAIN.OPTIMIZER.BETAS', '(0.9, 0.95)', 'MODEL.VIT.INIT_VALUES', 'None']
    first = load(cfg, '--opts', *opts, '--tag', '7', '--output', 'null')
    again = load(write(tmp_path, 'elsewhere/config.yaml', config_text(first)))
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
    assert flat_options(before)['TRAIN.OPTIMIZER.NAME'] == 'adamw'


@pytest.mark.parametrize('text', ['- 1', '!!python/object/apply:os.getcwd []', 'a: [', '7'])
def test_text_that_is_not_a_mapping_of_plain_values_is_an_error(text) -> None:
    with pytest.raises(ValueError):
        load_options(text)
    assert load_yaml('a: {b: [1, 1e-3, x]}') == {'a': {'b': [1, '1e-3', 'x']}}
