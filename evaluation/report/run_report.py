"""Write the report of a fine-tuning run (REPORT.WRITE) to the run folder."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from config import (
    NO_ENCODER,
    PROBES,
    Config,
    default_config,
    encoder_name,
    module_of_option,
    scored_steps,
)
from data.images.files import grey_levels
from data.images.views import views_warning
from data.loader import XrayDataset
from data.tables.groups import all_groups
from data.tables.predictions import read_complete
from data.tables.reading import SCORED_SPLITS, TRAINING_LABELS, describe_images
from data.tables.records import task_of
from engine.run_record import code_version
from evaluation.cases import Cases, cases_of
from evaluation.final_scores import FinalScores, describe_dropped, present
from evaluation.metrics import Protocol
from evaluation.notices import as_warnings, notices
from evaluation.report.document import (
    TASK_WORDS,
    build_document,
    compare_with_baselines,
    write_report,
)
from evaluation.run_facts import CHOSEN_ON, SHARED, Known, read_known
from evaluation.saliency import reason_without_maps, write_maps
from logger import read_metrics
from system.files import BEST_CHECKPOINT
from utils import read_checkpoint

INTERNAL = f'internal: these are held-out training patients, with {TRAINING_LABELS}'
THUMBNAIL_PX = 112
TRAINED_PARTS = {  # FINETUNE.MODE in words
    'full': 'all layers',
    'last_layer': 'the last layer',
    'linear_probe': 'a logistic regression on frozen features',
    'attentive_probe': 'an attention head on frozen features',
    'knn': 'none: nearest neighbours of frozen features',
    'pixels': 'the pixel baseline: a logistic regression on small images',
    'metadata': 'the metadata baseline: a logistic regression on view, age, sex and study number',
}
NORMALISED_BY = {'dataset': 'the whole data set', 'image': 'the image'}  # DATA.NORMALIZE in words


def write_run_report(final: FinalScores, model: nn.Module, source: str) -> Path:
    """Write report.html, report.json, the tables, and saliency maps."""
    run, config = final.run, final.run.config
    folder = run.folder / 'report_eval' if config.EVAL_MODE else run.folder
    train = final.loaders.train or final.loaders.plain
    others = present({'train': train, 'holdout': final.loaders.holdout})
    datasets = {name: loader.dataset for name, loader in (others | final.scored).items()}
    sets = [_cases(final, name) for name in final.scored]

    trained = final.trained
    baselines, known, problems = _read_baselines(config, sets[-1])
    runs = {('model' if known else '', ''): [final.known]}
    told = [n.text for n in notices(runs | {(name, ''): [of] for name, of in known.items()})]
    protocol = Protocol(
        level=config.EVAL.LEVEL,
        views=config.EVAL.VIEWS or config.DATA.VIEWS,
        threshold=config.EVAL.THRESHOLD,
        resamples=config.EVAL.RESAMPLES,
        seed=config.SEED,
    )
    document = build_document(
        sets,
        _cases(final, 'holdout') if final.loaders.holdout else None,
        protocol,
        run=_describe_run(final, source, train),
        policy=trained.DATA.UNCERTAIN if trained else '',
        patients=final.patients,
        warnings=[
            *problems,
            *(as_warnings(told) if known else _doubts(final)),
            *_warnings(final, model),
        ],
        extras={
            'training': _training_curves(final, source),
            'comparisons': compare_with_baselines(sets[-1], baselines, protocol),
            'baselines': bool(baselines),
            'known': told,
        },
    )

    scored = document['sets'][-1]
    thresholds = {part['label']: part['threshold'] for part in scored['labels']}
    dataset = datasets[scored['name']]
    options = {'thresholds': thresholds, 'folder': folder}
    document |= write_maps(config, model, dataset, sets[-1], **options)
    for entry in document['maps']:
        file = folder / entry['file']
        run.scalars.write_image(f'maps/{file.stem}', file, config.TRAIN.EPOCHS)
    thumbnails = _thumbnails(config, datasets, sets, document)
    for line in document['alerts']:
        run.logger.warning(line)
    report = write_report(folder, document, thumbnails, columns=config.REPORT.COLUMNS)
    if config.REPORT.REGIONS:  # with the thresholds of the report
        localise_run = module_of_option('REPORT.REGIONS').localise_run
        found = localise_run(config, source, run.device, folder)
        if not found['page']:
            run.logger.warning(found['lines'][0])
        document['localisation'] = found
        report = write_report(folder, document, thumbnails, columns=config.REPORT.COLUMNS)
    run.scalars.write_file(report)
    return report


def _read_baselines(
    config: Config, cases: Cases
) -> tuple[dict[str, np.ndarray], dict[str, Known], list[str]]:
    """Return name -> probabilities [N, K] of REPORT.BASELINES, and why others cannot be shown.

    Of the baselines, the facts that are recorded are returned, too. One that cannot be read must
    not cost the report of a long training.
    """
    found, known, problems = {}, {}, []
    for name, path in config.REPORT.BASELINES.items():
        file = Path(path)
        if file.is_dir():
            file = file / f'predictions_{cases.name}.csv'
        try:
            found[name] = read_complete(file, cases.path, cases.labels, task=config.DATA.TASK)
        except (OSError, ValueError) as error:
            problems.append(f'the baseline {name} is not shown: {error}')
        else:
            known[name] = read_known(file)
    return found, known, problems


def _training_curves(final: FinalScores, source: str) -> dict[str, Any] | None:
    """Return losses and selection score by epoch, if the model was trained in this folder."""
    records = _epochs(final.run.folder, source)
    if not records:
        return None
    select_on = (final.trained or final.run.config).EVAL.SELECT_ON
    split = 'valid' if select_on == 'valid' else 'holdout'  # that of `Selection`
    names = {
        'Training loss': 'loss',
        f'Loss on {split} ({final.task.loss})': f'{split}_loss',
        f'Mean AUROC on {split}': 'score',
    }
    curves = [
        {'name': name, 'values': [record.get(key) for record in records]}
        for name, key in names.items()
    ]
    return {'epochs': [record['epoch'] for record in records], 'curves': curves}


def _doubts(final: FinalScores) -> list[str]:
    """Return the doubts about the scores but shared patients, which the alerts name."""
    doubts = final.known.doubts.items()
    return [line for doubt, lines in doubts if doubt != SHARED for line in lines]


def _warnings(final: FinalScores, model: nn.Module) -> list[str]:
    """Return what a reader of the report must know about its scores."""
    config, trained = final.run.config, final.trained
    warnings = []
    if 'internal' in final.scored:
        warnings.append(INTERNAL)
    for split, loader in final.scored.items():
        records = loader.dataset.records
        warnings += [f'{split}: {doubt}' for doubt in records.doubts]
        if trained and (warning := views_warning(records.view, trained.DATA.VIEWS)):
            warnings.append(f'{split}: {warning}')
    if config.EVAL.MASK_RATIO:
        warnings.append(
            f'scores drop {100 * config.EVAL.MASK_RATIO:g} % of the patches of each image '
            '(EVAL.MASK_RATIO); saliency maps use all'
        )
    has_encoder = config.FINETUNE.MODE not in NO_ENCODER
    if has_encoder and config.REPORT.MAPS and (reason := reason_without_maps(model)):
        warnings.append(f'there are no saliency maps: the model has {reason}')
    return warnings


def _cases(final: FinalScores, name: str) -> Cases:
    """Return the cases of a split, with groups if the split is scored."""
    config, dataset = final.run.config, getattr(final.loaders, name).dataset
    records, groups = dataset.records, {}
    if name in SCORED_SPLITS:
        groups = all_groups(records, config.EVAL.GROUPS, config.DATA.DEMOGRAPHICS)
    probabilities = final.task.probabilities(final.values[name])
    options = {'name': name, 'targets': dataset.targets, 'groups': groups}
    return cases_of(records, final.task, probabilities, **options)


def _describe_run(final: FinalScores, source: str, train: DataLoader | None) -> dict[str, str]:
    """Return the table of run details for the first screen of the report."""
    config, trained = final.run.config, final.trained
    data, has_encoder = config.DATA, config.FINETUNE.MODE not in NO_ENCODER
    select_on = final.chosen_on
    labeller = f', labels of {data.LABELLER}' if data.DATASET == 'mimic-cxr' else ''
    steps = ', '.join(scored_steps(config)) or 'none'
    rows = {
        'Predicts': TASK_WORDS.get(data.TASK, data.TASK),
        'Labels': ', '.join(data.LABELS),
        'Model': f'{encoder_name(config)}, {data.IMG_SIZE} px' if has_encoder else '',
        'Run': f'{config.MODEL.NAME}/{config.TAG}',
        'Checkpoint': '' if source in PROBES else source,
        **_describe_training(trained, select_on),
        **_describe_effort(final.run.folder, select_on, source, train),
        'Data': f'{data.DATA_PATH} ({data.DATASET}{labeller})',
        'Blank labels': data.BLANK if task_of(config).has_policies else '',
        'Images': describe_images(config.EVAL.DATA_PATH or data.DATA_PATH),
        'Preprocessing': f'{steps}; normalised by {NORMALISED_BY[data.NORMALIZE]}',
        'Threshold rule': config.EVAL.THRESHOLD,
        'Patches': describe_dropped(config),
        'Evaluation': f'number {final.looks} of this run, see run.json' if final.looks else '',
        'Seed': str(config.SEED),
        'Code': code_version(),
    }
    return {name: value for name, value in rows.items() if value}


def _describe_training(trained: Config | None, select_on: str) -> dict[str, str]:
    if trained is None:
        return {'Training': 'unknown'}
    data, mode = trained.DATA, trained.FINETUNE.MODE
    rows = {'Trained part': TRAINED_PARTS.get(mode, mode)}
    if mode not in NO_ENCODER:
        rows['Started from'] = trained.MODEL.RESUME or trained.PRETRAINED or 'random weights'
    rows['Trained on'] = f'{100 * data.TRAIN_FRACTION:g} % of the patients'
    if data.TRAIN_IMAGES:
        rows['Trained on'] = f'{data.TRAIN_IMAGES} images'
    if data.TRAIN_CSV != default_config().DATA.TRAIN_CSV:
        rows['Trained on'] += f' of {data.TRAIN_CSV}'
    if data.PSEUDO_LABELS:
        rows['Trained on'] += f', and pseudo-labels of {data.PSEUDO_LABELS}'
    if task_of(trained).has_policies:
        exceptions = ', '.join(f'{k}: {v}' for k, v in data.UNCERTAIN_BY_LABEL.items())
        policy = f'{data.UNCERTAIN} ({exceptions})' if exceptions else data.UNCERTAIN
        rows['Uncertain labels in training'] = policy
    if mode in PROBES:
        rows['Hyperparameters chosen on'] = 'training patients, by cross-validation'
    else:
        rows['Loss'] = trained.LOSS.NAME
        rows['Epoch chosen on'] = CHOSEN_ON.get(select_on, select_on)
    return rows


def _describe_effort(
    folder: Path, select_on: str, source: str, train: DataLoader | None
) -> dict[str, str]:
    """Return the number of training images, the selected epoch and the training time, if known."""
    rows, records = {}, _epochs(folder, source)
    if train is not None:
        images = train.dataset.records
        rows['Training images'] = f'{len(images):,} of {len(set(images.patient)):,} patients'
    if records and Path(source).name == BEST_CHECKPOINT:
        best = read_checkpoint(source)
        rows['Selected epoch'] = (
            f'{best["epoch"] + 1} of {records[-1]["epoch"] + 1}, mean AUROC '
            f'{best["best_score"]:.4f} on {CHOSEN_ON.get(select_on, select_on)}'
        )
    if records:
        seconds = sum(record['seconds'] for record in records)
        rows['Training time'] = f'{timedelta(seconds=round(seconds))}, without validation'
    return rows


def _epochs(folder: Path, source: str) -> list[dict[str, Any]]:
    """Read the records of the trained epochs, if the model was trained in this folder."""
    file = folder / 'metrics.jsonl'
    if Path(source).parent != folder or not file.is_file():
        return []
    return [record for record in read_metrics(file) if 'loss' in record]


def _thumbnails(
    config: Config, datasets: dict[str, XrayDataset], sets: list[Cases], document: dict[str, Any]
) -> dict[tuple[str, str, str], Image.Image]:
    """Return (set, label, kind) -> thumbnail of each worst error, or {} if REPORT.MAPS is 0."""
    found = {}
    for cases, scored in zip(sets, document['sets'], strict=True):
        # The metadata baseline reads no images.
        shows_images = config.REPORT.MAPS and config.FINETUNE.MODE != 'metadata'
        for error in scored['worst_errors'] if shows_images else []:
            label, kind = error['label'], error['kind']
            image = datasets[cases.name].image(cases.strongest_image(error['path'], label))
            # A new image has no metadata, which could contain the patient's name.
            small = Image.fromarray(grey_levels(image))
            small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
            found[cases.name, label, kind] = small
    return found
