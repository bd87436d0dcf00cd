"""The JSON values that the tables and figures of a sweep show (`sweeps.results.collect`)."""

from typing import Any, TypedDict


class RunFigures(TypedDict, total=False):
    """Results of a run.

    Fine-tuning has all but the last entries, which are those of pre-training. Undefined scores are
    None.
    """

    split: str
    checkpoint: str  # 'selected', 'last' or 'pixels'
    level: str
    views: str
    rows: int  # number of scored studies or images
    positives: dict[str, int]
    negatives: dict[str, int] | None  # None in runs of older versions
    undefined: list[str]
    selected_on: str
    selecting_images: int
    mask_ratio: float  # EVAL.MASK_RATIO; absent if the scores use all patches
    # AUROC by label, the means (`MEANS` of `row_comparison`), and other metrics as 'metric:label'.
    scores: dict[str, float | None]
    last: dict[str, float | None]  # AUROCs of the last checkpoint; {} if it was not scored
    thresholds: dict[str, float | None]
    held_out: float  # score of the checkpoint on held-out patients, -inf if there is none
    epochs: int  # 0 for a probe
    selected_epoch: int | None  # counted from 1

    l1: float | None  # held-out L1 in grey levels under the masks that all runs share
    l1_mean: float | None  # of the mean of the visible pixels
    l1_linear: float | None  # of linear interpolation
    images: int  # number of images that were seen, or fitted by the baseline on pixels
    seconds: float


class CollectedRun(TypedDict, total=False):
    """A run: its state, results and provenance."""

    state: str  # 'finished', 'unfinished' or 'missing'
    figures: RunFigures | None
    provenance: dict[str, Any]  # `code` and `tables`
    training: dict[str, Any]  # numbers of labelled images, see `data.fingerprint`


class CollectedSeed(TypedDict):
    """The runs of a row with one seed; None for a stage that the row does not have."""

    seed: int
    pretrain: CollectedRun | None
    finetune: CollectedRun


class CollectedRow(TypedDict, total=False):
    """A row, next to one of the rows that it is compared with."""

    name: str
    run: str
    method: str
    subset: str
    pretraining: str
    l1_caveat: str
    other_images: bool  # whether its held-out images are not those of the reference
    average_distance_px: float | None
    hidden_percent: float | None
    seeds: list[CollectedSeed]
    against: str
    problem: str  # why there is no comparison or no interval over patients
    over_patients: dict[str, dict[str, float]]  # score -> {`low`, `high`} of the row's own mean
    compared: dict[str, dict[str, Any]]  # score -> result of `sweeps.row_comparison.compare_rows`


class Subgroups(TypedDict):
    """The rows of a sweep by subgroup (`sweeps.subgroup_table.collect_subgroups`)."""

    score: str
    split: str
    resamples: int
    # For each group and each row next to one that it is compared with: `row`, `against` or '',
    # `column`, `group`, numbers of `cases`, `patients` and `labels`, `few` (a class with few cases,
    # or ''), and the results of `summarise` and `compare_rows` of `sweeps.row_comparison`.
    cells: list[dict[str, Any]]


class Collected(TypedDict, total=False):
    """Everything that is shown of a sweep."""

    sweep: str
    title: str
    keys: list[str]
    reference: str
    subsets: str
    seeds: list[int]
    published: dict[str, Any] | None
    resamples: int
    differences_from_files: list[dict[str, Any]]
    rows: list[CollectedRow]
    subgroups: Subgroups  # only after `table --subgroups`
