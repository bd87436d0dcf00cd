"""Fine-tune in rounds: keep confident predictions on unlabelled patients, and train again.

python scripts/pseudo_label.py --cfg configs/... --data-path DIR --output D [--pretrained CKPT]
    --rounds 3 --keep threshold --confidence 0.9 [--all-labels] --opts DATA.TRAIN_FRACTION 0.1

The patients outside DATA.TRAIN_FRACTION (or DATA.TRAIN_IMAGES) count as unlabelled. The same
command resumes after a stop. The results are D/rounds.md and D/rounds.csv.
"""

import argparse
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluation.pseudo_labels import KEEP
from sweeps.pseudo_labels import Rounds, Setup, write_rounds


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('--cfg', required=True, metavar='FILE', help='YAML of fine-tuning')
    add('--data-path', required=True, metavar='DIR', help='root folder of the data')
    add('--output', required=True, metavar='D', help='folder of all rounds')
    add('--pretrained', default='', metavar='CKPT', help='what every round starts from')
    add('--rounds', type=int, default=3, metavar='R', help='at most, after round 0 (%(default)s)')
    add('--keep', choices=KEEP, default='threshold', help='what is kept (%(default)s)')
    add('--confidence', type=float, default=0.9, metavar='C',
        help='share of the errors at the base rate that must be gone (%(default)s)')  # fmt: skip
    add('--all-labels', action='store_true', help='also run with the real labels of all patients')
    add('--equal-steps', action='store_true',
        help='fewer epochs if there are more images: about the steps of round 0')  # fmt: skip
    add('--processes', type=int, default=1, help='of a run: the GPUs it takes (%(default)s)')
    add('--opts', nargs='+', default=[], metavar='KEY VALUE', help='options over the YAML file')
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> int:
    try:
        for name in ('rounds', 'processes'):
            if getattr(args, name) < 1:
                raise ValueError(f'--{name} must be at least 1, got {getattr(args, name)}')
        setup = Setup(
            cfg=os.path.abspath(args.cfg),
            data=os.path.abspath(args.data_path),
            output=Path(args.output).absolute(),
            pretrained=os.path.abspath(args.pretrained) if args.pretrained else '',
            options=args.opts,
            processes=args.processes,
            keep=args.keep,
            confidence=args.confidence,
            equal_steps=args.equal_steps,
        )
        rounds = Rounds(setup, _say)
        code = rounds.run(args.rounds, after_round=write_rounds)
        if not code and args.all_labels:
            code = rounds.run_reference()
        if code:
            return code
        print(f'\n{write_rounds(rounds).read_text()}')
        print(f'best: {rounds.jobs[rounds.best].folder}')
        return 0
    except (ValueError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2


def _say(line: str) -> None:
    print(f'{time.strftime("%H:%M:%S")}  {line}', flush=True)


if __name__ == '__main__':
    sys.exit(main(parse_args()))
