"""Write files of weights like those of the study of MAE and ResNet-18, small and random.

python scripts/studies/tiny_weights.py FOLDER

They have the names and the order of entries of facebook/vit-mae-base and microsoft/resnet-18 in
transformers' format, so that the study's scale `tiny` reads such files. Their values are random:
the scores mean nothing.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from models.vision_transformer import sincos_positions
from system.tool import tool

# The encoder of the scale `tiny` in mae_resnet.yaml.
WIDTH, DEPTH, HEADS, PATCH, IMAGE = 96, 4, 3, 8, 64
STAGES = (64, 128, 256, 512)  # channels of ResNet-18
MAE = {
    'model_type': 'vit_mae',
    'architectures': ['ViTMAEModel'],
    'hidden_size': WIDTH,
    'num_hidden_layers': DEPTH,
    'num_attention_heads': HEADS,
    'intermediate_size': 4 * WIDTH,
    'image_size': IMAGE,
    'patch_size': PATCH,
    'layer_norm_eps': 1e-12,
}
RESNET = {'model_type': 'resnet', 'architectures': ['ResNetModel'], 'depths': [2, 2, 2, 2]}
RESNET |= {'embedding_size': 64, 'hidden_sizes': [*STAGES], 'layer_type': 'basic'}


def mae_weights() -> dict[str, Tensor]:
    """Return a ViT with the names of transformers' ViTMAEModel."""
    state = {
        'embeddings.cls_token': 0.02 * torch.randn(1, 1, WIDTH),
        'embeddings.position_embeddings': sincos_positions(IMAGE // PATCH, WIDTH),
        'embeddings.patch_embeddings.projection.weight': 0.02 * torch.randn(WIDTH, 3, PATCH, PATCH),
        'embeddings.patch_embeddings.projection.bias': torch.zeros(WIDTH),
    }
    for layer in range(DEPTH):
        block = f'encoder.layer.{layer}'
        for name in ('query', 'key', 'value'):
            state |= linear(f'{block}.attention.attention.{name}', WIDTH, WIDTH)
        state |= linear(f'{block}.attention.output.dense', WIDTH, WIDTH)
        state |= linear(f'{block}.intermediate.dense', WIDTH, 4 * WIDTH)
        state |= linear(f'{block}.output.dense', 4 * WIDTH, WIDTH)
        state |= norm(f'{block}.layernorm_before', WIDTH) | norm(f'{block}.layernorm_after', WIDTH)
    return state | norm('layernorm', WIDTH)


def resnet_weights() -> dict[str, Tensor]:
    """Return a ResNet-18 with the names of transformers' ResNetModel."""
    state = convolution('embedder.embedder', 3, STAGES[0], 7)
    before = STAGES[0]
    for stage, width in enumerate(STAGES):
        for layer in range(2):
            block = f'encoder.stages.{stage}.layers.{layer}'
            if before != width:
                state |= convolution(f'{block}.shortcut', before, width, 1)
            state |= convolution(f'{block}.layer.0', before, width, 3)
            state |= convolution(f'{block}.layer.1', width, width, 3)
            before = width
    return state


def linear(name: str, inputs: int, outputs: int) -> dict[str, Tensor]:
    weight = 0.02 * torch.randn(outputs, inputs)
    return {f'{name}.weight': weight, f'{name}.bias': torch.zeros(outputs)}


def norm(name: str, width: int) -> dict[str, Tensor]:
    return {f'{name}.weight': torch.ones(width), f'{name}.bias': torch.zeros(width)}


def convolution(name: str, inputs: int, outputs: int, side: int) -> dict[str, Tensor]:
    """Return a convolution (He's initialisation) and the batch normalisation after it."""
    deviation = (2 / (outputs * side**2)) ** 0.5
    return {
        f'{name}.convolution.weight': deviation * torch.randn(outputs, inputs, side, side),
        **norm(f'{name}.normalization', outputs),
        f'{name}.normalization.running_mean': torch.zeros(outputs),
        f'{name}.normalization.running_var': torch.ones(outputs),
        f'{name}.normalization.num_batches_tracked': torch.tensor(0),
    }


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('folder', type=Path, metavar='FOLDER')
    return parser.parse_args()


@tool
def main(args: argparse.Namespace) -> int:
    torch.manual_seed(0)  # the same files after a stop
    for name, config, make in (('mae', MAE, mae_weights), ('resnet', RESNET, resnet_weights)):
        folder = args.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / 'config.json').write_text(json.dumps(config, indent=1) + '\n')
        file = folder / 'model.safetensors'
        save_file(make(), file, metadata={'format': 'pt'})
        print(file)
    return 0


if __name__ == '__main__':
    sys.exit(main(parse_args()))
