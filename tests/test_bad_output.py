"""Places that cannot be written to: exit code 2, one clear line, nothing half-written."""

import pytest
from mistakes import STAGES, config_of, results_in
from tiny import arguments, run_folder, run_main, tiny_config


@pytest.mark.parametrize('stage', STAGES)
@pytest.mark.parametrize('below', ['', 'runs/here'])
def test_an_output_that_is_a_file_or_below_one(below, stage, eight, tmp_path, refused):
    (tmp_path / 'file').write_text('mine')
    output = tmp_path / 'file' / below
    refused(stage, arguments(config_of(tmp_path, stage), eight, output), 'OUTPUT', output,
            'cannot write to the folder', '--output')  # fmt: skip
    assert (tmp_path / 'file').read_text() == 'mine'


@pytest.mark.parametrize('name', ['config.yaml', 'log_rank0.txt', 'tensorboard'])
def test_a_run_folder_that_cannot_be_written(name, eight, tmp_path, refused):
    folder = run_folder(tmp_path / 'out', 'simmim')
    folder.mkdir(parents=True)
    (folder / name).write_text('') if name == 'tensorboard' else (folder / name).mkdir()
    argv = arguments(config_of(tmp_path, 'simmim'), eight, tmp_path / 'out')
    refused('simmim', argv, 'OUTPUT', folder, '--output')
    assert not results_in(folder)


def test_a_checkpoint_that_cannot_be_written(eight, tmp_path, refused):
    path = run_folder(tmp_path / 'out', 'simmim') / 'ckpt_epoch_0.pth'
    path.mkdir(parents=True)
    argv = arguments(config_of(tmp_path, 'simmim'), eight, tmp_path / 'out')
    argv += ['--opts', 'TRAIN.AUTO_RESUME', 'False']
    refused('simmim', argv, path, 'the checkpoint cannot be written')
    assert results_in(tmp_path / 'out') == [path], 'no temporary file is left'


def test_figures_that_cannot_be_written_while_training(phantom, tmp_path, refused):
    folder = run_folder(tmp_path / 'out', 'simmim')
    (folder / 'metrics.jsonl').mkdir(parents=True)
    argv = arguments(tiny_config(tmp_path / 'run.yaml', 'simmim'), phantom, tmp_path / 'out')
    refused('simmim', argv, folder / 'metrics.jsonl')


def test_a_picture_that_cannot_be_written_is_warned_of(phantom, tmp_path, capsys):
    folder = run_folder(tmp_path / 'out', 'simmim')
    folder.mkdir(parents=True)
    (folder / 'reconstructions').write_text('')
    argv = arguments(tiny_config(tmp_path / 'run.yaml', 'simmim'), phantom, tmp_path / 'out')
    assert run_main('simmim', argv) == 0
    assert f'{folder}/reconstructions/epoch_1.png cannot be written' in capsys.readouterr().out
