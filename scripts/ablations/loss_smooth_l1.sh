#!/usr/bin/env bash
# Loss: smooth_l1 instead of l1. It fine-tunes and scores as the reference, and pre-trains with
# simmim_pretrain__swin_base__img192_window6__loss_smooth_l1.yaml.
#   bash scripts/ablations/loss_smooth_l1.sh DATA OUTPUT full|nano [GPUS]
exec bash "$(dirname "$0")/run_row.sh" loss smooth_l1 "$@"
