#!/usr/bin/env bash
# MAE ViT-B against ResNet-18 on MIMIC-CXR-JPG: docs/studies/mae_resnet.md. bash scripts/studies/mae_resnet.sh full|small|tiny [DATA|--list] [OUT]
# MAE_WEIGHTS and RESNET_WEIGHTS name the two files; tiny makes small ones with random values.
export PHANTOM=${PHANTOM:---mimic --train 250 --valid 250 --test 20 --size 80 --workers 2}
exec bash "$(dirname "$0")/run.sh" mae_resnet "$@"
