#!/usr/bin/env bash
# Reconstruction head: inverse_swin_t (simmim_pretrain__swin_base__img192_window6__head_inverse_swin_t.yaml, simmim_finetune__swin_base__img192_window6__reference.yaml). bash scripts/ablations/head_inverse_swin_t.sh DATA OUTPUT [GPUS]. Written by scripts/make_ablations.py.
exec bash "$(dirname "$0")/run_row.sh" scripts/ablations/head.yaml inverse_swin_t "$@"
