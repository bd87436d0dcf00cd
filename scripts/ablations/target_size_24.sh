#!/usr/bin/env bash
# Target resolution (px per side): 24 instead of 192. It fine-tunes and scores as the reference, and pre-trains with
# simmim_pretrain__swin_base__img192_window6__target_size_24.yaml.
#   bash scripts/ablations/target_size_24.sh DATA OUTPUT full [GPUS]
exec bash "$(dirname "$0")/run_row.sh" target_size 24 "$@"
