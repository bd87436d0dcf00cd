"""Files that are no picture to learn from: refused in words, before memory is taken for them."""

import re
import struct
import subprocess
import sys
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from mistakes import config_of, linked, results_in
from pictures import xray
from PIL import Image
from test_bad_data import image_of, replace
from tiny import ROOT, arguments

from data import images
from data.images import decode, is_passing, load_image

GREY = xray(61, 75)
DEEP = np.asarray(GREY).astype(np.uint16) * 250
TOO_MANY = re.escape('its header claims ') + r'.* pixels; 67,108,864 are allowed'
SIDES = 'no side may be under 16, nor more than 10 times the other'
SEVERAL = 'it holds several pictures; write each to a file of its own'
NOT_GREY = "pixels of mode 'F' are neither 8-bit nor 16-bit grey"


def encode(image: Image.Image, kind: str, **options) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def patched(data: bytes, place: int, form: str, *values: int) -> bytes:
    """The file with other numbers at one place."""
    length = struct.calcsize(form)
    return data[:place] + struct.pack(form, *values) + data[place + length :]


def png(width: int, height: int, colour_type: int = 0, bits: int = 8, row: bytes = b'') -> bytes:
    """A PNG with this header and as little else as can be."""
    chunks = [
        (b'IHDR', struct.pack('>2I5B', width, height, bits, colour_type, 0, 0, 0)),
        (b'IDAT', zlib.compress(b'\0' + row)),
        (b'IEND', b''),
    ]
    parts = [
        struct.pack('>I', len(body)) + name + body + struct.pack('>I', zlib.crc32(name + body))
        for name, body in chunks
    ]
    return b'\x89PNG\r\n\x1a\n' + b''.join(parts)


def jpeg(width: int, height: int) -> bytes:
    data = encode(GREY, 'JPEG')
    return patched(data, data.index(b'\xff\xc0') + 5, '>2H', height, width)


def bmp(width: int, height: int) -> bytes:
    return patched(encode(GREY, 'BMP'), 18, '<2i', width, height)


def gif(width: int, height: int) -> bytes:
    return patched(encode(GREY, 'GIF'), 6, '<2H', width, height)


def webp(width: int, height: int) -> bytes:
    data = encode(GREY.convert('RGB'), 'WEBP', lossless=True)
    place = data.index(b'VP8L') + 9
    return patched(data, place, '<I', (width - 1) | (height - 1) << 14)


def tiff(width: int, height: int, *tile: int) -> bytes:
    """One deflated strip, or a tile of this size."""
    pixels = zlib.compress(np.asarray(GREY).tobytes())
    tags = {256: width, 257: height, 258: 8, 259: 8, 262: 1, 277: 1}
    keys = (324, 325) if tile else (273, 279)
    tags |= dict(zip((322, 323), tile, strict=True)) if tile else {278: height}
    tags |= dict(zip(keys, (8, len(pixels)), strict=True))
    entries = b''.join(struct.pack('<2H2I', tag, 4, 1, tags[tag]) for tag in sorted(tags))
    start = struct.pack('<I', 8 + len(pixels))
    return b'II*\0' + start + pixels + struct.pack('<H', len(tags)) + entries + bytes(4)


BOMBS = {
    'PNG': png(60000, 60000),
    'PNG of colours': png(60000, 60000, 2),
    'PNG of 16 bits': png(9000, 9000, bits=16),
    'JPEG': jpeg(65500, 65500),
    'JPEG that Pillow would warn of': jpeg(10000, 10000),
    'TIFF': tiff(60000, 60000),
    'TIFF of a tile': tiff(75, 61, 65520, 32752),
    'BMP': bmp(40000, 40000),
    'GIF': gif(65535, 65535),
    'WebP': webp(16383, 16383),
}
PICTURES = [xray(30, 40, seed=seed).convert('P') for seed in (0, 1)]
SPOILT = {
    'nothing': (b'', 'cannot identify its format'),
    'text': (b'no picture at all', 'cannot identify its format'),
    'a program for the printer': (encode(GREY, 'EPS'), 'cannot identify its format'),
    'PNG that is cut off': (encode(GREY, 'PNG')[:1500], 'truncated'),
    'JPEG that is cut off': (encode(GREY, 'JPEG')[:900], 'truncated'),
    'black': (encode(Image.new('L', (75, 61)), 'PNG'), 'all pixels are 0'),
    'black in colours': (encode(Image.new('RGB', (75, 61)), 'JPEG'), 'all pixels are 0'),
    'white': (encode(Image.new('1', (75, 61), 1), 'PNG'), 'all pixels are 255'),
    'of one deep level': (
        encode(Image.fromarray(np.full((61, 75), 65535, np.uint16)), 'PNG'), 'all pixels are 255'
    ),
    'a line': (encode(xray(1, 10000), 'PNG'), f'it has 10000 x 1 pixels; {SIDES}'),
    'a strip': (encode(xray(161, 16), 'PNG'), f'it has 16 x 161 pixels; {SIDES}'),
    'tiny': (encode(xray(15, 15), 'PNG'), f'it has 15 x 15 pixels; {SIDES}'),
    'GIF of two': (
        encode(PICTURES[0], 'GIF', save_all=True, append_images=PICTURES[1:]), SEVERAL
    ),
    'PNG of two': (encode(GREY, 'PNG', save_all=True, append_images=[xray(61, 75, 1)]), SEVERAL),
    'TIFF of two': (encode(GREY, 'TIFF', save_all=True, append_images=[GREY]), SEVERAL),
    'TIFF of floats': (encode(Image.fromarray(DEEP.astype('f4')), 'TIFF'), NOT_GREY),
    'TIFF of NaN': (encode(Image.fromarray(np.full((61, 75), np.nan, 'f4')), 'TIFF'), NOT_GREY),
    'TIFF of infinities': (
        encode(Image.fromarray(np.full((61, 75), np.inf, 'f4')), 'TIFF'), NOT_GREY
    ),
    '16 bits of colour': (png(20, 1, 2, 16, bytes(range(120))), '16-bit colour or alpha'),
}  # fmt: skip


@pytest.mark.parametrize('kind', SPOILT)
def test_what_is_no_picture_is_refused_in_words(kind, tmp_path):
    data, reason = SPOILT[kind]
    path = tmp_path / 'x.png'
    path.write_bytes(data)
    with pytest.raises(ValueError) as caught:
        load_image(path)
    assert str(caught.value).startswith(f'image {path} cannot be ')
    assert reason in str(caught.value)
    assert not is_passing(caught.value, path)


IN_LITTLE_MEMORY = """
import resource, sys
from data.images import load_image
with open('/proc/self/statm') as file:
    limit = int(file.read().split()[0]) * resource.getpagesize() + 2**28  # 256 MiB more
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for path in sys.argv[1:]:
    try:
        print(path, load_image(path))
    except ValueError as error:
        print(error)
"""


def lines_in_little_memory(*paths: Path) -> list[str]:
    """What another process that may take 256 MiB says of these files, a line each."""
    command = [sys.executable, '-W', 'ignore', '-c', IN_LITTLE_MEMORY, *map(str, paths)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.mark.skipif(sys.platform != 'linux', reason='limits its memory as Linux does')
def test_what_claims_a_gigantic_size_takes_no_memory(tmp_path):
    paths = [tmp_path / f'{kind}.png' for kind in BOMBS]
    for path, data in zip(paths, BOMBS.values(), strict=True):
        path.write_bytes(data)
        assert len(data) < 10000
    refused = f'image {{}} cannot be read: (its header claims more than 67,108,864|{TOO_MANY})'
    for path, line in zip(paths, lines_in_little_memory(*paths), strict=True):
        assert re.fullmatch(refused.format(re.escape(str(path))) + '.*', line), line


@pytest.mark.parametrize(
    'kind', ['PNG', 'PNG of 16 bits', 'JPEG', 'JPEG that Pillow would warn of']
)
def test_the_quick_decoder_is_not_asked_for_a_gigantic_size(kind):
    assert images._decode_plain(BOMBS[kind]) is None


GUARDED_DICOM = {
    'gigantic': ({'Rows': 60000, 'Columns': 60000}, '60000 rows x 60000 columns are not'),
    'several': ({'NumberOfFrames': 2}, 'it holds 2 frames; write each to a file of its own'),
    'black': ({'WindowCenter': 5000, 'WindowWidth': 9}, 'cannot be used: all pixels are 0'),
    'strip': ({'Rows': 15}, 'cannot be used: it has 75 x 15 pixels'),
}


@pytest.mark.parametrize('kind', GUARDED_DICOM)
def test_dicom_files_have_the_same_guards(kind, tmp_path):
    pytest.importorskip('pydicom', minversion='3.0')
    from dicom_files import write

    tags, reason = GUARDED_DICOM[kind]
    pixels = np.asarray(GREY)[: tags.get('Rows') if kind == 'strip' else None]
    path = write(tmp_path / 'x.dcm', pixels, **tags)
    with pytest.raises(ValueError, match=reason):
        load_image(path)


# What is read as before


@pytest.mark.parametrize('kind', ['PNG', 'TIFF', 'BMP', 'GIF', 'PPM', 'WEBP', 'JPEG2000'])
def test_the_contents_decide_what_a_file_is(kind, tmp_path):
    path = tmp_path / 'x.jpg'
    options = {'lossless': True} if kind == 'WEBP' else {}
    path.write_bytes(encode(GREY, kind, **options))
    assert np.array_equal(np.asarray(load_image(path)), np.asarray(GREY))


@pytest.mark.parametrize('mode', ['1', 'CMYK', 'P', 'RGBA'])
def test_other_pixels_are_converted(mode, tmp_path):
    image = GREY.convert(mode)
    path = tmp_path / 'x.tif'
    image.save(path)
    assert load_image(path).mode == 'L'
    assert np.array_equal(np.asarray(load_image(path)), np.asarray(image.convert('L')))


@pytest.mark.parametrize('height, width', [(16, 16), (16, 160), (160, 16)])
def test_the_smallest_pictures_and_the_longest(height, width, tmp_path):
    xray(height, width).save(tmp_path / 'x.png')
    assert load_image(tmp_path / 'x.png').size == (width, height)


@pytest.mark.parametrize('place', [(0, 0), (17, 40), (60, 74)])
def test_one_pixel_makes_a_picture(place, tmp_path):
    for dtype in (np.uint8, np.uint16):
        pixels = np.full((61, 75), 7, dtype)
        pixels[place] = 8
        Image.fromarray(pixels).save(tmp_path / 'x.png')
        assert len(np.unique(np.asarray(load_image(tmp_path / 'x.png')))) == 2


def test_as_many_pixels_as_are_allowed(monkeypatch):
    for kind in ('PNG', 'TIFF', 'BMP'):
        monkeypatch.setattr(images, 'MAX_PIXELS', 61 * 75)
        assert decode(encode(GREY, kind)).size == (75, 61)
        monkeypatch.setattr(images, 'MAX_PIXELS', 61 * 75 - 1)
        with pytest.raises(ValueError, match='its header claims 75 x 61 pixels; 4,574 are allowed'):
            decode(encode(GREY, kind))


# What a run says


@pytest.mark.parametrize(
    'kind, workers',
    [
        ('black', 0),
        ('a line', 0),
        ('GIF of two', 0),
        ('PNG', 0),
        ('TIFF of a tile', 0),
        ('black', 1),
    ],
)
def test_a_run_names_file_and_row(kind, workers, eight, tmp_path, refused):
    data = linked(eight, tmp_path / 'data')
    image = image_of(data, row=6)
    replace(image, BOMBS[kind] if kind in BOMBS else SPOILT[kind][0])
    place = f'{data / "train.csv"}, row 6 (the header is row 1): image {image} cannot be '
    reason = 'its header claims' if kind in BOMBS else SPOILT[kind][1]
    argv = arguments(config_of(tmp_path, 'simmim', NUM_WORKERS=workers), data, tmp_path / 'out')
    refused('simmim', argv, place, reason, 'DATA.BAD_IMAGE skip', 'scripts/check_data.py')
    assert not results_in(tmp_path / 'out')
