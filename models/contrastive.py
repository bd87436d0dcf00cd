"""Contrastive methods from the config."""

import copy
import functools
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from inspect import signature
from itertools import groupby
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from engine import distributed
from models.build import build_model

# ==== models.contrastive.gather: Rows of all processes, with gradient; the argument itself on one process.


class _GatherRows(torch.autograd.Function):
    """Each process's rows take part in every process's loss: their gradients are added up."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, rows: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(rows) for _ in range(distributed.world_size())]
        dist.all_gather(parts, rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: torch.Tensor) -> torch.Tensor:
        total = distributed.all_reduce_sum(grad.contiguous())
        return total.chunk(distributed.world_size())[distributed.rank()]


def gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """[B, ...] of each process to [processes * B, ...] in the order of ranks, on every process.

    B must be the same everywhere.  The gradient is that of the sum of all processes' losses.
    """
    return rows if distributed.world_size() == 1 else _GatherRows.apply(rows.contiguous())


# ==== models.contrastive.key_queue: MoCo's queue: the keys of the last batches, of all processes.


def check_queue_size(size: int, global_batch: int) -> None:
    """See that the queue holds whole batches.

    Raises:
        ValueError: if its size is no multiple of the images that enter it at once.
    """
    if size < 1 or size % global_batch:
        raise ValueError(
            f'queue_size {size} must be a multiple of the {global_batch} images of a batch (batch '
            'size times processes)'
        )


class KeyQueue(nn.Module):
    """Ring of keys; new ones take the place of the oldest.

    It is the same on all processes.  At first it holds zeros, which are like no query (cosine 0);
    random keys, as in MoCo's own code, would have to be agreed on between processes.

    Attributes:
        keys: [size, D], of length 1.
        pointer: where the next key goes.

    Source: He et al. 2020, arXiv:1911.05722.
    """

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer('keys', torch.zeros(size, dim))
        self.register_buffer('pointer', torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def enqueue(self, keys: torch.Tensor) -> None:
        """Put in [B, D] of each process, those of rank 0 first.

        Raises:
            ValueError: if the queue's size is no multiple of the keys of all processes.
        """
        keys, size = gather_rows(keys), len(self.keys)
        check_queue_size(size, len(keys))
        # A tensor, so that nothing waits for the device; it wraps around if batches change size.
        places = (self.pointer + torch.arange(len(keys), device=keys.device)) % size
        self.keys.index_copy_(0, places, keys.to(self.keys.dtype))
        self.pointer.copy_((self.pointer + len(keys)) % size)


# ==== models.contrastive.momentum: Slowly moving copies of networks (MoCo, BYOL): how they follow, and how fast.


def frozen_copy(module: nn.Module) -> nn.Module:
    """A copy whose parameters need no gradient: no optimizer and no process group touches them."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def follow_(target: nn.Module, online: nn.Module, momentum: torch.Tensor) -> None:
    """Make each parameter of `target` momentum * itself + (1 - momentum) * that of `online`.

    Buffers, the running statistics of batch norm, are the target's own.
    """
    for slow, fast in zip(target.parameters(), online.parameters(), strict=True):
        slow.lerp_(fast, (1 - momentum).to(slow.dtype))


def cosine_momentum(step: torch.Tensor, *, total_steps: int, start: float) -> torch.Tensor:
    """BYOL's momentum after the update of `step` (from 0): `start`, rising to 1 by half a cosine.

    Source: Grill et al. 2020, arXiv:2006.07733, section 3.3.
    """
    progress = (step.double() / total_steps).clamp(0, 1)
    return 1 - (1 - start) * (torch.cos(math.pi * progress) + 1) / 2


# ==== models.contrastive.monitor: Whether embeddings collapse: how far they spread, and over how many dimensions.

# Below these all images look alike to the encoder: of directions all over, the spread is 1; along a
# single line, the rank is 1.
LEAST_SPREAD = 0.05
LEAST_RANK = 2.0


def collapse(spread: float, rank: float, *, greatest_rank: int) -> str:
    """What there is to say where spread or rank are too low, else ''.

    Args:
        spread: see feature_spread.
        rank: see effective_rank; of features less their mean.
        greatest_rank: what it can be, by the number of images and the width; nothing is said where
            it is too low for features of any kind.
    """
    collapsed = spread < LEAST_SPREAD or rank < LEAST_RANK
    if not collapsed or greatest_rank <= LEAST_RANK:
        return ''
    return (
        f'the features have collapsed (spread below {LEAST_SPREAD} or effective rank below '
        f'{LEAST_RANK:g}): lower TRAIN.BASE_LR, or take larger batches'
    )


@torch.no_grad()
def feature_spread(z: torch.Tensor) -> torch.Tensor:
    """Mean standard deviation of unit vectors over the batch, times sqrt(D).

    Args:
        z: [B, D], of any length.

    Returns:
        Scalar: 1 where they point in all directions alike, 0 where all point in one.

    Source: Chen & He 2021, arXiv:2011.10566, section 4.1.
    """
    directions = F.normalize(z.float(), dim=1)
    return directions.std(dim=0, correction=0).mean() * z.shape[1] ** 0.5


@torch.no_grad()
def effective_rank(z: torch.Tensor) -> torch.Tensor:
    """Exponential of the entropy of the singular values, as shares of their sum.

    Args:
        z: [B, D].

    Returns:
        Scalar from 1 (all rows are multiples of one) to min(B, D).

    Source: Roy & Vetterli 2007, The effective rank, EUSIPCO.
    """
    singular = torch.linalg.svdvals(z.float())
    shares = singular / singular.sum().clamp(min=torch.finfo(torch.float32).tiny)
    return torch.special.entr(shares).sum().exp()


# ==== models.contrastive.losses: Losses of contrastive and clustering pre-training, over the images of all processes.
#
# They are written out here because each is a few lines, while lightly, which has them too, brings
# PyTorch Lightning and Hydra along.
#
# Each is a mean over this process's images, whose number must be the same on every process: the
# mean over processes, which DistributedDataParallel takes of the gradients, is then that of the
# whole batch.  All are computed in float32, also under autocast (float64 stays).


def at_least_float32(z: torch.Tensor) -> torch.Tensor:
    """Half precision to float32; other types as they are."""
    return z.to(torch.promote_types(z.dtype, torch.float32))


def unit(z: torch.Tensor) -> torch.Tensor:
    """Vectors [..., D] divided by their length, in float32."""
    return F.normalize(at_least_float32(z), dim=-1)


def in_float32(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Call a function of tensors, then settings, without autocast, on float32 tensors."""

    @functools.wraps(function)
    def wrapped(*values: torch.Tensor | float, **settings: float) -> torch.Tensor:
        with torch.autocast(values[0].device.type, enabled=False):
            values = [at_least_float32(v) if isinstance(v, torch.Tensor) else v for v in values]
            return function(*values, **settings)

    return wrapped


@in_float32
def nt_xent(z1: torch.Tensor, z2: torch.Tensor, temperature: float) -> torch.Tensor:
    """SimCLR: each view is to find the other of its image among all other views of the batch.

    Args:
        z1: [B, D], first views of this process's images; normalised here.
        z2: [B, D], second views.
        temperature: divides the cosines.

    Returns:
        Scalar: mean cross-entropy of this process's 2 B views, each against the 2 N - 1 other
        views of all N images of the processes.

    Source: Chen et al. 2020, arXiv:2002.05709, algorithm 1.
    """
    own = unit(torch.cat([z1, z2]))  # [2B, D]
    every = gather_rows(own)  # [2N, D], this process's rows from `first` on
    first = distributed.rank() * len(own)
    places = first + torch.arange(len(own), device=own.device)
    logits = own @ every.T / temperature  # [2B, 2N]
    logits = logits.scatter(1, places[:, None], -torch.inf)  # no view is compared with itself
    return F.cross_entropy(logits, places.roll(len(z1)))


@in_float32
def info_nce(
    q: torch.Tensor, k: torch.Tensor, queue: torch.Tensor, temperature: float
) -> torch.Tensor:
    """MoCo: each query is to find its key among the keys of earlier batches.

    Args:
        q: [B, D], queries; normalised here.
        k: [B, D], the key of each; normalised here. No gradient flows into it.
        queue: [K, D], keys of length 1. No gradient flows into it.
        temperature: divides the cosines.

    Returns:
        Scalar: mean cross-entropy over 1 + K keys.

    Source: He et al. 2020, arXiv:1911.05722, algorithm 1.
    """
    q, k = unit(q), unit(k.detach())
    positive = (q * k).sum(dim=1, keepdim=True)
    logits = torch.cat([positive, q @ queue.detach().T], dim=1) / temperature  # [B, 1 + K]
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.int64, device=q.device))


@in_float32
def byol_loss(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """BYOL, one direction: squared distance of unit vectors, 2 - 2 cos.

    Args:
        prediction: [B, D].
        target: [B, D]. No gradient flows into it.

    Returns:
        Scalar in [0, 4], the mean over the batch.

    Source: Grill et al. 2020, arXiv:2006.07733, equation 2.
    """
    return (2 - 2 * (unit(prediction) * unit(target.detach())).sum(dim=1)).mean()


@in_float32
def sinkhorn(scores: torch.Tensor, *, epsilon: float = 0.05, iterations: int = 3) -> torch.Tensor:
    """Soft assignments of samples to prototypes that use all prototypes about equally.

    Args:
        scores: [..., B, K], cosines of this process's samples and the prototypes.
        epsilon: the smaller, the harder the assignments.
        iterations: in each, prototypes then samples are normalised; the more, the more equally.

    Returns:
        [..., B, K] without gradient: a sample's shares sum to 1, a prototype's over the samples of
        all processes to about samples / K.

    Source: Caron et al. 2020, arXiv:2006.09882, appendix A; Cuturi 2013, arXiv:1306.0895.
    """
    shares = ((scores.detach() - 1) / epsilon).exp()  # a cosine less 1: nothing overflows
    for _ in range(iterations):
        shares = shares / distributed.all_reduce_sum(shares.sum(dim=-2, keepdim=True))
        shares = shares / shares.sum(dim=-1, keepdim=True)
    return shares


@in_float32
def swav_loss(
    scores: torch.Tensor, *, num_global: int, temperature: float, epsilon: float
) -> torch.Tensor:
    """SwAV: the assignment of each global crop is predicted from every other crop of the image.

    Args:
        scores: [V, B, K], cosines of V crops of B images and the prototypes; global crops first.
        num_global: crops whose assignments are targets.
        temperature: of the predictions, divides the cosines.
        epsilon: of the assignments, see sinkhorn.

    Returns:
        Scalar: mean cross-entropy over images and pairs of crops.

    Source: Caron et al. 2020, arXiv:2006.09882, equations 2 and 6.
    """
    num_views, num_images, _ = scores.shape
    targets = sinkhorn(scores[:num_global], epsilon=epsilon)  # [G, B, K]
    predictions = F.log_softmax(scores / temperature, dim=-1)
    costs = -torch.einsum('gbk,vbk->gv', targets, predictions) / num_images  # [G, V]
    itself = torch.eye(num_global, num_views, dtype=torch.bool, device=scores.device)
    return costs.masked_fill(itself, 0.0).sum() / (num_global * (num_views - 1))


# ==== models.contrastive.heads: What stands between an encoder and a contrastive loss: projectors, predictors, prototypes.


def mlp_head(
    in_features: int,
    out_features: int,
    *,
    hidden: int,
    norm: bool = True,
    norm_output: bool = False,
) -> nn.Sequential:
    """Two linear layers with ReLU between, [B, in_features] to [B, out_features].

    Args:
        in_features: width of the input.
        out_features: width of the output.
        hidden: width between the layers.
        norm: whether batch norm precedes the ReLU (SimCLR, BYOL, SwAV; not MoCo v2).
        norm_output: whether batch norm follows the second layer (SimCLR).
    """
    layers = [nn.Linear(in_features, hidden, bias=not norm)]  # batch norm has a bias of its own
    if norm:
        layers.append(nn.BatchNorm1d(hidden))
    layers += [nn.ReLU(), nn.Linear(hidden, out_features, bias=not norm_output)]
    if norm_output:
        layers.append(nn.BatchNorm1d(out_features))
    return nn.Sequential(*layers)


class Prototypes(nn.Linear):
    """SwAV's prototypes [K, D]: a linear layer without bias whose rows are kept at length 1.

    They are normalised before each training step, and, as the step changes them, for evaluation.
    """

    def __init__(self, dim: int, num_prototypes: int) -> None:
        super().__init__(dim, num_prototypes, bias=False)
        self.normalise_()

    @torch.no_grad()
    def normalise_(self) -> None:
        self.weight.copy_(F.normalize(self.weight, dim=1))

    def forward(self, z: torch.Tensor, learn: torch.Tensor) -> torch.Tensor:
        """Cosines [..., K] of vectors [..., D]; where `learn` (bool) is false, none is learnt.

        The prototypes' gradient is 0 then, not absent, as DistributedDataParallel waits for it.
        """
        if not self.training:
            return _products(unit(z), unit(self.weight))
        fixed = self.weight.detach()
        return _products(unit(z), fixed + learn * (self.weight - fixed))


@in_float32
def _products(z: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.linear(z, weight)


# ==== models.contrastive.encoders: What contrastive methods take as an encoder, and how they get its features.


def bare_encoder(encoder: nn.Module) -> nn.Module:
    """The part that is trained: of a TimmClassifier timm's model, else the module itself.

    So the entries under `encoder.*` are those that the classifier has, which fine-tuning takes.

    Raises:
        ValueError: if it has a classification head, which would get no gradient.
    """
    if _has_classifier(encoder):
        raise ValueError(
            f'{type(encoder).__name__} has a classification head, which contrastive pre-training '
            'does not use: build it with num_classes=0'
        )
    return getattr(encoder, 'encoder', encoder)


def features(encoder: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Images [B, C, S, S] to [B, F]; ours pool in `forward_features`, timm's in `forward`.

    Raises:
        ValueError: if they are of another size than the encoder takes.
    """
    if not _is_of_timm(encoder):
        return encoder.forward_features(images)
    embed = getattr(encoder, 'patch_embed', None)
    if getattr(embed, 'strict_img_size', False) and images.shape[-2:] != embed.img_size:
        height, width = images.shape[-2:]
        allowed = 'x'.join(map(str, embed.img_size))
        raise ValueError(
            f'image size: got {height}x{width}, the encoder was built for {allowed} (DATA.IMG_SIZE)'
        )
    return encoder(images)


def _has_classifier(encoder: nn.Module) -> bool:
    if _is_of_timm(encoder):
        return encoder.num_classes > 0  # its `head` may be a norm and pooling alone
    return isinstance(getattr(encoder, 'head', None), nn.Linear)


def _is_of_timm(encoder: nn.Module) -> bool:
    return hasattr(encoder, 'forward_head')  # as every model of timm has, and none of ours


# ==== models.contrastive.methods: MoCo v2, SimCLR, BYOL and SwAV as models whose forward pass gives the loss of a batch's views.
#
# The views of a batch are tensors [B, C, S, S], as many arguments as there are views.  What changes
# in training is in the state dict: with it a run that was stopped goes on as if it had not been.
# The encoder is any module with `forward_features` (images to [B, F]) and `num_features` (F), or a
# TimmClassifier, and is found under `encoder.*`.
#
# `begin_step`, which the engine calls once a training step, lets momentum encoders follow and
# normalises prototypes, however many micro-batches the step has; images are compared within a
# micro-batch.  Evaluation changes nothing.
#
# Batch norm: a query and its key come from the same images. Where statistics are of the few images
# of one process, they mark both, and a network can tell the key by that mark without looking at what
# is shown; He et al. (arXiv:1911.05722, section 3.3) shuffle the keys' images over processes against
# it. Here `parallel.wrap` synchronises batch norm over all processes, as SimCLR does
# (arXiv:2002.05709, section 2.2): the images of a batch share their statistics, which tell none from
# another, in all four methods. It leaves MoCo a part of the mark: the keys in its queue are of other
# batches. The larger the whole batch is, the less they differ; on a single process there is nothing
# to shuffle with. Swin, ViT and MoCo's projector have no batch norm.


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


# ==== models.contrastive: Contrastive and clustering pre-training: MoCo v2, SimCLR, BYOL and SwAV around any encoder.

# Entries of the state dicts beside `encoder.*`, which fine-tuning has no use for.
BESIDE_ENCODER = (
    'projector.',
    'predictor.',
    'prototypes.',
    'momentum_encoder.',
    'momentum_projector.',
    'queue.',
    'step',
)


# ==== models.contrastive.build: Contrastive methods from the config.

# Prototypes for each image of a batch. Its images are shared out equally among all prototypes: with
# many more prototypes than images, most get parts of images that are not like them.
MOST_PROTOTYPES = 2
COMPARE_BATCH = ('simclr', 'swav')  # MoCo compares with its queue, BYOL each image with itself


def build_contrastive(
    config: Any, *, total_steps: int, num_images: int, logger: logging.Logger
) -> ContrastiveMethod:
    """The method of CONTRASTIVE.METHOD around the encoder of the config.

    Its arguments are the options of the same names, where these have values.

    Args:
        config: all options.
        total_steps: optimizer steps of the run, for BYOL's momentum.
        num_images: of an epoch.
        logger: warned of settings that will hardly work.

    Raises:
        ValueError: if CONTRASTIVE.QUEUE_SIZE is no multiple of the images of a batch, or so large
            that every image meets its own key of the last epoch.
    """
    options = config.CONTRASTIVE
    batch = config.DATA.BATCH_SIZE * distributed.world_size()
    if options.METHOD == 'moco':
        _check_queue(config, batch, num_images)
    if options.METHOD == 'swav' and options.NUM_PROTOTYPES > MOST_PROTOTYPES * batch:
        logger.warning(
            f'CONTRASTIVE.NUM_PROTOTYPES {options.NUM_PROTOTYPES} for batches of {batch} images: '
            f'few are met in each, and what they are assigned is noise; take at most '
            f'{MOST_PROTOTYPES * batch}, or larger batches'
        )
    method = METHODS[options.METHOD]
    values = {key.lower(): value for key, value in options.items() if value is not None}
    values['total_steps'] = total_steps
    taken = {name: values[name] for name in signature(method).parameters if name in values}
    return method(build_model(config, is_pretrain=False, num_outputs=0), **taken)


def warn_of_other_batch(
    config: Any, trained: Any, *, processes: int, logger: logging.Logger
) -> None:
    """Say it where a loss is of more or fewer images in a batch than in the run that trained.

    Args:
        config: all options.
        trained: those of the run that trained.
        processes: of that run.
        logger: warned.
    """
    before, now = trained.DATA.BATCH_SIZE, config.DATA.BATCH_SIZE
    world_size = distributed.world_size()
    if config.CONTRASTIVE.METHOD in COMPARE_BATCH and before * processes != now * world_size:
        logger.warning(
            f'the run of the checkpoint compared {before} x {processes} images (DATA.BATCH_SIZE x '
            f'processes), not {now} x {world_size}: the loss does not compare with those of the run'
        )


def _check_queue(config: Any, batch: int, num_images: int) -> None:
    size, own = config.CONTRASTIVE.QUEUE_SIZE, config.DATA.BATCH_SIZE
    try:
        check_queue_size(size, batch)
    except ValueError as error:
        raise ValueError(
            f'CONTRASTIVE.QUEUE_SIZE {size}, DATA.BATCH_SIZE {own}: {error}'
        ) from error
    if size + batch > num_images:
        raise ValueError(
            f'CONTRASTIVE.QUEUE_SIZE {size} and the {batch} images of a batch must be at most the '
            f'{num_images} training images: every image would have its own key of the last epoch '
            'among those it is to be told from (take far fewer: of K keys and N images, one in '
            '2 N^2 / K^2 images meets its own)'
        )
