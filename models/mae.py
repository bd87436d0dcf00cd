"""MAE: the encoder processes only visible patches, and a small decoder predicts the hidden ones.

He et al. 2022, arXiv:2111.06377.
"""

from typing import Any

import torch
from torch import nn

from config import default_config, refuse_unless
from data.masking import mask_generator
from models.encoder import ENCODERS, check_mask, run_block
from models.reconstruction_losses import LOSSES, Term, term_values
from models.simmim import PRETRAINING, TARGETS, MaskedModel, repeat
from models.vision_transformer import Block, VisionTransformer, select_tokens, sincos_positions


@PRETRAINING.register('mae')
class MAE(MaskedModel):
    """Predict hidden patches from visible ones, with the masks and targets of `SimMIM`.

    Args:
        encoder: ViT with position embeddings and without relative position bias.
        num_visible: Number of visible patches in each training mask. Counting them in the forward
            pass would synchronise with the GPU.
        decoder_embed_dim: Width of the decoder, a multiple of 4 and of `decoder_num_heads`.
        decoder_depth: Number of blocks in the decoder.
        decoder_num_heads: Number of attention heads in the decoder.
        norm_pix_loss: Whether the target of each patch is normalised by the patch's mean and
            standard deviation.
    """

    title = 'MAE'

    def __init__(
        self,
        encoder: VisionTransformer,
        *,
        num_visible: int,
        decoder_embed_dim: int = 512,
        decoder_depth: int = 8,
        decoder_num_heads: int = 16,
        norm_pix_loss: bool = False,
    ) -> None:
        super().__init__()
        self.in_chans = encoder.in_chans
        self.patch_size = encoder.patch_size
        self.num_visible = num_visible
        kind = 'patch_normalised' if norm_pix_loss else 'pixels'
        self.target = TARGETS[kind](encoder.in_chans, unit=encoder.patch_size)
        self.encoder = encoder
        self.decoder = Decoder(encoder, decoder_embed_dim, decoder_depth, decoder_num_heads)
        # As in MAE: Xavier, with a patch as one vector, and zero biases.
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.encoder.cls_token, std=0.02)
        nn.init.normal_(self.decoder.mask_token, std=0.02)

    @classmethod
    def from_config(cls, config: Any, *, total_steps: int = 1) -> 'MAE':
        # MAE does not pool, so the encoder ends with a norm even if the classifier will pool.
        arguments = VisionTransformer.constructor_arguments(config)
        encoder = VisionTransformer(**arguments | {'use_mean_pooling': False, 'num_classes': 0})
        masks = mask_generator(config)
        units = masks.rand_size**2
        return cls(
            encoder,
            num_visible=encoder.grid_size**2 * (units - masks.count) // units,
            **PRETRAINING.options_of(config.MODEL.PRETRAIN, config),
        )

    @classmethod
    def check_options(cls, config: Any) -> None:
        """Check that the encoder is a ViT with absolute positions, and the decoder's sizes."""
        vit, mae = config.MODEL.VIT, config.MODEL.MAE
        is_vit = ENCODERS[config.MODEL.TYPE] is VisionTransformer
        refuse_unless(is_vit, config, 'MODEL.TYPE', "'vit' with MODEL.PRETRAIN 'mae'")
        allowed = "False with MODEL.PRETRAIN 'mae', because the visible patches are not a grid"
        for key in ('USE_RPB', 'USE_SHARED_RPB'):
            refuse_unless(not vit[key], config, f'MODEL.VIT.{key}', allowed)
        allowed = "True (or USE_APE) with MODEL.PRETRAIN 'mae', which needs position embeddings"
        refuse_unless(vit.USE_SINCOS or vit.USE_APE, config, 'MODEL.VIT.USE_SINCOS', allowed)
        for key, value in default_config().MODEL.SIMMIM.items():
            allowed = f"{value!r}, the default, with MODEL.PRETRAIN 'mae', which ignores it"
            is_allowed = config.MODEL.SIMMIM[key] == value
            refuse_unless(is_allowed, config, f'MODEL.SIMMIM.{key}', allowed)
        width = mae.DECODER_EMBED_DIM
        refuse_unless(width % 4 == 0, config, 'MODEL.MAE.DECODER_EMBED_DIM', 'a multiple of 4')
        allowed = f'a divisor of MODEL.MAE.DECODER_EMBED_DIM, {width}'
        is_allowed = width % mae.DECODER_NUM_HEADS == 0
        refuse_unless(is_allowed, config, 'MODEL.MAE.DECODER_NUM_HEADS', allowed)

    def loss(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the mean squared error over hidden pixels, see `MaskedModel.loss`."""
        # What the encoder does not see has a loss, even if a refined mask hides another number.
        seen = visible_first(mask)[:, : self.num_visible]
        hidden = torch.ones_like(mask, dtype=torch.float32).flatten(1).scatter(1, seen, 0.0)
        # One value per patch becomes one per pixel; visible patches have no loss, as in MAE.
        hidden = repeat(hidden.view(mask.shape).unsqueeze(1), self.patch_size)  # [B, 1, S, S]
        predictions = self.predict(x, mask, self.num_visible)
        terms = {'l2': Term(1.0, LOSSES['l2'])}
        return term_values(terms, predictions, self.target.of(x), hidden).squeeze(0)

    def predict(
        self, x: torch.Tensor, mask: torch.Tensor, num_visible: int | None = None
    ) -> torch.Tensor:
        """Predict the target of images, [B, C, S, S] -> [B, C, S, S].

        Args:
            x: Images, [B, C, S, S].
            mask: Masks, [B, h, w], 1 where a patch is hidden.
            num_visible: Number of visible patches in each mask. None counts them, as in
                reconstruction, where the mask ratio may differ from the one in training.
        """
        check_mask(mask, self.encoder.grid_size)
        order = visible_first(mask)
        num_visible = int((mask[0] == 0).sum()) if num_visible is None else num_visible
        # The encoder reads visible patches only, which is what makes MAE fast.
        tokens = self.encoder.encode(self.encoder.patch_embed(x), kept=order[:, :num_visible])
        patches = self.decoder(tokens, order)
        side, patch = self.encoder.grid_size, self.patch_size
        # Undo the patches: [B, L, p * p * C] -> [B, side, side, p, p, C] -> [B, C, S, S].
        pixels = patches.unflatten(2, (patch, patch, -1)).unflatten(1, (side, side))
        return pixels.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)

    def no_weight_decay(self) -> set[str]:
        return super().no_weight_decay() | {'decoder.mask_token'}


def visible_first(mask: torch.Tensor) -> torch.Tensor:
    """Return the positions of all patches of masks [B, h, w], visible patches first, [B, L]."""
    return mask.flatten(1).long().argsort(dim=1, stable=True)  # masks arrive as bytes


class Decoder(nn.Module):
    """Transformer blocks over visible tokens and mask tokens, then a linear layer to pixels."""

    def __init__(self, encoder: VisionTransformer, width: int, depth: int, num_heads: int) -> None:
        super().__init__()
        self.use_checkpoint = encoder.use_checkpoint
        self.embed = nn.Linear(encoder.embed_dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer('pos_embed', sincos_positions(encoder.grid_size, width))
        self.blocks = nn.ModuleList(Block(width, num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pred = nn.Linear(width, encoder.patch_size**2 * encoder.in_chans)

    def forward(self, x: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
        """Predict the pixels of every patch, [B, L, p * p * C] with the channels last.

        Args:
            x: Class token and visible tokens, [B, 1 + V, D].
            order: Positions of all patches in the grid, visible patches first, [B, L].
        """
        x = self.embed(x)
        # x has the class token and the visible tokens; the others of the L patches are hidden.
        num_hidden = 1 + order.shape[1] - x.shape[1]
        hidden = self.mask_token.to(x.dtype).expand(len(x), num_hidden, -1)
        # `order.argsort()` is the inverse of `order`: every token returns to its place in the grid.
        tokens = select_tokens(torch.cat([x[:, 1:], hidden], dim=1), order.argsort(dim=1))
        # Positions are added to mask tokens, too, or these would all be equal.
        x = torch.cat([x[:, :1], tokens], dim=1) + self.pos_embed
        for block in self.blocks:
            x = run_block(block, x, None, use_checkpoint=self.use_checkpoint)
        return self.pred(self.norm(x[:, 1:]))
