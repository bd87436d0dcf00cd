"""A .safetensors file under timm's names; its header says how timm builds the model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save
from timm.models.beit import Beit
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from export.files import check_output, new_file
from export.naming import State, swin_to_timm, vit_to_timm_beit, vit_to_timm_vit
from export.source import Source, entries, facts, largest_difference

TARGET = 'timm'
HEADER = 'simmim'  # key of the facts in the file's metadata
CLASSES = {kind.__name__: kind for kind in (SwinTransformer, Beit, VisionTransformer)}


def write_timm(source: Source, path: Path, *, overwrite: bool) -> float:
    """Write the file and check what timm makes of it; returns the greatest difference.

    Raises:
        ValueError: if the path is taken, or timm has no model that computes the same.
    """
    if path.suffix != '.safetensors':
        raise ValueError(f'--to timm: --output must end in .safetensors, got {path}')
    check_output(path, overwrite=overwrite)
    state = entries(source, TARGET)
    build = swin_arguments if source.config.MODEL.TYPE == 'swin' else vit_arguments
    name, arguments, state = build(source, state)
    about = facts(source) | {'class': name, 'arguments': arguments}
    with new_file(path) as file:
        file.write_bytes(save(state, {'format': 'pt', HEADER: json.dumps(about)}))
        model, _ = load_timm(file)
        return largest_difference(source, timm_outputs(model, source.gives), TARGET)


def load_timm(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The model in such a file, and the facts in its header."""
    with safe_open(path, 'pt') as file:
        about = json.loads(file.metadata()[HEADER])
    model = CLASSES[about['class']](**about['arguments'])
    model.load_state_dict(load_file(path))
    return model.eval(), about


def timm_outputs(model: nn.Module, gives: str) -> Callable[[Tensor], Tensor]:
    """Images to what `Source.gives` says; without a head timm's call gives pooled features."""
    return model.forward_features if gives == 'tokens' else model


def swin_arguments(source: Source, state: State) -> tuple[str, dict[str, Any], State]:
    """Class, arguments and entries of a Swin in timm."""
    options = source.config.MODEL.SWIN
    arguments = _common(source, options) | {
        'depths': list(options.DEPTHS),
        'num_heads': list(options.NUM_HEADS),
        'window_size': options.WINDOW_SIZE,
    }
    return 'SwinTransformer', arguments, swin_to_timm(state)


def vit_arguments(source: Source, state: State) -> tuple[str, dict[str, Any], State]:
    """Class, arguments and entries of a ViT in timm: Beit where it has relative positions."""
    options = source.config.MODEL.VIT
    arguments = _common(source, options) | {
        'depth': options.DEPTH,
        'num_heads': options.NUM_HEADS,
        'init_values': 1.0 if 'blocks.0.gamma_1' in state else 0.0,  # 0: none
        'global_pool': 'token' if 'norm.weight' in state else 'avg',
    }
    has_positions = 'pos_embed' in state
    if options.USE_RPB or options.USE_SHARED_RPB:
        arguments |= {
            'use_abs_pos_emb': has_positions,
            'use_rel_pos_bias': options.USE_RPB,
            'use_shared_rel_pos_bias': options.USE_SHARED_RPB,
        }
        return 'Beit', arguments, vit_to_timm_beit(state)
    arguments |= {'pos_embed': 'learn' if has_positions else 'none'}
    return 'VisionTransformer', arguments, vit_to_timm_vit(state)


def _common(source: Source, options: Any) -> dict[str, Any]:
    return {
        'img_size': source.config.DATA.IMG_SIZE,
        'patch_size': options.PATCH_SIZE,
        'in_chans': options.IN_CHANS,
        'num_classes': len(source.outputs),
        'embed_dim': options.EMBED_DIM,
        'mlp_ratio': options.MLP_RATIO,
        'qkv_bias': options.QKV_BIAS,
    }
