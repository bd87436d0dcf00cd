"""MAE: the encoder sees visible patches alone, a light decoder predicts the hidden ones.

He et al. 2022, arXiv:2111.06377.
"""

import torch
from torch import nn

from models.relative_position import run_block
from models.simmim import LOSSES, Target, pixel_loss, repeat
from models.vision_transformer import Block, VisionTransformer, sincos_positions


class MAE(nn.Module):
    """Predicts hidden patches from visible ones; masks and loss are taken as by `SimMIM`.

    Args:
        encoder: a ViT with positions of its own and without relative position biases.
        num_visible: patches that each mask of training leaves visible. On a GPU masks are trusted
            in that, for to count there is to wait for it.
        decoder_embed_dim: width of the decoder, a multiple of 4 and of its heads.
        decoder_depth: blocks of the decoder.
        decoder_num_heads: attention heads of the decoder.
        norm_pix_loss: whether each patch is predicted less its mean, over its deviation.
        attention: of the decoder, as MODEL.ATTENTION.
    """

    def __init__(
        self,
        encoder: VisionTransformer,
        *,
        num_visible: int,
        decoder_embed_dim: int = 512,
        decoder_depth: int = 8,
        decoder_num_heads: int = 16,
        norm_pix_loss: bool = False,
        attention: str = 'auto',
    ) -> None:
        super().__init__()
        self.in_chans = encoder.in_chans
        self.patch_size = encoder.patch_size
        self.num_visible = num_visible
        kind = 'patch_normalised' if norm_pix_loss else 'pixels'
        self.target = Target(kind, unit=encoder.patch_size)
        self.encoder = encoder
        self.decoder = Decoder(
            encoder, decoder_embed_dim, decoder_depth, decoder_num_heads, attention
        )
        self._init_weights()

    def _init_weights(self) -> None:
        """As MAE: its own uniform weights, a patch's pixels being one vector; biases 0."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.encoder.cls_token, std=0.02)
        nn.init.normal_(self.decoder.mask_token, std=0.02)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Mean squared error over the hidden patches of images [B, C, S, S], mask [B, h, w].

        Raises:
            ValueError: as `predict`; masks on the CPU that leave another number of patches visible
                than `num_visible` are refused, too.
        """
        if mask.is_cpu and not torch.compiler.is_compiling():
            check_visible(mask, self.num_visible)
        weight = repeat(mask.unsqueeze(1).float(), self.patch_size)  # [B, 1, S, S]
        predictions = self.predict(x, mask, self.num_visible)
        return pixel_loss(predictions, self.target.of(x), weight, LOSSES['l2'])

    def reconstruct(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """All pixels as predicted from the visible ones, normalised as x is: [B, C, S, S].

        With `norm_pix_loss` mean and deviation of each patch are those of x. Masks may hide another
        share than those of training.
        """
        return self.target.to_images(self.predict(x, mask), x)

    def predict(
        self, x: torch.Tensor, mask: torch.Tensor, num_visible: int | None = None
    ) -> torch.Tensor:
        """What is predicted of the target of images [B, C, S, S], in its place: [B, C, S, S].

        Args:
            x: images.
            mask: [B, h, w], 1 where hidden.
            num_visible: patches that each mask leaves visible; None: they are counted, for which a
                GPU is waited for.

        Raises:
            ValueError: if image or mask is not of the size that the encoder was built for, or the
                masks do not all leave the same number of patches visible, at least one.
        """
        order = visible_first(mask, self.encoder.grid_size)
        num_visible = count_visible(mask) if num_visible is None else num_visible
        patches = self.decoder(self.encode(x, order[:, :num_visible]), order)
        side, patch = self.encoder.grid_size, self.patch_size
        pixels = patches.unflatten(2, (patch, patch, -1)).unflatten(1, (side, side))
        return pixels.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)

    def encode(self, x: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """The patches [B, V] of images [B, C, S, S] as tokens [B, 1 + V, D], the class token first.

        Each has its position before the others are left out.
        """
        encoder = self.encoder
        tokens = encoder.patch_embed(x) + encoder.pos_embed[:, 1:]
        tokens = take(tokens, visible)
        first = encoder.cls_token + encoder.pos_embed[:, :1]
        return encoder.run_blocks(torch.cat([first.expand(len(x), -1, -1), tokens], dim=1))

    def no_weight_decay(self) -> set[str]:
        names = {f'encoder.{name}' for name in self.encoder.no_weight_decay()}
        return names | {'decoder.mask_token'}

    def no_weight_decay_keywords(self) -> set[str]:
        return set()


class Decoder(nn.Module):
    """Plain blocks over visible tokens and mask tokens in their places, then pixels."""

    def __init__(
        self,
        encoder: VisionTransformer,
        width: int,
        depth: int,
        num_heads: int,
        attention: str,
    ) -> None:
        super().__init__()
        self.keeps = encoder.keeps
        self.embed = nn.Linear(encoder.embed_dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer('pos_embed', sincos_positions(encoder.grid_size, width))
        self.blocks = nn.ModuleList(
            Block(width, num_heads, attention=attention) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pred = nn.Linear(width, encoder.patch_size**2 * encoder.in_chans)

    def forward(self, x: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
        """Pixels of every patch.

        Args:
            x: class token and visible tokens, [B, 1 + V, D].
            order: places of the visible patches, then those of the hidden ones, [B, L].

        Returns:
            [B, L, p * p * C]: row by row, the channels of a pixel together.
        """
        x = self.embed(x)
        num_hidden = 1 + order.shape[1] - x.shape[1]
        hidden = self.mask_token.to(x.dtype).expand(len(x), num_hidden, -1)
        tokens = take(torch.cat([x[:, 1:], hidden], dim=1), order.argsort(dim=1))
        x = torch.cat([x[:, :1], tokens], dim=1) + self.pos_embed
        for block in self.blocks:
            x = run_block(block, x, None, keeps=self.keeps)
        return self.pred(self.norm(x[:, 1:]))


def visible_first(mask: torch.Tensor, side: int) -> torch.Tensor:
    """Where the visible patches are, then the hidden ones, each in the order of the grid.

    Args:
        mask: [B, side, side], 1 where hidden.
        side: of the grid, in patches.

    Returns:
        Places [B, side ** 2].

    Raises:
        ValueError: if the mask is of another grid.
    """
    if tuple(mask.shape[1:]) != (side, side):
        raise ValueError(
            f'mask must be [images, patch rows, patch columns] = [{len(mask)}, {side}, {side}], '
            f'got {list(mask.shape)}'
        )
    return mask.flatten(1).argsort(dim=1, stable=True)


def count_visible(mask: torch.Tensor) -> int:
    """How many patches each of the masks [B, h, w] (1 hidden) leaves visible.

    Raises:
        ValueError: if they differ in that number, or it is 0.
    """
    fewest, most = torch.stack((mask == 0).flatten(1).sum(dim=1).aminmax()).tolist()
    if fewest != most or not fewest:
        raise ValueError(
            'all masks must leave the same number of patches visible, at least one, '
            f'got {fewest} to {most}'
        )
    return fewest


def check_visible(mask: torch.Tensor, num_visible: int) -> None:
    """Refuse masks [B, h, w] that do not each leave this many patches visible."""
    if (found := count_visible(mask)) != num_visible:
        raise ValueError(
            f'masks of training must leave {num_visible} patches visible (DATA.IMG_SIZE, '
            f'DATA.MASK_PATCH_SIZE, DATA.MASK_RATIO), got {found}'
        )


def take(tokens: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Of tokens [B, N, D] those at places [B, M], in this order: [B, M, D]."""
    return tokens.gather(1, places.unsqueeze(-1).expand(-1, -1, tokens.shape[2]))
