#!/usr/bin/env bash
# Tables and figures of docs/studies/frozen.md from the joined predictions.
#   bash scripts/studies/frozen_tables.sh PREDICTIONS LABELS RESULTS
# PREDICTIONS: docs/results, or OUT/results of frozen.sh: the folders frozen and frozen_controls.
# LABELS: CSV file with the labels of all images. PYTHON: default .venv/bin/python.
set -euo pipefail
. "$(dirname "$0")/../help.sh"
usage='usage: bash scripts/studies/frozen_tables.sh PREDICTIONS LABELS RESULTS'
predictions=$(realpath "${1:?$usage}")
labels=$(realpath "${2:?$usage}")
results=$(realpath -m "${3:?$usage}")
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
mkdir -p "$results"
scores=(auroc_within_views:Pneumonia Pneumonia)
sweep=(--sweep scripts/studies/frozen.yaml --scale all)
fixed=("$python" scripts/ablate.py table "${sweep[@]}" --predictions "$predictions/frozen" --labels "$labels")
table=("${fixed[@]}" --tune)

# Primary: the rows of frozen.yaml that have `against` make the seven comparisons.
"${table[@]}" --save "$results/primary" --scores "${scores[@]}" --row {linear_{mae,simmim,random},resnet18,pixels}_1
# Secondary: fewer labels, and other labels.
"${table[@]}" --save "$results/secondary" --scores "${scores[@]}" mean Atelectasis Edema 'Pleural Effusion' \
    --row {linear_{mae,simmim,random},resnet18,pixels}_{1,0.1}
# All rows against what needs no network, and no image.
"${table[@]}" --save "$results/baselines" --scores "${scores[@]}" --against pixels metadata \
    --row {linear_{mae,simmim,random},resnet18,pixels}_{1,0.1}
# Each rate of the ResNet-18.
"${fixed[@]}" --save "$results/rates" --scores "${scores[@]}" --against pixels --row resnet18{_low,,_high}_{1,0.1}
# View, sex and age from the same features.
"$python" scripts/studies/controls.py "$labels" "$results/controls.csv"
"$python" scripts/ablate.py table --sweep scripts/studies/frozen_controls.yaml --scale all \
    --predictions "$predictions/frozen_controls" --labels "$results/controls.csv" --save "$results/controls" \
    --scores 'PA view' Male Older
"$python" scripts/ablate.py plot "${sweep[@]}" --save "$results/baselines" --scores auroc_within_views:Pneumonia \
    --figure "$results/within_views.png" --rows {linear_{mae,simmim},resnet18,linear_random,pixels,metadata}_{1,0.1}

# One page with all tables. The choices of rates are the same for all of them.
cd "$results"
mv primary/tuning.csv chosen_rates.csv
rm controls.csv {secondary,baselines}/tuning.csv {primary,secondary,baselines,rates,controls}/{*.tex,*_scores.{csv,md}}
{
    echo '# Tables'
    for file in {primary,secondary,baselines,rates}/frozen_{auroc_within_views_Pneumonia,Pneumonia}.md \
        secondary/frozen_{mean,Atelectasis,Edema,Pleural_Effusion}.md controls/frozen_controls_*.md; do
        printf '\n## %s\n\n' "$(sed -E 's#/(frozen_controls|frozen)_#, #; s/auroc_within_views_(.*)/\1 within views/' <<<"${file%.md}")"
        cat "$file"
        rm "$file"
    done
} > tables.md
