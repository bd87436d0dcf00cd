"""What view, age, sex and the number of the study are as numbers, for models that read them.

FINETUNE.MODE 'metadata' reads all of them and no image (`evaluation.probes.metadata`), and
MODEL.HEAD 'patient' those of MODEL.PATIENT.INPUTS beside the image (`models.patient_head`).
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from config import Config
from data.tables.groups import add_demographics
from data.tables.records import Records

# Features by what they describe. An unknown value is 0, and has a feature of its own where 0 is a
# value like others.
FEATURES = {
    'view': ('frontal', 'lateral', 'AP', 'PA'),
    'sex': ('Male', 'Female'),
    'age': ('age', 'age unknown'),
    'number of the study': ('number', 'number unknown'),
}
NAMES = tuple(name for names in FEATURES.values() for name in names)
# The 3 of study3. Longer numbers, such as that of MIMIC's s50414267, do not count studies.
STUDY_NUMBER = r'(?:\A|study|[/_ -])(\d{1,4})\Z'


def metadata_features(records: Records) -> np.ndarray:
    """Return the FEATURES of each image, [N, F] float32. Age 0 counts as unknown."""
    age = np.where(records.age > 0, records.age, np.nan)
    number = pd.Series(records.study, dtype=object).str.extract(STUDY_NUMBER)[0].to_numpy(float)
    columns = [records.view == 'frontal', records.view == 'lateral']
    columns += [records.ap_pa == 'AP', records.ap_pa == 'PA']
    columns += [records.sex == name for name in FEATURES['sex']]
    for values in (age, number):
        columns += [np.nan_to_num(values), np.isnan(values)]
    return np.stack(columns, axis=1).astype(np.float32)


def columns_of(inputs: Sequence[str]) -> list[int]:
    """Return the positions in NAMES of the features that describe these keys of FEATURES."""
    return [k for key in FEATURES if key in inputs for k in map(NAMES.index, FEATURES[key])]


def patient_numbers(config: Config, records: Records) -> np.ndarray:
    """Return the features of MODEL.PATIENT.INPUTS of each image, [N, P] float32.

    Sex and age may come from DATA.DEMOGRAPHICS.
    """
    found = metadata_features(add_demographics(records, config.DATA.DEMOGRAPHICS))
    return found[:, columns_of(config.MODEL.PATIENT.INPUTS)]


def unknown_subjects(
    features: np.ndarray, inputs: Sequence[str] = tuple(FEATURES)
) -> Iterator[str]:
    """Yield what is known of no image, given features [N, P] of these keys of FEATURES."""
    names = [NAMES[k] for k in columns_of(inputs)]
    is_known = dict(zip(names, features.any(axis=0).tolist(), strict=True))
    for subject in (key for key in FEATURES if key in inputs):
        if not any(is_known[name] for name in FEATURES[subject] if 'unknown' not in name):
            yield subject
