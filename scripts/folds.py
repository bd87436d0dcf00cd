"""Divide the patients of a data set into folds for cross-validation, as pairs of CSV files.

python scripts/folds.py --data-path DIR --folds 5 --output FOLDS [--opts DATA.TRAIN_CSV all.csv]

Fold 0 are FOLDS/train_0.csv and FOLDS/valid_0.csv. Give each pair to its runs, also to
pre-training: --opts DATA.TRAIN_CSV FOLDS/train_0.csv DATA.VALID_CSV FOLDS/valid_0.csv
with the absolute path of FOLDS, or a path relative to DIR. The patients of a fold depend neither
on a seed nor on the other patients.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.tables.folds import write_folds
from data.tables.given_folders import config_of_data
from system.tool import Paragraphs, at_least, tool


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Paragraphs)
    add = parser.add_argument
    add('--data-path', required=True, metavar='DIR', help='folder of the data set, or a store')
    add('--folds', type=at_least(2), required=True, metavar='N', help='number of folds')
    add('--output', type=Path, required=True, metavar='FOLDS', help='folder of the CSV files')
    add('--cfg', metavar='FILE', help='YAML config (default options)')
    add('--opts', nargs='+', default=[], metavar='KEY VALUE', help='options of DATA, in pairs')
    return parser.parse_args(arguments)


@tool
def main(args: argparse.Namespace) -> int:
    config = config_of_data(args.data_path, args.cfg, args.opts)
    write_folds(config, args.output, args.folds)
    print(f'{args.folds} folds in {args.output.resolve()}: train_0.csv, valid_0.csv and so on')
    return 0


if __name__ == '__main__':
    sys.exit(main(parse_args()))
