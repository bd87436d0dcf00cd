"""Run an export without this project: only NumPy, and onnxruntime or transformers.

python -I run_export.py EXPORT IMAGES.npy OUTPUTS.npy

EXPORT is an .onnx file or a folder for transformers, IMAGES.npy is float32 [B, C, S, S], prepared
as the model expects. This file imports nothing from the project and may be copied anywhere.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ('export', 'images', 'outputs'):
        parser.add_argument(name, type=Path)
    return parser.parse_args()


def main(args: argparse.Namespace) -> int:
    run = run_transformers if args.export.is_dir() else run_onnx
    np.save(args.outputs, run(args.export, np.load(args.images, allow_pickle=False)))
    return 0


def run_onnx(path: Path, images: np.ndarray) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    return session.run(None, {session.get_inputs()[0].name: images})[0]


def run_transformers(folder: Path, images: np.ndarray) -> np.ndarray:
    """Return the logits, or an encoder's tokens."""
    import torch
    import transformers

    name = json.loads((folder / 'config.json').read_text('utf-8'))['architectures'][0]
    is_classifier = name.endswith('ForImageClassification')
    kind = transformers.AutoModelForImageClassification if is_classifier else transformers.AutoModel
    model = kind.from_pretrained(folder).eval()
    with torch.no_grad():
        outputs = model(pixel_values=torch.from_numpy(images))
    return (outputs.logits if is_classifier else outputs.last_hidden_state).numpy()


if __name__ == '__main__':
    sys.exit(main(parse_args()))
