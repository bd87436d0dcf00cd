"""Contrastive and clustering pre-training: MoCo v2, SimCLR, BYOL and SwAV around any encoder.

A method is a model whose forward pass returns the loss of a batch's views: tensors [B, C, S, S],
one argument per view. Everything that changes in training is in the state dict, so that a resumed
run continues exactly. A new method is one file with a registered subclass of `ContrastiveMethod`,
and one line in models/build.py that imports the file.

Batch norm: a query and its key come from the same image. If batch norm used the statistics of the
few images of one process, a network could recognise the key by them without looking at the image
(He et al., arXiv:1911.05722, section 3.3). The engine therefore shares batch norm over all
processes, as SimCLR does (arXiv:2002.05709, section 2.2), and MoCo can normalise groups apart.

Each loss is a mean over the images of one process, whose number must be the same on every process:
DistributedDataParallel then averages to the loss of the whole batch. All losses are computed in
float32, also under autocast.
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

from config import Registry, default_config, require
from engine import distributed
from models.encoder import ENCODERS, Encoder

METHODS = Registry('CONTRASTIVE.METHOD')
SHARE_LEFT = 0.01  # most of its initial weights that an averaged encoder keeps to the end of a run


class ContrastiveMethod(nn.Module, ABC):
    """An encoder, a projector, and the number of training steps.

    The arguments of a method's constructor are the options of section CONTRASTIVE that it reads,
    in lower case; those with the value None get the default of the constructor. `total_steps`
    receives the number of optimizer steps of the run.

    Attributes:
        title: Class attribute. Name of the method.
        view_options: Class attribute. Options of CONTRASTIVE that only its views need.
        encoder: The part of the encoder that is trained; its entries are `encoder.*`.
        step: Number of training steps that have begun.
    """

    title: ClassVar[str]
    view_options: ClassVar[tuple[str, ...]] = ()

    def __init__(self, encoder: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self._whole_encoder = (encoder,)  # a tuple, so that its entries are stored only once
        self.encoder = encoder.backbone
        self.projector = projector
        self.register_buffer('step', torch.zeros((), dtype=torch.int64))

    @property
    def whole_encoder(self) -> Encoder:
        """The encoder as it was given, which pre-trained weights are loaded into."""
        return self._whole_encoder[0]

    @classmethod
    def options(cls) -> list[str]:
        """Return the keys of section CONTRASTIVE that the method reads."""
        own = {name.upper() for name in signature(cls).parameters}
        own |= {'METHOD', 'BLUR', 'WEAK_VIEW', *cls.view_options}
        return [key for key in default_config().CONTRASTIVE if key in own]

    @classmethod
    def num_views(cls, config: Any) -> tuple[int, int]:
        """Return the number of global views and of small crops of each image."""
        reads_crops = 'LOCAL_CROPS' in cls.options()
        return 2, config.CONTRASTIVE.LOCAL_CROPS if reads_crops else 0

    @classmethod
    def check(cls, config: Any, stage: str | None) -> None:
        """Check the options of contrastive pre-training.

        Raises:
            ValueError: If an option does not fit the method or the encoder.
        """
        if stage != 'contrastive':
            return
        options, own = config.CONTRASTIVE, cls.options()
        for key in ('DIM', 'TEMPERATURE', 'MOMENTUM'):  # None selects the method's own default
            holds = options[key] is None or key in own
            allowed = f'None with CONTRASTIVE.METHOD {options.METHOD!r}, which ignores it'
            require(holds, config, f'CONTRASTIVE.{key}', allowed)
        require(config.DATA.BATCH_SIZE > 1, config, 'DATA.BATCH_SIZE', 'at least 2')
        area = options.LOCAL_CROP_AREA
        holds = len(area) == 2 and 0 < area[0] <= area[1]
        allowed = '[low, high] with 0 < low <= high'
        require(holds, config, 'CONTRASTIVE.LOCAL_CROP_AREA', allowed)
        if cls.num_views(config)[1] and options.LOCAL_SIZE:
            holds = ENCODERS[config.MODEL.TYPE].takes_size(config, options.LOCAL_SIZE)
            allowed = f'0 (DATA.IMG_SIZE) with this encoder of MODEL.TYPE {config.MODEL.TYPE!r}'
            require(holds, config, 'CONTRASTIVE.LOCAL_SIZE', allowed)

    @classmethod
    def chance_loss(cls, options: Any, images: int) -> float | None:
        """Return the loss if all `images` that are compared look alike; None if undefined."""
        return None

    def forward(self, *views: Tensor) -> Tensor:
        """Return the loss of the views [B, C, S, S] of B images."""
        return self.loss(*views)

    @abstractmethod
    def loss(self, *views: Tensor) -> Tensor:
        """Return the loss of the views [B, C, S, S] of B images, a scalar."""

    def encoder_loaded(self) -> None:
        """Called after pre-trained weights have been loaded into `whole_encoder`."""

    def begin_step(self) -> None:
        """Called once per training step, before its views are processed."""
        self.step += 1

    def project(self, images: Tensor) -> Tensor:
        """Return the vectors that the loss compares, [B, C, S, S] -> [B, D]."""
        return self.projector(features(self.encoder, images))

    def no_weight_decay(self) -> set[str]:
        names = getattr(self.encoder, 'no_weight_decay', set)()
        return {f'encoder.{name}' for name in names}

    def no_weight_decay_keywords(self) -> set[str]:
        """Swin's position tables do not decay, unlike in SimMIM."""
        return set(getattr(self.encoder, 'no_weight_decay_keywords', set)())


@METHODS.register('simclr')
class SimCLR(ContrastiveMethod):
    """Two views of an image attract each other; all other views of the batch repel.

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
    """A method with slowly moving copies of encoder and projector, which compute the targets.

    Attributes:
        mean_rate: Class attribute. Mean of 1 - momentum over a run, as a share of its first value.
    """

    mean_rate: ClassVar[float] = 1.0

    def __init__(self, encoder: Encoder, projector: nn.Module) -> None:
        super().__init__(encoder, projector)
        self.momentum_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.momentum_projector = copy.deepcopy(self.projector).requires_grad_(False)

    @classmethod
    def default_momentum(cls, total_steps: int) -> float:
        """Return the published momentum, or in short runs the largest that forgets the start.

        The product of the momenta of all steps is the share of the initial, random weights that is
        left in the copies. Published schedules leave less than 1e-200; here it is at most about
        `SHARE_LEFT`. All methods follow this rule.
        """
        published = signature(cls).parameters['momentum'].default
        return min(published, SHARE_LEFT ** (1 / (cls.mean_rate * total_steps)))

    @abstractmethod
    def momentum(self) -> Tensor:
        """Return the share of themselves that the copies keep in the next step."""

    def encoder_loaded(self) -> None:
        self.momentum_encoder.load_state_dict(self.encoder.state_dict())

    def begin_step(self) -> None:
        momentum = self.momentum()
        follow_(self.momentum_encoder, self.encoder, momentum)
        follow_(self.momentum_projector, self.projector, momentum)
        super().begin_step()

    @torch.no_grad()
    def momentum_project(self, images: Tensor) -> Tensor:
        """Return the targets, [B, C, S, S] -> [B, D], without gradient."""
        return self.momentum_projector(features(self.momentum_encoder, images))


@METHODS.register('moco')
class MoCo(MomentumMethod):
    """MoCo v2: a view finds the key of the other view among the keys of earlier batches.

    The default temperature is that of MoCo; MoCo v2 uses 0.2. With `bn_groups`, as many parts of
    the batch are normalised apart, as on that many GPUs, and keys change places before it: a query
    and its key then share no statistics that could tell them apart from others.

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

    @classmethod
    def check(cls, config: Any, stage: str | None) -> None:
        super().check(config, stage)
        batch, groups = config.DATA.BATCH_SIZE, config.CONTRASTIVE.BN_GROUPS
        holds = stage != 'contrastive' or groups == 1 or (batch % groups == 0 and batch > groups)
        allowed = f'1, or a divisor of DATA.BATCH_SIZE {batch} that leaves 2 images or more'
        require(holds, config, 'CONTRASTIVE.BN_GROUPS', allowed)

    @classmethod
    def chance_loss(cls, options: Any, images: int) -> float:
        return math.log(1 + options.QUEUE_SIZE)

    def momentum(self) -> Tensor:
        return torch.full_like(self.step, self.key_momentum, dtype=torch.float64)

    def loss(self, query_view: Tensor, key_view: Tensor) -> Tensor:
        queries = self._in_groups(self.project, query_view)
        keys = unit(self._in_groups(self.momentum_project, key_view, shuffle=True))
        earlier = self.queue.keys.clone()  # the backward pass needs them unchanged
        if self.training:
            self.queue.enqueue(keys)
        return info_nce(queries, keys, earlier, self.temperature)

    def _in_groups(
        self, project: Callable[[Tensor], Tensor], images: Tensor, *, shuffle: bool = False
    ) -> Tensor:
        """Project images group by group, each with its own statistics of batch norm."""
        if self.bn_groups == 1 or not self.training:
            return project(images)
        draw = torch.randperm if shuffle else torch.arange
        order = draw(len(images), device=images.device)
        groups = images[order].chunk(self.bn_groups)
        return torch.cat([project(group) for group in groups])[order.argsort()]


@METHODS.register('byol')
class BYOL(MomentumMethod):
    """Each view predicts the slower network's output for the other view; nothing repels.

    The momentum of the slower network rises from `momentum` to 1 over `total_steps`. Its authors
    lower the first value for shorter schedules, too.

    Source: Grill et al. 2020, arXiv:2006.07733.
    """

    title = 'BYOL'
    mean_rate = 0.5  # of half a cosine

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
    """Each crop of an image predicts the prototypes that another crop is assigned to.

    Global crops come first; small crops are never targets. Crops of other sizes need an encoder
    that accepts any size, such as a ResNet; for Swin and ViT the data scale small crops to
    DATA.IMG_SIZE. Frozen prototypes have gradient 0. AdamW's second moments count it, so the steps
    after them are up to 3 times as large.

    Source: Caron et al. 2020, arXiv:2006.09882.
    """

    title = 'SwAV'
    view_options = ('LOCAL_CROPS', 'LOCAL_CROP_AREA', 'LOCAL_SIZE')

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
    def chance_loss(cls, options: Any, images: int) -> float:
        return math.log(options.NUM_PROTOTYPES)

    def begin_step(self) -> None:
        self.prototypes.normalise_()
        super().begin_step()

    def loss(self, *views: Tensor) -> Tensor:
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


def build_contrastive(config: Any, *, total_steps: int) -> ContrastiveMethod:
    """Build the method of CONTRASTIVE.METHOD for a run of `total_steps` optimizer steps."""
    method, encoder = METHODS[config.CONTRASTIVE.METHOD], ENCODERS[config.MODEL.TYPE]
    options = {key.lower(): v for key, v in config.CONTRASTIVE.items() if v is not None}
    options['total_steps'] = total_steps
    if issubclass(method, MomentumMethod):
        options.setdefault('momentum', method.default_momentum(total_steps))
    taken = {name: options[name] for name in signature(method).parameters if name in options}
    return method(encoder(**encoder.constructor_arguments(config), num_classes=0), **taken)


def features(encoder: nn.Module, images: Tensor) -> Tensor:
    """Return pooled features, [B, C, S, S] -> [B, F], of an `Encoder` or of a timm model."""
    if isinstance(encoder, Encoder):
        return encoder.forward_features(images)
    return encoder(images)


@torch.no_grad()
def feature_spread(z: Tensor) -> Tensor:
    """Return the mean standard deviation of unit vectors over the batch, times sqrt(D).

    Args:
        z: [B, D], of any length.

    Returns:
        Scalar, 1 if they point in all directions, 0 if all point in one.

    Source: Chen & He 2021, arXiv:2011.10566, section 4.1.
    """
    directions = F.normalize(z.float(), dim=1)
    return directions.std(dim=0, correction=0).mean() * z.shape[1] ** 0.5


@torch.no_grad()
def effective_rank(z: Tensor) -> Tensor:
    """Return the exponential of the entropy of the normalised singular values.

    Args:
        z: [B, D].

    Returns:
        Scalar from 1 (all rows are multiples of one) to min(B, D).

    Source: Roy & Vetterli 2007, The effective rank, EUSIPCO.
    """
    singular = torch.linalg.svdvals(z.float())
    shares = singular / singular.sum().clamp(min=torch.finfo(torch.float32).tiny)
    return torch.special.entr(shares).sum().exp()


class _GatherRows(torch.autograd.Function):
    """Every row takes part in the losses of all processes, so its gradients are summed."""

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
    """Gather [B, ...] of each process to [processes * B, ...], with the gradient of all losses.

    B must be the same on every process.
    """
    return rows if distributed.world_size() == 1 else _GatherRows.apply(rows.contiguous())


def in_float32(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Decorate a function of tensors to run without autocast, in at least float32."""

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
    """Divide vectors [..., D] by their length."""
    return F.normalize(z, dim=-1)


@in_float32
def nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """SimCLR's loss: each view finds the other view of its image among all views of the batch.

    Args:
        z1: [B, D], first views of this process's images; normalised here.
        z2: [B, D], second views.
        temperature: Divides the cosines.

    Returns:
        Scalar, the mean cross-entropy of this process's 2 B views, each against the 2 N - 1 other
        views of the N images on all processes.

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
def info_nce(q: Tensor, k: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """MoCo's loss: each query finds its key among the keys of earlier batches.

    Args:
        q: Queries [B, D]; normalised here.
        k: The key of each query, [B, D]; normalised here, without gradient.
        queue: Keys of length 1, [K, D], without gradient.
        temperature: Divides the cosines.

    Returns:
        Scalar, the mean cross-entropy over 1 + K keys.

    Source: He et al. 2020, arXiv:1911.05722, algorithm 1.
    """
    q, k = unit(q), unit(k.detach())
    positive = (q * k).sum(dim=1, keepdim=True)
    logits = torch.cat([positive, q @ queue.detach().T], dim=1) / temperature  # [B, 1 + K]
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.int64, device=q.device))


@in_float32
def byol_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """BYOL's loss in one direction: the squared distance of unit vectors, 2 - 2 cos.

    Args:
        prediction: [B, D].
        target: [B, D], without gradient.

    Returns:
        Scalar in [0, 4], the mean over the batch.

    Source: Grill et al. 2020, arXiv:2006.07733, equation 2.
    """
    return (2 - 2 * (unit(prediction) * unit(target.detach())).sum(dim=1)).mean()


@in_float32
def sinkhorn(scores: Tensor, *, epsilon: float = 0.05, iterations: int = 3) -> Tensor:
    """Assign samples softly to prototypes so that all prototypes are used about equally.

    Args:
        scores: [..., B, K], cosines of this process's samples and the prototypes.
        epsilon: The smaller, the harder the assignments.
        iterations: Each normalises prototypes, then samples.

    Returns:
        [..., B, K] without gradient. The shares of a sample sum to 1; those of a prototype, over
        the samples of all processes, to about samples / K.

    Source: Caron et al. 2020, arXiv:2006.09882, appendix A; Cuturi 2013, arXiv:1306.0895.
    """
    shares = ((scores.detach() - 1) / epsilon).exp()  # minus 1 avoids an overflow
    for _ in range(iterations):
        shares = shares / distributed.all_reduce_sum(shares.sum(dim=-2, keepdim=True))
        shares = shares / shares.sum(dim=-1, keepdim=True)
    return shares


@in_float32
def swav_loss(scores: Tensor, *, num_global: int, temperature: float, epsilon: float) -> Tensor:
    """SwAV's loss: every crop predicts the assignments of the other global crops of its image.

    Args:
        scores: [V, B, K], cosines of V crops of B images and the prototypes, global crops first.
        num_global: Crops whose assignments are targets.
        temperature: Divides the cosines of the predictions.
        epsilon: See `sinkhorn`.

    Returns:
        Scalar, the mean cross-entropy over images and pairs of crops.

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
    """Build two linear layers with ReLU between them, [B, in_features] -> [B, out_features].

    `norm` adds batch norm before the ReLU (all but MoCo v2), `norm_output` after the second layer
    (SimCLR).
    """
    layers = [nn.Linear(in_features, hidden, bias=not norm)]  # batch norm has a bias
    if norm:
        layers.append(nn.BatchNorm1d(hidden))
    layers += [nn.ReLU(), nn.Linear(hidden, out_features, bias=not norm_output)]
    if norm_output:
        layers.append(nn.BatchNorm1d(out_features))
    return nn.Sequential(*layers)


products = in_float32(F.linear)


class Prototypes(nn.Linear):
    """SwAV's prototypes [K, D], a linear layer without bias whose rows have length 1.

    They are normalised before each training step and, because the step changes them, in evaluation.
    """

    def __init__(self, dim: int, num_prototypes: int) -> None:
        super().__init__(dim, num_prototypes, bias=False)
        self.normalise_()

    @torch.no_grad()
    def normalise_(self) -> None:
        self.weight.copy_(F.normalize(self.weight, dim=1))

    def forward(self, z: Tensor, learn: Tensor) -> Tensor:
        """Return cosines [..., K] of vectors [..., D]; the prototypes learn if `learn` is True.

        Otherwise their gradient is 0, not absent, because DistributedDataParallel waits for it.
        """
        if not self.training:
            return products(unit(z), unit(self.weight))
        fixed = self.weight.detach()
        return products(unit(z), fixed + learn * (self.weight - fixed))


class KeyQueue(nn.Module):
    """MoCo's ring buffer of keys, the same on all processes; new keys replace the oldest.

    At first it contains zeros, which are similar to no query. Random keys, as in MoCo's own code,
    would have to be synchronised.

    Attributes:
        keys: [size, D], of length 1.
        pointer: Place of the next key.

    Source: He et al. 2020, arXiv:1911.05722.
    """

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer('keys', torch.zeros(size, dim))
        self.register_buffer('pointer', torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Add the keys [B, D] of each process, those of rank 0 first.

        Raises:
            ValueError: If the size of the queue is not a multiple of the keys of all processes.
        """
        keys, size = gather_rows(keys), len(self.keys)
        if size % len(keys):
            raise ValueError(
                f'CONTRASTIVE.QUEUE_SIZE must be a multiple of {len(keys)}, the images of a batch '
                f'on all processes, got {size}'
            )
        # A tensor, so that nothing waits for the device.
        places = (self.pointer + torch.arange(len(keys), device=keys.device)) % size
        self.keys.index_copy_(0, places, keys.to(self.keys.dtype))
        self.pointer.copy_((self.pointer + len(keys)) % size)


@torch.no_grad()
def follow_(target: nn.Module, online: nn.Module, momentum: Tensor) -> None:
    """Set each parameter of `target` to momentum * itself + (1 - momentum) * that of `online`.

    Buffers, such as running statistics of batch norm, are not copied.
    """
    for slow, fast in zip(target.parameters(), online.parameters(), strict=True):
        slow.lerp_(fast, (1 - momentum).to(slow.dtype))


def cosine_momentum(step: Tensor, *, total_steps: int, start: float) -> Tensor:
    """Return BYOL's momentum after step `step` (from 0): from `start` to 1 along half a cosine.

    Source: Grill et al. 2020, arXiv:2006.07733, section 3.3.
    """
    progress = (step.double() / total_steps).clamp(0, 1)
    return 1 - (1 - start) * (torch.cos(math.pi * progress) + 1) / 2
