"""Lines of JSON come back as they were or are refused by line; tables and bars have every case."""

import json

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from PIL import Image

from speed.cases import Case
from speed.kernels import ALL_GROUPS
from speed.measure import Measured
from speed.plot import OURS, PUBLISHED, plot_rates
from speed.results import COLUMNS, as_rows, format_tables, panels, read_rows, save_rows

FACTS = {
    'device': 'NVIDIA H200', 'device_type': 'cuda', 'model': 'swin_base', 'stage': 'pretrain',
    'image_size_px': 192, 'batch_size': 128,
}  # fmt: skip


def measured() -> list[Measured]:
    """Made-up figures."""
    options = {'code': 'published', 'precision': 'float16', 'attention': 'published'}
    published = Measured(
        Case('published'), [900.0, 1000.0, 800.0], [4.0, 1.0, 2.0], 14 * 2**30, 0.5,
        {'GEMM': 0.5, 'attention': 0.25}, options | {'waits': True}, torch.float16,
    )  # fmt: skip
    options = {'code': 'ours', 'precision': 'bfloat16', 'attention': 'auto', 'compiled': True}
    ours = Measured(
        Case('ours'), [2000.0, 1800.0, 1900.0], [91.0, 14.0, 12.0], 12 * 2**30, 0.5,
        {'GEMM': 1.0}, options | {'fused_adamw': True}, torch.bfloat16,
    )  # fmt: skip
    failed = Measured(Case('compile | max'), error='OutOfMemoryError: CUDA out of memory.')
    return [published, ours, failed]


def rows(**facts: object) -> list[dict]:
    rates = {torch.float16: 600e12, torch.bfloat16: 760e12}
    return as_rows(measured(), FACTS | facts, flops_per_image=68e9, matrix_rates=rates)


def test_figures_of_a_case():
    published, ours, failed = rows()
    assert published['ratio'] == 1 and ours['ratio'] == 1900 / 900  # of medians
    assert ours['images_per_second'] == [2000.0, 1800.0, 1900.0]
    assert ours['compile_seconds'] == 91 and ours['cached_compile_seconds'] == 13
    assert ours['share_of_matrix_product'] == pytest.approx(1900 * 68e9 / 760e12)
    assert published['share_of_matrix_product'] == pytest.approx(900 * 68e9 / 600e12)
    assert ours['peak_memory_bytes'] == 12 * 2**30
    assert all(row['batch_size'] == 128 and row['flops_per_image'] == 68e9 for row in rows())
    assert failed['error'] and not failed['images_per_second']
    for key in ('ratio', 'compile_seconds', 'share_of_matrix_product', 'loss'):
        assert failed[key] is None


def test_without_the_published_way_there_is_no_ratio():
    (row,) = as_rows(measured()[1:2], FACTS, flops_per_image=1, matrix_rates={torch.bfloat16: 1})
    assert row['ratio'] is None


# Files


def test_lines_come_back_as_they_were(tmp_path):
    first, second = tmp_path / 'a.jsonl', tmp_path / 'b.jsonl'
    save_rows(rows(), first)
    save_rows(rows(batch_size=256), second)
    assert read_rows([first, second]) == rows() + rows(batch_size=256)
    assert len(first.read_text().splitlines()) == 3
    assert [path.name for path in tmp_path.iterdir() if path.suffix == '.tmp'] == []


@pytest.mark.parametrize('key, value', [
    ('case', 3), ('batch_size', None), ('batch_size', True), ('batch_size', 1.5), ('ratio', '1'),
    ('images_per_second', 'many'), ('images_per_second', ['1']), ('images_per_second', []),
    ('images_per_second', [-1.0]), ('images_per_second', [float('nan')]), ('error', None),
    ('kernel_shares', {'GEMM': 'all'}), ('kernel_shares', []), ('options', None),
    ('ratio', float('inf')), ('image_size_px', 10**400), ('peak_memory_bytes', 1.5),
])  # fmt: skip
def test_a_line_that_is_no_case_is_named(key, value, tmp_path):
    file, broken = tmp_path / 'a.jsonl', rows()[0] | {key: value}
    file.write_text(f'{json.dumps(rows()[0])}\n{json.dumps(broken)}\n')
    with pytest.raises(ValueError, match=r'a\.jsonl, line 2: no measured case, '):
        read_rows([file])


@pytest.mark.parametrize('key', ['case', 'images_per_second', 'device', 'error'])
def test_a_key_that_is_not_there_is_named(key, tmp_path):
    file, broken = tmp_path / 'a.jsonl', rows()[0]
    del broken[key]
    file.write_text(json.dumps(broken))
    with pytest.raises(ValueError, match=rf"a\.jsonl, line 1: no measured case, '{key}'"):
        read_rows([file])


@pytest.mark.parametrize('text, problem', [
    ('{"case": ', 'line 1: no JSON'), ('[]', 'line 1: no measured case'), ('', 'holds no measured'),
    ('\n', 'line 1: no JSON'), ('[' * 100_000, 'line 1: no JSON'),
    ('\udcff', 'cannot be read'),
])  # fmt: skip
def test_a_file_that_is_no_json_is_named(text, problem, tmp_path):
    file = tmp_path / 'a.jsonl'
    file.write_bytes(text.encode(errors='surrogateescape'))
    with pytest.raises(ValueError, match=rf'a\.jsonl.*{problem}'):
        read_rows([file])


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r'none\.jsonl cannot be read'):
        read_rows([tmp_path / 'none.jsonl'])


# Tables


def cells(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith('|')]
    return [[cell.strip() for cell in line.strip('|').split(' | ')] for line in lines]


def test_the_table_has_every_case():
    text = format_tables(rows())
    head, rule, *lines = cells(text)
    assert head == list(COLUMNS) and len(rule) == len(head)
    assert text.startswith('**swin_base, pre-training, 192 px, batch 128; NVIDIA H200**\n')
    assert lines[0] == [
        'published', 'float16, attention published, waits for each step', '900', '800 to 1,000',
        '1.00', '14.0', '4.0 / 1.5', '10%', '25%', '50%', *['-'] * 5,
    ]  # fmt: skip
    assert lines[1] == [
        'ours', 'bfloat16, attention auto, compiled, fused AdamW', '1,900', '1,800 to 2,000',
        '2.11', '12.0', '91.0 / 13.0', '17%', '-', '100%', *['-'] * 5,
    ]  # fmt: skip
    assert lines[2][:3] == [
        r'compile \| max', '-', 'failed: OutOfMemoryError: CUDA out of memory.'
    ]  # fmt: skip
    assert {len(line) for line in lines} == {len(COLUMNS)} == {8 + len(ALL_GROUPS)}


def test_slow_cases_keep_their_digits():
    row = rows()[0] | {'images_per_second': [1.234, 12.34], 'device_type': 'cpu'}
    text = format_tables([row | {'peak_memory_bytes': None, 'cached_compile_seconds': None}])
    line = cells(text)[2]
    assert line[2:4] == ['6.79', '1.23 to 12.3'] and line[5:7] == ['not measured', '4.0 / -']
    assert 'NVIDIA H200, a CPU: not measured on a GPU' in text


def test_what_compares_is_in_one_table():
    both = rows() + rows(batch_size=256) + rows(device='Tesla T4') + rows()
    assert [len(panel) for panel in panels(both)] == [6, 3, 3]
    assert format_tables(both).count('**') == 3 * 2


# The figure


def test_bars_are_the_medians_with_their_spread(tmp_path, monkeypatch):
    bars, spreads, notes, titles = [], [], [], []
    barh, errorbar, annotate = Axes.barh, Axes.errorbar, Axes.annotate
    set_title = Axes.set_title

    def spy_barh(axis, y, width, **style):
        bars.append((y, width, style['color']))
        return barh(axis, y, width, **style)

    def spy_errorbar(axis, x, y, xerr, **style):
        spreads.append((x - xerr[0][0], x + xerr[1][0]))
        return errorbar(axis, x, y, xerr=xerr, **style)

    def spy_annotate(axis, text, *args, **style):
        notes.append(text)
        return annotate(axis, text, *args, **style)

    monkeypatch.setattr(Axes, 'barh', spy_barh)
    monkeypatch.setattr(Axes, 'errorbar', spy_errorbar)
    monkeypatch.setattr(Axes, 'annotate', spy_annotate)
    monkeypatch.setattr(
        Axes, 'set_title', lambda axis, text: titles.append(text) or set_title(axis, text)
    )
    plot_rates(tmp_path / 'speed.png', rows() + rows(model='$vit$'))
    assert bars == [(0, 900, PUBLISHED), (1, 1900, OURS)] * 2
    assert spreads == [(800, 1000), (1800, 2000)] * 2
    assert notes[:2] == ['900 (1.00 × published)', '1,900 (2.11 × published)']
    assert notes[2].startswith('failed: OutOfMemoryError')
    assert titles[0] == 'swin_base, pre-training, 192 px, batch 128' and len(titles) == 2
    with Image.open(tmp_path / 'speed.png') as image:
        assert image.width > 1000 and np.asarray(image.convert('RGB')).std() > 10
    assert [path.name for path in tmp_path.iterdir()] == ['speed.png']


def test_with_several_devices_each_panel_names_its_own(tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(Axes, 'set_title', lambda axis, text: titles.append(text))
    plot_rates(tmp_path / 'speed.png', rows() + rows(device='Tesla T4'))
    assert [title.splitlines()[1] for title in titles] == ['NVIDIA H200', 'Tesla T4']
