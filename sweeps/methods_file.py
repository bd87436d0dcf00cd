"""A sweep file of methods, each with its YAML files and fine-tuned on subsets of the labels."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from config import default_config
from sweeps.entries import NAME, check_file, check_options, names_in, refuse_others
from sweeps.rows import MODEL_NAMES, ROOT, SECTION_NAMES, Row, Sweep
from sweeps.run_options import expected_config, images_per_step

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
