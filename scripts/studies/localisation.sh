#!/usr/bin/env bash
# Where do fine-tuned models look on the X-rays in examples/? docs/results/localisation/maps.md has the result.
#   bash scripts/studies/localisation.sh OUT
# An hour of one CPU core. The last part pastes squares, of which it is known where a model must look.
set -euo pipefail
. "$(dirname "$0")/../help.sh"
out=${1:?usage: bash scripts/studies/localisation.sh OUT}
case $out in /*) ;; *) out=$PWD/$out ;; esac
cd "$(dirname "$0")/../.."
python=${PYTHON:-python}
export OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES=
methods="grad-cam rollout occlusion attention"
fine_tune() { # HEAD TAG DATA OPTIONS ...
    $python main_finetune.py --cfg configs/vit_nano__examples/simmim_finetune__vit_nano__img64__examples.yaml \
        --data-path "$3" --pretrained mae-vit-64px --output "$out" --tag "$2" \
        --opts FINETUNE.MODE full MODEL.HEAD "$1" REPORT.WRITE False "${@:4}"
}
head_of() { if [ "$1" = attention ]; then echo attention; else echo linear; fi; } # of a method

mkdir -p "$out"
{ cat examples/xrays/train.csv; tail -n +2 examples/xrays/valid.csv; } > "$out/all.csv"
$python scripts/folds.py --data-path examples/xrays --folds 5 --output "$out/folds" --opts DATA.TRAIN_CSV "$out/all.csv"
for head in linear attention; do
    for fold in 0 1 2 3 4; do
        fine_tune $head ${head}_fold$fold examples/xrays TRAIN.BASE_LR 0.016 \
            DATA.TRAIN_CSV "$out/folds/train_$fold.csv" DATA.VALID_CSV "$out/folds/valid_$fold.csv"
    done
done
for method in $methods; do
    $python scripts/localise.py --run "$out/simmim_finetune/$(head_of $method)"_fold? --method $method \
        --regions examples/xrays/boxes.csv --annotated-size 1024 1024 --output "$out/maps/$method"
done
$python scripts/studies/localisation.py "$out"/maps/{grad-cam,rollout,occlusion,attention} --output "$out/results"
$python scripts/dense_probe.py examples/xrays --run mae-vit-64px simmim-vit-64px \
    --regions examples/xrays/boxes.csv --annotated-size 1024 1024 --output "$out/results"

$python scripts/studies/pasted_squares.py "$out/squares"
for head in linear attention; do
    fine_tune $head squares_$head "$out/squares/Set" TRAIN.BASE_LR 0.032 TRAIN.WARMUP_EPOCHS 1 \
        AUG.COLOR_JITTER 0.0 AUG.CROP_AREA "[1.0,1.0]" MODEL.DROP_PATH_RATE 0.0 EVAL.SELECT_ON last
done
for method in $methods; do
    $python scripts/localise.py --run "$out/simmim_finetune/squares_$(head_of $method)" --method $method \
        --regions "$out/squares/boxes.csv" --output "$out/squares/maps/$method"
done
# A network whose Grad-CAM does not pass through attention.
$python main_finetune.py --cfg configs/resnet18__demo/simmim_finetune__resnet18__img64__scratch_demo.yaml \
    --data-path "$out/squares/Set" --output "$out" --tag squares_resnet --opts REPORT.WRITE False TRAIN.EPOCHS 8 \
    TRAIN.BASE_LR 0.032 TRAIN.WARMUP_EPOCHS 1 AUG.COLOR_JITTER 0.0 AUG.CROP_AREA "[1.0,1.0]" EVAL.SELECT_ON last
$python scripts/localise.py --run "$out/simmim_finetune/squares_resnet" --method grad-cam \
    --regions "$out/squares/boxes.csv" --output "$out/squares/maps/resnet18"
$python scripts/studies/localisation.py "$out"/squares/maps/{grad-cam,rollout,occlusion,attention,resnet18} --output "$out/squares/results"
grep -v -e ",small," -e ",large," "$out/squares/results/localisation.csv" > "$out/results/rectangles.csv"
