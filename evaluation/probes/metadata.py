"""The metadata baseline: what view, age, sex and the number of the study say about a label.

FINETUNE.MODE 'metadata' fits a logistic regression on these numbers, without an image. What it
predicts well can be predicted without looking at the lungs: sick patients, for example, are X-rayed
in bed, from the front (AP), and a model may only have learned to tell the view.
"""

from collections.abc import Iterable

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader

from data.tables.groups import add_demographics
from data.tables.records import Records
from engine.run import Run

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


def read_metadata(run: Run, loaders: Iterable[DataLoader | None]) -> None:
    """Let all loaders give the features [B, F] of their images in place of the images.

    Sex and age may come from DATA.DEMOGRAPHICS. A warning names what is known of no image.
    """
    found = []
    for loader in filter(None, loaders):
        dataset = loader.dataset
        records = add_demographics(dataset.records, run.config.DATA.DEMOGRAPHICS)
        found.append(metadata_features(records))
        dataset.image, dataset.transform = found[-1].__getitem__, _as_tensor
    is_known = dict(zip(NAMES, np.concatenate(found).any(axis=0).tolist(), strict=True))
    for subject, names in FEATURES.items():
        if not any(is_known[name] for name in names if 'unknown' not in name):
            run.logger.warning(f'metadata: the {subject} of no image is known')


def _as_tensor(features: np.ndarray, _rng: np.random.Generator) -> torch.Tensor:
    return torch.from_numpy(features)
