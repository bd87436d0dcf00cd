"""Predict the labels of new images with a fine-tuned checkpoint. Not for clinical use.

python scripts/predict.py IMAGE_OR_FOLDER ... --checkpoint C.pth --output F.csv [--maps LABEL ...]

Exit code: 0; 1 if an image was skipped (--skip-bad); 2 if nothing was written.
"""

import argparse
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.model_tool import model_parser, model_tool
from evaluation.maps import AUTO, METHODS


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = model_parser(__doc__)
    add = parser.add_argument
    sources = "folders are searched recursively; a CSV file has CheXpert's layout"
    add('images', nargs='+', metavar='IMAGE_OR_FOLDER', help=sources)
    add('--checkpoint', required=True, metavar='C.pth', help='checkpoint of main_finetune.py')
    add('--output', required=True, type=Path, metavar='F.csv', help='F.json is also written')
    dataset = 'predict a split of this data set in the folder, such as nih (see DATA.DATASET)'
    add('--dataset', default='', metavar='NAME', help=dataset)
    add('--split', default='test', choices=('train', 'valid', 'test'), help='split of --dataset')
    add('--maps', nargs='+', default=[], metavar='LABEL',
        help='also write a figure per image to F_maps, with Grad-CAM of these labels, or with '
        'the attention of the head MODEL.HEAD attention')  # fmt: skip
    methods = 'method of the maps (default: as in --maps)'
    add('--method', default=AUTO, choices=(AUTO, *METHODS), help=methods)
    args = parser.parse_args(arguments)
    if args.output.suffix.lower() != '.csv':
        parser.error(f'--output must end in .csv, got {args.output}')
    return args


if __name__ == '__main__':
    parse_args()  # answers --help and wrong flags before the imports below, which take seconds

import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from config import Config, put
from data.fingerprint import hash_names
from data.images.files import load_image
from data.images.image_source import Folder
from data.images.noted_images import NotedImages, NotedLoader, describe_notes, is_skipped
from data.tables.chexpert import SPLITS, read_csv
from data.tables.given_folders import read_images
from data.tables.identity import STUDY
from data.tables.metadata import unknown_subjects
from data.tables.predictions import write_predictions
from data.tables.reading import read_split
from data.tables.records import Records, images_of, task_of
from data.tables.sources import source_configs
from data.transforms import EvalTransform
from engine.lineage import Lineage
from engine.run_record import known_record
from evaluation.inference import load_classifier, patient_inputs, predict
from evaluation.run_facts import KNOWN, ON_VALID, SEEN, SHARED
from evaluation.saliency import (
    enlarge,
    label_maps,
    map_title,
    plot_prediction,
    read_view,
    reason_without_maps,
)
from evaluation.scored_run import chosen_on, known_of
from system.device import local_device
from utils import read_checkpoint, trained_config

LOGGER = logging.getLogger('predict')


class Listed(NamedTuple):
    """What is known of an image without opening it; '' if neither a table nor a name tells it."""

    view: str = ''
    patient: str = ''
    sex: str = 'Unknown'
    age: float = float('nan')
    ap_pa: str = ''
    study: str = ''


def list_images(sources: list[str], dataset: str = '', split: str = 'test') -> dict[str, Listed]:
    """List the given image files and the images of folders and CSV files by path, each only once.

    With `dataset`, folders contain this data set, and only the images of the split are listed.
    """
    found: dict[str, Listed] = {}
    for source in sources:
        is_csv = source.lower().endswith('.csv')
        if is_csv or os.path.isdir(source):
            records = read_images(source, dataset, split)
            folder = os.path.dirname(source) if is_csv else source
            # An image without a patient stands for one.
            named = np.where(records.patient == records.path, '', records.patient)
            columns = (records.view, named, records.sex, records.age, records.ap_pa, records.study)
            for file, *told in zip(records.file, *columns, strict=True):
                path, listed = os.path.join(folder, file), Listed(*told)
                patient = listed.patient or patient_of(path)
                found.setdefault(path, listed._replace(patient=patient))
        else:
            found.setdefault(source, Listed(patient=patient_of(source)))
    return found


def patient_of(path: str) -> str:
    """Return the patient that a path such as patient00001/study1/view1.jpg names, or ''."""
    study = STUDY.match(path)
    return study['patient'] if study else ''


def read_config(path: str) -> Config:
    """Return the options of the run that wrote a fine-tuned checkpoint."""
    is_classifier = 'head.weight' in read_checkpoint(path)['model']
    config = trained_config(path, 'finetune') if is_classifier else None
    if config is None:
        raise ValueError(f'{path} is not a fine-tuned checkpoint of main_finetune.py')
    if config.EVAL.MASK_RATIO:
        print(
            f'all patches are read, although the run was scored with EVAL.MASK_RATIO '
            f'{config.EVAL.MASK_RATIO}',
            file=sys.stderr,
        )
        put(config, 'EVAL.MASK_RATIO', 0.0, path)
    put(config, 'DATA.DEMOGRAPHICS', '', path)  # a file beside the images of the training
    return config


def read_elsewhere(config: Config, data_path: str, dataset: str, flag: str) -> None:
    """Let a config read another folder or store; with `dataset`, this data set and its tables."""
    options = {'DATA.DATA_PATH': data_path, 'DATA.CACHE_DIR': '', 'EVAL.DATA_PATH': ''}
    if dataset:
        options |= {'DATA.DATASET': dataset, 'DATA.SOURCES': []}
        options |= {f'DATA.{name.upper()}_CSV': f'{name}.csv' for name in SPLITS}
    for key, value in options.items():
        put(config, key, value, flag)


def predict_images(
    config: Config,
    model: nn.Module,
    images: Mapping[str, Listed],
    *,
    device: str | torch.device,
    records: Records | None = None,
    skip_bad: bool = False,
    batch_size: int | None = None,
    num_workers: int | None = None,
) -> tuple[pd.DataFrame, list[str]]:
    """Predict the labels of images.

    Args:
        config: Result of `read_config`.
        model: Classifier of the checkpoint.
        images: Result of `list_images`.
        device: Where the model computes.
        records: Records of the images by their `file`; None for files with these paths.
        skip_bad: Whether images that cannot be read are left out.
        batch_size: Images in a batch; None for that of the config.
        num_workers: Processes that read images; None for the number in the config.

    Returns:
        Probabilities, a row for each image that was used and a column for each label; and a note
        on each image, see `data.images.noted_images`.
    """
    paths, task = [*images], task_of(config)
    views = [image.view for image in images.values()]
    options = {'views': views, 'trained': config.DATA.VIEWS, 'skip_bad': skip_bad}
    source = Folder('.') if records is None else images_of(records)
    noted = NotedImages(source, paths, EvalTransform(config), **options)
    noted.patients = pd.DataFrame(images.values()) if records is None else records
    if (numbers := patient_inputs(config, noted)) is not None:
        inputs = config.MODEL.PATIENT.INPUTS
        for subject in unknown_subjects(numbers.numpy(), inputs):
            line = f"warning: MODEL.HEAD 'patient': the {subject} of no image is known"
            print(line, file=sys.stderr)
    loader = NotedLoader(noted, config, batch_size, num_workers)
    logits = predict(config, device, model, loader)
    used = [i for i, note in enumerate(loader.notes) if not is_skipped(note)]
    if not used:
        raise ValueError(f'none of the {len(paths)} images can be used: {loader.notes[0]}')
    names = pd.Index([paths[i] for i in used], name='Path')
    return pd.DataFrame(task.probabilities(logits[used]), names, task.labels), loader.notes


def maps_folder(output: Path) -> Path:
    """Return the folder of the figures that belong to a file of predictions."""
    return output.with_name(f'{output.stem}_maps')


def figure_name(row: int, path: str) -> str:
    """Return the name of the figure of a row: its number, and the end of the image's path.

    In CheXpert and MIMIC-CXR the last three parts of a path are patient, study and view. A number
    after the last dot is no suffix but belongs to an UID.
    """
    stem, suffix = os.path.splitext(path)
    name = path if suffix[1:].isdigit() else stem
    return '_'.join([f'{row:04d}', *name.split('/')[-3:]])


def true_labels(config: Config, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return path -> label -> 1, 0 or NaN (not scored) of the images of --dataset and CSV files.

    The labels of the model are read with the options of its run. If the data set or the file lacks
    one of them, or has no label at all, there are no labels, and a warning.
    """
    found, config = {}, config.clone()
    task = task_of(config)
    for source in args.images:
        folder, is_csv = source, source.lower().endswith('.csv')
        try:
            if is_csv:
                folder, name = os.path.split(source)
                records = read_csv(folder or '.', name, labels=task.labels)
                if np.isnan(records.labels).all():
                    raise ValueError(f'{source} has no label')
            elif args.dataset:
                read_elsewhere(config, source, args.dataset, '--dataset')
                task = task_of(config)
                records = read_split(config, args.split, LOGGER)
            else:
                continue
            paths = [os.path.join(folder, file) for file in records.file]
            found |= pd.DataFrame(task.scored(records), paths, task.labels).to_dict('index')
        except ValueError as error:
            print(f'warning: the figures show no true labels: {error}', file=sys.stderr)
    return found


def write_figures(
    args: argparse.Namespace, config: Config, model: nn.Module, probabilities: pd.DataFrame
) -> None:
    """Write a figure per image: the image, maps of the labels in --maps, and all probabilities."""
    folder, truth = maps_folder(args.output), true_labels(config, args)
    view, device = EvalTransform(config), next(model.parameters()).device
    bar = tqdm(probabilities.iterrows(), 'maps', len(probabilities), unit='image', disable=None)
    for number, (path, row) in enumerate(bar, start=1):
        original = load_image(path)
        grey, image = read_view(view, original)
        image, maps = image.to(device), {}
        for label in args.maps:
            found = label_maps(config, model, image, row.index.get_loc(label), args.method)
            maps[label], cells = enlarge(found, image)[0].cpu().numpy(), found.shape[-1]
        plot_prediction(
            folder / figure_name(number, path),
            {
                f'original, {original.width} x {original.height} px': original,
                f'as the model sees it, {len(grey)} x {len(grey)} px': grey,
            },
            maps,
            dict(row),
            title=f'{map_title(model, args.method)}, {cells} x {cells} cells',
            truth=truth.get(path),
            file=path,
        )
    print(f'{len(probabilities)} figures, each as PNG and SVG, in {folder}')


def describe_known(
    config: Config, args: argparse.Namespace, images: Mapping[str, Listed], device: torch.device
) -> dict[str, Any]:
    """Return what is recorded of the run of a checkpoint, and warn if it has seen the patients.

    Without --dataset, a table or a folder has CheXpert's form, and its patients are compared only
    if the run has such data, too.
    """
    folder, scoring = Path(args.checkpoint).parent, config.clone()
    put(scoring, 'EVAL_MODE', True, '--checkpoint')
    dataset = args.dataset or 'chexpert'
    trained = {own.DATA.DATASET for own in source_configs(config).values()}
    can_compare = bool(args.dataset) or dataset in trained
    named = [image.patient for image in images.values() if image.patient] if can_compare else []
    lineage = Lineage(scoring, {'the predicted images': hash_names([(dataset, named)])})
    lineage.start_from(args.checkpoint, read_checkpoint(args.checkpoint), LOGGER)
    facts, doubts = known_of(
        lineage,
        config,
        args.checkpoint,
        chosen=chosen_on(config, args.checkpoint, folder),
        patients={},
        record=known_record(folder),
        device=device,
    )
    # Where nothing could be compared, that nothing was found says nothing.
    unknown = set() if len(named) == len(images) else {SEEN, SHARED}
    if doubts[ON_VALID]:
        unknown.add(ON_VALID)
    doubts = {doubt: lines for doubt, lines in doubts.items() if lines or doubt not in unknown}
    return {'facts': facts, 'doubts': doubts}


@model_tool
def main(args: argparse.Namespace) -> int:
    folder = maps_folder(args.output)
    if args.maps and folder.is_dir() and any(folder.iterdir()):
        raise ValueError(
            f'--maps: the folder {folder} is not empty; remove it, or choose another --output'
        )
    config = read_config(args.checkpoint)
    images = list_images(args.images, args.dataset, args.split)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    device = args.device or local_device()
    model = load_classifier(config, args.checkpoint, device, LOGGER)
    labels = task_of(config).labels
    if unknown := set(args.maps) - set(labels):
        raise ValueError(f'--maps must be labels of {", ".join(labels)}; got {sorted(unknown)}')
    if args.maps and (lacking := reason_without_maps(model, args.method)):
        raise ValueError(f'--maps: {args.checkpoint} has {lacking}')
    table, notes = predict_images(
        config,
        model,
        images,
        device=device,
        skip_bad=args.skip_bad,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
    )
    write_predictions(
        args.output,
        table.to_numpy(),
        paths=table.index,
        labels=labels,
        source={
            'checkpoint': args.checkpoint,
            'run': config.TAG,
            'task': config.DATA.TASK,
            'trained_views': config.DATA.VIEWS,
            'rows': len(table),
            KNOWN: describe_known(config, args, images, torch.device(device)),
        },
    )
    if args.maps:
        write_figures(args, config, model, table)
    for line in describe_notes(notes, [*images]):
        print(line, file=sys.stderr)
    skipped = len(images) - len(table)
    rest = f', and {skipped} skipped' if skipped else ''
    print(f'{args.output}: predictions for {len(table)} image(s){rest}. Not for clinical use.')
    return int(skipped > 0)


if __name__ == '__main__':
    sys.exit(main(parse_args()))
