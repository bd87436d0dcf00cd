#!/usr/bin/env bash
# Reconstruction head: inverse_swin_b instead of linear. It fine-tunes and scores as the reference, and pre-trains with
# simmim_pretrain__swin_base__img192_window6__head_inverse_swin_b.yaml.
#   bash scripts/ablations/head_inverse_swin_b.sh DATA OUTPUT full [GPUS]
exec bash "$(dirname "$0")/run_row.sh" head inverse_swin_b "$@"
