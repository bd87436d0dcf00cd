"""Sweep files of methods: their rows, what is refused, the plan, and those that come with us."""

import argparse
import json
import logging
import os
import re
import subprocess
from pathlib import Path

import pytest
from sweep_commands import in_process
from sweep_runs import MadeRuns, methods_file, reference_files
from warm_python import warm_python

from config import encoder_node, get_config
from engine.run_record import is_finished
from logger import read_metrics
from models import build_model
from models.contrastive import build_contrastive
from models.convert import Statistics, convert, convert_timm
from sweeps.files import (
    ROOT,
    check_encoders,
    finetuned_runs,
    load_sweep,
    plan,
    sweep_files,
    unfinished_seeds,
)

SHIPPED = {path.stem: load_sweep(path) for path in sorted(ROOT.glob('scripts/comparison/*.yaml'))}
FINETUNE = str(reference_files()['finetune'])
ANY = {'num_images': 10**6, 'logger': logging.getLogger('test')}  # of build_contrastive


OTHER = 'configs/vit_nano__demo/simmim_finetune__vit_nano__img64__demo.yaml'


def methods(**entries: dict) -> dict:
    """The reference and these."""
    pretrain = str(reference_files()['simmim'])
    return {'simmim': {'pretrain': pretrain, 'finetune': FINETUNE}} | entries


def jobs_of(path: Path, **more) -> list:
    return plan(load_sweep(path), seeds=[0, 1], data='/data', output='/runs', **more)


def test_rows_are_methods_by_shares(tmp_path) -> None:
    sweep = load_sweep(methods_file(tmp_path))
    assert [(row.name, row.run, row.against, row.pretrain_run) for row in sweep.rows] == [
        ('simmim_0.1', 'mine_simmim_0.1', '', 'mine_simmim'),
        ('moco_0.1', 'mine_moco_0.1', 'simmim_0.1', 'mine_moco'),
        ('scratch_0.1', 'mine_scratch_0.1', 'simmim_0.1', ''),
        ('simmim_1', 'mine_simmim_1', '', 'mine_simmim'),
        ('moco_1', 'mine_moco_1', 'simmim_1', 'mine_moco'),
        ('scratch_1', 'mine_scratch_1', 'simmim_1', ''),
    ]
    assert [row.finetune for row in sweep.rows[1:3]] == [
        {'DATA.TRAIN_FRACTION': 0.1, 'TRAIN.EPOCHS': 60},
        {'TRAIN.LAYER_DECAY': 0.9, 'DATA.TRAIN_FRACTION': 0.1, 'TRAIN.EPOCHS': 60},
    ]
    assert [row.stages for row in sweep.rows[:3]] == [
        ('simmim', 'finetune'), ('contrastive', 'finetune'), ('finetune',)
    ]  # fmt: skip
    assert sweep.reference.name == 'simmim_1'
    assert sweep.keys == {'pretrain': [], 'finetune': ['DATA.TRAIN_FRACTION', 'TRAIN.EPOCHS']}
    assert list(sweep.methods) == ['simmim', 'moco', 'scratch']


def test_numbers_of_images_are_subsets_too(tmp_path) -> None:
    images = {1000: None, 10000: {'TRAIN.EPOCHS': 3}}
    sweep = load_sweep(methods_file(tmp_path, shares=None, images=images))
    assert sweep.reference.name == 'simmim_10000' and sweep.rows[0].name == 'simmim_1000'
    assert sweep.rows[0].finetune == {'DATA.TRAIN_IMAGES': 1000}
    assert sweep.reference.finetune == {'DATA.TRAIN_IMAGES': 10000, 'TRAIN.EPOCHS': 3}


def test_methods_of_one_pretraining_share_its_run(tmp_path) -> None:
    moco = {'pretrain': str(reference_files()['contrastive']), 'finetune': FINETUNE}
    path = methods_file(
        tmp_path,
        methods=methods(
            moco=moco,
            moco_kept=moco | {'finetune_options': {'TRAIN.LAYER_DECAY': 0.5}},
            moco_long=moco | {'pretrain_options': {'TRAIN.EPOCHS': 30}, 'run': 'elsewhere'},
        ),
    )
    rows = {row.name: row for row in load_sweep(path).rows}
    assert rows['moco_kept_1'].pretrain_run == 'mine_moco'
    assert rows['moco_kept_1'].run == 'mine_moco_kept_1'
    assert (rows['moco_long_1'].pretrain_run, rows['moco_long_1'].run) == (
        'elsewhere', 'elsewhere_1'
    )  # fmt: skip
    epochs = {job.run: job.config.TRAIN.EPOCHS for job in jobs_of(path) if job.stage != 'finetune'}
    assert epochs == {'mine_simmim': 300, 'mine_moco': 300, 'elsewhere': 30}


def test_a_plan_has_a_pretraining_a_method_and_seed_by_its_main(tmp_path) -> None:
    options = {'contrastive': ['TRAIN.WARMUP_EPOCHS', '4'], 'finetune': ['SAVE_FREQ', '9']}
    jobs = jobs_of(methods_file(tmp_path), options=options)
    pretrainings = [job for job in jobs if job.stage != 'finetune']
    assert [(job.arguments[0], str(job.folder)) for job in pretrainings] == [
        ('main_simmim.py', '/runs/simmim_pretrain/mine_simmim_seed0'),
        ('main_contrastive.py', '/runs/contrastive_pretrain/mine_moco_seed0'),
        ('main_simmim.py', '/runs/simmim_pretrain/mine_simmim_seed1'),
        ('main_contrastive.py', '/runs/contrastive_pretrain/mine_moco_seed1'),
    ]
    assert [job.config.TRAIN.WARMUP_EPOCHS for job in pretrainings] == [20, 4, 20, 4]
    found = {(job.run, job.seed): job for job in jobs if job.stage == 'finetune'}
    assert len(found) == 6 * 2 and len(jobs) == 4 + 12
    moco = found['mine_moco_0.1', 1]
    folder = Path('/runs/contrastive_pretrain/mine_moco_seed1')
    assert moco.needs == (folder,) and moco.config.PRETRAINED == f'{folder}/ckpt_epoch_299.pth'
    assert (moco.config.TRAIN.EPOCHS, moco.config.DATA.TRAIN_FRACTION) == (60, 0.1)
    assert (moco.config.SEED, moco.config.SAVE_FREQ, moco.config.TRAIN.LAYER_DECAY) == (1, 9, 1.0)
    scratch = found['mine_scratch_1', 0]
    assert scratch.needs == () and scratch.config.PRETRAINED == ''
    assert scratch.config.TRAIN.LAYER_DECAY == 0.9
    assert jobs.index(moco) > jobs.index(pretrainings[3])


@pytest.mark.parametrize(
    ('changes', 'said'),
    [
        ({'shares': None}, 'it must have methods, reference, title, and either shares or images'),
        ({'images': {10: {}}}, 'either shares or images'),
        ({'other': 1}, "'other' is not one of"),
        ({'methods': ['a']}, 'methods: must be keys and values'),
        ({'reference': 'moco'}, "one that main_simmim.py pre-trains: ['simmim']; got 'moco'"),
        ({'methods': methods()}, 'must be one of two or more methods'),
        ({'methods': methods(b={})}, 'method b: finetune: there is no'),
        ({'methods': methods(b={'finetune': FINETUNE, 'pretrain': 'no.yaml'})},
         'method b: pretrain: there is no'),
        ({'methods': methods(b={'finetune': FINETUNE, 'pretrain': FINETUNE})},
         "MODEL.NAME must be one of ['simmim_pretrain', 'contrastive_pretrain'], got 'simmim_fin"),
        ({'methods': methods(b={'finetune': FINETUNE, 'options': {}})},
         "method b: 'options' is not one of"),
        ({'methods': methods(b={'finetune': FINETUNE, 'finetune_options': {'TRAIN.EPOCHS': 3}})},
         'method b: finetune_options: TRAIN.EPOCHS is set in shares, the same for all methods'),
        ({'methods': methods(b={'finetune': FINETUNE, 'finetune_options': {'NO.KEY': 3}})},
         'NO.KEY'),
        ({'methods': methods(b={'finetune': FINETUNE, 'pretrain_options': {'TRAIN.EPOCHS': 3}})},
         'method b: pretrain_options: there is no pretrain'),
        ({'methods': methods(b={'finetune': FINETUNE, 'run': '../b'})}, "method b: run: must be"),
        ({'methods': methods(**{'b c': {'finetune': FINETUNE}})}, 'a method must have a name of'),
        ({'methods': methods(b={'finetune': FINETUNE, 'run': 'mine_simmim'})},
         'method b: run: mine_simmim is that of method simmim: they would share their folders'),
        ({'methods': methods(b={'finetune': FINETUNE, 'run': 'x'},
                             c={'finetune': FINETUNE, 'run': 'x'})},
         'method c: run: x is that of method b'),
        ({'shares': {1: {}}, 'methods': methods(b={'finetune': FINETUNE,
                                                   'finetune_options': {'TRAIN.EPOCHS': 5}})},
         'shares 1: TRAIN.EPOCHS must be the same for all methods, got 300 for simmim and 5 for b'),
        ({'methods': methods(b={'finetune': FINETUNE,
                                'finetune_options': {'TRAIN.ACCUMULATION_STEPS': 2}})},
         'shares 0.1: DATA.BATCH_SIZE x TRAIN.ACCUMULATION_STEPS must be the same for all methods, '
         'got 128 for simmim and 256 for b'),
        ({'shares': None, 'images': {9: {'DATA.BATCH_SIZE': 8}},
          'methods': methods(b={'finetune': OTHER})},
         'images 9: TRAIN.EPOCHS must be the same for all methods, got 300 for simmim and 20 for '),
        ({'shares': {'2': {}}}, 'shares 2: must be a share in (0, 1]'),
        ({'shares': {'half': {}}}, 'shares half: must be a share in (0, 1]'),
        ({'shares': {'0.5': {}, '0.50': {}}}, 'shares 0.50: is there twice'),
        ({'shares': {'0.5': {'DATA.TRAIN_FRACTION': 0.4}}}, 'is taken from the name'),
        ({'shares': None, 'images': {'0.5': {}}}, 'images 0.5: must be a whole number above 0'),
    ],
)  # fmt: skip
def test_a_bad_file_is_refused_by_file_method_and_key(changes, said, tmp_path) -> None:
    with pytest.raises(ValueError) as caught:
        load_sweep(methods_file(tmp_path, **changes))
    assert said in str(caught.value) and 'mine.yaml' in str(caught.value)


@pytest.mark.parametrize(
    ('before', 'after', 'twice'),
    [
        ('  0.1:', '  0.50: {}\n  0.5:', 'shares 0.5'),
        ('  0.1:', '  1:', 'shares 1'),
        ('  0.1:', '  1.0:', 'shares 1'),
        ("  0.1:", "  '1':", 'shares 1'),
        ('  scratch:', '  moco:', 'methods moco'),
    ],
)  # fmt: skip
def test_a_name_that_is_there_twice_is_refused(before, after, twice, tmp_path) -> None:
    path = methods_file(tmp_path)
    text = path.read_text()
    assert text.count(before) == 1
    path.write_text(text.replace(before, after))
    with pytest.raises(ValueError) as caught:
        load_sweep(path)
    assert str(caught.value) == f'{path}: {twice}: is there twice'


def test_steps_of_as_many_images_may_be_shared_out_in_any_way(tmp_path) -> None:
    options = {'DATA.BATCH_SIZE': 32, 'TRAIN.ACCUMULATION_STEPS': 4}
    method = {'finetune': FINETUNE, 'finetune_options': options}
    path = methods_file(tmp_path, methods=methods(b=method))
    assert load_sweep(path).rows[1].finetune.items() >= options.items()


def test_options_of_another_encoder_are_refused(tmp_path) -> None:
    path = methods_file(tmp_path)
    check_encoders(load_sweep(path), jobs_of(path, options={'contrastive': ['DATA.VIEWS', 'all']}))
    jobs = jobs_of(path, options={'contrastive': ['DATA.IMG_SIZE', '448']})
    with pytest.raises(ValueError) as caught:
        check_encoders(load_sweep(path), jobs)
    assert str(caught.value) == (
        f'/runs/contrastive_pretrain/mine_moco_seed0 is no run of {path}: DATA.IMG_SIZE is 448 in '
        'its options, 224 in the files of the sweep'
    )


def test_fine_tunings_that_are_finished_have_their_pretraining(tmp_path) -> None:
    made, sweep = MadeRuns(tmp_path), load_sweep(methods_file(tmp_path))
    rows = {row.name: row for row in sweep.rows}
    for name, seed in (('simmim_1', 0), ('moco_0.1', 1), ('scratch_1', 0), ('scratch_1', 1)):
        made.add(rows[name], seed)
    made.add(rows['moco_1'], 0, finished=False)
    found = finetuned_runs(sweep, [0, 1], made.output)
    assert [(run.folder.name, run.pretraining and run.pretraining.parent.name, run.masked)
            for run in found] == [
        ('mine_moco_0.1_seed1', 'contrastive_pretrain', None),
        ('mine_simmim_1_seed0', 'simmim_pretrain', 0.6),
        ('mine_scratch_1_seed0', None, None),
        ('mine_scratch_1_seed1', None, None),
    ]  # fmt: skip
    assert unfinished_seeds(sweep, [0, 1], made.output) == {
        'simmim_0.1': [0, 1], 'moco_0.1': [0], 'scratch_0.1': [0, 1], 'simmim_1': [1],
        'moco_1': [0, 1],
    }  # fmt: skip


def test_they_are_no_ablations() -> None:
    assert set(SHIPPED) == {'methods', 'methods_small', 'mae_resnet', 'probe_small'}
    assert not {sweep.path for sweep in SHIPPED.values()} & {*sweep_files()}


@pytest.mark.parametrize('name', SHIPPED)
def test_methods_of_one_encoder_see_as_many_images(name) -> None:
    jobs = plan(SHIPPED[name], seeds=[0], data='/data', output='/runs')
    images = {
        tuple(job.config.DATA[key] for key in ('VIEWS', 'HOLDOUT_FRACTION', 'IMG_SIZE', 'DATASET'))
        + (job.config.TRAIN.EPOCHS,)
        for job in jobs
        if job.stage != 'finetune'
    }
    assert len(images) == 1


@pytest.mark.parametrize('name', SHIPPED)
def test_methods_are_fine_tuned_alike_but_for_their_encoder(name) -> None:
    """Of one encoder and subset: the same but for layer decay from scratch and what is named."""
    jobs = plan(SHIPPED[name], seeds=[0], data='/data', output='/runs')
    by_subset: dict[str, set] = {}
    for job in (job for job in jobs if job.stage == 'finetune'):
        config = job.config
        steps = config.DATA.BATCH_SIZE * config.TRAIN.ACCUMULATION_STEPS
        alike = (config.TRAIN.EPOCHS, config.TRAIN.WARMUP_EPOCHS, steps, config.DATA.VIEWS)
        by_subset.setdefault(job.run.rpartition('_')[2], set()).add(alike)
        if config.MODEL.TYPE == 'vit':
            assert config.MODEL.VIT.USE_MEAN_POOLING
            if config.FINETUNE.MODE == 'full':  # layers of a probe do not learn
                assert config.TRAIN.LAYER_DECAY == (0.75 if config.PRETRAINED else 1.0)
    assert [len(kinds) for kinds in by_subset.values()] == [1] * len(by_subset)


def test_few_labels_get_enough_steps() -> None:
    """Of 187,200 training images: as the sweep file says."""
    steps = {}
    for row in SHIPPED['methods'].rows:
        job_config = get_config(argparse.Namespace(
            cfg=str(row.configs['finetune']), stage='finetune',
            opts=[str(word) for pair in row.finetune.items() for word in pair]))  # fmt: skip
        batch = job_config.DATA.BATCH_SIZE * job_config.TRAIN.ACCUMULATION_STEPS
        count = 187_200 * job_config.DATA.TRAIN_FRACTION // batch * job_config.TRAIN.EPOCHS
        steps.setdefault(row.subset, set()).add(count)
    assert {subset: len(counts) for subset, counts in steps.items()} == dict.fromkeys(steps, 1)
    said = [1_460, 8_800, 11_000, 14_600]
    assert [min(counts) for counts in steps.values()] == pytest.approx(said, rel=0.05)


PAIRS = {
    (row.configs[row.pretraining], row.configs['finetune']): row
    for sweep in SHIPPED.values()
    for row in sweep.rows
    if row.pretrain is not None
}


@pytest.mark.parametrize('row', PAIRS.values(), ids=lambda row: row.run)
def test_weights_fit_the_encoder_that_is_fine_tuned(row) -> None:
    """All of it is loaded but the classifier, and after hidden patches the norm of the pool."""

    def config_of(stage: str, *opts: str):
        cfg = str(row.configs[stage])
        return get_config(argparse.Namespace(cfg=cfg, stage=stage, opts=list(opts)))

    before, after = config_of(row.pretraining), config_of('finetune')
    for key in ('EMBED_DIM', 'DEPTH', 'NUM_HEADS', 'PATCH_SIZE', 'NAME', 'INIT_VALUES'):
        assert encoder_node(before).get(key) == encoder_node(after).get(key)
    shallow = ('MODEL.VIT.DEPTH', '1')  # all blocks are alike
    before, after = config_of(row.pretraining, *shallow), config_of('finetune', *shallow)
    if row.pretraining == 'contrastive':
        source = build_contrastive(before, total_steps=1, **ANY)
    else:
        source = build_model(before, is_pretrain=True)
    target = build_model(after, is_pretrain=False)
    of_timm = after.MODEL.TYPE == 'timm'
    fit, into = (convert_timm, target) if of_timm else (convert, target.state_dict())
    pixels = Statistics((0.5,), (0.25,))
    _, report = fit(source.state_dict(), into, source_stats=pixels, target_stats=pixels)
    new = r'(encoder\.)?(head|fc)\.(weight|bias)'
    new += r'|fc_norm\.(weight|bias)' if row.pretraining == 'simmim' else ''
    assert report.new and [key for key in report.new if not re.fullmatch(new, key)] == []
    assert report.resized == report.folded == []


def test_mae_and_resnet_differ_in_what_the_study_varied() -> None:
    jobs = plan(SHIPPED['mae_resnet'], seeds=[0], data='/data', output='/runs')
    ratios = {job.run: job.config.DATA.MASK_RATIO for job in jobs if job.stage == 'simmim'}
    assert ratios == {f'mae_resnet_mae_{ratio:g}': ratio for ratio in (0.25, 0.5, 0.75)}
    from sweeps.results import is_augmented

    for job in (job for job in jobs if job.stage == 'finetune'):
        config = job.config
        assert is_augmented(config) == ('plain' not in job.run)
        assert (config.MODEL.TYPE == 'timm') == ('resnet18' in job.run.removeprefix('mae_resnet'))
        assert config.DATA.TASK == 'any_finding' and config.DATA.BATCH_SIZE == 32
        assert config.TRAIN.EPOCHS == 20 and config.REPORT.WRITE
        assert config.DATA.TRAIN_IMAGES == int(job.run.rpartition('_')[2])


NANO = {
    'pretrain': ROOT / 'configs/vit_nano__demo/simmim_pretrain__vit_nano__img64__demo.yaml',
    'byol': next((ROOT / 'configs/vit_nano__methods_demo').glob('contrastive*byol*.yaml')),
    'finetune': ROOT / 'configs/vit_nano__demo/simmim_finetune__vit_nano__img64__demo.yaml',
}
TINY = {'MODEL.VIT.EMBED_DIM': 16, 'MODEL.VIT.DEPTH': 1, 'MODEL.VIT.NUM_HEADS': 2}
SHORT = 'DATA.BATCH_SIZE 8 DATA.HOLDOUT_FRACTION 0.2 EVAL.HOLDOUT_IMAGES 8 DATA.NUM_WORKERS 0 '


def say_seconds(folder: Path, seconds: float) -> None:
    """Have a finished run say that each of its epochs took so long."""
    records = read_metrics(folder / 'metrics.jsonl')
    for record in records[1:]:
        images = record['images_per_second'] * record['seconds']
        record.update(seconds=seconds, images_per_second=images / seconds)
    lines = (json.dumps(record) + '\n' for record in records)
    (folder / 'metrics.jsonl').write_text(''.join(lines))


@pytest.mark.slow
def test_equal_images_then_equal_time_from_end_to_end(phantom, tmp_path) -> None:
    """An epoch of BYOL is said to take twice as long as one of SimMIM: 4 epochs for 8."""
    small = {'pretrain_options': TINY, 'finetune_options': TINY}
    files = {key: str(file) for key, file in NANO.items()}
    path = methods_file(
        tmp_path,
        methods={
            'simmim': {key: files[key] for key in ('pretrain', 'finetune')} | small,
            'byol': {'pretrain': files['byol'], 'finetune': files['finetune']} | small,
        },
        shares={0.5: {'TRAIN.EPOCHS': 1}, 1: {'TRAIN.EPOCHS': 1}},
    )
    with warm_python(tmp_path) as python:
        env = os.environ | {
            'PYTHON': str(python), 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '',
            'SEEDS': '1', 'FINETUNE_OPTS': f'{SHORT} TRAIN.WARMUP_EPOCHS 0 REPORT.WRITE False',
            'PRETRAIN_OPTS': f'{SHORT} TRAIN.EPOCHS 8 TRAIN.WARMUP_EPOCHS 2',
        }  # fmt: skip
        pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT, 'text': True}
        words = [str(python), 'scripts/ablate.py', 'run', '--sweep', str(path), '--seeds', '1']
        words += ['--output', str(tmp_path / 'o'), '--data-path', str(phantom)]
        words += ['--pretrain-opts', *env['PRETRAIN_OPTS'].split()]
        words += ['--finetune-opts', *env['FINETUNE_OPTS'].split()]
        done = subprocess.run(words, cwd=ROOT, env=env, check=False, **pipes)
        assert done.returncode == 0, done.stdout[-3000:]
        say_seconds(tmp_path / 'o/simmim_pretrain/mine_simmim_seed0', 2.0)
        say_seconds(tmp_path / 'o/contrastive_pretrain/mine_byol_seed0', 4.0)
        words = ['bash', 'scripts/compare_methods.sh', str(phantom), str(tmp_path / 'o'), str(path)]
        done = subprocess.run(words, cwd=ROOT, env=env, check=False, **pipes)
        assert done.returncode == 0, done.stdout[-3000:]
        again = subprocess.run(words, cwd=ROOT, env=env, check=False, **pipes)
    assert again.returncode == 0 and again.stdout.count('6 runs: 6 finished before') == 2
    out = tmp_path / 'o'
    for name in ('mine', 'mine_equal_time'):
        for suffix in ('.md', '.csv', '.tex', '_labels.png', '_labels.pdf', '_shares.png'):
            assert (out / f'{name}{suffix}').stat().st_size > 300
    equal = load_sweep(out / 'mine_equal_time.yaml')
    assert equal.methods['simmim'].pretrain_run == 'mine_simmim'
    assert equal.methods['byol'].pretrain['TRAIN.EPOCHS'] == 4
    folder = out / 'contrastive_pretrain/mine_equal_time_byol_seed0'
    assert is_finished(folder)
    assert [r['epoch'] for r in read_metrics(folder / 'metrics.jsonl')][-1] == 3
    images = {record['seconds'] * record['images_per_second']
              for m in ('simmim_pretrain/mine_simmim', 'contrastive_pretrain/mine_byol')
              for record in read_metrics(out / f'{m}_seed0/metrics.jsonl')[1:]}  # fmt: skip
    assert len({round(count) for count in images}) == 1
    runs = finetuned_runs(equal, [0], out)
    assert [(run.pretraining.parent.name, run.masked) for run in runs] == [
        ('simmim_pretrain', 0.6), ('contrastive_pretrain', None)
    ] * 2  # fmt: skip
    assert in_process('plot', path, out, phantom, '--subset', '0.3') == 2
