"""Score what frozen tokens say about a mask inside each of them. Not for clinical use.

python scripts/dense_probe.py DATA --run RUN [RUN ...] --masks FOLDER --output DIR

python scripts/dense_probe.py DATA --run RUN [RUN ...] --regions FILE --output DIR

A ridge regression predicts from each token of an encoder the share of the mask inside it. The
shares are enlarged to the mask, and scored by Dice, IoU and average precision over pixels, in five
folds of patients. Baselines are the same encoder with random weights, and the same regression on
position and grey levels, and on position alone. RUN is a run folder, a checkpoint, or weights that
--pretrained of main_finetune.py accepts, with --cfg. FOLDER has a mask of each image, with its name
and any suffix, such as those of DATA.LUNG_MASKS. FILE is as in localise.py.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from system.tool import Paragraphs, at_least


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Paragraphs)
    add = parser.add_argument
    data = "folder of images, packed store, or CSV file in CheXpert's layout"
    add('data', metavar='DATA', help=data)
    add('--run', nargs='+', required=True, metavar='RUN', help='encoders')
    masks = parser.add_mutually_exclusive_group(required=True)
    masks.add_argument('--masks', type=Path, metavar='FOLDER', help='masks of the images')
    masks.add_argument('--regions', type=Path, metavar='FILE', help='boxes or masks by label')
    add('--output', required=True, type=Path, metavar='DIR', help='folder of tables and figure')
    cfg = 'options of the encoders and their images (default: those in the checkpoints)'
    add('--cfg', metavar='FILE', help=cfg)
    add('--opts', nargs='+', default=[], metavar='KEY VALUE', help='change some of these options')
    dataset = 'DATA is the folder of this data set, such as chexpert or nih (see DATA.DATASET)'
    add('--dataset', default='', metavar='NAME', help=dataset)
    splits = ('train', 'valid', 'test')
    add('--split', default='train', choices=splits, help='split of --dataset (default: train)')
    size = 'size of the images on which the regions were drawn, if the file does not state it'
    add('--annotated-size', nargs=2, type=at_least(1), metavar=('HEIGHT', 'WIDTH'), help=size)
    squeezed = 'the images were squeezed to another shape than that on which the regions were drawn'
    add('--squeezed', action='store_true', help=squeezed)
    resamples = 'resamples of the patients (%(default)s; below 200 there are no intervals)'
    add('--resamples', type=at_least(0), default=1000, help=resamples)
    add('--seed', type=at_least(0), default=0, help='of resamples and weights (%(default)s)')
    add('--batch-size', type=at_least(1), help='images per batch (default: as in the run)')
    add('--num-workers', type=at_least(0), help='processes that load images (default: as in it)')
    add('--device', help='cpu, cuda or cuda:N (default: a GPU if there is one)')
    return parser.parse_args(arguments)


if __name__ == '__main__':
    parse_args()  # answers --help and wrong flags before the imports below, which take seconds


from data.tables.given_folders import read_images
from data.tables.records import Records
from engine.model_tool import device_named, model_tool
from evaluation.metrics import FEW_CASES
from evaluation.regions.analysis import (
    OF_SEGMENTATION,
    analyse,
    baselines_of,
    find_cases,
    score_source,
)
from evaluation.regions.dense import DenseProbe, Loading, read_masks
from evaluation.regions.model_maps import checkpoint_of, told_of_unfinished
from evaluation.regions.page import SYNTHETIC, Localisation, write_scores
from evaluation.regions.readers import read_regions
from evaluation.regions.regions import Size
from evaluation.regions.sources import PRIOR
from system.device import local_device
from system.pages import are_synthetic

HOW = 'Penalty of the regression and threshold of Dice and IoU are chosen on other patients.'


def probes(args: argparse.Namespace, records: Records) -> list[DenseProbe]:
    """Open the encoders."""
    device = device_named(args.device) if args.device else local_device()
    loading = Loading(device, args.batch_size, args.num_workers)
    found = []
    for run in args.run:
        is_path = Path(run).exists()  # otherwise a name of weights
        checkpoint = checkpoint_of(Path(run)) if is_path else run
        name = Path(run).absolute().name
        options = {'options': (args.cfg, args.opts), 'seed': args.seed}
        probe = DenseProbe(str(checkpoint), name, records, loading, **options)
        probe.notes += told_of_unfinished([checkpoint] if is_path else [])
        found.append(probe)
    names = [probe.name for probe in found]
    if len({*names}) < len(names):
        raise ValueError(f'--run: each needs a name of its own, got {", ".join(names)}')
    return found


@model_tool
def main(args: argparse.Namespace) -> int:
    records = read_images(args.data, args.dataset, args.split)
    regions = read_masks(args.masks, records) if args.masks else read_regions(args.regions)
    if args.annotated_size:
        regions = regions.drawn_on(Size(*args.annotated_size))
    sources = probes(args, records)
    cases = find_cases(regions, sources, squeezed=args.squeezed)
    notes, counts = [*regions.notes, HOW], cases.marked['label'].value_counts()
    if few := [label for label, count in counts.items() if count < FEW_CASES]:
        notes.append(f'Fewer than {FEW_CASES} images with a region: {", ".join(few)}.')
    cases = replace(cases, marked=cases.marked[~cases.marked['label'].isin(few)])
    if not len(cases.marked):
        raise ValueError(
            f'{regions.file}: a probe needs {FEW_CASES} images with a region. {notes[-1]}'
        )
    if are_synthetic([records.root.name]) and not are_synthetic(cases.marked['path']):
        notes.append(SYNTHETIC)
    rows = []
    for source in sources:
        source.predict(regions, cases.marked)
        rows += score_source(source, regions, cases)
    baselines = score_source(baselines_of(cases, args.seed), regions, cases)
    rows += [row for row in baselines if row.kind == PRIOR]
    options = {'resamples': args.resamples, 'seed': args.seed, 'scoring': OF_SEGMENTATION}
    document = analyse(cases, rows, **options)
    found = Localisation(regions, cases, rows, {}, document, {}, notes)
    table = write_scores(args.output, 'dense_probe', found, OF_SEGMENTATION)
    print(table.read_text(encoding='utf-8'))
    return 0


if __name__ == '__main__':
    sys.exit(main(parse_args()))
