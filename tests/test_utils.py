"""Checkpoints: atomic writes, checksums, the safe loader, which file a run resumes from."""

import logging
import os
import pickle
import re
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from io import FileIO
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny import ROOT, config_with
from transfers import make_config
from yacs.config import CfgNode

import system.files
from config import config_text, default_config
from models import build_model
from system.files import checkpoint_name, checksum_file, newest_first
from utils import (
    checkpoint_to_evaluate,
    checkpoint_to_resume,
    load_model_state,
    name_damaged,
    newest_good,
    prune,
    read_checkpoint,
    remove_partial_files,
    save_checkpoint,
)

LOGGER = logging.getLogger('test')
NAME = 'ckpt_epoch_3.pth'


class Payload:
    """When unpickled, it creates a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def state(value: float = 1.0, **more: object) -> dict:
    return {'model': {'weight': torch.full((3000,), value)}, **more}


def value_of(path: Path) -> float:
    (value,) = read_checkpoint(path)['model']['weight'].unique().tolist()
    return value


def write(folder: Path, *names: str, **more: object) -> list[Path]:
    for name in names:
        save_checkpoint(folder / name, state(**more))
    return [folder / name for name in names]


def tap(monkeypatch: pytest.MonkeyPatch, before: Callable[[], None]) -> None:
    """Call `before` at each system call of a write; data is written in two parts."""

    class Tapped(FileIO):
        def write(self, data: memoryview) -> int:
            for part in (data[: len(data) // 2], data[len(data) // 2 :]):
                before()
                super().write(part)
            return len(data)

    def wrap(owner: object, name: str, call: Callable) -> None:
        def wrapped(*arguments: object, **options: object) -> object:
            before()
            return call(*arguments, **options)

        monkeypatch.setattr(owner, name, wrapped, raising=False)

    wrap(system.files, 'open', Tapped)
    wrap(os, 'fsync', lambda descriptor: None)
    wrap(os, 'replace', os.replace)
    wrap(Path, 'unlink', Path.unlink)


def value_after(folder: Path, old: float | None) -> float | None:
    """What is read from a folder in which a write over the `old` value was interrupted."""
    path = folder / NAME
    found = newest_good(folder, LOGGER)
    assert found == (path if old or path.exists() else None)
    value = found and value_of(found)
    save_checkpoint(path, state(3.0))  # the remains are no obstacle
    remove_partial_files(folder)
    assert value_of(path) == 3.0
    assert sorted(os.listdir(folder)) == [NAME, f'{NAME}.sha256']
    return value


@pytest.mark.parametrize('old', [1.0, None])
def test_a_crash_at_any_moment_leaves_the_old_or_the_new_file(tmp_path, monkeypatch, old) -> None:
    folder, copies = tmp_path / 'run', []
    folder.mkdir()
    if old:
        save_checkpoint(folder / NAME, state(old))
    with monkeypatch.context() as patch:
        tap(patch, lambda: copies.append(shutil.copytree(folder, tmp_path / str(len(copies)))))
        save_checkpoint(folder / NAME, state(2.0))
    values = [value_after(path, old) for path in copies]
    renamed = values.index(2.0)
    assert len(values) > 12
    assert set(values[:renamed]) == {old} and set(values[renamed:]) == {2.0}


ALL = [
    'ckpt_epoch_2.pth',
    'ckpt_epoch_9_step_5000.pth',
    'ckpt_epoch_10_step_9.pth',
    'ckpt_epoch_10_step_100.pth',
    'ckpt_epoch_10.pth',
]
OTHERS = ['ckpt_best.pth', 'ckpt_epoch_98_old.pth', 'other.pth']


def test_names_and_the_newest_by_epoch_and_step(tmp_path) -> None:
    assert checkpoint_name(10) == ALL[4] and checkpoint_name(10, 9) == ALL[2]
    for age, name in enumerate(reversed(ALL + OTHERS)):  # the dates do not matter
        (tmp_path / name).write_bytes(b'')
        os.utime(tmp_path / name, (1e9 + age, 1e9 + age))
    for name in reversed(ALL):
        assert newest_first(tmp_path)[0].name == name
        (tmp_path / name).unlink()
    assert newest_first(tmp_path) == []  # never ckpt_best.pth
    assert newest_first(tmp_path / 'absent') == []


@pytest.mark.parametrize(
    ('keep', 'newest', 'removed'),
    [
        (2, ALL[4], ALL[:3]),
        (0, ALL[4], []),
        (1, ALL[3], ALL[:3]),  # later checkpoints are from an earlier attempt
    ],
)
def test_prune_keeps_the_newest_and_the_best(tmp_path, keep, newest, removed) -> None:
    write(tmp_path, *ALL, *OTHERS)
    prune(tmp_path, keep, newest)
    kept = [name for name in ALL + OTHERS if name not in removed]
    assert sorted(os.listdir(tmp_path)) == sorted([*kept, *(f'{name}.sha256' for name in kept)])


def test_the_newest_readable_checkpoint_is_found(tmp_path, log) -> None:
    names = [f'ckpt_epoch_{n}.pth' for n in (9, 10, 11, 12)]
    nine, ten, eleven, twelve = write(tmp_path, *names)
    twelve.write_bytes(b'')
    eleven.write_bytes(eleven.read_bytes()[:-1] + b'x')
    torch.save({'weights': 1}, ten)
    checksum_file(ten).unlink()
    assert newest_good(tmp_path, LOGGER) == nine
    warnings = [record.message for record in log.records if record.levelname == 'WARNING']
    assert len(warnings) == 3
    for path, message in zip((twelve, eleven, ten), warnings, strict=True):
        assert str(path) in message
    nine.write_bytes(b'')
    with pytest.raises(ValueError, match=twelve.name):  # starting from scratch would overwrite them
        newest_good(tmp_path, LOGGER)


def test_the_same_command_with_resume_continues_the_run_that_it_began(tmp_path) -> None:
    run, first = tmp_path / 'run', tmp_path / 'first.pth'
    run.mkdir()
    write(tmp_path, first.name)
    asked = config_with(MODEL__RESUME=str(first))
    write(run, 'ckpt_epoch_9.pth', config=config_text(default_config()))  # of another run
    assert checkpoint_to_resume(asked, run, LOGGER) == str(first)
    relative = config_with(MODEL__RESUME=os.path.relpath(first))
    write(run, 'ckpt_epoch_4.pth', config=config_text(relative))
    assert checkpoint_to_resume(asked, run, LOGGER) == run / 'ckpt_epoch_4.pth'
    asked.TRAIN.AUTO_RESUME = False
    assert checkpoint_to_resume(asked, run, LOGGER) == str(first)


def test_evaluation_takes_the_given_the_best_or_the_newest_checkpoint(tmp_path) -> None:
    run = tmp_path / 'run'
    run.mkdir()
    config = default_config()
    with pytest.raises(ValueError, match='--resume'):
        checkpoint_to_evaluate(config, run)
    began = config_text(config_with(PRETRAINED='weights.pth'))
    (last,) = write(run, 'ckpt_epoch_5.pth', epoch=5, finished=True, best_score=0.9, config=began)
    assert checkpoint_to_evaluate(config, run) == last
    (best,) = write(run, 'ckpt_best.pth', epoch=2, finished=True, best_score=0.9, config=began)
    assert checkpoint_to_evaluate(config, run) == best
    # A run's config.yaml names the weights that it began with; they are not evaluated.
    assert checkpoint_to_evaluate(config_with(PRETRAINED='weights.pth'), run) == best
    assert checkpoint_to_evaluate(config_with(PRETRAINED='others.pth'), run) == 'others.pth'
    for epoch in (2, 5):  # that were given up
        write(run, 'ckpt_best.pth', epoch=epoch, finished=True, best_score=0.95)
        assert checkpoint_to_evaluate(config, run) == last
    # SAVE_FREQ may leave the best as the latest, also where an epoch had just begun.
    write(run, 'ckpt_best.pth', epoch=7, finished=True, best_score=0.95)
    assert checkpoint_to_evaluate(config, run) == best
    (step,) = write(run, 'ckpt_epoch_7_step_3.pth', epoch=7, finished=False, best_score=0.9)
    assert checkpoint_to_evaluate(config, run) == best
    step.write_bytes(b'half')
    assert checkpoint_to_evaluate(config, run) == best


def test_files_of_simmim_and_plain_weights_are_read(tmp_path) -> None:
    node = CfgNode({'DATA': CfgNode({'IMG_SIZE': 192}), 'BETAS': (0.9, 0.999)})
    torch.save(state(config=node), tmp_path / 'official.pth')
    back = read_checkpoint(tmp_path / 'official.pth')
    assert back['config'] == {'DATA': {'IMG_SIZE': 192}, 'BETAS': (0.9, 0.999)}
    assert not isinstance(back['config'], CfgNode)
    torch.save({'weight': torch.ones(2)}, tmp_path / 'plain.pth')
    assert read_checkpoint(tmp_path / 'plain.pth')['model'].keys() == {'weight'}


@pytest.mark.filterwarnings('ignore:Detected pickle protocol')
@pytest.mark.parametrize('place', ['entry', 'SimMIM config', 'plain pickle'])
def test_pickled_code_is_refused_and_not_run(tmp_path, place) -> None:
    made, path = tmp_path / 'made', tmp_path / 'evil.pth'
    contents = state(config='SEED: 1\n')
    if place == 'entry':
        contents['extra'] = Payload(made)
    if place == 'SimMIM config':
        contents['config'] = CfgNode({'DATA': CfgNode({'A': 1})})
        dict.__setitem__(contents['config'].DATA, 'B', [Payload(made)])
    if place == 'plain pickle':
        path.write_bytes(pickle.dumps(Payload(made), protocol=2))
    else:
        torch.save(contents, path)
    with pytest.raises(ValueError, match=r'evil\.pth'):
        read_checkpoint(path)
    assert not made.exists()
    pickle.loads(pickle.dumps(Payload(made)))
    assert made.exists()  # the payload would have worked


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
@pytest.mark.parametrize('kind', ['our own', 'plain weights', 'safetensors', 'under a key'])
def test_weights_that_are_not_finite_are_refused_by_file_and_entry(value, kind, tmp_path) -> None:
    weights = {'conv.weight': torch.ones(4), 'norm.bias': torch.tensor([0.0, value])}
    path = tmp_path / ('file.safetensors' if kind == 'safetensors' else 'file.pth')
    if kind == 'safetensors':
        save_file(weights, path)
    else:
        contents = {'our own': {'model': weights}, 'under a key': {'ema': {'net': weights}}}
        torch.save(contents.get(kind, weights), path)
    with pytest.raises(ValueError, match=rf'{path.name}.*norm\.bias.*not finite'):
        read_checkpoint(path)
    weights['norm.bias'] = torch.tensor([0, 1])  # no floating point
    weights['attn_mask'] = torch.tensor([0.0, -float('inf')])  # computed, and never loaded
    torch.save(weights, tmp_path / 'good.pth')
    assert len(read_checkpoint(tmp_path / 'good.pth')['model']) == 3


def test_only_the_safe_loader_of_utils_reads_pickled_files() -> None:
    unsafe = r'pickle\.loads?\(|read_pickle|joblib(?! import cpu_count)|unsafe_load|full_load'
    unsafe += r'|allow_pickle=True|weights_only=False|torch\.load\((?!.*weights_only=True)'
    files = [p for p in ROOT.rglob('*.py') if not {'tests', '.venv'} & {*p.relative_to(ROOT).parts}]
    assert len(files) > 40
    assert [path.name for path in files if re.search(unsafe, path.read_text('utf-8'))] == []


def zipped(path: Path, entries: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def bomb(path: Path) -> None:
    """A small file that could hold any amount of zeros."""
    torch.save({'model': {'weight': torch.zeros(500_000)}}, path)
    with zipfile.ZipFile(path) as plain:
        entries = {name: plain.read(name) for name in plain.namelist()}
    zipped(path, entries)
    assert path.stat().st_size < 10_000


def tar(path: Path) -> None:
    with tarfile.open(path, 'w') as archive:
        for name in ('pickle', 'storages', 'tensors'):
            archive.addfile(tarfile.TarInfo(name))


def cut_off(path: Path) -> None:
    torch.save(state(), path)
    os.truncate(path, path.stat().st_size // 2)


OTHER_FILES = {
    'TorchScript': lambda path: torch.jit.script(torch.nn.Linear(1, 1)).save(str(path)),
    'tar': tar,
    'zip': lambda path: zipped(path, {'a.txt': b'x'}),
    'compressed': bomb,
    'cut off': cut_off,
    'text': lambda path: path.write_bytes(b'not a checkpoint'),
}


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('kind', OTHER_FILES)
def test_other_files_are_refused_by_name_without_advice_to_load_them(tmp_path, kind) -> None:
    OTHER_FILES[kind](tmp_path / 'other.pth')
    named = 'compressed' if kind == 'compressed' else ''
    with pytest.raises(ValueError, match=rf'other\.pth.*{named}') as caught:
        read_checkpoint(tmp_path / 'other.pth')
    assert 'weights_only' not in str(caught.value)
    assert os.listdir(tmp_path) == ['other.pth']


def test_every_weight_is_loaded_and_the_models_own_buffers_stay() -> None:
    source, model = (build_model(make_config('swin', 1), is_pretrain=False) for _ in range(2))
    given = {key: value.clone() for key, value in source.state_dict().items()}
    for key, value in given.items():
        if key.endswith(('relative_position_index', 'attn_mask')):
            value.zero_()
    load_model_state(model, given, 'a.pth', LOGGER)
    for key, value in model.state_dict().items():
        assert torch.equal(value, source.state_dict()[key]), key


def test_changed_weights_without_a_digest_are_refused_at_every_byte(tmp_path: Path) -> None:
    """A flipped bit is either refused or without effect, because it hit a header."""
    (path,) = write(tmp_path, NAME)
    checksum_file(path).unlink()
    assert value_of(path) == 1.0
    content, refused = path.read_bytes(), 0
    for place in range(0, len(content), 97):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        try:
            assert value_of(path) == 1.0
        except ValueError as error:
            assert path.name in str(error)
            refused += 1
    assert refused > 0.8 * len(content) / 97


@pytest.mark.parametrize(
    'change',
    [
        lambda weights: {number: weight for number, weight in enumerate(weights.values())},
        lambda weights: {name: weight.to('meta') for name, weight in weights.items()},
        lambda weights: {name: weight.to_sparse() for name, weight in weights.items()},
        lambda weights: {name: weight > 0 for name, weight in weights.items()},
        lambda weights: {name: weight.to(torch.int8) for name, weight in weights.items()},
        lambda weights: weights | {'more\nlines': torch.zeros(1)},
        lambda weights: weights | {'bias': torch.zeros(1).expand(3)},
        lambda weights: {'weight': weights['weight']},
        lambda weights: weights | {'extra': torch.ones(1)},
        lambda weights: weights | {'bias': torch.ones(5)},
    ],
    ids='no names,meta,sparse,bool,int8,two lines,repeated,missing,unexpected,shape'.split(','),
)
def test_entries_that_do_not_fit_the_model_are_refused_in_one_line(change, tmp_path):
    model = torch.nn.Linear(2, 3)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    path = tmp_path / NAME
    save_checkpoint(path, {'model': change(dict(before))})
    with pytest.raises(ValueError, match=NAME) as caught:
        load_model_state(model, read_checkpoint(path)['model'], str(path), LOGGER)
    assert '\n' not in str(caught.value)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_an_encoder_that_reads_values_of_meta_tensors_is_not_called_a_damaged_file():
    with (
        pytest.raises(NotImplementedError, match='meta tensor'),
        name_damaged('weights.pth'),
        torch.device('meta'),
    ):
        torch.linspace(0, 1, 3).tolist()
