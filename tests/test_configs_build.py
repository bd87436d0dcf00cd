"""The YAML files under configs/ load, build models of the known size, and suit their data.

SimMIM's own options are compared in test_parity_configs.py, commands in test_readme.py, and the
configs of sweeps in test_sweeps_files.py.
"""

from pathlib import Path

import pytest
import torch

from config import STAGES, check_config, default_config, fit_to_task, refuse_other_stage
from models import build_model
from models.contrastive import build_contrastive

ROOT = Path(__file__).parents[1]
YAMLS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / 'configs').rglob('*.yaml')
    if path.parent.name not in ('base', 'datasets') and not path.parent.name.endswith('__ablations')
)

# Trainable parameters, from the sizes that other projects state.
# Swin-B: SimMIM's 89,874,104 and 87,750,176, less 2 channels of 128 x 4 x 4 weights in the patch
# embedding, of 1024 x (1024 + 1) in the decoder, and 986 x (1024 + 1) of the head.
# ConvNeXt: timm's 88,591,464, less 2 channels of 128 x 4 x 4 and 986 labels.
# RAD-DINO: Dinov2Model of transformers, 86,580,480, less (37^2 - 16^2) x 768 positions, a mask
# token, 2 channels of 768 x 14 x 14 and 12 x 768 biases of keys; and a head for 14 labels.
# ResNet and DenseNet: torchvision's 25,557,032 and 7,978,856, less 2 channels of 64 x 7 x 7 and 986
# labels.
# MAE: a block of width D has 12 D^2 + 12 D. ViT-S has 12 blocks and 256 + 1 + 1 + 2 rows of 384;
# the decoder has 8 blocks of 512, 384 + 1 + 1 + 2 rows of 512, and 512 x 256 + 256.
PARAMETERS = {
    'simmim_pretrain__vit_small__img224__mae_100ep': 46_933_760,
    'simmim_pretrain__swin_base__img192_window6__chexpert_800ep': 87_770_808,
    'simmim_finetune__swin_base__img192_window6__chexpert_800ep': 86_735_430,
    'simmim_finetune__convnext_base__img512__chexpert_highres': 87_576_718,
    'simmim_finetune__rad_dino__img224__chexpert_30ep': 85_425_422,
    'simmim_finetune__resnet50__img224__chexpert_20ep': 23_530_446,
    'simmim_finetune__densenet121__img320__chexpert_3ep': 6_961_934,
}


def stem(path: str) -> str:
    return Path(path).stem


def stage_of(path: str) -> str:
    if 'pretrain' not in stem(path):
        return 'finetune'
    return 'contrastive' if stem(path).startswith('contrastive_') else 'simmim'


@pytest.fixture(autouse=True)
def no_initial_values(monkeypatch) -> None:
    """Without weights, drawing them takes more time than all else."""
    for name in ('normal_', 'uniform_', 'erfinv_', 'fill_', 'zero_', 'mul_', 'add_', 'clamp_'):
        monkeypatch.setattr(torch.Tensor, name, lambda tensor, *_, **__: tensor, raising=False)


@pytest.mark.parametrize('path', YAMLS, ids=stem)
def test_it_is_of_its_stage_alone_and_builds_its_model(path) -> None:
    config, stage = default_config(), stage_of(path)
    config.merge_from_file(str(ROOT / path))
    refuse_other_stage(config, stage)
    for other in {*STAGES} - {stage}:
        with pytest.raises(ValueError, match=rf'main_{stage}\.py.*main_{other}\.py.* --cfg'):
            refuse_other_stage(config, other)
    # SimMIM's own recipes are for ImageNet, which fine-tuning does not accept.
    used_in = stage if '__chexpert_' in path or stage != 'finetune' else None
    fit_to_task(config, used_in)
    check_config(config, used_in)
    with torch.device('meta'):
        if stage == 'contrastive':
            model = build_contrastive(config, total_steps=1)
        else:
            model = build_model(config, is_pretrain=stage == 'simmim')
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert count == PARAMETERS.get(stem(path), count)
