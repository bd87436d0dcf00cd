#!/usr/bin/env bash
# Mask type: square instead of random. It fine-tunes and scores as the reference, and pre-trains with
# simmim_pretrain__swin_base__img192_window6__mask_type_square.yaml.
#   bash scripts/ablations/mask_type_square.sh DATA OUTPUT full|nano [GPUS]
exec bash "$(dirname "$0")/run_row.sh" mask_type square "$@"
