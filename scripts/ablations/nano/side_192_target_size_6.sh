#!/usr/bin/env bash
# Target resolution at 192 px: 6 instead of 192 px per side.
#   bash scripts/ablations/nano/side_192_target_size_6.sh DATA OUTPUT      192 px, on a CPU
set -euo pipefail
if [ $# != 2 ]; then sed -n 3p "$0" >&2 && exit 2; fi
data=$(realpath "$1") output=$(realpath -m "$2")
seed=${SEED:-0} run=nano_side_192_target_size_6_seed${SEED:-0}
cd "$(dirname "$0")/../../.." && PATH=$PWD/.venv/bin:$PATH

python main_simmim.py \
    --cfg configs/swin_nano__ablations/simmim_pretrain__swin_nano__img64_window4__nano_reference.yaml \
    --data-path "$data" --output "$output" --tag "$run" \
    --opts SEED "$seed" DATA.IMG_SIZE 192 MODEL.SWIN.WINDOW_SIZE 6 DATA.MASK_PATCH_SIZE 32 MODEL.SIMMIM.TARGET_SIZE 6 ${PRETRAIN_OPTS:-}
weights=$(ls -v "$output/simmim_pretrain/$run"/ckpt_epoch_*.pth | grep -v '_step_[0-9]*.pth' | tail -n 1)
python main_finetune.py \
    --cfg configs/swin_nano__ablations/simmim_finetune__swin_nano__img64_window4__nano_reference.yaml \
    --data-path "$data" --output "$output" --tag "$run" --pretrained "$weights" \
    --opts SEED "$seed" DATA.IMG_SIZE 192 MODEL.SWIN.WINDOW_SIZE 6 ${FINETUNE_OPTS:-}
