"""What is exported: a checkpoint's model, and what another program has to know of it."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from config import Config, encoder_node
from data.labels import task_labels
from data.transforms import FILTERS, statistics
from export.naming import State, learned_entries
from inference import load_classifier
from models import build_model
from models.contrastive import BESIDE_ENCODER
from models.convert import PREFIX
from utils import load_model_state, read_checkpoint, trained_config

CLASSES = ('negative', 'positive', 'uncertain')  # of a label with three outputs, in order
LARGEST_DIFFERENCE = 1e-4  # between an export and the model that it is of
NAMED_ENCODERS = ('swin', 'vit')  # MODEL.TYPE: those with names in other libraries
PLAIN_SWIN = {'APE': False, 'PATCH_NORM': True, 'QK_SCALE': None}  # as other libraries have it
ANY_MODEL = '--to onnx and --to torch_export take any model'


class Tokens(nn.Module):
    """Images [B, C, S, S] to a pre-trained encoder's normalised tokens [B, L, D], none hidden."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.encoder.encode(self.encoder.patch_embed(images))


class Source(NamedTuple):
    """A checkpoint's model, on the CPU, that scores."""

    config: Config
    encoder: nn.Module  # fine-tuned: with its head
    network: nn.Module  # images [B, C, S, S] to what it gives
    outputs: tuple[str, ...]  # [K], what each logit is of; pre-trained: none
    gives: str  # 'logits' [B, K]; masked pre-training: 'tokens' [B, L, D]; contrastive: 'features'


def load_source(path: str | Path, logger: logging.Logger) -> Source:
    """Read a checkpoint of main_simmim.py, main_contrastive.py or main_finetune.py.

    Raises:
        ValueError: if it cannot be read, has no options of a run, or is of another model.
    """
    config, state = trained_config(path), read_checkpoint(path)['model']
    if config is None:
        raise ValueError(
            f'{path} is no checkpoint of main_simmim.py, main_contrastive.py or main_finetune.py'
        )
    config.MODEL.ATTENTION = 'eager'  # plain operations, which every program has
    config.TRAIN.USE_CHECKPOINT = False
    outputs: tuple[str, ...] = ()
    if 'head.weight' in state:
        network = encoder = load_classifier(config, path, torch.device('cpu'), logger)
        outputs = output_names(task_labels(config.DATA.TASK), len(state['head.weight']))
        gives = 'logits'
    elif any(key.startswith(BESIDE_ENCODER) for key in state):
        network = encoder = build_model(config, is_pretrain=False, num_outputs=0)
        load_model_state(encoder, _encoder_alone(config, state), str(path), logger)
        gives = 'features'
    else:
        model = build_model(config, is_pretrain=True)
        load_model_state(model, state, str(path), logger)
        encoder, gives = model.encoder, 'tokens'
        network = Tokens(encoder)
    return Source(config, encoder, network.eval(), outputs, gives)


def _encoder_alone(config: Config, state: State) -> State:
    """The encoder's entries of a contrastive checkpoint, as the classifier's model has them."""
    prefix = '' if config.MODEL.TYPE == 'timm' else PREFIX  # which is in that of a timm model, too
    kept = {key: value for key, value in state.items() if not key.startswith(BESIDE_ENCODER)}
    return {key.removeprefix(prefix): value for key, value in kept.items()}


def output_names(labels: tuple[str, ...], num_outputs: int) -> tuple[str, ...]:
    """The labels; with three outputs a label (policy 'multiclass') each with its three classes."""
    if num_outputs == len(labels):
        return labels
    return tuple(f'{label}: {name}' for label in labels for name in CLASSES)


def entries(source: Source, target: str) -> State:
    """The encoder's learned entries, and its head's.

    Raises:
        ValueError: if the target's library has no such encoder.
    """
    kind, options = source.config.MODEL.TYPE, source.config.MODEL.SWIN
    if kind not in NAMED_ENCODERS:
        raise ValueError(
            f'--to {target}: MODEL.TYPE must be one of {list(NAMED_ENCODERS)}, got {kind!r}; '
            f'{ANY_MODEL}'
        )
    for key, plain in PLAIN_SWIN.items() if kind == 'swin' else ():
        if options[key] != plain:
            raise ValueError(
                f'--to {target}: MODEL.SWIN.{key} must be {plain}, as in the Swin there, got '
                f'{options[key]}; {ANY_MODEL}'
            )
    state = learned_entries(source.encoder.state_dict())
    return {key: value.contiguous() for key, value in state.items()}


def facts(source: Source) -> dict[str, Any]:
    """What a program needs to prepare images and to read the outputs, as plain values."""
    config = source.config
    mean, std = statistics(config)
    return {
        'input_size': input_size(config),
        'grey_levels': [0, 1],  # of pixels before mean and std
        'mean': list(mean),
        'std': list(std),
        'normalize': config.DATA.NORMALIZE,
        'preprocess': config.DATA.PREPROCESS,
        'interpolation': interpolation(source),
        'centre_crop': config.TEST.CROP,
        'outputs': list(source.outputs) or source.gives,
        'run': config.TAG,
        'use': 'research, not for clinical use',
    }


def interpolation(source: Source) -> str:
    """Name of the filter that scored images are resized with, one of FILTERS, never 'random'."""
    data = source.config.DATA
    name = data.INTERPOLATION if source.outputs else data.PRETRAIN_INTERPOLATION
    return FILTERS[name][0].name.lower()


def input_size(config: Config) -> list[int]:
    """[C, S, S]."""
    return [encoder_node(config).IN_CHANS, config.DATA.IMG_SIZE, config.DATA.IMG_SIZE]


def example_images(source: Source, count: int) -> torch.Tensor:
    """Random images [count, C, S, S], the same ones every time."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, *input_size(source.config), generator=generator)


@torch.no_grad()
def largest_difference(
    source: Source, exported: Callable[[torch.Tensor], torch.Tensor], target: str
) -> float:
    """Greatest difference between an export's outputs and the model's, over a few random images.

    Args:
        source: the model.
        exported: images [B, C, S, S] to outputs, for any B.
        target: its format, for messages.

    Raises:
        ValueError: if it is more than rounding, or not a number.
    """
    differences = []
    for count in (1, 3):
        images = example_images(source, count)
        expected = source.network(images)
        found = exported(images).reshape(expected.shape)
        differences.append((found - expected).abs().max())
    worst = torch.stack(differences).max().item()
    if not worst <= LARGEST_DIFFERENCE:
        raise ValueError(
            f'--to {target}: what was written gives other outputs than the checkpoint, by '
            f'{worst:.3g} (allowed: {LARGEST_DIFFERENCE:g}); nothing is kept'
        )
    return worst
