"""Small CSV files of predictions and labels, and names of images and studies for their rows."""

from pathlib import Path

import pandas as pd

PREFIX = 'CheXpert-v1.0-small/valid'


def image(patient: int, view: str = 'view1_frontal', *, prefix=PREFIX, suffix='.jpg') -> str:
    return f'{prefix}/patient{patient:05d}/study1/{view}{suffix}'


def study(patient: int) -> str:
    return f'{PREFIX}/patient{patient:05d}/study1'


def csv_of(file: Path, columns: dict[str, list]) -> Path:
    pd.DataFrame(columns).to_csv(file, index=False)
    return file
