"""The long table of a sweep (`evaluation.report.document`).

Everything that tabulates, compares or plots reads it. In memory, `resamples` holds the values of a
score in all resamples of the patients, which all rows share. In files, lines without a seed are
means over the seeds, and only they have intervals.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from config import PROBES
from data.tables.groups import is_unknown, members
from data.tables.labels import describe_same
from evaluation.cases import Cases
from evaluation.intervals import CaseWeights, Resamples
from evaluation.metrics import (
    FEW_CASES,
    METRICS,
    OF_LABEL,
    applicable,
    coverage_within_views,
    label_scores,
    labels_with_few_cases,
    least_coverage,
)
from evaluation.model_comparison import ENDS, Rows, summarise
from evaluation.notices import Run
from evaluation.report.document import COLUMNS, KEYS
from evaluation.run_facts import DOUBTS, FACTS, Known, may_be_equal
from system.pages import are_synthetic

# Labels that are means: over the labels with enough cases (`labels_of_mean`), which have two names,
# and over CheXpert's five if all of them have enough.
MEANS = ('mean', 'mean_of_five', 'mean_of_defined')
EVERYONE = ''  # group of all cases
FACT, DOUBT = 'fact', 'doubt'  # metrics of what is known of a run, whose words are the label
WANTED = 'seeds'  # metric with the number of seeds that a row should have
SYNTHETIC = 'synthetic'  # metric with the value 1 of each run that was scored on phantoms
COPY = (
    '{} with seed {} has the same predictions as {} with seed {}, which two trainings never have: '
    'one is a copy of the other. Remove it, because it would make the interval over seeds too '
    'narrow'
)
LEAST_RESAMPLES, PER_COMPARISON = 10_000, 200


class Scored(NamedTuple):
    """Images that a run has scored, with the level at which they count.

    Attributes:
        row: Row of the sweep.
        seed: Seed of the run.
        images: Cases with one row per image.
        split: Name of the split.
        level: 'image' or 'study'.
        thresholds: Threshold of each label, for metrics that need one.
        known: What is recorded of the run, or of each of its folds.
    """

    row: str
    seed: int
    images: Cases
    split: str = ''
    level: str = 'image'
    thresholds: Mapping[str, float] = {}  # noqa: RUF012
    known: Sequence[Known] = (Known(),)


def enough_resamples(num_comparisons: int) -> int:
    """Return how many resamples are needed so that a corrected p-value can be significant.

    With R resamples the smallest possible p-value is 2 / (R + 1) (`bootstrap_p`), and after Holm's
    correction it is this value times the number of comparisons.
    """
    return max(LEAST_RESAMPLES, PER_COMPARISON * num_comparisons)


def parts_of(score: str) -> tuple[str, str]:
    """Return the metric and the label of a score such as 'Edema', 'mean' or 'f1:Edema'."""
    metric, _, label = score.partition(':')
    return (metric, label) if label and metric in METRICS else ('auroc', score)


def label_title(label: str) -> str:
    """Return a label or a mean over labels for readers."""
    return {'mean_of_five': 'mean of five', 'mean_of_defined': 'mean'}.get(label, label)


def check_scores(scores: Sequence[str], labels: Sequence[str]) -> None:
    """Raise a ValueError for a score of an unknown metric or label."""
    for score in scores:
        metric, label = parts_of(score)
        if metric not in applicable(OF_LABEL) or label not in (*MEANS, *labels):
            known = [*MEANS, *labels]
            raise ValueError(f'--scores must be of {known}, or METRIC:LABEL, got {score!r}')


def score_runs(
    runs: Iterable[Scored],
    scores: Sequence[str],
    *,
    resamples: int,
    seed: int = 0,
    by_group: bool = False,
) -> pd.DataFrame:
    """Return the long table of some runs, with the numbers of cases of each label.

    Args:
        runs: Runs.
        scores: Scores, see `parts_of`; () for the mean and the AUROC of each label.
        resamples: Number of resamples of the patients.
        seed: Seed of the resamples.
        by_group: Whether each group of the images, such as 'Sex: Female', is scored, too. Means
            there are over the `shared_labels`.
    """
    runs = [*runs]
    of_groups = shared_labels(runs) if by_group else {}
    lines: list[dict[str, Any]] = []
    draws: dict[tuple[str, ...], Resamples] = {}  # rows with the same patients share them
    # The last run of each row, with its lines: baselines predict the same with every seed.
    last: dict[str, tuple[Scored, list[dict[str, Any]]]] = {}
    for run in runs:
        if run.row in last and _is_repeated(run, last[run.row][0]):
            lines += [line | {'seed': run.seed} for line in last[run.row][1]]
            continue
        lines_of_run: list[dict[str, Any]] = []
        patients = tuple(sorted(set(run.images.patient)))
        if patients not in draws:
            draws[patients] = Resamples(patients, resamples=resamples, seed=seed)
        check_scores(scores, run.images.labels)
        whole = {'row': run.row, 'seed': run.seed, 'fold': '', 'split': run.split}
        whole |= {'level': run.level, 'group': EVERYONE}
        if are_synthetic(run.images.path):
            lines_of_run.append(whole | {'label': '', 'metric': SYNTHETIC, 'value': 1})
        groups = {EVERYONE: np.full(len(run.images), True)}
        for column, values in run.images.groups.items() if by_group else ():
            groups |= {f'{column}: {name}': chosen for name, chosen in members(values).items()}
        for group, chosen in groups.items():
            cases = run.images.select(chosen).at_level(run.level)
            weights = draws[patients].weights(cases.patient)
            wanted = scores or (MEANS[0], *cases.labels)
            key = whole | {'group': group}
            means = of_groups[group] if group else cases.mean_labels()
            scored = _values(cases, wanted, means, weights, run.thresholds)
            lines_of_run += [key | line for line in scored]
            lines_of_run.append(key | {'label': '', 'metric': 'cases', 'value': len(cases)})
            counts = cases.count_classes()
            for metric in ('positives', 'negatives'):
                for label, number in counts[metric].items():
                    lines_of_run.append(key | {'label': label, 'metric': metric, 'value': number})
        last[run.row] = run, lines_of_run
        lines += lines_of_run
    return pd.DataFrame(lines, columns=[*KEYS, 'value', 'resamples'])


def shared_labels(runs: Iterable[Scored]) -> dict[str, dict[str, tuple[str, ...]]]:
    """Return the labels of each mean in each group, as `Cases.mean_labels` does for everyone.

    They are those of everyone that have enough cases in all groups of a column, so that these
    groups can be compared. Groups in which no label has enough cases do not count, nor unknown
    ones. If the others share no label, the group with the fewest labels is left out, and so on.
    Groups that are left out have no labels.
    """
    of_everyone: dict[str, tuple[str, ...]] = {}
    enough: dict[str, dict[str, set[str]]] = {}  # column -> group -> labels with enough cases
    known = set()
    for run in runs:
        if (key := (id(run.images.targets), run.level)) in known:  # rows with the same cases
            continue
        known.add(key)
        for mean, labels in run.images.at_level(run.level).mean_labels().items():
            others = of_everyone.get(mean, labels)
            of_everyone[mean] = tuple(label for label in labels if label in others)
        for column, values in run.images.groups.items():
            for name, chosen in members(values).items():
                counts = run.images.select(chosen).at_level(run.level).count_classes()
                found = {*run.images.labels} - {*labels_with_few_cases(counts)}
                of_column = enough.setdefault(column, {})
                of_column[name] = of_column.get(name, found) & found
    shared: dict[str, dict[str, tuple[str, ...]]] = {}
    for column, groups in enough.items():
        for mean, labels in of_everyone.items():
            shown = {name: found & {*labels} for name, found in groups.items()}
            shown = {name: found for name, found in shown.items() if found and not is_unknown(name)}
            while shown and not set.intersection(*shown.values()):
                del shown[min(shown, key=lambda name: len(shown[name]))]
            common = set.intersection(*shown.values()) if shown else set()
            for name, found in groups.items():
                in_mean = common if common <= found else ()
                of_group = shared.setdefault(f'{column}: {name}', {})
                of_group[mean] = tuple(label for label in labels if label in in_mean)
    return shared


def refuse_copies(runs: Iterable[Scored], modes: Mapping[str, str]) -> None:
    """Refuse predictions that two seeds share, which trainings never do: one is a copy.

    Probes of the same weights do. `modes` has FINETUNE.MODE of rows of which it is not recorded.

    Raises:
        ValueError: If there are such predictions. The message names both runs.
    """
    first: dict[bytes, Scored] = {}
    for run in runs:
        values = run.images.probabilities[np.argsort(run.images.path.astype(str))]
        if (values == values[:1]).all():  # of a model that tells no cases apart
            continue
        digest = hashlib.sha256(np.ascontiguousarray(values)).digest()
        other = first.setdefault(digest, run)
        of_rows = {modes.get(row, 'full') for row in (run.row, other.row)}
        mode = of_rows.pop() if of_rows <= {*PROBES} else 'full'
        if other.seed != run.seed and not may_be_equal(run.known, other.known, mode):
            raise ValueError(COPY.format(run.row, run.seed, other.row, other.seed))


def lines_of_known(runs: Iterable[Scored], wanted: int = 0) -> Iterator[dict[str, Any]]:
    """Yield the lines of the long table about what is known of each run.

    `wanted` is the number of seeds that each row should have; 0 if that is unknown.
    """
    for run in runs:
        key = {'row': run.row, 'seed': run.seed, 'split': run.split, 'level': run.level}
        key['group'] = EVERYONE
        if wanted:
            yield key | {'fold': '', 'label': '', 'metric': WANTED, 'value': wanted}
        for number, (facts, doubts) in enumerate(run.known):
            fold = key | {'fold': str(number) if len(run.known) > 1 else ''}
            for fact, value in facts.items():
                yield fold | {'label': f'{fact}: {value}', 'metric': FACT, 'value': 1}
            for doubt, lines in doubts.items():
                for line in lines or ['']:  # without a sentence, nothing was found
                    label = f'{doubt}: {line}'
                    yield fold | {'label': label, 'metric': DOUBT, 'value': int(bool(line))}


def known_of_table(table: pd.DataFrame) -> tuple[dict[Run, list[Known]], int]:
    """Return what a long table knows of its runs, and how many seeds each row should have."""
    of_runs = table[table['seed'].astype(str) != '']
    found: dict[Run, dict[str, Known]] = {
        (row, str(seed)): {} for row, seed in zip(of_runs['row'], of_runs['seed'], strict=True)
    }
    for line in of_runs[of_runs['metric'].isin([FACT, DOUBT])].to_dict('records'):
        of_run = found[line['row'], str(line['seed'])]
        facts, doubts = of_run.setdefault(line['fold'], Known({}, {}))
        name, _, words = line['label'].partition(': ')
        if line['metric'] == FACT and name in FACTS:
            facts[name] = words
        elif line['metric'] == DOUBT and name in DOUBTS:
            doubts.setdefault(name, []).extend([words] if words else [])
    wanted = of_runs.loc[of_runs['metric'] == WANTED, 'value']
    known = {run: [*folds.values()] or [Known()] for run, folds in found.items()}
    return known, int(wanted.max()) if len(wanted) else 0


def _is_repeated(run: Scored, other: Scored) -> bool:
    """Return whether two runs have the same predictions of the same cases."""
    a, b = run.images, other.images
    return (
        run._replace(images=b, seed=other.seed, known=other.known) == other
        and np.array_equal(a.path, b.path)
        and np.array_equal(a.targets, b.targets, equal_nan=True)
        and np.array_equal(a.probabilities, b.probabilities, equal_nan=True)
    )


def notes_about_labels(runs: Sequence[Scored]) -> tuple[list[str], list[str]]:
    """Say which labels are one label under several names, and over which labels a mean is."""
    cases = [run.images.at_level(run.level) for run in runs]
    found = dict.fromkeys(describe_same(each.count_classes()['same_as']) for each in cases)
    means = {}  # labels of a mean -> whether they have enough cases
    for each in cases:
        few = labels_with_few_cases(each.count_classes())
        labels = each.mean_labels()['labels']
        if len(each.labels) == 1 and not few:  # the score has the name of the label
            continue
        means[labels] = not {*labels} & {*few}
    return [f'{sentence}.' for sentence in found if sentence], [
        f'The mean is over {len(labels)} label{"s" * (len(labels) != 1)} with '
        f'{"at least" if enough else "fewer than"} {FEW_CASES} cases of '
        f'{"each class" if enough else "a class, because no label has more"}: {", ".join(labels)}.'
        for labels, enough in means.items()
        if labels
    ]


def notes_about_groups(runs: Sequence[Scored], label: str) -> list[str]:
    """Say over which labels the mean `label` is in the groups of each column of the runs."""
    mean = 'five' if label == MEANS[1] else 'labels'
    columns: dict[str, tuple[str, ...]] = {}
    for group, labels in shared_labels(runs).items():
        column, _, _ = group.partition(': ')
        columns[column] = columns.get(column) or labels[mean]
    return [
        f'{column}: the mean is over the {len(labels)} label{"s" * (len(labels) != 1)} with at '
        f'least {FEW_CASES} cases of each class in all groups that are shown: {", ".join(labels)}.'
        for column, labels in columns.items()
        if labels
    ]


def rows_of(table: pd.DataFrame, score: str, group: str = EVERYONE) -> Rows:
    """Return the values of a score in all resamples, for each row and seed."""
    metric, label = parts_of(score)
    chosen = (table['metric'] == metric) & (table['label'] == label) & (table['group'] == group)
    return {
        row: pd.DataFrame(np.stack(runs['resamples']), index=runs['seed'])
        for row, runs in table[chosen].groupby('row', sort=False)
    }


def known_scores(table: pd.DataFrame) -> list[str]:
    """Return the labels and means whose AUROC is in the table."""
    chosen = (table['metric'] == 'auroc') & (table['group'] == EVERYONE)
    return [*table.loc[chosen, 'label'].unique()]


def is_synthetic(table: pd.DataFrame | None) -> bool:
    """Return whether a long table, if it is known, has scores of synthetic X-rays."""
    return table is not None and bool((table['metric'] == SYNTHETIC).any())


def facts_of(table: pd.DataFrame, metric: str, label: str = '', group: str = EVERYONE) -> pd.Series:
    """Return a fact about each run, such as its minutes, by row and seed."""
    chosen = (table['metric'] == metric) & (table['label'] == label) & (table['group'] == group)
    return table[chosen].set_index(['row', 'seed'])['value']


def has_few_cases(table: pd.DataFrame, label: str, group: str = EVERYONE) -> bool:
    """Return whether a label, or each label of a mean, has fewer than FEW_CASES of a class."""
    chosen = table['metric'].isin(['positives', 'negatives']) & (table['group'] == group)
    counts = table[chosen & ((table['label'] == label) | (label in MEANS))]
    return bool(counts.groupby('label')['value'].min().max() < FEW_CASES)


def written(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table as it is written, with the means over the seeds and their intervals."""
    lines = []
    scored = table[table['resamples'].notna()]
    where = ['row', 'split', 'level', 'group', 'label', 'metric']
    for key, runs in scored.groupby(where, sort=False):
        summary = summarise(pd.DataFrame(np.stack(runs['resamples'])))
        line = {'seed': '', 'fold': '', **dict(zip(where, key, strict=True))}
        for resample in ('', *ENDS):
            lines.append(line | {'resample': resample, 'value': summary[resample or 'value']})
    means = pd.DataFrame(lines, columns=COLUMNS)
    runs = table[[*KEYS, 'value']].astype({'seed': str})
    return pd.concat([runs.assign(resample=''), means])


def read_table(path: Any) -> pd.DataFrame:
    """Read a long table. Everything but the value is text.

    Raises:
        ValueError: If it cannot be read or lacks a column.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)[COLUMNS]
        # As pandas reads it, a number may lose its last bit, and a score may equal its threshold.
        return table.assign(value=table['value'].replace('', 'nan').map(float))
    except (ValueError, KeyError) as error:
        raise ValueError(f'{path} is no long table of scores: {error}') from error


def _values(
    cases: Cases,
    scores: Sequence[str],
    means: Mapping[str, Sequence[str]],
    weights: CaseWeights,
    thresholds: Mapping[str, float],
) -> Iterator[dict[str, Any]]:
    """Yield label, metric, value and resamples of each score that is defined.

    `means` has the labels of each mean, as `Cases.mean_labels` names them. Each mean is followed by
    its number of labels, as the metric 'auroc_labels' and so on, and a score within views by its
    `coverage`, as 'auroc_within_views_cases' and 'auroc_within_views_of'.
    """
    defined = cases.has_both_classes()
    members: dict[str, list[str]] = {}  # labels of each score
    for score in scores:
        label = parts_of(score)[1]
        if label in MEANS:
            members[score] = [*means['five' if label == 'mean_of_five' else 'labels']]
        else:
            members[score] = [label] if defined[cases.labels.index(label)] else []
    metrics: dict[str, dict[str, None]] = {}  # metrics of each label
    for score, labels in members.items():
        for label in labels:
            metrics.setdefault(label, {})[parts_of(score)[0]] = None
    views = cases.views()
    found = {
        label: label_scores(
            *cases.of_label(label),
            threshold=thresholds.get(label),
            weights=weights,
            names=names,
            views=views,
        )
        for label, names in metrics.items()
    }
    for score, labels in members.items():
        metric, name = parts_of(score)
        # A rare label may lack a threshold.
        known = [label for label in labels if not np.isnan(found[label][metric][0])]
        if known:
            values = np.mean([found[label][metric] for label in known], axis=0)
            yield {'label': name, 'metric': metric, 'value': values[0], 'resamples': values}
            if name in MEANS:
                yield {'label': name, 'metric': f'{metric}_labels', 'value': len(known)}
            if 'views' in METRICS[metric].needs:
                targets = (cases.of_label(label)[1] for label in known)
                fewest = least_coverage(coverage_within_views(target, views) for target in targets)
                for key, number in fewest.items():
                    yield {'label': name, 'metric': f'{metric}_{key}', 'value': number}
