"""The remaining time of a run, and what the log shows of it."""

import pytest
from one_epoch import five_batches, one_epoch

from engine import clock as module
from engine.clock import Clock


@pytest.fixture
def wait(monkeypatch):
    """Lets time pass."""
    now = [0.0]
    monkeypatch.setattr(module.time, 'perf_counter', lambda: now[0])

    def wait(seconds: float) -> None:
        now[0] += seconds

    return wait


def train(clock: Clock, wait, batches: list[float]) -> None:
    clock.start_epoch()
    for seconds in batches:
        wait(seconds)
        clock.batch_done()


def test_the_rest_is_estimated_from_batches_and_validations_of_this_process(wait) -> None:
    clock = Clock()
    train(clock, wait, [91.0])  # compiles
    assert clock.seconds_left(2, 0) == 2 * 91
    train(clock, wait, [2.0, 4.0])
    with clock.between_epochs():
        wait(30)  # with what only the first validation computes
    with clock.between_epochs():
        wait(10)
    assert clock.seconds_left(batches=100, epochs=5) == 100 * 3 + 5 * 10


def test_a_validation_counts_for_the_epochs_between_validations(wait) -> None:
    clock = Clock(epochs_between_validations=4)
    for seconds in (20, 0, 0, 0, 20):
        with clock.between_epochs():
            wait(seconds)
        assert clock.seconds_left(batches=0, epochs=8) == 2 * 20


def test_an_epoch_counts_its_seconds_before_a_resume(tmp_path) -> None:
    """And its speed is that of all its batches, of DATA.BATCH_SIZE images."""
    figures, state, _ = one_epoch(tmp_path, five_batches(), seconds=1000.0, DATA__BATCH_SIZE=4)
    assert 1000 < figures['seconds'] < 1100
    assert figures['images_per_second'] * figures['seconds'] == pytest.approx(5 * 4)
