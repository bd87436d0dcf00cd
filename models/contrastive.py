"""Contrastive pre-training (MoCo v2, SimCLR, BYOL) and clustering (SwAV) for any encoder.

A method is a model whose forward pass takes the views of a batch as separate arguments, each
[B, C, S, S], and returns the loss. All state that changes in training is in the state dict, so that
a resumed run continues exactly. To add a method, write one file that registers a subclass of
`ContrastiveMethod`, and name the file at CONTRASTIVE.METHOD in config.py.

Batch norm: a query and its key come from the same image. If batch norm used the statistics of a
small batch on one process, the network could recognise the key by these statistics without using
the image (He et al., arXiv:1911.05722, section 3.3). The engine therefore synchronises batch norm
over all processes, as SimCLR does (arXiv:2002.05709, section 2.2). MoCo can also normalise groups
of the images of each process separately.

Each loss is the mean over the images of one process. All processes must have the same number of
images, so that DistributedDataParallel averages to the loss of the whole batch. All losses are
computed in float32, also under autocast.
"""

import copy
import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from inspect import signature
from itertools import groupby
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from config import REGISTRIES, refuse_unless
from models.encoder import ENCODERS, Encoder
from models.grouped_batch_norm import normalise_in_groups
from models.model import Model
from system import distributed

METHODS = REGISTRIES['CONTRASTIVE.METHOD']
SHARE_LEFT = 0.01  # largest share of the initial weights left in a momentum encoder after a run


class ContrastiveMethod(Model, ABC):
    """Base class of the methods: an encoder, a projector, and a counter of training steps.

    The constructor's arguments are the options of section CONTRASTIVE that the method reads, in
    lower case, and all options of its own section, such as CONTRASTIVE.DINO. For an option of
    CONTRASTIVE with the value None, the constructor's default is used. An argument `total_steps`
    receives the number of optimizer steps of the run.

    Attributes:
        title: Name of the method (class attribute).
        encoder: Part of the encoder that is trained. Its state-dict keys start with `encoder.`.
        projector: Module that maps features [B, F] to the vectors that the loss compares.
        step: Number of training steps that have begun.
        features: The function `features`, or its compiled form (see engine/compilation.py).
    """

    title: ClassVar[str]

    def __init__(self, encoder: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self._whole_encoder = (encoder,)  # a tuple, so that its entries are stored only once
        self.encoder = encoder.backbone
        self.projector = projector
        self.features = features
        self.register_buffer('step', torch.zeros((), dtype=torch.int64))

    @property
    def whole_encoder(self) -> Encoder:
        return self._whole_encoder[0]

    @property
    def pretrained_module(self) -> Encoder:
        return self.whole_encoder

    @classmethod
    def num_views(cls, config: Any) -> tuple[int, int]:
        """Return the number of global views and the number of small crops for each image."""
        return 2, 0

    @classmethod
    def check(cls, config: Any, stage: str | None) -> None:
        """Check the options of contrastive pre-training.

        Raises:
            ValueError: If an option does not fit the method or the encoder.
        """
        if stage != 'contrastive':
            return
        options = config.CONTRASTIVE
        is_allowed = options.TEMPERATURE is None or 'temperature' in signature(cls).parameters
        allowed = f'None with CONTRASTIVE.METHOD {options.METHOD!r}, which ignores it'
        refuse_unless(is_allowed, config, 'CONTRASTIVE.TEMPERATURE', allowed)
        refuse_unless(config.DATA.BATCH_SIZE > 1, config, 'DATA.BATCH_SIZE', 'at least 2')
        if cls.num_views(config)[1] and options.LOCAL_SIZE:
            is_allowed = ENCODERS[config.MODEL.TYPE].takes_size(config, options.LOCAL_SIZE)
            allowed = f'0 (DATA.IMG_SIZE) with this encoder of MODEL.TYPE {config.MODEL.TYPE!r}'
            refuse_unless(is_allowed, config, 'CONTRASTIVE.LOCAL_SIZE', allowed)

    @classmethod
    def chance_loss(cls, options: Any, images: int) -> float | None:
        """Return the loss of a model that cannot distinguish `images` images; None if undefined."""
        return None

    def forward(self, *views: Tensor) -> Tensor:
        """Compute the loss of the views of B images, each [B, C, S, S]."""
        return self.loss(*views)

    @abstractmethod
    def loss(self, *views: Tensor) -> Tensor:
        """Compute the loss of the views of B images, each [B, C, S, S]. Returns a scalar."""

    def begin_step(self) -> None:
        """Update the state of the method at the start of each training step."""
        self.step += 1

    def project(self, images: Tensor) -> Tensor:
        """Compute the vectors that the loss compares, [B, C, S, S] -> [B, D]."""
        return self.projector(self.features(self.encoder, images))

    def no_weight_decay(self) -> set[str]:
        names = getattr(self.encoder, 'no_weight_decay', set)()
        return {f'encoder.{name}' for name in names}

    def no_weight_decay_keywords(self) -> set[str]:
        """Return the encoder's keywords: unlike in SimMIM, Swin's bias tables do not decay."""
        return set(getattr(self.encoder, 'no_weight_decay_keywords', set)())


@METHODS.register('simclr')
class SimCLR(ContrastiveMethod):
    """SimCLR: two views of an image attract each other and repel all other views in the batch.

    Source: Chen et al. 2020, arXiv:2002.05709.
    """

    title = 'SimCLR'

    def __init__(self, encoder: Encoder, *, dim: int = 128, temperature: float = 0.1) -> None:
        width = encoder.num_features
        super().__init__(encoder, mlp_head(width, dim, hidden=width, norm_output=True))
        self.temperature = temperature

    @classmethod
    def chance_loss(cls, options: Any, images: int) -> float:
        return math.log(2 * images - 1)

    def loss(self, view1: Tensor, view2: Tensor) -> Tensor:
        z1, z2 = self.project(torch.cat([view1, view2])).chunk(2)
        return nt_xent(z1, z2, self.temperature)


class MomentumMethod(ContrastiveMethod, ABC):
    """A method whose targets come from moving averages of encoder and projector.

    Attributes:
        mean_rate: Mean of 1 - momentum over a run, divided by its first value (class attribute).
    """

    mean_rate: ClassVar[float] = 1.0

    def __init__(self, encoder: Encoder, projector: nn.Module) -> None:
        super().__init__(encoder, projector)
        self.momentum_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.momentum_projector = copy.deepcopy(self.projector).requires_grad_(False)

    @classmethod
    def default_momentum(cls, total_steps: int) -> float:
        """Return the published momentum, or a smaller one in short runs.

        The product of the momenta of all steps is the share of the initial, random weights that is
        left in the averages. Published schedules leave less than 1e-200. In short runs, the
        momentum is reduced so that at most about `SHARE_LEFT` is left.
        """
        published = signature(cls).parameters['momentum'].default
        return min(published, SHARE_LEFT ** (1 / (cls.mean_rate * total_steps)))

    @abstractmethod
    def momentum(self) -> Tensor:
        """Return the momentum of the next update, in [0, 1]."""

    def encoder_loaded(self) -> None:
        self.momentum_encoder.load_state_dict(self.encoder.state_dict())

    def begin_step(self) -> None:
        momentum = self.momentum()
        update_average_(self.momentum_encoder, self.encoder, momentum)
        update_average_(self.momentum_projector, self.projector, momentum)
        super().begin_step()

    @torch.no_grad()
    def momentum_project(self, images: Tensor) -> Tensor:
        """Compute the targets without gradient, [B, C, S, S] -> [B, D]."""
        return self.momentum_projector(self.features(self.momentum_encoder, images))


@METHODS.register('moco')
class MoCo(MomentumMethod):
    """MoCo v2: a query must identify its key among the keys of earlier batches.

    The default temperature is MoCo's 0.07; MoCo v2 uses 0.2. Batch norm processes the batch in
    `bn_groups` separate groups, as on that many GPUs, and keys are shuffled before. A query and its
    key then share no statistics by which the network could recognise the key.

    Source: He et al. 2020, arXiv:1911.05722; Chen et al. 2020, arXiv:2003.04297.
    """

    title = 'MoCo v2'

    def __init__(
        self,
        encoder: Encoder,
        *,
        dim: int = 128,
        queue_size: int = 4096,
        temperature: float = 0.07,
        momentum: float = 0.999,
        bn_groups: int = 1,
    ) -> None:
        width = encoder.num_features
        super().__init__(encoder, mlp_head(width, dim, hidden=width, norm=False))
        self.queue = KeyQueue(queue_size, dim)
        self.temperature = temperature
        self.key_momentum = momentum
        self.bn_groups = bn_groups
        if bn_groups > 1:
            normalise_in_groups(self, bn_groups)

    @classmethod
    def check(cls, config: Any, stage: str | None) -> None:
        super().check(config, stage)
        batch, groups = config.DATA.BATCH_SIZE, config.CONTRASTIVE.BN_GROUPS
        is_allowed = (
            stage != 'contrastive' or groups == 1 or (batch % groups == 0 and batch > groups)
        )
        allowed = f'1, or a divisor of DATA.BATCH_SIZE {batch} with at least 2 images per group'
        refuse_unless(is_allowed, config, 'CONTRASTIVE.BN_GROUPS', allowed)

    @classmethod
    def chance_loss(cls, options: Any, images: int) -> float:
        return math.log(1 + options.QUEUE_SIZE)

    def momentum(self) -> Tensor:
        return torch.full_like(self.step, self.key_momentum, dtype=torch.float64)

    def loss(self, query_view: Tensor, key_view: Tensor) -> Tensor:
        queries = self.project(query_view)
        if self.bn_groups == 1 or not self.training:
            keys = self.momentum_project(key_view)
        else:
            # In another order, so that a key and its query are in different groups. The compiler
            # of some versions of PyTorch fails for randperm without a slice.
            order = torch.randperm(len(key_view), device=key_view.device)[: len(key_view)]
            keys = self.momentum_project(key_view[order])[order.argsort()]
        keys = unit(keys)
        earlier = self.queue.keys.clone()  # the backward pass needs the keys before the update
        if self.training:
            self.queue.enqueue(keys)
        return info_nce(queries, keys, earlier, self.temperature)


@METHODS.register('byol')
class BYOL(MomentumMethod):
    """BYOL: each view predicts the momentum network's output for the other view.

    The momentum increases from `momentum` to 1 over `total_steps`. The authors also use a lower
    initial momentum for shorter schedules.

    Source: Grill et al. 2020, arXiv:2006.07733.
    """

    title = 'BYOL'
    mean_rate = 0.5  # the mean of half a cosine

    def __init__(
        self,
        encoder: Encoder,
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

    def momentum(self) -> Tensor:
        last = self.step - 1
        return cosine_momentum(last, total_steps=self.total_steps, start=self.first_momentum)

    def loss(self, view1: Tensor, view2: Tensor) -> Tensor:
        return self._predict(view1, view2) + self._predict(view2, view1)

    def _predict(self, view: Tensor, other: Tensor) -> Tensor:
        return byol_loss(self.predictor(self.project(view)), self.momentum_project(other))


@METHODS.register('swav')
class SwAV(ContrastiveMethod):
    """SwAV: each crop of an image predicts the prototypes that another crop is assigned to.

    Global crops come first. Small crops are never targets. They may only have another size if the
    encoder accepts any size, such as a ResNet; for Swin and ViT the data loader resizes them to
    DATA.IMG_SIZE. While prototypes are frozen, their gradient is 0. This also lowers AdamW's second
    moments, so the first steps after the freeze are up to 3 times as large.

    Source: Caron et al. 2020, arXiv:2006.09882.
    """

    title = 'SwAV'

    def __init__(
        self,
        encoder: Encoder,
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

    @classmethod
    def num_views(cls, config: Any) -> tuple[int, int]:
        return 2, config.CONTRASTIVE.LOCAL_CROPS

    @classmethod
    def chance_loss(cls, options: Any, images: int) -> float:
        return math.log(options.NUM_PROTOTYPES)

    def begin_step(self) -> None:
        self.prototypes.normalise_()
        super().begin_step()

    def loss(self, *views: Tensor) -> Tensor:
        same_size = [list(group) for _, group in groupby(views, key=lambda view: view.shape[-1])]
        pooled = [self.features(self.encoder, torch.cat(group)) for group in same_size]
        z = self.projector(torch.cat(pooled))  # [V * B, D]
        scores = self.prototypes(z, learn=self.step > self.freeze_prototypes_steps)
        return swav_loss(
            scores.unflatten(0, (len(views), -1)),
            num_global=len(views) - self.local_crops,
            temperature=self.temperature,
            epsilon=self.epsilon,
        )


def build_contrastive(config: Any, *, total_steps: int) -> ContrastiveMethod:
    """Build the method CONTRASTIVE.METHOD for a run with `total_steps` optimizer steps."""
    name = config.CONTRASTIVE.METHOD
    method, encoder = METHODS[name], ENCODERS[config.MODEL.TYPE]
    options = {key.lower(): v for key, v in config.CONTRASTIVE.items() if v is not None}
    options['total_steps'] = total_steps
    if issubclass(method, MomentumMethod):
        options['momentum'] = method.default_momentum(total_steps)
    taken = {name: options[name] for name in signature(method).parameters if name in options}
    taken |= METHODS.options_of(name, config)
    return method(encoder(**encoder.constructor_arguments(config), num_classes=0), **taken)


def features(encoder: nn.Module, images: Tensor) -> Tensor:
    """Compute pooled features, [B, C, S, S] -> [B, F], with an `Encoder` or a timm model."""
    if isinstance(encoder, Encoder):
        return encoder.forward_features(images)
    return encoder(images)


class _GatherRows(torch.autograd.Function):
    """An all-gather that sums the gradients, because each row affects the loss of every process."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(distributed.world_size())]
        dist.all_gather(parts, rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:
        total = distributed.all_reduce_sum(grad.contiguous())
        return total.chunk(distributed.world_size())[distributed.rank()]


def gather_rows(rows: Tensor) -> Tensor:
    """Concatenate the rows [B, ...] of all processes, with gradients from the losses of all.

    B must be the same on every process.
    """
    return rows if distributed.world_size() == 1 else _GatherRows.apply(rows.contiguous())


def in_float32(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Decorate a function so that it computes in at least float32, without autocast."""

    @functools.wraps(function)
    def wrapped(*values: Tensor | float, **settings: float) -> Tensor:
        with torch.autocast(values[0].device.type, enabled=False):
            values = [
                v.to(torch.promote_types(v.dtype, torch.float32)) if isinstance(v, Tensor) else v
                for v in values
            ]
            return function(*values, **settings)

    return wrapped


@in_float32
def unit(z: Tensor) -> Tensor:
    """Normalise vectors [..., D] to length 1."""
    return F.normalize(z, dim=-1)


@in_float32
def nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """Compute SimCLR's loss: each view must identify the other view of its image in the batch.

    Args:
        z1: Projections of the first views on this process, [B, D], of any length.
        z2: Projections of the second views, [B, D].
        temperature: Divisor of the cosine similarities.

    Returns:
        Mean cross-entropy of the 2 B views on this process, a scalar. Each view is compared with
        the 2 N - 1 other views of the N images on all processes.

    Source: Chen et al. 2020, arXiv:2002.05709, algorithm 1.
    """
    own = unit(torch.cat([z1, z2]))  # [2B, D]
    every = gather_rows(own)  # [2N, D]; the rows of this process start at `first`
    first = distributed.rank() * len(own)
    places = first + torch.arange(len(own), device=own.device)
    logits = own @ every.T / temperature  # [2B, 2N]
    logits = logits.scatter(1, places[:, None], -torch.inf)  # no view is compared with itself
    return F.cross_entropy(logits, places.roll(len(z1)))


@in_float32
def info_nce(q: Tensor, k: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Compute MoCo's loss: each query must identify its key among the keys of earlier batches.

    Args:
        q: Queries of any length, [B, D].
        k: Keys of the queries, [B, D], of any length. No gradient flows to them.
        queue: Normalised keys of earlier batches, [K, D]. No gradient flows to them.
        temperature: Divisor of the cosine similarities.

    Returns:
        Mean cross-entropy over 1 + K keys, a scalar.

    Source: He et al. 2020, arXiv:1911.05722, algorithm 1.
    """
    q, k = unit(q), unit(k.detach())
    positive = (q * k).sum(dim=1, keepdim=True)
    logits = torch.cat([positive, q @ queue.detach().T], dim=1) / temperature  # [B, 1 + K]
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.int64, device=q.device))


@in_float32
def byol_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Compute BYOL's loss in one direction: the squared distance of unit vectors, 2 - 2 cos.

    Args:
        prediction: Predictions of any length, [B, D].
        target: Targets of any length, [B, D]. No gradient flows to them.

    Returns:
        Mean over the batch, a scalar in [0, 4].

    Source: Grill et al. 2020, arXiv:2006.07733, equation 2.
    """
    return (2 - 2 * (unit(prediction) * unit(target.detach())).sum(dim=1)).mean()


@in_float32
def sinkhorn(scores: Tensor, *, epsilon: float = 0.05, iterations: int = 3) -> Tensor:
    """Compute soft assignments to prototypes in which all prototypes are used about equally.

    Args:
        scores: Cosine similarities of the samples on this process and the prototypes, [..., B, K].
        epsilon: Entropy regularisation. Smaller values give harder assignments.
        iterations: Number of times that prototypes and then samples are normalised.

    Returns:
        Assignments without gradient, [..., B, K]. The row of a sample sums to 1. The column of a
        prototype, over the samples on all processes, sums to about samples / K.

    Source: Caron et al. 2020, arXiv:2006.09882, appendix A; Cuturi 2013, arXiv:1306.0895.
    """
    shares = ((scores.detach() - 1) / epsilon).exp()  # minus 1 avoids an overflow
    for _ in range(iterations):
        shares = shares / distributed.all_reduce_sum(shares.sum(dim=-2, keepdim=True))
        shares = shares / shares.sum(dim=-1, keepdim=True)
    return shares


@in_float32
def swav_loss(scores: Tensor, *, num_global: int, temperature: float, epsilon: float) -> Tensor:
    """Compute SwAV's loss: each crop predicts the assignments of the image's other global crops.

    Args:
        scores: Cosine similarities of V crops of B images and K prototypes, [V, B, K]. Global crops
            come first.
        num_global: Number of global crops, whose assignments are the targets.
        temperature: Divisor of the cosine similarities in the predictions.
        epsilon: Entropy regularisation of `sinkhorn`.

    Returns:
        Mean cross-entropy over images and pairs of crops, a scalar.

    Source: Caron et al. 2020, arXiv:2006.09882, equations 2 and 6.
    """
    num_views, num_images, _ = scores.shape
    targets = sinkhorn(scores[:num_global], epsilon=epsilon)  # [G, B, K]
    predictions = F.log_softmax(scores / temperature, dim=-1)
    costs = -torch.einsum('gbk,vbk->gv', targets, predictions) / num_images  # [G, V]
    itself = torch.eye(num_global, num_views, dtype=torch.bool, device=scores.device)
    return costs.masked_fill(itself, 0.0).sum() / (num_global * (num_views - 1))


def mlp_head(
    in_features: int,
    out_features: int,
    *,
    hidden: int,
    norm: bool = True,
    norm_output: bool = False,
) -> nn.Sequential:
    """Build two linear layers with a ReLU between them, [B, in_features] -> [B, out_features].

    `norm` adds batch norm before the ReLU (all methods except MoCo v2), and `norm_output` adds it
    after the second layer (SimCLR).
    """
    layers = [nn.Linear(in_features, hidden, bias=not norm)]  # batch norm adds its own bias
    if norm:
        layers.append(nn.BatchNorm1d(hidden))
    layers += [nn.ReLU(), nn.Linear(hidden, out_features, bias=not norm_output)]
    if norm_output:
        layers.append(nn.BatchNorm1d(out_features))
    return nn.Sequential(*layers)


products = in_float32(F.linear)


class Prototypes(nn.Linear):
    """Prototypes of SwAV, a linear layer [K, D] without bias whose rows have length 1.

    The rows are normalised before each training step, and in evaluation after the last step.
    """

    def __init__(self, dim: int, num_prototypes: int) -> None:
        super().__init__(dim, num_prototypes, bias=False)
        self.normalise_()

    @torch.no_grad()
    def normalise_(self) -> None:
        self.weight.copy_(F.normalize(self.weight, dim=1))

    def forward(self, z: Tensor, learn: Tensor) -> Tensor:
        """Compute cosine similarities, [..., D] -> [..., K].

        Without `learn`, the prototypes' gradient is 0; DistributedDataParallel requires a gradient.
        """
        if not self.training:
            return products(unit(z), unit(self.weight))
        fixed = self.weight.detach()
        return products(unit(z), fixed + learn * (self.weight - fixed))


class KeyQueue(nn.Module):
    """Ring buffer of MoCo's keys, identical on all processes. New keys replace the oldest.

    The buffer starts with zeros, whose similarity to every query is 0. Random keys, as in MoCo's
    code, would have to be synchronised between processes.

    Attributes:
        keys: Normalised keys, [size, D].
        pointer: Position of the next key.

    Source: He et al. 2020, arXiv:1911.05722.
    """

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer('keys', torch.zeros(size, dim))
        self.register_buffer('pointer', torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Add the keys [B, D] of all processes in the order of their ranks.

        Raises:
            ValueError: If the queue size is not a multiple of the number of new keys.
        """
        keys, size = gather_rows(keys), len(self.keys)
        if size % len(keys):
            raise ValueError(
                f'CONTRASTIVE.QUEUE_SIZE must be a multiple of the total batch size on all '
                f'processes, {len(keys)}, got {size}'
            )
        # The pointer is a tensor, so that the CPU does not wait for the GPU.
        places = (self.pointer + torch.arange(len(keys), device=keys.device)) % size
        self.keys.index_copy_(0, places, keys.to(self.keys.dtype))
        self.pointer.copy_((self.pointer + len(keys)) % size)


@torch.no_grad()
def update_average_(target: nn.Module, online: nn.Module, momentum: Tensor) -> None:
    """Update the parameters of `target` to momentum * target + (1 - momentum) * online.

    Buffers, such as running statistics of batch norm, do not change.
    """
    slow, fast = list(target.parameters()), list(online.parameters())
    # A few launches for all parameters of a GPU; lerp_ would need one for each.
    steps = torch._foreach_sub(fast, slow)
    torch._foreach_mul_(steps, (1 - momentum).to(slow[0].dtype))
    torch._foreach_add_(slow, steps)


def cosine_momentum(step: Tensor, *, total_steps: int, start: float) -> Tensor:
    """Return BYOL's momentum at a step, which increases from `start` to 1 along half a cosine.

    Source: Grill et al. 2020, arXiv:2006.07733, section 3.3.
    """
    progress = (step.double() / total_steps).clamp(0, 1)
    return 1 - (1 - start) * (torch.cos(math.pi * progress) + 1) / 2
