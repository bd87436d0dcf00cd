"""Scripts of ablations and studies: the scales that they state, and what `tiny` reads."""

import re
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from safetensors.torch import load_file
from tiny import ROOT, load_script, run_script

from data.reading import read_split
from scripts.phantom import make_phantom
from scripts.phantom_mimic import make_mimic_phantom
from sweeps.files import expected_config, load_sweep, only_rows

SCRIPTS = sorted(
    path for path in (ROOT / 'scripts/ablations').glob('*.sh') if path.stem != 'run_row'
)
SIZES = {'num_train': 8, 'num_valid': 3, 'num_test': 3, 'size': 40}


@pytest.mark.parametrize('path', SCRIPTS, ids=lambda path: path.stem)
def test_each_ablation_runs_at_the_scales_that_its_usage_names(path: Path, tmp_path: Path) -> None:
    text = path.read_text()
    scales = re.search(r'DATA OUTPUT (\S+) \[GPUS\]', text)[1]
    sweep, row = re.search(r'run_row.sh" (\S+) (\S+) "\$@"', text).groups()
    for scale in scales.split('|'):
        folder = ROOT / 'scripts/ablations' / {'full': '', 'nano': 'nano'}[scale]
        only_rows(load_sweep(folder / f'{sweep}.yaml'), [row])
    command = ['bash', path, tmp_path, tmp_path / 'out', 'nano' if scales == 'full' else 'none']
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and f'DATA OUTPUT {scales} [GPUS]' in done.stderr
    assert not (tmp_path / 'out').exists()


def test_the_study_of_mae_reads_mimic_and_files_of_weights_at_every_scale() -> None:
    for scale in ('full', 'small', 'tiny'):
        sweep = load_sweep(ROOT / 'scripts/studies/mae_resnet.yaml', scale)
        for row in sweep.rows:
            config = expected_config(row, 'finetune')
            assert (config.DATA.DATASET, config.DATA.LABELLER) == ('mimic-cxr', 'negbio')
            name = row.method.removeprefix('ours_').removeprefix('last_').partition('_')[0]
            wanted = {'mae': 'MAE_WEIGHTS', 'scored': 'MAE_WEIGHTS', 'resnet': 'RESNET_WEIGHTS'}
            assert row.weights == wanted.get(name, ''), row.name


def test_a_phantom_in_the_layout_of_mimic_has_the_labels_of_the_other(tmp_path: Path) -> None:
    make_phantom(tmp_path / 'chexpert', **SIZES)
    words = ['--train', 8, '--valid', 3, '--test', 3, '--size', 40, '--workers', 1, '--mimic']
    assert run_script('make_phantom', *words, '--output', tmp_path / 'mimic') == 0
    theirs = pd.read_csv(tmp_path / 'chexpert' / 'train.csv')
    config = expected_config(
        load_sweep(ROOT / 'scripts/studies/mae_resnet.yaml', 'tiny').rows[0], 'finetune'
    ).clone()
    config.defrost()
    config.DATA.DATA_PATH, config.DATA.TASK = str(tmp_path / 'mimic'), 'observations'
    records = read_split(config, 'train', load_script('ablate').logging.getLogger())
    assert len(records) == len(theirs)
    for label in ('Edema', 'Support Devices'):
        own = records.labels[:, records.label_names.index(label)]
        assert (own == 1).sum() == (theirs[label] == 1).sum() > 0
    before = sorted((tmp_path / 'mimic').rglob('*'))
    assert make_mimic_phantom(tmp_path / 'mimic', **SIZES)['drawn'] == 0
    assert sorted((tmp_path / 'mimic').rglob('*')) == before
    with pytest.raises(ValueError, match='must be empty'):
        make_mimic_phantom(tmp_path / 'chexpert', **SIZES)


def test_weights_of_tiny_have_the_names_and_shapes_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip('transformers')
    script = load_script('studies/tiny_weights')
    assert run_script('studies/tiny_weights', tmp_path) == 0
    mae = {key: value for key, value in script.MAE.items() if key != 'architectures'}
    resnet = {key: value for key, value in script.RESNET.items() if key != 'architectures'}
    mae.pop('model_type'), resnet.pop('model_type')
    for name, model in (
        ('mae', transformers.ViTMAEModel(transformers.ViTMAEConfig(**mae))),
        ('resnet', transformers.ResNetModel(transformers.ResNetConfig(**resnet))),
    ):
        model.save_pretrained(tmp_path / 'theirs')
        wanted = load_file(tmp_path / 'theirs' / 'model.safetensors')
        found = load_file(tmp_path / name / 'model.safetensors')
        assert {key: value.shape for key, value in found.items()} == {
            key: value.shape for key, value in wanted.items()
        }
