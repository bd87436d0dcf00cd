"""scripts/reproduce.py: a repeated run is identical, and every difference is reported."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from tiny import VIT, finished_run, run_folder, run_main

from engine.run_record import processes_of, read_record
from scripts import reproduce
from utils import read_checkpoint, save_checkpoint

pytestmark = pytest.mark.usefixtures('few_cases_select')

LAST = 'ckpt_epoch_1.pth'


@pytest.fixture(scope='module')
def finished(phantom, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp('finished')
    return finished_run('finetune', phantom, root, model=VIT)


@pytest.fixture
def folder(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / 'run'))


@pytest.fixture
def copied(finished, monkeypatch):
    def repeat(record, flags):
        shutil.copytree(finished, run_folder(Path(flags[flags.index('--output') + 1]), 'finetune'))

    monkeypatch.setattr(reproduce, 'repeat', repeat)


def result(capsys, *words) -> tuple[int, str]:
    capsys.readouterr()
    code = reproduce.main(reproduce.parse_args([*map(str, words)]))
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def rewrite(path, change) -> None:
    """Change a JSON file, or a file with one JSON object per line."""
    is_table = path.suffix == '.jsonl'
    texts = path.read_text().splitlines() if is_table else [path.read_text()]
    records = [json.loads(text) for text in texts]
    change(records if is_table else records[0])
    path.write_text('\n'.join(map(json.dumps, records)) + '\n')


def test_a_repeated_run_is_identical_and_leaves_the_first(folder, tmp_path, monkeypatch, capsys):
    def repeat(record, flags):
        assert run_main(record['stage'], flags) == 0

    monkeypatch.setattr(reproduce, 'repeat', repeat)
    before = {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}
    code, output = result(capsys, folder, '--output', tmp_path / 'again')
    assert code == 0 and 'differs' not in output
    assert {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()} == before
    again = run_folder(tmp_path / 'again', 'finetune')
    old, new = (read_checkpoint(place / LAST)['model'] for place in (folder, again))
    assert all(torch.equal(old[key], new[key]) for key in old)
    assert read_record(again)['starts'][0]['resumed_from'] is None
    code, output = result(capsys, folder, '--output', tmp_path / 'again')
    assert code == 2 and '--output' in output, 'the folder is taken'


def test_a_weight_a_metric_and_a_score_that_differ(folder, copied, capsys):
    def change(records):
        records[1]['loss'] += 0.5
        records[2]['seconds'] *= 10  # timings do not count

    def change_score(scores):
        scores['test']['selected']['auroc']['No Finding'] += 0.0625

    state = read_checkpoint(folder / LAST)
    state['model']['patch_embed.proj.weight'].view(-1)[5] += 0.25
    save_checkpoint(folder / LAST, state)
    code, output = result(capsys, folder)
    assert code == 1 and f'differs: weights of {LAST}: 0.25' in output
    assert result(capsys, folder, '--tolerance', '0.001')[0] == 0, 'metrics alone count'
    rewrite(folder / 'metrics.jsonl', change)
    rewrite(folder / 'scores.json', change_score)
    code, output = result(capsys, folder, '--tolerance', '0.1')
    assert code == 1 and 'differs: loss: ' in output
    assert 'differs: test selected auroc No Finding: 0.0625\n' in output
    assert output.count('differs: ') == 3
    assert result(capsys, folder, '--tolerance', '0.6')[0] == 0


@pytest.mark.parametrize(
    'old, new, expected',
    [
        (math.nan, math.nan, 0.0),
        (200.0, 100.0, 0.5),
        (math.nan, 0.5, math.inf),
        ('lateral', 'frontal', math.inf),
        (torch.ones(2), torch.tensor([1.0, 3.0]), 2.0),
    ],
)
def test_differences_of_values(old, new, expected):
    assert reproduce.difference(old, new) == expected


def test_changed_inputs_are_reported(folder, copied, capsys):
    def change(record):
        record['code'] = '0123abc'
        record['environment']['packages']['torch'] = '0.4'
        first = record['starts'][0]
        record['starts'] += [first | {'code': 'other', 'processes': 2}, {'code': 'c', 'data': 'd'}]

    rewrite(folder / 'run.json', change)
    assert processes_of(read_record(folder)) == 2, 'those of the last start that trained'
    code, output = result(capsys, folder)
    assert code == 0, 'the results decide'
    found = [line for line in output.splitlines() if line.startswith('changed: ')]
    for part in ('0123abc', 'torch', 'resumed', 'another number of processes'):
        assert any(part in line for line in found), part


def test_a_run_that_is_not_finished_cannot_be_repeated(folder, copied, capsys):
    rewrite(folder / 'run.json', lambda record: record.update(finished=None))
    code, output = result(capsys, folder)
    assert code == 2 and str(folder) in output


@pytest.mark.slow
def test_a_repeat_that_fails_has_exit_code_2(folder, tmp_path, capsys):
    code, output = result(capsys, folder, '--data-path', tmp_path / 'nowhere')
    assert code == 2 and 'exit code 2' in output
