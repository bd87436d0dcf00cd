#!/usr/bin/env bash
# First scores on your own X-rays on a CPU: a small Swin pre-trained with SimMIM, the same Swin and a
# ResNet-18 from scratch, and regressions on small images (pixels) and on view, age, sex and number of
# the study (metadata), with 1, 10 and 100 % of the labelled patients.
#   bash scripts/baseline.sh DATA [OUT]      DATA in CheXpert's layout, or a packed store of it
#   UNLABELLED=FOLDER bash scripts/baseline.sh DATA [OUT]    pre-trains only on the images in FOLDER
# OUT: default baseline_output. SEEDS=3: number of seeds (default 1). SHARES='0.1 1': shares of the
# labelled patients, of 0.01, 0.05, 0.1, 0.25, 0.5 and 1. Other options: PRETRAIN_OPTS and
# FINETUNE_OPTS='KEY VALUE ...', for example FINETUNE_OPTS="DATA.LABELS \"['Pleural Effusion']\"".
# Writes tables and figures, OUT/baseline_*, and a report of the pre-trained Swin with its baselines.
# The same command resumes after a stop.
set -euo pipefail
. "$(dirname "$0")/help.sh"
usage='usage: bash scripts/baseline.sh DATA [OUT]'
data=$(realpath "${1:?$usage}")
out=${2:-baseline_output}
case $out in /*) ;; *) out=$PWD/$out ;; esac
unlabelled=${UNLABELLED:+$(realpath "$UNLABELLED")}
cd "$(dirname "$0")/.."
if [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ]; then export PYTHON=$PWD/.venv/bin/python; fi
python=${PYTHON:-python}
export OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= # two runs share two cores
read -ra shares <<<"${SHARES:-0.01 0.1 1}"
sweep=(--sweep scripts/comparison/baseline.yaml --output "$out" --seeds "${SEEDS:-1}"
    --subsets "${shares[@]}")
start=$SECONDS

step() { echo; echo "== $1 [$(((SECONDS - start) / 60)) min so far]"; }

store=$data images=$unlabelled # a store needs no packing
step '1/4 packing the images at 80 px'
if [ ! -f "$data/store.json" ]; then
    store=$out/store
    "$python" scripts/pack.py --data-path "$data" --output "$store" --size 80 --skip-bad
fi
if [ -n "$unlabelled" ] && [ ! -f "$unlabelled/store.json" ]; then
    images=$out/unlabelled
    "$python" scripts/pack.py --data-path "$unlabelled" --output "$images" --size 80 --skip-bad
fi

leave_out=''
if [ -n "$images" ]; then
    bash scripts/leave_out.sh "$store" "$images" "$out" valid.csv test.csv
    leave_out="DATA.LEAVE_OUT '$out/leave_out.csv'"
fi

step "2/4 pre-training and fine-tuning (logs: $out/ablate_logs)"
"$python" scripts/ablate.py run "${sweep[@]}" --data-path "$store" \
    ${images:+--unlabelled "$images"} --parallel 2 --images-seen 30000 \
    --pretrain-opts "$leave_out" "${PRETRAIN_OPTS:-}" --finetune-opts REPORT.WRITE False "${FINETUNE_OPTS:-}"

step '3/4 table and figures'
"$python" scripts/ablate.py table "${sweep[@]}"
"$python" scripts/ablate.py plot "${sweep[@]}"

most=$(printf '%s\n' "${shares[@]}" | sort -g | tail -n 1)
run() { echo "$out/simmim_finetune/baseline_${1}_${most}_seed0"; }
step "4/4 report of the pre-trained Swin with the share $most of the labels"
"$python" main_finetune.py --eval --cfg "$(run simmim)/config.yaml" --opts REPORT.WRITE True \
    REPORT.BASELINES "{'pixel baseline': '$(run pixels)', 'metadata baseline': '$(run metadata)',
        'ResNet-18 from scratch': '$(run resnet18)', 'random weights': '$(run scratch)',
        'random weights, low rate': '$(run scratch_low_rate)'}"
echo "baseline: done in $(((SECONDS - start + 30) / 60)) min; open $(run simmim)/report_eval/report.html"
