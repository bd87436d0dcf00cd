"""export/to_torch_export.py: the program computes the same in a process without the models."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_export_source import load_run, outputs_of, swin
from tiny import SWIN, VIT

from models.export import example_images, write_torch_export

ALONE = """
import sys, numpy, torch
program = torch.export.load(sys.argv[1]).module()
images = torch.from_numpy(numpy.load(sys.argv[2]))
with torch.no_grad():
    numpy.save(sys.argv[3], program(images).numpy())
"""


def check(stage: str, model: dict, folder: Path) -> Path:
    source, file = load_run(folder, stage, model), folder / 'a.pt2'
    assert write_torch_export(source, file, overwrite=False) < 1e-5
    program = torch.export.load(file).module()
    for count in (1, 5):
        with torch.no_grad():
            found = program(example_images(source, count)).numpy()
        np.testing.assert_allclose(found, outputs_of(source, count), rtol=0, atol=1e-5)
    return file


def test_the_program_computes_the_same_for_any_batch(tmp_path) -> None:
    """The file says, too, how images are prepared."""
    file, extra = check('finetune', VIT, tmp_path), {'simmim.json': ''}
    torch.export.load(file, extra_files=extra)
    facts = json.loads(extra['simmim.json'])
    assert (facts['std'], facts['outputs'][0]) == ([0.292], 'No Finding')


@pytest.mark.slow
@pytest.mark.parametrize(
    'stage, model',
    [('finetune', SWIN), ('finetune', swin(IN_CHANS=3, APE=True)), ('simmim', VIT)],
    ids=['swin', 'swin, what others lack', 'vit, pre-trained'],
)
def test_any_of_our_models_is_exported(stage, model, tmp_path) -> None:
    check(stage, model, tmp_path)


@pytest.mark.slow
def test_a_process_without_this_project_computes_the_same(tmp_path) -> None:
    source, file = load_run(tmp_path, 'finetune', SWIN), tmp_path / 'a.pt2'
    write_torch_export(source, file, overwrite=False)
    np.save(tmp_path / 'images.npy', example_images(source, 3).numpy())
    words = [sys.executable, '-I', '-c', ALONE, file, 'images.npy', 'out.npy']
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / 'out.npy')
    np.testing.assert_allclose(found, outputs_of(source, 3), rtol=0, atol=1e-5)
