"""tools/gpu_check.py: parts that fail stop no other, and a CPU runs it at tiny sizes."""

import json
from pathlib import Path

import pytest

from system.device import cpu_computes_bfloat16
from tools import gpu_check

ROW = {'case': 'ours', 'images_per_second': 3.0, 'lowest': 2.0, 'highest': 4.0, 'ratio': 1.5}
ROW |= {'ratio_interval': [1.0, 2.0], 'first_turn_seconds': 60.0, 'peak_gib': 1.0}


def test_a_part_that_fails_is_named_and_stops_no_other(monkeypatch, tmp_path, capsys) -> None:
    def run_part(name: str, root: object, seconds: float) -> dict:
        assert seconds > 0
        if name.startswith('c: swin'):
            return {'error': 'Traceback\nout of memory', 'seconds': 1.0}
        return {'rows': [ROW], 'seconds': 2.0}

    monkeypatch.setattr(gpu_check, 'run_part', run_part)
    args = gpu_check.parse_args(['--output', str(tmp_path), '--only', 'c', 'd'])
    assert gpu_check.main(args) == 1
    parts = json.loads((tmp_path / 'gpu_check.json').read_text())['parts']
    assert {name[0] for name in parts} == {'c', 'd'}
    assert parts['c: vit']['rows'] == parts['d: finetune']['rows'] == [ROW]
    table = (tmp_path / 'gpu_check.md').read_text()
    assert '| c: swin | FAILED: out of memory | 1 |' in table
    assert '| c: vit | ours | 3 (2 to 4) | 1.50 (1.00 to 2.00) | 1.0 | 60 |' in table


def test_a_later_call_keeps_the_parts_of_an_earlier_one(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setattr(gpu_check, 'run_part', lambda *_: {'rows': [ROW], 'seconds': 2.0})
    for letter, commit, kept in (('d', 'abc', 'd'), ('a', 'abc', 'ad'), ('a', 'def', 'a')):
        monkeypatch.setattr(gpu_check, 'code_version', lambda commit=commit: commit)
        args = gpu_check.parse_args(['--output', str(tmp_path), '--only', letter])
        assert gpu_check.main(args) == 0
        parts = json.loads((tmp_path / 'gpu_check.json').read_text())['parts']
        assert {name[0] for name in parts} == {*kept}


@pytest.mark.parametrize('calls', [['abfghij', 'cde'], ['abcdefghij']])
def test_every_call_keeps_within_its_time(monkeypatch, tmp_path, calls) -> None:
    """With parts one after the other that take all the time that they may take."""
    monkeypatch.setattr(gpu_check, 'AT_ONCE', 1)
    monkeypatch.setattr(gpu_check, 'SECONDS_PER_PART', gpu_check.SECONDS_ON_GPU)
    now = [0.0]
    monkeypatch.setattr(gpu_check.time, 'monotonic', lambda: now[0])

    def run_part(name: str, root: Path, seconds: float) -> dict:
        taken = min(max(seconds, 0.0), 400.0)
        now[0] += taken
        return {'seconds': taken}

    monkeypatch.setattr(gpu_check, 'run_part', run_part)
    for letters in calls:
        now[0] = 0.0
        names = [name for name in gpu_check.parts() if name[0] in letters]
        found = dict(gpu_check.run_parts(names, tmp_path, minutes=9))
        assert {*found} == {*names}
        ends = [part['begun'] + part['seconds'] for part in found.values() if part['seconds']]
        assert max(ends) <= 9 * 60
        if len(calls) > 1:  # each measurement has the time it needs
            alone = [found[name]['seconds'] for name in names if name[0] in gpu_check.ALONE]
            assert min(alone) >= gpu_check.SECONDS_ON_GPU


@pytest.mark.slow
def test_a_part_that_takes_too_long_is_stopped(tmp_path) -> None:
    assert '5 s' in gpu_check.run_part('f: waiting for data', tmp_path, 5)['error']


@pytest.mark.slow
def test_parts_run_without_a_gpu_and_say_so(tmp_path) -> None:
    """Measurements of each stage; the other parts are tests that run here by themselves."""
    only = ['c: swin', 'd', 'e']
    args = gpu_check.parse_args(['--output', str(tmp_path), '--only', *only, '--minutes', '30'])
    assert gpu_check.main(args) == 0
    parts = json.loads((tmp_path / 'gpu_check.json').read_text())['parts']
    assert len(parts) == 4
    for part in parts.values():
        assert [row['case'] for row in part['rows']] == ['published', 'ours']
        assert all(row['images_per_second'] > 0 for row in part['rows'])
        assert part['kernels']['ours'][0][1:] > [0, 0]
        milliseconds = sum(time for time, _ in part['kernel_classes']['ours'].values())
        microseconds = sum(time for _, time, _ in part['kernels']['ours'])
        assert milliseconds == pytest.approx(microseconds / 1000)
        assert part['values']['compiled'] is False
        assert ('autocast' in part['values']['precision']) == cpu_computes_bfloat16()
    assert 'no GPU' in (tmp_path / 'gpu_check.md').read_text()
