"""The runs of a sweep: the command, the folder and the options of each, and what it needs."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from yaml.constructor import SafeConstructor

from config import (
    FREE_OPTIONS,
    Config,
    build_parser,
    config_changes,
    config_text,
    default_config,
    get_config,
    load_yaml,
    put,
    value_at,
)
from engine.run_record import OPTIONS_FILE, is_finished

# ==== sweeps.rows: The rows of a sweep: an ablation's around a reference, or methods with subsets of the labels.

ROOT = Path(__file__).resolve().parents[1]
STAGES = ('simmim', 'contrastive', 'finetune')
# Section of a sweep file that a stage belongs to, and the names of sections in texts.
SECTIONS = {'simmim': 'pretrain', 'contrastive': 'pretrain', 'finetune': 'finetune'}
SECTION_NAMES = {'pretrain': 'pre-training', 'finetune': 'fine-tuning'}
MODEL_NAMES = {
    'simmim': 'simmim_pretrain',
    'contrastive': 'contrastive_pretrain',
    'finetune': 'simmim_finetune',
}


@dataclass(frozen=True)
class Row:
    """One ablation config, or one method with one subset of the labels.

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
        pretraining: stage of its pre-training, 'simmim' or 'contrastive'.
        method: of a sweep of methods, or ''.
        subset: share or number of labelled images, as the file has it, or ''.
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
    pretraining: str = 'simmim'
    method: str = ''
    subset: str = ''

    @property
    def stages(self) -> tuple[str, ...]:
        return ('finetune',) if self.pretrain is None else (self.pretraining, 'finetune')

    def stage_of(self, section: str) -> str:
        """The stage of a section of the sweep file."""
        return self.pretraining if section == 'pretrain' else 'finetune'

    def run_of(self, stage: str) -> str:
        """Name of the run of a stage, '' for one that it does not have."""
        if stage == 'finetune':
            return self.run
        return self.pretrain_run if stage == self.pretraining else ''

    def changes(self, stage: str) -> dict[str, Any]:
        """Options changed in a stage, by key."""
        return (self.finetune if stage == 'finetune' else self.pretrain) or {}


@dataclass(frozen=True)
class Published:
    """Published figures of some rows, by the row's name: context, never a comparison."""

    source: str
    measure: str
    values: dict[str, Any]
    note: str = ''


@dataclass(frozen=True)
class Sweep:
    """Rows around one reference row, which changes nothing, or those of several methods.

    Attributes:
        name: the file's, such as 'mask_ratio'.
        path: of the file.
        title: what is varied.
        keys: 'pretrain' and 'finetune': all options that rows may change.
        rows: in the order of the file.
        reference: one of the rows; of methods that of the reference with most labels.
        published: context, or None.
        subsets: of a sweep of methods how subsets of the labels are given, 'shares' or 'images'; ''
            of an ablation.
    """

    name: str
    path: Path
    title: str
    keys: dict[str, list[str]]
    rows: tuple[Row, ...]
    reference: Row
    published: Published | None = None
    subsets: str = ''

    @property
    def methods(self) -> dict[str, Row]:
        """By name: the row with most labels."""
        rows = sorted(self.rows, key=lambda row: float(row.subset or 0))
        return {row.method: row for row in rows if row.method}

    def base(self, row: Row, stage: str) -> Path:
        """The YAML file that a row's changes are put over: the reference's, or the method's."""
        return (row if row.method else self.reference).configs[stage]


def stage_title(stage: str) -> str:
    """Of a stage, in texts."""
    kind = 'contrastive ' if stage == 'contrastive' else ''
    return kind + SECTION_NAMES[SECTIONS[stage]]


def run_folder(output: str | Path, stage: str, row: Row, seed: int) -> Path | None:
    """Folder of a row's stage; of a shared pre-training the one that is shared, None without."""
    run = row.run_of(stage)
    return Path(output) / MODEL_NAMES[stage] / f'{run}_seed{seed}' if run else None


def changed_config(path: Path, stage: str) -> Config:
    """The options of a YAML file of `stage`, before flags: for comparing files."""
    return get_config(build_parser(stage).parse_args(['--cfg', str(path)]))


# ==== sweeps.run_options: The options of a sweep's runs: as their folders have them, as its files do, what differs.

STEP, COMPARED = 'pictures a step', 'pictures compared at once'


def load_config(folder: Path) -> Config:
    """The options of a run, from its config.yaml; what an older version lacked is at its default.

    Raises:
        ValueError: naming the file, if it is damaged.
    """
    file = folder / OPTIONS_FILE
    return _parsed(file, file.read_bytes()).clone()


@lru_cache(maxsize=1024)
def _parsed(file: Path, content: bytes) -> Config:
    """Of a file with this content: the same is asked for again and again."""
    config = default_config()
    config.merge_from_file(str(file))
    return config


def expected_config(sweep: Sweep, row: Row, stage: str) -> Config:
    """The options of a row's stage as the files of the sweep have them, before flags."""
    config = changed_config(sweep.base(row, stage), stage).clone()
    config.defrost()
    changes = row.changes(stage)
    config.merge_from_list([str(word) for pair in changes.items() for word in pair])
    return config


def images_per_step(config: Config, processes: int) -> int:
    """Images of an optimizer step."""
    return config.DATA.BATCH_SIZE * micro_batches(config) * processes


def batch_counts(config: Config, record: Mapping[str, Any], stage: str) -> dict[str, int]:
    """By STEP, and in contrastive pre-training COMPARED: how many pictures a run takes together.

    Args:
        config: of the run.
        record: of its run.json, of which `processes` and `starts` are read; {}: one process.
        stage: of the run.
    """
    processes = record.get('processes', 1)
    if stage != 'contrastive':
        return {STEP: images_per_step(config, processes)}
    # It goes on with as many compared: on other processes with options of its own for these.
    for start in record.get('starts', []):
        processes = start.get('processes', processes)
    return {
        STEP: images_per_step(config, processes),
        COMPARED: config.DATA.BATCH_SIZE * processes,
    }


def micro_batches(config: Config) -> int:
    """Of an optimizer step, in one process."""
    return max(config.TRAIN.ACCUMULATION_STEPS, 1)


def check_encoder(
    folder: Path, changes: Mapping[str, tuple[str, str]], expected: Config, sweep: Sweep
) -> None:
    """Refuse a run with another encoder or size of image than the files of the sweep have.

    Args:
        folder: of the run.
        changes: what differs from the expected options, see `changed_options`.
        expected: the options as the files have them.
        sweep: the sweep.

    Raises:
        ValueError: naming folder, sweep and option.
    """
    section = f'MODEL.{expected.MODEL.TYPE.upper()}.'
    for key, (old, new) in changes.items():
        if key in ('DATA.IMG_SIZE', 'MODEL.TYPE') or key.startswith(section):
            raise ValueError(
                f'{folder} is no run of {sweep.path}: {key} is {new} in its options, {old} in the '
                'files of the sweep'
            )


class Finetuned(NamedTuple):
    """A finished fine-tuning: its folder, that of its pre-training, and what share that hid."""

    folder: Path
    pretraining: Path | None
    masked: float | None


def finetuned_runs(sweep: Sweep, seeds: Sequence[int], output: str | Path) -> list[Finetuned]:
    """The finished fine-tunings of a sweep, row by row.

    Raises:
        ValueError: if there is none.
    """
    found = []
    for row in sweep.rows:
        for seed in seeds:
            folder = run_folder(output, 'finetune', row, seed)
            if is_finished(folder):
                hiding = run_folder(output, 'simmim', row, seed)
                masked = load_config(hiding).DATA.MASK_RATIO if hiding else None
                pretraining = run_folder(output, row.pretraining, row, seed)
                found.append(Finetuned(folder, pretraining, masked))
    if not found:
        raise ValueError(f'{output}: no fine-tuning of {sweep.path} is finished')
    return found


def unfinished_seeds(
    sweep: Sweep, seeds: Sequence[int], output: str | Path
) -> dict[str, list[int]]:
    """Row -> seeds whose fine-tuning is not finished, for the rows that have any."""
    unfinished = {
        row.name: [s for s in seeds if not is_finished(run_folder(output, 'finetune', row, s))]
        for row in sweep.rows
    }
    return {name: left for name, left in unfinished.items() if left}


def changed_options(
    before: Config, after: Config, *, but: tuple[str, ...] = ()
) -> dict[str, tuple[str, str]]:
    """Option -> its value before and after, where these differ; not FREE_OPTIONS, nor `but`."""
    after = after.clone()
    after.defrost()
    for key in ('BASE', *FREE_OPTIONS, *but):  # BASE is merged already
        put(after, key, value_at(before, key), 'before')
    if after == before:  # as texts they are slow to compare
        return {}
    changes = {}
    for line in config_changes(config_text(before), config_text(after)):
        key, _, values = line.partition(': ')
        old, _, new = values.partition(' -> ')
        changes[key] = old, new
    return changes


# ==== sweeps.entries: Checks of what a sweep file says: names, keys, options, and the YAML files that it names.

NAME = re.compile(r'[\w.-]+', re.ASCII)


def names_in(path: Path, section: str) -> list[str]:
    """Names in a section as they are written: YAML reads 1000_0.25 as a number, 10000.25.

    Raises:
        ValueError: if one is no name, or is there twice, be it as a number written in two ways.
    """
    root = yaml.compose(path.read_text(encoding='utf-8'), Loader=yaml.SafeLoader)
    found = [value for key, value in root.value if key.value == section]
    if len(found) > 1:
        raise ValueError(f'{path}: {section}: is there twice')
    names, values = [], []
    for key, _ in found[0].value:
        if not NAME.fullmatch(key.value):
            what = section.removesuffix('s')
            raise ValueError(
                f'{path}: a {what} must have a name of letters, digits, . _ -: {key.value!r}'
            )
        value = SafeConstructor().construct_object(key)
        if key.value in names or value in values:
            raise ValueError(f'{path}: {section} {key.value}: is there twice')
        names.append(key.value)
        values.append(value)
    return names


def check_file(file: Path, stage: str, where: str) -> None:
    if not file.is_file():
        raise ValueError(f'{where} there is no {file}')
    name = changed_config(file, stage).MODEL.NAME
    if name != MODEL_NAMES[stage]:
        raise ValueError(f'{file}: MODEL.NAME must be {MODEL_NAMES[stage]!r}, got {name!r}')


def check_options(options: Any, where: str) -> dict[str, Any]:
    """Options by key, of which each is there and can have its value."""
    refuse_others(options, None, f'{where}:')
    config = default_config()
    for key, value in options.items():
        put(config, key, value, where)
    return options


def refuse_others(entry: Any, allowed: set[str] | None, where: str) -> None:
    """Refuse what is no mapping, or has other keys than those that are allowed; None: any."""
    if not isinstance(entry, dict):
        raise ValueError(f'{where} must be keys and values, got {json.dumps(entry)}')
    if allowed is not None and (others := [key for key in entry if key not in allowed]):
        raise ValueError(f'{where} {others[0]!r} is not one of {sorted(allowed)}')


# ==== sweeps.methods_file: A sweep file of methods, each with its YAML files and fine-tuned on subsets of the labels.

KEYS = {'title', 'reference', 'methods'}  # beside one of SUBSETS
METHOD_KEYS = {'pretrain', 'finetune', 'pretrain_options', 'finetune_options', 'run', 'against'}
# How subsets of the labels are given -> the option that takes them.
SUBSETS = {'shares': 'DATA.TRAIN_FRACTION', 'images': 'DATA.TRAIN_IMAGES'}
NUMBER = re.compile(r'\d+(\.\d+)?', re.ASCII)


def read_methods(path: Path, content: dict) -> Sweep:
    """The rows of each method with each subset, those of one subset after another."""
    kinds = [kind for kind in SUBSETS if kind in content]
    if len(kinds) != 1 or not KEYS <= set(content):
        raise ValueError(
            f'{path} is no sweep of methods: it must have {", ".join(sorted(KEYS))}, and '
            f'either {" or ".join(SUBSETS)}'
        )
    refuse_others(content, KEYS | {*kinds}, f'{path}:')
    subsets = _read_subsets(path, kinds[0], content[kinds[0]])
    shared = {key for options in subsets.values() for key in options}
    refuse_others(content['methods'], None, f'{path}: methods:')
    methods: dict[str, Row] = {}
    for name, entry in zip(names_in(path, 'methods'), content['methods'].values(), strict=True):
        method = _read_method(path, name, entry, list(methods.values()))
        if both := sorted(shared & set(method.finetune)):
            raise ValueError(
                f'{path}: method {name}: finetune_options: {both[0]} is set in {kinds[0]}, the '
                'same for all methods'
            )
        if same := [other for other, row in methods.items() if row.run == method.run]:
            raise ValueError(
                f'{path}: method {name}: run: {method.run} is that of method {same[0]}: they would '
                'share their folders'
            )
        methods[name] = method
    reference = str(content['reference'])
    masked = [m for m, row in methods.items() if row.run_of('simmim')]
    if reference not in masked or len(methods) < 2:
        raise ValueError(
            f'{path}: reference: must be one of two or more methods, one that main_simmim.py '
            f'pre-trains: {masked}; got {reference!r}'
        )
    against = _others(path, methods, reference)
    rows = tuple(
        replace(
            row,
            name=f'{method}_{subset}',
            run=f'{row.run}_{subset}',
            finetune=row.finetune | options,
            against=against[method] and f'{against[method]}_{subset}',
            subset=subset,
        )
        for subset, options in subsets.items()
        for method, row in methods.items()
    )
    most = max(subsets, key=float)
    sweep = Sweep(
        name=path.stem,
        path=path,
        title=str(content['title']),
        keys={'pretrain': [], 'finetune': sorted(shared)},
        rows=rows,
        reference=next(row for row in rows if row.name == f'{reference}_{most}'),
        subsets=kinds[0],
    )
    _check_alike(sweep)
    return sweep


def _others(path: Path, methods: dict[str, Row], reference: str) -> dict[str, str]:
    """Method -> that which it is compared with; '' for those that others are compared with."""
    for name, row in methods.items():
        if row.against and row.against not in methods.keys() - {name}:
            others = [other for other in methods if other != name]
            raise ValueError(
                f'{path}: method {name}: against: must be one of {others}, got {row.against!r}'
            )
    compared_with = {reference, *(row.against for row in methods.values())}
    return {
        name: row.against or ('' if name in compared_with else reference)
        for name, row in methods.items()
    }


def _read_subsets(path: Path, kind: str, content: Any) -> dict[str, dict[str, Any]]:
    """Name -> options of fine-tuning, that which takes the subset among them."""
    refuse_others(content, None, f'{path}: {kind}:')
    subsets = {}
    for name, entry in zip(names_in(path, kind), content.values(), strict=True):
        where, allowed = f'{path}: {kind} {name}:', 'a share in (0, 1]'
        if kind == 'images':
            allowed = 'a whole number above 0'
        number = float(name) if NUMBER.fullmatch(name) else 0.0
        if number in map(float, subsets):
            raise ValueError(f'{where} is there twice')
        if not 0 < number <= 1 if kind == 'shares' else number < 1 or '.' in name:
            raise ValueError(f'{where} must be {allowed}')
        options = check_options(entry or {}, where)
        if SUBSETS[kind] in options:
            raise ValueError(f'{where} {SUBSETS[kind]} is taken from the name')
        subsets[name] = {SUBSETS[kind]: number if kind == 'shares' else int(name)} | options
    return subsets


def _read_method(path: Path, name: str, entry: Any, before: list[Row]) -> Row:
    """A method with none of the subsets yet."""
    where = f'{path}: method {name}:'
    refuse_others(entry, METHOD_KEYS, where)
    configs = {'finetune': ROOT / str(entry.get('finetune'))}
    check_file(configs['finetune'], 'finetune', f'{where} finetune:')
    run = str(entry.get('run', f'{path.stem}_{name}'))
    if not NAME.fullmatch(run):
        raise ValueError(f'{where} run: must be of letters, digits, . _ -: {run!r}')
    options = {
        section: check_options(entry.get(f'{section}_options', {}), f'{where} {section}_options')
        for section in SECTION_NAMES
    }
    against = str(entry.get('against', ''))
    row = Row(name, run, None, options['finetune'], configs, method=name, against=against)
    if 'pretrain' not in entry:
        if options['pretrain']:
            raise ValueError(f'{where} pretrain_options: there is no pretrain')
        return row
    file = ROOT / str(entry['pretrain'])
    stage = _pretraining(file, f'{where} pretrain:')
    same = [r for r in before if r.configs.get(stage) == file and r.pretrain == options['pretrain']]
    return replace(
        row,
        pretrain=options['pretrain'],
        configs=configs | {stage: file},
        pretrain_run=same[0].pretrain_run if same else run,
        pretraining=stage,
    )


def _check_alike(sweep: Sweep) -> None:
    """Refuse methods that are fine-tuned for other epochs, or in other steps, on one subset."""
    first: dict[str, tuple[str, dict[str, int]]] = {}
    for row in sweep.rows:
        config = expected_config(sweep, row, 'finetune')
        own = {
            'TRAIN.EPOCHS': config.TRAIN.EPOCHS,
            'DATA.BATCH_SIZE x TRAIN.ACCUMULATION_STEPS': images_per_step(config, 1),
        }
        method, others = first.setdefault(row.subset, (row.method, own))
        for key, value in own.items():
            if value != others[key]:
                raise ValueError(
                    f'{sweep.path}: {sweep.subsets} {row.subset}: {key} must be the same for all '
                    f'methods, got {others[key]} for {method} and {value} for {row.method}'
                )


def _pretraining(file: Path, where: str) -> str:
    """The stage that a YAML file of pre-training is for, by its MODEL.NAME."""
    if not file.is_file():
        raise ValueError(f'{where} there is no {file}')
    config = default_config()
    config.merge_from_file(str(file))
    stages = {MODEL_NAMES[stage]: stage for stage in ('simmim', 'contrastive')}
    if config.MODEL.NAME not in stages:
        raise ValueError(
            f'{where} {file}: MODEL.NAME must be one of {[*stages]}, got {config.MODEL.NAME!r}'
        )
    stage = stages[config.MODEL.NAME]
    check_file(file, stage, where)
    return stage


# ==== sweeps.sweep_file: A sweep file: the rows of an ablation around a reference.

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


# ==== sweeps.plan: The runs of a sweep: the command, the folder and the options of each, and what it needs.

MAINS = {stage: f'main_{stage}.py' for stage in STAGES}
SOFT_TARGETS = 'DATA.SELF_TRAIN_PREDICTIONS'


@dataclass(frozen=True)
class Job:
    """One run of a sweep: the stage of a row under a seed.

    Attributes:
        stage: 'simmim', 'contrastive' or 'finetune'.
        run: name of its folder, without the seed.
        seed: SEED.
        folder: of the run.
        arguments: script and flags, for python or torchrun.
        config: what these flags make of the options.
        needs: folders of the runs that must be finished before.
        processes: that it is started with.
        weights: the file that it starts from, where that is of no other run; or ''.
    """

    stage: str
    run: str
    seed: int
    folder: Path
    arguments: list[str]
    config: Config = field(repr=False)
    needs: tuple[Path, ...] = ()
    processes: int = 1
    weights: str = ''

    @property
    def name(self) -> str:
        return f'{SECTIONS[self.stage]} {self.run} seed {self.seed}'


def plan(
    sweep: Sweep,
    *,
    seeds: list[int],
    data: str,
    output: str,
    gpus: int = 1,
    options: dict[str, list[str]] | None = None,
    environment: dict[str, str] | None = None,
) -> list[Job]:
    """The runs of a sweep, each once, in an order in which each comes after what it needs.

    Args:
        sweep: the sweep.
        seeds: a run per row, stage and seed.
        data: --data-path.
        output: --output.
        gpus: processes of a run; the micro-batches of an optimizer step are shared among them.
        options: by stage, KEY VALUE pairs put over the YAML file's.
        environment: where `weights` are looked up.

    Raises:
        ValueError: if a run's options cannot work, weights are not named, or GPUs do not divide
            the micro-batches.
    """
    jobs = {}
    for seed in seeds:
        for stage in STAGES:
            for row in sweep.rows:
                if stage in row.stages:
                    places = _Places(data, output, seed, gpus, options or {}, environment or {})
                    job = _job(sweep, row, stage, places)
                    jobs.setdefault(job.folder, job)
    return _in_order(list(jobs.values()))


def check_encoders(sweep: Sweep, jobs: Sequence[Job]) -> None:
    """Refuse options with which a sweep's runs could be trained, and fit no table of it.

    Args:
        sweep: the sweep.
        jobs: its plan, of which seeds are alike.

    Raises:
        ValueError: see `sweeps.run_options.check_encoder`.
    """
    by_run = {(job.stage, job.run): job for job in reversed(jobs)}
    for row in sweep.rows:
        for stage in row.stages:
            if job := by_run.pop((stage, row.run_of(stage)), None):
                expected = expected_config(sweep, row, stage)
                changes = changed_options(expected, job.config, but=('SEED',))
                check_encoder(job.folder, changes, expected, sweep)


@dataclass(frozen=True)
class _Places:
    """What all runs of a plan share."""

    data: str
    output: str
    seed: int
    gpus: int
    options: dict[str, list[str]]
    environment: dict[str, str]


def _job(sweep: Sweep, row: Row, stage: str, places: _Places) -> Job:
    folder = run_folder(places.output, stage, row, places.seed)
    arguments = [
        '--cfg', str(sweep.base(row, stage)), '--data-path', places.data,
        '--output', places.output, '--tag', folder.name,
    ]  # fmt: skip
    changes = row.changes(stage).items()
    weights = ''
    options = ['SEED', str(places.seed), *(str(x) for pair in changes for x in pair)]
    needs = []
    if stage == 'finetune' and row.pretrain is not None:
        source = _job(sweep, row, row.pretraining, places)
        needs.append(source.folder)
        arguments += ['--pretrained', str(last_checkpoint(source))]
    elif row.weights:
        if not places.environment.get(row.weights):
            raise ValueError(
                f'{row.run} starts from a checkpoint: name it by the environment variable '
                f'{row.weights}'
            )
        weights = os.path.abspath(places.environment[row.weights])
        arguments += ['--pretrained', weights]
    if stage == 'finetune' and row.learns_from:
        source = next(other for other in sweep.rows if other.run == row.learns_from)
        teacher = run_folder(places.output, stage, source, places.seed)
        needs.append(teacher)
        options += [SOFT_TARGETS, str(teacher / 'predictions_train.csv')]
    arguments += ['--opts', *options, *places.options.get(stage, [])]
    config = get_config(build_parser(stage).parse_args(arguments))
    if places.gpus > 1:
        arguments += ['--accumulation-steps', str(share_of_steps(config, places.gpus))]
        config = get_config(build_parser(stage).parse_args(arguments))
    return Job(
        stage=stage,
        run=row.run_of(stage),
        seed=places.seed,
        folder=folder,
        arguments=[MAINS[stage], *arguments],
        config=config,
        needs=tuple(needs),
        processes=places.gpus,
        weights=weights,
    )


def last_checkpoint(job: Job) -> Path:
    """The checkpoint that a pre-training ends with."""
    from utils import checkpoint_name

    return job.folder / checkpoint_name(job.config.TRAIN.EPOCHS - 1)


def share_of_steps(config: Config, gpus: int) -> int:
    """Micro-batches of a process, so that the batch of an optimizer step stays what it is.

    Raises:
        ValueError: if they cannot be shared equally.
    """
    steps, size = micro_batches(config), config.DATA.BATCH_SIZE
    if steps % gpus == 0:
        return steps // gpus
    # Contrastive pre-training compares micro-batches over all GPUs: there it would be another run.
    alone = steps == 1 or config.MODEL.NAME == MODEL_NAMES['contrastive']
    ways = ['one GPU a run' if alone else f'a number of GPUs that divides {steps}']
    if size % gpus == 0:
        ways.append(f'DATA.BATCH_SIZE {size // gpus} with TRAIN.ACCUMULATION_STEPS {steps * gpus}')
    raise ValueError(
        f'{config.TAG}: {steps} micro-batch{"es" if steps > 1 else ""} of {size} images a step '
        f'cannot be shared among {gpus} GPUs: take {", or ".join(ways)}'
    )


def _in_order(jobs: list[Job]) -> list[Job]:
    """Each after what it needs, else as given."""
    folders = {job.folder for job in jobs}
    ordered, done = [], set()
    while len(ordered) < len(jobs):
        for job in jobs:
            if job.folder not in done and all(n in done for n in job.needs if n in folders):
                ordered.append(job)
                done.add(job.folder)
    return ordered


# ==== sweeps.files: The files that a sweep file stands for: a YAML per row and stage, a shell script per row.

FOLDER = ROOT / 'scripts' / 'ablations'
WRITTEN = 'Written by scripts/make_ablations.py.'

SCRIPT = """\
#!/usr/bin/env bash
{purpose}
#   bash {path} DATA OUTPUT [GPUS]
# SEED=1: another seed. PRETRAIN_OPTS, FINETUNE_OPTS: further options as 'KEY VALUE ...'.
# {weights}Started again after a stop, it goes on. {written}
set -euo pipefail
data=$(realpath "${{1:?usage: bash {path} DATA OUTPUT [GPUS]}}")
output=$(realpath -m "${{2:?usage: bash {path} DATA OUTPUT [GPUS]}}")
{start}gpus=${{3:-1}}
seed=${{SEED:-0}}
cd "$(dirname "$0")/{up}"
if [ -z "${{PYTHON:-}}" ] && [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; fi
launch=("${{PYTHON:-python}}")
# On several GPUs each takes its share of the micro-batches of an optimizer step.
if [[ ! $gpus =~ ^[1-9][0-9]*$ ]] || {indivisible}; then
    echo "error: GPUS must {gpus}, got $gpus" >&2
    exit 2
fi
if [ "$gpus" -gt 1 ]; then
    launch+=(-m torch.distributed.run --standalone --nproc_per_node "$gpus")
fi
finished() {{ # whether a run came to its end
    grep -qs '"finished": "' "$1/run.json" && echo "finished before: $1"
}}
"""
TEACHER = """
# The targets of uncertain labels: what this run predicts on the training images.
SEED="$seed" bash {script} "$data" "$output" "$gpus"
"""
RUN = """
finished "$output/{folder}/{run}_seed$seed" || "${{launch[@]}}" {main} \\
    --cfg {config} \\
    --data-path "$data" --output "$output" --tag "{run}_seed$seed"{pretrained} \\
    --accumulation-steps $(({steps} / gpus)) --opts SEED "$seed"{soft_targets} ${{{options}:-}}
"""
WEIGHTS = """
pretrained=$output/simmim_pretrain/{run}_seed$seed
weights=$(cd "$pretrained" && ls -v ckpt_epoch_*.pth | grep -v _step_ | tail -n 1)"""


def sweep_files() -> list[Path]:
    return sorted(FOLDER.rglob('*.yaml'))


def all_files() -> dict[Path, str]:
    """Every file that the sweep files stand for, by path, as it should be."""
    files = {}
    for path in sweep_files():
        sweep = load_sweep(path)
        for row in sweep.rows:
            files.setdefault(script_path(sweep, row), script_text(sweep, row))
            for stage in row.stages:
                if row.changes(stage):
                    files[row.configs[stage]] = yaml_text(sweep, row, stage)
    return files


def script_path(sweep: Sweep, row: Row) -> Path:
    return sweep.path.parent / f'{row.run}.sh'


def yaml_text(sweep: Sweep, row: Row, stage: str) -> str:
    """A row's YAML of a stage: the reference's, and what is changed."""
    run = row.run_of(stage)
    base = sweep.reference.configs[stage].name
    nested: dict[str, Any] = {}
    for key, value in row.changes(stage).items():
        *sections, name = key.split('.')
        node = nested
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = value
    return (
        f'# bash {_shown(sweep.path.parent / f"{run}.sh")} DATA OUTPUT [GPUS]\n'
        f'# {sweep.title}: {row.name}. {WRITTEN}\n'
        f'BASE: [{base}]\n'
        f'{yaml.safe_dump(nested, sort_keys=False)}'
        f'TAG: {run}\n'
    )


def script_text(sweep: Sweep, row: Row) -> str:
    """The shell script of a row, which can be read alone."""
    path = script_path(sweep, row)
    steps = {stage: micro_batches(expected_config(sweep, row, stage)) for stage in row.stages}
    counts = sorted(set(steps.values()))
    shares = ' and '.join(map(str, counts))
    text = SCRIPT.format(
        purpose=_purpose(sweep, row),
        path=_shown(path),
        weights=f'{row.weights}: the checkpoint it starts from. ' if row.weights else '',
        start=f'start=$(realpath "${{{row.weights}:?names the checkpoint}}")\n'
        if row.weights
        else '',
        written=WRITTEN,
        up=os.path.relpath(ROOT, path.parent),
        indivisible=' || '.join(f'[ $(({n} % gpus)) -ne 0 ]' for n in counts),
        gpus='be 1 (one micro-batch a step)' if 1 in counts else f'divide {shares}',
    )
    if row.learns_from:
        text += TEACHER.format(script=_shown(path.with_name(f'{row.learns_from}.sh')))
    for stage in row.stages:
        text += _stage_text(row, stage, steps[stage])
    return text


def _stage_text(row: Row, stage: str, steps: int) -> str:
    pretrained = soft_targets = before = ''
    if stage == 'finetune' and row.pretrain is not None:
        before = WEIGHTS.format(run=row.pretrain_run)
        pretrained = ' \\\n    --pretrained "$pretrained/$weights"'
    elif row.weights:
        pretrained = ' \\\n    --pretrained "$start"'
    if stage == 'finetune' and row.learns_from:
        teacher = f'$output/simmim_finetune/{row.learns_from}_seed$seed'
        soft_targets = f' \\\n    {SOFT_TARGETS} "{teacher}/predictions_train.csv"'
    return before + RUN.format(
        main=MAINS[stage],
        folder=MODEL_NAMES[stage],
        config=_shown(row.configs[stage]),
        run=row.run_of(stage),
        pretrained=pretrained,
        soft_targets=soft_targets,
        steps=steps,
        options=f'{SECTIONS[stage].upper()}_OPTS',
    )


def _purpose(sweep: Sweep, row: Row) -> str:
    """The first lines of a script: what it runs, what is changed."""
    if row is sweep.reference:
        return '# The reference of the ablations: pre-training, then fine-tuning.'
    stages = ', then '.join(stage_title(stage) for stage in row.stages).capitalize()
    lines = [f'# {sweep.title}: {row.name}. {stages}.']
    for stage in row.stages:
        if changes := row.changes(stage):
            pairs = ', '.join(f'{key} {value}' for key, value in changes.items())
            lines.append(f'# Changed in {stage_title(stage)}: {pairs}.')
    return '\n'.join(lines)


def _shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()
