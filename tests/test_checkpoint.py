import logging
import os
import pickle
from pathlib import Path

import pytest
import torch
from yacs.config import CfgNode

import utils
from config import default_config
from models import build_model
from utils import (
    checkpoint_name,
    find_newest_checkpoint,
    load_model_state,
    read_checkpoint,
    save_checkpoint,
)

LOGGER = logging.getLogger('test')


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / 'ckpt_epoch_3.pth'
    save_checkpoint(path, {'model': {'weight': torch.arange(1000.0)}, 'epoch': 3})
    return path


class Payload:
    """Pickled, it asks the reader to make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def swin(**options):
    config = default_config()
    config.merge_from_list(['DATA.IMG_SIZE', 32, 'MODEL.NUM_CLASSES', 14])
    node = config.MODEL.SWIN
    node.EMBED_DIM, node.DEPTHS, node.NUM_HEADS, node.WINDOW_SIZE = 16, [1, 2], [2, 4], 4
    for key, value in options.items():
        node[key] = value
    return build_model(config, is_pretrain=False)


def test_names():
    assert checkpoint_name(12) == 'ckpt_epoch_12.pth'
    assert checkpoint_name(12, 345) == 'ckpt_epoch_12_step_345.pth'


def test_saved_state_comes_back(tmp_path):
    state = {
        'model': {'weight': torch.randn(3)},
        'optimizer': {'state': {0: {'step': torch.tensor(1.0)}}, 'param_groups': [{'lr': 0.1}]},
        'config': 'SEED: 1\n',
        'rng': {'torch': torch.get_rng_state(), 'python': (3, (1, 2), None)},
        'best_score': 0.5,
    }
    save_checkpoint(tmp_path / 'a.pth', state)
    back = read_checkpoint(tmp_path / 'a.pth')
    assert torch.equal(back['model']['weight'], state['model']['weight'])
    assert torch.equal(back['rng']['torch'], state['rng']['torch'])
    for key in ('config', 'best_score'):
        assert back[key] == state[key]
    assert back['rng']['python'] == (3, (1, 2), None)
    assert sorted(os.listdir(tmp_path)) == ['a.pth', 'a.pth.sha256']


@pytest.mark.parametrize('interruption', [KeyboardInterrupt, OSError('no space left')])
def test_interrupted_save_leaves_the_old_file(saved, monkeypatch, interruption):
    before = saved.read_bytes()

    def save_half(state, file):
        file.write(before[: len(before) // 2])
        raise interruption

    monkeypatch.setattr(torch, 'save', save_half)
    with pytest.raises((KeyboardInterrupt, ValueError)):
        save_checkpoint(saved, {'model': {}})
    assert saved.read_bytes() == before
    assert sorted(os.listdir(saved.parent)) == [saved.name, f'{saved.name}.sha256']


def test_save_where_nothing_can_be_written_names_the_file(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(ValueError, match=r'file/a\.pth: the checkpoint cannot be written'):
        save_checkpoint(tmp_path / 'file' / 'a.pth', {'model': {}})


def test_newest_is_the_farthest_in_training_not_the_last_written(tmp_path):
    names = [
        'ckpt_epoch_2.pth',
        'ckpt_epoch_10.pth',
        'ckpt_epoch_10_step_9.pth',
        'ckpt_epoch_10_step_100.pth',
        'ckpt_epoch_9_step_5000.pth',
        'ckpt_best.pth',
        'ckpt_epoch_99.pth.tmp',
        '.ckpt_epoch_99.pth.tmp',
        'ckpt_epoch_98_old.pth',
        'other.pth',
    ]
    for age, name in enumerate(names):
        (tmp_path / name).write_bytes(b'')
        os.utime(tmp_path / name, (1e9 + age, 1e9 + age))
    assert find_newest_checkpoint(tmp_path).name == 'ckpt_epoch_10.pth'
    (tmp_path / 'ckpt_epoch_10.pth').unlink()
    assert find_newest_checkpoint(tmp_path).name == 'ckpt_epoch_10_step_100.pth'


def test_newest_of_a_folder_without_checkpoints_is_none(tmp_path):
    (tmp_path / 'ckpt_best.pth').write_bytes(b'')
    assert find_newest_checkpoint(tmp_path) is None
    assert find_newest_checkpoint(tmp_path / 'absent') is None


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r'absent\.pth: there is no such checkpoint file'):
        read_checkpoint(tmp_path / 'absent.pth')


@pytest.mark.parametrize('share', [0, 0.01, 0.5, 0.99])
def test_truncated_file_is_named(saved, share):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match=r'ckpt_epoch_3\.pth: not a checkpoint, or .* cut short'):
        read_checkpoint(saved)


def test_any_other_file_is_named(tmp_path):
    path = tmp_path / 'notes.pth'
    path.write_text('not a checkpoint at all\n')
    with pytest.raises(ValueError, match=r'notes\.pth: not a checkpoint'):
        read_checkpoint(path)


@pytest.mark.parametrize(
    'content',
    [{'state_dict': {}}, {'model': [1, 2]}, {'model': {'weight': 3}}, [1, 2], torch.zeros(2)],
    ids=['other-key', 'list', 'number', 'no-dict', 'tensor'],
)
def test_file_without_weights_is_named(tmp_path, content):
    torch.save(content, tmp_path / 'a.pth')
    with pytest.raises(ValueError, match=r"a\.pth: .* no weights under the key 'model'"):
        read_checkpoint(tmp_path / 'a.pth')


@pytest.mark.parametrize('place', ['beside the weights', 'in the config node', 'plain pickle'])
def test_pickled_code_is_refused_and_not_run(tmp_path, place):
    made, path = tmp_path / 'made', tmp_path / 'evil.pth'
    state = {'model': {'weight': torch.zeros(1)}, 'extra': Payload(made)}
    if place == 'in the config node':
        state = {'model': {}, 'config': CfgNode({'DATA': CfgNode({'A': 1})})}
        dict.__setitem__(state['config'], 'B', Payload(made))
    if place == 'plain pickle':
        path.write_bytes(pickle.dumps(Payload(made), protocol=2))
    else:
        torch.save(state, path)
    with pytest.raises(ValueError, match=r'evil\.pth: refused, .* pickled object of (posix|nt|os)'):
        read_checkpoint(path)
    assert not made.exists()
    pickle.loads(pickle.dumps(Payload(made)))
    assert made.exists()  # the payload is a working one


def test_pickled_class_is_refused_by_name(tmp_path):
    torch.save({'model': {}, 'path': Path('x')}, tmp_path / 'a.pth')
    with pytest.raises(ValueError, match=r'a\.pth: refused, .* pickled object of pathlib'):
        read_checkpoint(tmp_path / 'a.pth')


def test_config_node_of_official_files_is_read_as_plain_values(tmp_path):
    node = CfgNode({'DATA': CfgNode({'IMG_SIZE': 192}), 'BETAS': (0.9, 0.999), 'BASE': ['']})
    node.freeze()
    torch.save(
        {'model': {'weight': torch.ones(2)}, 'config': node, 'epoch': 99}, tmp_path / 'a.pth'
    )
    back = read_checkpoint(tmp_path / 'a.pth')
    assert back['config'] == {'DATA': {'IMG_SIZE': 192}, 'BETAS': (0.9, 0.999), 'BASE': ['']}
    assert not isinstance(back['config'], CfgNode)
    assert torch.equal(back['model']['weight'], torch.ones(2))


def test_addresses_are_read_by_the_safe_loader_with_hash_check(monkeypatch):
    asked = {}

    def load(address, **options):
        asked.update(options, address=address)
        return {'model': {}}

    monkeypatch.setattr(utils.torch.hub, 'load_state_dict_from_url', load)
    assert read_checkpoint('https://example.org/model-0123abcd.pth') == {'model': {}}
    assert asked['address'] == 'https://example.org/model-0123abcd.pth'
    assert asked['check_hash'] is True
    assert asked['weights_only'] is True


def test_resume_takes_every_weight_and_keeps_the_own_buffers():
    source, model = swin(), swin()
    state = {key: value.clone() for key, value in source.state_dict().items()}
    for key, value in state.items():
        if key.endswith(('relative_position_index', 'attn_mask')):
            value.zero_()
    load_model_state(model, state, 'a.pth', LOGGER)
    for key, value in model.state_dict().items():
        assert torch.equal(value, source.state_dict()[key]), key
    assert model.state_dict()['layers.0.blocks.0.attn.relative_position_index'].any()


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda s: s.pop('norm.bias'), r'1 missing \(norm\.bias\)'),
        (lambda s: s.update(extra=torch.ones(1)), r'1 unexpected \(extra\)'),
        (
            lambda s: s.update({'head.bias': torch.ones(5)}),
            r'1 of another shape \(head\.bias \[5\] for \[14\]\)',
        ),
    ],
)
def test_resume_from_another_model_is_refused_by_name(change, message):
    model = swin()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = dict(swin().state_dict())
    change(state)
    with pytest.raises(ValueError, match=r'a\.pth: checkpoint of another model: .*' + message):
        load_model_state(model, state, 'a.pth', LOGGER)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_resume_counts_what_it_does_not_list():
    with pytest.raises(ValueError, match=r'13 missing \((\S+, ){6}\.\.\.\)'):
        load_model_state(swin(), swin(DEPTHS=[1, 1]).state_dict(), 'a.pth', LOGGER)
