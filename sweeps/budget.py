"""Estimate the cost of a sweep before it starts: runs, GPU hours and disk space."""

import json
import logging
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median

from config import PROBES, Config, check_config, config_text
from data.reading import read_split, require_packed_steps
from data.records import Records
from data.splits import pretrain_records, split_patients, training_records
from engine.run_record import processes_of, read_record
from logger import read_metrics
from sweeps.files import ROOT, SECTIONS, Job, Scale, without_cache
from sweeps.runner import folder_state

EVALUATION = 1 / 3  # time of an evaluated image, as a share of the time of a training image
MOST_EPOCHS = 200  # of pre-training on few images
ERROR_SHOWN = 500  # characters of the output of a failed check
# Images per second in the log of --check (`engine.preflight`).
SPEED = re.compile(r'loader ([\d,.]+) images/s, model ([\d,.]+):')
# Options that decide how many images a run trains on.
SOURCE_KEYS = ('DATASET', 'DATA_PATH', 'FOLD')
IMAGE_KEYS = ('VIEWS', 'HOLDOUT_FRACTION', 'TRAIN_FRACTION', 'TRAIN_IMAGES', 'TASK', 'BLANK')


def describe_budget(
    jobs: Sequence[Job],
    given: Sequence[float],
    scale: Scale,
    logger: logging.Logger,
    *,
    each: bool = False,
) -> Iterator[str]:
    """Yield lines about the number of runs of a plan, their GPU hours and their disk space.

    Args:
        jobs: Runs of the plan.
        given: Images per second per GPU in pre-training and fine-tuning, or one number for both.
            If empty, the medians of the finished runs or the numbers of the scale are used.
        scale: Scale of the sweep.
        logger: Receives remarks about the data.
        each: Whether to yield state, config, options and GPU hours of every run instead of the
            disk space.

    Raises:
        ValueError: If the data cannot be read.
    """
    states = {job.folder: folder_state(job.folder) for job in jobs}
    finished = sum(state == 'finished' for state in states.values())
    yield f'{len(jobs)} runs, {finished} of them already finished'
    images, stage_hours = images_of(jobs, scale, logger), []
    for place, section in enumerate(('pretrain', 'finetune')):
        members = [job for job in jobs if SECTIONS[job.stage] == section]
        left = [job for job in members if states[job.folder] != 'finished']
        ended = [job for job in members if states[job.folder] == 'finished']
        measured = None if given else measured_rate(ended)
        stated = given or scale.images_per_second or (math.nan,)
        rate = measured or stated[min(place, len(stated) - 1)]
        if each:
            for number, job in enumerate(jobs):
                if SECTIONS[job.stage] == section:
                    hours = images[job.folder] / rate / 3600
                    yield from _describe_run(number, job, states[job.folder], hours)
        total = sum(images[job.folder] for job in left)
        hours = total / rate / 3600
        line = f'{section}: {len(left)} runs left'
        if not math.isnan(total):
            line += f', {total:,.0f} images'
        if left and not math.isnan(hours):
            source = 'measured' if measured else 'stated'
            line += f', {hours:,.1f} GPU hours at {rate:,.0f} images/s per GPU ({source})'
        yield line
        stage_hours += [hours] if left else []
    if any(map(math.isnan, images.values())):
        yield 'GPU hours: unknown, because counting the images needs --data-path'
    elif any(map(math.isnan, stage_hours)):
        yield 'GPU hours: unknown. Finish a run of each stage, or give --images-per-second (as '
        yield 'reported by --check of a main script, divided by the number of GPUs).'
    else:
        yield (
            f'GPU hours: {sum(stage_hours):,.1f}, computed, not measured (without the time of '
            'scoring and reports)'
        )
    if not each:
        yield from _describe_disk(jobs)


def _describe_run(number: int, job: Job, state: str, hours: float) -> Iterator[str]:
    """Yield two lines about a run: its state and GPU hours, and its config and options."""
    time = 'unknown' if math.isnan(hours) else f'{hours:,.2f} GPU hours'
    words = job.arguments[job.arguments.index('--opts') + 1 :]
    yield f'{number:4d}  {job.name:<50} {state:<12} {time}'
    yield f'      {os.path.relpath(job.arguments[2], ROOT)}: {" ".join(words)}'


def images_of(jobs: Sequence[Job], scale: Scale, logger: logging.Logger) -> dict[Path, float]:
    """Count the images that each run processes, with EVALUATION for each held-out image.

    Without --data-path, the counts are computed from the number of training images in the sweep
    file. They are NaN if the sweep file has no such number.
    """
    if not jobs[0].config.DATA.DATA_PATH:
        return {job.folder: _stated_images(job, scale.training_images) for job in jobs}
    read: dict[tuple, Records] = {}
    known: dict[tuple, float] = {}
    found = {}
    for job in reversed(jobs):  # fine-tuning comes first and reads the labels
        source = tuple(job.config.DATA[name] for name in SOURCE_KEYS)
        if source not in read:
            read[source] = read_split(without_cache(job.config), 'train', logger)
        records = read[source]
        key = (job.stage, *source, *(job.config.DATA[name] for name in IMAGE_KEYS))
        if key not in known:  # another seed changes the number only slightly
            train, holdout, _ = split_patients(job.config, records)
            if job.stage == 'finetune':
                held_out = EVALUATION * len(holdout) / job.config.EVAL.EVERY
                known[key] = len(training_records(job.config, train)) + held_out
            else:
                known[key] = len(pretrain_records(job.config, records)[0])
        found[job.folder] = known[key] * job.config.TRAIN.EPOCHS
    return found


def epochs_for(jobs: Sequence[Job], images_seen: int, logger: logging.Logger) -> int:
    """Return the epochs, rounded up, in which the first pre-training sees a number of images."""
    members = [job for job in jobs if SECTIONS[job.stage] == 'pretrain']
    if not members:
        raise ValueError(f'--images-seen {images_seen}: the sweep has no pre-training')
    return min(math.ceil(images_seen / _images_of_epoch(members[0], logger)), MOST_EPOCHS)


def _images_of_epoch(job: Job, logger: logging.Logger) -> float:
    return images_of([job], Scale(), logger)[job.folder] / job.config.TRAIN.EPOCHS


def describe_time(jobs: Sequence[Job], logger: logging.Logger, *, parallel: int) -> Iterator[str]:
    """Yield lines about the images of pre-training and the minutes that unfinished runs take.

    One run of each stage and batch size is started with --check and random weights. Each run is
    expected to take its number of images at the speed of this run, and once more the time of the
    whole check, for the start and the final scores.
    """
    left = [job for job in jobs if folder_state(job.folder) != 'finished']
    images, costs, minutes = images_of(jobs, Scale(), logger), {}, 0.0
    for section in ('pretrain', 'finetune'):
        seconds = []
        members = [job for job in left if SECTIONS[job.stage] == section]
        for job in members:
            key = job.stage, job.config.DATA.BATCH_SIZE
            costs[key] = costs.get(key) or _measured_cost(job)
            start, per_image = costs[key]
            seconds.append(start + images[job.folder] * per_image)
        if members:
            expected = max(max(seconds), sum(seconds) / parallel) / 60
            minutes += expected
            about = f'{section}: {len(members)} runs left, about {expected:,.1f} min'
            if section == 'pretrain':
                epochs = sorted({job.config.TRAIN.EPOCHS for job in members})
                number = _images_of_epoch(members[0], logger)
                about += f', {" or ".join(map(str, epochs))} epochs of {number:,.0f} images'
            yield about
    yield f'time: about {math.ceil(minutes)} min with {parallel} runs at a time (estimated)'


def _measured_cost(job: Job) -> tuple[float, float]:
    """Return the seconds of a --check of a job, and the seconds per image that it measured."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        command = [os.environ.get('PYTHON', sys.executable), *job.arguments]
        command += ['--check', '--pretrained', '', '--output', folder]
        done = subprocess.run(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
    seconds, text = time.monotonic() - start, ' '.join(f'{done.stdout} {done.stderr}'.split())
    found = SPEED.search(text)
    if found is None:
        raise ValueError(f'the speed of {job.name} is unknown: {text[-ERROR_SHOWN:]}')
    rates = (float(rate.replace(',', '')) for rate in found.groups())
    return seconds, sum(1 / rate for rate in rates)


def _stated_images(job: Job, totals: Mapping[str, int]) -> float:
    data, view = job.config.DATA, job.config.DATA.VIEWS
    if view not in totals:
        return math.nan
    held_out = totals[view] * data.HOLDOUT_FRACTION
    images = data.TRAIN_IMAGES or (totals[view] - held_out) * data.TRAIN_FRACTION
    if job.stage == 'finetune':
        selected_on = held_out * (1 - job.config.EVAL.INTERNAL_SHARE)
        images += EVALUATION * selected_on / job.config.EVAL.EVERY
    return images * job.config.TRAIN.EPOCHS


def measured_rate(finished: Sequence[Job]) -> float | None:
    """Return the median images per second per GPU of finished runs, or None if unknown.

    Probes do not count: they have no epochs.
    """
    rates = []
    for job in [job for job in finished if job.config.FINETUNE.MODE not in PROBES]:
        processes = processes_of(read_record(job.folder) or {})
        for record in read_metrics(job.folder / 'metrics.jsonl'):
            if record.get('images_per_second'):
                rates.append(record['images_per_second'] / processes)
    return median(rates) if rates else None


def kept_checkpoints(stage: str, config: Config) -> int:
    """Return the number of checkpoints that a finished run keeps."""
    if stage == 'finetune' and config.FINETUNE.MODE in PROBES:
        return 0
    epochs = config.TRAIN.EPOCHS
    saved = sum(e % config.SAVE_FREQ == 0 or e + 1 == epochs for e in range(epochs))
    return min(saved, config.SAVE_KEEP or saved) + (stage == 'finetune')


def check_runs(jobs: Sequence[Job]) -> None:
    """Refuse options that the models and methods of the runs or their stores do not support.

    `sweeps.files.plan` makes all checks that need neither PyTorch nor the data.

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
    for job in reversed(first.values()):
        try:
            check_config(job.config, job.stage)
        except ValueError as error:
            raise ValueError(f'{job.name}: {error}') from error


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


def _describe_disk(jobs: Sequence[Job]) -> Iterator[str]:
    sizes = checkpoint_sizes(jobs)
    counts = [kept_checkpoints(job.stage, job.config) for job in jobs]
    full = sum(size * count for size, count in zip(sizes, counts, strict=True))
    least = sum(size * min(count, 1) for size, count in zip(sizes, counts, strict=True))
    folder = next(path for path in jobs[0].folder.parents if path.is_dir())
    yield (
        f'disk: {full / 1e9:,.1f} GB of checkpoints of all runs, {least / 1e9:,.1f} GB with run '
        f'--keep best; {shutil.disk_usage(folder).free / 1e9:,.1f} GB are free'
    )
