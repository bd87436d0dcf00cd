"""Sweep files and what they stand for: rows, options, run folders and the runs of a sweep.

There are two kinds of sweep file. An ablation has rows that change a few options of a reference
(`scripts/ablations/*.yaml`). A comparison of methods has YAML files for each method and fine-tunes
it on subsets of the labels (`scripts/comparison/*.yaml`). Both become a `Sweep` of rows, each with
a YAML file and changed options for each stage, and `plan` turns a sweep into runs. A file may
have `scales`, such as a small one for a CPU, which select rows and change options of all rows.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from config import (
    FREE_OPTIONS,
    VIEWS,
    YAML_LOADER,
    Config,
    build_parser,
    config_text,
    count_classes,
    default_config,
    get_config,
    put,
    value_at,
)
from engine.downloads import is_url
from engine.files import checkpoint_name
from engine.run_record import OPTIONS_FILE, run_changes

ROOT = Path(__file__).resolve().parents[1]
STAGES = ('simmim', 'contrastive', 'finetune')
MAINS = {stage: f'main_{stage}.py' for stage in STAGES}
# Section of a sweep file for each stage, and MODEL.NAME of a stage, which names its folder.
SECTIONS = {'simmim': 'pretrain', 'contrastive': 'pretrain', 'finetune': 'finetune'}
MODEL_NAMES = {
    'simmim': 'simmim_pretrain',
    'contrastive': 'contrastive_pretrain',
    'finetune': 'simmim_finetune',
}
# How a comparison of methods gives subsets of the labels, and the option that sets them.
SUBSETS = {'shares': 'DATA.TRAIN_FRACTION', 'images': 'DATA.TRAIN_IMAGES'}
GPUS_SHOWN = 8
MASK_KEYS = {'DATA.MASK_TYPE', 'DATA.MASK_PATCH_SIZE', 'DATA.MASK_RATIO'}
SOFT_TARGETS = 'DATA.SELF_TRAIN_PREDICTIONS'

ABLATION_KEYS = {'title', 'reference', 'keys', 'rows'}
METHODS_KEYS = {'title', 'reference', 'methods'}
FREE_KEYS = {'published', 'scores', 'split'}
SELECTED = ('rows', 'methods', *SUBSETS)  # sections of which a scale selects some
SCALE_KEYS = {'seeds', 'pretrain', 'finetune', 'images_per_second', 'training_images'}
REPLACED = ('reference', 'published')  # whole values that a scale replaces
ROW_KEYS = {'pretrain', 'finetune', 'weights', 'learns_from', 'against'}
METHOD_KEYS = {'pretrain', 'finetune', 'pretrain_options', 'finetune_options', 'weights', 'against'}
# Keys whose values are names, or lists of names.
NAMED_BY = ('reference', 'row', 'learns_from', 'against', *SELECTED)
NAME = re.compile(r'[\w.-]+', re.ASCII)
PUBLISHED_KEYS = {'source', 'measure', 'values', 'note', 'label'}


@dataclass(frozen=True)
class Row:
    """One row of an ablation, or one method with one subset of the labels.

    Attributes:
        name: Name in the sweep, such as '0.1'.
        run: Name of its fine-tuning's folder and of its script, such as 'mask_ratio_0.1'.
        configs: For each stage of the row the YAML file under its changes.
        changes: For each stage the changed options, by key.
        pretrain_run: Name of the pre-training run, which several rows may share.
        weights: Environment variable that names the checkpoint the row starts from, or ''.
        learns_from: Row whose predictions on the training images are this row's targets, or ''.
        against: Rows of which this one is compared with the best on held-out patients, often only
            one; () for rows that others are compared with.
        method: Name of the method in a comparison of methods, or ''.
        subset: Share or number of labelled images as in the file, or ''.
        shared: Options of all rows at a scale, by section; `changes` are put over them.
    """

    name: str
    run: str
    configs: dict[str, Path]
    changes: dict[str, dict[str, Any]]
    pretrain_run: str
    weights: str = ''
    learns_from: str = ''
    against: tuple[str, ...] = ()
    method: str = ''
    subset: str = ''
    shared: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def options(self, stage: str) -> dict[str, Any]:
        """All options that are put over the YAML file of a stage."""
        return {**self.shared.get(SECTIONS[stage], {}), **self.changes[stage]}

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages of the row in their order."""
        return tuple(stage for stage in STAGES if stage in self.configs)

    @property
    def pretraining(self) -> str:
        """The stage of its pre-training; '' without one."""
        return self.stages[0] if len(self.stages) > 1 else ''


@dataclass(frozen=True)
class Scale:
    """What a scale of a sweep sets for all rows; everything is optional.

    Attributes:
        seeds: Number of seeds; 0: as the command says.
        options: Options put over the YAML files of all rows, by section.
        images_per_second: Of a GPU in pre-training and in fine-tuning, or one number for both.
        training_images: Images of the training CSV by DATA.VIEWS. With `images_per_second` it
            allows an estimate of the time without the data.
    """

    seeds: int = 0
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    images_per_second: tuple[float, ...] = ()
    training_images: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Sweep:
    """Rows around one reference row, or rows of several methods.

    Attributes:
        name: Name of the file without suffix, such as 'mask_ratio'.
        path: The sweep file.
        title: What is varied.
        rows: Rows in the order of the file.
        reference: The row that others are compared with unless they name another one: the row
            that changes nothing or that `reference` names, or the method with the most labels.
        published: `source`, `measure`, `note` and `values` by row name: context, not a comparison.
            With a `label` only for runs that learned this label.
        subsets: 'shares' or 'images' in a comparison of methods, '' in an ablation.
        scores: Scores of its table by default; () for the usual one.
        split: Split that is compared by default; '' for the first that the runs were scored on.
        scale: What the chosen scale sets.
    """

    name: str
    path: Path
    title: str
    rows: tuple[Row, ...]
    reference: Row
    published: dict[str, Any] | None = None
    subsets: str = ''
    scores: tuple[str, ...] = ()
    split: str = ''
    scale: Scale = Scale()

    @property
    def keys(self) -> list[str]:
        """All options that rows change."""
        changes = (options for row in self.rows for options in row.changes.values())
        return sorted({key for options in changes for key in options})

    @property
    def mask_rows(self) -> list[Row]:
        """The rows with SimMIM that change nothing but the masks."""
        rows = [row for row in self.rows if row.pretraining == 'simmim' and not row.weights]
        return [
            row for row in rows if {*row.changes['simmim'], *row.changes['finetune']} <= MASK_KEYS
        ]


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
    fold: str = ''

    @property
    def name(self) -> str:
        fold = f' fold {self.fold}' if self.fold else ''
        return f'{SECTIONS[self.stage]} {self.run} seed {self.seed}{fold}'


# Reading sweep files ----------------------------------------------------------------------------


def load_sweep(path: str | Path, scale: str = '') -> Sweep:
    """Read a sweep file, at one of its scales or as it is.

    Raises:
        ValueError: If it is not a sweep file or has no such scale; the message names the file, the
            row and the key.
    """
    path = Path(path)
    try:
        content = yaml.load(path.read_text(encoding='utf-8'), _NamesAsWritten)
        content, chosen = _at_scale(content, scale)
        is_ablation = isinstance(content, dict) and 'methods' not in content
        rows, reference = (_ablation_rows if is_ablation else _method_rows)(
            path.stem, content, chosen.options
        )
        names = [row.name for row in rows]
        published = content.get('published') or None
        if published:
            _check_keys(
                published, PUBLISHED_KEYS, 'published', needed=PUBLISHED_KEYS - {'note', 'label'}
            )
            values = published['values']
            if scale:  # which may leave rows out
                values = {name: value for name, value in values.items() if name in names}
            _check_keys(values, names, 'published: values')
            published = {'note': ''} | published | {'values': values} if values else None
    except (OSError, UnicodeError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f'{path}: {" ".join(str(error).split())}') from error
    return Sweep(
        name=path.stem,
        path=path,
        title=str(content['title']),
        rows=tuple(rows),
        reference=next(row for row in rows if row.name == reference),
        published=published,
        subsets='' if is_ablation else _subset_kind(content),
        scores=tuple(content.get('scores') or ()),
        split=str(content.get('split', '')),
        scale=chosen,
    )


def _at_scale(content: Any, name: str) -> tuple[Any, Scale]:
    """The content of a sweep file at a scale, and what the scale sets for all rows."""
    if not isinstance(content, dict):
        return content, Scale()
    scales = dict(_named(content.get('scales') or {}))
    content = {key: value for key, value in content.items() if key != 'scales'}
    if not name:
        return content, Scale()
    if name not in scales:
        raise ValueError(f'--scale must be one of {[*scales]}, got {name!r}')
    entry, where = scales[name], f'scale {name}'
    _check_keys(entry, {*SCALE_KEYS, *({*SELECTED, *REPLACED} & {*content})}, where)
    for key in [key for key in SELECTED if key in entry]:
        content[key] = _selected(content[key], entry[key], f'{where}: {key}')
    content |= {key: entry[key] for key in REPLACED if key in entry}
    options = {key: _checked(entry.get(key), f'{where}: {key}') for key in ('pretrain', 'finetune')}
    images, rates = entry.get('training_images', {}), entry.get('images_per_second', [])
    _check_keys(images, VIEWS, f'{where}: training_images')
    rates = rates if isinstance(rates, list) else [rates]
    for value in (entry.get('seeds', 1), *rates, *images.values()):
        if not isinstance(value, int | float) or value <= 0:
            raise ValueError(f'{where}: seeds and numbers of images must be above 0, got {value!r}')
    return content, Scale(entry.get('seeds', 0), options, tuple(rates), images)


def _selected(section: Any, chosen: Any, where: str) -> dict[str, dict]:
    """Entries of a section of a sweep file: those named, with the changes that are given."""
    known, found = dict(_named(section)), {}
    entries = dict.fromkeys(chosen, {}) if isinstance(chosen, list) else dict(_named(chosen))
    for name, entry in entries.items():
        if name not in known and isinstance(chosen, list):
            raise ValueError(f'{where}: {name!r} is not one of {[*known]}')
        _check_keys(entry, entry, f'{where}: {name}')  # keys and values
        found[name] = known.get(name, {}) | entry
    return found


class _NamesAsWritten(YAML_LOADER):
    """Takes names as they are written; plain YAML reads 1000_0.25 as 10000.25 and no as False."""

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict[str, Any]:
        names = [key.value for key, _ in node.value]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f'{twice[0]!r} occurs twice')
        for key, value in node.value:
            if key.value != '<<':
                key.tag = self.DEFAULT_SCALAR_TAG
            if key.value in NAMED_BY:
                for name in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                    if isinstance(name, yaml.ScalarNode):
                        name.tag = self.DEFAULT_SCALAR_TAG
        return super().construct_mapping(node, deep)


def _ablation_rows(
    stem: str, content: dict, shared: Mapping[str, Mapping[str, Any]]
) -> tuple[list[Row], str]:
    """The rows of an ablation, and the name of the reference row."""
    _check_keys(content, ABLATION_KEYS | FREE_KEYS, 'the sweep', needed=ABLATION_KEYS)
    start = content['reference']
    _check_keys(start, {'pretrain', 'finetune', 'row'}, 'reference', needed={'finetune'})
    configs = _configs(start, 'reference')
    allowed = ROW_KEYS if 'pretrain' in start else ROW_KEYS - {'pretrain'}
    reference = configs['finetune'].stem.rpartition('__')[2]  # 'reference', 'nano_reference'
    prefix = reference.removesuffix('reference').removeprefix(f'{stem}_')
    keys = content['keys'] or {}
    _check_keys(keys, {'pretrain', 'finetune'}, 'keys')
    rows: list[Row] = []
    for name, entry in _named(content['rows']):
        _check_keys(entry, allowed, f'row {name}')
        changes = {}
        for stage in configs:
            section = SECTIONS[stage]
            options = entry.get(section, {})
            if (section, options) != ('pretrain', 'none'):
                _check_keys(options, keys.get(section) or [], f'row {name}: {section}')
                changes[stage] = _checked(options, f'row {name}: {section}')
        learns_from = str(entry.get('learns_from', ''))
        if learns_from and learns_from not in [row.name for row in rows]:
            raise ValueError(f'row {name}: learns_from must be a row above it, got {learns_from!r}')
        run = f'{prefix}{stem}_{name}' if set(entry) - {'against'} else reference
        is_changed = entry.get('weights') or any(changes.get(s) for s in configs if s != 'finetune')
        row = Row(
            name=name,
            run=run,
            configs={stage: configs[stage] for stage in changes},
            changes=changes,
            pretrain_run=run if is_changed else reference,
            weights=entry.get('weights', ''),
            learns_from=learns_from,
            against=_against(entry),
            shared=shared,
        )
        rows.append(row)
    names = [row.name for row in rows]
    bare = [row.name for row in rows if row.run == reference]
    if len(bare) > 1 or not (bare or 'row' in start):
        raise ValueError(f'exactly one row must change nothing, got {len(bare)}')
    base = str(start.get('row', *bare))
    if base not in names:
        raise ValueError(f'reference: row must be one of {names}, got {base!r}')
    return _linked(rows, dict.fromkeys(names, base)), base


def _method_rows(
    stem: str, content: dict, shared: Mapping[str, Mapping[str, Any]]
) -> tuple[list[Row], str]:
    """The rows of a comparison of methods, and the name of the reference row."""
    kind = _subset_kind(content)
    _check_keys(content, METHODS_KEYS | FREE_KEYS | {kind}, 'the sweep', needed=METHODS_KEYS)
    methods = dict(_named(content['methods']))
    reference = str(content['reference'])
    if reference not in methods:
        raise ValueError(f'reference must be one of {[*methods]}, got {reference!r}')
    rows, defaults = [], {}
    for subset, options in _named(content[kind]):
        size = {SUBSETS[kind]: float(subset) if kind == 'shares' else num_images(subset)}
        for method, entry in methods.items():
            _check_keys(entry, METHOD_KEYS, f'method {method}', needed={'finetune'})
            configs = _configs(entry, f'method {method}')
            changes = {}
            for stage in configs:
                key = f'{SECTIONS[stage]}_options'
                changes[stage] = _checked(entry.get(key), f'method {method}: {key}')
            changes['finetune'] = changes['finetune'] | size | _checked(options, f'{kind} {subset}')
            row = Row(
                name=f'{method}_{subset}',
                run=f'{stem}_{method}_{subset}',
                configs=configs,
                changes=changes,
                pretrain_run=f'{stem}_{method}',
                weights=entry.get('weights', ''),
                against=tuple(f'{other}_{subset}' for other in _against(entry)),
                method=method,
                subset=subset,
                shared=shared,
            )
            rows.append(row)
            defaults[row.name] = f'{reference}_{subset}'
    _refuse_unequal_training(rows)
    most = max((row.subset for row in rows), key=subset_size)
    return _linked(rows, defaults), f'{reference}_{most}'


def num_images(subset: str) -> int:
    """The value of DATA.TRAIN_IMAGES for a number of images, or 'all'."""
    return 0 if subset == 'all' else int(subset)


def subset_size(subset: str) -> float:
    """A number by which subsets of the labels are ordered; 'all' is the greatest."""
    return math.inf if subset == 'all' else float(subset)


def _refuse_unequal_training(rows: Sequence[Row]) -> None:
    """Refuse methods with other epochs or batches of fine-tuning on the same subset."""
    first: dict[str, tuple[str, dict[str, int]]] = {}
    for row in rows:
        config = expected_config(row, 'finetune')
        own = {'TRAIN.EPOCHS': config.TRAIN.EPOCHS} | batch_counts(config, {}, 'finetune')
        other, wanted = first.setdefault(row.subset, (row.name, own))
        if own != wanted:
            raise ValueError(
                f'methods must be fine-tuned alike on the same labels, got {wanted} for {other} '
                f'and {own} for {row.name}'
            )


def _subset_kind(content: Any) -> str:
    kinds = [kind for kind in SUBSETS if kind in (content or ())]
    if len(kinds) != 1:
        raise ValueError(f'a sweep needs rows, or methods with one of {", ".join(SUBSETS)}')
    return kinds[0]


def _linked(rows: Sequence[Row], defaults: Mapping[str, str]) -> list[Row]:
    """Rows with shared pre-trainings and with the rows that they are compared with."""
    names = [row.name for row in rows]
    compared_with = {*defaults.values(), *(name for row in rows for name in row.against)}
    first: dict[str, str] = {}
    linked = []
    for row in rows:
        if others := sorted({*row.against} - {*names}):
            raise ValueError(f'row {row.name}: against must be of {names}, got {others[0]!r}')
        stage = row.pretraining
        start = str((row.configs.get(stage), row.changes.get(stage), row.weights))
        default = () if row.name in compared_with else (defaults[row.name],)
        linked.append(
            replace(
                row,
                pretrain_run=first.setdefault(start, row.pretrain_run),
                against=row.against or default,
            )
        )
    return linked


def _against(entry: Mapping[str, Any]) -> tuple[str, ...]:
    names = entry.get('against', [])
    return tuple(map(str, names if isinstance(names, list) else [names]))


def _named(entries: Any) -> list[tuple[str, dict]]:
    """The entries of a section by name; an entry may be empty."""
    if not isinstance(entries, dict):
        raise ValueError(f'rows, methods and subsets must be keys and values, got {entries!r}')
    if others := [name for name in entries if not NAME.fullmatch(name)]:
        raise ValueError(f'names consist of letters, digits and . _ -, got {others[0]!r}')
    return [(name, entry or {}) for name, entry in entries.items()]


def _checked(options: Any, where: str) -> dict[str, Any]:
    """Options that exist and can have these values; {} if none are given."""
    config, options = default_config(), options or {}
    if not isinstance(options, dict):
        raise ValueError(f'{where} must be keys and values, got {options!r}')
    for key, value in options.items():
        put(config, key, value, where)
    return options


def _configs(entry: Mapping[str, Any], where: str) -> dict[str, Path]:
    """The YAML file of each stage, which is known by its MODEL.NAME."""
    configs = {}
    for section in ('pretrain', 'finetune'):
        if section in entry:
            file = ROOT / str(entry[section])
            name = _options_of(file).MODEL.NAME
            stages = {MODEL_NAMES[stage]: stage for stage in STAGES if SECTIONS[stage] == section}
            if name not in stages:
                raise ValueError(
                    f'{where}: {section}: {file}: MODEL.NAME must be one of {[*stages]}, got '
                    f'{name!r}'
                )
            configs[stages[name]] = file
    return configs


def _check_keys(
    entry: Any, allowed: Collection[str], where: str, *, needed: Iterable[str] = ()
) -> None:
    """Refuse anything but a mapping with these keys."""
    if not isinstance(entry, dict):
        raise ValueError(f'{where} must be keys and values, got {entry!r}')
    if others := [key for key in entry if key not in allowed]:
        raise ValueError(f'{where}: {others[0]!r} is not one of {sorted(allowed)}')
    if missing := set(needed) - set(entry):
        raise ValueError(f'{where}: {sorted(missing)[0]!r} is missing')


# Options and folders of runs --------------------------------------------------------------------


def run_folder(output: str | Path, stage: str, row: Row, seed: int, fold: str = '') -> Path | None:
    """Run folder of a row's stage, the shared one of a shared pre-training; None without it.

    Args:
        output: Root of all run folders.
        stage: One of STAGES.
        row: The row.
        seed: Seed of the run.
        fold: DATA.FOLD of a fine-tuning, or ''; pre-training serves all folds.
    """
    if stage not in row.configs:
        return None
    run = row.run if stage == 'finetune' else row.pretrain_run
    part = f'_fold{fold.partition("/")[0]}' if fold and stage == 'finetune' else ''
    return Path(output) / MODEL_NAMES[stage] / f'{run}_seed{seed}{part}'


def expected_config(row: Row, stage: str) -> Config:
    """The options of a row's stage according to the files of the sweep, before flags."""
    config = _options_of(row.configs[stage]).clone()
    config.merge_from_list(_words(row.options(stage)))
    count_classes(config, stage)
    return config


def without_cache(config: Config) -> Config:
    """A copy of the options that reads the CSV files in the data folder, and copies no store."""
    config = config.clone()
    config.defrost()
    config.DATA.CACHE_DIR = ''
    return config


def load_config(folder: Path) -> Config:
    """The options of a run from its config.yaml; options it does not have are at their defaults.

    Raises:
        ValueError: If the file is damaged; the message names it.
    """
    file = folder / OPTIONS_FILE
    return _parsed(file, file.stat().st_mtime_ns).clone()


def _options_of(file: Path) -> Config:
    if not file.is_file():
        raise ValueError(f'there is no file {file}')
    return _parsed(file, file.stat().st_mtime_ns)


@lru_cache(maxsize=1024)
def _parsed(file: Path, changed_ns: int) -> Config:
    config = default_config()
    config.merge_from_file(str(file))
    return config


def option_changes(before: Config, after: Config) -> list[str]:
    """The options that change what is trained; see `engine.run_record.run_changes`."""
    same = after.clone()
    same.defrost()
    for key in ('BASE', *FREE_OPTIONS):  # BASE is merged already
        put(same, key, value_at(before, key), 'before')
    if same == before:  # comparing texts is slow
        return []
    return run_changes({'options': config_text(before)}, {'options': config_text(after)})


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
    batch = config.DATA.BATCH_SIZE * processes
    counts = {'images per step': batch * max(config.TRAIN.ACCUMULATION_STEPS, 1)}
    return counts | ({'images compared at once': batch} if stage == 'contrastive' else {})


def training_changes(
    stage: str,
    before: tuple[Config, Mapping[str, Any]],
    now: tuple[Config, Mapping[str, Any]],
) -> list[str]:
    """How the training of two runs of a stage differs, each with its options and its run.json."""
    old, new = (batch_counts(*run, stage) for run in (before, now))
    counts = [f'{key}: {old[key]} -> {new[key]}' for key in old if old[key] != new[key]]
    return option_changes(before[0], now[0]) + counts


# Planning runs ----------------------------------------------------------------------------------


def plan(  # noqa: PLR0913
    sweep: Sweep,
    *,
    seeds: Sequence[int],
    data: str,
    output: str,
    gpus: int = 1,
    options: Mapping[str, list[str]] | None = None,
    environment: Mapping[str, str] | None = None,
    folds: int = 0,
    unlabelled: str = '',
) -> list[Job]:
    """The runs of a sweep, each once, and each after the runs that it needs.

    Args:
        sweep: The sweep.
        seeds: Seeds; there is one run per row, stage and seed.
        data: --data-path.
        output: --output.
        gpus: Processes of a run, which share the images of an optimizer step.
        options: KEY VALUE pairs put over the YAML files, by stage.
        environment: Environment variables, where `weights` are looked up.
        folds: Fine-tune once for each part of a cross-validation (DATA.FOLD k/folds); 0: without.
        unlabelled: Folder or store of images that all pre-trainings learn from, in place of `data`.

    Raises:
        ValueError: If the options of a run cannot work, weights are not given, or the number of
            GPUs does not fit the images of an optimizer step. With folds and without `unlabelled`,
            if a row pre-trains: it would learn from the images that are scored.
    """
    if folds and not unlabelled and any(row.pretraining for row in sweep.rows):
        raise ValueError(
            '--folds needs --unlabelled: one pre-training serves all folds, and on the images of '
            '--data-path it would learn from those that are scored'
        )
    jobs: dict[Path, Job] = {}
    parts = [f'{part}/{folds}' for part in range(folds)] or ['']
    steps = [
        (seed, stage, fold, row)
        for seed in seeds
        for stage in STAGES
        for fold in (parts if stage == 'finetune' else [''])
        for row in sweep.rows
    ]
    for seed, stage, fold, row in steps:
        folder = run_folder(output, stage, row, seed, fold)
        if folder is None or folder in jobs:
            continue
        needs, weights, words = [], '', ['DATA.FOLD', fold] if fold else []
        images = data
        if stage != 'finetune' and unlabelled:
            images, words = unlabelled, ['DATA.DATASET', 'folder']
        arguments = ['--cfg', str(row.configs[stage]), '--data-path', images, '--output', output]
        if stage == 'finetune' and row.pretraining:
            source = jobs[run_folder(output, row.pretraining, row, seed)]
            needs.append(source.folder)
            checkpoint = source.folder / checkpoint_name(source.config.TRAIN.EPOCHS - 1)
            arguments += ['--pretrained', str(checkpoint)]
        elif row.weights:
            weights = _weights(row, environment or {})
            arguments += ['--pretrained', weights]
        if stage == 'finetune' and row.learns_from:
            teacher = next(other for other in sweep.rows if other.name == row.learns_from)
            needs.append(run_folder(output, stage, teacher, seed, fold))
            words += [SOFT_TARGETS, str(needs[-1] / 'predictions_train.csv')]
        words = ['SEED', str(seed), *_words(row.options(stage)), *words]
        arguments += ['--tag', folder.name, '--opts', *words, *(options or {}).get(stage, [])]
        arguments, config = share_steps(stage, arguments, gpus)
        jobs[folder] = Job(
            stage=stage,
            run=folder.name.rpartition(f'_seed{seed}')[0],
            seed=seed,
            fold=fold,
            folder=folder,
            arguments=[MAINS[stage], *arguments],
            config=config,
            needs=tuple(needs),
            processes=gpus,
            weights=weights,
        )
    return list(jobs.values())


def only_rows(sweep: Sweep, names: Sequence[str]) -> Sweep:
    """The sweep with these rows, and the rows whose predictions they learn from.

    Raises:
        ValueError: If there is no such row.
    """
    rows = {row.name: row for row in sweep.rows}
    if others := [name for name in names if name not in rows]:
        raise ValueError(f'--row must be of {[*rows]} of {sweep.path}, got {others[0]!r}')
    kept = {*names, *(rows[name].learns_from for name in names)}
    return replace(sweep, rows=tuple(row for row in sweep.rows if row.name in kept))


def share_steps(stage: str, arguments: list[str], gpus: int) -> tuple[list[str], Config]:
    """Flags and options of a run whose GPUs share the images of an optimizer step.

    They share its accumulated batches, and the images of a batch if there are more GPUs.

    Raises:
        ValueError: If the GPUs cannot share them equally.
    """
    config = get_config(build_parser(stage).parse_args(arguments))
    if gpus == 1:
        return arguments, config
    size, steps = config.DATA.BATCH_SIZE, max(config.TRAIN.ACCUMULATION_STEPS, 1)
    images = size * steps
    if images % gpus:
        fitting = [str(number) for number in range(1, images + 1) if images % number == 0]
        raise ValueError(
            f'{config.TAG}: {gpus} GPUs cannot share the {images} images of a step equally '
            f'(DATA.BATCH_SIZE {size} x TRAIN.ACCUMULATION_STEPS {steps}): use '
            f'{", ".join(fitting[:GPUS_SHOWN])} ... GPUs'
        )
    shared = math.gcd(gpus, steps)
    arguments = [*arguments, '--accumulation-steps', str(steps // shared)]
    arguments += ['--batch-size', str(size // (gpus // shared))]
    return arguments, get_config(build_parser(stage).parse_args(arguments))


def _weights(row: Row, environment: Mapping[str, str]) -> str:
    if not environment.get(row.weights):
        raise ValueError(
            f'{row.run} starts from a checkpoint: set the environment variable {row.weights} to '
            'its path'
        )
    weights = environment[row.weights]
    return weights if is_url(weights) else os.path.abspath(weights)


def _words(changes: Mapping[str, Any]) -> list[str]:
    return [str(word) for pair in changes.items() for word in pair]
