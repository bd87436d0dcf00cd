#!/usr/bin/env bash
# Masked share: 0.8 instead of 0.6. It fine-tunes and scores as the reference, and pre-trains with
# simmim_pretrain__swin_base__img192_window6__mask_ratio_0.8.yaml.
#   bash scripts/ablations/mask_ratio_0.8.sh DATA OUTPUT full|nano [GPUS]
exec bash "$(dirname "$0")/run_row.sh" mask_ratio 0.8 "$@"
