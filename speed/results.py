"""Measured cases as lines of JSON, and tables of them."""

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from data.store_files import replace_file
from speed.cases import BASELINE
from speed.kernels import ALL_GROUPS
from speed.measure import Measured

Row = dict[str, Any]

NUMBER = int | float
HUGE = 1e300  # no figure is; of no number this is false
# What tables and figures need of a line.
FORM = {
    'device': str,
    'device_type': str,
    'model': str,
    'stage': str,
    'image_size_px': int,
    'batch_size': int,
    'case': str,
    'options': dict,
    'images_per_second': list,
    'ratio': NUMBER | None,
    'peak_memory_bytes': int | None,
    'compile_seconds': NUMBER | None,
    'cached_compile_seconds': NUMBER | None,
    'share_of_matrix_product': NUMBER | None,
    'kernel_shares': dict,
    'error': str,
}
SAME = ('device', 'model', 'stage', 'image_size_px', 'batch_size')  # in a table, and in a panel
COLUMNS = (
    'case', 'runs as', 'images/s', 'least to greatest', f'times {BASELINE}', 'memory, GiB',
    'compile, s', 'of a matrix product', *ALL_GROUPS,
)  # fmt: skip
NOTES = f"""\
Images/s: median over the rounds. Times {BASELINE}: of the published way's median in the same run.
Memory: the greatest that was allocated on the GPU. Compile: the first two steps beyond two steady
ones, less where PyTorch has code of earlier runs on disk; after the slash in later rounds. Of a
matrix product: three times the FLOPs of the forward pass, as a share of the rate of one plain
product of matrices in the same precision. Then where the time goes: products of attention that is
written out are under GEMM on a GPU, compiled code is under other on a CPU.
"""


def as_rows(
    measured: Sequence[Measured],
    facts: Row,
    *,
    flops_per_image: float,
    matrix_rates: Mapping[torch.dtype | None, float],
) -> list[Row]:
    """The figures of each case, ready for JSON.

    Args:
        measured: the cases of one model and batch size in one run.
        facts: what they have in common.
        flops_per_image: of a training step.
        matrix_rates: FLOP/s of a plain product, by type.
    """
    published = next((one.rate for one in measured if one.case.name == BASELINE), None)
    return [
        {
            **facts,
            'case': one.case.name,
            'options': one.options,
            'images_per_second': one.rates,
            'ratio': one.rate / published if one.rates and published else None,
            'peak_memory_bytes': one.peak_memory,
            'compile_seconds': _median(one.first_seconds[:1]),
            'cached_compile_seconds': _median(one.first_seconds[1:]),
            'flops_per_image': flops_per_image,
            'share_of_matrix_product': _median(
                rate * flops_per_image / matrix_rates[one.dtype] for rate in one.rates
            ),
            'kernel_shares': one.kernel_shares,
            'loss': one.loss if math.isfinite(one.loss) else None,
            'error': one.error,
        }
        for one in measured
    ]


def _median(values: Iterable[float]) -> float | None:
    values = list(values)
    return statistics.median(values) if values else None


def save_rows(rows: Sequence[Row], path: str | Path) -> None:
    """Write a line of JSON for each case; the file is there whole or not at all."""
    replace_file(Path(path), ''.join(f'{json.dumps(row)}\n' for row in rows).encode())


def read_rows(paths: Sequence[str | Path]) -> list[Row]:
    """The lines of all files.

    Raises:
        ValueError: naming file and line, if one is no measured case.
    """
    rows = []
    for path in paths:
        try:
            lines = Path(path).read_text(encoding='utf-8').splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f'{path} cannot be read: {error}') from error
        if not lines:
            raise ValueError(f'{path} holds no measured case')
        rows += [_read_row(line, f'{path}, line {i}') for i, line in enumerate(lines, start=1)]
    return rows


def _read_row(line: str, place: str) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{place}: no JSON ({error})') from error
    if not isinstance(row, dict):
        raise ValueError(f'{place}: no measured case, it holds no keys')
    for key, kind in FORM.items():
        value = row.get(key)
        if key not in row or not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f'{place}: no measured case, {key!r} is {value!r:.60}')
    rates = row['images_per_second']
    numbers = [*rates, *row['kernel_shares'].values()]
    numbers += [value for key in FORM if isinstance(value := row[key], NUMBER)]
    if not all(isinstance(number, NUMBER) and abs(number) < HUGE for number in numbers):
        raise ValueError(f'{place}: no measured case, a figure is no number')
    if not (all(rate > 0 for rate in rates) and (rates or row['error'])):
        raise ValueError(f"{place}: no measured case, 'images_per_second' is {rates!r:.60}")
    return row


def panels(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows that compare: of the same model, batch size and device; in order of appearance."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in SAME), []).append(row)
    return list(groups.values())


def title_of(row: Row) -> str:
    """What the rows of a panel have in common, but for the device."""
    stage = {'pretrain': 'pre-training', 'finetune': 'fine-tuning'}.get(row['stage'], row['stage'])
    return f'{row["model"]}, {stage}, {row["image_size_px"]} px, batch {row["batch_size"]}'


def device_of(row: Row) -> str:
    on_gpu = row['device_type'] == 'cuda'
    return row['device'] if on_gpu else f'{row["device"]}, a CPU: not measured on a GPU'


def format_tables(rows: Sequence[Row]) -> str:
    """A Markdown table for each panel, and what its columns mean."""
    parts = []
    for panel in panels(rows):
        head = f'**{_cell(title_of(panel[0]))}; {_cell(device_of(panel[0]))}**'
        lines = [COLUMNS, ('---',) * 2 + ('---:',) * (len(COLUMNS) - 2), *map(_cells, panel)]
        table = '\n'.join(f'| {" | ".join(cells)} |' for cells in lines)
        parts.append(f'{head}\n\n{table}\n')
    return '\n'.join([*parts, NOTES])


def _cells(row: Row) -> list[str]:
    """The cells of a case."""
    names = [_cell(row['case']), _cell(runs_as(row['options']))]
    if row['error']:
        failed = f'failed: {_cell(row["error"])}'
        return [*names, failed, *['-'] * (len(COLUMNS) - 3)]
    rates, memory = row['images_per_second'], row['peak_memory_bytes']
    return [
        *names,
        _rate(statistics.median(rates)),
        f'{_rate(min(rates))} to {_rate(max(rates))}',
        _shown(row['ratio'], '.2f'),
        'not measured' if memory is None else f'{memory / 2**30:.1f}',
        ' / '.join(_shown(row[f'{key}compile_seconds'], '.1f') for key in ('', 'cached_')),
        _shown(row['share_of_matrix_product'], '.0%'),
        *(_shown(row['kernel_shares'].get(group), '.0%') for group in ALL_GROUPS),
    ]


def runs_as(options: Mapping[str, Any]) -> str:
    """What really ran, in words."""
    words = [str(options.get('precision', '')), f'attention {options.get("attention")}']
    words += ['compiled'] * bool(options.get('compiled'))
    words += ['fused AdamW'] * bool(options.get('fused_adamw'))
    words += ['waits for each step'] * bool(options.get('waits'))
    return ', '.join(words) if options else '-'


def _rate(value: float) -> str:
    return f'{value:,.0f}' if value >= 100 else f'{value:.3g}'


def _shown(value: float | None, form: str) -> str:
    return '-' if value is None else format(value, form)


def _cell(text: str) -> str:
    return ' '.join(text.replace('|', r'\|').split())
