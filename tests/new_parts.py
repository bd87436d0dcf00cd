"""Parts of one's own for a test, declared as lines of config.py would, and removed after it."""

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from config import DEFAULTS, OPTIONS, REGISTRIES, Option, declare, value_at


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
