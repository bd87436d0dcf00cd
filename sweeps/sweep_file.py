"""A sweep file: the rows of an ablation around a reference."""

from pathlib import Path

from config_merge import load_yaml
from sweeps.entries import check_file, check_options, names_in, refuse_others
from sweeps.methods_file import read_methods
from sweeps.rows import ROOT, SECTION_NAMES, SECTIONS, Published, Row, Sweep

SWEEP_KEYS = {'title', 'reference', 'keys', 'rows', 'published'}
PUBLISHED_KEYS = {'source', 'measure', 'values', 'note'}
ROW_KEYS = {'pretrain', 'finetune', 'weights', 'learns_from', 'against'}


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
    if isinstance(content, dict) and 'methods' in content:
        return read_methods(path, content)
    needed = SWEEP_KEYS - {'published'}
    if not isinstance(content, dict) or not needed <= set(content):
        raise ValueError(f'{path} is no sweep file: it must have {", ".join(sorted(needed))}')
    refuse_others(content, SWEEP_KEYS, f'{path}:')
    for key, allowed in (('reference', set(SECTION_NAMES)), ('keys', set(SECTION_NAMES)),
                         ('published', PUBLISHED_KEYS), ('rows', None)):  # fmt: skip
        refuse_others(content.get(key, {}), allowed, f'{path}: {key}:')
    references = {
        stage: ROOT / str(content['reference'].get(SECTIONS[stage]))
        for stage in ('simmim', 'finetune')
    }
    for stage, file in references.items():
        check_file(file, stage, f'{path}: reference: {SECTIONS[stage]}:')
    written = names_in(path, 'rows')
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
        keys={section: content['keys'].get(section, []) for section in SECTION_NAMES},
        rows=tuple(rows),
        reference=bare[0],
        published=_read_published(path, content, written) if 'published' in content else None,
    )


def _read_published(path: Path, content: dict, rows: list[str]) -> Published:
    published = content['published']
    if missing := PUBLISHED_KEYS - {'note'} - set(published):
        raise ValueError(f'{path}: published: {sorted(missing)[0]!r} is missing')
    values = {str(name): value for name, value in published['values'].items()}
    if others := set(values) - set(rows):
        raise ValueError(f'{path}: published: {sorted(others)[0]!r} is none of the rows {rows}')
    return Published(**published | {'values': values})


def _read_row(
    path: Path,
    name: str,
    entry: dict,
    references: dict[str, Path],
    keys: dict[str, list[str]],
    before: list[Row],
) -> Row:
    where = f'{path}: row {name}:'
    refuse_others(entry, ROW_KEYS, where)
    pretrain = entry.get('pretrain', {})
    pretrain = None if pretrain == 'none' else pretrain
    finetune = entry.get('finetune', {})
    for section, changes in (('pretrain', pretrain or {}), ('finetune', finetune)):
        refuse_others(changes, set(keys.get(section) or []), f'{where} {section}:')
        check_options(changes, f'{where} {section}')
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
