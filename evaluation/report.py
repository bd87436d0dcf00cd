"""Evaluation report: report.json, a self-contained report.html, and tables in CSV and LaTeX.

`build_document` collects the report in one dictionary, and `write_report` writes the files. This
module does not import torch, so predictions of any model can be scored without torch.
"""

import base64
import hashlib
import io
import json
import math
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image
from scipy.stats import fisher_exact

from data.identity import shared_patients
from data.labels import COMPETITION_LABELS, describe_same
from evaluation import charts
from evaluation.analysis import HeldOut, fit_held_out, score_set
from evaluation.calibration import TEMPERATURES
from evaluation.cases import Cases
from evaluation.intervals import LEVEL, MIN_RESAMPLES, add_holm
from evaluation.metrics import (
    FEW_CASES,
    METRICS,
    OF_CLASSES,
    OF_LABEL,
    Metric,
    Protocol,
    applicable,
    headline_labels,
    score_table,
)
from evaluation.model_comparison import compare
from evaluation.published import MEAN_OF_FIVE, are_synthetic, context_rows
from logger import json_safe
from system.files import replace_files

# The long table of scores: a line is one number. `row` is a run of a sweep, one of several models,
# or '' for the only one, `group` is '' for everyone, `label` is '' for what belongs to all cases.
# `resample` is '' for the value itself, and 'low' or 'high' for the 95 % interval over patients.
KEYS = ['row', 'seed', 'fold', 'split', 'level', 'group', 'label', 'metric']
COLUMNS = [*KEYS, 'value', 'resample']
SCORES_FILE = 'report_scores.csv'  # of a run, in its folder
RESAMPLES = {'value': '', 'low': 'low', 'high': 'high'}  # key of a score -> `resample`
MEAN_LABELS = {'five': 'mean_of_five', 'labels': 'mean_of_defined'}  # key of a mean -> its `label`
Place = Mapping[str, str]
Line = dict[str, Any]

FORMAT = 1
TITLE = 'Chest X-ray classification report'
TEMPLATES = Path(__file__).parent / 'templates'
JPEG_QUALITY = 88  # for images in the page; the PNG files of the maps are lossless
NOT_COMPARABLE = (
    'These scores are valid for the images, label rules and views of this report. Published scores '
    'use other splits, views or label policies, or ensembles. They are context, not a comparison. '
    "Labels that a program extracted from reports, as for CheXpert's training patients, give "
    'scores that must not be compared with scores on labels by radiologists. Whether one of two '
    'models is better needs their paired difference on the same cases. A score from one hospital '
    'does not apply to another hospital. Not for clinical use.'
)
NO_HELD_OUT = (
    'there are no held-out training patients, so thresholds and temperatures cannot be chosen, and '
    'all scores that require them are n/a'
)
SYNTHETIC = (
    'these are synthetic X-rays (phantoms), so the scores say nothing about patients and cannot '
    'be compared with scores on X-rays'
)
NO_PATIENTS = (
    'the data name no patients, so each image counts as a patient: if patients have several '
    'images, the intervals are too narrow and splits may share patients'
)
RANKS_ONLY = (
    'the numbers are scores and not probabilities, so only their order is scored: there are no '
    'thresholds, no Brier score and no calibration'
)
ONE_TRAINING = (
    'Each file is one training. Two seeds of one recipe can also differ like this, so a small p '
    'does not show that a method is better.'
)
NO_RESAMPLES = (
    'there are no intervals and no p-values of the bootstrap, because they need {least} resamples, '
    'and there are {resamples}'
)
# Metadata that rank a label better than this raise an alert, if it is no chance.
METADATA_AREA = 0.6
# Thresholds are marked if the odds of a positive case were this many times higher or lower, and a
# test of both shares has a smaller p-value than OTHER_SHARE.
ODDS, OTHER_SHARE = 1.5, 0.01
SMALL_SPAN = 0.02  # a smaller range of the probabilities of a label raises an alert
CHANCE = 0.5  # AUROC of random predictions
NO_INTERVAL = 'there is no interval, because too many resamples lack a class of one label'
UNDEFINED = (
    f'A score has no interval with fewer than {MIN_RESAMPLES} resamples of the patients, if there '
    'are few cases, if more than 5 of 100 resamples leave the '
    'score undefined, or if all resamples have the same score.'
)
TASK_WORDS = {  # DATA.TASK -> what a model predicts
    'observations': 'each label on its own',
    'single_label': 'one class per image',
    'any_finding': 'any finding against No Finding',
    'effusion': 'Pleural Effusion against No Finding',
}
MEAN_TITLES = {'five': 'Mean of the five CheXpert tasks', 'labels': 'Mean of the labels'}


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
        extras: Additional parts of the report: `training`, `maps`, `maps_check`, and `comparisons`.
            These are between the models, if each set belongs to another one, or with `baselines`
            True, of the last set with its baselines.
    """
    extras = {'comparisons': [], 'baselines': False, **(extras or {})}
    if holdout is None or isinstance(holdout, Cases):
        fitted = [fit_held_out(holdout, cases.labels, protocol) for cases in sets]
    else:
        fitted = holdout
    scored = [
        score_set(cases, held_out, protocol) for cases, held_out in zip(sets, fitted, strict=True)
    ]
    missing = {label for held_out in fitted for label in held_out.missing}
    label_warnings = partial(_label_warnings, has_holdout=holdout is not None, missing=missing)
    has_several_models = len(sets) > 1 and extras['comparisons'] and not extras['baselines']
    main = None if has_several_models else scored[-1]
    told = shared_patients(patients or {})
    told += [SYNTHETIC] if any(are_synthetic(cases.path) for cases in sets) else []
    told += _baseline_alerts(extras['comparisons']) if extras['baselines'] else []
    context = []
    if main and main['means']['five']:
        context = context_rows(policy, main['name'], protocol.level, protocol.views)
    return {
        'format': FORMAT,
        'title': TITLE,
        'run': [{'name': name, 'value': str(value)} for name, value in run.items()],
        'headline': _headline(main, told, protocol.resamples >= MIN_RESAMPLES) if main else None,
        'not_comparable': NOT_COMPARABLE,
        'ranks_only': protocol.ranks_only,
        'published': context,
        'alerts': [
            *told,
            *_set_lines(scored, _model_alerts),
            *_set_lines(scored, _metadata_alerts),
        ],
        'warnings': [
            *warnings,
            *([NO_PATIENTS] if any(map(_has_no_patients, sets)) else []),
            *([RANKS_ONLY] if protocol.ranks_only else []),
            *([NO_HELD_OUT] if holdout is None and not protocol.ranks_only else []),
            *_resamples_warning(protocol.resamples),
            *_set_lines(scored, _repeated_labels),
            *_set_lines(scored, _other_shares),
            *_set_lines(scored, label_warnings),
        ],
        'sets': scored,
        **{'training': None, 'maps_check': None, 'maps': [], **extras},
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
        rows.sort(key=_mean_area, reverse=True)
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
    tested = sum(not np.isnan(part['p_holm']) for part in family)
    note = _too_few_resamples(tested, resamples=protocol.resamples)
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


def _too_few_resamples(num_labels: int, *, resamples: int) -> str:
    """Say that no corrected p-value of a comparison can be significant; '' if one can be."""
    smallest = num_labels * 2 / (resamples + 1)
    if resamples < MIN_RESAMPLES or smallest < 1 - LEVEL:
        return ''
    needed = math.floor(2 * num_labels / (1 - LEVEL))
    return (
        f'no corrected p can be below {1 - LEVEL:.2f}: with {resamples} resamples and {num_labels} '
        f'labels it is at least {min(1.0, smallest):.3f}. This needs more than {needed} resamples.'
    )


def _resamples_warning(resamples: int) -> list[str]:
    """Say why there are no intervals with so few resamples; [] if they are enough."""
    if resamples >= MIN_RESAMPLES:
        return []
    return [NO_RESAMPLES.format(resamples=resamples, least=MIN_RESAMPLES)]


def _mean_area(cases: Cases) -> float:
    """Return the mean AUROC over the labels, below all others if it is undefined."""
    pair = cases.probabilities, cases.targets
    scores = score_table(*pair, cases.study, labels=cases.labels, level='image')
    return np.nan_to_num(scores['mean_of_defined'], nan=-1)


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
    page = _render(folder, report, thumbnails or {})
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
    counts = {part['label']: [part['n'], part['positives']] for part in entry['labels']}
    scores = {part['label']: part['scores'] for part in entry['labels']}
    for key in MEAN_TITLES:
        scores |= {MEAN_TITLES[key]: entry['means'][key]} if entry['means'][key] else {}
    rows = {
        label: [
            *counts.get(label, ['', '']),
            *(_format_score(values[name]) if name in values else 'n/a' for name in shown),
        ]
        for label, values in scores.items()
    }
    return pd.DataFrame.from_dict(rows, orient='index', columns=['n', 'positives', *shown.values()])


def classes_line(entry: dict[str, Any]) -> str:
    """Format the scores of the class decisions of a set in one line, '' if it has none."""
    if 'classes' not in entry:
        return ''
    scores = entry['classes']['scores']
    metrics = applicable(OF_CLASSES).values()
    return ', '.join(f'{each.title} {_format_score(scores[each.name])}' for each in metrics)


def differences_table(entry: dict[str, Any]) -> pd.DataFrame:
    """Format one of the report's `comparisons` with intervals and p-values."""
    means = {MEAN_TITLES[key]: mean for key, mean in entry['means'].items() if mean}
    return _format_differences(entry['labels'] | means)


def overview_table(entries: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Format the difference of the means of each of the report's `comparisons`."""
    parts = {
        f'{entry["a"]} minus {entry["b"]}': mean
        for entry in entries
        for mean in entry['means'].values()
        if mean
    }
    return _format_differences(parts)


def _format_differences(parts: Mapping[str, dict[str, Any]]) -> pd.DataFrame:
    rows = {
        label: [
            f'0.000, {part["same"]}' if part['same'] else _format_score(part['difference']),
            _format_p(part['p_bootstrap']),
            _format_p(part['p_holm']) if 'p_holm' in part else '',
            _format_score(part['within_views']),
        ]
        for label, part in parts.items()
    }
    columns = ['difference in AUROC', 'p (bootstrap)', 'p (Holm)', 'within views']
    table = pd.DataFrame.from_dict(rows, orient='index', columns=columns)
    has_views = any(not np.isnan(part['within_views']['value']) for part in parts.values())
    return table if has_views else table.drop(columns='within views')


def _format_p(value: float) -> str:
    return 'n/a' if np.isnan(value) else f'{value:.4f}' if value >= 1e-4 else '<0.0001'


def _format_score(score: dict[str, Any]) -> str:
    """Format a score with its interval, if it has one."""
    if np.isnan(score['value']):
        return 'n/a'
    if np.isnan(score['low']):
        return f'{score["value"]:.3f}'
    return f'{score["value"]:.3f} [{score["low"]:.3f}, {score["high"]:.3f}]'


def _latex(document: dict[str, Any], columns: Sequence[str]) -> str:
    """Format the tables of scores and differences in LaTeX with escaped special characters."""
    tables = {
        'Scores': {entry['name']: scores_table(entry, columns) for entry in document['sets']},
        'Differences in AUROC': {
            f'{entry["a"]} minus {entry["b"]}': differences_table(entry)
            for entry in document['comparisons']
        },
    }
    parts = ['% For a document with \\usepackage{booktabs}. Not for clinical use.\n']
    for title, frames in tables.items():
        if frames:
            table = pd.concat(frames)
            has_intervals = table.map(lambda cell: '[' in str(cell)).any(axis=None)
            about = ', with 95 \\% intervals over patients in brackets' * bool(has_intervals)
            text = table.to_latex(caption=f'{title}{about}.', escape=True, multirow=False)
            parts.append(text.replace('<', r'\textless{}'))
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
    is_weak = any(entries[label]['few'] for label in counted)
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
        'by_view': _by_view(scored, key) if counted else [],
        'note': '; '.join(notes),
        'alerts': [*told],
    } | described


def _by_view(scored: dict[str, Any], mean: str) -> list[dict[str, Any]]:
    """Return the scores of the headline in each view, and within views, if several are scored."""
    found = [column['groups'] for column in scored['groups'] if column['column'] == 'View']
    groups = found[0] if found else []
    if len(groups) < 2:
        return []
    rows = [
        {'view': group['group'], 'rows': group['rows'], 'score': group['means'][mean]}
        for group in groups
    ]
    return [
        *rows,
        {
            'view': METRICS['auroc_within_views'].title,
            'rows': scored['rows'],
            'score': scored['means'][mean]['auroc_within_views'],
        },
    ]


def _has_no_patients(cases: Cases) -> bool:
    """Return whether the names of the images stand for the patients."""
    return len(cases) > 0 and all(map(str.endswith, cases.path, cases.patient))


def _set_lines(
    scored: Sequence[dict[str, Any]], describe: Callable[[dict[str, Any]], Iterator[str]]
) -> list[str]:
    """Collect the lines about each set. A line that applies to several sets appears once."""
    names: dict[str, list[str]] = {}
    for entry in scored:
        for line in describe(entry):
            names.setdefault(line, []).append(entry['name'])
    all_sets = len(scored) if len(scored) > 1 else None
    return [
        f'{"all sets" if len(sets) == all_sets else ", ".join(sets)}: {line}'
        for line, sets in names.items()
    ]


def _model_alerts(entry: dict[str, Any]) -> Iterator[str]:
    """Report labels with nearly constant probabilities or without evidence of being learned."""
    spans = {
        part['label']: part['histogram']['high'] - part['histogram']['low']
        for part in entry['labels']
    }
    by_chance = [
        part['label'] for part in entry['labels'] if part['scores']['auroc']['low'] <= CHANCE
    ]
    # Probabilities in a narrow range can rank the cases well, for example those of a rare finding.
    constant = [
        part['label']
        for part in entry['labels']
        if spans[part['label']] < SMALL_SPAN and not _shows_order(part['scores']['auroc'])
    ]
    if constant:
        widest = max(spans[label] for label in constant)
        yield (
            f'the model hardly distinguishes the cases: all probabilities of a label lie within '
            f'{widest:.4f} for {", ".join(constant)}'
        )
    if by_chance:
        yield (
            f'the model may not be better than chance, because the interval of the AUROC reaches '
            f'{CHANCE:g} or lies below: {", ".join(by_chance)}'
        )


def _baseline_alerts(comparisons: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Say which baselines the model is not better than, as far as these cases show it."""
    for entry in comparisons:
        for mean in filter(None, entry['means'].values()):
            value, low = (mean['difference'][end] for end in ('value', 'low'))
            own, others = (mean[key]['value'] for key in ('auroc_a', 'auroc_b'))
            scores = f'AUROC {own:.3f} and {others:.3f}'
            if value <= 0:
                yield f'{entry["set"]}: the model is not better than "{entry["b"]}": {scores}'
            elif low <= 0:
                yield (
                    f'{entry["set"]}: the model may be no better than "{entry["b"]}": {scores}, '
                    'and the interval of the difference includes 0'
                )


def _small_groups(entry: dict[str, Any]) -> list[str]:
    """Return the groups of a set with few cases of every label."""
    return [
        f'{group["group"]} ({column["column"]})'
        for column in entry['groups']
        for group in column['groups']
        if group['labels'] and all(part['few'] for part in group['labels'].values())
    ]


def _metadata_alerts(entry: dict[str, Any]) -> Iterator[str]:
    """Report labels that the view, or age and sex, rank without an image."""
    for name, areas in entry['metadata'].items():
        found = [
            f'{label} {_format_score(area)}'
            for label, area in areas.items()
            if area['value'] > METADATA_AREA and not area['low'] <= CHANCE
        ]
        if found:
            yield (
                f'without an image, from {name} alone, the AUROC is {", ".join(found)}: a model '
                f'may have learned {name} in place of the finding (compare the scores by {name})'
            )


def _other_shares(entry: dict[str, Any]) -> Iterator[str]:
    """Report thresholds that were chosen on cases with another share of positives."""
    found = []
    for part in entry['labels']:
        held_out = part['held_out']
        if not held_out.get('n') or np.isnan([part['threshold'], part['temperature']]).all():
            continue
        table = [
            [counts['positives'], counts['n'] - counts['positives']] for counts in (held_out, part)
        ]
        odds = [(positives + 0.5) / (negatives + 0.5) for positives, negatives in table]
        is_other = max(odds) / min(odds) > ODDS and fisher_exact(table).pvalue < OTHER_SHARE
        if is_other:
            shares = [100 * counts['positives'] / counts['n'] for counts in (held_out, part)]
            found.append(f'{part["label"]} ({shares[0]:.0f} % there, {shares[1]:.0f} % here)')
    if found:
        yield (
            'thresholds and temperatures were chosen on cases with another share of positives, so '
            'precision, F1, accuracy, Brier score and ECE here say little about a use with that '
            f'share: {", ".join(found)}'
        )


def _shows_order(auroc: dict[str, Any]) -> bool:
    """Return whether an AUROC, with its interval if it has one, is above chance."""
    return (auroc['value'] if np.isnan(auroc['low']) else auroc['low']) > CHANCE


def _repeated_labels(entry: dict[str, Any]) -> Iterator[str]:
    same = describe_same(entry['means']['same_as'])
    return iter([same] if same else [])


def _label_warnings(
    entry: dict[str, Any], *, has_holdout: bool, missing: Container[str] = ()
) -> Iterator[str]:
    """Report labels without both classes, few cases, missing thresholds, and small groups."""
    undefined = entry['means']['undefined']
    few, few_held_out = (
        [f'{part["label"]} ({part[key]})' for part in entry['labels'] if part[key]]
        for key in ('few', 'few_held_out')
    )
    unset = [part['label'] for part in entry['labels'] if np.isnan(part['threshold'])]
    small = _small_groups(entry)
    if undefined:
        yield f'labels without both classes are not scored: {", ".join(undefined)}'
    if few:
        yield (
            f'fewer than {FEW_CASES} cases of one class, so these labels have no interval and no '
            f'p-value: {", ".join(few)}'
        )
    if few_held_out:
        yield (
            f'thresholds and temperatures chosen on fewer than {FEW_CASES} held-out cases of one '
            f'class are not reliable: {", ".join(few_held_out)}'
        )
    for bound, reason in zip(
        TEMPERATURES, ('separate the classes', 'carry no signal'), strict=True
    ):
        if at_bound := [part['label'] for part in entry['labels'] if part['temperature'] == bound]:
            yield (
                f'the temperature is {bound:g}, the end of its range, because the held-out '
                f'probabilities {reason}: {", ".join(at_bound)}'
            )
    for label, titles in _left_out(entry).items():
        yield f'the means of {", ".join(titles)} leave out {label}, which has no value'
    one_class = [label for label in unset if label not in missing]
    unchosen = [label for label in unset if label in missing]
    if has_holdout and one_class:
        yield f'no threshold because the held-out cases lack a class: {", ".join(one_class)}'
    if has_holdout and unchosen:
        yield (
            'no threshold because none was chosen for this label (for example a finding that '
            f'combines several labels): {", ".join(unchosen)}'
        )
    if small:
        yield (
            f'groups with fewer than {FEW_CASES} cases of one class for every label: '
            f'{", ".join(small)}'
        )


def _left_out(entry: dict[str, Any]) -> dict[str, list[str]]:
    """Return label -> titles of the metrics whose mean over the labels does not contain it."""
    found: dict[str, list[str]] = {}
    for name, mean in (entry['means']['labels'] or {}).items():
        for label in mean.get('left_out', ()):
            found.setdefault(label, []).append(METRICS[name].title)
    return found


def report_table(report: Mapping[str, Any]) -> pd.DataFrame:
    """Return the long table of a report: scores, counts, thresholds, groups and differences.

    Args:
        report: Content of report.json.
    """
    lines: list[Line] = []
    has_several_models = report['headline'] is None
    for entry in report['sets']:
        kind = 'row' if has_several_models else 'split'
        place = {kind: entry['name'], 'level': entry['level']}
        lines += _lines_of_set(place, entry)
    for entry in report['comparisons']:
        place = {'row': f'{entry["a"]} minus {entry["b"]}', 'split': entry['set']}
        means = {MEAN_LABELS[key]: mean for key, mean in entry['means'].items() if mean}
        for label, part in (entry['labels'] | means).items():
            lines += _lines(place | {'label': label}, part)
    table = pd.DataFrame(lines, columns=COLUMNS, dtype=object)  # whole numbers stay whole
    return table.fillna(dict.fromkeys(KEYS, ''))


def _lines_of_set(place: Place, entry: Mapping[str, Any]) -> Iterator[Line]:
    """Yield the lines of one of the report's `sets`."""
    counts = {'cases': entry['rows'], 'patients': entry['patients']}
    yield from _lines(place, counts | entry.get('classes', {}).get('scores', {}))
    for label in entry['labels']:
        facts = {name: label[name] for name in ('threshold', 'temperature', 'radiologists_below')}
        facts['uncertain_left_out'] = entry['uncertain'].get(label['label'], 0)
        values = label['scores'] | _counts(label) | facts | (label['confusion'] or {})
        yield from _lines(place | {'label': label['label']}, values)
    for key, name in MEAN_LABELS.items():
        yield from _lines(place | {'label': name}, entry['means'][key] or {})
    for about, areas in entry['metadata'].items():
        for label, area in areas.items():
            metric = f'auroc_of_{about.replace(" ", "_")}'
            yield from _lines(place | {'label': label}, {metric: area})
    for column in entry['groups']:
        for group in column['groups']:
            name = f'{column["column"]}: {group["group"]}'
            yield from _lines_of_group(place | {'group': name}, group)
        for label, gap in column['gaps'].items():
            pair = f'{column["column"]}: {gap["best"]} minus {gap["worst"]}'
            values = {'auroc_gap': gap['gap'], 'p_holm': gap['p_holm']}
            yield from _lines(place | {'group': pair, 'label': label}, values)


def _lines_of_group(place: Place, group: Mapping[str, Any]) -> Iterator[Line]:
    counts = {'cases': group['rows'], 'patients': group['patients']}
    yield from _lines(place, counts | {'underdiagnosis': group['underdiagnosis']})
    for label, part in group['labels'].items():
        yield from _lines(place | {'label': label}, part['scores'] | _counts(part))
    for key, name in MEAN_LABELS.items():
        yield from _lines(place | {'label': name}, {'auroc': group['means'][key]})


def _counts(part: Mapping[str, Any]) -> dict[str, int]:
    return {'positives': part['positives'], 'negatives': part['n'] - part['positives']}


def _lines(place: Place, values: Mapping[str, Any]) -> Iterator[Line]:
    """Yield a line for each known number: of scores with an interval, and of plain numbers."""
    for metric, value in values.items():
        score = value if isinstance(value, dict) else {'value': value}
        for key, resample in RESAMPLES.items():
            number = score.get(key)
            if isinstance(number, int | float) and not isinstance(number, bool):
                yield {**place, 'metric': metric, 'value': number, 'resample': resample}


def _render(
    folder: Path, report: dict, thumbnails: Mapping[tuple[str, str, str], Image.Image]
) -> str:
    """Render the page. `charts.format_value` formats numbers, and all text is escaped."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        finalize=charts.format_value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = dict.fromkeys(label['label'] for entry in report['sets'] for label in entry['labels'])
    environment.filters |= {
        'p_value': charts.p_value,
        'probability': charts.probability,
        'in_order': lambda part: [(name, part[name]) for name in names if name in part],
    }
    script = (TEMPLATES / 'report.js').read_text(encoding='utf-8')
    return environment.get_template('report.html.j2').render(
        report=report,
        sets=_main_first(report),
        class_metrics=[*applicable(OF_CLASSES).values()],
        names=[*names],
        means=MEAN_TITLES,
        same_labels=len({frozenset(entry['means']['counted']) for entry in report['sets']}) == 1,
        maps=_maps_by_label(folder, report['maps']),
        thumbnails={key: _data_uri(image) for key, image in thumbnails.items()},
        style=Markup((TEMPLATES / 'report.css').read_text(encoding='utf-8')),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        charts=charts,
        metrics=_shown(applicable(OF_LABEL), report),
        decisions=[*applicable({'threshold'}).values()],
        ranking_columns=_ranking_columns(report),
        summary_columns=_summary_columns(),
        explanations={
            entry.title: f'{entry.explanation} {"Higher" if entry.higher_is_better else "Lower"} '
            'is better.'
            for entry in METRICS.values()
        },
        five=COMPETITION_LABELS,
        mean_of_five=MEAN_OF_FIVE,
        one_training=ONE_TRAINING,
        few_cases=FEW_CASES,
        few_labels=_few_labels,
        no_interval=UNDEFINED,
    )


def _main_first(report: dict) -> list[dict]:
    """Return the sets in the order of the page, with the set of the headline first."""
    main = report['headline'] and report['headline']['set']
    return sorted(report['sets'], key=lambda entry: entry['name'] != main)


def _shown(metrics: Mapping[str, Metric], report: dict) -> dict[str, Metric]:
    """Leave out the metrics of views if no set has several views."""
    labels = [label['scores'] for entry in report['sets'] for label in entry['labels']]
    return {
        name: entry
        for name, entry in metrics.items()
        if 'views' not in entry.needs or any(scores[name]['value'] is not None for scores in labels)
    }


def _ranking_columns(report: dict) -> list[tuple[str, str]]:
    """Return (heading, name) of the scores without a threshold in the table of labels."""
    columns = []
    for name, entry in _shown(applicable({'order', 'probabilities', 'views'}), report).items():
        columns.append((entry.title, name))
        if name == 'auroc':
            columns.append((f'{entry.title}, DeLong', 'auroc_delong'))
        if 'probabilities' in entry.needs:
            columns.append((f'{entry.title}, scaled', f'{name}_scaled'))
    return columns


def _summary_columns() -> list[tuple[str, str]]:
    """Return (heading, name) of the scores in the table of labels by group."""
    columns = []
    for name, entry in METRICS.items():
        if entry.in_summary:
            columns.append((entry.title, name))
            if name == 'auroc':
                columns.append((f'{entry.title}, standardised', 'auroc_standardised'))
    return columns


def _few_labels(group: dict, mean: str) -> list[str]:
    """Return the labels of a mean that have few cases in a group."""
    labels = group['labels']
    names = COMPETITION_LABELS if mean == 'five' else group['counted']
    return [name for name in names if name in labels and labels[name]['few']]


def _maps_by_label(folder: Path, maps: list[dict]) -> dict[str, list[tuple[dict, str]]]:
    """Return label -> maps, each with the image as a data URI."""
    found: dict[str, list[tuple[dict, str]]] = {}
    for entry in maps:
        with Image.open(folder / entry['file']) as image:
            found.setdefault(entry['label'], []).append((entry, _data_uri(image.convert('RGB'))))
    return found


def _data_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, 'JPEG', quality=JPEG_QUALITY)
    return 'data:image/jpeg;base64,' + base64.b64encode(buffer.getvalue()).decode()
