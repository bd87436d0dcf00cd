"""scripts/baseline.sh and its table, and the table of several demos."""

import csv
import json
import os
import subprocess
import sys

import pytest
from sweep_runs import MadeRuns
from tiny import run_script
from warm_python import warm_python

from sweeps.files import ROOT, load_sweep, only_subsets

SWEEP = ROOT / 'scripts/comparison/baseline.yaml'


@pytest.mark.slow
def test_the_table_has_the_difference_to_the_pixels_by_share_of_labels(tmp_path) -> None:
    made, shares = MadeRuns(tmp_path), ['0.1', '1']
    sweep = only_subsets(load_sweep(SWEEP), shares)
    for row in sweep.rows:
        made.add(row, 0)
        assert ('REPORT.PIXEL_FLOOR' in row.changes['finetune']) == (row.method == 'scratch')
        if row.method == 'scratch':
            made.add_pixels(row, 0, strength=float(row.subset))
    words = ['--sweep', SWEEP, '--output', made.output, '--seeds', 1, '--subsets', *shares]
    assert run_script('ablate', 'table', *words, '--save', made.output) == 0
    rows = json.loads((made.output / 'baseline.json').read_text())['rows']
    assert [row['name'] for row in rows if row['method'] == 'pixels'] == ['pixels_0.1', 'pixels_1']
    pairs = {(row['name'], row['against']): row['compared'] for row in rows if row['against']}
    assert [*pairs] == [
        (f'simmim_{share}', f'{other}_{share}')
        for share in shares
        for other in ('scratch', 'pixels')
    ]
    scores = {row['name']: row['seeds'][0]['finetune']['figures']['scores'] for row in rows}
    part = pairs['simmim_0.1', 'pixels_0.1']['Edema']
    wanted = scores['simmim_0.1']['Edema'] - scores['pixels_0.1']['Edema']
    assert part['difference'] == pytest.approx(wanted, abs=2e-6)
    assert part['over_patients']['low'] < wanted < part['over_patients']['high']
    assert run_script('ablate', 'plot', *words) == 0
    assert (made.output / 'baseline_shares.png').stat().st_size > 1000


def test_demos_of_several_seeds_are_compared_in_pairs(tmp_path, capsys) -> None:
    losses = {'before': 70.0, 'after': 20.0, 'mean': 60.0, 'linear': 25.0}
    for seed, gain in ((20, 0.02), (21, 0.03), (22, 0.04)):
        test = {'pre-trained': {'mean_of_five': 0.7 + gain}, 'random': {'mean_of_five': 0.7}}
        demo = {'seed': seed, 'held_out_l1_grey': losses, 'test': test}
        (tmp_path / f'demo_{seed}.json').write_text(json.dumps(demo))
    files = [tmp_path / f'demo_{seed}.json' for seed in (20, 21, 22)]
    assert run_script('demo_table', *files) == 0
    shown = capsys.readouterr().out
    (tmp_path / 'all.json').write_text(json.dumps([json.loads(f.read_text()) for f in files]))
    assert run_script('demo_table', tmp_path / 'all.json') == 0
    assert capsys.readouterr().out == shown
    # 4.303 is the 0.975 quantile of Student's t with 2 degrees of freedom; SEM 0.01 / sqrt(3).
    assert '+0.0300 (+0.0052 to +0.0548)' in shown
    assert '| 20 |' in shown and '| 22 |' in shown


@pytest.mark.slow
def test_baseline_runs_on_few_images_and_resumes(phantom, tmp_path) -> None:
    tiny = 'MODEL.SWIN.EMBED_DIM 8 MODEL.SWIN.DEPTHS [1,1] MODEL.SWIN.NUM_HEADS [1,1]'
    short = f'{tiny} DATA.BATCH_SIZE 1 TRAIN.WARMUP_EPOCHS 0 DATA.HOLDOUT_FRACTION 0.2'
    labels = "['Pleural Effusion', 'Edema']"
    images = tmp_path / 'unlabelled'
    images.mkdir()
    for number, file in enumerate(sorted(phantom.glob('train/*/*/*.jpg'))[:12]):
        os.link(file, images / f'{number}.jpg')
    with warm_python(tmp_path) as warm:
        python = tmp_path / 'chooses'  # forks with threads must not start a pool
        plain = f'case $1 in *pack.py | -c) exec {sys.executable} "$@"; esac'
        python.write_text(f'#!/bin/sh\n{plain}\nexec {warm} "$@"\n')
        python.chmod(0o755)
        env = os.environ | {
            'PYTHON': str(python), 'UNLABELLED': str(images), 'CUDA_VISIBLE_DEVICES': '',
            'PRETRAIN_OPTS': f'{short} TRAIN.EPOCHS 2', 'SHARES': '0.5 1',
            'FINETUNE_OPTS': f'{short} TRAIN.EPOCHS 1 DATA.LABELS "{labels}"',
        }  # fmt: skip
        # The second start gets the packed store, and finds all runs finished.
        for data, finished in ((phantom, 0), (tmp_path / 'out/store', 7)):
            words = ['bash', 'scripts/baseline.sh', str(data), str(tmp_path / 'out')]
            done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True)
            assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
            assert f'7 runs, {finished} of them already finished' in done.stdout
    with open(tmp_path / 'out/baseline.csv', newline='') as file:
        rows = [*csv.DictReader(file)]
    assert {row['method'] for row in rows} == {'simmim', 'scratch', 'scratch_low_rate', 'pixels'}
    compared = {(row['row'], row['against']) for row in rows}
    assert {('simmim_0.5', 'pixels_0.5'), ('simmim_1', 'pixels_1')} <= compared
