"""Features, predictions and scores in Python. Not for clinical use.

They are imported from `simmim_xray`: `from simmim_xray import load_encoder`.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from PIL import Image
from torch import nn

from data.images.files import FILE_NAME, load_image
from data.images.noted_images import describe_notes
from data.transforms import EvalTransform
from evaluation import inference
from evaluation.probes import features
from scripts import evaluate as evaluation_script
from scripts.predict import list_images, predict_images, read_config

LOGGER = logging.getLogger(__name__)
EXAMPLES = Path(__file__).resolve().parents[1] / 'examples'
__all__ = ['evaluate', 'example_xray', 'load_encoder', 'load_image', 'predict']


def example_xray() -> str:
    """Return the path of the chest X-ray that comes with the project (see examples/README.md)."""
    return str(EXAMPLES / 'xray.png')


def load_encoder(
    checkpoint: str | Path, device: str = 'cpu'
) -> tuple[nn.Module, Callable[[str | Path | Image.Image], torch.Tensor]]:
    """Load the encoder of a checkpoint of this project, and its transform.

    `encoder(transform('xray.png')[None])` are the features [1, F] of an image.

    Args:
        checkpoint: Checkpoint of pre-training or fine-tuning: a path, an address such as
            hf://owner/name, or the name of weights in examples/weights, such as 'mae-vit-64px'.
        device: Where the encoder computes, such as 'cuda'.

    Returns:
        The encoder, images [B, C, S, S] -> features [B, F], in evaluation mode and without
        gradients; and the transform, an image file or an image of `load_image` -> [C, S, S]. It
        raises a ValueError for all else.

    Raises:
        ValueError: If the checkpoint contains no options, or its weights do not fit them.
    """
    config = features.encoder_config(checkpoint)
    encoder, _ = features.load_encoder(config, checkpoint, torch.device(device), is_own=True)
    as_trained = EvalTransform(config, is_scored=False)

    def transform(image: str | Path | Image.Image) -> torch.Tensor:  # [C, S, S]
        if isinstance(image, str | Path):
            image = load_image(image)
        # Other programs decode 16 bits, palettes, rotations and colours in other ways.
        if not (isinstance(image, Image.Image) and FILE_NAME in image.info):
            raise ValueError(
                'transform takes the path of an image, or an image that load_image has read, got '
                f'{type(image).__name__}'
            )
        return as_trained(image)

    return encoder.requires_grad_(False), transform


def predict(images: str | Sequence[str], checkpoint: str, device: str = 'cpu') -> pd.DataFrame:
    """Predict the labels of images with a fine-tuned checkpoint, as scripts/predict.py does.

    Args:
        images: Image files, folders that are searched, or CSV files in CheXpert's layout.
        checkpoint: Checkpoint of main_finetune.py.
        device: Where the model computes, such as 'cuda'.

    Returns:
        Probabilities, a row for each image and a column for each label.

    Raises:
        ValueError: If an image cannot be read, or the checkpoint is not of a classifier.
    """
    config = read_config(checkpoint)
    found = list_images([images] if isinstance(images, str) else [*images])
    where = torch.device(device)
    model = inference.load_classifier(config, checkpoint, where, LOGGER)
    table, notes = predict_images(config, model, found, device=where)
    for line in describe_notes(notes, [*found]):
        LOGGER.warning(line)
    return table


def evaluate(predictions: str | Sequence[str], labels: str, **flags: Any) -> dict[str, Any]:
    """Score prediction files as scripts/evaluate.py does.

    Args:
        predictions: CSV files of predictions.
        labels: CSV file of labels.
        flags: Other flags of the script, such as `level='image'` for --level image.

    Returns:
        The document of the report, as in report.json.

    Raises:
        ValueError: If a file is wrong.
    """
    files = [predictions] if isinstance(predictions, str) else [*predictions]
    words = ['--predictions', *files, '--labels', labels, '--output', '.']
    for name, value in flags.items():
        values = value if isinstance(value, list | tuple) else [value]
        words += [f'--{name.replace("_", "-")}', *map(str, values)]
    try:
        args = evaluation_script.parse_args(words)
    except SystemExit as error:  # argparse has printed the reason
        raise ValueError(f'evaluate: wrong flags, {" ".join(words)}') from error
    return evaluation_script.score_files(args)
