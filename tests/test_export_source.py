"""What all exports share: sources, names, files, the script; the checkpoints that they are of."""

import json
import logging
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_readme import load_script
from tiny import ROOT, SWIN, VIT, tiny_config

from config import config_text, default_config
from models import build_model
from models import export as naming
from models.convert import to_huggingface
from models.export import (
    Source,
    check_output,
    example_images,
    facts,
    largest_difference,
    load_source,
    new_file,
    new_folder,
)
from utils import save_checkpoint

LOGGER = logging.getLogger('export')


def vit(**options: object) -> dict:
    return VIT | {'VIT': VIT['VIT'] | options}


def swin(**options: object) -> dict:
    return SWIN | {'SWIN': SWIN['SWIN'] | options}


def randomise(model: torch.nn.Module) -> None:
    """No parameter keeps a start of 0 or 1 that would hide that it was forgotten."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            centre = 1.0 if 'norm' in name and name.endswith('.weight') else 0.0
            value.copy_(centre + 0.4 * noise)


def write_run(folder: Path, stage: str, model: dict = SWIN, **sections: dict) -> Path:
    """A checkpoint as a tiny run leaves it, with random weights; returns its path."""
    config = default_config()
    config.merge_from_file(str(tiny_config(folder / 'run.yaml', stage, model, **sections)))
    trained = build_model(config, is_pretrain=stage == 'simmim')
    randomise(trained)
    path = folder / 'ckpt_epoch_1.pth'
    save_checkpoint(path, {'model': trained.state_dict(), 'config': config_text(config)})
    return path


def load_run(folder: Path, stage: str, model: dict = SWIN, **sections: dict) -> Source:
    return load_source(write_run(folder, stage, model, **sections), LOGGER)


def outputs_of(source: Source, count: int) -> np.ndarray:
    with torch.no_grad():
        return source.network(example_images(source, count)).numpy()


@pytest.fixture(scope='module')
def script():
    return load_script(ROOT / 'scripts' / 'export.py')


def run(script, *words: object) -> int:
    return script.main(script.parse_args([*map(str, words)]))


@pytest.mark.parametrize(
    'stage, shape', [('finetune', (3, 14)), ('simmim', (3, 64, 16))], ids=['logits', 'tokens']
)
def test_gives_what_the_run_s_model_gives(stage, shape, tmp_path) -> None:
    """Of a pre-trained encoder the tokens with a mask that hides nothing."""
    source = load_run(tmp_path, stage)
    config = default_config()
    config.merge_from_file(str(tmp_path / 'run.yaml'))
    model = build_model(config, is_pretrain=stage == 'simmim').eval()
    randomise(model)
    images = example_images(source, 3)
    with torch.no_grad():
        if stage == 'finetune':
            expected = model(images)
        else:
            grid = model.encoder(images, torch.zeros(3, 16, 16))  # [B, D, 8, 8]
            expected = grid.flatten(2).transpose(1, 2)
    found = outputs_of(source, 3)
    assert found.shape == shape and found.std() > 0.5
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-5)


def test_swin_s_names_in_other_libraries() -> None:
    """Written down from timm's and transformers' own checkpoints."""
    ours = [
        'patch_embed.proj.weight', 'patch_embed.norm.bias', 'layers.0.blocks.1.norm1.weight',
        'layers.0.blocks.1.attn.relative_position_bias_table', 'layers.0.blocks.1.attn.proj.bias',
        'layers.0.blocks.1.norm2.bias', 'layers.0.blocks.1.mlp.fc1.weight',
        'layers.0.blocks.1.mlp.fc2.bias', 'layers.0.downsample.reduction.weight',
        'layers.0.downsample.norm.weight', 'layers.1.blocks.0.norm1.bias', 'norm.weight',
        'head.bias',
    ]  # fmt: skip
    values = {key: torch.tensor([float(k)]) for k, key in enumerate(ours)}
    timm_names = [
        *ours[:8], 'layers.1.downsample.reduction.weight', 'layers.1.downsample.norm.weight',
        *ours[10:12], 'head.fc.bias',
    ]  # fmt: skip
    assert naming.swin_to_timm(values) == dict(zip(timm_names, values.values(), strict=True))
    block = 'swin.encoder.layers.0.blocks.1'
    hub_names = [
        'swin.embeddings.patch_embeddings.projection.weight', 'swin.embeddings.norm.bias',
        f'{block}.layernorm_before.weight',
        f'{block}.attention.self.relative_position_bias_table',
        f'{block}.attention.output.dense.bias', f'{block}.layernorm_after.bias',
        f'{block}.intermediate.dense.weight', f'{block}.output.dense.bias',
        'swin.encoder.layers.0.downsample.reduction.weight',
        'swin.encoder.layers.0.downsample.norm.weight',
        'swin.encoder.layers.1.blocks.0.layernorm_before.bias', 'swin.layernorm.weight',
        'classifier.bias',
    ]  # fmt: skip
    renamed = naming.with_prefix(to_huggingface(values), 'swin.')
    assert renamed == dict(zip(hub_names, values.values(), strict=True))


def test_queries_keys_and_values_are_parted_and_joined_in_this_order() -> None:
    weight = torch.arange(6.0).view(6, 1)
    state = {
        'blocks.0.attn.q_bias': torch.tensor([1.0, 2.0]),
        'blocks.0.attn.v_bias': torch.tensor([3.0, 4.0]),
        'blocks.0.attn.qkv.weight': weight,
        'blocks.0.gamma_2': torch.tensor([5.0, 6.0]),
        'norm.weight': torch.ones(2),
    }
    joined = naming.vit_to_timm_vit(state)
    assert sorted(joined) == [
        'blocks.0.attn.qkv.bias', 'blocks.0.attn.qkv.weight', 'blocks.0.ls2.gamma', 'norm.weight',
    ]  # fmt: skip
    assert joined['blocks.0.attn.qkv.bias'].tolist() == [1, 2, 0, 0, 3, 4]
    parted = naming.vit_to_huggingface(state)
    attention = 'encoder.layer.0.attention.attention'
    assert {key: value.flatten().tolist() for key, value in parted.items()} == {
        f'{attention}.query.bias': [1, 2],
        f'{attention}.value.bias': [3, 4],
        f'{attention}.query.weight': [0, 1],
        f'{attention}.key.weight': [2, 3],
        f'{attention}.value.weight': [4, 5],
        'encoder.layer.0.lambda_2': [5, 6],
        'layernorm.weight': [1, 1],
    }


def test_outputs_of_the_policy_multiclass_are_named_by_label_and_class(tmp_path) -> None:
    source = load_run(tmp_path, 'finetune', DATA={'UNCERTAIN': 'multiclass'})
    assert outputs_of(source, 1).shape == (1, 42)
    assert source.outputs[15:18] == ('Edema: negative', 'Edema: positive', 'Edema: uncertain')
    assert len(set(source.outputs)) == 42


def test_facts_say_how_images_are_prepared(tmp_path) -> None:
    options = {'DATA': {'NORMALIZE': 'image', 'INTERPOLATION': 'random'}, 'TEST': {'CROP': True}}
    found = facts(load_run(tmp_path / 'a', 'finetune', swin(IN_CHANS=3), **options))
    assert found['input_size'] == [3, 32, 32] and found['mean'] == [0.485, 0.456, 0.406]
    assert (found['normalize'], found['interpolation'], found['centre_crop']) == (
        'image', 'bilinear', True,
    )  # fmt: skip
    assert found['outputs'][:2] == ['No Finding', 'Enlarged Cardiomediastinum']
    found = facts(load_run(tmp_path / 'b', 'simmim'))
    assert (found['outputs'], found['interpolation']) == ('tokens', 'bilinear')
    assert (found['mean'], found['std']) == ([0.503], [0.292])
    assert json.loads(json.dumps(found)) == found


def test_outputs_that_differ_are_refused(tmp_path) -> None:
    source = load_run(tmp_path, 'finetune')
    assert largest_difference(source, lambda x: source.network(x) + 5e-5, 'timm') < 1e-4
    for wrong in (2e-4, float('nan')):
        with pytest.raises(ValueError, match='--to timm: .* gives other outputs'):
            largest_difference(source, lambda x, wrong=wrong: source.network(x) + wrong, 'timm')


def test_an_output_that_is_there_is_replaced_only_if_asked_and_only_an_export(tmp_path) -> None:
    own = ('config.json', 'README.md')
    check_output(tmp_path / 'new', overwrite=False, own=own)
    (tmp_path / 'file').write_text('')
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'folder' / 'config.json').write_text('')
    for name, names in (('file', ()), ('folder', own)):
        with pytest.raises(ValueError, match='is there already'):
            check_output(tmp_path / name, overwrite=False, own=names)
        check_output(tmp_path / name, overwrite=True, own=names)
    with pytest.raises(ValueError, match='must be a folder'):
        check_output(tmp_path / 'file', overwrite=True, own=own)
    with pytest.raises(ValueError, match='must be a file'):
        check_output(tmp_path / 'folder', overwrite=True)
    (tmp_path / 'folder' / 'thesis.docx').write_text('')
    with pytest.raises(ValueError, match=r"has 'thesis\.docx', too"):
        check_output(tmp_path / 'folder', overwrite=True, own=own)


def test_what_fails_on_the_way_leaves_what_was_there(tmp_path) -> None:
    (tmp_path / 'a.onnx').write_text('old')
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'folder' / 'config.json').write_text('old')
    with pytest.raises(RuntimeError), new_file(tmp_path / 'a.onnx') as file:
        file.write_text('half')
        raise RuntimeError
    with pytest.raises(RuntimeError), new_folder(tmp_path / 'folder') as folder:
        (folder / 'config.json').write_text('half')
        raise RuntimeError
    names = ['a.onnx', 'folder', 'folder/config.json']
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob('*')) == names
    assert (tmp_path / 'a.onnx').read_text() == 'old'
    assert (tmp_path / 'folder' / 'config.json').read_text() == 'old'
    with new_file(tmp_path / 'a.onnx') as file:
        file.write_text('new')
    with new_folder(tmp_path / 'folder') as folder:
        (folder / 'README.md').write_text('new')
    assert (tmp_path / 'a.onnx').read_text() == 'new'
    names[2] = 'folder/README.md'
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob('*')) == names


@pytest.mark.parametrize('failing', [1, 2])
def test_a_rename_that_fails_loses_nothing(failing: int, tmp_path, monkeypatch) -> None:
    path = tmp_path / 'folder'
    path.mkdir()
    (path / 'config.json').write_text('old')
    calls, rename = [], Path.rename

    def fail(self: Path, target: Path) -> Path:
        calls.append(self.name)
        if len(calls) == failing:
            raise OSError('the disk is gone')
        return rename(self, target)

    monkeypatch.setattr(Path, 'rename', fail)
    with pytest.raises(OSError, match='the disk is gone'), new_folder(path) as folder:
        (folder / 'config.json').write_text('new')
    assert calls[:failing] == ['folder', '.folder.tmp'][:failing]
    assert [str(p.relative_to(tmp_path)) for p in sorted(tmp_path.rglob('*'))] == [
        'folder', 'folder/config.json',
    ]  # fmt: skip
    assert (path / 'config.json').read_text() == 'old'


def test_what_a_killed_process_put_aside_comes_back(tmp_path) -> None:
    path, old = tmp_path / 'folder', tmp_path / '.folder.old'
    old.mkdir()
    (old / 'config.json').write_text('old')
    with pytest.raises(RuntimeError), new_folder(path):
        raise RuntimeError
    assert (path / 'config.json').read_text() == 'old' and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    'target, name, model, part',
    [
        ('timm', 'a.bin', SWIN, 'must end in .safetensors'),
        ('onnx', 'a.bin', SWIN, 'must end in .onnx'),
        ('torch_export', 'a.bin', SWIN, 'must end in .pt2'),
        ('timm', 'a.safetensors', swin(APE=True), 'MODEL.SWIN.APE must be False'),
        ('timm', 'a.safetensors', swin(PATCH_NORM=False), 'MODEL.SWIN.PATCH_NORM must be True'),
        ('timm', 'a.safetensors', swin(QK_SCALE=0.5), 'MODEL.SWIN.QK_SCALE must be None'),
        (
            'timm',
            'a.safetensors',
            {'TYPE': 'timm', 'DROP_PATH_RATE': 0.0, 'TIMM': {'NAME': 'resnet10t'}},
            "MODEL.TYPE must be one of ['swin', 'vit'], got 'timm'",
        ),
    ],
)
def test_the_script_refuses_in_one_line(target, name, model, part, script, tmp_path, capsys):
    checkpoint = write_run(tmp_path, 'finetune', model)
    before = sorted(tmp_path.iterdir())
    assert run(script, checkpoint, '--to', target, '--output', tmp_path / name) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith('error: ') and part in lines[0], lines
    assert sorted(tmp_path.iterdir()) == before


def test_the_script_refuses_what_is_no_checkpoint_of_a_run(script, tmp_path, capsys) -> None:
    save_checkpoint(tmp_path / 'a.pth', {'model': {'head.weight': torch.ones(2, 2)}})
    for file, part in (('a.pth', 'no checkpoint of main_simmim'), ('b.pth', 'no such checkpoint')):
        words = (tmp_path / file, '--to', 'timm', '--output', tmp_path / 'c.safetensors')
        assert run(script, *words) == 2
        assert part in capsys.readouterr().err


def test_a_package_that_is_missing_is_named_with_the_file(tmp_path, monkeypatch) -> None:
    from models.export import write_huggingface, write_onnx

    source = load_run(tmp_path, 'finetune')
    for write, package, name in (
        (write_huggingface, 'transformers', 'folder'),
        (write_onnx, 'onnxscript', 'a.onnx'),
    ):
        monkeypatch.setitem(sys.modules, 'onnx', sys)  # there, whatever it is
        monkeypatch.setitem(sys.modules, package, None)
        match = rf'{package}: pip install -r requirements-export\.txt'
        with pytest.raises(ValueError, match=match):
            write(source, tmp_path / name, overwrite=False)
        assert not (tmp_path / name).exists()
