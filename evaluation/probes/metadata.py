"""The metadata baseline: what view, age, sex and the number of the study say about a label.

FINETUNE.MODE 'metadata' fits a logistic regression on these numbers, without an image. What it
predicts well can be predicted without looking at the lungs: sick patients, for example, are X-rayed
in bed, from the front (AP), and a model may only have learned to tell the view.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch.utils.data import DataLoader

from data.tables.groups import add_demographics
from data.tables.metadata import metadata_features, unknown_subjects
from engine.run import Run


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
    for subject in unknown_subjects(np.concatenate(found)):
        run.logger.warning(f'metadata: the {subject} of no image is known')


def _as_tensor(features: np.ndarray, _rng: np.random.Generator) -> torch.Tensor:
    return torch.from_numpy(features)
