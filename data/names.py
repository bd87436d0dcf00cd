"""Names of images and studies: what a path says about patient, study and view."""

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from data.images import DICOM_SUFFIXES

IMAGE_SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff', *DICOM_SUFFIXES)
# Matches a study in a name: CheXpert's patient00001/study1, MIMIC-CXR's p10000032/s50414267.
STUDY = re.compile(
    r'\A(?P<study>(?:.*?/)?(?P<patient>patient\d+|p\d+)/(?:study|s)\d+)(?=/|\Z)(?P<image>.*)'
)
PATIENT_AND_BELOW = re.compile(r'(?:patient|p)\d+/.*|(?<![^/])[^/]*\Z')  # or the name of the file
PATIENT_PART = re.compile(r'(?:\A|/)(patient\d+)/')
VIEW_NAME = re.compile(r'_(frontal|lateral)\.[^./]+\Z')
SUFFIX = re.compile(rf'(?:{"|".join(map(re.escape, IMAGE_SUFFIXES))})\Z', re.IGNORECASE)


def row_names(names: Sequence[str], key: str = 'Path') -> pd.Index:
    """Return the normalised names by which rows of images (or 'Study': of studies) are matched."""
    normalise = study_name if key == 'Study' else normalise_name
    return pd.Index([normalise(name) for name in names], dtype=object)


def normalise_name(name: str) -> str:
    """Remove the folders above the folder of the patient, and the suffix of an image.

    'CheXpert-v1.0-small/valid/patient64541/study1/view1_frontal.jpg' becomes
    'patient64541/study1/view1_frontal', and MIMIC-CXR's 'files/p10/p10000032/s50414267/x.jpg'
    becomes 'p10000032/s50414267/x'. A name without a patient's folder only loses its suffix.
    """
    match = STUDY.match(name)
    name = name[match.start('patient') :] if match else name
    return SUFFIX.sub('', name.rstrip('/'))


def study_name(name: str) -> str:
    """Return the normalised name of the study of an image; the name itself if it has no study."""
    match = STUDY.match(name)
    return name[match.start('patient') : match.end('study')] if match else name


def views_in_names(names: Sequence[str]) -> np.ndarray:
    """Return the view [N] in names such as view1_frontal.jpg, and '' for other names."""
    found = [VIEW_NAME.search(name) for name in names]
    return np.array([view[1] if view else '' for view in found], object)
