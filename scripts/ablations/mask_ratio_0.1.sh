#!/usr/bin/env bash
# Masked share: 0.1 (simmim_pretrain__swin_base__img192_window6__mask_ratio_0.1.yaml, simmim_finetune__swin_base__img192_window6__reference.yaml). bash scripts/ablations/mask_ratio_0.1.sh DATA OUTPUT [GPUS]. Written by scripts/make_ablations.py.
exec bash "$(dirname "$0")/run_row.sh" scripts/ablations/mask_ratio.yaml 0.1 "$@"
