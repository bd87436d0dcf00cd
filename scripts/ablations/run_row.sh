#!/usr/bin/env bash
# Run one row of a sweep, with its pre-training: what the other scripts of this folder call.
#   bash scripts/ablations/run_row.sh SWEEP ROW DATA OUTPUT [GPUS]
# SEED=1: another seed. PRETRAIN_OPTS, FINETUNE_OPTS: further options as 'KEY VALUE ...'.
# GPUS must divide the images of an optimizer step. Run again after a stop, it resumes.
set -euo pipefail
usage='usage: bash SCRIPT DATA OUTPUT [GPUS]'
data=$(realpath "${3:?$usage}")
output=${4:?$usage}
case $output in /*) ;; *) output=$PWD/$output ;; esac
cd "$(dirname "$0")/../.."
if [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ]; then export PYTHON=$PWD/.venv/bin/python; fi
exec "${PYTHON:-python}" scripts/ablate.py run --sweep "$1" --row "$2" --data-path "$data" \
    --output "$output" --seed "${SEED:-0}" --processes "${5:-1}" \
    ${PRETRAIN_OPTS:+--pretrain-opts $PRETRAIN_OPTS} ${FINETUNE_OPTS:+--finetune-opts $FINETUNE_OPTS}
