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
from utils import checkpoint_bytes


def bytes_of(stage: str, config: Config) -> int:
    if stage == 'contrastive':
        return checkpoint_bytes(config, build_contrastive(config, total_steps=1))
    return checkpoint_bytes(config, build_model(config, is_pretrain=stage == 'simmim'))


if __name__ == '__main__':
    with torch.no_grad():
        runs = [(stage, config_from_text(text)) for stage, text in json.load(sys.stdin)]
        sys.stdout.write(json.dumps([bytes_of(*run) for run in runs]))
