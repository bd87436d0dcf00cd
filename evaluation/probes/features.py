"""Pooled features and tokens of frozen encoders, for probes and for other programs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from config import Config, check_config, default_config, selected_part
from data.tables.sources import source_configs
from models.build import build_model
from models.encoder import ENCODERS, Encoder
from models.weights.convert import shared_keys
from models.weights.pretrained import fit_pretrained
from utils import check_fit, drop_buffers, name_damaged, read_checkpoint, trained_config


@torch.no_grad()
def batch_features(
    model: nn.Module, images: torch.Tensor, device: torch.device, *, tokens: bool = False
) -> np.ndarray:
    """Compute the pooled features [B, F] of a batch, or its tokens [B, L, F], in float32."""
    view = images.to(device, non_blocking=True)
    compute = model.forward_tokens if tokens else model.forward_features
    return compute(view).float().cpu().numpy()


def encoder_config(
    checkpoint: str | Path,
    cfg: str | None = None,
    opts: Sequence[str] = (),
    *,
    tokens: bool = False,
) -> Config:
    """Return the options of the encoder of a checkpoint and of its evaluation transform.

    The head is the one with which a probe uses the encoder: for tokens the attention head, before
    which a ViT normalises its tokens, otherwise the linear head on pooled features. Options of
    masked pre-training do not say how an encoder is used: the whole image, and the mean of a ViT's
    patch tokens, because no loss of SimMIM trains the class token.

    Args:
        checkpoint: Checkpoint of this project or of another one.
        cfg: YAML file of options; None for the options that the checkpoint contains.
        opts: Pairs of key and value that change these options.
        tokens: Whether the tokens are wanted, and not the pooled features.

    Raises:
        ValueError: If there are no options, or if they are invalid.
    """
    if cfg:
        config = default_config()
        config.merge_from_file(cfg)
    else:
        config = trained_config(checkpoint)
        if config is None:
            raise ValueError(
                f'{checkpoint} contains no options of this project: name its encoder with --cfg'
            )
        with name_damaged(checkpoint):
            check_config(config)
        if config.STAGE == 'simmim':  # as in configs/base/chexpert_finetune.yaml and for its ViTs
            config.TEST.CROP, config.MODEL.VIT.USE_MEAN_POOLING = False, True
    config.merge_from_list(list(opts))
    check_config(config)
    if tokens and ENCODERS[config.MODEL.TYPE].forward_tokens is Encoder.forward_tokens:
        raise ValueError(
            f'MODEL.TYPE {config.MODEL.TYPE} has no tokens, which --tokens and a dense probe read'
        )
    config.MODEL.HEAD = 'attention' if tokens else 'linear'
    return config


def trained_views(config: Config) -> str:
    """Return the views that the encoder of a run has seen; 'all' if its data do not state them."""
    configs = source_configs(config).values()
    has_views = all(selected_part(source, 'DATA.DATASET').labelled for source in configs)
    return config.DATA.VIEWS if has_views else 'all'


def load_encoder(
    config: Config, path: str | Path, device: torch.device, *, is_own: bool
) -> tuple[nn.Module, list[str]]:
    """Build an encoder without a head, and load the weights of a checkpoint as a probe does.

    The shapes are compared on the meta device, so that the options of a downloaded or damaged
    checkpoint cannot allocate a huge model.

    Args:
        config: Result of `encoder_config`.
        path: Checkpoint.
        device: Where the encoder computes.
        is_own: Whether the options are exactly those in the checkpoint, so that all shapes agree.
            Otherwise position tables are resized.

    Returns:
        The encoder in evaluation mode, and remarks about its weights and its features.

    Raises:
        ValueError: If the weights do not fit the encoder.
    """
    config.PRETRAINED = str(path)
    checkpoint = read_checkpoint(path)
    with name_damaged(path), torch.device('meta'):
        without_memory = build_model(config, is_pretrain=False, num_outputs=0)
    try:
        if is_own:
            built, saved = (
                {name: entries[key] for name, key in shared_keys(entries).items()}
                for entries in (drop_buffers(without_memory.state_dict()), checkpoint['model'])
            )
            check_fit(saved, built, left=saved, new=built)  # the shapes of what both have
        state, report = fit_pretrained(config, checkpoint, without_memory)
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from error
    model = build_model(config, is_pretrain=False, num_outputs=0)
    model.load_state_dict(state, strict=False)
    vit, remarks = config.MODEL.VIT, list(report.remarks)
    if config.MODEL.TYPE == 'vit' and not vit.USE_MEAN_POOLING and config.MODEL.HEAD == 'linear':
        remarks.append('the features are the class token (MODEL.VIT.USE_MEAN_POOLING False)')
    return model.to(device).eval(), remarks
