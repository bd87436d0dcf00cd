"""What every encoder provides to the rest of the program, and the parts that encoders share.

A new encoder is one file and one line. The file declares its options with `config.add_options`
and registers a subclass of `PatchEncoder` (or of `Encoder`, if it cannot hide patches) under the
value of MODEL.TYPE; the line in models/build.py imports the file:

    add_options('MODEL.CONVNEXT', {'PATCH_SIZE': 4, 'EMBED_DIM': 96, 'DEPTHS': [3, 3, 9, 3]})

    @ENCODERS.register('convnext')
    class ConvNeXt(PatchEncoder): ...
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, ClassVar

import torch
from timm.layers import PatchEmbed
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from config import Registry, encoder_node

ENCODERS = Registry('MODEL.TYPE')

# TRAIN.CHECKPOINT_KEEPS: which results gradient checkpointing keeps in addition to a block's input.
KEEPS = {
    'nothing': [],
    'products': [torch.ops.aten.mm.default, torch.ops.aten.addmm.default],  # of linear layers
}


class Encoder(nn.Module, ABC):
    """A classifier whose features can also be used without its head.

    The options of an encoder are the section MODEL.<TYPE>, for example MODEL.SWIN. The constructor
    takes `constructor_arguments(config)` and `num_classes`; 0 means no head.

    Attributes:
        in_chans: Input channels.
        num_features: Width of `forward_features`.
        head: See `build_classifier_head`.
        hides_patches: Class attribute. Whether masked pre-training can use the encoder.
        attends_globally: Class attribute. Whether all tokens attend to each other in `blocks`
            with a class token first, which attention rollout needs.
    """

    in_chans: int
    num_features: int
    head: nn.Module
    hides_patches: ClassVar[bool] = False
    attends_globally: ClassVar[bool] = False

    @classmethod
    def constructor_arguments(cls, config: Any) -> dict[str, Any]:
        """Return the keyword arguments: the encoder's options in lower case, and common ones."""
        return {
            'img_size': config.DATA.IMG_SIZE,
            'in_chans': config.MODEL.IN_CHANS,
            'drop_rate': config.MODEL.DROP_RATE,
            'drop_path_rate': config.MODEL.DROP_PATH_RATE,
            'use_checkpoint': config.TRAIN.USE_CHECKPOINT,
            'checkpoint_keeps': config.TRAIN.CHECKPOINT_KEEPS,
            'attention': config.MODEL.ATTENTION,
            **{key.lower(): value for key, value in encoder_node(config).items()},
        }

    @classmethod
    def check(cls, config: Any, stage: str | None) -> None:
        """Check the options of this encoder before anything is built; a ValueError names the key.

        The stage is 'simmim', 'contrastive', 'finetune', or None for a check of the values alone.
        """

    @classmethod
    def takes_size(cls, config: Any, size: int) -> bool:
        """Return whether images with this side can be mixed with those of DATA.IMG_SIZE."""
        return size == config.DATA.IMG_SIZE

    @abstractmethod
    def forward_features(self, x: Tensor) -> Tensor:
        """Return the pooled features that the head reads, [B, C, S, S] -> [B, F]."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of images, [B, C, S, S] -> [B, K]."""
        return self.head(self.forward_features(x))

    @property
    def backbone(self) -> nn.Module:
        """The module that contrastive pre-training trains and stores under `encoder.*`."""
        return self

    @abstractmethod
    def get_num_layers(self) -> int:
        """Return the number of layers between the input (layer 0) and the head, for layer decay."""

    @abstractmethod
    def get_layer_id(self, name: str) -> int:
        """Return the layer of a parameter: 0 is the input, get_num_layers() + 1 the head."""

    def no_weight_decay(self) -> set[str]:
        """Return names of parameters without weight decay, in addition to vectors and biases."""
        return set()

    def no_weight_decay_keywords(self) -> set[str]:
        """Return parts of dotted names that exclude a parameter from weight decay."""
        return set()

    def saliency_layer(self) -> nn.Module | None:
        """Return the module whose output Grad-CAM weights, [B, F, h, w] or tokens [B, L, F].

        None if there is none; the report has no saliency maps then.
        """
        return None


class PatchEncoder(Encoder):
    """An encoder of patch tokens, which masked pre-training can replace by a mask token.

    A ViT or Swin works on tokens; a convolutional encoder can reshape them to a grid in `encode`.
    The section of options must contain PATCH_SIZE.

    Attributes:
        patch_embed: timm's. Its convolution `proj` is the only layer that reads the image:
            weights are converted between numbers of channels there.
        patch_size: Side of an input token in pixels.
        embed_dim: Width of the input tokens.
        stride: Side of an output token in pixels.
        is_masked: Class attribute. True in the version that hides patches (`masked_version`).
    """

    hides_patches = True
    is_masked: ClassVar[bool] = False
    patch_embed: PatchEmbed
    patch_size: int
    embed_dim: int
    stride: int

    @property
    def grid_size(self) -> int:
        """Tokens along a side of the image."""
        return self.patch_embed.grid_size[0]

    @classmethod
    def stride_of(cls, config: Any) -> int:
        """Return the side of an output token in pixels; a hierarchical encoder overrides it."""
        return encoder_node(config).PATCH_SIZE

    @abstractmethod
    def encode(self, tokens: Tensor) -> Tensor:
        """Encode patch tokens [B, L, D] to normalised output tokens [B, l, F], row by row.

        Class tokens, if any, come first.
        """

    def init_normal_(self, tensor: Tensor) -> None:
        """Initialise a weight, also the mask token."""
        nn.init.normal_(tensor, std=0.02)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.encode(self.patch_embed(x)).mean(dim=1)

    def no_weight_decay(self) -> set[str]:
        return {'mask_token'}


class MaskedEncoder:
    """Mixin that replaces hidden patches by a mask token and returns all output tokens."""

    is_masked = True

    def __init__(self, **encoder_kwargs: Any) -> None:
        super().__init__(num_classes=0, **encoder_kwargs)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, self.embed_dim))
        self.init_normal_(self.mask_token)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Encode images [B, C, S, S], masks [B, h, w] (1 hidden) to [B, F, S / stride, ...]."""
        check_mask(mask, self.grid_size)
        tokens = self.patch_embed(x)  # [B, L, D]
        hidden = mask.flatten(1).unsqueeze(-1).bool()
        tokens = torch.where(hidden, self.mask_token.to(tokens.dtype), tokens)
        side = self.grid_size * self.patch_size // self.stride
        tokens = self.encode(tokens)[:, -(side**2) :]  # without class tokens
        return tokens.transpose(1, 2).unflatten(2, (side, side))


def check_mask(mask: Tensor, grid_size: int) -> None:
    """Raise a ValueError unless a mask [B, h, w] has one value per patch."""
    if tuple(mask.shape[1:]) != (grid_size, grid_size):
        raise ValueError(
            f'mask must be [{len(mask)}, {grid_size}, {grid_size}], one value per patch, '
            f'got {list(mask.shape)}'
        )


@cache
def masked_version(encoder: type[PatchEncoder]) -> type[PatchEncoder]:
    """Return the class of the same encoder with hidden patches."""
    return type(encoder)(f'{encoder.__name__}ForSimMIM', (MaskedEncoder, encoder), {})


class ClassifierHead(nn.Linear):
    """A linear head, [B, F] -> [B, K], that is evaluated in the precision of its weights (float32).

    In training, autocast decides. Logits in bfloat16 have only 8 significant bits, so images tie
    and an AUROC changes in its third or fourth decimal.
    """

    def forward(self, features: Tensor) -> Tensor:
        device = features.device.type
        if self.training or not torch.amp.is_autocast_available(device):
            return super().forward(features)
        with torch.autocast(device, enabled=False):
            return F.linear(features.to(self.weight.dtype), self.weight, self.bias)


def build_classifier_head(num_features: int, num_classes: int) -> nn.Module:
    """Return a `ClassifierHead`, or nn.Identity for 0 classes."""
    return ClassifierHead(num_features, num_classes) if num_classes > 0 else nn.Identity()


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    bias: Tensor | None,
    scale: float,
    attention: str,
    in_windows: bool,
) -> Tensor:
    """Compute softmax(scale * q k^T + bias) v for q, k and v with the same shape.

    Args:
        q: Queries, [B, heads, N, d] or [B, windows, heads, N, d].
        k: Keys.
        v: Values.
        bias: [heads, N, N] or [windows, heads, N, N], or None.
        scale: Factor of the products.
        attention: MODEL.ATTENTION. 'sdpa' uses PyTorch's fused kernels, 'eager' does not, and
            'auto' uses them on a GPU for attention over the whole grid.
        in_windows: Whether the tokens attend within windows.
    """
    if attention == 'auto':
        attention = 'sdpa' if q.device.type == 'cuda' and not in_windows else 'eager'
    if attention == 'sdpa':
        return _fused_attention(q, k, v, bias, scale)
    logits = (q * scale) @ k.transpose(-2, -1)  # [..., heads, N, N]
    if bias is not None:
        logits = logits + bias
    return logits.softmax(dim=-1) @ v


@contextmanager
def eager_attention(model: nn.Module) -> Iterator[None]:
    """Within this context, compute all attention with Tensor.softmax, so that it can be read."""
    modules = [module for module in model.modules() if hasattr(module, 'attention')]
    before = [module.attention for module in modules]
    for module in modules:
        module.attention = 'eager'
    try:
        yield
    finally:
        for module, attention in zip(modules, before, strict=True):
            module.attention = attention


def run_block(block: nn.Module, *inputs: Tensor | None, keeps: str | None) -> Tensor:
    """Run a block, with gradient checkpointing unless `keeps` is None.

    `keeps` is one of KEEPS: what is stored for the backward pass in addition to the inputs.
    """
    if keeps is None:
        return block(*inputs)
    options = {'use_reentrant': False}
    if KEEPS[keeps]:
        options['context_fn'] = partial(create_selective_checkpoint_contexts, KEEPS[keeps])
    return checkpoint(block, *inputs, **options)


def _fused_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """The fused kernels take four dimensions: windows join the heads if each has its own bias."""
    shape = q.shape
    if bias is not None:
        bias = bias.to(q.dtype)
    if q.ndim == 5:
        first = 0 if bias is None or bias.ndim == 3 else 1
        q, k, v = (tensor.flatten(first, first + 1) for tensor in (q, k, v))
        bias = bias.flatten(0, 1) if first else bias
    x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    return x.view(shape)
