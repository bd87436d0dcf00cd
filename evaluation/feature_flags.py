"""Flags of scripts/features.py. Apart from it, so that --help does not load PyTorch."""

import argparse
import importlib.util
from pathlib import Path

from system.tool import Paragraphs

TABLES = ('.csv', '.parquet')  # formats with a column for each feature
SUFFIXES = ('.npz', *TABLES)


def parse_args(arguments: list[str] | None = None, *, about: str = '') -> argparse.Namespace:
    """Parse the flags; `about` is what --help says about the script."""
    parser = argparse.ArgumentParser(description=about, formatter_class=Paragraphs)
    add = parser.add_argument
    place = "folder of images, packed store, or CSV file in CheXpert's layout"
    add('data', metavar='DATA', help=place)
    add('--checkpoint', required=True, metavar='C.pth', help='checkpoint, file or URL of weights')
    add('--output', required=True, type=Path, metavar='OUT.npz', help='.npz, .csv or .parquet')
    add('--tokens', action='store_true', help='all tokens of the last stage (.npz only)')
    cfg = 'options of the encoder and its images (default: those in the checkpoint)'
    add('--cfg', metavar='FILE', help=cfg)
    add('--opts', nargs='+', default=[], metavar='KEY VALUE', help='change some of these options')
    dataset = 'DATA is the folder of this data set, such as chexpert or nih (see DATA.DATASET)'
    add('--dataset', default='', metavar='NAME', help=dataset)
    splits = ('train', 'valid', 'test')
    add('--split', default='train', choices=splits, help='split of --dataset (default: train)')
    add('--batch-size', type=int, help='images per batch (default: as in the run, at most 128)')
    add('--num-workers', type=int, help='processes that load images (default: as in the run)')
    add('--skip-bad', action='store_true', help='skip unusable images and list them')
    add('--device', help='cpu, cuda or cuda:N (default: a GPU if there is one)')
    args = parser.parse_args(arguments)
    suffix = args.output.suffix.lower()
    if suffix not in SUFFIXES:
        parser.error(f'--output must end in one of {", ".join(SUFFIXES)}, got {args.output}')
    if args.tokens and suffix in TABLES:
        parser.error(f'--output must end in .npz with --tokens, got {args.output}')
    if suffix == '.parquet' and importlib.util.find_spec('pyarrow') is None:
        parser.error('--output .parquet needs pyarrow: pip install pyarrow, or write .npz or .csv')
    if args.batch_size is not None and args.batch_size < 1:
        parser.error(f'--batch-size must be at least 1, got {args.batch_size}')
    return args
