"""Checkpoints of MAE and of timm's ViT give the same outputs after conversion."""

from functools import partial

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn
from transfers import assert_same, load, mae_config, make_model

from models.vision_transformer import sincos_positions

PATCH = 8
NORM = partial(nn.LayerNorm, eps=1e-6)
SIZES = {'img_size': 32, 'patch_size': PATCH, 'embed_dim': 32, 'depth': 2, 'num_heads': 4}


class OfficialMAE(VisionTransformer):
    """MAE with the names of its code, which adds a decoder to timm's ViT; random weights."""

    def __init__(self, channels: int) -> None:
        super().__init__(**SIZES, in_chans=channels, num_classes=0, norm_layer=NORM)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, 16))
        self.decoder_embed = nn.Linear(32, 16)
        self.decoder_blocks = nn.ModuleList([Block(16, 4, qkv_bias=True, norm_layer=NORM)])
        self.decoder_norm = NORM(16)
        self.decoder_pred = nn.Linear(16, PATCH**2 * channels)
        for name, parameter in self.named_parameters():
            parameter.data.normal_(std=1 if 'norm' in name or parameter.ndim != 2 else 0.2)
        self.pos_embed.data = sincos_positions(4, 32)
        self.decoder_pos_embed = nn.Parameter(sincos_positions(4, 16))

    def forward(
        self, images: torch.Tensor, mask: torch.Tensor, *, norm_pix: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return loss and pixels [B, L, p * p * C] with visible patches in random order."""
        batch, mask = len(images), mask.flatten(1)
        shuffle = (torch.rand(batch, 16) + mask).argsort(dim=1)
        restore = shuffle.argsort(dim=1)
        kept = shuffle[:, : int((mask[0] == 0).sum())]
        rows = torch.arange(batch)[:, None]
        x = (self.patch_embed(images) + self.pos_embed[:, 1:])[rows, kept]
        first = (self.cls_token + self.pos_embed[:, :1]).expand(batch, 1, -1)
        x = self.decoder_embed(self.norm(self.blocks(torch.cat([first, x], dim=1))))
        tokens = self.mask_token.repeat(batch, 17 - x.shape[1], 1)
        x = torch.cat([x[:, :1], torch.cat([x[:, 1:], tokens], dim=1)[rows, restore]], dim=1)
        for block in self.decoder_blocks:
            x = block(x + self.decoder_pos_embed)
        pixels = self.decoder_pred(self.decoder_norm(x))[:, 1:]
        target = patchify(images)
        if norm_pix:
            mean, deviation = statistics(target)
            target = (target - mean) / deviation
        loss = ((pixels - target) ** 2).mean(dim=2)
        return (loss * mask).sum() / mask.sum(), pixels


def statistics(patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of each patch, as MAE normalises it."""
    return patches.mean(dim=2, keepdim=True), (patches.var(dim=2, keepdim=True) + 1e-6) ** 0.5


def patchify(images: torch.Tensor) -> torch.Tensor:
    patches = images.reshape(len(images), -1, 4, PATCH, 4, PATCH)
    return torch.einsum('nchpwq->nhwpqc', patches).reshape(len(images), 16, -1)


def masks(count: int = 3) -> torch.Tensor:
    rng = np.random.default_rng(4)
    hidden = np.stack([rng.permutation(16) < 12 for _ in range(count)])
    return torch.from_numpy(hidden.reshape(count, 4, 4).astype(np.int64))


@pytest.mark.parametrize('channels, norm_pix, unit', [(1, False, 8), (3, True, 16)])
@torch.no_grad()
def test_maes_weights_give_the_same_loss_and_pixels(
    channels, norm_pix, unit, tmp_path, log
) -> None:
    torch.manual_seed(0)
    theirs = OfficialMAE(channels).eval()
    options = {'MODEL__MAE__NORM_PIX_LOSS': norm_pix, 'DATA__MASK_PATCH_SIZE': unit}
    config = mae_config(channels, **options)
    model = load(theirs.state_dict(), config, make_model(config, seed=2), tmp_path)
    images, mask = torch.randn(3, channels, 32, 32), masks()
    loss, pixels = theirs(images, mask, norm_pix=norm_pix)
    assert pixels.std() > 0.5
    assert_same(patchify(model.predict(images, mask)), pixels)
    assert_same(model(images, mask), loss)
    if norm_pix:
        mean, deviation = statistics(patchify(images))
        pixels = pixels * deviation + mean
    assert_same(patchify(model.reconstruct(images, mask)), pixels)
    for line in ('new          0', 'unused       0', 'resized      0', 'folded       0'):
        assert f'\n{line}\n' in log.text + '\n'


@pytest.mark.parametrize(
    ('pool', 'no_embed_class'), [('token', False), ('avg', False), ('token', True)]
)
@torch.no_grad()
def test_timms_vit_gives_the_same_logits(pool: str, no_embed_class: bool, tmp_path, log) -> None:
    """MAE's code fine-tunes this ViT. The biases of the keys do not affect the result.

    With `no_embed_class`, the class token has no position.
    """
    torch.manual_seed(0)
    vit = VisionTransformer(
        **SIZES, num_classes=14, global_pool=pool, no_embed_class=no_embed_class
    ).eval()
    for name, parameter in vit.named_parameters():
        if not name.endswith('weight'):
            parameter.normal_(std=0.5)
    options = {'USE_APE': True, 'USE_SINCOS': False, 'USE_MEAN_POOLING': pool == 'avg'}
    config = mae_config(3, **{f'MODEL__VIT__{key}': value for key, value in options.items()})
    model = make_model(config, seed=2, is_pretrain=False)
    load(vit.state_dict(), config, model, tmp_path)
    assert 'new          2  head 2' in log.text and 'unused       2  head 2' in log.text
    assert 'the head of the checkpoint is not used, because it is of unknown labels' in log.text
    model.head.load_state_dict(vit.head.state_dict())
    images = torch.randn(3, 3, 32, 32)
    assert_same(model(images), vit(images))
