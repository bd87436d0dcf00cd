"""A model in several processes: who exchanges which gradients, and in what type."""

import warnings

import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

import distributed
from config import Config
from models.batch_norm import share_batch_norm


def wrap(config: Config, model: nn.Module, device: torch.device) -> nn.Module:
    """The model, in several processes with DistributedDataParallel around it.

    Gradients are exchanged in buckets while the backward pass goes on, and are views of these
    buckets then: not kept twice. With TRAIN.GRADIENT_EXCHANGE 'bfloat16' they are rounded to it,
    divided and summed in it. Batch norms take their statistics over all processes.
    """
    if distributed.world_size() == 1:
        return model
    share_batch_norm(model)
    with warnings.catch_warnings():  # of the argument's new name, which older PyTorch lacks
        warnings.filterwarnings('ignore', message='`broadcast_buffers` is deprecated')
        model = DistributedDataParallel(
            model,
            device_ids=[device.index] if device.type == 'cuda' else None,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )
    if config.TRAIN.GRADIENT_EXCHANGE == 'bfloat16':
        model.register_comm_hook(None, bf16_compress_hook)
    return model
