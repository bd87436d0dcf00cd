#!/usr/bin/env bash
# Views: frontal and lateral images in pre-training and in fine-tuning, instead of frontal ones alone. It is
# scored on frontal images, as the reference.
#   bash scripts/ablations/views_all_in_both.sh DATA OUTPUT full|nano [GPUS]
exec bash "$(dirname "$0")/run_row.sh" views all_in_both "$@"
