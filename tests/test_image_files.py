"""Files of every kind: which grey levels they give, and which are refused."""

import re
import struct
import zlib

import numpy as np
import pytest
from pictures import xray
from PIL import Image

from data.images import decode, load_image


def save(image: Image.Image, path, **options) -> np.ndarray:
    """Write the image, decode the file, give its pixels."""
    image.save(path, **options)
    return np.asarray(decode(path.read_bytes()))


def test_grey_png_is_unchanged(tmp_path):
    pixels = np.arange(256, dtype=np.uint8).reshape(8, 32)
    got = save(Image.fromarray(pixels), tmp_path / 'x.png')
    assert got.dtype == np.uint8
    assert np.array_equal(got, pixels)


def test_grey_jpeg_is_what_pillow_decodes(tmp_path):
    path = tmp_path / 'x.jpg'
    assert np.array_equal(save(xray(), path), np.asarray(Image.open(path)))


def test_colour_becomes_luma(tmp_path):
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [10, 20, 30]]], np.uint8)
    luma = [round(0.299 * r + 0.587 * g + 0.114 * b) for r, g, b in colours[0].tolist()]
    assert luma == [76, 150, 29, 18]
    assert save(Image.fromarray(colours), tmp_path / 'x.png').tolist() == [luma]


def test_colour_jpeg_of_a_grey_picture_keeps_its_greys(tmp_path):
    got = save(xray().convert('RGB'), tmp_path / 'x.jpg', quality=100, subsampling=0)
    assert got.ndim == 2
    assert np.abs(got.astype(int) - np.asarray(xray())).max() <= 2


def test_palette_is_looked_up(tmp_path):
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), 'L').convert('P')
    image.putpalette([0, 0, 0, 255, 0, 0, 200, 200, 200])
    assert save(image, tmp_path / 'x.png').tolist() == [[0, 76, 200]]
    assert Image.open(tmp_path / 'x.png').mode == 'P'
    got = save(image, tmp_path / 'y.png', transparency=2)
    assert got.tolist() == [[0, 76, 0]]  # a transparent entry lies on black


@pytest.mark.parametrize('mode', ['LA', 'RGBA'])
def test_alpha_lies_on_black(tmp_path, mode):
    grey, alpha = np.array([[200, 200, 200, 90]]), np.array([[255, 128, 0, 51]])
    channels = [grey] * (len(mode) - 1) + [alpha]
    image = Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8), mode)
    # 200 * 128 / 255 = 100.4, 90 * 51 / 255 = 18
    assert save(image, tmp_path / 'x.png').tolist() == [[200, 100, 0, 18]]


def test_one_bit_becomes_black_and_white(tmp_path):
    bits = np.array([[True, False, True]])
    assert save(Image.fromarray(bits), tmp_path / 'x.png').tolist() == [[255, 0, 255]]


@pytest.mark.parametrize('bits', [8, 10, 12, 14, 16])
@pytest.mark.parametrize('suffix', ['png', 'tif'])
def test_16_bit_is_scaled_by_its_true_range(tmp_path, bits, suffix):
    full = 2**bits - 1
    pixels = np.array([[0, 1, full // 3, full]], np.uint16)
    got = save(Image.fromarray(pixels), tmp_path / f'x.{suffix}')
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, pixels * 255.0 / full, rtol=1e-6)


@pytest.mark.parametrize('highest, full', [(255, 255), (256, 1023), (1024, 4095), (40000, 65535)])
def test_true_range_is_the_smallest_that_holds_the_maximum(tmp_path, highest, full):
    got = save(Image.fromarray(np.array([[7, highest]], np.uint16)), tmp_path / 'x.png')
    np.testing.assert_allclose(got, [[7 * 255 / full, highest * 255 / full]], rtol=1e-6)


def test_big_endian_and_32_bit_integers_are_read_alike(tmp_path):
    pixels = np.array([[0, 300, 4000]], np.uint16)
    wanted = pixels * (255 / 4095)
    big = Image.frombytes('I;16B', (3, 1), pixels.astype('>u2').tobytes())
    np.testing.assert_allclose(save(big, tmp_path / 'x.tif'), wanted, rtol=1e-6)
    assert Image.open(tmp_path / 'x.tif').mode == 'I;16B'
    whole = Image.fromarray(pixels.astype(np.int32))
    np.testing.assert_allclose(save(whole, tmp_path / 'y.tif'), wanted, rtol=1e-6)
    assert Image.open(tmp_path / 'y.tif').mode == 'I'


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
@pytest.mark.parametrize('orientation, turn', [(3, 2), (6, -1), (8, 1)])
def test_exif_rotation_is_undone(tmp_path, dtype, orientation, turn):
    pixels = (np.arange(12).reshape(3, 4) * 23).astype(dtype)
    exif = Image.Exif()
    exif[0x0112] = orientation
    got = save(Image.fromarray(pixels), tmp_path / 'x.png', exif=exif)
    np.testing.assert_allclose(got, np.rot90(pixels, turn), rtol=1e-6)


def test_missing_image_names_the_path(tmp_path):
    with pytest.raises(ValueError, match=re.escape(f'there is no image {tmp_path / "no.png"}')):
        load_image(tmp_path / 'no.png')


@pytest.mark.parametrize(
    'content, reason',
    [
        (b'', 'cannot identify'),
        (b'no picture at all', 'cannot identify'),
        (None, 'truncated'),
    ],
)
def test_unreadable_image_names_path_and_reason(tmp_path, content, reason):
    path = tmp_path / 'bad.png'
    xray().save(path)
    path.write_bytes(path.read_bytes()[:2000] if content is None else content)
    with pytest.raises(
        ValueError, match=f'image {re.escape(str(path))} cannot be read: .*{reason}'
    ):
        load_image(path)


@pytest.mark.filterwarnings('ignore:Corrupt EXIF data')
def test_every_cut_of_a_file_is_a_value_error(tmp_path):
    for suffix in ('png', 'jpg', 'tif'):
        path = tmp_path / f'x.{suffix}'
        xray(20, 20).save(path)
        whole = path.read_bytes()
        for length in range(0, len(whole) // 2, 7):
            path.write_bytes(whole[:length])
            with pytest.raises(ValueError, match='cannot be read'):
                load_image(path)


def test_other_pixels_are_refused(tmp_path):
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / 'x.tif')
    with pytest.raises(ValueError, match=r"x\.tif cannot be read: pixels of mode 'F' are neither"):
        load_image(tmp_path / 'x.tif')
    Image.fromarray(np.array([[-5, 9]], np.int32)).save(tmp_path / 'y.tif')
    with pytest.raises(ValueError, match='pixels from -5 to 9 are outside the 16-bit range'):
        load_image(tmp_path / 'y.tif')


def _png_chunk(name: bytes, content: bytes) -> bytes:
    checksum = struct.pack('>I', zlib.crc32(name + content))
    return struct.pack('>I', len(content)) + name + content + checksum


@pytest.mark.parametrize('colour_type, channels', [(2, 3), (4, 2), (6, 4)])
def test_16_bit_colour_or_alpha_is_refused_rather_than_truncated(tmp_path, colour_type, channels):
    header = struct.pack('>IIBBBBB', 2, 1, 16, colour_type, 0, 0, 0)
    pixels = b'\0' + np.full((2, channels), 4000, '>u2').tobytes()
    chunks = [(b'IHDR', header), (b'IDAT', zlib.compress(pixels)), (b'IEND', b'')]
    path = tmp_path / 'x.png'
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + b''.join(_png_chunk(*chunk) for chunk in chunks))
    assert Image.open(path).getpixel((0, 0))[0] == 4000 // 256  # what Pillow alone makes of it
    with pytest.raises(ValueError, match='16-bit colour or alpha would be cut to 8 bits'):
        load_image(path)
