"""Which values an option takes and which options go together, checked before anything is built."""

from collections.abc import Iterable
from functools import partial
from pathlib import PurePath
from typing import Any

from config_checks_contrastive import READS, contrastive_demands
from config_checks_labels import label_demands
from config_checks_mae import mae_demands
from config_merge import value_at
from config_node import mask_units

VIEWS = ('frontal', 'lateral', 'all')
PROBES = ('linear_probe', 'knn')  # fitted on frozen features, not trained
INTERPOLATIONS = ('bilinear', 'bicubic', 'lanczos', 'hamming')

CHOICES = {
    'DATA.DATASET': ('imagenet', 'folder', 'chexpert', 'mimic-cxr'),
    'DATA.TASK': ('observations', 'any_finding', 'effusion'),
    'DATA.SAMPLER': ('uniform', 'weighted'),
    'DATA.PREPROCESS': ('none', 'equalize', 'clahe', 'denoise'),
    'DATA.LABELLER': ('chexpert', 'negbio'),
    'DATA.INTERPOLATION': ('random', *INTERPOLATIONS),
    'DATA.PRETRAIN_INTERPOLATION': INTERPOLATIONS,
    'DATA.VIEWS': VIEWS,
    'DATA.BAD_IMAGE': ('error', 'skip'),
    'DATA.BLANK': ('negative', 'ignore'),
    'DATA.NORMALIZE': ('dataset', 'image'),
    'DATA.MASK_TYPE': ('random', 'square', 'block'),
    'MODEL.TYPE': ('swin', 'vit', 'timm'),
    'MODEL.PRETRAIN': ('simmim', 'mae'),
    'MODEL.ATTENTION': ('auto', 'eager', 'sdpa'),
    'MODEL.SWIN.IN_CHANS': (1, 3),
    'MODEL.VIT.IN_CHANS': (1, 3),
    'MODEL.TIMM.IN_CHANS': (1, 3),
    'MODEL.SIMMIM.HEAD': (
        'linear',
        'mlp',
        'inverse_swin_nano',
        'inverse_swin_t',
        'inverse_swin_b',
    ),
    'MODEL.SIMMIM.LOSS': ('l1', 'l2', 'smooth_l1'),
    'MODEL.SIMMIM.LOSS_PIXELS': ('masked', 'all'),
    'MODEL.SIMMIM.TARGET': ('pixels', 'patch_normalised'),
    'TRAIN.LR_SCHEDULER.NAME': ('cosine', 'linear', 'step', 'multistep', 'onecycle'),
    'TRAIN.ON_NAN': ('stop', 'skip'),
    'TRAIN.CHECKPOINT_KEEPS': ('nothing', 'products'),
    'TRAIN.COMPILE': ('none', 'auto', 'max'),
    'TRAIN.GRADIENT_EXCHANGE': ('float32', 'bfloat16'),
    'AUG.REMODE': ('const', 'rand', 'pixel'),
    'AUG.MIXUP_MODE': ('batch', 'pair', 'elem'),
    'EVAL.VIEWS': ('', *VIEWS),
    'EVAL.LEVEL': ('study', 'image'),
    'EVAL.AGGREGATE': ('max', 'mean'),
    'EVAL.TTA': ('none', 'crops'),
    'EVAL.THRESHOLD': ('youden', 'f1', 'sensitivity'),
    'EVAL.SELECT_ON': ('holdout', 'valid'),
    'EVAL.SELECT': ('auto', 'five', 'all'),
    'CONTRASTIVE.METHOD': tuple(READS),
    'LOSS.NAME': ('bce', 'weighted_bce', 'focal', 'asymmetric'),
    'FINETUNE.MODE': ('full', 'last_layer', *PROBES),
    'REPORT.METHOD': ('grad_cam', 'rollout'),
    'AMP_OPT_LEVEL': ('O0', 'O1', 'O2'),
}
RANGES = {
    '[1, inf)': (
        'DATA.BATCH_SIZE DATA.MASK_PATCH_SIZE MODEL.SWIN.PATCH_SIZE '
        'MODEL.SWIN.EMBED_DIM MODEL.SWIN.WINDOW_SIZE MODEL.VIT.PATCH_SIZE MODEL.VIT.EMBED_DIM '
        'MODEL.VIT.DEPTH MODEL.VIT.NUM_HEADS TRAIN.EPOCHS TRAIN.LR_SCHEDULER.DECAY_EPOCHS '
        'AUG.RECOUNT SAVE_FREQ PRINT_FREQ MODEL.MAE.DECODER_EMBED_DIM MODEL.MAE.DECODER_DEPTH '
        'MODEL.MAE.DECODER_NUM_HEADS CONTRASTIVE.DIM CONTRASTIVE.QUEUE_SIZE '
        'CONTRASTIVE.NUM_PROTOTYPES'
    ),
    '[0, inf)': (
        'DATA.NUM_WORKERS DATA.TRAIN_IMAGES MODEL.NUM_CLASSES MODEL.VIT.INIT_VALUES '
        'TRAIN.WARMUP_EPOCHS TRAIN.WEIGHT_DECAY TRAIN.WARMUP_LR TRAIN.MIN_LR '
        'TRAIN.CLIP_GRAD TRAIN.ACCUMULATION_STEPS TRAIN.SAVE_EVERY_STEPS '
        'TRAIN.SAVE_EVERY_MINUTES TRAIN.NAN_LIMIT DATA.BAD_IMAGE_LIMIT SAVE_KEEP AUG.COLOR_JITTER '
        'AUG.MIXUP AUG.CUTMIX EVAL.HOLDOUT_IMAGES EVAL.RESAMPLES EVAL.AGE_BANDS LOSS.GAMMA '
        'LOSS.GAMMA_POS LOSS.GAMMA_NEG MODEL.SIMMIM.TARGET_SIZE REPORT.MAPS SEED '
        'CONTRASTIVE.FREEZE_PROTOTYPES_STEPS CONTRASTIVE.LOCAL_CROPS CONTRASTIVE.LOCAL_SIZE'
    ),
    '(0, inf)': (
        'MODEL.SWIN.MLP_RATIO MODEL.SWIN.QK_SCALE MODEL.VIT.MLP_RATIO TRAIN.BASE_LR '
        'TRAIN.RANK_TIMEOUT_MINUTES TRAIN.OPTIMIZER.EPS TRAIN.LR_SCHEDULER.DECAY_RATE '
        'TRAIN.LR_SCHEDULER.GAMMA AUG.SCALE CONTRASTIVE.TEMPERATURE'
    ),
    '(0, 1]': 'DATA.TRAIN_FRACTION TRAIN.LAYER_DECAY',
    '(0, 1)': 'DATA.MASK_RATIO TRAIN.OPTIMIZER.MOMENTUM EVAL.SENSITIVITY',
    '[0, 1)': (
        'DATA.HOLDOUT_FRACTION MODEL.DROP_RATE MODEL.DROP_PATH_RATE MODEL.LABEL_SMOOTHING '
        'TRAIN.OPTIMIZER.BETAS AUG.TRANSLATE LOSS.CLIP CONTRASTIVE.MOMENTUM'
    ),
    '[0, 1]': (
        'DATA.MEAN AUG.REPROB AUG.MIXUP_PROB AUG.MIXUP_SWITCH_PROB AUG.HFLIP AUG.CROP_AREA '
        'AUG.CUTMIX_MINMAX LOSS.ALPHA CONTRASTIVE.BLUR CONTRASTIVE.LOCAL_CROP_AREA'
    ),
    '[0, 0.66]': 'AUG.DISTORTION',
    '[0, 180]': 'AUG.ROTATION',
    '[1, 8192]': 'DATA.IMG_SIZE',
    '[0, 90)': 'AUG.SHEAR',
}
NAN_TARGETS = 'it mixes targets, and a label that is not known has none'
# What fine-tuning on CheXpert's labels needs: key -> (the one value that works, why).
CHEXPERT_LABELS = {
    'MODEL.LABEL_SMOOTHING': (0.0, 'it needs one class per image'),
    'AUG.AUTO_AUGMENT': ('none', 'the policies change colours of 3-channel photographs'),
    'AUG.MIXUP': (0.0, NAN_TARGETS),
    'AUG.CUTMIX': (0.0, NAN_TARGETS),
    'AUG.CUTMIX_MINMAX': (None, NAN_TARGETS),
}


def check_config(config: Any, stage: str | None = None) -> None:
    """Refuse what cannot work, naming key, value and what is allowed.

    Args:
        config: all options.
        stage: adds what only 'simmim', 'contrastive' or 'finetune' needs; only the first has masks.

    Raises:
        ValueError: at the first option that is out of range or does not go with the others.
    """
    for key, allowed in CHOICES.items():
        _require(value_at(config, key) in allowed, config, key, f'one of {list(allowed)}')
    for interval, keys in RANGES.items():
        for key in keys.split():
            _check_range(config, key, interval)
    _require(config.SEED < 2**63, config, 'SEED', 'at most 2**63 - 1')  # beyond, NumPy rounds keys
    modes = [k for k in ('EVAL_MODE', 'THROUGHPUT_MODE', 'CHECK_MODE') if config[k]]
    if len(modes) > 1:
        raise ValueError(f'only one of {modes} may be asked for')
    for key in ('MODEL.NAME', 'TAG'):
        path = PurePath(value_at(config, key))
        inside = not path.is_absolute() and '..' not in path.parts
        _require(inside, config, key, 'the name of a folder inside OUTPUT')
    _check_uncertain(config)
    _check_statistics(config)
    _check_ordered_pair(config, 'AUG.CROP_AREA', [])
    _check_ordered_pair(config, 'AUG.CUTMIX_MINMAX', None)
    _check_ordered_pair(config, 'AUG.SCALE', [])
    _check_evaluation(config)
    _check_training(config)
    check_timm = partial(_check_timm, stage=stage)
    {'swin': _check_swin, 'vit': _check_vit, 'timm': check_timm}[config.MODEL.TYPE](config)
    if stage == 'finetune':
        _check_finetune(config)
    elif stage == 'contrastive':
        _check_demands(config, contrastive_demands(config))
    elif config.MODEL.TYPE == 'timm':
        allowed = "'swin' or 'vit' for pre-training: patches are hidden among tokens"
        _require(stage != 'simmim', config, 'MODEL.TYPE', allowed)
    else:
        _check_masks(config)
        (_check_mae if config.MODEL.PRETRAIN == 'mae' else _check_target)(config)


def _require(holds: bool, config: Any, key: str, allowed: str) -> None:
    if not holds:
        raise ValueError(f'{key} must be {allowed}, got {value_at(config, key)!r}')


def _check_range(config: Any, key: str, interval: str) -> None:
    """A number (each number of a list, None left out) must lie in '[low, high)' or the like."""
    value = value_at(config, key)
    values = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
    low, high = map(float, interval[1:-1].split(','))
    for number in values:
        inside = (
            type(number) in (int, float)
            and low <= number <= high
            and (number != low or interval[0] == '[')
            and (number != high or interval[-1] == ']')
        )
        each = 'numbers' if values is value else 'a number'
        _require(inside, config, key, f'{each} in {interval}')


def _check_ordered_pair(config: Any, key: str, off: Any) -> None:
    pair = value_at(config, key)
    holds = pair == off or (len(pair) == 2 and 0 < pair[0] <= pair[1])
    _require(holds, config, key, f'[low, high] with 0 < low <= high, or {off}')


def _check_uncertain(config: Any) -> None:
    from data.labels import LABELS, POLICIES

    policies = f'one of {list(POLICIES)}'
    _require(config.DATA.UNCERTAIN in POLICIES, config, 'DATA.UNCERTAIN', policies)
    for label, policy in config.DATA.UNCERTAIN_BY_LABEL.items():
        if label not in LABELS:
            raise ValueError(
                f'DATA.UNCERTAIN_BY_LABEL names {label!r}, labels are {", ".join(LABELS)}'
            )
        if policy not in POLICIES:
            raise ValueError(
                f'DATA.UNCERTAIN_BY_LABEL[{label!r}] must be {policies}, got {policy!r}'
            )


def _check_statistics(config: Any) -> None:
    data = config.DATA
    channels = config.MODEL[config.MODEL.TYPE.upper()].IN_CHANS
    for key, other in (('MEAN', 'STD'), ('STD', 'MEAN')):
        holds = len(data[key]) == (channels if data[key] or data[other] else 0)
        allowed = f'as long as there are channels, {channels}, or empty together with DATA.{other}'
        _require(holds, config, f'DATA.{key}', allowed)
    _require(all(0 < std <= 1 for std in data.STD), config, 'DATA.STD', 'numbers in (0, 1]')
    holds = data.TRAIN_FRACTION == 1 or data.TRAIN_IMAGES == 0
    _require(holds, config, 'DATA.TRAIN_IMAGES', '0 where DATA.TRAIN_FRACTION is below 1')
    holds = data.IMAGE_SUFFIX == '' or data.IMAGE_SUFFIX.startswith('.')
    _require(holds, config, 'DATA.IMAGE_SUFFIX', "empty, or a suffix like '.png'")


def _check_evaluation(config: Any) -> None:
    bands = config.EVAL.AGE_BANDS
    holds = bool(bands) and bands == sorted(set(bands))
    _require(holds, config, 'EVAL.AGE_BANDS', 'ascending ages such as [0, 40, 60, 80]')
    for key in ('ENSEMBLE', 'GROUPS'):
        holds = all(isinstance(name, str) and name for name in config.EVAL[key])
        _require(holds, config, f'EVAL.{key}', 'a list of names')


def _check_training(config: Any) -> None:
    train, schedule = config.TRAIN, config.TRAIN.LR_SCHEDULER
    warmup = 'TRAIN.WARMUP_EPOCHS'
    _require(
        train.OPTIMIZER.NAME.lower() in ('adamw', 'sgd'),
        config,
        'TRAIN.OPTIMIZER.NAME',
        "one of ['adamw', 'sgd']",
    )
    _require(len(train.OPTIMIZER.BETAS) == 2, config, 'TRAIN.OPTIMIZER.BETAS', 'two numbers')
    epochs = f'TRAIN.EPOCHS, {train.EPOCHS}'
    _require(train.WARMUP_EPOCHS <= train.EPOCHS, config, warmup, f'at most {epochs}')
    allowed = '0: a resumed run begins where its checkpoint ended'
    _require(train.START_EPOCH == 0, config, 'TRAIN.START_EPOCH', allowed)
    if schedule.NAME != 'multistep':
        return
    steps = schedule.MULTISTEPS
    holds = bool(steps) and all(type(step) is int and step > 0 for step in steps)
    allowed = "ascending epochs like [700] where TRAIN.LR_SCHEDULER.NAME is 'multistep'"
    _require(holds and steps == sorted(steps), config, 'TRAIN.LR_SCHEDULER.MULTISTEPS', allowed)
    allowed = f'at most the first of TRAIN.LR_SCHEDULER.MULTISTEPS, {steps[0]}'
    _require(train.WARMUP_EPOCHS <= steps[0], config, warmup, allowed)


def _check_swin(config: Any) -> None:
    swin, size = config.MODEL.SWIN, config.DATA.IMG_SIZE
    stages = len(swin.DEPTHS)
    for key in ('DEPTHS', 'NUM_HEADS'):
        holds = bool(swin[key]) and all(type(n) is int and n > 0 for n in swin[key])
        _require(holds, config, f'MODEL.SWIN.{key}', 'whole numbers from 1, one per stage')
    holds = len(swin.NUM_HEADS) == stages
    allowed = f'as long as MODEL.SWIN.DEPTHS, {stages}'
    _require(holds, config, 'MODEL.SWIN.NUM_HEADS', allowed)
    for stage, heads in enumerate(swin.NUM_HEADS):
        width = swin.EMBED_DIM * 2**stage
        allowed = f"divisors of the stages' widths ({width} in stage {stage})"
        _require(width % heads == 0, config, 'MODEL.SWIN.NUM_HEADS', allowed)
    stride = _stride(config)
    allowed = (
        f'a multiple of {stride} (MODEL.SWIN.PATCH_SIZE {swin.PATCH_SIZE}, halved {stages - 1} '
        'times: the side of a stage must be even before it is merged)'
    )
    _require(size % stride == 0, config, 'DATA.IMG_SIZE', allowed)
    sides = [size // swin.PATCH_SIZE // 2**stage for stage in range(stages)]

    def fits(window: int) -> bool:
        return all(side <= window or side % window == 0 for side in sides)

    windows = [window for window in range(1, sides[0]) if fits(window)]
    allowed = (
        f'one of {windows} or at least {sides[0]}: the window must divide each stage that is '
        f'larger, and at DATA.IMG_SIZE {size} the stages are {sides} tokens wide'
    )
    _require(fits(swin.WINDOW_SIZE), config, 'MODEL.SWIN.WINDOW_SIZE', allowed)


def _stride(config: Any) -> int:
    """Pixels per token that the encoder puts out."""
    swin = config.MODEL.SWIN
    if config.MODEL.TYPE == 'swin':
        return swin.PATCH_SIZE * 2 ** (len(swin.DEPTHS) - 1)
    return config.MODEL.VIT.PATCH_SIZE


def _check_vit(config: Any) -> None:
    vit = config.MODEL.VIT
    allowed = f'a multiple of MODEL.VIT.PATCH_SIZE, {vit.PATCH_SIZE}'
    _require(config.DATA.IMG_SIZE % vit.PATCH_SIZE == 0, config, 'DATA.IMG_SIZE', allowed)
    allowed = f'a divisor of MODEL.VIT.EMBED_DIM, {vit.EMBED_DIM}'
    _require(vit.EMBED_DIM % vit.NUM_HEADS == 0, config, 'MODEL.VIT.NUM_HEADS', allowed)
    allowed = 'False with USE_APE, which learns positions, or a width that is no multiple of 4'
    holds = not vit.USE_SINCOS or not (vit.USE_APE or vit.EMBED_DIM % 4)
    _require(holds, config, 'MODEL.VIT.USE_SINCOS', allowed)


def _check_timm(config: Any, *, stage: str | None) -> None:
    from models.timm_classifier import check_timm  # imports torch

    check_timm(config, finetunes=stage == 'finetune')


def _check_masks(config: Any) -> None:
    data, encoder = config.DATA, config.MODEL.TYPE.upper()
    patch = config.MODEL[encoder].PATCH_SIZE
    allowed = (
        f'a divisor of DATA.IMG_SIZE, {data.IMG_SIZE}, '
        f'and a multiple of MODEL.{encoder}.PATCH_SIZE, {patch}'
    )
    holds = data.IMG_SIZE % data.MASK_PATCH_SIZE == 0 and data.MASK_PATCH_SIZE % patch == 0
    _require(holds, config, 'DATA.MASK_PATCH_SIZE', allowed)
    units, hidden = mask_units(config)
    allowed = f'such that 1 to {units - 1} of the {units} units are hidden, not {hidden}'
    _require(hidden < units, config, 'DATA.MASK_RATIO', allowed)


def _check_target(config: Any) -> None:
    """Cells over which pixels are averaged: the head can give them, no masking unit cuts them."""
    size, unit, options = config.DATA.IMG_SIZE, config.DATA.MASK_PATCH_SIZE, config.MODEL.SIMMIM
    patch, whole = _stride(config), "of the encoder's stride"
    if options.HEAD.startswith('inverse_swin'):
        from models.heads import output_patch  # imports torch

        patch, whole = output_patch(options.HEAD, patch), f'of the last patch of {options.HEAD}'
    cells = [cell for cell in range(1, patch + 1) if patch % cell == 0 and unit % cell == 0]
    allowed = (
        f'0 or one of {[size // cell for cell in reversed(cells)]}: DATA.IMG_SIZE {size} over it, '
        f'the cell that is averaged, must divide the side {whole}, {patch} pixels, and '
        f'DATA.MASK_PATCH_SIZE, {unit}, so that each cell is wholly hidden or visible'
    )
    holds = options.TARGET_SIZE in (0, *(size // cell for cell in cells))
    _require(holds, config, 'MODEL.SIMMIM.TARGET_SIZE', allowed)
    cell = size // (options.TARGET_SIZE or size)
    allowed = f"'pixels' where a masking unit is one value of {cell} px: it has no deviation"
    _require(options.TARGET == 'pixels' or cell < unit, config, 'MODEL.SIMMIM.TARGET', allowed)


def _check_mae(config: Any) -> None:
    _check_demands(config, mae_demands(config))


def _check_demands(config: Any, demands: Iterable[tuple[str, bool, str]]) -> None:
    for key, holds, allowed in demands:
        _require(holds, config, key, allowed)


def _check_finetune(config: Any) -> None:
    allowed = (
        "'chexpert' or 'mimic-cxr' for fine-tuning: 'folder' and 'imagenet' have no labels here "
        '(single-label ImageNet classification is not part of this project)'
    )
    _require(config.DATA.DATASET in ('chexpert', 'mimic-cxr'), config, 'DATA.DATASET', allowed)
    for key, (works, why) in CHEXPERT_LABELS.items():
        allowed = f'{works!r} with CheXpert labels ({why})'
        _require(value_at(config, key) == works, config, key, allowed)
    labels = 14 if config.DATA.TASK == 'observations' else 1
    allowed = f'{labels}, the number of labels of DATA.TASK {config.DATA.TASK!r}'
    _require(config.MODEL.NUM_CLASSES == labels, config, 'MODEL.NUM_CLASSES', allowed)
    _check_probe(config)
    holds = config.DATA.HOLDOUT_FRACTION > 0 or config.EVAL.SELECT_ON != 'holdout'
    allowed = "above 0 where EVAL.SELECT_ON is 'holdout'"
    _require(holds, config, 'DATA.HOLDOUT_FRACTION', allowed)
    holds = labels == 14 or config.EVAL.SELECT != 'five'
    _require(holds, config, 'EVAL.SELECT', "'auto' or 'all' where the task has one label")
    holds = config.REPORT.METHOD == 'grad_cam' or config.MODEL.TYPE == 'vit'
    _require(holds, config, 'REPORT.METHOD', "'grad_cam' but for MODEL.TYPE 'vit'")
    _check_demands(config, label_demands(config))


def _check_probe(config: Any) -> None:
    mode = config.FINETUNE.MODE
    if mode not in PROBES or config.EVAL_MODE:
        return
    allowed = f'above 0 where FINETUNE.MODE is {mode!r}'
    _require(config.DATA.HOLDOUT_FRACTION > 0, config, 'DATA.HOLDOUT_FRACTION', allowed)
    allowed = 'empty with a probe: name the encoder with --pretrained'
    _require(not config.MODEL.RESUME, config, 'MODEL.RESUME', allowed)
