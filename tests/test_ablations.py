"""Sweep files, and the YAML files and scripts that are written from them."""

import os
import re
import shlex
import subprocess
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import yaml

from config import build_parser, config_changes, config_text, get_config
from sweeps.files import (
    MAINS,
    ROOT,
    Sweep,
    all_files,
    check_encoders,
    load_sweep,
    plan,
    run_folder,
    script_path,
    script_text,
    sweep_files,
)

SWEEPS = {
    path.relative_to(ROOT / 'scripts/ablations').with_suffix('').as_posix(): load_sweep(path)
    for path in sweep_files()
}
ROWS = [
    pytest.param(sweep, row, id=f'{name}-{row.name}')
    for name, sweep in SWEEPS.items()
    for row in sweep.rows
]
# The others are SimMIM's own: masking, head, loss and target.
OF_XRAYS = {
    'channels',
    'views',
    'init',
    'label_share',
    'uncertain',
    'subset',
    'mae_study',
    'pretraining',
}
# One script of each form; the others with --all.
FORMS = (
    'reference',
    'mask_ratio_0.1',
    'channels_3',
    'init_imagenet',
    'init_imagenet_then_xray',
    'label_share_scratch_0.1',
    'uncertain_self_train',
)
SCRIPTS = {script_path(sweep, row): (sweep, row) for s in SWEEPS.values() for sweep, row in (
    (s, row) for row in s.rows)}  # fmt: skip
# Stands for Python: notes its arguments, and leaves a checkpoint as a pre-training does.
STAND_IN = """\
#!/usr/bin/env bash
printf '%s\\n' "$(printf '%q ' "$@")" >>"$NOTES"
output='' tag=''
while [ $# -gt 0 ]; do
    case $1 in --output) output=$2 ;; --tag) tag=$2 ;; esac
    shift
done
mkdir -p "$output/simmim_pretrain/$tag"
touch "$output/simmim_pretrain/$tag"/ckpt_epoch_{9,39,39_step_99,99}.pth
"""


def is_simmims(sweep: Sweep) -> bool:
    return sweep.name not in OF_XRAYS


@cache
def options(path: Path, stage: str, *more: str) -> str:
    arguments = ['--cfg', str(path), *more]
    return config_text(get_config(build_parser(stage).parse_args(arguments)))


def test_every_file_is_as_the_sweep_files_say() -> None:
    files = all_files()
    assert [str(p) for p, text in files.items() if p.read_text() != text] == []
    written = {*(ROOT / 'scripts/ablations').rglob('*.sh')}
    written |= {*(ROOT / 'configs').glob('*__ablations/*.yaml')}
    references = {path for s in SWEEPS.values() for path in s.reference.configs.values()}
    assert written == set(files) | references


def test_the_sweeps_hold_what_simmim_varied() -> None:
    names = {name: [row.name for row in sweep.rows] for name, sweep in SWEEPS.items()}
    assert names['mask_type'] == ['random', 'square', 'block']
    assert names['mask_size'] == ['4', '8', '16', '32', '64']
    assert names['mask_ratio'] == [f'0.{i}' for i in range(1, 10)]
    assert names['target_size'] == ['6', '12', '24', '48', '96', '192']
    assert names['mae_study'] == [
        f'{n}_images_{share}' for n in (1000, 10000) for share in (0.25, 0.5, 0.75)
    ]
    assert {'linear', 'mlp'} < set(names['head'])
    assert set(names['loss']) == {'l1', 'l2', 'smooth_l1'}
    assert {sweep.name for sweep in SWEEPS.values() if is_simmims(sweep)} == {
        'mask_type', 'mask_size', 'mask_ratio', 'head', 'loss', 'loss_pixels', 'target_size',
        'target',
    }  # fmt: skip
    shares = {row.finetune.get('DATA.TRAIN_FRACTION', 1) for row in SWEEPS['label_share'].rows}
    assert shares == {0.01, 0.1, 0.5, 1}


@pytest.mark.parametrize(('sweep', 'row'), ROWS)
def test_a_row_differs_from_the_reference_in_the_declared_keys_alone(sweep, row) -> None:
    for stage in row.stages:
        more = ['--tag', 'same']
        if row.learns_from:
            more += ['--opts', 'DATA.SELF_TRAIN_PREDICTIONS', 'of_another_run.csv']
        reference = options(sweep.reference.configs[stage], stage, *more)
        lines = config_changes(reference, options(row.configs[stage], stage, *more))
        keys = {line.partition(':')[0] for line in lines}
        assert keys == set(row.changes(stage))
        assert keys <= set(sweep.keys['pretrain' if stage == 'simmim' else 'finetune'])
        if is_simmims(sweep):
            assert len(keys) == (stage == 'simmim' and row is not sweep.reference)


def test_simmims_own_sweeps_are_fine_tuned_by_one_file_each_size() -> None:
    files = {
        (name.startswith('nano/'), row.configs['finetune'])
        for name, sweep in SWEEPS.items()
        for row in sweep.rows
        if is_simmims(sweep)
    }
    assert len(files) == 2


@pytest.mark.parametrize(
    'path',
    [
        pytest.param(path, id=path.stem, marks=[] if path.stem in FORMS else pytest.mark.slow)
        for path in SCRIPTS
    ],
)
def test_a_script_starts_what_the_runner_starts(path, tmp_path) -> None:
    sweep, row = SCRIPTS[path]
    stand_in, notes = tmp_path / 'python', tmp_path / 'notes'
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    (tmp_path / 'data').mkdir()
    weights = tmp_path / 'imagenet.pth'
    weights.touch()
    env = {'PYTHON': str(stand_in), 'NOTES': str(notes), 'SEED': '3', 'IMAGENET_WEIGHTS':
           str(weights), 'PRETRAIN_OPTS': 'TRAIN.EPOCHS 100'}  # fmt: skip
    command = ['bash', str(path), str(tmp_path / 'data'), str(tmp_path / 'runs'), '1']
    subprocess.run(command, check=True, env=os.environ | env, cwd=tmp_path)
    jobs = plan(
        sweep,
        seeds=[3],
        data=str(tmp_path / 'data'),
        output=str(tmp_path / 'runs'),
        options={'simmim': ['TRAIN.EPOCHS', '100']},
        environment=env,
    )
    folders = [run_folder(tmp_path / 'runs', stage, row, 3) for stage in row.stages]
    wanted = {job.folder: job for job in jobs}
    started = [shlex.split(line) for line in notes.read_text().splitlines()]
    mine = started[-len(folders) :]
    for folder, (main, *arguments) in zip(folders, mine, strict=True):
        job = wanted[folder]
        assert main == MAINS[job.stage]
        text = config_text(get_config(build_parser(job.stage).parse_args(arguments)))
        assert config_changes(config_text(job.config), text) in (
            [],
            ['TRAIN.ACCUMULATION_STEPS: 0 -> 1'],
        )
    assert len(started) == len(mine) + (2 if row.learns_from else 0)


@pytest.mark.parametrize(
    ('row', 'gpus', 'code', 'said'),
    [
        ('mask_ratio_0.1', '2', 0, ''),
        ('mask_ratio_0.1', '', 0, ''),
        ('mask_ratio_0.1', '3', 2, 'GPUS must divide 4 and 8, got 3'),
        ('nano/nano_mask_ratio_0.3', '2', 2, 'GPUS must be 1 (one micro-batch a step), got 2'),
    ],
)
def test_gpus_share_the_micro_batches_of_a_step(row, gpus, code, said, tmp_path) -> None:
    stand_in, notes = tmp_path / 'python', tmp_path / 'notes'
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    script = ROOT / 'scripts' / 'ablations' / f'{row}.sh'
    done = subprocess.run(
        ['bash', str(script), str(tmp_path), 'runs', *([gpus] if gpus else [])],
        env=os.environ | {'PYTHON': str(stand_in), 'NOTES': str(notes)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, said in done.stderr) == (code, True)
    if code == 0:
        lines = notes.read_text().splitlines()
        steps = [int(shlex.split(line)[shlex.split(line).index('--accumulation-steps') + 1])
                 for line in lines]  # fmt: skip
        assert steps == [4 // int(gpus or 1), 8 // int(gpus or 1)]
        assert all(('--nproc_per_node' in line) == (gpus == '2') for line in lines)
        assert (tmp_path / 'runs').is_dir()  # below the caller's folder


def test_a_script_takes_the_micro_batches_of_its_row(tmp_path) -> None:
    key = 'TRAIN.ACCUMULATION_STEPS'
    path = sweep_file(
        tmp_path,
        keys={'pretrain': [key], 'finetune': [key]},
        rows={'a': {}, 'b': {'pretrain': {key: 6}, 'finetune': {key: 4}}},
    )
    sweep = replace(load_sweep(path), path=ROOT / 'scripts/ablations/mine.yaml')
    row = sweep.rows[1]
    row = replace(row, configs=sweep.reference.configs)  # a script shows paths of the repository
    text = script_text(sweep, row)
    assert re.findall(r'--accumulation-steps \$\(\((\d+) / gpus', text) == ['6', '4']
    assert 'GPUS must divide 4 and 6' in text
    jobs = plan(load_sweep(path), seeds=[0], data='/data', output='/runs')
    steps = [job.config.TRAIN.ACCUMULATION_STEPS for job in jobs if job.run == row.run]
    assert steps == [6, 4]


def sweep_file(folder: Path, **changes: object) -> Path:
    content = yaml.safe_load((ROOT / 'scripts/ablations/nano/loss.yaml').read_text()) | changes
    path = folder / 'mine.yaml'
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize(
    ('changes', 'said'),
    [
        ({'rows': {'a': {}, 'b': {}}}, 'exactly one row must change nothing, 2 do'),
        ({'rows': {'a': {'pretrain': {'SEED': 1}}}}, "'SEED' is not one of"),
        (
            {'keys': {}, 'rows': {'a': {'pretrain': {'DATA.MASK_RATIO': 0.3}}}},
            "'DATA.MASK_RATIO' is not one of",
        ),
        ({'rows': {'a': {'pretrian': {}}}}, "'pretrian' is not one of"),
        ({'rows': {'a': {'pretrain': {'MODEL.SIMMIM.LOSS': 3}}}}, 'MODEL.SIMMIM.LOSS'),
        ({'rows': {'a': {}, 'b': {'against': 'c', 'pretrain': 'none'}}}, 'against must be one of'),
        ({'other': 1}, "'other' is not one of"),
        ({'rows': ['a', 'b']}, 'rows: must be keys and values'),
        ({'keys': None}, 'keys: must be keys and values'),
        ({'published': {'source': 'x'}}, "published: 'measure' is missing"),
        (
            {'published': {'source': 'x', 'measure': 'y', 'values': {'l3': 1}}},
            "published: 'l3' is none of the rows",
        ),
        ({'rows': {'a': {}, 'b': {'learns_from': 'c'}}}, 'learns_from must be one of the rows'),
        ({'rows': {'a b': {}}}, 'a row must have a name of letters'),
        ({'reference': {}}, 'there is no'),
        ({'reference': {'pretrain': 'no.yaml', 'finetune': 'no.yaml'}}, 'there is no'),
    ],
)
def test_a_bad_sweep_file_is_refused_by_name(changes, said, tmp_path) -> None:
    with pytest.raises(ValueError, match='mine.yaml') as caught:
        load_sweep(sweep_file(tmp_path, **changes))
    assert said in str(caught.value)


def test_a_row_is_named_as_it_is_written(tmp_path) -> None:
    """YAML takes 1_0.25 for the number 10.25, and 1.0e1 for 10.0."""
    path = sweep_file(tmp_path, rows={'a': {}, 'b': {'pretrain': {'MODEL.SIMMIM.LOSS': 'l2'}}})
    text = path.read_text()
    path.write_text(text.replace('a: {}', '1_0.25: {}').replace('b:\n', '1.0e1:\n'))
    assert [row.name for row in load_sweep(path).rows] == ['1_0.25', '1.0e1']


@pytest.mark.parametrize(
    ('names', 'twice'),
    [
        (['l1', 'l2', 'l1'], 'l1'),
        (['l1', '"l1"'], 'l1'),
        (['1', '"1"'], '1'),
        (['0.5', '0.50'], '0.50'),
        (['1000', 'a', '1_000'], '1_000'),
        (['1', 'true'], 'true'),
    ],
)
def test_a_row_that_is_there_twice_is_refused_by_its_name(names, twice, tmp_path) -> None:
    path = sweep_file(tmp_path, rows={})
    lines = [f'  {name}: {{pretrain: {{MODEL.SIMMIM.LOSS: l2}}}}' for name in names]
    path.write_text(path.read_text().replace('rows: {}', '\n'.join(['rows:', *lines])))
    with pytest.raises(ValueError) as caught:
        load_sweep(path)
    assert str(caught.value) == f'{path}: rows {twice}: is there twice'


def test_rows_that_are_there_twice_are_refused(tmp_path) -> None:
    path = sweep_file(tmp_path, rows={'l1': {}})
    path.write_text(f'{path.read_text()}rows:\n  l2: {{}}\n')
    with pytest.raises(ValueError, match=r'mine\.yaml: rows: is there twice'):
        load_sweep(path)


def test_from_scratch_every_layer_learns_at_the_same_rate() -> None:
    scratch = [row for sweep in SWEEPS.values() for row in sweep.rows
               if row.pretrain is None and not row.weights]  # fmt: skip
    assert len(scratch) == 1 + 4 + 2 + 2
    assert all(row.finetune['TRAIN.LAYER_DECAY'] == 1.0 for row in scratch)


def test_a_pair_with_and_without_pretraining_differs_in_layer_decay_alone() -> None:
    for name in ('label_share', 'subset', 'nano/pretraining'):
        rows = {row.name: row for row in SWEEPS[name].rows}
        for row in rows.values():
            if row.against:
                other = rows[row.against].finetune
                assert row.finetune == {k: v for k, v in other.items() if 'DECAY' not in k}


def test_published_figures_are_those_of_their_source() -> None:
    from evaluation.published import IRVIN_VALIDATION_AUROC

    for row, value in SWEEPS['uncertain'].published.values.items():
        assert value == pytest.approx(sum(IRVIN_VALIDATION_AUROC[row].values()) / 5, abs=6e-5)


def test_a_plan_has_each_run_once_after_what_it_needs() -> None:
    sweep = SWEEPS['uncertain']
    jobs = plan(sweep, seeds=[0, 1], data='/data', output='/runs')
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


@pytest.mark.parametrize('name', ['channels', 'init', 'uncertain'])
def test_what_a_sweep_varies_is_not_taken_for_another_encoder(name) -> None:
    environment = {'IMAGENET_WEIGHTS': 'imagenet.pth'}
    jobs = plan(SWEEPS[name], seeds=[1], data='/data', output='/runs', environment=environment)
    check_encoders(SWEEPS[name], jobs)


def test_weights_that_are_not_named_stop_the_plan() -> None:
    with pytest.raises(ValueError, match='environment variable IMAGENET_WEIGHTS'):
        plan(SWEEPS['init'], seeds=[0], data='/data', output='/runs')


def test_rows_of_one_pretraining_share_its_run() -> None:
    rows = {row.name: row for row in SWEEPS['views'].rows}
    assert rows['all_in_both'].pretrain_run == 'views_all_in_pretraining'
    assert rows['frontal'].pretrain_run == 'reference'
    assert {row.pretrain_run for row in SWEEPS['label_share'].rows} == {'reference', ''}
