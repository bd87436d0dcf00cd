"""Print the table of a study of one binary task (DATA.TASK any_finding or effusion).

python scripts/finding_table.py RUN RUN --masked 0.75 none [--csv table.csv]
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluation.finding_table import markdown, published_rows, read_runs, write_csv


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
        'runs', nargs='+', type=Path, metavar='RUN', help='folder with config.yaml and report.json'
    )
    parser.add_argument(
        '--masked',
        nargs='+',
        required=True,
        type=mask_ratio,
        metavar='RATIO',
        help="for each run, the mask ratio of its pre-training, or 'none'",
    )
    parser.add_argument('--set', default='test', metavar='NAME', help='of the reports (test)')
    parser.add_argument('--csv', type=Path, metavar='FILE', help='where the table goes as CSV, too')
    return parser.parse_args(arguments)


def main(args: argparse.Namespace) -> int:
    try:
        rows = read_runs(args.runs, masked=args.masked, split=args.set)
    except ValueError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    published = published_rows(rows)
    print(markdown(rows, published), end='')
    if args.csv:
        write_csv(args.csv, rows, published)
    return 0


if __name__ == '__main__':
    sys.exit(main(parse_args()))
