"""Fine-tune a teacher, keep its confident predictions on unlabelled patients, and train a student.

python scripts/pseudo_label.py --cfg configs/... --data-path DIR --output D [--pretrained CKPT]
    --confidence 0.9 [--rounds 3] [--seeds 3] [--all-labels] --opts DATA.TRAIN_FRACTION 0.1

Patients outside DATA.TRAIN_FRACTION (or DATA.TRAIN_IMAGES) count as unlabelled. After a stop, the
same command resumes. D/pseudo_labels_auroc.md (also .csv and .tex) has the AUROCs. Files
of the same form have accuracy, precision and recall, and D/pseudo_labels_rounds.png has the AUROC
by round.
"""

import argparse
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sweeps.pseudo_labels import PseudoLabels, write_tables
from system.tool import Paragraphs, at_least, tool


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Paragraphs)
    add = parser.add_argument
    add('--cfg', required=True, metavar='FILE', help='YAML file of fine-tuning')
    add('--data-path', required=True, metavar='DIR', help='root folder of the data')
    add('--output', required=True, metavar='D', help='folder of all runs')
    add('--pretrained', default='', metavar='CKPT', help='checkpoint that every run starts from')
    add('--confidence', type=float, default=0.9, metavar='C', help='required reduction of the '
        'errors, as a share of the errors at the base rate (%(default)s)')  # fmt: skip
    add('--rounds', type=at_least(1), default=1, metavar='N',
        help='students, each taught by the one before it (%(default)s)')  # fmt: skip
    add('--seeds', type=at_least(1), metavar='N', help='repeat all with the seeds 0 to N - 1 '
        'in folders D/seed_S (default: only SEED of the config, in D)')  # fmt: skip
    add('--all-labels', action='store_true', help='also run with the real labels of all patients')
    add('--equal-steps', action='store_true',
        help='fewer epochs with more images, for about the same number of steps')  # fmt: skip
    add('--processes', type=at_least(1), default=1, help='processes (GPUs) of a run (%(default)s)')
    add('--opts', nargs='+', default=[], metavar='KEY VALUE', help='pairs of key and value')
    args = parser.parse_args(argv)
    if not 0 < args.confidence <= 1:
        parser.error('--confidence must be above 0 and at most 1')
    return args


@tool
def main(args: argparse.Namespace) -> int:
    output, works = Path(args.output).absolute(), []
    for seed in range(args.seeds) if args.seeds else [None]:
        work = PseudoLabels(
            cfg=os.path.abspath(args.cfg),
            data=os.path.abspath(args.data_path),
            output=output if seed is None else output / f'seed_{seed}',
            options=[*args.opts, *([] if seed is None else ['SEED', str(seed)])],
            pretrained=os.path.abspath(args.pretrained) if args.pretrained else '',
            processes=args.processes,
            confidence=args.confidence,
            equal_steps=args.equal_steps,
            say=lambda line: print(f'{time.strftime("%H:%M:%S")}  {line}', flush=True),
        )
        if code := work.run(all_labels=args.all_labels, rounds=args.rounds):
            return code
        works.append(work)
    for page in write_tables(works, output):
        print(page.read_text())
    return 0


if __name__ == '__main__':
    sys.exit(main(parse_args()))
