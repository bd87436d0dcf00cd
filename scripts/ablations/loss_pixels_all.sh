#!/usr/bin/env bash
# Pixels that the loss counts: all (simmim_pretrain__swin_base__img192_window6__loss_pixels_all.yaml, simmim_finetune__swin_base__img192_window6__reference.yaml). bash scripts/ablations/loss_pixels_all.sh DATA OUTPUT [GPUS]. Written by scripts/make_ablations.py.
exec bash "$(dirname "$0")/run_row.sh" scripts/ablations/loss_pixels.yaml all "$@"
