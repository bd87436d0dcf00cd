"""The saliency maps of a report: which images, by which method, and the check of the method."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from data.loader import XrayDataset
from data.transforms import EvalTransform
from engine import Run
from evaluation.cases import Cases
from evaluation.saliency import (
    attention_rollout,
    choose_cases,
    grad_cam,
    plot_map,
    randomised_check,
)
from models import build_model
from models.losses import positive_logits

CHECKED_IMAGES = 8
FOLDER = 'maps'


def write_maps(
    run: Run,
    model: nn.Module,
    dataset: XrayDataset,
    cases: Cases,
    thresholds: dict[str, float],
    folder: Path,
) -> dict[str, Any]:
    """Draw the maps of one split below `folder`, and say what is drawn, as the report's parts.

    Args:
        run: the run.
        model: the classifier that made the predictions.
        dataset: the images, in the order of the cases.
        cases: a row an image.
        thresholds: label -> the threshold that splits positives from negatives; NaN for none. A
            study is what its probability makes it, and is shown by its strongest image.
        folder: the report's.

    Returns:
        `maps` and `maps_check` of the report; both empty where REPORT.MAPS is 0 or the model has
        no layer to look at (nearest neighbours).
    """
    count = run.config.REPORT.MAPS
    if not count or not hasattr(model, 'head'):
        return {'maps': [], 'maps_check': None}
    view, entries = EvalTransform(run.config), []
    rows = cases.at_level(run.config.EVAL.LEVEL, run.config.EVAL.AGGREGATE)
    for k, label in enumerate(cases.labels):
        chosen = choose_cases(
            rows.probabilities[:, k], rows.targets[:, k], thresholds[label], count
        )
        for kind, positions in chosen.items():
            for number, row in enumerate(positions, start=1):
                index = _strongest_image(cases, rows.path[row], k)
                grey, image = _read(view, dataset, index)
                map_ = _maps(run, model, image.to(run.device), k)[0].cpu().numpy()
                name = f'{label}_{kind}_{number}'.lower().replace(' ', '_')
                file = f'{FOLDER}/{name}.png'
                plot_map(folder / file, grey, map_)
                entries.append(
                    {
                        'label': label,
                        'kind': kind,
                        'path': cases.path[index],
                        'probability': float(rows.probabilities[row, k]),
                        'threshold': thresholds[label],
                        'file': file,
                    }
                )
    return {'maps': entries, 'maps_check': _check(run, model, view, dataset) if entries else None}


def _strongest_image(cases: Cases, name: str, k: int) -> int:
    """Position of the image of this path, or of this study's image of the greatest probability."""
    images = np.flatnonzero((cases.path == name) | (cases.study == name))
    return int(images[np.argmax(cases.probabilities[images, k])])


def _maps(run: Run, model: nn.Module, images: torch.Tensor, k: int) -> torch.Tensor:
    """[B, S, S] maps of label k."""
    if run.config.REPORT.METHOD == 'rollout':
        return attention_rollout(model, images)
    num_labels = run.config.MODEL.NUM_CLASSES
    return grad_cam(model, images, lambda outputs: positive_logits(outputs, num_labels)[:, k])


def _read(view: EvalTransform, dataset: XrayDataset, index: int) -> tuple[np.ndarray, torch.Tensor]:
    """What the model sees of an image: grey levels [S, S], and its input [1, C, S, S]."""
    pixels = view.pixels(dataset.image(index))
    normalized = torch.from_numpy(view.normalize(pixels)[0])
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8), normalized[None]


def _check(run: Run, model: nn.Module, view: EvalTransform, dataset: XrayDataset) -> dict[str, Any]:
    """Similarity of the first label's maps to those of random weights (`randomised_check`)."""
    indices = np.linspace(0, len(dataset) - 1, min(CHECKED_IMAGES, len(dataset))).astype(int)
    images = torch.cat([_read(view, dataset, index)[1] for index in indices]).to(run.device)
    similarity = randomised_check(
        model,
        lambda: build_model(run.config, is_pretrain=False, num_outputs=len(model.head.weight)),
        images,
        lambda any_model, batch: _maps(run, any_model, batch, 0),
        seed=run.config.SEED,
    )
    return {
        'method': {'grad_cam': 'Grad-CAM', 'rollout': 'attention rollout'}[
            run.config.REPORT.METHOD
        ],
        'similarity': similarity,
        'note': (
            'mean rank correlation of the maps with those of the same model with random weights, '
            f'over {len(indices)} images: near 0, the maps depend on what was learned; near 1, '
            'they show the image alone (Adebayo et al. 2018)'
        ),
    }
