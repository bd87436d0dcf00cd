#!/usr/bin/env bash
# Reference of all ablations: it pre-trains, fine-tunes and scores with the two files *__reference.yaml of
# configs/swin_base__ablations, or of configs/swin_nano__ablations with `nano`.
#   bash scripts/ablations/reference.sh DATA OUTPUT full|nano [GPUS]
exec bash "$(dirname "$0")/run_row.sh" mask_type random "$@"
