"""Values and combinations of options that cannot work, refused before anything is built."""

from pathlib import PurePath

from options.declaration import OPTIONS, is_inside
from options.parts import OptionError, module_of_option, refuse_unless, selected_part
from options.values import COMMAND_LINE, Config, given_keys, value_at

# Modes that fit a classifier on features of a frozen encoder, and baselines without an encoder.
NO_ENCODER = ('pixels', 'metadata')
PROBES = ('linear_probe', 'knn', 'attentive_probe', *NO_ENCODER)


def check_config(config: Config, stage: str | None = None) -> None:
    """Reject values and combinations of options that cannot work, before anything is built.

    Args:
        config: Run configuration.
        stage: 'simmim', 'contrastive' or 'finetune' adds the checks of that stage.

    Raises:
        ValueError: At the first problem. The message names the key, the value and the allowed
            values.
    """
    check_values(config, stage)
    # Only the selected parts are imported, and each one knows the rules of its own options.
    for key, option in OPTIONS.items():
        if option.parts and option.is_used_in(stage):
            selected = selected_part(config, key)
            for each in selected if isinstance(selected, list) else [selected]:
                if hasattr(each, 'check'):
                    each.check(config, stage)
        # An option with its default, or with a value that is off, needs nothing of its file.
        if option.file and value_at(config, key) not in (option.default, *option.off):
            module = module_of_option(key)
            if hasattr(module, 'check'):
                module.check(config, stage)


def check_values(config: Config, stage: str | None) -> None:
    """Reject what can be told without the parts of the code that the options select."""
    for key, option in OPTIONS.items():
        refuse_unless(option.allows(value_at(config, key)), config, key, option.allowed)
    _check_names(config)
    _check_data_options(config)
    _check_schedule(config)
    if stage == 'finetune':
        _check_finetuning(config)


def refuse_other_stage(config: Config, stage: str) -> None:
    """Reject a config file of another stage, and --opts that this stage does not use.

    A file may have options of other stages beside those that only this stage uses. The --cfg file
    decides whether it is of this stage, or else its BASE files.

    Args:
        config: Options that have been merged from files and --opts.
        stage: 'simmim', 'contrastive' or 'finetune', the stage of main_<stage>.py.

    Raises:
        OptionError: If the options are of another stage. The message names the option, its source
            and the main that uses it.
    """
    if config.STAGE not in ('', stage):
        raise OptionError(
            f'STAGE is {config.STAGE!r}, so these are options of main_{config.STAGE}.py, and this '
            f'is main_{stage}.py: choose another --cfg'
        )
    given = [(key, source) for key, source in given_keys(config) if key in OPTIONS]
    stages = {}  # source -> stages of its options that only one stage uses
    for key, source in given:
        if source != COMMAND_LINE and len(OPTIONS[key].stage) == 1:
            stages.setdefault(source, set()).update(OPTIONS[key].stage)
    last = next(reversed(stages.values()), set())  # files come after their BASE files
    for key, source in reversed(given):
        option = OPTIONS[key]
        if not option.is_used_in(stage) and (source == COMMAND_LINE or stage not in last):
            mains = ' and '.join(f'main_{name}.py' for name in option.stage)
            remedy = 'leave it out' if source == COMMAND_LINE else 'choose another --cfg'
            raise OptionError(
                f'{key} in {source} is an option of {mains}, and main_{stage}.py does not use it: '
                f'{remedy}'
            )


def _check_names(config: Config) -> None:
    """Check the mode of the run, and values that name files, folders or columns."""
    modes = [key for key in ('EVAL_MODE', 'THROUGHPUT_MODE', 'CHECK_MODE') if config[key]]
    if len(modes) > 1:
        refuse_unless(False, config, modes[1], f'False with {modes[0]}')
    for key in ('MODEL.NAME', 'TAG'):
        path = PurePath(value_at(config, key))
        is_allowed = not path.is_absolute() and '..' not in path.parts
        refuse_unless(is_allowed, config, key, 'a relative path without .. below OUTPUT')
    is_allowed = all(isinstance(name, str) and name for name in config.EVAL.GROUPS)
    refuse_unless(is_allowed, config, 'EVAL.GROUPS', 'a list of names')
    is_allowed = config.DATA.IMAGE_SUFFIX[:1] in ('', '.')
    refuse_unless(is_allowed, config, 'DATA.IMAGE_SUFFIX', "empty, or a suffix such as '.png'")


def _check_data_options(config: Config) -> None:
    data, channels = config.DATA, config.MODEL.IN_CHANS
    for key in ('MEAN', 'STD'):
        is_allowed = len(data[key]) == (channels if data.MEAN or data.STD else 0)
        allowed = f'{channels} numbers, one per channel, or [] for both MEAN and STD'
        refuse_unless(is_allowed, config, f'DATA.{key}', allowed)
    is_allowed = data.TRAIN_FRACTION == 1 or data.TRAIN_IMAGES == 0
    allowed = f'0, because DATA.TRAIN_FRACTION is {data.TRAIN_FRACTION:g}: also set that to 1.0'
    refuse_unless(is_allowed, config, 'DATA.TRAIN_IMAGES', allowed)
    pairs = {'AUG.CROP_AREA': [], 'AUG.CUTMIX_MINMAX': None}
    for key, off in {**pairs, 'CONTRASTIVE.FIRST_CROP_AREA': []}.items():
        pair = value_at(config, key)
        is_allowed = pair == off or (len(pair) == 2 and 0 < pair[0] <= pair[1])
        refuse_unless(is_allowed, config, key, f'[low, high] with 0 < low <= high, or {off}')
    operations = config.AUG.RANDAUGMENT
    is_allowed = len(operations) in (0, 2) and all(type(number) is int for number in operations)
    allowed = 'two whole numbers, [operations, magnitude], or []'
    refuse_unless(is_allowed, config, 'AUG.RANDAUGMENT', allowed)
    is_allowed = not operations or config.AUG.AUTO_AUGMENT == 'none'
    refuse_unless(is_allowed, config, 'AUG.RANDAUGMENT', "[] unless AUG.AUTO_AUGMENT is 'none'")


def _check_schedule(config: Config) -> None:
    train, schedule = config.TRAIN, config.TRAIN.LR_SCHEDULER
    refuse_unless(train.START_EPOCH == 0, config, 'TRAIN.START_EPOCH', '0')
    latest = train.EPOCHS
    if schedule.NAME == 'multistep':
        steps = schedule.MULTISTEPS
        is_allowed = bool(steps) and is_inside(steps, '[1, inf)') and steps == sorted(steps)
        refuse_unless(
            is_allowed, config, 'TRAIN.LR_SCHEDULER.MULTISTEPS', 'ascending epochs such as [700]'
        )
        latest = min(latest, steps[0])
    allowed = f'at most {latest}, the number of epochs or the epoch of the first drop'
    refuse_unless(train.WARMUP_EPOCHS <= latest, config, 'TRAIN.WARMUP_EPOCHS', allowed)


def _check_finetuning(config: Config) -> None:
    mode = config.FINETUNE.MODE
    is_allowed = not (mode in NO_ENCODER and config.PRETRAINED)
    refuse_unless(
        is_allowed, config, 'PRETRAINED', f"'' with FINETUNE.MODE {mode!r}, which has no encoder"
    )
    is_probe = config.FINETUNE.MODE in PROBES and not config.EVAL_MODE
    needs_holdout = is_probe or config.EVAL.SELECT_ON == 'holdout'
    is_allowed = config.DATA.HOLDOUT_FRACTION > 0 or not needs_holdout
    reason = f'FINETUNE.MODE {config.FINETUNE.MODE}' if is_probe else 'EVAL.SELECT_ON holdout'
    refuse_unless(is_allowed, config, 'DATA.HOLDOUT_FRACTION', f'above 0 with {reason}')
    is_allowed = not (is_probe and config.MODEL.RESUME)
    allowed = 'empty with a probe (use --pretrained for the encoder)'
    refuse_unless(is_allowed, config, 'MODEL.RESUME', allowed)
    if is_probe:
        heads = {'attentive_probe': ('attention',), 'linear_probe': ('linear', 'patient')}
        heads = heads.get(config.FINETUNE.MODE, ('linear',))
        allowed = f'{" or ".join(map(repr, heads))} with FINETUNE.MODE {config.FINETUNE.MODE!r}'
        refuse_unless(config.MODEL.HEAD in heads, config, 'MODEL.HEAD', allowed)
        is_allowed = config.DATA.SAMPLER == 'uniform'
        refuse_unless(
            is_allowed,
            config,
            'DATA.SAMPLER',
            "'uniform' with a probe, which reads each image once",
        )
