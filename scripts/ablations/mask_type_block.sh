#!/usr/bin/env bash
# Mask type: block (simmim_pretrain__swin_base__img192_window6__mask_type_block.yaml, simmim_finetune__swin_base__img192_window6__reference.yaml). bash scripts/ablations/mask_type_block.sh DATA OUTPUT [GPUS]. Written by scripts/make_ablations.py.
exec bash "$(dirname "$0")/run_row.sh" scripts/ablations/mask_type.yaml block "$@"
