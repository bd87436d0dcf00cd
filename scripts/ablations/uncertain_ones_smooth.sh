#!/usr/bin/env bash
# Uncertain labels: ones_smooth (simmim_pretrain__swin_base__img192_window6__reference.yaml, simmim_finetune__swin_base__img192_window6__uncertain_ones_smooth.yaml). bash scripts/ablations/uncertain_ones_smooth.sh DATA OUTPUT [GPUS]. Written by scripts/make_ablations.py.
exec bash "$(dirname "$0")/run_row.sh" scripts/ablations/uncertain.yaml ones_smooth "$@"
