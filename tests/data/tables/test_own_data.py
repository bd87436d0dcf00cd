"""docs/howto/own_data.md and datasets.md: their functions and tables are read as the pages say."""

import logging
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tiny import ROOT, config_with, run_script

from data.data_finetune import build_loader_finetune
from data.data_simmim import build_loader_simmim
from data.describe.check import Findings, check_data
from data.describe.description import read_sets
from data.packing import read_source
from data.tables.chexpert import SPLITS, open_data_set
from data.tables.records import Records

LOGGER = logging.getLogger(__name__)
PAGES = ROOT / 'docs' / 'howto'
LABELS = ('effusion', 'Cardiomegaly')


def blocks(page: str, kind: str) -> list[str]:
    text = (PAGES / page).read_text(encoding='utf-8')
    found = re.findall(r'^```(\w*)\n(.*?)^```', text, re.M | re.S)
    return [block for name, block in found if name == kind]


def images(root: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        grey = np.random.default_rng(number).integers(0, 256, (40, 40), np.uint8)
        Image.fromarray(grey).save(root / name)


def read(root: Path, text: str, split: str, labels: tuple[str, ...]) -> Records:
    (root / 'my_set.py').write_text(text)
    config = config_with(DATA__DATASET=str(root / 'my_set.py'))
    return open_data_set(config, root / 'data').read(split, labels=labels)


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """A table of a spreadsheet, and patients in a workbook, as the page describes them."""
    root = tmp_path / 'data'
    images(root / 'images', *(f'a/{number}.png' for number in range(4)))
    rows = ['a/0.png;F;061Y;pa;effusion;dev', 'a/1.png;m;;lat;normal;dev']
    rows += ['a/2.png;;35;AP;enlarged heart;dev', 'a/3.png;F;40;pa;;final']
    text = '\n'.join(['file;sex;age;projection;findings;part', *rows])
    (root / 'export.csv').write_text(text.replace('effusion', '"effusion; enlarged heart"'))
    who = {'file': [f'a/{number}.png' for number in (3, 2, 1, 0)], 'patient': [9, 7, 7, 5]}
    pd.DataFrame(who).to_excel(root / 'patients.xlsx', index=False)
    return tmp_path


def test_the_function_of_the_page_reads_a_flat_export(export: Path) -> None:
    (text,) = blocks('own_data.md', 'python')
    assert sum(bool(line.strip()) for line in text.splitlines()) <= 15
    train = read(export, text, 'train', (*LABELS, 'No Finding'))
    assert train.file.tolist() == [f'images/a/{number}.png' for number in range(3)]
    assert train.patient.tolist() == ['5', '7', '7'] and train.csv == 'export.csv'
    assert train.view.tolist() == ['frontal', 'lateral', 'frontal']
    assert train.sex.tolist() == ['Female', 'Male', 'Unknown']
    np.testing.assert_array_equal(train.age, [61, np.nan, 35])
    np.testing.assert_array_equal(train.labels, [[1, 1, 0], [0, 0, 1], [0, 1, 0]])
    test = read(export, text, 'test', LABELS)
    assert test.patient.tolist() == ['9'] and np.isnan(test.labels).all()


def test_the_commands_of_the_page_run(export: Path, monkeypatch, capsys) -> None:
    (export / 'my_set.py').write_text(blocks('own_data.md', 'python')[0])
    monkeypatch.chdir(export)
    commands = next(block for block in blocks('own_data.md', 'bash') if '--table' in block)
    options = re.search(r'(DATA\.DATASET my_set\.py) (DATA\.LABELS) \"(\[.*?\])\"', commands)
    words = ['--data-path', 'data', '--opts', *options[1].split(), options[2], options[3]]
    assert run_script('check_data', '--output', 'problems.csv', *words) == 0
    assert run_script('describe_data', '--table', 'table.csv', *words) == 0
    assert 'table.csv: 4 images' in capsys.readouterr().out
    table = pd.read_csv('table.csv', dtype={'Patient': str})
    assert table['Split'].tolist() == ['train'] * 3 + ['test']
    assert table['Patient'].tolist() == ['5', '7', '7', '9']


def test_the_table_of_the_page_is_read_as_it_stands(tmp_path: Path) -> None:
    text = next(block for block in blocks('own_data.md', '') if block.startswith('Path,'))
    lines = text.splitlines()
    assert len(lines) == 6
    images(tmp_path, *(line.partition(',')[0] for line in lines[1:]))
    (tmp_path / 'train.csv').write_text(text)
    config = config_with(DATA__DATASET='chexpert')
    train, *others = (
        open_data_set(config, tmp_path).read(split, labels=LABELS) for split in SPLITS
    )
    assert [len(train), *map(len, others)] == [3, 1, 1]
    assert train.patient.tolist() == ['P-17', 'P-17', 'P-18']
    np.testing.assert_array_equal(train.labels, [[1, 1], [0, np.nan], [-1, 0]])


def test_the_functions_of_the_other_page_are_read(tmp_path: Path) -> None:
    folders, covid = blocks('datasets.md', 'python')
    names = ['train/NORMAL/person3_1.jpeg', 'val/PNEUMONIA/p4_2.png', 'test/NORMAL/a_b_1.png']
    images(tmp_path / 'data', *names)
    for split, name in zip(('train', 'valid', 'test'), names, strict=True):
        records = read(tmp_path, folders, split, ('NORMAL', 'PNEUMONIA'))
        assert records.file.tolist() == [name]
        assert records.labels.tolist() == [[float('NORMAL' in name), float('PNEUMONIA' in name)]]
    assert records.patient.tolist() == ['a']
    table = 'folder,filename,patientid,sex,age,view,modality,finding\n'
    table += 'images,x.png,7,M,60,AP Supine,X-ray,Pneumonia/Viral\nvolumes,y.nii,8,F,50,PA,CT,?\n'
    images(tmp_path / 'data', 'images/x.png')
    (tmp_path / 'data' / 'metadata.csv').write_text(table)
    records = read(tmp_path, covid, 'test', ('Pneumonia',))
    assert records.patient.tolist() == ['7'] and records.ap_pa.tolist() == ['AP']
    assert records.labels.tolist() == [[1]] and records.row.tolist() == [0]


# Number of an image, its patient and its split: P-7 and 007 are in two.
LEAK = [(0, 'P-7', 'train'), (1, '8', 'train'), (2, '007', 'valid'), (3, '9', 'valid')]


def test_the_check_and_the_written_table_leave_out_what_a_run_does(tmp_path: Path) -> None:
    root, tools = tmp_path / 'data', ['--data-path', tmp_path / 'data']
    images(root, *(f'images/{number}.png' for number in range(4)))
    rows = [f'images/{n}.png,{who},{split},Frontal,{n % 2}' for n, who, split in LEAK]
    text = '\n'.join(['Path,Patient,Split,Frontal/Lateral,Edema', *rows])
    (root / 'train.csv').write_text(text)
    own = ['--opts', 'DATA.LABELS', "['Edema']"]
    check = ['--output', tmp_path / 'problems.csv', '--workers', 1, *own]
    assert run_script('check_data', *tools, *check) == 1
    (tmp_path / 'list.csv').write_text('Path\nimages/0.png\n')
    leave_out = ['DATA.LEAVE_OUT', tmp_path / 'list.csv']
    assert run_script('check_data', *tools, *check, *leave_out) == 0
    faults = pd.read_csv(tmp_path / 'problems.csv')
    assert '1 images of train are left out' in faults['detail'].tolist()
    assert 'image that no CSV names' not in faults['kind'].tolist()
    table = tmp_path / 'table.csv'
    assert run_script('describe_data', *tools, '--table', table, *own, *leave_out) == 0
    assert pd.read_csv(table)['Path'].tolist() == [f'images/{n}.png' for n in (1, 2, 3)]
    counts = tmp_path / 'described'
    assert run_script('describe_data', *tools, '--output', counts, *own, *leave_out) == 0
    found = pd.read_csv(counts / 'counts.csv').query('split == "train"')
    assert found['images'].iloc[0] == 1


COUNTED = """
import pandas as pd

def read(root):
    with open(root / 'calls', 'a') as file:
        file.write('x')
    return pd.read_csv(root / 'all.csv')
"""


@pytest.mark.parametrize('stage', ['simmim', 'finetune', 'pack', 'describe', 'check'])
def test_the_function_is_called_once_for_all_splits_and_sees_later_changes(tmp_path, stage) -> None:
    root = tmp_path / 'data'
    images(root, *(f'images/{number}.png' for number in range(4)))
    splits = ['train', 'train', 'valid', 'test']
    rows = [f'images/{n}.png,{n},{splits[n]},Frontal,{n % 2}' for n in range(4)]
    header = 'Path,Patient,Split,Frontal/Lateral,Edema'
    (root / 'all.csv').write_text('\n'.join([header, *rows]))
    (tmp_path / 'my_set.py').write_text(COUNTED)
    name = str(tmp_path / 'my_set.py')
    options = {'DATASET': name, 'DATA_PATH': str(root), 'LABELS': ['Edema'], 'BATCH_SIZE': 1}
    options |= {'HOLDOUT_FRACTION': 0.0, 'NUM_WORKERS': 0}
    config = config_with(**{f'DATA__{key}': value for key, value in options.items()})
    run = {
        'simmim': lambda: build_loader_simmim(config, LOGGER).train.dataset.records,
        'finetune': lambda: build_loader_finetune(config, LOGGER).train.dataset.records,
        'pack': lambda: [*read_source(root, dataset=name).splits],
        'describe': lambda: read_sets(config)['train'],
        'check': lambda: range(
            check_data(config, Findings(), optional=(), workers=1).rows['train']
        ),
    }[stage]
    before = run()
    assert (root / 'calls').read_text() == 'x'
    (root / 'all.csv').write_text('\n'.join([header, *rows[1:]]))
    assert len(run()) == len(before) - 1
    assert (root / 'calls').read_text() == 'xx'
