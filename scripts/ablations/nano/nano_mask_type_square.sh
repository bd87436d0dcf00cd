#!/usr/bin/env bash
# Mask type: square (simmim_pretrain__swin_nano__img64_window4__nano_mask_type_square.yaml, simmim_finetune__swin_nano__img64_window4__nano_reference.yaml). bash scripts/ablations/nano/nano_mask_type_square.sh DATA OUTPUT [GPUS]. Written by scripts/make_ablations.py.
exec bash "$(dirname "$0")/../run_row.sh" scripts/ablations/nano/mask_type.yaml square "$@"
