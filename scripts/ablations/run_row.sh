#!/usr/bin/env bash
# Run one row of a sweep including its pre-training. The other scripts of this folder call this file.
#   bash scripts/ablations/run_row.sh SWEEP ROW DATA OUTPUT [GPUS]
# SEED=1: another seed. PRETRAIN_OPTS, FINETUNE_OPTS: other options as 'KEY VALUE ...'.
# GPUS must divide the images of an optimizer step. The same command resumes after a stop.
set -euo pipefail
usage='usage: bash SCRIPT DATA OUTPUT [GPUS]'
data=$(realpath "${3:?$usage}")
output=${4:?$usage}
case $output in /*) ;; *) output=$PWD/$output ;; esac
for weights in $(compgen -v | grep '_WEIGHTS$'); do # paths of checkpoints, or addresses
    case ${!weights} in /* | *://*) ;; *) export "$weights=$PWD/${!weights}" ;; esac
done
cd "$(dirname "$0")/../.."
if [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ]; then export PYTHON=$PWD/.venv/bin/python; fi
exec "${PYTHON:-python}" scripts/ablate.py run --sweep "$1" --row "$2" --data-path "$data" \
    --output "$output" --seed "${SEED:-0}" --processes "${5:-1}" \
    --pretrain-opts "${PRETRAIN_OPTS:-}" --finetune-opts "${FINETUNE_OPTS:-}"
