#!/usr/bin/env bash
# Compare pre-training methods: run a sweep of methods, then write its table and figures to OUTPUT.
#   bash scripts/compare_methods.sh DATA OUTPUT [SWEEP]
# SWEEP: sweep file (default scripts/comparison/methods.yaml). SEEDS=3: number of seeds.
# PRETRAIN_OPTS, FINETUNE_OPTS: other options as 'KEY VALUE ...'. The same command resumes.
set -euo pipefail
. "$(dirname "$0")/help.sh"
data=$(realpath "${1:?usage: bash scripts/compare_methods.sh DATA OUTPUT [SWEEP]}")
output=${2:?usage: bash scripts/compare_methods.sh DATA OUTPUT [SWEEP]}
case $output in /*) ;; *) output=$PWD/$output ;; esac
sweep=$(realpath "${3:-$(dirname "$0")/comparison/methods.yaml}")
cd "$(dirname "$0")/.."
if [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ]; then export PYTHON=$PWD/.venv/bin/python; fi
shared=(--sweep "$sweep" --output "$output" --seeds "${SEEDS:-3}")

"${PYTHON:-python}" scripts/ablate.py run "${shared[@]}" --data-path "$data" \
    --pretrain-opts "${PRETRAIN_OPTS:-}" --finetune-opts "${FINETUNE_OPTS:-}"
"${PYTHON:-python}" scripts/ablate.py table "${shared[@]}"
"${PYTHON:-python}" scripts/ablate.py plot "${shared[@]}"
