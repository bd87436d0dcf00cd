#!/usr/bin/env bash
# Target: patch_normalised instead of pixels. It fine-tunes and scores as the reference, and pre-trains with
# simmim_pretrain__swin_base__img192_window6__target_patch_normalised.yaml.
#   bash scripts/ablations/target_patch_normalised.sh DATA OUTPUT full|nano [GPUS]
exec bash "$(dirname "$0")/run_row.sh" target patch_normalised "$@"
