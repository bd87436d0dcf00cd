#!/usr/bin/env bash
# Labelled images, masked share: 1000_images_0.25 (simmim_pretrain__vit_small__img224__mae_study_1000_images_0.25.yaml, simmim_finetune__vit_small__img224__mae_study_reference.yaml). bash scripts/ablations/mae_study_1000_images_0.25.sh DATA OUTPUT [GPUS]. Written by scripts/make_ablations.py.
exec bash "$(dirname "$0")/run_row.sh" scripts/ablations/mae_study.yaml 1000_images_0.25 "$@"
