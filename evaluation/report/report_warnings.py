"""Alerts and warnings of a report: what a reader must know before using the scores."""

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import fisher_exact

from data.tables.identity import shared_patients
from data.tables.labels import describe_same
from evaluation.calibration import TEMPERATURES
from evaluation.cases import Cases
from evaluation.intervals import MIN_RESAMPLES
from evaluation.metrics import FEW_CASES, METRICS, Protocol
from system.pages import are_synthetic

# Metadata that rank a label better than this raise an alert, if it is no chance.
METADATA_AREA = 0.6
# Thresholds are marked if the odds of a positive case were this many times higher or lower, and a
# test of both shares has a smaller p-value than OTHER_SHARE.
ODDS, OTHER_SHARE = 1.5, 0.01
SMALL_SPAN = 0.02  # a smaller range of the probabilities of a label raises an alert
CHANCE = 0.5  # AUROC of random predictions

# About the data and the protocol.
SYNTHETIC = (
    "these are synthetic X-rays (paths of images contain 'phantom'), so the scores say nothing "
    'about patients and cannot be compared with scores on X-rays'
)
NO_PATIENTS = (
    'the data name no patients, so each image counts as a patient: if patients have several '
    'images, the intervals are too narrow and splits may share patients'
)
RANKS_ONLY = (
    'the numbers are scores and not probabilities, so only their order is scored: there are no '
    'thresholds, no Brier score and no calibration'
)
NO_HELD_OUT = (
    'there are no held-out training patients, so thresholds and temperatures cannot be chosen, and '
    'all scores that require them are n/a'
)
NO_RESAMPLES = (
    'there are no intervals and no p-values of the bootstrap, because they need {least} resamples, '
    'and there are {resamples}'
)
# About labels of a set, whose names follow.
NO_SIGNAL = (
    'the model may not be better than chance, because the interval of the AUROC reaches '
    f'{CHANCE:g} or lies below'
)
OTHER_PREVALENCE = (
    'thresholds and temperatures were chosen on cases with another share of positives, so '
    'precision, F1, accuracy, Brier score and ECE here say little about a use with that share'
)
ONE_CLASS = 'labels without both classes are not scored'
FEW = f'fewer than {FEW_CASES} cases of one class, so these labels have no interval and no p-value'
FEW_LEFT_OUT = f'{FEW}, and means leave them out'
FEW_HELD_OUT = (
    f'thresholds and temperatures chosen on fewer than {FEW_CASES} held-out cases of one class are '
    'not reliable'
)
END_OF_RANGE = (
    'the temperature is {:g}, the end of its range, because the held-out probabilities {}'
)
ONE_CLASS_HELD_OUT = 'no threshold because the held-out cases lack a class'
NOT_CHOSEN = (
    'no threshold because none was chosen for this label (for example a finding that combines '
    'several labels)'
)
UNKNOWN_VIEWS = (
    'the view (of a frontal image AP or PA) of {unknown_views:,} of {rows:,} cases is unknown, so '
    'scores within views leave them out'
)
SMALL_GROUPS = f'groups with fewer than {FEW_CASES} cases of one class for every label'


def alerts_of_data(
    sets: Sequence[Cases],
    patients: Mapping[str, Sequence[str]],
    baselines: Sequence[dict[str, Any]],
) -> list[str]:
    """Report what stands next to the headline, too.

    Args:
        sets: Sets of cases.
        patients: Split -> patients; some may be in two splits.
        baselines: Comparisons with baselines, which the model may not beat.
    """
    alerts = shared_patients(patients)
    if any(are_synthetic(cases.path) for cases in sets):
        alerts.append(SYNTHETIC)
    return alerts + baseline_alerts(baselines)


def warnings_of_data(sets: Sequence[Cases], protocol: Protocol, *, has_holdout: bool) -> list[str]:
    """Report what all sets lack: patients, probabilities, held-out patients, or resamples."""
    # The names of the images then stand for the patients.
    lacks_patients = any(
        len(cases) and all(map(str.endswith, cases.path, cases.patient)) for cases in sets
    )
    warnings = [NO_PATIENTS] if lacks_patients else []
    if protocol.ranks_only:
        warnings.append(RANKS_ONLY)
    elif not has_holdout:
        warnings.append(NO_HELD_OUT)
    if protocol.resamples < MIN_RESAMPLES:
        warnings.append(NO_RESAMPLES.format(resamples=protocol.resamples, least=MIN_RESAMPLES))
    return warnings


def lines_of_sets(
    scored: Sequence[dict[str, Any]], *describe: Callable[[dict[str, Any]], Iterable[str]]
) -> list[str]:
    """Collect the lines about each of the report's `sets`, and name the sets of each line."""
    names: dict[str, list[str]] = {}
    for describe_set in describe:
        for entry in scored:
            for line in describe_set(entry):
                names.setdefault(line, []).append(entry['name'])
    all_sets = len(scored) if len(scored) > 1 else None
    return [
        f'{"all sets" if len(sets) == all_sets else ", ".join(sets)}: {line}'
        for line, sets in names.items()
    ]


def model_alerts(entry: dict[str, Any]) -> list[str]:
    """Report labels with nearly constant probabilities or without evidence of being learned."""
    spans, by_chance = {}, []
    for part in entry['labels']:
        label, auroc = part['label'], part['scores']['auroc']
        span = part['histogram']['high'] - part['histogram']['low']
        lowest = auroc['value'] if np.isnan(auroc['low']) else auroc['low']
        # A narrow range can rank the cases well, for example those of a rare finding.
        if span < SMALL_SPAN and not lowest > CHANCE:
            spans[label] = span
        if auroc['low'] <= CHANCE:
            by_chance.append(label)
    alerts = []
    if spans:
        alerts.append(
            'the model hardly distinguishes the cases: all probabilities of a label lie within '
            f'{max(spans.values()):.4f} for {", ".join(spans)}'
        )
    return alerts + _naming(NO_SIGNAL, by_chance)


def metadata_alerts(entry: dict[str, Any]) -> list[str]:
    """Report labels that the view, or age and sex, rank without an image."""
    alerts = []
    for name, areas in entry['metadata'].items():
        found = [
            f'{label} {format_score(area)}'
            for label, area in areas.items()
            if area['value'] > METADATA_AREA and not area['low'] <= CHANCE
        ]
        if found:
            alerts.append(
                f'without an image, from {name} alone, the AUROC is {", ".join(found)}: a model '
                f'may have learned {name} in place of the finding (compare the scores by {name})'
            )
    return alerts


def baseline_alerts(comparisons: Sequence[dict[str, Any]]) -> list[str]:
    """Say which baselines the model is not better than, as far as these cases show it."""
    alerts = []
    for entry in comparisons:
        for mean in filter(None, entry['means'].values()):
            areas = [f'{mean[key]["value"]:.3f}' for key in ('auroc_a', 'auroc_b')]
            scores = f'"{entry["b"]}": AUROC {" and ".join(areas)}'
            if mean['difference']['value'] <= 0:
                alerts.append(f'{entry["set"]}: the model is not better than {scores}')
            elif mean['difference']['low'] <= 0:
                alerts.append(
                    f'{entry["set"]}: the model may be no better than {scores}, and the interval '
                    'of the difference includes 0'
                )
    return alerts


def share_warnings(entry: dict[str, Any]) -> list[str]:
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
        if max(odds) / min(odds) > ODDS and fisher_exact(table).pvalue < OTHER_SHARE:
            there, here = (100 * counts['positives'] / counts['n'] for counts in (held_out, part))
            found.append(f'{part["label"]} ({there:.0f} % there, {here:.0f} % here)')
    return _naming(OTHER_PREVALENCE, found)


def label_warnings(entry: dict[str, Any]) -> list[str]:
    """Report unknown views, labels without both classes or with few cases, and what means lack."""
    left_out: dict[tuple[str, ...], list[str]] = {}  # labels -> metrics whose mean lacks them
    for name, mean in (entry['means']['labels'] or {}).items():
        if 'left_out' in mean:
            left_out.setdefault((*mean['left_out'],), []).append(METRICS[name].title)
    return [
        *([UNKNOWN_VIEWS.format(**entry)] if entry['unknown_views'] else []),
        *labels_without_cases(entry),
        *(
            f'the means of {", ".join(titles)} leave out {", ".join(labels)}, without a value'
            for labels, titles in left_out.items()
        ),
    ]


def detail_warnings(
    entry: dict[str, Any], *, has_holdout: bool, not_held_out: Container[str] = ()
) -> list[str]:
    """Report thresholds and temperatures that are not reliable or missing, and small groups.

    `not_held_out` are labels that the held-out cases do not have.
    """
    labels = entry['labels']
    lowest, highest = (
        [part['label'] for part in labels if part['temperature'] == bound] for bound in TEMPERATURES
    )
    no_threshold = [part['label'] for part in labels if has_holdout and np.isnan(part['threshold'])]
    small_groups = [
        f'{group["group"]} ({column["column"]})'
        for column in entry['groups']
        for group in column['groups']
        if group['labels'] and all(part['few'] for part in group['labels'].values())
    ]
    return [
        *_naming(FEW_HELD_OUT, _labels_with(entry, 'few_held_out')),
        *_naming(END_OF_RANGE.format(TEMPERATURES[0], 'separate the classes'), lowest),
        *_naming(END_OF_RANGE.format(TEMPERATURES[1], 'carry no signal'), highest),
        *_naming(ONE_CLASS_HELD_OUT, [name for name in no_threshold if name not in not_held_out]),
        *_naming(NOT_CHOSEN, [name for name in no_threshold if name in not_held_out]),
        *_naming(SMALL_GROUPS, small_groups),
    ]


def labels_without_cases(entry: dict[str, Any]) -> list[str]:
    """Report labels without both classes, which are not scored, and with few cases."""
    means = entry['means']
    return [
        *_naming(ONE_CLASS, means['undefined']),
        *_naming(FEW if means['few'] else FEW_LEFT_OUT, _labels_with(entry, 'few')),
    ]


def repeated_labels(entry: dict[str, Any]) -> list[str]:
    """Report labels that are equal in all cases."""
    same = describe_same(entry['means']['same_as'])
    return [same] if same else []


def labels_of_other_names(entry: dict[str, Any]) -> list[str]:
    """Say which labels stand for labels of other names."""
    return [f'{label}: {text}' for label, text in entry['made_of'].items()]


def format_score(score: dict[str, Any]) -> str:
    """Format a score with its interval, if it has one, and its `coverage`, if it lacks cases."""
    text = 'n/a' if np.isnan(score['value']) else f'{score["value"]:.3f}'
    if not np.isnan([score['value'], score['low']]).any():
        text += f' [{score["low"]:.3f}, {score["high"]:.3f}]'
    return text + (f' ({score["cases"]:,} of {score["of"]:,} cases)' if 'of' in score else '')


def _labels_with(entry: dict[str, Any], key: str) -> list[str]:
    """Return the labels with few cases, with the number that `few` or `few_held_out` names."""
    return [f'{part["label"]} ({part[key]})' for part in entry['labels'] if part[key]]


def _naming(text: str, names: Sequence[str]) -> list[str]:
    """Return the text with the names that it is about, or nothing without a name."""
    return [f'{text}: {", ".join(names)}'] if names else []
