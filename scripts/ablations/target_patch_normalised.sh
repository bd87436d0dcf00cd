#!/usr/bin/env bash
# Target: patch_normalised (simmim_pretrain__swin_base__img192_window6__target_patch_normalised.yaml, simmim_finetune__swin_base__img192_window6__reference.yaml). bash scripts/ablations/target_patch_normalised.sh DATA OUTPUT [GPUS]. Written by scripts/make_ablations.py.
exec bash "$(dirname "$0")/run_row.sh" scripts/ablations/target.yaml patch_normalised "$@"
