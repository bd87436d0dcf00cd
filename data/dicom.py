"""DICOM files: the grey levels that a viewer would show of one chest X-ray.

Only what describes the pixels is read (TAGS).  What identifies a patient is not looked up, copied
or logged, and no error quotes a file's text.  Messages of pydicom may: its warnings and log are off
from the first file on.

A stored value has one grey level.  So modality, window and inversion run over a table of all 65,536
values, not over the pixels: that halves the time and takes a quarter of the memory.
"""

import logging
import os
import re
import warnings
import zlib
from io import BytesIO
from os import PathLike
from struct import unpack_from
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

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
