"""Sweep files, and the rows, options, run folders and runs that they define.

There are two kinds of sweep file. An ablation has rows that change a few options of a reference
(`scripts/ablations/*.yaml`). A comparison of methods has YAML files for each method and fine-tunes
it on subsets of the labels (`scripts/comparison/*.yaml`). Both become a `Sweep` of rows, each with
a YAML file and changed options for each stage, and `plan` turns a sweep into runs. A file may
have `scales`, such as a small one for a CPU. A scale overrides keys of the file.
"""

import json
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
    NO_ENCODER,
    TRAINED,
    Config,
    YamlLoader,
    build_parser,
    config_changes,
    config_from_text,
    config_text,
    default_config,
    encoder_node,
    fit_to_task,
    flat_options,
    get_config,
    options_that_affect,
    put,
    value_at,
)
from data.tables.folds import fold_files
from engine.run_record import OPTIONS_FILE, ROOT, processes_of
from system.downloads import is_url, shipped_weights
from system.files import checkpoint_name, replace_file

STAGES = ('simmim', 'contrastive', 'finetune')
MAINS = {stage: f'main_{stage}.py' for stage in STAGES}
# Section of a sweep file for each stage, and MODEL.NAME of each stage, which is also its folder.
SECTIONS = {'simmim': 'pretrain', 'contrastive': 'pretrain', 'finetune': 'finetune'}
MODEL_NAMES = {
    'simmim': 'simmim_pretrain',
    'contrastive': 'contrastive_pretrain',
    'finetune': 'simmim_finetune',
}
# Section of a comparison of methods with the subsets of the labels -> option that selects them.
SUBSETS = {'shares': 'DATA.TRAIN_FRACTION', 'images': 'DATA.TRAIN_IMAGES'}
GPUS_SHOWN = 8
MASK_KEYS = {'DATA.MASK_TYPE', 'DATA.MASK_PATCH_SIZE', 'DATA.MASK_RATIO'}
NOTED = 'sweeps.json'  # file in the output folder of runs with their sweep files
SOFT_TARGETS = 'DATA.SELF_TRAIN_PREDICTIONS'

SELECTED = ('rows', 'methods', *SUBSETS)  # sections from which a scale selects entries
SHARED = ('pretrain', 'finetune')  # options of all rows, under those of each row
NEEDED_KEYS = {'title', 'reference'}
FREE_KEYS = {'note', 'published', 'scores', 'split', 'titles', 'seeds', *SHARED}
SCALE_KEYS = {'reference', 'note', 'published', 'seeds', 'titles', *SHARED, *SELECTED}
ROW_KEYS = {'pretrain', 'finetune', 'weights', 'learns_from', 'against'}
METHOD_KEYS = {'pretrain', 'finetune', 'pretrain_options', 'finetune_options', 'weights'}
METHOD_KEYS |= {'schedule', 'against'}
# Options of an encoder that decide which weights it loads.
SHAPE_KEYS = {'EMBED_DIM', 'DEPTH', 'DEPTHS', 'NUM_HEADS', 'PATCH_SIZE', 'NAME'}
NAMED_BY = (
    'reference',
    'row',
    'learns_from',
    'against',
    'published',
    *SELECTED,
)  # their values are names
# Methods that a pre-trained model should beat -> their names in tables and figures.
BASELINES = {
    'pixels': 'pixel baseline',  # FINETUNE.MODE 'pixels'
    'metadata': 'metadata baseline',  # FINETUNE.MODE 'metadata'
    'resnet18': 'ResNet-18 from scratch',
}
NAME = re.compile(r'[\w.-]+', re.ASCII)


@dataclass(frozen=True)
class Row:
    """One row of an ablation, or one method with one subset of the labels.

    Attributes:
        name: Name in the sweep, such as '0.1'.
        run: Name of the fine-tuning run and of its script, such as 'mask_ratio_0.1'.
        configs: Stage -> YAML file.
        changes: Stage -> options that the row changes, by key.
        pretrain_run: Name of the pre-training run, which several rows may share.
        weights: Environment variable with the checkpoint that the row starts from, or ''.
        learns_from: Row whose predictions on the training images are the targets, or ''.
        against: Rows to compare with, each on its own, usually one. () if this row is only a
            reference for others.
        method: Name of the method in a comparison of methods, or ''.
        subset: Share or number of labelled images as written in the file, or ''.
        shared: Section -> options that the file sets for all rows. `changes` override them.
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
        """Return all options that override the YAML file of a stage."""
        return {**self.shared.get(SECTIONS[stage], {}), **self.changes[stage]}

    @property
    def stages(self) -> tuple[str, ...]:
        """Return the stages of the row in the order in which they run."""
        return tuple(stage for stage in STAGES if stage in self.configs)

    @property
    def pretraining(self) -> str:
        """Return the pre-training stage of the row, or '' if it has none."""
        return self.stages[0] if len(self.stages) > 1 else ''


@dataclass(frozen=True)
class Sweep:
    """Rows around a reference, or rows of several methods.

    Attributes:
        name: Name of the file without suffix, such as 'mask_ratio'.
        path: Sweep file.
        title: Name of the varied option for readers.
        rows: Rows in the order of the file.
        note: Text below the tables, such as published scores of similar rows.
        subsets: 'shares' or 'images' in a comparison of methods, '' in an ablation.
        scores: Default scores of the table; () for the mean over the labels.
        split: Default split of the table; '' for the first split that the runs were scored on.
        titles: Method or row -> its name in tables and figures.
        seeds: Number of seeds; 0 for the number in the command.
        published: Row -> published values of the first `scores`.
    """

    name: str
    path: Path
    title: str
    rows: tuple[Row, ...]
    note: str = ''
    subsets: str = ''
    scores: tuple[str, ...] = ()
    split: str = ''
    titles: Mapping[str, str] = field(default_factory=dict)
    seeds: int = 0
    published: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @property
    def mask_rows(self) -> list[Row]:
        """Return the SimMIM rows that only change the masks."""
        rows = [row for row in self.rows if row.pretraining == 'simmim' and not row.weights]
        return [
            row for row in rows if {*row.changes['simmim'], *row.changes['finetune']} <= MASK_KEYS
        ]


@dataclass(frozen=True)
class Job:
    """One run of a sweep: one stage of a row with one seed.

    Attributes:
        stage: 'simmim', 'contrastive' or 'finetune'.
        run: Name of the run folder without the seed.
        seed: SEED.
        folder: Run folder.
        arguments: Script and flags, for python or torchrun.
        config: Run configuration after these flags.
        needs: Folders of the runs that must finish first.
        processes: Number of processes of the run.
        fold: Fold of a fine-tuning, such as '0/5', or ''.
    """

    stage: str
    run: str
    seed: int
    folder: Path
    arguments: list[str]
    config: Config = field(repr=False)
    needs: tuple[Path, ...] = ()
    processes: int = 1
    fold: str = ''

    @property
    def name(self) -> str:
        fold = f' fold {self.fold}' if self.fold else ''
        return f'{SECTIONS[self.stage]} {self.run} seed {self.seed}{fold}'


# Reading sweep files ----------------------------------------------------------------------------


def load_sweep(path: str | Path, scale: str = '') -> Sweep:
    """Read a sweep file, optionally at one of its scales.

    Raises:
        ValueError: If it is not a valid sweep file or has no such scale. The message names the
            file, the row and the key.
    """
    path = Path(path)
    try:
        content = yaml.load(path.read_text(encoding='utf-8'), _NamesAsWritten)
        content = _at_scale(content, scale)
        shared = {key: _checked(content.get(key), f'{key} of all rows') for key in SHARED}
        read_rows = _method_rows if 'methods' in content else _ablation_rows
        rows, references = read_rows(path.stem, content, shared)
        rows = _linked(rows, references)
        _check_texts(content)
        published = content.get('published') or {}
        _check_published(published, rows, len(content.get('scores') or []))
    except (OSError, UnicodeError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f'{path}: {" ".join(str(error).split())}') from error
    return Sweep(
        name=path.stem,
        path=path,
        title=str(content['title']),
        rows=tuple(rows),
        note=' '.join(str(content.get('note', '')).split()),
        subsets=next((kind for kind in SUBSETS if kind in content), ''),
        scores=tuple(content.get('scores') or []),
        split=str(content.get('split', '')),
        titles=BASELINES | {k: str(v) for k, v in (content.get('titles') or {}).items()},
        seeds=content.get('seeds', 0),
        published=published,
    )


def sweep_of_runs(names: Sequence[str]) -> Sweep:
    """Return a sweep that compares the first of some runs with the others."""
    others = {names[0]: tuple(names[1:])}
    rows = [
        Row(name, run=name, configs={}, changes={}, pretrain_run='', against=others.get(name, ()))
        for name in names
    ]
    return Sweep(name='runs', path=Path(), title='Run', rows=tuple(rows))


def note_sweep(output: Path, path: Path, scale: str) -> None:
    """Note in the output folder of runs which sweep file they are of, for `noted_sweeps`."""
    own = os.path.relpath(path, ROOT) if path.is_relative_to(ROOT) else str(path)
    noted = _read_noted(output)
    if (entry := {'sweep': own, 'scale': scale}) not in noted:
        output.mkdir(parents=True, exist_ok=True)
        replace_file(output / NOTED, json.dumps([*noted, entry], indent=1) + '\n')


def noted_sweeps(output: Path) -> list[tuple[Path, str]]:
    """Return the sweep files and scales that an output folder of runs notes."""
    return [(ROOT / entry['sweep'], entry['scale']) for entry in _read_noted(output)]


def _read_noted(output: Path) -> list[dict[str, str]]:
    file = output / NOTED
    try:
        found = json.loads(file.read_bytes()) if file.is_file() else []
        return [{key: str(entry[key]) for key in ('sweep', 'scale')} for entry in found]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f'{file} does not note the sweeps of the runs: {error!r}') from error


class _NamesAsWritten(YamlLoader):
    """Reads names as text, because plain YAML reads 1000_0.25 as 10000.25 and no as False."""

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict[str, Any]:
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            if key.value != '<<':
                key.tag = self.DEFAULT_SCALAR_TAG
            if key.value in NAMED_BY:
                for name in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                    if isinstance(name, yaml.ScalarNode):
                        name.tag = self.DEFAULT_SCALAR_TAG
        return super().construct_mapping(node, deep)


def _at_scale(content: Any, name: str) -> dict[str, Any]:
    """Return the content of a sweep file, whose keys a scale overrides.

    Of sections with entries, a scale selects some by name, as a list, or as a mapping with changes.
    """
    if not isinstance(content, dict):
        raise ValueError(f'a sweep must be keys and values, got {content!r}')
    scales = _named(content.get('scales') or {}, 'scales')
    content = {key: value for key, value in content.items() if key != 'scales'}
    if not name:
        return content
    if name not in scales:
        raise ValueError(f'--scale must be one of {[*scales]}, got {name!r}')
    changed = dict(scales[name])
    _check_keys(changed, SCALE_KEYS & {'seeds', *SHARED, *content}, f'scale {name}')
    if isinstance(changed.get('titles'), dict):
        changed['titles'] = (content['titles'] or {}) | changed['titles']
    for section in [section for section in SELECTED if section in changed]:
        entries, chosen = _named(content[section], section), changed[section]
        if not isinstance(chosen, list):
            changed[section] = {
                entry: entries.get(entry, {}) | changes
                for entry, changes in _named(chosen, f'scale {name}: {section}').items()
            }
        elif unknown := [entry for entry in chosen if entry not in entries]:
            raise ValueError(f'scale {name}: {section}: {unknown[0]!r} is not one of {[*entries]}')
        else:
            changed[section] = {entry: entries[entry] for entry in chosen}
    return content | changed


def _check_texts(content: Mapping[str, Any]) -> None:
    """Refuse values of another kind for the keys that only tables, figures and defaults use."""
    scores, titles, seeds = content.get('scores'), content.get('titles'), content.get('seeds', 1)
    if not (isinstance(scores or [], list) and all(isinstance(name, str) for name in scores or [])):
        raise ValueError(f'scores must be a list of names, got {scores!r:.100}')
    if not isinstance(titles or {}, dict):
        raise ValueError(f'titles must be keys and values, got {titles!r:.100}')
    if not isinstance(seeds, int) or seeds <= 0:
        raise ValueError(f'seeds must be above 0, got {seeds!r:.100}')
    texts = {key: content.get(key) for key in ('title', 'note', 'split')}
    texts |= {f'titles: {name}': title for name, title in (titles or {}).items()}
    for where, text in texts.items():
        if isinstance(text, list | dict):
            raise ValueError(f'{where} must be text, got {text!r:.100}')


def _check_published(published: Any, rows: Sequence[Row], num_scores: int) -> None:
    """Refuse published values of other rows, or of more values than there are scores."""
    if not isinstance(published, dict):
        raise ValueError(f'published must be keys and values, got {published!r:.100}')
    names = [row.name for row in rows]
    for name, values in published.items():
        if name not in names:
            raise ValueError(f'published: {name!r} must be one of the rows {names}')
        is_list = isinstance(values, list) and 0 < len(values) <= num_scores
        if not (is_list and all(isinstance(value, float) for value in values)):
            raise ValueError(
                f'published: {name} must be a list of numbers, at most one for each of the '
                f'{num_scores} scores, got {values!r:.100}'
            )


def _ablation_rows(
    stem: str, content: Mapping[str, Any], shared: Mapping[str, Mapping[str, Any]]
) -> tuple[list[Row], dict[str, str]]:
    """Return the rows of an ablation, and for each the row to compare it with.

    This is the row that changes nothing, or that `reference` selects.
    """
    needed = NEEDED_KEYS | {'rows'}
    _check_keys(content, needed | FREE_KEYS, 'the sweep', needed=needed)
    start = content['reference']
    _check_keys(start, {'pretrain', 'finetune', 'row'}, 'reference', needed={'finetune'})
    configs = _configs(start, 'reference')
    allowed = ROW_KEYS if 'pretrain' in start else ROW_KEYS - {'pretrain'}
    reference = configs['finetune'].stem.rpartition('__')[2]  # 'reference', 'nano_reference'
    prefix = reference.removesuffix('reference').removeprefix(f'{stem}_')
    rows: dict[str, Row] = {}
    for name, entry in _named(content['rows'], 'rows').items():
        _check_keys(entry, allowed, f'row {name}')
        learns_from = str(entry.get('learns_from', ''))
        if learns_from and learns_from not in rows:
            raise ValueError(f'row {name}: learns_from must be an earlier row, got {learns_from!r}')
        files, changes = _row_changes(entry, configs, f'row {name}')
        run = f'{prefix}{stem}_{name}' if set(entry) - {'against'} else reference
        pretrains_alone = entry.get('weights') or any(
            options for stage, options in changes.items() if stage != 'finetune'
        )
        rows[name] = Row(
            name=name,
            run=run,
            configs=files,
            changes=changes,
            pretrain_run=run if pretrains_alone else reference,
            weights=str(entry.get('weights', '')),
            learns_from=learns_from,
            against=_names(entry.get('against', [])),
            shared=shared,
        )
    unchanged = [row.name for row in rows.values() if row.run == reference]
    if len(unchanged) > 1 or not (unchanged or 'row' in start):
        raise ValueError(f'exactly one row must have no changes, got {len(unchanged)} such rows')
    base = str(start.get('row', *unchanged))
    if base not in rows:
        raise ValueError(f'reference: row must be one of {[*rows]}, got {base!r}')
    return [*rows.values()], dict.fromkeys(rows, base)


def _row_changes(
    entry: Mapping[str, Any], configs: Mapping[str, Path], where: str
) -> tuple[dict[str, Path], dict[str, dict[str, Any]]]:
    """Return the YAML file and the changed options of each stage of a row of an ablation.

    A row with `pretrain: none` has no pre-training. Instead of options, a row may name a YAML file
    that contains them, with the file of the reference as BASE.
    """
    files, changes = {}, {}
    for stage, reference in configs.items():
        section = SECTIONS[stage]
        file, options = reference, entry.get(section)
        if section == 'pretrain' and options == 'none':
            continue
        if isinstance(options, str) and options.endswith('.yaml'):
            file = ROOT / options
            options = flat_options(file.read_text(encoding='utf-8'))
            if options.pop('BASE', None) != [os.path.relpath(reference, file.parent)]:
                raise ValueError(f'{where}: {section}: BASE of {file} must be {reference}')
            options.pop('TAG', None)
        files[stage] = file
        changes[stage] = _checked(options, f'{where}: {section}')
    return files, changes


def _method_rows(
    stem: str, content: Mapping[str, Any], shared: Mapping[str, Mapping[str, Any]]
) -> tuple[list[Row], dict[str, str]]:
    """Return the rows of a comparison of methods, and for each the row to compare it with.

    Each method is fine-tuned on each subset of the labels. A subset sets options of all methods,
    which only the `schedule` of a method replaces.
    """
    kinds = [kind for kind in SUBSETS if kind in content]
    if len(kinds) != 1:
        raise ValueError(f'a sweep needs rows, or methods with one of {", ".join(SUBSETS)}')
    (kind,) = kinds
    needed = NEEDED_KEYS | {'methods', kind}
    _check_keys(content, needed | FREE_KEYS, 'the sweep', needed=needed)
    methods = _named(content['methods'], 'methods')
    reference = str(content['reference'])
    if reference not in methods:
        raise ValueError(f'reference must be one of {[*methods]}, got {reference!r}')
    without_labels = [_method(stem, name, entry, shared) for name, entry in methods.items()]
    rows = []
    for subset, options in _named(content[kind], kind).items():
        number = 0 if subset == 'all' else int(subset) if kind == 'images' else float(subset)
        of_subset = {SUBSETS[kind]: number} | _checked(options, f'{kind} {subset}')
        _refuse_replaced('finetune of all rows', shared['finetune'], of_subset)
        for row in without_labels:
            where = f'method {row.method}'
            _refuse_replaced(f'{where}: finetune_options', row.changes['finetune'], of_subset)
            schedule = _checked(methods[row.method].get('schedule'), f'{where}: schedule')
            finetune = row.changes['finetune'] | of_subset | schedule
            rows.append(
                replace(
                    row,
                    name=f'{row.method}_{subset}',
                    run=f'{row.run}_{subset}',
                    changes=row.changes | {'finetune': finetune},
                    against=tuple(f'{method}_{subset}' for method in row.against),
                    subset=subset,
                )
            )
    _refuse_unequal_training([row for row in rows if 'schedule' not in methods[row.method]])
    return rows, {row.name: f'{reference}_{row.subset}' for row in rows}


def _method(stem: str, name: str, entry: Any, shared: Mapping[str, Mapping[str, Any]]) -> Row:
    """Return a method of a comparison as a row, whose labels are still to be chosen."""
    allowed = METHOD_KEYS if 'pretrain' in entry else METHOD_KEYS - {'pretrain_options'}
    _check_keys(entry, allowed, f'method {name}', needed={'finetune'})
    configs = _configs(entry, f'method {name}')
    changes = {}
    for stage in configs:
        key = f'{SECTIONS[stage]}_options'
        changes[stage] = _checked(entry.get(key), f'method {name}: {key}')
    return Row(
        name=name,
        run=f'{stem}_{name}',
        configs=configs,
        changes=changes,
        pretrain_run=f'{stem}_{name}',
        weights=str(entry.get('weights', '')),
        against=_names(entry.get('against', [])),
        method=name,
        shared=shared,
    )


def _refuse_replaced(where: str, options: Collection[str], of_subset: Mapping[str, Any]) -> None:
    """Refuse options that the subset of the labels would replace."""
    if both := sorted({*options} & {*of_subset}):
        raise ValueError(
            f'{where}: {both[0]} is set to {of_subset[both[0]]!r} by a share or number of images. '
            'Change it there, or in the schedule of a method'
        )


def subset_size(subset: str) -> float:
    """Return a number to sort subsets of the labels by. 'all' is the largest."""
    return math.inf if subset == 'all' else float(subset)


def _refuse_unequal_training(rows: Sequence[Row]) -> None:
    """Refuse methods whose fine-tuning on the same subset has other epochs or batches."""
    first: dict[str, tuple[str, dict[str, int]]] = {}
    for row in rows:
        config = expected_config(row, 'finetune')
        length = {'TRAIN.EPOCHS': config.TRAIN.EPOCHS} | batch_counts(config, {}, 'finetune')
        other, wanted = first.setdefault(row.subset, (row.name, length))
        if length != wanted:
            raise ValueError(
                'methods must be fine-tuned with the same epochs and batches on the same labels, '
                f'got {wanted} for {other} and {length} for {row.name}'
            )


def _linked(rows: Sequence[Row], references: Mapping[str, str]) -> list[Row]:
    """Complete the rows with shared pre-training runs and with the rows to compare with.

    A row without `against` is compared with its reference, unless it is one for others or a
    baseline without an encoder.
    """
    compared_with = {*references.values(), *(name for row in rows for name in row.against)}
    first: dict[str, str] = {}
    linked = []
    for row in rows:
        if unknown := sorted({*row.against} - {*references}):
            raise ValueError(
                f'row {row.name}: against must be of {[*references]}, got {unknown[0]!r}'
            )
        _check_encoder(row)
        against = row.against
        if not against and row.name not in compared_with and row.method not in NO_ENCODER:
            against = (references[row.name],)
        stage = row.pretraining
        start = str((row.configs.get(stage), row.changes.get(stage), row.weights))
        pretrain_run = first.setdefault(start, row.pretrain_run)
        linked.append(replace(row, pretrain_run=pretrain_run, against=against))
    return linked


def _check_encoder(row: Row) -> None:
    """Refuse a row whose fine-tuning cannot load its pre-trained encoder."""
    shapes = []
    for stage in row.stages:
        config = expected_config(row, stage)
        options, model_type = encoder_node(config), config.MODEL.TYPE
        shape = {'MODEL.TYPE': model_type}
        for key in SHAPE_KEYS & {*options}:
            shape[f'MODEL.{model_type.upper()}.{key}'] = options[key]
        shapes.append(shape)
    for key in shapes[0]:
        value, loaded = shapes[0][key], shapes[-1].get(key, shapes[0][key])
        if loaded != value:
            raise ValueError(
                f'row {row.name}: pre-training and fine-tuning must have the same {key}, '
                f'got {value!r} and {loaded!r}'
            )


def _names(names: Any) -> tuple[str, ...]:
    """Return a name or a list of names as a tuple."""
    return tuple(map(str, names if isinstance(names, list) else [names]))


def _named(entries: Any, kind: str) -> dict[str, dict[str, Any]]:
    """Return the entries of a section by name. Entries may be empty."""
    if not isinstance(entries, dict):
        raise ValueError(f'{kind} must be keys and values, got {entries!r}')
    for name, entry in entries.items():
        if not NAME.fullmatch(name):
            raise ValueError(f'names may contain letters, digits and . _ -, got {name!r}')
        if not isinstance(entry or {}, dict):
            raise ValueError(f'{kind}: {name} must be keys and values, got {entry!r}')
    return {name: entry or {} for name, entry in entries.items()}


def _checked(options: Any, where: str) -> dict[str, Any]:
    """Check that options exist and accept the values, and return them."""
    config, options = default_config(), options or {}
    if not isinstance(options, dict):
        raise ValueError(f'{where} must be keys and values, got {options!r}')
    for key, value in options.items():
        put(config, key, value, where)
    return options


def _configs(entry: Mapping[str, Any], where: str) -> dict[str, Path]:
    """Return the YAML file of each stage. MODEL.NAME in the file determines the stage."""
    configs = {}
    for section in SHARED:
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
    """Raise a ValueError unless an entry is a mapping with allowed and all needed keys."""
    if not isinstance(entry, dict):
        raise ValueError(f'{where} must be keys and values, got {entry!r}')
    if others := [key for key in entry if key not in allowed]:
        raise ValueError(f'{where}: {others[0]!r} is not one of {sorted(allowed)}')
    if missing := set(needed) - set(entry):
        raise ValueError(f'{where}: {sorted(missing)[0]!r} is missing')


# Options and folders of runs --------------------------------------------------------------------


def run_folder(output: str | Path, stage: str, row: Row, seed: int, fold: str = '') -> Path | None:
    """Return the run folder of a stage of a row, or None if the row does not have this stage.

    Args:
        output: Root of all run folders.
        stage: One of STAGES.
        row: Row of the sweep.
        seed: Seed of the run.
        fold: Fold of a fine-tuning, such as '0/5', or ''. All folds share a pre-training run.
    """
    if stage not in row.configs:
        return None
    run = row.run if stage == 'finetune' else row.pretrain_run
    end = f'_fold{fold.partition("/")[0]}' if fold and stage == 'finetune' else ''
    return Path(output) / MODEL_NAMES[stage] / f'{run}_seed{seed}{end}'


def expected_config(row: Row, stage: str) -> Config:
    """Return the options of a stage of a row according to the sweep file, without flags."""
    config = _options_of(row.configs[stage]).clone()
    config.merge_from_list(_words(row.options(stage)))
    fit_to_task(config, stage)
    return config


def modes_of(sweep: Sweep) -> dict[str, str]:
    """Return row -> FINETUNE.MODE according to the sweep file, of the rows that it configures."""
    rows = [row for row in sweep.rows if 'finetune' in row.configs]
    return {row.name: expected_config(row, 'finetune').FINETUNE.MODE for row in rows}


def without_cache(config: Config) -> Config:
    """Return a copy of the options that reads the data folder directly and copies no store."""
    config = config.clone()
    config.defrost()
    config.DATA.CACHE_DIR = ''
    return config


def load_config(folder: Path) -> Config:
    """Read the options of a run from config.yaml. Missing options have their defaults.

    Raises:
        ValueError: If the file is damaged. The message names the file.
    """
    file = folder / OPTIONS_FILE
    return _saved(file, file.stat().st_mtime_ns).clone()


def _options_of(file: Path) -> Config:
    if not file.is_file():
        raise ValueError(f'the file {file} does not exist')
    return _parsed(file, file.stat().st_mtime_ns)


@lru_cache(maxsize=1024)
def _saved(file: Path, changed_ns: int) -> Config:
    try:
        return config_from_text(file.read_text(encoding='utf-8'))
    except ValueError as error:
        raise ValueError(f'{file} cannot be read: {error}') from error


@lru_cache(maxsize=1024)
def _parsed(file: Path, changed_ns: int) -> Config:
    config = default_config()
    config.merge_from_file(str(file))
    return config


def option_changes(before: Config, after: Config) -> list[str]:
    """List the changed options that affect the trained model."""
    trained = options_that_affect(*TRAINED)
    if all(value_at(before, key) == value_at(after, key) for key in trained):
        return []  # comparing texts is slow
    return config_changes(config_text(before), config_text(after), *TRAINED)


def batch_counts(config: Config, record: Mapping[str, Any], stage: str) -> dict[str, int]:
    """Return the images per optimizer step and, for contrastive methods, those compared at once.

    Args:
        config: Run configuration.
        record: Contents of run.json with `processes` and `starts`; {} for one process.
        stage: Stage of the run.
    """
    batch = config.DATA.BATCH_SIZE * processes_of(record)
    counts = {'images per step': batch * max(config.TRAIN.ACCUMULATION_STEPS, 1)}
    return counts | ({'images compared at once': batch} if stage == 'contrastive' else {})


def training_changes(
    stage: str, before: tuple[Config, Mapping[str, Any]], now: tuple[Config, Mapping[str, Any]]
) -> list[str]:
    """List how the training of two runs of a stage differs, given (options, run.json) of each."""
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
    """Return the runs of a sweep in an order in which each run comes after those that it needs.

    Args:
        sweep: Sweep.
        seeds: Seeds. Every stage of every row has one run per seed.
        data: --data-path.
        output: --output.
        gpus: Number of processes of a run, which share the images of an optimizer step.
        options: Stage -> KEY VALUE pairs that override the YAML files.
        environment: Environment variables that contain the `weights` of rows.
        folds: Number of folds of a cross-validation, see `folds_folder`; 0 for none.
        unlabelled: Folder or store of images for all pre-training runs, instead of `data`.

    Raises:
        ValueError: If the options of a run cannot work, weights are missing, the GPUs cannot share
            the images of a step, or a row of a cross-validation would pre-train on scored images.
    """
    if folds and not unlabelled and any(row.pretraining for row in sweep.rows):
        raise ValueError(
            '--folds needs --unlabelled, because all folds share one pre-training run. With '
            '--data-path it would learn from images that are scored.'
        )
    planner = _Planner(data, output, gpus, options or {}, environment or {}, unlabelled)
    rows = {row.name: row for row in sweep.rows}
    pretrained = [row for row in sweep.rows if row.pretraining]
    pretrained.sort(key=lambda row: STAGES.index(row.pretraining))
    for seed in seeds:
        for row in pretrained:
            planner.pretrain(row, seed)
        for fold in fold_names(folds):
            for row in sweep.rows:
                planner.finetune(row, seed, fold, teacher=rows.get(row.learns_from))
    return list(planner.jobs.values())


@dataclass
class _Planner:
    """Plans the runs of rows, see `plan`. A run that rows share is planned once.

    Attributes:
        jobs: Run folder -> run.
    """

    data: str
    output: str
    gpus: int
    options: Mapping[str, list[str]]
    environment: Mapping[str, str]
    unlabelled: str
    jobs: dict[Path, Job] = field(default_factory=dict)

    def pretrain(self, row: Row, seed: int) -> None:
        """Add the pre-training of a row."""
        weights = self.weights_of(row)
        options = ['DATA.DATASET', 'folder'] if self.unlabelled else []
        images = self.unlabelled or self.data
        self.add(row, row.pretraining, seed, images=images, weights=weights, options=options)

    def finetune(self, row: Row, seed: int, fold: str, teacher: Row | None) -> None:
        """Add the fine-tuning of a row, after its pre-training and the row that it learns from."""
        needs, options = [], []
        if row.pretraining:
            source = self.jobs[run_folder(self.output, row.pretraining, row, seed)]
            needs.append(source.folder)
            weights = str(source.folder / checkpoint_name(source.config.TRAIN.EPOCHS - 1))
        else:
            weights = self.weights_of(row)
        if teacher:
            folder = run_folder(self.output, 'finetune', teacher, seed, fold)
            needs.append(folder)
            options = [SOFT_TARGETS, str(folder / 'predictions_train.csv')]
        starts = {'weights': weights, 'options': options, 'needs': needs}
        self.add(row, 'finetune', seed, fold, images=self.data, **starts)

    def weights_of(self, row: Row) -> str:
        """Return the checkpoint that the environment names for a row, or ''."""
        if not row.weights:
            return ''
        weights = self.environment.get(row.weights)
        if not weights:
            raise ValueError(
                f'{row.run} starts from a checkpoint: set the environment variable {row.weights} '
                'to the path of the checkpoint'
            )
        is_name = is_url(weights) or weights in shipped_weights()
        return weights if is_name else os.path.abspath(weights)

    def add(
        self,
        row: Row,
        stage: str,
        seed: int,
        fold: str = '',
        *,
        images: str,
        weights: str,
        options: Sequence[str],
        needs: Sequence[Path] = (),
    ) -> None:
        """Add a run unless it is known. Options of the command override those given here."""
        folder = run_folder(self.output, stage, row, seed, fold)
        if folder in self.jobs:
            return
        words = ['SEED', str(seed), *_words(row.options(stage)), *options]
        words += self.options.get(stage, [])
        if fold:
            number, _, folds = fold.partition('/')
            train, valid = fold_files(folds_folder(self.output, int(folds)), int(number))
            words += ['DATA.TRAIN_CSV', str(train), 'DATA.VALID_CSV', str(valid)]
        arguments = ['--cfg', str(row.configs[stage]), '--data-path', images]
        arguments += ['--output', self.output]
        arguments += ['--pretrained', weights] if weights else []
        arguments += ['--tag', folder.name, '--opts', *words]
        arguments, config = share_steps(stage, arguments, self.gpus)
        self.jobs[folder] = Job(
            stage=stage,
            run=folder.name.rpartition(f'_seed{seed}')[0],
            seed=seed,
            fold=fold,
            folder=folder,
            arguments=[MAINS[stage], *arguments],
            config=config,
            needs=tuple(needs),
            processes=self.gpus,
        )


def fold_names(folds: int) -> list[str]:
    """Return the folds of a cross-validation, such as '0/5', or [''] without one."""
    return [f'{number}/{folds}' for number in range(folds)] or ['']


def folds_folder(output: str | Path, folds: int) -> Path:
    """Return the folder with the CSV files of the folds of a sweep."""
    return Path(output) / f'{folds}_folds'


def only_rows(sweep: Sweep, names: Sequence[str]) -> Sweep:
    """Reduce a sweep to some rows and the rows whose predictions they learn from.

    Raises:
        ValueError: If a row does not exist.
    """
    rows = {row.name: row for row in sweep.rows}
    if others := [name for name in names if name not in rows]:
        raise ValueError(f'--row must be of {[*rows]} of {sweep.path}, got {others[0]!r}')
    kept = {*names}
    for row in reversed(sweep.rows):  # a row learns from an earlier one
        kept |= {row.learns_from} if row.name in kept else set()
    return replace(sweep, rows=tuple(row for row in sweep.rows if row.name in kept))


def in_order(sweep: Sweep, names: Sequence[str]) -> Sweep:
    """Reduce a sweep to some rows, or all rows of some methods, in the order of the names.

    Raises:
        ValueError: If there is no such row or method.
    """
    rows: dict[str, Row] = {}
    for name in names:
        found = {row.name: row for row in sweep.rows if name in (row.name, row.method)}
        if not found:
            known = [*dict.fromkeys(row.method or row.name for row in sweep.rows)]
            raise ValueError(
                f'--rows must be of {known} or their rows ({sweep.path}), got {name!r}'
            )
        rows |= {key: row for key, row in found.items() if key not in rows}
    return replace(sweep, rows=tuple(rows.values()))


def only_subsets(sweep: Sweep, names: Sequence[str]) -> Sweep:
    """Reduce a comparison of methods to some subsets of the labels.

    Raises:
        ValueError: If the sweep has no such subset.
    """
    known = [*dict.fromkeys(row.subset for row in sweep.rows)]
    if others := [name for name in names if name not in known]:
        allowed = known if sweep.subsets else 'left out, because the sweep has no subsets'
        raise ValueError(f'--subsets must be of {allowed} ({sweep.path}), got {others[0]!r}')
    return replace(sweep, rows=tuple(row for row in sweep.rows if row.subset in names))


def compared_with(sweep: Sweep, methods: Sequence[str]) -> Sweep:
    """Let each row be compared with some methods on the same labels, and with no other row.

    The methods of a sweep without methods are its rows. Two of `methods` are compared once: the
    first with the second.

    Raises:
        ValueError: If the sweep has no such method.
    """
    known = [*dict.fromkeys(row.method or row.name for row in sweep.rows)]
    if others := [name for name in methods if name not in known]:
        raise ValueError(f'--against must be of {known} ({sweep.path}), got {others[0]!r}')
    rows = []
    for row in sweep.rows:
        own = row.method or row.name
        others = methods[methods.index(own) + 1 :] if own in methods else methods
        against = [f'{name}_{row.subset}' for name in others] if row.method else others
        rows.append(replace(row, against=tuple(against)))
    return replace(sweep, rows=tuple(rows))


def share_steps(stage: str, arguments: list[str], gpus: int) -> tuple[list[str], Config]:
    """Return flags and options with which several GPUs share the images of an optimizer step.

    The GPUs first share the accumulated batches and then the images of a batch.

    Raises:
        ValueError: If an option is refused, or the images cannot be divided equally. The message
            names the run.
    """
    args = build_parser(stage).parse_args(arguments)
    try:
        config = get_config(args)
    except ValueError as error:
        raise ValueError(f'{args.tag}: {error}') from error
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


def _words(changes: Mapping[str, Any]) -> list[str]:
    return [str(word) for pair in changes.items() for word in pair]
