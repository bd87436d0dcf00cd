#!/usr/bin/env bash
# Input channels: 3. Pre-training, then fine-tuning.
# Changed in pre-training: MODEL.IN_CHANS 3.
# Changed in fine-tuning: MODEL.IN_CHANS 3.
#   bash scripts/ablations/channels_3.sh DATA OUTPUT [GPUS]
# SEED=1: another seed. PRETRAIN_OPTS, FINETUNE_OPTS: further options as 'KEY VALUE ...'.
# Started again after a stop, it goes on. Written by scripts/make_ablations.py.
set -euo pipefail
data=$(realpath "${1:?usage: bash scripts/ablations/channels_3.sh DATA OUTPUT [GPUS]}")
output=$(realpath -m "${2:?usage: bash scripts/ablations/channels_3.sh DATA OUTPUT [GPUS]}")
gpus=${3:-1}
seed=${SEED:-0}
cd "$(dirname "$0")/../.."
if [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; fi
launch=("${PYTHON:-python}")
# On several GPUs each takes its share of the micro-batches of an optimizer step.
if [[ ! $gpus =~ ^[1-9][0-9]*$ ]] || [ $((4 % gpus)) -ne 0 ] || [ $((8 % gpus)) -ne 0 ]; then
    echo "error: GPUS must divide 4 and 8, got $gpus" >&2
    exit 2
fi
if [ "$gpus" -gt 1 ]; then
    launch+=(-m torch.distributed.run --standalone --nproc_per_node "$gpus")
fi
finished() { # whether a run came to its end
    grep -qs '"finished": "' "$1/run.json" && echo "finished before: $1"
}

finished "$output/simmim_pretrain/channels_3_seed$seed" || "${launch[@]}" main_simmim.py \
    --cfg configs/swin_base__ablations/simmim_pretrain__swin_base__img192_window6__channels_3.yaml \
    --data-path "$data" --output "$output" --tag "channels_3_seed$seed" \
    --accumulation-steps $((4 / gpus)) --opts SEED "$seed" ${PRETRAIN_OPTS:-}

pretrained=$output/simmim_pretrain/channels_3_seed$seed
weights=$(cd "$pretrained" && ls -v ckpt_epoch_*.pth | grep -v _step_ | tail -n 1)
finished "$output/simmim_finetune/channels_3_seed$seed" || "${launch[@]}" main_finetune.py \
    --cfg configs/swin_base__ablations/simmim_finetune__swin_base__img192_window6__channels_3.yaml \
    --data-path "$data" --output "$output" --tag "channels_3_seed$seed" \
    --pretrained "$pretrained/$weights" \
    --accumulation-steps $((8 / gpus)) --opts SEED "$seed" ${FINETUNE_OPTS:-}
