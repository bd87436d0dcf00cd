"""scripts/baseline.sh and its table, and the table of several demos."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sweep_runs import MadeRuns
from tiny import run_script
from warm_python import warm_python

from sweeps.files import ROOT, load_sweep, run_folder

SWEEP = ROOT / 'scripts/comparison/baseline.yaml'


def test_the_table_has_pixels_by_share_of_labels(tmp_path) -> None:
    made = MadeRuns(tmp_path)
    for row in load_sweep(SWEEP).rows:
        made.add(row, 0)
        file = run_folder(made.output, 'finetune', row, 0) / 'scores.json'
        scores = json.loads(file.read_text())
        floor = made.scores(made.probabilities(float(row.subset), seed=5))
        del floor['mean_of_five']  # as with own labels
        scores['test']['pixel_floor'] = floor
        assert ('REPORT.PIXEL_FLOOR' in row.changes['finetune']) == (row.method == 'scratch')
        file.write_text(json.dumps(scores))
    assert run_script('baseline_table', '--output', made.output) == 0
    rows = json.loads((made.output / 'baseline.json').read_text())['rows']
    found = {row['name']: row['seeds'][0]['finetune']['figures']['scores'] for row in rows}
    assert len(found) == 4 * 3
    assert found['pixels_1']['Edema'] == pytest.approx(floor['auroc']['Edema'], abs=1e-5)
    assert found['pixels_0.01']['Edema'] < found['pixels_1']['Edema']
    assert (made.output / 'baseline_shares.png').stat().st_size > 1000


def test_demos_of_several_seeds_are_compared_in_pairs(tmp_path, capsys) -> None:
    losses = {'before': 70.0, 'after': 20.0, 'mean': 60.0, 'linear': 25.0}
    for seed, gain in ((20, 0.02), (21, 0.03), (22, 0.04)):
        test = {'pre-trained': {'mean_of_five': 0.7 + gain}, 'random': {'mean_of_five': 0.7}}
        demo = {'held_out_l1_grey': losses, 'test': test}
        demo |= {'seed': seed} if seed > 20 else {}  # early demos did not record their seed
        (tmp_path / f'demo_{seed}.json').write_text(json.dumps(demo))
    files = [tmp_path / f'demo_{seed}.json' for seed in (20, 21, 22)]
    assert run_script('demo_table', *files) == 0
    shown = capsys.readouterr().out
    # 4.303 is the 0.975 quantile of Student's t with 2 degrees of freedom; SEM 0.01 / sqrt(3).
    assert '+0.0300 (+0.0052 to +0.0548)' in shown
    assert '| demo_20 |' in shown and '| 21 |' in shown


@pytest.mark.slow
def test_baseline_runs_on_few_images_and_resumes(phantom, tmp_path) -> None:
    tiny = 'MODEL.SWIN.EMBED_DIM 8 MODEL.SWIN.DEPTHS [1,1] MODEL.SWIN.NUM_HEADS [1,1]'
    short = f'{tiny} DATA.BATCH_SIZE 1 TRAIN.WARMUP_EPOCHS 0 DATA.HOLDOUT_FRACTION 0.2'
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
            'PRETRAIN_OPTS': f'{short} TRAIN.EPOCHS 2', 'FINETUNE_OPTS': f'{short} TRAIN.EPOCHS 1',
        }  # fmt: skip
        words = ['bash', 'scripts/baseline.sh', str(phantom), str(tmp_path / 'out')]
        for finished in (0, 10):  # the second start finds all of them finished
            done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True)
            assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
            assert f'10 runs, {finished} of them already finished' in done.stdout
    with open(tmp_path / 'out/baseline.csv', newline='') as file:
        assert 'pixels' in Path(file.name).read_text() and len([*csv.reader(file)]) > 12
