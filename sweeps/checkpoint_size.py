"""Compute the checkpoint sizes of runs for sweeps.budget: `python -m sweeps.checkpoint_size`.

This is a separate process, because it needs torch and scripts/ablate.py does not import it. The
input is a JSON list of [stage, text of config.yaml], and the output a JSON list of bytes.
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
