#!/usr/bin/env bash
# Reconstruction head: mlp instead of linear. It fine-tunes and scores as the reference, and pre-trains with
# simmim_pretrain__swin_base__img192_window6__head_mlp.yaml.
#   bash scripts/ablations/head_mlp.sh DATA OUTPUT full|nano [GPUS]
exec bash "$(dirname "$0")/run_row.sh" head mlp "$@"
