"""Build the wheel: one package, `simmim_xray`, whose modules import each other by this name.

In the repository the modules have SimMIM's names at the top (`config`, `data`, `models`). In an
environment with other projects these names may belong to somebody else. The build therefore writes
`simmim_xray.` before each of them in the import statements of the copied files: `from
data.images.files import load_image` becomes `from simmim_xray.data.images.files import load_image`.
Modules that options name are found by `options.parts.import_by_name`, which knows its own package.

pyproject.toml names `PrefixedBuild`; nobody calls it by hand.
"""

import re
from pathlib import Path

from setuptools.command.build_py import build_py

PACKAGE = 'simmim_xray'
ROOT = Path(__file__).resolve().parents[1]
NAMES = {path.stem for path in ROOT.glob('*.py')} - {PACKAGE}
NAMES |= {path.parent.name for path in ROOT.glob('*/__init__.py')} | {'scripts'}
IMPORT = re.compile(rf'^(\s*)from ({"|".join(sorted(NAMES))})\b', re.MULTILINE)
# A script in the repository makes the modules above its folder importable.
PATH = re.compile(r'^sys\.path\.insert\(.*\n+', re.MULTILINE)


def prefixed(text: str) -> str:
    """Return the text of a module as the wheel has it."""
    return IMPORT.sub(rf'\1from {PACKAGE}.\2', PATH.sub('', text))


class PrefixedBuild(build_py):
    """Copies the modules with prefixed imports; `simmim_xray.py` is the package's `__init__`."""

    def build_module(
        self, module: str, module_file: str, package: list[str] | str
    ) -> tuple[str, bool]:
        copy, is_new = super().build_module(module, module_file, package)
        path = Path(copy)
        path.write_text(prefixed(path.read_text(encoding='utf-8')), encoding='utf-8')
        return copy, is_new

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            package = Path(self.build_lib) / PACKAGE
            (package / f'{PACKAGE}.py').replace(package / '__init__.py')
