"""Score the maps of all sources: by label and as means, with intervals over patients.

The cases are those that all sources explain, so that differences are paired. With fewer than
FEW_CASES cases with a region, a label has no interval, and no mean contains it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from data.tables.identity import image_name, patient_forms
from evaluation import metrics
from evaluation.intervals import CaseWeights, Resamples, add_holm
from evaluation.metrics import summary
from evaluation.model_comparison import SIGNIFICANT, difference
from evaluation.regions.regions import Regions, Size, is_swapped, refuse_other_shape
from evaluation.regions.scores import (
    PositionPrior,
    as_grid,
    iou_of_others,
    score_map,
    thresholds_of,
)
from evaluation.regions.sources import (
    OWN,
    PRIOR,
    Baselines,
    MapSource,
    patient_of,
    size_of_image,
)

MEAN = 'mean'  # `label` of means over labels
EVERYONE, SMALL, LARGE = '', 'small', 'large'  # groups of cases; halves of each label by area
HIT, IOU, CHOSEN, MASS, PRECISION = 'hit_rate', 'miou', 'miou_chosen', 'mass', 'average_precision'
ALARMS, DICE = 'miou_with_false_alarms', 'dice'
TITLES = {
    HIT: 'Hit rate',
    IOU: 'mIoU',
    DICE: 'Dice',
    CHOSEN: 'mIoU, chosen threshold',
    PRECISION: 'Average precision',
    MASS: 'Mass inside',
    ALARMS: 'mIoU with false alarms',
}
ABOVE, BELOW = 'above', 'below'


class Scoring(NamedTuple):
    """Which scores are shown.

    Attributes:
        shown: Scores of the tables, in their order.
        compared: Scores with differences.
        judged: Scores of the figure, and of the sentences about models and baselines.
    """

    shown: Sequence[str]
    compared: Sequence[str]
    judged: Sequence[str]


OF_MAPS = Scoring((HIT, IOU, CHOSEN, PRECISION, MASS), (HIT, IOU, PRECISION), (HIT, IOU))
OF_SEGMENTATION = Scoring((DICE, CHOSEN, PRECISION), (DICE, CHOSEN, PRECISION), (DICE, PRECISION))


@dataclass(frozen=True, eq=False)
class RegionCases:
    """The cases that are scored.

    Attributes:
        marked: Cases with a region: `path`, `label`, `patient`, `height` and `width` of the image
            on which it was drawn, and `area`, the share of this image that it covers.
        absent: Cases whose image has no region of the label: `path`, `label`, `patient`.
        prior: Where the regions lie on other patients.
        notes: Sentences about cases that are left out.
    """

    marked: pd.DataFrame
    absent: pd.DataFrame
    prior: PositionPrior
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Row:
    """The scores of one kind of maps, a line of the tables.

    Attributes:
        name: Name of the row.
        source: Name of the model; '' for a baseline without a model.
        kind: Kind of the maps of the source.
        scores: A row for each marked case, with columns HIT, IOU, DICE, CHOSEN, MASS, PRECISION
            and `has_signal`.
        alarms: Whether it marks a region in each absent case; None if that is not known.
    """

    name: str
    source: str
    kind: str
    scores: pd.DataFrame
    alarms: np.ndarray | None = None


def find_cases(
    regions: Regions, sources: Sequence[MapSource], *, squeezed: bool = False
) -> RegionCases:
    """Find the cases that all sources explain.

    Args:
        regions: Regions whose labels have the names of the sources.
        sources: Sources of maps.
        squeezed: Whether images may have another shape than the one that was annotated.

    Raises:
        ValueError: If there is no case, or a region does not fit its image.
    """
    marked, absent = [], []
    for case in regions.rows:
        (marked if regions.has_region(*case) else absent).append(case)
    if not marked:
        raise ValueError(f'{regions.file} has no image with a region')
    found = [source.find(marked, absent) for source in sources]
    notes = [note for source in sources for note in source.notes]
    common = [case for case in marked if all(case in each for each in found)]
    if not common:
        raise ValueError(
            '\n'.join([f'{regions.file}: no region belongs to an image that is scored', *notes])
        )
    if len(common) < max(sum(case in each for case in marked) for each in found):
        notes.append(f'only the {len(common)} cases that all models explain are scored')
    patients = patients_of(regions, sources)
    images = dict.fromkeys(path for path, _ in common)
    notes += _told_of_patients([*images], regions.patients(), patients)
    scored_cases, scored_labels = {*common}, {label for _, label in common}
    rows, known, sizes, blank = [], [], {}, []
    for case in tqdm(marked, 'regions', unit='case', disable=None):
        path, label = case
        is_scored = case in scored_cases
        if is_scored and path not in sizes:
            sizes[path] = _image_size(sources, path)
        # Regions of images that are not scored also tell where the finding lies on others.
        if label not in scored_labels or not (is_scored or regions.states_size(path, label)):
            continue
        size = regions.size_of(path, label, sizes.get(path))
        if is_scored and sizes[path] is not None and not squeezed:
            refuse_other_shape(path, size, sizes[path])
        mask = regions.mask(path, label, size)
        if not mask.any():
            blank.append(case)
            continue
        known.append((label, patients[path], as_grid(mask)))
        if is_scored:
            rows.append((path, label, patients[path], *size, mask.mean()))
    columns = ['path', 'label', 'patient', 'height', 'width', 'area']
    notes += _told_of_blank(blank, len(marked))
    if not rows:
        raise ValueError('\n'.join([f'{regions.file}: no region has a pixel', *notes]))
    table = pd.DataFrame(rows, columns=columns)
    empty = [
        (path, label, patients[path])
        for path, label in absent
        if label in scored_labels and all((path, label) in each for each in found)
    ]
    labels_of_all, patients_of_all, grids = zip(*known, strict=True)
    prior = PositionPrior(labels_of_all, patients_of_all, np.stack(grids))
    return RegionCases(table, pd.DataFrame(empty, columns=columns[:3]), prior, tuple(notes))


def _told_of_patients(
    images: Sequence[str], stated: Mapping[str, str], patients: Mapping[str, str]
) -> list[str]:
    unstated = [path for path in images if path not in stated]
    names = patient_forms([image_name(path) for path in unstated])
    # A source whose table names no patients has paths in their place.
    found = [image_name(patients[path]) for path in unstated]
    unknown = sum(one == other for one, other in zip(found, names, strict=True))
    if not unknown:
        return []
    return [
        f'{unknown:,} of {len(images):,} images name no patient, and each counts as one, so the '
        'intervals may be too narrow: a table of regions says it in a column Patient.'
    ]


def _told_of_blank(blank: Sequence[tuple[str, str]], count: int) -> list[str]:
    if not blank:
        return []
    path, label = blank[0]
    return [
        f'{len(blank)} of {count} regions have no pixel, such as that of {label} in {path}, and '
        'are left out'
    ]


def patients_of(regions: Regions, sources: Sequence[MapSource]) -> dict[str, str]:
    """Return the patient of each image: as the regions state it, a source, or the name."""
    patients = {path: patient_of(path) for path in regions.table['path'].unique()}
    for source in reversed(sources):
        patients |= source.patients
    patients |= regions.patients()
    # One spelling, because the name of an image that no source has is compared with others.
    return dict(zip(patients, patient_forms([*patients.values()]), strict=True))


def score_source(source: MapSource, regions: Regions, cases: RegionCases) -> list[Row]:
    """Score all kinds of maps of a source."""
    marked = cases.marked
    by_path = dict(iter(marked.groupby('path', sort=False)))
    found: dict[str, dict[int, tuple]] = {kind: {} for kind in source.kinds}
    ious = {kind: {} for kind in source.kinds}
    paths = source.order([*by_path])
    for path in tqdm(paths, source.name or 'baselines', unit='image', disable=None):
        for case in by_path[path].itertuples():
            size = Size(case.height, case.width)
            mask = regions.mask(path, case.label, size)
            for kind, placed in source.maps(path, case.label).items():
                if is_swapped(placed.cells.shape, size):
                    raise ValueError(
                        f'{source.name}: height and width are swapped in the map of {case.label} '
                        f'in {path}: it is {placed.cells.shape}, and the image {tuple(size)}'
                    )
                scores = score_map(placed.at(size), mask, thresholds_of(placed))
                ious[kind][case.Index] = scores.ious
                found[kind][case.Index] = (
                    scores.hit,
                    scores.iou,
                    scores.mass,
                    scores.average_precision,
                    scores.has_signal,
                )
    rows = []
    for kind, values in found.items():
        if not values:
            continue
        columns = [HIT, IOU, MASS, PRECISION, 'has_signal']
        table = pd.DataFrame.from_dict(values, orient='index', columns=columns)
        table = table.reindex(marked.index)
        chosen = pd.Series(np.nan, marked.index)
        for _, part in marked.loc[[*values]].groupby('label'):
            of_label = np.stack([ious[kind][place] for place in part.index])
            chosen[part.index] = iou_of_others(of_label, part['patient'].to_numpy(object))
        table[CHOSEN] = chosen
        table[DICE] = 2 * chosen / (1 + chosen)
        alarms = None
        if kind == OWN and len(cases.absent):
            pairs = zip(cases.absent['path'], cases.absent['label'], strict=True)
            alarms = np.array([source.marks(*pair) for pair in pairs], bool)
        rows.append(Row(source.row_name(kind), source.name, kind, table, alarms))
    return rows


def analyse(
    cases: RegionCases,
    rows: Sequence[Row],
    *,
    resamples: int,
    seed: int,
    scoring: Scoring = OF_MAPS,
) -> dict[str, Any]:
    """Summarise the scores of all rows.

    Returns:
        `scores`, a table with a line for each row, group, label and score: `value`, `low`, `high`,
        `cases`, `patients` and `few`; `differences`, a table with a line for each pair of rows,
        label and score; `verdicts`, sentences about each model and the position prior; `headline`,
        the label, or MEAN, of these sentences, or ''; and `counted`, the labels with enough cases.
    """
    patients = [*cases.marked['patient'], *cases.absent['patient']]
    drawn = Resamples(patients, resamples=resamples, seed=seed)
    labels = [*dict.fromkeys(cases.marked['label'])]
    half = _halves(cases.marked)
    lines: list[dict[str, Any]] = []
    samples: dict[tuple[str, str, str], np.ndarray] = {}  # (row, label, score), of everyone
    counted_of: dict[str, list[str]] = {}
    for group in (EVERYONE, SMALL, LARGE):
        kept = cases.marked if group == EVERYONE else cases.marked[half == group]
        sizes = kept['label'].value_counts()
        counted = [name for name in labels if sizes.get(name, 0) >= metrics.FEW_CASES]
        counted_of[group] = counted
        for row in rows:
            of_labels: dict[str, dict[str, np.ndarray]] = {}
            for label in labels:
                part = kept[kept['label'] == label]
                scores = _scores_of_label(row, part, cases.absent, drawn, group, scoring)
                of_labels[label] = scores
                about = {'row': row.name, 'group': group, 'label': label, 'cases': len(part)}
                about |= {'patients': part['patient'].nunique(), 'few': label not in counted}
                lines += _lines(about, scores)
            if len(counted) > 1:
                means = {
                    score: np.mean([of_labels[label][score] for label in counted], axis=0)
                    for score in of_labels[counted[0]]
                    if all(score in of_labels[label] for label in counted)
                }
                of_labels[MEAN] = means
                part = kept[kept['label'].isin(counted)]
                about = {'row': row.name, 'group': group, 'label': MEAN, 'cases': len(part)}
                about |= {'patients': part['patient'].nunique(), 'few': False}
                lines += _lines(about, means)
            if group == EVERYONE:
                samples |= {
                    (row.name, label, score): values
                    for label, scores in of_labels.items()
                    for score, values in scores.items()
                }
    counted = counted_of[EVERYONE]
    compared = [*counted, MEAN] if len(counted) > 1 else counted
    differences = _differences(rows, samples, compared, scoring)
    headline = compared[-1] if compared else ''
    return {
        'scores': pd.DataFrame(lines),
        'differences': differences,
        'verdicts': _verdicts(rows, samples, differences, headline, scoring),
        'headline': headline,
        'counted': counted,
    }


def _scores_of_label(
    row: Row,
    part: pd.DataFrame,
    absent: pd.DataFrame,
    drawn: Resamples,
    group: str,
    scoring: Scoring,
) -> dict[str, np.ndarray]:
    """Return the samples [1 + R] of each score of a row for the marked cases of a label."""
    if not len(part):
        return {}
    weights, values = drawn.weights(part['patient']), row.scores.loc[part.index]
    found = {
        score: _mean_samples(values[score].to_numpy(float), weights) for score in scoring.shown
    }
    of_label = (absent['label'] == part['label'].iloc[0]).to_numpy()
    if row.alarms is not None and group == EVERYONE and of_label.any():
        # A region that is marked where there is none has the IoU 0; neither is not counted.
        alarms = absent[row.alarms & of_label]
        ious = np.concatenate([values[IOU].to_numpy(float), np.zeros(len(alarms))])
        found[ALARMS] = _mean_samples(ious, drawn.weights([*part['patient'], *alarms['patient']]))
    return found


def _mean_samples(values: np.ndarray, weights: CaseWeights) -> np.ndarray:  # [1 + R]
    """Average the values of cases that are not NaN, with each row of weights."""
    known = np.flatnonzero(~np.isnan(values))
    weights, one_group = weights.select(known), np.zeros(len(known), int)
    counts = weights.counts.astype(float)
    sums = (weights.grouping(one_group, 1, values[known]) @ counts)[0]
    return metrics.ratio(sums, (weights.grouping(one_group, 1) @ counts)[0])


def _lines(about: Mapping[str, Any], scores: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Return a line for each score; those of few cases have no interval."""
    found = []
    for score, samples in scores.items():
        values = summary(samples[:1] if about['few'] else samples)
        found.append({**about, 'score': score, **values})
    return found


def _differences(
    rows: Sequence[Row],
    samples: Mapping[tuple[str, str, str], np.ndarray],
    labels: Sequence[str],
    scoring: Scoring,
) -> pd.DataFrame:
    """Compare each model with its baselines and with the other models.

    Holm's correction is over the labels and the mean of one pair and score.
    """
    models = [row for row in rows if row.source and row.kind == OWN]
    pairs: list[tuple[Row, Row]] = []
    for model in models:
        pairs += [(model, row) for row in rows if row.source in ('', model.source) and row != model]
    pairs += combinations(models, 2)
    lines = []
    for one, other in pairs:
        for score in scoring.compared:
            family = []
            for label in labels:
                values = samples[one.name, label, score] - samples[other.name, label, score]
                found = difference(values[None])
                family.append(
                    {
                        'row': one.name,
                        'against': other.name,
                        'label': label,
                        'score': score,
                        'difference': found['difference'],
                        **found['over_patients'],
                        'p_bootstrap': found['p'],
                    }
                )
            add_holm(family)
            lines += family
    columns = ['row', 'against', 'label', 'score', 'difference', 'low', 'high']
    return pd.DataFrame(lines, columns=[*columns, 'p_bootstrap', 'p_holm'])


def _verdicts(
    rows: Sequence[Row],
    samples: Mapping[tuple[str, str, str], np.ndarray],
    differences: pd.DataFrame,
    headline: str,
    scoring: Scoring,
) -> list[str]:
    """Say of each model whether it is above the position prior and above its own baselines."""
    if not headline:
        return [
            f'No label has {metrics.FEW_CASES} cases with a region, so there are no intervals, and '
            'nothing follows about where a model looks.'
        ]
    what = 'on average over the labels' if headline == MEAN else f'for {headline}'
    found = differences[differences['label'] == headline].set_index(['row', 'against', 'score'])
    verdicts = []
    for row in (row for row in rows if row.source and row.kind == OWN):
        others = [other.name for other in rows if other.source == row.source and other is not row]
        for other in (PRIOR, *others):
            words, parts = [], []
            for score in scoring.judged:
                line = found.loc[row.name, other, score]
                words.append(_word(line))
                values = (samples[name, headline, score][0] for name in (row.name, other))
                first, second = values
                interval = f' [{line["low"]:+.3f}, {line["high"]:+.3f}]'
                interval = '' if np.isnan(line['low']) else interval
                name = TITLES[score][0].lower() + TITLES[score][1:]
                parts.append(
                    f'{name} {first:.3f} against {second:.3f} '
                    f'(difference {line["difference"]:+.3f}{interval}, {words[-1]})'
                )
            verdict = 'is not above'
            if len({*words}) == 1 and words[0] in (ABOVE, BELOW):
                verdict = f'is {words[0]}'
            elif ABOVE in words:
                verdict = 'is in one score alone above'
            the = 'the position prior' if other == PRIOR else f'its baseline {_kind(rows, other)!r}'
            verdicts.append(f'{row.name} {verdict} {the} {what}: {"; ".join(parts)}.')
    return verdicts


def _word(line: pd.Series) -> str:
    if np.isnan(line['low']):
        return 'no interval'
    if line['p_holm'] < SIGNIFICANT and line['low'] > 0:
        return ABOVE
    return BELOW if line['p_holm'] < SIGNIFICANT and line['high'] < 0 else 'not distinguishable'


def _kind(rows: Sequence[Row], name: str) -> str:
    return next(row.kind for row in rows if row.name == name)


def _halves(marked: pd.DataFrame) -> pd.Series:
    """Return SMALL or LARGE of each case: the halves of its label by the area of the region."""
    rank = marked.groupby('label')['area'].rank(method='first')
    count = marked.groupby('label')['area'].transform('size')
    return pd.Series(np.where(rank <= count / 2, SMALL, LARGE), marked.index)


def _image_size(sources: Sequence[MapSource], path: str) -> Size | None:
    """Return the size of an image, from the first source that has it; None without one."""
    for source in sources:
        image = source.image(path)
        if image is not None:
            return size_of_image(image)
    return None


def baselines_of(cases: RegionCases, seed: int) -> Baselines:
    """Return the maps of these cases that need no model."""
    patients = dict(zip(cases.marked['path'], cases.marked['patient'], strict=True))
    return Baselines(cases.prior, patients, seed)
