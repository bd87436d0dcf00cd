"""--check says of a run, before it starts, whether it is ready, and what is wrong if it is not."""

import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mistakes import STAGES, config_of, edit, linked
from test_bad_data import image_of, set_cell
from test_bad_data import replace as overwrite
from tiny import ROOT, VIT, arguments, run_folder, run_main, tiny_config, torchrun

import utils
from config import default_config
from data.loader import XrayDataset
from engine import preflight
from engine import preflight as preflight_bench
from engine import preflight as preflight_costs
from models import build_model

ROW = re.compile(r'(ok|warning|problem) +(\w[\w: ]*?)  +(\S.*)')
LOCK_HOLDER = """
import sys
from run_lock import RunLock
lock = RunLock(sys.argv[1]).acquire()
print('locked', flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Little is measured: what comes out is not looked at."""
    for name in ('STEP_SECONDS', 'MODEL_SECONDS', 'LOADER_SECONDS'):
        monkeypatch.setattr(preflight_bench, name, 0.02)


@pytest.fixture
def check(capfd):
    """Runs --check; gives exit code, verdict, and by check the status with all that was said."""

    def run(stage: str, argv: list[str]) -> tuple[int, str, dict[str, tuple[str, str]]]:
        capfd.readouterr()
        code = run_main(stage, [*argv, '--check'])
        lines = capfd.readouterr().out.rstrip().splitlines()
        return code, lines[-1], rows_of(lines)

    return run


def rows_of(lines: list[str]) -> dict[str, tuple[str, str]]:
    rows = {}
    for line in lines[lines.index('') :]:
        if match := ROW.fullmatch(line):
            name = match[2]
            rows[name] = match[1], match[3]
        elif line.startswith('  '):
            rows[name] = rows[name][0], f'{rows[name][1]} {line.strip()}'
    return rows


def statuses(rows: dict[str, tuple[str, str]], status: str) -> set[str]:
    return {name for name, (found, _) in rows.items() if found == status}


def contents(folder: Path) -> dict[Path, bytes]:
    return {
        path: path.read_bytes()
        for path in folder.rglob('*')
        if path.is_file() and not path.name.startswith('log_rank')
    }


def save_weights(path: Path, model: torch.nn.Module) -> Path:
    torch.save({'model': model.state_dict()}, path)
    return path


def model_of(cfg: Path) -> torch.nn.Module:
    config = default_config()
    config.merge_from_file(cfg)
    return build_model(config, is_pretrain=True)


# Ready


@pytest.mark.parametrize('stage', STAGES)
def test_a_run_that_is_ready(stage, phantom, tmp_path, check):
    cfg, output = tiny_config(tmp_path / 'run.yaml', stage), tmp_path / 'out'
    weights = save_weights(tmp_path / 'encoder.pth', model_of(cfg))
    code, verdict, rows = check(
        stage, arguments(cfg, phantom, output, '--pretrained', str(weights))
    )
    assert code == 0
    rest = ' of training, plus scoring and report' if stage == 'finetune' else ''
    assert re.fullmatch(rf'verdict: ready, about [\d.]+ (seconds|minutes|hours){rest}', verdict)
    assert not statuses(rows, 'problem')
    splits = ['train', 'holdout'] + (['valid', 'test'] if stage == 'finetune' else [])
    assert statuses(rows, 'ok') >= {
        'workers', 'output', 'weights', 'schedule', 'step', 'memory', 'disk', 'time',
        *(f'data: {split}' for split in splits),
    }  # fmt: skip
    assert rows['weights'][1] == f'starts from {weights}'
    assert rows['schedule'][1] == '2 epochs of 4 steps of 8 images, 4 steps of warm-up'
    assert rows['data: train'][1].startswith('28 images in 7 batches')
    assert [path.name for path in run_folder(output, stage).iterdir()] == ['log_rank0.txt']
    assert f'\n{verdict}\n' in (run_folder(output, stage) / 'log_rank0.txt').read_text()


@pytest.mark.parametrize('mode', ['linear_probe', 'knn', 'last_layer'])
def test_probes(mode, phantom, tmp_path, check, monkeypatch):
    if mode != 'last_layer':  # a probe never goes on from a checkpoint
        monkeypatch.setattr(utils, 'newest_good', pytest.fail)
    cfg = tiny_config(tmp_path / 'run.yaml', 'finetune', FINETUNE={'MODE': mode})
    code, verdict, rows = check('finetune', arguments(cfg, phantom, tmp_path / 'out'))
    assert (code, statuses(rows, 'problem')) == (0, set()), rows
    assert ('schedule' in rows) == ('data: train' in rows) == (mode == 'last_layer')
    work = 'training' if mode == 'last_layer' else 'features'
    assert verdict.endswith(f' of {work}, plus scoring and report')
    assert rows['weights'] == (
        'warning', 'starts from random weights -> name a pre-trained encoder with --pretrained',
    )  # fmt: skip


def test_a_run_that_goes_on_and_one_that_is_finished(phantom, tmp_path, check):
    cfg, output = tiny_config(tmp_path / 'run.yaml', 'simmim'), tmp_path / 'out'
    argv = arguments(cfg, phantom, output)
    assert run_main('simmim', [*argv, '--opts', 'TRAIN.EPOCHS', '1']) == 0
    before = contents(output)
    code, verdict, rows = check('simmim', [*argv, '--opts', 'TRAIN.ON_NAN', 'skip'])
    assert (code, rows['weights'][0]) == (0, 'ok')
    log = (run_folder(output, 'simmim') / 'log_rank0.txt').read_text()
    changed = set(re.findall(r'changed since the checkpoint: (\S+):', log))
    assert changed == {'TRAIN.EPOCHS', 'TRAIN.ON_NAN'}
    newest = run_folder(output, 'simmim') / 'ckpt_epoch_0.pth'
    assert rows['weights'][1] == f'goes on from {newest}: 1 of 2 epochs are done'
    code, verdict, rows = check('simmim', [*argv, '--opts', 'TRAIN.EPOCHS', '1'])
    assert (code, verdict) == (0, 'verdict: ready, about 0.0 seconds')
    assert rows['weights'][0] == 'warning'
    assert 'nothing is left to train: raise TRAIN.EPOCHS' in rows['weights'][1]
    code, _, rows = check('simmim', [*argv, '--opts', 'TRAIN.AUTO_RESUME', 'False'])
    assert (code, rows['output'][0]) == (0, 'warning')
    assert 'checkpoints of another run, such as ckpt_epoch_0.pth' in rows['output'][1]
    assert contents(output) == before, 'nothing is changed'


# Not ready: data and output that cannot be read at all


def test_a_root_without_its_first_image(eight, tmp_path, refused):
    data = linked(eight, tmp_path / 'data')
    image_of(data, row=2).unlink()
    argv = arguments(config_of(tmp_path, 'simmim'), data, tmp_path / 'out', '--check')
    refused('simmim', argv, data / 'train.csv', 'images not found')


def test_bad_labels(phantom, tmp_path, refused):
    data = linked(phantom, tmp_path / 'data')
    edit(data / 'valid.csv', set_cell(5, 'Edema', '2.0'))
    argv = arguments(config_of(tmp_path, 'finetune'), data, tmp_path / 'out', '--check')
    refused('finetune', argv, data / 'valid.csv', "row 5 (the header is row 1), column 'Edema'")


def test_an_output_that_is_a_file(eight, tmp_path, refused):
    (tmp_path / 'file').write_text('mine')
    argv = arguments(config_of(tmp_path, 'simmim'), eight, tmp_path / 'file', '--check')
    refused('simmim', argv, 'OUTPUT', tmp_path / 'file', 'cannot write to the folder')


# Not ready: problems, all that there are


@pytest.mark.parametrize('workers', [0, 1])
def test_an_unreadable_picture_in_a_batch(workers, eight, tmp_path, check):
    data = linked(eight, tmp_path / 'data')
    image = image_of(data, row=6)
    overwrite(image, image.read_bytes()[:300])
    cfg = config_of(tmp_path, 'simmim', BATCH_SIZE=8, NUM_WORKERS=workers)
    code, verdict, rows = check('simmim', arguments(cfg, data, tmp_path / 'out'))
    assert (code, verdict) == (1, 'verdict: not ready: 1 problem')
    assert statuses(rows, 'problem') == {'data: train'}
    assert rows['data: train'][1].startswith(f'{data / "train.csv"}, row 6 (the header is row 1)')
    assert 'scripts/check_data.py' in rows['data: train'][1]
    assert rows['step'][0] == 'warning', 'there is nothing to try it on'
    assert rows['disk'][0] == 'ok'


def test_an_unreadable_picture_of_a_later_batch(eight, tmp_path, check):
    """The loader is timed over all images of so small a set."""
    data = linked(eight, tmp_path / 'data')
    cfg = config_of(tmp_path, 'simmim', BATCH_SIZE=1)
    for row in range(2, 10):
        image = image_of(data, row=row)
        whole = image.read_bytes()
        overwrite(image, whole[:300])
        code, _, rows = check('simmim', arguments(cfg, data, tmp_path / 'out'))
        if rows['data: train'][0] == 'ok':
            break
        overwrite(image, whole)
    assert (code, statuses(rows, 'problem')) == (1, {'speed'})
    assert f'row {row} (the header is row 1)' in rows['speed'][1]


@pytest.mark.parametrize('flag', ['--pretrained', '--resume'])
def test_weights_of_another_model(flag, phantom, tmp_path, check, monkeypatch):
    """And the disk is too small: both are said."""
    monkeypatch.setattr(
        preflight_costs.shutil, 'disk_usage', lambda path: SimpleNamespace(free=100_000)
    )
    other = tiny_config(tmp_path / 'other.yaml', 'simmim', VIT)
    path = save_weights(tmp_path / 'other.pth', model_of(other))
    cfg = tiny_config(tmp_path / 'run.yaml', 'simmim')
    code, verdict, rows = check(
        'simmim', arguments(cfg, phantom, tmp_path / 'out', flag, str(path))
    )
    assert (code, verdict) == (1, 'verdict: not ready: 2 problems')
    assert statuses(rows, 'problem') == {'weights', 'disk'}
    assert str(path) in rows['weights'][1]
    said = 'another model' if flag == '--pretrained' else 'nothing to go on from'
    assert said in rows['weights'][1]
    assert '100 kB that are free: up to 3 checkpoints' in rows['disk'][1]
    assert {'step', 'memory', 'speed', 'time'} <= statuses(rows, 'ok') | statuses(rows, 'warning')


def test_a_checkpoint_that_is_damaged(phantom, tmp_path, check):
    """Of all that are in the folder: there is none to go back to."""
    folder = run_folder(tmp_path / 'out', 'simmim')
    folder.mkdir(parents=True)
    cfg, path = tiny_config(tmp_path / 'run.yaml', 'simmim'), tmp_path / 'half.pth'
    save_weights(path, model_of(cfg))
    overwrite(path, path.read_bytes()[:1000])
    argv = arguments(cfg, phantom, tmp_path / 'out', '--resume', str(path))
    code, _, rows = check('simmim', argv)
    assert (code, statuses(rows, 'problem')) == (1, {'weights'})
    assert 'cut short or damaged' in rows['weights'][1]


def test_memory_that_is_too_small(phantom, tmp_path, check, monkeypatch):
    monkeypatch.setattr(preflight_costs, 'available_memory', lambda *_: 10**6)
    cfg = tiny_config(tmp_path / 'run.yaml', 'simmim')
    code, verdict, rows = check('simmim', arguments(cfg, phantom, tmp_path / 'out'))
    assert (code, verdict) == (1, 'verdict: not ready: 1 problem')
    assert statuses(rows, 'problem') == {'memory'}
    assert ' of 1.0 MB: ' in rows['memory'][1]
    assert '--use-checkpoint' in rows['memory'][1]


@pytest.mark.parametrize('on_nan', ['stop', 'skip'])
def test_a_loss_that_is_not_finite(on_nan, phantom, tmp_path, check):
    data = {'MEAN': [0.5], 'STD': [1e-38]}
    cfg = tiny_config(tmp_path / 'run.yaml', 'simmim', DATA=data, TRAIN={'ON_NAN': on_nan})
    code, verdict, rows = check('simmim', arguments(cfg, phantom, tmp_path / 'out'))
    assert (code, verdict) == (1, 'verdict: not ready: 1 problem')
    assert statuses(rows, 'problem') == {'step'}
    assert re.search('loss (nan|inf)', rows['step'][1])
    assert 'DATA.STD' in rows['step'][1]


def test_a_folder_that_is_read_only(phantom, tmp_path, check, monkeypatch):
    """Its log was there before; a file system that went read-only while the run waited."""

    def refuse(**_):
        raise OSError(30, 'Read-only file system')

    monkeypatch.setattr(tempfile, 'NamedTemporaryFile', refuse)
    cfg = tiny_config(tmp_path / 'run.yaml', 'simmim')
    code, _, rows = check('simmim', arguments(cfg, phantom, tmp_path / 'out'))
    assert (code, statuses(rows, 'problem')) == (1, {'output'})
    assert 'Read-only file system -> choose another with --output' in rows['output'][1]


def test_a_second_run_in_the_folder(phantom, tmp_path, check):
    folder = run_folder(tmp_path / 'out', 'simmim')
    folder.mkdir(parents=True)
    cfg = tiny_config(tmp_path / 'run.yaml', 'simmim')
    holder = subprocess.Popen(
        [sys.executable, '-c', LOCK_HOLDER, str(folder)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert holder.stdout.readline() == 'locked\n'
        before = contents(folder)
        code, verdict, rows = check('simmim', arguments(cfg, phantom, tmp_path / 'out'))
        assert contents(folder) == before
    finally:
        holder.communicate()
    assert (code, statuses(rows, 'problem')) == (1, {'output'})
    assert f'process {holder.pid}' in rows['output'][1]
    code, verdict, rows = check('simmim', arguments(cfg, phantom, tmp_path / 'out'))
    assert (code, rows['output'][0]) == (0, 'ok'), 'its lock is gone'


# Ready, with warnings


def test_a_loader_far_slower_than_the_model(phantom, tmp_path, check, monkeypatch):
    read = XrayDataset.__getitem__

    def slowly(self: XrayDataset, key: tuple) -> object:
        time.sleep(0.1)
        return read(self, key)

    monkeypatch.setattr(XrayDataset, '__getitem__', slowly)
    monkeypatch.setattr(preflight_costs, 'num_cores', lambda: 4)
    cfg = tiny_config(tmp_path / 'run.yaml', 'simmim', EVAL={'HOLDOUT_IMAGES': 4})
    code, _, rows = check('simmim', arguments(cfg, phantom, tmp_path / 'out'))
    assert (code, rows['speed'][0]) == (0, 'warning')
    assert re.match(r'loader (9\.\d|10) images/s, model \d+', rows['speed'][1])
    advice = 'raise DATA.NUM_WORKERS from 0, or pack the images with scripts/pack.py'
    assert rows['speed'][1].endswith(f'-> {advice}')


@pytest.mark.parametrize(('fraction', 'status'), [(0.05, 'warning'), (0.2, 'ok')])
def test_held_out_patients_too_few_to_select_by(
    fraction, status, phantom, tmp_path, check, monkeypatch
):
    monkeypatch.setattr('evaluation.metrics.FEW_CASES', 6)
    data = {'HOLDOUT_FRACTION': fraction, 'TRAIN_IMAGES': 0}
    cfg = tiny_config(tmp_path / 'run.yaml', 'finetune', DATA=data)
    code, _, rows = check('finetune', arguments(cfg, phantom, tmp_path / 'out'))
    assert (code, rows['selection'][0]) == (0, status), rows['selection']
    assert ('raise DATA.HOLDOUT_FRACTION' in rows['selection'][1]) == (status == 'warning')


def test_valid_patients_too_few_to_select_by(phantom, tmp_path, check, monkeypatch):
    monkeypatch.setattr('evaluation.metrics.FEW_CASES', 100)
    evaluation = {'SELECT_ON': 'valid', 'VIEWS': 'lateral'}  # few, and not both of each
    cfg = tiny_config(tmp_path / 'run.yaml', 'finetune', EVAL=evaluation)
    for rule, status in (('auto', 'warning'), ('five', 'problem')):
        argv = arguments(cfg, phantom, tmp_path / 'out', '--opts', 'EVAL.SELECT', rule)
        _, _, rows = check('finetune', argv)
        assert rows['selection'][0] == status
        assert 'take EVAL.SELECT_ON holdout' in rows['selection'][1]
        assert 'HOLDOUT_FRACTION' not in rows['selection'][1]


def test_held_out_patients_without_both_classes(phantom, tmp_path, check):
    """With 'five' no checkpoint would be chosen at all."""
    cfg = tiny_config(tmp_path / 'run.yaml', 'finetune', DATA={'HOLDOUT_FRACTION': 0.02})
    argv = arguments(cfg, phantom, tmp_path / 'out', '--opts', 'EVAL.SELECT')
    code, _, rows = check('finetune', [*argv, 'five'])
    assert (code, statuses(rows, 'problem')) == (1, {'selection'})
    assert re.search(' 0(,| )', rows['selection'][1])
    code, _, rows = check('finetune', [*argv, 'auto'])
    assert (code, rows['selection'][0]) == (0, 'warning')


def test_what_the_machine_lacks(phantom, tmp_path, check, monkeypatch):
    monkeypatch.setattr(preflight, 'file_system', lambda path: 'nfs4')
    monkeypatch.setattr(preflight, 'num_cores', lambda: 1)
    usage = {'/dev/shm': SimpleNamespace(free=1000)}
    whole = shutil.disk_usage
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage.get(path) or whole(path))
    cfg = tiny_config(
        tmp_path / 'run.yaml', 'simmim', DATA={'NUM_WORKERS': 2}, TRAIN={'WARMUP_EPOCHS': 0}
    )
    code, _, rows = check('simmim', arguments(cfg, phantom, tmp_path / 'out'))
    assert code == 0
    assert {'drive', 'workers', 'shared memory', 'schedule'} <= statuses(rows, 'warning')
    assert rows['drive'][1].startswith(f'{phantom} (nfs4)')
    assert 'DATA.CACHE_DIR' in rows['drive'][1]
    assert rows['workers'][1].endswith('-> lower DATA.NUM_WORKERS to 1')
    # two workers, two batches each, of 4 images of 32 x 32 float32
    assert '1.0 kB free, the workers fill up to 65.5 kB' in rows['shared memory'][1]
    assert rows['schedule'][1].endswith('-> the first steps go at the full rate: '
                                        'raise TRAIN.WARMUP_EPOCHS')  # fmt: skip


# Several processes


@pytest.mark.slow
def test_what_another_process_finds(eight, tmp_path):
    """One picture is damaged: it is in the first batch of one of the two."""
    data = linked(eight, tmp_path / 'data')
    image = image_of(data, row=3)
    overwrite(image, image.read_bytes()[:300])
    cfg = config_of(tmp_path, 'simmim', BATCH_SIZE=4)
    done = torchrun('simmim', [*arguments(cfg, data, tmp_path / 'out'), '--check'], processes=2)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout.count('verdict: not ready: 1 problem') == 1
    rows = rows_of(done.stdout.splitlines())
    assert statuses(rows, 'problem') == {'data: train'}
    assert 'row 3 (the header is row 1)' in rows['data: train'][1]
    done = torchrun('simmim', [*arguments(cfg, eight, tmp_path / 'out'), '--check'], processes=2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert rows_of(done.stdout.splitlines())['workers'][1].endswith('for 2 process(es)')
    assert {path.name for path in run_folder(tmp_path / 'out', 'simmim').iterdir()} == {
        'log_rank0.txt', 'log_rank1.txt',
    }  # fmt: skip
