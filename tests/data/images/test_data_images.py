"""Image files: which grey levels they give, and which are refused."""

import errno
import gzip
import os
import re
import struct
import zlib
from contextlib import nullcontext
from io import BytesIO
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
from PIL import Image
from xray_splits import xray

from data.describe.check import look_at
from data.images import files as images
from data.images.files import BadImageError, decode_image, grey_levels, load_image, read_patiently
from data.images.image_source import Folder


def quarter_turn() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


GREY = xray(61, 75)
DEEP = Image.fromarray(np.asarray(GREY).astype(np.uint16) * 250 + 3)  # 16 bits
KINDS = {
    'JPEG': (GREY, {}),
    'JPEG progressive': (GREY, {'progressive': True}),
    'JPEG with restarts': (GREY, {'restart_marker_rows': 1, 'optimize': True}),
    'JPEG rotated': (GREY, {'exif': quarter_turn()}),
    'PNG': (GREY, {}),
    'PNG with resolution': (GREY, {'dpi': (72, 72), 'compress_level': 1}),
    'PNG of 16 bits': (DEEP, {}),
    'PNG in colour': (GREY.convert('RGB'), {}),
    'PNG with transparency': (GREY, {'transparency': 7}),
    'PNG rotated': (GREY, {'exif': quarter_turn()}),
}


def encode(image: Image.Image, kind: str, **options) -> bytes:
    file = BytesIO()
    image.save(file, kind.split()[0], **options)
    return file.getvalue()


def pixels_of(pixels: np.ndarray, **options) -> np.ndarray:
    """Decode a PNG of the pixels, which are repeated because small images are refused."""
    repeats = (20, 20, *[1] * (pixels.ndim - 2))
    data = encode(Image.fromarray(np.tile(pixels, repeats)), 'PNG', **options)
    decoded = np.asarray(decode_image(data, 'x.png'))
    return decoded[: len(decoded) // 20, : decoded.shape[1] // 20]


def outcome(data: bytes) -> tuple[str, bytes]:
    """What becomes of a file: mode, size and pixels, or the type of the error."""
    try:
        image = decode_image(data, 'x.png')
    except Exception as error:
        return type(error).__name__, b''
    return f'{image.mode} {image.size}', image.tobytes()


PNG = encode(GREY, 'PNG')


@pytest.mark.parametrize('kind', KINDS)
def test_without_the_fast_decoder_the_image_is_the_same(kind, monkeypatch):
    image, options = KINDS[kind]
    data = encode(image, kind, **options)
    usual = outcome(data)
    monkeypatch.setattr(images, '_decode_plain', lambda *_: None)
    assert outcome(data) == usual
    assert usual[0].startswith('F' if image is DEEP else 'L')


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('kind', ['JPEG', *(kind for kind in KINDS if kind.startswith('PNG'))])
def test_damaged_files_are_read_or_refused_as_by_pillow(kind, monkeypatch):
    image, options = KINDS[kind]
    whole, rng = encode(image.crop((0, 0, 30, 20)), kind, **options), np.random.default_rng(0)
    damaged = [whole[:length] for length in range(0, len(whole), 9)]
    for place, value in rng.integers([0, 0], [len(whole), 256], (200, 2)).tolist():
        damaged.append(whole[:place] + bytes([value]) + whole[place + 1 :])
    got = [outcome(data) for data in damaged]
    monkeypatch.setattr(images, '_decode_plain', lambda *_: None)
    assert got == [outcome(data) for data in damaged]
    changed = [each for each in got if each[1] and each != outcome(whole)]
    assert len(changed) > 1 if kind == 'JPEG' else not changed  # PNG has checksums


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize(
    ('image', 'options'),
    [(GREY, {}), (GREY.convert('RGB'), {}), (GREY, {'exif': quarter_turn()})],
    ids=['grey', 'colour', 'rotated'],
)
def test_jpegs_with_damage_of_which_libjpeg_warns_are_refused(image, options):
    whole = encode(image, 'JPEG', **options)
    assert outcome(whole)[1]
    pixels = whole.index(b'\xff\xda') + 16
    middle, end = (pixels + len(whole)) // 2, whole[-2:]
    for damaged in (whole[:middle] + end, whole[:-2] + whole[pixels:middle] + end):
        assert outcome(damaged) == ('BadImageError', b'')


def test_colour_becomes_luma():
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [10, 20, 30]]], np.uint8)
    luma = [round(0.299 * r + 0.587 * g + 0.114 * b) for r, g, b in colours[0].tolist()]
    assert pixels_of(colours).tolist() == [luma]


def test_transparency_is_put_on_black():
    grey, alpha = np.array([[200, 200, 200, 90]]), np.array([[255, 128, 0, 51]])
    pixels = np.stack([grey, grey, grey, alpha], axis=-1).astype(np.uint8)
    # 200 * 128 / 255 = 100.4, 90 * 51 / 255 = 18
    assert pixels_of(pixels).tolist() == [[200, 100, 0, 18]]


@pytest.mark.parametrize('highest, full', [(255, 255), (1024, 4095), (40000, 65535)])
def test_16_bit_images_are_scaled_by_the_smallest_range_that_holds_them(highest, full):
    pixels = np.array([[0, 7, highest]], np.uint16)
    got = pixels_of(pixels)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, pixels * 255.0 / full, rtol=1e-6)


@pytest.mark.parametrize('dtype, orientation, turn', [('u1', 3, 2), ('u1', 6, -1), ('u2', 8, 1)])
def test_exif_rotation_is_applied(dtype, orientation, turn):
    pixels = (np.arange(12).reshape(3, 4) * 23).astype(dtype)
    exif = Image.Exif()
    exif[0x0112] = orientation
    got = pixels_of(pixels, exif=exif)
    np.testing.assert_allclose(got, np.rot90(pixels, turn), rtol=1e-6)


def png(colour_type: int, channels: int, width: int = 75, height: int = 61) -> bytes:
    """A PNG with 12-bit values in 16 bits per channel; larger ones have no pixels."""
    header = struct.pack('>2I5B', width, height, 16, colour_type, 0, 0, 0)
    levels = np.asarray(GREY).astype('>u2')[..., None].repeat(channels, axis=2) * 16
    pixels = b''.join(b'\0' + row.tobytes() for row in levels)
    parts = [
        struct.pack('>I', len(body)) + name + body + struct.pack('>I', zlib.crc32(name + body))
        for name, body in ((b'IHDR', header), (b'IDAT', zlib.compress(pixels)), (b'IEND', b''))
    ]
    return b'\x89PNG\r\n\x1a\n' + b''.join(parts)


BAD = {
    'empty': (b'', 'the format must be .* but the file is empty'),
    'a format that starts a program': (encode(GREY, 'EPS'), 'the format must be'),
    'PNG that is cut off': (PNG[:1500], 'cannot be read'),
    'JPEG that is cut off': (encode(GREY, 'JPEG')[:900], 'truncated'),
    'deflated TIFF that is cut off': (
        encode(GREY, 'TIFF', compression='tiff_adobe_deflate')[:-100],
        'a TIFF that is damaged',
    ),
    'CMYK JPEG': (encode(GREY.convert('CMYK'), 'JPEG'), 'CMYK'),
    'black': (encode(Image.new('L', (75, 61)), 'PNG'), 'all pixels are 0'),
    'one 16-bit level': (
        encode(Image.fromarray(np.full((61, 75), 65535, np.uint16)), 'PNG'),
        'all pixels are 255',
    ),
    'tiny': (encode(xray(61, 15), 'PNG'), '15 x 61'),
    'two images in a TIFF': (
        encode(GREY, 'TIFF', save_all=True, append_images=[GREY]),
        'several images',
    ),
    'floats': (encode(Image.fromarray(np.asarray(GREY, np.float32)), 'TIFF'), "mode 'F'"),
    'a transparent 16-bit level': (encode(DEEP, 'PNG', transparency=3), 'without transparency'),
    '16 bits with 0 as white': (
        encode(DEEP, 'TIFF').replace(
            struct.pack('<HHII', 262, 3, 1, 1), struct.pack('<HHII', 262, 3, 1, 0)
        ),
        '0 as black',
    ),
}
DEEP_COLOUR = {f'PNG of type {kind}': png(kind, count) for kind, count in ((2, 3), (4, 2), (6, 4))}
for count in (3, 4):
    levels = np.asarray(GREY).astype(np.uint16)[..., None].repeat(count, axis=2) * 16
    DEEP_COLOUR[f'TIFF of {count} channels'] = cv2.imencode('.tif', levels)[1].tobytes()
BAD |= {name: (data, '16-bit colour or alpha') for name, data in DEEP_COLOUR.items()}


@pytest.mark.parametrize('kind', BAD)
def test_bad_images_are_refused_with_their_path_and_the_reason(kind, tmp_path):
    path = tmp_path / 'x.png'
    data, reason = BAD[kind]
    path.write_bytes(data)
    with pytest.raises(BadImageError, match=rf'{re.escape(str(path))}.*({reason})'):
        load_image(path)


@pytest.mark.parametrize(
    ('kind', 'data'),
    [
        ('zero bytes', bytes(5000)),
        ('web page', b'\xef\xbb\xbf\r\n <HTML lang="en">'),
        ('web page', b'<!-- saved -->\n<!DOCTYPE html>'),
        ('git lfs pull', b'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n'),
        ('git annex get', b'/annex/objects/MD5E-s9--00.png\n'),
        ('text', 'Zugriff verweigert f\xfcr \u4f60\n'.encode() * 99),
        ('text', '<html>'.encode('utf-16')),
        ('JPEG 2000', encode(GREY, 'JPEG2000')),
        ('NIfTI', bytes(344) + b'n+1\0'),
        ('archive', gzip.compress(PNG, mtime=0)),
        ('JPEG that is damaged', b'\xff\xd8\xff\xf7' + bytes(99)),
    ],
    ids=lambda value: value if isinstance(value, str) else '',
)
def test_what_is_no_image_is_named_by_its_first_bytes(kind, data):
    with pytest.raises(BadImageError, match=rf'x\.png cannot be read: .*{kind}'):
        decode_image(data, 'x.png')


@pytest.mark.parametrize('dtype', ['u8', 'f2', 'f8', 'c8'])
def test_tiffs_of_other_numbers_are_refused(dtype):
    tifffile = pytest.importorskip('tifffile', reason='tifffile is not installed')
    tifffile.imwrite(file := BytesIO(), np.asarray(GREY).astype(dtype), photometric='minisblack')
    with pytest.raises(BadImageError, match='a TIFF .* of a kind that is not read|neither 8-bit'):
        decode_image(file.getvalue(), 'x.tif')


def test_missing_and_unreadable_files_are_not_bad_images(tmp_path):
    for path in (tmp_path / 'no.png', tmp_path / ('x' * 300)):
        with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
            load_image(path)
        assert not isinstance(caught.value, BadImageError)
        assert isinstance(caught.value.__cause__, OSError)


def test_a_file_that_decodes_to_all_memory_is_refused_by_its_header(monkeypatch):
    monkeypatch.setattr(images, '_decode_plain', None)
    with pytest.raises(BadImageError, match='pixels are allowed'):
        decode_image(png(0, 1, 2**13 + 1, 2**13), 'x.png')


@pytest.mark.parametrize(
    ('number', 'failures', 'calls'), [(errno.ESTALE, 2, 3), (errno.EIO, 9, 4), (errno.ENOENT, 9, 1)]
)
def test_a_read_that_fails_for_a_moment_is_repeated(number, failures, calls, monkeypatch) -> None:
    """Three times, and only after errors that a network drive may have for a moment."""
    pauses = []
    monkeypatch.setattr(images.time, 'sleep', pauses.append)
    read = Mock(side_effect=[OSError(number, os.strerror(number))] * failures + ['read'])
    with pytest.raises(OSError) if failures >= calls else nullcontext():
        assert read_patiently(read) == 'read'
    assert read.call_count == calls and pauses == [*images.PAUSES][: calls - 1]


def test_8_bit_pixels_are_unchanged_and_others_are_rounded() -> None:
    eight = grey_levels(GREY)
    assert eight.dtype == np.uint8
    np.testing.assert_array_equal(eight, np.asarray(GREY))
    deep = np.array([[-3, 0.4, 0.6, 1.5, 2.5, 254.6, 300]], np.float32)
    assert grey_levels(Image.fromarray(deep)).tolist() == [[0, 0, 1, 2, 2, 255, 255]]


@pytest.mark.parametrize(('mode', 'reads'), [('L', 1), ('RGB', 2), ('P', 2)])
def test_the_check_reads_the_file_of_a_grey_image_once(mode, reads, tmp_path, monkeypatch) -> None:
    """Only the channels of a colour image need a second look at the file."""
    GREY.convert(mode).save(tmp_path / 'x.png')
    read = Mock(side_effect=images.read_file)
    monkeypatch.setattr('data.images.image_source.read_file', read)
    look_at(Folder(tmp_path), 'x.png')
    assert read.call_count == reads
