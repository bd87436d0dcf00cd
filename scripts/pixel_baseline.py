r"""Score the pixel baseline, a logistic regression that a trained model should beat.

python scripts/pixel_baseline.py \
    --cfg configs/swin_nano__demo/simmim_finetune__swin_nano__img64_window4__demo.yaml \
    --data-path DIR --output OUT --tag pixels [--opts KEY VALUE ...]

It reads the same images and labels as main_finetune.py with the same flags, reduces the images to
64 x 64 pixels, and chooses C for each label by cross-validation over the training patients. The
run folder has the same files, such as predictions_test.csv. Show them in the report of a model with
--opts REPORT.BASELINES "{'pixel baseline': 'OUT/simmim_finetune/pixels'}". The baseline without any
image is main_finetune.py with --opts FINETUNE.MODE metadata. Not for clinical use.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import build_parser
from engine.launch import launch
from main_finetune import main
from system.tool import Paragraphs


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = build_parser('finetune')
    parser.description, parser.formatter_class = __doc__, Paragraphs
    return parser.parse_args(arguments)


def with_mode(words: list[str]) -> list[str]:
    """Return the flags of main_finetune.py with FINETUNE.MODE pixels."""
    mode = ['FINETUNE.MODE', 'pixels']
    if '--opts' not in words:
        return [*words, '--opts', *mode]
    place = words.index('--opts') + 1
    return [*words[:place], *mode, *words[place:]]


if __name__ == '__main__':
    parse_args()  # which answers --help with the text above
    sys.exit(launch('finetune', main, with_mode(sys.argv[1:])))
