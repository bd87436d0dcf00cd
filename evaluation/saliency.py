"""Saliency maps by Grad-CAM and attention, figures of them, and a check of the method."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.stats import rankdata
from torch import nn
from torch.nn import functional as F

from config import Config, import_by_name
from data.describe.figures import show_image
from data.loader import XrayDataset
from data.tables.labels import file_name, positive_logits
from data.transforms import EvalTransform
from evaluation.cases import Cases, choose_cases
from evaluation.maps import AUTO, METHODS
from evaluation.maps.method import MapMethod
from models.build import build_model
from models.classifier_heads import AttentionHead
from models.encoder import MAP_CELLS, Encoder
from system.files import atomic_writer, replace_files
from system.pages import (
    FONT,
    SMALL,
    encode_figure,
    figures_of_rows,
    note_on_images,
    shortened,
    split_pages,
)

COLOUR_MAP = 'plasma'  # perceptually uniform, safe for colour-blind readers, without grey
# Left, bottom, width and height of the two X-rays and the colour bar, as shares of the figure.
MAP_AXES = ((0.01, 0.02, 0.41, 0.96), (0.44, 0.02, 0.41, 0.96), (0.87, 0.07, 0.02, 0.86))
LONG_LABEL = 33  # letters that leave room for a bar
BAR, MOST_BARS = 0.2, 18  # height of a bar in inches, and bars next to the images
OPACITY = 0.75  # opacity at importance 1; the opacity at importance 0 is 0
CHECKED_IMAGES, RANDOM_MODELS = 8, 5  # in the check against random weights
FOLDER = 'maps'
# Words and styles of true labels; other values are not scored.
TRUE_WORDS = {1: ('positive', {'weight': 'bold'}), 0: ('negative', {})}
SIGNAL = 0.01  # smallest range of values of a map with a signal
SMALLEST = torch.finfo(torch.float32).tiny  # avoids 0 / 0 in maps of zeros
NO_MAPS = f'no suitable layer with at least {MAP_CELLS} x {MAP_CELLS} cells'

Score = Callable[[torch.Tensor], torch.Tensor]  # outputs [B, *] -> scores [B]


def grad_cam(
    model: nn.Module, images: torch.Tensor, score: Score, *, layer: nn.Module | None = None
) -> torch.Tensor:
    """Compute Grad-CAM maps, which show the regions whose features increase a score.

    Each feature map of a layer is weighted by the mean gradient, and the map is the positive part
    of the weighted sum.

    Args:
        model: Model that maps images to outputs [B, *]. It is set to evaluation mode.
        images: Images, [B, C, S, S].
        score: Function from outputs to the scores [B] to explain.
        layer: Layer that returns [B, F, h, w] or tokens [B, L, F]. The default is the model's
            `saliency_layer`.

    Returns:
        Maps of the cells of the layer, [B, h, w]: 0 everywhere if no feature increases the score.

    Source: Selvaraju et al. 2017, arXiv:1610.02391.
    """
    kept: list[torch.Tensor] = []

    def keep(_module: nn.Module, _inputs: tuple, features: torch.Tensor) -> torch.Tensor:
        # A new leaf tensor works with frozen parameters and ends the backward pass here.
        kept.append(features.detach().requires_grad_())
        return kept[-1].clone()  # the model may modify the tensor in place

    model.eval()
    layer = layer or model.saliency_layer()
    with layer.register_forward_hook(keep), torch.enable_grad():
        # Only the first tensor is used, because gradient checkpointing calls the hook again.
        (gradient,) = torch.autograd.grad(score(model(images)).sum(), kept[:1])
    weights = _as_grid(gradient).mean(dim=(2, 3), keepdim=True)  # [B, F, 1, 1]
    return (weights * _as_grid(kept[0].detach())).sum(dim=1).relu()


@torch.no_grad()
def head_attention(model: nn.Module, images: torch.Tensor, output: int) -> torch.Tensor:
    """Return the attention of the query of an output in an `AttentionHead`, [B, h, h].

    It is averaged over the attention heads. It shows where the head looks, not whether this speaks
    for or against the label.
    """
    model.eval()
    attention, _ = model.head.attend(model.forward_tokens(images))  # [B, heads, K, L]
    of_query = attention.float().mean(dim=1)[:, output]
    return _as_grid(of_query[:, :, None])[:, 0]


def enlarge(maps: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Resize maps of cells [B, h, w] to the size of the images, and divide by their maximum."""
    size = images.shape[-2:]
    maps = F.interpolate(maps[:, None].float(), size, mode='bilinear', align_corners=False)[:, 0]
    return maps / maps.amax(dim=(1, 2), keepdim=True).clamp_min(SMALLEST)


def map_title(model: nn.Module, method: str = AUTO) -> str:
    """Return what the maps of a model show, as a title."""
    return map_method(model, method).title


def randomised_check(
    model: nn.Module,
    make_model: Callable[[], nn.Module],
    images: torch.Tensor,
    make_maps: Callable[[nn.Module, torch.Tensor], torch.Tensor],
    *,
    seed: int = 0,
) -> float:
    """Compare the maps of a model with the maps of the same architecture with random weights.

    Maps that explain the model depend on the weights, so the similarity is near 0. A similarity
    near 1 means that the maps only show the image, like an edge detector.

    Args:
        model: Trained model.
        make_model: Function that builds the same model with random weights.
        images: Images, [B, C, S, S].
        make_maps: Function from model and images to maps [B, S, S].
        seed: Seed of the random weights. The global random state does not change.

    Returns:
        Spearman's rank correlation, averaged over RANDOM_MODELS random models and the images. The
        similarity of two constant maps is 1, and that of a constant map and any other map is 0.

    Source: Adebayo et al. 2018, arXiv:1810.03292 (all layers randomised).
    """
    maps = make_maps(model, images).flatten(1).cpu().numpy()
    similarities = []
    for copy in range(RANDOM_MODELS):
        with torch.random.fork_rng():
            torch.manual_seed(seed + copy)
            random_model = make_model().to(images.device)
        others = make_maps(random_model, images).flatten(1).cpu().numpy()
        similarities += [_spearman(*pair) for pair in zip(maps, others, strict=True)]
    return float(np.mean(similarities))


def plot_map(path: str | Path, image: np.ndarray, saliency: np.ndarray) -> None:
    """Plot an X-ray, and the X-ray with the map as overlay. The PNG file is reproducible.

    Args:
        path: PNG file to write. The folder is created.
        image: X-ray, [S, S] uint8.
        saliency: Map in [0, 1], [S, S]. Lower values are more transparent.
    """
    from matplotlib.figure import Figure

    # Places of the axes instead of an automatic layout, which takes longer than the rest.
    figure = Figure(figsize=(4.5, 2.05), dpi=110)
    xray, overlaid, scale = (figure.add_axes(place) for place in MAP_AXES)
    show_image(xray, image)
    show_image(overlaid, image)
    shown = overlaid.imshow(saliency, cmap=transparent_colours(), vmin=0, vmax=1)
    bar = figure.colorbar(shown, cax=scale, ticks=(0, 0.5, 1))
    scale.set_facecolor('0.5')  # grey like an X-ray behind the transparent colours
    scale.tick_params(labelsize=7)
    bar.set_label('relative importance (0 to 1)', fontsize=7)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_writer(path) as file:
        figure.savefig(file, metadata={'Software': None})


def plot_prediction(
    path: str | Path,
    images: Mapping[str, Image.Image | np.ndarray],
    maps: Mapping[str, np.ndarray],
    probabilities: Mapping[str, float],
    *,
    title: str,
    truth: Mapping[str, float] | None = None,
    file: str = '',
) -> None:
    """Plot an X-ray, maps of some labels over it, and all probabilities, as PNG and SVG.

    What does not fit on a page goes to further files, `path` with _1, _2, ...

    Args:
        path: Path of the files without suffix. The folder is created.
        images: Title -> image: the original, and as the model sees it, [S, S] uint8.
        maps: Label -> map in [0, 1], [S, S]. Each label has two panels: the map, and the map over
            the last image.
        probabilities: Label -> probability. The labels with maps are highlighted.
        title: Title of the maps.
        truth: Label -> 1, 0, or NaN where the label is not scored; None if it is not known.
        file: Path of the X-ray.
    """
    shown = [*images.values()][-1]
    bars = partial(_plot_probabilities, highlighted={*maps}, truth=truth)
    first, *others = split_pages([*probabilities.items()], MOST_BARS)

    def plot_first(row: Any) -> None:
        left, right = row.subfigures(1, 2, width_ratios=(2, 3))
        for axis, (name, image) in zip(left.subplots(len(images), 1), images.items(), strict=True):
            show_image(axis, image)
            axis.set_title(name, fontsize=SMALL)
        bars(right.subplots(), dict(first))

    rows = [(max(3.8, 0.8 + BAR * len(first)), plot_first)]
    for start in range(0, len(maps), 2):
        pair = dict([*maps.items()][start : start + 2])
        told = {label: _told(probabilities[label], label, truth) for label in pair}
        rows.append((2.1, partial(_plot_maps, maps=pair, told=told, image=shown, title=title)))
    for more in others:
        rows.append(
            (0.8 + BAR * len(more), lambda row, more=more: bars(row.subplots(), dict(more)))
        )
    figures = figures_of_rows(Path(path).name, rows, note_on_images([file]))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    replace_files(
        {
            Path(path).with_name(f'{name}{suffix}'): data
            for name, figure in figures.items()
            for suffix, data in encode_figure(figure).items()
        }
    )


def _told(probability: float, label: str, truth: Mapping[str, float] | None) -> str:
    """Return what is written above the map of a label: its probability and true label."""
    known = f', true label: {_true_word(truth[label])[0]}' if truth else ''
    return f'probability {probability:.3f}{known}'


def _true_word(value: float) -> tuple[str, dict[str, Any]]:
    """Return a true label as a word, with its style."""
    return TRUE_WORDS.get(value, ('not scored', {'color': '0.5'}))


def _plot_maps(
    row: Any,
    *,
    maps: Mapping[str, np.ndarray],
    told: Mapping[str, str],
    image: Image.Image | np.ndarray,
    title: str,
) -> None:
    """Plot one or two maps, each alone and over the image, in a row of four panels."""
    panels = row.subplots(1, 4)
    for axis in panels:
        axis.set_axis_off()
    for column, (label, saliency) in enumerate(maps.items()):
        heat, overlay = panels[2 * column : 2 * column + 2]
        shown = heat.imshow(saliency, cmap=COLOUR_MAP, vmin=0, vmax=1)
        # Over both panels, because a long label is wider than one.
        name = shortened(label, LONG_LABEL)
        heat.set_title(f'{name}\n{told[label]}', fontsize=SMALL, loc='left')
        show_image(overlay, image)
        overlay.imshow(saliency, cmap=transparent_colours(), vmin=0, vmax=1)
    # Inside the axes of the first map, so that the bar is as high as the map.
    bar = row.colorbar(shown, cax=panels[0].inset_axes((-0.1, 0, 0.05, 1)), ticks=(0, 1))
    bar.set_label('relative importance', fontsize=SMALL, labelpad=-2)
    bar.ax.yaxis.set_ticks_position('left')
    bar.ax.yaxis.set_label_position('left')
    bar.ax.tick_params(labelsize=SMALL)
    row.suptitle(title, fontsize=SMALL)


def _plot_probabilities(
    axis: Any,
    probabilities: Mapping[str, float],
    *,
    highlighted: set[str],
    truth: Mapping[str, float] | None,
) -> None:
    """Plot a bar for each label, and its true value next to the number."""
    colours = ['#D55E00' if label in highlighted else '#0072B2' for label in probabilities]
    drawn = axis.barh(range(len(probabilities)), [*probabilities.values()], color=colours)
    axis.set_yticks(
        range(len(probabilities)), [shortened(label, LONG_LABEL) for label in probabilities]
    )
    axis.bar_label(drawn, fmt='%.3f', padding=2, fontsize=SMALL)
    axis.set(xlim=(0, 1.25), xticks=(0, 0.5, 1))
    axis.set_title('probability', fontsize=FONT)
    if highlighted & {*probabilities}:
        axis.set_xlabel('orange: labels with maps', fontsize=SMALL)
    axis.tick_params(labelsize=SMALL)
    axis.invert_yaxis()
    axis.spines[['top', 'right']].set_visible(False)
    if truth is None:
        return
    axis.set_xlim(0, 1.9)
    axis.set_title('probability, true label', fontsize=FONT)
    for row, label in enumerate(probabilities):
        word, style = _true_word(truth[label])
        axis.text(1.35, row, word, va='center', fontsize=SMALL, **style)


def transparent_colours() -> Any:
    """Return the colour map of overlays, which is transparent at 0."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    colours = colormaps[COLOUR_MAP](np.linspace(0, 1, 256))
    colours[:, 3] = np.linspace(0, OPACITY, 256)
    return ListedColormap(colours)


def write_maps(
    config: Config,
    model: nn.Module,
    dataset: XrayDataset,
    cases: Cases,
    *,
    thresholds: dict[str, float],
    folder: Path,
) -> dict[str, Any]:
    """Write the maps of one split for the report.

    At study level, cases are chosen by the probability of the study, and the map shows the
    highest-scoring image of the study.

    Args:
        config: Run configuration.
        model: Classifier that made the predictions.
        dataset: Images in the order of the cases.
        cases: One row per image.
        thresholds: Label -> threshold, NaN if there is none. Other labels get no maps.
        folder: Folder of the report.

    Returns:
        `maps` and `maps_check` of the report. Both are empty if REPORT.MAPS is 0 or if the model
        has no layer for maps (`lacks_maps`).
    """
    count = config.REPORT.MAPS
    if not count or lacks_maps(model):
        return {'maps': [], 'maps_check': None}
    view, entries = EvalTransform(config), []
    device = next(model.parameters()).device
    rows = cases.at_level(config.EVAL.LEVEL)
    for k, label in enumerate(cases.labels):
        if label not in thresholds:  # labels with a single class are not scored
            continue
        probabilities, threshold = rows.probabilities[:, k], thresholds[label]
        chosen = choose_cases(probabilities, rows.targets[:, k], threshold, count)
        places = [(kind, i, row) for kind in chosen for i, row in enumerate(chosen[kind], start=1)]
        for kind, number, row in places:
            index = cases.strongest_image(rows.path[row], label)
            grey, image = read_view(view, dataset.image(index))
            image = image.to(device)
            map_ = enlarge(label_maps(config, model, image, k), image)[0].cpu().numpy()
            file = f'{FOLDER}/{file_name(f"{label}_{kind}")}_{number}.png'
            plot_map(folder / file, grey, map_)
            entry = {'label': label, 'kind': kind, 'path': cases.path[index], 'file': file}
            entry |= {'probability': float(probabilities[row]), 'threshold': threshold}
            entries.append(entry | {'has_signal': bool(np.ptp(map_) >= SIGNAL)})
    check = _check_maps(config, model, view, dataset) if entries else None
    return {'maps': entries, 'maps_check': check}


def map_method(model: nn.Module, name: str = AUTO) -> MapMethod:
    """Return a method of METHODS by its name; AUTO depends on the model."""
    if name == AUTO:
        name = 'attention' if isinstance(model.head, AttentionHead) else 'grad-cam'
    return import_by_name(METHODS[name])


def lacks_maps(model: nn.Module) -> bool:
    """Return whether a model has no layer for maps: no encoder of its own, or too few cells."""
    return bool(reason_without_maps(model))


def reason_without_maps(model: nn.Module, method: str = AUTO) -> str:
    """Return what a model has that allows no maps of a method, or ''."""
    if getattr(getattr(model, 'head', None), 'takes_patient', False):
        return "MODEL.HEAD 'patient', which reads more than the image that a map could explain"
    if method == AUTO and not isinstance(model, Encoder):
        return NO_MAPS
    return map_method(model, method).lacks(model)


def label_maps(
    config: Config, model: nn.Module, images: torch.Tensor, k: int, method: str = AUTO
) -> torch.Tensor:  # [B, h, w]
    """Compute the maps of label k."""
    return map_method(model, method).maps(config, model, images, k)


def _grad_cam_maps(
    config: Config, model: nn.Module, images: torch.Tensor, k: int
) -> torch.Tensor:  # [B, h, w]
    num_labels = config.MODEL.NUM_CLASSES
    return grad_cam(model, images, lambda outputs: positive_logits(outputs, num_labels)[:, k])


def _lacks_layer(model: nn.Module) -> str:
    has_layer = isinstance(model, Encoder) and model.saliency_layer() is not None
    return '' if has_layer else NO_MAPS


def _head_maps(
    config: Config, model: nn.Module, images: torch.Tensor, k: int
) -> torch.Tensor:  # [B, h, h]
    outputs_each = len(model.head.weight) // config.MODEL.NUM_CLASSES
    output = k if outputs_each == 1 else k * outputs_each + 1  # `positive_logits`
    return head_attention(model, images, output)


def _lacks_queries(model: nn.Module) -> str:
    if not isinstance(getattr(model, 'head', None), AttentionHead):
        return 'no head with queries (MODEL.HEAD attention)'
    return '' if model.output_side >= MAP_CELLS else NO_MAPS


GRAD_CAM = MapMethod('Grad-CAM', _grad_cam_maps, _lacks_layer)
HEAD_ATTENTION = MapMethod('attention of the head', _head_maps, _lacks_queries)


def read_view(view: EvalTransform, image: Image.Image) -> tuple[np.ndarray, torch.Tensor]:
    """Return an image as the model sees it: grey levels [S, S] and the input [1, C, S, S]."""
    pixels = view.pixels(image)
    normalized = torch.from_numpy(view.normalize(pixels))
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8), normalized[None]


def _check_maps(
    config: Config, model: nn.Module, view: EvalTransform, dataset: XrayDataset
) -> dict[str, Any]:
    """Apply `randomised_check` to the maps of the first label."""
    indices = np.linspace(0, len(dataset) - 1, min(CHECKED_IMAGES, len(dataset))).astype(int)
    images = torch.cat([read_view(view, dataset.image(index))[1] for index in indices])
    images = images.to(next(model.parameters()).device)
    similarity = randomised_check(
        model,
        lambda: build_model(config, is_pretrain=False, num_outputs=len(model.head.weight)),
        images,
        lambda any_model, batch: enlarge(label_maps(config, any_model, batch, 0), batch),
        seed=config.SEED,
    )
    return {
        'method': map_title(model),
        'cells': label_maps(config, model, images[:1], 0).shape[-1],
        'similarity': similarity,
        'note': (
            'the mean rank correlation with maps of the same model with random weights, over '
            f'{len(indices)} images. Near 0, the maps depend on the trained weights. Near 1, they '
            'only show the image (Adebayo et al. 2018).'
        ),
    }


def _as_grid(features: torch.Tensor) -> torch.Tensor:
    """Convert tokens [B, L, F] to a grid [B, F, h, h] without class token. Grids do not change."""
    if features.ndim == 4:
        return features
    side = math.isqrt(features.shape[1])
    return features[:, -(side**2) :].transpose(1, 2).unflatten(2, (side, side))


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    a, b = (rankdata(one.astype(np.float64)) - (one.size + 1) / 2 for one in (a, b))
    if not a.any() or not b.any():
        return float(not a.any() and not b.any())
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))
