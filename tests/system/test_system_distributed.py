"""Long computations of rank 0, for which the other processes wait."""

from collections.abc import Iterator

import pytest
import torch.distributed as dist

from system import distributed


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[list]:
    """Starts a group of one process, and collects the options of the groups made later."""
    made, new_group = [], dist.new_group
    monkeypatch.setattr(
        dist, 'new_group', lambda **options: made.append(options) or new_group(**options)
    )
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    yield made
    dist.destroy_process_group()


def test_others_wait_without_a_limit_and_on_the_cpu(alone: list) -> None:
    """They join the group before the computation, because joining has a limit."""
    assert distributed.run_on_main(lambda: [*alone]) == alone
    ((backend, timeout),) = [(each['backend'], each['timeout']) for each in alone]
    assert backend == 'gloo' and timeout.days > 30
    with pytest.raises(ZeroDivisionError):
        distributed.run_on_main(lambda: 1 / 0)
