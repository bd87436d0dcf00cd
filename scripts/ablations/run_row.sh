#!/usr/bin/env bash
# Run one row of an ablation including its pre-training. The other scripts of this folder call this file.
#   bash scripts/ablations/run_row.sh SWEEP ROW DATA OUTPUT full|nano [GPUS]
# full: Swin-B at 192 px. nano: a Swin of 2.5 M parameters at 64 px for a CPU; rows that only fit 192 px lack it.
# SEED=1: another seed. PRETRAIN_OPTS, FINETUNE_OPTS: other options as 'KEY VALUE ...'.
# GPUS must divide the images of an optimizer step. The same command resumes after a stop.
set -euo pipefail
rows=$(dirname "$0")/nano/$1.yaml
scales=full
if grep -qs "^  $2:" "$rows"; then scales='full|nano'; fi
usage="usage: bash SCRIPT DATA OUTPUT $scales [GPUS]"
case "|$scales|" in
    *"|${5:-}|"*) ;;
    *) echo "$usage" >&2 && exit 2 ;;
esac
data=$(realpath "${3:?$usage}")
output=$(realpath -m "${4:?$usage}")
sweep=scripts/ablations/$1.yaml
if [ "$5" = nano ]; then sweep=scripts/ablations/nano/$1.yaml; fi
cd "$(dirname "$0")/../.."
if [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ]; then export PYTHON=$PWD/.venv/bin/python; fi
exec "${PYTHON:-python}" scripts/ablate.py run --sweep "$sweep" --row "$2" --data-path "$data" \
    --output "$output" --seed "${SEED:-0}" --processes "${6:-1}" \
    --pretrain-opts "${PRETRAIN_OPTS:-}" --finetune-opts "${FINETUNE_OPTS:-}"
