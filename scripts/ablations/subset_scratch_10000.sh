#!/usr/bin/env bash
# Labelled pictures: scratch_10000. Fine-tuning.
# Changed in fine-tuning: DATA.TRAIN_IMAGES 10000, DATA.BATCH_SIZE 16, TRAIN.EPOCHS 80, TRAIN.WARMUP_EPOCHS 8, TRAIN.LAYER_DECAY 1.0.
#   bash scripts/ablations/subset_scratch_10000.sh DATA OUTPUT [GPUS]
# SEED=1: another seed. PRETRAIN_OPTS, FINETUNE_OPTS: further options as 'KEY VALUE ...'.
# Started again after a stop, it goes on. Written by scripts/make_ablations.py.
set -euo pipefail
data=$(realpath "${1:?usage: bash scripts/ablations/subset_scratch_10000.sh DATA OUTPUT [GPUS]}")
output=$(realpath -m "${2:?usage: bash scripts/ablations/subset_scratch_10000.sh DATA OUTPUT [GPUS]}")
gpus=${3:-1}
seed=${SEED:-0}
cd "$(dirname "$0")/../.."
if [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; fi
launch=("${PYTHON:-python}")
# On several GPUs each takes its share of the micro-batches of an optimizer step.
if [[ ! $gpus =~ ^[1-9][0-9]*$ ]] || [ $((8 % gpus)) -ne 0 ]; then
    echo "error: GPUS must divide 8, got $gpus" >&2
    exit 2
fi
if [ "$gpus" -gt 1 ]; then
    launch+=(-m torch.distributed.run --standalone --nproc_per_node "$gpus")
fi
finished() { # whether a run came to its end
    grep -qs '"finished": "' "$1/run.json" && echo "finished before: $1"
}

finished "$output/simmim_finetune/subset_scratch_10000_seed$seed" || "${launch[@]}" main_finetune.py \
    --cfg configs/swin_base__ablations/simmim_finetune__swin_base__img192_window6__subset_scratch_10000.yaml \
    --data-path "$data" --output "$output" --tag "subset_scratch_10000_seed$seed" \
    --accumulation-steps $((8 / gpus)) --opts SEED "$seed" ${FINETUNE_OPTS:-}
