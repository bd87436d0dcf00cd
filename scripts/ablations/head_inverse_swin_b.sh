#!/usr/bin/env bash
# Reconstruction head: inverse_swin_b instead of linear. Fine-tuning is as in the reference.
#   bash scripts/ablations/head_inverse_swin_b.sh DATA OUTPUT [GPUS]     1 (default), 2 or 4 GPUs
#   bash scripts/ablations/nano/head_inverse_swin_b.sh DATA OUTPUT      64 px, on a CPU
set -euo pipefail
if [[ $# -lt 2 || ${3:-1} != [124] ]]; then sed -n '3,4p' "$0" >&2 && exit 2; fi
data=$(realpath "$1") output=$(realpath -m "$2") gpus=${3:-1}
seed=${SEED:-0} run=head_inverse_swin_b_seed${SEED:-0}
cd "$(dirname "$0")/../.." && PATH=$PWD/.venv/bin:$PATH

torchrun --standalone --nproc_per_node "$gpus" main_simmim.py \
    --cfg configs/swin_base__ablations/simmim_pretrain__swin_base__img192_window6__head_inverse_swin_b.yaml \
    --data-path "$data" --output "$output" --tag "$run" \
    --opts SEED "$seed" TRAIN.ACCUMULATION_STEPS $((4 / gpus)) ${PRETRAIN_OPTS:-}
weights=$(ls -v "$output/simmim_pretrain/$run"/ckpt_epoch_*.pth | grep -v '_step_[0-9]*.pth' | tail -n 1)
torchrun --standalone --nproc_per_node "$gpus" main_finetune.py \
    --cfg configs/swin_base__ablations/simmim_finetune__swin_base__img192_window6__reference.yaml \
    --data-path "$data" --output "$output" --tag "$run" --pretrained "$weights" \
    --opts SEED "$seed" TRAIN.ACCUMULATION_STEPS $((8 / gpus)) ${FINETUNE_OPTS:-}
