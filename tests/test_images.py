"""Decoders and readers: the quick ways give what Pillow gives, of files and of stores."""

import pickle
import re
import struct
import sys
import zlib
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
from pictures import xray
from PIL import Image

from data import images
from data.images import decode, load_image
from data.loader import XrayDataset, image_reader
from data.records import read_folder

GREY = xray(61, 75)
DEEP = Image.fromarray(np.asarray(GREY).astype(np.uint16) * 250 + 3)  # 16 bits
PLAIN = {
    'JPEG': (GREY, {}),
    'JPEG progressive': (GREY, {'progressive': True}),
    'JPEG with restarts': (GREY, {'restart_marker_rows': 1, 'optimize': True}),
    'JPEG with comment': (GREY, {'comment': b'made up', 'quality': 100}),
    'JPEG of a pixel': (xray(1, 1), {}),
    'PNG': (GREY, {}),
    'PNG with resolution': (GREY, {'dpi': (72, 72), 'compress_level': 1}),
    'PNG of a column': (xray(9, 1), {'optimize': True}),
    'PNG of 16 bits': (DEEP, {}),
}


@pytest.fixture
def quick() -> None:
    if images.decode_image_png_u8 is None:
        pytest.skip('kornia-rs is not installed: Pillow reads all')


def encode(image: Image.Image, kind: str, **options) -> bytes:
    file = BytesIO()
    image.save(file, kind.split()[0], **options)
    return file.getvalue()


def by_pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(data)))


def outcome(data: bytes) -> tuple[str, bytes]:
    """What `decode` makes of a file, or the kind of its refusal."""
    try:
        image = decode(data)
    except Exception as error:
        return type(error).__name__, b''
    return f'{image.mode} {image.size}', image.tobytes()


def with_chunk(png: bytes, name: bytes, content: bytes) -> bytes:
    """The PNG with one more chunk after its header."""
    checksum = struct.pack('>I', zlib.crc32(name + content))
    return png[:33] + struct.pack('>I', len(content)) + name + content + checksum + png[33:]


# Decoding


@pytest.mark.parametrize('kind', PLAIN)
def test_plain_grey_is_decoded_quickly_and_as_pillow_does(kind, quick):
    image, options = PLAIN[kind]
    data = encode(image, kind, **options)
    pixels, wanted = images._decode_plain(data), by_pillow(data)
    assert pixels is not None
    assert pixels.dtype == wanted.dtype
    assert np.array_equal(pixels, wanted)


@pytest.mark.parametrize('kind', PLAIN)
def test_without_the_quick_decoder_it_is_the_same_image(kind, monkeypatch):
    image, options = PLAIN[kind]
    data = encode(image, kind, **options)
    usual = outcome(data)
    monkeypatch.setattr(images, 'decode_image_png_u8', None)
    assert outcome(data) == usual
    assert usual[0] == f'{"F" if image is DEEP else "L"} {image.size}'


def rotated() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter to the right
    return exif


def interlaced() -> bytes:
    """A PNG of a pixel: its one pass is the same as without interlacing."""
    png = encode(xray(1, 1), 'PNG')
    header = png[12:28] + b'\1'
    return png[:12] + header + struct.pack('>I', zlib.crc32(header)) + png[33:]


def animation(pictures: int) -> bytes:
    """A PNG that announces so many pictures, and has the first."""
    first = with_chunk(PNG, b'fcTL', struct.pack('>5I2H2B', 0, *GREY.size, 0, 0, 0, 0, 0, 0))
    return with_chunk(first, b'acTL', struct.pack('>II', pictures, 0))


PNG = encode(GREY, 'PNG')
OTHERS = {
    'colour JPEG': encode(GREY.convert('RGB'), 'JPEG'),
    'CMYK JPEG': encode(GREY.convert('CMYK'), 'JPEG'),
    'rotated JPEG': encode(GREY, 'JPEG', exif=rotated()),
    'profile in a JPEG': encode(GREY, 'JPEG', icc_profile=b'a profile'),
    'colour PNG': encode(GREY.convert('RGB'), 'PNG'),
    'palette': encode(GREY.convert('P'), 'PNG'),
    'alpha': encode(GREY.convert('LA'), 'PNG'),
    'bits': encode(GREY.convert('1'), 'PNG'),
    'transparent grey': encode(GREY, 'PNG', transparency=7),
    'rotated PNG': encode(GREY, 'PNG', exif=rotated()),
    'rotated by a text': with_chunk(
        PNG, b'tEXt', b'XML:com.adobe.xmp\0<x tiff:Orientation="6"/>'
    ),
    'interlaced': interlaced(),
    'animation of one picture': animation(1),
    'TIFF': encode(GREY, 'TIFF'),
    'BMP': encode(GREY, 'BMP'),
}  # fmt: skip


@pytest.mark.parametrize('kind', OTHERS)
def test_whatever_is_not_plain_is_left_to_pillow(kind):
    assert images._decode_plain(OTHERS[kind]) is None
    assert decode(OTHERS[kind]).mode == 'L'


@pytest.mark.parametrize('kind', ['JPEG', 'PNG'])
def test_rotation_is_undone(kind):
    upright, turned = decode(encode(GREY, kind)), decode(OTHERS[f'rotated {kind}'])
    assert np.array_equal(np.asarray(turned), np.rot90(np.asarray(upright), -1))


def test_a_plain_text_does_not_slow_a_png_down(quick):
    data = with_chunk(PNG, b'tEXt', b'Software\0a scanner')
    assert np.array_equal(images._decode_plain(data), np.asarray(GREY))


def test_images_of_too_many_pixels_are_left_to_pillow(monkeypatch):
    for kind in ('JPEG', 'PNG'):
        data = encode(GREY, kind)
        monkeypatch.setattr(images, 'MAX_PIXELS', GREY.width * GREY.height)
        decode(data)
        monkeypatch.setattr(images, 'MAX_PIXELS', GREY.width * GREY.height - 1)
        assert images._decode_plain(data) is None
        with pytest.raises(ValueError, match='claims 75 x 61 pixels; 4,574 are allowed'):
            decode(data)


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('kind', ['JPEG', 'JPEG progressive', 'PNG', 'PNG of 16 bits'])
def test_spoilt_files_are_read_or_refused_as_pillow_does(kind, quick, monkeypatch):
    image, options = PLAIN[kind]
    whole, rng = encode(image.crop((0, 0, 30, 20)), kind, **options), np.random.default_rng(0)
    spoilt = [whole[:length] for length in range(0, len(whole), 9)]
    for place, value in rng.integers([0, 0], [len(whole), 256], (400, 2)).tolist():
        spoilt.append(whole[:place] + bytes([value]) + whole[place + 1 :])
    got = [outcome(data) for data in spoilt]
    monkeypatch.setattr(images, 'decode_image_png_u8', None)
    assert got == [outcome(data) for data in spoilt]
    assert 5 < sum(bool(pixels) for _, pixels in got) < 400


def test_real_x_rays_are_those_of_pillow(nih1000):
    for file in sorted(nih1000.rglob('*.png'))[::50]:
        assert np.array_equal(np.asarray(load_image(file)), np.asarray(Image.open(file)))


# Files


def test_an_unknown_format_is_named_by_its_path_alone(tmp_path):
    path = tmp_path / 'x.png'
    path.write_bytes(b'no picture')
    with pytest.raises(ValueError) as caught:
        load_image(path)
    assert str(caught.value) == f'image {path} cannot be read: cannot identify its format'


def test_a_folder_is_no_image(tmp_path):
    with pytest.raises(ValueError, match=f'image {re.escape(str(tmp_path))} cannot be read'):
        load_image(tmp_path)


@pytest.mark.parametrize('name', ['x.dcm', 'X.DCM'])
def test_dicom_has_a_reader_of_its_own(name, tmp_path, monkeypatch):
    given = {tmp_path / name: GREY}
    monkeypatch.setitem(sys.modules, 'data.dicom', SimpleNamespace(read_dicom=given.get))
    assert load_image(tmp_path / name) is GREY


# Records


@pytest.fixture
def records(tmp_path):
    for number in range(3):
        xray(20, 30, seed=number).save(tmp_path / f'{number}.png')
    return read_folder(tmp_path, allow_all_images=False)


def test_reader_gives_the_file_of_a_position(records):
    read = image_reader(records.select(np.array([2, 0])))
    assert [np.asarray(read(position)).tolist() for position in range(2)] == [
        np.asarray(xray(20, 30, seed=number)).tolist() for number in (2, 0)
    ]


def test_reader_survives_pickling(records):
    read = pickle.loads(pickle.dumps(image_reader(records)))
    assert read(1).tobytes() == xray(20, 30, seed=1).tobytes()


def test_reader_names_a_missing_file(records):
    (records.root / '1.png').unlink()
    missing = re.escape(f'there is no image {records.root / "1.png"}')
    with pytest.raises(ValueError, match=missing):
        image_reader(records)(1)


class FakeStore:
    """Three pictures in another order than the records'."""

    files = ('1.png', '2.png', '0.png')

    def position(self, files) -> np.ndarray:
        return np.array([self.files.index(file) for file in files])

    def image(self, position: int) -> Image.Image:
        assert type(position) is int
        return Image.new('L', (4, 4), int(self.files[position][0]))


@pytest.fixture
def stored(records, monkeypatch):
    """The records, read from a store; their files are gone."""
    packed = SimpleNamespace(
        is_store=lambda root: root == records.root, open_store=lambda root: FakeStore()
    )
    monkeypatch.setitem(sys.modules, 'data.packed', packed)
    for file in records.file:
        (records.root / file).unlink()
    return records


def test_reader_of_a_store_looks_up_the_file(stored):
    read = image_reader(stored.select(np.array([2, 0, 1])))
    assert [read(position).getpixel((0, 0)) for position in range(3)] == [2, 0, 1]


def test_dataset_reads_a_store(stored):
    dataset = XrayDataset(stored, lambda image, rng: image.getpixel((0, 0)), seed=0)
    assert [dataset[0, index] for index in (1, 2, 0)] == [1, 2, 0]
