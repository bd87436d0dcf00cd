"""Bytes of a checkpoint of each run: `python -m sweeps.checkpoint_size`, for sweeps.budget.

It is a process of its own, because it needs torch, which scripts/ablate.py does not import.
Standard input is a JSON list of [stage, text of config.yaml], and the output a JSON list of bytes.
"""

import json
import sys

import torch

from config import Config, config_from_text
from models.build import build_model
from models.contrastive import build_contrastive


def checkpoint_bytes(stage: str, config: Config) -> int:
    """Bytes of the model and of the optimizer's moments, two of AdamW and one of SGD."""
    if stage == 'contrastive':
        model = build_contrastive(config, total_steps=1)
    else:
        model = build_model(config, is_pretrain=stage == 'simmim')
    moments = 2 if config.TRAIN.OPTIMIZER.NAME.lower() == 'adamw' else 1
    trained = sum(weight.nbytes for weight in model.parameters() if weight.requires_grad)
    return sum(tensor.nbytes for tensor in model.state_dict().values()) + moments * trained


if __name__ == '__main__':
    with torch.no_grad():
        runs = [(stage, config_from_text(text)) for stage, text in json.load(sys.stdin)]
        sys.stdout.write(json.dumps([checkpoint_bytes(*run) for run in runs]))
