#!/usr/bin/env bash
# Tables and figure of docs/studies/which_start.md from the joined predictions.
#   bash scripts/studies/which_start_tables.sh PREDICTIONS LABELS RESULTS
# PREDICTIONS: docs/results, or OUT/results of which_start.sh: the folders which_start and which_start_controls.
# LABELS: CSV file with the labels of all images. PYTHON: default .venv/bin/python.
set -euo pipefail
. "$(dirname "$0")/../help.sh"
usage='usage: bash scripts/studies/which_start_tables.sh PREDICTIONS LABELS RESULTS'
predictions=$(realpath "${1:?$usage}")
labels=$(realpath "${2:?$usage}")
results=$(realpath -m "${3:?$usage}")
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
mkdir -p "$results"
score=auroc_within_views:Pneumonia
sweep=(--sweep scripts/studies/which_start.yaml --scale all)
table=("$python" scripts/ablate.py table "${sweep[@]}" --predictions "$predictions/which_start" --labels "$labels")
frozen=(linear_{mae,simmim,moco,random} imagenet{64,256} lite0_random{64,256} pixels metadata)
tuned=(mae simmim imagenet moco resnet18)

# Primary: the eight comparisons with 10 % of the labels.
"${table[@]}" --tune --save "$results/primary" --scores "$score" \
    --row {linear_{mae,simmim},imagenet{64,256},resnet18,pixels}_0.1
# Secondary: all rows at all shares, against those of the sweep and against metadata.
for share in 0.05 0.1 0.25 0.5 1; do
    "${table[@]}" --tune --save "$results/secondary_$share" --scores "$score" mean --row "${frozen[@]/%/_$share}" "${tuned[@]/%/_$share}"
    "${table[@]}" --tune --save "$results/metadata_$share" --scores "$score" --against metadata \
        --row "${frozen[@]/%/_$share}" "${tuned[@]/%/_$share}"
done
# Exploratory: the mean of the ranks of MAE and ImageNet features.
"$python" scripts/studies/mean_of_ranks.py "$predictions/which_start" "$labels" "$results/mean_of_ranks.csv"
"$python" scripts/studies/which_start_figure.py "$results" "$results/which_start.png"
# View, sex and age from the same features.
"$python" scripts/studies/controls.py "$labels" "$results/controls.csv"
"$python" scripts/ablate.py table --sweep scripts/studies/which_start_controls.yaml --scale all \
    --predictions "$predictions/which_start_controls" --labels "$results/controls.csv" --save "$results/controls" \
    --scores 'PA view' Male Older
