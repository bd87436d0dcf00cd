"""The process group of an environment, and computations of rank 0, for which the others wait."""

from collections.abc import Iterator

import pytest
import torch
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


@pytest.mark.parametrize(
    ('left', 'missing'),
    [
        ({'WORLD_SIZE': '1'}, 'no RANK, MASTER_ADDR, MASTER_PORT: unset WORLD_SIZE, or start with'),
        ({'RANK': '0'}, 'no WORLD_SIZE, MASTER_ADDR, MASTER_PORT: unset RANK, or start with'),
        ({'RANK': '1', 'WORLD_SIZE': '4', 'MASTER_ADDR': 'a'}, 'no MASTER_PORT: unset WORLD_SIZE'),
        ({'RANK': '0', 'MASTER_ADDR': 'a', 'MASTER_PORT': '9'}, 'no WORLD_SIZE: unset RANK'),
        ({'MASTER_ADDR': 'a', 'MASTER_PORT': '9'}, ''),  # says nothing of this process
        ({'WORLD_SIZE': ''}, ''),
        ({}, ''),
    ],
)
def test_a_part_of_a_group_is_refused_by_name(left, missing, monkeypatch) -> None:
    for name in distributed.GROUP:
        monkeypatch.delenv(name, raising=False)
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    if missing:
        with pytest.raises(ValueError, match=missing):
            distributed.init_process_group(torch.device('cpu'), 1)
    else:
        distributed.init_process_group(torch.device('cpu'), 1)
    assert not dist.is_initialized()
