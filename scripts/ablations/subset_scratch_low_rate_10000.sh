#!/usr/bin/env bash
# Labelled images: scratch_low_rate_10000 (simmim_finetune__swin_base__img192_window6__subset_scratch_low_rate_10000.yaml). bash scripts/ablations/subset_scratch_low_rate_10000.sh DATA OUTPUT [GPUS]. Written by scripts/make_ablations.py.
exec bash "$(dirname "$0")/run_row.sh" scripts/ablations/subset.yaml scratch_low_rate_10000 "$@"
