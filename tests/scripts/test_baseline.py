"""scripts/baseline.sh and its table."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image, ImageOps
from sweep_runs import MadeRuns
from tiny import run_script
from warm_python import warm_python

from config import NO_ENCODER
from scripts.phantom import make_phantom
from sweeps.files import BASELINES, ROOT, load_sweep, only_subsets
from sweeps.tables import name_of

SWEEP = ROOT / 'scripts/comparison/baseline.yaml'


def test_changed_copies_of_scored_x_rays_are_left_out_and_the_others_are_named(
    tmp_path: Path,
) -> None:
    data, images, found = tmp_path / 'CheXpert-phantom', tmp_path / 'images', []
    make_phantom(data, num_train=2, num_valid=6, num_test=2, size=128, seed=0)
    images.mkdir()
    changes = {
        'same.png': lambda image: image,
        'half.jpg': lambda image: image.resize((image.width // 2, image.height // 2)),
        'inverted.png': ImageOps.invert,
        'equalised.png': ImageOps.equalize,
        'both.jpg': lambda image: ImageOps.invert(ImageOps.equalize(image)),
        'mirrored.png': ImageOps.mirror,
        'rotated.png': lambda image: image.rotate(90),
    }
    table = pd.read_csv(data / 'valid.csv')
    for row, (name, change) in zip(table.itertuples(), changes.items(), strict=False):
        with Image.open(tmp_path / row.Path) as image:
            change(image.convert('L')).save(images / name, quality=90)
    # A stand-in for Python notes its words, and ends with 1 as the check that finds errors does.
    words_of_check, python = tmp_path / 'words', tmp_path / 'python'
    python.write_text(f'#!/bin/sh\nprintf "%s\\0" "$@" >{words_of_check}\nexit 1\n')
    python.chmod(0o755)

    def leave_out(out: Path) -> subprocess.CompletedProcess:
        words = ['bash', 'scripts/leave_out.sh', data, images, out, 'valid.csv', 'test.csv']
        env = os.environ | {'PYTHON': str(python)}
        return subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True)

    for out in (tmp_path / 'out', tmp_path / 'none'):
        leave_out(out)
        script, *words = words_of_check.read_text().split('\0')[:-1]
        assert script == 'scripts/check_data.py' and run_script('check_data', *words) == 1
        done = leave_out(out)
        assert done.returncode == 0, done.stderr
        found.append([*pd.read_csv(out / 'leave_out.csv')['file']])
        assert 'not most crops of 5 % or more, mirrored or rotated images' in done.stdout
        for name in found[0]:
            (images / name).unlink(missing_ok=True)
    assert found == [sorted([*changes][:5]), []]
    assert 'no image of' in done.stdout


@pytest.mark.slow
def test_the_table_has_the_difference_to_each_baseline_by_share_of_labels(tmp_path) -> None:
    made, shares = MadeRuns(tmp_path), ['0.1', '1']
    sweep = only_subsets(load_sweep(SWEEP), shares)
    for row in sweep.rows:
        is_baseline = row.method in BASELINES
        mode = row.method if row.method in NO_ENCODER else None
        assert row.changes['finetune'].get('FINETUNE.MODE') == mode
        made.add(row, 0, strength=float(row.subset) if is_baseline else 1.0)
    words = ['--sweep', SWEEP, '--output', made.output, '--seeds', 1, '--subsets', *shares]
    words += ['--resamples', 200]
    assert run_script('ablate', 'table', *words, '--scores', 'mean_of_five', 'Edema') == 0
    lines = pd.read_csv(made.output / 'baseline_Edema.csv')
    pairs = lines.dropna(subset='against').set_index(['row', 'against'])
    assert [*pairs.index] == [
        (f'simmim_{share}', f'{other}_{share}')
        for share in shares
        for other in ('scratch', 'scratch_low_rate', 'resnet18', 'pixels', 'metadata')
    ]
    values = lines.drop_duplicates('row').set_index('row')['value']
    part = pairs.loc['simmim_0.1', 'pixels_0.1']
    assert part['difference'] == pytest.approx(values['simmim_0.1'] - values['pixels_0.1'])
    assert part['patients_low'] < part['difference'] < part['patients_high']
    page = (made.output / 'baseline_Edema.md').read_text()
    for name, title in BASELINES.items():
        equal = pairs.xs(f'{name}_1', level='against')
        assert (equal['difference'] <= 0).all(), 'the baselines are made as good as the model'
        notes = [line for line in page.splitlines() if line.startswith(f'- The {title} may')]
        rows = [name_of(sweep, row) for row in ('simmim_1', 'simmim_0.1')]
        assert [[row in line for row in rows] for line in notes] == [[True, False]]
    words = words[:-2]
    assert run_script('ablate', 'plot', *words) == 0
    assert (made.output / 'baseline_shares.png').stat().st_size > 1000


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
        plain = f'case $1 in *pack.py | *check_data.py | -c) exec {sys.executable} "$@"; esac'
        python.write_text(f'#!/bin/sh\n{plain}\nexec {warm} "$@"\n')
        python.chmod(0o755)
        env = os.environ | {
            'PYTHON': str(python), 'UNLABELLED': str(images), 'CUDA_VISIBLE_DEVICES': '',
            'PRETRAIN_OPTS': f'{short} TRAIN.EPOCHS 2', 'SHARES': '0.5 1',
            'FINETUNE_OPTS': f'{short} TRAIN.EPOCHS 1 DATA.LABELS "{labels}"',
        }  # fmt: skip
        # The second start gets the packed store, and finds all runs finished.
        for data, finished in ((phantom, 0), (tmp_path / 'out/store', 13)):
            words = ['bash', 'scripts/baseline.sh', str(data), str(tmp_path / 'out')]
            done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True)
            assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
            assert f'13 runs, {finished} of them already finished' in done.stdout
    (file,) = (tmp_path / 'out').glob('baseline_mean_of_*.csv')
    with open(file, newline='') as lines:
        rows = [*csv.DictReader(lines)]
    methods = {row['row'].rpartition('_')[0] for row in rows}
    assert methods == {'simmim', 'scratch', 'scratch_low_rate', *BASELINES}
    compared = {(row['row'], row['against']) for row in rows}
    assert {
        (f'simmim_{share}', f'{name}_{share}') for share in ('0.5', '1') for name in BASELINES
    } <= compared
    page = (
        tmp_path / 'out/simmim_finetune/baseline_simmim_1_seed0/report_eval/report.html'
    ).read_text()
    assert all(f'<th scope="row">{name}' in page for name in ('pixel', 'metadata', 'ResNet-18'))
