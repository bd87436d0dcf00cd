"""Alerts and warnings of a report, at the limits that decide them."""

import pytest

from evaluation.report.report_warnings import (
    CHANCE,
    METADATA_AREA,
    SMALL_SPAN,
    baseline_alerts,
    lines_of_sets,
    metadata_alerts,
    model_alerts,
    share_warnings,
)

NAN = float('nan')


def score(value: float, low: float = NAN) -> dict[str, float]:
    return {'value': value, 'low': low, 'high': NAN}


@pytest.mark.parametrize(
    ('difference', 'low', 'words'),
    [
        (-0.01, -0.1, 'the model is not better'),
        (0.0, -0.1, 'the model is not better'),
        (0.01, 0.0, 'the model may be no better'),
        (0.01, 0.001, ''),
        (0.01, NAN, ''),
    ],
)
def test_a_baseline_that_the_model_does_not_beat_is_named(difference, low, words) -> None:
    mean = {'difference': score(difference, low), 'auroc_a': score(0.7), 'auroc_b': score(0.69)}
    entry = {'set': 'test', 'b': 'pixels', 'means': {'five': None, 'labels': mean}}
    alerts = baseline_alerts([entry])
    assert len(alerts) == bool(words)
    assert all(f'{words} than "pixels": AUROC 0.700 and 0.690' in line for line in alerts)


@pytest.mark.parametrize(
    ('value', 'low', 'is_told'),
    [(METADATA_AREA, 0.55, False), (0.7, CHANCE, False), (0.7, 0.51, True), (0.7, NAN, True)],
)
def test_metadata_that_rank_a_label_beyond_chance_are_named(value, low, is_told) -> None:
    alerts = metadata_alerts({'metadata': {'view': {'Edema': score(value, low)}}})
    assert len(alerts) == is_told
    assert all('from view alone' in line and 'Edema 0.700' in line for line in alerts)


@pytest.mark.parametrize(
    ('span', 'auroc', 'told'),
    [
        (0.019, score(CHANCE), ['hardly distinguishes']),
        (0.019, score(0.9, CHANCE), ['hardly distinguishes', 'better than chance']),
        (0.019, score(0.9, 0.8), []),  # a narrow range can rank well
        (0.019, score(0.9), []),
        (SMALL_SPAN, score(0.4), []),
        (SMALL_SPAN, score(0.9, CHANCE), ['better than chance']),
        (SMALL_SPAN, score(0.9, 0.51), []),
    ],
)
def test_labels_that_a_model_has_not_learned_are_named(span, auroc, told) -> None:
    labels = {'Edema': (auroc, span), 'Mass': (score(0.9, 0.8), 1.0)}
    parts = [
        {'label': label, 'scores': {'auroc': area}, 'histogram': {'low': 0.0, 'high': high}}
        for label, (area, high) in labels.items()
    ]
    alerts = model_alerts({'labels': parts})
    assert all(words in line for words, line in zip(told, alerts, strict=True))
    assert all('Edema' in line and 'Mass' not in line for line in alerts)


@pytest.mark.parametrize(
    ('held_out', 'values', 'is_told'),
    [
        ({'n': 400, 'positives': 40}, (0.5, NAN), True),
        ({'n': 400, 'positives': 40}, (NAN, 1.0), True),
        ({'n': 400, 'positives': 40}, (NAN, NAN), False),  # nothing was chosen
        ({'n': 12, 'positives': 4}, (0.5, 1.0), False),  # by chance
        ({'n': 40_000, 'positives': 18_400}, (0.5, 1.0), False),  # nearly the same share
        ({}, (0.5, 1.0), False),  # unknown
    ],
)
def test_thresholds_from_cases_with_another_share_are_named(held_out, values, is_told) -> None:
    part = {'label': 'Edema', 'n': 40_000, 'positives': 20_000, 'held_out': held_out}
    part |= dict(zip(('threshold', 'temperature'), values, strict=True))
    lines = share_warnings({'labels': [part]})
    assert len(lines) == is_told
    assert all(line.endswith('Edema (10 % there, 50 % here)') for line in lines)


def test_a_line_names_its_sets() -> None:
    entries = [{'name': name, 'lines': lines} for name, lines in (('a', 'xy'), ('b', 'yz'))]
    found = lines_of_sets(entries, lambda entry: entry['lines'], lambda entry: ['last'])
    assert found == ['a: x', 'all sets: y', 'b: z', 'all sets: last']
    assert lines_of_sets(entries[:1], lambda entry: entry['lines']) == ['a: x', 'a: y']
