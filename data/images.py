"""Read PNG, JPEG, DICOM and other image files as one channel of grey levels."""

import contextlib
import errno
import logging
import os
import stat
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from os import PathLike
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from kornia_rs.io import decode_image_jpegturbo, decode_image_png_u8, decode_image_png_u16
from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

T = TypeVar('T')

MAX_BYTES = 2**30  # largest image file; the DICOM file of an X-ray has at most some hundred MB
MIN_SIDE = 16  # in pixels
MAX_ASPECT = 10  # long side / short side; a chest is about as wide as it is high
MAX_PIXELS = 2**26  # twice those of the largest X-rays; a few kilobytes can decode to any number
MAX_SCANS = 100  # of a JPEG, as in libtiff; usual are 1 to 10, and each may cost a whole decoding
COLOUR_LEVELS = 8  # difference between channels that JPEG compression of grey images can cause
UNSTEADY = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT)  # also of a network drive for a moment
PAUSES = (1, 4, 10)  # seconds before a file on such a drive is read again
PROBES = 16  # number of pixels that are compared before all pixels are

DICOM_SUFFIXES = ('.dcm', '.dicom')
# Formats that Pillow may recognise by their contents. Other formats can start programs (EPS).
FORMATS = ('PNG', 'JPEG', 'TIFF', 'BMP')
MODES_8_BIT = ('1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA', 'YCbCr')
MODES_16_BIT = ('I', 'I;16', 'I;16L', 'I;16B', 'I;16N')
FULL_RANGE_BITS = (8, 10, 12, 14, 16)
# Keys in Image.info. They are tuples, because files can set keys that are strings.
FULL_SIZE, PACKED_STEPS, FILE_NAME = ('full size',), ('packed steps',), ('file name',)
CONTRADICTION = ('contradiction',)  # what two elements of a DICOM file state

# Metadata with one of these markers may rotate the image, so Pillow reads these files.
ROTATION_MARKERS = (b'eXIf', b'Exif', b'exif', b'xmp', b'http://ns.adobe.com')

# Tags: bits per channel, and the meaning of grey levels with one of its values.
TIFF_BITS, TIFF_GREY, WHITE_IS_ZERO = 258, 262, 0

PYDICOM = "pip install 'pydicom>=3.0'"
DECODERS = (
    'pip install pyjpegls for JPEG-LS; pylibjpeg with pylibjpeg-openjpeg for HTJ2K, or with '
    'pylibjpeg-libjpeg (GPL) for 12-bit JPEG; the latter or python-gdcm for JPEG Lossless'
)
# The first installed plugin decodes, so that the pixels do not depend on the other plugins. gdcm
# comes last, because some damaged frames make it kill the process.
PLUGINS = ('pillow', 'pyjpegls', 'pylibjpeg', 'pydicom', 'gdcm')
# DICOM elements that are read. None of them identifies a patient.
TAGS = """
    SamplesPerPixel PhotometricInterpretation PlanarConfiguration NumberOfFrames Rows Columns
    BitsAllocated BitsStored HighBit PixelRepresentation PixelPaddingValue PixelPaddingRangeLimit
    RescaleIntercept RescaleSlope ModalityLUTSequence
    WindowCenter WindowWidth VOILUTFunction VOILUTSequence PresentationLUTShape PixelData
""".split()
NEEDED_TAGS = ('SamplesPerPixel', 'PhotometricInterpretation', 'Rows', 'Columns')
NEEDED_TAGS += ('BitsAllocated', 'BitsStored', 'PixelRepresentation')
GREY = ('MONOCHROME1', 'MONOCHROME2')
SHAPES = {'MONOCHROME1': 'INVERSE', 'MONOCHROME2': 'IDENTITY'}  # PresentationLUTShape of each
COLOURS = ('RGB', 'YBR_FULL', 'YBR_FULL_422', 'YBR_ICT', 'YBR_RCT')
JPEG_SCAN, JPEG_END = b'\xff\xda', b'\xff\xd9'
DICOM_PREAMBLE = 132  # bytes before the header
PIXEL_DATA = 0x7FE00010
VALUE_BYTES = 2**18  # of another element; a table of 65,536 entries has half of it
DEFLATED_BYTES = 2**28  # largest data set of a deflated file
WHOLE = 1e-6  # grey levels this close to whole numbers count as whole numbers


class BadImageError(ValueError):
    """Raised for a damaged or unusable image, for which reading it again does not help."""


def decode_image(data: bytes, name: str | PathLike[str]) -> Image.Image:
    """Decode the contents of an image file as one channel of grey levels.

    Colour becomes ITU-R 601 luma, transparency is put on black, and an EXIF rotation is applied.
    16-bit images are scaled by their true range: the smallest of 8, 10, 12, 14 or 16 bits that
    holds their values. The contents decide the format, except that `.dcm` and `.dicom` files are
    DICOM files (see `read_dicom`).

    Args:
        data: Contents of the file.
        name: Name of the file; messages contain it.

    Returns:
        Image of mode 'L' for 8 bits, or of mode 'F' with grey levels in [0, 255], not rounded, for
        more bits.

    Raises:
        BadImageError: If the image is damaged, or useless for training (one grey level, tiny, huge,
            or a narrow strip).
        ValueError: If a decoder is not installed, or if there is not enough memory.
    """
    with _naming(name):
        if _is_dicom(name):
            image = read_dicom(data)
        else:
            with _open(data) as opened:
                if fault := _fault_of_size(*opened.size):  # before memory is allocated
                    raise ValueError(fault)
                image = _decode(data, opened)
    if fault := _fault(image):
        raise BadImageError(f'image {name} cannot be used: {fault}')
    return image


def read_file(path: str | PathLike[str]) -> bytes:
    """Read the contents of an image file.

    Raises:
        BadImageError: If it is not a regular file, or is larger than MAX_BYTES.
        ValueError: If the file is missing or cannot be read at the moment. The `__cause__` is the
            system error.
    """
    with _naming(path):
        return read_patiently(lambda: _read_regular(path))


def load_image(path: str | PathLike[str]) -> Image.Image:
    """Read and decode an image file; see `read_file` and `decode_image` for the errors."""
    return decode_image(read_file(path), path)


def read_dicom(data: bytes) -> Image.Image:
    """Decode the one image of a DICOM file as the grey levels that a viewer would show.

    - Stored values become modality values, by a table or by slope and intercept. Modality values
      become grey levels by the first VOI table, or else by the first window. MONOCHROME1 is
      inverted afterwards.
    - Without a table or window, the range of the stored bits is mapped to 0..255. With 16 stored
      bits, which may just be the container, the range is the smallest of 8, 10, 12, 14 or 16 bits
      that holds the values of the image (signed if a value is negative), as for a 16-bit PNG.
    - The range of a table is the smallest of 8, 10, 12, 14 or 16 bits that holds its entries.
    - MONOCHROME1 or 2 with the PresentationLUTShape of the other is noted (CONTRADICTION).
    - Padding pixels are black and do not affect the range.
    - 8-bit colour becomes ITU-R 601 luma. Palettes and several frames are refused.

    Only the elements in TAGS are read, and no message quotes the text of an element.

    Returns:
        Image of mode 'L' if every grey level is a whole number, otherwise of mode 'F'.

    Raises:
        ImportError: If pydicom, or a decoder for the transfer syntax, is not installed.
        ValueError: If the file is not a DICOM file with one image.
    """
    try:
        import pydicom.pixels  # noqa: F401 (absent in pydicom 2)
        from pydicom import dcmread
        from pydicom.errors import InvalidDicomError
    except ImportError as error:
        raise ImportError(f'DICOM needs pydicom: {PYDICOM} ({error})') from error
    # The log and the warnings of pydicom quote values of elements.
    logging.getLogger('pydicom').setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            warnings.filterwarnings('error', message='The decoded RLE segment')
            _refuse_large_deflated(data)
            dataset = dcmread(BytesIO(data), specific_tags=TAGS)
            _refuse_large_values(dataset)
            return _dicom_image(dataset)
    except InvalidDicomError:
        raise ValueError('the file is not a DICOM file') from None
    except (_DicomError, ImportError, MemoryError):
        raise
    except Exception as error:  # a damaged file makes pydicom raise almost anything
        raise ValueError(f'the file is damaged ({type(error).__name__})') from None


def full_size(image: Image.Image) -> tuple[int, int]:
    """Return the height and width of an image before it was packed."""
    return image.info.get(FULL_SIZE) or (image.height, image.width)


def colour_difference(data: bytes, name: str | PathLike[str]) -> int:
    """Return the largest difference between colour channels in levels of 256; 0 for grey images.

    JPEG compression of a grey image causes a few levels. DICOM files count as grey.
    """
    if _is_dicom(name):
        return 0
    with _open(data) as image:
        if image.mode not in ('P', 'PA', 'RGB', 'RGBA', 'YCbCr'):
            return 0
        red, green, blue = image.convert('RGB').split()
    pairs = ((red, green), (green, blue))
    return max(ImageChops.difference(*pair).getextrema()[1] for pair in pairs)


def read_patiently(read: Callable[[], T]) -> T:
    """Return the result of a function, called again if a network drive does not answer."""
    for seconds in PAUSES:
        try:
            return read()
        except OSError as error:
            if error.errno not in UNSTEADY:
                raise
        time.sleep(seconds)
    return read()


@contextlib.contextmanager
def _naming(name: str | PathLike[str]) -> Iterator[None]:
    """Turn the errors of reading and decoding an image into errors that name it."""
    try:
        yield
    except FileNotFoundError as error:
        raise ValueError(f'there is no image {name}') from error
    except (OSError, ImportError, MemoryError) as error:
        # Pillow raises OSErrors without a number for damaged files.
        kind = BadImageError if isinstance(error, OSError) and error.errno is None else ValueError
        raise kind(f'image {name} cannot be read: {str(error) or "not enough memory"}') from error
    except Exception as error:  # damaged files make Pillow raise almost anything
        raise BadImageError(f'image {name} cannot be read: {error}') from error


def _is_dicom(name: str | PathLike[str]) -> bool:
    return os.fspath(name).lower().endswith(DICOM_SUFFIXES)


def _read_regular(path: str | PathLike[str]) -> bytes:
    """Read a regular file of limited size, because a device or pipe could block or never end."""
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise ValueError('not a regular file')
    if found.st_size > MAX_BYTES:
        raise ValueError(f'the file has {found.st_size:,} bytes; {MAX_BYTES:,} are allowed')
    # With O_NONBLOCK, opening does not wait for a writer if the file has just become a pipe.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), 'rb', buffering=0) as file:
        return file.read()


def _open(data: bytes) -> Image.Image:
    """Read the header of an image file."""
    try:
        return Image.open(BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise ValueError(f'the format must be one of {", ".join(FORMATS)}') from None


def _decode(data: bytes, image: Image.Image) -> Image.Image:
    """Decode a file whose header has been read (`image`)."""
    if getattr(image, 'is_animated', False):
        raise ValueError('the file holds several images; write each image to its own file')
    if image.mode not in (*MODES_8_BIT, *MODES_16_BIT):
        raise ValueError(f'pixels of mode {image.mode!r} are neither 8-bit nor 16-bit grey')
    if image.mode in MODES_8_BIT and _bits(data, image) > 8:  # Pillow keeps the top byte only
        raise ValueError('16-bit colour or alpha is not read; save the image as 16-bit grey')
    if image.format == 'BMP' and image.tile[0][0] != 'raw':
        raise ValueError('compressed BMPs take minutes to read; save the image as PNG')
    if image.format == 'JPEG' and (fault := _fault_of_scans(data)):
        raise ValueError(fault)
    if image.format == 'PNG':
        # All checksums: decoders ignore those after the pixels, where the rotation may be.
        _open(data).verify()
    pixels = _decode_plain(data, image)
    if pixels is not None:
        return _from_16_bit(pixels) if pixels.itemsize == 2 else Image.fromarray(pixels)
    image.load()  # has the better messages about damage
    if image.format == 'JPEG':
        _refuse_damaged_jpeg(data)
    ImageOps.exif_transpose(image, in_place=True)
    return _to_grey(image)


def _bits(data: bytes, image: Image.Image) -> int:
    """Return the bits per channel in the header of a file."""
    if image.format == 'PNG':
        return data[24]
    return max(image.tag_v2.get(TIFF_BITS, (1,))) if image.format == 'TIFF' else 8


def _decode_plain(data: bytes, image: Image.Image) -> np.ndarray | None:
    """Decode a plain grey PNG or JPEG with kornia-rs, which is up to 2.8 times as fast as Pillow.

    The pixels are identical. Return None if Pillow, which has read the header (`image`), must
    decode the file: if the file is unusual, or damaged, because Pillow's messages are better.
    """
    plain = not image.info.get('interlace') and 'transparency' not in image.info
    if not plain or any(m in data for m in ROTATION_MARKERS):
        return None
    shape = image.height, image.width
    bits = _bits(data, image)  # Pillow widens 2 and 4 bits to mode 'L'
    try:
        if (image.format, image.mode) == ('JPEG', 'L'):
            return decode_image_jpegturbo(data, 'mono')[..., 0]
        if (image.format, image.mode, bits) == ('PNG', 'L', 8):
            return decode_image_png_u8(data, shape, 'mono')[..., 0]
        if (image.format, image.mode, bits) == ('PNG', 'I;16', 16):
            return decode_image_png_u16(data, shape, 'mono')[..., 0]
    except Exception:
        return None
    return None


def _fault_of_scans(data: bytes) -> str:
    """Describe a JPEG with too many scans; no marker occurs by chance within its pixels."""
    count = data.count(JPEG_SCAN)
    return f'it has {count:,} scans; {MAX_SCANS} are allowed' if count > MAX_SCANS else ''


def _refuse_damaged_jpeg(data: bytes) -> None:
    """Refuse a JPEG whose pixels break a rule of the format, of which libjpeg only warns.

    Pillow ignores the warnings and invents the pixels; kornia-rs does not.
    """
    try:
        decode_image_jpegturbo(data, 'rgb')
    except Exception:
        raise ValueError('the compressed pixels are damaged') from None


def _to_grey(image: Image.Image) -> Image.Image:
    if image.mode in MODES_16_BIT:
        # Pillow neither applies a transparent level nor inverts 16 bits.
        inverted = image.format == 'TIFF' and image.tag_v2.get(TIFF_GREY) == WHITE_IS_ZERO
        if inverted or image.has_transparency_data:
            raise ValueError('16-bit grey must be saved with 0 as black and without transparency')
        return _from_16_bit(np.asarray(image))
    if image.has_transparency_data:
        black = Image.new('RGBA', image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image.convert('RGBA'))
    return image.convert('L')


def _from_16_bit(pixels: np.ndarray) -> Image.Image:
    low, high = int(pixels.min()), int(pixels.max())
    if low < 0 or high >= 2**16:
        raise ValueError(f'pixels from {low} to {high} are outside the 16-bit range')
    full = _full_range(high)
    return Image.fromarray(pixels.astype(np.float32) * np.float32(255 / full))


def _full_range(high: int) -> int:
    """Return the highest value of the smallest range of FULL_RANGE_BITS that holds a value."""
    return next(2**bits - 1 for bits in FULL_RANGE_BITS if high < 2**bits)


def _fault(image: Image.Image) -> str:
    """Describe why an image is useless for training; '' for a usable image."""
    width, height = image.size
    if fault := _fault_of_size(width, height):
        return fault
    first = image.getpixel((0, 0))
    places = ((i * width // PROBES, i * height // PROBES) for i in range(1, PROBES))
    if all(image.getpixel(place) == first for place in places):
        low, high = image.getextrema()
        if low == high:
            return f'all pixels are {low:g}'
    return ''


def _fault_of_size(width: int, height: int) -> str:
    short, long = sorted((width, height))
    if short >= MIN_SIDE and long <= MAX_ASPECT * short and width * height <= MAX_PIXELS:
        return ''
    return (
        f'{width} x {height} pixels; sides must have at least {MIN_SIDE} pixels, none may be '
        f'longer than {MAX_ASPECT} times the other, and {MAX_PIXELS:,} pixels are allowed'
    )


# DICOM. Modality, window and inversion are applied to a table of all 65,536 stored values instead
# of to the pixels, which takes half the time.


class _DicomError(ValueError):
    """Raised for a faulty DICOM file; the message quotes no text of the file."""


def _refuse_large_deflated(data: bytes) -> None:
    """Refuse a deflated file that could fill the memory: pydicom inflates the whole file."""
    from pydicom.filereader import read_dataset
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    if DeflatedExplicitVRLittleEndian.encode() not in data:
        return
    stream = BytesIO(data)
    stream.seek(DICOM_PREAMBLE)
    read_dataset(stream, False, True, stop_when=lambda tag, *_: tag.group != 2)  # the header
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflater.decompress(stream.read(), DEFLATED_BYTES)
    if inflater.unconsumed_tail:
        raise _DicomError(f'the deflated data set has more than {DEFLATED_BYTES:,} bytes')


def _refuse_large_values(dataset: 'Dataset') -> None:
    """Refuse an element with so many values that they take minutes or all memory."""
    for tag in dataset.keys():
        element = dataset.get_item(tag)  # sequences have been read, and the rest has a length
        if tag != PIXEL_DATA and getattr(element, 'length', 0) > VALUE_BYTES:
            raise _DicomError(f'the element {tag} has more than {VALUE_BYTES:,} bytes')


def _dicom_image(dataset: 'Dataset') -> Image.Image:
    if 'PixelData' not in dataset:
        raise _DicomError('the file has no pixel data, or ends before them')
    if (frames := int(dataset.get('NumberOfFrames') or 1)) > 1:
        raise _DicomError(f'the file has {frames} frames; write each frame to its own file')
    if missing := [tag for tag in NEEDED_TAGS if dataset.get(tag) is None]:
        raise _DicomError(f'the file has no value of {", ".join(missing)}')
    samples, bits = dataset.SamplesPerPixel, dataset.BitsStored
    kind = str(dataset.get('PhotometricInterpretation')).strip()
    if not (samples == 1 and kind in GREY or samples == 3 and kind in COLOURS and bits == 8):
        raise _DicomError(
            f'PhotometricInterpretation must be one of {", ".join(GREY)} with 1 sample per pixel, '
            f'or {", ".join(COLOURS)} with 3 samples of 8 bits; palettes are not read'
        )
    if dataset.BitsAllocated not in (1, 8, 16):
        raise _DicomError('BitsAllocated must be 1, 8 or 16')
    if dataset.get('HighBit', bits - 1) != bits - 1:
        raise _DicomError(f'HighBit must be BitsStored - 1, which is {bits - 1}')
    if dataset.Rows * dataset.Columns > MAX_PIXELS:  # before memory is allocated
        raise _DicomError(f'{dataset.Columns} x {dataset.Rows} pixels; {MAX_PIXELS:,} are allowed')
    pixels = _dicom_pixels(dataset)
    if pixels.ndim == 3:
        return Image.fromarray(pixels).convert('L')
    codes = pixels.astype(f'u{pixels.itemsize}', copy=False)
    grey = _grey_levels(dataset, codes, inverted=kind == 'MONOCHROME1')
    whole = np.rint(grey)
    is_whole = np.abs(grey - whole).max() < WHOLE
    levels = whole.astype(np.uint8) if is_whole else grey.astype(np.float32)
    image, shape = Image.fromarray(levels[codes]), dataset.get('PresentationLUTShape')
    if shape == SHAPES[GREY[1 - GREY.index(kind)]]:
        image.info[CONTRADICTION] = f'it is {kind}, which is followed, but the shape is {shape}'
    return image


def _dicom_pixels(dataset: 'Dataset') -> np.ndarray:  # [H, W], or [H, W, 3] RGB
    """Decode the stored values; the bits above the stored bits are undefined."""
    from pydicom.encaps import get_frame
    from pydicom.pixels import get_decoder, pixel_array
    from pydicom.pixels.utils import get_expected_length
    from pydicom.uid import JPEGBaseline8Bit, JPEGExtended12Bit, RLELossless

    syntax, plugin = dataset.file_meta.TransferSyntaxUID, ''
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise _DicomError(f'transfer syntax {syntax.name} is not supported') from None
    if syntax.is_encapsulated:
        available = set(decoder.available_plugins)
        if syntax == JPEGExtended12Bit and dataset.BitsStored > 8:
            available &= {'pylibjpeg'}  # Pillow decodes 8 bits only
        plugin = next((name for name in PLUGINS if name in available), '')
        if not plugin:
            raise ImportError(f'no decoder of {syntax.name} ({syntax}) is installed: {DECODERS}')
        frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
        # Some decoders invent the missing end of a frame. Padding may follow the end.
        if syntax != RLELossless and JPEG_END not in frame.rstrip(b'\0')[-16:]:
            raise _DicomError('the compressed frame is truncated')
        if syntax != RLELossless and (fault := _fault_of_scans(frame)):
            raise _DicomError(fault)
        if syntax == JPEGBaseline8Bit:
            _refuse_damaged_jpeg(frame)
        with contextlib.suppress(OSError, SyntaxError):  # Pillow does not read every kind of frame
            width, height = Image.open(BytesIO(frame), formats=('JPEG', 'JPEG2000')).size
            if (height, width) != (dataset.Rows, dataset.Columns):
                raise _DicomError(f'the frame has {width} x {height} pixels, unlike the header')
    elif dataset.PixelData[get_expected_length(dataset) :].rstrip(b'\0'):
        raise _DicomError('it has more pixels than the header states')
    options = {'decoding_plugin': plugin, 'view_only': True, 'correct_unused_bits': False}
    return pixel_array(dataset, index=0, **options)


def _grey_levels(dataset: 'Dataset', codes: np.ndarray, *, inverted: bool) -> np.ndarray:
    """Return the grey level in [0, 255] of every possible pixel value, [256] or [65536].

    The codes [H, W] are the pixels as unsigned numbers.
    """
    bits, signed = dataset.BitsStored, dataset.PixelRepresentation == 1
    every = np.arange(2 ** (8 * codes.itemsize))
    container = _signed(every, 8 * codes.itemsize) if signed else every
    stored = every % 2**bits
    stored = _signed(stored, bits) if signed else stored
    padding = _padding(dataset, container, stored)
    limits = _stored_limits(bits, codes, stored, padding)
    values, limits = _modality(dataset, stored, limits)
    grey = _voi(dataset, values, limits)
    grey = 255 - grey if inverted else grey
    grey[padding] = 0
    if not np.isfinite(grey).all():
        raise _DicomError('a number in the header is not finite')
    return grey


def _signed(values: np.ndarray, bits: int) -> np.ndarray:
    """Interpret unsigned values as two's complement."""
    return np.where(values >= 2 ** (bits - 1), values - 2**bits, values)


def _padding(dataset: 'Dataset', container: np.ndarray, stored: np.ndarray) -> np.ndarray:
    """Return a mask of the padding values, which may need more bits than the stored bits."""
    if dataset.get('PixelPaddingValue') is None:
        return np.zeros(len(stored), bool)
    value = dataset.PixelPaddingValue
    ends = value, dataset.get('PixelPaddingRangeLimit', value)
    low, high = sorted(container[end % len(container)] for end in ends)  # the sign may be wrong
    return (low <= stored) & (stored <= high) | (low <= container) & (container <= high)


def _stored_limits(
    bits: int, codes: np.ndarray, stored: np.ndarray, padding: np.ndarray
) -> tuple[int, int]:
    """Return the stored values that are black and white by default."""
    if bits < FULL_RANGE_BITS[-1]:
        return stored.min(), stored.max()
    occurs = np.zeros(len(stored), bool)
    occurs[codes] = True
    occurring = stored[occurs & ~padding]
    low, high = (occurring.min(), occurring.max()) if len(occurring) else (0, 0)
    if low >= 0:
        return 0, _full_range(high)
    half = next(2**bits // 2 for bits in FULL_RANGE_BITS if max(-low, high + 1) <= 2**bits // 2)
    return -half, half - 1


def _modality(
    dataset: 'Dataset', stored: np.ndarray, limits: tuple[int, int]
) -> tuple[np.ndarray, tuple[float, float]]:
    """Return modality values (for example optical density) and their range."""
    if dataset.get('ModalityLUTSequence'):
        return _looked_up(dataset.ModalityLUTSequence[0], stored)
    slope, intercept = dataset.get('RescaleSlope'), dataset.get('RescaleIntercept')
    slope = 1.0 if slope is None else float(slope)
    intercept = 0.0 if intercept is None else float(intercept)
    if not slope:
        raise _DicomError('RescaleSlope must not be 0')
    low, high = sorted(limit * slope + intercept for limit in limits)
    return stored * slope + intercept, (low, high)


def _voi(dataset: 'Dataset', values: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Convert modality values to grey levels."""
    if dataset.get('VOILUTSequence'):
        values, limits = _looked_up(dataset.VOILUTSequence[0], values)
    elif dataset.get('WindowCenter') is not None and dataset.get('WindowWidth') is not None:
        return _windowed(dataset, values)
    low, high = limits
    return np.clip((values - low) * (255 / (high - low)), 0, 255)


def _windowed(dataset: 'Dataset', values: np.ndarray) -> np.ndarray:
    """Apply the window with pydicom, to the output range 0..255."""
    from pydicom.dataset import Dataset
    from pydicom.pixels import apply_windowing

    view = Dataset()
    view.PhotometricInterpretation, view.BitsStored, view.PixelRepresentation = GREY[1], 8, 0
    view.VOILUTFunction = dataset.get('VOILUTFunction') or 'LINEAR'
    view.add(dataset['WindowCenter'])
    view.add(dataset['WindowWidth'])
    try:
        with np.errstate(over='ignore'):  # an overflow in SIGMOID gives 0
            return apply_windowing(values, view)
    except ValueError:
        raise _DicomError('the VOILUTFunction or WindowWidth is not allowed') from None


def _looked_up(item: 'Dataset', values: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """Look values up in a table; also return the range of the table, as viewers do.

    pydicom's functions (3.0.2) cannot do it: apply_modality_lut has no tables of 10 or 12 bits.
    apply_voi takes values modulo 256 for a table of 8 bits, and modulo 65,536 after a rescaling.
    """
    entries, first = _table(item)
    if values.min() < 0 and first >= 2**15:  # written as unsigned
        first -= 2**16
    places = np.clip(values - first, 0, len(entries) - 1).astype(np.intp)
    return entries[places], (0, _full_range(entries.max()))


def _table(item: 'Dataset') -> tuple[np.ndarray, int]:
    """Read a table: its entries [N], and the value of the first one.

    The descriptor may state more bits than the entries have, and two entries may share a word.
    """
    _refuse_large_values(item)
    count, first, bits = item.LUTDescriptor
    count, data = count % 2**16 or 2**16, item.LUTData
    if isinstance(data, bytes):
        data = np.frombuffer(data, '<u2' if item.original_encoding[1] else '>u2')
    entries = np.array(data, np.int64).reshape(-1)
    if len(entries) == (count + 1) // 2:  # two entries in a word
        entries = np.frombuffer(entries.astype('<u2').tobytes(), np.uint8)
    entries = entries[:count]
    fits = len(entries) == count and bits in range(1, 17)
    if not fits or entries.min() < 0 or entries.max() >= 2**bits:
        raise _DicomError(f'a lookup table must have {count} entries of {bits} bits (16 at most)')
    return entries, first
