"""Evaluation report: report.json, a self-contained report.html, and tables in CSV and LaTeX.

`build_document` collects the report in one dictionary, and `write_report` writes the files. This
module does not import torch, so predictions of any model can be scored without torch.
"""

import json
import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from data.tables.labels import COMPETITION_LABELS, describe_same
from evaluation.analysis import HeldOut, fit_held_out, score_set
from evaluation.cases import Cases
from evaluation.intervals import LEVEL, MIN_RESAMPLES, add_holm
from evaluation.metrics import (
    METRICS,
    OF_CLASSES,
    Protocol,
    applicable,
    headline_labels,
    score_table,
)
from evaluation.model_comparison import compare
from evaluation.published import context_rows
from evaluation.report.report_page import mean_title, render_page
from evaluation.report.report_warnings import (
    SYNTHETIC,
    alerts_of_data,
    detail_warnings,
    format_score,
    label_warnings,
    labels_of_other_names,
    labels_without_cases,
    lines_of_sets,
    metadata_alerts,
    model_alerts,
    repeated_labels,
    share_warnings,
    warnings_of_data,
)
from logger import json_safe
from system.files import replace_files
from system.pages import NOT_FOR_CLINICAL_USE, PACKAGES, latex_table

# The long table of scores: a line is one number. `row` is a run of a sweep, one of several models,
# or '' for the only one, `group` is '' for everyone, `label` is '' for what belongs to all cases.
# `resample` is '' for the value itself, and 'low' or 'high' for the 95 % interval over patients.
KEYS = ['row', 'seed', 'fold', 'split', 'level', 'group', 'label', 'metric']
COLUMNS = [*KEYS, 'value', 'resample']
SCORES_FILE = 'report_scores.csv'  # of a run, in its folder
RESAMPLES = {'value': '', 'low': 'low', 'high': 'high'}  # key of a score -> `resample`
MEAN_LABELS = {'five': 'mean_of_five', 'labels': 'mean_of_defined'}  # key of a mean -> its `label`
LineKeys = Mapping[str, str]
Line = dict[str, Any]

FORMAT = 1
FOLDED = ('About single labels', 'About thresholds, temperatures and groups')
TITLE = 'Chest X-ray classification report'
NOT_COMPARABLE = (
    'These scores are valid for the images, label rules and views of this report. Published scores '
    'use other splits, views or label policies, or ensembles. They are context, not a comparison. '
    "Labels that a program extracted from reports, as for CheXpert's training patients, give "
    'scores that must not be compared with scores on labels by radiologists. Whether one of two '
    'models is better needs their paired difference on the same cases. A score from one hospital '
    'does not apply to another hospital. Not for clinical use.'
)
NO_SMALL_P = (
    'no corrected p can be below {alpha:.2f}: with {resamples} resamples and {labels} labels it is '
    'at least {smallest:.3f}. This needs more than {needed} resamples.'
)
FEW_MEAN = '(few cases of each label)'  # beside a mean
NO_INTERVAL = 'there is no interval, because too many resamples lack a class of one label'
TASK_WORDS = {  # DATA.TASK -> what a model predicts
    'observations': 'each label on its own',
    'single_label': 'one class per image',
    'any_finding': 'any finding against No Finding',
    'any_finding_or_none': 'any finding against all other images',
    'effusion': 'Pleural Effusion against No Finding',
}


def build_document(
    sets: Sequence[Cases],
    holdout: Cases | Sequence[HeldOut] | None,
    protocol: Protocol,
    *,
    run: Mapping[str, str],
    policy: str = '',
    patients: Mapping[str, Sequence[str]] | None = None,
    warnings: Sequence[str] = (),
    extras: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Score every set and assemble the report.

    Args:
        sets: Sets of cases to score. The headline shows the last set, or no set if each of several
            sets belongs to another model.
        holdout: Held-out training patients for choosing thresholds and temperatures, or values that
            were already fitted for each set, or None.
        protocol: Options for scoring.
        run: Details of the run, name -> value, in the order of the report.
        policy: Policy for uncertain labels, shown with the published scores; '' if unknown.
        patients: Split -> patients, used to detect patients in two splits.
        warnings: Additional warnings.
        extras: Additional parts of the report: `training`, `maps`, `maps_check`, `known`, the facts
            and doubts to write below tables (`evaluation.run_facts`), and `comparisons`. These are
            between the models, if each set belongs to another one, or with `baselines`
            True, of the last set with its baselines.
    """
    extras = {'comparisons': [], 'baselines': False, **(extras or {})}
    comparisons = extras['comparisons']
    fitted = holdout
    if holdout is None or isinstance(holdout, Cases):
        fitted = [fit_held_out(holdout, cases.labels, protocol) for cases in sets]
    scored = [
        score_set(cases, held_out, protocol) for cases, held_out in zip(sets, fitted, strict=True)
    ]
    has_several_models = len(sets) > 1 and comparisons and not extras['baselines']
    main = None if has_several_models else scored[-1]

    baselines = comparisons if extras['baselines'] else []
    alerts = alerts_of_data(sets, patients or {}, baselines)
    headline, published = None, []
    if main:
        headline = _headline(main, alerts, protocol.resamples >= MIN_RESAMPLES)
        if main['means']['five']:
            published = context_rows(policy, main['name'], protocol.level, protocol.views)

    has_holdout = holdout is not None
    about_details = partial(
        detail_warnings,
        has_holdout=has_holdout,
        not_held_out={label for held_out in fitted for label in held_out.missing},
    )
    of_labels = lines_of_sets(scored, repeated_labels, label_warnings)
    details = lines_of_sets(scored, about_details, share_warnings)
    return {
        'format': FORMAT,
        'title': TITLE,
        'run': [{'name': name, 'value': str(value)} for name, value in run.items()],
        'headline': headline,
        'not_comparable': NOT_COMPARABLE,
        'ranks_only': protocol.ranks_only,
        'published': published,
        'alerts': [*alerts, *lines_of_sets(scored, model_alerts, metadata_alerts)],
        'warnings': [
            *warnings,
            *warnings_of_data(sets, protocol, has_holdout=has_holdout),
            *of_labels,
            *details,
        ],
        # Those of the warnings that hardly change the headline, for the page to fold.
        'folded': {FOLDED[0]: of_labels, FOLDED[1]: details},
        'sets': scored,
        **{'training': None, 'maps_check': None, 'maps': [], 'known': []},
        **{'localisation': None, **extras},
    }


def compare_sets(
    sets: Sequence[Cases],
    protocol: Protocol,
    *,
    name: str,
    reference: str = '',
    seeds: Container[frozenset[str]] = (),
) -> list[dict[str, Any]]:
    """Compare pairs of models that predict the same rows, for the report's `comparisons`.

    Holm's correction is over all p-values that are shown, for the labels of all pairs and,
    with several pairs, for the means. More than two models are sorted by their mean AUROC.

    Args:
        sets: Cases of one model each.
        protocol: Options for scoring.
        name: Name of the scored set.
        reference: Name of the model that all others are compared with; '' compares all pairs.
        seeds: Pairs of names that only differ in their seed. They have no p-value.
    """
    rows = [cases.at_level(protocol.level) for cases in sets]
    if len(rows) > 2:
        tables = [
            score_table(
                cases.probabilities, cases.targets, cases.study, labels=cases.labels, level='image'
            )
            for cases in rows
        ]
        areas = np.nan_to_num([table['mean_of_defined'] for table in tables], nan=-1)
        rows = [rows[i] for i in np.argsort(-areas, kind='stable')]
    pairs = [*combinations(rows, 2)]
    if reference:
        (base,) = [cases for cases in rows if cases.name == reference]
        pairs = [(cases, base) for cases in rows if cases is not base]
    found = [
        {'set': name, **compare(a, b, resamples=protocol.resamples, seed=protocol.seed)}
        for a, b in pairs
        if set(a.path) == set(b.path) and set(a.labels) & set(b.labels)
    ]
    family = []
    for entry in found:
        entry['only_seed'] = frozenset((entry['a'], entry['b'])) in seeds
        means = [mean for mean in entry['means'].values() if mean]
        if entry['only_seed']:
            for part in (*entry['labels'].values(), *means):
                part |= dict.fromkeys(part.keys() & {'p_bootstrap', 'p_delong'}, np.nan)
        family += [*entry['labels'].values(), *(means if len(found) > 1 else ())]
    add_holm(family)
    tested, resamples = sum(not np.isnan(part['p_holm']) for part in family), protocol.resamples
    smallest = tested * 2 / (resamples + 1)  # corrected p-value
    note = ''
    if resamples >= MIN_RESAMPLES and smallest >= 1 - LEVEL:
        note = NO_SMALL_P.format(
            alpha=1 - LEVEL,
            resamples=resamples,
            labels=tested,
            smallest=min(1.0, smallest),
            needed=math.floor(2 * tested / (1 - LEVEL)),
        )
    return [{**entry, 'note': note} for entry in found]


def compare_with_baselines(
    cases: Cases, baselines: Mapping[str, np.ndarray], protocol: Protocol
) -> list[dict[str, Any]]:
    """Compare a model with baselines, name -> probabilities [N, K]; see `compare_sets`.

    Holm's correction is over the labels of each baseline on its own.
    """
    found = []
    for name, probabilities in baselines.items():
        model = replace(cases, name='model')
        pair = model, replace(cases, name=name, probabilities=probabilities)
        found += compare_sets(pair, protocol, name=cases.name)
    return found


def write_report(
    folder: str | Path,
    document: dict[str, Any],
    thumbnails: Mapping[tuple[str, str, str], Image.Image] | None = None,
    *,
    columns: Sequence[str] = (),
) -> Path:
    """Write all files of a report, or none of them. The same document gives the same bytes.

    Args:
        folder: Output folder, which already contains the image files of `maps`.
        document: Result of `build_document`. NaN becomes null in JSON and n/a on the page.
        thumbnails: (set, label, kind) of a worst error -> small image to show.
        columns: Metrics in report_scores.tex; (): those of `scores_table`.

    Returns:
        Path of report.html. The other files are in the same folder.
    """
    folder = Path(folder)
    text = json.dumps(json_safe(document), ensure_ascii=False, indent=1, sort_keys=True) + '\n'
    report = json.loads(text)
    page = render_page(folder, report, thumbnails or {})
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        'report.html': page,
        'report.json': text,
        'report_scores.tex': _latex(document, columns),
        SCORES_FILE: report_table(report).to_csv(index=False, lineterminator='\n'),
    }
    replace_files({folder / name: text.encode('utf-8', 'replace') for name, text in files.items()})
    return folder / 'report.html'


def scores_table(entry: dict[str, Any], columns: Sequence[str] = ()) -> pd.DataFrame:
    """Format scores of one of the report's `sets`, in a row for each label and mean.

    `columns` are names of metrics; (): the metrics of the short tables.
    """
    within = [part['scores']['auroc_within_views']['value'] for part in entry['labels']]
    has_views = not np.isnan(within).all()
    shown = {
        name: metric.title
        for name, metric in METRICS.items()
        if metric.in_summary or (has_views and 'views' in metric.needs)
    }
    if columns:
        shown = {name: METRICS[name].title for name in columns}
    counts = {
        part['label']: [part['n'], _marked(str(part['positives']), part['few'])]
        for part in entry['labels']
    }
    scores = {part['label']: part['scores'] for part in entry['labels']}
    means = entry['means']
    for key in filter(means.get, MEAN_LABELS):
        title = mean_title(key, means['counted'])
        scores[title] = means[key]
        counts[title] = ['', FEW_MEAN if means['few'] else '']
    rows = {
        label: [
            *counts[label],
            *(_format_cell(values[name]) if name in values else 'n/a' for name in shown),
        ]
        for label, values in scores.items()
    }
    return pd.DataFrame.from_dict(rows, orient='index', columns=['n', 'positives', *shown.values()])


def _marked(cell: str, few: str) -> str:
    """Mark a cell about few cases, of which `few` names the smaller class."""
    return f'{cell} (few: {few})' if few else cell


def _format_cell(score: dict[str, Any]) -> str:
    """Format a score, with the labels that a mean leaves out, for example without a threshold."""
    left_out = ', '.join(score.get('left_out', ()))
    return f'{format_score(score)} without {left_out}' if left_out else format_score(score)


def classes_line(scored: dict[str, Any]) -> str:
    """Format the scores of the class decisions of a set in one line, '' if it has none."""
    if 'classes' not in scored:
        return ''
    scores = scored['classes']['scores']
    metrics = applicable(OF_CLASSES).values()
    return ', '.join(f'{entry.title} {format_score(scores[entry.name])}' for entry in metrics)


def differences_table(entry: dict[str, Any]) -> pd.DataFrame:
    """Format one of the report's `comparisons` with intervals and p-values."""
    means = {mean_title(key, mean['counted']): mean for key, mean in entry['means'].items() if mean}
    return _format_differences(entry['labels'] | means)


def overview_table(entries: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Format the difference of the means of each of the report's `comparisons`."""
    parts = {
        f'{entry["a"]} minus {entry["b"]}: {mean_title(key, mean["counted"])}': mean
        for entry in entries
        for key, mean in entry['means'].items()
        if mean
    }
    return _format_differences(parts)


def _format_differences(parts: Mapping[str, dict[str, Any]]) -> pd.DataFrame:
    rows = {
        label: [
            _marked(
                f'0.000, {part["same"]}' if part['same'] else format_score(part['difference']),
                part['few'],
            ),
            _format_p(part['p_bootstrap']),
            _format_p(part['p_holm']) if 'p_holm' in part else '',
            format_score(part['within_views']),
        ]
        for label, part in parts.items()
    }
    columns = ['difference in AUROC', 'p (bootstrap)', 'p (Holm)', 'within views']
    table = pd.DataFrame.from_dict(rows, orient='index', columns=columns)
    has_views = any(not np.isnan(part['within_views']['value']) for part in parts.values())
    return table if has_views else table.drop(columns='within views')


def _format_p(value: float) -> str:
    return 'n/a' if np.isnan(value) else f'{value:.4f}' if value >= 1e-4 else '<0.0001'


def _latex(document: dict[str, Any], columns: Sequence[str]) -> str:
    """Format the tables of scores and differences in LaTeX with escaped special characters."""
    tables = {
        'Scores': {entry['name']: scores_table(entry, columns) for entry in document['sets']},
        'Differences in AUROC': {
            f'{entry["a"]} minus {entry["b"]}': differences_table(entry)
            for entry in document['comparisons']
        },
    }
    parts = [PACKAGES]
    about = labels_without_cases, repeated_labels, labels_of_other_names
    notes = [*document['known'], *lines_of_sets(document['sets'], *about)]
    about_data = 'Synthetic X-rays. ' if SYNTHETIC in document['alerts'] else ''
    for title, frames in tables.items():
        if frames:
            table = pd.concat(frames)
            has_intervals = table.map(lambda cell: '[' in str(cell)).any(axis=None)
            remark = ', with 95 \\% intervals over patients in brackets' if has_intervals else ''
            caption = f'{title}{remark}. {about_data}{NOT_FOR_CLINICAL_USE}'
            parts.append(latex_table(table, notes, caption=caption, multirow=False))
    return '\n'.join(parts)


def _headline(scored: dict[str, Any], told: Sequence[str], has_intervals: bool) -> dict[str, Any]:
    """Return the mean AUROC of a set over `headline_labels`, with notes and alerts."""
    notes, entries = [], {entry['label']: entry for entry in scored['labels']}
    counted = headline_labels(scored['means']['counted'])
    kinds = 'classes, each against the others' if 'classes' in scored else 'labels'
    name, key = f'Mean AUROC of {len(counted)} {kinds}', 'labels'
    if counted == COMPETITION_LABELS:
        name, key = 'Mean AUROC of the five CheXpert tasks', 'five'
    elif len(counted) == 1:
        name = f'AUROC, {counted[0]}'
    mean = scored['means'][key]
    score = mean['auroc'] if mean else dict.fromkeys(('value', 'low', 'high'), np.nan)
    few = [f'{label} ({part["few"]})' for label, part in entries.items() if part['few']]
    is_weak = bool(scored['means']['few'])
    if not counted:
        notes.append('no label has both classes')
    elif is_weak:
        notes.append(f'the estimate is weak and has no interval: few cases of {", ".join(few)}')
    elif few and key == 'labels':
        notes.append(f'left out, because they have few cases: {", ".join(few)}')
    if same := describe_same(scored['means']['same_as']):
        notes.append(same)
    if has_intervals and counted and not is_weak and np.isnan(score['low']):
        notes.append(NO_INTERVAL)
    described = {key: scored[key] for key in ('rows', 'patients', 'level', 'views')}
    return {
        'set': scored['name'],
        'name': name,
        'score': score,
        'few': is_weak,
        'by_view': _by_view(scored, counted, mean['auroc_within_views']) if mean else [],
        'note': '; '.join(notes),
        'alerts': [*told],
    } | described


def _by_view(
    scored: dict[str, Any], labels: Sequence[str], within: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return the mean over the headline's labels in each view, if several views are scored.

    The last is the mean `within` views, of cases of a known view. None stands for a mean that lacks
    a label, and `few` says whether a label has few cases.
    """
    found = [column['groups'] for column in scored['groups'] if column['column'] == 'View']
    groups = found[0] if found else []
    if len(groups) < 2:
        return []
    title, score = METRICS['auroc_within_views'].title, None if 'left_out' in within else within
    everyone = {'labels': {entry['label']: entry for entry in scored['labels']}}
    rows = [(group['group'], group['rows'], group['headline'], group) for group in groups]
    number_within = within.get('cases', scored['rows'])
    return [
        {
            'view': name,
            'rows': number,
            'score': mean,
            'few': any(group['labels'][label]['few'] for label in labels),
        }
        for name, number, mean, group in [*rows, (title, number_within, score, everyone)]
    ]


def report_table(report: Mapping[str, Any]) -> pd.DataFrame:
    """Return the long table of a report: scores, counts, thresholds, groups and differences.

    Args:
        report: Content of report.json.
    """
    lines: list[Line] = []
    has_several_models = report['headline'] is None
    for entry in report['sets']:
        kind = 'row' if has_several_models else 'split'
        keys = {kind: entry['name'], 'level': entry['level']}
        lines += _lines_of_set(keys, entry)
    for entry in report['comparisons']:
        keys = {'row': f'{entry["a"]} minus {entry["b"]}', 'split': entry['set']}
        means = {MEAN_LABELS[key]: mean for key, mean in entry['means'].items() if mean}
        for label, part in (entry['labels'] | means).items():
            lines += _lines(keys | {'label': label}, part)
    table = pd.DataFrame(lines, columns=COLUMNS, dtype=object)  # whole numbers stay whole
    return table.fillna(dict.fromkeys(KEYS, ''))


def _lines_of_set(keys: LineKeys, entry: Mapping[str, Any]) -> Iterator[Line]:
    """Yield the lines of one of the report's `sets`."""
    counts = {'cases': entry['rows'], 'patients': entry['patients']}
    yield from _lines(keys, counts | entry.get('classes', {}).get('scores', {}))
    for label in entry['labels']:
        facts = {name: label[name] for name in ('threshold', 'temperature', 'radiologists_below')}
        facts['uncertain_left_out'] = entry['uncertain'].get(label['label'], 0)
        values = label['scores'] | _counts(label) | facts | (label['confusion'] or {})
        yield from _lines(keys | {'label': label['label']}, values)
    for key, name in MEAN_LABELS.items():
        yield from _lines(keys | {'label': name}, entry['means'][key] or {})
    for source, areas in entry['metadata'].items():
        for label, area in areas.items():
            metric = f'auroc_of_{source.replace(" ", "_")}'
            yield from _lines(keys | {'label': label}, {metric: area})
    for column in entry['groups']:
        for group in column['groups']:
            name = f'{column["column"]}: {group["group"]}'
            within = keys | {'group': name}
            counts = {'cases': group['rows'], 'patients': group['patients']}
            yield from _lines(within, counts | {'underdiagnosis': group['underdiagnosis']})
            for label, part in group['labels'].items():
                yield from _lines(within | {'label': label}, part['scores'] | _counts(part))
            for key, mean in MEAN_LABELS.items():
                yield from _lines(within | {'label': mean}, {'auroc': group['means'][key]})
        for label, gap in column['gaps'].items():
            pair = f'{column["column"]}: {gap["best"]} minus {gap["worst"]}'
            values = {'auroc_gap': gap['gap'], 'p_holm': gap['p_holm']}
            yield from _lines(keys | {'group': pair, 'label': label}, values)


def _counts(part: Mapping[str, Any]) -> dict[str, int]:
    return {'positives': part['positives'], 'negatives': part['n'] - part['positives']}


def _lines(keys: LineKeys, values: Mapping[str, Any]) -> Iterator[Line]:
    """Yield a line for each known number: of scores with an interval, and of plain numbers.

    A score of only some cases is followed by their number, see `metrics.coverage`.
    """
    for metric, value in values.items():
        score = value if isinstance(value, dict) else {'value': value}
        for key, resample in RESAMPLES.items():
            number = score.get(key)
            if isinstance(number, int | float) and not isinstance(number, bool):
                yield {**keys, 'metric': metric, 'value': number, 'resample': resample}
        if 'cases' in score:
            line = {'metric': f'{metric}_cases', 'value': score['cases'], 'resample': ''}
            yield {**keys, **line}
