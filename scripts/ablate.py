"""Run a sweep of ablations or methods, follow it, and make its table and its figure.

python scripts/ablate.py run --sweep scripts/ablations/mask_ratio.yaml --output D --data-path DIR
python scripts/ablate.py status --sweep scripts/ablations/mask_ratio.yaml --output D
python scripts/ablate.py table --sweep scripts/ablations/mask_ratio.yaml --output D
python scripts/ablate.py plot --sweep scripts/ablations/mask_ratio.yaml --output D

run leaves finished runs alone and goes on with half-done ones: started again after a stop, a crash
or a power cut it goes on. With several GPUs it runs as many at a time; --slurm submits job arrays
instead. table and plot read the run folders, or with --from the JSON files that table --save wrote.
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sweeps.files import ROOT, SECTIONS, Job, Sweep, check_encoders, load_sweep, plan

DEFAULT_SEEDS = 3
REASONS_SHOWN = 3  # of refused runs
ARRAY_SCRIPT = ROOT / 'scripts' / 'slurm' / 'array.sbatch'


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest='command', required=True)
    for name, (function, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(function=function)
        add = command.add_argument
        add('--sweep', type=Path, required=True, metavar='F', help='sweep file')
        add('--output', type=Path, required=True, metavar='D', help='root of all run folders')
        add('--seeds', type=int, metavar='N', help=f'seeds 0 to N - 1 (default {DEFAULT_SEEDS})')
        if name in ('run', 'status'):
            add('--data-path', default='', help='root folder of the data')
            add('--pretrain-opts', nargs='+', default=[], metavar='KEY VALUE', help='options put '
                'over the YAML files of pre-training')  # fmt: skip
            add('--finetune-opts', nargs='+', default=[], metavar='KEY VALUE', help='the same, of '
                'fine-tuning')  # fmt: skip
        if name in ('table', 'plot'):
            add('--scores', nargs='+', metavar='SCORE',
                help='mean_of_five, mean_of_defined, or names of labels; plot: one')  # fmt: skip
            add('--from', dest='source', type=Path, metavar='FOLDER',
                help='read the JSON files of table --save in place of run folders')  # fmt: skip
    _add_run(commands.choices['run'])
    commands.choices['status'].add_argument(
        '--watch', type=float, metavar='SECONDS', help='show it again and again'
    )
    commands.choices['plot'].add_argument('--subset', metavar='S', help='of methods: share or '
        'number of labelled images of the figure by label (default: the greatest)')  # fmt: skip
    table = commands.choices['table']
    table.add_argument('--save', type=Path, metavar='FOLDER', help='write a JSON file a row, too')
    args, others = parser.parse_known_args(argv)
    if others:
        hint = ': say --pretrain-opts, --finetune-opts' if '--opts' in others else ''
        commands.choices[args.command].error(f'unrecognized arguments: {" ".join(others)}{hint}')
    return args


def _add_run(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add('--processes', type=int, default=1, help='of one run: the GPUs that it takes (default 1)')
    add('--parallel', type=int,
        help='runs at a time (default: as many as the GPUs allow; 1 without GPUs)')  # fmt: skip
    add('--job', type=int, metavar='I', help='only run number I of --list, or of --plan')
    add('--plan', type=Path, metavar='FILE', help='names of runs: what a job array was made for')
    add('--list', action='store_true', help='only show the plan')
    add('--slurm', nargs='*', metavar='OPTION', help='submit the runs that are not finished as job '
        'arrays; options of sbatch without dashes, such as partition=gpu')  # fmt: skip


def check_counts(args: argparse.Namespace) -> None:
    for name in ('seeds', 'processes', 'parallel'):
        count = getattr(args, name, None)
        if count is not None and count < 1:
            raise ValueError(f'--{name} must be at least 1, got {count}')


def seeds_of(args: argparse.Namespace) -> list[int]:
    return list(range(DEFAULT_SEEDS if args.seeds is None else args.seeds))


def jobs_of(args: argparse.Namespace) -> list[Job]:
    data = args.data_path
    return plan(
        load_sweep(args.sweep),
        seeds=seeds_of(args),
        data=os.path.abspath(data) if data else '',
        output=str(args.output.absolute()),
        gpus=getattr(args, 'processes', 1),
        options={stage: getattr(args, f'{section}_opts') for stage, section in SECTIONS.items()},
        environment=dict(os.environ),
    )


def run(args: argparse.Namespace) -> int:
    from sweeps.runner import LOGS, Runner, state_of

    if not args.data_path:
        raise ValueError('run needs --data-path, the root folder of the data')
    jobs = jobs_of(args)
    check_encoders(load_sweep(args.sweep), jobs)
    if args.list:
        for number, job in enumerate(jobs):
            print(f'{number:4d}  {job.name:<50} {": ".join(filter(None, _state(job)))}')
        return 0
    if args.slurm is not None:
        return submit(args, jobs)
    if args.job is not None:
        jobs = [_single(jobs, args)]
        if state_of(jobs[0]) == 'running':
            # Not done: an array that waits for this task must not take it for that.
            raise ValueError(
                f'--job {args.job}, {jobs[0].name}, is running elsewhere: submit again what needs '
                'it once no task of the sweep is left in the queue'
            )
    runner = Runner(jobs, _slots(args), args.processes, args.output / LOGS, _say)
    return runner.run()


def _say(line: str) -> None:
    print(f'{time.strftime("%H:%M:%S")}  {line}', flush=True)


def _single(jobs: list[Job], args: argparse.Namespace) -> Job:
    """Run number --job; by its name where the plan was written down before."""
    from engine.run_record import is_finished

    names = _read_plan(args.plan) if args.plan else [job.name for job in jobs]
    if not 0 <= args.job < len(names):
        raise ValueError(f'--job must be 0 to {len(names) - 1}, got {args.job}')
    found = [job for job in jobs if job.name == names[args.job]]
    if not found:
        raise ValueError(f'{args.sweep} has no {names[args.job]} any more: it was changed since')
    missing = [folder for folder in found[0].needs if not is_finished(folder)]
    if missing:
        raise ValueError(f'--job {args.job}, {found[0].name}: {missing[0]} is not finished')
    return found[0]


def _read_plan(path: Path) -> list[str]:
    try:
        names = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f'--plan {path} cannot be read as JSON: {error}') from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f'--plan {path} must be a list of names of runs')
    return names


def _slots(args: argparse.Namespace) -> list[dict[str, str]]:
    """What the runs of each slot get: their GPUs; on CPUs nothing of their own."""
    import torch

    visible = os.environ.get('CUDA_VISIBLE_DEVICES')
    gpus = visible.split(',') if visible else [str(i) for i in range(torch.cuda.device_count())]
    if not torch.cuda.is_available():
        return [{}] * (args.parallel or 1)
    most = len(gpus) // args.processes
    if not 1 <= (args.parallel or most) <= most:
        raise ValueError(
            f'{args.parallel or 1} runs of {args.processes} GPUs each: there are {len(gpus)}'
        )
    shares = [gpus[i * args.processes : (i + 1) * args.processes] for i in range(most)]
    return [{'CUDA_VISIBLE_DEVICES': ','.join(share)} for share in shares[: args.parallel or most]]


def submit(args: argparse.Namespace, jobs: list[Job]) -> int:
    """Job arrays, each of runs that need only those of the arrays before."""
    from sweeps.runner import LOGS, state_of

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
    for job in left:  # in order: what a job needs is there already
        waves[job.folder] = 1 + max((waves.get(folder, 0) for folder in job.needs), default=0)
    options, before = [f'--{option}' for option in args.slurm], ''
    for wave in sorted(set(waves.values())):
        members = [numbers[folder] for folder, number in waves.items() if number == wave]
        command = ['sbatch', '--parsable', f'--array={",".join(map(str, members))}']
        command += [f'--gpus-per-node={args.processes}'] if args.processes > 1 else []
        command += options
        if before:
            # Those that failed do not keep the others back: each run checks what it needs.
            command.append(f'--dependency=afterany:{before}')
        command += [str(ARRAY_SCRIPT), *_arguments(args), '--plan', str(names)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ValueError(f'sbatch refused ({done.stderr.strip()}): {" ".join(command)}')
        before = done.stdout.strip().partition(';')[0]
        print(f'array {before}: {len(members)} runs, such as {jobs[members[0]].name}')
    for job, need in held:
        print(f'left out: {job.name} needs {need}, which is running: submit again after it')
    others = [sum(state == name for state in states.values()) for name in ('finished', 'running')]
    print(f'{len(left)} runs submitted; {others[0]} were finished, {others[1]} are running')
    return 0


def _to_submit(
    jobs: list[Job], states: dict[Path, str]
) -> tuple[list[Job], list[tuple[Job, Path]]]:
    """Jobs for the arrays, and those that wait for a run of no array, each with that run."""
    left, held = [], []
    blocked = {folder: folder for folder, state in states.items() if state == 'running'}
    for job in jobs:  # in order: what a job needs comes before it
        if states[job.folder] in ('finished', 'running'):
            continue
        if needs := [blocked[folder] for folder in job.needs if folder in blocked]:
            blocked[job.folder] = needs[0]
            held.append((job, needs[0]))
        else:
            left.append(job)
    return left, held


def _arguments(args: argparse.Namespace) -> list[str]:
    """The flags that give an array's tasks the same plan."""
    words = ['--sweep', str(args.sweep.absolute()), '--output', str(args.output.absolute())]
    words += ['--data-path', os.path.abspath(args.data_path), '--seeds', str(len(seeds_of(args)))]
    words += ['--processes', str(args.processes)]
    for flag, pairs in (
        ('--pretrain-opts', args.pretrain_opts),
        ('--finetune-opts', args.finetune_opts),
    ):
        words += [flag, *pairs] if pairs else []
    return words


def status(args: argparse.Namespace) -> int:
    while True:
        text = _status_table(load_sweep(args.sweep), jobs_of(args))
        print(('\033[2J\033[H' if args.watch and sys.stdout.isatty() else '') + text, flush=True)
        if not args.watch:
            return 0
        with contextlib.suppress(KeyboardInterrupt):
            time.sleep(args.watch)
            continue
        return 0


def _status_table(sweep: Sweep, jobs: list[Job]) -> str:
    """A line for each run, a column for each seed."""
    from sweeps.runner import progress

    states, reasons = {}, []
    for job in jobs:
        states[job.folder], reason = _state(job)
        reasons += [reason] if reason else []
    cells: dict[str, dict[int, str]] = {}
    for job in jobs:
        state = states[job.folder]
        detail = f' ({progress(job)})' if state in ('running', 'stopped') else ''
        cells.setdefault(f'{SECTIONS[job.stage]} {job.run}', {})[job.seed] = state + detail
    seeds = sorted({job.seed for job in jobs})
    table = [['', *(f'seed {seed}' for seed in seeds)]]
    table += [[name, *(by_seed[seed] for seed in seeds)] for name, by_seed in cells.items()]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    done = sum(state == 'finished' for state in states.values())
    lines = ['  '.join(f'{x:<{w}}' for x, w in zip(line, widths, strict=True)) for line in table]
    title = f'{sweep.title}: {done} of {len(jobs)} runs finished'
    lines += [f'refused: {reason}' for reason in reasons[:REASONS_SHOWN]]
    if len(reasons) > REASONS_SHOWN:
        lines.append(f'... and {len(reasons) - REASONS_SHOWN} more refused')
    return '\n'.join([title, *(line.rstrip() for line in lines)])


def _state(job: Job) -> tuple[str, str]:
    """Its state and, where `run` would refuse it, why."""
    from sweeps.runner import state_of

    try:
        return state_of(job), ''
    except ValueError as error:  # such as without the --pretrain-opts that it was run with
        return 'refused', str(error)


def collected(args: argparse.Namespace) -> dict:
    from sweeps.results import collect, read_rows

    sweep = load_sweep(args.sweep)
    if args.source is None:
        return collect(sweep, seeds_of(args), args.output)
    if args.seeds is not None:
        raise ValueError('--seeds goes with run folders: --from takes the seeds of its files')
    return read_rows(args.source, sweep.name)


def table(args: argparse.Namespace) -> int:
    from sweeps.results import csv_text, latex, write_rows
    from sweeps.results import markdown_tables as markdown

    results = collected(args)
    if args.save is not None:
        write_rows(results, args.save)
    name = args.sweep.stem
    args.output.mkdir(parents=True, exist_ok=True)
    texts = {'md': markdown, 'csv': csv_text, 'tex': latex}
    for suffix, write in texts.items():
        (args.output / f'{name}.{suffix}').write_text(write(results, args.scores), encoding='utf-8')
    print(markdown(results, args.scores))
    print(', '.join(str(args.output / f'{name}.{suffix}') for suffix in texts), file=sys.stderr)
    return 0


def plot(args: argparse.Namespace) -> int:
    from sweeps.plots import plot_curves, plot_labels, plot_subsets, plot_sweep

    if len(args.scores or ()) > 1:
        raise ValueError(f'--scores: a figure shows one score, got {", ".join(args.scores)}')
    results = collected(args)
    score = args.scores[0] if args.scores else None
    figures = {'': partial(plot_sweep, collected=results, score=score)}
    if 'methods' in results:
        figures = {
            '_labels': partial(plot_labels, collected=results, subset=args.subset),
            f'_{results["methods"]["subsets"]}': partial(
                plot_subsets, collected=results, score=score
            ),
        }
        if args.source is None:
            runs = {'sweep': load_sweep(args.sweep), 'seeds': seeds_of(args)}
            figures['_curves'] = partial(plot_curves, **runs, output=args.output)
    elif args.subset:
        raise ValueError(f'--subset goes with a sweep of methods, which {args.sweep} is not')
    for name, draw in figures.items():
        for suffix in ('png', 'pdf'):
            path = args.output / f'{args.sweep.stem}{name}.{suffix}'
            draw(path)
            print(path)
    return 0


COMMANDS = {
    'run': (run, 'Run what is not finished yet.'),
    'status': (status, 'Show how far each run is.'),
    'table': (table, 'Write the table as Markdown, CSV and LaTeX into the output folder.'),
    'plot': (plot, 'Write the figure, of methods three, into the output folder.'),
}


def main(args: argparse.Namespace) -> int:
    try:
        check_counts(args)
        return args.function(args)
    except (ValueError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2


if __name__ == '__main__':
    sys.exit(main(parse_args()))
