"""Images are found by their suffix, or by their contents, and no picture vanishes silently."""

from pathlib import Path

import numpy as np
import pytest
from dicom_files import write as write_dicom
from PIL import Image

from data.images.files import BadImageError, colour_difference, decode_image, load_image
from data.images.image_source import Folder
from data.tables.folder import read_folder
from data.tables.table import Fault

READ = {  # name -> format of Pillow
    'a.png': 'PNG',
    'b.JPG': 'JPEG',
    'c.jfif': 'JPEG',
    'd.JPE': 'JPEG',
    'e.webp': 'WEBP',
    'IM0001': 'JPEG',
    '1.2.840.113619.17': 'PNG',
    'scan.image': 'TIFF',
}


def pixels(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (40, 40), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / 'images'
    root.mkdir()
    for seed, (name, form) in enumerate(READ.items()):
        Image.fromarray(pixels(seed)).save(root / name, form)
    return root


def faults_of(root: Path) -> tuple[list[str], list[Fault]]:
    faults: list[Fault] = []
    files = read_folder(root, allow_all_images=False, on_fault=faults.append).file
    return files.tolist(), faults


def test_a_folder_lists_what_can_be_read_and_counts_the_rest(folder: Path) -> None:
    assert faults_of(folder) == (sorted(READ), [])
    for name in ('x.gif', 'y.GIF'):
        Image.fromarray(pixels()).save(folder / name)
    Image.fromarray(pixels()).save(folder / 'z.jp2', 'JPEG2000')
    for name, text in (('LICENSE', 'BMJ, free'), ('notes.txt', ''), ('table.csv', 'a,b')):
        (folder / name).write_text(text)
    (folder / 'a.png.bak').write_bytes((folder / 'a.png').read_bytes())
    (folder / 'b.JPG~').write_bytes((folder / 'b.JPG').read_bytes())
    files, (fault,) = faults_of(folder)
    assert files == sorted(READ)
    assert (fault.kind, fault.severity) == ('files that are not read', 'warning')
    assert '6 of 14 files' in fault.detail and '.gif 2, no suffix 1, .bak 1' in fault.detail


def test_dicom_files_have_any_suffix_or_none(tmp_path: Path) -> None:
    """DICOMDIR, which lists the files of a CD, contains no image."""
    names = ['1.2.840.1.7', '2.ima', '3.dcm', 'IM0001', 'named.png']
    for seed, name in enumerate(names):
        write_dicom(tmp_path / name, pixels(seed))
    write_dicom(tmp_path / 'DICOMDIR', pixels())
    images = Folder(tmp_path)
    assert images.below() == names
    for seed, name in enumerate(names):
        image = images.reader([name])(0)
        np.testing.assert_array_equal(image, pixels(seed))
        assert images.colour_levels(name, image) == 0


def test_webp_is_decoded_as_pillow_does_or_refused(tmp_path: Path) -> None:
    file = tmp_path / 'x.webp'
    Image.fromarray(pixels()).save(file, lossless=True)
    np.testing.assert_array_equal(load_image(file), pixels())
    assert colour_difference(file.read_bytes()) == 0
    with pytest.raises(BadImageError, match='it is a WebP that is damaged'):
        decode_image(file.read_bytes()[:-200], file)
    frames = [Image.fromarray(pixels(seed)) for seed in range(2)]
    frames[0].save(file, save_all=True, append_images=frames[1:])
    with pytest.raises(BadImageError, match='several images'):
        load_image(file)


def test_links_pipes_and_hidden_files_are_no_images(folder: Path) -> None:
    (folder / '.hidden').write_bytes((folder / 'a.png').read_bytes())
    (folder / 'link').symlink_to(folder / 'a.png')
    (folder / 'unreadable').symlink_to('/dev/null')
    (folder / 'truncated').write_bytes((folder / 'a.png').read_bytes()[:9])
    files, faults = faults_of(folder)
    assert files == sorted(READ)
    assert [fault.file for fault in faults] == ['truncated']
