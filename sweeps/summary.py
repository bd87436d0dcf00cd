"""What a sweep's results come to, row by row, and what a reader of them must know."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from config_checks import PROBES
from sweeps.comparison import MEANS, SIGNIFICANT
from sweeps.plan import SECTION_NAMES, stage_title
from sweeps.results import MASK_KEYS, NUM_MASKS

Collected = Mapping[str, Any]  # see sweeps.results.collect
MISSING = 'n/a'
PUBLISHED = 'published, context only'
NOT_FOR_CLINICAL_USE = 'Not for clinical use.'
FEW_SEEDS = 10  # with fewer, a note says how little they show
RUNS_SHOWN = 6  # of those that differ from the files
SHARE_KEYS = {'DATA.TRAIN_FRACTION', 'DATA.TRAIN_IMAGES'}
L1_MARKS = {'other target': '*', 'other pictures': '†', 'coarse target': '‡'}


class Spread(NamedTuple):
    """Values of the finished seeds."""

    values: list[float]

    @property
    def mean(self) -> float | None:
        return round(float(np.mean(self.values)), 6) if self.values else None

    @property
    def sd(self) -> float | None:
        """Of the sample (n - 1); None for fewer than two."""
        return round(float(np.std(self.values, ddof=1)), 6) if len(self.values) > 1 else None


def score_spread(row: Mapping[str, Any], score: str) -> Spread:
    """A score over the seeds for which it is defined."""
    runs = [entry['finetune'] for entry in row['seeds'] if entry['finetune']['figures']]
    values = [run['figures']['scores'].get(score) for run in runs]
    return Spread([value for value in values if value is not None])


def l1_spread(row: Mapping[str, Any], predictor: str = 'after') -> Spread:
    """Held-out L1 in grey levels on the masks that all runs share; `predictor`: see `collect`.

    Empty for a row whose held-out pictures are not the reference's.
    """
    if row['other_pictures']:
        return Spread([])
    runs = [entry['pretrain'] for entry in row['seeds']]
    values = [run['figures']['reference'][predictor] for run in runs if run and run['figures']]
    return Spread([value for value in values if value is not None])


def count_finished(row: Mapping[str, Any]) -> int:
    """Seeds of which every stage is finished."""
    return sum(not unfinished_stages(entry) for entry in row['seeds'])


def unfinished_stages(entry: Mapping[str, Any]) -> list[str]:
    """What a seed lacks, such as 'fine-tuning missing'."""
    runs = {name: entry[section] for section, name in SECTION_NAMES.items()}
    return [f'{name} {run["state"]}' for name, run in runs.items()
            if run and run['state'] != 'finished']  # fmt: skip


def choose_scores(collected: Collected, scores: Sequence[str] | None = None) -> list[str]:
    """The scores of a table: those asked for, or the mean of five where all rows have it.

    Raises:
        ValueError: if there is no such score.
    """
    if scores is None:
        whole = all(
            len(score_spread(row, MEANS[0]).values) == len(score_spread(row, MEANS[1]).values)
            for row in collected['rows']
        )
        return [MEANS[0] if whole else MEANS[1]]
    known = dict.fromkeys(
        name for figures in _scored(collected) for name in (*MEANS, *figures['scores'])
    )
    for score in scores:
        if known and score not in known:
            raise ValueError(f'no score {score!r}; there are {", ".join(known)}')
    return list(scores)


def score_title(collected: Collected, score: str) -> str:
    """A score's name for readers."""
    if score == 'mean_of_five':
        return 'AUROC, mean of five'
    if score == 'mean_of_defined':
        counts = {len(f['positives']) - len(f['undefined']) for f in _scored(collected)}
        return f'AUROC, mean of {" or ".join(map(str, sorted(counts))) or "all"} labels'
    return f'AUROC, {score}'


def row_title(collected: Collected, row: Mapping[str, Any]) -> str:
    """A row's name, of methods the method; marks the reference, and comparison with another."""
    name, other, reference = row['name'], row['against'], collected['reference']
    if methods := collected.get('methods'):
        name, reference = row['method'], methods['reference']
        other = other.removesuffix(f'_{row["subset"]}')
    marks = ['reference'] if name == reference else []
    if other not in ('', reference):
        marks.append(f'against {other}')
    return f'{name} ({", ".join(marks)})' if marks else name


def subset_title(collected: Collected, subset: str) -> str:
    """A subset of the labels for readers, such as '10 %'."""
    is_share = collected['methods']['subsets'] == 'shares'
    return f'{100 * float(subset):g} %' if is_share else f'{int(subset):,} images'


def cost_spread(row: Mapping[str, Any], name: str) -> Spread:
    """`images` or `seconds` of pre-training over the seeds; see `sweeps.costs.training_cost`."""
    runs = [entry['pretrain'] for entry in row['seeds']]
    return Spread([run['cost'][name] for run in runs if run and run.get('cost')])


def has_distances(collected: Collected) -> bool:
    """Whether the sweep is over masks."""
    return any(row['average_distance_px'] is not None for row in collected['rows'])


def l1_caveat(row: Mapping[str, Any]) -> str:
    """Why a row's held-out L1 does not compare as it stands: one of L1_MARKS, or ''."""
    runs = [entry['pretrain'] for entry in row['seeds']]
    figures = [run['figures'] for run in runs if run and run['figures']]
    if any(entry['target'] != 'pixels' for entry in figures):
        return 'other target'
    if row['other_pictures']:
        return 'other pictures'
    return 'coarse target' if any(entry['target_px'] > 1 for entry in figures) else ''


def number(value: float | None, form: str) -> str:
    """With a minus sign; MISSING for None."""
    return MISSING if value is None else f'{value:{form}}'.replace('-', '−')


def notes(collected: Collected) -> list[str]:
    """What a reader must know of the table, a paragraph each."""
    found = [
        *_training_notes(collected),
        *(_method_notes(collected) if 'methods' in collected else ()),
        *_scored_notes(collected),
        *_l1_notes(collected),
        *_caveat_notes(collected),
        *_mask_notes(collected),
        *_spread_notes(collected),
        *_run_notes(collected),
        *_file_notes(collected),
    ]
    published = collected['published']
    if published:
        note = f' {published["note"]}' if published['note'] else ''
        found.append(
            f'{PUBLISHED.capitalize()}: {published["measure"]}, {published["source"]}.{note} Other '
            'data, models or protocols: not to be compared with the other columns.'
        )
    return [*found, NOT_FOR_CLINICAL_USE]


def _scored(collected: Collected) -> Iterator[Mapping[str, Any]]:
    for row in collected['rows']:
        for entry in row['seeds']:
            if entry['finetune']['figures']:
                yield entry['finetune']['figures']


def _finished_runs(collected: Collected) -> Iterator[Mapping[str, Any]]:
    for row in collected['rows']:
        for entry in row['seeds']:
            runs = (entry['pretrain'], entry['finetune'])
            yield from (run for run in runs if run and run['state'] == 'finished')


def _training_notes(collected: Collected) -> Iterator[str]:
    """What the reference trains, and what labels a row of few labels has used besides."""
    pretrain, finetune = (collected['trained'][name] for name in ('pretrain', 'finetune'))
    parts = []
    if pretrain:
        parts.append(
            f'pre-training of {_model_words(pretrain)}; {", ".join(_training_words(pretrain))}'
        )
    if finetune:
        model = _model_words(finetune)
        model = 'the same' if pretrain and model == _model_words(pretrain) else model
        mode = '' if finetune['mode'] == 'full' else f' ({finetune["mode"]})'
        parts.append(f'fine-tuning{mode} of {model}; {", ".join(_training_words(finetune))}')
    if parts:
        yield f'The reference: {". Then ".join(parts)}.'
    if finetune and SHARE_KEYS & set(collected['keys'].get('finetune', [])):
        yield from _label_notes(finetune)


def _model_words(trained: Mapping[str, Any]) -> str:
    blocks = '-'.join(map(str, trained['blocks']))
    size = f'width {trained["width"]}, blocks {blocks}, ' if trained['width'] else ''
    return (
        f'{trained["encoder"]}, {size}{trained["image_px"]} px, '
        f'{trained["channels"]} channel{_s(trained["channels"])}'
    )


def _training_words(trained: Mapping[str, Any]) -> Iterator[str]:
    if trained['mode'] not in PROBES:  # they are fitted, not trained
        yield f'{trained["epochs"]} epoch{_s(trained["epochs"])}'
        yield f'{trained["images_per_step"]} pictures a step'
        yield f'base rate {trained["base_rate"]:g} per 512'
    if trained['train_images']:
        yield f'DATA.TRAIN_IMAGES {trained["train_images"]}'
    else:
        yield f'DATA.TRAIN_FRACTION {trained["train_fraction"]:g}'


def _label_notes(trained: Mapping[str, Any]) -> Iterator[str]:
    count, fraction = trained['holdout_images'], trained['holdout_fraction']
    if not fraction:
        return
    who = f'{count} pictures' if count else f'DATA.HOLDOUT_FRACTION {fraction:g} of the patients'
    chosen = (
        'The checkpoint is chosen on valid, thresholds are'
        if trained['select_on'] == 'valid'
        else 'Checkpoint and thresholds are'
    )
    yield (
        f'{chosen} chosen on held-out patients with labels ({who}), which are beside the labelled '
        'share: a row of few labels has used more of them than its share.'
    )


def _method_notes(collected: Collected) -> Iterator[str]:
    """What methods have alike, and what their pre-training took."""
    yield (
        f'Methods are compared with {collected["methods"]["reference"]} where no other is named, '
        'on the same labels, fine-tuned for as many epochs. One pre-training a seed serves all '
        'rows of a method.'
    )
    runs = [entry['pretrain'] for row in collected['rows'] for entry in row['seeds']]
    machines = {
        ', '.join(run['provenance']['gpus'] or ['a CPU']) for run in runs if run and run['figures']
    }
    if machines:
        yield (
            'Images seen in pre-training: epochs x images. Minutes: epochs x the median epoch, '
            f'without evaluation, on {" or ".join(sorted(machines))}; means over the seeds. They '
            'compare only where runs had the machine to themselves.'
        )


def _scored_notes(collected: Collected) -> Iterator[str]:
    kinds = {}
    for f in _scored(collected):
        kind = (
            f'AUROC on {f["split"]}, {f["level"]} level, {f["views"]} views, n = {f["rows"]} '
            f'{"studies" if f["level"] == "study" else "pictures"}, {f["checkpoint"]} checkpoint'
        )
        kinds[kind] = f['undefined']
    patients = max(row['patients'] for row in collected['rows'])
    for kind, undefined in kinds.items():
        missing = f'; not scored for want of both classes: {", ".join(undefined)}'
        yield (
            kind
            + (f', {patients} patients' if patients and len(kinds) == 1 else '')
            + (missing if undefined else '')
            + '. Higher is better.'
        )


def _l1_notes(collected: Collected) -> Iterator[str]:
    spreads = {
        name: Spread([v for row in collected['rows'] for v in l1_spread(row, name).values])
        for name in ('mean', 'linear')
    }
    trivial = [
        f'{title} {_range(spreads[name].values)}'
        for name, title in (('mean', 'mean of the visible pixels'), ('linear', 'interpolation'))
        if spreads[name].values
    ]
    masks = collected['reference_masks']
    if masks is None:
        yield 'Held-out L1: none, for the masks that rows would share do not fit the pictures.'
        return
    yield (
        'Held-out L1: after pre-training, on hidden pixels of held-out training patients, under '
        f'masks that all rows share (random, units of {masks["unit_px"]} px, {masks["hidden"]} of '
        f'{masks["units"]} = {100 * masks["hidden"] / masks["units"]:.0f} %). Lower is better'
        + (f'; trivial predictors: {", ".join(trivial)}.' if trivial else '.')
    )
    varied = set(collected['keys'].get('pretrain', []))
    if 'MODEL.SIMMIM.LOSS' in varied:
        yield 'L1 is what an L1 loss minimises: a row of another loss is at a disadvantage there.'
    if MASK_KEYS & varied:
        yield 'A row whose own masks are nearest the shared ones has an advantage in held-out L1.'


def _mask_notes(collected: Collected) -> Iterator[str]:
    if has_distances(collected):
        yield (
            'AvgDist: mean distance from a hidden pixel to the nearest visible one, over '
            f'{NUM_MASKS} masks of the row. Hidden: share of the units that its masks hide, their '
            'count rounded up.'
        )


def _caveat_notes(collected: Collected) -> Iterator[str]:
    keys = ', '.join(sorted({key for row in collected['rows'] for key in row['other_pictures']}))
    texts = {
        'other target': 'It predicts normalised patches, and is told their mean and deviation: its '
        'L1 is another quantity.',
        'other pictures': f"Its held-out pictures are not the reference's ({keys}): its L1 does "
        'not compare.',
        'coarse target': 'It predicts one value for each cell of several pixels, and is scored '
        'against every pixel: its L1 cannot fall below a floor that other rows do not have.',
    }
    found = {l1_caveat(row) for row in collected['rows']}
    yield from (f'{mark} {texts[name]}' for name, mark in L1_MARKS.items() if name in found)


def _range(values: Sequence[float]) -> str:
    low, high = (number(value, '.2f') for value in (min(values), max(values)))
    return low if low == high else f'{low} to {high}'


def _spread_notes(collected: Collected) -> Iterator[str]:
    seeds, draws = collected['seeds'], collected['resamples']
    yield (
        f'Seed{_s(len(seeds))} {", ".join(map(str, seeds))}: mean ± SD of the sample over the '
        'finished ones. Differences are seed by seed, of those that both rows have finished, '
        'against the reference where no other row is named. Over seeds: 95 % interval by '
        "Student's t. Over patients: 95 % percentile interval of the difference of the seeds' "
        f'mean, over {draws["count"]} paired resamples of the patients (seed {draws["seed"]}); '
        f'{MISSING} where under 95 % of these have both classes of all labels in question.'
    )
    yield (
        'Verdict: above or below where both intervals leave 0 out and the bootstrap p-value over '
        f'patients, by Holm over the compared rows of the table, is below {SIGNIFICANT}; '
        f'inside the noise where one of these does not hold; {MISSING} where one is not known.'
    )
    if len(seeds) == 1:
        yield 'One seed shows nothing of how runs differ by chance: no difference can be told.'
    elif len(seeds) < FEW_SEEDS:
        reach = stats.t.ppf(0.975, len(seeds) - 1) / np.sqrt(len(seeds))
        yield (
            f'With {len(seeds)} seeds the interval over seeds reaches {reach:.1f} SD of the '
            'differences to either side: large differences alone can show, and that none is found '
            'is no proof that there is none.'
        )


def _s(count: int) -> str:
    return '' if count == 1 else 's'


def _run_notes(collected: Collected) -> Iterator[str]:
    for row in collected['rows']:
        lacking = [
            f'seed {entry["seed"]} ({", ".join(unfinished_stages(entry))})'
            for entry in row['seeds']
            if unfinished_stages(entry)
        ]
        if lacking:
            yield f'{row["name"]} is not finished: {"; ".join(lacking)}.'
        if row['problem']:
            yield f'{row["name"]}: {row["problem"]}.'
        if row['also_changed']:
            yield (
                f'{row["name"]} differs from the reference in more than this sweep varies: '
                f'{", ".join(row["also_changed"])}.'
            )
    codes, tables = set(), defaultdict(set)
    for run in _finished_runs(collected):
        codes.add(str(run['provenance']['code']))
        for name, checksum in run['provenance']['tables'].items():
            tables[name].add(checksum)
    if len(codes) > 1:
        yield f'The runs are of {len(codes)} versions of the code: {", ".join(sorted(codes))}.'
    for name, checksums in tables.items():
        if len(checksums) > 1:
            yield f'The runs have read {len(checksums)} different files {name}.'


def _file_notes(collected: Collected) -> Iterator[str]:
    """Where runs are not what the files of the sweep say."""
    stages = defaultdict(list)
    for part in collected['differences_from_files']:
        runs = part['runs']
        others = f' and {len(runs) - RUNS_SHOWN} more' if len(runs) > RUNS_SHOWN else ''
        where = f' in {", ".join(runs[:RUNS_SHOWN])}{others}' if runs else ''
        stages[part['stage']].append(f'{part["key"]} {part["found"]} for {part["expected"]}{where}')
    if stages:
        listed = [f'{", ".join(parts)} ({stage_title(s)})' for s, parts in stages.items()]
        yield f"The runs differ from the sweep's files in: {'; '.join(listed)}."
