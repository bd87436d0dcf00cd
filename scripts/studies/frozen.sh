#!/usr/bin/env bash
# Do frozen encoders of MAE and SimMIM beat what one would use otherwise?
# docs/studies/frozen.md has the design.
#   bash scripts/studies/frozen.sh LABELLED UNLABELLED OUT
# LABELLED: CheXpert's layout with one CSV file, all.csv. UNLABELLED: a folder of images.
# SEED=12: only this seed of 10 to 19. PARALLEL=1: runs at a time, one CPU core each.
# Run again after a stop, it resumes. The predictions of finished runs go to OUT/results.
. "$(dirname "$0")/prepare.sh"
$python scripts/studies/controls.py "$out/labelled/all.csv" "$out/labelled/controls.csv"

# run SWEEP SEED 'ROW ...': run these rows, then add their predictions to the results.
run() {
    local rows
    read -ra rows <<<"$3"
    sweep=(--sweep "scripts/studies/$1.yaml" --scale all)
    $python scripts/ablate.py run "${sweep[@]}" --seed "$2" --row "${rows[@]}" --folds 5 --keep best \
        --parallel "${PARALLEL:-2}" --data-path "$out/labelled" --unlabelled "$out/unlabelled" --output "$out/$1"
    $python scripts/ablate.py join "${sweep[@]}" --folds 5 --seeds 20 --tune --output "$out/$1" --save "$out/results/$1" \
        2>&1 | grep -v skipped || true
}

for seed in ${SEED:-10 11 12 13 14 15 16 17 18 19}; do
    run frozen "$seed" "$(echo {pixels,metadata,linear_random,linear_mae,linear_simmim}_{1,0.1})"
    started=$out/frozen/simmim_pretrain/frozen
    MAE_WEIGHTS=${started}_linear_mae_seed$seed/ckpt_epoch_123.pth \
        SIMMIM_WEIGHTS=${started}_linear_simmim_seed$seed/ckpt_epoch_59.pth \
        run frozen_controls "$seed" 'mae_1 simmim_1 random_1 pixels_1'
    if [ "$seed" -lt 15 ]; then run frozen "$seed" "$(echo resnet18{,_low,_high}_{1,0.1})"; fi
done
