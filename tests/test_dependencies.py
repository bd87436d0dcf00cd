"""The table of dependencies is that of the requirements files."""

import importlib.util

from tiny import ROOT


def test_the_table_of_dependencies_names_every_requirement() -> None:
    specification = importlib.util.spec_from_file_location('l', ROOT / 'scripts' / 'licences.py')
    licences = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(licences)
    names = {r.name for r in licences.read_requirements()}
    lines = [
        line.split('#')[0].strip()
        for file in licences.FILES
        for line in (ROOT / file).read_text().splitlines()
    ]
    wanted = {line.split('>=')[0] for line in lines if line and not line.startswith('-r')}
    assert names == wanted and len(wanted) > 20
    page = (ROOT / 'docs' / 'dependencies.md').read_text()
    for requirement in licences.read_requirements():
        start = f'| {requirement.name} | {requirement.versions} | '
        lines = [line for line in page.splitlines() if line.startswith(start)]
        assert len(lines) == 1 and 'unknown' not in lines[0], requirement.name
        assert requirement.versions.startswith('>=') and requirement.what in lines[0]
