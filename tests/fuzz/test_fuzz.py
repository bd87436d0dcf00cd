"""Mutated files through the public entries: taken or refused in a line, and nothing else.

SIMMIM_FUZZ=5000 makes so many of them.  They are always the same: the n-th of a target is made of
(seed, target, n).
"""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzz_worker import Watcher

NUMBERS = {False: 100, True: 500}  # in the fast suite, in all
TARGETS = (
    *('tables', 'mimic', 'predictions', 'label_files', 'demographics', 'configs', 'opts'),
    *('pictures', 'dicom', 'resume', 'pretrained', 'stores', 'metrics'),
)
SHOWN = 5


@pytest.fixture(scope='module')
def watcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watcher]:
    watcher = Watcher(tmp_path_factory.mktemp('fuzz'))
    yield watcher
    watcher.close()


def test_every_target_is_here() -> None:
    source = (Path(__file__).parent / 'fuzz_targets.py').read_text()
    assert all(f'def attack_{target}(' in source for target in TARGETS)
    assert source.count('\ndef attack_') == len(TARGETS)


@pytest.mark.slow
@pytest.mark.parametrize('target', TARGETS)
def test_mutated_files_are_taken_or_refused(
    target: str,
    watcher: Watcher,
    counts: dict[str, Counter],
    request: pytest.FixtureRequest,
) -> None:
    number = int(os.environ.get('SIMMIM_FUZZ', NUMBERS[request.config.getoption('--all')]))
    count, failures = counts.setdefault(target, Counter()), []
    for index in range(-(-number // len(TARGETS))):
        outcome, detail = watcher.run(target, index)
        count[outcome] += 1
        if outcome not in ('ok', 'refused'):
            failures.append(f'{target} {index}: {outcome}: {detail}')
    assert not failures, f'{len(failures)} such as\n' + '\n'.join(failures[:SHOWN])
    assert count['refused'], 'a fuzzer that spoils nothing'
