"""A sweep file: the rows of an ablation around a reference."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from config import Config, build_parser, default_config, get_config
from config_merge import load_yaml, put

ROOT = Path(__file__).resolve().parents[1]
STAGES = ('simmim', 'finetune')
SECTIONS = {'simmim': 'pretrain', 'finetune': 'finetune'}  # of a sweep file
STAGE_NAMES = {'simmim': 'pre-training', 'finetune': 'fine-tuning'}  # in texts
MODEL_NAMES = {'simmim': 'simmim_pretrain', 'finetune': 'simmim_finetune'}
SWEEP_KEYS = {'title', 'reference', 'keys', 'rows', 'published'}
PUBLISHED_KEYS = {'source', 'measure', 'values', 'note'}
ROW_KEYS = {'pretrain', 'finetune', 'weights', 'learns_from', 'against'}
ROW_NAME = re.compile(r'[\w.-]+', re.ASCII)


@dataclass(frozen=True)
class Row:
    """One ablation config.

    Attributes:
        name: in the sweep, such as '0.1'.
        run: of its folders, scripts and YAML files, such as 'mask_ratio_0.1'.
        pretrain: options changed in pre-training, by key; None: there is none.
        finetune: options changed in fine-tuning, by key.
        configs: YAML file by stage.
        pretrain_run: the run whose pre-training it takes, '' without any.
        weights: environment variable that names the checkpoint it starts from, or ''.
        learns_from: run whose predictions on the training images are its targets, or ''.
        against: name of the row that it is compared with.
    """

    name: str
    run: str
    pretrain: dict[str, Any] | None
    finetune: dict[str, Any]
    configs: dict[str, Path]
    pretrain_run: str = ''
    weights: str = ''
    learns_from: str = ''
    against: str = ''

    @property
    def stages(self) -> tuple[str, ...]:
        return STAGES if self.pretrain is not None else STAGES[1:]

    def run_of(self, stage: str) -> str:
        """Name of the run of a stage, '' for one that it does not have."""
        return self.pretrain_run if stage == 'simmim' else self.run

    def changes(self, stage: str) -> dict[str, Any]:
        """Options changed in a stage, by key."""
        return (self.pretrain if stage == 'simmim' else self.finetune) or {}


@dataclass(frozen=True)
class Published:
    """Published figures of some rows, by the row's name: context, never a comparison."""

    source: str
    measure: str
    values: dict[str, Any]
    note: str = ''


@dataclass(frozen=True)
class Sweep:
    """Rows around one reference row, which changes nothing.

    Attributes:
        name: the file's, such as 'mask_ratio'.
        path: of the file.
        title: what is varied.
        keys: 'pretrain' and 'finetune': all options that rows may change.
        rows: in the order of the file.
        reference: one of the rows.
        published: context, or None.
    """

    name: str
    path: Path
    title: str
    keys: dict[str, list[str]]
    rows: tuple[Row, ...]
    reference: Row
    published: Published | None = None


def load_sweep(path: str | Path) -> Sweep:
    """Read a sweep file.

    Raises:
        ValueError: naming file, row and key, if it is no sweep.
    """
    path = Path(path)
    try:
        content = load_yaml(path.read_text(encoding='utf-8'))
    except (OSError, UnicodeError, ValueError) as error:
        raise ValueError(f'{path} is no sweep file: {error}') from error
    needed = SWEEP_KEYS - {'published'}
    if not isinstance(content, dict) or not needed <= set(content):
        raise ValueError(f'{path} is no sweep file: it must have {", ".join(sorted(needed))}')
    _refuse_others(content, SWEEP_KEYS, f'{path}:')
    for key, allowed in (('reference', set(SECTIONS.values())), ('keys', set(SECTIONS.values())),
                         ('published', PUBLISHED_KEYS), ('rows', None)):  # fmt: skip
        _refuse_others(content.get(key, {}), allowed, f'{path}: {key}:')
    references = {
        stage: ROOT / str(content['reference'].get(section)) for stage, section in SECTIONS.items()
    }
    _check_references(path, references)
    written = _row_names(path)
    rows: list[Row] = []
    for name, entry in zip(written, content['rows'].values(), strict=True):
        rows.append(_read_row(path, name, entry or {}, references, content['keys'], rows))
    bare = [row for row in rows if row.run == _reference_run(references)]
    if len(bare) != 1:
        raise ValueError(f'{path}: exactly one row must change nothing, {len(bare)} do')
    names = [row.name for row in rows]
    for row in rows:
        if row.against and row.against not in names:
            raise ValueError(f'{path}: row {row.name}: against must be one of {names}')
    return Sweep(
        name=path.stem,
        path=path,
        title=content['title'],
        keys={section: content['keys'].get(section, []) for section in SECTIONS.values()},
        rows=tuple(rows),
        reference=bare[0],
        published=_read_published(path, content, written) if 'published' in content else None,
    )


def run_folder(output: str | Path, stage: str, row: Row, seed: int) -> Path | None:
    """Folder of a row's stage; of a shared pre-training the one that is shared, None without."""
    run = row.run_of(stage)
    return Path(output) / MODEL_NAMES[stage] / f'{run}_seed{seed}' if run else None


def changed_config(path: Path, stage: str) -> Config:
    """The options of a YAML file of `stage`, before flags: for comparing files."""
    return get_config(build_parser(stage).parse_args(['--cfg', str(path)]))


def _read_published(path: Path, content: dict, rows: list[str]) -> Published:
    published = content['published']
    if missing := PUBLISHED_KEYS - {'note'} - set(published):
        raise ValueError(f'{path}: published: {sorted(missing)[0]!r} is missing')
    values = {str(name): value for name, value in published['values'].items()}
    if others := set(values) - set(rows):
        raise ValueError(f'{path}: published: {sorted(others)[0]!r} is none of the rows {rows}')
    return Published(**published | {'values': values})


def _row_names(path: Path) -> list[str]:
    """Names of the rows as they are written: YAML reads 1000_0.25 as a number, 10000.25."""
    root = yaml.compose(path.read_text(encoding='utf-8'), Loader=yaml.SafeLoader)
    rows = next(value for key, value in root.value if key.value == 'rows')
    names = [key.value for key, _ in rows.value]
    for name in names:
        if not ROW_NAME.fullmatch(name):
            raise ValueError(f'{path}: a row must have a name of letters, digits, . _ -: {name!r}')
    return names


def _read_row(
    path: Path,
    name: str,
    entry: dict,
    references: dict[str, Path],
    keys: dict[str, list[str]],
    before: list[Row],
) -> Row:
    where = f'{path}: row {name}:'
    _refuse_others(entry, ROW_KEYS, where)
    pretrain = entry.get('pretrain', {})
    pretrain = None if pretrain == 'none' else pretrain
    finetune = entry.get('finetune', {})
    for section, changes in (('pretrain', pretrain or {}), ('finetune', finetune)):
        _refuse_others(changes, set(keys.get(section) or []), f'{where} {section}:')
        config = default_config()
        for key, value in changes.items():
            put(config, key, value, f'{where} {section}')
    same = pretrain == finetune == {} and not set(entry) - {'against'}
    run = _reference_run(references)
    if not same:
        run = f'{run.removesuffix("reference").removeprefix(f"{path.stem}_")}{path.stem}_{name}'
    weights = entry.get('weights', '')
    configs = {'finetune': _config_file(references['finetune'], run if finetune else '')}
    pretrain_run = ''
    if pretrain is not None:
        shared = [r for r in before if r.pretrain == pretrain and r.weights == weights]
        plain = not pretrain and not weights
        pretrain_run = (
            _reference_run(references) if plain else shared[0].pretrain_run if shared else run
        )
        configs['simmim'] = _config_file(references['simmim'], pretrain_run if pretrain else '')
    teacher = str(entry.get('learns_from', ''))
    teachers = {row.name: row.run for row in before}
    if teacher and teacher not in teachers:
        raise ValueError(f'{where} learns_from must be one of the rows above, {list(teachers)}')
    return Row(
        name=name,
        run=run,
        pretrain=pretrain,
        finetune=finetune,
        configs=configs,
        pretrain_run=pretrain_run,
        weights=weights,
        learns_from=teachers.get(teacher, ''),
        against=str(entry.get('against', '')),
    )


def _reference_run(references: dict[str, Path]) -> str:
    """'reference', or what else the name of its YAML files ends with."""
    return references['finetune'].stem.rpartition('__')[2]


def _config_file(reference: Path, run: str) -> Path:
    """The YAML file beside the reference's, of another run; '': the reference itself."""
    return (
        reference.with_name(f'{reference.stem.rpartition("__")[0]}__{run}.yaml')
        if run
        else (reference)
    )


def _check_references(path: Path, references: dict[str, Path]) -> None:
    for stage, file in references.items():
        if not file.is_file():
            raise ValueError(f'{path}: reference: {SECTIONS[stage]}: there is no {file}')
        name = changed_config(file, stage).MODEL.NAME
        if name != MODEL_NAMES[stage]:
            raise ValueError(f'{file}: MODEL.NAME must be {MODEL_NAMES[stage]!r}, got {name!r}')


def _refuse_others(entry: Any, allowed: set[str] | None, where: str) -> None:
    """Refuse what is no mapping, or has other keys than those that are allowed; None: any."""
    if not isinstance(entry, dict):
        raise ValueError(f'{where} must be keys and values, got {json.dumps(entry)}')
    if allowed and (others := [key for key in entry if key not in allowed]):
        raise ValueError(f'{where} {others[0]!r} is not one of {sorted(allowed)}')
