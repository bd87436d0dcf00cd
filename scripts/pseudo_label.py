"""Fine-tune in rounds: keep confident predictions on unlabelled patients, and train again.

python scripts/pseudo_label.py --cfg configs/... --data-path DIR --output D [--pretrained CKPT]
    --rounds 3 --keep threshold --confidence 0.9 [--all-labels] --opts DATA.TRAIN_FRACTION 0.1

Patients outside DATA.TRAIN_FRACTION (or DATA.TRAIN_IMAGES) count as unlabelled. After a stop, the
same command resumes. The results are in D/rounds.md and D/rounds.csv.
"""

import argparse
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluation.pseudo_label_choice import KEEP
from sweeps.pseudo_label_rounds import TABLE, Rounds
from system.tool import Paragraphs, tool


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Paragraphs)
    add = parser.add_argument
    add('--cfg', required=True, metavar='FILE', help='YAML file of fine-tuning')
    add('--data-path', required=True, metavar='DIR', help='root folder of the data')
    add('--output', required=True, metavar='D', help='folder of all rounds')
    add('--pretrained', default='', metavar='CKPT', help='checkpoint that every round starts from')
    add('--rounds', type=int, default=3, metavar='R',
        help='maximum number of rounds after round 0 (%(default)s)')  # fmt: skip
    add('--keep', choices=KEEP, default='threshold',
        help='rule that selects predictions (%(default)s)')  # fmt: skip
    add('--confidence', type=float, default=0.9, metavar='C', help='required reduction of the '
        'errors, as a share of the errors at the base rate (%(default)s)')  # fmt: skip
    add('--all-labels', action='store_true', help='also run with the real labels of all patients')
    add('--equal-steps', action='store_true',
        help='fewer epochs with more images, for about the same number of steps')  # fmt: skip
    add('--processes', type=int, default=1, help='processes (GPUs) of a run (%(default)s)')
    add('--opts', nargs='+', default=[], metavar='KEY VALUE', help='pairs of key and value')
    args = parser.parse_args(argv)
    if min(args.rounds, args.processes) < 1:
        parser.error('--rounds and --processes must be at least 1')
    if not 0 < args.confidence <= 1:
        parser.error('--confidence must be above 0 and at most 1')
    return args


@tool
def main(args: argparse.Namespace) -> int:
    rounds = Rounds(
        cfg=os.path.abspath(args.cfg),
        data=os.path.abspath(args.data_path),
        output=Path(args.output).absolute(),
        options=args.opts,
        pretrained=os.path.abspath(args.pretrained) if args.pretrained else '',
        processes=args.processes,
        keep=args.keep,
        confidence=args.confidence,
        equal_steps=args.equal_steps,
        say=lambda line: print(f'{time.strftime("%H:%M:%S")}  {line}', flush=True),
    )
    code = rounds.run(args.rounds)
    if not code and args.all_labels:
        code = rounds.run_all_labels()
    if not code:
        print((rounds.output / f'{TABLE}.md').read_text())
        print(f'best: {rounds.jobs[rounds.best].folder}')
    return code


if __name__ == '__main__':
    sys.exit(main(parse_args()))
