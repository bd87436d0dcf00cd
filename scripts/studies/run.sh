#!/usr/bin/env bash
# Run a study from set-up to its page, OUT/index.html. The other scripts of this folder source this file.
#   bash scripts/studies/NAME.sh SCALE [DATA] [OUT]
#   bash scripts/studies/NAME.sh SCALE --list     only show the runs: config, options, disk space
# SCALE: full (several GPUs), small (one GPU) or tiny (two CPU cores, minutes).
# DATA: the data set of the study or a packed store; tiny without DATA draws synthetic X-rays.
# OUT: output folder (default output/studies/NAME_SCALE). The same command resumes after a stop.
# SEEDS=3: number of seeds (default: as in the scale). PROCESSES=8: GPUs per run.
# PRETRAIN_OPTS, FINETUNE_OPTS: other options of all runs as 'KEY VALUE ...'.
# TABLE_OPTS: options of ablate.py table, such as '--subgroups' (the default of simmim.sh and contrastive.sh).
# PARALLEL=2: runs at a time at tiny.
# PHANTOM: options of scripts/make_phantom.py (default: see below).
set -euo pipefail
. "$(dirname "$0")/../help.sh" "${@:2}"
usage='usage: bash scripts/studies/NAME.sh full|small|tiny [DATA|--list] [OUT]'
name=${1:?$usage}
scale=${2:?$usage}
data=${3:-}
out=${4:-}
[ -z "$data" ] || [ "$data" = --list ] || data=$(cd "$data" && pwd)
case $out in '' | /*) ;; *) out=$PWD/$out ;; esac
for weights in $(compgen -v | grep '_WEIGHTS$'); do # paths of checkpoints, or addresses
    case ${!weights} in /* | *://*) ;; *) export "$weights=$PWD/${!weights}" ;; esac
done
cd "$(dirname "$0")/../.."
out=${out:-$PWD/output/studies/${name}_$scale}
. scripts/setup.sh
setup studies
python=.venv/bin/python
export PYTHON=$PWD/$python # starts the runs
sweep=(--sweep "scripts/studies/$name.yaml" --scale "$scale" --output "$out" ${SEEDS:+--seeds "$SEEDS"})
run=("${sweep[@]}" ${PROCESSES:+--processes "$PROCESSES"} --pretrain-opts "${PRETRAIN_OPTS:-}"
    --finetune-opts "${FINETUNE_OPTS:-}")
start=$SECONDS

if [ "$data" = --list ]; then exec $python scripts/ablate.py run "${run[@]}" --list; fi
if [ "$scale" = tiny ]; then
    export OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= # each run has a core
    run+=(--parallel "${PARALLEL:-2}")
    if [ -z "$data" ]; then
        data=$out/phantom
        [ -f "$data/phantom.json" ] || rm -rf "$data"
        $python scripts/make_phantom.py --output "$data" \
            ${PHANTOM:---train 200 --valid 60 --test 200 --size 80 --workers 2}
    fi
    if [ "$name" = mae_resnet ]; then # weights in the format of those that the study starts from
        $python scripts/studies/tiny_weights.py "$out/weights"
        export MAE_WEIGHTS=${MAE_WEIGHTS:-$out/weights/mae/model.safetensors}
        export RESNET_WEIGHTS=${RESNET_WEIGHTS:-$out/weights/resnet/model.safetensors}
    fi
fi
if [ -z "$data" ]; then
    echo "error: DATA is missing; $usage" >&2
    exit 2
fi
# The page shows what is there whenever the study ends or stops, and names what is not finished.
page() { $python scripts/studies/page.py "$name" --scale "$scale" --output "$out"; }
mkdir -p "$out"
trap page EXIT

# The parts of a study, which its script calls in their order:

# describe [FLAG ...]: labels, ages, groups and examples of the data of the first fine-tuning.
describe() {
    local run
    run=$(find "$out/simmim_finetune" -maxdepth 1 -name '*_seed*' | sort | head -n 1)
    $python scripts/describe_data.py --data-path "$data" --output "$out/data" --cfg "$run/config.yaml" "$@"
}
# masks FLAG ...: an X-ray of the data, or of the project where these are a store, under the masks.
masks() {
    local image
    image=$(find "$data" \( -name '*.jpg' -o -name '*.png' \) -print -quit)
    mkdir -p "$out/images"
    $python scripts/show_masks.py --image "${image:-examples/xray.png}" --output "$out/images/masks.png" "$@"
}
# reconstructions: those of all pre-trainings of the first seed, side by side.
reconstructions() {
    local runs
    mapfile -t runs < <($python scripts/studies/page.py "$name" --scale "$scale" --output "$out" --reconstructions)
    [ -z "${runs[*]}" ] || $python scripts/show_reconstructions.py "${runs[@]}" --output "$out/images/reconstructions.png"
}
# reports: those of the rows with the best and the worst score, with saliency maps.
reports() {
    local run runs
    mapfile -t runs < <($python scripts/studies/page.py "$name" --scale "$scale" --output "$out" --best-and-worst)
    for run in "${runs[@]}"; do
        [ -f "$out/$run/report_eval/report.html" ] ||
            $python main_finetune.py --eval --cfg "$out/$run/config.yaml" --opts REPORT.WRITE True REPORT.MAPS 1
    done
}

$python scripts/ablate.py run "${run[@]}" --data-path "$data" --keep best
# shellcheck disable=SC2086 # several words
$python scripts/ablate.py table "${sweep[@]}" ${TABLE_OPTS:-}
$python scripts/ablate.py plot "${sweep[@]}"
