"""SimMIM: mask token, reconstruction, reconstruction loss.

Xie et al. 2022, arXiv:2111.09886.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from models.heads import HEADS, build_head
from models.heads import linear_head as linear_head
from models.heads import mlp_head as mlp_head
from models.swin_transformer import SwinTransformer
from models.targets import TARGETS, Target, average_cells, repeat
from models.vision_transformer import VisionTransformer


class MaskedEncoder(nn.Module):
    """Mixin for an encoder: hidden patches are replaced by a mask token, all tokens come out."""

    def __init__(self, **encoder_kwargs: object) -> None:
        super().__init__(num_classes=0, **encoder_kwargs)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, self.embed_dim))
        self.init_normal_(self.mask_token)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Images [B, C, S, S] and mask [B, h, w] (1 hidden) to features [B, D, S/stride, S/stride].

        Raises:
            ValueError: if image or mask is not of the size that the encoder was built for.
        """
        expected = (len(x), self.grid_size, self.grid_size)
        if tuple(mask.shape) != expected:
            raise ValueError(
                f'mask must be [images, token rows, token columns] = {list(expected)} '
                f'(patch size {self.patch_size}), got {list(mask.shape)}'
            )
        tokens = self.patch_embed(x)  # [B, L, D]
        hidden = mask.flatten(1).unsqueeze(-1).bool()
        tokens = torch.where(hidden, self.mask_token.to(tokens.dtype), tokens)
        side = self.grid_size * self.patch_size // self.stride
        tokens = self.encode(tokens)[:, -(side**2) :]  # a class token, if any, comes first
        return tokens.transpose(1, 2).unflatten(2, (side, side))


class SwinTransformerForSimMIM(MaskedEncoder, SwinTransformer):
    """Swin with hidden patches."""

    def no_weight_decay(self) -> set[str]:
        return super().no_weight_decay() | {'mask_token'}


class VisionTransformerForSimMIM(MaskedEncoder, VisionTransformer):
    """ViT with hidden patches; initial weights are cut at one standard deviation."""

    init_bound = 0.02

    def __init__(self, **encoder_kwargs: object) -> None:
        super().__init__(**encoder_kwargs)
        self.fc_norm = None  # nothing is pooled, and DDP refuses parameters without gradient


LOSSES = {'l1': F.l1_loss, 'l2': F.mse_loss, 'smooth_l1': F.smooth_l1_loss}
LOSS_PIXELS = ('masked', 'all')


def pixel_loss(
    reconstruction: torch.Tensor,
    image: torch.Tensor,
    weight: torch.Tensor,
    error: Callable[..., torch.Tensor] = F.l1_loss,
) -> torch.Tensor:
    """Mean error of the weighted pixels, over channels too, in float32.

    Args:
        reconstruction: [B, C, S, S].
        image: [B, C, S, S].
        weight: [B, 1, S, S], 1 for pixels that count, else 0.
        error: one of LOSSES.

    Returns:
        Scalar; 0 where no pixel counts.
    """
    weight = weight.float()
    errors = error(reconstruction.float(), image.float(), reduction='none')
    return (errors * weight).sum() / (weight.sum() + 1e-5) / image.shape[1]


class SimMIM(nn.Module):
    """Predicts hidden pixels from visible ones; the head follows the encoder's channels and stride.

    Args:
        encoder: takes (images [B, C, S, S], mask [B, h, w]), gives features [B, D, S/stride, ...].
        head: one of models.heads.HEADS.
        loss: 'l1', 'l2' or 'smooth_l1' (quadratic below an error of 1).
        loss_pixels: 'masked' or 'all'.
        target: 'pixels' or 'patch_normalised' (each masking unit by its own mean and deviation).
        target_cell: side in pixels of the cells whose averages are predicted; it divides the
            stride, an inverse Swin's last patch and the masking unit.
        mask_patch_size: side of a masking unit in pixels; only 'patch_normalised' needs it.
        use_checkpoint: whether an inverse Swin computes its blocks again in the backward pass.
    """

    def __init__(
        self,
        encoder: nn.Module,
        head: str = 'linear',
        *,
        loss: str = 'l1',
        loss_pixels: str = 'masked',
        target: str = 'pixels',
        target_cell: int = 1,
        mask_patch_size: int = 1,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        _check('HEAD', head, HEADS)
        _check('LOSS', loss, LOSSES)
        _check('LOSS_PIXELS', loss_pixels, LOSS_PIXELS)
        _check('TARGET', target, TARGETS)
        self.in_chans = encoder.in_chans
        self.patch_size = encoder.patch_size
        self.encoder_stride = encoder.stride
        self.loss = loss
        self.loss_pixels = loss_pixels
        self.target = Target(target, cell=target_cell, unit=mask_patch_size)
        self.encoder = encoder
        self.decoder = build_head(head, encoder, cell=target_cell, use_checkpoint=use_checkpoint)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Loss of reconstructing images [B, C, S, S] whose patches in mask [B, h, w] are hidden."""
        predictions = self.decoder(self.encoder(x, mask))
        counted = mask if self.loss_pixels == 'masked' else torch.ones_like(mask)
        counted = repeat(counted.unsqueeze(1).float(), self.patch_size)  # [B, 1, S, S]
        weight = average_cells(counted, self.target.cell)  # 0 or 1: units are whole cells
        return pixel_loss(predictions, self.target.of(x), weight, LOSSES[self.loss])

    def reconstruct(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """All pixels as predicted from the visible ones, normalised as x is: [B, C, S, S].

        With the target 'patch_normalised' mean and deviation of each unit are those of x.
        """
        return self.target.to_images(self.decoder(self.encoder(x, mask)), x)

    def no_weight_decay(self) -> set[str]:
        return {f'encoder.{name}' for name in self.encoder.no_weight_decay()}

    def no_weight_decay_keywords(self) -> set[str]:
        """None: Swin's position tables decay in pre-training, as they did for published weights."""
        return set()


def _check(key: str, value: str, allowed: dict | tuple) -> None:
    if value not in allowed:
        raise ValueError(f'MODEL.SIMMIM.{key} must be one of {sorted(allowed)}, got {value!r}')
