"""scripts/replay.py repeats a step that was not finite."""

import math
import re
import shutil
import subprocess
import sys

import pytest
import torch
from test_contrastive_runs import write
from tiny import ROOT, VIT, arguments, run_folder, run_main, tiny_config

import main_contrastive
from checkpoint_files import find_newest_checkpoint
from scripts import replay as script
from step_record import read_step_record


@pytest.fixture(scope='module')
def failed_run(phantom, tmp_path_factory):
    """A run of which one picture of the second epoch is far too bright for its weights."""
    root, model = tmp_path_factory.mktemp('failed'), VIT | {'DROP_RATE': 0.1}
    cfg = tiny_config(
        root / 'run.yaml', 'simmim', model,
        TRAIN={'SAVE_EVERY_STEPS': 1, 'BASE_LR': 1e38, 'CLIP_GRAD': 0.0, 'WARMUP_EPOCHS': 0},
        PRINT_FREQ=1000,
    )  # fmt: skip
    assert run_main('simmim', arguments(cfg, phantom, root)) == 2
    return run_folder(root, 'simmim')


def replay(*words):
    command = [sys.executable, str(ROOT / 'scripts' / 'replay.py'), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_a_step_is_repeated_from_the_checkpoint_before_it(failed_run):
    (path,) = failed_run.glob('nonfinite_*.json')
    record = read_step_record(path)
    before = {p.name: p.read_bytes() for p in failed_run.iterdir() if p.is_file()}
    done = replay(failed_run)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {p.name: p.read_bytes() for p in failed_run.iterdir() if p.is_file()} == before
    assert 'random states at the start of the step: as in the run' in done.stdout
    assert f'epoch {record["epoch"]}, step {record["step"]}: losses' in done.stdout
    rows = [[row + 2 for row in rows] for rows in record['ranks'][0]['rows']]
    assert str(rows) in done.stdout
    count = int(re.search(r'not finite: (\d+) outputs of modules', done.stdout)[1])
    assert count > 0


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over(failed_run, tmp_path):
    copy = shutil.copytree(failed_run, tmp_path / 'run')
    (copy / 'ckpt_epoch_0_old.pth').write_bytes(b'of another program')
    newest = find_newest_checkpoint(copy)
    newest.write_bytes(newest.read_bytes()[:100])
    done = replay(copy)
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'random states at the start of the step: as in the run' in done.stdout
    assert f'resumed from {newest}' not in done.stdout


def test_steps_that_the_run_left_out_are_undone(phantom, tmp_path, monkeypatch):
    """Of two steps that were skipped the second: no key of the first stays in MoCo's queue."""
    before, loss_of = [], main_contrastive.views_loss

    def spoilt(model, batch):
        before.append({key: value.clone() for key, value in model.state_dict().items()})
        factor = math.nan if len(before) in (2, 4) else 1.0
        return loss_of(model, [view * factor for view in batch])

    monkeypatch.setattr(main_contrastive, 'views_loss', spoilt)
    cfg = write(tmp_path / 'run.yaml', 'moco', TRAIN={'EPOCHS': 1, 'ON_NAN': 'skip'})
    assert run_main('contrastive', arguments(cfg, phantom, tmp_path)) == 0
    folder, in_run = run_folder(tmp_path, 'contrastive'), before[:4]
    before.clear()
    record = folder / 'nonfinite_epoch_0_step_4.json'
    assert script.main(script.parse_args([str(folder), '--record', str(record)])) == 0
    assert len(before) == 4
    for again, once in zip(before, in_run, strict=True):
        assert all(torch.equal(again[key], value) for key, value in once.items())
