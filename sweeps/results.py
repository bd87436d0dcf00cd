"""Results of a sweep: `collect` reads the run folders of a sweep into plain JSON values.

`sweeps.comparison` compares the rows, `sweeps.tables` writes tables, and `sweeps.plots` draws
figures.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from config import Config, value_at
from data.masking import average_distance, mask_generator
from data.reading import SCORED_SPLITS
from engine.run_record import is_finished, read_record, without_home
from evaluation.metrics import METRICS
from logger import json_safe, read_metrics
from sweeps.comparison import MEANS, Scored, compare_rows, enough_resamples
from sweeps.files import (
    MASK_KEYS,
    PIXELS,
    Row,
    Sweep,
    expected_config,
    load_config,
    pixel_row,
    run_folder,
    scores_pixels,
    training_changes,
)
from sweeps.tables import Collected
from system.files import replace_file

SPLITS = tuple(sorted(SCORED_SPLITS))  # internal, test, valid: the first scored split is shown
DIGITS = 6  # significant digits of saved values
PIXEL_FILES, PIXEL_SCORES = '_pixels', 'pixel_floor'  # kind of predictions, key in scores.json

NUM_MASKS, MASK_SEED = 200, 0  # masks for the mean distance to a visible pixel
# Options that decide which images are held out and how they are read.
HELD_OUT_KEYS = (
    *('DATA.VIEWS', 'DATA.FOLD', 'DATA.HOLDOUT_FRACTION', 'DATA.DATASET', 'DATA.SOURCES'),
    *('EVAL.HOLDOUT_IMAGES', 'DATA.LEAVE_OUT', 'DATA.IMG_SIZE', 'DATA.PREPROCESS'),
    *('DATA.PRETRAIN_INTERPOLATION', 'TEST.CROP'),
)


def collect(
    sweep: Sweep,
    seeds: Sequence[int],
    output: str | Path,
    *,
    split: str = '',
    resamples: int | None = None,
) -> dict[str, Any]:
    """Collect all values that tables and figures of a sweep show, as JSON values.

    Args:
        sweep: Sweep.
        seeds: Seeds of the runs. Missing and unfinished runs are listed as such.
        output: Root of the run folders.
        split: Split whose scores are compared, see `read_scores`.
        resamples: Number of resamples for the intervals over patients; None for the number from
            `enough_resamples`.

    Returns:
        Facts about the sweep and `rows`, with an entry for each row and each row that it is
        compared with. An entry has the row's name, the row to compare with (`against`, or ''), the
        state, scores and provenance of both stages for each seed, and the result of
        `compare_rows`. The logistic regression on pixels is the last row of a subset.

    Raises:
        ValueError: If a file of a finished run cannot be read. The message names the file.
    """
    reference = _reference_config(sweep, seeds, output)
    rows, scored = {}, {}
    for row in sweep.rows:
        rows[row.name] = _collect_row(sweep, row, seeds, output, reference)
        rows[row.name]['seeds'] = [_collect_seed(row, seed, output, split) for seed in seeds]
        scored[row.name] = _scored_runs(row, rows[row.name]['seeds'], output)
    for row in _pixel_sources(sweep):
        rows[pixel_row(row)] = _collect_pixels(row, rows[row.name], output)
        seeds_of_row = rows[pixel_row(row)]['seeds']
        scored[pixel_row(row)] = _scored_runs(row, seeds_of_row, output, kind=PIXEL_FILES)
    pairs = [pair for row in sweep.rows for pair in _pairs(row, scored)]
    pairs += [(name, '') for name in rows if name not in dict(pairs)]
    subsets = [row.subset for row in sweep.rows]
    pairs.sort(key=lambda pair: subsets.index(rows[pair[0]]['subset']))
    resamples = resamples or enough_resamples(sum(bool(against) for _, against in pairs))
    compared = compare_rows(scored, pairs, resamples=resamples)
    collected = {
        'sweep': sweep.name,
        'title': sweep.title,
        'keys': sweep.keys,
        'reference': sweep.reference.name,
        'subsets': sweep.subsets,
        'seeds': list(seeds),
        'published': _published(sweep, scored),
        'resamples': resamples,
        'differences_from_files': differences_from_files(sweep, seeds, output),
        'rows': [
            rows[name] | {'against': against} | result
            for (name, against), result in zip(pairs, compared, strict=True)
        ],
    }
    text = json.dumps(json_safe(collected), allow_nan=False)
    return json.loads(text, parse_float=lambda number: float(f'{float(number):.{DIGITS}g}'))


def _published(sweep: Sweep, scored: Mapping[str, Mapping[int, Scored]]) -> dict[str, Any] | None:
    """Return the published values of a sweep, or None if no run learned their label."""
    label = (sweep.published or {}).get('label')
    learned = {
        name for runs in scored.values() for s in runs.values() for name in s.figures['positives']
    }
    return None if label and learned and label not in learned else sweep.published


def _scored_runs(
    row: Row, seeds: Sequence[Mapping[str, Any]], output: str | Path, kind: str = ''
) -> dict[int, Scored]:
    """Return seed -> finished run of a row, given the entries of `_collect_seed`."""
    return {
        entry['seed']: Scored(
            run_folder(output, 'finetune', row, entry['seed']), entry['finetune']['figures'], kind
        )
        for entry in seeds
        if entry['finetune']['figures']
    }


def _pairs(row: Row, scored: Mapping[str, Mapping[int, Scored]]) -> list[tuple[str, str]]:
    """Return the row with each row that it is compared with, or with '' if there is none."""
    best = _best_held_out(row.against_best_of, scored)
    others = dict.fromkeys([*([best] if best else row.against_best_of), *row.against])
    return [(row.name, other) for other in others or ('',)]


def _pixel_sources(sweep: Sweep) -> list[Row]:
    """Return the first row of each subset whose runs score the logistic regression on pixels."""
    found: dict[str, Row] = {}
    for row in sweep.rows if sweep.subsets else ():
        if scores_pixels(row):
            found.setdefault(row.subset, row)
    return [*found.values()]


def _collect_pixels(row: Row, collected: Mapping[str, Any], output: str | Path) -> dict[str, Any]:
    """Return a row with the logistic regressions on pixels that the runs of a row have scored."""
    entries = []
    for entry in collected['seeds']:
        run = entry['finetune']
        if run['figures']:
            folder = run_folder(output, 'finetune', row, entry['seed'])
            pixels = read_pixel_scores(folder, run['figures']['split'])
            run = run | {'figures': pixels, 'state': 'finished' if pixels else 'missing'}
        entries.append(entry | {'pretrain': None, 'finetune': run})
    own = {'name': pixel_row(row), 'method': PIXELS, 'pretraining': '', 'seeds': entries}
    return {**collected, **own}


def _best_held_out(names: Sequence[str], scored: Mapping[str, Mapping[int, Scored]]) -> str:
    """Return the row with the best mean held-out score, or '' if no row has such scores."""
    means = {
        name: np.mean([run.figures['held_out'] for run in scored[name].values()] or -np.inf)
        for name in names
    }
    return max((name for name in means if means[name] > -np.inf), key=means.get, default='')


def save_collected(collected: Collected, folder: str | Path) -> Path:
    """Write the results of a sweep to `<sweep>.json`, for later tables and figures."""
    path = Path(folder) / f'{collected["sweep"]}.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, (json.dumps(collected, indent=1, ensure_ascii=False) + '\n').encode())
    return path


def read_collected(folder: str | Path, sweep_name: str) -> dict[str, Any]:
    """Read the results that `save_collected` wrote.

    Raises:
        ValueError: If the file is missing or does not contain the results of the sweep.
    """
    path = Path(folder) / f'{sweep_name}.json'
    try:
        found = json.loads(path.read_text('utf-8'))
        is_known = found['sweep'] == sweep_name and 'subsets' in found
        if not is_known or not all({'seeds', 'l1_caveat'} <= {*row} for row in found['rows']):
            raise ValueError(f'it does not contain results of {sweep_name} from table --save')
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{path} cannot be read: {error!r}') from error
    return found


def read_scores(folder: Path, split: str = '') -> Scored:
    """Read the scores of a finished fine-tuning run for the selected or else the last checkpoint.

    Args:
        folder: Run folder.
        split: One of SPLITS, or '' for the first of them that was scored.

    Returns:
        The run with `split`, `checkpoint`, `level`, `views`, `rows`, `positives` and `undefined`,
        for a selected checkpoint with `selected_on` and `selecting_images`, if they are known,
        with `thresholds` by label, and with `scores`: the AUROC by label and the MEANS, and the
        other metrics of report.json as 'metric:label', such as 'f1:Edema' or 'f1:mean_of_five'.
        `last` has the AUROCs of the last checkpoint, or is empty if that was not scored.
        Undefined scores are None.

    Raises:
        ValueError: If scores.json or report.json cannot be read. The message names the folder.
    """
    table = _score_file(folder)
    known = [name for name in SPLITS if name in table]
    if not known or split not in ('', *known):
        raise ValueError(
            f'{folder} has scores on {", ".join(known) or "no split"}, but not on '
            f'{split or " or ".join(SPLITS)} (--split)'
        )
    split = split or known[0]
    try:
        checkpoint = 'selected' if table[split].get('selected') else 'last'
        figures = _protocol(split, checkpoint, table[split][checkpoint])
        report = _read_report(folder / 'report.json', split)
        figures['scores'] = _areas(table[split][checkpoint]) | _report_scores(report)
        figures['last'] = _areas(table[split]['last']) if table[split].get('last') else {}
        labels = report['labels'] if report else []
        figures['thresholds'] = {entry['label']: entry.get('threshold') for entry in labels}
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f'the scores in {folder} cannot be read: {error!r}') from error
    return Scored(folder, figures)


def read_pixel_scores(folder: Path, split: str) -> dict[str, Any] | None:
    """Read the scores of the logistic regression on pixels of a run as in `read_scores`.

    The result is None if the run has not scored it.
    """
    scores = _score_file(folder)[split].get(PIXEL_SCORES)
    return scores and _protocol(split, PIXELS, scores) | {'scores': _areas(scores)}


def _score_file(folder: Path) -> dict[str, Any]:
    """Read scores.json of a run: split -> checkpoint -> scores."""
    try:
        return dict(json.loads((folder / 'scores.json').read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f'the scores in {folder} cannot be read: {error!r}') from error


def _protocol(split: str, checkpoint: str, scores: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was scored and how, from a part of scores.json."""
    kept = ('level', 'views', 'rows', 'positives', 'undefined')
    selection = {key: scores[key] for key in ('selected_on', 'selecting_images') if key in scores}
    own = {key: scores[key] for key in kept}
    return {'split': split, 'checkpoint': checkpoint} | own | selection


def _areas(scores: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the MEANS and the AUROC of each label from a part of scores.json."""
    return {name: scores[name] for name in MEANS if name in scores} | scores['auroc']


def _read_report(report: Path, split: str) -> dict[str, Any] | None:
    """Read the part of a report on a split, or return None if there is none."""
    sets = json.loads(report.read_bytes())['sets'] if report.is_file() else []
    return next((part for part in sets if part['name'] == split), None)


def _report_scores(report: Mapping[str, Any] | None) -> dict[str, float | None]:
    """Return the metrics other than AUROC from a part of a report."""
    scores: dict[str, Mapping[str, Any] | None] = {}
    if report:
        scores |= {entry['label']: entry['scores'] for entry in report['labels']}
        means = report['means']['five'], report['means']['labels_with_both_classes']
        scores |= dict(zip(MEANS, means, strict=True))
    return {
        f'{name}:{label}': score['value']
        for label, values in scores.items()
        for name in METRICS
        if name != 'auroc' and METRICS[name].higher_is_better
        if values and (score := values.get(name)) is not None
    }


def _collect_row(
    sweep: Sweep, row: Row, seeds: Sequence[int], output: str | Path, reference: Config | None
) -> dict[str, Any]:
    """Collect the facts about a row. Its held-out images are compared with the `reference`."""
    configs = [load_config(folder) for folder in _finished(row, 'simmim', seeds, output)]
    caveats = {caveat for config in configs for caveat in _l1_caveats(config, reference)}
    masks = {'average_distance_px': None, 'hidden_percent': None}
    if configs and MASK_KEYS & set(sweep.keys):
        masks = _own_masks(configs[0])
    return {
        'name': row.name,
        'run': row.run,
        'method': row.method,
        'subset': row.subset,
        'pretraining': row.pretraining,
        'l1_caveat': ', '.join(sorted(caveats)),
        'other_images': any(_held_out_changes(config, reference) for config in configs),
        **masks,
    }


def _collect_seed(row: Row, seed: int, output: str | Path, split: str) -> dict[str, Any]:
    return {
        'seed': seed,
        'pretrain': _entry(run_folder(output, row.pretraining, row, seed), 'pretrain'),
        'finetune': _entry(run_folder(output, 'finetune', row, seed), 'finetune', split),
    }


def _finished(row: Row, stage: str, seeds: Sequence[int], output: str | Path) -> list[Path]:
    folders = [run_folder(output, stage, row, seed) for seed in seeds]
    return [folder for folder in folders if folder and is_finished(folder)]


def _entry(folder: Path | None, section: str, split: str = '') -> dict[str, Any] | None:
    """Collect state, values and provenance of a run; None if the row does not have the stage."""
    if folder is None:
        return None
    if not is_finished(folder):
        return {'state': 'unfinished' if folder.is_dir() else 'missing', 'figures': None}
    if section == 'pretrain':
        figures = pretraining_figures(read_metrics(folder / 'metrics.jsonl'))
    else:
        figures = read_scores(folder, split).figures
        figures |= _selection(folder, figures['checkpoint'])
    record = read_record(folder) or {}
    tables = (record.get('data') or {}).get('files') or {}
    provenance = {'code': record.get('code'), 'tables': tables}
    return {'state': 'finished', 'figures': figures, 'provenance': provenance}


def _selection(folder: Path, checkpoint: str) -> dict[str, Any]:
    """Return which epoch of a fine-tuning run was scored.

    Returns:
        `held_out`, the score of this checkpoint on the held-out patients, -inf if there is none;
        `epochs`, the number of epochs, 0 for a probe; and `selected_epoch`, counted from 1, if one
        was selected.
    """
    epochs = read_metrics(folder / 'metrics.jsonl')
    trained = [epoch for epoch in epochs if epoch['epoch'] >= 0]
    scored = {epoch['epoch'] + 1: epoch['score'] for epoch in trained if epoch.get('score')}
    figures = {
        'held_out': max(scored.values(), default=-np.inf),
        'epochs': max((epoch['epoch'] + 1 for epoch in trained), default=0),
    }
    if checkpoint == 'last' or not figures['epochs']:
        return figures | {'held_out': [-np.inf, *scored.values()][-1]}
    return figures | {'selected_epoch': max(scored, key=scored.get, default=None)}


def pretraining_figures(records: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Compute the results of a pre-training run from the records of metrics.jsonl.

    Returns:
        `l1`, the final held-out L1 in grey levels under the masks that all runs share; `l1_mean`
        and `l1_linear`, the same for the trivial predictors; `images`, the number of seen images;
        and `seconds`, the number of epochs times the median epoch without evaluation. The record of
        an interrupted epoch only covers its end, so it counts as a whole epoch at the same rate.
    """
    last, key = records[-1] if records else {}, 'reference_l1_grey'
    figures = {'l1': last.get(key)}
    figures |= {f'l1_{name}': last.get(f'{key}_{name}') for name in ('mean', 'linear')}
    timed = [r for r in records if r['epoch'] >= 0 and r.get('seconds') and r['images_per_second']]
    if timed:
        images = max(round(r['images_per_second'] * r['seconds']) for r in timed)
        epochs = sum(record['epoch'] >= 0 for record in records)
        seconds = median(images / record['images_per_second'] for record in timed)
        figures |= {'images': epochs * images, 'seconds': epochs * seconds}
    return figures


def _reference_config(sweep: Sweep, seeds: Sequence[int], output: str | Path) -> Config | None:
    """Return the SimMIM pre-training options of the reference, or of the first row with any."""
    rows = [row for row in (sweep.reference, *sweep.rows) if row.pretraining == 'simmim']
    if not rows:
        return None
    folders = _finished(rows[0], 'simmim', seeds, output)
    return load_config(folders[0]) if folders else expected_config(rows[0], 'simmim')


def _own_masks(config: Config) -> dict[str, float]:
    """Compute the hidden share of a row's masks and the mean distance to a visible pixel."""
    generator, rng = mask_generator(config), np.random.default_rng(MASK_SEED)
    masks = np.stack([generator(rng) for _ in range(NUM_MASKS)])
    distance = average_distance(masks, config.DATA.IMG_SIZE // masks.shape[1])
    hidden = 100 * generator.count / generator.rand_size**2
    return {'average_distance_px': float(distance), 'hidden_percent': hidden}


def _l1_caveats(config: Config, reference: Config) -> Iterator[str]:
    """Yield reasons why the held-out L1 of a run cannot be compared with the reference."""
    simmim = config.MODEL.SIMMIM
    if config.MODEL.MAE.NORM_PIX_LOSS or simmim.TARGET != 'pixels':
        yield 'it predicts normalised patches and receives their mean and standard deviation'
    if simmim.TARGET_SIZE not in (0, config.DATA.IMG_SIZE):
        yield 'it predicts one value for several pixels'
    if changed := _held_out_changes(config, reference):
        yield f'it has other held-out images ({", ".join(changed)})'


def _held_out_changes(config: Config, reference: Config) -> list[str]:
    return [key for key in HELD_OUT_KEYS if value_at(config, key) != value_at(reference, key)]


def differences_from_files(
    sweep: Sweep, seeds: Sequence[int], output: str | Path
) -> list[dict[str, Any]]:
    """List how finished runs differ from the sweep file, for example through --pretrain-opts.

    Returns:
        For each difference the `stage`, the `change` (expected -> found), and the names of the
        `runs`, or [] if all runs of the stage have this difference.
    """
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    checked: dict[str, set[str]] = defaultdict(set)
    for row in sweep.rows:
        for stage in row.stages:
            expected = expected_config(row, stage)
            for folder in _finished(row, stage, seeds, output):
                if folder.name in checked[stage]:  # rows may share a pre-training run
                    continue
                checked[stage].add(folder.name)
                config, record = load_config(folder), read_record(folder) or {}
                expected.SEED = config.SEED
                for change in training_changes(stage, (expected, {}), (config, record)):
                    found[stage, change].append(folder.name)
    return [
        {
            'stage': stage,
            'change': without_home(change),
            'runs': runs if len(runs) < len(checked[stage]) else [],
        }
        for (stage, change), runs in found.items()
    ]
