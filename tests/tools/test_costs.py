"""tools/costs.py: operations against closed forms and recorded numbers, and the table in docs."""

import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from tiny import ROOT

from sweeps.files import expected_config, load_sweep
from tools import costs

SIZES = ROOT / 'scripts/comparison/sizes.yaml'


def vit_operations(config) -> int:
    """Of a ViT with a class token for one image: a multiplication and an addition are two."""
    vit, side = config.MODEL.VIT, config.DATA.IMG_SIZE // config.MODEL.VIT.PATCH_SIZE
    width, patches, tokens = vit.EMBED_DIM, side**2, side**2 + 1
    embed = patches * vit.PATCH_SIZE**2 * config.MODEL.IN_CHANS * width
    linear = tokens * width * (3 * width + width + 2 * 4 * width)  # qkv, output, MLP
    attention = 2 * tokens**2 * width  # queries with keys, and weights with values
    return 2 * (embed + vit.DEPTH * (linear + attention) + width * config.MODEL.NUM_CLASSES)


@pytest.mark.parametrize('scale', ['', 'full'])
def test_operations_and_parameters_of_a_vit_are_those_of_its_layers(scale: str) -> None:
    row = next(row for row in load_sweep(SIZES, scale).rows if row.method == 'vit_tiny')
    config = expected_config(row, 'finetune')
    parameters, forward, both = costs.operations(config, 'finetune')
    assert forward == vit_operations(config)
    assert 2.9 * forward < both < 3 * forward, 'the first layer needs no gradient of the image'
    model, _ = costs.build_task(config, 'finetune')
    assert parameters == sum(weight.numel() for weight in model.parameters())


def test_the_recorded_operations_of_each_method_are_found_again() -> None:
    """Those in methods_small.yaml and docs/howto/compare_methods.md."""
    sweep = load_sweep(ROOT / 'scripts/comparison/methods_small.yaml')
    recorded = dict(simmim=0.504, mae=0.172, moco=0.669, simclr=1.003, byol=1.387, swav=1.009)
    rows = {row.method: row for row in costs.rows_to_count(sweep)}
    for method, wanted in recorded.items():
        config = expected_config(rows[method], rows[method].pretraining)
        found = costs.operations(config, rows[method].pretraining)[2] / 1e9
        assert found == pytest.approx(wanted, abs=5e-4), method


def test_the_table_in_docs_is_that_of_the_command(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(torch, 'set_num_threads', lambda number: None)
    page = (ROOT / 'docs/howto/compare_methods.md').read_text(encoding='utf-8')
    for scale in ('', 'full'):
        words = ['--sweep', str(SIZES), '--scale', scale, '--output', str(tmp_path)]
        monkeypatch.setattr(sys, 'argv', ['costs.py', *words])
        assert costs.main(costs.parse_args()) == 0
        table = pd.read_csv(tmp_path / 'sizes_costs.csv')
        names = load_sweep(SIZES, scale).titles
        for line in table.to_dict('records'):
            title = names[line['row'].rpartition('_')[0]]
            numbers = [
                line['parameters'] / 1e6,
                *(line[k] / 1e9 for k in ('classifier', 'finetune')),
            ]
            cells = ' | '.join(f'{number:.3g}' for number in numbers)
            assert f'| {title} | {line["size_px"]} | {cells} |' in page
    assert 'not measured' in capsys.readouterr().out


def test_frozen_encoders_cost_nothing_backward_and_baselines_are_left_out() -> None:
    sweep = load_sweep(ROOT / 'scripts/comparison/simmim_mae.yaml', 'starts')
    rows = {row.method: row for row in costs.rows_to_count(sweep)}
    assert 'pixels' not in rows
    found = costs.costs_of(rows['linear_random'], measure=True)
    assert found['finetune'] == found['classifier'] and 'pretrain' not in found
    assert found['finetune_minutes'] > 0
