#!/usr/bin/env bash
# Learning rate: 0.008 (simmim_pretrain__swin_nano__img64_window4__nano_reference.yaml, simmim_finetune__swin_nano__img64_window4__nano_rates_0.008.yaml). bash scripts/ablations/nano/nano_rates_0.008.sh DATA OUTPUT [GPUS]. Written by scripts/make_ablations.py.
exec bash "$(dirname "$0")/../run_row.sh" scripts/ablations/nano/rates.yaml 0.008 "$@"
