"""What the runs of a sweep came to: figures by row and seed, differences, small JSON files."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from checksums import replace_file
from config import Config, encoder_name, encoder_node
from config_checks import PROBES
from config_merge import value_at
from data.data_simmim import mask_generator, reference_mask_generator
from data.masking import average_distance
from data.predictions import read_predictions
from logger import json_safe, read_metrics
from provenance import is_finished, read_record
from sweeps.comparison import (
    MEANS,
    Scored,
    compare_rows,
    differences_from_files,
    enough_resamples,
    row_changes,
)
from sweeps.costs import training_cost
from sweeps.plan import SECTION_NAMES, Row, Sweep, run_folder
from sweeps.run_options import expected_config, images_per_step, load_config

MASK_KEYS = {'DATA.MASK_TYPE', 'DATA.MASK_PATCH_SIZE', 'DATA.MASK_RATIO'}
NUM_MASKS, MASK_SEED = 200, 0  # of which the mean distance to a visible pixel is taken
# Which pictures are held out, and how they are read.
HELD_OUT_KEYS = {
    'DATA.VIEWS', 'DATA.HOLDOUT_FRACTION', 'DATA.DATASET', 'EVAL.HOLDOUT_IMAGES', 'DATA.IMG_SIZE',
    'DATA.PREPROCESS', 'DATA.PRETRAIN_INTERPOLATION', 'TEST.CROP',
}  # fmt: skip
TRIVIAL = ('mean', 'linear')
LOGGED = {
    'pretrain': ('epoch', 'loss', 'holdout_l1_grey', 'reference_l1_grey'),
    'finetune': ('epoch', 'loss', 'score'),
}
NUMBERS = re.compile(r'\[\n[^\[\]{}"]*\]|\{\n(?:\s*"[\w ]+": [^"{}\[\]\n]+\n)+\s*\}')
DIGITS = 6  # significant, of what is kept


def collect(
    sweep: Sweep,
    seeds: Sequence[int],
    output: str | Path,
    *,
    resamples: int | None = None,
    bootstrap_seed: int = 0,
) -> dict[str, Any]:
    """All that a table or a figure of a sweep shows, as plain JSON.

    Args:
        sweep: the sweep.
        seeds: of the runs; those that are missing or unfinished are listed as such.
        output: folder of the runs.
        resamples: draws of patients for the intervals over patients; None: as many as the number
            of compared rows asks for (`enough_resamples`).
        bootstrap_seed: of the draws.

    Returns:
        `sweep`, `title`, `keys`, `reference` (name of a row), `seeds`, `published`, `resamples`,
        `trained` (what the reference trains, by stage), `reference_masks` (`unit_px`, and how many
        units are `hidden`, of how many `units`; None where they do not fit),
        `differences_from_files` (see there), and `rows`, each with `name`, `run`, `against` (the
        row it is compared with, '' for none), `changes` (options that differ from the
        reference's), `also_changed` (those that an ablation does not declare), `other_pictures`
        (options by which its held-out pictures are not the reference's), `average_distance_px` and
        `hidden_percent` (of its own masks; None but in sweeps over masks), `seeds` (state, figures,
        log and provenance by stage, and the `cost` of pre-training), and what `compare_rows` finds.
        Of a sweep of methods also `methods` (`reference`, and `subsets`: 'shares' or 'images'), and
        of its rows `method`, `subset` and `pretraining` (the stage, '' for none).

    Raises:
        ValueError: naming the file of a finished run that cannot be read, or the folder of one
            that is of another sweep.
    """
    differences = differences_from_files(sweep, seeds, output)
    pretraining = _pretraining(sweep, seeds, output)
    rows = {row.name: _collect_row(sweep, row, seeds, output, pretraining) for row in sweep.rows}
    scored = {
        row.name: {
            entry['seed']: Scored(
                run_folder(output, 'finetune', row, entry['seed']), entry['finetune']['figures']
            )
            for entry in rows[row.name]['seeds']
            if entry['finetune']['figures']
        }
        for row in sweep.rows
    }
    against = {name: row['against'] for name, row in rows.items()}
    if resamples is None:
        resamples = enough_resamples(sum(map(bool, against.values())))
    compared = compare_rows(scored, against, resamples=resamples, seed=bootstrap_seed)
    collected = {
        'sweep': sweep.name,
        'title': sweep.title,
        'keys': sweep.keys,
        'reference': sweep.reference.name,
        'seeds': list(seeds),
        'published': asdict(sweep.published) if sweep.published else None,
        'resamples': {'count': resamples, 'seed': bootstrap_seed},
        'trained': {
            section: _trained(
                _finished(sweep.reference, sweep.reference.stage_of(section), seeds, output)
            )
            for section in SECTION_NAMES
        },
        'reference_masks': _reference_masks(pretraining),
        'differences_from_files': differences,
        'rows': [row | compared[name] for name, row in rows.items()],
    }
    if sweep.subsets:
        collected['methods'] = {'reference': sweep.reference.method, 'subsets': sweep.subsets}
    return json.loads(json.dumps(_rounded(json_safe(collected)), allow_nan=False))


def write_rows(collected: Mapping[str, Any], folder: str | Path) -> None:
    """Write `<run>.json` for each row, with its logs, and `<sweep>.json`, which says the rest.

    A run that several sweeps share has one file; what it holds of other seeds stays.

    Raises:
        ValueError: if a file of that name is something else.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for row in collected['rows']:
        path = _file(folder, row['run'])
        before = _read_json(path, 'run')['seeds'] if path.exists() else []
        seeds = {entry['seed']: entry for entry in [*before, *row['seeds']]}
        _write_json(path, {'run': row['run'], 'seeds': [seeds[number] for number in sorted(seeds)]})
        rows.append({k: v for k, v in row.items() if k != 'seeds'} | {'digest': _digest(row)})
    path = _file(folder, collected['sweep'])
    if path.exists():
        _read_json(path, 'sweep')
    _write_json(path, dict(collected) | {'rows': rows})


def read_rows(folder: str | Path, sweep_name: str) -> dict[str, Any]:
    """What `write_rows` was given.

    Raises:
        ValueError: naming the file that is missing or damaged, or that was written anew since.
    """
    folder = Path(folder)
    collected = _read_json(_file(folder, sweep_name), 'sweep')
    for row in collected['rows']:
        path = _file(folder, row['run'])
        found = _read_json(path, 'run')['seeds']
        digest = row.pop('digest')
        row['seeds'] = [entry for entry in found if entry['seed'] in collected['seeds']]
        if _digest(row) != digest:
            raise ValueError(
                f'{path} is not what {sweep_name}.json was made with: write both anew from the runs'
            )
    return collected


def _collect_row(
    sweep: Sweep, row: Row, seeds: Sequence[int], output: str | Path, reference: Config
) -> dict[str, Any]:
    """A row; `reference` is the reference's options of pre-training."""
    changes, others = {}, set()
    for section in SECTION_NAMES:
        stage = row.stage_of(section)
        folders = [
            [run_folder(output, stage, of, seed) for of in (sweep.reference, row)] for seed in seeds
        ]
        lines = _changes(folders)
        changes[section] = [v for k, v in lines.items() if k in sweep.keys.get(section, [])]
        if not row.method:  # whose YAML files are its own
            others |= lines.keys() - set(sweep.keys.get(section, []))
    own = {}
    if row.method:
        stage = '' if row.pretrain is None else row.pretraining
        own = {'method': row.method, 'subset': row.subset, 'pretraining': stage}
    pretrained = [run_folder(output, 'simmim', row, seed) for seed in seeds]
    pictures = {
        key
        for config in map(load_config, _finished(row, 'simmim', seeds, output))
        for key in HELD_OUT_KEYS
        if value_at(config, key) != value_at(reference, key)
    }
    return {
        'name': row.name,
        'run': row.run,
        'against': _other_row(sweep, row),
        **own,
        'changes': changes,
        'also_changed': sorted(others),
        'other_pictures': sorted(pictures),
        **_own_masks(sweep, pretrained),
        'seeds': [
            {
                'seed': seed,
                'pretrain': _stage(run_folder(output, row.pretraining, row, seed), 'pretrain'),
                'finetune': _stage(run_folder(output, 'finetune', row, seed), 'finetune'),
            }
            for seed in seeds
        ],
    }


def _other_row(sweep: Sweep, row: Row) -> str:
    """Name of the row that this one is compared with; '' for one that others are compared with."""
    others = {sweep.reference.name, *(of.against for of in sweep.rows)}
    return row.against or ('' if row.name in others else sweep.reference.name)


def _finished(row: Row, stage: str, seeds: Sequence[int], output: str | Path) -> list[Path]:
    folders = [run_folder(output, stage, row, seed) for seed in seeds]
    return [folder for folder in folders if folder and is_finished(folder)]


def _pretraining(sweep: Sweep, seeds: Sequence[int], output: str | Path) -> Config:
    """The reference's options of pre-training, those of the files before a run is finished."""
    folders = _finished(sweep.reference, 'simmim', seeds, output)
    return load_config(folders[0]) if folders else expected_config(sweep, sweep.reference, 'simmim')


def _trained(folders: Sequence[Path]) -> dict[str, Any] | None:
    """What is trained, on what and for how long; None before a run is finished."""
    if not folders:
        return None
    config, record = load_config(folders[0]), read_record(folders[0]) or {}
    encoder = encoder_node(config)
    held_out = folders[0] / 'predictions_holdout.csv'
    return {
        'encoder': encoder_name(config),
        'width': encoder.get('EMBED_DIM'),  # None, and no blocks, for a model of timm
        'blocks': encoder.get('DEPTHS') or [depth for depth in [encoder.get('DEPTH')] if depth],
        'image_px': config.DATA.IMG_SIZE,
        'channels': encoder.IN_CHANS,
        'mode': config.FINETUNE.MODE,
        'epochs': config.TRAIN.EPOCHS,
        'images_per_step': images_per_step(config, record.get('processes', 1)),
        'base_rate': config.TRAIN.BASE_LR,
        'train_fraction': config.DATA.TRAIN_FRACTION,
        'train_images': config.DATA.TRAIN_IMAGES,
        'holdout_fraction': config.DATA.HOLDOUT_FRACTION,
        'holdout_images': len(read_predictions(held_out).names) if held_out.is_file() else None,
        'select_on': config.EVAL.SELECT_ON,
    }


def _reference_masks(config: Config) -> dict[str, int] | None:
    masks = reference_mask_generator(config)
    if masks is None:
        return None
    side = masks.rand_size
    return {'unit_px': config.DATA.IMG_SIZE // side, 'hidden': masks.count, 'units': side**2}


def _stage(folder: Path | None, section: str) -> dict[str, Any] | None:
    """State, figures, log and provenance of one run; None for a row without that stage."""
    if folder is None:
        return None
    entry = {'state': 'missing', 'figures': None, 'log': None, 'provenance': None}
    if not is_finished(folder):
        return entry | ({'state': 'unfinished'} if folder.is_dir() else {})
    figures = {'pretrain': _pretrain_figures, 'finetune': _finetune_figures}[section]
    is_probe = load_config(folder).FINETUNE.MODE in PROBES  # it has no epochs
    records = [] if is_probe else _read(folder / 'metrics.jsonl', read_metrics)
    log = {key: [record.get(key) for record in records] for key in LOGGED[section]}
    log = {key: values for key, values in log.items() if any(v is not None for v in values)}
    cost = {'cost': training_cost(records)} if section == 'pretrain' else {}
    return {
        'state': 'finished',
        'figures': figures(folder, records),
        'log': log,
        'provenance': _provenance(read_record(folder)),
        **cost,
    }


def _pretrain_figures(folder: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
    """L1 in grey levels; None where it was not measured, or has another name: it is not alike."""
    config = load_config(folder)
    simmim, size = config.MODEL.SIMMIM, config.DATA.IMG_SIZE
    before = next((record for record in records if record['epoch'] == -1), {})
    figures: dict[str, Any] = {
        'target': 'patch_normalised' if config.MODEL.MAE.NORM_PIX_LOSS else simmim.TARGET,
        'target_px': size // (simmim.TARGET_SIZE or size),  # side of what one value stands for
    }
    for masks in ('holdout', 'reference'):
        key, last = f'{masks}_l1_grey', records[-1] if records else {}
        figures[masks] = {'before': before.get(key), 'after': last.get(key)}
        figures[masks] |= {name: last.get(f'{key}_{name}') for name in TRIVIAL}
    return figures


def _finetune_figures(folder: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
    """Scores on test, or on valid where there is none, of the selected checkpoint or the last."""
    file = folder / 'scores.json'
    table = _read(file, lambda path: json.loads(path.read_bytes()))
    try:
        split = 'test' if 'test' in table else 'valid'
        checkpoint = 'selected' if 'selected' in table[split] else 'last'
        scores = table[split][checkpoint]
        kept = ('level', 'views', 'rows', 'positives', 'undefined')
        return {
            'split': split,
            'checkpoint': checkpoint,
            **{key: scores[key] for key in kept},
            'scores': {name: scores[name] for name in MEANS} | scores['auroc'],
        }
    except (KeyError, TypeError) as error:
        raise ValueError(f'{file}: it has no scores of a finished run ({error!r})') from error


def _provenance(record: dict[str, Any]) -> dict[str, Any]:
    """What of run.json may be published: no paths."""
    environment, data = record.get('environment') or {}, record.get('data') or {}
    kept = ('code', 'seed', 'processes', 'finished', 'seconds')
    return {
        **{key: record.get(key) for key in kept},
        'starts': len(record.get('starts') or []),
        'data': data.get('fingerprint'),
        'tables': data.get('files') or {},
        'gpus': environment.get('gpus'),
        'torch': (environment.get('packages') or {}).get('torch'),
    }


def _changes(folders: Sequence[Sequence[Path | None]]) -> dict[str, str]:
    """Option -> 'KEY: old -> new' in the first pair of folders that both have a config.yaml."""
    for pair in folders:
        if all(folder and (folder / 'config.yaml').is_file() for folder in pair):
            changes = row_changes(*map(load_config, pair))
            return {key: f'{key}: {old} -> {new}' for key, (old, new) in changes.items()}
    return {}


def _own_masks(sweep: Sweep, folders: Sequence[Path | None]) -> dict[str, float | None]:
    """In sweeps over masks: how much a row's masks hide, and how far that is from the visible."""
    for folder in folders:
        varies_masks = MASK_KEYS & set(sweep.keys.get('pretrain', []))
        if varies_masks and folder and (folder / 'config.yaml').is_file():
            config = load_config(folder)
            generator, rng = mask_generator(config), np.random.default_rng(MASK_SEED)
            masks = np.stack([generator(rng) for _ in range(NUM_MASKS)])
            distance = average_distance(masks, config.DATA.IMG_SIZE // masks.shape[1])
            hidden = 100 * generator.count / generator.rand_size**2
            return {'average_distance_px': float(distance), 'hidden_percent': hidden}
    return {'average_distance_px': None, 'hidden_percent': None}


def _read(path: Path, reader: Callable[[Path], Any]) -> Any:
    try:
        return reader(path)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f'{path} of a finished run cannot be read: {error}') from error


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f'{value:.{DIGITS}g}') if isinstance(value, float) else value


def _digest(row: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(row['seeds'], sort_keys=True).encode()).hexdigest()[:16]


def _file(folder: Path, name: str) -> Path:
    if Path(name).name != name:
        raise ValueError(f'{name!r} cannot be the name of a file')
    return folder / f'{name}.json'


def _read_json(path: Path, key: str) -> dict[str, Any]:
    """A file that `write_rows` wrote: of a run or of a sweep, as the key says."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f'{path} cannot be read: {error}') from error
    if not isinstance(content, dict) or content.get(key) != path.stem:
        raise ValueError(f'{path} is not the file of the {key} {path.stem}')
    return content


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=1, ensure_ascii=False)
    # Numbers of one list or section are one line; no text has a line break that is not escaped.
    text = NUMBERS.sub(lambda match: ' '.join(match[0].split()), text)
    replace_file(path, f'{text}\n'.encode())
