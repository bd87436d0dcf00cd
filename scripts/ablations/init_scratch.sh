#!/usr/bin/env bash
# Initialisation: scratch (simmim_finetune__swin_base__img192_window6__reference.yaml). bash scripts/ablations/init_scratch.sh DATA OUTPUT [GPUS]. Written by scripts/make_ablations.py.
exec bash "$(dirname "$0")/run_row.sh" scripts/ablations/init.yaml scratch "$@"
