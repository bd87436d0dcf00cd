#!/usr/bin/env bash
# Loss: l2 instead of l1. It fine-tunes and scores as the reference, and pre-trains with
# simmim_pretrain__swin_base__img192_window6__loss_l2.yaml.
#   bash scripts/ablations/loss_l2.sh DATA OUTPUT full|nano [GPUS]
exec bash "$(dirname "$0")/run_row.sh" loss l2 "$@"
