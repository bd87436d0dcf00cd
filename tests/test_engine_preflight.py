"""--check reports whether a run is ready, and every problem if it is not."""

import logging
import re
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mistakes import STAGES, config_of, linked
from tiny import arguments, run_folder, run_main, tiny_config

from config import default_config
from data.records import read_csv
from engine import preflight
from engine.preflight import checkpoint_bytes
from models import build_model
from optimizer import build_optimizer

ROW = re.compile(r'(ok|warning|problem) +(\w[\w: ]*?)  +(\S.*)')


@pytest.fixture(autouse=True)
def short(monkeypatch):
    for name in ('STEP_SECONDS', 'MODEL_SECONDS', 'LOADER_SECONDS'):
        monkeypatch.setattr(preflight, name, 0.02)


@pytest.fixture
def check(capfd):
    """Runs --check; returns exit code, verdict, and (status, text) by check."""

    def run(stage: str, argv: list[str]) -> tuple[int, str, dict[str, tuple[str, str]]]:
        capfd.readouterr()
        code = run_main(stage, [*argv, '--check'])
        lines, rows = capfd.readouterr().out.rstrip().splitlines(), {}
        for line in lines[lines.index('') :]:
            if match := ROW.fullmatch(line):
                name = match[2]
                rows[name] = match[1], match[3]
            elif line.startswith('  '):
                rows[name] = rows[name][0], f'{rows[name][1]} {line.strip()}'
        return code, lines[-1], rows

    return run


def statuses(rows: dict[str, tuple[str, str]], status: str) -> set[str]:
    return {name for name, (found, _) in rows.items() if found == status}


def model_of(cfg: Path) -> torch.nn.Module:
    config = default_config()
    config.merge_from_file(cfg)
    return build_model(config, is_pretrain=True)


@pytest.mark.parametrize('stage', STAGES)
def test_a_run_that_is_ready(stage, phantom, tmp_path, check):
    cfg, weights = tiny_config(tmp_path / 'run.yaml', stage), tmp_path / 'encoder.pth'
    torch.save({'model': model_of(cfg).state_dict()}, weights)
    argv = arguments(cfg, phantom, tmp_path / 'out', '--pretrained', str(weights))
    code, verdict, rows = check(stage, argv)
    assert code == 0 and verdict.startswith('verdict: ready, about ')
    assert not statuses(rows, 'problem')
    splits = ['train', 'holdout'] + (['valid', 'test'] if stage == 'finetune' else [])
    expected = {'device', 'workers', 'output', 'weights', 'schedule', 'step', 'memory', 'speed'}
    assert expected | {'disk', 'time', *(f'data: {split}' for split in splits)} <= set(rows)
    assert str(weights) in rows['weights'][1]
    written = [path.name for path in run_folder(tmp_path / 'out', stage).iterdir()]
    assert written == ['log_rank0.txt']


@pytest.mark.slow
@pytest.mark.parametrize('mode', ['linear_probe', 'last_layer'])
def test_a_probe_is_checked(mode, phantom, tmp_path, check):
    cfg = tiny_config(tmp_path / 'run.yaml', 'finetune', FINETUNE={'MODE': mode})
    code, _, rows = check('finetune', arguments(cfg, phantom, tmp_path / 'out'))
    assert (code, statuses(rows, 'problem')) == (0, set()), rows
    assert ('schedule' in rows) == (mode == 'last_layer')
    assert rows['weights'][0] == 'warning', 'it starts from random weights'


@pytest.fixture
def argv(phantom, tmp_path):
    return arguments(tiny_config(tmp_path / 'run.yaml', 'simmim'), phantom, tmp_path / 'out')


def test_an_unreadable_image_is_named(eight, tmp_path, check):
    data = linked(eight, tmp_path / 'data')
    image = data / read_csv(data, 'train.csv').file[4]
    contents = image.read_bytes()[:300]
    image.unlink()
    image.write_bytes(contents)
    cfg = config_of(tmp_path, 'simmim', BATCH_SIZE=8)
    code, _, rows = check('simmim', arguments(cfg, data, tmp_path / 'out'))
    assert (code, statuses(rows, 'problem')) == (1, {'data: train'})
    assert 'train.csv' in rows['data: train'][1] and 'row 6' in rows['data: train'][1]


def test_damaged_weights_and_a_small_disk_are_both_reported(argv, tmp_path, check, monkeypatch):
    usage = SimpleNamespace(free=100_000)
    monkeypatch.setattr(preflight.shutil, 'disk_usage', lambda path: usage)
    path = tmp_path / 'half.pth'
    path.write_bytes(b'half a file')
    code, verdict, rows = check('simmim', [*argv, '--pretrained', str(path)])
    assert code == 1 and '2 problem' in verdict
    assert statuses(rows, 'problem') == {'weights', 'disk'}
    assert str(path) in rows['weights'][1]


def test_memory_a_non_finite_loss_and_a_read_only_folder(phantom, tmp_path, check, monkeypatch):
    def refuse(**options):
        raise OSError(30, 'Read-only file system')

    monkeypatch.setattr(preflight, 'available_memory', lambda *_: 10**6)
    monkeypatch.setattr(tempfile, 'NamedTemporaryFile', refuse)
    data = {'MEAN': [0.5], 'STD': [1e-38]}
    cfg = tiny_config(tmp_path / 'run.yaml', 'simmim', DATA=data, TRAIN={'ON_NAN': 'skip'})
    code, _, rows = check('simmim', arguments(cfg, phantom, tmp_path / 'out'))
    assert code == 1
    assert statuses(rows, 'problem') >= {'memory', 'step', 'output'}
    assert 'Read-only' in rows['output'][1]


def test_a_slow_machine_gives_warnings(phantom, tmp_path, check, monkeypatch):
    monkeypatch.setattr(preflight, 'file_system', lambda path: 'nfs4')
    monkeypatch.setattr(preflight, 'num_cores', lambda: 1)
    cfg = tiny_config(
        tmp_path / 'run.yaml', 'simmim', DATA={'NUM_WORKERS': 2}, TRAIN={'WARMUP_EPOCHS': 0}
    )
    code, _, rows = check('simmim', arguments(cfg, phantom, tmp_path / 'out'))
    assert code == 0
    assert {'drive', 'workers', 'schedule'} <= statuses(rows, 'warning')
    assert 'DATA.CACHE_DIR' in rows['drive'][1] and 'DATA.NUM_WORKERS' in rows['workers'][1]


def test_held_out_patients_without_both_classes_cannot_select(phantom, tmp_path, check):
    cfg = tiny_config(tmp_path / 'run.yaml', 'finetune', DATA={'HOLDOUT_FRACTION': 0.02})
    argv = arguments(cfg, phantom, tmp_path / 'out', '--opts', 'EVAL.SELECT')
    code, _, rows = check('finetune', [*argv, 'five'])
    assert (code, statuses(rows, 'problem')) == (1, {'selection'})
    code, _, rows = check('finetune', [*argv, 'auto'])
    assert (code, rows['selection'][0]) == (0, 'warning')


# Values


def test_bytes_of_a_checkpoint(tmp_path):
    config = default_config()
    config.merge_from_file(tiny_config(tmp_path / 'run.yaml', 'simmim'))
    model = build_model(config, is_pretrain=True)
    optimizer = build_optimizer(config, model, logging.getLogger(), is_pretrain=True)
    expected = checkpoint_bytes(SimpleNamespace(module=model, optimizer=optimizer))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    states = optimizer.state_dict()['state'].values()
    tensors = [*model.state_dict().values(), *(v for state in states for v in state.values())]
    assert expected == sum(v.numel() * v.element_size() for v in tensors if v is not None)
