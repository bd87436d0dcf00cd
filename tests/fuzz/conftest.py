"""The table of what became of the mutated files, at the end of the report."""

from collections import Counter

import pytest
from fuzz_worker import OUTCOMES

COUNTS = pytest.StashKey[dict[str, Counter]]()


@pytest.fixture(scope='session')
def counts(pytestconfig: pytest.Config) -> dict[str, Counter]:
    """Outcomes by target."""
    return pytestconfig.stash.setdefault(COUNTS, {})


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    counts = config.stash.get(COUNTS, {})
    if not counts:
        return
    total = sum(counts.values(), Counter())
    terminalreporter.section('mutated files')
    for name, count in [('target', None), *counts.items(), ('all', total)]:
        cells = [outcome if count is None else str(count[outcome]) for outcome in OUTCOMES]
        terminalreporter.write_line(name.ljust(14) + ''.join(cell.rjust(15) for cell in cells))
