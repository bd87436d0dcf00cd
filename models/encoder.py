"""Base classes of all encoders, and the parts that encoders share.

To add an encoder, write one file. It registers a subclass of `PatchEncoder` (or of `Encoder`, if it
cannot hide patches) under a value of MODEL.TYPE. This value with the name of the file, and the
options of the encoder, such as MODEL.CONVNEXT.PATCH_SIZE, are lines of config.py:

    @ENCODERS.register('convnext')
    class ConvNeXt(PatchEncoder): ...
"""

from abc import ABC, abstractmethod
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from config import REGISTRIES, encoder_node
from models.classifier_heads import CLASSIFIER_HEADS
from models.model import Model

ENCODERS = REGISTRIES['MODEL.TYPE']
MAP_CELLS = 7  # smallest side of the grid of a saliency map


class Encoder(Model, ABC):
    """A classifier whose features can also be used without the head.

    The options of an encoder are in the section MODEL.<TYPE>, for example MODEL.SWIN. The
    constructor takes `constructor_arguments(config)` and `num_classes`; 0 builds no head.

    Attributes:
        in_chans: Number of input channels.
        num_features: Width of the output of `forward_features`, and of the tokens.
        head: Result of `models.classifier_heads.build_classifier_head`.
        hides_patches: Whether masked pre-training can use the encoder (class attribute).
        attends_globally: Whether all tokens attend to each other in all `blocks`, and the first
            is a class token (class attribute).
    """

    in_chans: int
    num_features: int
    head: nn.Module
    hides_patches: ClassVar[bool] = False
    attends_globally: ClassVar[bool] = False

    @classmethod
    def constructor_arguments(cls, config: Any) -> dict[str, Any]:
        """Return the shared constructor arguments and the encoder's options in lower case."""
        head_options = CLASSIFIER_HEADS.options_of(config.MODEL.HEAD, config)
        return {
            'img_size': config.DATA.IMG_SIZE,
            'in_chans': config.MODEL.IN_CHANS,
            'drop_rate': config.MODEL.DROP_RATE,
            'drop_path_rate': config.MODEL.DROP_PATH_RATE,
            'use_checkpoint': config.TRAIN.USE_CHECKPOINT,
            'head': config.MODEL.HEAD,
            **({'head_options': head_options} if head_options else {}),
            **ENCODERS.options_of(config.MODEL.TYPE, config),
        }

    @classmethod
    def check(cls, config: Any, stage: str | None) -> None:
        """Check the options of this encoder before anything is built.

        The stage is 'simmim', 'contrastive' or 'finetune', or None to check only the values. A
        ValueError names the invalid key.
        """

    @classmethod
    def takes_size(cls, config: Any, size: int) -> bool:
        """Return whether the encoder accepts `size` x `size` images as well as DATA.IMG_SIZE."""
        return size == config.DATA.IMG_SIZE

    @abstractmethod
    def forward_features(self, x: Tensor) -> Tensor:
        """Compute the pooled features of images, [B, C, S, S] -> [B, F]."""

    def forward_tokens(self, x: Tensor) -> Tensor:
        """Compute the tokens of the last stage without class token, [B, C, S, S] -> [B, L, F]."""
        raise NotImplementedError(f'{type(self).__name__} has no tokens')

    def forward(self, x: Tensor, *options: Tensor | None, patient: Tensor | None = None) -> Tensor:
        """Compute the logits of images, [B, C, S, S] -> [B, K]; `patient` [B, P] is for a head."""
        takes_tokens = getattr(self.head, 'takes_tokens', False)
        features = self.forward_tokens if takes_tokens else self.forward_features
        inputs = (features(x, *options),)
        return self.head(*inputs) if patient is None else self.head(*inputs, patient)

    @property
    def backbone(self) -> nn.Module:
        """Return the module that contrastive pre-training trains and stores under `encoder.*`."""
        return self

    @abstractmethod
    def get_num_layers(self) -> int:
        """Return the number of layers between input and head, for layer-wise lr decay."""

    @abstractmethod
    def get_layer_id(self, name: str) -> int:
        """Return the layer of a parameter, from 0 (input) to get_num_layers() + 1 (head)."""

    def saliency_layer(self) -> nn.Module | None:
        """Return the module whose output Grad-CAM explains, [B, F, h, w] or tokens [B, L, F].

        It is the last suitable one with at least MAP_CELLS x MAP_CELLS cells, because a coarser map
        shows quarters of an image rather than regions. None means that the encoder has no such
        module, and there are no saliency maps.
        """
        return None


class PatchEncoder(Encoder):
    """An encoder that can hide patches: it replaces their tokens by a mask token.

    A ViT or Swin processes tokens directly. A convolutional encoder can reshape them to a grid in
    `encode`. The encoder's options must include PATCH_SIZE.

    Attributes:
        patch_embed: Patch embedding of timm. Only its convolution `proj` reads the image, so only
            `proj` changes when weights are converted to another number of channels.
        patch_size: Side of an input token in pixels.
        embed_dim: Width of the input tokens.
        stride: Side of an output token in pixels.
        is_masked: Whether this is the `masked_version` of an encoder (class attribute).
    """

    hides_patches = True
    is_masked: ClassVar[bool] = False
    patch_embed: nn.Module
    patch_size: int
    embed_dim: int
    stride: int

    @property
    def grid_size(self) -> int:
        """Return the number of tokens along a side of the image."""
        return self.patch_embed.grid_size[0]

    @classmethod
    def stride_of(cls, config: Any) -> int:
        """Return the side of an output token in pixels. Hierarchical encoders override this."""
        return encoder_node(config).PATCH_SIZE

    @abstractmethod
    def encode(self, tokens: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Encode patch tokens [B, L, D] to normalised output tokens [B, l, F].

        Tokens are in row-major order. A class token comes first, if there is one. In masked
        pre-training, `hidden` [B, L] is True for hidden patches, whose tokens are mask tokens. A
        convolutional encoder can use it to keep them from its features, as ConvNeXt V2 does. It
        then needs a head that sees neighbouring tokens, because all hidden tokens are equal.
        """

    def attention(self, x: Tensor) -> Tensor:
        """Return the attention weights of the last block for whole images [B, C, S, S].

        For N tokens that attend to each other they are [B, heads, N, N], with a row for each query
        (ViT: N = 1 + L, class token first), or with W windows [B, W, heads, N, N] (Swin). They are
        computed with plain operations, also where the model uses a fused kernel.
        """
        raise NotImplementedError(f'{type(self).__name__} has no attention')

    def attention_map(self, x: Tensor) -> Tensor:
        """Return the share of attention that each token of the last block receives, [B, h, w].

        It is the mean over heads and image tokens as queries, and has the sum 1. In a Swin, all
        windows receive the same, so compare tokens of a window.
        """
        raise NotImplementedError(f'{type(self).__name__} has no attention')

    def init_normal_(self, tensor: Tensor) -> None:
        """Initialise a weight or the mask token."""
        nn.init.normal_(tensor, std=0.02)

    @property
    def output_side(self) -> int:
        """Return the number of output tokens along a side of the image."""
        return self.grid_size * self.patch_size // self.stride

    def forward_features(self, x: Tensor) -> Tensor:
        return self.forward_tokens(x).mean(dim=1)

    def forward_tokens(self, x: Tensor) -> Tensor:
        return self.encode_patches(self.patch_embed(x))

    def encode_patches(self, tokens: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Encode patch tokens as `encode`, and leave out the class token, [B, L, D] -> [B, l, F].

        Raises:
            ValueError: If the number of tokens does not fit `stride`.
        """
        side, tokens = self.output_side, self.encode(tokens, hidden)
        if tokens.shape[1] not in (side**2, side**2 + 1):
            raise ValueError(
                f'{type(self).__name__}.encode returns {tokens.shape[1]} tokens, and with stride '
                f'{self.stride} it must return {side} x {side} tokens, after a class token or none'
            )
        # Image tokens come last, after a class token or none.
        return tokens[:, -(side**2) :]

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
        """Encode images with hidden patches.

        Args:
            x: Images, [B, C, S, S].
            mask: Masks, [B, h, w], 1 where a patch is hidden.

        Returns:
            Features, [B, F, S / stride, S / stride].
        """
        check_mask(mask, self.grid_size)
        tokens = self.patch_embed(x)  # [B, L, D]
        hidden = mask.flatten(1).bool()
        # SimMIM's x * (1 - w) + mask_token * w, for w 0 or 1, without arithmetic.
        tokens = torch.where(hidden.unsqueeze(-1), self.mask_token.to(tokens.dtype), tokens)
        # Hidden tokens stay in the sequence, unlike in MAE: a Swin needs the whole grid.
        tokens = self.encode_patches(tokens, hidden)
        return tokens.transpose(1, 2).unflatten(2, (self.output_side, self.output_side))


def check_mask(mask: Tensor, grid_size: int) -> None:
    """Raise a ValueError unless a mask [B, h, w] has one value for each patch."""
    if tuple(mask.shape[1:]) != (grid_size, grid_size):
        raise ValueError(
            f'mask must be [{len(mask)}, {grid_size}, {grid_size}], one value per patch, '
            f'got {list(mask.shape)}'
        )


@cache
def masked_version(encoder: type[PatchEncoder]) -> type[PatchEncoder]:
    """Return the class that encodes images with hidden patches (`MaskedEncoder`)."""
    return type(encoder)(f'{encoder.__name__}ForSimMIM', (MaskedEncoder, encoder), {})


def attend(q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor | None, scale: float) -> Tensor:
    """Compute softmax(scale * q k^T + bias) v with plain operations.

    The values v have the shape of q; `attention_weights` describes the other arguments.
    """
    return attention_weights(q, k, bias=bias, scale=scale) @ v


def attention_weights(q: Tensor, k: Tensor, *, bias: Tensor | None, scale: float) -> Tensor:
    """Compute softmax(scale * q k^T + bias), [..., heads, N, N]: a row of weights for each query.

    Args:
        q: Queries, [B, heads, N, d] or [B, windows, heads, N, d].
        k: Keys with the shape of q.
        bias: Bias of the logits, [heads, N, N] or [windows, heads, N, N], or None.
        scale: Factor of the dot products.
    """
    # Scaling the queries costs less than scaling the N x N logits.
    logits = (q * scale) @ k.transpose(-2, -1)  # [..., heads, N, N]
    if bias is not None:
        logits = logits + bias
    return logits.softmax(dim=-1)


def attend_fused(q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor | None, scale: float) -> Tensor:
    """Compute `attend` of [B, heads, N, d] with PyTorch's fused kernels."""
    if bias is not None:
        bias = bias.to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)


def run_block(block: nn.Module, *inputs: Tensor | None, use_checkpoint: bool) -> Tensor:
    """Run a block, with gradient checkpointing if wanted."""
    if use_checkpoint:
        return checkpoint(block, *inputs, use_reentrant=False)
    return block(*inputs)
