#!/usr/bin/env bash
# Does SimMIM help the Swin, and would MAE help more? docs/studies/main_model.md has the design.
#   bash scripts/studies/main_model.sh LABELLED UNLABELLED OUT
# LABELLED: CheXpert's layout with one CSV file, all.csv. UNLABELLED: a folder of images.
# PARTS='primary probes': only these parts (resnet18, only if named: not timed).
# SEED=3: only this seed. PARALLEL=2: runs at a time, one CPU
# core each. About 40 core-hours in all. Run again after a stop, it resumes. Copy the
# predictions of finished seeds to OUT/results/predictions, and the tables contain them.
. "$(dirname "$0")/prepare.sh"
variants='normalised hog ratio75 unit16 crops20 noise'

# part NAME SEEDS 'METHOD ...' 'SHARE ...': run these rows if the part is wanted.
part() {
    case " ${PARTS:-primary baselines probes vit longer exploratory start} " in *" $1 "*) ;; *) return 0 ;; esac
    local method share rows=() seeds=(--seeds "$2")
    if [ -n "${SEED:-}" ]; then
        [ "$SEED" -lt "$2" ] || return 0
        seeds=(--seed "$SEED")
    fi
    for method in $3; do for share in $4; do rows+=("${method}_$share"); done; done
    echo "main_model: part $1"
    $python scripts/ablate.py run "${sweep[@]}" "${seeds[@]}" --row "${rows[@]}" --folds 5 --keep best \
        --parallel "${PARALLEL:-2}" --data-path "$out/labelled" --unlabelled "$out/unlabelled" --output "$out"
}

part primary 10 "$(echo {,scratch_}swin{,_low,_high})" '1 0.1'
part baselines 10 'pixels metadata' '1 0.1'
part resnet18 5 "$(echo resnet18{,_low,_high})" '1 0.1'
part probes 5 "$(echo {linear,attentive}_{,random_}swin)" '1 0.1'
part vit 5 "$(echo {mae,mae0,simmim,scratch}{,_low,_high} {linear,attentive}_{mae,mae0,simmim,random})" '1 0.1'
part longer 3 "$(echo scratch{60,120}{,_low})" 1
for name in swin20 $variants epochs150; do part exploratory 3 "$name ${name}_low ${name}_high attentive_$name" 1; done
part exploratory 3 "$(echo images{3000,1500}{,_low,_high})" 1
for seed in ${SEED:-0 1 2 3 4}; do
    weights=$out/simmim_pretrain/main_model_mae0_seed$seed/ckpt_epoch_0.pth
    SEED=$seed MAE0_WEIGHTS=$weights part start 5 "$(echo {,linear_,attentive_}simmim0 simmim0_{low,high})" 1
done

$python scripts/ablate.py join "${sweep[@]}" --folds 5 --seeds 10 --tune --output "$out" --save "$out/results/predictions"
bash scripts/studies/main_model_tables.sh "$out/results/predictions" "$labelled/all.csv" "$out/results"
