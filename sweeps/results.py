"""Results of a sweep as JSON values: `collect` reads and compares its runs."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from config import Config, value_at
from data.masking import average_distance, mask_generator
from engine.run_record import files_read, is_finished, read_record, without_home
from logger import json_safe, read_metrics
from sweeps.collected import Collected, CollectedRow, CollectedRun, CollectedSeed
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
from sweeps.row_comparison import (
    CLEAR_VERDICTS,
    ENDS,
    MISSING,
    LongTable,
    Seeds,
    compare_rows,
    enough_resamples,
    few_of_label,
    is_compared,
    summarise,
)
from sweeps.run_scores import (
    BOOTSTRAP_SEED,
    PIXEL_FILES,
    PROTOCOL,
    Scored,
    ScoredPatients,
    pretraining_figures,
    read_pixel_scores,
    read_scores,
    scored_runs,
    selection_figures,
    written_scores,
)
from system.files import replace_file

Rows = Mapping[str, Mapping[int, Scored]]  # name -> seed -> finished run
DIGITS = 6  # significant digits of saved values
NUM_MASKS, MASK_SEED = 200, 0  # masks for the mean distance to a visible pixel
# Options that decide which images are held out and how they are read.
HELD_OUT_KEYS = (
    *('DATA.VIEWS', 'DATA.TRAIN_CSV', 'DATA.HOLDOUT_FRACTION', 'DATA.DATASET', 'DATA.SOURCES'),
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
) -> Collected:
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
        `compare_runs`. The logistic regression on pixels is the last row of a subset.

    Raises:
        ValueError: If a file of a finished run cannot be read. The message names the file.
    """
    reference = _reference_config(sweep, seeds, output)
    rows, scored = {}, {}
    for row in sweep.rows:
        rows[row.name] = _collect_row(sweep, row, seeds, output, reference)
        rows[row.name]['seeds'] = [_collect_seed(row, seed, output, split) for seed in seeds]
        scored[row.name] = scored_runs(row, rows[row.name]['seeds'], output)
    for row in _pixel_sources(sweep):
        rows[pixel_row(row)] = _collect_pixels(row, rows[row.name], output)
        seeds_of_row = rows[pixel_row(row)]['seeds']
        scored[pixel_row(row)] = scored_runs(row, seeds_of_row, output, kind=PIXEL_FILES)
    pairs = [pair for row in sweep.rows for pair in _pairs(row, scored)]
    pairs += [(name, '') for name in rows if name not in dict(pairs)]
    subsets = [row.subset for row in sweep.rows]
    pairs.sort(key=lambda pair: subsets.index(rows[pair[0]]['subset']))
    resamples = resamples or enough_resamples(sum(bool(against) for _, against in pairs))
    compared = compare_runs(scored, pairs, resamples=resamples)
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


def save_collected(collected: Collected, folder: str | Path) -> Path:
    """Write the results of a sweep to `<sweep>.json`, for later tables and figures."""
    path = Path(folder) / f'{collected["sweep"]}.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(
        path, (json.dumps(collected, ensure_ascii=False, separators=(',', ':')) + '\n').encode()
    )
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
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f'{path} cannot be read: {error!r}') from error
    return found


def compare_runs(
    rows: Rows, pairs: Sequence[tuple[str, str]], *, resamples: int
) -> list[dict[str, Any]]:
    """Compare pairs of rows over the seeds that both have.

    Args:
        rows: Name -> seed -> finished run.
        pairs: Names of a row and of the row to compare it with, or '' for none.
        resamples: Number of resamples of the patients, which all seeds, rows and scores share.

    Returns:
        {`problem`, `over_patients`, `compared`} for each pair. `problem` is the reason why there is
        no comparison or no interval over patients, or ''. `over_patients` has the interval of the
        row's own mean over the seeds, by score. `compared` has the result of `compare_rows` by
        score; a label with few cases has no verdict above or below. NaN marks unknown values.
    """
    table, problems = _long_table(rows, pairs, resamples)
    found, comparable = [], []
    for name, other in pairs:
        mismatch = _mismatch(rows[name], rows[other], other) if other else ''
        comparable.append((name, '' if mismatch else other))
        paired = [seed for seed in rows[name] if seed in rows[other or name]]
        reasons = [problems[row].get(seed, '') for row in (name, other or name) for seed in paired]
        # A damaged seed that the other row lacks does not affect the comparison: it comes last.
        reasons += problems[name].values()
        problem = mismatch or next(filter(None, reasons), '')
        intervals = {} if problem else _own_intervals(table[name])
        found.append({'problem': problem, 'over_patients': intervals, 'compared': {}})
    runs = [run for seeds in rows.values() for run in seeds.values()]
    scores = dict.fromkeys(score for run in runs for score in run.figures['scores'])
    for score in filter(is_compared, scores):
        parts = compare_rows(table, comparable, score)
        for entry, part, (name, _) in zip(found, parts, comparable, strict=True):
            if part and not np.isnan(part['difference']):
                entry['compared'][score] = part
                is_few = any(few_of_label(run.figures, score) for run in rows[name].values())
                if is_few and part['verdict'] in CLEAR_VERDICTS:
                    part['verdict'] = MISSING
    return found


def _long_table(
    rows: Rows, pairs: Sequence[tuple[str, str]], resamples: int
) -> tuple[LongTable, dict[str, dict[int, str]]]:
    """Return the scores of all runs, and row -> seed -> reason for runs without resamples."""
    table, problems = ({name: {} for name in rows} for _ in range(2))
    patients: dict[str, ScoredPatients] = {}  # rows with the same cases share labels and resamples
    names = [name for row, against in pairs for name in (against, row)]
    for name in dict.fromkeys(filter(None, names)):
        for seed, run in rows[name].items():
            first = next(iter(rows[name].values()))
            cases = str([first.figures[key] for key in PROTOCOL])
            try:
                if cases not in patients:
                    patients[cases] = ScoredPatients(first, resamples, BOOTSTRAP_SEED)
                table[name][seed] = patients[cases].samples(run)
            except ValueError as error:
                table[name][seed] = written_scores(run)
                problems[name][seed] = without_home(str(error))
    return table, problems


def _mismatch(runs: Mapping[int, Scored], others: Mapping[int, Scored], other: str) -> str:
    """Return the reason why two rows cannot be compared, or ''."""
    pairs = [(run, others[seed]) for seed, run in runs.items() if seed in others]
    if not pairs:
        return f'no seed is finished for this row and for {other}'
    for key in PROTOCOL:
        if len({str(run.figures[key]) for pair in pairs for run in pair}) > 1:
            return f'the row was scored on other cases than {other} ({key})'
    return ''


def _own_intervals(row: Seeds) -> dict[str, dict[str, float]]:
    """Return score -> {`low`, `high`} of a row, for the scores that all seeds have resamples of."""
    first = next(iter(row.values()), {})
    known = [s for s in first if all(len(scores.get(s, ())) > 1 for scores in row.values())]
    return {s: {end: summarise(row, s)[end] for end in ENDS} for s in known}


def _published(sweep: Sweep, scored: Mapping[str, Mapping[int, Scored]]) -> dict[str, Any] | None:
    """Return the published values of a sweep, or None if no run learned their label."""
    label = (sweep.published or {}).get('label')
    learned = {
        name for runs in scored.values() for s in runs.values() for name in s.figures['positives']
    }
    return None if label and learned and label not in learned else sweep.published


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


def _collect_pixels(row: Row, collected: CollectedRow, output: str | Path) -> CollectedRow:
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


def _collect_row(
    sweep: Sweep, row: Row, seeds: Sequence[int], output: str | Path, reference: Config | None
) -> CollectedRow:
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


def _collect_seed(row: Row, seed: int, output: str | Path, split: str) -> CollectedSeed:
    return {
        'seed': seed,
        'pretrain': _entry(run_folder(output, row.pretraining, row, seed), 'pretrain'),
        'finetune': _entry(run_folder(output, 'finetune', row, seed), 'finetune', split),
    }


def _finished(row: Row, stage: str, seeds: Sequence[int], output: str | Path) -> list[Path]:
    folders = [run_folder(output, stage, row, seed) for seed in seeds]
    return [folder for folder in folders if folder and is_finished(folder)]


def _entry(folder: Path | None, section: str, split: str = '') -> CollectedRun | None:
    """Collect state, values and provenance of a run; None if the row does not have the stage."""
    if folder is None:
        return None
    if not is_finished(folder):
        return {'state': 'unfinished' if folder.is_dir() else 'missing', 'figures': None}
    if section == 'pretrain':
        figures = pretraining_figures(read_metrics(folder / 'metrics.jsonl'))
    else:
        figures = read_scores(folder, split).figures
        figures |= selection_figures(folder, figures['checkpoint'])
    record = read_record(folder) or {}
    provenance = {'code': record.get('code'), 'tables': files_read(record)}
    entry = {'state': 'finished', 'figures': figures, 'provenance': provenance}
    training = (record.get('data') or {}).get('training')
    return entry | ({'training': training} if training else {})


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
    if config.MODEL.MAE.NORM_PIX_LOSS or simmim.TARGET == 'patch_normalised':
        yield 'it predicts normalised patches and receives their mean and standard deviation'
    elif simmim.TARGET != 'pixels':
        yield f'it does not predict pixels (MODEL.SIMMIM.TARGET {simmim.TARGET})'
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
