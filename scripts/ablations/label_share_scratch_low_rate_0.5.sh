#!/usr/bin/env bash
# Labelled share: scratch_low_rate_0.5 (simmim_finetune__swin_base__img192_window6__label_share_scratch_low_rate_0.5.yaml). bash scripts/ablations/label_share_scratch_low_rate_0.5.sh DATA OUTPUT [GPUS]. Written by scripts/make_ablations.py.
exec bash "$(dirname "$0")/run_row.sh" scripts/ablations/label_share.yaml scratch_low_rate_0.5 "$@"
