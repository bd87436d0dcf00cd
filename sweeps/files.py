"""Sweep files and what they stand for: rows, options, run folders, commands and generated files.

There are two kinds of sweep file. An ablation has rows that change a few options of a reference
(`scripts/ablations/*.yaml`). A comparison of methods has one YAML file per method and stage, and
fine-tunes each method on subsets of the labels (`scripts/comparison/*.yaml`). Both become a `Sweep`
of rows, and `plan` turns a sweep into runs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

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
from engine.run_record import OPTIONS_FILE
from utils import checkpoint_name

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / 'scripts' / 'ablations'
WRITTEN = 'Written by scripts/make_ablations.py.'
STAGES = ('simmim', 'contrastive', 'finetune')
MAINS = {stage: f'main_{stage}.py' for stage in STAGES}
# Section of a sweep file for each stage, and MODEL.NAME of a stage, which names its folder.
SECTIONS = {'simmim': 'pretrain', 'contrastive': 'pretrain', 'finetune': 'finetune'}
SECTION_NAMES = {'pretrain': 'pre-training', 'finetune': 'fine-tuning'}
MODEL_NAMES = {
    'simmim': 'simmim_pretrain',
    'contrastive': 'contrastive_pretrain',
    'finetune': 'simmim_finetune',
}
# How a comparison of methods gives subsets of the labels, and the option that sets them.
SUBSETS = {'shares': 'DATA.TRAIN_FRACTION', 'images': 'DATA.TRAIN_IMAGES'}
SOFT_TARGETS = 'DATA.SELF_TRAIN_PREDICTIONS'
IMAGES_PER_STEP, IMAGES_COMPARED = 'images per step', 'images compared at once'

ABLATION_KEYS = {'title', 'reference', 'keys', 'rows'}
METHODS_KEYS = {'title', 'reference', 'methods'}
ROW_KEYS = {'pretrain', 'finetune', 'weights', 'learns_from', 'against'}
METHOD_KEYS = {'pretrain', 'finetune', 'pretrain_options', 'finetune_options', 'against'}
NAME = re.compile(r'[\w.-]+', re.ASCII)
NUMBER = re.compile(r'\d+(\.\d+)?', re.ASCII)


@dataclass(frozen=True)
class Row:
    """One ablation config, or one method with one subset of the labels.

    Attributes:
        name: Name in the sweep, such as '0.1'.
        run: Name of its folders, script and YAML files, such as 'mask_ratio_0.1'.
        pretrain: Options changed in pre-training, by key; None without pre-training.
        finetune: Options changed in fine-tuning, by key.
        configs: YAML file by stage.
        pretrain_run: Name of the pre-training run, which several rows may share; '' without one.
        weights: Environment variable that names the checkpoint the row starts from, or ''.
        learns_from: Run whose predictions on the training images are the row's targets, or ''.
        against: Name of the row that it is compared with; '' for the reference.
        pretraining: Stage of its pre-training, 'simmim' or 'contrastive'.
        method: Name of the method in a comparison of methods, or ''.
        subset: Share or number of labelled images as written in the file, or ''.
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
        """Name of the run of a stage, '' for a stage that the row does not have."""
        if stage == 'finetune':
            return self.run
        return self.pretrain_run if stage == self.pretraining else ''

    def changes(self, stage: str) -> dict[str, Any]:
        """Options changed in a stage, by key."""
        return (self.finetune if stage == 'finetune' else self.pretrain) or {}


@dataclass(frozen=True)
class Published:
    """Published figures of some rows, by row name: context, never a comparison."""

    source: str
    measure: str
    values: dict[str, Any]
    note: str = ''


@dataclass(frozen=True)
class Sweep:
    """Rows around one reference row, or rows of several methods.

    Attributes:
        name: Name of the file without suffix, such as 'mask_ratio'.
        path: The sweep file.
        title: What is varied.
        keys: For 'pretrain' and 'finetune', all options that rows may change.
        rows: Rows in the order of the file.
        reference: The row that changes nothing, or the reference method with the most labels.
        published: Published figures, or None.
        subsets: 'shares' or 'images' in a comparison of methods, '' in an ablation.
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
        """The row with the most labels of each method, by name."""
        rows = sorted(self.rows, key=lambda row: float(row.subset or 0))
        return {row.method: row for row in rows if row.method}

    def base(self, row: Row, stage: str) -> Path:
        """The YAML file under a row's changes: the reference's, or the method's own."""
        return (row if row.method else self.reference).configs[stage]


@dataclass(frozen=True)
class Job:
    """One run of a sweep: one stage of a row with one seed.

    Attributes:
        stage: 'simmim', 'contrastive' or 'finetune'.
        run: Name of its folder without the seed.
        seed: SEED.
        folder: Run folder.
        arguments: Script and flags, for python or torchrun.
        config: Run configuration that these flags give.
        needs: Folders of the runs that must finish first.
        processes: Number of processes the run is started with.
        weights: Checkpoint that the run starts from if it is not another run's, or ''.
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


# Reading sweep files ----------------------------------------------------------------------------


def load_sweep(path: str | Path) -> Sweep:
    """Read a sweep file.

    Raises:
        ValueError: If it is not a sweep file; the message names the file, the row and the key.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding='utf-8')
        content = load_yaml(text)
        # YAML reads the name 1000_0.25 as the number 10000.25, so names are taken as written.
        written = yaml.load(text, Loader=yaml.BaseLoader)
    except (OSError, UnicodeError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f'{path} is not a sweep file: {error}') from error
    if not isinstance(content, dict):
        raise ValueError(f'{path} is not a sweep file: it must hold keys and values')
    if 'methods' in content:
        return _read_methods(path, content, written)
    return _read_ablation(path, content, written)


def sweep_files() -> list[Path]:
    """The sweep files of all ablations."""
    return sorted(FOLDER.rglob('*.yaml'))


def _read_ablation(path: Path, content: dict, written: dict) -> Sweep:
    _check_keys(content, ABLATION_KEYS | {'published'}, f'{path}:', needed=ABLATION_KEYS)
    for key in ('reference', 'keys'):
        _check_keys(content[key], {*SECTION_NAMES}, f'{path}: {key}:')
    references = {
        stage: ROOT / str(content['reference'].get(SECTIONS[stage]))
        for stage in ('simmim', 'finetune')
    }
    for stage, file in references.items():
        _check_stage(file, stage, f'{path}: reference: {SECTIONS[stage]}:')
    keys = {section: content['keys'].get(section, []) for section in SECTION_NAMES}
    rows: list[Row] = []
    for name, entry in _named_entries(path, 'rows', content, written).items():
        rows.append(_read_row(path, name, entry or {}, references, keys, rows))
    bare = [row for row in rows if row.run == _reference_run(references)]
    if len(bare) != 1:
        raise ValueError(f'{path}: exactly one row must change nothing, got {len(bare)}')
    names = [row.name for row in rows]
    for row in rows:
        if row.against and row.against not in names:
            raise ValueError(
                f'{path}: row {row.name}: against must be one of {names}, got {row.against!r}'
            )
    return Sweep(
        name=path.stem,
        path=path,
        title=str(content['title']),
        keys=keys,
        rows=tuple(rows),
        reference=bare[0],
        published=_read_published(path, content.get('published'), names),
    )


def _read_row(
    path: Path,
    name: str,
    entry: dict,
    references: dict[str, Path],
    keys: dict[str, list[str]],
    before: list[Row],
) -> Row:
    where = f'{path}: row {name}:'
    _check_keys(entry, ROW_KEYS, where)
    pretrain, finetune = entry.get('pretrain', {}), entry.get('finetune', {})
    pretrain = None if pretrain == 'none' else pretrain
    for section, changes in (('pretrain', pretrain or {}), ('finetune', finetune)):
        _check_keys(changes, set(keys[section]), f'{where} {section}:')
        _check_options(changes, f'{where} {section}')
    reference = _reference_run(references)
    is_reference = pretrain == finetune == {} and not set(entry) - {'against'}
    prefix = reference.removesuffix('reference').removeprefix(f'{path.stem}_')
    run = reference if is_reference else f'{prefix}{path.stem}_{name}'
    weights, teacher = entry.get('weights', ''), str(entry.get('learns_from', ''))
    teachers = {row.name: row.run for row in before}
    if teacher and teacher not in teachers:
        raise ValueError(f'{where} learns_from must be one of the rows above, {list(teachers)}')
    configs = {'finetune': _config_file(references['finetune'], run if finetune else '')}
    pretrain_run = ''
    if pretrain is not None:
        pretrain_run = reference if not pretrain and not weights else run
        for row in before:
            if row.pretrain == pretrain and row.weights == weights:
                pretrain_run = row.pretrain_run
                break
        configs['simmim'] = _config_file(references['simmim'], pretrain_run if pretrain else '')
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


def _read_published(path: Path, entry: Any, rows: list[str]) -> Published | None:
    if entry is None:
        return None
    needed = {'source', 'measure', 'values'}
    _check_keys(entry, needed | {'note'}, f'{path}: published:', needed=needed)
    values = {str(name): value for name, value in entry['values'].items()}
    _check_keys(values, {*rows}, f'{path}: published: values:')
    return Published(**entry | {'values': values})


def _reference_run(references: dict[str, Path]) -> str:
    """'reference', or what else follows '__' in the names of the reference's YAML files."""
    return references['finetune'].stem.rpartition('__')[2]


def _config_file(reference: Path, run: str) -> Path:
    """The YAML file of a run, next to the reference's; the reference's itself for ''."""
    prefix = reference.stem.rpartition('__')[0]
    return reference.with_name(f'{prefix}__{run}.yaml') if run else reference


def _read_methods(path: Path, content: dict, written: dict) -> Sweep:
    """A comparison of methods: the rows of each method with each subset of the labels."""
    kinds = [kind for kind in SUBSETS if kind in content]
    if len(kinds) != 1:
        raise ValueError(f'{path}: one of {" and ".join(SUBSETS)} must be given, got {kinds}')
    (kind,) = kinds
    _check_keys(content, METHODS_KEYS | {kind}, f'{path}:', needed=METHODS_KEYS)
    subsets = {
        name: _read_subset(name, entry or {}, kind, f'{path}: {kind} {name}:')
        for name, entry in _named_entries(path, kind, content, written).items()
    }
    shared = {key for options in subsets.values() for key in options}
    methods: dict[str, Row] = {}
    for name, entry in _named_entries(path, 'methods', content, written).items():
        methods[name] = _read_method(path, name, entry, shared, list(methods.values()))
    reference = str(content['reference'])
    masked = [name for name, row in methods.items() if row.run_of('simmim')]
    if reference not in masked or len(methods) < 2:
        raise ValueError(
            f'{path}: reference must be one of two or more methods, pre-trained by '
            f'{MAINS["simmim"]} ({masked}), got {reference!r}'
        )
    against = _compared_methods(path, methods, reference)
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
        subsets=kind,
    )
    _check_equal_training(sweep)
    return sweep


def _read_subset(name: str, entry: Any, kind: str, where: str) -> dict[str, Any]:
    """Options of fine-tuning for one subset of the labels, including the one that sets it."""
    number = float(name) if NUMBER.fullmatch(name) else 0.0
    if kind == 'shares' and not 0 < number <= 1:
        raise ValueError(f'{where} must be a share in (0, 1]')
    if kind == 'images' and (number < 1 or '.' in name):
        raise ValueError(f'{where} must be a whole number above 0')
    _check_options(entry, where)
    return {SUBSETS[kind]: number if kind == 'shares' else int(name)} | entry


def _read_method(path: Path, name: str, entry: Any, shared: set[str], before: Sequence[Row]) -> Row:
    """A method without a subset of the labels yet."""
    where = f'{path}: method {name}:'
    _check_keys(entry, METHOD_KEYS, where, needed={'finetune'})
    configs = {'finetune': ROOT / str(entry['finetune'])}
    _check_stage(configs['finetune'], 'finetune', f'{where} finetune:')
    options = {section: entry.get(f'{section}_options', {}) for section in SECTION_NAMES}
    for section, changes in options.items():
        _check_options(changes, f'{where} {section}_options')
    if both := sorted(shared & set(options['finetune'])):
        raise ValueError(f'{where} finetune_options: {both[0]} is set by the subset of the labels')
    run = f'{path.stem}_{name}'
    row = Row(name, run, None, options['finetune'], configs, method=name)
    row = replace(row, against=str(entry.get('against', '')))
    if 'pretrain' not in entry:
        if options['pretrain']:
            raise ValueError(f'{where} pretrain_options: there is no pretrain')
        return row
    file = ROOT / str(entry['pretrain'])
    stage = _check_stage(file, '', f'{where} pretrain:')
    same = [r for r in before if r.configs.get(stage) == file and r.pretrain == options['pretrain']]
    return replace(
        row,
        pretrain=options['pretrain'],
        configs=configs | {stage: file},
        pretrain_run=same[0].pretrain_run if same else run,
        pretraining=stage,
    )


def _compared_methods(path: Path, methods: dict[str, Row], reference: str) -> dict[str, str]:
    """Method -> the method it is compared with; '' for those that others are compared with."""
    for name, row in methods.items():
        others = [other for other in methods if other != name]
        if row.against and row.against not in others:
            raise ValueError(
                f'{path}: method {name}: against must be one of {others}, got {row.against!r}'
            )
    compared_with = {reference, *(row.against for row in methods.values())}
    return {
        name: row.against or ('' if name in compared_with else reference)
        for name, row in methods.items()
    }


def _check_equal_training(sweep: Sweep) -> None:
    """Refuse methods that are fine-tuned for other epochs or batch sizes on the same subset."""
    first: dict[str, tuple[str, tuple[int, int]]] = {}
    for row in sweep.rows:
        config = expected_config(sweep, row, 'finetune')
        own = config.TRAIN.EPOCHS, images_per_step(config, 1)
        method, other = first.setdefault(row.subset, (row.method, own))
        if own != other:
            raise ValueError(
                f'{sweep.path}: {sweep.subsets} {row.subset}: TRAIN.EPOCHS and DATA.BATCH_SIZE x '
                f'TRAIN.ACCUMULATION_STEPS must be the same for all methods, got {other} for '
                f'{method} and {own} for {row.method}'
            )


def _named_entries(path: Path, section: str, content: dict, written: dict) -> dict[str, Any]:
    """The entries of a section by their names as written in the file."""
    _check_keys(content[section], None, f'{path}: {section}:')
    names = list(written[section])
    for name in names:
        if not NAME.fullmatch(name):
            raise ValueError(
                f'{path}: {section}: names consist of letters, digits, . _ -: {name!r}'
            )
    if len(names) != len(content[section]):
        raise ValueError(f'{path}: {section}: a name occurs twice: {names}')
    return dict(zip(names, content[section].values(), strict=True))


def _check_keys(
    entry: Any, allowed: set[str] | None, where: str, *, needed: set[str] = frozenset()
) -> None:
    """Refuse anything but a mapping with these keys; None allows any key."""
    if not isinstance(entry, dict):
        raise ValueError(f'{where} must be keys and values, got {entry!r}')
    if allowed is not None and (others := [key for key in entry if key not in allowed]):
        raise ValueError(f'{where} {others[0]!r} is not one of {sorted(allowed)}')
    if missing := needed - set(entry):
        raise ValueError(f'{where} {sorted(missing)[0]!r} is missing')


def _check_options(options: Any, where: str) -> None:
    """Refuse options that do not exist or cannot have these values."""
    _check_keys(options, None, where)
    config = default_config()
    for key, value in options.items():
        put(config, key, value, where)


def _check_stage(file: Path, stage: str, where: str) -> str:
    """The stage that a YAML file is for, by its MODEL.NAME; '' accepts both pre-trainings."""
    if not file.is_file():
        raise ValueError(f'{where} there is no file {file}')
    config = default_config()
    config.merge_from_file(str(file))
    allowed = [stage] if stage else ['simmim', 'contrastive']
    names = {MODEL_NAMES[each]: each for each in allowed}
    if config.MODEL.NAME not in names:
        raise ValueError(
            f'{where} {file}: MODEL.NAME must be one of {[*names]}, got {config.MODEL.NAME!r}'
        )
    changed_config(file, names[config.MODEL.NAME])
    return names[config.MODEL.NAME]


# Options and folders of runs --------------------------------------------------------------------


def stage_title(stage: str) -> str:
    """Name of a stage in texts."""
    return ('contrastive ' if stage == 'contrastive' else '') + SECTION_NAMES[SECTIONS[stage]]


def run_folder(output: str | Path, stage: str, row: Row, seed: int) -> Path | None:
    """Run folder of a row's stage, the shared one of a shared pre-training; None without it."""
    run = row.run_of(stage)
    return Path(output) / MODEL_NAMES[stage] / f'{run}_seed{seed}' if run else None


def changed_config(path: Path, stage: str) -> Config:
    """The options of a YAML file of a stage, before flags."""
    return get_config(build_parser(stage).parse_args(['--cfg', str(path)]))


def expected_config(sweep: Sweep, row: Row, stage: str) -> Config:
    """The options of a row's stage according to the files of the sweep, before flags."""
    config = changed_config(sweep.base(row, stage), stage).clone()
    config.defrost()
    config.merge_from_list(_words(row.changes(stage)))
    return config


def load_config(folder: Path) -> Config:
    """The options of a run from its config.yaml; options it does not have are at their defaults.

    Raises:
        ValueError: If the file is damaged; the message names it.
    """
    file = folder / OPTIONS_FILE
    return _parsed(file, file.read_bytes()).clone()


@lru_cache(maxsize=1024)
def _parsed(file: Path, content: bytes) -> Config:
    """The options of a file with this content, which several functions ask for."""
    config = default_config()
    config.merge_from_file(str(file))
    return config


def changed_options(
    before: Config, after: Config, *, but: tuple[str, ...] = ()
) -> dict[str, tuple[str, str]]:
    """Option -> values before and after, where they differ, without FREE_OPTIONS and `but`."""
    after = after.clone()
    after.defrost()
    for key in ('BASE', *FREE_OPTIONS, *but):  # BASE is merged already
        put(after, key, value_at(before, key), 'before')
    if after == before:  # comparing texts is slow
        return {}
    changes = {}
    for line in config_changes(config_text(before), config_text(after)):
        key, _, values = line.partition(': ')
        old, _, new = values.partition(' -> ')
        changes[key] = old, new
    return changes


def images_per_step(config: Config, processes: int) -> int:
    """Images of one optimizer step."""
    return config.DATA.BATCH_SIZE * max(config.TRAIN.ACCUMULATION_STEPS, 1) * processes


def batch_counts(config: Config, record: Mapping[str, Any], stage: str) -> dict[str, int]:
    """Images per optimizer step, and in contrastive pre-training images compared at once.

    Args:
        config: Run configuration.
        record: Contents of run.json, of which `processes` and `starts` are read; {}: one process.
        stage: Stage of the run.
    """
    processes = record.get('processes', 1)
    if stage == 'contrastive':  # it may resume on other processes with as many images
        for start in record.get('starts', []):
            processes = start.get('processes', processes)
    counts = {IMAGES_PER_STEP: images_per_step(config, processes)}
    if stage == 'contrastive':
        counts[IMAGES_COMPARED] = config.DATA.BATCH_SIZE * processes
    return counts


# Planning runs ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Settings:
    """What all runs of a plan share."""

    data: str
    output: str
    seed: int
    gpus: int
    options: dict[str, list[str]]
    environment: dict[str, str]


def plan(
    sweep: Sweep,
    *,
    seeds: Sequence[int],
    data: str,
    output: str,
    gpus: int = 1,
    options: dict[str, list[str]] | None = None,
    environment: dict[str, str] | None = None,
) -> list[Job]:
    """The runs of a sweep, each once, and each after the runs that it needs.

    Args:
        sweep: The sweep.
        seeds: Seeds; there is one run per row, stage and seed.
        data: --data-path.
        output: --output.
        gpus: Processes of a run, which share the accumulated batches of an optimizer step.
        options: KEY VALUE pairs put over the YAML files, by stage.
        environment: Environment variables, where `weights` are looked up.

    Raises:
        ValueError: If the options of a run cannot work, weights are not given, or the number of
            GPUs does not divide the accumulated batches.
    """
    jobs: dict[Path, Job] = {}
    for seed in seeds:
        settings = _Settings(data, output, seed, gpus, options or {}, environment or {})
        for stage in STAGES:
            for row in sweep.rows:
                if stage in row.stages:
                    job = _job(sweep, row, stage, settings)
                    jobs.setdefault(job.folder, job)
    return list(jobs.values())


def only_row(sweep: Sweep, name: str) -> Sweep:
    """The sweep with one row, and the row whose predictions it learns from.

    Raises:
        ValueError: If there is no such row.
    """
    rows = {row.name: row for row in sweep.rows}
    if name not in rows:
        raise ValueError(f'--row must be one of {[*rows]} of {sweep.path}, got {name!r}')
    teacher = rows[name].learns_from
    return replace(sweep, rows=(*(r for r in sweep.rows if r.run == teacher), rows[name]))


def _job(sweep: Sweep, row: Row, stage: str, settings: _Settings) -> Job:
    folder = run_folder(settings.output, stage, row, settings.seed)
    arguments = ['--cfg', str(sweep.base(row, stage)), '--data-path', settings.data]
    arguments += ['--output', settings.output, '--tag', folder.name]
    options = ['SEED', str(settings.seed), *_words(row.changes(stage))]
    needs, weights = [], ''
    if stage == 'finetune' and row.pretrain is not None:
        source = _job(sweep, row, row.pretraining, settings)
        needs.append(source.folder)
        last = checkpoint_name(source.config.TRAIN.EPOCHS - 1)
        arguments += ['--pretrained', str(source.folder / last)]
    elif row.weights:
        if not settings.environment.get(row.weights):
            raise ValueError(
                f'{row.run} starts from a checkpoint: set the environment variable {row.weights} '
                'to its path'
            )
        weights = os.path.abspath(settings.environment[row.weights])
        arguments += ['--pretrained', weights]
    if stage == 'finetune' and row.learns_from:
        source = next(other for other in sweep.rows if other.run == row.learns_from)
        teacher = run_folder(settings.output, stage, source, settings.seed)
        needs.append(teacher)
        options += [SOFT_TARGETS, str(teacher / 'predictions_train.csv')]
    arguments += ['--opts', *options, *settings.options.get(stage, [])]
    arguments, config = share_steps(stage, arguments, settings.gpus)
    return Job(
        stage=stage,
        run=row.run_of(stage),
        seed=settings.seed,
        folder=folder,
        arguments=[MAINS[stage], *arguments],
        config=config,
        needs=tuple(needs),
        processes=settings.gpus,
        weights=weights,
    )


def share_steps(stage: str, arguments: list[str], gpus: int) -> tuple[list[str], Config]:
    """Flags and options of a run whose GPUs share the accumulated batches of an optimizer step.

    Raises:
        ValueError: If the GPUs cannot share them equally.
    """
    config = get_config(build_parser(stage).parse_args(arguments))
    if gpus == 1:
        return arguments, config
    steps, size = max(config.TRAIN.ACCUMULATION_STEPS, 1), config.DATA.BATCH_SIZE
    if steps % gpus:
        # Contrastive pre-training compares the images of all GPUs: there it is another run.
        alone = steps == 1 or stage == 'contrastive'
        ways = ['one GPU' if alone else f'a number of GPUs that divides {steps}']
        if size % gpus == 0:
            ways.append(
                f'DATA.BATCH_SIZE {size // gpus} with TRAIN.ACCUMULATION_STEPS {steps * gpus}'
            )
        raise ValueError(
            f'{config.TAG}: TRAIN.ACCUMULATION_STEPS {steps} with DATA.BATCH_SIZE {size} cannot be '
            f'shared among {gpus} GPUs: use {" or ".join(ways)}'
        )
    arguments = [*arguments, '--accumulation-steps', str(steps // gpus)]
    return arguments, get_config(build_parser(stage).parse_args(arguments))


def _words(changes: Mapping[str, Any]) -> list[str]:
    return [str(word) for pair in changes.items() for word in pair]


# Generated files --------------------------------------------------------------------------------


def all_files() -> dict[Path, str]:
    """Every file that scripts/make_ablations.py writes, with its text."""
    files: dict[Path, str] = {}
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


def script_text(sweep: Sweep, row: Row) -> str:
    """The shell script of a row: what it runs with which configs, and the call of the launcher."""
    path = script_path(sweep, row)
    what = 'Reference' if row is sweep.reference else f'{sweep.title}: {row.name}'
    configs = ', '.join(row.configs[stage].name for stage in row.stages)
    weights = f'{row.weights}=CKPT ' if row.weights else ''
    launcher = os.path.relpath(FOLDER / 'run_row.sh', path.parent)
    return (
        '#!/usr/bin/env bash\n'
        f'# {what} ({configs}). {weights}bash {_shown(path)} DATA OUTPUT [GPUS]. {WRITTEN}\n'
        f'exec bash "$(dirname "$0")/{launcher}" {_shown(sweep.path)} {row.name} "$@"\n'
    )


def yaml_text(sweep: Sweep, row: Row, stage: str) -> str:
    """The YAML file of a row's stage: the reference's file and the changed options."""
    run = row.run_of(stage)
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
        f'BASE: [{sweep.reference.configs[stage].name}]\n'
        f'{yaml.safe_dump(nested, sort_keys=False)}'
        f'TAG: {run}\n'
    )


def _shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()
