r"""Check a data set and list all faults of the CSV files, the splits and the images.

python scripts/check_data.py --data-path DIR --output problems.csv \
    [--cfg configs/... --opts KEY VALUE]

DIR may also be a packed store, and is not changed. X-rays that are in two splits are found even if
one is a smaller or compressed copy. With DATA.SOURCES in the config, the paths of the sources are
relative to DIR, and X-rays that are in several sources are found, too. The list has one row per
finding. The exit code is 0 without errors, 1 with errors, and 2 if the check failed.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import Config, default_config
from data.describe.check import Findings, check_data, list_duplicates
from data.tables.chexpert import open_data_set
from data.tables.given_folders import config_of_data
from data.tables.reading import report_names_not_found, scored_splits
from data.tables.records import csv_names
from data.tables.sources import source_configs
from system.files import replace_file
from system.tool import Paragraphs, at_least, tool, usable_cpus


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Paragraphs)
    add = parser.add_argument
    add('--data-path', required=True, metavar='DIR', help='folder of the data set, or a store')
    findings = 'list of the findings (problems.csv)'
    add('--output', default='problems.csv', type=Path, metavar='FILE', help=findings)
    names = 'list of images that are also in another split or source, for DATA.LEAVE_OUT'
    add('--duplicates', type=Path, metavar='FILE', help=names)
    number = {'type': at_least(1), 'metavar': 'N', 'help': 'number of processes'}
    add('--workers', default=usable_cpus(), **number)
    add('--cfg', metavar='FILE', help='YAML config (default options)')
    add('--opts', nargs='+', default=[], metavar='KEY VALUE', help='options of DATA, in pairs')
    return parser.parse_args(arguments)


def splits_that_may_be_absent(config: Config) -> tuple[str, ...]:
    if config.DATA.SOURCES:  # pre-training reads neither
        return ('valid', 'test')
    if config.DATA.DATASET != 'chexpert':
        return ('train', 'valid', 'test')
    names, default = csv_names(config), csv_names(default_config())
    needs_valid = config.EVAL.SELECT_ON == 'valid'
    # A table with a column Split may have no row of the test split.
    needs_valid = needs_valid or not scored_splits(open_data_set(config)).get('test')
    absent = ('test',) if needs_valid else ('test', 'valid')
    return tuple(split for split in absent if names[split] == default[split])


@tool
def main(args: argparse.Namespace) -> int:
    findings = Findings()
    config = config_of_data(args.data_path, args.cfg, args.opts)
    tables = {args.output: findings.table}
    for own in source_configs(config).values():
        for flag, file in (('--output', args.output), ('--duplicates', args.duplicates)):
            if file and file.resolve().is_relative_to(Path(own.DATA.DATA_PATH).resolve()):
                raise ValueError(f'{flag} {file} must lie outside {own.DATA.DATA_PATH}')
    checked, optional = {}, splits_that_may_be_absent(config)
    for findings.source, own in source_configs(config).items():
        options = {'optional': optional, 'labelled': not config.DATA.SOURCES}
        part = check_data(own, findings, workers=args.workers, **options)
        rows = ', '.join(f'{count:,} of {split}' for split, count in part.rows.items())
        where = ' '.join(filter(None, (findings.source, 'read as', own.DATA.DATASET)))
        print(f'{where}: images {rows or "none"}')
        checked[findings.source] = part
    findings.source = ''
    read = [records for part in checked.values() for records in part.read]
    report_names_not_found(config, read, findings.add)
    duplicates = list_duplicates(checked, findings)
    tables |= {args.duplicates: lambda: duplicates} if args.duplicates else {}
    for file, table in tables.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, table().to_csv(index=False).encode(errors='backslashreplace'))
    print(f'all findings: {args.output}\n{findings.describe()}')
    return 1 if findings.count('error') else 0


if __name__ == '__main__':
    sys.exit(main(parse_args()))
