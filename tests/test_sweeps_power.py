"""What a sweep can detect and what it costs: against simulations and runs counted by hand."""

import json
import logging
import re
import subprocess
import sys

import numpy as np
import pytest
from packed_data import make_data, packed
from scipy.special import ndtri
from scipy.stats import ttest_1samp
from sweep_commands import SWEEP, in_process, jobs_of
from sweep_runs import methods_file
from tiny import run_script

from engine.run_record import RECORD_FILE
from evaluation.intervals import delong_test
from evaluation.metrics import auroc_per_label
from models import build_model
from sweeps import budget
from sweeps.budget import (
    MOST_EPOCHS,
    checkpoint_sizes,
    describe_time,
    epochs_for,
    kept_checkpoints,
    measured_rate,
)
from sweeps.files import ROOT
from sweeps.power import (
    AREA,
    POWER,
    detectable_deviations,
    detectable_difference,
    standard_error,
)


def test_the_standard_error_is_that_of_the_published_example() -> None:
    # Hanley & McNeil 1982: 51 abnormal and 58 normal images, area 0.893, standard error 0.032.
    assert standard_error(0.893, 51, 58) == pytest.approx(0.0325, abs=5e-4)


def test_the_detectable_difference_is_found_as_often_as_promised() -> None:
    positives = negatives = 300
    difference, rng = detectable_difference(positives, negatives, 1), np.random.default_rng(0)
    targets = np.repeat([1.0, 0.0], [positives, negatives])
    # Normal scores: an area of A needs a distance of sqrt(2) times its quantile.
    distances = np.sqrt(2) * ndtri([AREA, AREA + difference])
    found, areas = [], []
    for _ in range(400):
        shared, own = rng.normal(size=targets.size), rng.normal(size=(2, targets.size))
        scores = distances[:, None] * targets + np.sqrt(0.87) * shared + np.sqrt(0.13) * own
        found.append(delong_test(*scores, targets) < 0.05)
        areas.append(auroc_per_label(scores.T, np.stack([targets] * 2, axis=1)))
    assert np.corrcoef(np.transpose(areas))[0, 1] == pytest.approx(0.85, abs=0.03)
    assert np.mean(found) == pytest.approx(POWER, abs=0.08)


def test_the_difference_over_seeds_is_found_as_often_as_promised() -> None:
    draws = np.random.default_rng(0).normal(detectable_deviations(3), 1, (20_000, 3))
    result = ttest_1samp(draws, 0, axis=1)
    assert np.mean((result.pvalue < 0.05) & (result.statistic > 0)) == pytest.approx(
        POWER, abs=0.01
    )


@pytest.mark.slow
def test_a_budget_counts_runs_images_and_checkpoints(phantom, tmp_path, capsys) -> None:
    more = ['--images-per-second', '100', '--finetune-opts', 'DATA.CACHE_DIR', str(tmp_path / 'c')]
    assert in_process('budget', SWEEP, tmp_path / 'o', phantom, *more) == 0
    shown = capsys.readouterr().out
    assert 'at least 0.' in shown and 'Pneumonia in docs/results' in shown
    with pytest.raises(SystemExit):
        in_process('budget', SWEEP, tmp_path / 'o', phantom, '--images-per-second', '-5')
    assert '24 runs, 0 of them already finished' in shown
    assert 'pretrain: 12 runs left, 432 images' in shown  # of 12 images in 3 epochs each
    assert 'comparisons: 3' in shown
    assert not (tmp_path / 'o').exists()
    jobs = jobs_of(SWEEP, tmp_path / 'o', phantom, 1)
    config = jobs[0].config
    # The weights, and two moments of each.
    weights = sum(p.nbytes for p in build_model(config, is_pretrain=True).parameters())
    assert checkpoint_sizes(jobs[:1]) == [pytest.approx(3 * weights, rel=0.01)]
    assert kept_checkpoints('simmim', config) == 3  # after each of three epochs
    assert kept_checkpoints('finetune', config) == 4


def test_a_check_that_is_killed_without_a_word_is_named(tmp_path, monkeypatch) -> None:
    killed = subprocess.CompletedProcess([], -9, stdout='', stderr='')
    monkeypatch.setattr(budget.subprocess, 'run', lambda *_, **__: killed)
    with pytest.raises(ValueError, match='-9'):
        checkpoint_sizes(jobs_of(SWEEP, tmp_path / 'o', tmp_path, 1)[:1])


def test_runs_are_listed_with_their_hours_without_the_data(tmp_path, capsys) -> None:
    scale = {'training_images': {'frontal': 10_000, 'all': 1}, 'images_per_second': [20, 10]}
    path = methods_file(tmp_path, scales={'full': scale | {'methods': ['simmim'], 'seeds': 1}})
    words = ['run', '--sweep', str(path), '--scale', 'full', '--output', str(tmp_path), '--list']
    words += ['--finetune-opts', 'EVAL.EVERY', '2']
    assert run_script('ablate', *words) == 0
    shown = capsys.readouterr().out
    # 2 % of the patients are held out. They count a third, in every second epoch.
    hours = [9800 * 300 / 20, (980 + 200 / 6) * 60 / 10, (9800 + 200 / 6) * 20 / 10]
    for name, seconds in zip(('', '_0.1', '_1'), hours, strict=True):
        assert re.search(rf'mine_simmim{name} seed 0 .* {seconds / 3600:.2f} GPU', shown)
    assert f'GPU hours: {sum(hours) / 3600:.1f}, computed, not measured' in shown
    assert 'reference.yaml: SEED 0 DATA.TRAIN_FRACTION 0.1 TRAIN.EPOCHS 60 EVAL.EVERY 2' in shown


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


def test_runs_are_listed_without_the_data_if_nothing_is_stated_about_it(tmp_path, capsys) -> None:
    path = methods_file(tmp_path, scales={'tiny': {'methods': ['simmim'], 'seeds': 1}})
    words = ['run', '--sweep', path, '--scale', 'tiny', '--output', tmp_path, '--list']
    assert run_script('ablate', *words) == 0
    shown = capsys.readouterr().out
    assert re.search(r'mine_simmim seed 0 .* unknown\n', shown)
    assert 'pretrain: 1 runs left\n' in shown and '--data-path' in shown and 'nan' not in shown


@pytest.mark.parametrize(('images', 'epochs'), [(24, 2), (25, 3), (1, 1), (10**6, MOST_EPOCHS)])
def test_the_epochs_that_show_a_number_of_images_are_rounded_up(
    images, epochs, phantom, tmp_path
) -> None:
    jobs = jobs_of(SWEEP, tmp_path, phantom, 1)  # 12 images in an epoch
    assert epochs_for(jobs, images, logging.getLogger()) == epochs
    fine_tuning = [job for job in jobs if job.stage == 'finetune']
    with pytest.raises(ValueError, match='--images-seen'):
        epochs_for(fine_tuning, images, logging.getLogger())


def test_the_time_counts_all_images_and_the_start_of_each_run(
    phantom, tmp_path, monkeypatch
) -> None:
    jobs, measured = jobs_of(SWEEP, tmp_path, phantom, 2), []
    monkeypatch.setattr(budget, '_measured_cost', lambda job: measured.append(job) or (60.0, 10.0))
    lines = [*describe_time(jobs, logging.getLogger(), parallel=2)]
    assert [job.stage for job in measured] == ['simmim', 'finetune']
    count = len(jobs) // 2
    # 12 images in each of 3 epochs, 10 seconds per image, two runs at a time.
    minutes = count * (60 + 10 * 36) / 2 / 60
    assert lines[0] == (
        f'pretrain: {count} runs left, about {minutes:,.1f} min, 3 epochs of 12 images'
    )
    assert re.fullmatch(r'time: about \d+ min with 2 runs at a time \(estimated\)', lines[-1])
    assert float(re.search(r'about ([\d.]+)', lines[1])[1]) >= minutes  # and the held-out images


@pytest.mark.slow
def test_the_time_is_unknown_if_a_run_cannot_start(phantom, tmp_path) -> None:
    job = jobs_of(SWEEP, tmp_path, phantom, 1)[0]
    job.arguments[job.arguments.index('--data-path') + 1] = str(tmp_path / 'nowhere')
    with pytest.raises(ValueError, match='nowhere') as caught:
        budget._measured_cost(job)
    assert job.name in str(caught.value)


def test_the_speed_is_that_of_the_finished_runs(tmp_path) -> None:
    job = jobs_of(SWEEP, tmp_path, tmp_path, 1)[0]
    assert measured_rate([]) is None
    job.folder.mkdir(parents=True)
    (job.folder / RECORD_FILE).write_text(json.dumps({'finished': 'now', 'processes': 2}))
    records = [{'epoch': n, 'images_per_second': rate} for n, rate in enumerate((90, 100, 400))]
    (job.folder / 'metrics.jsonl').write_text(''.join(f'{json.dumps(r)}\n' for r in records))
    assert measured_rate([job]) == 50
    job.config.defrost()
    job.config.FINETUNE.MODE = 'linear_probe'  # has no metrics.jsonl
    assert measured_rate([job]) is None
