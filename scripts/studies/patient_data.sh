#!/usr/bin/env bash
# Do age, sex and view add to what a frozen encoder sees? docs/evaluation.md has the result.
#   bash scripts/studies/patient_data.sh OUT
# It reads examples/xrays and the shipped weights. PARALLEL=2: runs at a time. Run again after a stop, it resumes.
set -euo pipefail
. "$(dirname "$0")/../help.sh"
out=$(realpath -m "${1:?usage: bash scripts/studies/patient_data.sh OUT}")
cd "$(dirname "$0")/../.."
. scripts/setup.sh
setup studies
python=.venv/bin/python
export PYTHON=$PWD/$python OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= MAE_WEIGHTS=mae-vit-64px
sweep=(--sweep scripts/studies/patient_data.yaml)
mkdir -p "$out"
{ cat examples/xrays/train.csv; tail -n +2 examples/xrays/valid.csv; } >"$out/all.csv"
$python scripts/ablate.py run "${sweep[@]}" --folds 5 --parallel "${PARALLEL:-2}" --keep best --output "$out" \
    --data-path examples/xrays --unlabelled examples/xrays --finetune-opts "DATA.TRAIN_CSV $out/all.csv"
$python scripts/ablate.py join "${sweep[@]}" --folds 5 --seeds 1 --output "$out" --save "$out/results"
table=("$python" scripts/ablate.py table "${sweep[@]}" --predictions "$out/results" --labels "$out/all.csv")
"${table[@]}" --scores Pneumonia auroc_within_views:Pneumonia mean auroc_within_views:mean --save "$out/results"

# One page with all tables.
cd "$out/results"
{
    echo '# Patient data beside the image: tables'
    for file in patient_data_{all_scores,Pneumonia,auroc_within_views_Pneumonia,mean,auroc_within_views_mean}.md; do
        printf '\n## %s\n\n' "$(sed -E 's/patient_data_(.*).md/\1/; s/auroc_within_views_(.*)/\1 within views/; s/_/ /g' <<<"$file")"
        cat "$file"
        rm "$file"
    done
} >tables.md
rm -- *.tex *_scores.csv
