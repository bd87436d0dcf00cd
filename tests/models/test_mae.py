"""MAE: position embeddings, visible tokens, order of patches, loss and pixels, and training."""

import math

import numpy as np
import pytest
import torch
from transfers import mae_config

from config import check_config
from data.masking import MASKS, MaskGenerator
from models import build_model
from models.mae import MAE
from models.vision_transformer import sincos_positions


def seeded(channels: int = 1, **options: object) -> MAE:
    config = mae_config(channels, **options)
    check_config(config, 'simmim')
    torch.manual_seed(0)
    return build_model(config)


@pytest.mark.parametrize('grid, width', [(4, 16), (14, 20)])
def test_position_embeddings_equal_maes_formula(grid: int, width: int) -> None:
    """MAE puts columns first and uses omega = 10000 ** -(i / (width / 4))."""
    got = sincos_positions(grid, width).numpy()
    assert got.shape == (1, 1 + grid**2, width) and got.dtype == np.float32
    assert not got[0, 0].any()
    quarter = width // 4
    for row, column, i in np.ndindex(grid, grid, quarter):
        omega = 1.0 / 10000 ** (i / quarter)
        place = got[0, 1 + row * grid + column]
        angles = (column * omega, row * omega)
        want = [f(angle) for angle in angles for f in (math.sin, math.cos)]
        np.testing.assert_allclose(place[i::quarter], want, atol=1e-6)


@pytest.mark.parametrize('ratio, tokens', [(0.25, 1 + 12), (0.75, 1 + 4)])
def test_the_encoder_sees_visible_patches_and_the_class_token(ratio: float, tokens: int) -> None:
    model = seeded(DATA__MASK_RATIO=ratio)
    seen, decoded = [], []
    for blocks, shapes in ((model.encoder.blocks, seen), (model.decoder.blocks, decoded)):
        for block in blocks:
            block.register_forward_hook(lambda _, args, out, s=shapes: s.append(out.shape))
    for mask_type in MASKS:
        masks = MaskGenerator(32, 8, 8, ratio, mask_type)
        rng = np.random.default_rng(3)
        masks = torch.from_numpy(np.stack([masks(rng) for _ in range(4)]))
        model(torch.randn(4, 1, 32, 32), masks)
    assert set(seen) == {(4, tokens, 32)} and len(seen) == 2 * len(MASKS)
    assert set(decoded) == {(4, 17, 16)}


def test_every_parameter_gets_a_gradient_and_positions_have_none() -> None:
    """DistributedDataParallel requires gradients, however the classifier will pool."""
    generator, rng = MaskGenerator(32, 8, 8, 0.75), np.random.default_rng(0)
    masks = torch.from_numpy(np.stack([generator(rng) for _ in range(3)]).astype(np.uint8))
    for pooling in (False, True):
        model = seeded(MODEL__VIT__USE_MEAN_POOLING=pooling)
        model(torch.randn(3, 1, 32, 32), masks).backward()
        assert [name for name, p in model.named_parameters() if p.grad is None] == []
        assert all(p.grad.any() for p in model.parameters())
        assert {name for name, _ in model.named_buffers()} == {
            'encoder.pos_embed', 'decoder.pos_embed',
        }  # fmt: skip


def test_initial_weights_equal_maes() -> None:
    """Weights are Xavier uniform, with the pixels of a patch as one vector."""
    model = seeded(MODEL__VIT__EMBED_DIM=128, MODEL__MAE__DECODER_EMBED_DIM=64)
    matrices = 0
    for name, parameter in model.named_parameters():
        if name.endswith('.weight') and parameter.ndim > 1:
            matrix = parameter.detach().flatten(1)
            bound = (6 / sum(matrix.shape)) ** 0.5
            assert matrix.abs().max() <= bound, name
            assert matrix.std().item() == pytest.approx(bound / 3**0.5, rel=0.05), name
            matrices += 1
        elif name.endswith('_token'):
            assert parameter.std().item() == pytest.approx(0.02, rel=0.3), name
        else:
            expected = 1.0 if name.endswith('.weight') else 0.0
            assert (parameter == expected).all(), name
    assert matrices == 4 * 3 + 3  # of each block; patch embedding, decoder's embedding, pixels


def test_all_that_the_encoder_does_not_see_has_a_loss() -> None:
    """A refined mask that hides too little still leaves the same number of patches visible."""
    torch.manual_seed(0)
    model = seeded(DATA__MASK_RATIO=0.75)
    x, mask = torch.randn(2, 1, 32, 32), torch.ones(2, 4, 4, dtype=torch.uint8)
    mask[:, 0] = 0  # 4 of 16 patches are visible, as in training
    fewer = mask.clone()
    fewer[:, 1:3] = 0  # the first 4 visible ones are the same
    assert model.num_visible == 4
    assert model.loss(x, fewer) == model.loss(x, mask)


def test_a_prediction_counts_the_visible_patches_of_its_mask() -> None:
    """The masks of validation may hide another share than those of training."""
    torch.manual_seed(0)
    model, x = seeded(DATA__MASK_RATIO=0.75), torch.randn(1, 1, 32, 32)  # a batch of one
    mask = torch.ones(1, 4, 4, dtype=torch.uint8)
    mask[:, 0, :3] = 0
    assert torch.equal(model.predict(x, mask), model.predict(x, mask, 3))
    assert not torch.equal(model.predict(x, mask), model.predict(x, mask, model.num_visible))
