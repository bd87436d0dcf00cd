#!/usr/bin/env bash
# Reconstruction head: mlp (simmim_pretrain__swin_base__img192_window6__head_mlp.yaml, simmim_finetune__swin_base__img192_window6__reference.yaml). bash scripts/ablations/head_mlp.sh DATA OUTPUT [GPUS]. Written by scripts/make_ablations.py.
exec bash "$(dirname "$0")/run_row.sh" scripts/ablations/head.yaml mlp "$@"
