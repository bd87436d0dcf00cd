#!/usr/bin/env bash
# Target resolution (px per side): 12 instead of 192. It fine-tunes and scores as the reference, and pre-trains with
# simmim_pretrain__swin_base__img192_window6__target_size_12.yaml.
#   bash scripts/ablations/target_size_12.sh DATA OUTPUT full [GPUS]
exec bash "$(dirname "$0")/run_row.sh" target_size 12 "$@"
