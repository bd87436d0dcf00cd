"""Run a sweep of ablations or methods, follow it, and make its table and its figures.

python scripts/ablate.py run --sweep scripts/ablations/mask_ratio.yaml --output D --data-path DIR
python scripts/ablate.py status --sweep scripts/ablations/mask_ratio.yaml --output D
python scripts/ablate.py table --sweep scripts/ablations/mask_ratio.yaml --output D
python scripts/ablate.py plot --sweep scripts/ablations/mask_ratio.yaml --output D

run leaves finished runs alone and resumes half-done ones: start the same command again after a stop
or a crash. With several GPUs it runs as many at a time; --slurm submits job arrays instead. table
and plot read the run folders, or with --from the JSON file that table --save wrote.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from engine.run_record import is_finished
from sweeps.files import ROOT, SECTIONS, Job, load_sweep, only_row, plan
from sweeps.plots import plot_curves, plot_labels, plot_subsets, plot_sweep
from sweeps.results import (
    collect,
    read_collected,
    save_collected,
    sweep_markdown,
    write_sweep_table,
)
from sweeps.runner import LOGS, Runner, progress, state_of

DEFAULT_SEEDS = 3
REASONS_SHOWN = 3  # of refused runs
ARRAY_SCRIPT = ROOT / 'scripts' / 'slurm' / 'array.sbatch'


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest='command', required=True)
    parsers = {}
    for name, (function, text) in COMMANDS.items():
        parsers[name] = command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(function=function)
        add = command.add_argument
        add('--sweep', type=Path, required=True, metavar='F', help='sweep file')
        if name == 'list':
            continue
        add('--output', type=Path, required=True, metavar='D', help='root of all run folders')
        add('--seeds', type=_count, metavar='N', help=f'seeds 0 to N - 1 (default {DEFAULT_SEEDS})')
        if name in ('run', 'status'):
            add('--data-path', default='', help='root folder of the data')
            for section in ('pretrain', 'finetune'):
                add(f'--{section}-opts', nargs='+', default=[], metavar='KEY VALUE',
                    help='options put over the YAML files of this stage')  # fmt: skip
        else:
            add('--scores', nargs='+', metavar='SCORE',
                help='mean_of_five, mean_of_defined, or names of labels; plot: one')  # fmt: skip
            add('--from', dest='source', type=Path, metavar='FOLDER',
                help='read the file of table --save in place of run folders')  # fmt: skip
    _add_run(parsers['run'].add_argument)
    parsers['plot'].add_argument('--subset', metavar='S', help='of methods: share or number of '
        'labelled images of the figure by label (default: the greatest)')  # fmt: skip
    parsers['table'].add_argument(
        '--save', type=Path, metavar='FOLDER', help='also write the results as JSON'
    )
    return parser.parse_args(argv)


def _add_run(add: Callable) -> None:
    add('--row', metavar='NAME', help='only this row of the sweep')
    add('--seed', type=int, metavar='S', help='only this seed, in place of --seeds')
    add('--processes', type=_count, default=1, help='GPUs of one run (default 1)')
    add('--parallel', type=_count,
        help='runs at a time (default: as many as the GPUs allow; 1 without GPUs)')  # fmt: skip
    add('--list', action='store_true', help='only show the runs and their states')
    add('--slurm', nargs='*', metavar='OPTION', help='submit the runs that are not finished as job '
        'arrays; options of sbatch without dashes, such as partition=gpu')  # fmt: skip
    add('--job', type=int, metavar='I', help='only run number I of --list, or of --plan')
    add('--plan', type=Path, metavar='FILE', help='names of the runs that a job array was made for')


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'must be at least 1, got {text!r}')
    return int(text)


def seeds_of(args: argparse.Namespace) -> list[int]:
    if getattr(args, 'seed', None) is not None:
        return [args.seed]
    return list(range(args.seeds or DEFAULT_SEEDS))


def jobs_of(args: argparse.Namespace) -> list[Job]:
    sweep, row = load_sweep(args.sweep), getattr(args, 'row', None)
    return plan(
        only_row(sweep, row) if row else sweep,
        seeds=seeds_of(args),
        data=os.path.abspath(args.data_path) if args.data_path else '',
        output=str(args.output.absolute()),
        gpus=getattr(args, 'processes', 1),
        options={stage: getattr(args, f'{section}_opts') for stage, section in SECTIONS.items()},
        environment=dict(os.environ),
    )


def run(args: argparse.Namespace) -> int:
    if not args.data_path:
        raise ValueError('run needs --data-path, the root folder of the data')
    jobs = jobs_of(args)
    if args.list:
        for number, job in enumerate(jobs):
            print(f'{number:4d}  {job.name:<50} {": ".join(filter(None, _state(job)))}')
        return 0
    if args.slurm is not None:
        return submit(args, jobs)
    if args.job is not None:
        jobs = [_single(jobs, args)]
        if state_of(jobs[0]) == 'running':
            # The task has not done it, so an array that waits for this one must not start.
            raise ValueError(f'--job {args.job}, {jobs[0].name}, is already running elsewhere')
    logs = None if args.row else args.output / LOGS
    return Runner(jobs, _slots(args), args.processes, logs, _say).run()


def _say(line: str) -> None:
    print(f'{time.strftime("%H:%M:%S")}  {line}', flush=True)


def _single(jobs: list[Job], args: argparse.Namespace) -> Job:
    """Run number --job, by its name in the --plan that a job array was made for."""
    names = json.loads(args.plan.read_bytes()) if args.plan else [job.name for job in jobs]
    if not 0 <= args.job < len(names):
        raise ValueError(f'--job must be 0 to {len(names) - 1}, got {args.job}')
    found = [job for job in jobs if job.name == names[args.job]]
    if not found:
        raise ValueError(f'{args.sweep} no longer has the run {names[args.job]}')
    for folder in found[0].needs:
        if not is_finished(folder):
            raise ValueError(f'--job {args.job}, {found[0].name}: {folder} is not finished')
    return found[0]


def _slots(args: argparse.Namespace) -> list[dict[str, str]]:
    """Environment variables of each slot: its GPUs, or nothing on CPUs."""
    visible = os.environ.get('CUDA_VISIBLE_DEVICES')
    gpus = visible.split(',') if visible else [str(i) for i in range(torch.cuda.device_count())]
    if not torch.cuda.is_available():
        return [{}] * (args.parallel or 1)
    most, size = len(gpus) // args.processes, args.processes
    wanted = args.parallel or (1 if args.row else most)
    if not 1 <= wanted <= most:
        raise ValueError(f'{wanted} runs of {size} GPUs each: there are {len(gpus)}')
    shares = [gpus[i * size : (i + 1) * size] for i in range(wanted)]
    return [{'CUDA_VISIBLE_DEVICES': ','.join(share)} for share in shares]


def submit(args: argparse.Namespace, jobs: list[Job]) -> int:
    """Submit job arrays, each of runs that need only runs of the arrays before."""
    if shutil.which('sbatch') is None:
        raise ValueError('--slurm: there is no sbatch here: is this a login node of the cluster?')
    numbers = {job.folder: number for number, job in enumerate(jobs)}
    states = {job.folder: state_of(job) for job in jobs}
    left, held = _to_submit(jobs, states)
    folder = args.output.absolute() / LOGS
    folder.mkdir(parents=True, exist_ok=True)
    names = folder / f'plan_{time.strftime("%Y%m%d_%H%M%S")}_{os.getpid()}.json'
    names.write_text(json.dumps([job.name for job in jobs], indent=1))
    waves: dict[Path, int] = {}
    for job in left:  # what a job needs comes before it
        waves[job.folder] = 1 + max((waves.get(need, 0) for need in job.needs), default=0)
    before = ''
    for wave in sorted(set(waves.values())):
        members = [numbers[folder] for folder, number in waves.items() if number == wave]
        command = ['sbatch', '--parsable', f'--array={",".join(map(str, members))}']
        command += [f'--gpus-per-node={args.processes}'] if args.processes > 1 else []
        command += [f'--{option}' for option in args.slurm]
        if before:
            # afterany: a failed run does not hold back the others; each checks what it needs.
            command.append(f'--dependency=afterany:{before}')
        command += [str(ARRAY_SCRIPT), *_array_arguments(args), '--plan', str(names)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ValueError(f'sbatch refused ({done.stderr.strip()}): {" ".join(command)}')
        before = done.stdout.strip().partition(';')[0]
        print(f'array {before}: {len(members)} runs, such as {jobs[members[0]].name}')
    for job, need in held:
        print(f'left out: {job.name} needs {need}, which is running: submit again when it is done')
    finished, running = (list(states.values()).count(name) for name in ('finished', 'running'))
    print(f'{len(left)} runs submitted; {finished} are finished, {running} are running')
    return 0


def _to_submit(
    jobs: list[Job], states: dict[Path, str]
) -> tuple[list[Job], list[tuple[Job, Path]]]:
    """Jobs for the arrays, and jobs that wait for a run outside of them, each with that run."""
    left, held = [], []
    blocked = {folder: folder for folder, state in states.items() if state == 'running'}
    for job in jobs:  # what a job needs comes before it
        if states[job.folder] in ('finished', 'running'):
            continue
        if needs := [blocked[folder] for folder in job.needs if folder in blocked]:
            blocked[job.folder] = needs[0]
            held.append((job, needs[0]))
        else:
            left.append(job)
    return left, held


def _array_arguments(args: argparse.Namespace) -> list[str]:
    """The flags that give the tasks of an array the same plan."""
    words = ['--sweep', str(args.sweep.absolute()), '--output', str(args.output.absolute())]
    words += ['--data-path', os.path.abspath(args.data_path), '--processes', str(args.processes)]
    words += ['--seeds', str(args.seeds or DEFAULT_SEEDS)]
    words += ['--seed', str(args.seed)] if args.seed is not None else []
    words += ['--row', args.row] if args.row else []
    words += ['--pretrain-opts', *args.pretrain_opts] if args.pretrain_opts else []
    return words + (['--finetune-opts', *args.finetune_opts] if args.finetune_opts else [])


def list_rows(args: argparse.Namespace) -> int:
    sweep = load_sweep(args.sweep)
    for row in sweep.rows:
        changes = [f'{k} {v}' for stage in row.stages for k, v in row.changes(stage).items()]
        print(f'{row.name:<24} {row.run:<40} {", ".join(changes)}'.rstrip())
    return 0


def status(args: argparse.Namespace) -> int:
    """Print one line per run and one column per seed."""
    jobs, reasons, done = jobs_of(args), [], 0
    cells: dict[str, dict[int, str]] = {}
    for job in jobs:
        state, reason = _state(job)
        reasons += [reason] if reason else []
        done += state == 'finished'
        detail = f' ({progress(job)})' if state in ('running', 'stopped') else ''
        cells.setdefault(f'{SECTIONS[job.stage]} {job.run}', {})[job.seed] = state + detail
    seeds = sorted({job.seed for job in jobs})
    print(f'{load_sweep(args.sweep).title}: {done} of {len(jobs)} runs finished')
    for name, by_seed in cells.items():
        print(f'{name:<50}', *(f'seed {seed}: {by_seed[seed]:<28}' for seed in seeds))
    for reason in reasons[:REASONS_SHOWN]:
        print(f'refused: {reason}')
    if len(reasons) > REASONS_SHOWN:
        print(f'... and {len(reasons) - REASONS_SHOWN} more refused')
    return 0


def _state(job: Job) -> tuple[str, str]:
    """State of a job, and why `run` would refuse it."""
    try:
        return state_of(job), ''
    except ValueError as error:  # such as without the --pretrain-opts that it was run with
        return 'refused', str(error)


def collected(args: argparse.Namespace) -> dict:
    sweep = load_sweep(args.sweep)
    if args.source is None:
        return collect(sweep, seeds_of(args), args.output)
    if args.seeds is not None:
        raise ValueError('--seeds cannot be combined with --from, whose file has its own seeds')
    return read_collected(args.source, sweep.name)


def table(args: argparse.Namespace) -> int:
    results = collected(args)
    if args.save is not None:
        save_collected(results, args.save)
    path = write_sweep_table(results, args.output, args.scores)
    print(sweep_markdown(results, args.scores))
    print(f'{path}, {path.with_suffix(".csv")}', file=sys.stderr)
    return 0


def plot(args: argparse.Namespace) -> int:
    if len(args.scores or ()) > 1:
        raise ValueError(f'--scores: a figure shows one score, got {", ".join(args.scores)}')
    results = collected(args)
    score = args.scores[0] if args.scores else None
    figures: dict[str, Callable[[Path], None]] = {'': lambda path: plot_sweep(path, results, score)}
    if 'methods' in results:
        subsets = results['methods']['subsets']
        figures = {
            '_labels': lambda path: plot_labels(path, results, args.subset),
            f'_{subsets}': lambda path: plot_subsets(path, results, score),
        }
        if args.source is None:
            sweep = load_sweep(args.sweep)
            figures['_curves'] = lambda path: plot_curves(path, sweep, seeds_of(args), args.output)
    elif args.subset:
        raise ValueError(f'--subset needs a sweep of methods, which {args.sweep} is not')
    for name, draw in figures.items():
        for suffix in ('png', 'pdf'):
            path = args.output / f'{args.sweep.stem}{name}.{suffix}'
            draw(path)
            print(path)
    return 0


COMMANDS = {
    'run': (run, 'Run what is not finished yet.'),
    'status': (status, 'Show the progress of each run.'),
    'table': (table, 'Write the table as Markdown and CSV into the output folder.'),
    'plot': (plot, 'Write the figures into the output folder.'),
    'list': (list_rows, 'List the rows of the sweep and what they change.'),
}


def main(args: argparse.Namespace) -> int:
    try:
        return args.function(args)
    except (ValueError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2


if __name__ == '__main__':
    sys.exit(main(parse_args()))
