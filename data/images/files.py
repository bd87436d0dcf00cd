"""Read image files as one channel of grey levels: PNG, JPEG, TIFF, BMP and WebP here."""

import contextlib
import errno
import itertools
import os
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import TypeVar

import numpy as np
from kornia_rs.io import decode_image_jpegturbo, decode_image_png_u8, decode_image_png_u16
from PIL import Image, ImageChops, ImageOps

from config import IMAGE_DECODERS, import_by_name

T = TypeVar('T')

MIN_SIDE = 16  # in pixels
MAX_PIXELS = 2**26  # twice those of the largest X-rays; a few kilobytes can decode to any number
COLOUR_LEVELS = 8  # difference between channels that JPEG compression of grey images can cause
UNSTEADY = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT)  # also of a network drive for a moment
PAUSES = (1, 4, 10)  # seconds before a file on such a drive is read again
PROBES = 16  # number of pixels that are compared before all pixels are

# Formats that Pillow may recognise by their contents. Other formats can start programs (EPS).
FORMATS = ('PNG', 'JPEG', 'TIFF', 'BMP', 'WEBP')
MODES_8_BIT = ('1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA', 'YCbCr')
COLOUR_MODES = ('P', 'PA', 'RGB', 'RGBA', 'YCbCr')
MODES_16_BIT = ('I', 'I;16', 'I;16L', 'I;16B', 'I;16N')
FULL_RANGE_BITS = (8, 10, 12, 14, 16)
# Keys in Image.info. They are tuples, because files can set keys that are strings.
FULL_SIZE, PACKED_STEPS, FILE_NAME = ('full size',), ('packed steps',), ('file name',)
CONTRADICTION = ('contradiction',)  # what a DICOM file states that does not fit
VIEW = ('view',)  # of a DICOM file that states it: 'frontal' or 'lateral'
COLOUR_DIFFERENCE = ('colour difference',)  # if it is known: of DICOM files, and 0 for grey files

# Metadata with one of these markers may rotate the image, so Pillow reads these files.
ROTATION_MARKERS = (b'eXIf', b'Exif', b'exif', b'xmp', b'http://ns.adobe.com')

# Tags: bits per channel, and the meaning of grey levels with one of its values.
TIFF_BITS, TIFF_GREY, WHITE_IS_ZERO = 258, 262, 0
DICOM_MAGIC, DICOM_MAGIC_AT = b'DICM', 128  # position in a file


class BadImageError(ValueError):
    """Raised for a damaged or unusable image, for which reading it again does not help."""


def decode_image(data: bytes, name: str | PathLike[str]) -> Image.Image:
    """Decode the contents of an image file as one channel of grey levels.

    Colour becomes ITU-R 601 luma, transparency is put on black, and an EXIF rotation is applied.
    16-bit images are scaled by their true range: the smallest of 8, 10, 12, 14 or 16 bits that
    holds their values. The contents decide the format, which may be DICOM, except for suffixes with
    a decoder of their own (IMAGE_DECODERS in config.py), such as `.dcm`.

    Args:
        data: Contents of the file.
        name: Name of the file; messages contain it.

    Returns:
        Image of mode 'L' for 8 bits, or of mode 'F' with grey levels in [0, 255], not rounded, for
        more bits.

    Raises:
        BadImageError: If the image is damaged, or useless for training (one grey level, tiny) or
            huge.
        ValueError: If a decoder is not installed, or if there is not enough memory.
    """
    with _naming(name):
        if decode := _own_decoder(name, data):
            image = decode(data)
            image.info.setdefault(COLOUR_DIFFERENCE, 0)
        else:
            with _open(data) as opened:
                if fault := _fault_of_size(*opened.size):  # before memory is allocated
                    raise ValueError(fault)
                image = _decode(data, opened)
                if opened.mode not in COLOUR_MODES:
                    image.info[COLOUR_DIFFERENCE] = 0
    if fault := _fault(image):
        raise BadImageError(f'image {name} cannot be used: {fault}')
    return image


def read_file(path: str | PathLike[str]) -> bytes:
    """Read the contents of an image file.

    Raises:
        ValueError: If the file is missing or cannot be read at the moment. The `__cause__` is the
            system error.
    """
    with _naming(path):
        return read_patiently(Path(path).read_bytes)


def load_image(path: str | PathLike[str]) -> Image.Image:
    """Read and decode an image file; see `read_file` and `decode_image` for the errors."""
    image = decode_image(read_file(path), path)
    image.info[FILE_NAME] = str(path)
    return image


def is_image_file(path: str | PathLike[str]) -> bool:
    """Return whether the first bytes of a regular file are those of a format that is read."""
    try:
        with open(path, 'rb') as file:
            start = file.read(DICOM_MAGIC_AT + len(DICOM_MAGIC))
            if start.startswith(DICOM_MAGIC, DICOM_MAGIC_AT):
                return True
            file.seek(0)
            Image.open(file, formats=FORMATS)  # reads the header alone
    except Exception:  # damaged headers make Pillow raise almost anything
        return False
    return True


def grey_levels(image: Image.Image) -> np.ndarray:  # [H, W] uint8
    """Return the pixels as whole grey levels: those of 8 bits as they are, others rounded."""
    pixels = np.asarray(image)
    if pixels.dtype == np.uint8:
        return pixels  # NumPy would round them in float16, which takes half the time of a check
    return np.rint(np.clip(pixels, 0, 255)).astype(np.uint8)


def full_size(image: Image.Image) -> tuple[int, int]:
    """Return the height and width of an image before it was packed."""
    return image.info.get(FULL_SIZE) or (image.height, image.width)


def enlarged_side(size: int) -> int:
    """Return the short side in pixels of the images from which TEST.CROP cuts the centre."""
    return int(256 / 224 * size)


def colour_difference(data: bytes) -> int:
    """Return the `channel_difference` of a file, which the decoded image does not know."""
    with _open(data) as image:
        return channel_difference(image.convert('RGB'))


def channel_difference(image: Image.Image) -> int:
    """Return the largest difference between the channels of an RGB image in levels of 256.

    JPEG compression of a grey image causes a few levels.
    """
    pairs = itertools.combinations(image.split(), 2)
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


def _own_decoder(name: str | PathLike[str], data: bytes) -> Callable[[bytes], Image.Image] | None:
    """Return the function that decodes files with the suffix of a name, if it has one of its own.

    Its module is imported when the first such file is decoded. Files of other names may be DICOM,
    because archives of hospitals export files without a suffix.
    """
    # If a file with such a suffix is damaged, no other format is tried.
    opener = IMAGE_DECODERS.get(os.path.splitext(name)[1].lower())
    if not opener and data.startswith(DICOM_MAGIC, DICOM_MAGIC_AT):
        opener = IMAGE_DECODERS['.dcm']
    return import_by_name(opener) if opener else None


def _open(data: bytes) -> Image.Image:
    """Read the header of an image file."""
    try:
        return Image.open(BytesIO(data), formats=FORMATS)
    except OSError:  # not recognised, or a header that ends too early
        known = import_by_name('data.images.contents:describe_contents')(data)  # few runs need it
        problem = f'the format must be one of {", ".join(FORMATS)}'
        if known.upper().endswith(FORMATS):
            problem = f'it is {known} that is damaged or of a kind that is not read'
        elif known:
            problem += f', but the file is {known}'
        raise ValueError(problem) from None


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
    if image.format == 'PNG':
        # All checksums: decoders ignore those after the pixels, where the rotation may be.
        _open(data).verify()
    pixels = _decode_plain(data, image)
    if pixels is not None:
        return _from_16_bit(pixels) if pixels.itemsize == 2 else Image.fromarray(pixels)
    image.load()  # has the better messages about damage
    if image.format == 'JPEG':
        refuse_damaged_jpeg(data)
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


def refuse_damaged_jpeg(data: bytes) -> None:
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
    full = full_range(high)
    return Image.fromarray(pixels.astype(np.float32) * np.float32(255 / full))


def full_range(high: int) -> int:
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
    if min(width, height) >= MIN_SIDE and width * height <= MAX_PIXELS:
        return ''
    return (
        f'{width} x {height} pixels; sides must have at least {MIN_SIDE} pixels, and '
        f'{MAX_PIXELS:,} pixels are allowed'
    )
