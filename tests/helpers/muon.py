"""Muon with rules by name, as an optimizer of one's own: the matrices of blocks, and AdamW for all.

Jordan et al. 2024, https://kellerjordan.github.io/posts/muon
"""

from typing import Any

import torch
from torch import Tensor, optim

from optimizer import OPTIMIZERS

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration


def orthogonalised(update: Tensor, steps: int) -> Tensor:
    """Return nearly the closest matrix with orthogonal rows or columns (Newton-Schulz)."""
    a, b, c = COEFFICIENTS
    x = update.T if update.shape[0] > update.shape[1] else update
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if update.shape[0] > update.shape[1] else x


class Muon(optim.AdamW):
    """AdamW, with orthogonalised momentum for the groups with `orthogonal`."""

    def __init__(self, groups: list[dict], *, momentum: float, steps: int, **options: Any) -> None:
        super().__init__(groups, **options)
        self.steps = steps
        for group in self.param_groups:
            group.setdefault('momentum', momentum)

    @torch.no_grad()
    def step(self) -> None:
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group['orthogonal']]
        super().step()
        self.param_groups = groups
        for group in groups:
            for parameter in group['params'] if group['orthogonal'] else ():
                self.step_of_matrix(parameter, group)

    def step_of_matrix(self, parameter: Tensor, group: dict) -> None:
        state = self.state[parameter]
        if not state:
            state['step'] = torch.zeros(())  # which AdamW expects of every parameter
            state['average'] = torch.zeros_like(parameter)
            state['is_tall'] = parameter.shape[0] > parameter.shape[1]  # a Python boolean
            state['was_positive'] = parameter > 0  # a tensor of booleans
        state['step'] += 1
        state['average'].lerp_(parameter.grad, 1 - group['momentum'])
        nesterov = parameter.grad.lerp(state['average'], group['momentum'])
        factor = max(1.0, parameter.shape[0] / parameter.shape[1]) ** 0.5
        parameter.mul_(1 - group['lr'] * group['weight_decay'])
        update = orthogonalised(nesterov, self.steps)
        parameter.add_(update, alpha=-group['lr'] * (factor if state['is_tall'] else 1.0))


@OPTIMIZERS.register('named_muon')
def muon(groups: list[dict], options: Any, *, momentum: float, steps: int) -> optim.Optimizer:
    """Use Muon for the matrices in blocks, whose names say what they are."""
    split = []
    for group in groups:
        named = [*zip(group['names'], group['params'], strict=True)]
        for orthogonal in (False, True):
            chosen = [
                (name, parameter)
                for name, parameter in named
                if ('blocks.' in name and parameter.ndim == 2) == orthogonal
            ]
            if chosen:
                names, parameters = zip(*chosen, strict=True)
                own = {'names': [*names], 'params': [*parameters], 'orthogonal': orthogonal}
                split.append(group | own)
    return Muon(split, momentum=momentum, steps=steps, eps=options.EPS, betas=options.BETAS)
