"""Scripts of studies: their scales, and what `tiny` reads."""

import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score
from tiny import ROOT, load_script, run_script
from xray_splits import LOGGER

from data.tables.labels import LABELS
from data.tables.reading import read_split
from scripts.phantom import make_phantom, sample_rows
from scripts.phantom_mimic import make_mimic_phantom
from sweeps.files import expected_config, load_sweep
from sweeps.folds import arms_of
from sweeps.joined import ranks_table, write_ranks
from tools.real_xrays_figures import draw_shares

SOURCED = ('help.sh', 'setup.sh', 'prepare.sh', 'run.sh')
SCRIPTS = [
    path
    for path in sorted([*ROOT.glob('scripts/*.sh'), *ROOT.glob('scripts/studies/*.sh')])
    if path.name not in (*SOURCED, 'test.sh')  # whose flags are those of pytest
]
SIZES = {'num_train': 8, 'num_valid': 3, 'num_test': 3, 'size': 40}


@pytest.mark.parametrize('folder', ['scripts', 'tools'])
def test_a_program_finds_the_packages_of_this_project_from_any_folder(folder: str) -> None:
    """Tests import programs, which hides a missing path."""
    own = {path.stem for path in ROOT.glob('*.py')} | {
        path.parent.name for path in ROOT.glob('*/*.py')
    }
    for path in ROOT.glob(f'{folder}/**/*.py'):
        text = path.read_text()
        imported = re.search(rf'^from ({"|".join(own)})\b', text, re.MULTILINE)
        if "__name__ == '__main__'" in text and imported:
            up = len(path.relative_to(ROOT).parts) - 1
            line = f'sys.path.insert(0, str(Path(__file__).resolve().parents[{up}]))'
            assert line in text[: imported.start()], path


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: path.name)
def test_a_script_shows_its_help_and_refuses_other_flags(script: Path, tmp_path: Path) -> None:
    """Before it writes anything: `--help` is not the name of a folder."""
    options = {'cwd': tmp_path, 'capture_output': True, 'text': True, 'check': False}
    shown = subprocess.run(['bash', script, '--help'], **options)
    assert shown.returncode == 0 and shown.stderr == ''
    assert f'bash {script.relative_to(ROOT)}' in shown.stdout and '# ' not in shown.stdout
    variables = {*re.findall(r'\$\{([A-Z]\w*):-', script.read_text())} - {'PYTHON'}
    assert not [name for name in variables if not re.search(rf'\b{name}\b', shown.stdout)]
    refused = subprocess.run(['bash', script, '--parallel', '2'], **options)
    assert refused.returncode == 2 and 'error: --parallel is not known' in refused.stderr
    assert not [*tmp_path.iterdir()] and not (ROOT / '--help').exists()


def test_the_study_of_mae_reads_mimic_and_files_of_weights_at_every_scale() -> None:
    for scale in ('full', 'small', 'tiny'):
        sweep = load_sweep(ROOT / 'scripts/studies/mae_resnet.yaml', scale)
        for row in sweep.rows:
            config = expected_config(row, 'finetune')
            assert (config.DATA.DATASET, config.DATA.LABELLER) == ('mimic-cxr', 'negbio')
            name = row.method.removeprefix('ours_').removeprefix('last_').partition('_')[0]
            wanted = {'mae': 'MAE_WEIGHTS', 'scored': 'MAE_WEIGHTS', 'resnet': 'RESNET_WEIGHTS'}
            assert row.weights == wanted.get(name, ''), row.name


DUPLICATES = 'out/duplicates.csv'
STARTS = ROOT / 'scripts/comparison/simmim_mae.yaml'


def test_the_sweep_of_all_starts_compares_the_same_encoder_with_tuned_rates() -> None:
    small, sweep = load_sweep(STARTS, 'cpu'), load_sweep(STARTS, 'starts')
    rows = {row.method: row for row in sweep.rows}
    frozen = {f'linear_{start}' for start in ('mae', 'simmim', 'own', 'random')}
    fitted = {'mae', 'simmim', 'scratch', 'own', 'resnet18'}
    assert {arm for arm in rows if not arm.endswith(('_low', '_high'))} == {
        *fitted, *frozen, 'pixels', 'metadata'
    }  # fmt: skip
    for arm in arms_of(sweep):
        assert arm == [f'{arm[0][:-4]}{rate}_0.1' for rate in ('', '_low', '_high')]
    assert len(arms_of(sweep)) == len(fitted)
    # A command without the scale, which has run before, keeps its runs, and the scale adds to them.
    for row in small.rows:
        same = next(other for other in sweep.rows if other.name == row.name)
        assert (row.run, row.pretrain_run, row.changes) == (
            same.run, same.pretrain_run, same.changes
        )  # fmt: skip
    assert not any(row.weights for row in small.rows) and len(small.rows) == 10
    assert {row.weights for name, row in rows.items() if 'own' in name} == {'OWN_WEIGHTS'}
    shipped = ROOT / 'configs/vit_nano__examples/simmim_finetune__vit_nano__img64__examples.yaml'
    wanted = replace(
        rows['own'], configs={'finetune': shipped}, changes={'finetune': {}}, shared={}
    )
    for name in (*fitted - {'resnet18'}, *frozen):
        config = expected_config(rows[name], 'finetune')
        for key in ('EMBED_DIM', 'DEPTH', 'NUM_HEADS', 'PATCH_SIZE'):
            assert config.MODEL.VIT[key] == expected_config(wanted, 'finetune').MODEL.VIT[key]
        mode = 'linear_probe' if name in frozen else 'full'
        assert config.FINETUNE.MODE == mode and config.DATA.IMG_SIZE == 64


def test_the_scores_of_patient_data_follow_from_the_committed_predictions(tmp_path: Path) -> None:
    results, xrays = ROOT / 'docs/results/patient_data', ROOT / 'examples/xrays'
    tables = [pd.read_csv(xrays / f'{split}.csv', dtype=str) for split in ('train', 'valid')]
    pd.concat(tables).to_csv(tmp_path / 'all.csv', index=False)
    scores = ('Pneumonia', 'auroc_within_views:Pneumonia')
    words = ['--predictions', results, '--labels', tmp_path / 'all.csv', '--save', tmp_path]
    words += ['--scores', *scores, '--resamples', 0]
    sweep = ROOT / 'scripts/studies/patient_data.yaml'
    assert run_script('ablate', 'table', '--sweep', sweep, *words) == 0
    page, values = (ROOT / 'docs/evaluation.md').read_text(), {}
    for score in scores:
        name = f'patient_data_{score.replace(":", "_")}.csv'
        found, kept = (pd.read_csv(folder / name) for folder in (tmp_path, results))
        pd.testing.assert_series_equal(found['value'], kept['value'])
        values[score] = kept.drop_duplicates('row').set_index('row')['value']
    within = values[scores[1]].round(3)
    told = re.search(r'within views is (.*) for the image and (.*) for metadata', page)
    assert [float(text) for text in told.groups()] == [within['image_1'], within['metadata_1']]


def test_the_script_of_all_starts_hands_the_scale_and_the_weights_on(tmp_path: Path) -> None:
    """Python is a stand-in that writes down what it is called with."""
    for name in ('labelled', 'unlabelled', 'out/results'):
        (tmp_path / name).mkdir(parents=True)
    for name in ('mine.pth', 'out/results/simmim_mae_mean.md', 'unlabelled/store.json', DUPLICATES):
        (tmp_path / name).touch()
    python, calls = tmp_path / 'python', tmp_path / 'calls'
    python.write_text(f'#!/usr/bin/env bash\necho "$OWN_WEIGHTS $*" >>{calls}\n')
    python.chmod(0o755)
    command = ['bash', ROOT / 'scripts/simmim_against_mae.sh', 'labelled', 'unlabelled', 'out']
    for given, wanted in (('mine.pth', tmp_path / 'mine.pth'), ('', 'mae-vit-64px')):
        calls.unlink(missing_ok=True)
        options = {'SCALE': 'starts', 'OWN_WEIGHTS': given, 'CHECK': '1' if given else ''}
        env = os.environ | options | {'PYTHON': str(python), 'SEEDS': '3'}
        subprocess.run(command, cwd=tmp_path, env=env, check=True, capture_output=True)
        lines = [line for line in calls.read_text().splitlines() if 'ablate.py' in line]
        assert all(line.startswith(f'{wanted} ') for line in lines)
        assert all('simmim_mae.yaml --scale starts' in line for line in lines)
        names = [line.split('ablate.py ')[1].split()[0] for line in lines]
        assert names == (['run'] if given else ['run', 'join', 'table', 'plot'])
        assert ('--check' in lines[0]) == bool(given)


def test_a_phantom_in_the_layout_of_mimic_has_the_labels_of_the_other(tmp_path: Path) -> None:
    chexpert, mimic = tmp_path / 'chexpert', tmp_path / 'mimic'
    make_phantom(chexpert, **SIZES)
    words = ['--train', 8, '--valid', 3, '--test', 3, '--size', 40, '--workers', 1, '--mimic']
    assert run_script('make_phantom', *words, '--output', mimic) == 0
    theirs = pd.read_csv(chexpert / 'train.csv')
    sweep = load_sweep(ROOT / 'scripts/studies/mae_resnet.yaml', 'tiny')
    config = expected_config(sweep.rows[0], 'finetune').clone()
    config.defrost()
    config.DATA.DATA_PATH, config.DATA.TASK = str(mimic), 'observations'
    records = read_split(config, 'train', LOGGER)
    assert len(records) == len(theirs)
    for label in ('Edema', 'Support Devices'):
        own = records.labels[:, records.label_names.index(label)]
        assert (own == 1).sum() == (theirs[label] == 1).sum() > 0
    before = sorted(mimic.rglob('*'))
    assert make_mimic_phantom(mimic, **SIZES)['drawn'] == 0
    assert sorted(mimic.rglob('*')) == before
    with pytest.raises(ValueError, match='must be empty'):
        make_mimic_phantom(chexpert, **SIZES)


def test_about_59_percent_of_the_phantoms_of_the_study_of_mae_have_a_finding() -> None:
    """As in its document (58.5 %). With 90 %, most scores hardly differ from a constant's."""
    text = (ROOT / 'scripts/studies/mae_resnet.sh').read_text()
    (words,) = re.findall(r'PHANTOM:-(--.*)}', text)
    args = load_script('make_phantom').parse_args(['--output', '', *words.split()])
    for split, number in (('train', args.train), ('valid', args.valid)):
        rows = sample_rows(number, split, args.seed, 'phantom', args.rarer)
        positive = (rows[[*LABELS][1:]] == 1).any(axis=1).mean()
        assert 0.53 < positive < 0.65, split
    usual = sample_rows(args.valid, 'valid', args.seed, 'phantom')
    assert (usual[[*LABELS][1:]] == 1).any(axis=1).mean() > 0.85


def test_a_phantom_with_other_findings_is_another_one(tmp_path: Path) -> None:
    make_phantom(tmp_path / 'phantom', **SIZES, rarer=1.0)
    assert make_phantom(tmp_path / 'phantom', **SIZES, rarer=1.0)['drawn'] == 0
    with pytest.raises(ValueError, match="'rarer': 0.0"):
        make_phantom(tmp_path / 'phantom', **SIZES)


def test_weights_of_tiny_have_the_names_and_shapes_of_transformers(transformers, tmp_path) -> None:
    script = load_script('studies/tiny_weights')
    assert run_script('studies/tiny_weights', tmp_path) == 0
    for name, kind, sizes in (('mae', 'ViTMAE', script.MAE), ('resnet', 'ResNet', script.RESNET)):
        own = {k: v for k, v in sizes.items() if k not in ('architectures', 'model_type')}
        config = getattr(transformers, f'{kind}Config')(**own)
        getattr(transformers, f'{kind}Model')(config).save_pretrained(tmp_path / 'theirs')
        wanted, found = (
            load_file(tmp_path / folder / 'model.safetensors') for folder in ('theirs', name)
        )
        assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in wanted.items()}


@pytest.mark.parametrize('rows', [('simmim_0.1', 'scratch_0.1'), ('linear_epochs5_1', 'pixels_1')])
def test_the_figure_shows_a_study_that_is_not_finished(tmp_path: Path, rows: tuple) -> None:
    scores = pd.DataFrame({'value': [0.8, 0.7], 'low': [0.7, 0.6], 'high': [0.9, 0.8]}, index=rows)
    draw_shares(tmp_path / 'shares.png', scores, 'Pneumonia')
    assert (tmp_path / 'shares.png').stat().st_size > 10_000


def test_weights_in_the_order_of_timm_get_its_names() -> None:
    renamed = load_script('studies/lite0_weights').renamed
    wanted = timm.create_model('tf_efficientnet_lite0').state_dict()
    given = {f'module_{number}': value for number, value in enumerate(wanted.values())}
    found = renamed(given)
    assert [*found] == [*wanted]
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    with pytest.raises(ValueError, match='not those of tf_efficientnet_lite0'):
        renamed(dict([*given.items()][1:]))


def test_the_mean_of_ranks_is_compared_with_both_of_its_rows(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = [f'patient{number:05}/study1/view1_frontal.png' for number in range(60)]
    truth, folds = rng.integers(0, 2, 60), np.repeat([0, 1], 30)
    labels = pd.DataFrame({'Path': names, 'AP/PA': 'AP', 'Pneumonia': truth})
    labels.to_csv(tmp_path / 'labels.csv', index=False)
    lines, ranks = [], {}
    for row in ('linear_mae_0.1', 'imagenet64_0.1'):
        lower = np.concatenate([rng.permutation(30), rng.permutation(30)])
        ranks[row] = (lower + 0.5) / 30
        lines.append(pd.DataFrame({'row': row, 'fold': folds, 'Path': names, 'Pneumonia': lower}))
    (tmp_path / 'joined').mkdir()
    write_ranks(tmp_path / 'joined' / 'seed3.parquet', ranks_table(pd.concat(lines), {}))

    module = load_script('studies/mean_of_ranks.py')
    module.main([str(tmp_path / name) for name in ('joined', 'labels.csv', 'table.csv')])

    table = pd.read_csv(tmp_path / 'table.csv')
    assert [*table['row']] == ['mean_of_ranks64_0.1'] * 2
    wanted = roc_auc_score(truth, sum(ranks.values()))
    assert [*table['value']] == pytest.approx([wanted] * 2, abs=1e-3)  # ranks have four digits
    alone = [roc_auc_score(truth, ranks[row]) for row in table['against']]
    assert [*table['difference']] == pytest.approx([wanted - area for area in alone], abs=1e-3)


def test_the_figure_of_starts_names_each_line(tmp_path: Path) -> None:
    module = load_script('studies/which_start_figure.py')
    for place, share in enumerate(module.SHARES):
        folder = tmp_path / f'secondary_{share}'
        folder.mkdir()
        value = 0.7 + 0.02 * place  # of all rows, whose names must not cover each other
        names = [*module.LINES, *(module.DOTS if share == '0.1' else ())]  # dots at one share
        rows = [[f'{row}_{share}', value, value - 0.03, value + 0.03] for row in names]
        table = pd.DataFrame(rows, columns=['row', 'value', 'low', 'high'])
        table.to_csv(folder / module.TABLE, index=False)
    module.main([str(tmp_path), str(tmp_path / 'figure.svg')])
    text = (tmp_path / 'figure.svg').read_text()
    heights = [
        float(re.search(rf'y="([0-9.]+)"[^>]*>{re.escape(name)}<', text)[1])
        for name, _, _ in module.LINES.values()
    ]
    assert min(np.diff(sorted(heights))) > 10  # points
    assert len(re.findall(r'<use [^>]*stroke: #ffffff', text)) == len(module.DOTS)
    assert 'Not for clinical use.' in text
