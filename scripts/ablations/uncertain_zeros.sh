#!/usr/bin/env bash
# Uncertain labels: zeros (simmim_pretrain__swin_base__img192_window6__reference.yaml, simmim_finetune__swin_base__img192_window6__uncertain_zeros.yaml). bash scripts/ablations/uncertain_zeros.sh DATA OUTPUT [GPUS]. Written by scripts/make_ablations.py.
exec bash "$(dirname "$0")/run_row.sh" scripts/ablations/uncertain.yaml zeros "$@"
