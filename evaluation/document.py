"""The whole of a report as one dictionary: what report.json holds and report.html shows."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from data.labels import COMPETITION_LABELS
from evaluation.analysis import HeldOut, fit_held_out, score_set
from evaluation.cases import Cases
from evaluation.compare import compare
from evaluation.protocol import FEW_POSITIVES, Protocol
from evaluation.published import context_rows

FORMAT = 1
TITLE = 'Chest X-ray classification report'
NOT_COMPARABLE = (
    'These scores hold for the images, label rules and views named here. Published figures were '
    'made on other splits, views, label policies or with ensembles, and are context, not a '
    'comparison. Scores on images whose labels were read from reports by a program, as those of '
    "CheXpert's training patients are, may not be compared with scores on labels by radiologists. "
    'Differences smaller than the intervals show nothing. A score at one hospital does not carry '
    'over to another. Not for clinical use.'
)

NO_HELD_OUT = (
    'no held-out training patients: without them no threshold or temperature is chosen, and what '
    'needs one is n/a'
)
NO_INTERVAL = 'no interval: too many resamples lack a class of one label'


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
    """Score every set and put the report together.

    Args:
        sets: what is scored; the last one of `test`, `valid` or files is the headline's.
        holdout: held-out training patients, for thresholds and temperatures; or these, fitted
            already, of each set (each is another model's); None: there are none.
        protocol: how cases are scored.
        run: what was run, name -> value, in the order shown.
        policy: of uncertain labels, for the published figures beside it; '' where unknown.
        patients: split -> patients, to look for some that are in two splits.
        warnings: what the caller warns of.
        extras: further parts of the report: `comparisons`, `training`, `maps`, `maps_check`.
    """
    if holdout is None or isinstance(holdout, Cases):
        fitted = [fit_held_out(holdout, cases.labels, protocol) for cases in sets]
    else:
        fitted = holdout
    scored = [
        score_set(cases, held_out, protocol) for cases, held_out in zip(sets, fitted, strict=True)
    ]
    headline = _headline(scored, protocol.resamples > 0)
    context = context_rows(policy, headline['set'], protocol.level, protocol.views)
    return {
        'format': FORMAT,
        'title': TITLE,
        'run': [{'name': name, 'value': str(value)} for name, value in run.items()],
        'headline': headline,
        'not_comparable': NOT_COMPARABLE,
        'published': context if _has_five(sets[-1].labels) else [],
        'warnings': [
            *warnings,
            *_warn_of_leaks(patients or {}),
            *_warn_of_thresholds(holdout),
            *_warn_of_sets(scored, holdout is not None),
        ],
        'sets': scored,
        **{'comparisons': [], 'training': None, 'maps': [], 'maps_check': None, **(extras or {})},
    }


def compare_sets(sets: Sequence[Cases], protocol: Protocol, *, name: str) -> list[dict[str, Any]]:
    """The report's `comparisons`: every pair of models that predict the same rows.

    Args:
        sets: each another model's predictions.
        protocol: how cases are scored.
        name: of what they are predictions of.
    """
    rows = [cases.at_level(protocol.level, protocol.aggregate) for cases in sets]
    pairs = [(a, b) for a, b in combinations(rows, 2) if set(a.path) == set(b.path)]
    options = {'resamples': protocol.resamples, 'seed': protocol.seed, 'five': COMPETITION_LABELS}
    return [{'set': name, **compare(a, b, **options)} for a, b in pairs]


def _has_five(labels: Sequence[str]) -> bool:
    return set(COMPETITION_LABELS) <= set(labels)


def _headline(scored: Sequence[dict[str, Any]], has_intervals: bool) -> dict[str, Any]:
    """Mean of the five tasks of the last set, a single label's AUROC, or why there is none."""
    last, notes = scored[-1], []
    nothing = {'value': np.nan, 'low': np.nan, 'high': np.nan}
    entries = {entry['label']: entry for entry in last['labels']}
    if len(entries) == 1:
        ((label, entry),) = entries.items()
        name, score, counted = f'AUROC, {label}', entry['scores']['auroc'], [label]
    else:
        name, counted = 'Mean AUROC of the five CheXpert tasks', COMPETITION_LABELS
        score = last['means']['five']['auroc'] if last['means']['five'] else nothing
    undefined = last['means']['undefined']
    if missing := [label for label in counted if label not in entries or label in undefined]:
        notes.append(f'not defined: without both classes or absent: {", ".join(missing)}')
    elif (fewest := min(entries[label]['positives'] for label in counted)) < FEW_POSITIVES:
        notes.append(f'as few as {fewest} positives of a label: a weak estimate')
    if has_intervals and np.isnan(score['low']) and not missing:
        notes.append(NO_INTERVAL)
    described = ('rows', 'patients', 'level', 'views')
    return {
        'set': last['name'],
        'name': name,
        'score': score,
        **{key: last[key] for key in described},
        'note': '; '.join(notes),
    }


def _warn_of_leaks(patients: Mapping[str, Sequence[str]]) -> list[str]:
    lines = []
    for (one, names), (other, others) in combinations(patients.items(), 2):
        if both := sorted(set(names) & set(others)):
            lines.append(
                f'{len(both)} patient(s) are in both {one} and {other}, such as {both[0]}: scores '
                'there are of patients that the model may know'
            )
    return lines


def _warn_of_thresholds(holdout: Cases | Sequence[HeldOut] | None) -> list[str]:
    if holdout is not None:
        return []
    return [NO_HELD_OUT]


def _warn_of_sets(scored: Sequence[dict[str, Any]], has_holdout: bool) -> list[str]:
    """What the sets are warned of; a line that holds for several is said once."""
    names: dict[str, list[str]] = {}
    for entry in scored:
        for line in _warn_of_labels(entry, has_holdout):
            names.setdefault(line, []).append(entry['name'])
    several = 1 < len(scored)
    return [
        f'{"all sets" if several and len(sets) == len(scored) else ", ".join(sets)}: {line}'
        for line, sets in names.items()
    ]


def _warn_of_labels(entry: dict[str, Any], has_holdout: bool) -> list[str]:
    """Labels without both classes, with few positives, without a threshold; groups with few."""
    lines, labels = [], entry['labels']
    undefined = entry['means']['undefined']
    few = [
        f'{part["label"]} ({part["positives"]})'
        for part in labels
        if part['label'] not in undefined and part['positives'] < FEW_POSITIVES
    ]
    unset = [p['label'] for p in labels if np.isnan(p['threshold'])]
    if undefined:
        lines.append(f'without both classes, not scored: {", ".join(undefined)}')
    if few:
        lines.append(f'fewer than {FEW_POSITIVES} positives: {", ".join(few)}')
    if has_holdout and unset:
        lines.append(f'no threshold for want of held-out cases: {", ".join(unset)}')
    small = [
        f'{group["group"]} ({column["column"]})'
        for column in entry['groups']
        for group in column['groups']
        if all(part['few'] for part in group['labels'].values())
    ]
    if small:
        lines.append(
            f'groups with fewer than {FEW_POSITIVES} positives of every label: {", ".join(small)}'
        )
    return lines
