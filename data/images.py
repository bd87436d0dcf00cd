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

import os
import re
from functools import lru_cache
from io import BytesIO
from os import PathLike

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from data.dicom import MAX_PIXELS

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
JPEG_START = b'\xff\xd8'
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
        from data.dicom import read_dicom

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
        if data.startswith(JPEG_START) and _is_plain_jpeg(data):
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
