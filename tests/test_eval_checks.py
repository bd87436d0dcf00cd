"""What --eval compares with the checkpoint, and what a run refuses before it costs anything."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from tiny import arguments, run_folder, run_main, tiny_config

from data.labels import LABELS
from utils import read_checkpoint, trained_config


@pytest.fixture(scope='module')
def finished(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a fine-tuning run with the policy zeros."""
    folder = tmp_path_factory.mktemp('finished')
    cfg = tiny_config(folder / 'c.yaml', 'finetune', DATA={'UNCERTAIN': 'zeros'})
    assert run_main('finetune', arguments(cfg, phantom, folder / 'o')) == 0
    return run_folder(folder / 'o', 'finetune')


def evaluation(finished: Path, phantom: Path, tmp_path: Path, *opts: str, **sections) -> list[str]:
    cfg = tiny_config(tmp_path / 'e.yaml', 'finetune', **sections)
    given = ['--eval', '--resume', str(finished / 'ckpt_epoch_1.pth')]
    return arguments(cfg, phantom, tmp_path / 'o', *given, *(['--opts', *opts] if opts else []))


@pytest.mark.slow
def test_a_checkpoint_of_another_task_is_refused(phantom: Path, tmp_path: Path, refused) -> None:
    cfg = tiny_config(tmp_path / 'c.yaml', 'finetune', DATA={'TASK': 'any_finding'})
    opts = ['--opts', 'MODEL.NUM_CLASSES', '1']
    assert run_main('finetune', arguments(cfg, phantom, tmp_path / 'a', *opts)) == 0
    argv = evaluation(run_folder(tmp_path / 'a', 'finetune'), phantom, tmp_path)
    opts = ['--opts', 'MODEL.NUM_CLASSES', '1', 'DATA.TASK', 'effusion']
    refused('finetune', [*argv, *opts], 'DATA.TASK')


def test_patients_that_were_learned_from_are_not_held_out(
    finished: Path, phantom: Path, tmp_path: Path, refused
) -> None:
    argv = evaluation(finished, phantom, tmp_path, 'DATA.HOLDOUT_FRACTION', '0.3')
    refused('finetune', argv, 'DATA.HOLDOUT_FRACTION')


def test_other_pixels_are_warned_of(finished: Path, phantom: Path, tmp_path: Path) -> None:
    argv = evaluation(finished, phantom, tmp_path, 'DATA.NORMALIZE', 'image')
    assert run_main('finetune', argv) == 0
    text = (run_folder(tmp_path / 'o', 'finetune') / 'log_rank0.txt').read_text()
    assert 'was trained with DATA.NORMALIZE dataset, now image' in text


@pytest.mark.slow
def test_a_runs_own_config_scores_its_own_checkpoint(
    finished: Path, phantom: Path, tmp_path: Path
) -> None:
    cfg = tiny_config(tmp_path / 'c.yaml', 'finetune')
    begun_with = str(finished / 'ckpt_best.pth')
    argv = arguments(cfg, phantom, tmp_path / 'o', '--pretrained', begun_with)
    assert run_main('finetune', argv) == 0
    folder = run_folder(tmp_path / 'o', 'finetune')
    assert run_main('finetune', ['--cfg', str(folder / 'config.yaml'), '--eval']) == 0
    source = json.loads((folder / 'predictions_test_eval.json').read_text())
    assert source['checkpoint'] == str(folder / 'ckpt_best.pth')
    assert source['task'] == 'observations'


@pytest.mark.slow
def test_the_checkpoint_that_a_run_resumed_from_is_not_its_own(
    finished: Path, phantom: Path, tmp_path: Path
) -> None:
    cfg = tiny_config(tmp_path / 'c.yaml', 'finetune', DATA={'UNCERTAIN': 'zeros'})
    resume = str(finished / 'ckpt_epoch_0.pth')
    assert run_main('finetune', arguments(cfg, phantom, tmp_path / 'o', '--resume', resume)) == 0
    folder = run_folder(tmp_path / 'o', 'finetune')
    again = ['--cfg', str(folder / 'config.yaml'), '--eval']
    assert run_main('finetune', again) == 0
    source = json.loads((folder / 'predictions_test_eval.json').read_text())
    assert Path(source['checkpoint']).parent == folder
    for named in (folder / 'ckpt_epoch_1.pth', finished / 'ckpt_epoch_0.pth'):
        assert run_main('finetune', [*again, '--resume', str(named)]) == 0
        source = json.loads((folder / 'predictions_test_eval.json').read_text())
        is_begin = str(named) == resume
        assert (
            source['checkpoint'] != str(named) if is_begin else source['checkpoint'] == str(named)
        )


@pytest.mark.slow
def test_weights_that_have_seen_what_is_held_out_now_are_warned_of(
    finished: Path, phantom: Path, tmp_path: Path
) -> None:
    weights = ['--pretrained', str(finished / 'ckpt_epoch_1.pth')]
    for fraction, expected in (('0.2', 0), ('0.22', 1)):
        train, data = {'EPOCHS': 1, 'WARMUP_EPOCHS': 0}, {'TRAIN_IMAGES': 12}
        cfg = tiny_config(tmp_path / 'c.yaml', 'finetune', TRAIN=train, DATA=data)
        more = [*weights, '--opts', 'DATA.HOLDOUT_FRACTION', fraction]
        output = tmp_path / fraction
        assert run_main('finetune', arguments(cfg, phantom, output, *more)) == 0
        text = (run_folder(output, 'finetune') / 'log_rank0.txt').read_text()
        assert text.count('was trained with DATA.HOLDOUT_FRACTION 0.2') == expected


@pytest.mark.slow
def test_curves_are_those_of_the_checkpoints_own_folder(
    finished: Path, phantom: Path, tmp_path: Path
) -> None:
    shown = {'REPORT': {'WRITE': True, 'MAPS': 0}, 'EVAL': {'RESAMPLES': 0}}
    own = tmp_path / 'o' / 'tiny_finetune' / 'default'
    shutil.copytree(finished, own)
    cfg = tiny_config(tmp_path / 'e.yaml', 'finetune', **shown)
    training = {}
    for name, folder in (('own', own), ('other', finished)):
        given = ['--eval', '--resume', str(folder / 'ckpt_best.pth')]
        assert run_main('finetune', arguments(cfg, phantom, tmp_path / 'o', *given)) == 0
        report = json.loads((own / 'report_eval' / 'report.json').read_text())
        training[name] = report['training']
        rows = {row['name']: row['value'] for row in report['run']}
        assert rows['Uncertain labels in training'] == 'zeros'
    assert training['own']['epochs'] == [0, 1]
    assert training['other'] is None


def test_a_column_that_is_not_there_stops_the_run_before_it_trains(
    phantom: Path, tmp_path: Path, refused
) -> None:
    cfg = tiny_config(tmp_path / 'c.yaml', 'finetune')
    argv = arguments(cfg, phantom, tmp_path / 'o', '--opts', 'EVAL.GROUPS', "['Race']")
    refused('finetune', argv, "'Race'", 'EVAL.GROUPS')
    assert not list(tmp_path.rglob('*.pth'))


def test_another_mode_does_not_take_the_moments_of_the_first(
    finished: Path, phantom: Path, tmp_path: Path, refused
) -> None:
    cfg = tiny_config(tmp_path / 'c.yaml', 'finetune', FINETUNE={'MODE': 'last_layer'})
    given = ['--resume', str(finished / 'ckpt_epoch_0.pth')]
    argv = arguments(cfg, phantom, tmp_path / 'o', *given)
    refused('finetune', argv, 'FINETUNE.MODE')


def test_options_of_another_version_are_left_out(finished: Path, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(finished / 'ckpt_best.pth')
    options = yaml.safe_load(checkpoint['config'])
    options['DATA'] |= {'OF_LATER': 1, 'UNCERTAIN_BY_LABEL': {'Edema': 'ones'}}
    options['LATER'] = {'KEY': 2}
    torch.save(checkpoint | {'config': yaml.safe_dump(options)}, tmp_path / 'c.pth')
    config = trained_config(tmp_path / 'c.pth')
    assert config.DATA.UNCERTAIN == 'zeros'
    assert dict(config.DATA.UNCERTAIN_BY_LABEL) == {'Edema': 'ones'}
    assert 'LATER' not in config and 'OF_LATER' not in config.DATA


def test_self_training_refuses_predictions_of_another_task(
    phantom: Path, tmp_path: Path, refused
) -> None:
    table = pd.read_csv(phantom / 'train.csv')[['Path']].assign(**dict.fromkeys(LABELS, 0.5))
    table.to_csv(tmp_path / 'p.csv', index=False)
    (tmp_path / 'p.json').write_text(json.dumps({'task': 'effusion'}))
    cfg = tiny_config(tmp_path / 'c.yaml', 'finetune', DATA={'UNCERTAIN': 'self_train'})
    opts = ['--opts', 'DATA.SELF_TRAIN_PREDICTIONS', str(tmp_path / 'p.csv')]
    refused('finetune', arguments(cfg, phantom, tmp_path / 'o', *opts), 'p.csv', "'effusion'")
