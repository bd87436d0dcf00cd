#!/usr/bin/env bash
# Does pre-training help on 1,000 labelled X-rays? docs/results/real_xrays/trials.md has design and results.
#   bash scripts/studies/real_xrays.sh LABELLED UNLABELLED OUT
# LABELLED: CheXpert's layout with one CSV file, all.csv. UNLABELLED: a folder of images.
# ROWS='simmim scratch': only rows of these methods. SEEDS=3: number of seeds.
# Two runs at a time on two CPU cores; about eight hours in all. Run again after a stop, it resumes.
. "$(dirname "$0")/prepare.sh"
seeds=(--seeds "${SEEDS:-3}")

methods=${ROWS:-$(sed -n '/^methods:/,/^shares:/s/^  \([a-z0-9_]*\):.*/\1/p' scripts/studies/real_xrays.yaml)}
rows=()
for method in $methods; do
    shares='0.1 0.5 1'
    case $method in *epochs*) shares=1 ;; esac # more pre-training is scored with all labels alone
    for share in $shares; do rows+=("${method}_$share"); done
done
$python scripts/ablate.py run "${sweep[@]}" "${seeds[@]}" --row "${rows[@]}" --folds 5 --parallel 2 --keep best \
    --data-path "$out/labelled" --unlabelled "$out/unlabelled" --output "$out"
results=$out/results
$python scripts/ablate.py join "${sweep[@]}" "${seeds[@]}" --folds 5 --output "$out" --save "$results/predictions"
table=("$python" scripts/ablate.py table "${sweep[@]}" "${seeds[@]}" --predictions "$results/predictions" --labels "$labelled/all.csv")
"${table[@]}" --scores mean Pneumonia --save "$results"
"${table[@]}" --scores Pneumonia --save "$results/primary" \
    --row {,linear_}simmim_{0.1,0.5,1} scratch_{0.1,0.5,1} linear_random_{0.1,0.5,1}
$python tools/real_xrays_figures.py --results "$results"
