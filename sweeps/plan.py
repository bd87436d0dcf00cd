"""The runs of a sweep: the command, the folder and the options of each, and what it needs."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from config import Config, build_parser, get_config
from sweeps.rows import MODEL_NAMES as MODEL_NAMES
from sweeps.rows import ROOT as ROOT
from sweeps.rows import SECTION_NAMES as SECTION_NAMES
from sweeps.rows import SECTIONS, STAGES, Row, Sweep, run_folder
from sweeps.rows import Published as Published
from sweeps.rows import changed_config as changed_config
from sweeps.rows import stage_title as stage_title
from sweeps.run_options import changed_options, check_encoder, expected_config, micro_batches
from sweeps.sweep_file import load_sweep as load_sweep

MAINS = {stage: f'main_{stage}.py' for stage in STAGES}
SOFT_TARGETS = 'DATA.SELF_TRAIN_PREDICTIONS'


@dataclass(frozen=True)
class Job:
    """One run of a sweep: the stage of a row under a seed.

    Attributes:
        stage: 'simmim', 'contrastive' or 'finetune'.
        run: name of its folder, without the seed.
        seed: SEED.
        folder: of the run.
        arguments: script and flags, for python or torchrun.
        config: what these flags make of the options.
        needs: folders of the runs that must be finished before.
        processes: that it is started with.
        weights: the file that it starts from, where that is of no other run; or ''.
    """

    stage: str
    run: str
    seed: int
    folder: Path
    arguments: list[str]
    config: Config = field(repr=False)
    needs: tuple[Path, ...] = ()
    processes: int = 1
    weights: str = ''

    @property
    def name(self) -> str:
        return f'{SECTIONS[self.stage]} {self.run} seed {self.seed}'


def plan(
    sweep: Sweep,
    *,
    seeds: list[int],
    data: str,
    output: str,
    gpus: int = 1,
    options: dict[str, list[str]] | None = None,
    environment: dict[str, str] | None = None,
) -> list[Job]:
    """The runs of a sweep, each once, in an order in which each comes after what it needs.

    Args:
        sweep: the sweep.
        seeds: a run per row, stage and seed.
        data: --data-path.
        output: --output.
        gpus: processes of a run; the micro-batches of an optimizer step are shared among them.
        options: by stage, KEY VALUE pairs put over the YAML file's.
        environment: where `weights` are looked up.

    Raises:
        ValueError: if a run's options cannot work, weights are not named, or GPUs do not divide
            the micro-batches.
    """
    jobs = {}
    for seed in seeds:
        for stage in STAGES:
            for row in sweep.rows:
                if stage in row.stages:
                    places = _Places(data, output, seed, gpus, options or {}, environment or {})
                    job = _job(sweep, row, stage, places)
                    jobs.setdefault(job.folder, job)
    return _in_order(list(jobs.values()))


def check_encoders(sweep: Sweep, jobs: Sequence[Job]) -> None:
    """Refuse options with which a sweep's runs could be trained, and fit no table of it.

    Args:
        sweep: the sweep.
        jobs: its plan, of which seeds are alike.

    Raises:
        ValueError: see `sweeps.run_options.check_encoder`.
    """
    by_run = {(job.stage, job.run): job for job in reversed(jobs)}
    for row in sweep.rows:
        for stage in row.stages:
            if job := by_run.pop((stage, row.run_of(stage)), None):
                expected = expected_config(sweep, row, stage)
                changes = changed_options(expected, job.config, but=('SEED',))
                check_encoder(job.folder, changes, expected, sweep)


@dataclass(frozen=True)
class _Places:
    """What all runs of a plan share."""

    data: str
    output: str
    seed: int
    gpus: int
    options: dict[str, list[str]]
    environment: dict[str, str]


def _job(sweep: Sweep, row: Row, stage: str, places: _Places) -> Job:
    folder = run_folder(places.output, stage, row, places.seed)
    arguments = [
        '--cfg', str(sweep.base(row, stage)), '--data-path', places.data,
        '--output', places.output, '--tag', folder.name,
    ]  # fmt: skip
    changes = row.changes(stage).items()
    weights = ''
    options = ['SEED', str(places.seed), *(str(x) for pair in changes for x in pair)]
    needs = []
    if stage == 'finetune' and row.pretrain is not None:
        source = _job(sweep, row, row.pretraining, places)
        needs.append(source.folder)
        arguments += ['--pretrained', str(last_checkpoint(source))]
    elif row.weights:
        if not places.environment.get(row.weights):
            raise ValueError(
                f'{row.run} starts from a checkpoint: name it by the environment variable '
                f'{row.weights}'
            )
        weights = os.path.abspath(places.environment[row.weights])
        arguments += ['--pretrained', weights]
    if stage == 'finetune' and row.learns_from:
        source = next(other for other in sweep.rows if other.run == row.learns_from)
        teacher = run_folder(places.output, stage, source, places.seed)
        needs.append(teacher)
        options += [SOFT_TARGETS, str(teacher / 'predictions_train.csv')]
    arguments += ['--opts', *options, *places.options.get(stage, [])]
    config = get_config(build_parser(stage).parse_args(arguments))
    if places.gpus > 1:
        arguments += ['--accumulation-steps', str(share_of_steps(config, places.gpus))]
        config = get_config(build_parser(stage).parse_args(arguments))
    return Job(
        stage=stage,
        run=row.run_of(stage),
        seed=places.seed,
        folder=folder,
        arguments=[MAINS[stage], *arguments],
        config=config,
        needs=tuple(needs),
        processes=places.gpus,
        weights=weights,
    )


def last_checkpoint(job: Job) -> Path:
    """The checkpoint that a pre-training ends with."""
    from checkpoint_files import checkpoint_name  # it takes torch, which writing files does not

    return job.folder / checkpoint_name(job.config.TRAIN.EPOCHS - 1)


def share_of_steps(config: Config, gpus: int) -> int:
    """Micro-batches of a process, so that the batch of an optimizer step stays what it is.

    Raises:
        ValueError: if they cannot be shared equally.
    """
    steps, size = micro_batches(config), config.DATA.BATCH_SIZE
    if steps % gpus == 0:
        return steps // gpus
    # Contrastive pre-training compares micro-batches over all GPUs: there it would be another run.
    alone = steps == 1 or config.MODEL.NAME == MODEL_NAMES['contrastive']
    ways = ['one GPU a run' if alone else f'a number of GPUs that divides {steps}']
    if size % gpus == 0:
        ways.append(f'DATA.BATCH_SIZE {size // gpus} with TRAIN.ACCUMULATION_STEPS {steps * gpus}')
    raise ValueError(
        f'{config.TAG}: {steps} micro-batch{"es" if steps > 1 else ""} of {size} images a step '
        f'cannot be shared among {gpus} GPUs: take {", or ".join(ways)}'
    )


def _in_order(jobs: list[Job]) -> list[Job]:
    """Each after what it needs, else as given."""
    folders = {job.folder for job in jobs}
    ordered, done = [], set()
    while len(ordered) < len(jobs):
        for job in jobs:
            if job.folder not in done and all(n in done for n in job.needs if n in folders):
                ordered.append(job)
                done.add(job.folder)
    return ordered
