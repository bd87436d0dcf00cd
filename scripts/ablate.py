"""Run a sweep of ablations or methods, and make its tables and figures.

python scripts/ablate.py run --sweep scripts/ablations/mask_ratio.yaml --output D --data-path DIR
python scripts/ablate.py run --sweep scripts/ablations/mask_ratio.yaml --output D --list
python scripts/ablate.py table --sweep scripts/ablations/mask_ratio.yaml --output D
python scripts/ablate.py plot --sweep scripts/ablations/mask_ratio.yaml --output D

`run` skips finished runs and resumes interrupted ones, so repeat the same command after a stop or a
crash. With several GPUs it starts one run per GPU. --slurm submits job arrays instead. --scale
selects a scale of the sweep file, such as `tiny`.

With `run --folds 5`, `join` first joins the predictions of the folds as ranks:

python scripts/ablate.py join --sweep F --output D --folds 5 --seeds 3 --save P

python scripts/ablate.py table --sweep F --predictions P --labels DATA/all.csv --save T

python scripts/ablate.py plot --sweep F --save T

P/seedN.parquet contains each image once for each row, and P/runs.csv the seed, minutes and commit
of each run. Other rows and seeds stay, so a sweep may run in parts. `table` also reads the folders
below P.

With --tune, rows that only differ in TRAIN.BASE_LR become one row: each fold takes the predictions
of the row with the highest mean AUROC on the training patients whom its runs did not learn from.
These patients are those outside the share of the labels (EVAL.PREDICT_TRAIN) and, with
EVAL.SELECT_ON last, the held-out patients. `join` adds the AUROCs to P/tuning.csv, and `table`
writes the choices to T/tuning.csv.

`table` compares each row with all rows in `against`. Without a sweep, `table --runs NAME=FOLDER`
compares the first of some runs with the others.
"""

import argparse
import glob
import logging
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pandas as pd

from config import NO_ENCODER
from data.tables.folds import write_folds
from data.tables.reading import require_packed_steps
from engine.run_record import is_finished
from evaluation.notices import Run
from evaluation.run_facts import DOUBTS, Known
from sweeps.curves import plot_curves, rows_with_curves
from sweeps.estimate import estimate
from sweeps.files import (
    ROOT,
    SECTIONS,
    Job,
    Sweep,
    compared_with,
    folds_folder,
    in_order,
    load_config,
    load_sweep,
    modes_of,
    note_sweep,
    only_rows,
    only_subsets,
    plan,
    sweep_of_runs,
)
from sweeps.folds import TUNING, arms_of, join, read_joined, tuned
from sweeps.groups import plot_gaps, write_groups
from sweeps.long_table import (
    MEANS,
    Scored,
    enough_resamples,
    facts_of,
    known_of_table,
    known_scores,
    lines_of_known,
    notes_about_groups,
    notes_about_labels,
    parts_of,
    read_table,
    refuse_copies,
    score_runs,
    written,
)
from sweeps.plots import (
    has_groups,
    plot_differences,
    plot_groups,
    plot_labels,
    plot_masks,
    plot_scores,
    plot_subsets,
)
from sweeps.run_scores import SPLITS, option_notes, read_runs
from sweeps.runner import (
    LOGS,
    Runner,
    describe_runs,
    epochs_for,
    finished_runs,
    state_of,
)
from sweeps.tables import (
    ABOUT_ERRORS,
    JOINED,
    about_data,
    about_runs,
    compare,
    compared_pairs,
    facts_cells,
    file_name,
    read_lines,
    score_title,
    title_of,
    write_all_scores,
    write_score,
)
from system.files import replace_file
from system.pages import listed, page_files
from system.tables import write_table
from system.tool import Paragraphs, at_least, tool

DEFAULT_SEEDS = 3
MOST_PAGES = 99
QUOTES = ('"', "'")
ARRAY_SCRIPT = ROOT / 'scripts' / 'slurm' / 'array.sbatch'
# A task of a job array receives all flags but these, so that all tasks have the same plan.
OF_THE_START = ('command', 'function', 'list', 'check', 'parallel', 'slurm', 'dry_run', 'job')


def full_path(text: str) -> Path:
    return Path(text).absolute()


positive = at_least(1)


def sweep_flags(add: Callable, *, required: bool = True) -> None:
    add('--sweep', type=full_path, required=required, metavar='F', help='sweep file')
    add('--scale', default='', metavar='S', help='scale of the sweep file')
    add('--subsets', nargs='+', default=[], metavar='S',
        help='only these shares or numbers of labelled images (default: all)')  # fmt: skip


def sweep_of(args: argparse.Namespace) -> Sweep:
    sweep = load_sweep(args.sweep, args.scale)
    sweep = only_subsets(sweep, args.subsets) if args.subsets else sweep
    return compared_with(sweep, args.against) if getattr(args, 'against', ()) else sweep


def seeds_of(args: argparse.Namespace) -> list[int]:
    if getattr(args, 'seed', None) is not None:
        return [args.seed]
    return list(range(args.seeds or sweep_of(args).seeds or DEFAULT_SEEDS))


# run ----------------------------------------------------------------------------------------------


def run_flags(add: Callable) -> None:
    sweep_flags(add)
    add('--output', type=full_path, required=True, metavar='D', help='root of all run folders')
    add('--seeds', type=positive, metavar='N',
        help=f'seeds 0 to N - 1 (default: as in the scale, or {DEFAULT_SEEDS})')  # fmt: skip
    add('--seed', type=int, metavar='S', help='only this seed, instead of --seeds')
    add('--data-path', type=full_path, help='root folder of the data')
    add('--unlabelled', type=full_path, metavar='DIR', help='folder or store of images for '
        'pre-training, instead of --data-path')  # fmt: skip
    add('--folds', type=positive, metavar='N', help='cross-validation: fine-tune N times with '
        'on the folds of scripts/folds.py, see `join`')  # fmt: skip
    add('--images-seen', type=positive, metavar='N', help='pre-train for as many epochs as show N '
        'images (at most 200), the first tenth as warm-up')  # fmt: skip
    for section in ('pretrain', 'finetune'):
        add(f'--{section}-opts', nargs='+', default=[], metavar='KEY VALUE',
            help='options that override the YAML files of this stage; also as a single text, in '
            'which a value with spaces has quotes')  # fmt: skip
    add('--row', nargs='+', metavar='NAME', help='only these rows of the sweep; with a single row '
        'the log is printed')  # fmt: skip
    add('--processes', type=positive, default=1, help='GPUs per run (default: 1)')
    add('--parallel', type=positive,
        help='number of simultaneous runs, which share GPUs if there are fewer (default: one per '
        'GPU, or 1 without GPUs)')  # fmt: skip
    add('--keep', choices=('all', 'best'), default='all', help='best: finished runs only keep '
        'the selected checkpoint, or the one that fine-tuning starts from')  # fmt: skip
    add('--list', action='store_true',
        help='only show the runs with number, state, config and options')  # fmt: skip
    add('--check', action='store_true',
        help='only estimate the time by finished runs, or --check of one of a kind')  # fmt: skip
    add('--slurm', nargs='*', metavar='OPTION', help='submit all unfinished runs as job arrays, '
        'with options of sbatch without dashes, such as partition=gpu')  # fmt: skip
    add('--dry-run', action='store_true',
        help='with --slurm: only print the commands that would submit; needs no Slurm')  # fmt: skip
    add('--job', type=int, metavar='I', help='only the run with number I of --list')


def run(args: argparse.Namespace) -> int:
    if not (args.data_path or args.list):
        raise ValueError('run needs --data-path, the root folder of the data')
    if args.dry_run and args.slurm is None:
        raise ValueError('--dry-run needs --slurm; --list shows the runs of this machine')
    jobs = jobs_of(args)
    if args.list:
        print(*describe_runs(jobs), sep='\n')
        if any(is_finished(job.folder) for job in jobs):
            print()
            estimate(jobs, parallel=args.parallel or 1, measure=False, say=print)
        return 0
    for job in jobs:  # now, not when the runs before it have ended
        require_packed_steps(job.config, job.config.DATA.DATA_PATH)
    if args.folds and not args.dry_run:
        write_tables(args)
    if args.check:
        return estimate(jobs, parallel=args.parallel or 1, measure=True, say=say)
    if args.slurm is not None:
        return submit(args, jobs)
    if args.job is not None:
        jobs = [startable(jobs, args.job)]
    note_sweep(args.output, args.sweep, args.scale)
    logs = None if len(args.row or ()) == 1 else args.output / LOGS
    return Runner(jobs, slots_of(args), logs, say, args.keep).run()


def jobs_of(args: argparse.Namespace) -> list[Job]:
    given = {
        name: split_options(getattr(args, f'{name}_opts')) for name in ('pretrain', 'finetune')
    }
    if args.images_seen:
        epochs = epochs_for(planned(args, given), args.images_seen, logging.getLogger(__name__))
        length = ['TRAIN.EPOCHS', str(epochs), 'TRAIN.WARMUP_EPOCHS', str(math.ceil(epochs / 10))]
        given['pretrain'] = length + given['pretrain']
    return planned(args, given)


def planned(args: argparse.Namespace, options: dict[str, list[str]]) -> list[Job]:
    sweep, environment = sweep_of(args), dict(os.environ)
    if args.list:  # the weights do not have to exist
        environment = {row.weights: f'${row.weights}' for row in sweep.rows} | environment
    return plan(
        only_rows(sweep, args.row) if args.row else sweep,
        seeds=seeds_of(args),
        data=str(args.data_path or ''),
        output=str(args.output),
        gpus=args.processes,
        options={stage: options[section] for stage, section in SECTIONS.items()},
        environment=environment,
        folds=args.folds or 0,
        unlabelled=str(args.unlabelled or ''),
    )


def split_options(words: list[str]) -> list[str]:
    """Split text such as 'KEY VALUE ...' where a key is expected. Values stay as they are.

    Quotes around a value are removed, and quotes inside a value are kept.
    """
    found: list[str] = []
    for word in words:
        if len(found) % 2:
            found.append(word)
            continue
        try:
            parts = shlex.split(word, posix=False)
        except ValueError as error:
            raise ValueError(f'options {word!r}: {error}') from error
        found += [part[1:-1] if part[:1] in QUOTES and part[-1:] == part[:1] else part
                  for part in parts]  # fmt: skip
    return found


def write_tables(args: argparse.Namespace) -> None:
    """Write the tables of the folds, which all runs share, unless they exist."""
    whole = argparse.Namespace(**vars(args) | {'folds': 0})
    configs = [job.config for job in jobs_of(whole) if job.stage == 'finetune']
    read = {(config.DATA.DATASET, config.DATA.TRAIN_CSV) for config in configs}
    if len(read) > 1:
        raise ValueError(f'--folds needs one DATA.DATASET and DATA.TRAIN_CSV, got {sorted(read)}')
    folder = folds_folder(args.output, args.folds)
    write_folds(configs[0], folder, args.folds)


def say(line: str) -> None:
    print(f'{time.strftime("%H:%M:%S")}  {line}', flush=True)


def startable(jobs: list[Job], number: int) -> Job:
    """Return the run with a number if it can be started now."""
    if not 0 <= number < len(jobs):
        raise ValueError(f'--job must be 0 to {len(jobs) - 1}, got {number}')
    job = jobs[number]
    for folder in job.needs:
        if not is_finished(folder):
            raise ValueError(f'--job {number}, {job.name}: {folder} is not finished')
    if state_of(job) == 'running':
        # An error keeps later arrays from starting before the run has finished.
        raise ValueError(f'--job {number}, {job.name}, is already running elsewhere')
    return job


def slots_of(args: argparse.Namespace) -> list[dict[str, str]]:
    """Return the environment variables of each slot, which select its GPUs."""
    # A separate process counts the GPUs, because this one does not import torch.
    command = [sys.executable, '-c', 'import torch; print(torch.cuda.device_count())']
    count = int(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    if not count:
        return [{}] * (args.parallel or 1)
    visible = os.environ.get('CUDA_VISIBLE_DEVICES')
    gpus = visible.split(',') if visible else [str(i) for i in range(count)]
    most, size = len(gpus) // args.processes, args.processes
    wanted = args.parallel or (1 if len(args.row or ()) == 1 else most)
    if most < 1 or (wanted > most and size > 1):
        raise ValueError(
            f'--parallel {wanted} with --processes {size} needs {wanted * size} GPUs, but there '
            f'are {len(gpus)}'
        )
    shares = [gpus[i % most * size :][:size] for i in range(wanted)]
    return [{'CUDA_VISIBLE_DEVICES': ','.join(share)} for share in shares]


def submit(args: argparse.Namespace, jobs: list[Job]) -> int:
    """Submit job arrays, or only print the commands. An array only needs runs of earlier ones."""
    job_name = f'{args.sweep.stem} in {args.output}'
    if not args.dry_run and job_name in queued():
        raise ValueError(
            f'--slurm: jobs named {job_name!r} are in the queue; submit when they have ended'
        )
    resources = []  # those of one process in the array script, times the processes
    if args.processes > 1:
        resource = r'^#SBATCH --(gpus-per-node|cpus-per-task|mem)=(\d+)(.*)'
        for key, number, unit in re.findall(resource, ARRAY_SCRIPT.read_text(), re.M):
            resources.append(f'--{key}={int(number) * args.processes}{unit}')
    plan_flags = []
    for name, value in vars(args).items():
        if name not in OF_THE_START and value not in (None, '', []):
            values = value if isinstance(value, list) else [value]
            plan_flags += [f'--{name.replace("_", "-")}', *map(str, values)]
    before, arrays, logs = '', arrays_of(jobs), args.output / LOGS
    if not args.dry_run:
        logs.mkdir(parents=True, exist_ok=True)  # Slurm does not make the folder of --output
    for number, members in enumerate(arrays, start=1):
        command = ['sbatch', '--parsable', f'--array={",".join(map(str, members))}']
        command += [f'--job-name={job_name}', f'--output={logs}/slurm-%A_%a.out', *resources]
        command += [f'--{option}' for option in args.slurm]
        if before:
            # With afterany a failed run does not stop the others. Each run checks its needs.
            command.append(f'--dependency=afterany:{before}')
        command += [str(ARRAY_SCRIPT), *plan_flags]
        if args.dry_run:
            before = f'ID_OF_ARRAY_{number}'
            # The tasks read where rows start from in the environment that sbatch passes on.
            names = sorted({row.weights for row in sweep_of(args).rows} & {*os.environ})
            given = [f'{name}={shlex.quote(os.environ[name])}' for name in names]
            print(*given, shlex.join(command))
        else:
            before = slurm(command).strip().partition(';')[0]
        print(f'array {before}: {len(members)} runs, such as {jobs[members[0]].name}')
    count = sum(map(len, arrays))
    others = len(jobs) - count
    done = 'would be submitted (--dry-run: nothing was)' if args.dry_run else 'submitted'
    print(f'{count} runs {done}; {others} have finished, are running or wait for such a run')
    return 0


def queued() -> list[str]:
    """Return the names of the user's jobs in the queue of Slurm."""
    advice = 'use a login node of the cluster, or see the commands with --dry-run'
    if shutil.which('sbatch') is None:
        raise ValueError(f'--slurm: sbatch was not found; {advice}')
    try:
        return slurm(['squeue', '--me', '--noheader', '--format=%j']).splitlines()
    except ValueError as error:  # installed, but not configured, or its controller is down
        raise ValueError(f'--slurm: no Slurm answers on this machine; {advice}: {error}') from error


def slurm(command: list[str]) -> str:
    """Run a Slurm command and return the output."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f'{command[0]} failed ({done.stderr.strip()}): {" ".join(command)}')
    return done.stdout


def arrays_of(jobs: list[Job]) -> list[list[int]]:
    """Return the run numbers of each array. Runs that wait for a running one are left out."""
    states = {job.folder: state_of(job) for job in jobs}
    waves: dict[Path, int] = {}
    arrays: dict[int, list[int]] = {}
    for number, job in enumerate(jobs):  # the needs of a job come before the job
        if any(states[need] == 'running' for need in job.needs):
            states[job.folder] = 'running'
        if states[job.folder] not in ('running', 'finished'):
            waves[job.folder] = 1 + max((waves.get(need, 0) for need in job.needs), default=0)
            arrays.setdefault(waves[job.folder], []).append(number)
    return [members for _, members in sorted(arrays.items())]


# join ---------------------------------------------------------------------------------------------


def join_flags(add: Callable) -> None:
    sweep_flags(add)
    add('--output', type=full_path, required=True, metavar='D', help='root of the run folders')
    add('--folds', type=positive, required=True, help='the same as for `run`')
    add('--seeds', type=positive, default=3, help='seeds 0 to N - 1 (default: %(default)s)')
    add('--save', type=Path, required=True, metavar='P', help='folder of the joined predictions')
    add('--tune', action='store_true', help='also write the scores that choose a rate')


def join_folds(args: argparse.Namespace) -> None:
    join(
        sweep_of(args),
        args.save,
        output=args.output,
        folds=args.folds,
        seeds=args.seeds,
        tune=args.tune,
    )


# table --------------------------------------------------------------------------------------------


def table_flags(add: Callable) -> None:
    sweep_flags(add, required=False)
    add('--output', type=full_path, metavar='D', help='root of the run folders')
    add('--predictions', type=Path, metavar='P', help='instead: folder that `join` wrote, or '
        'one with several such folders')  # fmt: skip
    add('--labels', type=Path, help='with --predictions: CSV file with the labels of all images')
    add('--runs', nargs='+', default=[], metavar='NAME=FOLDER', help='instead of a sweep: single '
        'runs; * in a folder stands for several seeds')  # fmt: skip
    add('--save', type=Path, metavar='T', help='folder of the tables (default: --output)')
    add('--seeds', type=positive, metavar='N',
        help='seeds 0 to N - 1 (default: as in the scale, or all joined ones)')  # fmt: skip
    add('--split', choices=SPLITS, default='', help='split to compare (default: the first of '
        f'{", ".join(SPLITS)} that the runs were scored on)')  # fmt: skip
    add('--scores', nargs='+', default=[], metavar='SCORE',
        help=f'{", ".join(MEANS)}, a label, or METRIC:LABEL such as f1:Edema')  # fmt: skip
    add('--columns', nargs='+', default=[], metavar='TITLE',
        help='columns of the Markdown and LaTeX tables, in order (default: all)')  # fmt: skip
    add('--row', nargs='+', default=[], metavar='NAME',
        help='only these rows, compared with each other')  # fmt: skip
    add('--against', nargs='+', default=[], metavar='METHOD',
        help='compare each row with these methods, such as metadata, instead')  # fmt: skip
    add('--tune', action='store_true', help='choose between rows that differ in TRAIN.BASE_LR')
    add('--resamples', type=at_least(0), metavar='N',
        help='resamples of the patients (default: 10000, or 200 for each comparison)')  # fmt: skip
    add('--subgroups', nargs='*', metavar='COLUMN', help='also compare the rows by sex, age, view, '
        'and these columns or those of EVAL.GROUPS, for the first score')  # fmt: skip
    add('--demographics', type=full_path, metavar='FILE', help='.csv or .xlsx file with '
        'these columns by patient (default: DATA.DEMOGRAPHICS)')  # fmt: skip


def table(args: argparse.Namespace) -> None:
    """Write the long table, and a table of each score."""
    if bool(args.runs) == bool(args.sweep) or (
        args.sweep and not (args.output or args.predictions)
    ):
        raise ValueError('table needs --sweep with --output or --predictions, or else --runs')
    if not (args.save or args.output):
        raise ValueError('table needs --save, the folder of the tables')
    if bool(args.predictions) != bool(args.labels):
        raise ValueError('--predictions needs --labels, and --labels needs --predictions')
    if args.demographics and args.subgroups is None:
        raise ValueError('--demographics needs --subgroups')
    args.save = args.save or args.output
    {True: table_of_joined, False: table_of_runs}[args.predictions is not None](args)


def table_of_joined(args: argparse.Namespace) -> None:
    """Write the tables of the joined predictions of a cross-validated sweep."""
    sweep = sweep_of(args)
    seeds = args.seeds or sweep.seeds or sys.maxsize
    replaced = {}  # row -> row that contains it if a rate is chosen
    if args.tune:
        replaced = {name: first for first, *others in arms_of(sweep) for name in others}
    if candidates := [name for name in args.row if name in replaced]:
        name = candidates[0]
        raise ValueError(f'--row: with --tune, {name} is a rate of {replaced[name]}: name that row')
    chosen = tuned(sweep, args.predictions, args.save, seeds) if args.tune else {}
    if args.row:  # tables of some rows show the baselines without an encoder of their shares, too
        shares = {row.subset for row in only_rows(sweep, args.row).rows}
        baselines = [row for row in sweep.rows if row.method in NO_ENCODER and row.subset in shares]
        sweep = only_rows(sweep, [*args.row, *(row.name for row in baselines)])
    names = [row.name for row in sweep.rows if row.name not in replaced]
    options = {'chosen': chosen, 'seeds': seeds}
    if args.subgroups is not None:
        options['groups'] = args.subgroups, str(args.demographics or '')
    runs = [*read_joined(args.predictions, args.labels, names, **options)]
    refuse_copies(runs, modes_of(sweep))
    found = {run.row for run in runs}
    if untuned := [name for name in replaced.values() if name in found and name not in chosen]:
        file = args.predictions / TUNING
        raise ValueError(f'{file} has no scores of {untuned[0]}, which `join --tune` adds')
    resamples = enough_resamples(0) if args.resamples is None else args.resamples
    drawn = score_runs(runs, args.scores, resamples=resamples, by_group=args.subgroups is not None)
    repeated, means = notes_about_labels(runs)
    # A study may have begun with another seed than 0, so the most that a row has are all.
    known = [*lines_of_known(runs, len({run.seed for run in runs}))]
    drawn = pd.concat([drawn, pd.DataFrame(known)], ignore_index=True)
    about = {'means': means, 'about_groups': groups_of_means(args, runs, drawn)}
    write_scores(args, sweep, drawn, notes=[*repeated, JOINED], protocols={}, **about)


def table_of_runs(args: argparse.Namespace) -> None:
    """Write the tables of run folders, which were scored on a split."""
    groups = None
    if args.subgroups is not None:
        groups = args.subgroups, str(args.demographics or '')
    notes = []
    if args.runs:
        runs = named_runs(args.runs)
        sweep = sweep_of_runs([*runs])
        sweep = compared_with(sweep, args.against) if args.against else sweep
    else:
        sweep = sweep_of(args)
        sweep = only_rows(sweep, args.row) if args.row else sweep
        found, missing = finished_runs(sweep, seeds_of(args), args.output)
        runs = {row: {seed: own for seed, (own,) in found[row].items()} for row in found}
        notes = [f'Not finished: {listed(missing)}.'] if missing else []
        notes += option_notes(sweep, runs)
    scores = args.scores or [*sweep.scores]
    read = read_runs(runs, sweep, split=args.split or sweep.split, groups=groups)
    refuse_copies(read.scored, modes_of(sweep))
    labels = read.scored[0].images.labels
    if args.resamples is None:
        args.resamples = enough_resamples(sum(len(row.against) for row in sweep.rows))
    wanted = [*dict.fromkeys([*scores, *MEANS[1:], *labels])]
    drawn = score_runs(
        read.scored, wanted, resamples=args.resamples, by_group=args.subgroups is not None
    )
    args.scores = scores or [MEANS[1] if MEANS[1] in known_scores(drawn) else MEANS[2]]
    known = lines_of_known(read.scored, 0 if args.runs else len(seeds_of(args)))
    drawn = pd.concat([drawn, pd.DataFrame([*read.facts, *known])], ignore_index=True)
    repeated, means = notes_about_labels(read.scored)
    notes = [f'Scored: {"; ".join(read.splits)}. Higher is better.', *notes, *repeated, '']
    about = {'means': means, 'about_groups': groups_of_means(args, read.scored, drawn)}
    write_scores(args, sweep, drawn, notes=notes, protocols=read.protocols, **about)


def groups_of_means(
    args: argparse.Namespace, runs: Sequence[Scored], drawn: pd.DataFrame
) -> list[str]:
    """Say over which labels the mean of the table of groups is, if there is one."""
    score = (args.scores or known_scores(drawn))[0]
    is_mean = args.subgroups is not None and parts_of(score)[1] in MEANS
    return notes_about_groups(runs, parts_of(score)[1]) if is_mean else []


def named_runs(words: Sequence[str]) -> dict[str, dict[int, Path]]:
    """Return the runs of NAME=FOLDER by name and seed."""
    runs: dict[str, dict[int, Path]] = {}
    for word in words:
        name, _, pattern = word.partition('=')
        for folder in map(Path, sorted(glob.glob(pattern)) or [pattern]):
            if not (name and pattern and is_finished(folder)):
                raise ValueError(f'--runs must be NAME=FOLDER of finished runs, got {word!r}')
            seed = load_config(folder).SEED
            if seed in runs.setdefault(name, {}):
                raise ValueError(f'--runs: {name} has two runs with seed {seed}')
            runs[name][seed] = folder
    return runs


def write_scores(
    args: argparse.Namespace,
    sweep: Sweep,
    drawn: pd.DataFrame,
    *,
    notes: Sequence[str],
    means: Sequence[str],
    about_groups: Sequence[str],
    protocols: Mapping[tuple[str, int], str],
) -> None:
    """Write the long table, a table of each score, one of all scores, and facts about the runs.

    The notes in `means` are only below tables of a mean over the labels with enough cases, and
    those in `about_groups` below the table of groups.

    `protocols` says what each run was scored on (`compared_pairs`). It is empty for joined
    predictions, about whose runs there are no facts.
    """
    named = [] if args.against else args.row
    pairs, others = compared_pairs(drawn, sweep, protocols=protocols, named=named)
    subsets = {row.name: row.subset for row in sweep.rows}
    resamples = max(map(len, drawn['resamples'].dropna()), default=1) - 1
    draws = f'{resamples:,} resamples of the patients, seed 0'
    scores = args.scores or known_scores(drawn)
    titles = {score: {score_title(score), score_title(score, drawn)} for score in scores}
    chosen = {*args.columns} & set().union(*titles.values())  # which are scores

    known, _ = known_of_table(drawn)

    def below(*scores: str) -> list[str]:
        has_mean = {parts_of(score)[1] for score in scores} & {MEANS[0], MEANS[2]}
        about_mean = means if has_mean else ()
        last = f'{notes[-1]}Mean ± standard deviation over seeds.'
        return [*others, *filter(None, [sweep.note]), *notes[:-1], *about_mean, last]

    def options(score: str) -> dict[str, Any]:
        columns = [title for title in args.columns if title not in chosen - titles[score]]
        return {'notes': below(score), 'draws': draws, 'columns': columns}

    tables = {score: compare(drawn, pairs, score, subsets=subsets) for score in scores}
    if undefined := [score for score, lines in tables.items() if not lines]:
        raise ValueError(f'--scores: no run has a defined {undefined[0]}')
    groups = [group for group in drawn['group'].unique() if group]
    for score, lines in tables.items():
        add_last_epoch(lines, drawn, score)
        add_warnings(lines, known)
        name = file_name(sweep.name, score)
        path = write_score(args.save, name, lines, drawn, sweep, **options(score))
        print(path.read_text('utf-8') if protocols else path)
        for end in ('subgroups', 'gaps'):  # of an earlier call
            for suffix in ('.csv', '.md', '.tex'):
                (args.save / f'{name}_{end}{suffix}').unlink(missing_ok=True)
    if len(scores) > 1:
        name = f'{sweep.name}_all_scores'
        shown = {score: tables[score] for score in scores if titles[score] & chosen} or tables
        write_all_scores(args.save, name, shown, sweep, drawn, notes=below(*shown))
    if groups:
        about = options(scores[0]) | {'notes': [*about_groups, *below()]}
        for path in write_groups(args.save, sweep, drawn, pairs, scores[0], **about):
            print(path)
    if protocols:
        facts = facts_cells(drawn, sweep)
        cells = [{k: v for k, v in line.items() if k != 'row'} for line in facts]
        about_errors = [ABOUT_ERRORS] if 'held_out_l1' in {*drawn['metric']} else []
        notes = [*about_runs(drawn, sweep), *about_errors, *about_data(drawn)]
        path = write_table(args.save, f'{sweep.name}_runs', facts, cells, notes)
        print(path.read_text('utf-8'))
    file = args.save / f'{sweep.name}_scores.csv'
    replace_file(file, written(drawn).to_csv(index=False, float_format='%.6g'))
    print(f'all files: {args.save}', file=sys.stderr)


def add_last_epoch(lines: Sequence[dict], drawn: pd.DataFrame, score: str) -> None:
    """Add the score of the last epoch to lines, as far as runs have selected another one."""
    metric, label = parts_of(score)
    last = facts_of(drawn, 'auroc_last', label).groupby('row').mean() if metric == 'auroc' else ()
    for line in lines if len(last) else ():
        line['last_epoch'] = last.get(line['row'])


def add_warnings(lines: Sequence[dict], known: Mapping[Run, Sequence[Known]]) -> None:
    """Add the doubts about the compared rows to lines, if there are any."""
    found: dict[str, set[str]] = {}
    for (row, _), parts in known.items():
        for part in parts:
            told = {doubt for doubt, sentences in part.doubts.items() if sentences}
            found[row] = found.get(row, set()) | told
    for line in lines if any(found.values()) else ():
        rows = [row for row in (line['row'], line['against']) if found.get(row)]
        doubts = {row: [doubt for doubt in DOUBTS if doubt in found[row]] for row in rows}
        line['warnings'] = '; '.join(f'{row}: {", ".join(doubts[row])}' for row in rows)


# plot ---------------------------------------------------------------------------------------------


def plot_flags(add: Callable) -> None:
    sweep_flags(add)
    add('--save', type=Path, metavar='T', help='folder that `table` wrote (default: --output)')
    add(
        '--output', type=full_path, metavar='D', help='root of the run folders, for learning curves'
    )
    add('--seeds', type=positive, metavar='N', help='seeds of the learning curves')
    add('--scores', nargs=1, default=[], metavar='SCORE', help='a score of the tables')
    add('--pairs', nargs='+', default=[], metavar='ROW/ROW', help='only these differences')
    add('--rows', nargs='+', default=[], metavar='NAME',
        help='only these rows or methods, in this order, in every figure')  # fmt: skip
    add('--figure', type=Path, metavar='FILE', help='only draw the scores, or with --pairs their '
        'differences, to this .png, .pdf or .svg file')  # fmt: skip


def plot(args: argparse.Namespace) -> None:
    """Draw the tables in a folder, and with --output the learning curves of the runs."""
    if not (args.save or args.output):
        raise ValueError('plot needs --save, the folder of the tables, or --output')
    whole, folder = sweep_of(args), args.save or args.output
    tables = [*args.scores, *whole.scores, *MEANS]
    files = [folder / f'{file_name(whole.name, score)}.csv' for score in tables]
    if not (known := [file for file in files[: len(args.scores) or None] if file.is_file()]):
        raise ValueError(f'{files[0]} does not exist: `ablate.py table` writes it (see --scores)')
    lines = read_lines(known[0], args.pairs)
    for row in lines['row'].unique():
        title_of(whole, row)  # a table of another sweep or scale is refused
    whole = without_rates(whole, folder, {*lines['row']})
    sweep = in_order(whole, args.rows) if args.rows else whole
    if args.rows:
        order = {row.name: number for number, row in enumerate(sweep.rows)}
        lines = lines[lines['row'].isin(order)]
        if lines.empty:
            raise ValueError(f'--rows: {known[0]} has none of {[*order]}')
        lines = lines.sort_values('row', key=lambda rows: rows.map(order), kind='stable')
    scores = scores_of_figures(args, folder / f'{sweep.name}_scores.csv', lines)
    if args.figure:
        draw, rows = (plot_differences, whole) if args.pairs else (plot_scores, sweep)
        print(*draw(args.figure, lines, rows, scores), sep='\n')
        return
    for name, draw in figures_of(args, sweep, lines, scores, whole).items():
        for suffix in ('png', 'pdf'):
            path = folder / f'{sweep.name}{name}.{suffix}'
            files = draw(path) if draw else []
            # An earlier figure, or its pages, would be taken for figures of these tables.
            for old in {path, *page_files(path, MOST_PAGES)}.difference(files):
                if old == path or not old.with_suffix('.csv').is_file():  # of label 'Grade 1'
                    old.unlink(missing_ok=True)
            for file in files:
                print(file)


def scores_of_figures(
    args: argparse.Namespace, path: Path, lines: pd.DataFrame
) -> pd.DataFrame | None:
    """Read a long table, or None: a table of committed results may stand without it.

    Captions tell of its runs, so it is reduced to those of the rows that are shown.
    """
    file = next(path.parent.glob(f'{path.name}*'), None)  # may be compressed
    scores = read_table(file) if file else None
    if scores is None or not (args.rows or (args.pairs and args.figure)):
        return scores
    compared = [] if args.figure and not args.pairs else lines['against']
    return scores[scores['row'].isin([*lines['row'], *compared])]


def without_rates(sweep: Sweep, folder: Path, scored: set[str]) -> Sweep:
    """Leave out the rates from which --tune chose for tables in a folder: they lack no score."""
    if not (folder / TUNING).is_file():
        return sweep
    candidates = {name for _, *others in arms_of(sweep) for name in others} - scored
    return only_rows(sweep, [row.name for row in sweep.rows if row.name not in candidates])


def figures_of(
    args: argparse.Namespace,
    sweep: Sweep,
    lines: pd.DataFrame,
    scores: pd.DataFrame | None,
    whole: Sweep,
) -> dict[str, Callable[[Path], list[Path]] | None]:
    """Return the functions that draw the figures of a sweep, by the end of their names.

    None stands for a figure that the tables do not allow. `whole` is the sweep with all its rows,
    to which those of --rows may be compared.
    """
    score, figures = lines['score'].iloc[0], {}
    if not args.pairs:
        options = {'lines': lines, 'sweep': sweep, 'scores': scores}
        figures[file_name('', score)] = partial(plot_scores, **options)
    if scores is not None:
        options = {'scores': scores, 'sweep': sweep}
        # A single label has the figures of its score already.
        has_labels = len({*known_scores(scores)} - {*MEANS}) > 1
        figures['_labels'] = partial(plot_labels, **options) if has_labels else None
        options['score'] = score
        if sweep.subsets:
            has_several = len({row.subset for row in sweep.rows if row.name in {*lines['row']}}) > 1
            figures[f'_{sweep.subsets}'] = partial(plot_subsets, **options) if has_several else None
        are_grouped = has_groups(scores, score)
        figures['_subgroups'] = partial(plot_groups, **options) if are_grouped else None
        file = (args.save or args.output) / f'{file_name(whole.name, score)}_gaps.csv'
        gaps = pd.read_csv(file, dtype={'row': str}) if file.is_file() else pd.DataFrame()
        if len(gaps):  # of the chosen rows
            gaps = gaps[gaps['row'].isin([row.name for row in sweep.rows])]
        figures['_gaps'] = partial(plot_gaps, scores=scores, sweep=sweep, gaps=gaps)
        figures['_gaps'] = figures['_gaps'] if len(gaps) else None
        masked = {row.name for row in sweep.mask_rows} & {*lines['row']}
        figures['_masks'] = partial(plot_masks, **options) if len(masked) > 1 else None
    name = f'{file_name("", score)}_differences'
    figures[name] = None
    if lines['difference'].notna().any():
        options = {'rows': [] if args.pairs else [row for row in sweep.rows if row.against]}
        options |= {'lines': lines, 'sweep': whole, 'scores': scores}
        figures[name] = partial(plot_differences, **options)
    else:
        print('no figure of differences: the table compares no rows', file=sys.stderr)
    if args.output:
        runs = {'sweep': sweep, 'seeds': seeds_of(args), 'output': args.output, 'scores': scores}
        for name, is_pretraining in (('_losses', False), ('_curves', True)):
            if rows_with_curves(sweep, seeds_of(args), args.output, pretrain=is_pretraining):
                figures[name] = partial(plot_curves, **runs, pretrain=is_pretraining)
    return figures


# the command line ---------------------------------------------------------------------------------


COMMANDS = {
    'run': (run, run_flags, 'Run all unfinished runs of a sweep.'),
    'join': (join_folds, join_flags, 'Join the predictions of the folds of a sweep.'),
    'table': (table, table_flags, 'Write tables as CSV, Markdown and LaTeX.'),
    'plot': (plot, plot_flags, 'Draw the tables.'),
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Paragraphs)
    commands = parser.add_subparsers(dest='command', required=True)
    for name, (function, add_flags, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(function=function)
        add_flags(command.add_argument)
    args, unknown = parser.parse_known_args(argv)
    if unknown:  # of the command, whose flags its usage lists
        commands.choices[args.command].error(f'unrecognized arguments: {" ".join(unknown)}')
    return args


@tool
def main(args: argparse.Namespace) -> int:
    return args.function(args) or 0


if __name__ == '__main__':
    sys.exit(main(parse_args()))
