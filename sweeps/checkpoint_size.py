"""Compute the checkpoint sizes of runs for sweeps.budget: `python -m sweeps.checkpoint_size`.

This is a separate process, because it needs torch and scripts/ablate.py does not import it. The
input is a JSON list of [stage, text of config.yaml], and the output a JSON list of bytes.
"""

import json
import sys

import torch

from config import config_from_text
from models.build import build_model
from models.contrastive import build_contrastive
from optimizer import optimizer_kind
from utils import checkpoint_bytes

if __name__ == '__main__':
    sizes = []
    with torch.device('meta'):  # the shapes are enough
        for stage, text in json.load(sys.stdin):
            config = config_from_text(text)
            if stage == 'contrastive':
                model = build_contrastive(config, total_steps=1)
            else:
                model = build_model(config, is_pretrain=stage == 'simmim')
            sizes.append(checkpoint_bytes(model, optimizer_kind(config).moments))
    sys.stdout.write(json.dumps(sizes))
