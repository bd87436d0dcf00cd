"""Write the features of a frozen encoder for each image of a data set. Not for clinical use.

python scripts/features.py DATA --checkpoint C.pth --output OUT.npz [--tokens]

The checkpoint is of any main script, or one that --pretrained of main_finetune.py accepts, with
--cfg. The features are those of a probe.

Exit code: 0; 1 if an image was skipped (--skip-bad); 2 if nothing was written.
"""

import argparse
import importlib.util
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.given_folders import read_images
from data.noted_images import NotedImages, describe_notes, is_skipped
from data.reading import require_packed_steps
from data.records import Records, images_of
from data.transforms import EvalTransform
from engine.model_tool import model_tool, named_device
from evaluation.feature_files import write_npz, write_table
from evaluation.features import batch_features, encoder_config, load_encoder
from evaluation.inference import require_finite
from system.device import local_device
from system.files import LOADER_FILES, allow_open_files
from system.tool import Paragraphs, usable_cpus

MOST_IMAGES = 128  # maximum default batch size
CHUNK = 512  # images whose features are read at a time
TABLES = ('.csv', '.parquet')  # formats with a column for each feature
SUFFIXES = ('.npz', *TABLES)


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Paragraphs)
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


def compute_features(
    model: nn.Module, loader: DataLoader, file: BinaryIO, *, device: torch.device, tokens: bool
) -> tuple[tuple[int, ...], list[str]]:
    """Write the features of all images to a file, because tokens may not fit into the memory.

    Returns:
        The shape of the features of an image, and a note about each image.
    """
    shape, notes = (), []
    with tqdm(total=len(loader.dataset), desc='features', unit='image', disable=None) as bar:
        for pixels, about, _ in loader:
            values = batch_features(model, pixels, device, tokens=tokens)
            require_finite(values, loader.dataset, start=len(notes))
            file.write(values.tobytes())
            shape = values.shape[1:]
            notes += about
            bar.update(len(about))
    return shape, notes


def read_features(file: BinaryIO, shape: tuple[int, ...], used: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the features of the images for which `used` [N] is true."""
    file.seek(0)
    for start in range(0, len(used), CHUNK):
        own = used[start : start + CHUNK]
        part = file.read(len(own) * int(np.prod(shape)) * np.dtype(np.float32).itemsize)
        yield np.frombuffer(part, np.float32).reshape(-1, *shape)[own]


def write_features(
    args: argparse.Namespace,
    file: BinaryIO,
    shape: tuple[int, ...],
    notes: list[str],
    records: Records,
) -> int:
    """Write the output, report problems with images, and return the exit code."""
    used = np.array([not is_skipped(note) for note in notes])
    if not used.any():
        raise ValueError(f'none of the {len(notes)} images can be used: {notes[0]}')
    names = {name: getattr(records, name)[used] for name in ('path', 'patient', 'study')}
    write = write_table if args.output.suffix.lower() in TABLES else write_npz
    write(args.output, read_features(file, shape, used), names)
    for line in describe_notes(notes, records.path):
        print(line, file=sys.stderr)
    rest = '' if used.all() else f'; {(~used).sum()} were skipped'
    kind = 'tokens' if args.tokens else 'features'
    print(f'{args.output}: {kind} of {used.sum()} images{rest}. Not for clinical use.')
    return int(not used.all())


@model_tool
def main(args: argparse.Namespace) -> int:
    device = named_device(args.device) if args.device else local_device()
    records = read_images(args.data, args.dataset, args.split)
    config = encoder_config(args.checkpoint, args.cfg, args.opts, tokens=args.tokens)
    require_packed_steps(config, records.root)
    is_own = not (args.cfg or args.opts)
    model, remarks = load_encoder(config, args.checkpoint, device, is_own=is_own)
    for remark in remarks:
        print(f'note: {remark}')
    workers = config.DATA.NUM_WORKERS if args.num_workers is None else args.num_workers
    workers = min(workers, usable_cpus())
    allow_open_files(workers, per_worker=LOADER_FILES)
    transform = EvalTransform(config, is_scored=False)
    images = NotedImages(images_of(records), records.file, transform, skip_bad=args.skip_bad)
    size = args.batch_size or min(config.DATA.BATCH_SIZE, MOST_IMAGES)
    loader = DataLoader(images, batch_size=size, num_workers=workers)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=args.output.parent) as file:
        options = {'device': device, 'tokens': args.tokens}
        shape, notes = compute_features(model, loader, file, **options)
        return write_features(args, file, shape, notes, records)


if __name__ == '__main__':
    sys.exit(main(parse_args()))
