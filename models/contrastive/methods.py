"""MoCo v2, SimCLR, BYOL and SwAV as models whose forward pass gives the loss of a batch's views.

The views of a batch are tensors [B, C, S, S], as many arguments as there are views.  What changes
in training is in the state dict: with it a run that was stopped goes on as if it had not been.
The encoder is any module with `forward_features` (images to [B, F]) and `num_features` (F), or a
TimmClassifier, and is found under `encoder.*`.

`begin_step`, which the engine calls once a training step, lets momentum encoders follow and
normalises prototypes, however many micro-batches the step has; images are compared within a
micro-batch.  Evaluation changes nothing.

Batch norm: a query and its key come from the same images. Where statistics are of the few images
of one process, they mark both, and a network can tell the key by that mark without looking at what
is shown; He et al. (arXiv:1911.05722, section 3.3) shuffle the keys' images over processes against
it. Here `parallel.wrap` synchronises batch norm over all processes, as SimCLR does
(arXiv:2002.05709, section 2.2): the images of a batch share their statistics, which tell none from
another, in all four methods. It leaves MoCo a part of the mark: the keys in its queue are of other
batches. The larger the whole batch is, the less they differ; on a single process there is nothing
to shuffle with. Swin, ViT and MoCo's projector have no batch norm.
"""

from abc import ABC, abstractmethod
from itertools import groupby
from typing import ClassVar

import torch
from torch import nn

from models.contrastive.encoders import bare_encoder, features
from models.contrastive.heads import Prototypes, mlp_head
from models.contrastive.key_queue import KeyQueue
from models.contrastive.losses import byol_loss, info_nce, nt_xent, swav_loss, unit
from models.contrastive.momentum import cosine_momentum, follow_, frozen_copy


class ContrastiveMethod(nn.Module, ABC):
    """Encoder and projector, and the count of training steps.

    Attributes:
        title: what the method is called.
        step: training steps begun.
        whole_encoder: the encoder as it was given, which published weights are fitted to; what of
            it is trained is the same module as `encoder`.

    Raises:
        ValueError: if the encoder has a classification head.
    """

    title: ClassVar[str]

    def __init__(self, encoder: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self._whole_encoder = (encoder,)  # no module of its own: its entries are there once
        self.encoder = bare_encoder(encoder)
        self.projector = projector
        self.register_buffer('step', torch.zeros((), dtype=torch.int64))

    def forward(self, *views: torch.Tensor) -> torch.Tensor:
        """Loss of the views [B, C, S, S] of B images."""
        return self.loss(*views)

    def encoder_loaded(self) -> None:
        """What is done once weights have been loaded into `whole_encoder`."""

    def begin_step(self) -> None:
        """What is done once a training step, before its views are looked at."""
        self.step += 1

    @property
    def whole_encoder(self) -> nn.Module:
        return self._whole_encoder[0]

    @abstractmethod
    def loss(self, *views: torch.Tensor) -> torch.Tensor:
        """Of the views [B, C, S, S] of B images, a scalar."""

    def project(self, images: torch.Tensor) -> torch.Tensor:
        """Images [B, C, S, S] to what the loss compares, [B, D]."""
        return self.projector(features(self.encoder, images))

    def no_weight_decay(self) -> set[str]:
        names = getattr(self.encoder, 'no_weight_decay', set)()
        return {f'encoder.{name}' for name in names}

    def no_weight_decay_keywords(self) -> set[str]:
        """The encoder's own: Swin's position tables do not decay, unlike in SimMIM."""
        return set(getattr(self.encoder, 'no_weight_decay_keywords', set)())


class SimCLR(ContrastiveMethod):
    """Two views of an image attract, all other views of the batch repel.

    Args:
        encoder: the encoder.
        dim: width of what is compared.
        temperature: of the loss.

    Source: Chen et al. 2020, arXiv:2002.05709.
    """

    title = 'SimCLR'

    def __init__(self, encoder: nn.Module, *, dim: int = 128, temperature: float = 0.1) -> None:
        width = encoder.num_features
        super().__init__(encoder, mlp_head(width, dim, hidden=width, norm_output=True))
        self.temperature = temperature

    def loss(self, view1: torch.Tensor, view2: torch.Tensor) -> torch.Tensor:
        z1, z2 = self.project(torch.cat([view1, view2])).chunk(2)
        return nt_xent(z1, z2, self.temperature)


class MomentumMethod(ContrastiveMethod, ABC):
    """Beside encoder and projector there are copies that follow them and give the targets."""

    def __init__(self, encoder: nn.Module, projector: nn.Module) -> None:
        super().__init__(encoder, projector)
        self.momentum_encoder = frozen_copy(self.encoder)
        self.momentum_projector = frozen_copy(self.projector)

    @abstractmethod
    def momentum(self) -> torch.Tensor:
        """By which the copies follow what the last step made."""

    def encoder_loaded(self) -> None:
        self.momentum_encoder.load_state_dict(self.encoder.state_dict())

    def begin_step(self) -> None:
        momentum = self.momentum()  # at the first step the copies are the same by any
        follow_(self.momentum_encoder, self.encoder, momentum)
        follow_(self.momentum_projector, self.projector, momentum)
        super().begin_step()

    @torch.no_grad()
    def momentum_project(self, images: torch.Tensor) -> torch.Tensor:
        """Images [B, C, S, S] to targets [B, D], without gradient."""
        return self.momentum_projector(features(self.momentum_encoder, images))


class MoCo(MomentumMethod):
    """MoCo v2: a view is to find the key of the other view among those of the last batches.

    Args:
        encoder: the encoder.
        dim: width of queries and keys.
        queue_size: keys of earlier batches, a multiple of the images of a batch on all processes.
        temperature: of the loss; MoCo v2 has 0.2.
        momentum: of the key encoder.

    Source: He et al. 2020, arXiv:1911.05722; Chen et al. 2020, arXiv:2003.04297.
    """

    title = 'MoCo v2'

    def __init__(
        self,
        encoder: nn.Module,
        *,
        dim: int = 128,
        queue_size: int = 4096,
        temperature: float = 0.07,
        momentum: float = 0.999,
    ) -> None:
        width = encoder.num_features
        super().__init__(encoder, mlp_head(width, dim, hidden=width, norm=False))
        self.queue = KeyQueue(queue_size, dim)
        self.temperature = temperature
        self.key_momentum = momentum

    def momentum(self) -> torch.Tensor:
        return torch.full_like(self.step, self.key_momentum, dtype=torch.float64)

    def loss(self, query_view: torch.Tensor, key_view: torch.Tensor) -> torch.Tensor:
        queries = self.project(query_view)
        keys = unit(self.momentum_project(key_view))
        earlier = self.queue.keys.clone()  # the backward pass needs them as they were
        if self.training:
            self.queue.enqueue(keys)
        return info_nce(queries, keys, earlier, self.temperature)


class BYOL(MomentumMethod):
    """From each view, what the slower network makes of the other is predicted; nothing repels.

    Args:
        encoder: the encoder.
        total_steps: optimizer steps of the run, at whose end the momentum is 1.
        dim: width of projections and predictions.
        hidden: width inside projector and predictor.
        momentum: of the target network at the start.

    Source: Grill et al. 2020, arXiv:2006.07733.
    """

    title = 'BYOL'

    def __init__(
        self,
        encoder: nn.Module,
        *,
        total_steps: int,
        dim: int = 256,
        hidden: int = 4096,
        momentum: float = 0.996,
    ) -> None:
        super().__init__(encoder, mlp_head(encoder.num_features, dim, hidden=hidden))
        self.predictor = mlp_head(dim, dim, hidden=hidden)
        self.total_steps = total_steps
        self.first_momentum = momentum

    def momentum(self) -> torch.Tensor:
        last = self.step - 1
        return cosine_momentum(last, total_steps=self.total_steps, start=self.first_momentum)

    def loss(self, view1: torch.Tensor, view2: torch.Tensor) -> torch.Tensor:
        return self._predict(view1, view2) + self._predict(view2, view1)

    def _predict(self, view: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return byol_loss(self.predictor(self.project(view)), self.momentum_project(other))


class SwAV(ContrastiveMethod):
    """The prototypes that one crop of an image is assigned to are predicted from its other crops.

    Global crops come first.  Crops of other sizes need an encoder that takes any size, such as a
    ResNet; Swin and ViT take one size and refuse others with a ValueError: for them the data has
    to scale local crops, which show less, to DATA.IMG_SIZE.

    Args:
        encoder: the encoder.
        num_prototypes: their number; the images of a whole batch should not be much fewer.
        dim: width of projections and prototypes.
        hidden: width inside the projector.
        local_crops: small crops of an image, which come last and whose assignments are no targets.
        temperature: of the predictions.
        epsilon: of the assignments.
        freeze_prototypes_steps: first steps in which the prototypes do not learn: their gradient is
            0, which AdamW's second moments count, so that the steps after it are up to 3 times as
            large.

    Source: Caron et al. 2020, arXiv:2006.09882.
    """

    title = 'SwAV'

    def __init__(
        self,
        encoder: nn.Module,
        *,
        num_prototypes: int = 3000,
        dim: int = 128,
        hidden: int = 2048,
        local_crops: int = 0,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        freeze_prototypes_steps: int = 0,
    ) -> None:
        super().__init__(encoder, mlp_head(encoder.num_features, dim, hidden=hidden))
        self.prototypes = Prototypes(dim, num_prototypes)
        self.local_crops = local_crops
        self.temperature = temperature
        self.epsilon = epsilon
        self.freeze_prototypes_steps = freeze_prototypes_steps

    def begin_step(self) -> None:
        self.prototypes.normalise_()
        super().begin_step()

    def loss(self, *views: torch.Tensor) -> torch.Tensor:
        least = max(2, self.local_crops + 1)
        if len(views) < least:
            raise ValueError(f'SwAV needs at least {least} crops of each image, got {len(views)}')
        same_size = [list(group) for _, group in groupby(views, key=lambda view: view.shape[-1])]
        pooled = [features(self.encoder, torch.cat(group)) for group in same_size]
        z = self.projector(torch.cat(pooled))  # [V * B, D]
        scores = self.prototypes(z, learn=self.step > self.freeze_prototypes_steps)
        return swav_loss(
            scores.unflatten(0, (len(views), -1)),
            num_global=len(views) - self.local_crops,
            temperature=self.temperature,
            epsilon=self.epsilon,
        )


METHODS = {'moco': MoCo, 'simclr': SimCLR, 'byol': BYOL, 'swav': SwAV}
