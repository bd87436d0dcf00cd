#!/usr/bin/env bash
# The whole project in five minutes on two CPU cores, with 1,000 real chest X-rays of 64 px (examples/README.md):
# pre-training for two minutes, then linear probes of its encoder, of the weights in examples/weights, and of
# random weights, beside a logistic regression on the pixels and one on view, age and sex.
#   bash scripts/demo.sh [DIR]           results in DIR (default demo_output); the same command resumes
#   SEED=7 bash scripts/demo.sh DIR      another seed for weights and masks
set -euo pipefail
. "$(dirname "$0")/help.sh"
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
data=examples/xrays
runs=$dir/runs
probes=$runs/simmim_finetune
configs=configs/vit_nano__examples
start=$SECONDS

step() { echo; echo "== $1 [$((SECONDS - start)) s so far]"; }

if [ -f "$dir/seed" ] && [ "$(cat "$dir/seed")" != "$seed" ]; then
    echo "error: $dir contains the demo with seed $(cat "$dir/seed"): choose another folder" >&2
    exit 2
fi
mkdir -p "$dir"
echo "$seed" >"$dir/seed"

step "1/2 pre-training on hidden patches of 800 X-rays, without labels, in 2 processes (about 2 minutes)"
$python -m torch.distributed.run --standalone --nproc_per_node 2 \
    main_simmim.py --cfg $configs/simmim_pretrain__vit_nano__img64__examples.yaml \
    --data-path $data --output "$runs" --tag demo --opts SEED "$seed"
weights=$(ls "$runs"/simmim_pretrain/demo/ckpt_epoch_*.pth | sort -V | tail -n 1)

# probe TAG [OPTION ...]: learns from the labels of the 800 X-rays, and scores the 200 of other patients.
probe() {
    local tag=$1
    shift
    if ! $python main_finetune.py --cfg $configs/simmim_finetune__vit_nano__img64__examples.yaml \
        --data-path $data --output "$runs" --tag "$tag" "$@" >"$dir/probe_$tag.log" 2>&1; then
        tail -n 20 "$dir/probe_$tag.log" >&2
        return 1
    fi
}

step "2/2 linear probes of frozen encoders, and two baselines (about 1 minute)"
probe pixels --opts FINETUNE.MODE pixels &
probe metadata --opts FINETUNE.MODE metadata || { wait; exit 1; }
wait $!
probe random --opts SEED "$seed" MODEL.VIT.USE_APE False MODEL.VIT.USE_SINCOS True &
probe two_minutes --pretrained "$weights" || { wait; exit 1; }
wait $!
probe simmim --pretrained simmim-vit-64px &
probe mae --pretrained mae-vit-64px --opts REPORT.BASELINES \
    "{'pixels': '$probes/pixels', 'two minutes': '$probes/two_minutes'}" || { wait; exit 1; }
wait $!

$python scripts/ablate.py table --save "$dir" --scores Pneumonia --against pixels --runs mae-vit-64px="$probes/mae" \
    simmim-vit-64px="$probes/simmim" two_minutes="$probes/two_minutes" random="$probes/random" \
    pixels="$probes/pixels" metadata="$probes/metadata"
$python - "$dir/runs_Pneumonia.csv" <<'END'
import sys
import pandas as pd

lines = pd.read_csv(sys.argv[1]).dropna(subset='difference')
found = {'above': lines['patients_low'] > 0, 'below': lines['patients_high'] < 0}
found['not told apart from'] = ~(found['above'] | found['below'])
print('What these 200 X-rays show (AUROC of Pneumonia, intervals over patients):')
for word, chosen in found.items():
    names = [f'{row} ({value:.3f})' for row, value in lines.loc[chosen, ['row', 'value']].to_numpy()]
    print(f'- {word} the pixels: {", ".join(names) or "nothing"}')
print('One seed each: another seed may change what is close. Not for clinical use.')
END
echo "images: $(ls "$runs"/simmim_pretrain/demo/reconstructions/*.png | sort -V | tail -n 1)"
echo "report: $probes/mae/report.html"
echo "demo: done in $((SECONDS - start)) s"
