"""scripts/reproduce.py: a repeat is the same bit for bit, and whatever is not is said."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mistakes import edit, linked
from tiny import ROOT, VIT, arguments, run_folder, run_main, tiny_config, torchrun

from config import build_parser, get_config
from data import build_loader
from engine import loop as training_step
from engine.run_record import read_record, shown_checkpoint
from logger import read_metrics
from scripts import reproduce
from utils import read_checkpoint, save_checkpoint

LAST = 'ckpt_epoch_1.pth'


@pytest.fixture(scope='module')
def data(phantom, tmp_path_factory) -> Path:
    """A copy that tests may take away or change copies of."""
    return linked(phantom, tmp_path_factory.mktemp('own') / phantom.name)


@pytest.fixture(scope='module')
def finished(data, tmp_path_factory) -> Path:
    """The folder of a finished run; tests work on copies."""
    root = tmp_path_factory.mktemp('finished')
    cfg = tiny_config(root / 'run.yaml', 'finetune', VIT)
    assert run_main('finetune', arguments(cfg, data, root)) == 0
    return run_folder(root, 'finetune')


@pytest.fixture
def folder(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / 'run'))


@pytest.fixture
def in_process(monkeypatch):
    """Repeats are made in this process."""

    def repeat(record, words):
        assert run_main(record['stage'], words) == 0

    monkeypatch.setattr(reproduce, 'repeat', repeat)


@pytest.fixture
def copied(finished, monkeypatch):
    """In place of a repeat, the finished run once more."""

    def repeat(record, words):
        shutil.copytree(finished, run_folder(Path(words[words.index('--output') + 1]), 'finetune'))

    monkeypatch.setattr(reproduce, 'repeat', repeat)


def result(capsys, *words) -> tuple[int, list[str]]:
    """Exit code, and the lines of the script without those of the run's log."""
    capsys.readouterr()
    code = reproduce.main(reproduce.parse_args([*map(str, words)]))
    captured = capsys.readouterr()
    lines = (captured.out + captured.err).splitlines()
    return code, [line for line in lines if not line.startswith('[') and '\x1b' not in line]


def refusal(capsys, *words) -> str:
    code, lines = result(capsys, *words)
    assert code == 2
    (line,) = lines
    assert line.startswith('error: ')
    return line


def len_compared(lines) -> int:
    (line,) = (line for line in lines if line.startswith('compared: '))
    return int(line.split()[1])


def contents(folder) -> dict:
    return {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def rewrite(path, change) -> None:
    """Change a JSON file, a line at a time if it is one of lines."""
    lines = path.read_text().splitlines() if path.suffix == '.jsonl' else [path.read_text()]
    records = [json.loads(line) for line in lines]
    change(records if path.suffix == '.jsonl' else records[0])
    path.write_text('\n'.join(map(json.dumps, records)) + '\n')


# Repeats ---------------------------------------------------------------------------------------


def test_a_repeat_is_the_same_bit_for_bit_and_leaves_the_run_alone(
    folder, tmp_path, in_process, capsys
):
    before = contents(folder)
    code, lines = result(capsys, folder, '--output', tmp_path / 'again')
    assert (code, lines[-1]) == (0, 'the same, bit for bit (figures and weights)')
    assert 'code, programs, machine, data and pre-trained weights are those of the run' in lines
    assert not [line for line in lines if line.startswith('differs')]
    assert contents(folder) == before
    again = run_folder(tmp_path / 'again', 'finetune')
    old, new = (read_checkpoint(place / LAST)['model'] for place in (folder, again))
    assert all(torch.equal(old[key], new[key]) for key in old)
    assert read_record(again)['starts'][0]['resumed_from'] is None
    assert 'holds a run already' in refusal(capsys, folder, '--output', tmp_path / 'again')


@pytest.mark.slow
def test_a_run_that_was_killed_and_went_on_is_repeated_without_a_break(
    data, tmp_path, in_process, capsys, monkeypatch
):
    cfg = tiny_config(tmp_path / 'run.yaml', 'finetune', VIT, TRAIN={'SAVE_EVERY_STEPS': 2})
    step, calls = training_step._optimizer_step, []

    def dies_in_the_fifth_step(*args):
        calls.append(0)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return step(*args)

    run = run_folder(tmp_path / 'out', 'finetune')
    with monkeypatch.context() as patch:
        patch.setattr(training_step, '_optimizer_step', dies_in_the_fifth_step)
        with pytest.raises(KeyboardInterrupt):
            run_main('finetune', arguments(cfg, data, tmp_path / 'out'))
    assert 'the run is not finished (1 start(s)' in refusal(capsys, run)
    assert run_main('finetune', arguments(cfg, data, tmp_path / 'out')) == 0
    assert len(read_record(run)['starts']) == 2
    code, lines = result(capsys, run, '--output', tmp_path / 'again')
    assert (code, lines[-1]) == (0, 'the same, bit for bit (figures and weights)')
    assert len(read_record(run_folder(tmp_path / 'again', 'finetune'))['starts']) == 1


def test_a_run_that_began_with_anothers_checkpoint(
    finished, data, tmp_path, in_process, capsys, monkeypatch
):
    start = Path(shutil.copy(finished / 'ckpt_epoch_0.pth', tmp_path / 'start.pth'))
    cfg = tiny_config(tmp_path / 'run.yaml', 'finetune', VIT)
    monkeypatch.chdir(tmp_path)
    words = arguments(cfg, data, tmp_path / 'out', '--resume', 'start.pth')
    assert run_main('finetune', words) == 0
    monkeypatch.chdir(ROOT)
    run = run_folder(tmp_path / 'out', 'finetune')
    assert read_record(run)['starts'][0]['resumed_from'] == str(start)
    code, lines = result(capsys, run)
    assert (code, lines[-1]) == (0, 'the same, bit for bit (figures and weights)')
    start.unlink()
    assert f'MODEL.RESUME {start}, and there is no such file' in refusal(capsys, run)


def test_only_a_checkpoint_of_the_runs_own_folder_is_recorded_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    folder = Path('runs/first')
    for own in ('runs/first/a.pth', 'runs/../runs/first/a.pth', tmp_path / 'runs/first/a.pth'):
        assert shown_checkpoint(folder, own) == 'a.pth'
    assert shown_checkpoint(folder, 'ckpt_epoch_1.pth') == '~/ckpt_epoch_1.pth'
    assert shown_checkpoint(folder, 'runs/second/../third/a.pth') == '~/runs/third/a.pth'
    assert shown_checkpoint(folder, 'https://example.org/a.pth') == 'https://example.org/a.pth'


def test_a_probe(data, tmp_path, in_process, capsys):
    cfg = tiny_config(tmp_path / 'run.yaml', 'finetune', VIT, FINETUNE={'MODE': 'knn'})
    assert run_main('finetune', arguments(cfg, data, tmp_path / 'out')) == 0
    run = run_folder(tmp_path / 'out', 'finetune')
    code, lines = result(capsys, run)
    assert (code, lines[-1]) == (0, 'the same, bit for bit (figures alone)')


def test_one_label_that_is_learned_from_makes_another_run(
    folder, data, tmp_path, in_process, capsys
):
    words = arguments(folder / 'config.yaml', data, tmp_path)
    config = get_config(build_parser('finetune').parse_args(words))
    records = build_loader(config, reproduce.QUIET, is_pretrain=False).train.dataset.records
    other = linked(data, tmp_path / data.name)

    def change(rows):
        column, row = rows[0].index('No Finding'), rows[records.row[0] + 1]
        row[column] = '' if row[column] == '1.0' else '1.0'

    edit(other / 'train.csv', change)
    code, lines = result(capsys, folder, '--data-path', other)
    assert 'differs from the run: data: train.csv is another file' in lines
    assert code == 1
    assert lines[-1].startswith('not the same: ')
    assert any(line.startswith('differs: loss: ') for line in lines)
    assert any(line.startswith(f'differs: weights of {LAST}: ') for line in lines)


# What differs ----------------------------------------------------------------------------------


def test_one_weight(folder, copied, capsys):
    state = read_checkpoint(folder / LAST)
    name = 'patch_embed.proj.weight'
    state['model'][name].view(-1)[5] += 0.25
    save_checkpoint(folder / LAST, state)
    code, lines = result(capsys, folder)
    assert code == 1
    assert f'differs: weights of {LAST}: 0.25 ({name})' in lines
    assert lines[-1].startswith('not the same: 1 of ')
    code, lines = result(capsys, folder, '--tolerance', '0.001')
    assert (code, lines[-1]) == (0, 'the same within 0.001 (figures alone)')
    assert f'differs: weights of {LAST}: 0.25 ({name})' in lines
    del state['model'][name]
    save_checkpoint(folder / LAST, state)
    code, lines = result(capsys, folder, '--tolerance', '0.001')
    assert code == 1
    assert f'differs: weights of {LAST}: another value, or none ({name})' in lines


def test_one_figure_of_one_epoch(folder, copied, capsys):
    def change(records):
        records[1]['loss'] += 0.5
        records[2]['loss'] -= 0.125
        records[2]['grad_norm'] *= 1000

    norm = read_metrics(folder / 'metrics.jsonl')[2]['grad_norm']
    rewrite(folder / 'metrics.jsonl', change)
    code, lines = result(capsys, folder)
    assert code == 1
    assert 'differs: loss: 0.5 (epoch 0)' in lines
    assert f'differs: grad_norm: {999 * norm:.3g} (epoch 1)' in lines
    assert lines[-1].endswith(': grad_norm, loss')
    code, lines = result(capsys, folder, '--tolerance', '0.6')
    assert code == 1
    assert lines[-1].endswith('differ by more than 0.6: grad_norm')
    code, lines = result(capsys, folder, '--tolerance', '1')
    assert (code, lines[-1]) == (0, 'the same within 1 (figures alone)')


def test_figures_of_time_do_not_count_and_an_epoch_less_does(folder, copied, capsys):
    def slower(records):
        for record in records[1:]:
            record['seconds'] *= 2
            record['data_seconds'] += 1
            record['images_per_second'] /= 2

    rewrite(folder / 'metrics.jsonl', slower)
    assert result(capsys, folder)[0] == 0
    rewrite(folder / 'metrics.jsonl', lambda records: records.pop())
    code, lines = result(capsys, folder, '--tolerance', '1000')
    assert code == 1
    assert 'differs: loss: another value, or none (epoch 1)' in lines


def test_one_score_and_a_figure_that_is_no_number(folder, copied, capsys):
    def change(scores):
        label = next(k for k, v in scores['test']['selected']['auroc'].items() if v is not None)
        assert label == 'No Finding'
        scores['test']['selected']['auroc'][label] += 0.0625
        scores['valid']['last']['views'] = 'lateral'

    rewrite(folder / 'scores.json', change)
    code, lines = result(capsys, folder)
    assert code == 1
    assert 'differs: test selected auroc No Finding: 0.0625 (scores.json)' in lines
    assert 'differs: valid last views: another value, or none (scores.json)' in lines


@pytest.mark.parametrize('words', [[], ['--tolerance', '0.5']])
def test_a_figure_that_is_not_finite_is_the_same_as_itself_alone(words):
    values = (math.nan, math.inf, -math.inf, 0.5, 10**20)
    tolerance = reproduce.parse_args(['run', *words]).tolerance
    for old in values:
        for new in (*values, None, 'nan'):
            found = reproduce._figures({'a': {'x': old}}, {'a': {'x': new}})
            same = old is new
            line, code = reproduce.verdict(found, tolerance)
            assert (code == 0) == same, (old, new)
            assert line.startswith('the same' if same else 'not the same'), (old, new)


def test_a_score_that_was_none(folder, copied, capsys):
    def change(scores):
        scores['test']['selected']['loss'] = math.nan

    rewrite(folder / 'scores.json', change)
    code, lines = result(capsys, folder)
    assert code == 1
    assert lines[-1] == f'not the same: 1 of {len_compared(lines)} differ: test selected loss'
    assert 'differs: test selected loss: another value, or none (scores.json)' in lines


def test_files_that_are_gone(folder, finished, copied, capsys, monkeypatch):
    (folder / LAST).unlink()
    code, lines = result(capsys, folder)
    assert code == 0
    assert f'not compared: {LAST}, which {folder} no longer has' in lines
    (folder / 'ckpt_best.pth').unlink()
    code, lines = result(capsys, folder)
    assert (code, lines[-1]) == (0, 'the same, bit for bit (figures alone)')
    repeat = reproduce.repeat

    def without_scores(record, words):
        repeat(record, words)
        (run_folder(Path(words[words.index('--output') + 1]), 'finetune') / 'scores.json').unlink()

    monkeypatch.setattr(reproduce, 'repeat', without_scores)
    code, lines = result(capsys, folder, '--tolerance', '1')
    assert code == 1
    assert lines[-1].endswith(': scores.json')


def test_code_programs_and_starts_are_compared_before_the_repeat(folder, copied, capsys):
    def change(record):
        record['code'] = '0123abc'
        record['environment']['python'] = '2.7'
        record['environment']['gpus'] = ['NVIDIA H200']
        record['environment']['packages']['torch'] = '0.4'
        record['pretrained'] = '0' * 64
        record['starts'].append(record['starts'][0] | {'code': 'other'})

    rewrite(folder / 'run.json', change)
    code, lines = result(capsys, folder)
    assert code == 0, 'what came out decides'
    beginnings = ('code: 0123abc -> ', 'python: 2.7 -> ', 'gpus: NVIDIA H200 -> ',
                  'package torch: 0.4 -> ', 'PRETRAINED: ', 'the run itself went on')  # fmt: skip
    told = [line for line in lines if line.startswith('differs from the run: ')]
    assert len(told) == len(beginnings)
    for line, beginning in zip(told, beginnings, strict=True):
        assert line.startswith(f'differs from the run: {beginning}')
    assert not any('are those of the run' in line for line in lines)


# Refusals --------------------------------------------------------------------------------------


def test_runs_that_cannot_be_repeated(folder, tmp_path, copied, capsys):
    assert 'no folder of a run' in refusal(capsys, tmp_path)
    rewrite(folder / 'run.json', lambda record: record.update(finished=None))
    assert 'not finished (1 start(s), the last at 20' in refusal(capsys, folder)
    rewrite(folder / 'run.json', lambda record: record.update(starts=[]))
    assert 'it was changed' in refusal(capsys, folder)
    (folder / 'run.json').write_text('{')
    assert f'{folder}/run.json cannot be read' in refusal(capsys, folder)
    for tolerance in ('-1', 'nan', 'inf'):
        assert '--tolerance' in refusal(capsys, folder, f'--tolerance={tolerance}')


def test_weights_that_are_gone_are_named(folder, tmp_path, copied, capsys):
    path, text = folder / 'config.yaml', (folder / 'config.yaml').read_text()
    lost = tmp_path / 'lost.pth'
    path.write_text(text.replace("PRETRAINED: ''", f'PRETRAINED: {lost}'))
    assert f'PRETRAINED {lost}, and there is no such file' in refusal(capsys, folder)
    shutil.copy(folder / LAST, tmp_path / 'found.pth')
    assert result(capsys, folder, '--pretrained', tmp_path / 'found.pth')[0] == 0
    path.write_text(text)
    rewrite(folder / 'run.json', lambda r: r['starts'][0].update(resumed_from=str(lost)))
    assert f'MODEL.RESUME {lost}' in refusal(capsys, folder)
    rewrite(folder / 'run.json', lambda r: r['starts'][0].update(resumed_from='lost.pth'))
    assert f'MODEL.RESUME {folder / "lost.pth"}' in refusal(capsys, folder)
    rewrite(folder / 'run.json', lambda r: r['starts'][0].update(resumed_from='ckpt_epoch_0.pth'))
    assert result(capsys, folder)[0] == 0, 'one of its own: the repeat begins at the beginning'


def test_data_that_are_gone(folder, tmp_path, copied, capsys):
    assert str(tmp_path / 'none') in refusal(capsys, folder, '--data-path', tmp_path / 'none')


@pytest.mark.slow
def test_a_repeat_that_fails(folder, data, tmp_path, capsys):
    """One picture is damaged, which the start does not look at."""
    other = linked(data, tmp_path / data.name)
    for image in other.glob('train/*/*/*.jpg'):
        image.unlink()
        image.write_bytes(b'no picture')
    code, lines = result(capsys, folder, '--data-path', other)
    assert code == 2
    assert lines[-1] == 'error: the repeat ended with exit code 2: its last lines say why'


@pytest.mark.slow
def test_from_the_command_line_with_two_processes(data, tmp_path):
    cfg = tiny_config(tmp_path / 'run.yaml', 'finetune', VIT)
    done = torchrun('finetune', arguments(cfg, data, tmp_path / 'out'), 2)
    assert done.returncode == 0, done.stdout + done.stderr
    record = read_record(run := run_folder(tmp_path / 'out', 'finetune'))
    assert (record['processes'], record['environment']['threads']) == (2, 1)
    alone = tmp_path / 'alone'
    assert run_main('finetune', arguments(cfg, data, alone)) == 0
    assert read_record(run_folder(alone, 'finetune'))['data'] == record['data']
    script, again = str(ROOT / 'scripts' / 'reproduce.py'), str(tmp_path / 'again')
    command = [sys.executable, script, str(run), '--output', again]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == 'the same, bit for bit (figures and weights)'
    assert read_record(run_folder(tmp_path / 'again', 'finetune'))['processes'] == 2
