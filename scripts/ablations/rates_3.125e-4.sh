#!/usr/bin/env bash
# Learning rate: 3.125e-4 (simmim_pretrain__swin_base__img192_window6__reference.yaml, simmim_finetune__swin_base__img192_window6__rates_3.125e-4.yaml). bash scripts/ablations/rates_3.125e-4.sh DATA OUTPUT [GPUS]. Written by scripts/make_ablations.py.
exec bash "$(dirname "$0")/run_row.sh" scripts/ablations/rates.yaml 3.125e-4 "$@"
