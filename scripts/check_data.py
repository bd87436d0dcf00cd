r"""Find everything that is wrong with a data set: its CSV files, its splits, every image.

python scripts/check_data.py --data-path DIR --output problems.csv [--workers 8] \
    [--dataset mimic-cxr] [--train-csv FILE --valid-csv FILE --test-csv FILE] \
    [--image-suffix .png --labeller negbio] [--cfg configs/... --opts KEY VALUE]

DIR may also be a packed store; it is never written to. The list has one row per finding. The exit
code is 0 if there is no error, 1 if there is one, and 2 if the check could not be made.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import config as config_merge
from config import Config, check_config, default_config
from data.check import Checked, Findings, check_data, written
from data.records import DATASETS, csv_names

KEYS = {
    'data_path': 'DATA.DATA_PATH',
    'dataset': 'DATA.DATASET',
    'train_csv': 'DATA.TRAIN_CSV',
    'valid_csv': 'DATA.VALID_CSV',
    'test_csv': 'DATA.TEST_CSV',
    'image_suffix': 'DATA.IMAGE_SUFFIX',
    'labeller': 'DATA.LABELLER',
}


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('--data-path', required=True, metavar='DIR', help='CSV files and images, or a store')
    add('--output', default='problems.csv', type=Path, metavar='FILE', help='(problems.csv)')
    add('--workers', default=os.cpu_count(), type=_positive, metavar='N', help='processes')
    add('--dataset', choices=DATASETS, help='what DIR holds (default: by its files)')
    add('--train-csv', metavar='FILE', help='as DATA.TRAIN_CSV')
    add('--valid-csv', metavar='FILE', help='as DATA.VALID_CSV')
    add('--test-csv', metavar='FILE', help='as DATA.TEST_CSV')
    add('--image-suffix', metavar='.png', help='as DATA.IMAGE_SUFFIX')
    add('--labeller', metavar='NAME', help='as DATA.LABELLER')
    add('--cfg', default=argparse.SUPPRESS, metavar='FILE', help='YAML file; else the defaults')
    add('--opts', nargs='+', default=[], metavar='KEY VALUE', help='options by key, in pairs')
    return parser.parse_args(arguments)


def read_config(args: argparse.Namespace) -> Config:
    config = default_config()
    if 'cfg' in args:
        config.merge_from_file(args.cfg)
    config.merge_from_list(args.opts)
    for flag, key in KEYS.items():
        value = getattr(args, flag)
        if value is not None:
            config_merge.put(config, key, value, '--' + flag.replace('_', '-'))
    check_config(config)
    return config


def find_dataset(config: Config) -> str:
    """The kind of data set: DATA.DATASET if it was given, otherwise judged by the files."""
    root = Path(config.DATA.DATA_PATH)
    if not root.is_dir():
        raise ValueError(f'--data-path is not a folder: {root}')
    if config.DATA.DATASET != default_config().DATA.DATASET:
        return config.DATA.DATASET
    if any(root.glob('mimic-cxr-*-split.csv*')):
        return 'mimic-cxr'
    labelled = any((root / name).is_file() for name in csv_names(config).values())
    return 'chexpert' if labelled else 'folder'


def summary(config: Config, checked: Checked, findings: Findings) -> str:
    rows = ', '.join(f'{name} {count:,}' for name, count in checked.rows.items())
    rate = checked.images / checked.seconds if checked.seconds else 0
    return (
        f'{findings.describe()}\nread as {config.DATA.DATASET}; images by split: {rows or "none"}; '
        f'{checked.images:,} images in {checked.seconds:.1f} s ({rate:,.0f} images/s)'
    )


def main(args: argparse.Namespace) -> int:
    root = Path(args.data_path)
    try:
        if args.output.resolve().is_relative_to(root.resolve()):
            raise ValueError(f'--output must lie outside {root}, got {args.output}')
        config = read_config(args)
        config.DATA.DATASET = find_dataset(config)
        has_default_test = config.DATA.TEST_CSV == default_config().DATA.TEST_CSV
        optional = ('test',) if has_default_test else ()
        with written(args.output) as findings:
            checked = check_data(config, findings, optional=optional, workers=args.workers)
    except (ValueError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('stopped; no list was written', file=sys.stderr)
        return 130
    print(f'{summary(config, checked, findings)}\nthe list: {args.output}')
    return 1 if findings.count('error') else 0


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f'must be at least 1, got {text}')
    return value


if __name__ == '__main__':
    sys.exit(main(parse_args()))
