#!/usr/bin/env bash
# Run one row of an ablation including its pre-training. The other scripts of this folder call this file.
#   bash scripts/ablations/run_row.sh SWEEP ROW DATA OUTPUT full|nano [GPUS]
# full: Swin-B at 192 px. nano: a Swin of 2.5 M parameters at 64 px for a CPU, in the sweeps that have the row there.
# SEED=1: another seed. PRETRAIN_OPTS, FINETUNE_OPTS: other options as 'KEY VALUE ...'.
# GPUS must divide the images of an optimizer step. The same command resumes after a stop.
set -euo pipefail
usage='usage: bash SCRIPT DATA OUTPUT full|nano [GPUS]'
data=$(realpath "${3:?$usage}")
output=$(realpath -m "${4:?$usage}")
case ${5:-} in
    full) sweep=scripts/ablations/$1.yaml ;;
    nano) sweep=scripts/ablations/nano/$1.yaml ;;
    *) echo "$usage" >&2 && exit 2 ;;
esac
cd "$(dirname "$0")/../.."
if [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ]; then export PYTHON=$PWD/.venv/bin/python; fi
exec "${PYTHON:-python}" scripts/ablate.py run --sweep "$sweep" --row "$2" --data-path "$data" \
    --output "$output" --seed "${SEED:-0}" --processes "${6:-1}" \
    --pretrain-opts "${PRETRAIN_OPTS:-}" --finetune-opts "${FINETUNE_OPTS:-}"
