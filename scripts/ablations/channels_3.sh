#!/usr/bin/env bash
# Input channels: 3 (simmim_pretrain__swin_base__img192_window6__channels_3.yaml, simmim_finetune__swin_base__img192_window6__channels_3.yaml). bash scripts/ablations/channels_3.sh DATA OUTPUT [GPUS]. Written by scripts/make_ablations.py.
exec bash "$(dirname "$0")/run_row.sh" scripts/ablations/channels.yaml 3 "$@"
