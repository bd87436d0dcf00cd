"""The patches of an image that a ViT keeps: FINETUNE.MASK_RATIO and EVAL.MASK_RATIO drop others."""

import math
from typing import Any

import torch


def num_patches(config: Any) -> int:
    """Return the number of patches of an image."""
    return (config.DATA.IMG_SIZE // config.MODEL.VIT.PATCH_SIZE) ** 2


def draw_kept(images: torch.Tensor, num_patches: int, mask_ratio: float) -> torch.Tensor:
    """Draw the positions [B, V] of the patches that each image keeps, at random."""
    noise = torch.rand(len(images), num_patches, device=images.device)
    return noise.argsort(dim=1)[:, : num_kept(num_patches, mask_ratio)]


def num_kept(num_patches: int, mask_ratio: float) -> int:
    """Return the number of patches that `draw_kept` keeps. The masked number is rounded up."""
    return num_patches - math.ceil(num_patches * mask_ratio)
