"""Count labels, ages and groups of a data set, and draw figures of them.

python scripts/describe_data.py --data-path DIR --output FOLDER [--cfg configs/... --opts KEY VALUE]

No image is read without --examples.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.describe import build_description, format_description, plot_images, save_description
from data.given_folders import config_of_data
from system.tool import Paragraphs, tool

MOST_EXAMPLES = 16


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Paragraphs)
    add = parser.add_argument
    add('--data-path', required=True, metavar='DIR', help='folder of the data set, or a store')
    add('--output', required=True, metavar='FOLDER', help='folder for tables and figures')
    add('--examples', type=int, metavar='N',
        help='also show N images of each label, and N before and after each step of '
        'DATA.PREPROCESS')  # fmt: skip
    add('--cfg', metavar='FILE', help='YAML file of options (default: the default options)')
    add('--opts', nargs='+', default=[], metavar='KEY VALUE', help='pairs of key and value')
    args = parser.parse_args(arguments)
    if args.examples is not None and not 1 <= args.examples <= MOST_EXAMPLES:
        parser.error(f'--examples must be from 1 to {MOST_EXAMPLES}, got {args.examples}')
    return args


@tool
def main(args: argparse.Namespace) -> int:
    config = config_of_data(args.data_path, args.cfg, args.opts)
    description = build_description(config)
    print(format_description(description))
    figures = plot_images(config, args.examples) if args.examples else {}
    names = save_description(description, args.output, figures)
    print(f'\nsaved in {args.output}: {", ".join(names)}')
    return 0


if __name__ == '__main__':
    sys.exit(main(parse_args()))
