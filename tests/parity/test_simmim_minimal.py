"""The files of examples/ compute what main_simmim.py computes, bit for bit."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import torch
from tiny import ROOT, load_script, run_main
from torch import Tensor

import main_simmim
from data.packing import Settings, pack, read_source
from utils import read_checkpoint

# The end of the names of its configs, and the most lines that a reader is asked to read.
CONFIGS = {'simmim_minimal': 'vit_nano__img64', 'simmim_minimal_swin': 'swin_nano__img64_window4'}
MAX_LINES = {'simmim_minimal': 300, 'simmim_minimal_swin': 350}

Weights = dict[str, Tensor]


class Recorded(NamedTuple):
    """What a training run computed."""

    batches: list[tuple[Tensor, Tensor]]  # images and masks of each step
    losses: list[float]
    first: Weights
    last: Weights


@pytest.fixture(scope='module')
def packed(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The phantom as a store of squares, for which boxes in its images become fractions."""
    folder = tmp_path_factory.mktemp('packed') / 'store'
    pack(read_source(phantom), folder, Settings(size=30))
    return folder


@pytest.fixture
def load_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], ModuleType]:
    """Loads a file as a module; what it writes comes into `tmp_path`."""
    monkeypatch.chdir(tmp_path)
    return lambda name: load_script(ROOT / 'examples' / name)


def run_file(minimal: ModuleType, data: Path, epochs: int) -> Recorded:
    """Run a whole file, and record what its model gets and returns."""
    batches, losses, first = [], [], {}

    class RecordedSimMIM(minimal.SimMIM):
        def __init__(self) -> None:
            super().__init__()
            first.update(copied(self.state_dict()))

        def forward(self, images: Tensor, masks: Tensor) -> Tensor:
            loss = super().forward(images, masks)
            batches.append((images, masks))
            losses.append(loss.item())
            return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(minimal, 'SimMIM', RecordedSimMIM)
        patch.setattr(minimal, 'EPOCHS', epochs)
        patch.setattr(minimal, 'WARMUP_EPOCHS', 1)
        minimal.main(data)
    saved = Path(minimal.__file__).with_suffix('.pth').name
    return Recorded(batches, losses, first, read_checkpoint(saved)['model'])


def run_program(name: str, data: Path, output: Path, epochs: int) -> Recorded:
    """Run main_simmim.py with the config and the options that a file names."""
    batches, losses, first = [], [], {}

    def recorded_loss(model: torch.nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        if not first:
            first.update(copied(model.state_dict()))
        loss = model(*batch)
        batches.append(batch)
        losses.append(loss.item())
        return loss

    words = ['--data-path', data, '--output', output, '--amp-opt-level', 'O0', '--tag', 'equal']
    opts = {'TRAIN.EPOCHS': epochs, 'TRAIN.WARMUP_EPOCHS': 1, 'EVAL.EVERY': epochs}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(main_simmim, 'reconstruction_loss', recorded_loss)
        assert run('simmim', name, words, opts) == 0
    last = output / 'simmim_pretrain' / 'equal' / f'ckpt_epoch_{epochs - 1}.pth'
    return Recorded(batches, losses, first, read_checkpoint(last)['model'])


def run(stage: str, name: str, words: list[object], opts: dict[str, object]) -> int:
    model, kind = CONFIGS[name], {'simmim': 'pretrain', 'finetune': 'finetune'}[stage]
    folder = f'{model.partition("__")[0]}__demo'
    cfg = ROOT / 'configs' / folder / f'simmim_{kind}__{model}__demo.yaml'
    options = [word for pair in opts.items() for word in pair] + ['DATA.NUM_WORKERS', 0]
    return run_main(stage, [str(word) for word in ['--cfg', cfg, *words, '--opts', *options]])


def copied(weights: Weights) -> Weights:
    return {name: value.clone() for name, value in weights.items()}


def assert_equal(weights: Weights, wanted: Weights) -> None:
    assert list(weights) == list(wanted)
    for name, value in wanted.items():
        assert torch.equal(weights[name], value), name


@pytest.mark.parametrize(
    'name, data, epochs, steps',
    [
        ('simmim_minimal', 'phantom', 5, 20),
        pytest.param('simmim_minimal', 'packed', 2, 8, marks=pytest.mark.slow),
        pytest.param('simmim_minimal_swin', 'phantom', 3, 27, marks=pytest.mark.slow),
    ],
)
def test_a_file_and_the_program_compute_the_same(
    name, data, epochs, steps, load_file, tmp_path, request
) -> None:
    folder = request.getfixturevalue(data)
    ours = run_file(load_file(name), folder, epochs)
    wanted = run_program(name, folder, tmp_path, epochs)
    assert len(wanted.losses) == steps
    assert_equal(ours.first, wanted.first)
    for batch, wanted_batch in zip(ours.batches, wanted.batches, strict=True):
        assert all(map(torch.equal, batch, wanted_batch))
    assert ours.losses == wanted.losses
    assert_equal(ours.last, wanted.last)


@pytest.mark.parametrize('name', CONFIGS)
def test_fine_tuning_starts_from_the_weights_of_a_file(name, load_file, phantom, tmp_path) -> None:
    weights = load_file(name).SimMIM().state_dict()
    torch.save({'model': weights}, f'{name}.pth')
    # With a rate of almost 0, the weights after training are those that it started from.
    rates = dict.fromkeys(('TRAIN.BASE_LR', 'TRAIN.WARMUP_LR', 'TRAIN.MIN_LR'), 1e-30)
    words = ['--data-path', phantom, '--output', tmp_path, '--tag', 'start']
    words += ['--pretrained', f'{name}.pth']
    opts = {'TRAIN.EPOCHS': 1, 'TRAIN.WARMUP_EPOCHS': 0, 'REPORT.WRITE': False} | rates
    assert run('finetune', name, words, opts) == 0
    tuned = read_checkpoint(tmp_path / 'simmim_finetune' / 'start' / 'ckpt_epoch_0.pth')['model']
    # All but the mask token, the head, and the table that all blocks share or the last norm.
    encoder = {key.removeprefix('encoder.') for key in weights if key.startswith('encoder.')}
    unused = {'mask_token', 'norm.weight', 'norm.bias'}
    for key in encoder - unused - {key for key in encoder if key.startswith('rel_pos_bias.')}:
        assert torch.allclose(tuned[key], weights[f'encoder.{key}'], rtol=0, atol=1e-20), key


@pytest.mark.parametrize('name', CONFIGS)
def test_a_file_is_short_and_imports_nothing_of_the_project(name: str) -> None:
    lines = (ROOT / 'examples' / f'{name}.py').read_text().splitlines()
    assert len(lines) <= MAX_LINES[name]
    imports = [line.split()[1] for line in lines if line.startswith(('import ', 'from '))]
    imported = {module.partition('.')[0] for module in imports}
    assert imported == {'math', 'sys', 'hashlib', 'pathlib', 'numpy', 'pandas', 'torch', 'PIL'}
