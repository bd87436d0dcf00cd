"""Make synthetic chest X-rays in the layout of CheXpert, or with --mimic of MIMIC-CXR-JPG.

python scripts/make_phantom.py --output CheXpert-phantom --train 700 --valid 100 --test 300
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.phantom import make_phantom
from scripts.phantom_mimic import make_mimic_phantom
from system.tool import Paragraphs, tool, usable_cpus


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Paragraphs)
    add = parser.add_argument
    number = {'type': int, 'metavar': 'N'}
    add('--output', required=True, metavar='DIR', help='new or empty folder')
    add('--train', default=700, **number, help='training patients, 3.4 images each (700)')
    add('--valid', default=100, **number, help='validation patients, 1.2 images each (100)')
    add('--test', default=300, **number, help='test patients, 1.2 images each (300)')
    add('--seed', default=0, **number, help='seed of the data set (0)')
    add('--size', default=390, **number, help='long side of the images in pixels (390)')
    add('--rarer', default=0.0, type=float, metavar='D',
        help='standard deviations by which findings are rarer than in CheXpert (0)')  # fmt: skip
    add('--mimic', action='store_true', help='the layout of MIMIC-CXR-JPG')
    add('--workers', default=usable_cpus(), **number, help='number of processes')
    return parser.parse_args(arguments)


@tool
def main(args: argparse.Namespace) -> int:
    start = time.perf_counter()
    make = make_mimic_phantom if args.mimic else make_phantom
    made = make(
        args.output,
        num_train=args.train,
        num_valid=args.valid,
        num_test=args.test,
        seed=args.seed,
        workers=args.workers,
        size=args.size,
        rarer=args.rarer,
    )
    seconds = time.perf_counter() - start
    rows = ', '.join(f'{split} {count}' for split, count in made['images'].items())
    print(f'{args.output}: images {rows}; drew {made["drawn"]} in {seconds:.1f} s')
    return 0


if __name__ == '__main__':
    sys.exit(main(parse_args()))
