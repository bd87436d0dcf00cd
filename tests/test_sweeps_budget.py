"""What a sweep will run: its number of runs, disk space and epochs, and options to refuse."""

import logging
import re
import subprocess
import sys

import pytest
from packed_data import make_data, packed
from sweep_commands import SWEEP, in_process, jobs_of
from sweep_runs import methods_file
from tiny import run_script

from models import build_model
from sweeps import budget
from sweeps.budget import (
    MOST_EPOCHS,
    checkpoint_sizes,
    epochs_for,
    kept_checkpoints,
)
from sweeps.files import ROOT


@pytest.mark.slow
def test_the_runs_are_listed_with_their_number_and_disk_space(phantom, tmp_path, capsys) -> None:
    more = ['--list', '--finetune-opts', 'DATA.CACHE_DIR', str(tmp_path / 'c')]
    assert in_process('run', SWEEP, tmp_path / 'o', phantom, *more) == 0
    shown = capsys.readouterr().out
    assert '24 runs (12 pretrain, 12 finetune), 0 of them already finished' in shown
    assert re.search(r'disk: \d', shown)
    assert not (tmp_path / 'o').exists()


@pytest.mark.slow
def test_checkpoints_have_the_weights_and_two_moments_of_each(phantom, tmp_path) -> None:
    jobs = jobs_of(SWEEP, tmp_path / 'o', phantom, 1)
    config = jobs[0].config
    weights = sum(p.nbytes for p in build_model(config, is_pretrain=True).parameters())
    assert checkpoint_sizes(jobs[:1]) == [pytest.approx(3 * weights, rel=0.01)]
    assert kept_checkpoints('simmim', config) == 3  # after each of three epochs
    assert kept_checkpoints('finetune', config) == 4


def test_a_check_that_is_killed_without_a_word_is_named(tmp_path, monkeypatch) -> None:
    killed = subprocess.CompletedProcess([], -9, stdout='', stderr='')
    monkeypatch.setattr(budget.subprocess, 'run', lambda *_, **__: killed)
    with pytest.raises(ValueError, match='-9'):
        checkpoint_sizes(jobs_of(SWEEP, tmp_path / 'o', tmp_path, 1)[:1])


def test_runs_are_listed_without_the_data(tmp_path, capsys) -> None:
    path = methods_file(tmp_path, scales={'full': {'methods': ['simmim'], 'seeds': 1}})
    words = ['run', '--sweep', str(path), '--scale', 'full', '--output', str(tmp_path), '--list']
    words += ['--finetune-opts', 'EVAL.EVERY', '2']
    assert run_script('ablate', *words) == 0
    shown = capsys.readouterr().out
    assert re.search(r'mine_simmim_0\.1 seed 0 +not started\n', shown)
    assert '3 runs (1 pretrain, 2 finetune), 0 of them' in shown and 'disk: ' in shown
    assert 'reference.yaml: SEED 0 DATA.TRAIN_FRACTION 0.1 TRAIN.EPOCHS 60 EVAL.EVERY 2' in shown
    assert run_script('ablate', *words, '--images-seen', '9') == 2
    assert '--images-seen 9 needs --data-path' in capsys.readouterr().err


@pytest.mark.slow
def test_options_that_the_model_refuses_are_refused_before_any_run(tmp_path) -> None:
    words = ['run', '--sweep', 'scripts/studies/contrastive.yaml', '--scale', 'tiny', '--list']
    words += ['--row', 'resnet50_1', '--output', str(tmp_path)]
    words += ['--finetune-opts', 'MODEL.HEAD', 'attention']
    ablate = [sys.executable, 'scripts/ablate.py', *words]  # this process knows the models
    done = subprocess.run(ablate, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and re.search('resnet50_1.*MODEL.HEAD', done.stderr)


def test_a_store_without_the_images_of_a_row_is_refused_before_any_run(tmp_path, capsys) -> None:
    store = packed(make_data(tmp_path / 'data'), tmp_path / 'store')
    sweep = methods_file(tmp_path, scales={'tiny': {'methods': ['simmim'], 'seeds': 1}})
    words = ['run', '--sweep', sweep, '--scale', 'tiny', '--output', tmp_path / 'runs', '--list']
    words += ['--data-path', store, '--finetune-opts', 'EVAL.PREPROCESS', "['resize']"]
    assert run_script('ablate', *words) == 2
    assert 'EVAL.PREPROCESS' in capsys.readouterr().err


@pytest.mark.parametrize(('images', 'epochs'), [(24, 2), (25, 3), (1, 1), (10**6, MOST_EPOCHS)])
def test_the_epochs_that_show_a_number_of_images_are_rounded_up(
    images, epochs, phantom, tmp_path
) -> None:
    jobs = jobs_of(SWEEP, tmp_path, phantom, 1)  # 12 images in an epoch
    assert epochs_for(jobs, images, logging.getLogger()) == epochs
    fine_tuning = [job for job in jobs if job.stage == 'finetune']
    with pytest.raises(ValueError, match='--images-seen'):
        epochs_for(fine_tuning, images, logging.getLogger())
