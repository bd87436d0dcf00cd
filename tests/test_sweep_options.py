"""Options of a sweep's runs: what was trained, held-out pictures and masks, the sweep's files."""

import json
from dataclasses import replace

import pytest
import yaml
from sweep_runs import OPTIONS, MadeRuns, make_sweep, with_rows

from sweeps.files import run_folder
from sweeps.results import collect, l1_spread

DRAWS = {'resamples': 2}


def row_of(collected, name):
    return next(row for row in collected['rows'] if row['name'] == name)


def edit_record(folder, **changes):
    record = json.loads((folder / 'run.json').read_text())
    (folder / 'run.json').write_text(json.dumps(record | changes))


@pytest.mark.parametrize('unit, ratio, hidden', [(16, 0.6, 62.5), (32, 0.6, 75), (8, 0.1, 10.9375)])
def test_hidden_share_is_that_of_whole_units(tmp_path, unit, ratio, hidden):
    changes = {'DATA.IMG_SIZE': 64, 'DATA.MASK_PATCH_SIZE': unit, 'DATA.MASK_RATIO': ratio}
    made, sweep = MadeRuns(tmp_path), make_sweep(['a', 'b'], key='DATA.MASK_RATIO')
    sweep = with_rows(sweep, swept_1={'pretrain': changes})
    made.add_pretraining(sweep.rows[1], 0, l1=20)
    rows = collect(sweep, [0], made.output, **DRAWS)['rows']
    assert [row['hidden_percent'] for row in rows] == [None, pytest.approx(hidden, rel=1e-5)]


@pytest.mark.parametrize(
    'options, wanted',
    [
        ({'DATA.IMG_SIZE': 192, 'MODEL.SWIN.WINDOW_SIZE': 6}, (32, 22, 36)),
        ({'DATA.IMG_SIZE': 64, 'MODEL.SWIN.WINDOW_SIZE': 4}, (8, 39, 64)),
        ({'DATA.IMG_SIZE': 224, 'MODEL.SWIN.WINDOW_SIZE': 7}, (32, 30, 49)),
        ({'DATA.IMG_SIZE': 100, 'DATA.MASK_PATCH_SIZE': 20, 'MODEL.TYPE': 'vit',
          'MODEL.VIT.PATCH_SIZE': 20}, None),
    ],
)  # fmt: skip
def test_shared_masks_are_those_of_the_size_of_the_runs(tmp_path, options, wanted):
    file, content = tmp_path / 'pretrain.yaml', dict(OPTIONS['simmim'])
    for key, value in options.items():
        *sections, name = key.split('.')
        node = content
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = value
    file.write_text(yaml.safe_dump(content))
    sweep = make_sweep(['a'], key='DATA.MASK_RATIO')
    configs = sweep.reference.configs | {'simmim': file}
    sweep = with_rows(sweep, reference={'configs': configs})
    found = collect(sweep, [0], tmp_path)['reference_masks']
    assert found == (wanted and dict(zip(('unit_px', 'hidden', 'units'), wanted, strict=True)))


@pytest.mark.parametrize(
    'key, value',
    [
        ('DATA.VIEWS', 'all'),
        ('DATA.HOLDOUT_FRACTION', 0.1),
        ('DATA.DATASET', 'folder'),
        ('EVAL.HOLDOUT_IMAGES', 8),
        ('DATA.IMG_SIZE', 448),
        ('DATA.PREPROCESS', 'clahe'),
        ('DATA.PRETRAIN_INTERPOLATION', 'bicubic'),
        ('TEST.CROP', False),
    ],
)
def test_error_on_other_pictures_is_not_set_beside_the_references(tmp_path, key, value):
    made, sweep = MadeRuns(tmp_path), make_sweep(['a', 'b', 'c'], key=key)
    changes = {'swept_1': {'pretrain': {key: value}}, 'swept_2': {'pretrain': {'SEED': 4}}}
    sweep = with_rows(sweep, **changes)
    for row in sweep.rows:
        made.add_pretraining(row, 0, l1=20)
    rows = collect(sweep, [0], made.output, **DRAWS)['rows']
    assert [row['other_pictures'] for row in rows] == [[], [key], []]
    assert [l1_spread(row).values for row in rows] == [[20], [], [20]]
    # The file of the run keeps what was measured.
    assert rows[1]['seeds'][0]['pretrain']['figures']['reference']['after'] == 20


def test_other_pictures_are_told_before_the_reference_is_finished(tmp_path):
    made, sweep = MadeRuns(tmp_path), make_sweep(['a', 'b'], key='DATA.VIEWS')
    sweep = with_rows(sweep, swept_1={'pretrain': {'DATA.VIEWS': 'all'}})
    made.add_pretraining(sweep.rows[1], 0, l1=20)
    assert row_of(collect(sweep, [0], made.output, **DRAWS), 'b')['other_pictures'] == [
        'DATA.VIEWS'
    ]


def test_what_the_reference_trains_is_kept(tmp_path):
    made, sweep = MadeRuns(tmp_path), make_sweep(['0.6'], key='DATA.MASK_RATIO')
    step = {'DATA.BATCH_SIZE': 8, 'TRAIN.ACCUMULATION_STEPS': 2, 'DATA.TRAIN_FRACTION': 0.5}
    made.add(replace(sweep.reference, pretrain=step, finetune={'TRAIN.EPOCHS': 7}), 0)
    edit_record(run_folder(made.output, 'simmim', sweep.reference, 0), processes=3)
    folder = run_folder(made.output, 'finetune', sweep.reference, 0)
    (folder / 'predictions_holdout.csv').write_bytes((folder / 'predictions_test.csv').read_bytes())
    trained = collect(sweep, [0], made.output, **DRAWS)['trained']
    shared = {
        'encoder': 'swin', 'width': 96, 'blocks': [2, 2, 6, 2], 'image_px': 224, 'channels': 1,
        'mode': 'full', 'base_rate': 0.0005, 'holdout_fraction': 0.02, 'select_on': 'holdout',
        'train_images': 0,
    }  # fmt: skip
    assert trained['pretrain'] == shared | {
        'epochs': 300, 'images_per_step': 48, 'train_fraction': 0.5, 'holdout_images': None
    }  # fmt: skip
    assert trained['finetune'] == shared | {
        'epochs': 7, 'images_per_step': 128, 'train_fraction': 1.0,
        'holdout_images': len(made.paths),
    }  # fmt: skip


def test_runs_that_differ_from_the_files_are_told(tmp_path):
    made, sweep = MadeRuns(tmp_path), make_sweep(['0.6', '0.8'], key='DATA.MASK_RATIO')
    places = {'PRINT_FREQ': 3, 'DATA.NUM_WORKERS': 0, 'OUTPUT': 'elsewhere', 'SEED': 9}
    for row in sweep.rows:
        for seed in (0, 1):
            one = {'AUG.HFLIP': 0.25} if row.name == '0.8' and seed else {}
            made.add_pretraining(
                replace(row, pretrain=row.pretrain | places | {'TRAIN.EPOCHS': 3} | one),
                seed,
                l1=20,
            )
            made.add_finetuning(row, seed)
    edit_record(run_folder(made.output, 'finetune', sweep.reference, 0), processes=2)
    assert collect(sweep, [0, 1], made.output, **DRAWS)['differences_from_files'] == [
        {'stage': 'simmim', 'key': 'TRAIN.EPOCHS', 'found': '3', 'expected': '300', 'runs': []},
        {'stage': 'simmim', 'key': 'AUG.HFLIP', 'found': '0.25', 'expected': '0.5',
         'runs': ['swept_1_seed1']},
        {'stage': 'finetune', 'key': 'pictures a step', 'found': '256', 'expected': '128',
         'runs': ['reference_seed0']},
    ]  # fmt: skip


def test_runs_of_the_files_differ_in_nothing(tmp_path):
    made, sweep = MadeRuns(tmp_path), make_sweep(['0.6', '0.8'], key='DATA.MASK_RATIO')
    for row in sweep.rows:
        made.add(row, 0)
    edit_record(run_folder(made.output, 'finetune', sweep.reference, 0), processes=1)
    assert collect(sweep, [0], made.output, **DRAWS)['differences_from_files'] == []


@pytest.mark.parametrize('which', [0, 1])
@pytest.mark.parametrize(
    'stage, key, value, expected',
    [
        ('simmim', 'MODEL.SWIN.EMBED_DIM', 32, 96),
        ('finetune', 'DATA.IMG_SIZE', 64, 224),
        ('finetune', 'MODEL.TYPE', 'vit', 'swin'),
    ],
)
def test_runs_of_another_model_are_of_another_sweep(tmp_path, which, stage, key, value, expected):
    made, sweep = MadeRuns(tmp_path), make_sweep(['0.6', '0.8'], key='DATA.MASK_RATIO')
    field = 'pretrain' if stage == 'simmim' else stage
    for number, row in enumerate(sweep.rows):
        changes = {key: value} if number == which else {}
        made.add(replace(row, **{field: getattr(row, field) | changes}), 0)
    folder = run_folder(made.output, stage, sweep.rows[which], 0)
    wanted = rf'{folder} is no run of swept\.yaml: {key} is {value} in its .*, {expected} in the'
    with pytest.raises(ValueError, match=wanted):
        collect(sweep, [0], made.output, **DRAWS)


def test_a_row_may_have_the_model_that_it_declares(tmp_path):
    made, sweep = MadeRuns(tmp_path), make_sweep(['1', '3'], key='MODEL.IN_CHANS')
    for row in sweep.rows:
        made.add(replace(row, pretrain={k: int(v) for k, v in row.pretrain.items()}), 0)
    assert collect(sweep, [0], made.output, **DRAWS)['differences_from_files'] == []
