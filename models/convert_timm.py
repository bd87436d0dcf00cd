"""Fit weights to a model of timm: timm's own files, torchvision's, and checkpoints of this project.

Pure functions over state dicts, as in models/convert.py, which does it for our own encoders.
"""

import re

from timm.layers import Conv2dSame
from torch import nn

from models.convert import (
    PREFIX,
    Report,
    State,
    Statistics,
    check_fit,
    fold_input,
    resize_position_embedding,
)
from models.timm_classifier import TimmClassifier

# torchvision's published DenseNets: `denselayer1.norm.1.weight` is `denselayer1.norm1.weight` now.
OLD_DENSENET = re.compile(r'(denselayer\d+\.(?:norm|conv))\.([12]\.)')
AUXILIARY = 'AuxLogits.'  # Inception's second classifier, of training alone
COUNTER = '.num_batches_tracked'  # of a batch norm; old files have none, and nothing depends on it
CONVOLUTIONS = (nn.Conv2d, Conv2dSame)  # whose weights are used as they are
POSITIONS = f'{PREFIX}pos_embed'


def convert_timm(
    state: State, model: TimmClassifier, *, source_stats: Statistics, target_stats: Statistics
) -> tuple[State, Report]:
    """Make a state dict one that the model can load.

    Args:
        state: of this project (keys with `encoder.`; what is beside encoder and head is left
            over), or of timm's or torchvision's model.
        model: that gets the weights.
        source_stats: normalisation of the pixels that the weights were trained on.
        target_stats: normalisation of the pixels that the model will see.

    Returns:
        Entries under the model's own keys, ready to load, and the report.

    Raises:
        ValueError: if entries of the encoder are missing, unexpected or of another shape.
    """
    target, report = model.state_dict(), Report()
    kept = _own_names(state, model)
    beside = [key for key in kept if not key.startswith(PREFIX)]
    head = [key for key in beside if key.startswith('head.')]
    if all(key in target and kept[key].shape == target[key].shape for key in head):
        beside = [key for key in beside if key not in head]
    report.left_over += beside
    kept = {key: value for key, value in kept.items() if key not in beside}
    kept = _resize_positions(kept, model, report)
    kept = _fold_channels(kept, model, source_stats, target_stats, report)
    report.new += [key for key in target if key not in kept]
    may_be_new = [key for key in report.new if key.startswith('head.') or key.endswith(COUNTER)]
    check_fit(kept, target, new=may_be_new)
    changed = {*report.resized, *report.folded}
    report.loaded += [key for key in target if key in kept and key not in changed]
    return kept, report


def first_weight(model: TimmClassifier) -> str:
    """Key of the weights that read the image, in the encoder; '' where timm does not name one."""
    layer = model.encoder.default_cfg.get('first_conv')
    return f'{layer}.weight' if isinstance(layer, str) else ''


def published_statistics(state: State, model: TimmClassifier) -> dict[str, list[float]]:
    """Options DATA.MEAN and STD by what timm says of its own weights for the model.

    {} where it does not say, or the weights are not for colour images.
    """
    weight = _own_names(state, model).get(PREFIX + first_weight(model))
    if weight is None or weight.ndim != 4 or weight.shape[1] != 3:
        return {}
    known = model.encoder.default_cfg
    return {key.upper(): list(known[key]) for key in ('mean', 'std') if known.get(key)}


def _own_names(state: State, model: TimmClassifier) -> State:
    """Entries under our keys: `encoder.` before timm's, `head.` for its classifier.

    Those of a checkpoint of this project stay, and so do second classifiers.
    """
    if any(key.startswith(PREFIX) for key in state):
        return dict(state)
    classifier = model.layout.classifier
    is_one = len(classifier) == 2  # weight and bias; a distilled model has two of each
    names = {key: f'head.{key.split(".")[-1]}' if is_one else key for key in classifier}
    names |= {key: key for key in state if key.startswith(AUXILIARY)}
    return {
        names.get(key, PREFIX + OLD_DENSENET.sub(r'\1\2', key)): value
        for key, value in state.items()
    }


def _resize_positions(state: State, model: TimmClassifier, report: Report) -> State:
    """Resize a ViT's position embeddings (bicubic) to the model's grid."""
    source, target = state.get(POSITIONS), model.state_dict().get(POSITIONS)
    if source is None or target is None or source.shape == target.shape or source.ndim != 3:
        return state
    length = target.shape[1]
    rows = length - model.encoder.patch_embed.num_patches  # of class and register tokens
    report.resized.append(POSITIONS)
    report.remarks.append(f'pos_embed {source.shape[1]} -> {length} rows')
    return state | {POSITIONS: resize_position_embedding(source, length, class_rows=rows)}


def _fold_channels(
    state: State,
    model: TimmClassifier,
    source_stats: Statistics,
    target_stats: Statistics,
    report: Report,
) -> State:
    """Turn the first convolution from the file's channels into the model's, as `fold_input`.

    Where it has no bias, the batch norm after it takes the offset into its running mean.

    Raises:
        ValueError: if there is neither, or the weights are changed before they are used.
    """
    key, target = PREFIX + first_weight(model), model.state_dict()
    if key not in state or key not in target:
        return state
    weight, new_channels = state[key], target[key].shape[1]
    channels, *kernel = weight.shape[1:]
    if channels == new_channels or kernel != list(target[key].shape[2:]):
        return state  # another kernel is refused later, by name
    layer = first_weight(model).removesuffix('.weight')
    convolution, norm = model.encoder.get_submodule(layer), _norm_after(model.encoder, layer)
    has_bias = convolution.bias is not None
    offset_key = f'{PREFIX}{layer}.bias' if has_bias else f'{PREFIX}{norm}.running_mean'
    if type(convolution) not in CONVOLUTIONS or offset_key not in state:
        raise ValueError(
            f'{key} is for {channels} channels and cannot be folded to {new_channels} (no bias and '
            f'no batch norm for the offset, or weights that are standardised): set '
            f'MODEL.TIMM.IN_CHANS {channels}'
        )
    bias = state[offset_key] if has_bias else weight.new_zeros(len(weight))
    folded, offset = fold_input(weight, bias, source_stats, target_stats)
    report.folded += [key, offset_key]
    report.remarks.append(f'channels: {channels} -> {new_channels}, were of {source_stats}')
    if not has_bias:
        report.remarks.append(f'{norm}.running_mean takes the offset that a bias would have')
    if convolution.padding not in (0, (0, 0)):
        report.remarks.append('folded exactly but at the border, where the image is padded')
    return state | {key: folded, offset_key: offset if has_bias else state[offset_key] - offset}


def _norm_after(encoder: nn.Module, layer: str) -> str:
    """Name of the batch norm that follows a convolution; '' if there is none."""
    named = [
        (n, m) for n, m in encoder.named_modules() if next(m.parameters(False), None) is not None
    ]
    place = [name for name, _ in named].index(layer)
    for name, module in named[place + 1 : place + 2]:
        if (
            isinstance(module, nn.BatchNorm2d)
            and module.num_features == named[place][1].out_channels
        ):
            return name
    return ''
