"""Sweep files: rows, plans of runs, what is refused, and the configs and scripts of rows."""

import os
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import yaml
from sweep_runs import methods_file, reference_files

from config import default_config
from data.tables.folds import fold_files
from sweeps.files import (
    ROOT,
    Sweep,
    batch_counts,
    expected_config,
    folds_folder,
    load_sweep,
    only_rows,
    only_subsets,
    plan,
    share_steps,
)

FOLDER = ROOT / 'scripts/ablations'
SHIPPED = [*sorted(FOLDER.rglob('*.yaml')), *sorted(ROOT.glob('scripts/comparison/*.yaml'))]
STUDIES = sorted(ROOT.glob('scripts/studies/*.yaml'))
FINETUNE = str(reference_files()['finetune'])
PRETRAIN = str(reference_files()['simmim'])
BOTH = {'pretrain': PRETRAIN, 'finetune': FINETUNE}
SCRATCH = {'finetune': FINETUNE}
SMALL_BATCH = SCRATCH | {'finetune_options': {'DATA.BATCH_SIZE': 2}}
OTHER_TYPE = BOTH | {'pretrain_options': {'MODEL.TYPE': 'vit'}}
OTHER_WIDTH = BOTH | {'pretrain_options': {'MODEL.SWIN.EMBED_DIM': 999}}
# Ablations of masks, heads, targets and losses. Each of their rows has a config and a script.
PLAN = ['mask_type', 'mask_size', 'mask_ratio', 'head']
PLAN += ['loss', 'loss_pixels', 'target', 'target_size']


@cache
def ablation(name: str) -> Sweep:
    return load_sweep(FOLDER / f'{name}.yaml')


def sweep_file(folder: Path, **changes: object) -> Path:
    content = yaml.safe_load((FOLDER / 'nano/loss.yaml').read_text()) | changes
    path = folder / 'mine.yaml'
    path.write_text(yaml.safe_dump(content))
    return path


def methods(**entries: dict) -> dict:
    return {'simmim': BOTH} | entries


def test_each_row_of_the_plan_has_a_config_and_a_script() -> None:
    # All of these sweeps have the row `reference`.
    rows = {row.run: row for name in PLAN for row in ablation(name).rows}
    assert {path.stem for path in FOLDER.glob('*.sh')} == {*rows, 'views_all_in_both'}
    configs = {row.configs['simmim'] for row in rows.values()}
    folder = ROOT / 'configs/swin_base__ablations'
    assert {*folder.glob('*pretrain*.yaml')} == configs and len(configs) == len(rows)
    assert all(row.configs['simmim'].stem.endswith(f'__{run}') for run, row in rows.items())
    small = {f'nano_{path.stem}' for path in FOLDER.glob('nano/*.sh')}
    runs = {row.run for name in [*PLAN, 'side_192'] for row in ablation(f'nano/{name}').rows}
    # These rows of nano/target.yaml are rows of loss_pixels and target_size, too.
    twice = {'nano_target_all_pixels', 'nano_target_16_px'}
    assert small == {*runs, 'nano_views_all_in_both'} - twice


def test_a_row_may_name_a_file_with_its_options(tmp_path: Path) -> None:
    own = tmp_path / 'l2.yaml'
    base = f'BASE: [{os.path.relpath(PRETRAIN, tmp_path)}]\n'
    options = 'MODEL:\n  SIMMIM:\n    LOSS: l2\nTAG: x\n'
    own.write_text(base + options)
    file = sweep_file(tmp_path, reference=BOTH, rows={'l1': {}, 'l2': {'pretrain': str(own)}})
    sweep = load_sweep(file)
    assert sweep.rows[1].changes == {'simmim': {'MODEL.SIMMIM.LOSS': 'l2'}, 'finetune': {}}
    jobs = plan(sweep, seeds=[0], data='/d', output='/r')
    (job,) = [job for job in jobs if job.run == 'mine_l2' and job.stage == 'simmim']
    assert job.arguments[1:3] == ['--cfg', str(own)] and job.config.MODEL.SIMMIM.LOSS == 'l2'
    own.write_text(options)
    with pytest.raises(ValueError, match='BASE'):
        load_sweep(file)


@pytest.mark.parametrize('name', ['label_share', 'subset', 'init', 'nano/pretraining'])
def test_from_scratch_has_the_options_of_the_pre_trained_rows_and_two_learning_rates(name) -> None:
    rows = {row.name: row.changes['finetune'] for row in ablation(name).rows}
    pairs = {row.name: row.against for row in ablation(name).rows if len(row.against) == 2}
    assert pairs
    for pre_trained, (scratch, low_rate) in pairs.items():
        assert rows[scratch] == rows[pre_trained]
        assert {*rows[low_rate]} - {*rows[pre_trained]} == {'TRAIN.BASE_LR'}


def test_only_a_method_with_its_own_schedule_may_train_for_other_epochs(tmp_path: Path) -> None:
    longer = {'TRAIN.EPOCHS': 77, 'TRAIN.WARMUP_EPOCHS': 7}
    sections = {'reference': 'simmim', 'shares': {1: {'TRAIN.EPOCHS': 5}}}
    own = methods(scratch=SCRATCH, scratch77=SCRATCH | {'schedule': longer})
    rows = load_sweep(methods_file(tmp_path, **sections, methods=own)).rows
    epochs = {row.name: expected_config(row, 'finetune').TRAIN.EPOCHS for row in rows}
    assert epochs == {'simmim_1': 5, 'scratch_1': 5, 'scratch77_1': 77}
    unequal = methods(scratch=SCRATCH | {'finetune_options': {'DATA.BATCH_SIZE': 3}})
    with pytest.raises(ValueError, match='scratch_1'):
        load_sweep(methods_file(tmp_path, **sections, methods=unequal))


@pytest.mark.parametrize(
    ('options', 'key'),
    [
        ({'TRAIN.EPOCHS': 30}, 'TRAIN.EPOCHS is set to 5'),
        ({'TRAIN.EPOCHS': 5}, 'TRAIN.EPOCHS is set to 5'),  # chance: the share may change
        ({'TRAIN.BASE_LR': 1.0, 'DATA.TRAIN_FRACTION': 0.5}, 'DATA.TRAIN_FRACTION is set to 1.0'),
    ],
)
def test_an_option_that_the_share_would_replace_is_refused(options, key, tmp_path) -> None:
    shares = {'shares': {1: {'TRAIN.EPOCHS': 5}}, 'reference': 'simmim'}
    wanted = methods(scratch=SCRATCH, b=SCRATCH | {'finetune_options': options})
    with pytest.raises(ValueError, match=f'method b: finetune_options: {key}.*schedule'):
        load_sweep(methods_file(tmp_path, **shares, methods=wanted))
    scales = {'tiny': {'finetune': options}}
    file = methods_file(tmp_path, **shares, methods=methods(scratch=SCRATCH), scales=scales)
    assert load_sweep(file).rows
    with pytest.raises(ValueError, match=f'finetune of all rows: {key}'):
        load_sweep(file, 'tiny')


def test_a_plan_has_each_run_once_after_what_it_needs() -> None:
    jobs = plan(ablation('uncertain'), seeds=[0, 1], data='/data', output='/runs')
    folders = [job.folder for job in jobs]
    assert len(folders) == len(set(folders)) == 2 * (1 + 7)
    for i, job in enumerate(jobs):
        assert all(need in folders[:i] for need in job.needs)
    learner = next(job for job in jobs if job.run == 'uncertain_self_train' and job.seed == 1)
    teacher = Path('/runs/simmim_finetune/uncertain_ignore_seed1')
    assert teacher in learner.needs
    assert learner.config.DATA.SELF_TRAIN_PREDICTIONS == str(teacher / 'predictions_train.csv')
    assert learner.config.SEED == 1
    assert learner.config.PRETRAINED == '/runs/simmim_pretrain/reference_seed1/ckpt_epoch_99.pth'


def test_some_rows_of_a_sweep_bring_those_that_they_learn_from() -> None:
    sweep = only_rows(ablation('uncertain'), ['self_train', 'zeros'])
    assert {row.name for row in sweep.rows} == {'self_train', 'zeros', 'ignore'}
    with pytest.raises(ValueError, match='none'):
        only_rows(sweep, ['zeros', 'none'])
    first, second, third = sweep.rows
    second = replace(second, learns_from=first.name)
    chain = (first, second, replace(third, learns_from=second.name))
    assert only_rows(replace(sweep, rows=chain), [third.name]).rows == chain


def test_some_subsets_keep_the_method_of_the_reference(tmp_path: Path) -> None:
    sweep = only_subsets(load_sweep(methods_file(tmp_path)), ['0.1'])
    assert {row.name for row in sweep.rows} == {'simmim_0.1', 'moco_0.1', 'scratch_0.1'}
    for other, names in ((sweep, ['1']), (ablation('uncertain'), ['0.1'])):
        with pytest.raises(ValueError, match='--subsets') as caught:
            only_subsets(other, names)
        assert names[0] in str(caught.value)


def file_with_rows(folder: Path, rows: str) -> Path:
    path = sweep_file(folder)
    content = yaml.safe_load(path.read_text())
    del content['rows']
    path.write_text(f'{yaml.safe_dump(content)}rows:\n{rows}')
    return path


def test_names_are_taken_as_written(tmp_path: Path) -> None:
    changes = '{against: [0.30, 1.0], pretrain: {MODEL.SIMMIM.LOSS: l2}}'
    rows = f'  1000_0.25: {{}}\n  no: {changes}\n  0.30: {{pretrain: none}}\n'
    rows += '  1.0: {pretrain: none, against: 0.30}\n'
    sweep = load_sweep(file_with_rows(tmp_path, rows))
    names = [(row.name, row.against) for row in sweep.rows]
    assert names == [('1000_0.25', ()), ('no', ('0.30', '1.0')), ('0.30', ()), ('1.0', ('0.30',))]
    with pytest.raises(ValueError, match=r"mine\.yaml: line 6: 'a' occurs twice"):
        load_sweep(file_with_rows(tmp_path, '  a: {}\n  a: {}\n'))


# Scales -----------------------------------------------------------------------------------------

SCALED_ROWS = {
    'l1': {},
    'l2': {'pretrain': {'MODEL.SIMMIM.LOSS': 'l2'}},
    'long': {'finetune': {'TRAIN.EPOCHS': 9}},
}


def scaled_file(folder: Path, **scale: object) -> Path:
    content = {'rows': SCALED_ROWS, 'note': 'Published: 1\n  for l2'}
    return sweep_file(folder, **content, scales={'full': None, 'tiny': scale})


def test_a_scale_selects_rows_and_puts_options_under_the_changes_of_all(tmp_path: Path) -> None:
    options = {'pretrain': {'TRAIN.EPOCHS': 4}, 'finetune': {'TRAIN.EPOCHS': 3}}
    path = scaled_file(tmp_path, rows=['l1', 'long'], seeds=2, **options)
    assert [row.name for row in load_sweep(path, 'full').rows] == [*SCALED_ROWS]
    sweep = load_sweep(path, 'tiny')
    jobs = plan(sweep, seeds=[0], data='/data', output='/runs')
    # Both rows share one pre-training, although a scale sets its options.
    assert [(job.run, job.config.TRAIN.EPOCHS) for job in jobs] == [
        ('nano_reference', 4),
        ('nano_reference', 3),
        ('nano_mine_long', 9),
    ]
    assert [expected_config(row, 'finetune').TRAIN.EPOCHS for row in sweep.rows] == [3, 9]
    assert sweep.seeds == 2 and sweep.note == 'Published: 1 for l2'
    whole = load_sweep(sweep_file(tmp_path, rows=SCALED_ROWS, seeds=2, **options))
    assert whole.seeds == 2 and whole.rows[2].options('finetune') == {'TRAIN.EPOCHS': 9}
    assert whole.rows[0].options('simmim') == {'TRAIN.EPOCHS': 4}
    with pytest.raises(ValueError, match='huge'):
        load_sweep(path, 'huge')


def test_a_scale_changes_entries_and_configs_by_name(tmp_path: Path) -> None:
    rows = {'l1': {}, 'l2': {'pretrain': {'MODEL.SIMMIM.LOSS': 'smooth_l1'}}}
    files = reference_files()
    reference = {'pretrain': str(files['simmim']), 'finetune': str(files['finetune'])}
    sweep = load_sweep(scaled_file(tmp_path, rows=rows, reference=reference), 'tiny')
    assert sweep.rows[1].changes['simmim'] == {'MODEL.SIMMIM.LOSS': 'smooth_l1'}
    assert sweep.rows[0].configs == {stage: files[stage] for stage in ('simmim', 'finetune')}
    tiny = {'reference': 'scratch', 'methods': ['simmim', 'scratch']}
    tiny['shares'] = {'1': {'TRAIN.WARMUP_EPOCHS': 1}, '0.50': {}}
    sweep = load_sweep(methods_file(tmp_path, scales={'tiny': tiny}), 'tiny')
    assert [row.name for row in sweep.rows] == [
        'simmim_1', 'scratch_1', 'simmim_0.50', 'scratch_0.50'
    ]  # fmt: skip
    assert sweep.rows[0].against == ('scratch_1',)
    known = {'DATA.TRAIN_FRACTION': 1.0, 'TRAIN.EPOCHS': 20, 'TRAIN.WARMUP_EPOCHS': 1}
    assert sweep.rows[0].changes['finetune'] == known


@pytest.mark.parametrize('path', [*SHIPPED, *STUDIES], ids=lambda path: path.stem)
def test_every_pretrained_row_of_a_shipped_sweep_is_compared_with_another_one(path: Path) -> None:
    """A row that another row names in `against` loses the comparison with the reference."""
    for scale in yaml.safe_load(path.read_text()).get('scales') or ['']:
        sweep = load_sweep(path, scale)
        alone = {
            row.method or row.name for row in sweep.rows if row.pretraining and not row.against
        }
        assert len(alone) <= 1, f'{scale}: only the reference is not compared'


def test_any_row_may_be_the_reference_of_an_ablation(tmp_path: Path) -> None:
    named = {'pretrain': PRETRAIN, 'finetune': FINETUNE, 'row': 'scratch'}
    rows = SCALED_ROWS | {'scratch': {'pretrain': 'none'}}
    sweep = load_sweep(sweep_file(tmp_path, reference=named, rows=rows))
    assert sweep.rows[-1].stages == ('finetune',)
    assert [row.against for row in sweep.rows] == [('scratch',)] * 3 + [()]
    supervised = {'a': {}, 'b': {'finetune': {'TRAIN.EPOCHS': 9}}}
    path = sweep_file(tmp_path, reference={'finetune': FINETUNE}, rows=supervised)
    assert {row.stages for row in load_sweep(path).rows} == {('finetune',)}


@pytest.mark.parametrize(
    ('make', 'changes', 'key'),
    [
        (sweep_file, {'rows': {'a': {}, 'b': {}}}, 'row'),
        (sweep_file, {'rows': {'a': {}, 'b': {'pretrain': 5}}}, 'row b: pretrain'),
        (sweep_file, {'rows': {'a': {}, 'b': {'learns_from': 'c'}}}, 'learns_from'),
        (sweep_file, {'rows': {'a': {}, 'b': {'against': 'c', 'pretrain': 'none'}}}, 'against'),
        (sweep_file, {'reference': {'pretrain': 'no.yaml', 'finetune': 'no.yaml'}}, 'no.yaml'),
        (sweep_file, {'rows': {'a': {}, 'b': {'finetune': 'none'}}}, 'row b: finetune'),
        (sweep_file, {'rows': {'a/b': {}}}, 'a/b'),
        (sweep_file, {'scores': 5}, 'scores'),
        (sweep_file, {'titles': {'l1': {'a': 1}}}, 'titles: l1'),
        (sweep_file, {'note': ['a']}, 'note'),
        (sweep_file, {'seeds': 0}, 'seeds'),
        (sweep_file, {'reference': {'pretrain': PRETRAIN, 'finetune': FINETUNE, 'row': 'c'}}, 'c'),
        (sweep_file, {'reference': {'finetune': FINETUNE}}, 'row l2'),
        (sweep_file, {'rows': {'a': {}, 'b': {'pretrain': {'MASK_RATO': 0.5}}}}, 'MASK_RATO'),
        (methods_file, {'shares': None}, 'shares'),
        (methods_file, {'reference': 'dino'}, 'dino'),
        (methods_file, {'shares': {1: 5}}, 'shares: 1'),
        (methods_file, {'methods': methods(b=SCRATCH | {'pretrain_options': {}})}, 'method b'),
        (methods_file, {'methods': methods(b=SCRATCH | {'pretrain': FINETUNE})}, 'MODEL.NAME'),
        (methods_file, {'methods': methods(b=SCRATCH | {'options': {}})}, 'method b'),
        (methods_file, {'methods': methods(b=SMALL_BATCH)}, 'images per step'),
        (methods_file, {'methods': methods(b=OTHER_TYPE)}, "same MODEL.TYPE, got 'vit' and 'swin'"),
        (methods_file, {'methods': methods(b=OTHER_WIDTH)}, 'same MODEL.SWIN.EMBED_DIM, got 999'),
        (scaled_file, {'rows': ['l3']}, 'l3'),
        (scaled_file, {'rows': ['l2']}, 'row'),
        (scaled_file, {'methods': ['l1']}, 'methods'),
        (scaled_file, {'pretrain': {'NO.KEY': 1}}, 'NO.KEY'),
        (scaled_file, {'images_per_second': 900}, 'images_per_second'),
    ],
)
def test_a_bad_file_is_refused(make: Callable, changes: dict, key: str, tmp_path: Path) -> None:
    path = make(tmp_path, **changes)
    with pytest.raises(ValueError, match=r'mine\.yaml') as caught:
        load_sweep(path, 'tiny' if make is scaled_file else '')
    assert key in str(caught.value)


# Comparisons of methods -------------------------------------------------------------------------


def test_rows_are_methods_by_shares(tmp_path: Path) -> None:
    rows = load_sweep(methods_file(tmp_path)).rows
    assert [(row.name, row.against, row.stages) for row in rows] == [
        ('simmim_0.1', (), ('simmim', 'finetune')),
        ('moco_0.1', ('simmim_0.1',), ('contrastive', 'finetune')),
        ('scratch_0.1', ('simmim_0.1',), ('finetune',)),
        ('simmim_1', (), ('simmim', 'finetune')),
        ('moco_1', ('simmim_1',), ('contrastive', 'finetune')),
        ('scratch_1', ('simmim_1',), ('finetune',)),
    ]
    assert (rows[1].run, rows[1].pretrain_run) == ('mine_moco_0.1', 'mine_moco')
    shares = {'DATA.TRAIN_FRACTION': 0.1, 'TRAIN.EPOCHS': 60}
    assert rows[2].changes['finetune'] == {'TRAIN.LAYER_DECAY': 0.9} | shares
    images = {1000: None, 'all': None, 10000: {'TRAIN.EPOCHS': 3}}
    rows = load_sweep(methods_file(tmp_path, shares=None, images=images)).rows
    found = [(row.name, row.changes['finetune']['DATA.TRAIN_IMAGES']) for row in rows[:6:3]]
    assert found == [('simmim_1000', 1000), ('simmim_all', 0)]


def test_rows_are_compared_with_the_pixels_only_if_they_are_a_row(tmp_path: Path) -> None:
    pixels = SCRATCH | {'finetune_options': {'FINETUNE.MODE': 'pixels'}}
    scored = methods(b=SCRATCH | {'against': 'pixels'}, pixels=pixels)
    rows = {row.name: row for row in load_sweep(methods_file(tmp_path, methods=scored)).rows}
    assert rows['b_0.1'].against == ('pixels_0.1',)
    unscored = methods(b=SCRATCH | {'against': ['simmim', 'pixels']})
    with pytest.raises(ValueError, match=r'mine\.yaml.*against.*pixels'):
        load_sweep(methods_file(tmp_path, methods=unscored))


def test_each_method_is_pretrained_once_per_seed_by_its_main(tmp_path: Path) -> None:
    given = {'contrastive': ['TRAIN.WARMUP_EPOCHS', '4'], 'finetune': ['SAVE_FREQ', '9']}
    sweep = load_sweep(methods_file(tmp_path))
    jobs = plan(sweep, seeds=[0, 1], data='/data', output='/runs', options=given)
    pretrainings = [job for job in jobs if job.stage != 'finetune']
    assert [(job.arguments[0], str(job.folder)) for job in pretrainings] == [
        ('main_simmim.py', '/runs/simmim_pretrain/mine_simmim_seed0'),
        ('main_contrastive.py', '/runs/contrastive_pretrain/mine_moco_seed0'),
        ('main_simmim.py', '/runs/simmim_pretrain/mine_simmim_seed1'),
        ('main_contrastive.py', '/runs/contrastive_pretrain/mine_moco_seed1'),
    ]
    assert [job.config.TRAIN.WARMUP_EPOCHS for job in pretrainings] == [20, 4, 20, 4]
    found = {(job.run, job.seed): job for job in jobs if job.stage == 'finetune'}
    moco, folder = found['mine_moco_0.1', 1], pretrainings[3].folder
    assert moco.needs == (folder,) and moco.config.PRETRAINED == f'{folder}/ckpt_epoch_299.pth'
    assert (moco.config.SEED, moco.config.SAVE_FREQ) == (1, 9)
    scratch = found['mine_scratch_1', 0]
    assert scratch.needs == () and scratch.config.PRETRAINED == ''


def test_cross_validation_shares_a_pre_training_on_images_without_labels(tmp_path: Path) -> None:
    sweep = load_sweep(methods_file(tmp_path))
    settings = {'seeds': [1], 'data': '/data', 'output': '/runs', 'folds': 3}
    with pytest.raises(ValueError, match='--unlabelled'):
        plan(sweep, **settings)
    jobs = plan(sweep, unlabelled='/images', **settings)
    found = {job.name: job.config.DATA for job in jobs}
    assert len(found) == len({job.folder for job in jobs}) == len(jobs) == 2 + 3 * len(sweep.rows)
    pretraining = found['pretrain mine_moco seed 1']
    assert (pretraining.DATA_PATH, pretraining.DATASET) == ('/images', 'folder')
    for part in range(3):
        data = found[f'finetune mine_moco_0.1 seed 1 fold {part}/3']
        assert (data.DATA_PATH, data.DATASET) == ('/data', 'chexpert')
        tables = tuple(map(str, fold_files(folds_folder('/runs', 3), part)))
        assert (data.TRAIN_CSV, data.VALID_CSV) == tables
    folder = Path('/runs/contrastive_pretrain/mine_moco_seed1')
    needs = [job.needs for job in jobs if job.run == 'mine_moco_0.1']
    assert needs == [(folder,)] * 3 and pretraining.TRAIN_CSV == 'train.csv'


def test_the_pre_training_of_a_method_starts_from_its_weights(tmp_path: Path) -> None:
    weights = {'weights': 'IMAGENET'}
    entries = {'simmim': BOTH | weights, 'scratch': SCRATCH | weights}
    sweep = load_sweep(methods_file(tmp_path, methods=entries, shares={1: {}}))
    settings = {'seeds': [0], 'data': '/data', 'output': '/runs'}
    jobs = plan(sweep, environment={'IMAGENET': '/weights.pth'}, **settings)
    starts = {job.name: job.config.PRETRAINED for job in jobs}
    for run in ('pretrain mine_simmim', 'finetune mine_scratch_1'):
        assert starts.pop(f'{run} seed 0') == '/weights.pth'
    assert [Path(path).parent for path in starts.values()] == [jobs[0].folder]
    with pytest.raises(ValueError, match='IMAGENET'):
        plan(sweep, environment={}, **settings)


# Several GPUs -----------------------------------------------------------------------------------


def on_gpus(stage: str, size: int, steps: int, gpus: int):
    arguments = ['--cfg', str(reference_files()[stage]), '--tag', 'mine', '--opts']
    arguments += ['DATA.BATCH_SIZE', str(size), 'TRAIN.ACCUMULATION_STEPS', str(steps)]
    return share_steps(stage, arguments, gpus)[1]


@pytest.mark.parametrize('stage', ['simmim', 'contrastive'])
@pytest.mark.parametrize(('gpus', 'batch', 'steps'), [(2, 128, 1), (8, 32, 1), (6, 128, 1)])
def test_shared_steps_keep_the_images_of_a_step(stage, gpus, batch, steps) -> None:
    config = default_config()
    size = batch * steps * gpus
    config.DATA.BATCH_SIZE, config.TRAIN.ACCUMULATION_STEPS = size, 1
    shared = on_gpus(stage, size // 2, 2, gpus)
    assert (shared.DATA.BATCH_SIZE, shared.TRAIN.ACCUMULATION_STEPS) == (batch, steps)
    assert batch_counts(shared, {'processes': gpus}, stage) == batch_counts(config, {}, stage)
    with pytest.raises(ValueError, match='use 1, 2, 4'):
        on_gpus(stage, 64, 4, 3)


@pytest.mark.parametrize('name', ['methods', 'methods_small', 'probe_small'])
def test_methods_are_compared_with_rows_of_the_same_encoder(name: str) -> None:
    """Otherwise a difference between encoders would count as one between methods."""
    sweep = load_sweep(ROOT / f'scripts/comparison/{name}.yaml')
    encoders = {}
    for row in sweep.rows:
        model = expected_config(row, 'finetune').MODEL
        vit = dict(model.VIT)
        has_added_positions = vit.pop('USE_APE') != vit.pop('USE_SINCOS')  # learned or fixed
        encoders[row.name] = model.TYPE, model.TIMM.NAME, has_added_positions, vit
    compared = [(row.name, other) for row in sweep.rows for other in row.against]
    assert len(compared) >= 6
    for one, other in compared:
        assert encoders[one] == encoders[other], (one, other)
