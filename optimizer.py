"""Optimizers, and parameter groups: weight decay and learning rates by layer.

To add an optimizer, write one function with `@OPTIMIZERS.register`. It takes the parameter groups,
which contain their learning rate, their weight decay and the `names` of their `params`, the options
TRAIN.OPTIMIZER, and as keyword arguments options of its own, such as TRAIN.OPTIMIZER.MUON.STEPS of
'muon'.
"""

import logging
from typing import Any

from torch import nn, optim

from config import REGISTRIES, Config, selected_part
from lr_scheduler import scaled_lr
from system import distributed

OPTIMIZERS = REGISTRIES['TRAIN.OPTIMIZER.NAME']


@OPTIMIZERS.register('adamw')
def adamw(groups: list[dict], options: Any) -> optim.Optimizer:
    """Loshchilov & Hutter 2017, arXiv:1711.05101."""
    return optim.AdamW(groups, eps=options.EPS, betas=options.BETAS, fused=True)


@OPTIMIZERS.register('sgd')
def sgd(groups: list[dict], options: Any) -> optim.Optimizer:
    """Build SGD with Nesterov momentum."""
    return optim.SGD(groups, momentum=options.MOMENTUM, nesterov=True, fused=True)


@OPTIMIZERS.register('lamb')
def lamb(groups: list[dict], options: Any) -> optim.Optimizer:
    """You et al. 2019, arXiv:1904.00962. The training loop clips the gradients, not LAMB itself."""
    from timm.optim import Lamb  # slow to import

    return Lamb(groups, eps=options.EPS, betas=options.BETAS, max_grad_norm=None)


def build_optimizer(
    config: Config, model: nn.Module, logger: logging.Logger, is_pretrain: bool
) -> optim.Optimizer:
    """Build the optimizer of TRAIN.OPTIMIZER with the parameter groups of the stage."""
    options = config.TRAIN.OPTIMIZER
    groups = param_groups(
        model,
        weight_decay=config.TRAIN.WEIGHT_DECAY,
        base_lr=scaled_lr(config, distributed.world_size()).base,
        layer_decay=None if is_pretrain else config.TRAIN.LAYER_DECAY,
    )
    for group in groups:
        logger.debug(
            f'{group.get("group_name", "group")}: {len(group["params"])} tensors, '
            f'weight decay {group["weight_decay"]:g}, base rate {group["lr"]:.6g}'
        )
    optimizer = selected_part(config, 'TRAIN.OPTIMIZER.NAME', with_options=True)(groups, options)
    decays = [group['weight_decay'] for group in optimizer.param_groups for _ in group['params']]
    rates = [group['lr'] for group in optimizer.param_groups]
    low, high = min(rates), max(rates)
    decayed = sum(decay > 0 for decay in decays)
    shown = f'base rate {high:.6g}' if low == high else f'base rates {low:.6g} to {high:.6g}'
    logger.info(
        f'{options.NAME.lower()}: {len(decays)} tensors in {len(rates)} groups, {decayed} of them '
        f'with weight decay {max(decays):g}; {shown}'
    )
    return optimizer


def param_groups(
    model: nn.Module, *, weight_decay: float, base_lr: float, layer_decay: float | None
) -> list[dict]:
    """Split the trainable parameters by weight decay and, in fine-tuning, by layer.

    A group has its parameters in `params`, and their names in the model in `names`. In pre-training
    there are two groups, with and without weight decay. In fine-tuning, the parameters of each
    layer form up to two groups in the order of first occurrence. They have a `group_name`, the
    learning rate base_lr * layer_decay ** (top layer - layer), and an `lr_scale`, which the
    learning rate already includes.

    Args:
        model: Model with SimMIM's methods `no_weight_decay` and `get_layer_id`.
        weight_decay: Weight decay of the decayed parameters.
        base_lr: Learning rate of the top layer.
        layer_decay: Factor between the learning rates of two layers; None in pre-training.
    """
    # In pre-training the group with weight decay comes first.
    groups: dict[tuple, dict[str, nn.Parameter]] = {}
    if layer_decay is None:
        groups = {(None, True): {}, (None, False): {}}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # Layer 0 is the embedding, and the layer after the last block is the head.
            layer = None if layer_decay is None else model.get_layer_id(name)
            is_exempt = (
                parameter.ndim == 1
                or name.endswith('.bias')
                or name in model.no_weight_decay()
                or not model.no_weight_decay_keywords().isdisjoint(name.split('.'))
            )
            groups.setdefault((layer, not is_exempt), {})[name] = parameter
    if layer_decay is None:
        return [
            {
                'params': [*params.values()],
                'names': [*params],
                'weight_decay': weight_decay * decays,
                'lr': base_lr,
            }
            for (_, decays), params in groups.items()
        ]
    top = model.get_num_layers() + 1
    # A layer above the head would get a higher learning rate than the head.
    if outside := {layer for layer, _ in groups} - {*range(top + 1)}:
        raise ValueError(f'get_layer_id returns {outside}, and layers are numbered from 0 to {top}')
    return [
        {
            'group_name': f'layer_{layer}_{"decay" if decays else "no_decay"}',
            'params': [*params.values()],
            'names': [*params],
            'weight_decay': weight_decay * decays,
            'lr': base_lr * layer_decay ** (top - layer),
            'lr_scale': layer_decay ** (top - layer),
        }
        for (layer, decays), params in groups.items()
    ]
