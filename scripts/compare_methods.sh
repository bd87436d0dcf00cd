#!/usr/bin/env bash
# Compare methods of pre-training: a sweep with equal images seen, then the same with equal time of
# pre-training, each with its table and its figures in OUTPUT.
#   bash scripts/compare_methods.sh DATA OUTPUT [SWEEP]
# SWEEP: by default scripts/comparison/methods.yaml. SEEDS=3: how many seeds.
# PRETRAIN_OPTS, FINETUNE_OPTS: further options as 'KEY VALUE ...'.
# Started again after a stop, it goes on.
set -euo pipefail
data=$(realpath "${1:?usage: bash scripts/compare_methods.sh DATA OUTPUT [SWEEP]}")
output=$(realpath -m "${2:?usage: bash scripts/compare_methods.sh DATA OUTPUT [SWEEP]}")
sweep=$(realpath "${3:-$(dirname "$0")/comparison/methods.yaml}")
seeds=${SEEDS:-3}
cd "$(dirname "$0")/.."
if [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ]; then export PYTHON=$PWD/.venv/bin/python; fi
python=${PYTHON:-python}

compare() { # sweep file, options of pre-training
    local finetune=(${FINETUNE_OPTS:+--finetune-opts $FINETUNE_OPTS})
    "$python" scripts/ablate.py run --sweep "$1" --output "$output" --seeds "$seeds" \
        --data-path "$data" ${2:+--pretrain-opts $2} "${finetune[@]}"
    for command in table plot; do
        "$python" scripts/ablate.py $command --sweep "$1" --output "$output" --seeds "$seeds"
    done
}

compare "$sweep" "${PRETRAIN_OPTS:-}"
"$python" scripts/equal_time.py --sweep "$sweep" --output "$output" --seeds "$seeds"
# The sweep of equal time says how many epochs there are.
others=''
set -- ${PRETRAIN_OPTS:-}
while [ $# -gt 0 ]; do
    case $1 in TRAIN.EPOCHS | TRAIN.WARMUP_EPOCHS) ;; *) others+=" $1 $2" ;; esac
    shift 2
done
compare "$output/$(basename "$sweep" .yaml)_equal_time.yaml" "${others# }"
