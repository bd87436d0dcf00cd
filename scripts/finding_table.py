"""Print the table of a study of one binary task (DATA.TASK any_finding or effusion).

python scripts/finding_table.py RUN RUN --masked 0.75 none [--csv table.csv]
python scripts/finding_table.py --sweep scripts/comparison/mae_resnet.yaml --output D --seeds 3
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pandas as pd

from sweeps.files import load_sweep
from sweeps.results import (
    FinetunedRun,
    finding_figures,
    finding_markdown,
    finding_rows,
    finetuned_runs,
    published_rows,
)


def mask_ratio(text: str) -> float | None:
    if text == 'none':
        return None
    if not 0 < float(text) < 1:
        raise argparse.ArgumentTypeError(f"must be 'none' or between 0 and 1, got {text!r}")
    return float(text)


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('runs', nargs='*', type=Path, metavar='RUN', help='run folder with a report.json')
    add('--masked', nargs='+', default=[], type=mask_ratio, metavar='RATIO',
        help="for each run, the mask ratio of its pre-training, or 'none'")  # fmt: skip
    add('--sweep', type=Path, metavar='F', help='show the finished runs of a sweep instead')
    add('--output', type=Path, metavar='D', help='root of the run folders of the sweep')
    add('--seeds', type=int, default=3, metavar='N', help='seeds 0 to N - 1 (3) of the sweep')
    add('--set', default='test', metavar='NAME', help='set of the reports (test)')
    add('--csv', type=Path, metavar='FILE', help='also write the table as CSV')
    return parser.parse_args(arguments)


def runs_of(args: argparse.Namespace) -> list[FinetunedRun]:
    if bool(args.runs) == bool(args.sweep) or bool(args.sweep) != bool(args.output):
        raise ValueError('give run folders with --masked, or --sweep with --output')
    if args.sweep:
        runs, others = finetuned_runs(load_sweep(args.sweep), range(args.seeds), args.output)
        for name in others:
            print(f'left out: {name} is not finished', file=sys.stderr)
        return runs
    if len(args.masked) != len(args.runs):
        raise ValueError(
            f'--masked: give one value per run, got {len(args.masked)} for {len(args.runs)} runs'
        )
    return [FinetunedRun(*run) for run in zip(args.runs, args.masked, strict=True)]


def main(args: argparse.Namespace) -> int:
    try:
        rows = finding_rows(runs_of(args), args.set)
        published = published_rows(rows)
        print(finding_markdown(rows, published), end='')
        if args.csv:
            table = pd.DataFrame(finding_figures(rows, published), dtype=object)
            table.to_csv(args.csv, index=False)
    except (ValueError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main(parse_args()))
