#!/usr/bin/env bash
# MAE ViT-B against ResNet-18 on MIMIC-CXR-JPG: docs/studies/mae_resnet.md. bash scripts/studies/mae_resnet.sh full|small|tiny [DATA|--list] [OUT]
# MAE_WEIGHTS and RESNET_WEIGHTS name the two files; tiny makes small ones with random values.
set -euo pipefail
export PHANTOM=${PHANTOM:---mimic --rarer 0.75 --train 250 --valid 250 --test 20 --size 80 --workers 2}
. "$(dirname "$0")/run.sh" mae_resnet "$@"
describe --examples 4
if [ "$scale" = tiny ]; then size=64 patch=8; else size=224 patch=16; fi
masks --types random --size $size --patch $patch --units $patch --ratios 0.25 0.5 0.75
reconstructions
reports
# The earlier task of the study, with one seed.
case $scale in tiny) images=(100 all) ;; small) images=(1000 10000) ;; *) images=(1000 10000 all) ;; esac
rows=()
for number in "${images[@]}"; do
    for row in mae_plain resnet_plain ours_mae_plain ours_resnet_plain; do rows+=("${row}_$number"); done
done
effusion=(--sweep scripts/studies/mae_resnet.yaml --scale "$scale" --output "$out/effusion" --seeds 1 --row "${rows[@]}")
$python scripts/ablate.py run "${run[@]}" "${effusion[@]}" --data-path "$data" --keep best \
    --finetune-opts "${FINETUNE_OPTS:-} DATA.TASK effusion"
$python scripts/ablate.py table "${effusion[@]}"
