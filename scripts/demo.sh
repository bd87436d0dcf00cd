#!/usr/bin/env bash
# The whole project in minutes on a machine that only has Python: set-up, a packed store of synthetic
# chest X-rays, pre-training without labels, and a linear probe of the frozen features, whose report
# shows it next to random weights and to the pixel baseline (a logistic regression).
#   bash scripts/demo.sh [DIR]           results in DIR (default demo_output); the same command resumes
#   SEED=7 bash scripts/demo.sh DIR      another seed for X-rays, weights and splits
set -euo pipefail
dir=${1:-}
case $dir in
    '') dir=demo_output ;; # relative to the repository
    /*) ;;
    *) dir=$PWD/$dir ;;
esac
cd "$(dirname "$0")/.."
seed=${SEED:-0}
. scripts/setup.sh
setup
python=.venv/bin/python
export OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= # two processes share two cores
images=$dir/CheXpert-phantom
data=$dir/store
runs=$dir/runs
configs=configs/swin_nano__demo
start=$SECONDS

step() { echo; echo "== $1 [$((SECONDS - start)) s so far]"; }

if [ -f "$dir/seed" ] && [ "$(cat "$dir/seed")" != "$seed" ]; then
    echo "error: $dir contains the demo with seed $(cat "$dir/seed"): choose another folder" >&2
    exit 2
fi
mkdir -p "$dir"
echo "$seed" >"$dir/seed"

step "1/3 drawing synthetic chest X-rays and packing them (about 30 s)"
[ -f "$images/phantom.json" ] || rm -rf "$images"
$python scripts/make_phantom.py --output "$images" --train 1200 --valid 60 --test 500 --size 128 \
    --seed "$seed" --workers 2
# 128 px is the long side of the images, so that packing loses nothing.
$python scripts/pack.py --data-path "$images" --output "$data" --size 128 --workers 2

step "2/3 pre-training on hidden patches, without labels, in 2 processes (about 3 minutes)"
$python -m torch.distributed.run --standalone --nproc_per_node 2 \
    main_simmim.py --cfg $configs/simmim_pretrain__swin_nano__img64_window4__demo.yaml \
    --data-path "$data" --output "$runs" --tag demo --opts SEED "$seed" \
    TRAIN.EPOCHS 8 TRAIN.WARMUP_EPOCHS 1

# $1: tag, which also names the log; others: arguments of main_finetune.py.
probe() {
    local tag=$1
    shift
    if ! $python main_finetune.py --cfg $configs/simmim_finetune__swin_nano__img64_window4__demo.yaml \
        --data-path "$data" --output "$runs" --tag "$tag" "$@" >"$dir/probe_$tag.log" 2>&1; then
        tail -n 20 "$dir/probe_$tag.log" >&2
        return 1
    fi
}
options=(--opts SEED "$seed" FINETUNE.MODE)
probes=$runs/simmim_finetune
baselines="{'pixel baseline': '$probes/pixels', 'random weights': '$probes/random'}"
weights=$(ls "$runs"/simmim_pretrain/demo/ckpt_epoch_*.pth | sort -V | tail -n 1)
step "3/3 linear probes of frozen features, random and pre-trained, and the pixel baseline (about 1 minute)"
probe random "${options[@]}" linear_probe &
probe pixels "${options[@]}" pixels || { wait; exit 1; }
wait $!
probe pretrained --pretrained "$weights" "${options[@]}" linear_probe REPORT.BASELINES "$baselines"

$python scripts/ablate.py table --save "$dir" --runs pre-trained="$probes/pretrained" \
    random="$probes/random" pixels="$probes/pixels"
echo "images: $(ls "$runs"/simmim_pretrain/demo/reconstructions/*.png | sort -V | tail -n 1)"
echo "demo: done in $((SECONDS - start)) s; open $runs/simmim_finetune/pretrained/report.html"
