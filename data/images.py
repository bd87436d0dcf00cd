"""Reading pictures: a file, or a picture of a packed store, as one channel of grey levels.

Plain grey PNG and JPEG files are decoded by kornia-rs, all others by Pillow; pixels are the same
either way, to the bit, and without kornia-rs Pillow reads all.  Files per second of CPU time, in
memory, 256 x 256 and 390 x 325 pixels (two runs; Pillow differed by 5 % between them):

    decoder                PNG 256   PNG 390   JPEG 390
    Pillow 13                1,580       784      3,976
    Pillow-SIMD 12.1         1,538       777      4,267
    torchvision 0.29         1,737       848      4,696
    libvips 8.18             1,120       639      1,390
    OpenCV 5.0               1,851       936      4,940
    imagecodecs 2026.3       1,883       924      5,038   80 MB
    wuffs 2.0                2,240     1,064      5,077   no wheels found
    simplejpeg 1.9               -         -      5,011
    kornia-rs 0.2            4,418     2,104      4,992

Of 35,000 spoilt files kornia-rs took none that Pillow refuses, and it gave Pillow's pixels of every
one that it took.  JPEG decoded at an eighth of its size ('draft') is not used: from 2,730 px it is
1.5 times faster, but at 224 px pixels differ by up to 40 grey levels.
"""

import logging
import os
import re
import warnings
import zlib
from functools import lru_cache
from io import BytesIO
from os import PathLike
from struct import unpack_from
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# ==== data.dicom: DICOM files: the grey levels that a viewer would show of one chest X-ray.
#
# Only what describes the pixels is read (TAGS).  What identifies a patient is not looked up, copied
# or logged, and no error quotes a file's text.  Messages of pydicom may: its warnings and log are off
# from the first file on.
#
# A stored value has one grey level.  So modality, window and inversion run over a table of all 65,536
# values, not over the pixels: that halves the time and takes a quarter of the memory.

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

PYDICOM = "pip install 'pydicom>=3.0'"
# The first that is installed decodes and no other takes over, so that pixels do not depend on the
# rest.  gdcm comes last: some damaged frames make it end the process.
PLUGINS = 'pillow', 'pyjpegls', 'pylibjpeg', 'pydicom', 'gdcm'
DECODERS = (
    'pip install pyjpegls for JPEG-LS; pylibjpeg with pylibjpeg-openjpeg for HTJ2K, or with '
    'pylibjpeg-libjpeg (GPL) for 12-bit JPEG; the latter or python-gdcm for JPEG Lossless'
)
MAX_BYTES = 2**28  # of a file, or of what its deflated data set unpacks to
MAX_PIXELS = 2**26  # 8,192 x 8,192; detectors for the chest have up to about 5,000 x 5,000
FULL_RANGE_BITS = (8, 10, 12, 14, 16)
LARGEST = 1e9  # number in a header
WHOLE = 1e-6  # grey levels this close to whole numbers are those numbers

PREFIX_END = 132  # 128 bytes for anything, then 'DICM'
TAGS = """
    SamplesPerPixel PhotometricInterpretation PlanarConfiguration NumberOfFrames Rows Columns
    BitsAllocated BitsStored HighBit PixelRepresentation PixelPaddingValue PixelPaddingRangeLimit
    RescaleIntercept RescaleSlope ModalityLUTSequence
    WindowCenter WindowWidth VOILUTFunction VOILUTSequence PixelData
""".split()
GREY = ('MONOCHROME1', 'MONOCHROME2')
COLOURS = ('RGB', 'YBR_FULL', 'YBR_FULL_422', 'YBR_ICT', 'YBR_RCT')
WINDOWS = ('LINEAR', 'LINEAR_EXACT', 'SIGMOID')

JPEG_START, J2K_START, JPEG_END = b'\xff\xd8', b'\xff\x4f\xff\x51', b'\xff\xd9'
JPEG_FRAME_MARKERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # F7 is that of JPEG-LS


class _RefusedError(ValueError):
    """What is wrong with a file, in words that quote nothing of it but numbers and its syntax."""


class _Layout(NamedTuple):
    shape: tuple[int, int, int]  # rows, columns, samples per pixel
    bits: int  # stored
    signed: bool
    inverted: bool  # MONOCHROME1: the lowest value is white


def read_dicom(path: str | PathLike[str]) -> Image.Image:
    """Read the one image of a DICOM file as grey levels.

    - Stored values become modality values (table, or slope and intercept), then grey levels by the
      first VOI table, else by the first window.  MONOCHROME1 is inverted after that.
    - Without table or window the range is that of the stored bits.  16 stored bits are no more than
      the container, so there it is, as for a 16-bit PNG, the smallest of 8, 10, 12, 14, 16 bits
      that holds the image's values (signed if one of them is negative).
    - Padding pixels are black, and no part of that range.  All pixels count as square.
    - 8-bit colour becomes ITU-R 601 luma.  Palettes and several frames are refused.

    Returns:
        Mode 'L' where each stored value's grey level is a whole number, as for 8 stored bits
        without a window; else mode 'F' in grey levels 0..255, not rounded.

    Raises:
        ValueError: naming the path, if there is no such file, if it is no DICOM file of one image,
            or if pydicom or a decoder for its transfer syntax is not installed.
    """
    try:
        import pydicom.pixels  # noqa: F401 (not in pydicom 2)
    except ImportError as error:
        raise ValueError(f'DICOM file {path} needs pydicom: {PYDICOM} ({error})') from error
    _silence_pydicom()
    try:
        return _picture(_dataset(_content(path)))
    except FileNotFoundError:
        raise ValueError(f'there is no image {path}') from None
    except _RefusedError as reason:
        message, cause = str(reason), reason.__cause__
    except Exception as error:  # a damaged file makes pydicom raise almost anything
        message, cause = f'it is damaged ({type(error).__name__})', None
    raise ValueError(f'DICOM file {path} cannot be read: {message}') from cause  # others quote it


def _silence_pydicom() -> None:
    """For good: its warnings and log lines quote values, of a damaged file perhaps any."""
    logging.getLogger('pydicom').setLevel(logging.CRITICAL + 1)
    if ('ignore', None, Warning, re.compile('pydicom'), 0) not in warnings.filters:
        warnings.filterwarnings('ignore', module='pydicom')


def _content(path: str | PathLike[str]) -> bytes:
    """The file in memory: there, a length in its header beyond its end reserves nothing."""
    try:
        with open(path, 'rb') as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_BYTES:
                raise _RefusedError(f'it has {size:,} bytes, more than {MAX_BYTES:,}')
            return file.read(size)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _RefusedError(error.strerror) from error


def _dataset(content: bytes) -> 'Dataset':
    """The elements of TAGS, and of the file's meta information the transfer syntax."""
    from pydicom.datadict import tag_for_keyword
    from pydicom.dataset import FileMetaDataset
    from pydicom.filereader import read_dataset
    from pydicom.pixels import get_decoder

    if content[PREFIX_END - 4 : PREFIX_END] != b'DICM':
        raise _RefusedError('it is not a DICOM file (no DICM at byte 128)')
    buffer = BytesIO(content)
    buffer.seek(PREFIX_END)
    meta = read_dataset(buffer, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    syntax = meta.get('TransferSyntaxUID')
    if not syntax or not syntax.is_valid:
        raise _RefusedError('it names no transfer syntax')
    try:
        get_decoder(syntax)
    except NotImplementedError:
        raise _RefusedError(f'transfer syntax {syntax.name} is not supported') from None
    if syntax.is_deflated:
        buffer = BytesIO(_inflated(content[buffer.tell() :]))
    tags = [tag_for_keyword(keyword) for keyword in TAGS]
    encoding = syntax.is_implicit_VR, syntax.is_little_endian
    dataset = read_dataset(buffer, *encoding, specific_tags=tags)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    return dataset


def _inflated(content: bytes) -> bytes:
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = stream.decompress(content, MAX_BYTES)
    if not stream.eof:
        raise _RefusedError(f'its deflated part is cut off or unpacks to over {MAX_BYTES:,} bytes')
    return inflated


def _picture(dataset: 'Dataset') -> Image.Image:
    layout = _layout(dataset)
    pixels = _decoded(dataset, layout)
    if pixels.ndim == 3:
        return Image.fromarray(pixels).convert('L')
    codes = pixels.astype(f'u{pixels.itemsize}', copy=False)
    grey = _grey_levels(dataset, layout, codes)
    whole = np.rint(grey)
    is_whole = np.abs(grey - whole).max() < WHOLE
    return Image.fromarray((whole.astype(np.uint8) if is_whole else grey.astype(np.float32))[codes])


def _layout(dataset: 'Dataset') -> _Layout:
    """Check what the header says of the pixels.

    Raises:
        _RefusedError: for what is no X-ray: several frames, more than 16 bits, palettes.
    """
    if 'PixelData' not in dataset:
        raise _RefusedError('it holds no pixel data, or ends before them')
    frames = _whole(dataset, 'NumberOfFrames', default=1)
    if frames > 1:
        raise _RefusedError(f'it holds {frames} frames; write each to a file of its own')
    rows, columns = _whole(dataset, 'Rows'), _whole(dataset, 'Columns')
    if not 0 < rows * columns <= MAX_PIXELS:
        raise _RefusedError(f'{rows} rows x {columns} columns are not 1 to {MAX_PIXELS:,} pixels')
    allocated, bits = _whole(dataset, 'BitsAllocated'), _whole(dataset, 'BitsStored')
    if allocated not in (1, 8, 16) or not 1 <= bits <= allocated:
        raise _RefusedError(f'{bits} of {allocated} bits per pixel are not 1 to 16 of 1, 8 or 16')
    if _whole(dataset, 'HighBit', default=bits - 1) != bits - 1:
        raise _RefusedError(f'HighBit must be BitsStored - 1, that is {bits - 1}')
    _whole(dataset, 'PlanarConfiguration', default=0)  # as yet unread, pydicom might quote it
    shape = rows, columns, _whole(dataset, 'SamplesPerPixel')
    signed = _whole(dataset, 'PixelRepresentation') == 1
    kind = str(dataset.get('PhotometricInterpretation')).strip()
    if shape[-1] == 1 and kind in GREY:
        return _Layout(shape, bits, signed, kind == 'MONOCHROME1')
    if shape[-1] == 3 and kind in COLOURS and bits == 8:
        return _Layout(shape, bits, signed=False, inverted=False)
    raise _RefusedError(
        f'PhotometricInterpretation must be one of {", ".join(GREY)} with 1 sample per pixel, '
        f'or {", ".join(COLOURS)} with 3 samples of 8 bits; palettes are not read'
    )


def _decoded(dataset: 'Dataset', layout: _Layout) -> np.ndarray:  # [H, W], or [H, W, 3] RGB
    """The stored values; bits above those stored may be anything."""
    from pydicom.pixels import get_decoder, pixel_array
    from pydicom.uid import JPEGExtended12Bit

    syntax, plugin = dataset.file_meta.TransferSyntaxUID, ''
    if syntax.is_encapsulated:
        available = get_decoder(syntax).available_plugins
        if syntax == JPEGExtended12Bit and layout.bits > 8:
            available = {'pylibjpeg'}.intersection(available)
        plugin = next((name for name in PLUGINS if name in available), '')
        if not plugin:
            problem = f'no decoder of {syntax.name} ({syntax}) is installed: {DECODERS}'
            raise _RefusedError(problem) from ImportError()
        _check_frame(dataset, layout)
    options = {'decoding_plugin': plugin, 'view_only': True, 'correct_unused_bits': False}
    try:
        return pixel_array(dataset, index=0, **options)
    except Exception as error:
        reason = ' '.join(str(error).split())
        raise _RefusedError(f'its {syntax.name} pixels do not decode: {reason}') from None


def _check_frame(dataset: 'Dataset', layout: _Layout) -> None:
    """Refuse a compressed frame of another size than the header's, or without an end.

    Decoders reserve memory by the frame's own size, and some make up what is missing at the end.
    """
    from pydicom.encaps import get_frame
    from pydicom.uid import RLELossless

    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    if dataset.file_meta.TransferSyntaxUID == RLELossless:
        if len(frame) > 4 * np.prod(layout.shape) + 1024:  # each byte of 16 bits a run of two
            raise _RefusedError(f'{len(frame):,} bytes of RLE are too long for its size')
        return
    if _frame_size(frame) != layout.shape:
        raise _RefusedError(
            'its compressed frame has (rows, columns, samples) '
            f'{_frame_size(frame)}, its header {layout.shape}'
        )
    if JPEG_END not in frame.rstrip(b'\0')[-16:]:  # padding may be of other bytes, too
        raise _RefusedError('its compressed frame is cut off')


def _frame_size(frame: bytes) -> tuple[int, int, int]:
    """Rows, columns and samples that a JPEG, JPEG-LS or JPEG 2000 stream states of itself."""
    if J2K_START in frame and not frame.startswith(JPEG_START):
        fields = unpack_from('>8LH', frame, frame.index(J2K_START) + 8)
        right, bottom, left, top = fields[:4]
        return bottom - top, right - left, fields[-1]
    position = len(JPEG_START) if frame.startswith(JPEG_START) else len(frame)
    while position + 10 <= len(frame) and frame[position] == 0xFF:
        marker, length = unpack_from('>BH', frame, position + 1)
        if marker in JPEG_FRAME_MARKERS:
            return unpack_from('>HHB', frame, position + 5)
        position += 1 if marker == 0xFF else 2 + length  # FF before a marker is a fill byte
    raise _RefusedError('its compressed frame is no JPEG stream')


def _grey_levels(dataset: 'Dataset', layout: _Layout, codes: np.ndarray) -> np.ndarray:
    """The grey level, in 0..255, of every code that a pixel's container can hold: 256 or 65,536.

    The codes [H, W] are the pixels' containers as unsigned numbers.
    """
    every = np.arange(2 ** (8 * codes.itemsize))
    container = _signed(every, 8 * codes.itemsize) if layout.signed else every
    stored = every % 2**layout.bits
    stored = _signed(stored, layout.bits) if layout.signed else stored
    padding = _padding(dataset, container, stored)
    limits = _stored_limits(layout, codes, stored, padding)
    values, limits = _modality(dataset, stored, limits)
    grey = _voi(dataset, values, limits)
    grey = 255 - grey if layout.inverted else grey
    grey[padding] = 0
    return grey


def _signed(values: np.ndarray, bits: int) -> np.ndarray:
    """Two's complement."""
    return np.where(values >= 2 ** (bits - 1), values - 2**bits, values)


def _padding(dataset: 'Dataset', container: np.ndarray, stored: np.ndarray) -> np.ndarray:
    """Which codes are padding; its value may need more bits than those stored."""
    if not _numbers(dataset, 'PixelPaddingValue'):
        return np.zeros(len(stored), bool)
    value = _whole(dataset, 'PixelPaddingValue')
    ends = value, _whole(dataset, 'PixelPaddingRangeLimit', default=value)
    low, high = sorted(container[end % len(container)] for end in ends)  # the header's sign may err
    return (low <= stored) & (stored <= high) | (low <= container) & (container <= high)


def _stored_limits(
    layout: _Layout, codes: np.ndarray, stored: np.ndarray, padding: np.ndarray
) -> tuple[int, int]:
    """The stored values that are black and white where nothing else says so."""
    if layout.bits < FULL_RANGE_BITS[-1]:
        return stored.min(), stored.max()
    occurs = np.zeros(len(stored), bool)
    occurs[codes] = True
    occurring = stored[occurs & ~padding]
    low, high = (occurring.min(), occurring.max()) if len(occurring) else (0, 0)
    if low >= 0:
        return 0, next(2**bits - 1 for bits in FULL_RANGE_BITS if high < 2**bits)
    half = next(2**bits // 2 for bits in FULL_RANGE_BITS if max(-low, high + 1) <= 2**bits // 2)
    return -half, half - 1


def _modality(
    dataset: 'Dataset', stored: np.ndarray, limits: tuple[int, int]
) -> tuple[np.ndarray, tuple[float, float]]:
    """Modality values and what they can reach: optical density, say."""
    if dataset.get('ModalityLUTSequence'):
        return _looked_up(dataset, 'ModalityLUTSequence', stored)
    slope = (_numbers(dataset, 'RescaleSlope') or [1.0])[0]
    intercept = (_numbers(dataset, 'RescaleIntercept') or [0.0])[0]
    if abs(slope) < 1 / LARGEST:
        raise _RefusedError(f'RescaleSlope must not be {slope:g}')
    low, high = sorted(limit * slope + intercept for limit in limits)
    return stored * slope + intercept, (low, high)


def _voi(dataset: 'Dataset', values: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Grey levels of modality values."""
    if dataset.get('VOILUTSequence'):
        values, limits = _looked_up(dataset, 'VOILUTSequence', values)
    elif _numbers(dataset, 'WindowCenter') and _numbers(dataset, 'WindowWidth'):
        return _windowed(dataset, values)
    low, high = limits
    return np.clip((values - low) * (255 / (high - low)), 0, 255)


def _windowed(dataset: 'Dataset', values: np.ndarray) -> np.ndarray:
    """Window by pydicom, as a data set whose output range is 0..255."""
    from pydicom.dataset import Dataset
    from pydicom.pixels import apply_windowing

    function = str(dataset.get('VOILUTFunction') or 'LINEAR').strip().upper()
    if function not in WINDOWS:
        raise _RefusedError(f'VOILUTFunction must be one of {", ".join(WINDOWS)}')
    width = _numbers(dataset, 'WindowWidth')[0]
    if not (width >= 1 or width > 0 and function != 'LINEAR'):
        raise _RefusedError(f'WindowWidth {width:g} is too small for {function}')
    view = Dataset()
    view.PhotometricInterpretation, view.BitsStored, view.PixelRepresentation = GREY[1], 8, 0
    view.VOILUTFunction = function
    view.add(dataset['WindowCenter'])
    view.add(dataset['WindowWidth'])
    with np.errstate(over='ignore'):  # of SIGMOID's exponential, which then gives 0
        return apply_windowing(values, view)


def _looked_up(
    dataset: 'Dataset', keyword: str, values: np.ndarray
) -> tuple[np.ndarray, tuple[int, int]]:
    """Values by the first table of a sequence, and the table's range.

    Not pydicom's apply_voi_lut: it cuts the values to the bits of the table's entries, so that a
    12-bit image through a table of 8-bit entries loses its upper bits (pydicom 3.0).
    """
    item = dataset.get(keyword)[0]
    descriptor, data = _numbers(item, 'LUTDescriptor'), item.get('LUTData')
    if len(descriptor) != 3 or data is None:
        raise _RefusedError(f'{keyword} has no LUTData, or no LUTDescriptor of 3 numbers')
    count, first, bits = int(descriptor[0]) % 2**16 or 2**16, descriptor[1], int(descriptor[2])
    if isinstance(data, bytes):
        data = np.frombuffer(data, '<u2' if item.original_encoding[1] else '>u2')
    entries = np.array(data, np.int64).reshape(-1)
    if len(entries) == (count + 1) // 2 and bits <= 8:  # two entries in a word
        entries = np.frombuffer(entries.astype('<u2').tobytes(), np.uint8)
    entries = entries[:count]
    fits = len(entries) == count and bits in range(1, 17)
    if not fits or entries.min() < 0 or entries.max() >= 2**bits:
        raise _RefusedError(f'{keyword} must have {count} entries of {bits} bits (16 at most)')
    places = np.clip(values - first, 0, count - 1).astype(np.intp)
    return entries[places], (0, 2**bits - 1)


def _numbers(dataset: 'Dataset', keyword: str) -> list[float]:
    """An element's values; none where it is absent or empty."""
    try:
        value = dataset.get(keyword)
        numbers = [] if value is None or value == '' else np.atleast_1d(value).astype(float)
    except Exception:  # its text quotes the value
        raise _RefusedError(f'{keyword} is not a number') from None
    if not np.all(np.abs(numbers) <= LARGEST):
        raise _RefusedError(f'{keyword} is not a number up to {LARGEST:g}')
    return list(numbers)


def _whole(dataset: 'Dataset', keyword: str, *, default: int | None = None) -> int:
    numbers = _numbers(dataset, keyword) or [default]
    if len(numbers) != 1 or numbers[0] is None or numbers[0] % 1:
        raise _RefusedError(f'{keyword} must be one whole number')
    return int(numbers[0])


# ==== data.images: Reading pictures: a file, or a picture of a packed store, as one channel of grey levels.
#
# Plain grey PNG and JPEG files are decoded by kornia-rs, all others by Pillow; pixels are the same
# either way, to the bit, and without kornia-rs Pillow reads all.  Files per second of CPU time, in
# memory, 256 x 256 and 390 x 325 pixels (two runs; Pillow differed by 5 % between them):
#
#     decoder                PNG 256   PNG 390   JPEG 390
#     Pillow 13                1,580       784      3,976
#     Pillow-SIMD 12.1         1,538       777      4,267
#     torchvision 0.29         1,737       848      4,696
#     libvips 8.18             1,120       639      1,390
#     OpenCV 5.0               1,851       936      4,940
#     imagecodecs 2026.3       1,883       924      5,038   80 MB
#     wuffs 2.0                2,240     1,064      5,077   no wheels found
#     simplejpeg 1.9               -         -      5,011
#     kornia-rs 0.2            4,418     2,104      4,992
#
# Of 35,000 spoilt files kornia-rs took none that Pillow refuses, and it gave Pillow's pixels of every
# one that it took.  JPEG decoded at an eighth of its size ('draft') is not used: from 2,730 px it is
# 1.5 times faster, but at 224 px pixels differ by up to 40 grey levels.

try:
    from kornia_rs.io import decode_image_jpegturbo, decode_image_png_u8, decode_image_png_u16
except ImportError:  # Pillow then reads all
    decode_image_jpegturbo = decode_image_png_u8 = decode_image_png_u16 = None

MIN_SIDE = 16  # in pixels
MAX_ASPECT = 10  # long side by short side; a chest is about as wide as it is high
PROBES = 16  # pixels that are looked at before all are

# Formats that Pillow shall know by their contents; of the others some start programs (EPS).
FORMATS = ('PNG', 'JPEG', 'TIFF', 'BMP', 'GIF', 'PPM', 'WEBP', 'JPEG2000')
TILE_SIZE_TAGS = 322, 323  # of a TIFF
MODES_8_BIT = ('1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA', 'CMYK', 'YCbCr')
MODES_16_BIT = ('I', 'I;16', 'I;16L', 'I;16B', 'I;16N')
FULL_RANGES = tuple(2**bits - 1 for bits in (8, 10, 12, 14, 16))

PNG_START = b'\x89PNG\r\n\x1a\n\0\0\0\rIHDR'
# Chunks of a PNG that change no pixel here; others may (transparency, rotation, animation).
PNG_CHUNKS = {b'IDAT', b'IEND', b'pHYs', b'gAMA', b'cHRM', b'sRGB', b'tIME', b'bKGD', b'sBIT'}
JPEG_START_images = b'\xff\xd8'
# Segments of a JPEG before its pixels that change none: JFIF, Adobe, comment, tables.
JPEG_SEGMENTS = {0xE0, 0xEE, 0xFE, 0xDB, 0xC4, 0xDD}
JPEG_FRAMES = {0xC0, 0xC1, 0xC2}  # baseline, extended, progressive
JPEG_SCAN = 0xDA

FULL_SIZE = ('full size',)  # key of Image.info: no text, so that no file can have it


def load_image(path: str | PathLike[str], root: str | PathLike[str] = '') -> Image.Image:
    """Read an image as one channel of grey levels.

    Colour becomes ITU-R 601 luma, transparency lies on black, EXIF rotation is undone.  16-bit
    images are scaled by their true range: the smallest of 8, 10, 12, 14, 16 bits that holds them.
    What a file is, its contents decide, but for `.dcm` files: see `data.dicom.read_dicom`.

    Args:
        path: of a file.
        root: the folder that no link on the way may leave; '' is any.

    Returns:
        Mode 'L' for 8 bits; mode 'F' in grey levels 0..255, not rounded, for 16 bits.

    Raises:
        ValueError: naming the path, if there is no such file, if it cannot be read, or if it is no
            picture to learn from: of one grey level, tiny, or a mere strip.
    """
    if root:
        refuse_link_out(root, path)
    if os.fspath(path).lower().endswith('.dcm'):
        pass  # MERGED

        image = read_dicom(path)
    else:
        image = _read_image(path)
    if fault := _fault(image):
        raise ValueError(f'image {path} cannot be used: {fault}')
    return image


def refuse_link_out(root: str | PathLike[str], path: str | PathLike[str]) -> None:
    """Refuse a path below a folder that a link takes out of it: its owner gave that folder only.

    Raises:
        ValueError: naming the path and the folder.
    """
    if not os.path.join(_real_path(path), '').startswith(_real_root(os.fspath(root))):
        raise ValueError(
            f'{path} is a link that leaves the data root {root}; copy or hard-link the pictures, '
            'or make the whole data folder the link'
        )


def is_passing(error: ValueError, path: str | PathLike[str]) -> bool:
    """Whether `load_image` refused a file for no fault of its own, so that it may be read later."""
    cause = error.__cause__ or error.__context__
    # Pillow has OSErrors of its own, without a number, for what is in the file.
    is_system = isinstance(cause, OSError) and cause.errno is not None
    if is_system or isinstance(cause, (MemoryError, ImportError)):
        return True
    if str(error).endswith('(MemoryError)'):  # of DICOM files only the text tells
        return True
    try:
        _read(path)
    except (OSError, MemoryError):
        return True
    return False


def full_size(image: Image.Image) -> tuple[int, int]:
    """Height and width of a picture before it was packed, if it was: its aspect is theirs."""
    return image.info.get(FULL_SIZE, (image.height, image.width))


def decode(data: bytes) -> Image.Image:
    """The image of a file's contents, see `load_image`; raises whatever comes."""
    pixels = _decode_plain(data)
    if pixels is not None:
        return Image.fromarray(pixels) if pixels.dtype == np.uint8 else _from_16_bit(pixels)
    with _opened(data) as image:
        if image.mode in MODES_8_BIT and re.search(r';16[BLN]', str(image.tile)):
            raise ValueError('16-bit colour or alpha would be cut to 8 bits; store 16-bit grey')
        ImageOps.exif_transpose(image, in_place=True)
        return _to_grey(image)


def _read_image(path: str | PathLike[str]) -> Image.Image:
    """A file that is no DICOM file; errors name the path."""
    try:
        return decode(_read(path))
    except FileNotFoundError:
        raise ValueError(f'there is no image {path}') from None
    except UnidentifiedImageError as error:
        raise ValueError(f'image {path} cannot be read: cannot identify its format') from error
    except Exception as error:  # a damaged file makes Pillow raise almost anything
        raise ValueError(f'image {path} cannot be read: {error}') from error


def _opened(data: bytes) -> Image.Image:
    """What Pillow makes of a file's header; no memory is taken for its pixels before this."""
    try:
        image = Image.open(BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise ValueError(f'its header claims more than {MAX_PIXELS:,} pixels') from None
    # Of a tile libtiff takes the memory that is claimed for it, whatever the image's size.
    tags = getattr(image, 'tag_v2', {})
    tile_size = [tags.get(tag, 0) for tag in TILE_SIZE_TAGS]
    for width, height in (image.size, tile_size):
        if width * height > MAX_PIXELS:
            raise ValueError(
                f'its header claims {width} x {height} pixels; {MAX_PIXELS:,} are allowed'
            )
    if getattr(image, 'is_animated', False):
        raise ValueError('it holds several pictures; write each to a file of its own')
    return image


def _fault(image: Image.Image) -> str:
    """Why nothing can be learned from a picture; '' for others."""
    width, height = image.size
    if min(image.size) < MIN_SIDE or max(image.size) > MAX_ASPECT * min(image.size):
        return (
            f'it has {width} x {height} pixels; no side may be under {MIN_SIDE}, nor more than '
            f'{MAX_ASPECT} times the other'
        )
    first = image.getpixel((0, 0))
    places = ((i * width // PROBES, i * height // PROBES) for i in range(1, PROBES))
    if all(image.getpixel(place) == first for place in places):
        low, high = image.getextrema()
        if low == high:
            return f'all pixels are {low:g}'
    return ''


@lru_cache(maxsize=8)
def _real_root(root: str) -> str:
    return os.path.join(_real_path(root), '')


def _real_path(path: str | PathLike[str]) -> str:
    """As os.path.realpath, where the system can tell in a sixth of the time."""
    try:
        descriptor = os.open(path, os.O_PATH)
        try:
            return os.readlink(f'/proc/self/fd/{descriptor}')
        finally:
            os.close(descriptor)
    except (OSError, ValueError, AttributeError):  # no such file, or not Linux
        return os.path.realpath(path)


def _read(path: str | PathLike[str]) -> bytes:
    with open(path, 'rb', buffering=0) as file:  # one read of all, whatever the format
        return file.read()


def _decode_plain(data: bytes) -> np.ndarray | None:
    """Pixels [H, W] of a grey PNG (uint8, uint16) or JPEG (uint8), or None: Pillow shall read it.

    None for all that is not quite plain: what Pillow makes of that, and how it refuses it, holds.
    """
    if decode_image_png_u8 is None:
        return None
    try:
        if data.startswith(PNG_START):
            return _decode_png(data)
        if data.startswith(JPEG_START_images) and _is_plain_jpeg(data):
            return decode_image_jpegturbo(data, 'mono')[..., 0]
    except Exception:  # not whole: Pillow says in what way, or takes it still
        return None
    return None


def _decode_png(data: bytes) -> np.ndarray | None:
    size = width, height = _number(data, 16, 4), _number(data, 20, 4)
    bits, *rest = data[24:29]  # colour type, compression, filter, interlacing
    if bits not in (8, 16) or any(rest) or _too_large(size) or not _has_plain_chunks(data):
        return None
    read = decode_image_png_u8 if bits == 8 else decode_image_png_u16
    return read(data, (height, width), 'mono')[..., 0]


def _has_plain_chunks(data: bytes) -> bool:
    place, name = 33, b'IHDR'
    while place < len(data) and name != b'IEND':
        name = data[place + 4 : place + 8]
        # A text may hold a rotation.
        if name not in PNG_CHUNKS and not (name == b'tEXt' and _is_plain_text(data, place + 8)):
            return False
        place += 12 + _number(data, place, 4)
    return name == b'IEND' and place <= len(data)


def _is_plain_text(data: bytes, place: int) -> bool:
    keyword = data[place : place + 80].partition(b'\0')[0].lower()
    return b'exif' not in keyword and b'xmp' not in keyword


def _is_plain_jpeg(data: bytes) -> bool:
    """Whether a JPEG is of one component in 8 bits, with nothing that may hold a rotation."""
    place, is_grey = 2, False
    while data[place] == 0xFF:
        marker = data[place + 1]
        if marker == JPEG_SCAN:
            return is_grey
        if marker in JPEG_FRAMES:  # precision, height, width, components
            size = _number(data, place + 5, 2), _number(data, place + 7, 2)
            is_grey = data[place + 4] == 8 and data[place + 9] == 1 and not _too_large(size)
        elif marker not in JPEG_SEGMENTS:
            return False
        place += 2 + _number(data, place + 2, 2)
    return False


def _number(data: bytes, place: int, size: int) -> int:
    return int.from_bytes(data[place : place + size], 'big')


def _too_large(size: tuple[int, int]) -> bool:
    """Whether Pillow shall refuse so large an image."""
    return size[0] * size[1] > MAX_PIXELS


def _to_grey(image: Image.Image) -> Image.Image:
    if image.mode in MODES_16_BIT:
        return _from_16_bit(np.asarray(image))
    if image.mode not in MODES_8_BIT:
        raise ValueError(f'pixels of mode {image.mode!r} are neither 8-bit nor 16-bit grey')
    if image.has_transparency_data:
        black = Image.new('RGBA', image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image.convert('RGBA'))
    return image.convert('L')


def _from_16_bit(pixels: np.ndarray) -> Image.Image:
    low, high = int(pixels.min()), int(pixels.max())
    if low < 0 or high > FULL_RANGES[-1]:
        raise ValueError(f'pixels from {low} to {high} are outside the 16-bit range')
    full = next(full for full in FULL_RANGES if high <= full)
    return Image.fromarray(pixels.astype(np.float32) * np.float32(255 / full))
