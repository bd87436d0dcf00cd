#!/usr/bin/env bash
# Reference (simmim_pretrain__swin_base__img192_window6__reference.yaml, simmim_finetune__swin_base__img192_window6__reference.yaml). bash scripts/ablations/reference.sh DATA OUTPUT [GPUS]. Written by scripts/make_ablations.py.
exec bash "$(dirname "$0")/run_row.sh" scripts/ablations/channels.yaml 1 "$@"
