#!/usr/bin/env bash
# Does a head that attends to tokens gain over the mean of the tokens? docs/howto/finetune.md has the result.
#   bash scripts/studies/heads.sh LABELLED UNLABELLED OUT
# LABELLED: CheXpert's layout with one CSV file, all.csv. UNLABELLED: a folder of images.
# PARALLEL=2: runs at a time, one CPU core each. Run again after a stop, it resumes.
set -euo pipefail
usage='usage: bash scripts/studies/heads.sh LABELLED UNLABELLED OUT'
labelled=$(cd "${1:?$usage}" && pwd)
unlabelled=$(cd "${2:?$usage}" && pwd)
out=${3:?$usage}
case $out in /*) ;; *) out=$PWD/$out ;; esac
cd "$(dirname "$0")/../.."
. scripts/setup.sh
setup requirements.txt
python=.venv/bin/python
export OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES=
sweep=(--sweep scripts/studies/heads.yaml --scale all)

$python scripts/pack.py --data-path "$labelled" --csv all.csv --output "$out/labelled" --size 64
$python scripts/pack.py --data-path "$unlabelled" --output "$out/unlabelled" --size 64
$python scripts/ablate.py run "${sweep[@]}" --folds 5 --parallel "${PARALLEL:-2}" --keep best \
    --data-path "$out/labelled" --unlabelled "$out/unlabelled" --output "$out"
$python scripts/fold_table.py join "${sweep[@]}" --folds 5 --output "$out" --save "$out/results/predictions" --tune
$python scripts/fold_table.py table "${sweep[@]}" --predictions "$out/results/predictions" --labels "$labelled/all.csv" \
    --scores mean Pneumonia --save "$out/results" --tune
