"""A .pt2 file: the program of torch.export, which runs without the model's code."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.export import Dim, ExportedProgram

from checksums import in_one_line
from export.files import check_output, new_file
from export.source import Source, example_images, facts, largest_difference

TARGET = 'torch_export'
FACTS_FILE = 'simmim.json'  # inside the file
EXAMPLES = 2  # images: of one the program would be for batches of one
MOST_IMAGES = 65535  # in a batch; PyTorch 2.6 needs a bound to be sure of its slices


def write_torch_export(source: Source, path: Path, *, overwrite: bool) -> float:
    """Write the program and check what it gives; returns the greatest difference.

    Raises:
        ValueError: if the path is taken, or this PyTorch cannot export the model.
    """
    if path.suffix != '.pt2':
        raise ValueError(f'--to torch_export: --output must end in .pt2, got {path}')
    check_output(path, overwrite=overwrite)
    program = program_of(source, TARGET)
    with new_file(path) as file:
        torch.export.save(program, file, extra_files={FACTS_FILE: json.dumps(facts(source))})
        return largest_difference(source, torch.export.load(file).module(), TARGET)


@torch.no_grad()
def program_of(source: Source, target: str) -> ExportedProgram:
    """The network as a program for batches of up to MOST_IMAGES.

    Raises:
        ValueError: naming the target, if this PyTorch cannot trace it.
    """
    shapes = ({0: Dim('batch', max=MOST_IMAGES)},)
    images = example_images(source, EXAMPLES)
    with refuse_untraceable(target):
        # Strict: else the length of a tensor, such as len(tokens), is taken for a constant.
        return torch.export.export(source.network, (images,), dynamic_shapes=shapes, strict=True)


@contextmanager
def refuse_untraceable(target: str) -> Iterator[None]:
    """Make a ValueError of what PyTorch raises for a model that it cannot export."""
    try:
        yield
    except RuntimeError as error:
        raise ValueError(
            f'--to {target}: PyTorch {torch.__version__} cannot export this model; another version '
            f'may ({in_one_line(error):.300})'
        ) from error
