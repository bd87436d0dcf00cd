"""The Colab notebook: what it types parses, and it runs from top to bottom on synthetic X-rays."""

import base64
import io
import json
import os
import re
import shlex
import sys
from html import unescape
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest
from IPython.display import HTML
from nbclient import NotebookClient
from PIL import Image
from test_readme import commands_in, parse

from config import default_config, get_config
from sweeps.files import load_sweep

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / 'notebooks' / 'colab.ipynb'
CELLS = {cell['id']: cell for cell in json.loads(NOTEBOOK.read_text())['cells']}
CODE = {name: ''.join(c['source']) for name, c in CELLS.items() if c['cell_type'] == 'code'}
TEXT = '\n'.join(''.join(c['source']) for c in CELLS.values() if c['cell_type'] == 'markdown')
PHANTOM = 'USE_PHANTOM = True'
COMMANDS = (
    'make_phantom.py', 'check_data.py', 'pack.py', 'describe_data.py', 'main_simmim.py',
    'main_finetune.py', 'ablate.py run', 'ablate.py table', 'ablate.py plot',
)  # fmt: skip
SMALL = {
    'PHANTOM_PATIENTS': 60,
    'PRETRAIN_OPTIONS': 'TRAIN.EPOCHS 8 TRAIN.WARMUP_EPOCHS 1',
    'FINETUNE_OPTIONS': 'TRAIN.EPOCHS 2 TRAIN.WARMUP_EPOCHS 1 EVAL.RESAMPLES 50 REPORT.MAPS 1',
    'SWEEP': 'mask_type',
    'ABLATION_OPTIONS': 'TRAIN.EPOCHS 1 TRAIN.WARMUP_EPOCHS 0',
}


def variables(form: str) -> dict[str, Any]:
    """What the cells that run no command set, with the form filled in like this."""
    names = {'CHECKPOINT': 'CKPT'}
    for source in (form, CODE['names'], CODE['configs']):
        exec(source, names)
    return names


def typed_commands(names: dict[str, Any]) -> list[str]:
    """The commands of all cells, with the variables put in."""
    lines = '\n'.join(CODE.values()).replace('||', '\n')
    bare = re.sub(r'^\s*!', '', lines, flags=re.M)
    commands = [re.split(r' [|&>] ', command)[0] for command in commands_in(bare)]
    return [re.sub(r'\{(\w+)\}', lambda m: str(names[m[1]]), command) for command in commands]


def choices(variable: str) -> list[Any]:
    """What the form offers."""
    return json.loads(re.search(rf'^{variable} = .*@param (\[.*?\])', CODE['form'], re.M)[1])


def streams(cell: dict) -> str:
    return ''.join(output.get('text', '') for output in cell['outputs'])


def images(cell: dict) -> list[Image.Image]:
    found = [output['data']['image/png'] for output in cell['outputs'] if 'data' in output
             and 'image/png' in output['data']]  # fmt: skip
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in found]


def test_it_is_valid_and_checked_in_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert len(CELLS) == len(notebook.cells) > 25
    for cell in notebook.cells:
        assert re.fullmatch('[a-z]+', cell.id), 'an id of its own, not one made up by an editor'
        if cell.cell_type == 'code':
            assert cell.outputs == [] and cell.execution_count is None, cell.id
    text = NOTEBOOK.read_text()
    assert text == json.dumps(json.loads(text), indent=1, ensure_ascii=False) + '\n'


@pytest.mark.parametrize('model', ['phantom', *choices('MODEL')])
def test_every_command_parses_whatever_the_form_says(model, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    form = CODE['form']
    assert form.count(PHANTOM) == 1
    if model != 'phantom':
        form = form.replace(PHANTOM, 'USE_PHANTOM = False')
        form = re.sub(r"^MODEL = '\w+'", f"MODEL = '{model}'", form, flags=re.M)
    names = variables(form)
    assert ('nano' if model == 'phantom' else model) in names['PRETRAIN_CFG']
    typed = typed_commands(names)
    assert len(typed) == '\n'.join(CODE.values()).count('.py ') == len(COMMANDS) + 2
    assert all(any(each in command for command in typed) for each in COMMANDS)
    for command in typed:
        launcher, path, *words = shlex.split(command)
        assert launcher == 'python' and Path(path).is_file()
        args = parse(path, words, monkeypatch)
        if 'sweep' in args:
            assert load_sweep(args.sweep).rows
        elif 'cfg' in args and 'stage' in args:
            config = get_config(args)
            assert str(Path(config.DATA.DATA_PATH)) == names['STORE']
            assert (config.TAG, config.SEED) == (names['RUN_NAME'], names['SEED'])


def test_what_the_form_offers_and_the_text_names_is_there() -> None:
    for model in choices('MODEL'):
        assert len(list(ROOT.glob(f'configs/{model}__chexpert_100ep/simmim_*.yaml'))) == 2
    for sweep in choices('SWEEP'):
        assert load_sweep(ROOT / f'scripts/ablations/nano/{sweep}.yaml').rows
    paths = re.findall(r'`((?:docs|scripts|configs)/[^`\s]*)', TEXT)
    assert len(paths) > 4 and [path for path in paths if not (ROOT / path).exists()] == []
    keys = set(re.findall(r'\b((?:DATA|TRAIN|EVAL|REPORT)\.[A-Z_]+)', TEXT + CODE['form']))
    assert len(keys) > 4
    for key in keys:
        section, name = key.split('.')
        assert name in default_config()[section], key


def test_scores_are_whole_numbers_and_empty_cells(tmp_path) -> None:
    (tmp_path / 'report_labels.csv').write_text(
        'set,level,views,label,n,positives,auroc,auroc_low,auroc_high,average_precision,brier,ece\n'
        'test,study,all,Edema,60,9,0.81234,,,0.5,0.1,0.02\n'
        'test,study,all,Fracture,60,0,,,,,0,0.0004\n'
        'test,study,all,(mean),,,0.8,0.7,0.9,0.5,,\n'
    )
    shown = []
    names = {'pd': pd, 'HTML': HTML, 'display': shown.append, 'FINETUNED': tmp_path}
    exec(CODE['scores'], names)
    cells = re.findall('<td>(.*?)</td>', shown[0].data)
    assert [cells[i : i + 10] for i in (0, 10, 20)] == [
        ['test', 'Edema', '60', '9', '0.812', '', '', '0.500', '0.100', '0.020'],
        ['test', 'Fracture', '60', '0', '', '', '', '', '0.000', '0.000'],
        ['test', '(mean)', '', '', '0.800', '0.700', '0.900', '0.500', '', ''],
    ]


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv('PATH', f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}')
    monkeypatch.setenv('IPYTHONDIR', str(tmp_path / 'ipython'))
    drive = tmp_path / 'My Drive' / 'simmim'
    small = SMALL | {
        'DRIVE_FOLDER': str(drive),
        'LOCAL_FOLDER': str(tmp_path / 'local'),
        'IMAGES': str(tmp_path / 'local' / 'phantom'),
    }
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    # Behind the form, as papermill does behind the cell that is tagged 'parameters'.
    settings = '\n'.join(f'{name} = {value!r}' for name, value in small.items())
    form = next(
        i for i, c in enumerate(notebook.cells) if 'parameters' in c.metadata.get('tags', [])
    )
    notebook.cells.insert(form + 1, nbformat.v4.new_code_cell(settings, id='small'))
    resources = {'metadata': {'path': str(NOTEBOOK.parent)}}
    NotebookClient(notebook, timeout=900, kernel_name='python3', resources=resources).execute()

    cells = {cell['id']: cell for cell in notebook.cells if cell.cell_type == 'code'}
    for name, cell in cells.items():
        assert all(output['output_type'] != 'error' for output in cell['outputs']), name
        assert 'Traceback' not in streams(cell), (name, streams(cell))

    store, runs = drive / 'store_128', drive / 'runs'
    pretrained, finetuned = runs / 'simmim_pretrain' / 'first', runs / 'simmim_finetune' / 'first'
    assert (store / 'store.json').is_file() and 'errors 0' in streams(cells['pack'])
    assert 'verdict: ready' in streams(cells['check'])
    assert 'ended with code 75' in streams(cells['interrupted'])
    assert (pretrained / 'ckpt_epoch_7.pth').is_file()
    stopped = re.search(r'saved .*/(ckpt_epoch_\d_step_\d+\.pth)', streams(cells['interrupted']))[1]
    assert re.search(rf'resum.*{re.escape(stopped)}', streams(cells['pretrain']))
    records = (pretrained / 'metrics.jsonl').read_text().splitlines()
    assert [json.loads(line)['epoch'] for line in records] == list(range(-1, 8))
    assert str(pretrained / 'ckpt_epoch_7.pth') in streams(cells['finetune'])

    assert [len(images(cells[name])) for name in ('describe', 'curves', 'table')] == [1, 2, 1]
    last = Image.open(pretrained / 'reconstructions' / 'epoch_7.png')
    assert images(cells['curves'])[1].tobytes() == last.tobytes()
    rows = next(o['data']['text/html'] for o in cells['scores']['outputs'] if 'data' in o)
    assert rows.count('Pleural Effusion') == 2, 'valid and test'
    page = cells['page']['outputs'][0]['data']['text/html']
    inner = re.search(r'<iframe srcdoc="([^"]*)"', page)[1]
    assert unescape(inner) == (finetuned / 'report.html').read_text()
    table = next(o['data']['text/markdown'] for o in cells['table']['outputs'] if 'data' in o)
    assert 'AUROC' in table.splitlines()[0]
    for row in load_sweep(ROOT / 'scripts/ablations/nano/mask_type.yaml').rows:
        assert re.search(rf'^\| {row.name}\b.*\d\.\d', table, re.M), row.name
        assert list((drive / 'ablation').glob(f'simmim_finetune/{row.run}_seed0/scores.json'))
