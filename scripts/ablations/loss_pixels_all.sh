#!/usr/bin/env bash
# Pixels that the loss counts: all instead of masked. It fine-tunes and scores as the reference, and pre-trains with
# simmim_pretrain__swin_base__img192_window6__loss_pixels_all.yaml.
#   bash scripts/ablations/loss_pixels_all.sh DATA OUTPUT full|nano [GPUS]
exec bash "$(dirname "$0")/run_row.sh" loss_pixels all "$@"
