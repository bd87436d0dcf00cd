#!/usr/bin/env bash
# Tables and figures of docs/studies/main_model.md from the joined predictions.
#   bash scripts/studies/main_model_tables.sh PREDICTIONS LABELS RESULTS
# PREDICTIONS: docs/results/main_model/predictions, or a folder that ablate.py join wrote.
# LABELS: CSV file with the labels of all images. PYTHON: default .venv/bin/python.
set -euo pipefail
. "$(dirname "$0")/../help.sh"
usage='usage: bash scripts/studies/main_model_tables.sh PREDICTIONS LABELS RESULTS'
predictions=$(realpath "${1:?$usage}")
labels=$(realpath "${2:?$usage}")
results=$(realpath -m "${3:?$usage}")
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
scores=(Pneumonia auroc_within_views:Pneumonia)
variants='normalised hog ratio75 unit16 crops20 noise'
sweep=(--sweep scripts/studies/main_model.yaml --scale all)
fixed=("$python" scripts/ablate.py table "${sweep[@]}"
    --predictions "$predictions" --labels "$labels" --scores "${scores[@]}")
table=("${fixed[@]}" mean --tune)

# draw TABLE NAME --pairs ROW/ROW ...: draw these differences from a table of Pneumonia, or with --rows scores.
draw() {
    "$python" scripts/ablate.py plot "${sweep[@]}" --save "$results/$1" --scores Pneumonia \
        --figure "$results/$2.png" "${@:3}"
}

"${table[@]}" --save "$results/primary" --row {swin,scratch_swin}_{1,0.1}
draw primary primary --pairs swin_{1/scratch_swin_1,0.1/scratch_swin_0.1}
"${fixed[@]}" --save "$results/fixed_rates" --row {,scratch_}swin{_low,,_high}_1
"${table[@]}" --save "$results/secondary" --row \
    {swin,scratch_swin,{linear,attentive}_{,random_}swin,pixels}_{1,0.1} \
    {mae,mae0,simmim,scratch,{linear,attentive}_{mae,mae0,simmim,random}}_{1,0.1} scratch{60,120}_1
draw secondary mae_against_simmim --pairs mae_{1/simmim_1,0.1/simmim_0.1} \
    linear_mae_{1/linear_simmim_1,0.1/linear_simmim_0.1} attentive_mae_{1/attentive_simmim_1,0.1/attentive_simmim_0.1}
# The absolute scores next to the pixels, for README and the page of the study.
draw secondary auroc --rows {swin,scratch_swin,mae,simmim,scratch,scratch120,pixels}_1 \
    {swin,scratch_swin,mae,simmim,scratch,pixels}_0.1
"${table[@]}" --save "$results/start" --row {,linear_,attentive_}{mae,simmim,simmim0}_1

# shellcheck disable=SC2046 # several words
"${table[@]}" --save "$results/exploratory" --row swin_1 scratch_swin_1 attentive_swin_1 \
    $(for name in swin20 $variants epochs150; do echo "${name}_1 attentive_${name}_1"; done) images{3000,1500}_1

# What one would use without an image: view, age, sex and number of the study.
"${fixed[@]}" --tune --against metadata --save "$results/metadata" --row \
    {pixels,{,scratch_}swin,mae,simmim,scratch,linear_{mae,simmim,random}}_{1,0.1}

# Longer training of the Swin.
longer=("$python" scripts/ablate.py table --sweep scripts/studies/swin_longer.yaml --scale all --seeds 5
    --predictions "$predictions" --labels "$labels" --scores "${scores[@]}")
"${longer[@]}" mean --tune --save "$results/longer_primary" --row {,scratch_}swin120_1
"${longer[@]}" mean --tune --save "$results/longer_secondary" --row {,scratch_}swin{,120}_1 pixels_1
"${longer[@]}" --save "$results/longer_fixed_rates" --row {,scratch_}swin{,120}{_lowest,_low,}_1
"$python" scripts/ablate.py plot --sweep scripts/studies/swin_longer.yaml --scale all --scores Pneumonia \
    --save "$results/longer_secondary" --figure "$results/longer.png" --rows {,scratch_}swin_1 {,scratch_}swin120_1 pixels_1

# One page with all tables. The choices of rates are the same for all of them.
cd "$results"
mv primary/tuning.csv .
mv longer_primary/tuning.csv tuning_longer.csv
rm metadata/tuning.csv {secondary,start,exploratory}/{tuning,main_model_mean}.csv longer_secondary/tuning.csv longer_{primary,secondary}/swin_longer_mean.csv \
    {primary,fixed_rates,secondary,start,exploratory,metadata,longer_{primary,secondary,fixed_rates}}/{*.tex,*_scores.{csv,md}}
{
    echo '# Tables'
    within=auroc_within_views_Pneumonia
    for file in primary/main_model_{Pneumonia,$within,mean}.md {metadata,fixed_rates}/main_model_{Pneumonia,$within}.md \
        {secondary,start,exploratory}/main_model_{Pneumonia,$within,mean}.md \
        longer_{primary,secondary}/swin_longer_{Pneumonia,$within,mean}.md \
        longer_fixed_rates/swin_longer_{Pneumonia,$within}.md; do
        printf '\n## %s\n\n' "$(sed -E 's#/(main_model|swin_longer)_#, #; s/auroc_within_views_(.*)/\1 within views/' <<<"${file%.md}")"
        cat "$file"
        rm "$file"
    done
} > tables.md
