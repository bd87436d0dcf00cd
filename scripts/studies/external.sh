#!/usr/bin/env bash
# Score a finished study, or any sweep of scripts/ablate.py run, on a second hospital. Not for clinical use.
#   bash scripts/studies/external.sh OUT DATA2 [OUT2]
# OUT: output folder of the study. DATA2: folder or packed store of the other data set.
# OUT2: folder of predictions and tables (default OUT/external). Run again after a stop, it resumes.
# DATASET=nih: data set in DATA2 (default chexpert). SPLIT=test: its split.
# SWEEP=F, SCALE=S: sweep file of the runs, if OUT does not note it. OPTS: options with which DATA2 is read.
set -euo pipefail
. "$(dirname "$0")/../help.sh"
usage='usage: bash scripts/studies/external.sh OUT DATA2 [OUT2]'
runs=$(realpath -m "${1:?$usage}")
data=$(realpath -m "${2:?$usage}")
out=$(realpath -m "${3:-$runs/external}")
sweep=${SWEEP:+$(realpath -m "$SWEEP")}
cd "$(dirname "$0")/../.."
. scripts/setup.sh
setup studies
# shellcheck disable=SC2086 # several words
.venv/bin/python scripts/external.py --runs "$runs" --data-path "$data" --output "$out" \
    --dataset "${DATASET:-chexpert}" --split "${SPLIT:-test}" ${sweep:+--sweep "$sweep"} ${SCALE:+--scale "$SCALE"} \
    ${OPTS:+--opts $OPTS}
