"""Write docs/studies/elements.md: what the documents of three studies state, and what is done here.

python scripts/study_elements.py

The facts come from docs/studies/elements.yaml, whose first lines describe its fields. The options
of an element must have the stated values in the runs of the study; otherwise nothing is written.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import OPTIONS, Config, load_yaml, value_at
from engine.run_record import ROOT
from sweeps.files import SECTIONS, Row, Sweep, expected_config, load_sweep
from sweeps.sweep_table import SECTIONS as STAGE_WORDS
from system.files import replace_file
from system.tool import tool

FACTS = ROOT / 'docs/studies/elements.yaml'
PAGE = ROOT / 'docs/studies/elements.md'
SCALES = ('full', 'small', 'tiny')
SILENT = 'not stated'  # value of a document that says nothing about an element
VERDICTS = {
    'same': 'the value of the documents; what they leave open is named',
    'different': 'the documents state another value',
    'missing': 'not possible here',
    'chosen': 'the documents do not state it',
}
HEADER = """# The studies, element by element

This page compares three studies of others with what is done here. A row is one element of a
study: what its documents state, what is done here, the options with their values, and whether the
two are the same.

`scripts/study_elements.py` writes this page from `docs/studies/elements.yaml`. It first checks that
every option has the stated value in the runs of the study: in all rows of the sweep at the scale
`full`, unless other rows or another scale are named. `*` stands for any letters.

| verdict | meaning |
| --- | --- |
"""


@dataclass(frozen=True)
class Place:
    """Options of some rows of a study, with the values that they have in a run.

    Attributes:
        pretrain: Options of pre-training.
        finetune: Options of fine-tuning.
        sweep: Settings of the sweep file, such as `seeds` and `split`.
        weights: Environment variable with the checkpoint of the rows, '' for none; None: any.
        rows: Patterns of rows or methods; (): all rows with the stage.
        scale: Scale of the sweep.
    """

    pretrain: Mapping[str, Any] = field(default_factory=dict)
    finetune: Mapping[str, Any] = field(default_factory=dict)
    sweep: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None
    rows: Sequence[str] = ()
    scale: str = SCALES[0]


@dataclass(frozen=True)
class Element:
    """One element of a study; the fields are those of docs/studies/elements.yaml."""

    element: str
    document: str
    here: str
    verdict: str
    why: str = ''
    where: Sequence[Place] = ()

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError(f'verdict must be one of {[*VERDICTS]}, got {self.verdict!r}')
        is_chosen = self.verdict == 'chosen'
        if is_chosen and SILENT not in self.document:
            raise ValueError(f"verdict 'chosen' needs a document with {SILENT!r}")
        if self.document == SILENT and self.verdict in ('same', 'different'):
            raise ValueError(f"verdict must be 'chosen' or 'missing' for a document {SILENT!r}")


@dataclass(frozen=True)
class Study:
    """The elements of a study by group. `name` is the name of its page and of its sweep file."""

    name: str
    title: str
    about: str
    elements: Mapping[str, Sequence[Element]]

    @property
    def sweep(self) -> Path:
        return ROOT / f'scripts/studies/{self.name}.yaml'

    @property
    def all_elements(self) -> list[Element]:
        return [element for group in self.elements.values() for element in group]


class Run(NamedTuple):
    """One stage of a row: its YAML file, and its options after the scale and the row."""

    row: Row
    file: Path
    config: Config


# Reading the facts and checking them against the studies ----------------------------------------


def read_studies(path: Path = FACTS) -> list[Study]:
    """Read the elements of all studies.

    Raises:
        ValueError: If an entry has an unknown or a missing field. The message names the element.
    """
    content = load_yaml(path.read_text(encoding='utf-8'))
    return [_study(name, **entry) for name, entry in content['studies'].items()]


def wrong_values(study: Study) -> list[str]:
    """Return a line for each option of a study that has another value in its runs."""
    return [
        f'{study.name}: {element.element}: {fault}'
        for element in study.all_elements
        for place in element.where
        for fault in _faults(study.sweep, place)
    ]


def _study(name: str, title: str, about: str, elements: Mapping[str, Any]) -> Study:
    groups = {
        group: [_element(entry, f'{FACTS.name}: {name}: {group}') for entry in entries]
        for group, entries in elements.items()
    }
    return Study(name, title, about, groups)


def _element(entry: Mapping[str, Any], where: str) -> Element:
    try:
        places = [Place(**place) for place in entry.get('where', ())]
        return Element(**{**entry, 'where': places})
    except (TypeError, ValueError) as error:
        raise ValueError(f'{where}: {entry.get("element")}: {error}') from error


def _faults(path: Path, place: Place) -> Iterator[str]:
    """Yield what a place states wrongly about the sweep."""
    sweep = _sweep(path, place.scale)
    for pattern in place.rows:
        if not any(_matches(row, pattern) for row in sweep.rows):
            yield f'no row of {path.name} is named {pattern!r} at the scale {place.scale}'
    if place.weights is not None:
        values = {row.name: row.weights for row in sweep.rows if _is_chosen(row, place)}
        yield from _first('weights', values, place.weights)
    settings = vars(sweep) | {'seeds': sweep.scale.seeds}
    for key, stated in place.sweep.items():
        yield from _compared(f'{key} of {path.name}', settings.get(key), stated)
    for section in STAGE_WORDS:
        yield from _option_faults(path, place, section)


def _option_faults(path: Path, place: Place, section: str) -> Iterator[str]:
    options = getattr(place, section)
    runs = [run for run in _runs(path, place.scale, section) if _is_chosen(run.row, place)]
    if options and not runs:
        yield f'{section}: no such row has this stage'
    for key, stated in options.items():
        if key not in OPTIONS:
            yield f'{section}: {key} is not an option'
            continue
        values = {run.row.name: value_at(run.config, key) for run in runs}
        yield from _first(f'{key} in {section}', values, stated)


def _compared(what: str, value: Any, stated: Any) -> Iterator[str]:
    value = list(value) if isinstance(value, tuple) else value
    if (type(value), value) != (type(stated), stated):
        yield f'{what} is {value!r}, not {stated!r}'


def _first(what: str, values: Mapping[str, Any], stated: Any) -> Iterator[str]:
    """Yield the fault of the first row with another value, and the number of such rows."""
    faults = [fault for row in values for fault in _compared(f'of {row}', values[row], stated)]
    if faults:
        yield f'{what} {faults[0]} (wrong in {len(faults)} of {len(values)} rows)'


def _is_chosen(row: Row, place: Place) -> bool:
    return not place.rows or any(_matches(row, pattern) for pattern in place.rows)


def _matches(row: Row, pattern: str) -> bool:
    return fnmatchcase(row.name, pattern) or fnmatchcase(row.method, pattern)


@lru_cache
def _sweep(path: Path, scale: str) -> Sweep:
    return load_sweep(path, scale)


@lru_cache
def _runs(path: Path, scale: str, section: str) -> list[Run]:
    """Return a stage of all rows of a sweep that have it."""
    return [
        Run(row, row.configs[stage], expected_config(row, stage))
        for row in _sweep(path, scale).rows
        for stage in row.stages
        if SECTIONS[stage] == section
    ]


# Writing the page -------------------------------------------------------------------------------


def elements_page(studies: Sequence[Study]) -> str:
    """Return the page as Markdown."""
    everything = [element for study in studies for element in study.all_elements]
    verdicts = [f'| **{name}** | {meaning} |' for name, meaning in VERDICTS.items()]
    lines = [HEADER + '\n'.join(verdicts), '', f'All studies together have {_summary(everything)}.']
    return '\n'.join([*lines, '', *map(_section, studies)])


def _section(study: Study) -> str:
    lines = [f'## {study.title}', '', study.about]
    lines += [f'[Commands, costs and results]({study.name}.md).', '']
    lines += [f'The list has {_summary(study.all_elements)}.', '', *_file_table(study), '']
    lines += ['| element | the documents | here, with options | verdict, and why |']
    lines += ['| --- | --- | --- | --- |']
    for group, elements in study.elements.items():
        lines += [f'| **{group}** | | | |', *map(_row, elements)]
    return '\n'.join([*lines, ''])


def _summary(elements: Sequence[Element]) -> str:
    counts = Counter(element.verdict for element in elements)
    parts = ', '.join(f'{counts[verdict]} **{verdict}**' for verdict in VERDICTS)
    return f'{len(elements)} elements: {parts}'


def _file_table(study: Study) -> list[str]:
    """Return a table of the files with the options, by stage and scale."""
    used: dict[tuple[str, str], dict[str, None]] = {}
    for section in STAGE_WORDS:
        for scale in SCALES:
            for run in _runs(study.sweep, scale, section):
                used.setdefault((STAGE_WORDS[section], _name(run.file)), {})[scale] = None
    used['rows and scales', _name(study.sweep)] = dict.fromkeys(SCALES)
    lines = [f'| {what} | {_code(scales)} | `{file}` |' for (what, file), scales in used.items()]
    return ['| options of | scales | file |', '| --- | --- | --- |', *lines]


def _row(element: Element) -> str:
    why = f'. {element.why}' if element.why else ''
    here = '<br>'.join([element.here, *_places(element.where)])
    return f'| {element.element} | {element.document} | {here} | **{element.verdict}**{why} |'


def _places(places: Sequence[Place]) -> list[str]:
    """Return one line for each place; a stage is named where it differs from the line before."""
    lines, before = [], ''
    for place in places:
        for what, words in _parts(place):
            lines.append(('' if what == before else f'{what}: ') + words + _limits(place))
            before = what
    return lines


def _parts(place: Place) -> Iterator[tuple[str, str]]:
    """Yield each stage of a place with its options, the sweep file with settings, and weights."""
    if place.pretrain == place.finetune:
        options = {'both stages': place.pretrain}
    else:
        options = {STAGE_WORDS[section]: getattr(place, section) for section in STAGE_WORDS}
    for what, found in {**options, 'sweep file': place.sweep}.items():
        if found:
            yield what, _code(f'{key} {_value(value)}' for key, value in found.items())
    if place.weights is not None:
        yield 'weights', _code([place.weights]) if place.weights else 'none'


def _limits(place: Place) -> str:
    is_one = len(place.rows) == 1 and '*' not in place.rows[0]
    limits = [f'{"row" if is_one else "rows"} {_code(place.rows)}'] if place.rows else []
    limits += [f'at `{place.scale}`'] if place.scale != SCALES[0] else []
    return f' ({", ".join(limits)})' if limits else ''


def _value(value: Any) -> str:
    return f'[{", ".join(map(_value, value))}]' if isinstance(value, list) else str(value)


def _code(words: Iterable[str]) -> str:
    return ', '.join(f'`{word}`' for word in words)


def _name(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--output', type=Path, default=PAGE, help='page to write')
    return parser.parse_args()


@tool
def main(args: argparse.Namespace) -> int:
    studies = read_studies()
    if faults := [fault for study in studies for fault in wrong_values(study)]:
        raise ValueError(f'{_name(FACTS)} is wrong:\n' + '\n'.join(faults))
    replace_file(args.output, elements_page(studies))
    print(args.output)
    return 0


if __name__ == '__main__':
    sys.exit(main(parse_args()))
