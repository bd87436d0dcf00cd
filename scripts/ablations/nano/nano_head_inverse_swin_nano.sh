#!/usr/bin/env bash
# Reconstruction head: inverse_swin_nano (simmim_pretrain__swin_nano__img64_window4__nano_head_inverse_swin_nano.yaml, simmim_finetune__swin_nano__img64_window4__nano_reference.yaml). bash scripts/ablations/nano/nano_head_inverse_swin_nano.sh DATA OUTPUT [GPUS]. Written by scripts/make_ablations.py.
exec bash "$(dirname "$0")/../run_row.sh" scripts/ablations/nano/head.yaml inverse_swin_nano "$@"
