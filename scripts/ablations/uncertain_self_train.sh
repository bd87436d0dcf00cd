#!/usr/bin/env bash
# Uncertain labels: self_train (simmim_pretrain__swin_base__img192_window6__reference.yaml, simmim_finetune__swin_base__img192_window6__uncertain_self_train.yaml). bash scripts/ablations/uncertain_self_train.sh DATA OUTPUT [GPUS]. Written by scripts/make_ablations.py.
exec bash "$(dirname "$0")/run_row.sh" scripts/ablations/uncertain.yaml self_train "$@"
