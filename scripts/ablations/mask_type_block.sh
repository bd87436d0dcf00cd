#!/usr/bin/env bash
# Mask type: block instead of random. It fine-tunes and scores as the reference, and pre-trains with
# simmim_pretrain__swin_base__img192_window6__mask_type_block.yaml.
#   bash scripts/ablations/mask_type_block.sh DATA OUTPUT full|nano [GPUS]
exec bash "$(dirname "$0")/run_row.sh" mask_type block "$@"
