"""Compare saliency maps with regions that radiologists marked. Not for clinical use.

python scripts/localise.py --run RUN [RUN ...] --regions FILE --output DIR

python scripts/localise.py --maps FOLDER --regions FILE --output DIR [--images DATA]

FILE has boxes or masks of CheXlocalize, NIH, VinDr-CXR or RSNA, or is a table with the columns
Path, Label, x, y, width, height. RUN is the folder of a fine-tuning, or its checkpoint. Runs that
differ in their fold alone are one model, and no image is explained by a run that was trained on its
patient. FOLDER has maps of other programs, an array IMAGE__LABEL.npy for each. The page
DIR/localisation.html shows hit rate and mIoU with intervals and baselines, above all the position
prior: where the finding lies on other patients.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluation.maps import AUTO, METHODS
from system.tool import Paragraphs, at_least


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Paragraphs)
    add = parser.add_argument
    runs = 'folders of fine-tuned runs, or checkpoints'
    add('--run', nargs='+', type=Path, default=[], metavar='RUN', help=runs)
    maps = 'folders with maps of other programs, IMAGE__LABEL.npy'
    add('--maps', nargs='+', type=Path, default=[], metavar='FOLDER', help=maps)
    add('--regions', required=True, type=Path, metavar='FILE', help='boxes or masks')
    add('--output', required=True, type=Path, metavar='DIR', help='folder of page and tables')
    add('--method', default=AUTO, choices=(AUTO, *METHODS), help='maps of the runs (%(default)s)')
    data = 'folder or store of the images, if it is not where the runs found it'
    add('--data-path', metavar='DATA', help=data)
    dataset = 'the images in --data-path are of this data set and not of that of the runs'
    add('--dataset', default='', metavar='NAME', help=dataset)
    images = 'folder or store of the X-rays, to show them below --maps'
    add('--images', metavar='DATA', help=images)
    rename = 'other names of labels of the regions, such as "Lung Opacity=Pneumonia"'
    add('--rename', nargs='+', default=[], metavar='OLD=NEW', help=rename)
    size = 'size of the images on which the regions were drawn, if the file does not state it'
    add('--annotated-size', nargs=2, type=at_least(1), metavar=('HEIGHT', 'WIDTH'), help=size)
    squeezed = 'the images were squeezed to another shape than that on which the regions were drawn'
    add('--squeezed', action='store_true', help=squeezed)
    resamples = 'resamples of the patients (%(default)s; below 200 there are no intervals)'
    add('--resamples', type=at_least(0), default=1000, help=resamples)
    add('--seed', type=at_least(0), default=0, help='of resamples and baselines (%(default)s)')
    add('--device', help='cpu, cuda or cuda:N (default: a GPU if there is one)')
    args = parser.parse_args(arguments)
    if not (args.run or args.maps):
        parser.error('give --run or --maps')
    if args.dataset and not args.data_path:
        parser.error('--dataset needs --data-path')
    if wrong := [name for name in args.rename if name.count('=') != 1]:
        parser.error(f'--rename takes OLD=NEW, got {wrong[0]}')
    return args


if __name__ == '__main__':
    parse_args()  # answers --help and wrong flags before the imports below, which take seconds


from engine.model_tool import device_named, model_tool
from evaluation.regions.localise import localise, renamed_note
from evaluation.regions.model_maps import (
    RunMaps,
    Trained,
    checkpoint_of,
    folds_of_one_model,
    run_names,
    told_of_unfinished,
)
from evaluation.regions.readers import names_of_models, read_regions
from evaluation.regions.regions import Regions, Size
from evaluation.regions.sources import GivenMaps, ImageFolder, MapSource
from scripts.predict import read_config, read_elsewhere
from system.device import local_device


def open_run(path: Path, args: argparse.Namespace) -> Trained:
    """Return the selected checkpoint of a run folder, or a checkpoint, with its options."""
    checkpoint = checkpoint_of(path)
    if not checkpoint.is_file():
        raise ValueError(f'--run: there is no {path}')
    config = read_config(str(checkpoint))
    if args.data_path:
        read_elsewhere(config, args.data_path, args.dataset, '--data-path')
    if config.DATA.SOURCES:
        raise ValueError(
            f'--run: {path} was trained on DATA.SOURCES; name the images that the regions are of '
            'with --dataset and --data-path'
        )
    return Trained(checkpoint, config)


def model_sources(args: argparse.Namespace) -> list[RunMaps]:
    """Return the maps of all runs; the folds of one model are one source."""
    groups = folds_of_one_model([open_run(path, args) for path in args.run])
    device = device_named(args.device) if args.device else local_device()
    options = {'device': device, 'seed': args.seed, 'method': args.method}
    names = run_names(groups)
    return [RunMaps(group, name, **options) for group, name in zip(groups, names, strict=True)]


def given_sources(args: argparse.Namespace) -> list[MapSource]:
    """Return the maps of all folders."""
    images = ImageFolder(args.images) if args.images else None
    sources = []
    for folder in args.maps:
        if not folder.is_dir():
            raise ValueError(f'--maps: there is no folder {folder}')
        sources.append(GivenMaps(folder, folder.absolute().name, images))
    return sources


def wanted_regions(args: argparse.Namespace, predicted: list[str]) -> tuple[Regions, list[str]]:
    """Read the regions with the labels of the models, and say which were renamed."""
    regions = read_regions(args.regions)
    if args.annotated_size:
        regions = regions.drawn_on(Size(*args.annotated_size))
    names = dict(name.split('=') for name in args.rename)
    if unknown := [name for name in names if name not in regions.labels]:
        raise ValueError(
            f'--rename: {args.regions} has no label {unknown[0]}, only {", ".join(regions.labels)}'
        )
    regions = regions.renamed(names)
    found = names_of_models(regions, predicted)
    return regions.renamed(found), [*regions.notes, *renamed_note(names | found)]


@model_tool
def main(args: argparse.Namespace) -> int:
    models = model_sources(args)
    sources = [*models, *given_sources(args)]
    names = [source.name for source in sources]
    if len({*names}) < len(names):
        raise ValueError(f'--run, --maps: each needs a name of its own, got {", ".join(names)}')
    predicted = [*dict.fromkeys(label for model in models for label in model.labels)]
    regions, notes = wanted_regions(args, predicted)
    notes += told_of_unfinished(run.checkpoint for model in models for run in model.runs)
    options = {'resamples': args.resamples, 'seed': args.seed, 'squeezed': args.squeezed}
    page, _ = localise(args.output, regions, sources, notes=notes, **options)
    print((args.output / 'localisation.md').read_text(encoding='utf-8'))
    print(f'The page is {page}. Not for clinical use.')
    return 0


if __name__ == '__main__':
    sys.exit(main(parse_args()))
