"""Outputs of an export without this project: only NumPy, and onnxruntime or transformers.

python -I export/standalone.py EXPORT IMAGES.npy OUTPUTS.npy

EXPORT is an .onnx file or a folder for transformers, IMAGES.npy [B, C, S, S] in float32, prepared
as the model wants them. The file may be copied anywhere: it imports nothing of the project.
"""

import argparse
import json
from pathlib import Path

import numpy as np


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ('export', 'images', 'outputs'):
        parser.add_argument(name, type=Path)
    return parser.parse_args()


def onnx_outputs(path: Path, images: np.ndarray) -> np.ndarray:
    """What onnxruntime gives."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    return session.run(None, {session.get_inputs()[0].name: images})[0]


def huggingface_outputs(folder: Path, images: np.ndarray) -> np.ndarray:
    """What transformers gives: logits, or an encoder's tokens."""
    import torch
    import transformers

    name = json.loads((folder / 'config.json').read_text('utf-8'))['architectures'][0]
    is_classifier = name.endswith('ForImageClassification')
    kind = transformers.AutoModelForImageClassification if is_classifier else transformers.AutoModel
    model = kind.from_pretrained(folder).eval()
    with torch.no_grad():
        outputs = model(pixel_values=torch.from_numpy(images))
    return (outputs.logits if is_classifier else outputs.last_hidden_state).numpy()


def main(args: argparse.Namespace) -> int:
    run = huggingface_outputs if args.export.is_dir() else onnx_outputs
    np.save(args.outputs, run(args.export, np.load(args.images, allow_pickle=False)))
    return 0


if __name__ == '__main__':
    raise SystemExit(main(parse_args()))
