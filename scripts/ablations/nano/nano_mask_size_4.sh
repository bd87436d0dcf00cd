#!/usr/bin/env bash
# Masked patch size (px): 4 (simmim_pretrain__swin_nano__img64_window4__nano_mask_size_4.yaml, simmim_finetune__swin_nano__img64_window4__nano_reference.yaml). bash scripts/ablations/nano/nano_mask_size_4.sh DATA OUTPUT [GPUS]. Written by scripts/make_ablations.py.
exec bash "$(dirname "$0")/../run_row.sh" scripts/ablations/nano/mask_size.yaml 4 "$@"
