"""An .onnx file: images of any number to logits, or to an encoder's tokens or features."""

import json
from collections.abc import Callable
from pathlib import Path

import torch

from export.files import check_output, new_file
from export.packages import load_package
from export.source import Source, facts, largest_difference
from export.to_torch_export import program_of, refuse_untraceable

TARGET = 'onnx'
INPUT = 'images'
FACTS = 'simmim'  # key of the facts in the file's metadata


def write_onnx(source: Source, path: Path, *, overwrite: bool) -> float:
    """Write the graph and check what onnxruntime makes of it; returns the greatest difference.

    Raises:
        ValueError: if the path is taken, a package is not installed, or this PyTorch cannot export
            the model.
    """
    if path.suffix != '.onnx':
        raise ValueError(f'--to onnx: --output must end in .onnx, got {path}')
    check_output(path, overwrite=overwrite)
    for package in ('onnx', 'onnxscript', 'onnxruntime'):
        load_package(package, TARGET)
    program = program_of(source, TARGET)
    with refuse_untraceable(TARGET):
        graph = torch.onnx.export(
            program,
            dynamo=True,
            input_names=[INPUT],
            output_names=[source.gives],
            dynamic_shapes=({0: 'batch'},),  # the axis is so named
            verbose=False,
        )
    graph.model.metadata_props[FACTS] = json.dumps(facts(source))
    with new_file(path) as file:
        graph.save(file)
        return largest_difference(source, onnx_outputs(file), TARGET)


def onnx_outputs(path: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    """What onnxruntime gives for images [B, C, S, S]."""
    onnxruntime = load_package('onnxruntime', TARGET)
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    return lambda images: torch.from_numpy(session.run(None, {INPUT: images.numpy()})[0])
