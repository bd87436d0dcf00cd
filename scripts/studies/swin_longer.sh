#!/usr/bin/env bash
# Is the Swin's gain from SimMIM more than training time and learning rate?
# docs/results/main_model/appendix.md, "Longer training of the Swin", has the design.
#   bash scripts/studies/swin_longer.sh LABELLED UNLABELLED OUT
# LABELLED: CheXpert's layout with one CSV file, all.csv. UNLABELLED: a folder of images.
# SEED=3: only this seed. PARALLEL=2: runs at a time, one CPU core each. About 3.2 core-hours a seed.
# Run again after a stop, it resumes.
. "$(dirname "$0")/prepare.sh"
rows=(swin_lowest_1 scratch_swin_lowest_1 {scratch_,}swin120{_lowest,_low,}_1)
for seed in ${SEED:-0 1 2 3 4}; do
    $python scripts/ablate.py run "${sweep[@]}" --seed "$seed" --row "${rows[@]}" --folds 5 --keep best \
        --parallel "${PARALLEL:-2}" --data-path "$out/labelled" --unlabelled "$out/unlabelled" --output "$out"
done
$python scripts/ablate.py join "${sweep[@]}" --folds 5 --seeds 5 --tune --output "$out" --save "$out/results/predictions"
