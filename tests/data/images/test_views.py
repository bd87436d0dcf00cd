"""The view of an image from its table, its name or its DICOM header."""

import numpy as np
import pytest
from dicom_files import write
from PIL import Image

from data.images.image_source import Folder
from data.images.noted_images import NotedImages, describe_notes
from data.images.views import views_in_names, views_warning

FRONTAL_ONLY = 'but the model was trained on frontal images only'


@pytest.mark.parametrize(
    ('name', 'view'),
    [
        ('CheXpert-v1.0/valid/patient64541/study1/view1_frontal.jpg', 'frontal'),
        ('patient64541/study1/view2_lateral.jpg', 'lateral'),
        ('view2_lateral', 'lateral'),
        ('scan_LATERAL (2).png', 'lateral'),
        ('17-lat.dcm', 'lateral'),
        ('lateral/17.png', 'lateral'),
        ('lateral/17_frontal.png', 'frontal'),
        ('lateral/patient1/study1/1.png', ''),
        ('bilateral_effusion.png', ''),
        ('plate.png', ''),
        ('frontal_and_lateral.png', ''),
        ('files/p10/p10000032/s50414267/02aa804e-bde0afdd-112c0b34-7bc16630-4e384014.jpg', ''),
    ],
)
def test_a_word_in_the_name_or_its_folder_is_the_view(name: str, view: str) -> None:
    assert views_in_names([name]).tolist() == [view]


def test_images_of_a_view_that_training_lacked_are_counted() -> None:
    views = ['frontal', 'lateral', '', 'lateral']
    assert views_warning(views, 'frontal') == f'2 of 4 images are lateral, {FRONTAL_ONLY}'
    assert views_warning(views, 'lateral').startswith('1 of 4 images are frontal, but')
    assert views_warning(views, '').startswith('2 of 4 images are lateral, and no file')
    assert views_warning(views, 'all') == views_warning(views[::2], 'frontal') == ''


@pytest.mark.parametrize(
    ('position', 'name', 'stated', 'lateral'),
    [
        ('LL', '1.dcm', '', True),
        ('LATERAL', '1.dcm', '', True),
        ('PA', '1.dcm', '', False),
        ('LLO', '1.dcm', '', False),  # an oblique view is neither
        (None, '1.dcm', '', False),
        ('PA', '1_lateral.dcm', '', True),
        ('LL', '1_lateral.dcm', 'frontal', False),
    ],
)
def test_a_table_goes_before_name_and_header(tmp_path, position, name, stated, lateral) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    write(tmp_path / name, pixels, **({'ViewPosition': position} if position else {}))
    images = NotedImages(
        Folder(tmp_path), [name], lambda *_: 0, skip_bad=False, views=[stated], trained='frontal'
    )
    warnings = [*describe_notes([images[0][1]], [name])]
    assert warnings == [f'warning: 1 lateral image(s), {FRONTAL_ONLY}: {name}'] * lateral


def test_a_coloured_image_may_be_lateral_too(tmp_path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'lateral.png')
    names, options = ['lateral.png'], {'skip_bad': False, 'trained': 'frontal'}
    images = NotedImages(Folder(tmp_path), names, lambda *_: 0, **options)
    first, second = describe_notes([images[0][1]], names)
    assert 'coloured' in first and 'lateral image(s)' in second
