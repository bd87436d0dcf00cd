#!/usr/bin/env bash
# Masked share: 0.75 (simmim_pretrain__swin_nano__img64_window4__nano_mask_ratio_0.75.yaml, simmim_finetune__swin_nano__img64_window4__nano_reference.yaml). bash scripts/ablations/nano/nano_mask_ratio_0.75.sh DATA OUTPUT [GPUS]. Written by scripts/make_ablations.py.
exec bash "$(dirname "$0")/../run_row.sh" scripts/ablations/nano/mask_ratio.yaml 0.75 "$@"
