#!/usr/bin/env bash
# First scores on your own X-rays on a CPU: logistic regression on pixels, a small Swin from scratch,
# and the same Swin pre-trained with SimMIM, with 1, 10 and 100 % of the labelled patients.
#   bash scripts/baseline.sh DATA [OUT]      DATA in CheXpert's layout; OUT: default baseline_output
#   UNLABELLED=FOLDER bash scripts/baseline.sh DATA [OUT]    pre-trains only on the images in FOLDER
# SEEDS=3: number of seeds (default 1). Other options: FINETUNE_OPTS='KEY VALUE ...', PRETRAIN_OPTS.
# Writes OUT/baseline.md, .csv, .json and baseline_shares.png. The same command resumes after a stop.
set -euo pipefail
usage='usage: bash scripts/baseline.sh DATA [OUT]'
data=$(realpath "${1:?$usage}")
out=${2:-baseline_output}
case $out in /*) ;; *) out=$PWD/$out ;; esac
unlabelled=${UNLABELLED:+$(realpath "$UNLABELLED")}
cd "$(dirname "$0")/.."
if [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ]; then export PYTHON=$PWD/.venv/bin/python; fi
python=${PYTHON:-python}
export OMP_NUM_THREADS=1 # two runs share two cores
seeds=${SEEDS:-1}
start=$SECONDS

step() { echo; echo "== $1 [$(((SECONDS - start) / 60)) min so far]"; }

step '1/3 packing the images at 80 px'
$python scripts/pack.py --data-path "$data" --output "$out/store" --size 80 --skip-bad
images=$out/store
if [ -n "$unlabelled" ]; then
    images=$out/unlabelled
    $python scripts/pack.py --data-path "$unlabelled" --output "$images" --size 80 --skip-bad
fi
# Pre-training sees about 30,000 images, but fewer than 150 images are repeated only 200 times.
count=$($python -c 'import json, sys; print(json.load(open(sys.argv[1]))["images"])' "$images/store.json")
epochs=$((count > 30000 ? 1 : count < 150 ? 200 : 30000 / count))
pretrain=(TRAIN.EPOCHS "$epochs" TRAIN.WARMUP_EPOCHS $(((epochs + 9) / 10)))

step "2/3 pre-training on $count images, $epochs epochs; fine-tuning (logs: $out/ablate_logs)"
$python scripts/ablate.py run --sweep scripts/comparison/baseline.yaml --output "$out" \
    --data-path "$out/store" ${unlabelled:+--unlabelled "$images"} --seeds "$seeds" --parallel 2 \
    --pretrain-opts "${pretrain[@]}" ${PRETRAIN_OPTS:-} \
    --finetune-opts REPORT.WRITE False ${FINETUNE_OPTS:-}

step '3/3 table and figure'
$python scripts/baseline_table.py --output "$out" --seeds "$seeds"
echo "baseline: done in $(((SECONDS - start + 30) / 60)) min"
