#!/usr/bin/env bash
# SimMIM against MAE on your own X-rays with 10 % of the labels, on a CPU: the same encoder, equal
# compute, each fine-tuned with its own tuned rate. docs/howto/compare_methods.md explains it.
#   bash scripts/simmim_against_mae.sh LABELLED UNLABELLED [OUT]
#   SCALE=starts OWN_WEIGHTS=FILE bash scripts/simmim_against_mae.sh LABELLED UNLABELLED [OUT]
# also probes the frozen encoders, fine-tunes and probes your own weights (default: mae-vit-64px, which ship),
# trains a ResNet-18, and scores view, age and sex alone. In the same OUT it adds them to what has finished. SWEEP=FILE: your copy of the sweep.
# LABELLED: CheXpert's layout; train.csv and valid.csv are joined. UNLABELLED: a folder or packed store.
# OUT: default simmim_against_mae_output. SEEDS=5, FOLDS=5, PARALLEL=2 runs at a time. PRETRAIN_OPTS and FINETUNE_OPTS: other
# options as 'KEY VALUE ...', such as FINETUNE_OPTS="DATA.LABELS \"['Pneumonia', 'Edema']\"".
# TRIAL=1 trains for a few steps only, to see whether your data work (use another OUT). CHECK=1 packs, and
# estimates the hours. The same command resumes.
set -euo pipefail
. "$(dirname "$0")/help.sh"
usage='usage: bash scripts/simmim_against_mae.sh LABELLED UNLABELLED [OUT]'
labelled=$(realpath "${1:?$usage}")
unlabelled=$(realpath "${2:?$usage}")
out=${3:-simmim_against_mae_output}
case $out in /*) ;; *) out=$PWD/$out ;; esac
sweep_file=${SWEEP:+$(realpath "$SWEEP")}
OWN_WEIGHTS=${OWN_WEIGHTS:-mae-vit-64px}
if [ -e "$OWN_WEIGHTS" ]; then OWN_WEIGHTS=$(realpath "$OWN_WEIGHTS"); fi # otherwise a name or an address
export OWN_WEIGHTS
cd "$(dirname "$0")/.."
if [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ]; then export PYTHON=$PWD/.venv/bin/python; fi
python=${PYTHON:-python}
export OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= # two runs share two cores
sweep=(--sweep "${sweep_file:-scripts/comparison/simmim_mae.yaml}" --scale "${SCALE:-cpu}")
seeds=(--seeds "${SEEDS:-5}" --folds "${FOLDS:-5}")
pretrain='' finetune=''
if [ -n "${TRIAL:-}" ]; then
    pretrain='TRAIN.EPOCHS 1 TRAIN.WARMUP_EPOCHS 0' finetune='TRAIN.EPOCHS 2 TRAIN.WARMUP_EPOCHS 0'
fi
start=$SECONDS

step() { echo; echo "== $1 [$(((SECONDS - start) / 60)) min so far]"; }

step '1/3 packing the images at 64 px'
store=$out/labelled images=$unlabelled
"$python" scripts/pack.py --data-path "$labelled" --output "$store" --size 64 --skip-bad
tables=("$store/train.csv")
if [ -f "$store/valid.csv" ]; then tables+=("$store/valid.csv"); fi
"$python" - "${tables[@]}" "$store/all.csv" << 'END' # by the names of the columns, which may have another order
import sys
import pandas as pd
*tables, joined = sys.argv[1:]
parts = [pd.read_csv(table, dtype=str, keep_default_na=False) for table in tables]
pd.concat(parts).to_csv(joined, index=False)
END
if [ ! -f "$unlabelled/store.json" ]; then
    images=$out/unlabelled
    "$python" scripts/pack.py --data-path "$unlabelled" --output "$images" --size 64 --skip-bad
fi

bash scripts/leave_out.sh "$store" "$images" "$out" all.csv
leave_out="DATA.LEAVE_OUT '$out/leave_out.csv'"

step "2/3 pre-training and fine-tuning (logs: $out/ablate_logs)"
"$python" scripts/ablate.py run "${sweep[@]}" "${seeds[@]}" --output "$out" --data-path "$store" \
    --unlabelled "$images" --parallel "${PARALLEL:-2}" --keep best ${CHECK:+--check} \
    --pretrain-opts "$leave_out" "$pretrain" "${PRETRAIN_OPTS:-}" \
    --finetune-opts "$finetune" "${FINETUNE_OPTS:-}"
if [ -n "${CHECK:-}" ]; then exit; fi

step '3/3 tuned settings and tables'
"$python" scripts/ablate.py join "${sweep[@]}" "${seeds[@]}" --output "$out" \
    --save "$out/predictions" --tune
"$python" scripts/ablate.py table "${sweep[@]}" --seeds "${SEEDS:-5}" --predictions "$out/predictions" \
    --labels "$store/all.csv" --save "$out/results" --tune
"$python" scripts/ablate.py plot "${sweep[@]}" --save "$out/results"
echo
cat "$out/results/$(basename "${sweep[1]}" .yaml)_mean.md"
if [ -n "${TRIAL:-}" ]; then echo '- TRIAL=1: these scores mean nothing.'; fi
echo "simmim_against_mae: done in $(((SECONDS - start + 30) / 60)) min; figure and other labels: $out/results"
