"""scripts/gpu_check.py: parts that fail stop no other, and a CPU runs it at tiny sizes."""

import json

import pytest

from scripts import gpu_check

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
    assert parts['c: vit 128']['rows'] == parts['d: finetune 128']['rows'] == [ROW]
    table = (tmp_path / 'gpu_check.md').read_text()
    assert '| c: swin 128 | FAILED: out of memory | 1 |' in table
    assert '| c: vit 128 | ours | 3 (2 to 4) | 1.50 (1.00 to 2.00) | 1.0 | 60 |' in table


@pytest.mark.slow
def test_a_part_that_takes_too_long_is_stopped(tmp_path) -> None:
    assert '5 s' in gpu_check.run_part('f: waiting for data', tmp_path, 5)['error']


def test_on_a_gpu_every_measured_step_is_compiled_before(monkeypatch) -> None:
    monkeypatch.setattr(gpu_check, 'ON_GPU', True)
    together, alone = gpu_check.parts()
    compiled = [name.replace('compile ', '') for name in together if 'compile' in name]
    assert {*compiled, 'f: waiting for data'} == {*alone}
    assert compiled[:2] == ['c: swin 512', 'c: vit 512']


@pytest.mark.slow
def test_parts_run_without_a_gpu_and_say_so(tmp_path) -> None:
    """Measurements of each stage; the other parts are tests that run here by themselves."""
    args = gpu_check.parse_args(
        ['--output', str(tmp_path), '--only', 'c: swin', 'd', 'e', '--minutes', '30']
    )
    assert gpu_check.main(args) == 0
    parts = json.loads((tmp_path / 'gpu_check.json').read_text())['parts']
    assert len(parts) == 4
    for part in parts.values():
        assert [row['case'] for row in part['rows']][:2] == ['published', 'ours']
        assert all(row['images_per_second'] > 0 for row in part['rows'])
        assert 0 < part['kernels']['ours'][0][1] < 1
    assert parts['c: swin 128']['rows'][2]['case'] == 'transformers'
    assert 'no GPU' in (tmp_path / 'gpu_check.md').read_text()
