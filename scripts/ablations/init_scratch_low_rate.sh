#!/usr/bin/env bash
# Initialisation: scratch_low_rate (simmim_finetune__swin_base__img192_window6__init_scratch_low_rate.yaml). bash scripts/ablations/init_scratch_low_rate.sh DATA OUTPUT [GPUS]. Written by scripts/make_ablations.py.
exec bash "$(dirname "$0")/run_row.sh" scripts/ablations/init.yaml scratch_low_rate "$@"
