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
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.model_tool import model_parser, model_tool

TABLES = ('.csv', '.parquet')  # formats with a column for each feature
SUFFIXES = ('.npz', *TABLES)


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = model_parser(__doc__)
    add = parser.add_argument
    data = "folder of images, packed store, or CSV file in CheXpert's layout"
    add('data', metavar='DATA', help=data)
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
    args = parser.parse_args(arguments)
    suffix = args.output.suffix.lower()
    if suffix not in SUFFIXES:
        parser.error(f'--output must end in one of {", ".join(SUFFIXES)}, got {args.output}')
    if args.tokens and suffix in TABLES:
        parser.error(f'--output must end in .npz with --tokens, got {args.output}')
    if suffix == '.parquet' and importlib.util.find_spec('pyarrow') is None:
        parser.error('--output .parquet needs pyarrow: pip install pyarrow, or write .npz or .csv')
    return args


if __name__ == '__main__':
    parse_args()  # answers --help and wrong flags before the imports below, which take seconds

import numpy as np
import pandas as pd
import torch
from torch import nn

from data.images.noted_images import NotedImages, NotedLoader, describe_notes, is_skipped
from data.tables.given_folders import read_images
from data.tables.reading import require_packed_steps
from data.tables.records import images_of
from data.transforms import EvalTransform
from evaluation.inference import require_finite
from evaluation.probes.features import batch_features, encoder_config, load_encoder, trained_views
from system.device import local_device
from system.files import atomic_writer


def compute_features(
    model: nn.Module, loader: NotedLoader, file: BinaryIO, *, device: torch.device, tokens: bool
) -> np.ndarray:  # [N, F] or [N, L, F]
    """Compute the features of the images that can be used.

    They are in a file and not in the memory, into which the tokens may not fit.
    """
    shape = ()
    for images, notes, index in loader:
        values = batch_features(model, images, device, tokens=tokens)
        require_finite(values, loader.dataset, start=int(index[0]))
        used = [not is_skipped(note) for note in notes]
        file.write(values[used].tobytes())
        shape = values.shape[1:]
    file.flush()
    if not file.tell():
        raise ValueError(f'none of the {len(loader.notes)} images can be used: {loader.notes[0]}')
    return np.memmap(file, np.float32, 'r').reshape(-1, *shape)


def write_features(path: Path, features: np.ndarray, names: Mapping[str, np.ndarray]) -> None:
    """Write features and arrays of text [N] as NPZ, or as a table with the columns f0, f1, ..."""
    with atomic_writer(path) as file:
        if path.suffix.lower() not in TABLES:
            texts = {name: values.astype(str) for name, values in names.items()}
            np.savez(file, features=features, **texts)
            return
        values = pd.DataFrame(features, columns=[f'f{k}' for k in range(features.shape[1])])
        table = pd.concat([pd.DataFrame(dict(names)), values], axis=1)
        if path.suffix.lower() == '.csv':
            options = {'lineterminator': '\n', 'errors': 'surrogateescape'}
            table.to_csv(file, index=False, mode='wb', **options)
        else:
            table.to_parquet(file, engine='pyarrow', index=False)


@model_tool
def main(args: argparse.Namespace) -> int:
    device = args.device or local_device()
    records = read_images(args.data, args.dataset, args.split)
    config = encoder_config(args.checkpoint, args.cfg, args.opts, tokens=args.tokens)
    require_packed_steps(config, records.root)
    is_own = not (args.cfg or args.opts)
    model, remarks = load_encoder(config, args.checkpoint, device, is_own=is_own)
    for remark in remarks:
        print(f'note: {remark}')
    transform = EvalTransform(config, is_scored=False)
    images = NotedImages(
        images_of(records),
        records.file,
        transform,
        skip_bad=args.skip_bad,
        views=records.view,
        trained='all' if args.cfg else trained_views(config),
    )
    loader = NotedLoader(images, config, args.batch_size, args.num_workers)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=args.output.parent) as file:
        options = {'device': device, 'tokens': args.tokens}
        features = compute_features(model, loader, file, **options)
        used = np.array([not is_skipped(note) for note in loader.notes])
        names = {name: getattr(records, name)[used] for name in ('path', 'patient', 'study')}
        write_features(args.output, features, names)
    if unknown := int((names['patient'] == names['path']).sum()):
        print(
            f'{unknown:,} of {len(features):,} images name no patient, and each counts as one: '
            'a table with a column Patient in the folder, or --dataset, says it',
            file=sys.stderr,
        )
    for line in describe_notes(loader.notes, records.path):
        print(line, file=sys.stderr)
    rest = '' if used.all() else f', and {(~used).sum()} skipped'
    kind = 'tokens' if args.tokens else 'features'
    print(f'{args.output}: {kind} of {len(features)} image(s){rest}. Not for clinical use.')
    return int(not used.all())


if __name__ == '__main__':
    sys.exit(main(parse_args()))
