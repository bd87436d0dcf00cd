"""Small DICOM files, with tables of grey levels or compressed frames; needs pydicom."""

import io
from pathlib import Path

from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate


def write(path, pixels, bits=8, *, syntax='ExplicitVRLittleEndian', data=None, **tags) -> Path:
    """A DICOM file of grey pixels (of `data`, where given: frames or bytes as they are)."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax = getattr(uid, syntax)
    dataset.SOPClassUID, dataset.SOPInstanceUID = uid.DigitalXRayImageStorageForPresentation, '1.2'
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, 'MONOCHROME2'
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8 * pixels.itemsize, bits, bits - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == 'i')
    if data is None:
        data = pixels.astype(pixels.dtype.newbyteorder('<>'[not syntax.is_little_endian])).tobytes()
    data = encapsulate(data) if isinstance(data, list) else data
    dataset.add_new('PixelData', 'OW' if pixels.itemsize == 2 else 'OB', data)
    dataset['PixelData'].is_undefined_length = syntax.is_encapsulated
    for keyword, value in tags.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


def table(count, first, bits, entries) -> list[Dataset]:
    item = Dataset()
    item.LUTDescriptor = [count % 2**16, first, bits]
    item.add_new('LUTData', 'OW' if isinstance(entries, bytes) else 'US', entries)
    return [item]


def jpeg(pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, 'JPEG', quality=95)
    return file.getvalue()
