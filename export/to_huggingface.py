"""A folder that transformers loads without this project: weights, config, processor, card."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from data.transforms import FILTERS, statistics
from export.card import enlarged_short_side, model_card
from export.files import check_output, new_folder
from export.naming import State, vit_to_huggingface, with_prefix
from export.packages import load_package
from export.source import Source, entries, input_size, interpolation, largest_difference
from models.convert_huggingface import PROCESSOR, to_huggingface

TARGET = 'huggingface'
INDEX = '.relative_position_index'
CONFIG, WEIGHTS, CARD = 'config.json', 'model.safetensors', 'README.md'
FILES = (CONFIG, WEIGHTS, PROCESSOR, CARD)
# What `Source.gives` is called there.
OUTPUTS = {'logits': 'logits', 'tokens': 'last_hidden_state', 'features': 'pooler_output'}


def write_huggingface(source: Source, path: Path, *, overwrite: bool) -> float:
    """Write the folder and check what transformers makes of it; returns the greatest difference.

    Raises:
        ValueError: if the path is taken, transformers is not installed, or none of its models
            computes the same.
    """
    check_output(path, overwrite=overwrite, own=FILES)
    load_package('transformers', TARGET)
    config, state = (swin if source.config.MODEL.TYPE == 'swin' else beit)(source)
    config |= label_config(source)
    processor = processor_config(source)
    with new_folder(path) as folder:
        (folder / WEIGHTS).write_bytes(save(state, {'format': 'pt'}))
        _write_json(folder / CONFIG, config)
        if processor:
            _write_json(folder / PROCESSOR, processor)
        (folder / CARD).write_text(model_card(source, has_processor=bool(processor)), 'utf-8')
        return largest_difference(source, HuggingFaceOutputs(folder, source.gives), TARGET)


class HuggingFaceOutputs:
    """Images [B, C, S, S] to what `Source.gives` says, by the model in a folder.

    Raises:
        ValueError: if transformers finds entries that it lacks or does not know.
    """

    def __init__(self, folder: Path, gives: str) -> None:
        self.output = OUTPUTS[gives]
        transformers = load_package('transformers', TARGET)
        transformers.utils.logging.disable_progress_bar()
        names = json.loads((folder / CONFIG).read_text('utf-8'))['architectures']
        self.model, found = getattr(transformers, names[0]).from_pretrained(
            folder, output_loading_info=True
        )
        wrong = {name: sorted(keys) for name, keys in found.items() if keys}
        if wrong:
            raise ValueError(f'--to {TARGET}: {names[0]} of transformers does not fit: {wrong}')
        self.model.eval()

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values=images)[self.output]


def swin(source: Source) -> tuple[dict[str, Any], State]:
    """Config and entries of a Swin.

    Raises:
        ValueError: if a stage is smaller than the window, which transformers' tables do not allow.
    """
    options, state = source.config.MODEL.SWIN, entries(source, TARGET)
    indices = {k: v for k, v in source.encoder.state_dict().items() if k.endswith(INDEX)}
    state = to_huggingface(state | indices)  # transformers before 5 reads them
    smallest = source.encoder.grid_size // 2 ** (len(options.DEPTHS) - 1)
    if smallest < options.WINDOW_SIZE:
        raise ValueError(
            f'--to {TARGET}: MODEL.SWIN.WINDOW_SIZE must be at most {smallest}, the side of the '
            f'last stage in tokens, got {options.WINDOW_SIZE}: the Swin there has tables of whole '
            'windows in every stage'
        )
    config = _common(source, options) | {
        'model_type': 'swin',
        'architectures': ['SwinForImageClassification' if source.outputs else 'SwinModel'],
        'embed_dim': options.EMBED_DIM,
        'depths': list(options.DEPTHS),
        'num_heads': list(options.NUM_HEADS),
        'window_size': options.WINDOW_SIZE,
        'mlp_ratio': options.MLP_RATIO,
        'qkv_bias': options.QKV_BIAS,
        'use_absolute_embeddings': False,
        'layer_norm_eps': source.encoder.norm.eps,
        'encoder_stride': source.encoder.stride,
    }
    return config, with_prefix(state, 'swin.') if source.outputs else state


def beit(source: Source) -> tuple[dict[str, Any], State]:
    """Config and entries of a ViT: BEiT's, which has all of its parts and takes all of its ways."""
    options, state = source.config.MODEL.VIT, entries(source, TARGET)
    config = _common(source, options) | {
        'model_type': 'beit',
        'architectures': ['BeitForImageClassification' if source.outputs else 'BeitModel'],
        'hidden_size': options.EMBED_DIM,
        'num_hidden_layers': options.DEPTH,
        'num_attention_heads': options.NUM_HEADS,
        'intermediate_size': len(state['blocks.0.mlp.fc1.weight']),
        'layer_norm_eps': source.encoder.blocks[0].norm1.eps,
        'layer_scale_init_value': 1.0 if 'blocks.0.gamma_1' in state else 0.0,  # 0: none
        'use_absolute_position_embeddings': 'pos_embed' in state,
        'use_relative_position_bias': options.USE_RPB,
        'use_shared_relative_position_bias': options.USE_SHARED_RPB,
        'use_mean_pooling': 'norm.weight' not in state,
        'use_mask_token': False,
    }
    renamed = vit_to_huggingface(state)
    return config, with_prefix(renamed, 'beit.') if source.outputs else renamed


def label_config(source: Source) -> dict[str, Any]:
    """Labels of a classifier, each on its own.

    Raises:
        ValueError: if labels have three outputs, of which transformers has no loss or pipeline.
    """
    if not source.outputs:
        return {}
    if len(source.outputs) != source.config.MODEL.NUM_CLASSES:
        raise ValueError(
            f"--to {TARGET}: the policy 'multiclass' gives three outputs a label, and a classifier "
            'there has one; --to onnx, --to timm and --to torch_export give the three'
        )
    return {
        'problem_type': 'multi_label_classification',
        'id2label': {str(k): label for k, label in enumerate(source.outputs)},
        'label2id': {label: k for k, label in enumerate(source.outputs)},
    }


def processor_config(source: Source) -> dict[str, Any]:
    """What makes transformers prepare an image as evaluation does; empty where it cannot.

    CLIP's is the processor that resizes the short side or both, crops, and takes grey images.
    """
    config = source.config
    if config.DATA.PREPROCESS != 'none' or config.DATA.NORMALIZE != 'dataset':
        return {}
    channels, size, _ = input_size(config)
    square = {'height': size, 'width': size}
    mean, std = statistics(config)
    return {
        'image_processor_type': 'CLIPImageProcessor',
        'do_resize': True,
        'size': {'shortest_edge': enlarged_short_side(size)} if config.TEST.CROP else square,
        'resample': int(FILTERS[interpolation(source)][0]),
        'do_center_crop': config.TEST.CROP,
        'crop_size': square,
        'do_rescale': True,
        'rescale_factor': 1 / 255,
        'do_normalize': True,
        'image_mean': list(mean),
        'image_std': list(std),
        'do_convert_rgb': channels == 3,
    }


def _common(source: Source, options: Any) -> dict[str, Any]:
    return {
        'image_size': source.config.DATA.IMG_SIZE,
        'patch_size': options.PATCH_SIZE,
        'num_channels': options.IN_CHANS,
        'hidden_act': 'gelu',
        'hidden_dropout_prob': 0.0,
        'attention_probs_dropout_prob': 0.0,
        'drop_path_rate': source.config.MODEL.DROP_PATH_RATE,
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + '\n', 'utf-8')
