#!/usr/bin/env bash
# Tiny runs of every stage with the code of one checkout, to be compared with those of another by compare.py.
#   PYTHON=.venv/bin/python bash tests/safety_net/record.sh CHECKOUT OUTPUT DATA
# DATA holds CheXpert-phantom (make_phantom.py --train 240 --valid 40 --test 60 --size 96 --seed 3) and its
# store (pack.py --size 96). A stage that is done is not run again.
set -u
code=$1; mkdir -p "$2"; out=$(realpath "$2"); data=$(realpath "$3")
py=$(realpath -s "${PYTHON:-.venv/bin/python}"); cd "$code"; export OMP_NUM_THREADS=1
run() { # NAME MAIN CFG ARGS...
  local name=$1 main=$2 cfg=$3; shift 3
  if [ -f "$out/$name.done" ]; then return; fi
  $py $main.py --cfg configs/$cfg.yaml --output "$out/runs" --tag "$name" "$@" > "$out/$name.log" 2>&1
  local rc=$?; echo "$name rc=$rc"; [ $rc = 0 ] && touch "$out/$name.done"
}
common="TRAIN.EPOCHS 2 TRAIN.WARMUP_EPOCHS 1 PRINT_FREQ 1 DATA.NUM_WORKERS 0 SAVE_FREQ 1 DATA.HOLDOUT_FRACTION 0.2 EVAL.RESAMPLES 50"
files="--data-path $data/CheXpert-phantom"; store="--data-path $data/store"
sw=swin_nano__demo vi=vit_nano__demo vm=vit_nano__methods_demo
run simmim_swin main_simmim $sw/simmim_pretrain__swin_nano__img64_window4__demo $files --opts $common
run simmim_swin_store main_simmim $sw/simmim_pretrain__swin_nano__img64_window4__demo $store --opts $common
run simmim_vit main_simmim $vi/simmim_pretrain__vit_nano__img64__demo $files --opts $common DATA.MASK_TYPE block
run mae main_simmim $vm/simmim_pretrain__vit_nano__img64__mae_demo $files --opts $common
for m in moco simclr byol swav; do
run $m main_contrastive $vm/contrastive_pretrain__vit_nano__img64__${m}_demo $files --opts $common DATA.BATCH_SIZE 32 $( [ $m = moco ] && echo CONTRASTIVE.QUEUE_SIZE 64 )
done
run finetune main_finetune $sw/simmim_finetune__swin_nano__img64_window4__demo $files --pretrained $out/runs/simmim_pretrain/simmim_swin/ckpt_epoch_1.pth --opts $common DATA.TRAIN_FRACTION 1.0
run finetune_store main_finetune $sw/simmim_finetune__swin_nano__img64_window4__demo $store --pretrained $out/runs/simmim_pretrain/simmim_swin/ckpt_epoch_1.pth --opts $common DATA.TRAIN_FRACTION 1.0
run finetune_vit main_finetune $vi/simmim_finetune__vit_nano__img64__demo $files --pretrained $out/runs/simmim_pretrain/simmim_vit/ckpt_epoch_1.pth --opts $common DATA.TRAIN_FRACTION 1.0 DATA.UNCERTAIN ones_smooth AUG.ROTATION 10 LOSS.NAME focal
run last_layer main_finetune $sw/simmim_finetune__swin_nano__img64_window4__demo $files --pretrained $out/runs/simmim_pretrain/simmim_swin/ckpt_epoch_1.pth --opts $common DATA.TRAIN_FRACTION 1.0 FINETUNE.MODE last_layer DATA.UNCERTAIN multiclass
run linear_probe main_finetune $sw/simmim_finetune__swin_nano__img64_window4__demo $files --pretrained $out/runs/simmim_pretrain/simmim_swin/ckpt_epoch_1.pth --opts $common DATA.TRAIN_FRACTION 1.0 FINETUNE.MODE linear_probe
run knn main_finetune $sw/simmim_finetune__swin_nano__img64_window4__demo $files --pretrained $out/runs/simmim_pretrain/simmim_swin/ckpt_epoch_1.pth --opts $common DATA.TRAIN_FRACTION 1.0 FINETUNE.MODE knn
run timm main_finetune resnet18__demo/simmim_finetune__resnet18__img64__demo $files --opts $common DATA.TRAIN_FRACTION 1.0
if [ ! -f "$out/evaluate.done" ]; then
$py scripts/evaluate.py --predictions $out/runs/simmim_finetune/finetune/predictions_test.csv $out/runs/simmim_finetune/finetune_vit/predictions_test.csv --labels $data/CheXpert-phantom/test.csv --views frontal --output $out/evaluate --resamples 50 > $out/evaluate.log 2>&1; rc=$?
echo evaluate rc=$rc; [ $rc = 0 ] && touch $out/evaluate.done
fi
