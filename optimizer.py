"""The optimizer and its parameter groups: what decays, and which layer learns how fast."""

import logging

from torch import nn, optim

from config import Config
from engine import distributed
from lr_scheduler import scaled_lr


def build_optimizer(
    config: Config, model: nn.Module, logger: logging.Logger, is_pretrain: bool
) -> optim.Optimizer:
    """AdamW (fused) or SGD (Nesterov) over the groups of the stage, at the rate by the batch size.

    Raises:
        ValueError: if TRAIN.OPTIMIZER.NAME is unknown.
    """
    options = config.TRAIN.OPTIMIZER
    adamw = {'eps': options.EPS, 'betas': tuple(options.BETAS), 'fused': True}
    choices = {
        'adamw': (optim.AdamW, adamw),
        'sgd': (optim.SGD, {'momentum': options.MOMENTUM, 'nesterov': True}),
    }
    name = options.NAME.lower()
    if name not in choices:
        raise ValueError(
            f'TRAIN.OPTIMIZER.NAME must be one of {sorted(choices)}, got {options.NAME!r}'
        )
    base_lr = scaled_lr(config, distributed.world_size()).base
    groups = param_groups(
        model,
        weight_decay=config.TRAIN.WEIGHT_DECAY,
        base_lr=base_lr,
        layer_decay=None if is_pretrain else config.TRAIN.LAYER_DECAY,
    )
    for group in groups:
        logger.debug(
            f'{group.get("group_name", "group")}: {len(group["params"])} tensors, '
            f'weight decay {group["weight_decay"]:g}, base rate {group["lr"]:.6g}'
        )
    logger.info(_describe(name, groups))
    algorithm, settings = choices[name]
    return algorithm(groups, lr=base_lr, weight_decay=config.TRAIN.WEIGHT_DECAY, **settings)


def param_groups(
    model: nn.Module, *, weight_decay: float, base_lr: float, layer_decay: float | None
) -> list[dict]:
    """Split the trainable parameters by weight decay and, in fine-tuning, by layer.

    Args:
        model: names what is free of decay, and in fine-tuning its number of blocks and layer ids.
        weight_decay: of the parameters that decay; the others get 0.
        base_lr: rate of the topmost layer.
        layer_decay: None (pre-training): two groups, decay and no decay. Else one group for each
            layer id and kind of decay, whose rate is base_lr * layer_decay ** (top id - id).

    Returns:
        Groups for a torch optimizer; in fine-tuning with group_name and lr_scale (information
        only: the scale is in lr already), in the order of first occurrence.
    """
    # In pre-training the group that decays comes first.
    groups = {(None, True): [], (None, False): []} if layer_decay is None else {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            layer = None if layer_decay is None else model.get_layer_id(name)
            decays = not _is_exempt(name, parameter, model)
            groups.setdefault((layer, decays), []).append(parameter)
    if layer_decay is None:
        return [
            {'params': params, 'weight_decay': weight_decay * decays, 'lr': base_lr}
            for (_, decays), params in groups.items()
        ]
    top = model.get_num_layers() + 1
    return [
        {
            'group_name': f'layer_{layer}_{"decay" if decays else "no_decay"}',
            'params': params,
            'weight_decay': weight_decay * decays,
            'lr': base_lr * layer_decay ** (top - layer),
            'lr_scale': layer_decay ** (top - layer),
        }
        for (layer, decays), params in groups.items()
    ]


def _describe(name: str, groups: list[dict]) -> str:
    """One line on all groups; each has its own in the log at debug level."""
    decays = [group['weight_decay'] for group in groups for _ in group['params']]
    rates = [group['lr'] for group in groups]
    low, high = min(rates), max(rates)
    decayed = sum(decay > 0 for decay in decays)
    shown = f'base rate {high:.6g}' if low == high else f'base rates {low:.6g} to {high:.6g}'
    return (
        f'{name}: {len(decays)} tensors in {len(groups)} groups, {decayed} of them with weight '
        f'decay {max(decays):g}; {shown}'
    )


def _is_exempt(name: str, parameter: nn.Parameter, model: nn.Module) -> bool:
    """Whether a parameter has no weight decay: a vector, a bias, or by the model's own lists."""
    return (
        parameter.ndim == 1
        or name.endswith('.bias')
        or name in model.no_weight_decay()
        or not model.no_weight_decay_keywords().isdisjoint(name.split('.'))
    )
