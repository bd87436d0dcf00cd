"""Scripts of studies: their scales, and what `tiny` reads."""

from pathlib import Path

import pandas as pd
import pytest
import timm
import torch
from safetensors.torch import load_file
from tiny import ROOT, load_script, run_script
from xray_splits import LOGGER

from data.tables.reading import read_split
from scripts.phantom import make_phantom
from scripts.phantom_mimic import make_mimic_phantom
from sweeps.files import expected_config, load_sweep
from tools.real_xrays_figures import draw_shares

SIZES = {'num_train': 8, 'num_valid': 3, 'num_test': 3, 'size': 40}


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
