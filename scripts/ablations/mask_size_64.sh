#!/usr/bin/env bash
# Masked patch size (px): 64 (simmim_pretrain__swin_base__img192_window6__mask_size_64.yaml, simmim_finetune__swin_base__img192_window6__reference.yaml). bash scripts/ablations/mask_size_64.sh DATA OUTPUT [GPUS]. Written by scripts/make_ablations.py.
exec bash "$(dirname "$0")/run_row.sh" scripts/ablations/mask_size.yaml 64 "$@"
