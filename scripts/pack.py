r"""Pack a data set into a store: a few files that training reads instead of one for each picture.

python scripts/pack.py --data-path CheXpert-v1.0-small --output CheXpert-256 --size 256 --workers 8
python scripts/pack.py --data-path CheXpert-v1.0-small --output CheXpert-256 --append test.csv
python scripts/pack.py --output CheXpert-256 --verify

The store takes the folder's place as --data-path of all mains.  A run that was stopped goes on
where it was when the same command is given again.
"""

import argparse
import errno
import os
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.packing import Settings, append, pack
from data.store import verify

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
UNITS = {'': 1, 'KB': 10**3, 'MB': 10**6, 'GB': 10**9}


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('--data-path', metavar='DIR', help='CSV files and pictures, or a tree of pictures')
    add('--output', required=True, metavar='STORE', help='the store')
    add('--size', metavar='PX', help='256, 320, any side in pixels, or native: sizes as they are')
    shape = parser.add_mutually_exclusive_group()
    squeeze = 'squeeze pictures to squares: batches are read fastest (default)'
    shape.add_argument('--square', action='store_true', help=squeeze)
    keep = 'keep the aspect: --size is the short side, smaller pictures stay as they are'
    shape.add_argument('--keep-aspect', action='store_true', help=keep)
    add('--keep-16bit', action='store_true', help='store what has more than 8 bits in 16, not in 8')
    add('--shard-size', default='1GB', type=_bytes, metavar='N', help='largest file of pixels')
    add('--image-suffix', default='', metavar='.png', help='as DATA.IMAGE_SUFFIX')
    add('--csv', nargs='+', default=[], metavar='FILE', help='not train.csv, valid.csv, test.csv')
    add('--all-images', action='store_true', help='also pictures that no CSV file names')
    add('--skip-bad', action='store_true', help='leave out and list damaged pictures, if few')
    add('--workers', default=os.cpu_count(), type=_positive, metavar='N', help='processes')
    add('--append', metavar='CSV', help='add a CSV file and its pictures to a store')
    add('--verify', action='store_true', help='check every byte of a store')
    args = parser.parse_args(arguments)
    if args.verify == bool(args.data_path):
        parser.error('give either --data-path or --verify')
    if args.append and (args.size or args.square or args.keep_aspect or args.keep_16bit):
        parser.error('--append packs as the store was packed: give no settings')
    if not (args.verify or args.append or args.size):
        parser.error('give --size')
    return args


def main(args: argparse.Namespace) -> int:
    if args.verify:
        problems = verify(args.output)
        for problem in problems:
            print(f'error: {problem}', file=sys.stderr)
        print(f'{args.output}: {len(problems) or "no"} problems')
        return 1 if problems else 0
    options = {'workers': args.workers, 'skip_bad': args.skip_bad, 'report': _report}
    try:
        if args.append:
            append(args.data_path, args.output, args.append, **options)
        else:
            chosen = {'csv_names': args.csv, 'all_images': args.all_images}
            pack(args.data_path, args.output, settings(args), **chosen, **options)
    except ValueError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except OSError as error:
        problem, advice = error, 'mend this'
        if error.errno in FULL:
            problem, advice = f'cannot write {args.output}: {error.strerror}', 'free space'
        print(f'error: {problem}: {advice} and give the same command again', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('stopped; the same command goes on from here', file=sys.stderr)
        return 130
    return 0


def settings(args: argparse.Namespace) -> Settings:
    if args.size != 'native' and not args.size.isdecimal():
        raise ValueError(f"--size must be a number of pixels or 'native', got {args.size!r}")
    native = args.size == 'native'
    return Settings(
        size=None if native else int(args.size),
        square=args.square or not (native or args.keep_aspect),
        keep_16bit=args.keep_16bit,
        shard_bytes=args.shard_size,
        image_suffix=args.image_suffix,
    )


def _report(line: str) -> None:
    print(line, flush=True)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f'must be at least 1, got {text}')
    return value


def _bytes(text: str) -> int:
    match = re.fullmatch(r'(\d+)(|KB|MB|GB)', text.upper())
    if not match:
        raise argparse.ArgumentTypeError(f'must be like 1GB or 500MB, got {text!r}')
    return int(match[1]) * UNITS[match[2]]


if __name__ == '__main__':
    sys.exit(main(parse_args()))
