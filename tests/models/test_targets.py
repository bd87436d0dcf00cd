"""Reconstruction targets: averages over cells, normalised masking units, and logged errors."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import VIT, finished_run
from torch import nn
from transfers import make_config

from config import check_config
from logger import read_metrics
from models import build_model
from models.simmim import TARGETS, HogTarget, average_cells

GIVEN = '_given_patch_statistics'


def seeded(kind: str = 'vit', channels: int = 1, **options: object) -> nn.Module:
    """Build a small model with stride 8 for 32 px images."""
    config = make_config(kind, channels, DATA__MASK_PATCH_SIZE=8, **options)
    check_config(config, 'simmim')
    torch.manual_seed(0)
    return build_model(config)


def batch(model: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two images with masks of 8 px units and different mask ratios."""
    torch.manual_seed(1)
    units = torch.tensor([[[1, 0, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0], [1, 1, 0, 1]],
                          [[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]])  # fmt: skip
    times = 8 // model.patch_size
    mask = units.repeat_interleave(times, dim=1).repeat_interleave(times, dim=2)
    return torch.randn(2, model.in_chans, 32, 32) * 2 + 1, mask


def predictions(model: nn.Module, x: torch.Tensor, mask: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return model.decoder(model.encoder(x, mask)).double().numpy()


def patches_as_mae(images: np.ndarray, p: int) -> np.ndarray:
    """Apply MAE's patchify and norm_pix_loss to each patch: [B, h, w, p * p * C]."""
    side = images.shape[-1] // p
    target = np.zeros((len(images), side, side, p * p * images.shape[1]))
    for b, row, column in np.ndindex(len(images), side, side):
        patch = images[b, :, row * p : (row + 1) * p, column * p : (column + 1) * p]
        values = patch.transpose(1, 2, 0).flatten()  # pixel by pixel, its channels together
        variance = ((values - values.mean()) ** 2).sum() / (len(values) - 1)
        target[b, row, column] = (values - values.mean()) / (variance + 1e-6) ** 0.5
    return target


ERRORS = {
    'l1': abs,
    'l2': lambda d: d * d,
    'smooth_l1': lambda d: 0.5 * d * d if abs(d) < 1 else abs(d) - 0.5,
}


@pytest.mark.parametrize(
    'kind, channels, head, size, pixels, loss',
    [('swin', 1, 'linear', 8, 'masked', 'l2'), ('vit', 3, 'mlp', 16, 'all', 'l2'),
     ('vit', 1, 'inverse_swin_nano', 8, 'masked', 'l1'), ('vit', 3, 'linear', 32, 'masked', 'l1'),
     ('swin', 1, 'linear', 32, 'all', 'smooth_l1')],
)  # fmt: skip
def test_loss_equals_a_loop_over_cells(  # noqa: PLR0913
    kind, channels, head, size, pixels, loss
) -> None:
    """With 32 cells, each is a pixel."""
    options = {'HEAD': head, 'TARGET_SIZE': size, 'LOSS_PIXELS': pixels, 'LOSS': loss}
    model = seeded(kind, channels, **{f'MODEL__SIMMIM__{k}': v for k, v in options.items()})
    x, mask = batch(model)
    predicted, cell = predictions(model, x, mask), 32 // size
    assert predicted.shape == (2, channels, size, size)
    total, count = 0.0, 0
    for b, c, row, column in np.ndindex(*predicted.shape):
        place = slice(row * cell, (row + 1) * cell), slice(column * cell, (column + 1) * cell)
        token = [index * cell // model.patch_size for index in (row, column)]
        if pixels == 'all' or mask[b, token[0], token[1]] == 1:
            wanted = x[b, c][place].double().mean().item()
            total += ERRORS[loss](predicted[b, c, row, column] - wanted)
            count += c == 0
    assert count == (2 * size**2 if pixels == 'all' else 8 * (size // 4) ** 2)
    assert model(x, mask).item() == pytest.approx(total / count / channels, rel=1e-4)


def test_loss_of_normalised_patches_equals_a_loop() -> None:
    """The statistics belong to masking units of 8 px, although the ViT's patches have 4 px."""
    size = 16
    options = {'TARGET': 'patch_normalised', 'TARGET_SIZE': size}
    options = {f'MODEL__SIMMIM__{key}': value for key, value in options.items()}
    model = seeded('vit', 3, MODEL__VIT__PATCH_SIZE=4, **options)
    x, mask = batch(model)
    cell, side = 32 // size, size // 4
    cells = x.double().numpy().reshape(2, 3, size, cell, size, cell).mean(axis=(3, 5))
    wanted = patches_as_mae(cells, side)
    predicted, errors = predictions(model, x, mask), []
    for b, row, column in np.ndindex(2, 4, 4):
        if mask[b, 2 * row, 2 * column]:
            area = slice(row * side, (row + 1) * side), slice(column * side, (column + 1) * side)
            got = predicted[(b, slice(None), *area)].transpose(1, 2, 0).flatten()
            errors.append(np.abs(got - wanted[b, row, column]).mean())
    assert len(errors) == 8
    assert model(x, mask).item() == pytest.approx(np.mean(errors), rel=1e-4)


@pytest.mark.parametrize('cell', [1, 2])
@pytest.mark.parametrize('kind', ['pixels', 'patch_normalised'])
def test_a_perfect_prediction_becomes_the_image(kind: str, cell: int) -> None:
    torch.manual_seed(4)
    x = torch.randn(2, 3, 16, 16)
    target = TARGETS[kind](3, cell=cell, unit=8)
    want = average_cells(x, cell).repeat_interleave(cell, dim=2).repeat_interleave(cell, dim=3)
    torch.testing.assert_close(target.to_images(target.of(x), x), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(('size', 'cell'), [(32, 8), (24, 4)])
def test_histograms_of_gradients_are_those_of_scikit_image(size: int, cell: int) -> None:
    hog = pytest.importorskip('skimage.feature', reason='needs scikit-image').hog
    torch.manual_seed(5)
    x = torch.randn(2, 2, size, size, dtype=torch.float64)
    x[0, 0, :, 5:] = x[0, 0, :, 5:6]  # exact directions and areas without a gradient
    x[0, 1] = torch.linspace(-1, 1, size)[:, None]
    got = HogTarget(2, cell=cell).of(x)
    assert got.shape == (2, 18, size // cell, size // cell)
    shape = {'pixels_per_cell': (cell, cell), 'cells_per_block': (1, 1), 'block_norm': 'L2'}
    for b, c in np.ndindex(2, 2):
        want = hog(x[b, c].numpy(), orientations=9, feature_vector=False, **shape)
        want = want[:, :, 0, 0].transpose(2, 0, 1)
        np.testing.assert_allclose(got[b, 9 * c : 9 * c + 9].numpy(), want, atol=1e-6)


@pytest.mark.parametrize('kind, head', [('swin', 'mlp'), ('vit', 'inverse_swin_nano')])
def test_a_head_predicts_as_many_values_as_the_target_has(kind: str, head: str) -> None:
    options = {'TARGET': 'hog', 'HEAD': head, 'TARGET_SIZE': 0 if head == 'mlp' else 8}
    model = seeded(kind, 3, **{f'MODEL__SIMMIM__{key}': value for key, value in options.items()})
    x, mask = batch(model)
    cell = 8 if head == 'mlp' else 4
    predicted, wanted = predictions(model, x, mask), HogTarget(3, cell=cell).of(x).numpy()
    assert predicted.shape == wanted.shape == (2, 27, 32 // cell, 32 // cell)
    hidden = mask.repeat_interleave(model.patch_size, 1).repeat_interleave(model.patch_size, 2)
    hidden = hidden[:, ::cell, ::cell].bool().numpy()
    error = np.abs(predicted - wanted).transpose(0, 2, 3, 1)[hidden].mean()
    assert model(x, mask).item() == pytest.approx(error, rel=1e-4)


@pytest.mark.slow
def test_normalised_targets_are_learned_and_logged_under_separate_names(phantom, tmp_path) -> None:
    data = {'IMG_SIZE': 64, 'MASK_PATCH_SIZE': 16, 'TRAIN_IMAGES': 40}
    train = {'WARMUP_EPOCHS': 0, 'ACCUMULATION_STEPS': 1, 'BASE_LR': 0.5, 'EPOCHS': 3}
    model = VIT | {'SIMMIM': {'TARGET': 'patch_normalised'}, 'DROP_PATH_RATE': 0.0}
    sections = {'DATA': data, 'TRAIN': train, 'EVAL': {'HOLDOUT_IMAGES': 6}}
    folder = finished_run('simmim', phantom, tmp_path, model=model, **sections)
    before, *epochs = read_metrics(folder / 'metrics.jsonl')
    assert epochs[-1]['loss'] < 0.98 * epochs[0]['loss']
    for name in ('holdout', 'reference'):
        names = {key for key in before if key.startswith(name)}
        model = {f'{name}_l1{GIVEN}', f'{name}_l1_grey{GIVEN}'}
        trivial = {
            f'{name}_l1{unit}_{kind}' for unit in ('', '_grey') for kind in ('mean', 'linear')
        }
        assert names == model | trivial
        # Given each unit's mean, even an untrained model is far better than the visible mean.
        assert before[f'{name}_l1{GIVEN}'] < 0.8 * before[f'{name}_l1_mean']
        assert epochs[-1][f'{name}_l1{GIVEN}'] < before[f'{name}_l1{GIVEN}']
    log = (folder / 'log_rank0.txt').read_text()
    assert log.count('holdout masked L1 given patch statistics: ') == len(epochs) + 1
    assert 'masked L1: ' not in log
    with Image.open(folder / 'reconstructions' / 'epoch_2.png') as image:
        image.verify()
