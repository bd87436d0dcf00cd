"""tools/memory_table.py: the bytes that autograd keeps, and the largest batch."""

import argparse
import gc
import weakref

import pytest
import torch
from tiny import SWIN, config_with, tiny_config
from torch import nn
from torch.utils.checkpoint import checkpoint

from tools.memory_table import Memory, kept_bytes, memory_of, parse_args, rows_of

FLOAT32 = config_with(AMP_OPT_LEVEL='O0')
BFLOAT16 = config_with(AMP_ON_CPU='always')
TOKENS = 6 * 5 * 4  # numbers in an input [6, 5, 4]


def squared(model: nn.Module, batch: tuple[torch.Tensor]) -> torch.Tensor:
    return (model(*batch) ** 2).mean()


def kept(model: nn.Module, config=FLOAT32, *, needs_gradient: bool = False) -> int:
    images = torch.randn(6, 5, 4, requires_grad=needs_gradient)
    return kept_bytes(config, model, (images,), squared)


def test_a_linear_layer_keeps_its_input_and_the_square_its_base() -> None:
    """float32: the input and the output, which the square needs. The weights are not counted."""
    assert kept(nn.Linear(4, 3)) == 4 * (TOKENS + TOKENS // 4 * 3)
    # bfloat16: the rounded input and output. The square is computed in float32.
    want = 2 * TOKENS + 4 * TOKENS // 4 * 3
    assert kept(nn.Linear(4, 3), BFLOAT16) == pytest.approx(want, abs=2 * TOKENS // 4 * 3)


def test_tensors_that_share_a_storage_count_once() -> None:
    """Two layers keep the same input."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.first(x) + self.second(x.flatten(0, 1)).unflatten(0, (6, 5))

    assert kept(Twice()) == 4 * 2 * TOKENS


class Blocks(nn.Module):
    """Blocks under gradient checkpointing, of which each keeps its input and 2 hidden tensors."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 4)) for width in widths
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False)
        return x


def test_recomputed_blocks_keep_their_inputs_and_the_largest_one_is_added() -> None:
    wide = 4 * TOKENS // 4 * 32  # the result of tanh in the widest block
    assert torch.utils.checkpoint.checkpoint is checkpoint
    # Three inputs, the output, and the inside of the widest block.
    assert kept(Blocks([8, 32, 8])) == 4 * 4 * TOKENS + wide
    assert torch.utils.checkpoint.checkpoint is checkpoint


@pytest.mark.parametrize(('stage', 'moments'), [('simmim', 2), ('finetune', 1)])
def test_memory_is_linear_in_the_images_and_less_with_recomputation(
    stage: str, moments: int, tmp_path
) -> None:
    optimizer = {'OPTIMIZER': {'NAME': 'adamw' if moments == 2 else 'sgd'}}
    cfg = tiny_config(tmp_path / 'run.yaml', stage, SWIN, TRAIN=optimizer)
    config = config_with(AMP_OPT_LEVEL='O0')
    config.merge_from_file(str(cfg))
    config.AMP_OPT_LEVEL = 'O0'
    found = memory_of(config, stage)
    config.TRAIN.USE_CHECKPOINT = True
    recomputed = memory_of(config, stage)
    assert recomputed.per_image < 0.7 * found.per_image
    assert recomputed.parameters == found.parameters
    bytes_of_weights = 4 * found.parameters
    # Weights, gradients and moments; buffers and tensors without images are a small part.
    assert found.fixed == pytest.approx((2 + moments) * bytes_of_weights, rel=0.3)


class Noting(nn.Module):
    """Tanh, which keeps its output, and a weak reference to it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output = x.tanh()
        self.noted = weakref.ref(output)
        return output


def test_no_tensor_outlives_the_count() -> None:
    """A graph that kept its own output would fill the memory, row by row."""
    tanh = Noting()
    kept(nn.Sequential(nn.Linear(4, 3), tanh))
    gc.collect()
    assert tanh.noted() is None


def test_the_largest_batch_fills_seven_eighths_of_a_card() -> None:
    """16 GiB: 14 GiB, of which 2.5 are fixed; an image needs 1.15 x 100 MiB."""
    memory = Memory(parameters=1, fixed=2.5 * 2**30, per_image=100 * 2**20)
    assert memory.largest_batch(16) == 96  # of 102
    assert memory.largest_batch(3) == 1
    assert memory.largest_batch(2) == 0


def test_a_row_has_a_column_for_each_card(tmp_path) -> None:
    cfg = tiny_config(tmp_path / 'simmim_pretrain__mine__x.yaml', 'simmim', SWIN)
    args = parse_args(['--cfg', str(cfg), '--cards', '1', '2'])
    (row,) = rows_of(args)
    assert row[:2] == ['mine, 32 px', 'simmim']
    assert len(row) == 7
    with pytest.raises(ValueError, match='--cfg'):
        next(rows_of(argparse.Namespace(**vars(args) | {'cfg': 'other.yaml'})))
