"""Write a sweep of methods again, each pre-trained for as long as the reference took.

python scripts/equal_time.py --sweep scripts/comparison/methods.yaml --output D --seeds 3

Reads the measured seconds of the pre-trainings that `scripts/ablate.py run` has finished in D, and
writes D/methods_equal_time.yaml: a sweep with fixed numbers of epochs, for `scripts/ablate.py`.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sweeps.plan import load_sweep


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('--sweep', type=Path, required=True, metavar='F', help='sweep file of methods')
    add('--output', type=Path, required=True, metavar='D', help='root of all run folders')
    add('--seeds', type=int, default=3, metavar='N', help='seeds 0 to N - 1 (default 3)')
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> int:
    from sweeps.equal_time import write_equal_time

    try:
        if args.seeds < 1:
            raise ValueError(f'--seeds must be at least 1, got {args.seeds}')
        path = write_equal_time(load_sweep(args.sweep), list(range(args.seeds)), args.output)
    except (ValueError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    print(path.read_text(encoding='utf-8').partition('\ntitle: ')[0])
    print(path)
    return 0


if __name__ == '__main__':
    sys.exit(main(parse_args()))
