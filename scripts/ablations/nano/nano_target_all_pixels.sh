#!/usr/bin/env bash
# Target: all_pixels (simmim_pretrain__swin_nano__img64_window4__nano_target_all_pixels.yaml, simmim_finetune__swin_nano__img64_window4__nano_reference.yaml). bash scripts/ablations/nano/nano_target_all_pixels.sh DATA OUTPUT [GPUS]. Written by scripts/make_ablations.py.
exec bash "$(dirname "$0")/../run_row.sh" scripts/ablations/nano/target.yaml all_pixels "$@"
