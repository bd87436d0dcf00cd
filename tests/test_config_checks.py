"""Options that cannot work are refused, naming key, value and what is allowed."""

import ast
import re

import pytest

from config import check_config, default_config
from data.loader import sample_rng


def changed(*pairs):
    config = default_config()
    config.merge_from_list(list(pairs))
    return config


def chexpert(*pairs):
    """Options that fine-tuning accepts, with changes."""
    labels = ['DATA.DATASET', 'chexpert', 'MODEL.NUM_CLASSES', 14, 'MODEL.LABEL_SMOOTHING', 0]
    return changed(*labels, 'AUG.AUTO_AUGMENT', 'none', 'AUG.MIXUP', 0, 'AUG.CUTMIX', 0, *pairs)


UNKNOWN_NAMES = {
    'DATA.DATASET': 'imagenet, folder, chexpert',
    'DATA.INTERPOLATION': 'random, bilinear, bicubic, lanczos, hamming',
    'DATA.PRETRAIN_INTERPOLATION': 'bilinear, bicubic, lanczos, hamming',
    'DATA.VIEWS': 'frontal, lateral, all',
    'DATA.UNCERTAIN': 'zeros, ones, ignore',
    'DATA.BLANK': 'negative, ignore',
    'DATA.NORMALIZE': 'dataset, image',
    'DATA.MASK_TYPE': 'random, square, block',
    'MODEL.TYPE': 'swin, vit',
    'MODEL.ATTENTION': 'auto, eager, sdpa, triton',
    'MODEL.SIMMIM.HEAD': 'linear, mlp',
    'MODEL.SIMMIM.LOSS': 'l1, l2, smooth_l1',
    'MODEL.SIMMIM.LOSS_PIXELS': 'masked, all',
    'TRAIN.LR_SCHEDULER.NAME': 'cosine, linear, step, multistep',
    'TRAIN.OPTIMIZER.NAME': 'adamw, sgd',
    'TRAIN.COMPILE': 'none, auto, max',
    'TRAIN.CHECKPOINT_KEEPS': 'nothing, products',
    'TRAIN.GRADIENT_EXCHANGE': 'float32, bfloat16',
    'AUG.REMODE': 'const, rand, pixel',
    'AUG.MIXUP_MODE': 'batch, pair, elem',
    'EVAL.VIEWS': ', frontal, lateral, all',
    'EVAL.LEVEL': 'study, image',
    'EVAL.SELECT_ON': 'holdout, valid',
    'EVAL.SELECT': 'auto, five, all',
    'LOSS.NAME': 'bce',
    'AMP_OPT_LEVEL': 'O0, O1, O2',
}


@pytest.mark.parametrize('key, allowed', UNKNOWN_NAMES.items())
def test_an_unknown_name_is_refused_with_those_allowed(key, allowed) -> None:
    with pytest.raises(ValueError) as error:
        check_config(changed(key, 'nonsense'))
    said = re.fullmatch(r"(\S+) must be one of (\[.*\]), got 'nonsense'", str(error.value))
    assert said[1] == key
    names = ast.literal_eval(said[2])
    assert set(allowed.split(', ')) <= set(names)
    for name in set(names) - {'multistep'}:
        config = changed(key, name)
        check_config(config)


def test_seeds_are_told_apart_up_to_the_greatest_allowed() -> None:
    seeds = [2**63 - 1, 2**63 - 2, 2**63 - 1025]
    for seed in seeds:
        check_config(changed('SEED', seed))
    assert len({sample_rng(seed, 3, 5).random() for seed in seeds}) == 3


def test_optimizer_names_come_in_any_case() -> None:
    check_config(changed('TRAIN.OPTIMIZER.NAME', 'AdamW'))
    check_config(changed('TRAIN.OPTIMIZER.NAME', 'SGD'))


@pytest.mark.parametrize(
    'pairs, message',
    [
        (['DATA.BATCH_SIZE', 0], r'DATA.BATCH_SIZE must be a number in \[1, inf\), got 0'),
        (['DATA.NUM_WORKERS', -1], r'DATA.NUM_WORKERS must be a number in \[0, inf\), got -1'),
        (['DATA.MASK_RATIO', 0], r'DATA.MASK_RATIO must be a number in \(0, 1\), got 0.0'),
        (['DATA.MASK_RATIO', 1], r'DATA.MASK_RATIO must be a number in \(0, 1\), got 1.0'),
        (['DATA.TRAIN_FRACTION', 0], r'DATA.TRAIN_FRACTION must be a number in \(0, 1\], got 0.0'),
        (['DATA.TRAIN_FRACTION', 1.01], r'DATA.TRAIN_FRACTION must be .* got 1.01'),
        (['DATA.HOLDOUT_FRACTION', 1], r'DATA.HOLDOUT_FRACTION must be .*\[0, 1\), got 1.0'),
        (['MODEL.DROP_PATH_RATE', 1], r'MODEL.DROP_PATH_RATE must be .*\[0, 1\), got 1.0'),
        (['MODEL.VIT.INIT_VALUES', -1], r'MODEL.VIT.INIT_VALUES must be .*\[0, inf\), got -1.0'),
        (['TRAIN.BASE_LR', 0], r'TRAIN.BASE_LR must be a number in \(0, inf\), got 0.0'),
        (['TRAIN.LAYER_DECAY', 1.5], r'TRAIN.LAYER_DECAY must be .*\(0, 1\], got 1.5'),
        (['TRAIN.ACCUMULATION_STEPS', -1], r'TRAIN.ACCUMULATION_STEPS must be .*got -1'),
        (['TRAIN.SAVE_EVERY_STEPS', -1], r'TRAIN.SAVE_EVERY_STEPS must be .*got -1'),
        (['TRAIN.EPOCHS', 0], r'TRAIN.EPOCHS must be a number in \[1, inf\), got 0'),
        (['SAVE_FREQ', 0], r'SAVE_FREQ must be a number in \[1, inf\), got 0'),
        (['PRINT_FREQ', 0], r'PRINT_FREQ must be a number in \[1, inf\), got 0'),
        (['SEED', -1], r'SEED must be a number in \[0, inf\), got -1'),
        (['SEED', 2**63], r'SEED must be at most 2\*\*63 - 1, got 9223372036854775808'),
        (['AUG.HFLIP', 1.1], r'AUG.HFLIP must be a number in \[0, 1\], got 1.1'),
        (['TRAIN.OPTIMIZER.BETAS', (0.9, 1)], r'BETAS must be numbers in \[0, 1\), got \(0.9, 1\)'),
        (['TRAIN.OPTIMIZER.BETAS', (0.9,)], r'TRAIN.OPTIMIZER.BETAS must be two numbers'),
        (['TRAIN.OPTIMIZER.BETAS', ('a', 0.9)], r"BETAS must be numbers in .* got \('a', 0.9\)"),
        (['TRAIN.OPTIMIZER.MOMENTUM', 0], r'TRAIN.OPTIMIZER.MOMENTUM must be .*\(0, 1\), got 0.0'),
        (['AUG.CROP_AREA', [0.5]], r'CROP_AREA must be \[low, high\] .* or \[\], got \[0.5\]'),
        (['AUG.CROP_AREA', [0.9, 0.5]], r'CROP_AREA must be \[low, high\] .* got \[0.9, 0.5\]'),
        (['AUG.CROP_AREA', [0.5, 2]], r'CROP_AREA must be numbers in \[0, 1\], got \[0.5, 2\]'),
        (['AUG.CUTMIX_MINMAX', [0.5]], r'CUTMIX_MINMAX must be .* or None, got \[0.5\]'),
        (['DATA.MEAN', [0.5], 'DATA.STD', [0.2]], r'DATA.MEAN must be as long .* 3.*got \[0.5\]'),
        (['DATA.STD', [0.2, 0.2, 0.2]], r'DATA.MEAN must be .*empty together with DATA.STD.*\[\]'),
        (['DATA.MEAN', [0, 0, 0]], r'DATA.STD must be .*empty together with DATA.MEAN.*got \[\]'),
        (
            ['DATA.MEAN', [0, 0, 0], 'DATA.STD', [1, 0, 1]],
            r'DATA.STD must be numbers in \(0, 1\], got \[1, 0, 1\]',
        ),
        (
            ['DATA.MEAN', [128, 0, 0], 'DATA.STD', [1, 1, 1]],
            r'DATA.MEAN must be numbers in \[0, 1\]',
        ),
        (
            ['DATA.TRAIN_IMAGES', 9, 'DATA.TRAIN_FRACTION', 0.1],
            'DATA.TRAIN_IMAGES must be 0 where DATA.TRAIN_FRACTION is below 1, got 9',
        ),
        (['DATA.IMAGE_SUFFIX', 'png'], "DATA.IMAGE_SUFFIX must be empty, or .*, got 'png'"),
        (
            ['DATA.UNCERTAIN_BY_LABEL', {'Oedema': 'zeros'}],
            "DATA.UNCERTAIN_BY_LABEL names 'Oedema', labels are No Finding, .*, Support Devices",
        ),
        (
            ['DATA.UNCERTAIN_BY_LABEL', {'Edema': 'no'}],
            r"DATA.UNCERTAIN_BY_LABEL\['Edema'\] must be one of \['zeros', .*'no'",
        ),
        (['TRAIN.WARMUP_EPOCHS', 301], 'TRAIN.WARMUP_EPOCHS must be at most TRAIN.EPOCHS, 300'),
        (['TRAIN.START_EPOCH', 5], 'TRAIN.START_EPOCH must be 0: .*checkpoint ended, got 5'),
        (
            ['TRAIN.LR_SCHEDULER.NAME', 'multistep'],
            r'TRAIN.LR_SCHEDULER.MULTISTEPS must be ascending epochs .*got \[\]',
        ),
        (
            ['TRAIN.LR_SCHEDULER.NAME', 'multistep', 'TRAIN.LR_SCHEDULER.MULTISTEPS', [30, 20]],
            r'TRAIN.LR_SCHEDULER.MULTISTEPS must be ascending epochs .*got \[30, 20\]',
        ),
        (
            ['TRAIN.LR_SCHEDULER.NAME', 'multistep', 'TRAIN.LR_SCHEDULER.MULTISTEPS', [19, 30]],
            'TRAIN.WARMUP_EPOCHS must be at most the first of .*MULTISTEPS, 19, got 20',
        ),
        (['MODEL.IN_CHANS', 2], r'MODEL.IN_CHANS must be one of \[1, 3\], got 2'),
        (['MODEL.IN_CHANS', 4], r'MODEL.IN_CHANS must be one of \[1, 3\], got 4'),
        (['MODEL.SWIN.DEPTHS', []], r'MODEL.SWIN.DEPTHS must be whole numbers from 1.*got \[\]'),
        (
            ['MODEL.SWIN.DEPTHS', [2, 0, 6, 2]],
            r'DEPTHS must be whole numbers from 1.*\[2, 0, 6, 2\]',
        ),
        (
            ['MODEL.SWIN.DEPTHS', [2, 2, 6]],
            r'NUM_HEADS must be as long as MODEL.SWIN.DEPTHS, 3, got \[3, 6, 12, 24\]',
        ),
        (
            ['MODEL.SWIN.NUM_HEADS', [3, 6, 12, 25]],
            r"NUM_HEADS must be divisors of the stages' widths \(768 in stage 3\), got .*25\]",
        ),
        (
            ['MODEL.SWIN.WINDOW_SIZE', 6],
            r'WINDOW_SIZE must be one of \[1, 7, 14, 28\] or at least 56: .* \[56, 28, 14, 7\] '
            r'tokens wide, got 6',
        ),
        (
            ['DATA.IMG_SIZE', 200, 'MODEL.SWIN.WINDOW_SIZE', 50],
            r'DATA.IMG_SIZE must be a multiple of 32 \(MODEL.SWIN.PATCH_SIZE 4, halved 3 times: '
            r'.*even before it is merged\), got 200',
        ),
        (
            ['MODEL.TYPE', 'vit', 'DATA.IMG_SIZE', 200],
            'DATA.IMG_SIZE must be a multiple of MODEL.VIT.PATCH_SIZE, 16, got 200',
        ),
        (
            ['MODEL.TYPE', 'vit', 'MODEL.VIT.NUM_HEADS', 7],
            'MODEL.VIT.NUM_HEADS must be a divisor of MODEL.VIT.EMBED_DIM, 768, got 7',
        ),
        (
            ['DATA.MASK_PATCH_SIZE', 30],
            'DATA.MASK_PATCH_SIZE must be a divisor of DATA.IMG_SIZE, 224, and a multiple of '
            'MODEL.SWIN.PATCH_SIZE, 4, got 30',
        ),
        (
            ['DATA.MASK_PATCH_SIZE', 24],
            'DATA.MASK_PATCH_SIZE must be a divisor of .*, 224, .*got 24',
        ),
        (['DATA.MASK_PATCH_SIZE', 14], 'DATA.MASK_PATCH_SIZE must be .* a multiple of .*, got 14'),
        (
            ['DATA.MASK_PATCH_SIZE', 24, 'MODEL.TYPE', 'vit'],
            'DATA.MASK_PATCH_SIZE must be .*MODEL.VIT.PATCH_SIZE, 16, got 24',
        ),
        (
            ['DATA.MASK_PATCH_SIZE', 224],
            'DATA.MASK_RATIO must be such that 1 to 0 of the 1 units are hidden, not 1, got 0.6',
        ),
        (
            ['MODEL.TYPE', 'vit', 'MODEL.ATTENTION', 'triton'],
            "MODEL.ATTENTION must be 'auto', 'eager' or 'sdpa' for a ViT: .*got 'triton'",
        ),
        (['DATA.MASK_RATIO', 0.99], 'DATA.MASK_RATIO must be .*1 to 48 of the 49 units.*not 49'),
    ],
)
def test_impossible_options_are_refused(pairs, message) -> None:
    with pytest.raises(ValueError, match=message):
        check_config(changed(*pairs))


@pytest.mark.parametrize(
    'size, window, fits',
    [(192, 6, True), (224, 7, True), (192, 12, True), (224, 14, True), (192, 48, True),
     (224, 56, True), (192, 7, False), (224, 8, False), (192, 9, False), (256, 8, True)],
)  # fmt: skip
def test_windows_fit_where_every_stage_is_within_or_divided(size, window, fits) -> None:
    config = changed('DATA.IMG_SIZE', size, 'MODEL.SWIN.WINDOW_SIZE', window)
    if fits:
        check_config(config, 'simmim')
    else:
        with pytest.raises(ValueError, match=f'MODEL.SWIN.WINDOW_SIZE must .* got {window}'):
            check_config(config, 'simmim')


@pytest.mark.parametrize('ratio, hidden', [(0.55, 56), (0.95, 95), (0.991, 100)])
def test_all_but_one_unit_may_be_hidden(ratio, hidden) -> None:
    config = changed(
        'MODEL.TYPE',
        'vit',
        'DATA.IMG_SIZE',
        160,
        'DATA.MASK_PATCH_SIZE',
        16,
        'DATA.MASK_RATIO',
        ratio,
    )
    if hidden < 100:
        check_config(config)
    else:
        with pytest.raises(ValueError, match='DATA.MASK_RATIO'):
            check_config(config)


def test_masks_matter_to_pretraining_only() -> None:
    config = chexpert('DATA.MASK_PATCH_SIZE', 30)
    check_config(config, 'finetune')
    with pytest.raises(ValueError, match='DATA.MASK_PATCH_SIZE'):
        check_config(config, 'simmim')


def test_the_encoder_that_is_not_chosen_is_not_fitted() -> None:
    check_config(changed('MODEL.TYPE', 'vit', 'MODEL.SWIN.WINDOW_SIZE', 5), 'simmim')
    check_config(changed('MODEL.VIT.PATCH_SIZE', 15), 'simmim')


@pytest.mark.parametrize('dataset', ['imagenet', 'folder'])
def test_finetuning_refuses_data_without_labels_in_words(dataset) -> None:
    check_config(changed('DATA.DATASET', dataset), 'simmim')
    words = f"DATA.DATASET must be 'chexpert' .*ImageNet classification is not part.*'{dataset}'"
    with pytest.raises(ValueError, match=words):
        check_config(chexpert('DATA.DATASET', dataset), 'finetune')


@pytest.mark.parametrize(
    'key, value, message',
    [
        (
            'MODEL.NUM_CLASSES',
            5,
            "must be 14, the number of labels of DATA.TASK 'observations', got 5",
        ),
        ('MODEL.LABEL_SMOOTHING', 0.1, r'must be 0.0 with .*one class per image.*got 0.1'),
        ('AUG.AUTO_AUGMENT', 'rand-m9-mstd0.5-inc1', "must be 'none' .*3-channel.*got 'rand-m9"),
        ('AUG.MIXUP', 0.8, r'must be 0.0 with .*label that is not known has none.*got 0.8'),
        ('AUG.CUTMIX', 1.0, r'must be 0.0 with .*label that is not known has none.*got 1.0'),
        ('AUG.CUTMIX_MINMAX', [0.2, 0.8], r'must be None with .*got \[0.2, 0.8\]'),
    ],
)
def test_finetuning_refuses_what_fails_on_grey_images_or_unknown_labels(
    key, value, message
) -> None:
    check_config(chexpert(), 'finetune')
    check_config(chexpert(key, value), 'simmim')
    with pytest.raises(ValueError, match=f'{key} {message}'):
        check_config(chexpert(key, value), 'finetune')


def test_selecting_on_held_out_patients_needs_some() -> None:
    config = chexpert('DATA.HOLDOUT_FRACTION', 0)
    with pytest.raises(ValueError, match='DATA.HOLDOUT_FRACTION must be above 0 where .*got 0.0'):
        check_config(config, 'finetune')
    check_config(chexpert('DATA.HOLDOUT_FRACTION', 0, 'EVAL.SELECT_ON', 'valid'), 'finetune')


def test_a_floor_that_the_schedule_ignores_is_not_refused() -> None:
    check_config(changed('TRAIN.LR_SCHEDULER.NAME', 'linear', 'TRAIN.MIN_LR', 1e-3), 'simmim')


def test_only_one_thing_is_done_in_place_of_training() -> None:
    config = default_config()
    config.EVAL_MODE = config.CHECK_MODE = True
    with pytest.raises(ValueError, match=r"only one of \['EVAL_MODE', 'CHECK_MODE'\]"):
        check_config(config)


@pytest.mark.parametrize('key', ['MODEL.NAME', 'TAG'])
@pytest.mark.parametrize('value', ['../../other', '/other', 'a/../../b'])
def test_a_run_stays_below_the_output_folder(key, value) -> None:
    with pytest.raises(ValueError, match=f'{key} must be the name of a folder inside OUTPUT'):
        check_config(changed(key, value))
    check_config(changed(key, 'study/one'))
