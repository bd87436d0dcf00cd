#!/usr/bin/env bash
# Views: frontal and lateral in both stages instead of frontal alone. Frontal ones are scored.
#   bash scripts/ablations/nano/views_all_in_both.sh DATA OUTPUT      64 px, on a CPU
set -euo pipefail
if [ $# != 2 ]; then sed -n 3p "$0" >&2 && exit 2; fi
data=$(realpath "$1") output=$(realpath -m "$2")
seed=${SEED:-0} run=nano_views_all_in_both_seed${SEED:-0}
pretraining=nano_views_all_in_pretraining_seed$seed # of the row that only differs there
cd "$(dirname "$0")/../../.." && PATH=$PWD/.venv/bin:$PATH

python main_simmim.py \
    --cfg configs/swin_nano__ablations/simmim_pretrain__swin_nano__img64_window4__nano_reference.yaml \
    --data-path "$data" --output "$output" --tag "$pretraining" \
    --opts SEED "$seed" DATA.VIEWS all ${PRETRAIN_OPTS:-}
weights=$(ls -v "$output/simmim_pretrain/$pretraining"/ckpt_epoch_*.pth | grep -v '_step_[0-9]*.pth' | tail -n 1)
python main_finetune.py \
    --cfg configs/swin_nano__ablations/simmim_finetune__swin_nano__img64_window4__nano_reference.yaml \
    --data-path "$data" --output "$output" --tag "$run" --pretrained "$weights" \
    --opts SEED "$seed" DATA.VIEWS all EVAL.VIEWS frontal ${FINETUNE_OPTS:-}
