"""DICOM files: grey levels by the formulas of the standard and by pydicom's chain; errors."""

import io
import sys
import traceback
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.describe.check import look_at
from data.images import dicom
from data.images.dicom import read_dicom
from data.images.files import BadImageError, load_image
from data.images.image_source import Folder
from data.images.noted_images import COLOURED, NotedImages, describe_notes

pydicom = pytest.importorskip('pydicom', minversion='3.0', reason='pydicom is not installed')

from dicom_files import jpeg, table, write  # noqa: E402
from pydicom import uid  # noqa: E402
from pydicom.pixels import apply_modality_lut, apply_voi_lut  # noqa: E402
from pydicom.pixels.decoders.base import Decoder  # noqa: E402

BUNDLED = Path(pydicom.__file__).parent / 'data'
RAMP = np.arange(256, dtype=np.uint8).reshape(8, 32)
SQUARE = np.tile(RAMP, (8, 2))  # JPEG 2000 refuses to halve 8 rows five times
RAMP_12 = np.arange(4096, dtype=np.uint16).reshape(64, 64)
WINDOW = {'WindowCenter': 2000, 'WindowWidth': 1500}
WINDOW_8 = {'WindowCenter': 100, 'WindowWidth': 150}
RESCALED = {'RescaleSlope': '0.5', 'RescaleIntercept': '-100'}
INVERTED = {'PhotometricInterpretation': 'MONOCHROME1'}
CHAINS = [
    WINDOW,
    {'WindowCenter': -300, 'WindowWidth': 999, 'VOILUTFunction': 'LINEAR_EXACT'},
    {'WindowCenter': 300, 'WindowWidth': 999, 'VOILUTFunction': 'SIGMOID'},
    {'WindowCenter': [1000, 10], 'WindowWidth': [1500, 20]},
    {'WindowCenter': -900, 'WindowWidth': 700.5, 'RescaleSlope': -0.5, 'RescaleIntercept': 0},
    {'WindowCenter': 700, 'WindowWidth': 900} | RESCALED | INVERTED,
    {'RescaleSlope': -0.5, 'RescaleIntercept': 0},  # the highest stored value is black
]
NATIVE = 'ImplicitVRLittleEndian', 'ExplicitVRBigEndian', 'DeflatedExplicitVRLittleEndian'
SECRET = 'ZYXWVU'
IDENTITY = dict.fromkeys(['PatientID', 'PatientComments', 'AccessionNumber', 'StudyID'], SECRET)
IDENTITY |= {'PatientName': f'{SECRET}^JANE', 'WindowCenterWidthExplanation': SECRET}


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / 'x.dcm'


def levels(path: Path) -> np.ndarray:
    image = read_dicom(path.read_bytes())
    assert image.info == {}
    return np.asarray(image)


def refusal(path: Path) -> str:
    with pytest.raises(BadImageError, match=str(path)) as caught:
        load_image(path)
    assert 'Error' not in str(caught.value)
    return str(caught.value)


def viewed(path) -> np.ndarray:
    """Grey levels by pydicom's functions on all pixels, for files without tables and padding."""
    dataset = pydicom.dcmread(path)
    half = 2 ** (dataset.BitsStored - 1)
    limits = np.array([-half, half - 1] if dataset.PixelRepresentation else [0, 2 * half - 1])
    values = apply_modality_lut(dataset.pixel_array, dataset)
    black, white = apply_modality_lut(limits, dataset)
    shown = apply_voi_lut(values, dataset)
    if 'WindowCenter' not in dataset:
        black, white = min(black, white), max(black, white)
    grey = (shown - black) / (white - black) * 255
    return 255 - grey if dataset.PhotometricInterpretation == 'MONOCHROME1' else grey


def test_8_bits_are_unchanged_or_inverted(path):
    got = levels(write(path, RAMP, PixelAspectRatio=[2, 1]))
    assert got.dtype == np.uint8
    assert np.array_equal(got, RAMP)
    assert np.array_equal(levels(write(path, RAMP, **INVERTED)), 255 - RAMP)
    write(path, RAMP, WindowCenter=100, WindowWidth=1, **INVERTED)  # without: up to 99.5 is black
    assert np.array_equal(levels(path), np.where(RAMP > 99, 0, 255))


@pytest.mark.parametrize('bits', [10, 12])
def test_without_a_window_the_range_is_that_of_the_stored_bits(path, bits):
    pixels = np.array([[0, 1, 100, 2**bits - 1]], np.uint16)
    got = levels(write(path, pixels, bits))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, pixels * 255.0 / (2**bits - 1), rtol=1e-6)
    assert np.array_equal(levels(write(path, pixels[:, :3], bits)), got[:, :3])  # not by maximum


@pytest.mark.parametrize('highest, full', [(255, 255), (1024, 4095), (40000, 65535)])
def test_16_stored_bits_are_scaled_by_the_smallest_range_that_holds_them(path, highest, full):
    pixels = np.array([[0, 7, highest // 3, highest]], np.uint16)
    np.testing.assert_allclose(levels(write(path, pixels, 16)), pixels * 255.0 / full, rtol=1e-6)
    pixels = np.array([[-2049, 0, 400]], np.int16)
    signed = levels(write(path, pixels, 16))
    np.testing.assert_allclose(signed, (pixels + 8192.0) * 255 / 16383, rtol=1e-6)


@pytest.mark.parametrize('signed', [False, True])
@pytest.mark.parametrize('tags', CHAINS)
def test_grey_levels_are_those_of_pydicoms_own_chain(path, tags, signed):
    write(path, (RAMP_12.astype(np.int16) - 2048) if signed else RAMP_12, 12, **tags)
    got = levels(path)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, viewed(path), atol=1e-4)


@pytest.mark.parametrize('first', [0, 100])
@pytest.mark.parametrize('bits, packed', [(8, True), (12, False)])
def test_voi_table_is_looked_up(path, first, bits, packed):
    entries = np.linspace(2**bits - 1, 0, 3000).astype(int)
    data = entries.astype(np.uint8).tobytes() if packed else entries.tolist()
    tags = {'VOILUTSequence': table(3000, first, bits, data)} | WINDOW  # which it goes before
    got = levels(write(path, RAMP_12, 12, **tags))
    assert got.dtype == (np.uint8 if bits == 8 else np.float32)
    expected = [entries[min(max(value - first, 0), 2999)] for value in range(4096)]
    np.testing.assert_allclose(got.ravel(), np.array(expected) * 255 / (2**bits - 1), rtol=1e-6)


def test_modality_table_comes_before_the_window(path):
    modality = {'ModalityLUTSequence': table(256, 0, 10, list(range(1020, -1, -4)))}
    got = levels(write(path, RAMP, WindowCenter=512, WindowWidth=1024, **modality))
    np.testing.assert_allclose(got, (1020.0 - 4.0 * RAMP) * 255 / 1023, atol=1e-4)
    plain = levels(write(path, RAMP, **RESCALED, **modality))  # and goes before a rescaling
    np.testing.assert_allclose(plain, got, atol=1e-4)  # its range is that of the table's bits


@pytest.mark.parametrize(
    ('tags', 'word'),
    [
        ({'PresentationLUTShape': 'INVERSE'}, 'INVERSE'),
        (INVERTED | {'PresentationLUTShape': 'INVERSE'}, ''),
        ({'BodyPartExamined': 'EXTREMITY'}, 'BodyPartExamined'),
        ({'BodyPartExamined': 'PORT CHEST'}, ''),
    ],
)
def test_headers_that_do_not_fit_are_noted_with_the_name(path, tags, word):
    write(path, SQUARE, **tags)
    _, kind, detail, _ = look_at(Folder(path.parent), path.name)
    assert (kind == 'contradictory header') == bool(word) and word in detail
    images = NotedImages(Folder(path.parent), [path.name], lambda *_: 0, skip_bad=False)
    warnings = [*describe_notes([images[0][1]], [path.name])]  # as predict.py and features.py
    assert len(warnings) == bool(word) and all(path.name in line for line in warnings)


def test_padding_is_black_and_no_part_of_the_range(path):
    pixels = np.array([[0, 5, 800, 60000, 65535]], np.uint16)
    padding = {'PixelPaddingValue': 65535, 'PixelPaddingRangeLimit': 60000}
    got = levels(write(path, pixels, 16, **padding))
    np.testing.assert_allclose(got, np.array([[0, 5, 800, 0, 0]]) * 255 / 1023, rtol=1e-6)
    got = levels(write(path, pixels, 16, **padding, **INVERTED))
    np.testing.assert_allclose(got[0], np.array([1023, 1018, 223, 0, 0]) * 255 / 1023, rtol=1e-6)
    assert not levels(write(path, pixels[:, 4:], 16, **padding, **INVERTED)).any()
    pixels = np.array([[0, 4095, 65535]], np.uint16)  # whose lowest 12 bits are those of 4095
    assert levels(write(path, pixels, 12, PixelPaddingValue=65535)).tolist() == [[0, 255, 0]]


@pytest.mark.parametrize('pixels, bits', [(SQUARE, 8), (RAMP_12, 12), (RAMP_12.view('i2') - 9, 13)])
@pytest.mark.parametrize('syntax', [*NATIVE, 'RLELossless', 'JPEG2000Lossless'])
def test_transfer_syntaxes_give_the_same_image(path, syntax, pixels, bits):
    expected = levels(write(path, pixels, bits))
    if syntax in NATIVE:
        write(path, pixels, bits, syntax=syntax)
    else:
        if syntax == 'JPEG2000Lossless':
            pytest.importorskip('openjpeg', reason='pylibjpeg-openjpeg is not installed')
        dataset = pydicom.dcmread(path)
        dataset.compress(getattr(uid, syntax))
        dataset.save_as(path)
    assert np.array_equal(levels(path), expected)


PICTURE = np.zeros((48, 64, 3), np.uint8)
PICTURE[..., 0], PICTURE[..., 1] = np.arange(64) * 4, np.arange(48)[:, None] * 5
PICTURE[10:20, 10:30] = (200, 30, 40)
JPEGS = {'jfif': {'subsampling': 0}, 'no transform': {'keep_rgb': True}}
RGB = {'SamplesPerPixel': 3, 'PhotometricInterpretation': 'RGB'}


def luma(picture: np.ndarray = PICTURE) -> np.ndarray:
    return picture @ np.array([0.299, 0.587, 0.114])


@pytest.mark.parametrize('planar', [0, 1, None])
@pytest.mark.parametrize('stated', ['RGB', 'YBR_FULL', 'YBR_FULL_422'])
@pytest.mark.parametrize('kind', [*JPEGS, 'JPEG 2000'])
def test_colour_of_the_jpeg_family_is_read_whatever_the_header_says(path, kind, stated, planar):
    """The frames have no planes; PlanarConfiguration 1 gave unrelated pixels (pydicom 3.0.2)."""
    file, syntax = io.BytesIO(), 'JPEGBaseline8Bit'
    if kind == 'JPEG 2000':
        syntax, stated = 'JPEG2000', {'RGB': 'RGB', 'YBR_FULL': 'YBR_ICT'}.get(stated, 'YBR_RCT')
        Image.fromarray(PICTURE).save(file, 'JPEG2000', no_jp2=True)
    else:
        Image.fromarray(PICTURE).save(file, 'JPEG', quality=95, **JPEGS[kind])
    tags = RGB | {'PhotometricInterpretation': stated}
    tags |= {} if planar is None else {'PlanarConfiguration': planar}
    write(path, PICTURE, syntax=syntax, data=[file.getvalue()], **tags)
    got = np.asarray(load_image(path))
    assert np.abs(got - luma()).max() < 6


def test_native_colour_follows_its_planar_configuration(path):
    write(path, PICTURE, **RGB, PlanarConfiguration=0)
    assert np.abs(np.asarray(load_image(path)) - luma()).max() < 1
    planes = PICTURE.transpose(2, 0, 1).tobytes()
    write(path, PICTURE, data=planes, **RGB, PlanarConfiguration=1)
    assert np.abs(np.asarray(load_image(path)) - luma()).max() < 1
    assert 'lacks PlanarConfiguration' in refusal(write(path, PICTURE, **RGB))


@pytest.mark.parametrize('coloured', [True, False])
def test_colour_is_reported_as_of_a_png(path, coloured):
    picture = PICTURE if coloured else np.repeat(PICTURE[..., :1], 3, axis=2)
    write(path, picture, **RGB, PlanarConfiguration=0)
    Image.fromarray(picture).save(path.with_suffix('.png'))
    looks = [look_at(Folder(path.parent), path.with_suffix(s).name) for s in ('.dcm', '.png')]
    assert looks[0][:3] == looks[1][:3]
    assert looks[0][1] == ('colour image' if coloured else '')
    images = NotedImages(Folder(path.parent), [path.name], lambda *_: 0, skip_bad=False)
    assert images[0][1] == (COLOURED if coloured else '')


@pytest.mark.parametrize(
    ('pixels', 'bits'),
    [
        (RAMP_12, 10),
        (RAMP_12, 8),
        (RAMP_12.astype(np.int16) - 2048, 10),
        (SQUARE, 7),
        (RAMP_12.astype(np.int16).view(np.uint16) - 2048, 12),  # a sign that is not stated
    ],
)
def test_values_that_need_more_than_the_stored_bits_are_refused(path, pixels, bits):
    assert f'BitsStored is {bits}' in refusal(write(path, pixels, bits))


def test_repeated_signs_and_overlays_are_above_the_stored_bits(path):
    values = RAMP_12.astype(np.int16) - 2048
    repeated = levels(write(path, values, 12))
    cut = values.view(np.uint16) & 0xFFF
    assert np.array_equal(levels(write(path, cut.view(np.int16), 12)), repeated)
    plain = levels(write(path, RAMP_12, 12))
    drawn = RAMP_12 | np.where(np.eye(64, dtype=bool), 1 << 14, 0).astype(np.uint16)
    assert 'BitsStored' in refusal(write(path, drawn, 12))
    dataset = pydicom.dcmread(path)
    for group, bit in ((0x6000, 13), (0x6002, 14)):
        dataset.add_new((group, 0x0100), 'US', 16)
        dataset.add_new((group, 0x0102), 'US', bit)
    dataset.save_as(path)
    assert np.array_equal(levels(path), plain)


@pytest.mark.parametrize('syntax', ['ImplicitVRLittleEndian', *NATIVE[:2], 'JPEGBaseline8Bit'])
@pytest.mark.parametrize('lacks', ['preamble', 'header', 'both', 'transfer syntax'])
def test_files_without_preamble_or_header_are_read(path, lacks, syntax):
    frames = {'data': [jpeg(SQUARE)]} if 'JPEG' in syntax else {}
    write(path, SQUARE, syntax=syntax, **WINDOW_8, **frames)
    expected, data = levels(path), path.read_bytes()
    start = pydicom.dcmread(path, stop_before_pixels=True)
    header = 132 + 12 + start.file_meta.FileMetaInformationGroupLength
    if lacks == 'transfer syntax':
        element = data.index(b'\x02\0\x10\0UI')
        end = element + 8 + int.from_bytes(data[element + 6 : element + 8], 'little')
        data = data[:132] + data[144:element] + data[end:]  # also without the length of the header
    elif lacks == 'both':
        data = data[header:]
    else:
        data = data[132:] if lacks == 'preamble' else data[:132] + data[header:]
    path.write_bytes(data)
    if 'JPEG' in syntax and lacks != 'preamble':
        assert 'does not state how' in refusal(path)
    else:
        assert np.array_equal(levels(path), expected)


@pytest.mark.parametrize(
    ('tags', 'words'),
    [
        ({'WindowCenter': 9000, 'WindowWidth': 10}, 'window (WindowCenter 9000, WindowWidth 10)'),
        ({'WindowCenter': [-5, 40], 'WindowWidth': [1, 80]}, 'WindowCenter -5, WindowWidth 1'),
        (WINDOW | {'RescaleSlope': 1, 'RescaleIntercept': 9000}, 'WindowCenter 2000'),
        ({'VOILUTSequence': table(4, 0, 8, [7, 7, 7, 7])}, 'the VOI table'),
        ({'ModalityLUTSequence': table(4, 0, 8, [7, 7, 7, 7])}, 'modality table'),
        ({'PixelPaddingValue': 0, 'PixelPaddingRangeLimit': 255}, 'PixelPaddingValue'),
        ({'PixelPaddingValue': 0, 'WindowCenter': -900, 'WindowWidth': 9}, 'WindowCenter -900'),
    ],
)
def test_what_leaves_a_single_grey_level_is_named(path, tags, words):
    message = refusal(write(path, SQUARE, **tags))
    assert words in message and 'all pixels' in message


def test_what_is_not_dicom_is_named(path):
    path.write_bytes(b'version https://git-lfs.github.com/spec/v1\n')
    assert 'not a DICOM file, but a Git LFS pointer' in refusal(path)


@pytest.mark.filterwarnings('ignore::UserWarning')
@pytest.mark.parametrize('keyword', dicom.REQUIRED)
def test_an_element_that_is_missing_is_named(path, keyword):
    write(path, SQUARE)
    dataset = pydicom.dcmread(path)
    delattr(dataset, keyword)
    dataset.save_as(path)
    assert f'the file lacks {keyword}' in refusal(path)


@pytest.mark.filterwarnings('ignore::UserWarning')
@pytest.mark.parametrize(
    'tags',
    [
        {'NumberOfFrames': 2},
        {'syntax': 'MPEG2MPML', 'data': [b'12']},
        {'BitsAllocated': 32, 'BitsStored': 32, 'HighBit': 31},
        {'PhotometricInterpretation': 'PALETTE COLOR'},
        {'Rows': None},
        {'BitsStored': None},
        {'RescaleSlope': 0},
        {'WindowCenter': 9, 'WindowWidth': 0},
        {'VOILUTSequence': table(4, 0, 8, [0, 1, 2])},
    ],
    ids=lambda tags: next(iter(tags)),
)
def test_headers_that_are_not_of_a_usable_x_ray_are_refused(path, tags):
    refusal(write(path, RAMP, **tags))


def test_a_missing_package_is_named_and_the_image_is_not_bad(path, monkeypatch):
    write(path, RAMP, syntax='JPEGLSLossless', data=[jpeg(RAMP)])
    with monkeypatch.context() as patch:
        patch.setattr(Decoder, 'available_plugins', ())
        with pytest.raises(ValueError, match='pyjpegls') as caught:
            load_image(path)
    assert not isinstance(caught.value, BadImageError)
    monkeypatch.setitem(sys.modules, 'pydicom.pixels', None)
    with pytest.raises(ValueError, match='pip install .*pydicom') as caught:
        load_image(path)
    assert not isinstance(caught.value, BadImageError)


@pytest.mark.filterwarnings('always')
def test_nothing_that_identifies_a_patient_leaves_a_damaged_file(path, caplog, capfd, recwarn):
    caplog.set_level('DEBUG')
    frames = {'syntax': 'JPEGBaseline8Bit', 'data': [jpeg(RAMP)]}
    variants = WINDOW, {'VOILUTSequence': table(4, 0, 8, [0, 1, 2, 3])}, frames
    contents = [write(path, RAMP, **IDENTITY, **variant).read_bytes() for variant in variants]
    rng, refused = np.random.default_rng(0), 0
    for trial in range(300):
        content = np.frombuffer(contents[trial % 3], np.uint8).copy()
        content[rng.integers(128, len(content), 1 + trial % 4)] = rng.integers(256)
        data = content[: rng.integers(len(content)) if trial % 5 == 0 else None].tobytes()
        try:
            assert read_dicom(data).info == {}
        except (ValueError, ImportError) as error:
            refused += 1
            assert SECRET not in ''.join(traceback.format_exception(error))
    assert 50 < refused < 250
    warned = ''.join(str(warning.message) for warning in recwarn)
    assert SECRET not in caplog.text + ''.join(capfd.readouterr()) + warned


def test_an_unknown_transfer_syntax_is_not_quoted(path):
    content = write(path, SQUARE).read_bytes()
    path.write_bytes(content.replace(b'1.2.840.10008.1.2.1\0', SECRET.ljust(20).encode()))
    message = refusal(path)
    assert 'transfer syntax is not supported' in message and SECRET not in message


@pytest.mark.parametrize('share', [0.3, 0.99])
def test_files_that_are_cut_off_are_refused(path, share):
    frame = jpeg(RAMP)
    options = {'syntax': 'JPEGBaseline8Bit', 'data': [frame]}
    for content in (write(path, RAMP).read_bytes(), write(path, RAMP, **options).read_bytes()):
        path.write_bytes(content[: int(share * len(content))])
        refusal(path)
    options['data'] = [frame[: int(share * len(frame))] + bytes(9)]
    refusal(write(path, RAMP, **options))


def test_files_that_take_all_memory_are_refused(path, monkeypatch):
    monkeypatch.setattr(dicom, 'DEFLATED_BYTES', 2**16)
    syntax = 'DeflatedExplicitVRLittleEndian'
    assert levels(write(path, SQUARE, syntax=syntax)).shape == SQUARE.shape
    assert '65,536' in refusal(write(path, np.zeros((300, 300), np.uint8), syntax=syntax))
    dataset = pydicom.dcmread(write(path, SQUARE, syntax='RLELossless', data=[b'12']))
    dataset.Rows = dataset.Columns = 2**13 + 1
    dataset.save_as(path)
    assert '8193 x 8193' in refusal(path)


@pytest.mark.parametrize('syntax', [*NATIVE, 'JPEGBaseline8Bit', 'JPEG2000Lossless', 'RLELossless'])
@pytest.mark.parametrize('shape', [(48, 64), (64, 48), (128, 32)])
def test_pixels_of_another_shape_than_the_header_are_refused(path, syntax, shape):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    options = {'syntax': 'ExplicitVRLittleEndian' if syntax not in NATIVE else syntax}
    if syntax == 'JPEGBaseline8Bit':
        options = {'syntax': syntax, 'data': [jpeg(pixels)]}
    write(path, pixels, **options)
    dataset = pydicom.dcmread(path)
    if syntax in ('JPEG2000Lossless', 'RLELossless'):
        dataset.compress(getattr(uid, syntax))
    dataset.save_as(path)
    levels(path)
    dataset.Rows, dataset.Columns = shape
    dataset.save_as(path)
    if shape == (128, 32) and syntax in (*NATIVE, 'RLELossless'):
        return  # as many pixels, and nothing else states the shape
    refusal(path)


def test_every_file_that_comes_with_pydicom_is_read_or_refused():
    read, compared = 0, 0
    for path in BUNDLED.rglob('*'):
        if path.is_dir():
            continue
        try:
            got = np.asarray(read_dicom(path.read_bytes()))  # many show no chest
        except (ValueError, ImportError):
            continue
        read += 1
        if {'WindowCenter', 'WindowWidth'} <= set(pydicom.dcmread(path).dir('Window')):
            compared += 1
            np.testing.assert_allclose(got, np.clip(viewed(path), 0, 255), atol=1e-3)
    assert read >= 75 and compared >= 35
