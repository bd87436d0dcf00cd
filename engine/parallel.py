"""Training in several processes: DistributedDataParallel, and batch norm over all GPUs."""

import inspect

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from system import distributed

# Whether rank 0 sends its buffers before each forward pass; older versions have the second name.
BUFFER_OPTION = 'forward_sync_buffers'
if BUFFER_OPTION not in inspect.signature(DistributedDataParallel).parameters:
    BUFFER_OPTION = 'broadcast_buffers'
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def share_batch_norm(model: nn.Module, device: torch.device) -> nn.Module:
    """Let batch norms of several processes on GPUs use the statistics of all (SyncBatchNorm).

    Raises:
        ValueError: If processes on CPUs would train batch norm.
    """
    if distributed.world_size() == 1:
        return model
    if device.type == 'cuda':
        from timm.layers import convert_sync_batchnorm  # slow to import

        return convert_sync_batchnorm(model)
    # Each process of a CPU would normalise with statistics of its own images.
    for name, module in model.named_modules():
        # A frozen batch norm uses its saved statistics, so processes do not matter to it.
        is_trained = any(parameter.requires_grad for parameter in module.parameters())
        if isinstance(module, BATCH_NORMS) and is_trained:
            raise ValueError(
                f'{name} is batch norm ({type(module).__name__}), and the processes of a CPU '
                f'cannot share its statistics ({distributed.world_size()} processes): train in one '
                'process, or on GPUs'
            )
    return model


def wrap_parallel(model: nn.Module, device: torch.device, exchange: str = 'float32') -> nn.Module:
    """Wrap the model in DistributedDataParallel if there are several processes.

    Args:
        model: Model on its device.
        device: Device of this process.
        exchange: Type in which the gradients are exchanged (TRAIN.GRADIENT_EXCHANGE).
    """
    if distributed.world_size() == 1:
        return model
    # Buffers are equal on all ranks already: shared batch norm updates them everywhere.
    model = DistributedDataParallel(
        model,
        device_ids=[device.index] if device.type == 'cuda' else None,
        gradient_as_bucket_view=True,
        **{BUFFER_OPTION: False},
    )
    if exchange == 'bfloat16':
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

        # A function of our own, because PyTorch refuses the name of its own without NCCL.
        model.register_comm_hook(None, lambda _, bucket: bf16_compress_hook(None, bucket))
    # Only convolutions have weights with four axes. Gradients of 1x1 convolutions may have the
    # strides of channels_last, and PyTorch warns of this.
    for parameter in model.parameters():
        if parameter.ndim == 4 and parameter.requires_grad:
            parameter.register_hook(lambda gradient: gradient.flatten().view(gradient.shape))
    return model
