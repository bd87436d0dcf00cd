"""The Colab notebook: what it types parses, and it runs from top to bottom on synthetic X-rays."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from html import unescape
from pathlib import Path
from typing import Any

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from nbclient import NotebookClient
from page_commands import commands_in, parse
from traitlets.config import Config as TraitletsConfig
from warm_python import warm_python

from config import get_config
from sweeps.files import load_sweep
from sweeps.tables import title_of

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / 'notebooks' / 'colab.ipynb'
CELLS = {cell['id']: cell for cell in json.loads(NOTEBOOK.read_text())['cells']}
CODE = {name: ''.join(c['source']) for name, c in CELLS.items() if c['cell_type'] == 'code'}
EPOCHS = 8
TINY = 'TRAIN.WARMUP_EPOCHS 0 MODEL.SWIN.DEPTHS [1,1,1,1]'
SMALL = {
    'PHANTOM_PATIENTS': 40,
    'PRETRAIN_OPTIONS': f'TRAIN.EPOCHS {EPOCHS} {TINY}',
    'FINETUNE_OPTIONS': f'TRAIN.EPOCHS 1 {TINY} EVAL.RESAMPLES 20 REPORT.MAPS 1',
    'SWEEP': 'mask_type',
    'STUDIES': '',  # they have a test of their own
    'ABLATION_OPTIONS': f'TRAIN.EPOCHS 1 {TINY}',
}


def variables(form: str) -> dict[str, Any]:
    names = {'CHECKPOINT': 'CKPT'}
    for source in (form, CODE['names'], CODE['configs']):
        exec(source, names)
    return names


def typed_commands(names: dict[str, Any]) -> list[str]:
    lines = '\n'.join(CODE.values()).replace('||', '\n')
    bare = re.sub(r'^\s*!', '', lines, flags=re.M)
    commands = [re.split(r' [|&>] ', command)[0] for command in commands_in(bare)]
    return [re.sub(r'\{(\w+)\}', lambda m: str(names[m[1]]), command) for command in commands]


def choices(variable: str) -> list[Any]:
    return json.loads(re.search(rf'^{variable} = .*@param (\[.*?\])', CODE['form'], re.M)[1])


def streams(cell: dict) -> str:
    return ''.join(output.get('text', '') for output in cell['outputs'])


def images(cell: dict) -> list[str]:
    found = [output.get('data', {}).get('image/png') for output in cell['outputs']]
    return [image for image in found if image]


def test_it_is_valid_and_checked_in_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == 'code':
            assert cell.outputs == [] and cell.execution_count is None, cell.id


@pytest.mark.parametrize('model', ['phantom', *choices('MODEL')])
def test_every_command_parses_whatever_the_form_says(model, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    form = CODE['form']
    if model != 'phantom':
        form = form.replace('USE_PHANTOM = True', 'USE_PHANTOM = False')
        form = re.sub(r"^MODEL = '\w+'", f"MODEL = '{model}'", form, flags=re.M)
    names = variables(form)
    assert ('nano' if model == 'phantom' else model) in names['PRETRAIN_CFG']
    for command in typed_commands(names):
        launcher, path, *words = shlex.split(command)
        assert Path(path).is_file()
        if launcher == 'bash':  # a study: its scale, its data and its output
            assert load_sweep(f'{path[:-3]}.yaml', words[0]).rows
            assert words[2] == f'{names["DRIVE_FOLDER"]}/studies/{Path(path).stem}'
            continue
        args = parse(path, words, monkeypatch)
        if 'sweep' in args:
            assert load_sweep(args.sweep).rows
        elif 'cfg' in args and 'stage' in args:
            config = get_config(args)
            assert str(Path(config.DATA.DATA_PATH)) == names['STORE']
            assert (config.TAG, config.SEED) == (names['RUN_NAME'], names['SEED'])


def run_cell(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **variables: Any) -> Any:
    """What IPython returns for a cell that runs in this folder."""
    monkeypatch.setenv('IPYTHONDIR', str(folder / 'ipython'))
    monkeypatch.chdir(folder)  # undone after the test, whatever the cell does
    names = {'Path': Path, 'CHECKOUT': 'code', 'REPOSITORY': ''}
    # Without a history, which it would write at the end of the process into a removed folder.
    settings = TraitletsConfig({'HistoryManager': {'enabled': False}})
    shell = InteractiveShell(user_ns=names, config=settings)
    shell.push(variables)
    return shell.run_cell(CODE[name])


def test_the_code_is_cloned_or_unpacked_without_a_question(tmp_path, monkeypatch) -> None:
    main = tmp_path / 'pack/simmim-main/main_simmim.py'
    main.parent.mkdir(parents=True)
    main.touch()
    archive = shutil.make_archive(str(tmp_path / 'simmim'), 'zip', tmp_path / 'pack')
    author = ['-c', 'user.name=x', '-c', 'user.email=x']
    for words in (['init', '-q'], ['add', '.'], [*author, 'commit', '-qm', 'x']):
        subprocess.run(['git', *words], cwd=main.parent, check=True)
    wrong = shutil.make_archive(
        str(tmp_path / 'wrong'), 'zip', tmp_path / 'pack', 'simmim-main/.git'
    )
    for i, source in enumerate([str(main.parent), archive]):
        folder = tmp_path / f'session{i}'
        folder.mkdir()
        for other in ('', wrong):
            result = run_cell('checkout', folder, monkeypatch, REPOSITORY=other)
            assert 'REPOSITORY' in str(result.error_in_exec)
        run_cell('checkout', folder, monkeypatch, REPOSITORY=source).raise_error()
        assert Path('main_simmim.py').exists() and Path.cwd().is_relative_to(folder / 'code')
        run_cell('checkout', folder, monkeypatch).raise_error()  # it is there


def execute(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, skipped: tuple[str, ...], **settings: Any
) -> dict[str, Any]:
    """Run all cells but those skipped, with these settings; returns the cells with outputs."""
    small = settings | {
        'DRIVE_FOLDER': str(folder / 'My Drive' / 'simmim'),
        'LOCAL_FOLDER': str(folder / 'local'),
        'IMAGES': str(folder / 'local' / 'phantom'),
    }
    # After the form, as papermill does after the cell that is tagged 'parameters'.
    settings = nbformat.v4.new_code_cell('\n'.join(f'{k} = {v!r}' for k, v in small.items()))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    kept = [cell for cell in notebook.cells if cell.id not in skipped]
    notebook.cells = []
    for cell in kept:
        cell.source = cell.source.replace('--valid 60 --test 100', '--valid 12 --test 12')
        notebook.cells.append(cell)
        if 'parameters' in cell.metadata.get('tags', []):
            notebook.cells.append(settings)
    resources = {'metadata': {'path': str(NOTEBOOK.parent)}}
    monkeypatch.setenv('PATH', f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}')
    monkeypatch.setenv('IPYTHONDIR', str(folder / 'ipython'))
    with warm_python(folder) as python:
        monkeypatch.setenv('PYTHON', str(python))  # starts the runs of the ablation
        NotebookClient(notebook, timeout=900, kernel_name='python3', resources=resources).execute()

    cells = {cell.id: cell for cell in notebook.cells if cell.cell_type == 'code'}
    for name, cell in cells.items():
        assert 'Traceback' not in streams(cell), (name, streams(cell))
    return cells


@pytest.mark.slow
def test_a_study_runs_on_synthetic_xrays(tmp_path, monkeypatch) -> None:
    """Its command with one seed, one epoch and few images: the table and the figures are shown."""
    monkeypatch.setenv('SEEDS', '1')
    monkeypatch.setenv('PHANTOM', '--train 40 --valid 12 --test 12 --size 64 --workers 2')
    monkeypatch.setenv('PRETRAIN_OPTS', f'TRAIN.EPOCHS 1 {TINY}')
    options = 'EVAL.RESAMPLES 0 REPORT.WRITE False'
    monkeypatch.setenv('FINETUNE_OPTS', f'TRAIN.EPOCHS 1 {TINY} {options}')
    needed = ('form', 'names', 'mount', 'checkout', 'study_simmim')
    skipped = tuple(name for name in CODE if name not in needed)
    cells = execute(tmp_path, monkeypatch, skipped=skipped, STUDIES='simmim')
    shown = cells['study_simmim']
    table = next(o['data']['text/markdown'] for o in shown.outputs if 'data' in o)
    sweep = load_sweep(ROOT / 'scripts/studies/simmim.yaml', 'tiny')
    titles = [title_of(sweep, row.name)[1] for row in sweep.rows]
    assert all(re.search(rf'^\| {re.escape(title)} .*\d\.\d', table, re.M) for title in titles)
    assert images(shown)


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(tmp_path, monkeypatch) -> None:
    cells = execute(tmp_path, monkeypatch, skipped=('install',), **SMALL)
    runs = tmp_path / 'My Drive' / 'simmim' / 'runs'
    pretrained, finetuned = runs / 'simmim_pretrain' / 'first', runs / 'simmim_finetune' / 'first'
    assert 'errors 0' in streams(cells['pack'])
    assert 'verdict: ready' in streams(cells['check'])
    assert 'ended with code 75' in streams(cells['interrupted'])
    log = (pretrained / 'log_rank0.txt').read_text()
    stopped = re.search(r'saved (ckpt_epoch_\w+\.pth)\n.*stopped by SIGTERM', log)[1]
    assert re.search(rf'resumed from [^,]*{re.escape(stopped)}', log)
    records = (pretrained / 'metrics.jsonl').read_text().splitlines()
    assert [json.loads(line)['epoch'] for line in records] == list(range(-1, EPOCHS))
    assert f'ckpt_epoch_{EPOCHS - 1}.pth' in streams(cells['finetune'])
    assert [len(images(cells[name])) for name in ('curves', 'table')] == [2, 2]
    counts = cells['describe'].outputs[-1]['data']['text/plain']
    assert re.search(r'^All +\d', counts, re.M) and re.search(r'^Edema +\d', counts, re.M)
    scores = cells['scores'].outputs[-1]['data']['text/html']
    header = re.findall(r'class="col_heading[^>]*>(\w+)<', scores)
    assert header[:4] == ['positives', 'auroc', 'auroc_low', 'auroc_high']
    assert 'mean_of_defined' in scores and 'nan' not in scores
    page = cells['page'].outputs[0]['data']['text/html']
    inner = re.search(r'<iframe srcdoc="([^"]*)"', page)[1]
    assert unescape(inner) == (finetuned / 'report.html').read_text()
    rows = load_sweep(ROOT / 'scripts/ablations/nano/mask_type.yaml').rows
    table = next(o['data']['text/markdown'] for o in cells['table'].outputs if 'data' in o)
    assert all(re.search(rf'^\| {row.name}\b.*\d\.\d', table, re.M) for row in rows)
