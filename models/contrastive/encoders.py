"""What contrastive methods take as an encoder, and how they get its features."""

import torch
from torch import nn


def bare_encoder(encoder: nn.Module) -> nn.Module:
    """The part that is trained: of a TimmClassifier timm's model, else the module itself.

    So the entries under `encoder.*` are those that the classifier has, which fine-tuning takes.

    Raises:
        ValueError: if it has a classification head, which would get no gradient.
    """
    if _has_classifier(encoder):
        raise ValueError(
            f'{type(encoder).__name__} has a classification head, which contrastive pre-training '
            'does not use: build it with num_classes=0'
        )
    return getattr(encoder, 'encoder', encoder)


def features(encoder: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Images [B, C, S, S] to [B, F]; ours pool in `forward_features`, timm's in `forward`.

    Raises:
        ValueError: if they are of another size than the encoder takes.
    """
    if not _is_of_timm(encoder):
        return encoder.forward_features(images)
    embed = getattr(encoder, 'patch_embed', None)
    if getattr(embed, 'strict_img_size', False) and images.shape[-2:] != embed.img_size:
        height, width = images.shape[-2:]
        allowed = 'x'.join(map(str, embed.img_size))
        raise ValueError(
            f'image size: got {height}x{width}, the encoder was built for {allowed} (DATA.IMG_SIZE)'
        )
    return encoder(images)


def _has_classifier(encoder: nn.Module) -> bool:
    if _is_of_timm(encoder):
        return encoder.num_classes > 0  # its `head` may be a norm and pooling alone
    return isinstance(getattr(encoder, 'head', None), nn.Linear)


def _is_of_timm(encoder: nn.Module) -> bool:
    return hasattr(encoder, 'forward_head')  # as every model of timm has, and none of ours
