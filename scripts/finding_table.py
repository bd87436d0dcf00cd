"""Print the table of a study of one binary task (DATA.TASK any_finding or effusion).

python scripts/finding_table.py RUN RUN --masked 0.75 none [--csv table.csv]
python scripts/finding_table.py --sweep scripts/comparison/mae_resnet.yaml --output D --seeds 3
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sweeps.results import markdown, published_rows, read_runs, write_csv


def mask_ratio(text: str) -> float | None:
    if text == 'none':
        return None
    try:
        ratio = float(text)
    except ValueError:
        ratio = 0.0
    if not 0 < ratio < 1:
        raise argparse.ArgumentTypeError(f"must be 'none' or between 0 and 1, got {text!r}")
    return ratio


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'runs', nargs='*', type=Path, metavar='RUN', help='folder with config.yaml and report.json'
    )
    parser.add_argument(
        '--masked',
        nargs='+',
        default=[],
        type=mask_ratio,
        metavar='RATIO',
        help="for each run, the mask ratio of its pre-training, or 'none'",
    )
    sweep = parser.add_argument_group('in place of RUN: the finished runs of a sweep')
    sweep.add_argument('--sweep', type=Path, metavar='F', help='sweep file')
    sweep.add_argument('--output', type=Path, metavar='D', help='root of all run folders')
    sweep.add_argument('--seeds', type=int, default=3, metavar='N', help='seeds 0 to N - 1 (3)')
    parser.add_argument('--set', default='test', metavar='NAME', help='of the reports (test)')
    parser.add_argument('--csv', type=Path, metavar='FILE', help='where the table goes as CSV, too')
    return parser.parse_args(arguments)


def runs_of(args: argparse.Namespace) -> dict[str, list]:
    """The runs as `read_runs` takes them; says which of a sweep are left out."""
    if bool(args.runs) == bool(args.sweep) or bool(args.sweep) != bool(args.output):
        raise ValueError('give folders of runs with --masked, or --sweep with --output')
    if args.runs:
        return {'folders': args.runs, 'masked': args.masked}
    from sweeps.files import finetuned_runs, load_sweep, unfinished_seeds

    of_sweep = load_sweep(args.sweep), range(args.seeds), args.output
    found = finetuned_runs(*of_sweep)
    for name, seeds in unfinished_seeds(*of_sweep).items():
        left_out = f'{name} seed{"s" if len(seeds) > 1 else ""} {", ".join(map(str, seeds))}'
        print(f'left out: {left_out}, not finished', file=sys.stderr)
    return {
        'folders': [run.folder for run in found],
        'masked': [run.masked for run in found],
        'pretraining': [run.pretraining for run in found],
    }


def main(args: argparse.Namespace) -> int:
    try:
        rows = read_runs(**runs_of(args), split=args.set)
        published = published_rows(rows)
        print(markdown(rows, published), end='')
        if args.csv:
            write_csv(args.csv, rows, published)
    except (ValueError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main(parse_args()))
