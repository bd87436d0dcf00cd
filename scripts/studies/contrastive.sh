#!/usr/bin/env bash
# Contrastive methods against supervised networks: docs/studies/contrastive.md. bash scripts/studies/contrastive.sh full|small|tiny [DATA|--list] [OUT]
set -euo pipefail
export TABLE_OPTS=${TABLE_OPTS:---subgroups}
. "$(dirname "$0")/run.sh" contrastive "$@"
describe --examples 4
reports
# Pseudo-labels: a teacher with 10 % of the labels, and two students, each with those of the one before it.
case $scale in tiny) confidence=0.2 ;; *) confidence=0.9 ;; esac # a tiny teacher has no better predictions
teacher=$(echo "$out"/simmim_finetune/*moco_0.1_seed0)
$python scripts/pseudo_label.py --cfg "$teacher/config.yaml" --data-path "$data" --output "$out/pseudo_labels" \
    --confidence "$confidence" --rounds 2 --processes "${PROCESSES:-1}" --opts DATA.TRAIN_FRACTION 0.1
