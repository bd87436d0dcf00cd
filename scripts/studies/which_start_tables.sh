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
table=("$python" scripts/ablate.py table "${sweep[@]}" --predictions "$predictions/which_start" --labels "$labels" --tune)
frozen=(linear_{mae,simmim,moco,random} imagenet{64,256} lite0_random{64,256} pixels metadata)
tuned=(mae simmim imagenet moco resnet18)

# Primary: the eight comparisons with 10 % of the labels.
"${table[@]}" --save "$results/primary" --scores "$score" --row {linear_{mae,simmim},imagenet{64,256},resnet18,pixels}_0.1
for share in 0.05 0.1 0.25 0.5 1; do
    rows=("${frozen[@]/%/_$share}" "${tuned[@]/%/_$share}")
    # Secondary: all rows, against those of the sweep.
    "${table[@]}" --save "$results/secondary_$share" --scores "$score" mean --row "${rows[@]}"
    # All rows against what needs no network, and no image.
    "${table[@]}" --save "$results/baselines_$share" --scores "$score" mean --against pixels metadata --row "${rows[@]}"
done
# Added when the scores were known: all starts against ImageNet weights, fine-tuned.
"${table[@]}" --save "$results/added" --scores "$score" mean --against imagenet \
    --row {linear_{mae,simmim,moco},mae,simmim,moco,resnet18,imagenet256,imagenet}_0.1
# The draws of random weights one by one.
awk -F, -v OFS=, 'NR == 1 || $1 ~ /random/ && $2 && $7 == "Pneumonia" && $8 == "auroc_within_views" { print $1, $2, $9 }' \
    "$results"/secondary_{0.05,0.1,0.25,0.5,1}/which_start_scores.csv >"$results/random_draws.csv"
# Exploratory: the mean of the ranks of MAE and ImageNet features.
"$python" scripts/studies/mean_of_ranks.py "$predictions/which_start" "$labels" "$results/mean_of_ranks.csv"
"$python" scripts/studies/which_start_figure.py "$results" "$results/which_start.png"
# View, sex and age from the same features.
"$python" scripts/studies/controls.py "$labels" "$results/controls.csv"
"$python" scripts/ablate.py table --sweep scripts/studies/which_start_controls.yaml --scale all \
    --predictions "$predictions/which_start_controls" --labels "$results/controls.csv" --save "$results/controls" \
    --scores 'PA view' Male Older

# One page with all tables. The choices of rates are the same for all of them.
cd "$results"
mv primary/tuning.csv chosen_rates.csv
rm -f controls.csv {{secondary,baselines}_*,added}/tuning.csv {primary,{secondary,baselines}_*,added,controls}/{*.tex,*_scores.{csv,md}}
{
    echo '# Tables'
    for file in primary/*.md {secondary,baselines}_{0.05,0.1,0.25,0.5,1}/*.md {added,controls}/*.md; do
        printf '\n## %s\n\n' "$(sed -E 's#/(which_start_controls|which_start)_#, #; s/_([0-9.]+),/ with a share of \1,/; s/auroc_within_views_(.*)/\1 within views/' <<<"${file%.md}")"
        cat "$file"
        rm "$file"
    done
} >tables.md
