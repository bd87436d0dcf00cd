"""Run a sweep of ablations or methods, show the progress, and write tables and figures.

python scripts/ablate.py run --sweep scripts/ablations/mask_ratio.yaml --output D --data-path DIR
python scripts/ablate.py status --sweep scripts/ablations/mask_ratio.yaml --output D
python scripts/ablate.py table --sweep scripts/ablations/mask_ratio.yaml --output D
python scripts/ablate.py plot --sweep scripts/ablations/mask_ratio.yaml --output D

`run` skips finished runs and resumes interrupted ones, so repeat the same command after a stop or a
crash. With several GPUs it starts one run per GPU. --slurm submits job arrays instead. `table` and
`plot` read the run folders, or with --from the JSON file from `table --save`. --scale selects a
scale of the sweep file, such as `tiny`.
"""

import argparse
import json
import logging
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.folds import write_folds
from engine.run_record import is_finished
from sweeps.budget import check_runs, describe_runs, epochs_for
from sweeps.files import (
    ROOT,
    SECTIONS,
    Job,
    Sweep,
    folds_folder,
    load_sweep,
    only_rows,
    only_subsets,
    plan,
    run_folder,
)
from sweeps.plots import (
    plot_curves,
    plot_labels,
    plot_losses,
    plot_masks,
    plot_subgroups,
    plot_subsets,
    plot_sweep,
)
from sweeps.results import collect, read_collected, save_collected
from sweeps.row_comparison import is_compared
from sweeps.run_scores import SPLITS
from sweeps.runner import LOGS, Runner, folder_state, progress, state_of
from sweeps.subgroup_table import collect_subgroups, write_subgroup_table
from sweeps.sweep_table import (
    choose_scores,
    known_scores,
    write_label_table,
    write_published_table,
    write_sweep_table,
)
from system.files import replace_file
from system.tool import at_least, tool

DEFAULT_SEEDS = 3
QUOTES = ('"', "'")
REASONS_SHOWN = 3  # maximum number of reasons for refused runs
ARRAY_SCRIPT = ROOT / 'scripts' / 'slurm' / 'array.sbatch'
SUBMITTED_FILE = 'submitted.json'  # in the output folder: run folder -> ID of the array task
# Flags that every task of a job array receives, so that all have the same plan.
PLAN_FLAGS = ('sweep', 'scale', 'output', 'data_path', 'processes', 'seeds', 'seed', 'row', 'keep',
              'folds', 'unlabelled', 'subsets', 'images_seen', 'pretrain_opts',
              'finetune_opts')  # fmt: skip


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest='command', required=True)
    parsers = {}
    for name, (function, text) in COMMANDS.items():
        parsers[name] = command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(function=function, row=None, seed=None, processes=1, list=False)
        add = command.add_argument
        add('--sweep', type=_path, required=True, metavar='F', help='sweep file')
        add('--scale', metavar='S', help='scale of the sweep file')
        add('--subsets', nargs='+', default=[], metavar='S',
            help='only these shares or numbers of labelled images (default: all)')  # fmt: skip
        if name == 'list':
            continue
        add('--output', type=_path, required=True, metavar='D', help='root of all run folders')
        add('--seeds', type=_count, metavar='N', help='seeds 0 to N - 1 '
            f'(default: as in the scale, or {DEFAULT_SEEDS})')  # fmt: skip
        if name in ('run', 'status'):
            add('--data-path', type=_path, help='root folder of the data')
            add('--unlabelled', type=_path, metavar='DIR', help='folder or store of images for '
                'pre-training, instead of --data-path')  # fmt: skip
            add('--folds', type=_count, metavar='N', help='cross-validation: fine-tune N times '
                'on the folds of scripts/folds.py (table: scripts/fold_table.py)')  # fmt: skip
            add('--images-seen', type=_count, metavar='N', help='pre-train for as many epochs as '
                'show N images (at most 200), the first tenth as warm-up')  # fmt: skip
            for section in ('pretrain', 'finetune'):
                add(f'--{section}-opts', nargs='+', default=[], metavar='KEY VALUE',
                    help='options that override the YAML files of this stage; also as a single '
                    'text, in which a value with spaces has quotes')  # fmt: skip
        else:
            add('--scores', nargs='+', metavar='SCORE',
                help='mean_of_five, mean_of_defined, a label, or METRIC:LABEL such as f1:Edema; '
                'plot takes one score')  # fmt: skip
            add('--split', choices=SPLITS, default='', help='split to compare (default: the first '
                f'of {", ".join(SPLITS)} that the runs were scored on)')  # fmt: skip
            add('--from', dest='source', type=Path, metavar='FOLDER',
                help='read the results of table --save instead of run folders')  # fmt: skip
    _add_run(parsers['run'].add_argument)
    parsers['plot'].add_argument('--subset', metavar='S', help='share or number of labelled '
        'images for the figure by label (default: the largest)')  # fmt: skip
    parsers['table'].add_argument('--subgroups', nargs='*', metavar='COLUMN', help='also write a '
        'table and a figure by sex, age, view, and these columns or those of EVAL.GROUPS, for the '
        'first AUROC of --scores')  # fmt: skip
    parsers['table'].add_argument('--demographics', type=_path, metavar='FILE', help='.csv or '
        '.xlsx file with these columns by patient (default: DATA.DEMOGRAPHICS)')  # fmt: skip
    parsers['table'].add_argument(
        '--save', type=Path, metavar='FOLDER', help='also write the results as JSON'
    )
    return parser.parse_args(argv)


def _add_run(add: Callable) -> None:
    add('--row', nargs='+', metavar='NAME', help='only these rows of the sweep; with a single row '
        'the log is printed')  # fmt: skip
    add('--seed', type=int, metavar='S', help='only this seed, instead of --seeds')
    add('--processes', type=_count, default=1, help='GPUs per run (default: 1)')
    add('--parallel', type=_count,
        help='number of simultaneous runs, which share GPUs if there are fewer (default: one per '
        'GPU, or 1 without GPUs)')  # fmt: skip
    add('--keep', choices=('all', 'best'), default='all', help='best: finished runs only keep '
        'the selected checkpoint, or the one that fine-tuning starts from')  # fmt: skip
    add('--list', action='store_true', help='only show the runs with state, config and options, '
        'their number, and the disk space of their checkpoints')  # fmt: skip
    add('--slurm', nargs='*', metavar='OPTION', help='submit all unfinished runs as job arrays, '
        'with options of sbatch without dashes, such as partition=gpu')  # fmt: skip
    add('--job', type=int, metavar='I', help='only the run with number I of --list')


def _path(text: str) -> Path:
    return Path(text).absolute()


_count = at_least(1)


def sweep_of(args: argparse.Namespace) -> Sweep:
    sweep = load_sweep(args.sweep, args.scale or '')
    return only_subsets(sweep, args.subsets) if args.subsets else sweep


def seeds_of(args: argparse.Namespace) -> list[int]:
    if args.seed is not None:
        return [args.seed]
    return list(range(args.seeds or sweep_of(args).scale.seeds or DEFAULT_SEEDS))


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


def run(args: argparse.Namespace) -> int:
    if not (args.data_path or args.list):
        raise ValueError('run needs --data-path, the root folder of the data')
    jobs = jobs_of(args)
    check_runs(jobs)
    if args.list:
        print(*describe_runs(jobs), sep='\n')
        return 0
    if args.folds:
        write_tables(args)
    if args.slurm is not None:
        return submit(args, jobs)
    if args.job is not None:
        jobs = [_single(jobs, args.job)]
    logs = None if len(args.row or ()) == 1 else args.output / LOGS
    return Runner(jobs, _slots(args), logs, _say, args.keep).run()


def write_tables(args: argparse.Namespace) -> None:
    """Write the tables of the folds, which all runs share, unless they exist."""
    whole = argparse.Namespace(**vars(args) | {'folds': 0})
    configs = [job.config for job in jobs_of(whole) if job.stage == 'finetune']
    read = {(config.DATA.DATASET, config.DATA.TRAIN_CSV) for config in configs}
    if len(read) > 1:
        raise ValueError(f'--folds needs one DATA.DATASET and DATA.TRAIN_CSV, got {sorted(read)}')
    folder = folds_folder(args.output, args.folds)
    write_folds(configs[0], folder, args.folds, logging.getLogger(__name__))


def _say(line: str) -> None:
    print(f'{time.strftime("%H:%M:%S")}  {line}', flush=True)


def _single(jobs: list[Job], number: int) -> Job:
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


def _slots(args: argparse.Namespace) -> list[dict[str, str]]:
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
    """Submit job arrays. The runs of each array only need runs of earlier arrays."""
    if shutil.which('sbatch') is None:
        raise ValueError('--slurm: sbatch was not found; use a login node of the cluster')
    record = args.output / SUBMITTED_FILE
    tasks = json.loads(record.read_text('utf-8')) if record.is_file() else {}
    listed = _slurm(['squeue', '--me', '--array', '--noheader', '--format=%F_%K']).split()
    arrays, left_out = _arrays(jobs, {folder for folder, task in tasks.items() if task in listed})
    before, count, logs = '', 0, args.output / LOGS
    logs.mkdir(parents=True, exist_ok=True)  # Slurm does not make the folder of --output
    for members in arrays:
        command = ['sbatch', '--parsable', f'--array={",".join(map(str, members))}']
        command.append(f'--output={logs}/slurm-%A_%a.out')
        command += _resources(args.processes) if args.processes > 1 else []
        command += [f'--{option}' for option in args.slurm]
        if before:
            # With afterany a failed run does not stop the others. Each run checks its needs.
            command.append(f'--dependency=afterany:{before}')
        command += [str(ARRAY_SCRIPT), *_plan_flags(args)]
        before = _slurm(command).strip().partition(';')[0]
        tasks |= {str(jobs[number].folder): f'{before}_{number}' for number in members}
        replace_file(record, json.dumps(tasks, indent=1))
        print(f'array {before}: {len(members)} runs, such as {jobs[members[0]].name}')
        count += len(members)
    for job, need in left_out:
        print(f'skipped {job.name}, which waits for {need}: submit again when that has finished')
    others = len(jobs) - count - len(left_out)
    print(f'{count} runs submitted, {len(left_out)} skipped, {others} finished, queued or running')
    return 0


def _slurm(command: list[str]) -> str:
    """Run a Slurm command and return the output."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f'{command[0]} failed ({done.stderr.strip()}): {" ".join(command)}')
    return done.stdout


def _resources(processes: int) -> list[str]:
    """Return sbatch options that multiply the resources of the array script by the processes."""
    lines = re.findall(
        r'^#SBATCH --(gpus-per-node|cpus-per-task|mem)=(\d+)(.*)', ARRAY_SCRIPT.read_text(), re.M
    )
    return [f'--{key}={int(number) * processes}{unit}' for key, number, unit in lines]


def _arrays(jobs: list[Job], queued: set[str]) -> tuple[list[list[int]], list[tuple[Job, Path]]]:
    """Return the run numbers of each array, and runs that wait for queued or running ones."""
    waves: dict[Path, int] = {}
    arrays: dict[int, list[int]] = {}
    running: dict[Path, Path] = {}  # run -> itself if it is running, or the run that it waits for
    left_out = []
    for number, job in enumerate(jobs):  # the needs of a job come before the job
        state = 'running' if str(job.folder) in queued else state_of(job)
        waits_for = [running[need] for need in job.needs if need in running]
        if state == 'running':
            running[job.folder] = job.folder
        elif state != 'finished' and waits_for:
            running[job.folder] = waits_for[0]
            left_out.append((job, waits_for[0]))
        elif state != 'finished':
            waves[job.folder] = 1 + max((waves.get(need, 0) for need in job.needs), default=0)
            arrays.setdefault(waves[job.folder], []).append(number)
    return [members for _, members in sorted(arrays.items())], left_out


def _plan_flags(args: argparse.Namespace) -> list[str]:
    words = []
    for name in PLAN_FLAGS:
        value = getattr(args, name)
        if value not in (None, []):
            values = value if isinstance(value, list) else [value]
            words += [f'--{name.replace("_", "-")}', *map(str, values)]
    return words


def list_rows(args: argparse.Namespace) -> int:
    for row in sweep_of(args).rows:
        changes = [f'{k} {v}' for stage in row.stages for k, v in row.options(stage).items()]
        print(f'{row.name:<24} {row.run:<40} {", ".join(changes)}'.rstrip())
    return 0


def status(args: argparse.Namespace) -> int:
    """Print number, name and state of each run."""
    jobs, reasons, done = jobs_of(args), [], 0
    for number, job in enumerate(jobs):
        state = folder_state(job.folder)
        done += state == 'finished'
        try:
            state += f' ({progress(job.folder)})' if state in ('running', 'stopped') else ''
            state_of(job)
        except ValueError as error:  # for example without the --pretrain-opts of the run
            state += ' *'
            reasons.append(str(error))
        print(f'{number:4d}  {job.name:<50} {state}')
    print(f'{done} of {len(jobs)} runs finished')
    if reasons:
        print(f'* {len(reasons)} folders contain runs with other options, which `run` refuses')
    for reason in reasons[:REASONS_SHOWN]:
        print(f'  {reason}')
    return 0


def collected(args: argparse.Namespace) -> dict:
    sweep = sweep_of(args)
    if args.source is None:
        split = args.split or sweep.split
        refuse_folds(sweep, seeds_of(args), args.output)
        return collect(sweep, seeds_of(args), args.output, split=split)
    if args.seeds is not None or args.split or args.subsets:
        raise ValueError('--seeds, --split and --subsets cannot be used with --from')
    return read_collected(args.source, sweep.name)


def refuse_folds(sweep: Sweep, seeds: Sequence[int], output: Path) -> None:
    """Raise a ValueError if there are runs of a cross-validation and no others."""
    runs = [(row, seed) for row in sweep.rows for seed in seeds]
    whole, first = (
        [folder for run in runs if (folder := run_folder(output, 'finetune', *run, fold)).is_dir()]
        for fold in ('', '0/1')
    )
    if first and not whole:
        raise ValueError(
            f'--output {output}: {first[0].name} is a fold of a cross-validation: join the folds '
            'and make their table with scripts/fold_table.py'
        )


def table(args: argparse.Namespace) -> int:
    if args.demographics and args.subgroups is None:
        raise ValueError('--demographics needs --subgroups')
    results = collected(args)
    if args.subgroups is not None:
        results = with_subgroups(args, results)
    if args.save is not None:
        save_collected(results, args.save)
    scores = args.scores or sweep_of(args).scores or None
    path = write_sweep_table(results, args.output, scores)
    print(path.read_text('utf-8'))
    paths = [path]
    if results['subsets'] and any(map(is_compared, known_scores(results))):  # a run is finished
        paths.append(write_label_table(results, args.output))
    published = results['published']
    if published and any(isinstance(value, list) for value in published['values'].values()):
        paths.append(write_published_table(results, sweep_of(args).scores, args.output))
    if args.subgroups is not None:
        paths.append(write_subgroup_table(results, args.output))
        for suffix in ('.png', '.pdf'):
            plot_subgroups(paths[-1].with_suffix(suffix), results)
    for path in paths:
        print(f'{path}, {path.with_suffix(".csv")}', file=sys.stderr)
    return 0


def with_subgroups(args: argparse.Namespace, results: dict) -> dict:
    """Return the results of a sweep with those by subgroup, unless they come from a file."""
    if args.source is not None:
        if 'subgroups' not in results:
            raise ValueError(f'--from {args.source} has no subgroups: use table --subgroups --save')
        if args.subgroups or args.demographics:
            raise ValueError('columns of --subgroups and --demographics cannot be used with --from')
        return results
    sweep = sweep_of(args)
    scores = [*filter(is_compared, choose_scores(results, args.scores or sweep.scores or None))]
    if not scores:
        raise ValueError('--subgroups compares rows by AUROC: give a mean or a label in --scores')
    found = collect_subgroups(
        *(results, sweep, args.output, scores[0]),
        further=args.subgroups,
        demographics=str(args.demographics or ''),
    )
    return results | {'subgroups': found}


def plot(args: argparse.Namespace) -> int:
    if len(args.scores or ()) > 1:
        raise ValueError(f'--scores: a figure shows only one score, got {", ".join(args.scores)}')
    results, sweep = collected(args), sweep_of(args)
    score = next(iter(args.scores or sweep.scores), None)
    figures: dict[str, Callable[[Path], None]] = {'': lambda path: plot_sweep(path, results, score)}
    if sweep.subsets:
        figures = {
            '_differences': figures[''],
            '_labels': lambda path: plot_labels(path, results, args.subset),
            f'_{sweep.subsets}': lambda path: plot_subsets(path, results, score),
        }
        if args.source is None:
            figures['_losses'] = lambda path: plot_losses(path, sweep, seeds_of(args), args.output)
        if args.source is None and any(row.pretraining for row in sweep.rows):
            figures['_curves'] = lambda path: plot_curves(path, sweep, seeds_of(args), args.output)
    elif len(sweep.mask_rows) > 1:
        figures['_masks'] = lambda path: plot_masks(path, sweep, results, score)
    for name, draw in figures.items():
        for suffix in ('png', 'pdf'):
            path = args.output / f'{sweep.name}{name}.{suffix}'
            draw(path)
            print(path)
    return 0


COMMANDS = {
    'run': (run, 'Run all unfinished runs.'),
    'status': (status, 'Show the progress of each run.'),
    'table': (table, 'Write the table as Markdown and CSV to the output folder.'),
    'plot': (plot, 'Write the figures to the output folder.'),
    'list': (list_rows, 'List the rows of the sweep with their changed options.'),
}


@tool
def main(args: argparse.Namespace) -> int:
    return args.function(args)


if __name__ == '__main__':
    sys.exit(main(parse_args()))
