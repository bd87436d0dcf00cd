"""Prediction files: `predictions_<split>.csv` and, beside it, where they come from."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd


def write_predictions(
    path: str | Path,
    probabilities: np.ndarray,
    *,
    paths: Sequence[str],
    labels: Sequence[str],
    source: dict[str, Any],
) -> None:
    """Write one row an image, and `source` (checkpoint, data, views...) as JSON beside it.

    Args:
        path: the CSV; the JSON has the same name with `.json`.
        probabilities: [N, K] in [0, 1], written with 9 significant digits.
        paths: [N] as in the data set's CSV.
        labels: [K] names of the columns, in order.
        source: what made the file.
    """
    table = pd.DataFrame(probabilities, columns=list(labels))
    table.insert(0, 'Path', list(paths))
    table.to_csv(path, index=False, float_format='%.9g')
    Path(path).with_suffix('.json').write_text(json.dumps(source, indent=1) + '\n')
