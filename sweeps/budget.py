"""What a sweep will run, before it starts: its runs, their disk space, and options to refuse."""

import json
import logging
import math
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence

from config import PROBES, Config, config_text
from data.reading import read_split, require_packed_steps
from data.splits import pretrain_records
from sweeps.files import ROOT, SECTIONS, Job, without_cache
from sweeps.runner import folder_state

MOST_EPOCHS = 200  # of pre-training on few images


def describe_runs(jobs: Sequence[Job]) -> Iterator[str]:
    """Yield two lines about each run of a plan, then the number of runs and their disk space."""
    states = [folder_state(job.folder) for job in jobs]
    for number, (job, state) in enumerate(zip(jobs, states, strict=True)):
        words = job.arguments[job.arguments.index('--opts') + 1 :]
        yield f'{number:4d}  {job.name:<50} {state}'
        yield f'      {os.path.relpath(job.arguments[2], ROOT)}: {" ".join(words)}'
    counts = Counter(SECTIONS[job.stage] for job in jobs)
    parts = ', '.join(f'{count} {section}' for section, count in counts.items())
    yield f'{len(jobs)} runs ({parts}), {states.count("finished")} of them already finished'
    yield _describe_disk(jobs)


def epochs_for(jobs: Sequence[Job], images_seen: int, logger: logging.Logger) -> int:
    """Return the epochs, rounded up, in which the first pre-training sees a number of images."""
    configs = [job.config for job in jobs if SECTIONS[job.stage] == 'pretrain']
    if not configs:
        raise ValueError(f'--images-seen {images_seen}: the sweep has no pre-training')
    if not configs[0].DATA.DATA_PATH:
        raise ValueError(f'--images-seen {images_seen} needs --data-path')
    records = read_split(without_cache(configs[0]), 'train', logger)
    images = len(pretrain_records(configs[0], records)[0])
    return min(math.ceil(images_seen / images), MOST_EPOCHS)


def kept_checkpoints(stage: str, config: Config) -> int:
    """Return the number of checkpoints that a finished run keeps."""
    if stage == 'finetune' and config.FINETUNE.MODE in PROBES:
        return 0
    epochs = config.TRAIN.EPOCHS
    saved = sum(e % config.SAVE_FREQ == 0 or e + 1 == epochs for e in range(epochs))
    return min(saved, config.SAVE_KEEP or saved) + (stage == 'finetune')


def check_runs(jobs: Sequence[Job]) -> None:
    """Refuse options that the stores of the runs do not support.

    `sweeps.files.plan` makes all checks that do not need the data.

    Raises:
        ValueError: At the first problem. The message names the run and the option.
    """
    first = {(job.stage, job.run): job for job in reversed(jobs)}  # a seed changes nothing here
    for job in first.values():
        if path := job.config.DATA.DATA_PATH:
            require_packed_steps(job.config, path)
            scored = job.stage == 'finetune' and (job.config.EVAL.DATA_PATH or path)
            if scored:
                require_packed_steps(job.config, scored, 'EVAL.PREPROCESS')


def checkpoint_sizes(jobs: Sequence[Job]) -> list[int]:
    """Return the size of a checkpoint of each run in bytes."""
    models = [(job.stage, job.config.MODEL.dump(), job.config.CONTRASTIVE.dump()) for job in jobs]
    first = {model: job for model, job in zip(models[::-1], jobs[::-1], strict=True)}
    texts = [[job.stage, config_text(job.config)] for job in first.values()]
    sizes = json.loads(_with_torch('sweeps.checkpoint_size', texts).splitlines()[-1])
    sizes = dict(zip(first, sizes, strict=True))
    return [sizes[model] for model in models]


def _with_torch(module: str, entries: Sequence[Sequence[str]]) -> str:
    """Run a module in a process of its own, because this one does not import torch.

    Returns:
        The output.

    Raises:
        ValueError: If it fails. The message is the last line of its errors.
    """
    command, text = [sys.executable, '-m', module], json.dumps(entries)
    done = subprocess.run(
        command, cwd=ROOT, input=text, capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise ValueError(lines[-1] if lines else f'{module} ended with code {done.returncode}')
    return done.stdout


def _describe_disk(jobs: Sequence[Job]) -> str:
    sizes = checkpoint_sizes(jobs)
    counts = [kept_checkpoints(job.stage, job.config) for job in jobs]
    full = sum(size * count for size, count in zip(sizes, counts, strict=True))
    least = sum(size * min(count, 1) for size, count in zip(sizes, counts, strict=True))
    folder = next(path for path in jobs[0].folder.parents if path.is_dir())
    return (
        f'disk: {full / 1e9:,.1f} GB of checkpoints of all runs, {least / 1e9:,.1f} GB with run '
        f'--keep best; {shutil.disk_usage(folder).free / 1e9:,.1f} GB are free'
    )
