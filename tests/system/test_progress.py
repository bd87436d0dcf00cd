"""Progress of long work, and threads."""

import io

import pytest

from system import progress
from system.progress import Progress, in_threads


def test_where_the_output_is_no_terminal_long_work_prints_lines(monkeypatch) -> None:
    monkeypatch.setattr(progress, 'LINE_SECONDS', 0)
    output = io.StringIO()
    assert [*Progress('abc', 'scores', file=output)] == [*'abc']
    *_, line, rest = output.getvalue().split('\n')
    assert line.startswith('scores: 100%')
    assert '3/3' in line and rest == ''
    assert '\r' not in output.getvalue()
    monkeypatch.setattr(progress, 'LINE_SECONDS', 60)
    assert [*Progress('abc', 'scores', file=(short := io.StringIO()))] == [*'abc']
    assert short.getvalue() == ''


def test_results_of_threads_are_in_order_and_errors_are_raised() -> None:
    assert in_threads(lambda x: 1 / x, [1, 2, 4], 'work') == [1, 0.5, 0.25]
    assert in_threads(str, [], 'work') == []
    with pytest.raises(ZeroDivisionError):
        in_threads(lambda x: 1 / x, [1, 0, 4], 'work')
