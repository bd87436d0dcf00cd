"""Trivial predictors and errors against closed forms, and the pixels of the figure."""

import numpy as np
import pytest
from PIL import Image
from scipy.interpolate import griddata
from tiny import load_script, run_script

from evaluation.reconstruction import (
    Reconstruction,
    hidden_error,
    linear_interpolation,
    pixel_mask,
    plot_reconstructions,
    visible_mean,
)


@pytest.fixture
def hidden() -> np.ndarray:
    return pixel_mask(np.array([[0, 0, 0], [0, 1, 0], [0, 0, 0]]), 4)


@pytest.mark.parametrize('seed', range(5))
def test_linear_interpolation_equals_that_of_all_visible_pixels(seed: int) -> None:
    """Points of a grid have several Delaunay triangulations, with one interpolation of y² + x²."""
    hidden = pixel_mask(np.random.default_rng(seed).random((6, 6)) < 0.6, 4)
    points = np.argwhere(np.ones_like(hidden))
    image = (points**2.0).sum(axis=1).reshape(1, *hidden.shape)
    visible = ~hidden.ravel()
    wanted = griddata(points[visible], image.ravel()[visible], points, method='linear')
    filled, inside = linear_interpolation(image, hidden).ravel(), ~np.isnan(wanted)
    assert inside.sum() > visible.sum()
    np.testing.assert_allclose(filled[inside], wanted[inside], rtol=0, atol=1e-9)


def test_pixels_outside_the_hull_get_the_nearest_visible_pixel():
    hidden = pixel_mask(np.array([[1, 0, 0]]), 2)
    image = np.tile(np.arange(6.0), (1, 2, 1))
    filled = linear_interpolation(image, hidden)
    assert filled[0].tolist() == [[2, 2, 2, 3, 4, 5], [2, 2, 2, 3, 4, 5]]


def test_visible_mean_uses_visible_pixels_only(hidden):
    image = np.where(hidden, 1000.0, np.arange(144.0).reshape(12, 12))[None]
    filled = visible_mean(image, hidden)
    assert filled[0][hidden].tolist() == [image[0][~hidden].mean()] * 16
    np.testing.assert_array_equal(filled[0][~hidden], image[0][~hidden])


def test_error_is_summed_over_hidden_pixels_in_both_units(hidden):
    image = np.zeros((2, 12, 12))
    prediction = np.stack([np.full((12, 12), 0.5), np.full((12, 12), -1.5)])
    item = Reconstruction(image, hidden, prediction, np.array([10.0, 100.0]), np.zeros(2))
    normalised, grey, pixels = hidden_error(item, prediction)
    assert (normalised, grey, pixels) == (16 * 1.0, 16 * (5 + 150) / 2, 16)


def test_errors_of_another_target_are_in_its_cells_and_units(hidden):
    def means(image: np.ndarray) -> np.ndarray:  # cells of 4 pixels, two values for each
        cells = image[0].reshape(3, 4, 3, 4).mean(axis=(1, 3))
        return np.stack([cells, 10 * cells])

    units = np.zeros((3, 3), bool)
    units[1, 2] = True
    image = np.arange(144.0).reshape(1, 12, 12)
    prediction = means(image) + np.array([2.0, 4.0])[:, None, None]
    hidden = pixel_mask(units, 4)
    item = Reconstruction(image, hidden, prediction, np.ones(1), np.zeros(1), means)
    error, grey, cells = hidden_error(item, prediction)
    assert error == 3.0 and np.isnan(grey) and cells == 1
    assert hidden_error(item, item.measured(image - 1))[0] == pytest.approx((1 + 10) / 2)


def test_the_figure_shows_input_mask_and_the_prediction_of_hidden_pixels(hidden, tmp_path):
    image, prediction = np.full((1, 12, 12), 200.0), np.full((1, 12, 12), 40.0)
    item = Reconstruction(image, hidden, prediction, np.ones(1), np.zeros(1))
    plot_reconstructions(tmp_path / 'new' / 'epoch_0.png', [item, item], 'a title')
    picture = np.asarray(Image.open(tmp_path / 'new' / 'epoch_0.png').convert('RGB')).astype(int)
    counts = {
        name: (np.abs(picture - colour).max(axis=2) <= 2).sum()
        for name, colour in {'image': 200, 'prediction': 40, 'mask': (86, 135, 190)}.items()
    }
    area = 144 / (144 + 128 + 128) * counts['image']  # one whole panel of 144 pixels
    assert counts['mask'] == pytest.approx(area / 9, rel=0.1)
    assert counts['prediction'] == pytest.approx(area / 9, rel=0.1)


def test_the_last_reconstructions_of_runs_are_put_side_by_side(tmp_path, capsys) -> None:
    for run, level in (('size_4', 40), ('size_16', 200)):
        (tmp_path / run / 'reconstructions').mkdir(parents=True)
        for epoch, shade in ((9, 255 - level), (10, level)):
            image = Image.new('RGB', (220, 110), (shade, shade, shade))
            image.save(tmp_path / run / f'reconstructions/epoch_{epoch}.png')
    words = [tmp_path / 'size_4', f'16 px={tmp_path}/size_16', '--output', tmp_path / 'both.png']
    assert run_script('show_reconstructions', *words) == 0
    script = load_script('show_reconstructions')
    assert script.name_and_folder(words[1]) == ('16 px', tmp_path / 'size_16')
    (tmp_path / 'a=b').mkdir()
    assert script.name_and_folder(f'{tmp_path}/a=b') == ('', tmp_path / 'a=b')
    pixels = np.asarray(Image.open(tmp_path / 'both.png').convert('L'))
    middle = pixels[len(pixels) * 2 // 3]
    assert middle[len(middle) // 4] == 40 and middle[len(middle) * 3 // 4] == 200
    assert run_script('show_reconstructions', tmp_path, *words[-2:]) == 2
    assert str(tmp_path) in capsys.readouterr().err
