"""The command: small runs on the CPU, what they print and write, and mistakes in one line."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from tiny import ROOT, SWIN, tiny_config

import scripts.benchmark as benchmark
import speed.measure as measure_module
from provenance import code_version
from speed.cases import Case
from speed.command import model_name
from speed.steps import build_steps

NANO = ROOT / 'configs/swin_nano__demo/simmim_pretrain__swin_nano__img64_window4__demo.yaml'
FEW = ('--steps', '1', '--warmup', '2', '--rounds', '2')


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(measure_module, 'MATRIX_SIDE', {'cpu': 64})
    monkeypatch.setattr(measure_module, 'gc', SimpleNamespace(collect=lambda: None))


def run(*arguments: object) -> int:
    return benchmark.main(benchmark.parse_args([*map(str, arguments)]))


def train(cfg: object, *arguments: object) -> int:
    return run('train', '--cfg', cfg, *FEW, *arguments)


def lines_of(file) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_run_prints_its_table_and_saves_every_case(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['/home/me/benchmark.py', 'train', '--cfg', 'x.yaml'])
    file, model = tmp_path / 'cases.jsonl', SWIN | {'DROP_PATH_RATE': 0.0}
    cfg = tiny_config(tmp_path / 'simmim_pretrain__tiny__img32__demo.yaml', 'simmim', model)
    assert train(cfg, '--batch-size', 2, 3, '--baseline', '--json', file) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith('the CPU (') and ': not measured on a GPU; ' in printed[0]
    assert f'torch {torch.__version__}' in printed[0] and 'thread(s)' in printed[0]
    assert printed[1] == 'published: in float32, since the published code itself needs a GPU'
    assert sum(line.startswith(('| published', '| ours')) for line in printed) == 4
    rows = lines_of(file)
    assert [(row['batch_size'], row['case']) for row in rows] == [
        (2, 'published'), (2, 'ours'), (3, 'published'), (3, 'ours')
    ]  # fmt: skip
    for row in rows:
        assert len(row['images_per_second']) == 2 and min(row['images_per_second']) > 0
        assert sum(row['kernel_shares'].values()) == pytest.approx(1)
        assert row['kernel_shares']['GEMM'] > 0 and row['flops_per_image'] > 1e6
        assert row['peak_memory_bytes'] is None and row['share_of_matrix_product'] > 0
        assert (row['model'], row['stage'], row['image_size_px']) == ('tiny', 'pretrain', 32)
        assert (row['seed'], row['steps'], row['warmup'], row['error']) == (0, 1, 2, '')
        assert row['torch'] == torch.__version__ and row['cuda'] is None
        assert row['threads'] == torch.get_num_threads() and row['commit'] == code_version()
        assert row['command'] == ['benchmark.py', 'train', '--cfg', 'x.yaml']
        assert row['config'].endswith(cfg.name) and row['opts'] == []
    assert rows[0]['ratio'] == 1
    medians = [sum(row['images_per_second']) / 2 for row in rows]
    assert rows[1]['ratio'] == pytest.approx(medians[1] / medians[0])
    assert rows[0]['loss'] == pytest.approx(rows[1]['loss'], rel=1e-4)  # the same training
    assert rows[0]['options']['code'] == 'published' and rows[1]['options']['code'] == 'ours'

    assert run('table', file, '--output', tmp_path / 'out' / 'here') == 0
    wanted = [str(tmp_path / 'out' / 'here' / f'training_speed.{end}') for end in ('md', 'png')]
    assert capsys.readouterr().out.splitlines() == wanted
    table = (tmp_path / 'out' / 'here' / 'training_speed.md').read_text()
    assert '**tiny, pre-training, 32 px, batch 3; ' in table


def test_fine_tuning_with_data_and_options(phantom, tmp_path):
    file = tmp_path / 'cases.jsonl'
    cfg = tiny_config(tmp_path / 'run.yaml', 'finetune', SWIN)
    opts = ('--opts', 'MODEL.ATTENTION', 'sdpa', '--opts', 'SEED', '3')
    more = ('--json', file, '--data-path', phantom)
    assert train(cfg, '--stage', 'finetune', '--batch-size', 2, *more, *opts) == 0
    row, with_data = lines_of(file)
    assert (with_data['case'], with_data['error']) == ('ours, with data', '')
    assert row['options']['attention'] == 'sdpa' and row['seed'] == 3
    assert row['opts'] == ['MODEL.ATTENTION', 'sdpa', 'SEED', '3'] and row['ratio'] is None
    assert (row['model'], row['stage'], row['case']) == ('run', 'finetune', 'ours')


@pytest.mark.slow
def test_levers_of_which_one_fails(tmp_path, capsys, monkeypatch):
    """The others are measured, and the exit code says that one was not."""

    def build(setting, case):
        if case.name == 'attention sdpa':
            raise torch.OutOfMemoryError('no room\nat all')
        if case.name == 'compile max':  # takes a minute
            case = Case(case.name, options={'TRAIN.COMPILE': 'none'})
        return build_steps(setting, case)

    monkeypatch.setattr(measure_module, 'build_steps', build)
    file = tmp_path / 'cases.jsonl'
    cfg = tiny_config(tmp_path / 'run.yaml', 'simmim', SWIN)
    assert train(cfg, '--batch-size', 2, '--levers', '--rounds', 1, '--json', file) == 1
    rows = lines_of(file)
    assert [(row['case'], row['error']) for row in rows] == [
        ('published', ''), ('fused AdamW', ''), ('our code, eager', ''),
        ('attention sdpa', 'OutOfMemoryError: no room at all'), ('compile max', ''),
    ]  # fmt: skip
    assert [row['options'].get('fused_adamw') for row in rows[:2]] == [False, True]
    out = capsys.readouterr().out
    assert 'attention triton: not applicable on the CPU\n' in out
    assert '| attention sdpa | - | failed: OutOfMemoryError: no room at all |' in out
    assert run('table', file, '--output', tmp_path) == 0


@pytest.mark.slow
def test_compiled_steps(tmp_path):
    file = tmp_path / 'cases.jsonl'
    cfg = tiny_config(tmp_path / 'run.yaml', 'simmim', SWIN)
    opts = ('--opts', 'TRAIN.COMPILE', 'max')
    assert train(cfg, '--batch-size', 2, '--baseline', '--rounds', 1, '--json', file, *opts) == 0
    published, ours = lines_of(file)
    assert ours['options']['compiled'] and ours['compile_seconds'] > published['compile_seconds']
    assert ours['loss'] == pytest.approx(published['loss'], rel=1e-3)


def test_the_model_is_in_the_files_name():
    assert model_name(str(NANO)) == 'swin_nano'
    assert model_name('somewhere/mine.yaml') == 'mine'


# Mistakes


@pytest.mark.parametrize('flags', [
    ('--batch-size', '0'), ('--batch-size', '8', '-1'), ('--batch-size', 'x'), ('--steps', '0'),
    ('--rounds', '0'), ('--warmup', '1'), ('--stage', 'pretraining'),
])  # fmt: skip
def test_flags_that_make_no_sense(flags, capsys):
    with pytest.raises(SystemExit) as end:
        run('train', '--cfg', NANO, '--batch-size', 2, *flags)
    assert end.value.code == 2
    assert f'error: argument {flags[0]}: invalid' in capsys.readouterr().err


@pytest.mark.parametrize('arguments, problem', [
    (('--cfg', 'none.yaml'), 'none.yaml'),
    (('--opts', 'MODEL.ATTENTION', 'fast'), 'MODEL.ATTENTION'),
    (('--opts', 'MODEL.SWIN.WINDOW_SIZE', '5'), 'MODEL.SWIN.WINDOW_SIZE'),
    (('--opts', 'TRAIN.OPTIMIZER.NAME', 'sgd', '--levers'), 'TRAIN.OPTIMIZER.NAME'),
    (('--json', 'none/cases.jsonl'), '--json: there is no folder for none/cases.jsonl'),
])  # fmt: skip
def test_what_cannot_be_measured_is_refused_before_anything_is(arguments, problem, capsys):
    assert train(NANO, '--batch-size', 2, *arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith('error: ') and problem in captured.err
    assert captured.err.count('\n') == 1 and captured.out == ''


def test_a_bad_file_is_named_by_line(tmp_path, capsys):
    (tmp_path / 'a.jsonl').write_text('{}\n')
    assert run('table', tmp_path / 'a.jsonl', '--output', tmp_path / 'out') == 2
    error = capsys.readouterr().err
    assert error.startswith(f'error: {tmp_path / "a.jsonl"}, line 1: ') and error.count('\n') == 1
    assert not (tmp_path / 'out').exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path, capsys):
    (tmp_path / 'file').touch()
    (tmp_path / 'a.jsonl').write_text('')
    row = {'device': 'x', 'device_type': 'cpu', 'model': 'm', 'stage': 's', 'image_size_px': 1}
    row |= {'batch_size': 1, 'case': 'c', 'options': {}, 'images_per_second': [1.0], 'ratio': None}
    row |= {'peak_memory_bytes': None, 'compile_seconds': None, 'cached_compile_seconds': None}
    row |= {'share_of_matrix_product': None, 'kernel_shares': {}, 'error': ''}
    (tmp_path / 'a.jsonl').write_text(json.dumps(row))
    assert run('table', tmp_path / 'a.jsonl', '--output', tmp_path / 'file') == 2
    assert 'cannot be written' in capsys.readouterr().err
