#!/usr/bin/env bash
# Loss: l2 (simmim_pretrain__swin_base__img192_window6__loss_l2.yaml, simmim_finetune__swin_base__img192_window6__reference.yaml). bash scripts/ablations/loss_l2.sh DATA OUTPUT [GPUS]. Written by scripts/make_ablations.py.
exec bash "$(dirname "$0")/run_row.sh" scripts/ablations/loss.yaml l2 "$@"
