#!/usr/bin/env bash
# Views trained on: all_in_both (simmim_pretrain__swin_base__img192_window6__views_all_in_pretraining.yaml, simmim_finetune__swin_base__img192_window6__views_all_in_both.yaml). bash scripts/ablations/views_all_in_both.sh DATA OUTPUT [GPUS]. Written by scripts/make_ablations.py.
exec bash "$(dirname "$0")/run_row.sh" scripts/ablations/views.yaml all_in_both "$@"
