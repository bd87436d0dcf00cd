"""Options as text: the config of a run, and the differences between two."""

from typing import Any

from yacs.config import CfgNode

from options.declaration import OPTIONS
from options.values import (
    DEFAULTS,
    Config,
    default_config,
    flatten,
    put,
    read_options,
    with_current_keys,
)


def options_that_affect(*effects: str) -> list[str]:
    """Return the keys of the options with one of these effects (see EFFECTS)."""
    return [key for key, option in OPTIONS.items() if {*option.affects} & {*effects}]


def config_text(config: CfgNode) -> str:
    """Return the options as YAML that repeats the run if used as --cfg. BASE is already merged."""
    plain = config.clone()
    plain.defrost()
    # The files of BASE may change later, so the text must not read them again.
    plain.BASE = ['']
    return plain.dump(sort_keys=False)


def config_from_text(text: str) -> Config:
    """Read the options that `config_text` wrote, without keys that no longer exist.

    Raises:
        ValueError: If the text is not a mapping, or a value has the wrong type.
    """
    config = default_config()
    known = dict(flatten(config))
    for key, value in flat_options(text).items():
        if key in known:
            put(config, key, value, 'the saved options')
    return config


def config_changes(before: str, after: str, *effects: str) -> list[str]:
    """List the options that differ between two texts of `config_text` as 'KEY: old -> new'.

    An option that did not exist yet when a text was written counts as having its default value.
    Options of encoders that MODEL.TYPE does not select are left out.

    Args:
        before: Text of the options.
        after: Text of the other options.
        effects: Only options with one of these effects (see EFFECTS); none: all options. An option
            that no longer exists affects the weights.
    """
    old, new = flat_options(before), flat_options(after)
    # An option that a text lacks has its default value.
    added = {key: value for key, value in flatten(DEFAULTS) if key in old or key in new}
    old, new = {**added, **old}, {**added, **new}
    used = {old.get('MODEL.TYPE'), new.get('MODEL.TYPE')}
    encoders = OPTIONS['MODEL.TYPE'].names if None not in used else ()
    idle = tuple(f'MODEL.{name.upper()}.' for name in encoders if name not in used)
    changes = []
    for key in {**old, **new}:
        affects = OPTIONS[key].affects if key in OPTIONS else ('weights',)
        counts = not key.startswith(idle) and (not effects or {*affects} & {*effects})
        if counts and old.get(key) != new.get(key):
            changes.append(f'{key}: {_shown(old.get(key))} -> {_shown(new.get(key))}')
    return changes


def flat_options(text: str) -> dict[str, Any]:
    """Read options from YAML as {dotted key: value}, with LEGACY_KEYS replaced and no key checked.

    Raises:
        ValueError: If the text is not a mapping.
    """
    return with_current_keys(read_options(text), DEFAULTS.MODEL.TYPE)


def _shown(value: Any) -> str:
    return str(value) or "''"
