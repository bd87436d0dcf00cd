"""Options and fixtures that all tests share."""

import gc
import importlib
import logging
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest
from new_parts import add_example, add_part  # noqa: F401
from shared_material import SHARED

if TYPE_CHECKING:
    import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption('--all', action='store_true', help='run the tests marked slow too')
    where = 'where recorded numbers are compared; cpu: also of GPU tests, at tiny sizes'
    parser.addoption('--device', choices=('cpu', 'cuda'), help=where)


def pytest_collectstart() -> None:
    """Import timm without wandb, which takes a second, in the processes that run tests.

    The one that hands tests out to them imports neither timm nor torch, so that they start sooner.
    """
    if 'timm' not in sys.modules:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, 'wandb', None)
            importlib.import_module('timm')


# Their tests start processes and wait for deadlines.
ALONE = {'faults', 'slurm'}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    import torch

    for item in items:
        if item.path.parent.name in ALONE:
            item.add_marker(pytest.mark.alone)
        if 'slow' in item.keywords and not config.getoption('--all'):
            item.add_marker(pytest.mark.skip(reason='slow: run with --all'))
        has_device = torch.cuda.is_available() or config.getoption('--device')
        if 'gpu' in item.keywords and not has_device:
            item.add_marker(pytest.mark.skip(reason='needs a CUDA device'))


def pytest_collection_finish() -> None:
    gc.freeze()  # what was imported stays, and need not be looked at in each collection


@pytest.fixture(scope='session', autouse=True)
def float32_on_each_cpu() -> Iterator[None]:
    """With AMP_ON_CPU auto, runs in the process of the tests compute the same on all CPUs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('system.device.cpu_computes_bfloat16', lambda: False)
        yield


@pytest.fixture(scope='session', autouse=True)
def templates_compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Reports in the process of the tests share their templates, which takes half of the time."""
    from jinja2 import Environment, FileSystemBytecodeCache

    compiled = FileSystemBytecodeCache(str(tmp_path_factory.mktemp('templates')))
    with pytest.MonkeyPatch.context() as patch:
        sharing = partial(Environment, bytecode_cache=compiled)
        patch.setattr('evaluation.report.report_page.Environment', sharing)
        yield


@pytest.fixture(scope='session', autouse=True)
def dots_for_figures() -> Iterator[None]:
    """Runs in the process of the tests draw no reconstructions and maps, which takes longer."""
    from PIL import Image

    def write_dot(path: Path, *_: object) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new('L', (1, 1)).save(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('evaluation.held_out.plot_reconstructions', write_dot)
        patch.setattr('evaluation.saliency.plot_map', write_dot)
        yield


@pytest.fixture
def device(pytestconfig: pytest.Config) -> Iterator['torch.device']:
    """Where recorded numbers are compared, in float32: `--device cuda` on a GPU."""
    import torch

    from system.device import local_device

    switches = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [switch.allow_tf32 for switch in switches]
    local_device()
    yield torch.device(pytestconfig.getoption('--device') or 'cpu')
    for switch, allowed in zip(switches, before, strict=True):
        switch.allow_tf32 = allowed


@pytest.fixture(scope='session')
def transformers() -> ModuleType:
    return pytest.importorskip('transformers', reason='needs the extra dev')


@pytest.fixture(scope='session')
def nih1000() -> Path:
    """The 1,000 real X-rays in CheXpert's layout, where they are at hand."""
    folder = SHARED / 'nih1000' / 'NIH-v1.0-256'
    if not folder.is_dir():
        pytest.skip(f'real X-rays not found at {folder} (set SIMMIM_SHARED)')
    return folder


@pytest.fixture(scope='session')
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few synthetic X-rays in CheXpert's layout."""
    from scripts.phantom import make_phantom

    folder = tmp_path_factory.mktemp('data') / 'CheXpert-phantom'
    make_phantom(folder, num_train=60, num_valid=10, num_test=10, size=48, seed=0)
    return folder


@pytest.fixture(scope='session')
def eight(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight frontal training images, a row each."""
    from mistakes import edit, linked

    def keep_eight(rows: list[list[str]]) -> None:
        rows[1:] = [row for row in rows if row[3] == 'Frontal'][:8]

    folder = linked(phantom, tmp_path_factory.mktemp('eight') / 'CheXpert-phantom')
    edit(folder / 'train.csv', keep_eight)
    return folder


@pytest.fixture(scope='module')
def data_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Splits to train on and to validate on, two views a patient."""
    from xray_splits import write_split

    root = tmp_path_factory.mktemp('xrays')
    write_split(root, 'train', 20)
    write_split(root, 'valid', 5)
    return root


@pytest.fixture(scope='session')
def drive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two data sets with the same names of files and other images, and a folder."""
    import numpy as np
    from PIL import Image
    from xray_splits import write_split, xray

    drive = tmp_path_factory.mktemp('drive')
    for name, patients in (('A', 10), ('B', 6)):
        (drive / name).mkdir()
        write_split(drive / name, 'train', patients)
    for path in (drive / 'B').rglob('*.png'):
        Image.fromarray(np.asarray(Image.open(path))[:, ::-1]).save(path)
    (drive / 'C' / 'deep').mkdir(parents=True)
    for number in range(5):
        xray(seed=number).save(drive / 'C' / 'deep' / f'{number}.png')
    return drive


@pytest.fixture(scope='module')
def few_cases_select() -> Iterator[None]:
    """In this module, a single case of each class lets a label of a phantom select the epoch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('evaluation.metrics.FEW_CASES', 1)
        yield


@pytest.fixture
def refused(capfd: pytest.CaptureFixture) -> Callable[..., None]:
    """Runs a main and checks that it ends in one error line that has all these parts."""
    from mistakes import ERROR, exit_code

    def check(stage: str, argv: list[str], *parts: object) -> None:
        capfd.readouterr()
        code = exit_code(stage, argv)
        captured = capfd.readouterr()
        lines = (captured.out + captured.err).splitlines()
        assert code == 2, lines
        errors = [line for line in lines if ERROR.search(line)]
        assert len(errors) == 1, lines
        assert 'Traceback' not in captured.out + captured.err, lines
        for part in map(str, parts):
            assert part in errors[0], f'{part!r} is not in {errors[0]!r}'

    return check


@pytest.fixture
def only_svg(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are drawn as SVG; their other files are empty."""
    from matplotlib.figure import Figure

    save = Figure.savefig

    def save_svg(figure: Figure, file: object, **options: object) -> None:
        if options['format'] == 'svg':
            save(figure, file, **options)

    monkeypatch.setattr(Figure, 'savefig', save_svg)


@pytest.fixture
def full_disk() -> Callable[[], AbstractContextManager[None]]:
    """In its block, writing more than 1,000 bytes to a file fails, as on a full disk."""

    @contextmanager
    def block() -> Iterator[None]:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    return block


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What is logged, information included."""
    caplog.set_level(logging.INFO)
    return caplog
