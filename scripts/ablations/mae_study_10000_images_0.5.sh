#!/usr/bin/env bash
# Labelled images, masked share: 10000_images_0.5 (simmim_pretrain__vit_small__img224__mae_study_1000_images_0.5.yaml, simmim_finetune__vit_small__img224__mae_study_10000_images_0.5.yaml). bash scripts/ablations/mae_study_10000_images_0.5.sh DATA OUTPUT [GPUS]. Written by scripts/make_ablations.py.
exec bash "$(dirname "$0")/run_row.sh" scripts/ablations/mae_study.yaml 10000_images_0.5 "$@"
