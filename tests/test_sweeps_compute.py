"""The operations of pre-training, and the sweeps that claim equal compute."""

from pathlib import Path

import pytest
import torch
from torch import nn

from config import build_parser, get_config
from sweeps.compute import flop_counter, gflop_per_image
from sweeps.files import ROOT, expected_config, load_sweep

METHODS = ('mae', 'moco', 'simclr', 'byol', 'swav')


def count(sweep: Path, scale: str, names: tuple[str, ...]) -> dict[str, tuple[float, int]]:
    """Return row -> (GFLOP of an image, epochs) of pre-training."""
    rows = {row.name: row for row in load_sweep(ROOT / 'scripts' / sweep, scale).rows}
    found = {}
    for name in names:
        config = expected_config(rows[name], rows[name].pretraining)
        found[name] = gflop_per_image(config, rows[name].pretraining), config.TRAIN.EPOCHS
    return found


def test_a_vit_has_the_operations_of_the_formula() -> None:
    """SimMIM with D = 96, 4 blocks, L = 64 tokens, patches of 8 px, against a count by hand.

    A block has 12 L D^2 multiplications in linear layers and 2 L^2 D in attention. The patch
    embedding and the head have 64 L D each. A backward pass has two products for each product of
    the forward pass, but the embedding needs no gradient of the image. The relative biases and
    the class token add less than 3 %.
    """
    name = 'configs/vit_nano__demo/simmim_pretrain__vit_nano__img64__demo.yaml'
    options = ['MODEL.VIT.EMBED_DIM', '96', 'MODEL.VIT.DEPTH', '4', 'MODEL.VIT.NUM_HEADS', '3']
    words = ['--cfg', str(ROOT / name), '--data-path', 'x', '--opts', *options]
    config = get_config(build_parser('simmim').parse_args(words))
    tokens, width = 64, 96
    block = 12 * tokens * width**2 + 2 * tokens**2 * width
    expected = 2 * (3 * 4 * block + (3 + 2) * 64 * tokens * width) / 1e9
    assert gflop_per_image(config, 'simmim') == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize(
    'layer',
    [
        nn.Conv2d(8, 4, 3, stride=2),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 16, (3, 1), groups=2),
        nn.ConvTranspose2d(8, 4, 2, stride=2),
    ],
)
def test_the_gradients_of_a_convolution_are_twice_its_forward_pass(layer: nn.Module) -> None:
    with flop_counter() as forward:
        outputs = layer(torch.zeros(2, 8, 6, 6, requires_grad=True))
    with flop_counter() as backward:
        outputs.sum().backward()
    assert backward.get_total_flops() == 2 * forward.get_total_flops() > 0


def test_methods_at_the_same_compute_have_the_operations_of_simmim() -> None:
    """To half an epoch."""
    names = ('simmim_1', *(f'{method}_same_compute_1' for method in METHODS))
    found = count(Path('comparison/methods_small.yaml'), 'same_compute', names)
    each, epochs = found.pop('simmim_1')
    for name, (other, count_of_epochs) in found.items():
        assert count_of_epochs == pytest.approx(epochs * each / other, abs=0.5), name


@pytest.mark.parametrize(
    'sweep, scale', [('comparison/simmim_mae.yaml', 'cpu'), ('studies/main_model.yaml', 'all')]
)
def test_mae_has_the_operations_of_simmim(sweep: str, scale: str) -> None:
    """To half an epoch."""
    found = count(Path(sweep), scale, ('simmim_0.1', 'mae_0.1'))
    (each, epochs), (other, count_of_epochs) = found.values()
    assert count_of_epochs == pytest.approx(epochs * each / other, abs=0.5)
