"""--check reports whether a run is ready, and every problem if it is not."""

import re
import tempfile
from types import SimpleNamespace

import pytest
import torch
from mistakes import STAGES, config_of, linked
from tiny import arguments, run_folder, run_main, tiny_config
from transfers import write_run

import main_simmim
from data.tables.chexpert import read_csv
from engine import loop, preflight

ROW = re.compile(r'(ok|warning|problem) +(\w[\w: ]*?)  +(\S.*)')


@pytest.fixture(autouse=True)
def short(monkeypatch):
    for name in ('STEP_SECONDS', 'LOADER_SECONDS'):
        monkeypatch.setattr(preflight, name, 0.02)


@pytest.fixture
def check(capfd):
    """Runs --check; returns exit code, verdict, and (status, text) by check."""

    def run(stage, argv):
        capfd.readouterr()
        code = run_main(stage, [*argv, '--check'])
        shown = capfd.readouterr().out.rstrip()
        lines = re.sub(r'\n {9,}(?=[^ -])', '  ', shown).splitlines()  # a long text has several
        rows = filter(None, map(ROW.fullmatch, lines[lines.index('') :]))
        return code, lines[-1], {row[2]: (row[1], row[3]) for row in rows}

    return run


def problems(rows):
    return {name for name, (status, _) in rows.items() if status == 'problem'}


@pytest.mark.parametrize('stage', STAGES)
def test_a_run_that_is_ready(stage, phantom, tmp_path, check):
    weights = write_run(tmp_path, 'simmim')
    cfg = tiny_config(tmp_path / 'run.yaml', stage)
    argv = arguments(cfg, phantom, tmp_path / 'out', '--pretrained', str(weights))
    code, verdict, rows = check(stage, argv)
    assert code == 0 and verdict.startswith('verdict: ready, about ')
    assert not problems(rows)
    splits = ['train', 'holdout'] + (['valid', 'test'] if stage == 'finetune' else [])
    expected = {'device', 'output', 'weights', 'step', 'speed', 'disk', 'time'}
    assert expected | {f'data: {split}' for split in splits} <= set(rows)
    assert str(weights) in rows['weights'][1]
    written = [path.name for path in run_folder(tmp_path / 'out', stage).iterdir()]
    assert written == ['log_rank0.txt']


def test_a_probe_is_checked(phantom, tmp_path, check, monkeypatch):
    monkeypatch.delattr(preflight.Preflight, 'validation_step')  # the same work as a step
    cfg = tiny_config(tmp_path / 'run.yaml', 'finetune', FINETUNE={'MODE': 'linear_probe'})
    code, _, rows = check('finetune', arguments(cfg, phantom, tmp_path / 'out'))
    assert (code, problems(rows)) == (0, set()), rows
    assert rows['weights'][0] == 'warning', 'it starts from random weights'


def test_an_unreadable_image_is_named(eight, tmp_path, check):
    data = linked(eight, tmp_path / 'data')
    image = data / read_csv(data, 'train.csv').file[4]
    contents = image.read_bytes()[:300]
    image.unlink()
    image.write_bytes(contents)
    cfg = config_of(tmp_path, 'simmim', BATCH_SIZE=8)
    code, _, rows = check('simmim', arguments(cfg, data, tmp_path / 'out'))
    assert (code, problems(rows)) == (1, {'data: train'})
    assert 'train.csv' in rows['data: train'][1] and 'row 6' in rows['data: train'][1]


@pytest.mark.parametrize(
    'module, version',
    [
        ('NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12', '535.183.01'),
        ('NVIDIA UNIX Open Kernel Module for x86_64  570.86.10  Release', '570.86.10'),
        ('something else', 'unknown'),
    ],
)
def test_an_nvidia_driver_that_is_not_used_is_named(module, version, tmp_path, monkeypatch) -> None:
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    file = tmp_path / 'version'
    monkeypatch.setattr(preflight, 'DRIVER_FILE', file)
    assert preflight._why_cpu()[0] == 'CPU'
    file.write_text(f'NVRM version: {module}\nGCC version: 12\n')
    found, advice = preflight._why_cpu()
    assert version in found and torch.__version__ in found and 'tutorial.md' in advice
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    assert 'CUDA_VISIBLE_DEVICES' in preflight._why_cpu()[1]


def test_weights_disk_output_and_loss_are_all_reported(phantom, tmp_path, check, monkeypatch):
    def refuse(**options):
        raise OSError(30, 'Read-only file system')

    monkeypatch.setattr(tempfile, 'NamedTemporaryFile', refuse)
    monkeypatch.setattr(preflight.shutil, 'disk_usage', lambda path: SimpleNamespace(free=10**5))
    weights = tmp_path / 'half.pth'
    weights.write_bytes(b'half a file')
    data = {'MEAN': [0.5], 'STD': [1e-38]}
    cfg = tiny_config(tmp_path / 'run.yaml', 'simmim', DATA=data)
    argv = arguments(cfg, phantom, tmp_path / 'out')
    code, verdict, rows = check('simmim', argv)
    assert code == 1 and '3 problem' in verdict
    assert problems(rows) == {'disk', 'output', 'step'}
    code, _, rows = check('simmim', [*argv, '--pretrained', str(weights)])
    assert (code, problems(rows)) == (1, {'output', 'weights'}), 'without weights, no steps'
    assert str(weights) in rows['weights'][1]


def test_a_checkpoint_has_the_model_and_two_moments_of_adamw() -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    steps = 2 * 4  # a float32 of each of the two parameters
    state = SimpleNamespace(module=model, optimizer=optimizer)
    assert preflight.checkpoint_bytes(state) == 3 * (6 + 2) * 4 + steps


def test_batch_norm_gets_two_images(phantom, tmp_path, check):
    """In the last layers a channel has one value per image, so batch norm rejects single images."""
    model = {'TYPE': 'timm', 'IN_CHANS': 1, 'TIMM': {'NAME': 'resnet10t'}}
    cfg = tiny_config(tmp_path / 'run.yaml', 'finetune', model)
    code, _, rows = check('finetune', arguments(cfg, phantom, tmp_path / 'out'))
    assert code == 0 and not problems(rows)


@pytest.mark.parametrize('processes', [1, 2])
def test_a_batch_that_does_not_fit_into_memory(processes, phantom, tmp_path, monkeypatch, capfd):
    """Of several processes it ends the check: the others would wait for the gradients."""

    def loss(model, batch):
        raise torch.OutOfMemoryError('CUDA out of memory.')

    monkeypatch.setattr(main_simmim, 'reconstruction_loss', loss)
    monkeypatch.setattr(loop, 'wrap_parallel', lambda model, *_: model)
    monkeypatch.setattr(preflight.distributed, 'world_size', lambda: processes)
    argv = arguments(tiny_config(tmp_path / 'run.yaml', 'simmim'), phantom, tmp_path / 'out')
    assert run_main('simmim', [*argv, '--check']) == processes
    shown = capfd.readouterr().out
    assert 'CUDA out of memory' in shown and ('verdict' in shown) == (processes == 1)
