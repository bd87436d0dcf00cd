"""export/to_onnx.py: what onnxruntime gives, for batches of any size."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_export_source import load_run, outputs_of, swin, vit
from test_export_timm import CASES, MAE
from tiny import ROOT, SWIN, VIT

from models import export as to_onnx
from models.export import Source, example_images, program_of

onnx = pytest.importorskip('onnx', reason='needs requirements-export.txt')
onnxruntime = pytest.importorskip('onnxruntime', reason='needs requirements-export.txt')
pytest.importorskip('onnxscript', reason='needs requirements-export.txt')

RESNET = {'TYPE': 'timm', 'DROP_PATH_RATE': 0.0, 'IN_CHANS': 1, 'TIMM': {'NAME': 'resnet10t'}}
slow = pytest.mark.slow


def export(folder: Path, stage: str, model: dict, **sections: dict) -> tuple[Source, Path]:
    source = load_run(folder, stage, model, **sections)
    file = folder / 'a.onnx'
    assert to_onnx.write_onnx(source, file, overwrite=False) < 1e-5
    return source, file


def check(source: Source, file: Path) -> onnxruntime.InferenceSession:
    onnx.checker.check_model(str(file), full_check=True)
    session = onnxruntime.InferenceSession(str(file), providers=['CPUExecutionProvider'])
    for count in (1, 5):
        images = example_images(source, count).numpy()
        found = session.run(None, {'images': images})[0]
        expected = outputs_of(source, count)
        assert expected.std() > 0.5 and found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    return session


def test_onnxruntime_computes_the_same_for_any_batch(tmp_path) -> None:
    """With three outputs a label, which the file's metadata name, and all weights inside."""
    source, file = export(tmp_path, 'finetune', VIT, DATA={'UNCERTAIN': 'multiclass'})
    session = check(source, file)
    assert [output.name for output in session.get_outputs()] == ['logits']
    assert list(tmp_path.glob('*onnx*')) == [file]
    facts = json.loads(session.get_modelmeta().custom_metadata_map['simmim'])
    assert facts['outputs'] == list(source.outputs) and len(facts['outputs']) == 42
    assert (facts['mean'], facts['input_size']) == ([0.503], [1, 32, 32])


@slow
@pytest.mark.parametrize(
    'stage, model',
    [
        ('finetune', SWIN),
        ('finetune', swin(IN_CHANS=3, APE=True, PATCH_NORM=False, QK_SCALE=0.5)),
        ('simmim', SWIN),
        ('simmim', vit(USE_SINCOS=True, USE_SHARED_RPB=False) | MAE),
    ],
    ids=['swin', 'swin, what others lack', 'swin, pre-trained', 'vit, MAE'],
)
def test_any_of_our_models_is_exported(stage, model, tmp_path) -> None:
    session = check(*export(tmp_path, stage, model))
    name = 'logits' if stage == 'finetune' else 'tokens'
    assert [output.name for output in session.get_outputs()] == [name]


@slow
def test_a_process_without_this_project_computes_the_same(tmp_path) -> None:
    source, file = export(tmp_path, *CASES['vit, shared table'][:2])
    alone = tmp_path / 'standalone.py'
    alone.write_bytes((ROOT / 'export' / 'standalone.py').read_bytes())
    np.save(tmp_path / 'images.npy', example_images(source, 3).numpy())
    words = [sys.executable, '-I', alone, file, tmp_path / 'images.npy', tmp_path / 'out.npy']
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / 'out.npy')
    np.testing.assert_allclose(found, outputs_of(source, 3), rtol=0, atol=1e-5)


@slow
@pytest.mark.skipif(torch.__version__ < (2, 7), reason='PyTorch 2.6 writes no batch norm')
def test_a_model_of_timm_is_exported(tmp_path) -> None:
    """Its random activations are large: they are brought to a deviation of 1."""
    source = load_run(tmp_path, 'finetune', RESNET)
    with torch.no_grad():
        scale = 1 / source.network(example_images(source, 3)).std()
        source.encoder.head.weight *= scale
        source.encoder.head.bias *= scale
    to_onnx.write_onnx(source, tmp_path / 'a.onnx', overwrite=False)
    check(source, tmp_path / 'a.onnx')


@slow
def test_a_graph_that_computes_something_else_is_not_written(tmp_path, monkeypatch) -> None:
    source, other = (load_run(tmp_path, 'finetune', VIT) for _ in range(2))
    other.encoder.head.bias.data += 1e-3
    monkeypatch.setattr(to_onnx, 'program_of', lambda _source, target: program_of(other, target))
    with pytest.raises(ValueError, match='--to onnx: .* other outputs'):
        to_onnx.write_onnx(source, tmp_path / 'a.onnx', overwrite=False)
    assert not list(tmp_path.glob('*onnx*'))


def test_what_pytorch_cannot_export_is_refused_in_one_line(tmp_path) -> None:
    class Untraceable(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images if images.sum() > 0 else -images

    source = load_run(tmp_path, 'finetune', VIT)._replace(network=Untraceable())
    with pytest.raises(ValueError, match=r'--to onnx: PyTorch \S+ cannot export') as error:
        to_onnx.write_onnx(source, tmp_path / 'a.onnx', overwrite=False)
    assert '\n' not in str(error.value)
