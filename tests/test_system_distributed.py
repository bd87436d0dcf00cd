"""Long computations of rank 0, for which the other processes wait."""

from collections.abc import Iterator

import pytest
import torch.distributed as dist
from threadpoolctl import threadpool_info, threadpool_limits

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


def test_rank_0_uses_the_threads_of_its_node(alone: list, monkeypatch) -> None:
    def threads() -> int:
        return max(pool['num_threads'] for pool in threadpool_info())

    monkeypatch.setenv('LOCAL_WORLD_SIZE', '2')
    with threadpool_limits(1):
        assert distributed.run_on_main(threads) == 2
        assert threads() == 1
