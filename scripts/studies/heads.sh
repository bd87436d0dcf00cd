#!/usr/bin/env bash
# Does a head that attends to tokens gain over the mean of the tokens? docs/results/real_xrays/trials.md has the result.
#   bash scripts/studies/heads.sh LABELLED UNLABELLED OUT
# LABELLED: CheXpert's layout with one CSV file, all.csv. UNLABELLED: a folder of images.
# PARALLEL=2: runs at a time, one CPU core each. Run again after a stop, it resumes.
. "$(dirname "$0")/prepare.sh"

$python scripts/ablate.py run "${sweep[@]}" --folds 5 --parallel "${PARALLEL:-2}" --keep best \
    --data-path "$out/labelled" --unlabelled "$out/unlabelled" --output "$out"
$python scripts/ablate.py join "${sweep[@]}" --folds 5 --output "$out" --save "$out/results/predictions" --tune
$python scripts/ablate.py table "${sweep[@]}" --predictions "$out/results/predictions" --labels "$labelled/all.csv" \
    --scores mean Pneumonia --save "$out/results" --tune
