#!/usr/bin/env bash
# Labelled share: scratch_low_rate_1 (simmim_finetune__swin_nano__img64_window4__nano_pretraining_scratch_low_rate_1.yaml). bash scripts/ablations/nano/nano_pretraining_scratch_low_rate_1.sh DATA OUTPUT [GPUS]. Written by scripts/make_ablations.py.
exec bash "$(dirname "$0")/../run_row.sh" scripts/ablations/nano/pretraining.yaml scratch_low_rate_1 "$@"
