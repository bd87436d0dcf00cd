"""The console commands of pyproject.toml become the Python programs."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from sysconfig import get_path

import pytest
import yaml
from page_commands import python_blocks

from scripts.console import program_of
from system.tool import command_of

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = tomllib.loads((ROOT / 'pyproject.toml').read_text(encoding='utf-8'))


def test_one_version_stands_in_the_package_the_citation_and_the_changelog() -> None:
    version = SETTINGS['project']['version']
    citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text(encoding='utf-8'))
    year, month, day = version.split('.')
    date = f'{year}-{month}-{day}'
    assert (citation['version'], str(citation['date-released'])) == (version, date)
    assert (ROOT / 'CHANGELOG.md').read_text(encoding='utf-8').split('## ')[1].startswith(date)


@pytest.mark.parametrize('command', SETTINGS['project']['scripts'])
def test_every_command_has_a_program(command: str) -> None:
    program = program_of(f'/usr/bin/{command}')
    assert program.is_file() and "if __name__ == '__main__':" in program.read_text()


@pytest.mark.parametrize('program', ['main_finetune.py', 'scripts/check_data.py'])
def test_a_wheel_calls_a_program_by_its_command(program: str, tmp_path: Path) -> None:
    assert command_of(program) == f'python {program}'
    command = command_of(program, root=tmp_path)
    assert command in SETTINGS['project']['scripts']
    assert program_of(command) == ROOT / program


@pytest.fixture(scope='module')
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a fresh environment that has the wheel, and the requirements of the tests."""
    folder = tmp_path_factory.mktemp('wheel')
    pip = [sys.executable, '-m', 'pip', '--disable-pip-version-check', '-q']
    others = ('.*', 'build', 'docs', 'output', 'tests', '*.egg-info')
    source = shutil.copytree(ROOT, folder / 'source', ignore=shutil.ignore_patterns(*others))
    built = subprocess.run(
        [*pip, 'wheel', '--no-deps', '-w', folder, source], capture_output=True, text=True
    )
    if built.returncode and 'setuptools' in built.stderr:
        pytest.skip('the build needs setuptools from the package index')
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob('*.whl')
    venv = folder / 'venv'
    subprocess.run([sys.executable, '-m', 'venv', venv], check=True)
    subprocess.run([venv / 'bin/pip', '-q', 'install', '--no-deps', wheel], check=True)
    (site,) = venv.glob('lib/python*/site-packages')
    (site / 'requirements.pth').write_text(get_path('purelib') + '\n')
    assert not any((site / name).exists() for name in ('data', 'utils.py', 'models'))
    return venv


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """Return the folder of another project, whose modules have the names of ours."""
    folder = tmp_path / 'foreign'
    folder.mkdir()
    for name in ('data', 'models', 'utils', 'config', 'logger', 'options'):
        (folder / f'{name}.py').write_text("raise ImportError('this is not our module')\n")
    return folder


IN_PYTHON = """
import sys
import simmim_xray
assert 'torch' not in sys.modules
from simmim_xray import evaluate, load_encoder, load_image, predict

image, checkpoint, classifier, predictions, labels = sys.argv[1:]
encoder, transform = load_encoder(checkpoint)
features = encoder(transform(load_image(image))[None])
assert features.ndim == 2 and len(features) == 1 and not features.requires_grad
assert not encoder.training
table = predict(image, classifier)
assert [*table.index] == [image] and table.to_numpy().min() > 0
scores = evaluate(predictions, labels, views='frontal', resamples=0)
assert scores['sets'][0]['rows'] > 1
print(*table.columns, sep=',')
"""


@pytest.mark.slow
def test_the_wheel_works_beside_foreign_modules_of_the_same_names(
    installed: Path, foreign: Path, phantom: Path
) -> None:
    tiny = ['TRAIN.EPOCHS', '1', 'TRAIN.WARMUP_EPOCHS', '0', 'DATA.NUM_WORKERS', '0']
    tiny += ['DATA.BATCH_SIZE', '8', 'DATA.HOLDOUT_FRACTION', '0.2']
    pair = 'configs/swin_nano__demo/simmim_{}__swin_nano__img64_window4__demo.yaml'
    for stage, options, next_command in (
        ('pretrain', [], 'simmim-finetune --cfg CONFIG'),
        ('finetune', ['EVAL.RESAMPLES', '0'], 'simmim-predict'),
    ):
        command = [installed / 'bin' / f'simmim-{stage}', '--cfg', pair.format(stage)]
        command += ['--data-path', phantom, '--opts', *tiny, *options]
        done = subprocess.run(command, cwd=foreign, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert next_command in ' '.join(done.stdout.split())
    assert [*foreign.rglob('report.html')]
    pretrained, finetuned = sorted(foreign.rglob('ckpt_epoch_0.pth'), key=str, reverse=True)
    image = next(phantom.rglob('*.jpg'))
    predictions = finetuned.with_name('predictions_valid.csv')
    words = [image, pretrained, finetuned, predictions, phantom / 'valid.csv']
    command = [installed / 'bin/python', '-c', IN_PYTHON, *map(str, words)]
    done = subprocess.run(command, cwd=foreign, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'Edema' in done.stdout
    (first_page,) = python_blocks('README.md')  # needs nothing but the wheel
    command = [installed / 'bin/python', '-c', f'{first_page}\nassert features.shape == (1, 96)']
    subprocess.run(command, cwd=foreign, check=True)


def test_arguments_and_the_exit_code_are_those_of_the_program(tmp_path) -> None:
    """The command is as pip writes it, and runs in another folder."""
    command = tmp_path / 'simmim-check-data'
    command.write_text('from scripts.console import main\nmain()\n')
    words = [sys.executable, str(command), '--data-path', 'no such folder']
    environment = os.environ | {'PYTHONPATH': str(ROOT)}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and 'no such folder' in done.stderr
    assert done.stderr.startswith('error: ')
