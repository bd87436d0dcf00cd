"""What a check of a run found: a line for each check, their table and the verdict."""

import logging
import math
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import distributed
from failures import EXIT_OTHER_PROCESS, explain

STATUSES = ('ok', 'warning', 'problem')  # the worse ones later
ERRORS = (ValueError, ArithmeticError, OSError, RuntimeError, MemoryError)
WIDTH = 100  # columns of the table


@dataclass(frozen=True)
class Finding:
    """One line of the table."""

    check: str
    status: str
    found: str
    advice: str = ''


class Findings:
    """The findings of this rank, in the order of the checks."""

    def __init__(self) -> None:
        self.found: list[Finding] = []

    def add(self, check: str, found: str, advice: str = '') -> None:
        """What was found; with an advice it is a warning."""
        self.found.append(Finding(check, 'warning' if advice else 'ok', found, advice))

    def problem(self, check: str, found: str, advice: str = '') -> None:
        self.found.append(Finding(check, 'problem', found, advice))

    @contextmanager
    def attempt(self, check: str, advice: str = '') -> Iterator[None]:
        """What fails inside is a problem, and the next check goes on."""
        try:
            yield
        except ERRORS as error:
            code, message = explain(error)
            if code == EXIT_OTHER_PROCESS:
                raise
            self.problem(check, message, advice)

    def log(self, logger: logging.Logger, seconds: float, *, rest: str = '') -> int:
        """Log the table over all ranks and the verdict; returns the number of problems.

        Args:
            logger: of the run.
            seconds: that the run will take.
            rest: what is not in these, in words.
        """
        findings = merge(distributed.gather(self.found))
        problems = sum(finding.status == 'problem' for finding in findings)
        plural = 's' if problems > 1 else ''
        verdict = f'not ready: {problems} problem{plural}' if problems else 'ready'
        if not problems and not math.isnan(seconds):
            verdict += f', about {duration(seconds)}{rest}'
        logger.info(f'preflight\n\n{table(findings)}\n\nverdict: {verdict}')
        return problems


def merge(by_rank: Sequence[Sequence[Finding]]) -> list[Finding]:
    """Of each check the worst that any rank found; of equals that of the lowest rank."""
    worst = {}
    for rank, findings in enumerate(by_rank):
        for finding in findings:
            held = worst.get(finding.check)
            if held is None or STATUSES.index(finding.status) > STATUSES.index(held.status):
                found = f'rank {rank}: {finding.found}' if rank else finding.found
                worst[finding.check] = replace(finding, found=found)
    return list(worst.values())


def table(findings: Sequence[Finding]) -> str:
    """A line for each finding, what to do below it; no wider than WIDTH, but for long paths."""
    width = max(len(finding.check) for finding in findings)
    lines = []
    for finding in findings:
        head = f'{finding.status:<7}  {finding.check:<{width}}  '
        margin = ' ' * len(head)
        lines += _wrapped(finding.found, head, margin)
        if finding.advice:
            lines += _wrapped(finding.advice, f'{margin}-> ', f'{margin}   ')
    return '\n'.join(lines)


def amount(num_bytes: float) -> str:
    """Bytes in words: '3.2 MB'."""
    units = [('TB', 1e12), ('GB', 1e9), ('MB', 1e6), ('kB', 1e3)]
    unit, size = next((each for each in units if num_bytes >= each[1]), units[-1])
    return f'{num_bytes / size:,.{0 if num_bytes >= 100 * size else 1}f} {unit}'


def rate(value: float) -> str:
    """A number a second: '1,165', '0.6'."""
    return f'{value:,.{0 if value >= 10 else 1}f}'


def duration(seconds: float) -> str:
    """Seconds in words: '3.2 hours', '12.0 minutes'."""
    units = [('hours', 3600), ('minutes', 60), ('seconds', 1)]
    unit, size = next((each for each in units if seconds >= each[1]), units[-1])
    return f'{seconds / size:,.1f} {unit}'


def _wrapped(text: str, first: str, others: str) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=others,
        break_long_words=False,
        break_on_hyphens=False,
    )
