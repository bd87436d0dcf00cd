#!/usr/bin/env bash
# Masked patch size (px): 8 instead of 32. It fine-tunes and scores as the reference, and pre-trains with
# simmim_pretrain__swin_base__img192_window6__mask_size_8.yaml.
#   bash scripts/ablations/mask_size_8.sh DATA OUTPUT full|nano [GPUS]
exec bash "$(dirname "$0")/run_row.sh" mask_size 8 "$@"
