r"""Make synthetic chest X-rays in CheXpert's or MIMIC-CXR-JPG's layout.

python scripts/make_phantom.py --output demo_output/CheXpert-phantom --train 700 --valid 100 \
    --test 300 --seed 0 --workers 2 --contact-sheet demo_output/phantom.png
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.phantom import contact_sheet, make_phantom

LAYOUTS = ('chexpert', 'mimic-cxr')


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    number = {'type': int, 'metavar': 'N'}
    parser.add_argument('--output', required=True, metavar='DIR', help='empty or absent folder')
    parser.add_argument('--layout', default='chexpert', choices=LAYOUTS, help='whose files')
    parser.add_argument('--train', default=700, **number, help='patients (3.4 images each)')
    parser.add_argument('--valid', default=100, **number, help='patients (1.2 images each)')
    parser.add_argument('--test', default=300, **number, help='patients (1.2 images each)')
    parser.add_argument('--rows', **number, help='exact number of training images, not --train')
    parser.add_argument('--seed', default=0, **number)
    parser.add_argument('--size', default=390, **number, help='long side of the images in pixels')
    parser.add_argument('--workers', default=os.cpu_count(), **number, help='processes that draw')
    parser.add_argument('--contact-sheet', metavar='FILE.png', help='image of the first images')
    parser.add_argument('--no-images', action='store_true', help='write the CSV files alone')
    args = parser.parse_args(arguments)
    if args.no_images and args.contact_sheet:
        parser.error('--contact-sheet needs images: omit --no-images')
    if args.layout != 'chexpert' and args.contact_sheet:
        parser.error('--contact-sheet needs --layout chexpert')
    return args


def main(args: argparse.Namespace) -> int:
    try:
        made = make_phantom(
            args.output,
            num_train=args.train,
            num_valid=args.valid,
            num_test=args.test,
            seed=args.seed,
            workers=args.workers,
            size=0 if args.no_images else args.size,
            rows=args.rows,
            layout=args.layout,
        )
    except ValueError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    if args.contact_sheet:
        contact_sheet(args.output, args.contact_sheet)
    rows = ', '.join(f'{split} {count}' for split, count in made['images'].items())
    drawn, seconds = made['drawn'], made['seconds']
    print(f'{args.output}: rows {rows}; drew {drawn} images in {seconds:.1f} s', end='')
    print(f' ({drawn / seconds:.0f} images/s)' if drawn else '')
    return 0


if __name__ == '__main__':
    sys.exit(main(parse_args()))
