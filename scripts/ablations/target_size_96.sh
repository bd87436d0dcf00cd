#!/usr/bin/env bash
# Target resolution (px per side): 96 (simmim_pretrain__swin_base__img192_window6__target_size_96.yaml, simmim_finetune__swin_base__img192_window6__reference.yaml). bash scripts/ablations/target_size_96.sh DATA OUTPUT [GPUS]. Written by scripts/make_ablations.py.
exec bash "$(dirname "$0")/run_row.sh" scripts/ablations/target_size.yaml 96 "$@"
