"""Count labels, ages and groups of a data set, and draw figures of them.

python scripts/describe_data.py --data-path DIR --output FOLDER [--cfg configs/... --opts KEY VALUE]
python scripts/describe_data.py --data-path DIR --table FILE.csv [--opts KEY VALUE]

The second command writes the table that a run would read: an image in each row, after all checks.

No image is read without --examples.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.describe.charts import plot_counts
from data.describe.description import (
    build_description,
    format_description,
    plot_images,
    read_table_of_run,
    save_description,
)
from data.tables.given_folders import config_of_data
from data.tables.table_files import csv_text
from system.files import replace_file
from system.tool import Paragraphs, tool

MOST_EXAMPLES = 16


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Paragraphs)
    add = parser.add_argument
    add('--data-path', required=True, metavar='DIR', help='folder of the data set, or a store')
    add('--output', metavar='FOLDER', help='folder for tables and figures')
    add('--table', type=Path, metavar='FILE', help='write the table that a run would read')
    add('--examples', type=int, metavar='N',
        help='also show N images of each label, and N before and after each step of '
        'DATA.PREPROCESS')  # fmt: skip
    add('--cfg', metavar='FILE', help='YAML file of options (default: the default options)')
    add('--opts', nargs='+', default=[], metavar='KEY VALUE', help='pairs of key and value')
    args = parser.parse_args(arguments)
    if not (args.output or args.table):
        parser.error('give --output or --table')
    if args.examples is not None and not 1 <= args.examples <= MOST_EXAMPLES:
        parser.error(f'--examples must be from 1 to {MOST_EXAMPLES}, got {args.examples}')
    return args


@tool
def main(args: argparse.Namespace) -> int:
    config = config_of_data(args.data_path, args.cfg, args.opts)
    if args.table:
        table = read_table_of_run(config)
        args.table.parent.mkdir(parents=True, exist_ok=True)
        replace_file(args.table, csv_text(table))
        print(f'{args.table}: {len(table):,} images')
    if not args.output:
        return 0
    description = build_description(config)
    print(format_description(description))
    tables = description.counts, description.ages, description.labels
    figures = plot_counts(*tables, description.use)
    figures |= plot_images(config, args.examples) if args.examples else {}
    names = save_description(description, args.output, figures)
    print(f'\nsaved in {args.output}: {", ".join(names)}')
    return 0


if __name__ == '__main__':
    sys.exit(main(parse_args()))
