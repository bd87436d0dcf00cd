#!/usr/bin/env bash
# Loss: smooth_l1 (simmim_pretrain__swin_nano__img64_window4__nano_loss_smooth_l1.yaml, simmim_finetune__swin_nano__img64_window4__nano_reference.yaml). bash scripts/ablations/nano/nano_loss_smooth_l1.sh DATA OUTPUT [GPUS]. Written by scripts/make_ablations.py.
exec bash "$(dirname "$0")/../run_row.sh" scripts/ablations/nano/loss.yaml smooth_l1 "$@"
