"""Checkpoints that cannot be used: exit code 2, one clear line, nothing of theirs executed."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mistakes import STAGES, config_of, results_in
from tiny import SWIN, VIT, arguments, run_folder, run_main

from logger import read_metrics
from utils import check_exists, read_checkpoint


class Payload:
    """Pickled, it asks the reader to make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


@pytest.fixture(scope='session')
def trained(eight: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pre-training checkpoint, which a resumed run accepts."""
    folder = tmp_path_factory.mktemp('trained')
    argv = arguments(config_of(folder, 'simmim'), eight, folder)
    assert run_main('simmim', [*argv, '--opts', 'SAVE_FREQ', '1']) == 0
    return run_folder(folder, 'simmim') / 'ckpt_epoch_0.pth'


def other_entries(trained: Path, path: Path) -> Path:
    saved = read_checkpoint(trained)
    saved['model']['encoder.surprise'] = torch.zeros(2)
    torch.save(saved, path)
    return path


def unsafe(trained: Path, path: Path) -> Path:
    torch.save(read_checkpoint(trained) | {'extra': Payload(path.parent / 'it_ran')}, path)
    return path


def plain_pickle(protocol: int) -> Callable[[Path, Path], Path]:
    def write(trained: Path, path: Path) -> Path:
        contents = {'model': {}, 'extra': Payload(path.parent / 'it_ran')}
        path.write_bytes(pickle.dumps(contents, protocol))
        return path

    return write


def changed(change: Callable[[bytes], bytes]) -> Callable[[Path, Path], Path]:
    def write(trained: Path, path: Path) -> Path:
        path.write_bytes(change(trained.read_bytes()))
        return path

    return write


def weightless(trained: Path, path: Path) -> Path:
    torch.save({'state_dict': read_checkpoint(trained)['model']}, path)
    return path


CHECKPOINTS = {
    'unexpected': (other_entries, 'checkpoint of another model: 1 unexpected (', 'surprise)'),
    'unsafe': (unsafe, 'refused, it holds a pickled object of', 'mkdir'),
    'unsafe pickle': (plain_pickle(2), 'refused, it holds a pickled object of', 'mkdir'),
    'newer pickle': (plain_pickle(4), 'not a checkpoint'),
    'cut short': (changed(lambda file: file[: len(file) // 2]), 'cut short or damaged'),
    'empty': (changed(lambda file: b''), 'not a checkpoint'),
    'text': (changed(lambda file: b'hello\n'), 'not a checkpoint'),
    'no weights': (weightless, "no weights under the key 'model'"),
    'absent': (lambda trained, path: path, 'there is no such checkpoint file'),
}
USES = {
    'resume': ('simmim', '--resume'),
    'pretrained': ('simmim', '--pretrained'),
    'pretrained encoder': ('finetune', '--pretrained'),
}


@pytest.mark.filterwarnings('ignore:Detected pickle protocol')
@pytest.mark.parametrize('use', USES)
@pytest.mark.parametrize('kind', CHECKPOINTS)
def test_a_bad_checkpoint(kind, use, trained, eight, phantom, tmp_path, refused):
    (make, *parts), (stage, flag) = CHECKPOINTS[kind], USES[use]
    path = make(trained, tmp_path / 'bad.pth')
    source = eight if stage == 'simmim' else phantom
    argv = arguments(config_of(tmp_path, stage), source, tmp_path / 'out', flag, str(path))
    refused(stage, argv, path, *parts)
    assert not (tmp_path / 'it_ran').exists(), 'the payload ran'
    assert not results_in(tmp_path / 'out')


def test_weights_that_are_gone_are_missed_at_once_and_by_no_run_that_goes_on(
    trained, eight, tmp_path
):
    weights = tmp_path / 'weights.pth'
    argv = arguments(config_of(tmp_path, 'simmim'), eight, tmp_path / 'out')
    argv += ['--pretrained', str(weights)]
    assert run_main('simmim', argv) == 2
    log = run_folder(tmp_path / 'out', 'simmim') / 'log_rank0.txt'
    assert f'{weights}: there is no such checkpoint file' in log.read_text()
    assert ' tensors in ' not in log.read_text(), 'no optimizer was made'
    weights.write_bytes(trained.read_bytes())
    assert run_main('simmim', argv) == 0
    weights.unlink()
    assert run_main('simmim', [*argv, '--opts', 'TRAIN.EPOCHS', '2']) == 0
    check_exists('https://example.org/weights.pth')  # who knows


def test_the_payload_would_run(trained, tmp_path):
    """Else the tests above would show nothing."""
    torch.load(unsafe(trained, tmp_path / 'bad.pth'), weights_only=False)
    assert (tmp_path / 'it_ran').exists()


OTHER_MODELS = {
    'type': ('simmim', VIT, []),
    'width': ('simmim', SWIN, ['MODEL.SWIN.EMBED_DIM', '16']),
    'depth': ('simmim', SWIN, ['MODEL.SWIN.DEPTHS', '[2,4]']),
    'fine-tuned type': ('finetune', VIT, []),
    'fine-tuned depth': ('finetune', SWIN, ['MODEL.SWIN.DEPTHS', '[2,4]']),
}


@pytest.mark.parametrize('flag', ['--resume', '--pretrained'])
@pytest.mark.parametrize('kind', OTHER_MODELS)
def test_a_checkpoint_of_another_model(kind, flag, trained, eight, phantom, tmp_path, refused):
    stage, model, opts = OTHER_MODELS[kind]
    source = eight if stage == 'simmim' else phantom
    argv = arguments(config_of(tmp_path, stage, model), source, tmp_path / 'out')
    argv += [flag, str(trained), *(['--opts', *opts] if opts else [])]
    refused(stage, argv, trained, 'checkpoint of another model')
    assert not results_in(tmp_path / 'out')


@pytest.mark.parametrize('flag', ['--resume', '--pretrained'])
def test_evaluating_a_checkpoint_of_the_other_stage(flag, trained, phantom, tmp_path, refused):
    more = ('--eval', flag, str(trained))
    argv = arguments(config_of(tmp_path, 'finetune'), phantom, tmp_path / 'out', *more)
    refused('finetune', argv, trained, 'checkpoint of another model', 'missing (')
    assert not results_in(tmp_path / 'out')


def test_an_unsafe_checkpoint_that_is_found_in_the_run_folder(trained, eight, tmp_path, refused):
    folder = run_folder(tmp_path / 'out', 'simmim')
    folder.mkdir(parents=True)
    path = unsafe(trained, folder / 'ckpt_epoch_7.pth')
    argv = arguments(config_of(tmp_path, 'simmim'), eight, tmp_path / 'out')
    refused('simmim', argv, path, 'refused, it holds a pickled object')
    assert results_in(folder) == [path]
    assert not (folder / 'it_ran').exists()


def test_a_checkpoint_of_another_optimizer(trained, eight, tmp_path, refused):
    """AdamW's moments are not SGD's, nor the other way round."""
    cfg, output = config_of(tmp_path, 'simmim'), tmp_path / 'out'
    sgd = ['--opts', 'TRAIN.OPTIMIZER.NAME', 'sgd']
    assert run_main('simmim', arguments(cfg, eight, output, *sgd)) == 0
    checkpoint = run_folder(output, 'simmim') / 'ckpt_epoch_0.pth'
    argv = arguments(cfg, eight, tmp_path / 'on', '--resume', str(checkpoint))
    argv += ['--opts', 'TRAIN.EPOCHS', '2']
    refused('simmim', argv, checkpoint, 'TRAIN.OPTIMIZER.NAME')


def test_metrics_whose_last_line_was_cut_off(trained, eight, tmp_path):
    """As after a full disk or a lost machine; a run that goes on writes that epoch again."""
    folder = run_folder(tmp_path / 'out', 'simmim')
    folder.mkdir(parents=True)
    (folder / 'metrics.jsonl').write_text('{"epoch": -1}\n{"epoch": 0, "lo')
    argv = arguments(config_of(tmp_path, 'simmim'), eight, tmp_path / 'out')
    argv += ['--resume', str(trained), '--opts', 'TRAIN.EPOCHS', '2']
    assert run_main('simmim', argv) == 0
    assert [r['epoch'] for r in read_metrics(folder / 'metrics.jsonl')] == [-1, 1]


# Evaluation


@pytest.mark.parametrize('stage', STAGES)
def test_nothing_to_evaluate(stage, phantom, tmp_path, refused):
    cfg = config_of(tmp_path, stage, HOLDOUT_FRACTION=0.2)
    argv = arguments(cfg, phantom, tmp_path / 'out', '--eval')
    parts = ('--eval: nothing to evaluate', '--resume', '--pretrained', tmp_path / 'out')
    refused(stage, argv, *parts)
    assert not results_in(tmp_path / 'out')


def test_evaluating_pre_training_on_no_held_out_patient(trained, eight, tmp_path, refused):
    """To end without a word and without a figure would look like success."""
    argv = arguments(config_of(tmp_path, 'simmim'), eight, tmp_path / 'out')
    argv += ['--eval', '--resume', str(trained)]
    refused('simmim', argv, '--eval', 'DATA.HOLDOUT_FRACTION', '0.0')
