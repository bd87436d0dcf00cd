"""Pack a data set into a store, so that training reads a few large files.

python scripts/pack.py --data-path CheXpert-v1.0-small --output CheXpert-256 --size 256 --workers 8
python scripts/pack.py --output CheXpert-256 --verify

The store replaces the folder of the data set as --data-path of all mains. If packing was
interrupted, the same command resumes it. Each of several data sets has its own store.
"""

import argparse
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import OPTIONS, default_config, put
from data.images.preprocess import LUNG_STEPS, PREPROCESS
from data.images.preprocess_steps import check
from data.images.store_files import verify
from data.images.store_manifest import BAD_FILE
from data.packing import Settings, copies_in_splits, pack, read_source
from system.tool import Paragraphs, at_least, tool, usable_cpus

SHOWN = 5  # images in a warning


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Paragraphs)
    add = parser.add_argument
    add('--data-path', metavar='DIR', help='folder of the data set')
    dataset = 'DATA.DATASET, if it is neither CheXpert nor MIMIC-CXR, such as nih'
    add('--dataset', default='', metavar='NAME', help=dataset)
    add('--output', required=True, metavar='STORE', help='folder of the store')
    add('--size', metavar='PX', help='side in pixels, such as 256, or native to keep the sizes')
    keep = 'keep the aspect; --size is the short side, and smaller images are not enlarged'
    add('--keep-aspect', action='store_true', help=keep)
    add('--keep-16bit', action='store_true', help='keep 16 bits of images with more than 8')
    add('--image-suffix', default='', metavar='.png', help='DATA.IMAGE_SUFFIX')
    steps = 'apply these steps of DATA.PREPROCESS, in this order'
    add('--preprocess', nargs='+', default=[], choices=[*PREPROCESS], metavar='STEP',
        help=f'{steps}: {", ".join(PREPROCESS)}')  # fmt: skip
    masks = 'DATA.LUNG_MASKS: folder of the masks for the steps lung_crop and lung_multiply'
    add('--lung-masks', default='', metavar='DIR', help=masks)
    names = 'pack the images of these CSV files instead of train.csv, valid.csv and test.csv'
    add('--csv', nargs='+', default=[], metavar='FILE', help=names)
    add('--all-images', action='store_true', help='also pack images that no CSV file names')
    add('--skip-bad', action='store_true', help='leave out damaged images and list them')
    number = {'type': at_least(1), 'metavar': 'N', 'help': 'number of processes'}
    add('--workers', default=usable_cpus(), **number)
    add('--verify', action='store_true', help='check every byte of a store instead of packing')
    args = parser.parse_args(arguments)
    if args.verify == bool(args.data_path):
        parser.error('give either --data-path or --verify')
    if bool(args.lung_masks) != bool({*LUNG_STEPS}.intersection(args.preprocess)):
        parser.error(f'--lung-masks is needed for, and only for, the steps {", ".join(LUNG_STEPS)}')
    names = OPTIONS['DATA.DATASET']
    if args.dataset and not names.allows(args.dataset):
        parser.error(f'--dataset must be {names.allowed}')
    if not (args.verify or args.size):
        parser.error('--size is missing')
    return args


@tool
def main(args: argparse.Namespace) -> int:
    if args.verify:
        problems = verify(args.output)
        for problem in problems:
            print(f'error: {problem}', file=sys.stderr)
        print(f'{args.output}: {len(problems) or "no"} problems')
        return 1 if problems else 0
    try:
        source = read_source(
            args.data_path,
            csv_names=args.csv,
            image_suffix=args.image_suffix,
            all_images=args.all_images,
            dataset=args.dataset,
        )
        options = {'workers': args.workers, 'skip_bad': args.skip_bad}
        about = pack(source, args.output, settings(args), **options)
    except OSError as error:
        raise ValueError(f'{args.output}: {error}; run the same command again') from error
    except KeyboardInterrupt:
        print('interrupted; the same command resumes from here', file=sys.stderr)
        return 130
    num_bytes = sum(size for size, _ in about['files'].values())
    print(f'{args.output}: {about["images"]} images, {num_bytes / 1e6:,.1f} MB')
    if about['rounded']:
        print(f'{about["rounded"]} images of more than 8 bits were rounded to 8 (--keep-16bit)')
    if copies := copies_in_splits(source, args.output):
        named = '; '.join(f'{file} is {other}' for file, other in copies[:SHOWN])
        print(
            f'warning: {len(copies)} images have the pixels of an image of another split, so '
            f'scored images may train the model: {named}',
            file=sys.stderr,
        )
    if about['left_out']:
        print(f'{len(about["left_out"])} images could not be read: see {args.output}/{BAD_FILE}')
    return 0


def settings(args: argparse.Namespace) -> Settings:
    if not re.fullmatch(r'native|[1-9]\d*', args.size):
        raise ValueError(f"--size must be a number of pixels or 'native', got {args.size!r}")
    native = args.size == 'native'
    if 'resize' in args.preprocess and (native or args.keep_aspect):
        raise ValueError(
            '--preprocess resize makes squares: --size must be a number of pixels, without '
            f'--keep-aspect, got {args.size}'
        )
    config = default_config()
    put(config, 'DATA.PREPROCESS', args.preprocess, '--preprocess')
    check(config, None)  # the order of the steps
    return Settings(
        size=None if native else int(args.size),
        square=not (native or args.keep_aspect),
        keep_16bit=args.keep_16bit,
        image_suffix=args.image_suffix,
        preprocess=args.preprocess,
        lung_masks=args.lung_masks,
    )


if __name__ == '__main__':
    sys.exit(main(parse_args()))
