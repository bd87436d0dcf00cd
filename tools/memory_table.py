"""Compute the GPU memory of training steps and the largest batch for cards of several sizes.

python tools/memory_table.py [--cfg CFG] [--cards 16 24 40 80] [--opts KEY VALUE]

Nothing is measured on a GPU. The fixed part is computed from the sizes of the weights, gradients
and moments of the optimizer. The rest is counted: the forward pass and loss of 2 and of 4 random
images run on the CPU in autocast to bfloat16, with plain attention, and the bytes of all tensors
that autograd keeps for the backward pass are added up, each storage once. With
TRAIN.USE_CHECKPOINT these are the inputs of the blocks, and the tensors of the one block that needs
most when it is recomputed. --check of a main script measures a real step on your card.
"""

import argparse
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.utils.checkpoint
from torch import nn
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import CHEXPERT_VALUES, Config, get_config
from engine.loop import LossFunction
from models import encoder
from optimizer import optimizer_kind
from sweeps.files import MODEL_NAMES
from system.device import autocast
from system.tool import Paragraphs, tool
from tools.benchmark import build_task, random_batch

CONFIGS = (
    'swin_tiny__chexpert_100ep/simmim_pretrain__swin_tiny__img192_window6__chexpert_100ep',
    'swin_tiny__chexpert_100ep/simmim_finetune__swin_tiny__img192_window6__chexpert_100ep',
    'swin_base__chexpert_800ep/simmim_pretrain__swin_base__img192_window6__chexpert_800ep',
    'swin_base__chexpert_800ep/simmim_finetune__swin_base__img224_window7__chexpert_800ep',
    'swin_large__800ep/simmim_pretrain__swin_large__img192_window12__800ep',
    'swin_large__800ep/simmim_finetune__swin_large__img224_window14__800ep',
    'vit_small__chexpert_100ep/simmim_pretrain__vit_small__img224__chexpert_100ep',
    'vit_small__chexpert_100ep/simmim_finetune__vit_small__img224__chexpert_100ep',
    'vit_base__chexpert_800ep/simmim_pretrain__vit_base__img224__chexpert_800ep',
    'vit_base__chexpert_800ep/simmim_finetune__vit_base__img224__chexpert_800ep',
    'vit_small__mae_100ep/simmim_pretrain__vit_small__img224__mae_100ep',
    'vit_base__mae_800ep/simmim_pretrain__vit_base__img224__mae_800ep',
    'rad_dino__chexpert_30ep/simmim_finetune__rad_dino__img224__chexpert_30ep',
    'study_contrastive/contrastive_pretrain__resnet50__img224__moco',
    'study_contrastive/contrastive_pretrain__resnet50__img224__simclr',
    'resnet50__chexpert_20ep/simmim_finetune__resnet50__img224__chexpert_20ep',
    'densenet121__chexpert_3ep/simmim_finetune__densenet121__img320__chexpert_3ep',
)
STAGES = {name: stage for stage, name in MODEL_NAMES.items()}  # by the beginning of a file name
COUNTED = 2, 4  # images; batch norm and contrastive losses need two
# The published code has a peak of 100 MiB per image for Swin-B, and the count is 87.
TEMPORARY = 1.15  # factor for tensors that exist only for a moment
USABLE = 7 / 8  # share of a card's memory that PyTorch can use


class Memory(NamedTuple):
    """Bytes of a training step."""

    parameters: int  # number of trained parameters
    fixed: float
    per_image: float

    def largest_batch(self, gib: float) -> int:
        """Return the largest batch for a card, as a multiple of 8 if it is above 8."""
        free = USABLE * gib * 2**30 - self.fixed
        batch = max(0, int(free / (TEMPORARY * self.per_image)))
        return batch - batch % 8 if batch > 8 else batch


class Kept:
    """Counts the tensors that autograd keeps, without weights and buffers of the model.

    Each entry of `storages` is one storage. It stays alive, so that no address occurs twice.
    """

    def __init__(self, model: nn.Module) -> None:
        self.own = {_address(t) for t in (*model.parameters(), *model.buffers())}
        self.storages: dict[int, torch.UntypedStorage] = {}

    def add(self, tensor: torch.Tensor) -> torch.Tensor:
        if _address(tensor) not in self.own:
            self.storages[_address(tensor)] = tensor.untyped_storage()
        return tensor.detach()  # an output that kept itself would never be freed

    def hooks(self) -> Any:
        return torch.autograd.graph.saved_tensors_hooks(self.add, lambda tensor: tensor)

    def without(self, other: 'Kept') -> int:
        """Return the bytes of the storages that `other` does not have."""
        new = self.storages.keys() - other.storages.keys()
        return sum(self.storages[address].nbytes() for address in new)


def kept_bytes(
    config: Config, model: nn.Module, batch: tuple[torch.Tensor, ...], loss_fn: LossFunction
) -> int:
    """Count the bytes that autograd keeps at the end of the forward pass of a batch.

    Blocks under gradient checkpointing keep their inputs, and the largest one is added as a whole.
    """
    kept, largest = Kept(model), 0

    def recomputed(block: Any, *inputs: Any, **_: Any) -> Any:
        nonlocal largest
        if not torch.is_grad_enabled():  # the averaged encoder of a contrastive method
            return block(*inputs)
        for tensor in filter(torch.is_tensor, inputs):
            kept.add(tensor)
        inside = Kept(model)
        with inside.hooks():  # replaces the outer hooks
            output = block(*inputs)
        largest = max(largest, inside.without(kept))
        return output

    with _replaced_checkpoint(recomputed), kept.hooks(), autocast(config, torch.device('cpu')):
        loss_fn(model, batch)
    return kept.without(Kept(nn.Identity())) + largest


@contextlib.contextmanager
def _replaced_checkpoint(function: Any) -> Iterator[None]:
    """Replace gradient checkpointing in the encoders of this project and of timm."""
    with (
        patch.object(encoder, 'checkpoint', function),
        patch.object(torch.utils.checkpoint, 'checkpoint', function),
    ):
        yield


def memory_of(config: Config, stage: str) -> Memory:
    """Compute the memory of a training step. The batch size of the config does not matter."""
    model, loss_fn = build_task(config, stage)
    model.train()
    few, many = (
        kept_bytes(config, model, _batch(config, stage, size), loss_fn) for size in COUNTED
    )
    per_image = (many - few) / (COUNTED[1] - COUNTED[0])
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    moving = (1 + optimizer_kind(config).moments) * sum(weight.nbytes for weight in trained)
    weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    fixed = weights + moving + few - COUNTED[0] * per_image  # with copies of weights in bfloat16
    return Memory(sum(weight.numel() for weight in trained), fixed, per_image)


def _with(config: Config, options: dict[str, Any]) -> Config:
    config = config.clone()
    config.defrost()
    config.merge_from_list([item for pair in options.items() for item in pair])
    return config


def _batch(config: Config, stage: str, size: int) -> tuple[torch.Tensor, ...]:
    return random_batch(_with(config, {'DATA.BATCH_SIZE': size}), stage, 'cpu')


def _address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Paragraphs)
    add = parser.add_argument
    add('--cfg', metavar='FILE', help='YAML file of a run (default: one of each encoder and stage)')
    add('--cards', nargs='+', type=float, default=[16, 24, 40, 80], metavar='GB',
        help='memory of the cards (default: 16 24 40 80)')  # fmt: skip
    add('--opts', default=[], nargs='+', action='extend', metavar='KEY VALUE', help='options')
    return parser.parse_args(arguments)


def rows_of(args: argparse.Namespace) -> Iterator[list[str]]:
    """Yield a row of the table for each file."""
    root = Path(__file__).resolve().parents[1] / 'configs'
    files = [Path(args.cfg)] if args.cfg else [root / f'{name}.yaml' for name in CONFIGS]
    for path in tqdm(files, unit='config', disable=None):
        kind, name, *_ = [*path.stem.split('__'), '']
        if kind not in STAGES:
            raise ValueError(f'--cfg {path}: the name must begin with one of {[*STAGES]}')
        stage = STAGES[kind]
        # SimMIM's own configs are for ImageNet. Labels only decide the size of the last layer.
        labels = {'DATA.DATASET': 'chexpert'} | CHEXPERT_VALUES if stage == 'finetune' else {}
        opts = [*(item for pair in labels.items() for item in pair), *args.opts]
        config = get_config(argparse.Namespace(cfg=path, opts=opts, stage=stage))
        plain = {'AMP_ON_CPU': 'always', 'MODEL.ATTENTION': 'eager'}
        found = [
            memory_of(_with(config, plain | {'TRAIN.USE_CHECKPOINT': on}), stage)
            for on in (False, True)
        ]
        methods = {'simmim': config.MODEL.PRETRAIN, 'contrastive': config.CONTRASTIVE.METHOD}
        yield [
            f'{name}, {config.DATA.IMG_SIZE} px',
            methods.get(stage, 'fine-tuning'),
            f'{found[0].parameters / 1e6:.1f}',
            f'{found[0].fixed / 2**30:.2f}',
            ' / '.join(f'{each.per_image / 2**20:.1f}' for each in found),
            *(' / '.join(f'{each.largest_batch(c):,}' for each in found) for c in args.cards),
        ]


@tool
def main(args: argparse.Namespace) -> int:
    cards = [f'{card:g} GB' for card in args.cards]
    titles = ['encoder', 'stage', 'parameters, M', 'fixed, GiB', 'MiB per image', *cards]
    print('Computed, not measured on a GPU: the largest batch without / with USE_CHECKPOINT.\n')
    print(f'| {" | ".join(titles)} |\n| {" | ".join(["---"] * 2 + ["---:"] * (len(titles) - 2))} |')
    for row in rows_of(args):
        print(f'| {" | ".join(row)} |', flush=True)
    return 0


if __name__ == '__main__':
    sys.exit(main(parse_args()))
