#!/usr/bin/env bash
# Labelled images: pretrained_10000 (simmim_pretrain__swin_base__img192_window6__reference.yaml, simmim_finetune__swin_base__img192_window6__subset_pretrained_10000.yaml). bash scripts/ablations/subset_pretrained_10000.sh DATA OUTPUT [GPUS]. Written by scripts/make_ablations.py.
exec bash "$(dirname "$0")/run_row.sh" scripts/ablations/subset.yaml pretrained_10000 "$@"
