"""Checkpoints of MAE and of timm's ViT give the same outputs after conversion.

The reference is an implementation of MAE in plain tensors, with the names of MAE's code.
"""

import math

import numpy as np
import pytest
import torch
from test_mae import mae_config
from timm.models.vision_transformer import VisionTransformer
from torch.nn import functional as F
from transfers import assert_same, load, make_model

from models.vision_transformer import sincos_positions

HEADS, DECODER_HEADS, PATCH = 4, 4, 8
State = dict[str, torch.Tensor]


def official_state(channels: int) -> State:
    """Draw random weights with MAE's names: width 32, 2 blocks; decoder of width 16, 1 block."""
    shapes = {'cls_token': (1, 1, 32), 'patch_embed.proj.weight': (32, channels, PATCH, PATCH),
              'patch_embed.proj.bias': (32,), 'norm.weight': (32,), 'norm.bias': (32,)}  # fmt: skip
    for k in range(2):
        shapes |= block_shapes(f'blocks.{k}', 32)
    shapes |= {'mask_token': (1, 1, 16), 'decoder_embed.weight': (16, 32),
               'decoder_embed.bias': (16,), 'decoder_norm.weight': (16,),
               'decoder_norm.bias': (16,), 'decoder_pred.bias': (PATCH**2 * channels,),
               'decoder_pred.weight': (PATCH**2 * channels, 16)}  # fmt: skip
    shapes |= block_shapes('decoder_blocks.0', 16)
    torch.manual_seed(0)
    state = {key: torch.randn(shape) for key, shape in shapes.items()}
    for key, value in state.items():
        if value.ndim > 1 and key.endswith('weight'):
            value /= math.prod(value.shape[1:]) ** 0.5
    positions = {'pos_embed': sincos_positions(4, 32), 'decoder_pos_embed': sincos_positions(4, 16)}
    return state | positions


def block_shapes(name: str, width: int) -> dict[str, tuple[int, ...]]:
    linears = {'attn.qkv': (3, 1), 'attn.proj': (1, 1), 'mlp.fc1': (4, 1), 'mlp.fc2': (1, 4)}
    shapes = {f'{name}.norm{k}.{kind}': (width,) for k in (1, 2) for kind in ('weight', 'bias')}
    for key, (rows, columns) in linears.items():
        shapes[f'{name}.{key}.weight'] = (rows * width, columns * width)
        shapes[f'{name}.{key}.bias'] = (rows * width,)
    return shapes


def official_blocks(state: State, name: str, x: torch.Tensor, heads: int) -> torch.Tensor:
    """Apply all blocks with this name."""

    def linear(key: str, x: torch.Tensor) -> torch.Tensor:
        return x @ state[f'{key}.weight'].T + state[f'{key}.bias']

    for k in range(sum(key.startswith(name) and key.endswith('norm1.bias') for key in state)):
        block = f'{name}.{k}'
        qkv = linear(f'{block}.attn.qkv', official_norm(state, f'{block}.norm1', x))
        q, k, v = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=2))
        weights = (q @ k.transpose(2, 3) / q.shape[3] ** 0.5).softmax(dim=3)
        x = x + linear(f'{block}.attn.proj', (weights @ v).transpose(1, 2).flatten(2))
        widened = linear(f'{block}.mlp.fc1', official_norm(state, f'{block}.norm2', x))
        x = x + linear(f'{block}.mlp.fc2', F.gelu(widened))
    return x


def official_norm(state: State, name: str, x: torch.Tensor) -> torch.Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    x = centred / ((centred**2).mean(dim=-1, keepdim=True) + 1e-6).sqrt()
    return x * state[f'{name}.weight'] + state[f'{name}.bias']


def official_tokens(state: State, images: torch.Tensor) -> torch.Tensor:
    """Compute patch tokens with position embeddings, [B, L, 32]."""
    patches = torch.einsum('nchpwq->nhwcpq', images.reshape(len(images), -1, 4, PATCH, 4, PATCH))
    weight = state['patch_embed.proj.weight'].flatten(1)
    tokens = patches.reshape(len(images), 16, -1) @ weight.T + state['patch_embed.proj.bias']
    return tokens + state['pos_embed'][:, 1:]


def official_mae(
    state: State, images: torch.Tensor, mask: torch.Tensor, *, norm_pix: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute loss and pixels [B, L, p * p * C] with visible patches in random order."""
    batch, length, mask = len(images), 16, mask.flatten(1)
    shuffle = (torch.rand(batch, length) + mask).argsort(dim=1)
    restore = shuffle.argsort(dim=1)
    kept = shuffle[:, : int((mask[0] == 0).sum())]
    rows = torch.arange(batch)[:, None]
    x = official_tokens(state, images)[rows, kept]
    first = (state['cls_token'] + state['pos_embed'][:, :1]).expand(batch, 1, -1)
    x = official_blocks(state, 'blocks', torch.cat([first, x], dim=1), HEADS)
    x = official_norm(state, 'norm', x)

    x = x @ state['decoder_embed.weight'].T + state['decoder_embed.bias']
    tokens = state['mask_token'].repeat(batch, length + 1 - x.shape[1], 1)
    x = torch.cat([x[:, :1], torch.cat([x[:, 1:], tokens], dim=1)[rows, restore]], dim=1)
    x = official_blocks(state, 'decoder_blocks', x + state['decoder_pos_embed'], DECODER_HEADS)
    x = official_norm(state, 'decoder_norm', x)
    pixels = (x @ state['decoder_pred.weight'].T + state['decoder_pred.bias'])[:, 1:]

    target = patchify(images)
    if norm_pix:
        mean, var = target.mean(dim=2, keepdim=True), target.var(dim=2, keepdim=True)
        target = (target - mean) / (var + 1e-6) ** 0.5
    loss = ((pixels - target) ** 2).mean(dim=2)
    return (loss * mask).sum() / mask.sum(), pixels


def patchify(images: torch.Tensor) -> torch.Tensor:
    patches = images.reshape(len(images), -1, 4, PATCH, 4, PATCH)
    return torch.einsum('nchpwq->nhwpqc', patches).reshape(len(images), 16, -1)


def masks(count: int = 3) -> torch.Tensor:
    rng = np.random.default_rng(4)
    hidden = np.stack([rng.permutation(16) < 12 for _ in range(count)])
    return torch.from_numpy(hidden.reshape(count, 4, 4).astype(np.int64))


# Into pre-training


@pytest.mark.parametrize('channels, norm_pix', [(1, False), (3, True)])
@torch.no_grad()
def test_maes_weights_give_the_same_loss_and_pixels(channels, norm_pix, tmp_path, log) -> None:
    state = official_state(channels)
    assert all(state[f'blocks.{k}.attn.qkv.bias'][32:64].abs().min() > 0 for k in range(2))
    config = mae_config(channels, MODEL__MAE__NORM_PIX_LOSS=norm_pix)
    model = load(state, config, make_model(config, seed=2), tmp_path)
    images, mask = torch.randn(3, channels, 32, 32), masks()
    loss, pixels = official_mae(state, images, mask, norm_pix=norm_pix)
    assert_same(patchify(model.predict(images, mask)), pixels)
    assert_same(model(images, mask), loss)
    for line in ('new          0', 'unused       0', 'resized      0', 'folded       0'):
        assert f'\n{line}\n' in log.text + '\n'


# Into fine-tuning


@pytest.mark.parametrize('pool', ['token', 'avg'])
@torch.no_grad()
def test_timms_vit_gives_the_same_logits(pool: str, tmp_path, log) -> None:
    """MAE's code fine-tunes this ViT. The biases of the keys do not affect the result."""
    torch.manual_seed(0)
    vit = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4, num_classes=14,
        global_pool=pool,
    ).eval()  # fmt: skip
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
