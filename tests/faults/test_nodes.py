"""Two nodes, as two network namespaces: the cable between them is cut while they train."""

import sys

import pytest
from runs import Started, command_of, log_lines, started, tiny_arguments, two_nodes, wait_until

from engine.distributed import END_SECONDS

LAUNCHERS = {
    'torchrun': (
        '-m torch.distributed.run --nnodes 2 --nproc_per_node 1 --master_addr 10.77.0.1 '
        '--master_port 29500 --node_rank {}'
    ),
    'plain': '',
}


@pytest.mark.slow
@pytest.mark.parametrize('launcher', LAUNCHERS)
def test_both_nodes_end_when_the_network_between_them_is_cut(launcher, phantom, tmp_path):
    train = {'EPOCHS': 1000, 'RANK_TIMEOUT_MINUTES': 0.2}
    argv = tiny_arguments(tmp_path, phantom, train=train, PRINT_FREQ=1, SAVE_FREQ=1000)
    name = 'simmim'
    with two_nodes(name) as cut:
        commands = [
            Started(
                ['ip', 'netns', 'exec', f'{name}{node}', sys.executable,
                 *LAUNCHERS[launcher].format(node).split(), *command_of(argv)],
                tmp_path / f'console_{node}.txt',
                GLOO_SOCKET_IFNAME=f'{name}{node}', RANK=str(node), LOCAL_RANK='0', WORLD_SIZE='2',
                MASTER_ADDR='10.77.0.1', MASTER_PORT='29501',
            )
            for node in (0, 1)
        ]  # fmt: skip
        with started(commands):
            wait_until(lambda: any('[1/1000]' in x for x in log_lines(tmp_path)), 'an epoch')
            cut()
            codes = [command.wait(0.2 * 60 + END_SECONDS) for command in commands]
    assert codes == ([1, 1] if launcher == 'torchrun' else [3, 3])
    for rank in (0, 1):
        assert 'did not answer within TRAIN.RANK_TIMEOUT_MINUTES' in log_lines(tmp_path, rank)[-1]
