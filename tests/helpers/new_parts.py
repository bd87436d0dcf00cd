"""Parts of one's own for a test, declared as lines of config.py would, and removed after it."""

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from config import DEFAULTS, OPTIONS, REGISTRIES, Option, Own, Section, declare, value_at

REGISTERED = {
    'MASKS': 'DATA.MASK_TYPE',
    'HEADS': 'MODEL.SIMMIM.HEAD',
    'TARGETS': 'MODEL.SIMMIM.TARGET',
    'LOSSES': 'MODEL.SIMMIM.LOSS',
    'PRETRAINING': 'MODEL.PRETRAIN',
    'CLASSIFIER_HEADS': 'MODEL.HEAD',
    'TASKS': 'DATA.TASK',
    'ENCODERS': 'MODEL.TYPE',
    'METHODS': 'CONTRASTIVE.METHOD',
    'MIXERS': 'AUG.MIXER',
    'OPTIMIZERS': 'TRAIN.OPTIMIZER.NAME',
    'SCHEDULES': 'TRAIN.LR_SCHEDULER.NAME',
    'WRITERS': 'LOGGER',
    'register_policy': 'DATA.UNCERTAIN',
    'register_loss': 'LOSS.NAME',
}
EXAMPLE = re.compile(r'^```python\n# (\S+)\n(.*?)^```', re.M | re.S)
PAGE = Path(__file__).parents[2].joinpath('docs/howto/extend.md').read_text('utf-8')


@pytest.fixture
def add_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Adds a value to an option, its module, and its section of options.

    The text of a module, if given, is written to a file in a folder on the path.
    """
    options = dict(OPTIONS)
    names, sections, modules = [], [], set()
    folder = tmp_path / 'modules'
    monkeypatch.syspath_prepend(folder)

    def add(
        key: str,
        name: str,
        module: str,
        text: str = '',
        section: str = '',
        options: Mapping[str, Option] | None = None,
    ) -> None:
        names.append((key, name))
        OPTIONS[key] = replace(OPTIONS[key], parts={**OPTIONS[key].parts, name: module})
        if text:
            folder.mkdir(exist_ok=True)
            (folder / f'{module}.py').write_text(text)
        if module not in sys.modules:  # it must be imported again to register its parts again
            modules.add(module)
        if section:
            parent, _, last = section.rpartition('.')
            node = value_at(DEFAULTS, parent)
            declare({last: options or {}}, node, f'{parent}.')
            sections.append((node, last))

    yield add
    for node, last in sections:
        del node[last]
    OPTIONS.clear()
    OPTIONS.update(options)
    for key, name in names:
        REGISTRIES[key].data.pop(name, None)
    for module in modules:
        sys.modules.pop(module, None)


class Lines(Section):
    """Stands for `_C` in config.py: sections come into being when they are named."""

    def __getattr__(self, name: str):
        return self.setdefault(name, Lines())


@pytest.fixture
def add_example(add_part: Callable[..., None]) -> Callable[..., tuple[str, str, str]]:
    """Adds a file of docs/howto/extend.md; returns its option, the name of the part and its module.

    It comes with the lines of config.py before it. Its text may be changed. The option is '' if
    the file has no part.
    """

    def add(file: str, change: Callable[[str], str] = str) -> tuple[str, str, str]:
        lines = Lines()
        for name, code in EXAMPLE.findall(PAGE):
            if name == 'config.py':
                lines = Lines()
                exec(code, {'_C': lines, 'Own': Own, 'Section': Section})
            elif name == file:
                break
            else:
                lines = Lines()
        module = f'example_{Path(file).stem}'
        found = re.search(r"^@(\w+)(?:\.register)?\('(\w+)'", code, re.M)
        key, part = (REGISTERED[found[1]], found[2]) if found else ('', 'unused')
        path, section = [], lines
        while isinstance(section, Lines) and section:
            (step, section), *_ = section.items()
            path.append(step)
        text, options = change(code), section if path else None
        add_part(key or 'DATA.MASK_TYPE', part, module, text, '.'.join(path), options)
        return key, part, module

    return add
