#!/usr/bin/env bash
# Learning rate: 2.5e-3 (simmim_pretrain__swin_base__img192_window6__reference.yaml, simmim_finetune__swin_base__img192_window6__rates_2.5e-3.yaml). bash scripts/ablations/rates_2.5e-3.sh DATA OUTPUT [GPUS]. Written by scripts/make_ablations.py.
exec bash "$(dirname "$0")/run_row.sh" scripts/ablations/rates.yaml 2.5e-3 "$@"
