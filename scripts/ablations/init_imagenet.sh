#!/usr/bin/env bash
# Initialisation: imagenet (simmim_finetune__swin_base__img192_window6__reference.yaml). IMAGENET_WEIGHTS=CKPT bash scripts/ablations/init_imagenet.sh DATA OUTPUT [GPUS]. Written by scripts/make_ablations.py.
exec bash "$(dirname "$0")/run_row.sh" scripts/ablations/init.yaml imagenet "$@"
