"""Read DICOM files as one channel of grey levels.

Modality, window and inversion are applied to a table of all 65,536 stored values instead of to the
pixels, which takes half the time.
"""

import contextlib
import logging
import warnings
import zlib
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from data.images.contents import describe_contents
from data.images.files import (
    COLOUR_DIFFERENCE,
    CONTRADICTION,
    DICOM_MAGIC,
    DICOM_MAGIC_AT,
    FULL_RANGE_BITS,
    MAX_PIXELS,
    VIEW,
    channel_difference,
    full_range,
    refuse_damaged_jpeg,
)
from data.images.views import POSITIONS

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

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
    BodyPartExamined ViewPosition
""".split()
# An overlay may be kept in a bit of the pixels above the stored bits.
OVERLAY_BITS = [(group, 0x0102) for group in range(0x6000, 0x6020, 2)]
REQUIRED = """
    SamplesPerPixel PhotometricInterpretation Rows Columns BitsAllocated BitsStored
    PixelRepresentation
""".split()
GREY = ('MONOCHROME1', 'MONOCHROME2')
SHAPES = {'MONOCHROME1': 'INVERSE', 'MONOCHROME2': 'IDENTITY'}  # PresentationLUTShape of each
# Parts of the words for a chest in BodyPartExamined, which many makers write in their own way.
CHEST = ('CHEST', 'THORA', 'TORA', 'LUNG', 'PULMO', 'RIB', 'HEART', 'WHOLEBODY')
COLOURS = ('RGB', 'YBR_FULL', 'YBR_FULL_422', 'YBR_ICT', 'YBR_RCT')
JPEG_END = b'\xff\xd9'
PIXEL_DATA = 0x7FE00010
VALUE_BYTES = 2**18  # of another element; a table of 65,536 entries has half of it
DEFLATED_BYTES = 2**28  # largest data set of a deflated file
WHOLE = 1e-6  # grey levels this close to whole numbers count as whole numbers


def read_dicom(data: bytes) -> Image.Image:
    """Decode the one image of a DICOM file as the grey levels that a viewer would show.

    - Stored values become modality values, by a table or by slope and intercept. Modality values
      become grey levels by the first VOI table, or else by the first window. MONOCHROME1 is
      inverted afterwards.
    - Without a table or window, the range of the stored bits is mapped to 0..255. With 16 stored
      bits, which may just be the container, the range is the smallest of 8, 10, 12, 14 or 16 bits
      that holds the values of the image (signed if a value is negative), as for a 16-bit PNG.
    - The range of a table is the smallest of 8, 10, 12, 14 or 16 bits that holds its entries.
    - MONOCHROME1 or 2 with the PresentationLUTShape of the other is noted (CONTRADICTION), and so
      is a BodyPartExamined without a word for the chest.
    - The view is noted (VIEW) if ViewPosition states it.
    - Padding pixels are black and do not affect the range.
    - 8-bit colour becomes ITU-R 601 luma, and the difference between its channels is noted
      (COLOUR_DIFFERENCE). Palettes and several frames are refused.
    - Values that need more than the stored bits are refused, because they would wrap.
    - A file may lack the preamble, the header, or its transfer syntax, if it is not compressed.

    Only the elements in TAGS are read, and no message quotes the text of an element.

    Returns:
        Image of mode 'L' if every grey level is a whole number, otherwise of mode 'F'.

    Raises:
        ImportError: If pydicom, or a decoder for the transfer syntax, is not installed.
        ValueError: If the file is not a DICOM file with one image.
    """
    try:
        import pydicom.pixels  # noqa: F401 (absent in pydicom 2)
    except ImportError as error:
        raise ImportError(f'DICOM needs pydicom: {PYDICOM} ({error})') from error
    # The log and the warnings of pydicom quote values of elements.
    logging.getLogger('pydicom').setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            warnings.filterwarnings('error', message='The decoded RLE segment')
            return _dicom_image(_read_dataset(data))
    except (_DicomError, ImportError, MemoryError):
        raise
    except Exception:  # a damaged file makes pydicom raise almost anything
        raise ValueError('a number or table in the header is damaged') from None


class _DicomError(ValueError):
    """Raised for a faulty DICOM file; the message quotes no text of the file."""


def _read_dataset(data: bytes) -> 'Dataset':
    """Read the elements in TAGS of a file, which may lack the preamble or the header."""
    from pydicom import dcmread, uid

    has_preamble = data.startswith(DICOM_MAGIC, DICOM_MAGIC_AT)
    start = DICOM_MAGIC_AT + len(DICOM_MAGIC) if has_preamble else 0
    if not start and (known := describe_contents(data)):
        raise _DicomError(f'the file is not a DICOM file, but {known}')
    try:
        _refuse_large_deflated(data, start)
        dataset = dcmread(BytesIO(data), specific_tags=[*TAGS, *OVERLAY_BITS], force=True)
    except _DicomError:
        raise
    except Exception:
        problem = 'the header is damaged' if start else 'it is not a DICOM file'
        raise _DicomError(problem) from None
    if 'PixelData' not in dataset:
        if not (start or 'Rows' in dataset):
            raise _DicomError('it is not a DICOM file, or has no pixel data')
        raise _DicomError('the file has no pixel data, or is truncated')
    _refuse_large_values(dataset)
    if not dataset.file_meta.get('TransferSyntaxUID'):
        if dataset['PixelData'].is_undefined_length:
            raise _DicomError('the pixels are compressed, and the file does not state how')
        implicit, little = dataset.original_encoding  # pydicom recognises it by the first element
        explicit = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
        syntax = uid.ImplicitVRLittleEndian if implicit else explicit
        dataset.file_meta.TransferSyntaxUID = syntax
    return dataset


def _refuse_large_deflated(data: bytes, start: int) -> None:
    """Refuse a deflated file that could fill the memory: pydicom inflates the whole file.

    The header begins at byte `start`.
    """
    from pydicom.filereader import read_dataset
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    if DeflatedExplicitVRLittleEndian.encode() not in data:
        return
    stream = BytesIO(data)
    stream.seek(start)
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
    if missing := [keyword for keyword in REQUIRED if dataset.get(keyword) in (None, '')]:
        raise _DicomError(f'the file lacks {", ".join(missing)}')
    if (frames := int(dataset.get('NumberOfFrames') or 1)) > 1:
        raise _DicomError(f'the file has {frames} frames; write each frame to its own file')
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
    image = _grey_image(dataset, _dicom_pixels(dataset), kind)
    position = str(dataset.get('ViewPosition') or '').strip().upper()
    if view := POSITIONS.get(position):
        image.info[VIEW] = view
    return image


def _grey_image(dataset: 'Dataset', pixels: np.ndarray, kind: str) -> Image.Image:
    """Turn the stored values into grey levels, and note a header that does not fit."""
    if pixels.ndim == 3:
        colour = Image.fromarray(pixels)
        image = colour.convert('L')
        image.info[COLOUR_DIFFERENCE] = channel_difference(colour)
        return image
    codes = pixels.astype(f'u{pixels.itemsize}', copy=False)
    grey, padding = _grey_levels(dataset, codes, inverted=kind == 'MONOCHROME1')
    whole = np.rint(grey)
    is_whole = np.abs(grey - whole).max() < WHOLE
    levels = whole.astype(np.uint8) if is_whole else grey.astype(np.float32)
    shown = levels[codes]
    _refuse_one_level(dataset, codes, shown, padding)
    image = Image.fromarray(shown)
    shape = dataset.get('PresentationLUTShape')
    part = str(dataset.get('BodyPartExamined') or '').strip().upper()
    if shape == SHAPES[GREY[1 - GREY.index(kind)]]:
        image.info[CONTRADICTION] = f'it is {kind}, which is followed, but the shape is {shape}'
    elif part and not any(word in part for word in CHEST):
        image.info[CONTRADICTION] = 'BodyPartExamined names another part of the body than the chest'
    return image


def _refuse_one_level(
    dataset: 'Dataset', codes: np.ndarray, shown: np.ndarray, padding: np.ndarray
) -> None:
    """Refuse different stored values that are shown with one grey level, and name the cause."""
    if len(np.unique(shown[::8, ::8])) > 2:  # with the black of padding
        return
    is_visible = ~padding[codes]
    stored, visible = codes[is_visible], shown[is_visible]
    if not len(visible) and codes.min() != codes.max():
        raise _DicomError('all pixels have a PixelPaddingValue')
    if not len(visible) or visible.min() != visible.max() or stored.min() == stored.max():
        return
    cause = 'the modality table or rescaling'
    if dataset.get('VOILUTSequence'):
        cause = 'the VOI table'
    elif dataset.get('WindowCenter') is not None and dataset.get('WindowWidth') is not None:
        keys = ('WindowCenter', 'WindowWidth')
        center, width = (float(np.ravel(dataset[key].value)[0]) for key in keys)
        cause = f'the window (WindowCenter {center:g}, WindowWidth {width:g})'
    raise _DicomError(f'{cause} gives all pixels the grey level {visible.min():g}')


def _dicom_pixels(dataset: 'Dataset') -> np.ndarray:  # [H, W], or [H, W, 3] RGB
    """Decode the stored values; the bits above the stored bits are undefined."""
    from pydicom.encaps import get_frame
    from pydicom.pixels import get_decoder, pixel_array
    from pydicom.uid import JPEGExtended12Bit, RLELossless

    syntax, plugin = dataset.file_meta.TransferSyntaxUID, ''
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        known = '' if syntax.name == syntax else f' {syntax.name}'  # no text of an unknown one
        raise _DicomError(f'the transfer syntax{known} is not supported') from None
    # The samples of a pixel are neighbours in JPEG frames, whatever the header says.
    is_jpeg = syntax.is_encapsulated and syntax != RLELossless
    if is_jpeg:
        dataset.PlanarConfiguration = 0
    elif dataset.SamplesPerPixel == 3 and dataset.get('PlanarConfiguration') is None:
        raise _DicomError('the file lacks PlanarConfiguration')
    if syntax.is_encapsulated:
        available = set(decoder.available_plugins)
        if syntax == JPEGExtended12Bit and dataset.BitsStored > 8:
            available &= {'pylibjpeg'}  # Pillow decodes 8 bits only
        plugin = next((name for name in PLUGINS if name in available), '')
        if not plugin:
            raise ImportError(f'no decoder of {syntax.name} ({syntax}) is installed: {DECODERS}')
        if is_jpeg:
            _refuse_damaged_frame(get_frame(dataset.PixelData, 0, number_of_frames=1), dataset)
    else:
        _refuse_another_length(dataset)
    options = {'decoding_plugin': plugin, 'view_only': True, 'correct_unused_bits': False}
    try:
        return pixel_array(dataset, index=0, **options)
    except MemoryError:
        raise
    except Exception:
        raise _DicomError(
            f'{plugin or "pydicom"} cannot decode the pixels ({syntax.name})'
        ) from None


def _refuse_another_length(dataset: 'Dataset') -> None:
    """Refuse pixels without compression that are more or fewer than the header states."""
    from pydicom.pixels.utils import get_expected_length

    size, expected = len(dataset.PixelData), get_expected_length(dataset)
    if size < expected:
        raise _DicomError(f'the file ends after {size:,} of {expected:,} bytes of pixels')
    end = expected + expected % 2  # a byte completes an odd number; it may hold anything
    if dataset.PixelData[end:].rstrip(b'\0'):
        raise _DicomError('it has more pixels than the header states')


def _refuse_damaged_frame(frame: bytes, dataset: 'Dataset') -> None:
    """Refuse a JPEG frame that a decoder would complete, repeat or cut without an error."""
    from pydicom.uid import JPEGBaseline8Bit

    # Some decoders invent the missing end of a frame. Padding may follow the end.
    if JPEG_END not in frame.rstrip(b'\0')[-16:]:
        raise _DicomError('the compressed frame is truncated')
    if dataset.file_meta.TransferSyntaxUID == JPEGBaseline8Bit:
        refuse_damaged_jpeg(frame)
    # Pillow does not read every kind of frame.
    with contextlib.suppress(OSError, SyntaxError, Image.DecompressionBombError):
        width, height = Image.open(BytesIO(frame), formats=('JPEG', 'JPEG2000')).size
        if (height, width) != (dataset.Rows, dataset.Columns):
            raise _DicomError(f'the frame has {width} x {height} pixels, unlike the header')


def _grey_levels(
    dataset: 'Dataset', codes: np.ndarray, *, inverted: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return the grey level in [0, 255] of every possible pixel value, and whether it is padding.

    Both have 256 or 65,536 entries. The codes [H, W] are the pixels as unsigned numbers.
    """
    bits, signed = dataset.BitsStored, dataset.PixelRepresentation == 1
    every = np.arange(2 ** (8 * codes.itemsize))
    container = _signed(every, 8 * codes.itemsize) if signed else every
    stored = every % 2**bits
    stored = _signed(stored, bits) if signed else stored
    padding = np.zeros(len(stored), bool)
    value = dataset.get('PixelPaddingValue')
    if value is not None:  # it may need more bits than the stored bits, and its sign may be wrong
        ends = value, dataset.get('PixelPaddingRangeLimit', value)
        low, high = sorted(container[end % len(container)] for end in ends)
        padding = (low <= stored) & (stored <= high) | (low <= container) & (container <= high)
    _refuse_lost_bits(dataset, codes, padding)
    limits = _stored_limits(bits, codes, stored, padding)
    values, limits = _modality(dataset, stored, limits)
    grey = _voi(dataset, values, limits)
    grey = 255 - grey if inverted else grey
    grey[padding] = 0
    if not np.isfinite(grey).all():
        raise _DicomError('a number in the header is not finite')
    return grey, padding


def _signed(values: np.ndarray, bits: int) -> np.ndarray:
    """Interpret unsigned values as two's complement."""
    return np.where(values >= 2 ** (bits - 1), values - 2**bits, values)


def _refuse_lost_bits(dataset: 'Dataset', codes: np.ndarray, padding: np.ndarray) -> None:
    """Refuse pixels with bits above the stored bits that belong to neither a sign nor an overlay.

    Such values would wrap, and the image would be unrecognisable.
    """
    bits, above = dataset.BitsStored, 2 ** (8 * codes.itemsize) - 2**dataset.BitsStored
    if codes.max() < 2**bits:
        return
    occurs = np.zeros(len(padding), bool)
    occurs[codes] = True
    found = np.flatnonzero(occurs & ~padding)
    for tag in OVERLAY_BITS:
        if tag in dataset and dataset[tag].value:
            above &= ~(1 << int(dataset[tag].value))
    lost = found & above
    if dataset.PixelRepresentation == 1:  # the sign of a negative value may be repeated
        lost = lost[(lost != above) | (found & 2 ** (bits - 1) == 0)]
    if lost.any():
        raise _DicomError(f'BitsStored is {bits}, but pixels have higher bits and would wrap')


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
        return 0, full_range(high)
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
    """Convert modality values to grey levels, by a table, by the window, or by their limits."""
    from pydicom.dataset import Dataset
    from pydicom.pixels import apply_windowing

    if dataset.get('VOILUTSequence'):
        values, limits = _looked_up(dataset.VOILUTSequence[0], values)
    elif dataset.get('WindowCenter') is not None and dataset.get('WindowWidth') is not None:
        view = Dataset()  # for the output range 0..255
        view.PhotometricInterpretation, view.BitsStored, view.PixelRepresentation = GREY[1], 8, 0
        view.VOILUTFunction = dataset.get('VOILUTFunction') or 'LINEAR'
        view.add(dataset['WindowCenter'])
        view.add(dataset['WindowWidth'])
        try:
            with np.errstate(over='ignore'):  # an overflow in SIGMOID gives 0
                return apply_windowing(values, view)
        except ValueError:
            raise _DicomError('the VOILUTFunction or WindowWidth is not allowed') from None
    low, high = limits
    return np.clip((values - low) * (255 / (high - low)), 0, 255)


def _looked_up(item: 'Dataset', values: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """Look values up in a table; also return the range of the table, as viewers do.

    pydicom's functions (3.0.2) cannot do it: apply_modality_lut has no tables of 10 or 12 bits.
    apply_voi takes values modulo 256 for a table of 8 bits, and modulo 65,536 after a rescaling.
    """
    _refuse_large_values(item)
    count, first, bits = item.LUTDescriptor  # it may state more bits than the entries have
    count, data = count % 2**16 or 2**16, item.LUTData
    if isinstance(data, bytes):
        data = np.frombuffer(data, '<u2' if item.original_encoding[1] else '>u2')
    entries = np.array(data, np.int64).reshape(-1)
    if len(entries) == (count + 1) // 2:  # two entries in a word
        entries = np.frombuffer(entries.astype('<u2').tobytes(), np.uint8)
    entries = entries[:count]
    is_allowed = len(entries) == count and bits in range(1, 17)
    if not is_allowed or entries.min() < 0 or entries.max() >= 2**bits:
        raise _DicomError(f'a lookup table must have {count} entries of {bits} bits (16 at most)')
    if values.min() < 0 and first >= 2**15:  # written as unsigned
        first -= 2**16
    places = np.clip(values - first, 0, len(entries) - 1).astype(np.intp)
    return entries[places], (0, full_range(entries.max()))
