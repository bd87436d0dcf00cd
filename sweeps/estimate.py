"""How long a sweep takes: from its finished runs, or from `--check` of one run of each kind."""

import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from statistics import median

from config import config_text, put, value_at
from engine.clock import duration
from engine.run_record import is_finished, read_record
from sweeps.files import ROOT, SOFT_TARGETS, Job, batch_counts
from sweeps.runner import launcher

# Options that differ between runs of the same length.
NO_TIME = ('SEED', 'TAG', 'OUTPUT', 'PRETRAINED', 'TRAIN.BASE_LR', 'TRAIN.WARMUP_LR')
NO_TIME += ('TRAIN.MIN_LR', SOFT_TARGETS)
FOLD_FILES = ('DATA.TRAIN_CSV', 'DATA.VALID_CSV')
READY = re.compile(r'verdict: ready, about ([\d.,]+) (s|min|h)\b')
LENGTH = re.compile(r'for ([\d,]+) epochs of ([\d,]+) steps')
SECONDS = {'s': 1, 'min': 60, 'h': 3600}


def kinds_of(jobs: Sequence[Job]) -> list[list[Job]]:
    """Group runs that take equally long: they differ in seed, fold or learning rate alone."""
    kinds: dict[tuple, list[Job]] = {}
    for job in jobs:
        config = job.config.clone()
        config.defrost()
        for key in NO_TIME + (FOLD_FILES if job.fold else ()):
            put(config, key, type(value_at(config, key))(), 'a kind of runs')
        kinds.setdefault((job.stage, job.processes, config_text(config)), []).append(job)
    return [*kinds.values()]


def estimate(
    jobs: Sequence[Job], *, parallel: int, measure: bool, say: Callable[[str], None]
) -> int:
    """Say how long the unfinished runs of a plan take.

    The time of a kind of runs is the median of those that are finished. Where there is none,
    `measure` runs `--check` of one of them.

    Args:
        jobs: Plan.
        parallel: Number of simultaneous runs.
        measure: Whether kinds of which no run is finished are measured.
        say: Function that receives each line.

    Returns:
        1 if a measured run is not ready, else 0.
    """
    total, num_left, num_unknown, code = 0.0, 0, 0, 0
    for members in kinds_of(jobs):
        finished = [job for job in members if is_finished(job.folder)]
        left = len(members) - len(finished)
        if not left:
            continue
        num_left += left
        records = [read_record(job.folder) or {} for job in finished]
        seconds, about = None, ''
        if known := [record['seconds'] for record in records if record.get('seconds')]:
            seconds, about = median(known), f'median of {len(known)} finished'
        elif measure:
            seconds, about = checked(members[0])
            code |= seconds is None
        if seconds is None:
            num_unknown += left
            about = about or 'unknown: none is finished'
        else:
            total += left * seconds
            about = f'{duration(seconds)} each ({about}), {duration(left * seconds)}'
        say(f'{left:4d} runs such as {members[0].name}: {about}')
    text = f'{num_left} of {len(jobs)} runs are left'
    if num_left > num_unknown:
        text += f': about {duration(total)} one at a time'
        text += f', at best {duration(total / parallel)} with {parallel} at once' * (parallel > 1)
    text += f'; {num_unknown} of unknown time' if num_unknown else ''
    say(f'{text}. Without final scores and reports where `--check` measured.' if measure else text)
    return code


def checked(job: Job) -> tuple[float | None, str]:
    """Return the seconds of a run by its `--check`, with its start, and the images that it sees.

    A checkpoint that does not exist yet is left out, as its values do not change the time. Without
    seconds, the text says what is wrong.
    """
    words = list(job.arguments)
    if '--pretrained' in words and not all(map(is_finished, job.needs)):
        at = words.index('--pretrained')
        del words[at : at + 2]
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:  # a run folder may hold an interrupted run
        words[words.index('--output') + 1] = folder
        process = subprocess.Popen(
            [*launcher(job), *words, '--check'],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        first = process.stdout.readline()
        start = time.monotonic() - begin
        text = ' '.join(f'{first}{process.communicate()[0]}'.split())
    found = READY.search(text)
    if not found:
        return None, f'not ready: ... {text.rpartition("ERROR ")[2][-500:]}'
    seconds = float(found[1].replace(',', '')) * SECONDS[found[2]]
    about = f'measured, with {start:.0f} s to start'
    if length := LENGTH.search(text):
        epochs, steps = (int(number.replace(',', '')) for number in length.groups())
        counts = batch_counts(job.config, {'processes': job.processes}, job.stage)
        images = steps * counts['images per step']
        about += f'; {epochs:,} epochs x {images:,} images'
    return seconds + start, about
